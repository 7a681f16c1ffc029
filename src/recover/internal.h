/* recover/internal.h - the parts of a recovery, among themselves.
 *
 *	detect.c    bytes -> hits: what looks like a structure of VMFS or the start of a known file
 *	scan.c      the pass over the sources, by several threads, a segment at a time
 *	findings.c  segments and their hits, kept in a file
 *	bases.c     hits -> volumes: where each lies on the sources
 *	rebuild.c   a volume's geometry and descriptors, from headers or without them: a plan
 *	names.c     directory entries found anywhere, by the descriptor they name
 *	tree.c      the volume -> nodes, from the root down; then what the root does not reach
 *	deleted.c   free descriptors; pointer blocks nobody owns and whose they were
 *	owners.c    which blocks live files own, and which deleted ones want
 *	ranges.c    a node's bytes, each with its mark
 *	carve.c     files known by content alone
 *	group.c     nodes -> virtual machines, and the texts that are missing of them
 *	disk.c      a virtual disk of the tree, opened
 *
 * docs/recovery-internals.md tells how they work together.  Who may call: recover/ only.  All bytes
 * of a source are hostile.  "pos" is an offset in a source, "vol" one in a volume.  Errors: 0 or
 * -errno.  Threads: as recover.h; what workers of a scan may touch stands in scan.c. */
#pragma once

#include "base/bytes.h"
#include "base/error.h"
#include "base/types.h"
#include "recover/recover.h"

#include <pthread.h>

enum {
	REC_SEGMENT = 64 << 20,   /* of a scan: what is done or not */
	REC_MAX_HITS = 6 << 20,   /* kept; 32 bytes each */
	REC_MAX_NODES = 4 << 20,  /* in the tree */
	REC_MAX_DEPTH = 64,       /* of directories */
	REC_TEXT_MAX = 256 << 10, /* of a text that is looked into */
	REC_MAX_BASES = 256,
	REC_MAX_VOLUMES = 32,
};
#define REC_META_BYTES (1536 * MiB)

/* ---- small things: util.c ---- */

struct arena {
	struct arena_block *block;
};
/* Live until arena_fini; NULL when there is no memory. */
void *arena_alloc(struct arena *a, size_t size);
char *arena_text(struct arena *a, const char *text, size_t len);
char *arena_printf(struct arena *a, const char *fmt, ...) PRINTF_LIKE(2, 3);
void arena_fini(struct arena *a);

/* A growing text. */
struct text {
	char *s;
	size_t len, cap;
};
int text_add(struct text *t, const char *fmt, ...) PRINTF_LIKE(2, 3);
void text_fini(struct text *t);

/* Room for one more element of an array; false: there is none. */
bool array_room(void *array_pointer, size_t n, size_t *cap, size_t size);

/* Sorted, not overlapping [start, end). */
struct spans {
	struct span {
		uint64_t start, end;
	} * v;
	size_t n, cap;
};
bool spans_add(struct spans *s, uint64_t start, uint64_t end); /* in any order; then: */
void spans_settle(struct spans *s);
/* Is off in one?  *end: of the answer (UINT64_MAX: for good). */
bool spans_at(const struct spans *s, uint64_t off, uint64_t *end);
void spans_fini(struct spans *s);

/* ---- hits ---- */

enum hit_kind {
	HIT_NONE,
	/* A lock header of type 0x10C00001 + (kind - HIT_FD). */
	HIT_FD,
	HIT_FBB,
	HIT_SBC,
	HIT_PBC,
	HIT_FDC,
	HIT_PB2,
	HIT_JBC,
	HIT_LFB,
	/* id: descriptor's address; gen: generation.  Its lock header is gone. */
	HIT_FD_META,
	HIT_LVM,
	HIT_SUPER,
	HIT_HEARTBEAT, /* in use */
	HIT_RFMD,
	HIT_DIR6,    /* id: the directory's own address, self: its parent's */
	HIT_DIRENT6, /* a block of entries */
	HIT_DIR5,    /* as HIT_DIR6: begins with "." and ".." */
	/* Files by their first bytes.  aux: see carve.c. */
	HIT_FILE,
	HIT_DESCRIPTOR = HIT_FILE,
	HIT_VMX,
	HIT_OVF,
	HIT_SPARSE, /* KDMV */
	HIT_COWD,
	HIT_SESPARSE,
	HIT_NVRAM,
	HIT_LOG,
	HIT_IMAGE, /* of another hypervisor */
	HIT_DISK,  /* a partition table */
	HIT_NR,
};

enum {
	/* HIT_FD, HIT_FD_META: aux */
	FD_TYPE = 0xf,
	FD_V6 = 1 << 4,     /* laid out as VMFS6 does */
	FD_ADDR = 1 << 5,   /* its address array is not empty */
	FD_FILLED = 1 << 6, /* its meta block is one */
};

struct hit {
	uint64_t pos;
	uint64_t self; /* lock headers: own volume offset */
	uint32_t id;   /* HIT_FD: address; clusters: number */
	uint32_t gen;
	uint16_t kind;
	uint16_t source;
	uint32_t aux;
};
_Static_assert(sizeof(struct hit) == 32, "kept so in findings files");

struct hits {
	struct hit *v;
	size_t n, cap;
};

/* Looks at [pos, pos + look) of a source; buf holds `len` >= look bytes from pos on. */
struct detect {
	const uint8_t *buf;
	size_t look, len;
	uint64_t pos;
	unsigned source;
	unsigned phase; /* where blocks of 4 KiB begin: pos % 4096 */
	struct hits *out;
};
enum { DETECT_AHEAD = 16384 }; /* bytes behind `look` that are of use */
void detect_run(struct detect *d);
const char *hit_name(unsigned kind);
bool all_zero(const void *p, size_t len);
/* The start of a file by its first bytes (at most 4096): its kind, or HIT_NONE. */
unsigned detect_file(const uint8_t *p, size_t len);

/* ---- segments ---- */

struct segment {
	unsigned source;
	uint64_t start, len;
	uint64_t zero; /* bit i: MiB i reads as zeroes */
	struct hits hits;
	struct spans bad; /* unreadable; in the source */
};

struct segments {
	struct segment *v;
	size_t n, cap;
};
void segments_fini(struct segments *s);

/* ---- findings ---- */

struct findings;
int findings_open(struct findings **out, struct rec *r, struct error *err);
void findings_close(struct findings *f);
int findings_load(struct findings *f, struct segments *into, struct error *err);
/* Saved some time later, by findings_flush at the latest. */
int findings_put(struct findings *f, const struct segment *s, struct error *err);
int findings_flush(struct findings *f, struct error *err);
int findings_clear(struct findings *f, struct error *err);
/* What was asked for and is done: a number by name; 0 when there is none. */
int64_t findings_get(struct findings *f, const char *key);
int findings_set(struct findings *f, const char *key, int64_t value, struct error *err);

/* ---- volumes ---- */

/* An extent: volume offset x lies at x + base of a source, for x in [lo, hi). */
struct part {
	unsigned source;
	int64_t base;
	uint64_t lo, hi; /* volume offsets; of the extent */
	uint64_t votes;
	uint64_t self_lo, self_hi; /* of what voted */
	uint64_t place;            /* where the device (partition) starts in the source */
	bool missing;              /* its header is told of, but it is not here */
};

struct candidate {
	struct rec_volume pub;
	char label[VMFS_LABEL_MAX + 1];
	struct part part[VMFS_MAX_DEVICES];
	unsigned nr_parts;
	struct vmfs_uuid lv;
	bool has_lv;  /* lv is of an LVM header */
	bool reads;   /* vmfs_open takes it */
	bool v6_only; /* of two formats in one place: take descriptors of VMFS6, or of the others */
	bool v5_only;
};

/* ---- names found anywhere ---- */

struct found_name {
	uint32_t fd, gen;
	uint32_t dir;  /* the directory's address; 0: not known */
	uint8_t type;  /* as the entry says */
	bool free;     /* from a free slot, or a directory that is none any more */
	uint16_t rank; /* larger: better */
	const char *name;
};
struct names {
	struct found_name *v;
	size_t n, cap;
	/* Directories whose data was found: own address and parent's. */
	struct dir_link {
		uint32_t fd, parent;
	} * link;
	size_t nr_links, cap_links;
};
void names_fini(struct names *n);
bool names_add(struct rec *r, const struct found_name *f);
void names_settle(struct names *n);
/* The best name of a descriptor; gen 0: any. */
const struct found_name *names_find(const struct names *n, uint32_t fd, uint32_t gen);
uint32_t names_parent(const struct names *n, uint32_t dir_fd);
int names_gather(struct rec *r); /* from the hits */

/* ---- the tree ---- */

struct measure {
	uint64_t bytes[REC_NR_TRUST];
	uint64_t stored;
};

struct node {
	uint64_t id, length;
	const char *name, *what, *note;
	struct vmfs_inode *inode; /* NULL: as on disk; else concluded (arena) */
	const char *made;         /* REC_MADE: the bytes (arena) */
	struct measure *measure;  /* NULL: not yet (arena) */
	struct carved *carved;    /* REC_CARVED: where (arena) */
	struct spans *lost_to;    /* in the file: ranges that others own now (malloc) */
	uint32_t parent, first, next;
	uint32_t fd, gen, mtime, mode, uid, gid;
	uint8_t type, state, grade, what_known;
	bool name_made, is_dir, system, unreachable;
	bool synthetic; /* a directory of ours */
	bool looked;    /* what and text were looked for */
};

/* A run of bytes of a source. */
struct carved {
	unsigned source;
	uint64_t pos, len;
};

struct tree {
	struct node *v; /* [0] is nobody, [REC_ROOT] the root */
	uint32_t n, cap;
	uint32_t *by_id, nr_buckets; /* indices, hashed by id; 0: none */
	uint32_t *by_fd, nr_fd_buckets;
	uint32_t lost, deleted, carved; /* top directories of ours, or 0 */
};

/* ids: of a descriptor, of what lies in its directory's image below /deleted, of a place. */
#define ID_LOST      2ull
#define ID_DELETED   3ull
#define ID_CARVED    4ull
#define ID_FD(fd)    (16 + fd_number(fd))
#define ID_MIRROR(i) ((1ull << 40) + (i))
#define ID_SLOT      (1ull << 41)
#define ID_MADE      (1ull << 42)
#define ID_PLACE     (1ull << 62)
/* 0, 1, 2 ... in the order of addresses. */
static inline uint64_t fd_number(uint32_t fd)
{
	return ((uint64_t)((fd >> 6) & 0xffff) << 10 | fd >> 22);
}

/* A new node, or 0: no memory, or too many.  Pointers to nodes are good until the next one. */
uint32_t tree_node(struct rec *r, uint64_t id);
void node_attach(struct rec *r, uint32_t child, uint32_t parent);
void node_detach(struct rec *r, uint32_t child);
void node_index_fd(struct rec *r, uint32_t node);
uint32_t node_by_id(const struct rec *r, uint64_t id);
uint32_t node_by_fd(const struct rec *r, uint32_t fd);
uint32_t node_child(const struct rec *r, uint32_t dir, const char *name);
void node_from_inode(struct node *n, const struct vmfs_inode *in);
uint32_t tree_top(struct rec *r, uint64_t id); /* /lost+found, /deleted, /carved */
/* The directory below /deleted that stands for a live one. */
uint32_t tree_mirror(struct rec *r, uint32_t live_dir);
bool tree_below(const struct rec *r, uint32_t node, uint32_t dir);
int tree_path(const struct rec *r, uint32_t node, char *buf, size_t cap);
int tree_build(struct rec *r, struct error *err);
void tree_fini(struct tree *t);
void tree_untangle_names(struct rec *r); /* no two of the same in one directory */
static inline bool name_ends(const char *name, const char *end)
{
	size_t n = __builtin_strlen(name), e = __builtin_strlen(end);

	return n >= e && !__builtin_memcmp(name + n - e, end, e);
}

/* ---- the whole ---- */

struct rec {
	struct rec_source *source;
	unsigned nr_sources;
	struct rec_config cfg;
	struct findings *findings;
	struct arena arena;
	struct text notes;

	/* What a scan found. */
	struct segments segments;
	struct hits hits;     /* in order of source and pos */
	struct spans *bad;    /* by source */
	struct spans *zero;   /* by source: reads as zeroes */
	enum rec_depth depth; /* done */
	bool scanned;

	struct candidate *cand;
	unsigned nr_cand;
	struct rec_volume *volume_list;
	unsigned volume; /* the one the tree is of */

	struct vmfs *v;   /* NULL: nothing to read by */
	bool by_headers;  /* v is what vmfs_open made */
	bool lost_files;  /* sub-blocks or pointer blocks are where their clusters' headers say */
	uint64_t trouble; /* what was wrong with it on the way */
	struct names names;
	struct tree tree;
	struct owners *owners;
	bool owners_ready;
	struct vms *vms;
	/* Guards v, which takes one thread at a time; for the blks of files. */
	pthread_mutex_t lock;

	const struct rec_scan *scan; /* while rec_scan runs */
	uint64_t unreadable_bytes;
};

void rec_note(struct rec *r, const char *fmt, ...) PRINTF_LIKE(2, 3);
bool rec_stopped(struct rec *r);
void rec_tell(struct rec *r, enum rec_phase phase, uint64_t done, uint64_t total);
/* Bytes of a source; what cannot be read is -EIO. */
int rec_read_source(struct rec *r, unsigned source, void *buf, size_t len, uint64_t pos);

/* scan.c: what is not done yet of this depth. */
int scan_run(struct rec *r, const struct rec_scan *scan, struct error *err);
int scan_load(struct rec *r, struct error *err); /* from the findings file */
void scan_settle(struct rec *r);                 /* segments -> hits, bad, zero */

/* bases.c */
int bases_by_headers(struct rec *r, struct error *err);
int bases_by_votes(struct rec *r, struct error *err);

/* rebuild.c: r->v of a candidate. */
int rebuild_open(struct rec *r, struct candidate *c, struct error *err);     /* by its headers */
int rebuild_assemble(struct rec *r, struct candidate *c, struct error *err); /* by what was found */

/* deleted.c: free descriptors and those that no directory names. */
int deleted_find(struct rec *r, struct error *err);
int deleted_match(struct rec *r, struct error *err); /* grade 2: pointer blocks */
uint64_t volume_room(struct rec *r, uint64_t size);  /* how many of a size there can be */

/* owners.c */
int owners_build(struct rec *r, struct error *err);
void owners_fini(struct rec *r);
enum owner { OWNER_NONE, OWNER_ONE, OWNER_MANY };
/* Of the bytes at vol: *len is shortened to what shares the answer. */
enum owner owners_at(struct rec *r, uint64_t vol, uint64_t *len);
/* Is the file block at vol a resource file's, or another of the system's? */
bool owners_system(struct rec *r, uint64_t vol);

/* ranges.c */
int node_inode(struct rec *r, uint32_t node, struct vmfs_inode *in, struct error *err);
int node_range(struct rec *r, uint32_t node, const struct vmfs_inode *in, uint64_t off,
	       struct rec_range *out);
int node_read(struct rec *r, uint32_t node, void *buf, size_t len, uint64_t off);
void node_measure(struct rec *r, uint32_t node);
int node_blk(struct rec *r, uint32_t node, unsigned flags, struct blk **out, struct error *err);

/* carve.c */
int carve_find(struct rec *r, struct error *err);
/* Where in the volume a place of a source is; UINT64_MAX: in none. *len shortened to the run. */
uint64_t carve_volume_offset(struct rec *r, unsigned source, uint64_t pos, uint64_t *len);

/* group.c */
struct desc_extent;
int group_build(struct rec *r, struct error *err);
/* The file that a text in dir names, or 0. */
uint32_t group_resolve(struct rec *r, uint32_t dir, const char *name);
/* The extent that a descriptor names: by name, else by its length. */
uint32_t group_extent(struct rec *r, uint32_t descriptor, const struct desc_extent *x);
void group_fini(struct rec *r);
/* What a file is by name and content; looks once. */
void node_look(struct rec *r, uint32_t node);
/* A text file's bytes, NUL-terminated, malloc'd; NULL: not a text, or not to be read. */
char *node_text(struct rec *r, uint32_t node, size_t *len);
