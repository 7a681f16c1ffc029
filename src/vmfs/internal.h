/* vmfs/internal.h - what the files of vmfs/ share.  Nobody else includes it.
 *
 * Threads: after vmfs_assemble() a struct vmfs only changes inside its cache, which has a lock; so
 * the blks of files may be read by many threads. */
#pragma once

#include "base/bytes.h"
#include "base/error.h"
#include "block/blk.h"
#include "vmfs/ondisk.h"
#include "vmfs/vmfs.h"

#include <errno.h>
#include <pthread.h>

enum {
	VMFS_MAX_RUNS = 1 << 20,
	VMFS_MAX_DIR = 1 << 30, /* bytes of a directory that are looked at: 7 million entries */
	VMFS_NOTES_MAX = 65536,
};

/* Pages of metadata.  Leaf: calls nothing of vmfs/ but the run table. */
enum { CACHE_PAGE = 65536, CACHE_SETS = 16, CACHE_WAYS = 8 };
struct vmfs_cache {
	pthread_mutex_t lock; /* all below */
	struct cache_page {
		uint64_t vol;
		uint64_t used; /* when: for the choice of the next victim; 0: empty */
		uint8_t *bytes;
	} page[CACHE_SETS][CACHE_WAYS];
	uint64_t clock;
};

struct vmfs {
	struct vmfs_plan plan;
	struct vmfs_cache cache;
	struct vmfs_inode *sys[VMFS_NR_RES]; /* of the resource files; NULL: not readable */
	uint32_t pb2_fd; /* the descriptor of .pb2.sf, where it is not the usual one; or 0 */
	struct vmfs_fd_place extra[2]; /* the superblock's word where two of them are */
	unsigned nr_extra;
};

static inline bool is_pow2(uint64_t x)
{
	return x && !(x & (x - 1));
}

static inline unsigned log2_of(uint64_t x)
{
	return 63u - (unsigned)__builtin_clzll(x);
}

/* --- plan.c ------------------------------------------------------------------------------------
 */
void plan_note(struct vmfs_plan *p, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* --- lvm.c -------------------------------------------------------------------------------------
 */
/* One extent as its LVM metadata describe it. */
struct lvm_extent {
	struct blk *dev;
	struct vmfs_place place;
	struct vmfs_lvm_header h;
};
/* Adds the extent's runs to the plan as device `dev`. */
int lvm_add_runs(struct vmfs_plan *p, const struct lvm_extent *e, unsigned dev);
/* Sorts, joins what goes on, drops what overlaps or lies beyond its device. */
void runs_settle(struct vmfs_plan *p);
int runs_add(struct vmfs_plan *p, const struct vmfs_run *run);

/* --- geometry.c --------------------------------------------------------------------------------
 */
/* From the superblock's bytes (FS_S_SIZE of them); -EINVAL: it is none. */
int geometry_parse(struct vmfs_geometry *g, const uint8_t *sb, struct vmfs_plan *notes);
int resource_parse(const struct vmfs_geometry *g, const uint8_t *header, bool child,
		   struct vmfs_resource *r);
/* What such a volume usually has, for headers that are lost. */
#define RESOURCES_UNKNOWN BIT(32) /* how many: as many as the file has room for */
void resource_default(const struct vmfs_geometry *g, enum vmfs_resource_kind kind,
		      struct vmfs_resource *r);
/* Where in the resource file; -ERANGE. */
int resource_offset(const struct vmfs_resource *r, uint64_t cluster, uint32_t resource,
		    uint64_t *off);
int resource_header(const struct vmfs_geometry *g, enum vmfs_resource_kind kind, uint64_t cluster,
		    uint64_t *off);
extern const char *const resource_file_name[VMFS_NR_RES];
extern const uint32_t resource_file_fd[VMFS_NR_RES];

/* --- volume.c: bytes of the volume ---------------------------------------------------------------
 */
int cache_init(struct vmfs *v);
void cache_fini(struct vmfs *v);
uint64_t volume_end(const struct vmfs_plan *p); /* its size, or the end of what there is of it */
/* Through the cache, for metadata. */
int volume_read(struct vmfs *v, void *buf, size_t len, uint64_t vol);

/* --- resource.c: resource files ------------------------------------------------------------------
 *
 * busy: which resource files are being looked into on the way here, so that one that needs itself
 * is found out. */
int resource_open_all(struct vmfs *v);
int resource_locate(struct vmfs *v, enum vmfs_resource_kind kind, uint64_t cluster,
		    uint32_t resource, unsigned busy, uint64_t *vol, uint64_t *len);
/* Bytes of a resource file, through the cache. */
int resource_read(struct vmfs *v, enum vmfs_resource_kind kind, void *buf, size_t len,
		  uint64_t off);
int resource_used(struct vmfs *v, enum vmfs_resource_kind kind, uint64_t cluster,
		  uint32_t resource);
int fd_locate(struct vmfs *v, uint32_t addr, uint64_t *vol);

/* --- address.c ---------------------------------------------------------------------------------
 */
int addr_locate(struct vmfs *v, const struct vmfs_addr *a, unsigned busy, uint64_t *vol,
		uint64_t *len);

/* --- file.c ------------------------------------------------------------------------------------
 */
/* As vmfs_file_range, of at most max bytes. */
int file_range(struct vmfs *v, const struct vmfs_inode *in, uint64_t off, uint64_t max,
	       unsigned busy, struct vmfs_range *r);
/* How deep the pointer blocks go: 0, 1, 2; -1: unknown addressing. */
int file_levels(const struct vmfs_inode *in);

/* --- hash.c: names in VMFS6 directories ----------------------------------------------------------
 */
uint64_t dir_hash(const char *name);
unsigned dir_hash_slot(const char *name, bool root); /* of the table in the directory's header */
