/* disk_cli.h - what the sub-commands of `hv disk` share: options, opening, progress, output.
 *
 * One process does one of them and ends.  disk_run_* functions return exit statuses. */
#pragma once

#include "block/blk.h"
#include "block/image.h"
#include "disk/team.h"
#include "programs/json_out.h"
#include "programs/size_text.h"

#include <getopt.h>

struct disk_command {
	const char *name, *summary;
	int (*main)(int argc, char **argv); /* argv[0] is the sub-command's name */
};

int disk_main_check(int argc, char **argv);
int disk_main_compare(int argc, char **argv);
int disk_main_convert(int argc, char **argv);
int disk_main_create(int argc, char **argv);
int disk_main_info(int argc, char **argv);
int disk_main_map(int argc, char **argv);
int disk_main_measure(int argc, char **argv);
int disk_main_repair(int argc, char **argv);

enum { DISK_MAX_ALLOW = 32, DISK_MAX_KV = 64 };

/* What every sub-command takes. */
struct disk_cli {
	const char *command;
	struct blk_open_opts open;
	struct blk_remote_opts remote; /* of open */
	const char *allow[DISK_MAX_ALLOW];
	const char *secret_file;
	unsigned flags; /* BLK_* for every image: -U */
	bool json, quiet, progress;
	int failed; /* the exit status for errors */
};

// clang-format off
enum {
	DISK_OPT_ALLOW_REF = 1000, DISK_OPT_SECRET, DISK_OPT_JSON, DISK_OPT_OUTPUT,
	DISK_OPT_PASSWORD, DISK_OPT_CACERT, DISK_OPT_PIN, DISK_OPT_OWN,
};
#define DISK_COMMON_LETTERS "hqU"
#define DISK_COMMON_OPTIONS                                                                        \
	{"help", no_argument, NULL, 'h'},                                                          \
	{"quiet", no_argument, NULL, 'q'},                                                         \
	{"force-share", no_argument, NULL, 'U'},                                                   \
	{"allow-ref", required_argument, NULL, DISK_OPT_ALLOW_REF},                                \
	{"secret", required_argument, NULL, DISK_OPT_SECRET},                                      \
	{"password-file", required_argument, NULL, DISK_OPT_PASSWORD},                             \
	{"cacert", required_argument, NULL, DISK_OPT_CACERT},                                      \
	{"pin", required_argument, NULL, DISK_OPT_PIN},                                            \
	{"json", no_argument, NULL, DISK_OPT_JSON},                                                \
	{"output", required_argument, NULL, DISK_OPT_OUTPUT}
#define DISK_COMMON_HELP                                                                           \
	"  --allow-ref DIR     files that images name may also lie under DIR\n"                    \
	"  --secret FILE       the passphrase of encrypted images is in FILE\n"                    \
	"  --password-file FILE, --cacert FILE, --pin KEY\n"                                       \
	"                      for https://USER@HOST/...: hv-disk(1), SOURCES\n"                  \
	"  -U, --force-share   do not mind that others use the image\n"                            \
	"  -q, --quiet         say nothing but errors\n"                                           \
	"  --json              print JSON\n"                                                       \
	"  -h, --help          this text\n"
// clang-format on

void disk_cli_init(struct disk_cli *cli, const char *command);
/* 1: it was one of the common options; 0: it is the caller's; negative: a bad value, said. */
int disk_cli_option(struct disk_cli *cli, int c);
/* "hv disk COMMAND: ..." and a hint at --help; returns cli->failed. */
int disk_usage(const struct disk_cli *cli, const char *fmt, ...) PRINTF_LIKE(2, 3);
int disk_fail(const struct disk_cli *cli, const struct error *err);
/* A remark on standard error, unless -q or --json. */
void disk_say(const struct disk_cli *cli, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Open; says what was guessed when format is NULL.  cli->flags are added.  The disk inside a packed
 * file is opened in its place. */
int disk_open(const struct disk_cli *cli, struct blk **out, const char *path, const char *format,
	      unsigned flags, const char *snapshot, struct error *err);

/* The name of the disk inside a packed file, as blk_open takes it, malloc'd; NULL: it is not
 * packed. Says what it found.  With BLK_READONLY unset a packed file is refused. */
int disk_find_packed(const struct disk_cli *cli, const char *path, const char *format,
		     unsigned flags, char **name, struct error *err);

/* -o key=value,key=value: a comma in a value is written twice.  text is cut up in place and must
 * live on.  -EINVAL after words. */
struct disk_kv {
	struct blk_kv kv[DISK_MAX_KV];
	unsigned n;
};
int disk_parse_kv(const struct disk_cli *cli, struct disk_kv *kv, char *text);
const char *disk_take_kv(struct disk_kv *kv, const char *key); /* and remove it; or NULL */
int disk_print_options(const char *format);                    /* -o help */

/* The passphrase in cli->secret_file: its length, or a negative errno. */
int disk_read_secret(const struct disk_cli *cli, char *buf, size_t cap);

/* -p: a line that is drawn anew; Ctrl-C sets the flag that jobs look at. */
struct disk_progress {
	uint64_t start_ns;
	bool shown;
};
void disk_job_init(const struct disk_cli *cli, struct disk_job *job, struct disk_progress *p);
int disk_parse_threads(const struct disk_cli *cli, const char *text, struct disk_job *job);
const char *disk_snapshot_name(const char *text); /* "x", "snapshot.name=x": "x" */
void disk_progress_end(struct disk_progress *p);

/* The space a file takes on this host, or 0 when it is none. */
uint64_t disk_file_usage(const char *path);
