/* block/vdi/vdi.h - what the parts of the VDI driver share.  For them alone; threads as in grid.h.
 *
 * Offsets are those of VirtualBox's header version 1.1, all little-endian. */
#pragma once

#include "base/bytes.h"
#include "block/grid.h"
#include "block/ids.h"

enum {
	VDI_SIGNATURE = 0x40,
	VDI_VERSION = 0x44,
	VDI_HEADER_SIZE = 0x48,
	VDI_TYPE = 0x4c,
	VDI_MAP = 0x154,
	VDI_DATA = 0x158,
	VDI_SECTOR = 0x168,
	VDI_SIZE = 0x170,
	VDI_BLOCK = 0x178,
	VDI_EXTRA = 0x17c,
	VDI_BLOCKS = 0x180,
	VDI_ALLOCATED = 0x184,
	VDI_ID = 0x188,
	VDI_CHANGE_ID = 0x198, /* another one with each session that writes */
	VDI_PARENT_ID = 0x1a8,
	VDI_PARENT_CHANGE_ID = 0x1b8,
	VDI_HEADER = 512,
};

enum { VDI_DYNAMIC = 1, VDI_STATIC = 2, VDI_UNDO = 3, VDI_DIFFERENCING = 4 };

#define VDI_MAGIC      0xbeda107fu
#define VDI_1_1        0x00010001u
#define VDI_BLOCK_SIZE (1 * MiB)
#define VDI_MAX_BLOCKS 0x1fffff80u /* the map is 2 GiB then */
#define VDI_MAX_EXTRA  (1 * MiB)
#define VDI_NONE       0xffffffffu
#define VDI_ZERO       0xfffffffeu

struct vdi {
	struct grid grid;
	uint8_t header[VDI_HEADER]; /* as it is or shall be in the file; grid.commit */
	uint32_t type;
	uint64_t map;
};

static inline uint32_t vdi_field(const struct vdi *v, unsigned at)
{
	return le32_load(v->header + at);
}

static inline bool vdi_is_child(const struct vdi *v)
{
	return !id_is_zero(v->header + VDI_PARENT_ID);
}

int vdi_write_header(struct vdi *v);

/* create.c */
extern const struct blk_option vdi_options[];
int vdi_create(const struct blk_create *c, struct error *err);
int vdi_measure(const struct blk_kv *opt, unsigned n, struct blk_measure *m, struct error *err);
int vdi_change_backing(struct blk *b, const char *backing, const char *format, struct error *err);

/* resize.c */
int vdi_resize(struct blk *b, uint64_t size);
int vdi_make_empty(struct blk *b, struct error *err);
