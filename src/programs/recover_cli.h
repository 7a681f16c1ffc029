/* recover_cli.h - what the sub-commands of `hv recover` share: options, sources, the two processes,
 * words.
 *
 * A sub-command runs in two processes.  The worker opens the sources, locks itself in (jail/) and
 * does everything that looks at their bytes.  The one that was started stays outside, creates the
 * files the worker asks for and nothing else, and tells when the worker dies.  Sources that are
 * remote, or images of some format, are held by a third process each (recover_sources.c).
 * One process does one command; nothing here is locked. */
#pragma once

#include "base/error.h"
#include "block/blk.h"
#include "programs/json_out.h"
#include "programs/size_text.h"
#include "recover/recover.h"

#include <getopt.h>
#include <stdio.h>

/* Exit statuses, besides HV_EXIT_OK and HV_EXIT_FAILED. */
enum {
	RECOVER_EXIT_DOUBT = 4, /* done, but some bytes are not sure; or check found damage */
};

struct recover;

struct recover_command {
	const char *name, *summary, *usage, *help;
	const char *letters;                      /* its own short options, for getopt */
	const struct option *options;             /* its own long ones; NULL: none */
	bool takes_path, needs_path;              /* SOURCE:/PATH */
	unsigned extra_args;                      /* arguments behind the sources */
	enum rec_depth depth;                     /* it needs at least */
	int (*option)(struct recover *rc, int c); /* 1: taken; negative: bad, said */
	int (*before)(struct recover *rc); /* outside, before the worker starts; may be NULL */
	int (*work)(struct recover *rc);   /* in the worker; exit status */
	bool takes_rest;                   /* arguments behind "--" */
	/* Outside: what the worker said with recover_tell_ready.  May be NULL. */
	void (*on_ready)(struct recover *rc, const char *text);
	/* Outside, when the worker is ready or gone; returns the exit status to end with, or -1:
	 * the worker's. May be NULL. */
	int (*outside)(struct recover *rc);
	void (*after)(struct recover *rc); /* outside, when the worker has ended; may be NULL */
};

enum { RECOVER_OPT_OWN = 2000, RECOVER_MAX_EXTRA = 2 };

struct recover_options {
	const char *findings, *map, *format;
	bool no_findings, full, again, shallow, other_snapshot, json, quiet, progress, no_progress;
	unsigned volume, threads, retries;
	struct blk_open_opts open;
	struct blk_remote_opts remote;
};

/* Where `cp` writes: outside. */
struct recover_target {
	const char *path, *format; /* format NULL: bytes as they are */
	char *options;             /* -o of the format, cut up in place; or NULL */
	const char *manifest;
	bool resume, overwrite;
};

struct recover {
	const struct recover_command *cmd;
	struct recover_options opt;
	const char *name[VMFS_MAX_DEVICES]; /* sources, as named */
	unsigned nr_sources;
	char *path; /* behind SOURCE: ; NULL: none */
	const char *extra[RECOVER_MAX_EXTRA];
	char **rest; /* behind "--" */
	unsigned nr_rest;
	struct rec_source source[VMFS_MAX_DEVICES];
	struct rec *rec;
	char *findings_path;
	int ctl, disk; /* the worker's ends to the process outside, or that one's to the worker */
	bool on_terminal, scanned;
	bool done; /* before() did all there was to do */
	struct recover_target target;
	void *own; /* the sub-command's */
};

extern const struct recover_command recover_scan, recover_ls, recover_tree, recover_info,
	recover_cat, recover_cp, recover_check, recover_carve, recover_mount, recover_preview,
	recover_boot, recover_report;

/* Options, sources, the processes: the exit status. */
int recover_main(const struct recover_command *cmd, int argc, char **argv);

/* In the worker: the entry SOURCE:/PATH names; what is not there is looked for among what was
 * deleted. */
int recover_find(struct recover *rc, struct rec_entry *e, struct error *err);

/* --- words -------------------------------------------------------------------------------------
 */

int recover_usage(const struct recover *rc, const char *fmt, ...) PRINTF_LIKE(2, 3);
int recover_fail(const struct recover *rc, const struct error *err); /* HV_EXIT_FAILED */
void recover_say(const struct recover *rc, const char *fmt, ...) PRINTF_LIKE(2, 3);
const char *recover_time_text(uint32_t when, char *buf, size_t cap);
/* Text from a disk, for a terminal or a file: control characters and bytes that are no UTF-8
 * become '?'.  In buf. */
const char *recover_safe_text(const char *text, char *buf, size_t cap);
/* "exact", or "12.4 MiB inferred, 3 KiB overwritten" */
const char *recover_trust_text(const struct rec_entry *e, char *buf, size_t cap);
/* "volumes": [...], "machines": [...] */
void recover_json_volumes(struct json *j, struct recover *rc);
int recover_json_vms(struct json *j, struct recover *rc, struct error *err);
void recover_json_entry(struct json *j, struct recover *rc, const struct rec_entry *e, bool ranges);

/* --- sources: recover_sources.c ----------------------------------------------------------------
 */

/* Outside: look what the sources are, start the processes that hold what needs one; close our ends
 * of them once the worker has its own; wait until they have saved their maps and ended. */
int recover_sources_start(struct recover *rc, struct error *err);
void recover_sources_leave(struct recover *rc);
void recover_sources_wait(struct recover *rc);
/* In the worker, before it is locked in. */
int recover_sources_open(struct recover *rc, struct error *err);
void recover_sources_close(struct recover *rc);
bool recover_unreadable(void *opaque, unsigned source, uint64_t off, uint64_t len);
/* malloc'd path of the findings file for these sources, its directory made; NULL: none is wanted.
 */
int recover_findings_path(struct recover *rc, char **path, struct error *err);

/* --- folders of a datastore browser: recover_folder.c ------------------------------------------
 */

bool recover_is_folder(const struct recover *rc); /* its only source is https://HOST/folder/.../ */
/* Lists it, outside: for before().  The exit status. */
int recover_folder_show(struct recover *rc, bool tree, bool names);

/* --- asking the process outside: recover_outside.c ---------------------------------------------
 */

enum { RECOVER_PATH_MAX = 4096 };

/* Names are relative to what the user named as the target.  All return 0 or -errno. */
int recover_make_dir(struct recover *rc, const char *path, struct error *err);
int recover_make_link(struct recover *rc, const char *path, const char *target, struct error *err);
/* A new file, open for writing; *fd = -1 when resume is on and it is there in this size already. */
int recover_make_file(struct recover *rc, const char *path, uint64_t size, uint32_t mtime, int *fd,
		      struct error *err);
/* What recover_make_file gave is complete and gets its name. */
int recover_file_done(struct recover *rc, const char *path, uint32_t mtime, struct error *err);
/* Let the process outside copy the disk b into the image the user named (rc->target says how). */
int recover_copy_disk(struct recover *rc, const char *path, struct blk *b, const char *key,
		      struct error *err);
/* All that was asked for is there: cmd->on_ready gets the text, then cmd->outside runs. */
int recover_tell_ready(struct recover *rc, const char *text, struct error *err);
/* The other end of these: serves until the worker is ready or gone. */
void recover_outside_serve(struct recover *rc);
