/* hv.c - the command: finds the sub-command and runs it. */
#include "programs/hv.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HV_VERSION "0.1.0"

static const struct hv_command commands[] = {
	{"run", "start a VM in the foreground", cmd_run},
	{"control", "ask a running VM: pause, save, reset, ...", cmd_control},
	{"disk", "make, convert and look at disk images", cmd_disk},
	{"recover", "get files and VMs out of VMFS datastores, damaged ones too", cmd_recover},
	{"cpu", "list CPU models and features", cmd_cpu},
	{"doctor", "explain the state of this host and what to do", cmd_doctor},
};

static void print_help(FILE *out)
{
	fprintf(out, "Trivisor " HV_VERSION " - runs x86-64 virtual machines anywhere\n\n"
		     "Usage: hv COMMAND [OPTION]...\n\nCommands:\n");
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].summary);
	fprintf(out, "  %-10s %s\n  %-10s %s\n\n", "help", "this text", "version",
		"the version of this build");
	fprintf(out, "`hv COMMAND --help` explains a command.  Manual: man hv\n");
}

int usage_error(const char *command, const char *fmt, ...)
{
	va_list ap;

	fprintf(stderr, "hv %s: ", command);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, "\nTry 'hv %s --help'.\n", command);
	return HV_EXIT_USAGE;
}

int parse_number(const char *text, uint64_t max, uint64_t *value)
{
	char *end;
	unsigned long long v;

	if (text[0] < '0' || text[0] > '9')
		return -EINVAL;
	errno = 0;
	v = strtoull(text, &end, 0);
	if (errno || *end || v > max)
		return -EINVAL;
	*value = v;
	return 0;
}

int parse_size(const char *text, uint64_t unit, uint64_t *bytes)
{
	static const char suffixes[] = "KMGT";
	const char *s;
	char digits[24];
	size_t n = strlen(text);
	uint64_t v;

	if (n == 0 || n >= sizeof(digits))
		return -EINVAL;
	memcpy(digits, text, n + 1);
	s = strchr(suffixes, digits[n - 1] & ~0x20);
	if (s && *s) {
		unit = 1ull << (10 * (s - suffixes + 1));
		digits[n - 1] = 0;
	}
	if (parse_number(digits, UINT64_MAX / unit, &v) < 0)
		return -EINVAL;
	*bytes = v * unit;
	return 0;
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : NULL;

	if (!name) {
		print_help(stderr);
		return HV_EXIT_USAGE;
	}
	if (!strcmp(name, "help") || !strcmp(name, "--help") || !strcmp(name, "-h")) {
		print_help(stdout);
		return HV_EXIT_OK;
	}
	if (!strcmp(name, "version") || !strcmp(name, "--version")) {
		printf("hv " HV_VERSION "\n");
		return HV_EXIT_OK;
	}
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		if (!strcmp(commands[i].name, name))
			return commands[i].main(argc - 1, argv + 1);
	fprintf(stderr, "hv: there is no command '%s'; 'hv help' lists them\n", name);
	return HV_EXIT_USAGE;
}
