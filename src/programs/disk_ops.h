/* disk_ops.h - the sub-commands of `hv disk` that change an image where it lies, serve or measure
 * it.
 *
 * Each has a file of its own or shares one with its opposite. */
#pragma once

#include "programs/disk_cli.h"

int disk_main_amend(int argc, char **argv);
int disk_main_bench(int argc, char **argv);
int disk_main_bitmap(int argc, char **argv);
int disk_main_commit(int argc, char **argv);
int disk_main_compact(int argc, char **argv);
int disk_main_dd(int argc, char **argv);
int disk_main_mount(int argc, char **argv);
int disk_main_rebase(int argc, char **argv);
int disk_main_resize(int argc, char **argv);
int disk_main_serve(int argc, char **argv);
int disk_main_snapshot(int argc, char **argv);

/* {"command": ..., "image": ...} with --json, else `text` unless -q; returns 0. */
int disk_done(const struct disk_cli *cli, const char *image, const char *text);
/* A size as people write it: "10G", "512k", "1.5T" (units of 1024). */
int disk_parse_size(const char *text, uint64_t *bytes);
