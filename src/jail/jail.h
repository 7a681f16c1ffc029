/* jail/jail.h - give up what a process that reads hostile bytes does not need.
 *
 * After jail_enter() this process, all its threads and what they could become may read and write
 * descriptors that are open, use memory and start threads; of the file system they may read.  They
 * cannot open anything for writing, make, remove or rename files, start programs, reach a network
 * or another process.  Who fools a parser gets no further than that.
 *
 * Two walls: a seccomp filter, always, and Landlock where the kernel has it, which leaves of the
 * file system only the directories named.  What is refused fails with EPERM (Landlock: EACCES).
 *
 * Once, by the only thread there is; there is no way back.  0 or -errno with a sentence. */
#pragma once

#include "base/types.h"

struct error;

struct jail {
	const char *const *readable; /* directories below which files may still be opened to read */
	unsigned nr_readable;
};

int jail_enter(const struct jail *j, struct error *err);
