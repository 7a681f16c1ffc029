/* jail/proxy.h - a disk that another process of ours holds, over a socket pair.
 *
 * The two ends trust each other differently: who serves may be the one who reaches a network for a
 * jailed reader, or the jailed reader for one who writes files.  Each checks what the other sends;
 * a peer that is gone or talks nonsense is -EIO.  Offsets and lengths are bytes. */
#pragma once

#include "block/blk.h"

/* Both ends of a connection, or -errno. */
int proxy_pair(int fd[2]);

/* Is [off, off + len) known to be unreadable? (proxy_is_bad on the other side) */
typedef bool (*proxy_bad_fn)(void *opaque, uint64_t off, uint64_t len);

/* Serve b, borrowed, on fd until the other end closes it.  Requests one after the other.  bad may
 * be NULL.  0, or -EIO when the peer broke the rules. */
int proxy_serve(int fd, struct blk *b, proxy_bad_fn bad, void *opaque);
/* In place of proxy_serve where the disk could not be opened: the other end is told why. */
void proxy_refuse(int fd, int code, const char *sentence);

/* The disk served on fd, which is taken also on failure: exact size, read-only.  name: for
 * messages.  Waits until the other end has opened it; its refusal is the error. */
int proxy_open(struct blk **out, int fd, const char *name, struct error *err);
bool proxy_is_bad(struct blk *b, uint64_t off, uint64_t len);
