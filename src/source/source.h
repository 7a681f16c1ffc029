/* source/source.h - disks that are no file of this host: network exports, downloads, the insides of
 * archives and of compressed files.
 *
 * For tools only (`hv disk`): these stand on libraries for networks and archives, which are never
 * linked into the process that runs a guest.  A program that has them calls source_register()
 * before it opens anything; after that blk_open takes the names described in hv-disk(1). */
#pragma once

#include "block/source.h"

void source_register(void);

extern const struct blk_source source_nbd, source_nbds, source_nbd_unix, source_nbds_unix;
extern const struct blk_source source_http, source_https;
extern const struct blk_source source_archive, source_ova, source_compressed;
