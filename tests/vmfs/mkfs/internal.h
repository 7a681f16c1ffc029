/* internal.h - state of a volume being made; shared by the sources of vmfs_mkfs only.
 *
 * Content goes to the image at once; metadata is kept here and written by mkfs_flush().  What is
 * deleted is written at the time of the delete, then never again, so that whatever takes its place
 * overwrites it as on a real volume. */
#pragma once

#include "layout.h"
#include "mkfs.h"

#include <stdlib.h>

struct extent {
	char *path;
	int fd;
	uint64_t part_off;  /* of the partition in the file */
	uint64_t part_size; /* of the partition */
	uint64_t vol_off, len;
	uint8_t uuid[16];
	uint32_t target; /* of its SCSI name */
};

enum res_kind { RES_FDC, RES_FBB, RES_PBC, RES_SBC, RES_PB2, RES_JBC, RES_COUNT };

/* What a lock block says of the past, and a cluster header besides. */
struct note {
	uint64_t hb, hb_gen, token, mtime;
	uint32_t txn, txn2, time; /* changes, the last one when */
};

/* A resource file: clusters of things that a bitmap gives out. */
struct res {
	const char *name;
	uint32_t fd, lock_type;
	uint32_t rpc, cpg, rsize, hdr;
	uint64_t cgsize, num;
	uint8_t *used;      /* one byte per resource */
	uint32_t *owner;    /* FD (of .fdc: the parent directory) */
	uint64_t cap, next; /* allocated length of used[] and owner[]; where to look next */
	uint64_t free;
	struct note *note; /* per cluster */
	uint64_t notes;
	uint64_t length; /* of the file */
	uint64_t *block; /* its file blocks */
	uint64_t blocks, blocks_cap;
	uint64_t pb[FD6_ADDRS]; /* pointer blocks of a file with more blocks than a descriptor holds
				 */
	uint32_t pbs;
};

struct map { /* block bn of a file is at this address */
	uint64_t bn, addr;
};

struct piece {
	uint64_t off, len, seed;
	char *host;
	uint64_t host_off;
	char *text;
	bool tbz;
	char sha[65];
};

struct slot { /* of a directory */
	char *name;
	uint32_t fd, gen, type;
	bool free; /* deleted */
};

struct node {
	struct node *parent;
	char *name;
	uint32_t fd, gen, type, links, mode, zla, flags, time;
	uint64_t length, block, nblocks;
	unsigned int shift, tbz_shift;
	uint32_t tbz, cow, pbs, lfbs, last_sfb;
	uint64_t *addr; /* FD6_ADDRS of them, or NULL: none yet */
	uint8_t *resident;
	struct map *map;
	uint64_t maps, maps_cap;
	struct piece *piece;
	unsigned int pieces;
	uint64_t *pb; /* addresses of its pointer blocks */
	uint64_t pbs_cap;
	struct slot *slot;
	uint64_t slots, slots_cap;
	struct node **child; /* of a directory; also the deleted */
	uint64_t children, children_cap;
	bool deleted, unmapped, sys, quiet;
	int grade;
	struct note lock;
	uint32_t ctime, atime; /* 0: as time */
	uint32_t affinity;     /* 0: itself */
	uint32_t fresh;        /* blocks new since some time; 0: all */
	char *target;
	char sha[65];
};

struct mkfs {
	int version;
	bool six;
	struct mkfs_format f;
	char *label;
	uint64_t block, sub, volume, fdc_base, mdalign;
	uint32_t time, gen, ctime;
	uint64_t stamp[4];                   /* LVM: made, changed; volume: made, changed; in us */
	uint32_t hb_slot;                    /* of the host that makes all this */
	uint64_t hb_gen, hb_uptime, hb_past; /* generation after it left, or 0 */
	uint64_t seq;
	uint8_t lv_uuid[16], fs_uuid[16], host_uuid[16];
	struct extent ext[MKFS_EXTENTS_MAX];
	unsigned int extents;
	struct res res[RES_COUNT];
	uint8_t *lfb; /* per 512 MiB: enum lfb_state */
	uint64_t lfbs;
	struct note lfb_note;
	uint64_t journal; /* VMFS5: the block */
	uint64_t journal_used;
	struct node *root, *sdd;
	struct mkfs *older; /* what the files held before a quick format */
	struct node **deleted;
	uint64_t deletes, deletes_cap;
	bool scatter, reuse;
};
enum { MKFS_LISTED_MAX = 5000 }; /* a larger fill is only counted in the manifest */
enum lfb_state { LFB_FREE, LFB_CHILD, LFB_FILE };

/* util.c */
__attribute__((format(printf, 1, 2), noreturn)) void mkfs_die(const char *fmt, ...);
void *xalloc(uint64_t n);
void *xgrow(void *p, uint64_t n, uint64_t old, uint64_t size);
char *xdup(const char *s);
uint64_t mix64(uint64_t x);
void make_uuid(uint8_t uuid[16], uint64_t seed, uint32_t time);
void print_uuid(char out[36], const uint8_t uuid[16]);

/* dev.c: files, partition tables, LVM */
void dev_open(struct mkfs *m);
void dev_close(struct mkfs *m);
void dev_write(struct mkfs *m, uint64_t vol, const void *buf, uint64_t len);
void dev_read(struct mkfs *m, uint64_t vol, void *buf, uint64_t len);
void dev_punch(struct mkfs *m, uint64_t vol, uint64_t len);
const struct extent *dev_at(const struct mkfs *m, uint64_t vol, uint64_t *left);
void lvm_write(struct mkfs *m);

/* res.c: resource files and blocks */
void res_init(struct mkfs *m);
void res_file_block(struct mkfs *m, struct res *r, uint64_t block);
void res_extend(struct mkfs *m, struct res *r, uint64_t num);
uint64_t res_take(struct mkfs *m, enum res_kind k, uint32_t owner);
void res_free(struct mkfs *m, enum res_kind k, uint64_t i);
uint64_t res_vol(const struct mkfs *m, enum res_kind k, uint64_t i);
uint64_t res_file_vol(const struct mkfs *m, const struct res *r, uint64_t off);
uint64_t res_header_vol(const struct mkfs *m, const struct res *r, uint64_t cluster);
void res_touch(struct mkfs *m, struct res *r, uint64_t i);
void note_change(struct mkfs *m, struct note *n);
void lock_put(struct mkfs *m, uint8_t *h, uint32_t type, uint64_t vol, const struct note *n);
void res_map_indirect(struct mkfs *m);
void res_flush(struct mkfs *m);
uint64_t fb_take(struct mkfs *m, uint32_t owner);
uint64_t lfb_take(struct mkfs *m);
void fb_reserve(struct mkfs *m, uint64_t block, uint32_t owner);
uint64_t res_clusters(const struct res *r);

/* addr.c: what stands in a block list */
uint32_t addr_fd(const struct mkfs *m, uint64_t index);
uint64_t addr_fd_index(const struct mkfs *m, uint32_t addr);
uint64_t addr_fb(const struct mkfs *m, uint64_t block);
uint64_t addr_lfb(uint64_t lfb);
uint64_t addr_res(const struct mkfs *m, enum res_kind k, uint64_t index);
uint64_t addr_vol(const struct mkfs *m, uint64_t addr);
uint64_t addr_size(const struct mkfs *m, uint64_t addr);
void addr_free(struct mkfs *m, uint64_t addr);

/* node.c: descriptors and content */
struct node *node_new(struct mkfs *m, struct node *parent, const char *name, uint32_t type);
struct node *node_find(struct mkfs *m, const char *path);
struct node *node_parent(struct mkfs *m, const char *path, const char **name);
void node_link(struct mkfs *m, struct node *n);
void node_write_fd(struct mkfs *m, struct node *n);
void node_image_fd(struct mkfs *m, struct node *n, uint8_t *buf);
uint64_t node_fd_size(const struct mkfs *m);
uint64_t node_fd_vol(const struct mkfs *m, const struct node *n);
void node_map(struct node *n, uint64_t bn, uint64_t addr);
uint64_t node_at(const struct node *n, uint64_t off);
void node_seal(struct mkfs *m, struct node *n, enum mkfs_layout layout, bool pb2);
void node_put(struct mkfs *m, struct node *n, uint64_t off, const void *buf, uint64_t len);
uint64_t node_step(const struct mkfs *m, const struct node *n, uint64_t off, uint64_t *vol);
void piece_bytes(const struct piece *p, uint64_t off, void *buf, uint64_t len);
uint64_t *node_addrs(struct node *n);
void node_free(struct node *n);

/* dir.c */
void dir_write(struct mkfs *m, struct node *dir);
void dir_remove(struct mkfs *m, struct node *n, enum mkfs_dirent how, int grade);

/* format.c */
void super_write(struct mkfs *m);
void heartbeats_write(struct mkfs *m);
void journal_write(struct mkfs *m);

/* flush.c */
void mkfs_destroy(struct mkfs *m);

/* regen.c: a real volume's metadata made again from its fields, and compared; prints TAP */
int mkfs_regenerate(const char *path);

/* manifest.c */
void manifest_write(struct mkfs *m, FILE *out);
