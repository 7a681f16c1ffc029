/* source/source.h - disks that are no file of this host: network exports, downloads, the insides of
 * archives and of compressed files.
 *
 * For tools only (`hv disk`): these stand on libraries for networks and archives, which are never
 * linked into the process that runs a guest.  A program that has them calls source_register()
 * before it opens anything; after that blk_open takes the names described in hv-disk(1). */
#pragma once

#include "block/source.h"

void source_register(void);

/* What stands for the disk in a packed file: "compressed:FILE", or "archive:FILE!MEMBER" when it is
 * an archive with one disk; *name is malloc'd, NULL when the file is not packed or cannot be read.
 * by_name: only if its name says so too, because a guest can write the beginning of a raw disk.
 * Errors: it is damaged, or an archive with no disk or several; the sentence says how to name one.
 */
int source_unpack_name(const char *path, bool by_name, char **name, struct error *err);

extern const struct blk_source source_nbd, source_nbds, source_nbd_unix, source_nbds_unix;
extern const struct blk_source source_http, source_https, source_ssh;
extern const struct blk_source source_archive, source_ova, source_compressed;
