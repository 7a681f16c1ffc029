/* cmd_disk_create.c - hv disk create: make an image. */
#include "programs/disk_cli.h"
#include "programs/hv.h"

#include <stdlib.h>
#include <string.h>

static void print_help(void)
{
	printf("Usage: hv disk create [-f FORMAT] [-o KEY=VALUE,...] [OPTION]... FILE [SIZE]\n"
	       "       hv disk create -f FORMAT -b FILE -F FORMAT [OPTION]... FILE [SIZE]\n\n"
	       "Makes an image.  SIZE: 512, 64k, 1.5G, 2T; with a backing file it may be left "
	       "out.\n"
	       "An existing file is replaced unless somebody uses it.\n\n"
	       "  -f FORMAT           the format (raw)\n"
	       "  -o KEY=VALUE,...    options of the format; '-o help' lists them\n"
	       "  -b FILE             what is not in the image comes from FILE\n"
	       "  -F FORMAT           FILE's format; must be given\n"
	       "  -u                  do not look at the backing file\n" DISK_COMMON_HELP);
}

struct create {
	struct disk_cli cli;
	const char *format, *backing, *backing_format;
	bool unseen;
	struct disk_kv kv;
	char secret[1024];
};

static int parse(struct create *o, int c)
{
	switch (c) {
	case 'f':
		o->format = optarg;
		return 0;
	case 'b':
		o->backing = optarg;
		return 0;
	case 'F':
		o->backing_format = optarg;
		return 0;
	case 'u':
		o->unseen = true;
		return 0;
	case 'o':
		return disk_parse_kv(&o->cli, &o->kv, optarg);
	}
	return 0;
}

static void say_what(const struct create *o, const struct blk_create *c, struct blk *b)
{
	struct json j = {.f = stdout};

	if (o->cli.json) {
		json_begin(&j, NULL, false);
		json_text(&j, "filename", c->path);
		json_text(&j, "format", o->format);
		json_number(&j, "virtual-size", blk_size(b));
		json_end(&j);
		return;
	}
	if (o->cli.quiet)
		return;
	printf("Formatting '%s', fmt=%s size=%llu", c->path, o->format,
	       (unsigned long long)blk_size(b));
	if (c->backing)
		printf(" backing_file=%s backing_fmt=%s", c->backing, c->backing_format);
	for (unsigned i = 0; i < c->nr_opts; i++)
		printf(" %s=%s", c->opt[i].key, c->opt[i].value);
	putchar('\n');
}

/* What was made is opened once: that it can be, and how large it came out. */
static int create(struct create *o, struct blk_create *c)
{
	struct error err = {""};
	struct blk_made *made;
	struct blk *b = NULL;
	int n;

	if (o->cli.secret_file) {
		n = disk_read_secret(&o->cli, o->secret, sizeof(o->secret));
		if (n < 0) {
			err_errno(&err, -n, "cannot read '%s'", o->cli.secret_file);
			return disk_fail(&o->cli, &err);
		}
		c->secret = o->secret;
		c->secret_len = (size_t)n;
	}
	if (blk_create_keep(o->format, c, &made, &err) < 0)
		return disk_fail(&o->cli, &err);
	if (disk_open(&o->cli, &b, c->path, o->format, BLK_READONLY | BLK_NO_BACKING, NULL, &err) <
	    0) {
		blk_made_end(made, false);
		return disk_fail(&o->cli, &err);
	}
	say_what(o, c, b);
	blk_close(b);
	blk_made_end(made, true);
	return HV_EXIT_OK;
}

static int run(struct create *o, const char *path, const char *size)
{
	struct blk_create c = {.path = path, .overwrite = true, .open = &o->cli.open};
	const char *key;

	key = disk_take_kv(&o->kv, "backing_file");
	c.backing = o->backing ? o->backing : key;
	key = disk_take_kv(&o->kv, "backing_fmt");
	c.backing_format = o->backing_format ? o->backing_format : key;
	key = disk_take_kv(&o->kv, "size");
	size = size ? size : key;
	c.opt = o->kv.kv;
	c.nr_opts = o->kv.n;
	if (size && blk_parse_size(size, &c.size) < 0)
		return disk_usage(&o->cli, "'%s' is not a size such as 512M or 20G", size);
	if (!size && (!c.backing || o->unseen))
		return disk_usage(&o->cli, "the size is missing");
	c.size_from_backing = !size;
	if (c.backing && size && !o->unseen) { /* it must be there, and be what it is said to be */
		struct blk_create probe = c;
		struct error err = {""};

		if (blk_create_look(&probe, &err) < 0)
			return disk_fail(&o->cli, &err);
	}
	return create(o, &c);
}

static const struct option long_options[] = {DISK_COMMON_OPTIONS,
					     {"format", required_argument, NULL, 'f'},
					     {"backing", required_argument, NULL, 'b'},
					     {"backing-format", required_argument, NULL, 'F'},
					     {"options", required_argument, NULL, 'o'},
					     {0}};

static bool wants_options(int argc, char **argv, const char **format)
{
	bool wants = false;

	for (int i = 1; i + 1 < argc; i++) {
		if (!strcmp(argv[i], "-o") && !strcmp(argv[i + 1], "help"))
			wants = true;
		if (!strcmp(argv[i], "-f"))
			*format = argv[i + 1];
	}
	return wants;
}

int disk_main_create(int argc, char **argv)
{
	struct create *o = calloc(1, sizeof(*o));
	int c, r = 0;

	if (!o)
		return HV_EXIT_FAILED;
	disk_cli_init(&o->cli, "create");
	o->format = "raw";
	if (wants_options(argc, argv, &o->format)) {
		r = disk_print_options(o->format);
		r = r < 0 ? disk_usage(&o->cli, "images of format '%s' cannot be made", o->format)
			  : HV_EXIT_OK;
		goto out;
	}
	while (r >= 0 && (c = getopt_long(argc, argv, DISK_COMMON_LETTERS "f:o:b:F:u", long_options,
					  NULL)) != -1) {
		if (c == 'h') {
			print_help();
			r = HV_EXIT_OK;
			goto out;
		}
		r = disk_cli_option(&o->cli, c);
		if (!r)
			r = parse(o, c);
	}
	if (r < 0)
		r = o->cli.failed;
	else if (argc - optind < 1 || argc - optind > 2)
		r = disk_usage(&o->cli, "name the image and its size");
	else
		r = run(o, argv[optind], argc - optind > 1 ? argv[optind + 1] : NULL);
out:
	free(o);
	return r;
}
