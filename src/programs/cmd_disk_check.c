/* cmd_disk_check.c - hv disk check and repair.  The exit statuses are qemu-img's. */
#include "programs/disk_cli.h"
#include "programs/hv.h"

#include <errno.h>
#include <string.h>

enum { CHECK_SOUND = 0, CHECK_FAILED = 1, CHECK_CORRUPT = 2, CHECK_LEAKS = 3, CHECK_CANNOT = 63 };

static void print_help(const char *command)
{
	printf("Usage: hv disk %s %s[OPTION]... FILE\n\n", command,
	       strcmp(command, "repair") ? "[-f FORMAT] [-r leaks|all] " : "-f FORMAT ");
	if (strcmp(command, "repair"))
		printf("Looks for damage in an image's own tables; the disk's content is not "
		       "looked at.\n\n"
		       "  -r leaks|all        mend: give lost space back, or everything\n");
	else
		printf("Mends what 'check' finds, as 'check -r all'.\n\n");
	printf("  -f FORMAT           the format; must be given where something is mended\n"
	       "  --output HOW        human or json\n" DISK_COMMON_HELP
	       "\nExit status: 0 sound (after mending, if asked), 1 the check failed, 2 damaged,\n"
	       "3 only space is lost, 63 the format has nothing to check.\n");
}

static void print_finding(void *opaque, const char *text)
{
	printf("%s\n", text);
}

static void ignore_finding(void *opaque, const char *text)
{
}

static void json_if(struct json *j, const char *key, uint64_t v)
{
	if (v)
		json_number(j, key, v);
}

static void print_json(struct blk *b, const struct blk_check *c)
{
	struct json j = {.f = stdout};

	json_begin(&j, NULL, false);
	json_text(&j, "filename", blk_path(b));
	json_text(&j, "format", blk_info(b)->format);
	json_number(&j, "check-errors", 0);
	json_if(&j, "image-end-offset", c->image_end);
	json_if(&j, "corruptions", c->corruptions);
	json_if(&j, "leaks", c->leaks);
	json_if(&j, "corruptions-fixed", c->corruptions_fixed);
	json_if(&j, "leaks-fixed", c->leaks_fixed);
	json_if(&j, "total-clusters", c->total_clusters);
	json_if(&j, "allocated-clusters", c->allocated_clusters);
	json_if(&j, "fragmented-clusters", c->fragmented_clusters);
	json_if(&j, "compressed-clusters", c->compressed_clusters);
	json_end(&j);
}

static void print_text(const struct blk_check *c)
{
	double total = c->total_clusters ? (double)c->total_clusters : 1;
	double used = c->allocated_clusters ? (double)c->allocated_clusters : 1;

	if (c->corruptions_fixed || c->leaks_fixed)
		printf("%llu errors and %llu leaks were mended.\n",
		       (unsigned long long)c->corruptions_fixed,
		       (unsigned long long)c->leaks_fixed);
	if (!c->corruptions && !c->leaks)
		printf("No errors were found on the image.\n");
	if (c->corruptions)
		printf("\n%llu errors were found on the image.\n"
		       "Data may be corrupted, or further writes to the image may corrupt it.\n",
		       (unsigned long long)c->corruptions);
	if (c->leaks)
		printf("\n%llu leaked clusters were found on the image.\n"
		       "This means waste of disk space, but no harm to data.\n",
		       (unsigned long long)c->leaks);
	if (c->total_clusters)
		printf("%llu/%llu = %.2f%% allocated, %.2f%% fragmented, %.2f%% compressed "
		       "clusters\n",
		       (unsigned long long)c->allocated_clusters,
		       (unsigned long long)c->total_clusters,
		       100.0 * (double)c->allocated_clusters / total,
		       100.0 * (double)c->fragmented_clusters / used,
		       100.0 * (double)c->compressed_clusters / used);
	if (c->image_end)
		printf("Image end offset: %llu\n", (unsigned long long)c->image_end);
}

static int check(struct disk_cli *cli, const char *path, const char *format, unsigned fix)
{
	struct blk_check c = {.fix = fix};
	struct error err = {""};
	struct blk *b = NULL;
	int r;

	c.say = cli->json || cli->quiet ? ignore_finding : print_finding;
	r = disk_open(cli, &b, path, format,
		      BLK_CHECKING | BLK_NO_BACKING | (fix ? 0 : BLK_READONLY), NULL, &err);
	if (!r)
		r = blk_check(b, &c, &err);
	if (!r && cli->json)
		print_json(b, &c);
	else if (!r && !cli->quiet)
		print_text(&c);
	blk_close(b);
	if (r < 0) {
		disk_fail(cli, &err);
		return r == -ENOTSUP ? CHECK_CANNOT : CHECK_FAILED;
	}
	return c.corruptions ? CHECK_CORRUPT : c.leaks ? CHECK_LEAKS : CHECK_SOUND;
}

static const struct option long_options[] = {DISK_COMMON_OPTIONS,
					     {"format", required_argument, NULL, 'f'},
					     {"repair", required_argument, NULL, 'r'},
					     {0}};

static int check_or_repair(int argc, char **argv, unsigned fix)
{
	struct disk_cli cli;
	const char *format = NULL;
	int c;

	disk_cli_init(&cli, argv[0]);
	while ((c = getopt_long(argc, argv, DISK_COMMON_LETTERS "f:r:T:", long_options, NULL)) !=
	       -1) {
		if (disk_cli_option(&cli, c) < 0)
			return cli.failed;
		if (c == 'h') {
			print_help(argv[0]);
			return HV_EXIT_OK;
		}
		if (c == 'f')
			format = optarg;
		else if (c == 'r' && !strcmp(optarg, "leaks"))
			fix = BLK_FIX_LEAKS;
		else if (c == 'r' && !strcmp(optarg, "all"))
			fix = BLK_FIX_LEAKS | BLK_FIX_ERRORS;
		else if (c == 'r')
			return disk_usage(&cli, "-r: '%s' is neither leaks nor all", optarg);
	}
	if (argc - optind != 1)
		return disk_usage(&cli, "name one image");
	return check(&cli, argv[optind], format, fix);
}

int disk_main_check(int argc, char **argv)
{
	return check_or_repair(argc, argv, 0);
}

int disk_main_repair(int argc, char **argv)
{
	return check_or_repair(argc, argv, BLK_FIX_LEAKS | BLK_FIX_ERRORS);
}
