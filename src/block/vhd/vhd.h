/* block/vhd/vhd.h - what the parts of the VHD driver share.  For them alone; threads as in grid.h.
 *
 * "Virtual Hard Disk Image Format Specification" 1.0 (Microsoft, 2006); all fields big-endian. */
#pragma once

#include "base/bytes.h"
#include "block/grid.h"
#include "block/ids.h"

enum {
	FOOTER_COOKIE = 0x00,
	FOOTER_FEATURES = 0x08,
	FOOTER_VERSION = 0x0c,
	FOOTER_DATA = 0x10, /* the dynamic header, or all ones */
	FOOTER_TIME = 0x18, /* seconds since 2000 */
	FOOTER_CREATOR = 0x1c,
	FOOTER_CREATOR_VERSION = 0x20,
	FOOTER_CREATOR_OS = 0x24,
	FOOTER_FIRST_SIZE = 0x28,
	FOOTER_SIZE = 0x30,
	FOOTER_CYLINDERS = 0x38,
	FOOTER_HEADS = 0x3a,
	FOOTER_TRACK = 0x3b,
	FOOTER_TYPE = 0x3c,
	FOOTER_CHECKSUM = 0x40,
	FOOTER_ID = 0x44,
	FOOTER_LEN = 512,
};

enum {
	HEADER_COOKIE = 0x00,
	HEADER_NEXT = 0x08,
	HEADER_TABLE = 0x10,
	HEADER_VERSION = 0x18,
	HEADER_ENTRIES = 0x1c,
	HEADER_BLOCK = 0x20,
	HEADER_CHECKSUM = 0x24,
	HEADER_PARENT_ID = 0x28,
	HEADER_PARENT_TIME = 0x38,
	HEADER_PARENT_NAME = 0x40, /* UTF-16, 512 bytes */
	HEADER_LOCATORS = 0x240,
	HEADER_LEN = 1024,

	LOCATORS = 8,
	LOCATOR_CODE = 0,
	LOCATOR_SPACE = 4,
	LOCATOR_LENGTH = 8,
	LOCATOR_OFFSET = 16,
	LOCATOR_LEN = 24,
	LOCATOR_MAX = 4096, /* bytes of a name that are read */
};

enum { VHD_FIXED = 2, VHD_DYNAMIC = 3, VHD_DIFFERENCING = 4 };

#define VHD_1_0           0x00010000u
#define VHD_MAX_SIZE      (2040 * GiB)
#define VHD_MAX_ENTRIES   (INT32_MAX / 4)
#define VHD_NONE          0xffffffffu
#define VHD_BLOCK_SIZE    (2 * MiB)
#define VHD_MAX_CYLINDERS 65535
#define VHD_MAX_CHS       (65535ull * 16 * 255)

struct vhd {
	struct grid grid;
	uint32_t type;
	bool use_geometry;          /* of the two sizes in the footer */
	bool end_bad, copy_bad;     /* footer at the end, copy at the beginning */
	uint8_t footer[FOOTER_LEN]; /* as it is or shall be in the file */
	uint8_t header[HEADER_LEN]; /* not of fixed disks */
	uint64_t footer_at;         /* the one at the end; grid.growth */
	uint64_t table, nr_entries; /* all of the table, more than grid.nr_blocks perhaps */
};

/* footer.c */
uint32_t vhd_checksum(const uint8_t *p, size_t len, unsigned field);
void vhd_seal(uint8_t *p, size_t len, unsigned field); /* put the checksum in */
bool vhd_footer_good(const uint8_t *f);
uint64_t vhd_geometry_size(const uint8_t *footer);
void vhd_set_geometry(uint8_t *footer, uint64_t size);
bool vhd_uses_geometry(const uint8_t *footer);
int vhd_load_footer(struct blk *b, struct vhd *v, struct error *err);
int vhd_load_header(struct blk *b, struct vhd *v, struct error *err);
/* Both footers of a dynamic disk as they shall be, one after the other. */
int vhd_write_footers(struct vhd *v);

/* parent.c */
int vhd_open_parent(struct blk *b, const struct vhd *v, struct error *err);
void vhd_parent_name(const struct vhd *v, char *out, size_t cap);
/* Put the parent in the header; the names go to `room` (VHD_NAMES_LEN bytes), which will be at
 * `at` in the file. */
enum { VHD_NAMES_LEN = 2 * LOCATOR_MAX };
int vhd_name_parent(uint8_t *header, uint8_t *room, uint64_t at, const struct blk *parent,
		    const char *absolute, const char *relative, struct error *err);
bool vhd_locator(const struct vhd *v, unsigned i, uint32_t *code, uint64_t *off, uint32_t *len);

/* create.c */
extern const struct blk_option vhd_options[];
int vhd_create(const struct blk_create *c, struct error *err);
int vhd_measure(const struct blk_kv *opt, unsigned n, struct blk_measure *m, struct error *err);

/* resize.c */
int vhd_resize(struct blk *b, uint64_t size);
int vhd_change_backing(struct blk *b, const char *backing, const char *format, struct error *err);
int vhd_make_empty(struct blk *b, struct error *err);
int vhd_trim(struct vhd *v); /* the file ends behind what is in use */
