/* export/mount.h - a disk as files: the whole of it and each partition, by FUSE.
 *
 * DIR then holds "disk" and "p1", "p2", ...; a loop device or any tool that reads raw images takes
 * them.  Serves until the directory is unmounted (fusermount3 -u DIR) or the process is told to
 * end; called by the main thread, which it keeps. */
#pragma once

#include "base/types.h"

struct blk;
struct error;

struct mount_config {
	struct blk *blk;        /* borrowed; opened without threads unless foreground */
	const char *dir, *name; /* name: shown in the list of mounts */
	bool writable;          /* lets writes through: give it an overlay */
	bool foreground;
	bool allow_other; /* users besides the one who mounts; see mount.fuse3(8) */
	void (*mounted)(const struct mount_config *cfg); /* it is there; NULL is fine */
};

int mount_serve(const struct mount_config *cfg, struct error *err);
