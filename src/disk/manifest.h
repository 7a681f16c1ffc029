/* disk/manifest.h - the hashes of a disk's content, block by block: SHA-256 of each 4 MiB that is
 * not all zeroes.
 *
 * Any number of threads add blocks, in any order.  The file is text: a head ("trivisor-manifest 1",
 * "size N", "block N"), a line "OFFSET SHA256" per block, and "content SHA256", which is the hash
 * of all lines before it, so that one line stands for the disk. */
#pragma once

#include "base/types.h"

struct disk_manifest;
struct error;

#define DISK_MANIFEST_BLOCK (4 * MiB)

int disk_manifest_create(struct disk_manifest **out, uint64_t size, struct error *err);
void disk_manifest_destroy(struct disk_manifest *m);
/* [off, off+len): whole blocks, except at the end of the disk.  0 or -ENOMEM, -EIO. */
int disk_manifest_add(struct disk_manifest *m, uint64_t off, const void *data, size_t len);
int disk_manifest_save(struct disk_manifest *m, const char *path, struct error *err);
int disk_manifest_load(struct disk_manifest **out, const char *path, struct error *err);
uint64_t disk_manifest_size(const struct disk_manifest *m);
/* Where they first differ, or UINT64_MAX. */
uint64_t disk_manifest_compare(struct disk_manifest *a, struct disk_manifest *b);
