/* recover_main.c - hv-recover, which `hv recover` starts: finds the sub-command and runs it.
 *
 * A program of its own, so that what runs guests links no code for networks, archives and damaged
 * file systems. */
#include "programs/hv.h"
#include "programs/recover_cli.h"
#include "source/source.h"

#include <stdio.h>
#include <string.h>

static const struct recover_command *const commands[] = {
	&recover_scan, &recover_ls,    &recover_tree,    &recover_info,
	&recover_cat,  &recover_cp,    &recover_preview, &recover_mount,
	&recover_boot, &recover_check, &recover_carve,   &recover_report,
};

static void print_help(FILE *out)
{
	fprintf(out,
		"Usage: hv recover COMMAND [OPTION]... SOURCE...[:/PATH] [TARGET]\n\n"
		"Reads VMFS datastores (VMFS3, VMFS5, VMFS6) without ESXi, also damaged ones, and "
		"gets back\nwhat was deleted.  A source is a device, an image of any format, "
		"ssh://HOST/PATH or\nhttps://HOST/PATH; it is never written to.\n\n"
		"Commands:\n");
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		fprintf(out, "  %-8s %s\n", commands[i]->name, commands[i]->summary);
	fprintf(out,
		"\nBegin with `hv recover scan DEVICE`.  `hv recover COMMAND --help` explains a "
		"command.\nManual: man hv-recover\n");
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : NULL;

	source_register();
	if (!name) {
		print_help(stderr);
		return HV_EXIT_USAGE;
	}
	if (!strcmp(name, "help") || !strcmp(name, "--help") || !strcmp(name, "-h")) {
		print_help(stdout);
		return HV_EXIT_OK;
	}
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		if (!strcmp(commands[i]->name, name))
			return recover_main(commands[i], argc - 1, argv + 1);
	fprintf(stderr, "hv recover: there is no command '%s'; 'hv recover help' lists them\n",
		name);
	return HV_EXIT_USAGE;
}
