/* console/chardev.h - the host end of a byte stream: where a serial port's bytes go and come from.
 *
 * Output is never blocked by the host: bytes go to a bounded buffer drained by the event loop; a
 * full one drops the oldest for file-less readers (an unconnected socket) and pauses the device
 * (chr_write returns fewer) otherwise.  Input comes by callback on the event loop.
 *
 * chr_open and chr_close are called on the loop's thread, or while the loop does not run. */
#pragma once

#include "base/types.h"

struct chardev;
struct error;
struct evloop;

/* spec: "stdio", "stdout" (output only), "file=PATH", "unix=PATH" (listens; one client at a time),
 * "null". stdio puts a terminal into raw mode until chr_close; Ctrl-A x calls the quit handler, on
 * the loop, Ctrl-A a sends a Ctrl-A, Ctrl-A h lists the keys.  When standard input is no terminal
 * all bytes are the guest's, and its end is merely the end of input.  stdio and unix ignore SIGPIPE
 * for the whole process. */
int chr_open(struct chardev **out, const char *spec, struct evloop *loop, struct error *err);
void chr_close(struct chardev *c); /* drains what it can without blocking long, restores the tty */

struct chr_handlers {
	/* How many bytes the device can take now, and the bytes. */
	size_t (*can_receive)(void *opaque);
	void (*receive)(void *opaque, const uint8_t *buf, size_t len);
	void (*writable)(void *opaque); /* after a short chr_write: there is room again */
	void *opaque;
};
void chr_set_handlers(struct chardev *c, const struct chr_handlers *h);
void chr_accept_input(struct chardev *c); /* the device has room again; any thread */
size_t chr_write(struct chardev *c, const uint8_t *buf, size_t len); /* any thread */

/* Process-wide: what Ctrl-A x does. */
void chr_set_quit(void (*quit)(void *opaque), void *opaque);
