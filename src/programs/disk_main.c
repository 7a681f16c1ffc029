/* disk_main.c - hv-disk, which `hv disk` starts: finds the sub-command and runs it.
 *
 * A program of its own, so that what runs guests links no code for networks and archives. */
#include "programs/disk_cli.h"
#include "programs/disk_ops.h"
#include "programs/hv.h"
#include "source/source.h"

#include <signal.h>
#include <string.h>

static const struct disk_command commands[] = {
	{"amend", "change what an image was created with", disk_main_amend},
	{"bench", "measure how fast an image answers", disk_main_bench},
	{"bitmap", "work on the dirty bitmaps in an image", disk_main_bitmap},
	{"check", "look for damage in an image", disk_main_check},
	{"commit", "write an image into its backing file", disk_main_commit},
	{"compact", "give back the space of zeroes", disk_main_compact},
	{"compare", "tell whether two images hold the same", disk_main_compare},
	{"convert", "copy an image into another format", disk_main_convert},
	{"create", "make an image", disk_main_create},
	{"dd", "copy a part of an image", disk_main_dd},
	{"info", "tell about an image", disk_main_info},
	{"map", "tell where an image's data are", disk_main_map},
	{"measure", "tell how large an image would be", disk_main_measure},
	{"mount", "show an image and its partitions as files", disk_main_mount},
	{"rebase", "put an image over another backing file", disk_main_rebase},
	{"repair", "mend what check finds", disk_main_repair},
	{"resize", "make the disk in an image larger or smaller", disk_main_resize},
	{"serve", "offer an image as a network block device", disk_main_serve},
	{"snapshot", "work on the snapshots in an image", disk_main_snapshot},
};

static void print_formats(FILE *out)
{
	struct blk_format_info f;

	fprintf(out, "\nFormats:\n");
	for (unsigned i = 0; blk_format_at(i, &f); i++)
		fprintf(out, "  %-10s %s\n", f.name, f.help);
}

static void print_sources(FILE *out)
{
	const struct blk_source *const *s = blk_sources();

	fprintf(out, "\nBesides files and block devices FILE can be\n");
	for (; *s; s++)
		if ((*s)->help)
			fprintf(out, "  %s\n", (*s)->help);
}

static void print_formats_json(void)
{
	struct json j = {.f = stdout};
	struct blk_format_info f;

	json_begin(&j, NULL, true);
	for (unsigned i = 0; blk_format_at(i, &f); i++) {
		const struct blk_option *o = blk_create_options(f.name);

		json_begin(&j, NULL, false);
		json_text(&j, "name", f.name);
		json_text(&j, "help", f.help);
		json_flag(&j, "write", f.can_write);
		json_flag(&j, "create", f.can_create);
		json_flag(&j, "compress", f.can_pack);
		json_flag(&j, "check", f.can_check);
		json_flag(&j, "resize", f.can_resize);
		json_flag(&j, "backing", f.can_backing);
		json_flag(&j, "snapshots", f.has_snapshots);
		json_flag(&j, "bitmaps", f.has_bitmaps);
		json_begin(&j, "options", true);
		for (; o && o->key; o++) {
			json_begin(&j, NULL, false);
			json_text(&j, "key", o->key);
			json_text(&j, "value", o->value);
			if (o->preset)
				json_text(&j, "default", o->preset);
			if (o->help)
				json_text(&j, "help", o->help);
			json_end(&j);
		}
		json_end(&j);
		json_end(&j);
	}
	json_end(&j);
}

static void print_help(FILE *out)
{
	fprintf(out, "Usage: hv disk COMMAND [OPTION]... FILE...\n\n"
		     "Disk images of every format.  The options are those of qemu-img.\n\n"
		     "Commands:\n");
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].summary);
	fprintf(out, "  %-10s %s\n", "formats", "list the formats and their options (--json)");
	print_formats(out);
	print_sources(out);
	fprintf(out, "\n`hv disk COMMAND --help` explains a command.  Manual: man hv-disk\n");
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : NULL;

	source_register();
	/* A file that may not grow is an error like a full disk: what was begun is taken away. */
	signal(SIGXFSZ, SIG_IGN);
	if (!name) {
		print_help(stderr);
		return HV_EXIT_FAILED;
	}
	if (!strcmp(name, "help") || !strcmp(name, "--help") || !strcmp(name, "-h")) {
		print_help(stdout);
		return HV_EXIT_OK;
	}
	if (!strcmp(name, "formats")) {
		if (argc > 2 && !strcmp(argv[2], "--json"))
			print_formats_json();
		else
			print_formats(stdout);
		return HV_EXIT_OK;
	}
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		if (!strcmp(commands[i].name, name))
			return commands[i].main(argc - 1, argv + 1);
	fprintf(stderr, "hv disk: there is no command '%s'; 'hv disk help' lists them\n", name);
	return HV_EXIT_FAILED;
}
