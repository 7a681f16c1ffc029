/* console/impl.h - the inside of a chardev, for the files of this folder only.
 *
 * A kind (stdio, file, unix, null) opens descriptors and hands them to chr_set_in and chr_set_out;
 * chardev.c moves the bytes. */
#pragma once

#include "base/evloop.h"
#include "console/chardev.h"
#include "console/terminal.h"

#include <pthread.h>

struct chr_ring {
	uint8_t *bytes;
	size_t size, start, used;
};

/* May a write to the descriptor block us? */
enum chr_blocking {
	CHR_NONBLOCK, /* no: O_NONBLOCK is set, or it is a regular file */
	CHR_SHARED,   /* yes, and it is not ours to change: ask poll before each write */
};

struct chr_kind {
	const char *name;
	bool has_arg; /* "name=ARG", otherwise "name" */
	int (*open)(struct chardev *c, const char *arg, struct error *err);
	/* Optional, on the loop: no more input will come from in_fd.  NULL: it is dropped. */
	void (*input_ended)(struct chardev *c);
	/* Optional: give back what open took, other than what chr_set_in/out were given. */
	void (*close)(struct chardev *c);
};

struct chardev {
	const struct chr_kind *kind;
	struct evloop *loop;
	bool discard; /* output goes nowhere */
	bool is_tty;  /* input is a terminal in raw mode: Ctrl-A is ours */

	/* The loop's alone, once open. */
	int in_fd; /* -1: none */
	bool own_in, in_pollable;
	struct ev_fd in_watch;
	struct chr_ring in;
	struct terminal_keys keys;

	/* unix only. */
	int listen_fd;
	struct ev_fd listen_watch;
	char *socket_path;

	pthread_mutex_t lock; /* guards all below */
	int out_fd;
	bool own_out, out_pollable;
	enum chr_blocking blocking;
	struct ev_fd out_watch;
	struct chr_ring out;
	bool keep_latest; /* nobody reads now: drop the oldest output rather than wait */
	bool drain_posted, input_posted;
	bool device_waits; /* chr_write took less than all: call writable later */
	struct chr_handlers handlers;
};

/* own: close it in the end.  On failure an owned descriptor is closed. */
int chr_set_in(struct chardev *c, int fd, bool own, struct error *err);
int chr_set_out(struct chardev *c, int fd, bool own, enum chr_blocking blocking, struct error *err);
void chr_drop_in(struct chardev *c);
void chr_drop_out(struct chardev *c);
/* While on, a full buffer loses its oldest bytes; off: they go to the reader that has come. */
void chr_keep_latest(struct chardev *c, bool on);

extern const struct chr_kind chr_stdio, chr_stdout, chr_unix;
