/* export/tree.h - a read-only tree of files, mounted by FUSE.
 *
 * The mount is made by a process that may mount (tree_mount), and served by it or by a child that
 * may not any more (tree_serve); tree_unmount is for the first again.  What is in the tree comes
 * from callbacks, all called on the serving thread.  Nodes have numbers that stay; the root is 1.
 * Errors: 0 or -errno, with the sentence in *err. */
#pragma once

#include "base/types.h"

struct blk;
struct error;
struct tree_mount;

struct tree_node {
	uint64_t id;
	uint32_t mode; /* S_IFDIR, S_IFREG, S_IFLNK and permissions */
	uint64_t size, stored;
	uint32_t mtime;
};

struct tree_ops {
	int (*node)(void *opaque, uint64_t id, struct tree_node *n);
	int (*child)(void *opaque, uint64_t dir, const char *name, struct tree_node *n);
	/* Calls entry() for each, until it returns non-zero. */
	int (*list)(void *opaque, uint64_t dir,
		    int (*entry)(void *arg, const char *name, const struct tree_node *n),
		    void *arg);
	int (*link)(void *opaque, uint64_t id, char *buf, size_t cap);
	int (*open)(void *opaque, uint64_t id, struct blk **b); /* closed for it */
};

/* dir: an empty directory.  name: shown in the list of mounts. */
int tree_mount(struct tree_mount **out, const char *dir, const char *name, bool allow_other,
	       struct error *err);
/* Until it is unmounted, or SIGINT, SIGTERM or SIGHUP comes: 0. */
int tree_serve(struct tree_mount *m, const struct tree_ops *ops, void *opaque);
void tree_unmount(struct tree_mount *m); /* and free; NULL is fine */
