/* disk/journal.h - how far a long piece of work has got, in a small file beside its result.
 *
 * Only what was flushed before may be told to disk_journal_save(); the file is replaced in one
 * step.  `key` is one line that names the work: another key means another work.  Errors as
 * error.h. */
#pragma once

#include "base/types.h"

struct error;

/* 1: *done is where to go on; 0: there is no journal, or it is another work's. */
int disk_journal_load(const char *path, const char *key, uint64_t *done);
int disk_journal_save(const char *path, const char *key, uint64_t done, struct error *err);
void disk_journal_remove(const char *path);
