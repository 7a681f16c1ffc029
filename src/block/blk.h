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
	/* The bytes of a file, for the format that lives in them: its exact size, no rounding to
	 * sectors; writes behind the end extend it. */
	BLK_FILE = 1 << 3,
	BLK_NO_BACKING = 1 << 4, /* this layer alone: what it does not hold reads as zeroes */
	BLK_CHECKING = 1 << 5,   /* for blk_check: open also what is marked dirty or corrupt */
	BLK_RECOVER = 1 << 6,    /* read what can be read of a damaged image; warns, read-only */
	/* Flushes do nothing: for an image that is thrown away when the job does not end. */
	BLK_NO_FLUSH = 1 << 7,
};

struct blk_info {
	const char *format;
	uint64_t size;       /* virtual size, bytes */
	uint32_t block_size; /* logical sector, 512 or 4096 */
	uint32_t cluster;    /* unit of allocation (cluster, grain, block), bytes; 0: none */
	bool readonly, can_discard, can_zero;
	bool encrypted, dirty, corrupt; /* as the image says of itself */
};

/* --- opening --------------------------------------------------------------------------------- */

/* How to reach a source on a network; what is NULL or 0 is as the system has it.  Never in a name,
 * which others can see: no passwords there. */
struct blk_remote_opts {
	const char *password_file; /* its first line, for the user in an https:// name */
	const char *ca_file;       /* PEM: who may sign the server's certificate, instead of all */
	/* The server has this public key, whoever signed it: "sha256//BASE64" of its DER, or hex.
	 */
	const char *pin;
	const char *ssh; /* the ssh program and its options, split at spaces; else $TRIVISOR_SSH */
	unsigned timeout_s; /* no byte for so long: the connection is lost; 0: 30 */
	unsigned attempts;  /* connections in a row that come to nothing; 0: 5 */
};

/* More about how to open.  Borrowed during the call; children inherit it. */
struct blk_open_opts {
	/* Where files an image names (backing file, data file, extent, parent) may lie, besides the
	 * directory of the image itself and below.  "/" allows all. */
	const char *const *allow_ref;
	unsigned nr_allow_ref;
	/* The passphrase of an encrypted image: its length, or -errno.  NULL: there is none. */
	int (*secret)(void *opaque, const char *path, char *buf, size_t cap);
	void *opaque;
	const char *snapshot; /* show this internal snapshot (id or name); read-only */
	const struct blk_remote_opts *remote; /* NULL: as the system has it */
	/* For images whose files are none of this host: gives the file that the image `from` names,
	 * as BLK_FILE asks, with its path set as messages and further names want it; -ENOENT.  Then
	 * nothing else is looked for anywhere.  NULL: files of this host, as above. */
	int (*ref)(void *ref_opaque, const char *from, const char *name, struct blk **file,
		   struct error *err);
	void *ref_opaque;
};

/* format: "raw", "qcow2", ...; NULL or "auto" probes, which is refused for a writable disk.  path:
 * a file, a device, or a source with a scheme ("nbd://", "https://", "ova:FILE!MEMBER"; sources.c).
 * opts may be NULL. */
int blk_open(struct blk **out, const char *path, const char *format, unsigned flags,
	     struct error *err);
int blk_open_with(struct blk **out, const char *path, const char *format, unsigned flags,
		  const struct blk_open_opts *opts, struct error *err);
/* On bytes that are a disk already (opened with BLK_FILE, or made by blk_wrap): file belongs to the
 * new disk, also on failure.  path is for messages and for names relative to it. */
int blk_open_on(struct blk **out, struct blk *file, const char *path, const char *format,
		unsigned flags, const struct blk_open_opts *opts, struct error *err);
void blk_close(struct blk *b); /* flushes first; NULL is fine */
const struct blk_info *blk_info(const struct blk *b);
uint64_t blk_size(const struct blk *b);    /* info.size, also while another thread extends a file */
const char *blk_path(const struct blk *b); /* as opened */
struct blk *blk_backing(const struct blk *b); /* borrowed; NULL at the end of the chain */
/* The backing file as the image names it, and its format; NULL: none, or not named by a file. */
const char *blk_backing_name(const struct blk *b, const char **format);

/* The format a file seems to have, by its content: for people, never for a guest's disk. */
int blk_probe(const char *path, const char **format, struct error *err);

/* --- data ------------------------------------------------------------------------------------ */

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

/* The same with where it is.  what == BLK_EXT_HOLE with .host NULL and depth at the last layer:
 * nobody holds it, it reads as zeroes.  A raw disk's holes have a .host: the place is there. */
struct blk_map {
	uint64_t len; /* in: how far to look; out: the run that shares one answer */
	enum blk_extent what;
	bool compressed;
	unsigned depth;    /* 0: this image; 1: its backing file; ... */
	struct blk *host;  /* the file the bytes lie in as they are (borrowed), or NULL */
	uint64_t host_off; /* there */
};
int blk_map(struct blk *b, uint64_t off, struct blk_map *m);
bool blk_same_file(const struct blk *a, const struct blk *b); /* two .hosts */

/* Change the virtual size, with nothing else in flight; new bytes read as zeroes.  -ENOTSUP when
 * the format cannot. */
int blk_resize(struct blk *b, uint64_t size);

/* Copy between two files inside the kernel.  share: only if the file system makes them share the
 * blocks, which takes no time.  -ENOTSUP when either is not a file of this host, or they cannot:
 * then read and write. */
int blk_copy_range(struct blk *from, uint64_t from_off, struct blk *to, uint64_t to_off,
		   uint64_t len, bool share);

/* Compressed clusters, for images made in one go.  blk_pack makes one from cluster bytes (the last
 * one of a disk may be shorter): 0 and *out_len <= cap, or -E2BIG when it does not get smaller.
 * Any number of threads.  blk_write_packed places it; where blk_packs_in_order(), ascending only.
 * A cluster is written once. */
bool blk_can_pack(const struct blk *b);
bool blk_packs_in_order(const struct blk *b); /* such an image is best made of packed ones alone */
size_t blk_pack_bound(const struct blk *b);   /* a cap that always suffices */
int blk_pack(struct blk *b, const void *data, size_t len, void *out, size_t cap, size_t *out_len);
int blk_write_packed(struct blk *b, const void *packed, size_t packed_len, size_t len,
		     uint64_t off);

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
