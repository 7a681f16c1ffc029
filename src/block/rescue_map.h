/* block/rescue_map.h - which parts of a disk could be read: the map file of GNU ddrescue.
 *
 * A map covers [0, size) without gaps; every byte has one status.  Text files, read by ddrescue,
 * ddrescuelog and us (GNU ddrescue manual, "Mapfile structure").  Map files are hostile input:
 * numbers are checked, memory is bounded.  Offsets and lengths are bytes.  Not locked: one thread,
 * or the caller's lock.  Errors are negative errno with a sentence. */
#pragma once

#include "base/types.h"

struct error;
struct rescue_map;

enum rescue_status {
	RESCUE_NON_TRIED = '?',
	RESCUE_NON_TRIMMED = '*', /* a read failed here; not looked at closer */
	RESCUE_NON_SCRAPED = '/', /* between bad sectors; not read one by one yet */
	RESCUE_BAD = '-',
	RESCUE_FINISHED = '+',
};

int rescue_map_new(struct rescue_map **out, uint64_t size, struct error *err); /* all '?' */
void rescue_map_free(struct rescue_map *m);                                    /* NULL is fine */
uint64_t rescue_map_size(const struct rescue_map *m);

/* -ENOMEM: nothing has changed. */
int rescue_map_set(struct rescue_map *m, uint64_t off, uint64_t len, enum rescue_status status);
/* The status at off < size; shortens *len to the run that shares it. */
enum rescue_status rescue_map_get(const struct rescue_map *m, uint64_t off, uint64_t *len);
/* The whole run around off. */
enum rescue_status rescue_map_around(const struct rescue_map *m, uint64_t off, uint64_t *start,
				     uint64_t *end);
uint64_t rescue_map_count(const struct rescue_map *m, enum rescue_status status); /* bytes */
/* Where the last byte of that status ends; 0: there is none. */
uint64_t rescue_map_last(const struct rescue_map *m, enum rescue_status status);
size_t rescue_map_runs(const struct rescue_map *m);
int rescue_map_copy(const struct rescue_map *m, struct rescue_map **out);

/* A map's text.  size: of the disk; parts the text says nothing about are '?', parts behind the end
 * are left out.  source (NULL: do not ask): when the text names another one, -EINVAL.  name is for
 * messages. */
int rescue_map_parse(struct rescue_map **out, const char *text, size_t len, uint64_t size,
		     const char *source, const char *name, struct error *err);
/* malloc'd text, *len bytes. */
int rescue_map_print(const struct rescue_map *m, const char *source, char **text, size_t *len);

/* As files.  load: -ENOENT (with a sentence) when there is none.  save: to a new file first, which
 * takes the old one's place when it is on the medium; a crash leaves the old or the new one. */
int rescue_map_load(struct rescue_map **out, const char *path, uint64_t size, const char *source,
		    struct error *err);
int rescue_map_save(const struct rescue_map *m, const char *path, const char *source,
		    struct error *err);
int rescue_sync_directory(const char *path); /* the one path is in: names made there stay */
