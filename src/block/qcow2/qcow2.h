/* block/qcow2/qcow2.h - what the files of the qcow2 driver share; nobody else includes it.
 *
 * Specification: "Qcow2 Image File Format" (docs/interop/qcow2 of the QEMU project); section titles
 * in comments are that document's.  docs/formats/qcow2.md draws the layout and tells the order in
 * which things reach the disk.
 *
 * Offsets and lengths are bytes unless named otherwise: `host` is an offset in the file, `guest`
 * one on the virtual disk, `cluster` an index (offset >> cluster_bits).  Tables in memory are in
 * host byte order except cached slices, which are the bytes of the file.  Errors: negative errno.
 *
 * Threads: `io` is held shared by each request of a guest and exclusively by what changes the
 * structure of the image (snapshots, resize, check, header).  `lock` guards mapping and allocation
 * and is never held across guest data or a flush. */
#pragma once

#include "base/bytes.h"
#include "base/error.h"
#include "block/format.h"
#include "block/qcow2/pack.h"

#include <errno.h>
#include <pthread.h>

enum {
	Q_MAGIC = 0x514649fb,
	Q_HEADER_V2 = 72,
	Q_HEADER_V3 = 104,
	Q_HEADER_OURS = 112,
	Q_MIN_CLUSTER_BITS = 9,
	Q_MAX_CLUSTER_BITS = 21,
	Q_SECTOR = 512,
	Q_SUBCLUSTERS = 32,
	Q_BACKING_NAME_MAX = 1023,
	Q_BACKING_FORMAT_MAX = 255,

	/* What one image may make us hold (docs/formats/qcow2.md, "Limits"). */
	Q_L1_MAX = 32 << 20,      /* bytes of an L1 table */
	Q_REFTABLE_MAX = 8 << 20, /* bytes of the refcount table */
	Q_SNAPSHOTS_MAX = 65536,
	Q_SNAPTABLE_MAX = 64 << 20,
	Q_SNAP_EXTRA_MAX = 1024,
	Q_BITMAPS_MAX = 65535,
	Q_BITMAP_DIR_MAX = 64 << 20,
	Q_BITMAP_MEM_MAX = 256 << 20, /* all bitmaps of an image in memory */
	Q_CRYPT_HEADER_MAX = 16 << 20,
	Q_CACHE_MAX = 32 << 20, /* bytes of L2 slices; as much again while they are written */
	Q_RB_CACHE_MAX = 8 << 20,
	Q_SLICE_MAX = 4096,
	Q_IO_MAX = 16 << 20, /* bytes of one request */
	Q_CHECK_CLUSTERS_MAX = 1 << 28,
};

#define Q_COPIED      BIT(63)
#define Q_COMPRESSED  BIT(62)
#define Q_ZERO        BIT(0)
#define Q_OFFSET_MASK 0x00fffffffffffe00ull
#define Q_L1_RESERVED 0x7f000000000001ffull
#define Q_L2_RESERVED 0x3f000000000001feull
#define Q_HOST_MAX    BIT(56)

/* Incompatible, compatible, autoclear feature bits. */
#define Q_INCOMPAT_DIRTY       BIT(0)
#define Q_INCOMPAT_CORRUPT     BIT(1)
#define Q_INCOMPAT_DATA_FILE   BIT(2)
#define Q_INCOMPAT_COMPRESSION BIT(3)
#define Q_INCOMPAT_EXTL2       BIT(4)
#define Q_INCOMPAT_KNOWN       0x1full
#define Q_COMPAT_LAZY          BIT(0)
#define Q_AUTO_BITMAPS         BIT(0)
#define Q_AUTO_RAW_DATA        BIT(1)
#define Q_AUTO_KNOWN           3ull

enum q_ext {
	Q_EXT_END = 0,
	Q_EXT_BACKING_FORMAT = (int)0xe2792aca,
	Q_EXT_FEATURES = 0x6803f857,
	Q_EXT_BITMAPS = 0x23852875,
	Q_EXT_CRYPT = 0x0537be77,
	Q_EXT_DATA_FILE = 0x44415441,
};

enum q_compression { Q_ZLIB, Q_ZSTD };
enum q_crypt { Q_CRYPT_NONE, Q_CRYPT_AES, Q_CRYPT_LUKS };

/* --- slices: pieces of metadata tables in memory (cache.c) ------------------------------------ */

struct q_slice {
	uint64_t host;
	uint8_t *bytes;
	bool dirty;
	unsigned writing; /* copies on their way to the file: not to be dropped or read again */
	struct q_slice *hash_next;
	struct q_slice *newer, *older; /* in order of use */
};

struct q_cache {
	struct blk *file;
	uint32_t slice; /* bytes */
	unsigned nr, max, nr_dirty, nr_writing;
	unsigned hash_bits;
	struct q_slice **hash;
	struct q_slice *newest, *oldest;
};

int q_cache_init(struct q_cache *c, struct blk *file, uint32_t slice, uint64_t max_bytes);
void q_cache_fini(struct q_cache *c);
/* The slice at `host` (a multiple of the slice size), read if needed.  Valid until the lock is
 * released or another slice of this cache is asked for. */
int q_cache_get(struct q_cache *c, uint64_t host, struct q_slice **out);
void q_cache_dirty(struct q_cache *c, struct q_slice *s);
/* Forget what is cached of [host, host+len), dirty or not: the clusters have another use now. */
void q_cache_forget(struct q_cache *c, uint64_t host, uint64_t len);
bool q_cache_holds(struct q_cache *c, uint64_t host, uint64_t len);
void q_cache_drop(struct q_cache *c); /* everything, for after a repair */

/* Copies of all that is dirty, to be written without the lock. */
struct q_copies {
	struct q_slice **slices;
	uint8_t *bytes;
	unsigned nr;
};
int q_cache_copy_dirty(struct q_cache *c, struct q_copies *copies);
int q_copies_write(const struct q_cache *c, const struct q_copies *copies);
/* ok: they are in the file; else they are dirty again. */
void q_copies_done(struct q_cache *c, struct q_copies *copies, bool ok);

/* --- lists of ranges of clusters --------------------------------------------------------------
 */

struct q_range {
	uint64_t cluster, nr;
};
struct q_ranges {
	struct q_range *v;
	size_t nr, cap;
	bool punch; /* give the space back to the file system, too */
};

/* --- the image --------------------------------------------------------------------------------
 */

struct q_table { /* L1 or refcount table */
	uint64_t *v;
	uint64_t host;
	uint32_t nr;                 /* entries in use */
	uint32_t dirty_lo, dirty_hi; /* entries that differ from the file: [lo, hi) */
};

struct q_snapshot {
	uint64_t l1_host;
	uint32_t l1_nr;
	uint64_t vm_state_size, disk_size, vm_clock_ns;
	uint32_t date_s, date_ns;
	uint16_t id_len, name_len;
	uint32_t extra_len; /* all of it, as in the file */
	char *id, *name;    /* NUL-terminated copies */
	uint8_t *extra;
};

struct q_unknown_ext {
	uint32_t type, len;
	uint8_t *data;
	struct q_unknown_ext *next;
};

struct q_bitmap;
struct q_luks;
struct q_inflight;

struct q_header {
	uint32_t version, cluster_bits, crypt, refcount_order, header_len;
	uint64_t size;
	uint64_t l1_host, reftable_host, snap_host;
	uint32_t l1_nr, reftable_clusters, nr_snapshots;
	uint64_t incompat, compat, autoclear;
	uint8_t compression;
	uint8_t *rest; /* header bytes behind the fields we know, kept as they are */
	uint32_t rest_len;
	char *backing, *backing_format, *data_file;
	uint32_t nr_bitmaps;
	uint64_t bitmap_dir_host, bitmap_dir_len;
	uint64_t crypt_host, crypt_len;
	struct q_unknown_ext *unknown;
};

struct qcow2 {
	struct blk *b;
	struct blk *file, *data; /* data: the external file, or file */
	struct q_header h;
	bool has_data_file, raw_data, ext_l2, readonly;
	uint32_t cluster, sub; /* bytes */
	uint32_t subs;         /* subclusters in a cluster: 1 or 32 */
	unsigned l2_bits;      /* log2 of the entries of an L2 table */
	uint32_t l2_entry;     /* bytes of an entry */
	uint64_t rb_entries;   /* refcounts in a block */
	uint64_t refcount_max;

	/* Shared: requests.  Exclusive: whatever rearranges the image. */
	pthread_rwlock_t io;
	/* Guards all below it down to the next comment. */
	pthread_mutex_t lock;
	pthread_cond_t wake; /* in-flight allocations, grace periods */
	struct q_table l1, rt;
	struct q_cache l2, rb;
	uint64_t free_hint;   /* no free cluster lies below */
	uint64_t packed_host; /* where the next compressed cluster may go, or 0 */
	struct q_inflight *inflight;
	struct q_ranges freed; /* no longer referenced in memory, perhaps still on disk */
	/* Clusters are given out again when no request can still use what it looked up before:
	 * requests count in users[epoch & 1]; ripening waits for users[!epoch] to be 0. */
	unsigned epoch, users[2];
	struct q_ranges ripening, waiting;
	bool dirty_marked; /* the header says that refcounts lag behind (lazy refcounts) */
	bool corrupt;      /* found so; nothing is written any more */
	bool refs_lag;     /* lazy refcounts: blocks in memory are ahead of the file */
	bool unsafe;       /* a write-back failed: flushes must not claim success */

	/* One write-back at a time.  Taken before lock. */
	pthread_mutex_t commit;
	bool synced_needed; /* commit: something was written since the last flush */

	struct q_snapshot *snaps; /* io */
	uint32_t nr_snaps;
	uint64_t snap_len;  /* bytes of the table in the file */
	bool snaps_damaged; /* only the first nr_snaps entries make sense */

	/* Dirty bitmaps: the list by io, their bits and the mark by bitmap_lock. */
	pthread_mutex_t bitmap_lock;
	struct q_bitmap *bitmaps;
	_Atomic bool bitmaps_recording;       /* some bitmap records writes */
	_Atomic bool bitmaps_marked;          /* they are marked in use in the file */
	bool bitmaps_edited, bitmaps_damaged; /* io: differ from the file; make no sense there */

	struct q_codecs codecs;
	struct q_luks *luks;
};

static inline struct qcow2 *q_of(const struct blk *b)
{
	return b->priv;
}

static inline uint64_t q_clusters(const struct qcow2 *q, uint64_t bytes)
{
	return (bytes >> q->h.cluster_bits) + ((bytes & (q->cluster - 1)) != 0);
}

static inline uint64_t q_l2_span(const struct qcow2 *q) /* guest bytes of one L1 entry */
{
	return 1ull << (q->l2_bits + q->h.cluster_bits);
}

/* --- io.c: the file --------------------------------------------------------------------------- */

/* Behind the end of the file there are zeroes. */
int q_file_read(struct blk *file, void *buf, size_t len, uint64_t host);
int q_file_readv(struct blk *file, const struct iovec *iov, unsigned n, uint64_t len,
		 uint64_t host);
int q_file_zero(struct blk *file, uint64_t host, uint64_t len);

/* Found something that cannot be: say so, mark the image, write no more.  Returns -EIO. */
int q_corrupt(struct qcow2 *q, bool fatal, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* --- header.c ----------------------------------------------------------------------------------
 */

int q_header_read(struct blk *file, const char *path, struct q_header *h, struct error *err);
/* Write the sectors that differ from what is in the file.  Not flushed. */
int q_header_write(struct blk *file, const struct q_header *h, struct error *err);
int q_header_update(struct qcow2 *q); /* the same with q->h, for the run of things; flushed */
void q_header_fini(struct q_header *h);
int q_table_read(struct blk *file, uint64_t host, uint32_t nr, uint64_t **out);
int q_table_write(struct blk *file, uint64_t host, uint32_t nr, const uint64_t *v);
int q_table_write_dirty(struct blk *file, const struct q_table *t);

/* --- refcount.c: who uses a cluster ------------------------------------------------------------
 */

/* One count in a piece of a block; `order` is log2 of the bits of each. */
uint64_t q_count_load(unsigned order, const uint8_t *block, uint64_t index);
void q_count_store(unsigned order, uint8_t *block, uint64_t index, uint64_t value);
int q_refcount_get(struct qcow2 *q, uint64_t cluster, uint64_t *value);
/* One more or one less, of what is in use: 0 to 1 is for q_alloc. */
int q_refcount_add(struct qcow2 *q, uint64_t cluster, uint64_t nr, int delta);
int q_refcount_set(struct qcow2 *q, uint64_t cluster, uint64_t value); /* for repair */
/* 1 ..*nr clusters in a row, with refcount 1. */
int q_alloc(struct qcow2 *q, uint64_t *nr, uint64_t *host);
int q_alloc_all(struct qcow2 *q, uint64_t nr, uint64_t *host);
int q_alloc_packed(struct qcow2 *q, size_t len, uint64_t *host);
/* Give up the references once nothing on disk names them any more. */
int q_free(struct qcow2 *q, uint64_t host, uint64_t len, bool punch);
int q_ranges_add(struct q_ranges *r, uint64_t cluster, uint64_t nr);
bool q_overlaps_metadata(struct qcow2 *q, uint64_t host, uint64_t len);

/* A request between q_enter and q_leave may use what it looked up without the lock: no cluster is
 * given out again meanwhile.  Both take the lock. */
unsigned q_enter(struct qcow2 *q);
void q_leave(struct qcow2 *q, unsigned epoch);
/* lock held (released meanwhile): nothing on disk names these clusters any more; takes r. */
void q_release(struct qcow2 *q, struct q_ranges *r);
uint64_t q_tail(struct qcow2 *q, int *r); /* first cluster behind all that are in use */
int q_blocks_write(struct qcow2 *q);      /* lock held: dirty refcount blocks to the file */

/* --- commit.c: what reaches the disk, and in which order ---------------------------------------
 */

int q_commit(struct qcow2 *q, bool all); /* all: refcounts too where they may lag */
int q_commit_if_full(struct qcow2 *q);
int q_mark_dirty(struct qcow2 *q); /* lock held: refcounts will lag */
int q_mark_clean(struct qcow2 *q);
int q_settle(struct qcow2 *q); /* io held exclusively: everything durable, nothing pending */

/* --- map.c: where guest data is ----------------------------------------------------------------
 */

enum q_kind {
	Q_UNALLOC,    /* the backing file has it */
	Q_UNALLOC_AT, /* so too, and there is a place for it at .host */
	Q_ZERO_PLAIN,
	Q_ZERO_AT, /* zeroes, with a place at .host */
	Q_NORMAL,
	Q_PACKED,
};

struct q_run {
	enum q_kind kind;
	bool copied;
	uint64_t host; /* of the first byte; for Q_PACKED: of the packed bytes */
	uint64_t len;  /* bytes of the disk that share the answer */
	uint32_t packed_len;
};

struct q_entry {
	uint64_t desc, bits; /* as in the file; bits: extended L2 */
};

int q_map(struct qcow2 *q, uint64_t guest, uint64_t len, struct q_run *run); /* lock held */
/* Where the entry of a cluster lies; slice is NULL when it has no table.  With `make` there is one
 * afterwards and it belongs to the active image alone. */
struct q_place {
	struct q_slice *slice;
	uint32_t at;   /* byte in the slice */
	uint32_t left; /* entries from here to the end of the slice */
};
int q_l2_find(struct qcow2 *q, uint64_t guest, bool make, struct q_place *p);
struct q_entry q_entry_get(const struct qcow2 *q, const struct q_place *p);
void q_entry_set(struct qcow2 *q, const struct q_place *p, struct q_entry e);
enum q_kind q_entry_kind(const struct qcow2 *q, struct q_entry e, unsigned sub);
int q_entry_check(struct qcow2 *q, uint64_t guest, struct q_entry e); /* -EIO: it is nonsense */
bool q_entry_has_host(const struct qcow2 *q, struct q_entry e);       /* and is not compressed */
void q_packed_place(unsigned cluster_bits, uint64_t desc, uint64_t *host, uint32_t *len);
uint64_t q_packed_desc(const struct qcow2 *q, uint64_t host, size_t len);
/* Drop the references of an entry that was just replaced. */
int q_entry_free(struct qcow2 *q, struct q_entry e, bool punch);

/* --- read.c, write.c
 * --------------------------------------------------------------------------------
 */

int q_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off);
int q_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off);
int q_discard(struct blk *b, uint64_t off, uint64_t len);
int q_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap);
int q_blk_map(struct blk *b, uint64_t off, struct blk_map *m);
int q_flush(struct blk *b);
/* As the requests above, for callers that hold io; guest may lie in the VM state. */
int q_read_at(struct qcow2 *q, const struct iovec *iov, unsigned n, uint64_t len, uint64_t guest);
int q_write_at(struct qcow2 *q, const struct iovec *iov, unsigned n, uint64_t len, uint64_t guest);
enum q_drop { Q_DROP_ZERO, Q_DROP_ZERO_KEEP, Q_DROP_HOLE };
int q_drop_at(struct qcow2 *q, uint64_t guest, uint64_t len, enum q_drop how);

/* --- pack.c: compressed clusters ---------------------------------------------------------------
 */

int q_unpack(struct qcow2 *q, const struct q_run *run, uint8_t *cluster);
size_t q_pack_bound(const struct blk *b);
int q_pack(struct blk *b, const void *data, size_t len, void *out, size_t cap, size_t *out_len);
int q_write_packed(struct blk *b, const void *packed, size_t packed_len, size_t len, uint64_t off);

/* --- snapshot.c --------------------------------------------------------------------------------
 */

int q_snapshots_read(struct qcow2 *q, struct error *err);
void q_snapshots_fini(struct qcow2 *q);
int q_snapshot_find(const struct qcow2 *q, const char *id_or_name);
int q_snapshot_show(struct qcow2 *q, const char *id_or_name, struct error *err);
int q_snapshots_write(struct qcow2 *q); /* old or new table, whatever happens */
/* Give the disk a longer L1 table and another size in one step. */
int q_grow_l1(struct qcow2 *q, uint32_t nr, uint64_t size);
/* Set bit 63 of every active entry where the refcount is 1, clear it elsewhere. */
int q_copied_rebuild(struct qcow2 *q);
int q_tree_refs(struct qcow2 *q, const uint64_t *l1, uint32_t nr, int delta);
extern const struct blk_snapshot_ops q_snapshot_ops;

/* --- bitmap.c ----------------------------------------------------------------------------------
 */

int q_bitmaps_open(struct qcow2 *q, struct error *err);
int q_bitmaps_store(struct qcow2 *q);
void q_bitmaps_fini(struct qcow2 *q);
int q_bitmaps_note(struct qcow2 *q, uint64_t off, uint64_t len); /* a write begins */
int q_bitmaps_resize(struct qcow2 *q, uint64_t size);
/* For check: what bitmaps use of the file; false: that part is not to be looked into. */
int q_bitmaps_visit(struct qcow2 *q, bool (*use)(void *opaque, uint64_t host, uint64_t len),
		    void *opaque);
int q_bitmaps_mend(struct qcow2 *q);
void q_bitmaps_details(struct qcow2 *q, struct blk_sink *s);
extern const struct blk_bitmap_ops q_bitmap_ops;

/* --- crypt.c -----------------------------------------------------------------------------------
 */

int q_crypt_open(struct qcow2 *q, struct error *err);
void q_crypt_fini(struct qcow2 *q);
/* In place; len is whole sectors.  guest and host are where the first one lies. */
int q_decrypt(struct qcow2 *q, void *buf, size_t len, uint64_t guest, uint64_t host);
int q_encrypt(struct qcow2 *q, void *buf, size_t len, uint64_t guest, uint64_t host);
void q_crypt_details(struct qcow2 *q, struct blk_sink *s);
enum { Q_LUKS_HEADER_LEN = 2068480 }; /* of what q_luks_format makes at most (aes-256-xts) */
struct q_luks_params {
	const char *cipher_alg, *cipher_mode, *ivgen_alg, *ivgen_hash, *hash;
	uint64_t iter_time_ms;
};
/* A LUKS header for the passphrase: *bytes is malloced. */
int q_luks_format(const struct q_luks_params *p, const char *secret, size_t secret_len,
		  uint8_t **bytes, size_t *len, struct error *err);

/* --- check.c, create.c, resize.c, details.c ----------------------------------------------------
 */

int q_check(struct blk *b, struct blk_check *c, struct error *err);
int q_rebuild_refcounts(struct qcow2 *q, struct error *err); /* after a crash with lazy refcounts */
int q_create(const struct blk_create *c, struct error *err);
int q_measure(const struct blk_kv *opt, unsigned n, struct blk_measure *m, struct error *err);
int q_amend(struct blk *b, const struct blk_kv *opt, unsigned n, struct error *err);
int q_change_backing(struct blk *b, const char *backing, const char *format, struct error *err);
int q_make_empty(struct blk *b, struct error *err);
int q_resize(struct blk *b, uint64_t size);
void q_details(struct blk *b, struct blk_sink *s);
extern const struct blk_option q_create_options[];
