/* block/blk.h - the waist of the block layer: every disk, of any format, through these calls.
 *
 * Offsets and lengths are bytes.  blk.c checks range and state, splits at the driver's limits and
 * asserts what the driver promised; formats hold no such checks and callers no format knowledge.
 *
 * Calls may come from several threads at once; a driver that cannot take that leaves .parallel
 * unset and blk.c serialises it.  Errors are negative errno. */
#pragma once

#include "base/types.h"

#include <sys/uio.h>

struct blk;
struct error;

enum {
	BLK_READONLY = 1 << 0,
	BLK_NO_LOCK = 1 << 1, /* do not take the image lock (tests, forensic reads) */
	BLK_NO_POOL = 1 << 2, /* no threads: for tools and inner layers, which never blk_submit */
};

struct blk_info {
	const char *format;
	uint64_t size;       /* virtual size, bytes */
	uint32_t block_size; /* logical sector, 512 or 4096 */
	bool readonly, can_discard, can_zero;
};

/* format: "raw", ... ; NULL or "auto" probes, which is refused for a writable disk. */
int blk_open(struct blk **out, const char *path, const char *format, unsigned flags,
	     struct error *err);
void blk_close(struct blk *b); /* flushes first; NULL is fine */
const struct blk_info *blk_info(const struct blk *b);

int blk_read(struct blk *b, void *buf, size_t len, uint64_t off);
int blk_write(struct blk *b, const void *buf, size_t len, uint64_t off);
int blk_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t off);
int blk_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t off);
int blk_flush(struct blk *b);
int blk_discard(struct blk *b, uint64_t off, uint64_t len); /* a hint */
int blk_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap);

/* The state of [off, off+*len): shortens *len to the run that shares one answer. */
enum blk_extent { BLK_EXT_DATA, BLK_EXT_ZERO, BLK_EXT_HOLE };
int blk_extent(struct blk *b, uint64_t off, uint64_t *len, enum blk_extent *what);

/* Change the virtual size, with nothing else in flight; new bytes read as zeroes.  -ENOTSUP when
 * the format cannot. */
int blk_resize(struct blk *b, uint64_t size);

/* Asynchronous requests on a small pool of threads, for devices.  done() runs on a pool thread;
 * it may submit, and owns r again.  Requests in flight together complete in any order.  blk_drain
 * returns when the done() of all that was submitted before has returned; not from done(). */
struct blk_req {
	enum { BLK_OP_READ, BLK_OP_WRITE, BLK_OP_FLUSH, BLK_OP_DISCARD, BLK_OP_ZERO } op;
	const struct iovec *iov; /* READ, WRITE: borrowed until done */
	unsigned nr_iov;
	uint64_t off, len; /* len: DISCARD, ZERO */
	bool may_unmap;
	void (*done)(struct blk_req *r, int result); /* 0 or -errno */
	struct blk_req *next;                        /* the pool's */
	struct blk *blk;                             /* the pool's */
	unsigned epoch;                              /* the pool's */
};
void blk_submit(struct blk *b, struct blk_req *r);
void blk_drain(struct blk *b);
