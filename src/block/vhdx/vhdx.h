/* block/vhdx/vhdx.h - what the parts of the VHDX driver share.  For them alone; threads as in
 * grid.h.
 *
 * "MS-VHDX: Virtual Hard Disk v2 (VHDX) File Format"; all fields little-endian. */
#pragma once

#include "base/bytes.h"
#include "block/grid.h"
#include "block/ids.h"

#define VHDX_HEADER_1   (64 * KiB)
#define VHDX_HEADER_2   (128 * KiB)
#define VHDX_REGIONS_1  (192 * KiB)
#define VHDX_REGIONS_2  (256 * KiB)
#define VHDX_REGION_LEN (64 * KiB)
#define VHDX_MAX_SIZE   (64 * 1024 * GiB)
#define VHDX_MAX_LOG    (256 * MiB)

enum { /* 2.2.2 "Headers" */
       HEAD_CHECKSUM = 4,
       HEAD_SEQUENCE = 8,
       HEAD_FILE_WRITE = 16,
       HEAD_DATA_WRITE = 32,
       HEAD_LOG = 48,
       HEAD_LOG_VERSION = 64,
       HEAD_VERSION = 66,
       HEAD_LOG_LENGTH = 68,
       HEAD_LOG_OFFSET = 72,
       HEAD_LEN = 4096,
};

enum { /* 2.2.3 "Region Table" */
       REGIONS_CHECKSUM = 4,
       REGIONS_COUNT = 8,
       REGIONS_ENTRIES = 16,
       REGION_OFFSET = 16,
       REGION_LENGTH = 24,
       REGION_REQUIRED = 28,
       REGION_ENTRY = 32,
       REGIONS_MAX = 2047,
};

enum { /* 2.6.1 "Metadata Table" */
       META_COUNT = 10,
       META_ENTRIES = 32,
       META_OFFSET = 16,
       META_LENGTH = 20,
       META_FLAGS = 24,
       META_ENTRY = 32,
       META_MAX = 2047,
       META_TABLE_LEN = 65536,
       META_IS_USER = 1,
       META_IS_DISK = 2,
       META_IS_REQUIRED = 4,
};

enum { PARAM_LEAVE_ALLOCATED = 1, PARAM_HAS_PARENT = 2 };

enum { /* 2.5.1 "BAT Entry"; 5 is UNMAPPED of drafts */
       BAT_NOT_PRESENT = 0,
       BAT_UNDEFINED = 1,
       BAT_ZERO = 2,
       BAT_UNMAPPED = 3,
       BAT_UNMAPPED_DRAFT = 5,
       BAT_PRESENT = 6,
       BAT_PARTIAL = 7,
       BAT_STATE = 7,
};

struct vhdx_region {
	uint64_t off;
	uint32_t len;
};

struct vhdx {
	struct grid grid;
	struct blk *file;       /* b->file, or with its log replayed in memory */
	uint8_t head[HEAD_LEN]; /* the current header; grid.commit */
	unsigned head_place;    /* 0 or 1 */
	bool other_head_bad;
	struct vhdx_region log, bat, meta;
	bool regions_differ; /* the second table is not as the first */
	uint32_t flags;      /* PARAM_* */
	uint32_t sector, physical_sector;
	uint64_t chunk_ratio; /* payload blocks per sector bitmap block */
	uint64_t size_at;     /* of the item "virtual disk size" in the file */
	uint64_t locator_at;  /* of the parent locator; 0: none */
	uint32_t locator_len;
	uint8_t disk_id[ID_LEN];
	uint64_t log_head; /* where the next log entry goes; grid.commit */
	uint64_t log_sequence;
	bool was_dirty; /* there was something to replay */
};

/* header.c */
extern const uint8_t vhdx_bat_region[ID_LEN], vhdx_meta_region[ID_LEN];
uint32_t vhdx_crc(const void *data, size_t len);
void vhdx_seal(uint8_t *p, size_t len); /* the checksum, at 4 */
bool vhdx_sealed(const uint8_t *p, size_t len, const char *signature);
/* The current one of a file's two headers; -EINVAL when neither is good. */
int vhdx_read_head(struct blk *file, uint8_t *head, unsigned *place, bool *other_bad);
int vhdx_load_head(struct blk *b, struct vhdx *v, struct error *err);
int vhdx_load_regions(struct blk *b, struct vhdx *v, struct error *err);
int vhdx_write_head(struct vhdx *v); /* v->head, with a later number; durable */
void vhdx_fill_regions(uint8_t *table, const struct vhdx *v);
int vhdx_write_regions(struct vhdx *v);

/* metadata.c */
extern const uint8_t vhdx_item_params[ID_LEN], vhdx_item_size[ID_LEN], vhdx_item_disk_id[ID_LEN],
	vhdx_item_sector[ID_LEN], vhdx_item_physical[ID_LEN], vhdx_item_locator[ID_LEN];
int vhdx_load_metadata(struct blk *b, struct vhdx *v, struct error *err);
uint64_t vhdx_bat_entries(uint64_t blocks, uint64_t chunk_ratio, bool has_parent);

/* log.c */
/* Finish what the last writer had begun: in the file, or when that is only read, in memory. */
int vhdx_replay(struct blk *b, struct vhdx *v, struct error *err);
void vhdx_replay_end(struct blk *b, struct vhdx *v);
int vhdx_log_start(struct vhdx *v); /* with a new header */
int vhdx_log_end(struct vhdx *v);   /* all is in place: say so in the header */
int vhdx_log_commit(struct grid *g, const struct tables_batch *batch);

/* parent.c */
enum { LOCATOR_MAX = 64 * 1024 };
extern const uint8_t vhdx_locator_type[ID_LEN];
int vhdx_open_parent(struct blk *b, struct vhdx *v, struct error *err);
void vhdx_parent_name(struct vhdx *v, char *out, size_t cap);
/* Build a locator of at most cap bytes; its length, or -ENAMETOOLONG. */
int vhdx_make_locator(uint8_t *out, size_t cap, const struct blk *parent, const char *absolute,
		      const char *relative);

/* vhdx.c; with the grid's lock: the sector bitmap of a block's chunk is not needed any more */
int vhdx_drop_bitmap(struct vhdx *v, uint64_t block);

/* change.c */
int vhdx_change_backing(struct blk *b, const char *backing, const char *format, struct error *err);
int vhdx_make_empty(struct blk *b, struct error *err);

/* create.c */
extern const struct blk_option vhdx_options[];
int vhdx_create(const struct blk_create *c, struct error *err);
int vhdx_measure(const struct blk_kv *opt, unsigned n, struct blk_measure *m, struct error *err);

/* resize.c */
int vhdx_resize(struct blk *b, uint64_t size);
