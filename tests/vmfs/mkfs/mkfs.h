/* mkfs.h - a clean-room VMFS mkfs and file writer for tests.
 *
 * Makes volumes of the shapes VMFS3, VMFS5 and VMFS6 know, deletes from them in the three grades a
 * rescue must handle, formats over old ones, and says in a JSON manifest what was written where:
 * the oracle of the reader's and the recovery's tests.  For tests only; nothing in src uses it.
 *
 * The usual way in is mkfs_script(): the text `mkvmfs --help` explains.  The functions below are
 * what its lines call.  Offsets and lengths are in bytes, times in seconds since 1970, the same in
 * every run: images are reproducible.
 * Ownership: the struct mkfs owns everything; strings given are copied.  Errors: a wrong script, a
 * full volume or a failing disk ends the program with one line on stderr and status 1 (a test has
 * nothing better to do).  Threads: one.
 * Format: what layout.h says. */
#pragma once

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { MKFS_EXTENTS_MAX = 32 };
enum mkfs_disk { MKFS_BARE, MKFS_GPT, MKFS_MBR };
enum mkfs_layout {
	MKFS_AUTO,
	MKFS_RESIDENT,
	MKFS_SUBBLOCK,
	MKFS_DIRECT,
	MKFS_SINGLE,
	MKFS_DOUBLE,
};
enum mkfs_dirent {
	MKFS_DIRENT_DEFAULT,
	MKFS_DIRENT_ADDRESS,
	MKFS_DIRENT_ZERO,
	MKFS_DIRENT_COMPACT
};

struct mkfs_format {
	int version;          /* 3, 5 or 6 */
	uint64_t block;       /* file block; 0: 1 MiB */
	bool dense;           /* 32 sub-blocks in a cluster instead of 16 (VMFS5) */
	bool upgraded;        /* VMFS5 that was VMFS3: .pb2.sf and .sdd.sf have later descriptors */
	bool local;           /* VMFS-L */
	bool live;            /* one host's heartbeat is in use */
	bool keep;            /* what the files held stays where it is not written */
	enum mkfs_disk disk;  /* how a whole disk is partitioned, or no partition table */
	uint64_t seed;        /* of the UUIDs */
	const char *label;    /* NULL: "test" */
	unsigned int extents; /* number of files */
	const char *file[MKFS_EXTENTS_MAX];
	uint64_t size[MKFS_EXTENTS_MAX]; /* of the volume's share; rounded up to 256 MiB */
};

/* A piece of a file's content: one of text, host (a file on this machine) or pattern. */
struct mkfs_piece {
	uint64_t off, len;
	uint64_t seed;    /* of the pattern: mkfs_pattern() */
	const char *host; /* NULL or a path; its bytes from host_off on */
	uint64_t host_off;
	const char *text; /* NULL or len bytes */
	bool tbz;         /* blocks are "to be zeroed": stale bytes that read as zeros */
	bool cow;         /* blocks have the copy-on-write bit */
	bool lfb;         /* VMFS6: large file blocks where all 512 MiB are in the file */
	bool thin;        /* blocks of zeros are holes */
};

struct mkfs_file {
	uint64_t size; /* 0: to the end of the last piece */
	enum mkfs_layout layout;
	bool pb2;    /* pointer blocks in .pb2.sf */
	bool reuse;  /* take the lowest free blocks, sub-blocks and descriptor, as after a delete */
	bool new_fd; /* with reuse: but not a freed descriptor */
	bool scatter;    /* leave a hole after every block, so no two are neighbours */
	uint32_t mode;   /* 0: 0644 */
	const char *rdm; /* an RDM: the SCSI id (up to 44 bytes) */
	const struct mkfs_piece *piece;
	unsigned int pieces;
};

struct mkfs_delete {
	int grade;  /* 1, 2, 3: what is wiped, see mkfs_delete() */
	bool unmap; /* the storage took the blocks back: they read as zeros */
	enum mkfs_dirent dirent;
};

struct mkfs;

struct mkfs *mkfs_create(const struct mkfs_format *f);
/* A quick format over a finished volume, in the same files: the old one's data stays where nothing
 * new is written, and the manifest keeps its tree under "older".  Takes the old one over. */
struct mkfs *mkfs_format_over(struct mkfs *old, const struct mkfs_format *f);
void mkfs_mkdir(struct mkfs *m, const char *path);
void mkfs_add(struct mkfs *m, const char *path, const struct mkfs_file *f);
void mkfs_symlink(struct mkfs *m, const char *path, const char *target);
/* count empty or small files prefix0.. in a directory that exists; len 0: empty */
void mkfs_fill(struct mkfs *m, const char *dir, const char *prefix, uint64_t count, uint64_t len);
/* VMFS6: count files whose names share one slot of the directory's hash table. */
void mkfs_collide(struct mkfs *m, const char *dir, const char *prefix, uint64_t count);
/* Grade 1: bitmaps are free, the descriptor is whole.  2: also the address array is zero; length,
 * block count and pointer blocks stay.  3: descriptor and pointer blocks are zero too.  A directory
 * goes with everything below it. */
void mkfs_delete(struct mkfs *m, const char *path, const struct mkfs_delete *d);
/* A second, older copy of a file's descriptor in a free slot: same own address, lower token. */
void mkfs_stale(struct mkfs *m, const char *path);
/* A copy of a file's descriptor in the journal. */
void mkfs_journal(struct mkfs *m, const char *path);
/* Write all metadata.  mkfs_finish() does it too. */
void mkfs_flush(struct mkfs *m);
/* Flush, write the manifest to out (NULL: none) and free. */
void mkfs_finish(struct mkfs *m, FILE *out);

/* Run a script; the manifest goes to out (NULL: none). */
void mkfs_script(const char *text, FILE *out);

/* Bytes off..off+len of the endless pattern of a seed. */
void mkfs_pattern(uint64_t seed, uint64_t off, void *buf, uint64_t len);
/* The hash of a name in a VMFS6 directory: lookup8 over the padded key. */
uint64_t mkfs_name_hash(const char *name);
