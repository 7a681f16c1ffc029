/* block/vmdk/vmdk.h - the parts of the VMDK driver, among themselves.
 *
 * A VMDK disk is a descriptor (text) and one or more extents, each in a file: flat, hosted sparse,
 * stream-optimised, COWD (vmfsSparse) or seSparse.  docs/formats/vmdk.md draws them.  Here and in
 * the .c files beside: sizes and offsets are bytes unless a name says sectors; an "offset in an
 * extent" starts at that extent's first byte.  Errors are -errno, with a sentence where a struct
 * error is taken.  Who may call: block/vmdk/ only.
 *
 * Specification: "Virtual Disk Format 5.0" (VMware), called VDF below; the parts it leaves out
 * (COWD's fields, seSparse) from the libvmdk project's description. */
#pragma once

#include "block/format.h"
#include "block/iov.h"

#include <pthread.h>
#include <stdatomic.h>

struct libdeflate_decompressor;

enum { SECTOR = 512 };

/* What an image may ask for.  Memory for one disk stays under: descriptor 3 MiB; for each extent
 * GD_MAX * 4 bytes twice (grain directories) + GD_MAX * 8 (pointers, touched where used); grain
 * tables CACHE_BYTES for the disk (more only for a stream-optimised image while it is written or
 * when its directory is rebuilt: 4 bytes per grain); UNPACKED_CACHE + two grains per thread. */
#define VMDK_DESC_MAX         (1 * MiB)
#define VMDK_EXTENTS_MAX      4096u
#define VMDK_GD_MAX           (4u << 20) /* entries: 128 TiB with the usual grains */
#define VMDK_GRAIN_MAX        (1 * GiB)  /* VDF names no limit; others take 0x200000 sectors */
#define VMDK_PACKED_GRAIN_MAX (16 * MiB)
#define VMDK_CACHE_BYTES      (64 * MiB)
#define VMDK_UNPACKED_CACHE   (4 * MiB)
#define VMDK_SECTORS_MAX      (1ull << 53) /* 4 EiB: a disk's size fits an off_t */

#define VMDK_GD_AT_END UINT64_MAX  /* in a header: a footer has it */
#define CID_NONE       0xffffffffu /* parentCID of a disk without parent */

/* ---- desc.c: the descriptor ---- */

enum vmdk_access { ACCESS_RW, ACCESS_RDONLY, ACCESS_NOACCESS };
enum vmdk_type { TYPE_FLAT, TYPE_SPARSE, TYPE_ZERO, TYPE_VMFS, TYPE_COWD, TYPE_SESPARSE, TYPE_RDM };

struct vmdk_desc_extent {
	enum vmdk_access access;
	enum vmdk_type type;
	uint64_t sectors, offset; /* offset: sectors, in the file */
	char *name;               /* UTF-8; NULL for ZERO */
};

struct vmdk_desc {
	char *text; /* as in the file, up to its NUL; unknown lines stay in it */
	uint32_t cid, parent_cid;
	char create_type[40];
	char *parent_hint; /* UTF-8, or NULL */
	struct vmdk_desc_extent *ext;
	unsigned nr_ext;
};

/* Takes a copy of text.  On failure *d is empty. */
int vmdk_desc_parse(struct vmdk_desc *d, const char *text, size_t len, const char *path,
		    struct error *err);
void vmdk_desc_fini(struct vmdk_desc *d);
bool vmdk_desc_is(const struct vmdk_desc *d, const char *create_type); /* ignores case */
/* How sure that these bytes begin a descriptor: 0 .. 100. */
int vmdk_desc_probe(const uint8_t *head, size_t len);
/* The value of a key without its quotes, in a static-sized buffer; false when it is not there. */
bool vmdk_desc_value(const struct vmdk_desc *d, const char *key, char *buf, size_t cap);
/* Change one line and leave all others.  value NULL removes the line.  after: the key behind which
 * a missing line goes (NULL: at the end). */
int vmdk_desc_set(struct vmdk_desc *d, const char *key, const char *value, bool quoted,
		  const char *after);
int vmdk_desc_set_sectors(struct vmdk_desc *d, unsigned extent, uint64_t sectors);
uint32_t vmdk_random_cid(void);
/* "cylinders, heads, sectors" lines and the rest of the disk data base, as VMware writes them. */
struct vmdk_geometry {
	uint64_t cylinders;
	unsigned heads, sectors;
};
struct vmdk_geometry vmdk_geometry(uint64_t size, const char *adapter);

/* ---- extents ---- */

enum vmdk_kind { KIND_FLAT, KIND_ZERO, KIND_HOSTED, KIND_STREAM, KIND_COWD, KIND_SESPARSE };

/* One grain table in memory, as it is on disk. */
struct vmdk_gt {
	uint32_t index;
	bool dirty;        /* differs from the file */
	bool fresh;        /* the file's grain directory does not lead to it yet */
	bool busy;         /* being written */
	_Atomic bool used; /* since the clock's hand came by */
	uint8_t raw[];
};

/* Grains that a thread is giving a place in the file. */
struct vmdk_claim {
	uint64_t first, end;
	struct vmdk_claim *next;
};

/* An unpacked grain, kept for the next small read.  Known by its place in the file: what is written
 * there is never changed. */
struct vmdk_unpacked {
	uint64_t off, used;
	uint8_t *data; /* NULL: none */
};

struct vmdk_extent {
	enum vmdk_kind kind;
	enum vmdk_access access;
	struct blk *file;
	bool own_file; /* else it is the disk's b->file */
	bool writable;
	uint64_t start, len; /* the part of the disk it makes up */
	uint64_t flat_off;   /* KIND_FLAT */
	char *name;          /* for people */

	/* The header; constant after opening except by resize. */
	uint32_t version, flags;
	uint64_t capacity, grain;     /* bytes */
	uint64_t desc_off, desc_room; /* bytes; 0: no descriptor inside */
	uint64_t gd_off, rgd_off;     /* bytes; rgd_off 0: there is one directory only */
	uint64_t overhead;
	uint32_t nr_gd, nr_gtes, gte_size;
	uint64_t gt_bytes;
	bool zero_grains; /* GTE 1 means zeroes */
	bool unclean;     /* was when opened */
	bool align;       /* grains start at multiples of their size */
	/* seSparse's regions, bytes */
	uint64_t tables_off, tables_len, grains_off, volatile_off;

	/* Guards the grain directories and tables from here; never held over I/O. */
	pthread_rwlock_t map_lock;
	uint32_t *gd, *rgd;    /* sector (seSparse: number + 1) of each grain table; 0: none */
	struct vmdk_gt **gt;   /* by index; NULL: not in memory */
	struct vmdk_gt **slot; /* those in memory, for eviction */
	unsigned nr_slots, cap_slots, max_slots, hand, nr_dirty;
	uint64_t evictions;
	uint32_t gd_dirty_lo, gd_dirty_end;

	/* Guards the places in the file given out. */
	pthread_mutex_t alloc_lock;
	pthread_cond_t alloc_cond; /* a claim went away */
	struct vmdk_claim *claims;
	uint64_t next_free;
	_Atomic uint64_t file_end; /* no data lies at or behind it */

	pthread_mutex_t flush_lock; /* one writer of tables at a time */
	bool marked_unclean;

	/* KIND_STREAM */
	bool tail_missing;  /* what the tables say is not in the file's tail; map_lock */
	bool header_has_gd; /* the header does not say that the directory is at the end */
	bool rebuilt;
	_Atomic bool stale_end;     /* the file goes on behind next_free, with nothing of use */
	pthread_mutex_t cache_lock; /* guards the unpacked grains */
	struct vmdk_unpacked *unpacked;
	unsigned nr_unpacked;
	uint64_t unpacked_clock;
};

struct vmdk {
	struct blk *b;
	struct vmdk_desc desc;        /* text NULL: a bare extent */
	struct blk *desc_file;        /* b->file, or NULL when it cannot be written */
	uint64_t desc_off, desc_room; /* room 0: a text file of its own */
	pthread_mutex_t desc_lock;    /* guards desc's text and the file's */
	_Atomic bool touched;         /* the CID was changed since the disk was opened */
	struct vmdk_extent *ext;
	unsigned nr_ext;
};

static inline struct vmdk *vmdk_of(const struct blk *b)
{
	return b->priv;
}

bool vmdk_is_sparse(const struct vmdk_extent *e);

/* ---- sparse.c: headers and directories of sparse extents ---- */

/* e->file, name, kind and the disk's flags are set; fills in the rest.  HOSTED becomes STREAM when
 * the header says so. */
int vmdk_sparse_open(struct vmdk *v, struct vmdk_extent *e, struct error *err);
void vmdk_sparse_close(struct vmdk_extent *e);
/* Number of grain tables that a disk of this size has; 0: too many. */
uint32_t vmdk_nr_tables(uint64_t capacity, uint64_t grain, uint32_t nr_gtes);
/* The header sector of a hosted extent, with both directories or with one. */
void vmdk_hosted_header(const struct vmdk_extent *e, bool redundant, uint64_t gd_sector,
			uint8_t sector[SECTOR]);
int vmdk_mark_clean(struct vmdk_extent *e, bool clean);
int vmdk_used_end(struct vmdk_extent *e, uint64_t *end); /* behind all that tables lead to */

/* ---- tables.c: grain tables ---- */

enum vmdk_state { GRAIN_NONE, GRAIN_ZERO, GRAIN_DATA, GRAIN_PACKED, GRAIN_BAD };

struct vmdk_run {
	enum vmdk_state state;
	uint64_t count; /* grains that share the answer; DATA: contiguous in the file */
	uint64_t off;   /* DATA, PACKED: of the first one in the file */
	uint64_t room;  /* PACKED: bytes from there to the second one, or 0 */
};

/* The state of up to max grains from g on. */
int vmdk_lookup(struct vmdk_extent *e, uint64_t g, uint64_t max, struct vmdk_run *r);
/* Enter n grains, all in one table: DATA or PACKED at off, ZERO, NONE.  only_if: leave grains that
 * are in another state meanwhile (pass GRAIN_BAD to change all). */
int vmdk_enter(struct vmdk_extent *e, uint64_t g, uint64_t n, enum vmdk_state state, uint64_t off,
	       enum vmdk_state only_if);
/* Space at the end of the file.  Takes alloc_lock unless locked. */
int vmdk_alloc(struct vmdk_extent *e, uint64_t bytes, bool locked, uint64_t *off);
/* Everything written so far gets durable: data first, then tables, then directories. */
int vmdk_tables_flush(struct vmdk_extent *e);
int vmdk_rewrite(struct vmdk_extent *e, uint32_t index);
bool vmdk_tables_full(struct vmdk_extent *e); /* many are dirty: flush */
/* The steps of it, for stream.c, which writes tables elsewhere: copies of what is dirty, under
 * flush_lock; afterwards, whether they were written. */
struct vmdk_copy {
	struct vmdk_gt *t;
	uint64_t off, copy_off;
	bool fresh;
	uint8_t *raw;
};
struct vmdk_writeback {
	struct vmdk_copy *table;
	unsigned nr;
	uint8_t *gd, *rgd; /* whole sectors around the entries that changed, or NULL */
	uint64_t gd_at;    /* from the start of the directory */
	size_t gd_len;
	uint32_t lo, end;
};
int vmdk_writeback_take(struct vmdk_extent *e, struct vmdk_writeback *w);
void vmdk_writeback_done(struct vmdk_extent *e, struct vmdk_writeback *w, int result);
int vmdk_tables_init(struct vmdk_extent *e);
void vmdk_tables_fini(struct vmdk_extent *e);
uint64_t vmdk_table_offset(const struct vmdk_extent *e, uint32_t index, bool copy); /* 0: none */
/* The state an entry of a table stands for. */
void vmdk_decode(const struct vmdk_extent *e, const uint8_t *raw, uint64_t g, struct vmdk_run *r);
void vmdk_encode(const struct vmdk_extent *e, uint8_t *raw, uint32_t k, enum vmdk_state state,
		 uint64_t off);
/* The bytes of grain g that belong to the disk. */
uint64_t vmdk_grain_len(const struct vmdk_extent *e, uint64_t g);

/* ---- rw.c: data ---- */

int vmdk_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off);
int vmdk_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off);
int vmdk_discard(struct blk *b, uint64_t off, uint64_t len);
int vmdk_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap);
int vmdk_map(struct blk *b, uint64_t off, struct blk_map *m);
struct vmdk_extent *vmdk_extent_at(struct vmdk *v, uint64_t off);
/* Keep other threads from changing the grains [first, end) meanwhile. */
void vmdk_claim(struct vmdk_extent *e, struct vmdk_claim *claim);
void vmdk_unclaim(struct vmdk_extent *e, struct vmdk_claim *claim);

/* ---- stream.c: stream-optimised extents ---- */

/* One grain into buf (e->grain bytes, zero-filled behind a short one). */
int vmdk_stream_read(struct vmdk_extent *e, uint64_t g, const struct vmdk_run *r, uint8_t *buf);
/* Part of one, by way of the cache. */
int vmdk_stream_read_part(struct vmdk_extent *e, uint64_t g, const struct vmdk_run *r,
			  struct iov_walk *walk, uint64_t skip, uint64_t len);
int vmdk_stream_write(struct vmdk *v, struct vmdk_extent *e, struct iov_walk *walk, uint64_t len,
		      uint64_t off);
int vmdk_stream_rebuild(struct vmdk_extent *e, struct error *err);
int vmdk_stream_flush(struct vmdk_extent *e);
/* The marker at off: which grain it is of, and how many bytes it and its data take in the file. */
int vmdk_stream_marker(struct vmdk_extent *e, uint64_t off, uint64_t *g, uint64_t *bytes);
size_t vmdk_pack_bound(const struct blk *b);
int vmdk_pack(struct blk *b, const void *data, size_t len, void *out, size_t cap, size_t *out_len);
int vmdk_write_packed(struct blk *b, const void *packed, size_t packed_len, size_t len,
		      uint64_t off);
bool vmdk_is_stream(const struct blk *b);

/* ---- change.c: descriptor updates, size, parent ---- */

int vmdk_touch(struct vmdk *v); /* before the first write after opening: a new CID */
int vmdk_desc_store(struct vmdk *v, struct error *err);
int vmdk_resize(struct blk *b, uint64_t size);
int vmdk_change_backing(struct blk *b, const char *backing, const char *format, struct error *err);
int vmdk_make_empty(struct blk *b, struct error *err);
int vmdk_amend(struct blk *b, const struct blk_kv *opt, unsigned n, struct error *err);

/* ---- create.c, check.c, parent.c ---- */

extern const struct blk_option vmdk_create_options[];
int vmdk_create(const struct blk_create *c, struct error *err);
int vmdk_measure(const struct blk_kv *opt, unsigned n, struct blk_measure *m, struct error *err);
int vmdk_check(struct blk *b, struct blk_check *c, struct error *err);
int vmdk_open_parent(struct vmdk *v, struct error *err);
int vmdk_find_descriptor(struct vmdk *v, struct error *err); /* of a bare extent, if there is one */
/* The part of a path behind its last / or \. */
const char *vmdk_base_name(const char *path);
