/* control/control.h - the control socket of one VM process: QMP's wire format, our commands.
 *
 * One JSON object per message, greeting first, then capabilities, commands and events, as QEMU's
 * machine protocol lays down (docs/interop/qmp-spec of QEMU 7.2); what there is to say is in the
 * table of commands.c and in docs/control-protocol.md.  This folder knows no VM: it asks one
 * through struct control_vm, and is told of events.
 *
 * All calls on the event loop's thread, callbacks too.  Clients are hostile: what they send is
 * bounded in length and depth, what they do not read costs them the connection, and none of it
 * makes the loop wait.  Errors are -errno and a sentence. */
#pragma once

#include "base/types.h"

#include <stdio.h>

struct control_server;
struct error;
struct evloop;

struct control_status {
	bool running;
	const char *status; /* "running", "paused", "save-vm", "shutdown" */
};

enum control_save_then { CONTROL_SAVE_STOP, CONTROL_SAVE_CONT, CONTROL_SAVE_QUIT };

/* What the protocol may ask of a VM; all members are there. */
struct control_vm {
	void (*status)(void *opaque, struct control_status *st);
	unsigned (*nr_cpus)(void *opaque);
	int (*cpu_thread)(void *opaque, unsigned cpu); /* Linux thread id */
	int (*stop)(void *opaque, struct error *err);
	int (*cont)(void *opaque, struct error *err);
	int (*reset)(void *opaque, struct error *err);
	int (*power_button)(void *opaque, struct error *err);
	void (*quit)(void *opaque);
	/* 0: a CONTROL_SAVE_COMPLETED or _FAILED will follow. */
	int (*save)(void *opaque, const char *file, enum control_save_then then, struct error *err);
};

enum control_event_kind {
	CONTROL_STOP,
	CONTROL_RESUME,
	CONTROL_RESET,
	CONTROL_POWERDOWN,
	CONTROL_SHUTDOWN,
	CONTROL_SAVE_PROGRESS,
	CONTROL_SAVE_COMPLETED,
	CONTROL_SAVE_FAILED,
};

/* Strings are borrowed for the call. */
struct control_event {
	enum control_event_kind kind;
	bool guest;         /* RESET, SHUTDOWN: the guest did it */
	const char *reason; /* RESET, SHUTDOWN: QEMU's words, "guest-shutdown" */
	const char *file;   /* SAVE_* */
	uint64_t done,
		total;     /* SAVE_PROGRESS: bytes of memory; SAVE_COMPLETED: done = file's size */
	const char *error; /* SAVE_FAILED */
};

/* Listens at path, mode 0600; a socket that nobody serves any more is replaced.  vm is copied. */
int control_server_create(struct control_server **out, const char *path, struct evloop *loop,
			  const struct control_vm *vm, void *opaque, struct error *err);
/* Sends what can be sent without long waiting, closes, removes the socket.  NULL is fine. */
void control_server_destroy(struct control_server *s);
void control_server_tell(struct control_server *s, const struct control_event *ev);

/* The table, for people: the generated part of docs/control-protocol.md. */
void control_print_protocol(FILE *out);
