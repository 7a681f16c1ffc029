/* recover/recover.h - what can be got back of a VMFS datastore, whole or damaged.
 *
 * A recovery (struct rec) is made of sources (devices, images, remote disks), what a scan found on
 * them, and the tree built of that: files with a state, each byte range of each file with a mark
 * that says how sure it is, files grouped into VMs.  For a volume in order the tree is its own.
 * `hv recover` does everything through this header and nothing by itself.
 *
 * What was found is kept in a findings file (SQLite), so that the next command is instant and an
 * interrupted scan goes on where it was.  Sources are never opened for writing.
 *
 * rec_open() opens every file that is ever written (the findings and SQLite's files beside them:
 * WAL with locking_mode=EXCLUSIVE, temp_store=MEMORY) and looks at no byte of a source; after it
 * the process may give up the right to open, make or remove files (jail/jail.h), and does.
 *
 * Units: bytes.  Errors: 0 or -errno with the sentence in *err.  Ownership: strings in structs that
 * are handed out belong to the struct rec and live until it is closed.  Threads: one at a time;
 * a blk from rec_blk may be read by several. */
#pragma once

#include "vmfs/vmfs.h"

struct rec;

/* --- sources -----------------------------------------------------------------------------------
 */

/* A disk to look at, open already (read-only, BLK_NO_LOCK) by who can open it: parsing happens
 * where nothing can be opened any more.  identity: what tells this source from another
 * ("file:dev:inode: size:mtime", a URL and size): findings of other sources are not taken for its
 * own. */
struct rec_source {
	struct blk *blk;
	const char *name;     /* as the user named it */
	const char *identity; /* one line */
};

struct rec_config {
	const struct rec_source *source;
	unsigned nr_sources;
	const char *findings; /* path of the findings file; NULL: in memory only */
	bool read_only;       /* do not change the findings file: it must have what is asked for */
	bool other_snapshot;  /* VMFS_OTHER_SNAPSHOT */
	/* May be NULL.  Is [off, off+len) of a source known not to be readable (rescue filter)? */
	bool (*unreadable)(void *opaque, unsigned source, uint64_t off, uint64_t len);
	void *opaque;
};

int rec_open(struct rec **out, const struct rec_config *cfg, struct error *err);
void rec_close(struct rec *r); /* NULL is fine */

/* --- scanning ----------------------------------------------------------------------------------
 */

enum rec_depth {
	REC_AS_IS, /* the volume by its own headers and tree; a second or so */
	REC_META,  /* and where metadata usually are: first 1.5 GiB, groups of descriptors */
	REC_FULL,  /* and every byte, with carving */
};

enum rec_phase {
	REC_PHASE_OPEN,
	REC_PHASE_SCAN,
	REC_PHASE_REBUILD,
	REC_PHASE_TREE,
	REC_PHASE_CARVE
};

struct rec_progress {
	enum rec_phase phase;
	uint64_t done, total; /* of the phase: bytes, or records */
	uint64_t hits, unreadable_bytes;
};

struct rec_scan {
	enum rec_depth depth; /* at least */
	/* Go deeper by itself when the shallow way finds a damaged volume (REC_AS_IS finds no
	 * superblock, no root, ...); never to REC_FULL when REC_META gave a whole tree. */
	bool deepen;
	bool again;       /* forget what the findings file holds */
	unsigned volume;  /* of several on the sources: rec_volumes(); 0 the most likely */
	unsigned threads; /* 0: as many as there are CPUs */
	void (*progress)(void *opaque, const struct rec_progress *p);
	bool (*stop)(void *opaque); /* what was found is kept; -EINTR */
	void *opaque;
};
/* Do what is not in the findings yet.  Afterwards the tree below stands. */
int rec_scan(struct rec *r, const struct rec_scan *scan, struct error *err);

/* One base (device offset minus self-address) that metadata vote for is one extent; extents of the
 * same volume make one of these.  Old volumes below a newer one are volumes too. */
struct rec_volume {
	const char *label;
	struct vmfs_uuid uuid;
	unsigned version; /* 3, 5, 6; 0: not known */
	uint64_t size, votes;
	unsigned nr_extents, nr_missing;
	bool whole; /* its own headers and tree were enough */
	bool older; /* another volume was made over it */
};
unsigned rec_volumes(struct rec *r, const struct rec_volume **list);
/* What was wrong with the volume and how it was dealt with: lines for people. */
const char *rec_notes(struct rec *r);

/* --- the tree ----------------------------------------------------------------------------------
 */

/* How sure a range of a file is. */
enum rec_trust {
	REC_EXACT,       /* the file system's own records say so */
	REC_INFERRED,    /* concluded: orphan pointer blocks, order of allocation, content */
	REC_OVERWRITTEN, /* belongs to another, live file now, or was zeroed by a discard */
	REC_UNREADABLE,  /* the device cannot read it, or its extent is missing */
	REC_UNKNOWN,     /* nothing tells where it lies; reads as zeroes */
	REC_NR_TRUST,
};
const char *rec_trust_name(enum rec_trust t); /* "exact", "inferred", ... */

enum rec_state {
	REC_LIVE,    /* reached from the root by its name */
	REC_ORPHAN,  /* a descriptor in use that no directory names: found by parent or content */
	REC_DELETED, /* a descriptor or slot that is free: see grade */
	REC_CARVED,  /* found by content alone */
	REC_MADE,    /* text put together by us: a missing VMX or VMDK descriptor */
};
const char *rec_state_name(enum rec_state s);

enum {
	REC_ROOT = 1
}; /* entry id of "/".  What has no place in it is below /lost+found,
      /deleted and /carved. */

struct rec_entry {
	uint64_t id, parent; /* ids stay the same while the findings file lives */
	const char *name;
	bool name_made; /* the name is ours, the real one is lost */
	enum vmfs_type type;
	enum rec_state state;
	unsigned grade; /* DELETED: 1 addresses intact, 2 pointer blocks matched, 3 carved */
	uint32_t fd;    /* FD address, or 0 */
	uint64_t length;
	uint64_t stored; /* bytes that are no holes */
	uint32_t mtime, mode, uid, gid;
	uint64_t bytes[REC_NR_TRUST]; /* how many of length have which mark */
	enum rec_trust worst;         /* of its bytes */
	bool is_dir, system;          /* .fdc.sf and so on */
	const char *what; /* kind of content where known: "vmdk-descriptor", "vmx", "flat",
			   * "sparse", "nvram", "log", ...; or NULL */
	const char *note; /* a sentence about it, or NULL */
};

int rec_entry(struct rec *r, uint64_t id, struct rec_entry *e, struct error *err);
/* By path: "/vm/disk.vmdk", "/deleted/...".  Also "#ID". */
int rec_lookup(struct rec *r, const char *path, struct rec_entry *e, struct error *err);
/* In order of name; until it returns non-zero, which is returned. */
int rec_children(struct rec *r, uint64_t id, int (*child)(void *opaque, const struct rec_entry *e),
		 void *opaque, struct error *err);
/* "/dir/name"; 0 or -ERANGE. */
int rec_path(struct rec *r, uint64_t id, char *buf, size_t cap);
int rec_readlink(struct rec *r, uint64_t id, char *buf, size_t cap);

struct rec_range {
	uint64_t off, len;
	enum rec_trust trust;
	enum vmfs_range_kind kind;
	int source; /* index; -1: nowhere (hole, resident, made, lost) */
	uint64_t source_off;
	const char *why; /* of a trust that is not exact (static) */
};
/* The range that holds off. */
int rec_range(struct rec *r, uint64_t id, uint64_t off, struct rec_range *range);

enum {
	REC_BLK_STRICT = 1 << 0, /* ranges that are not EXACT or INFERRED are read errors; else what
				  * lies there, or zeroes where nothing can be read */
};
/* A file's bytes as a read-only disk of its exact size.  Name for messages: its path. */
int rec_blk(struct rec *r, uint64_t id, unsigned flags, struct blk **out, struct error *err);
/* A VMDK (its descriptor, or a disk of its own) as the guest saw it: extents, parents of snapshots
 * and missing descriptors are found in the tree. */
int rec_open_disk(struct rec *r, uint64_t id, unsigned flags, struct blk **out, struct error *err);

/* --- virtual machines --------------------------------------------------------------------------
 */

enum { REC_VM_DISKS = 64 };

struct rec_vm {
	uint64_t id;
	const char *name; /* displayName, or of its directory */
	uint64_t dir;     /* entry, or 0 */
	uint64_t vmx;     /* entry: live, deleted, carved or made */
	unsigned nr_disks;
	struct {
		uint64_t descriptor; /* entry; of kind MADE where it was missing */
		uint64_t extent;     /* its (first) extent's entry; 0: not found */
		uint64_t size;       /* of the virtual disk */
		const char *slot;    /* "scsi0:0", or "" */
	} disk[REC_VM_DISKS];
	enum rec_state state; /* the weakest of its parts' */
	enum rec_trust worst;
	const char *note;
};
int rec_vms(struct rec *r, int (*vm)(void *opaque, const struct rec_vm *vm), void *opaque,
	    struct error *err);
/* By name, or by the path of its directory or VMX. */
int rec_vm_find(struct rec *r, const char *name, struct rec_vm *vm, struct error *err);

/* --- the doctor --------------------------------------------------------------------------------
 */

/* vmfs_check on the volume as found, and what recovery noticed. */
int rec_check(struct rec *r,
	      void (*finding)(void *opaque, enum vmfs_severity severity, const char *what,
			      const char *sentence),
	      void *opaque, bool (*stop)(void *opaque), struct error *err);
