/* vmfs/vmfs.h - VMFS3, VMFS5, VMFS6 and VMFS-L volumes, read.
 *
 * A volume is read through a plan: where its extents lie, its geometry, and where its file
 * descriptors are.  vmfs_open() makes the plan from the volume's own headers; recovery makes one
 * from whatever it found (recover/) and calls vmfs_assemble().  Everything above the plan (files,
 * directories, addresses) is the same code for healthy and for damaged volumes.
 *
 * Nothing is ever written.  Every field read from the disk is checked before it is used; what is
 * wrong with one file is that file's error or a range's mark, never the volume's.  Memory is
 * bounded by caches of fixed size, not by what the volume says of itself.
 *
 * Units: bytes.  "Volume offset" counts from the start of the logical volume, "device offset" from
 * the start of the extent's partition.  Ownership: the blks are borrowed and must outlive the
 * volume. Errors: 0 or -errno with the sentence in *err (NULL is fine); -EIO: the device; -EUCLEAN:
 * the volume contradicts itself; -ENOENT; -ENODATA: on an extent that is not there. Threads: one at
 * a time per struct vmfs; a struct blk of a file may be read by several. Format:
 * docs/formats/vmfs.md, structures in vmfs/ondisk.h. */
#pragma once

#include "base/types.h"

struct blk;
struct error;

enum { VMFS_MAX_DEVICES = 64, VMFS_NAME_MAX = 127, VMFS_LABEL_MAX = 128 };

struct vmfs_uuid {
	uint8_t b[16];
};
#define VMFS_UUID_TEXT 36 /* "%08x-%08x-%04x-%012x" and its NUL */
void vmfs_uuid_text(const struct vmfs_uuid *u, char text[VMFS_UUID_TEXT]);

/* --- finding volumes on disks ------------------------------------------------------------------
 */

/* A place on a device that a volume's extent may fill: the whole device, or a partition of the
 * VMFS type (GPT aa31e02a-400f-11db-9590-000c2911d1b8, MBR 0xFB). */
struct vmfs_place {
	uint64_t start, len;
	bool partition;
};
/* The places on b that are worth a look, best first; how many (up to max), or -errno. */
int vmfs_places(struct blk *b, struct vmfs_place *list, unsigned max);

/* What an extent's LVM header says of itself and of its volume. */
struct vmfs_lvm_header {
	uint32_t major, minor;
	bool lite;                       /* VMFS-L */
	struct vmfs_uuid device, volume; /* volume: of the logical volume */
	uint32_t snap_id;
	char label[65];       /* of the logical volume */
	uint64_t total_bytes; /* of this device */
	uint64_t data_offset; /* device offset of the first extent of data */
	uint64_t volume_size;
	uint64_t first_pe, last_pe;
	uint32_t nr_pes, nr_devices;
	bool copy; /* it calls itself one (resignature) */
};
/* dev from place->start on.  -EINVAL: there is no such header. */
int vmfs_lvm_read(struct blk *dev, const struct vmfs_place *place, struct vmfs_lvm_header *h,
		  struct error *err);

/* --- the plan ----------------------------------------------------------------------------------
 */

/* [vol, vol + len) of the volume lies at dev_off of a device (absolute in that blk). */
struct vmfs_run {
	uint64_t vol, len;
	uint64_t dev_off;
	unsigned dev; /* index in vmfs_plan.dev */
};

/* A kind of resource (file blocks, sub-blocks, pointer blocks, descriptors): how its resource file
 * is laid out.  File offsets; FS3_ResFileMetadata. */
struct vmfs_resource {
	uint32_t per_cluster,
		per_group;    /* resources per cluster, clusters per group; 0: none of it */
	uint32_t header_size; /* of a cluster: lock block and meta block */
	uint32_t size;        /* of a resource; 0: it has no data in the file */
	uint64_t group_offset, group_size;
	uint64_t nr_resources;
	uint32_t nr_groups;
	unsigned bits; /* of the bitmap, for a resource */
};

enum vmfs_resource_kind {
	VMFS_RES_FBB, /* VMFS6: large file blocks */
	VMFS_RES_SFB, /* VMFS6: small file blocks, children of VMFS_RES_FBB */
	VMFS_RES_FDC,
	VMFS_RES_PBC,
	VMFS_RES_SBC,
	VMFS_RES_PB2,
	VMFS_RES_JBC,
	VMFS_NR_RES,
};

struct vmfs_geometry {
	unsigned version; /* 3, 5 or 6 */
	bool lite, dense; /* VMFS-L; dense sub-blocks */
	struct vmfs_uuid uuid;
	char label[VMFS_LABEL_MAX + 1];
	uint64_t file_block_size; /* power of two */
	uint32_t sub_block_size;
	uint32_t md_align;      /* 512 on VMFS3 and 5 */
	unsigned lfb_shift;     /* VMFS6: small file blocks in a large one, as a power of two */
	unsigned ptr_per_block; /* addresses in a pointer block: 1024, 8192 */
	uint32_t fd_size;       /* 2048, or 2 * md_align */
	uint64_t size;          /* of the volume, bytes; 0: not known */
	struct vmfs_resource res[VMFS_NR_RES];
	/* Where the descriptors of the first cluster begin (volume offset): the bootstrap formula.
	 */
	uint64_t fdc_base;
};

/* A descriptor that is known to lie at a place, whatever .fdc.sf says.  In order of addr. */
struct vmfs_fd_place {
	uint32_t addr; /* FD address */
	uint64_t vol;  /* volume offset */
};

/* [off, off + len) of a resource file lies at vol. */
struct vmfs_piece {
	uint64_t off, len, vol;
};

struct vmfs_plan {
	struct vmfs_geometry geo;
	struct blk *dev[VMFS_MAX_DEVICES]; /* NULL: this extent is missing */
	unsigned nr_devs;
	struct vmfs_run *run; /* in order of vol, not overlapping; vmfs_plan_free() */
	unsigned nr_runs;
	struct vmfs_fd_place *fd; /* may be NULL */
	size_t nr_fds;
	/* For resource files whose descriptors cannot be read: what is known of where they lie, as
	 * their clusters' headers tell.  In order of off, not overlapping; may be NULL. */
	struct vmfs_piece *piece[VMFS_NR_RES];
	unsigned nr_pieces[VMFS_NR_RES];
	/* What was not as it should be, a line each for a person: recovery shows them. */
	char *notes;
};
void vmfs_plan_free(struct vmfs_plan *p);

/* --- volumes -----------------------------------------------------------------------------------
 */

struct vmfs;

enum {
	VMFS_ALLOW_MISSING = 1 << 0,  /* open with extents missing: their bytes are -ENODATA */
	VMFS_OTHER_SNAPSHOT = 1 << 1, /* take extents that call themselves a copy (resignature) */
};

/* The volume on these devices, which may come in any order and may be disks with partitions or bare
 * volumes.  More than one volume on them: uuid picks, or the first complete one when NULL. */
int vmfs_open(struct vmfs **out, struct blk *const *dev, unsigned n, const struct vmfs_uuid *uuid,
	      unsigned flags, struct error *err);
/* By a plan, which is the volume's from then on, also on failure. */
int vmfs_assemble(struct vmfs **out, struct vmfs_plan *plan, struct error *err);
void vmfs_close(struct vmfs *v); /* NULL is fine; files' blks must be closed before */
const struct vmfs_plan *vmfs_plan(const struct vmfs *v);

/* Volume bytes.  -ENODATA when they lie on no extent, -ERANGE beyond the volume. */
int vmfs_read_volume(struct vmfs *v, void *buf, size_t len, uint64_t vol);
/* Where they lie: *len shortened to the run. */
int vmfs_locate(struct vmfs *v, uint64_t vol, uint64_t *len, unsigned *dev, uint64_t *dev_off);

/* --- descriptors -------------------------------------------------------------------------------
 */

enum vmfs_type { VMFS_DIR = 2, VMFS_FILE = 3, VMFS_SYMLINK = 4, VMFS_SYSTEM = 5, VMFS_RDM = 6 };

enum { VMFS_FD_ROOT = 4 };

struct vmfs_inode {
	uint32_t addr; /* FD address */
	uint64_t vol;  /* where the descriptor lies */
	enum vmfs_type type;
	bool is_dir;   /* also system files that are directories */
	bool free_bit; /* its bit in the descriptors' bitmap says it is free */
	uint32_t generation, links, flags;
	uint64_t length, block_size, nr_blocks;
	uint32_t mtime, ctime, atime; /* seconds, 1970 */
	uint32_t uid, gid, mode;
	uint32_t zla;
	uint32_t nr_tbz;      /* addresses that are to be zeroed */
	unsigned block_shift; /* bytes of the file one address stands for, as a power of two */
	uint32_t parent;      /* VMFS6; 0: not known */
	uint64_t token;       /* of its lock: later writes have larger ones */
	bool resident;
	uint32_t nr_addr;      /* 256 or 320 */
	uint64_t address[320]; /* 32-bit ones on VMFS3 and 5 */
	uint8_t data[3584];    /* the resident data, or an RDM's disk id */
};

/* The descriptor at an FD address. */
int vmfs_inode_read(struct vmfs *v, uint32_t addr, struct vmfs_inode *in, struct error *err);
/* From bytes that may be one (geo->fd_size of them), found at volume offset vol, for recovery.
 * -EUCLEAN: they are none; *why then says so in some words (static). */
int vmfs_inode_parse(const struct vmfs_geometry *geo, const void *bytes, uint64_t vol,
		     struct vmfs_inode *in, const char **why);
/* By path from the root; symlinks are not followed.  "/" is the root. */
int vmfs_lookup(struct vmfs *v, const char *path, struct vmfs_inode *in, struct error *err);

/* --- directories -------------------------------------------------------------------------------
 */

struct vmfs_dirent {
	enum vmfs_type type;
	uint32_t addr, generation;
	char name[VMFS_NAME_MAX + 1];
	bool free; /* a slot marked free: what was deleted (with `deleted` below) */
};
/* Calls for each entry, "." and ".." too, until it returns non-zero, which is returned.  With
 * deleted, also slots that are free and still hold a name.  Entries that cannot be are left out and
 * counted in *bad (NULL is fine). */
int vmfs_dir_each(struct vmfs *v, const struct vmfs_inode *dir, bool deleted,
		  int (*entry)(void *opaque, const struct vmfs_dirent *e), void *opaque,
		  uint64_t *bad, struct error *err);

/* --- files -------------------------------------------------------------------------------------
 */

enum vmfs_range_kind {
	VMFS_RANGE_DATA,
	VMFS_RANGE_HOLE, /* never written: reads as zeroes */
	VMFS_RANGE_ZERO, /* to be zeroed (TBZ): reads as zeroes, old bytes lie there */
	VMFS_RANGE_RESIDENT,
	VMFS_RANGE_LOST, /* where it should be cannot be told, or is on a missing extent; see why */
};

struct vmfs_range {
	uint64_t off, len; /* in the file */
	enum vmfs_range_kind kind;
	uint64_t vol; /* DATA, ZERO, RESIDENT */
	unsigned dev; /* DATA: where that is */
	uint64_t dev_off;
	uint64_t pb; /* volume offset of the pointer block that named it; 0: the descriptor did */
	const char *why; /* LOST, in some words (static) */
	bool cow;
};
/* The range that holds off, as long as it goes on the same way, up to the file's length.  -EIO when
 * a pointer block cannot be read is a LOST range, not an error. */
int vmfs_file_range(struct vmfs *v, const struct vmfs_inode *in, uint64_t off,
		    struct vmfs_range *r);
/* Up to length; short reads only at the end: the number of bytes or -errno (-EIO, -ENODATA: in a
 * range that is LOST). */
int64_t vmfs_file_read(struct vmfs *v, const struct vmfs_inode *in, void *buf, size_t len,
		       uint64_t off);
/* The file as a disk of its exact size, read-only, for formats and conversion (blk_open_on).  LOST
 * ranges are read errors, holes are BLK_EXT_HOLE.  path: for messages. */
int vmfs_file_blk(struct blk **out, struct vmfs *v, const struct vmfs_inode *in, const char *path,
		  struct error *err);

/* --- addresses, for recovery -------------------------------------------------------------------
 */

enum vmfs_addr_type {
	VMFS_ADDR_NONE, /* 0: a hole */
	VMFS_ADDR_FB,   /* VMFS6: small file block */
	VMFS_ADDR_SB,
	VMFS_ADDR_PB,
	VMFS_ADDR_FD,
	VMFS_ADDR_PB2,
	VMFS_ADDR_JB,
	VMFS_ADDR_LFB,
};
struct vmfs_addr {
	enum vmfs_addr_type type;
	bool cow, tbz;
	uint64_t cluster; /* FB, LFB: the number of the block */
	uint32_t resource;
};
/* 0, or -EUCLEAN for what can be no address on such a volume. */
int vmfs_addr_parse(const struct vmfs_geometry *geo, uint64_t raw, struct vmfs_addr *a);
/* Where it points and how many bytes lie there.  -ERANGE: beyond what there is. */
int vmfs_addr_locate(struct vmfs *v, const struct vmfs_addr *a, uint64_t *vol, uint64_t *len);
/* Does the bitmap say it is in use?  1, 0, or -errno. */
int vmfs_addr_used(struct vmfs *v, const struct vmfs_addr *a);

/* --- checking ----------------------------------------------------------------------------------
 */

enum vmfs_severity { VMFS_INFO, VMFS_WARNING, VMFS_DAMAGE };
/* Everything that contradicts itself, a sentence each; what: a short code for machines
 * ("bitmap-leak", "cluster-header", "double-use", ...).  Reads all metadata once. */
int vmfs_check(struct vmfs *v,
	       void (*finding)(void *opaque, enum vmfs_severity severity, const char *what,
			       const char *sentence),
	       void *opaque, bool (*stop)(void *opaque), struct error *err);
