/* memfile.h - a file in memory that remembers every change made to it, in order.
 *
 * What a disk image lives in, for tests: all that a driver writes, cuts off and flushes goes to one
 * log, from which the file as a power cut would have left it can be made again.  One thread. */
#pragma once

#include "block/format.h"

enum change { CHANGE_WRITE, CHANGE_ZERO, CHANGE_DISCARD, CHANGE_SIZE, CHANGE_FLUSH };

struct cut_entry {
	enum change what;
	uint64_t off, len; /* SIZE: off is the new size */
	uint8_t *data;     /* WRITE */
};

struct cut_log {
	struct cut_entry *entry;
	unsigned n, cap;
};

struct memfile {
	uint8_t *data;
	uint64_t size, cap;
	struct cut_log *log; /* or NULL: nothing is remembered */
};

void memfile_load(struct memfile *f, const char *path);
void memfile_copy(struct memfile *to, const struct memfile *from); /* not the log */
void memfile_free(struct memfile *f);
void memfile_apply(struct memfile *f, const struct cut_entry *e);
void cut_log_free(struct cut_log *log);

/* The file as a disk; the memfile is borrowed. */
int memfile_open(struct blk **out, struct memfile *f, unsigned flags, struct error *err);
