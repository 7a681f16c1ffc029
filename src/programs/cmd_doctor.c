/* cmd_doctor.c - hv doctor: what stands between this host and fast guests, and what to do. */
#include "host/findings.h"
#include "programs/hv.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void print_help(void)
{
	printf("Usage: hv doctor [--json] [--root DIR]\n\n"
	       "Explains the state of this host: hardware virtualization and KVM (whose speed is\n"
	       "measured), memory, limits, devices for guests, confinement; for each whether it "
	       "is\n"
	       "well and, if not, what to do about it.  Changes nothing.\n\n"
	       "  --json                one JSON object in place of the text\n"
	       "  --root DIR            look at the files of the system below DIR; what only a\n"
	       "                        running system can tell is left out\n"
	       "  --help                this text\n\n"
	       "Exit status: 0 nothing is bad, 1 something is (guests still run on the soft\n"
	       "engine), 2 wrong usage.\n");
}

/* Which engine --engine auto takes on a host like this. */
static const char *auto_engine(const struct host_facts *f)
{
	return f->probe.state == KVM_PROBE_FAST && engine_find("kvm") ? "kvm" : "soft";
}

/* Continuation lines start where the text of the first does. */
static void print_wrapped(const char *text, unsigned indent, unsigned width)
{
	unsigned column = indent;

	for (const char *p = text; *p;) {
		unsigned n = strcspn(p, " ");

		if (column > indent && column + 1 + n > width) {
			printf("\n%*s", indent, "");
			column = indent;
		} else if (column > indent) {
			putchar(' ');
			column++;
		}
		printf("%.*s", n, p);
		column += n;
		p += n;
		p += strspn(p, " ");
	}
	putchar('\n');
}

static const char *colour(enum finding_verdict v)
{
	static const char *const colours[] = {"\033[32m", "", "\033[33m", "\033[31m"};

	return isatty(STDOUT_FILENO) && !getenv("NO_COLOR") ? colours[v] : "";
}

static void print_text(const struct host_facts *f, const struct finding *list, unsigned n)
{
	const char *section = "";

	for (unsigned i = 0; i < n; i++) {
		const struct finding *d = &list[i];
		const char *c = colour(d->verdict);

		if (strcmp(section, d->section))
			printf("%s%s\n", i ? "\n" : "", d->section);
		section = d->section;
		printf("  %s%-4s%s ", c, finding_verdict_name(d->verdict), *c ? "\033[0m" : "");
		print_wrapped(d->state, 7, 100);
		if (d->advice[0]) {
			printf("       -> ");
			print_wrapped(d->advice, 10, 100);
		}
	}
	if (f->live)
		printf("\nhv run --engine auto takes the %s engine here.\n", auto_engine(f));
}

static void print_string(const char *text)
{
	putchar('"');
	for (; *text; text++) {
		unsigned char c = *text;

		if (c == '"' || c == '\\')
			printf("\\%c", c);
		else if (c < 0x20)
			printf("\\u%04x", c);
		else
			putchar(c);
	}
	putchar('"');
}

static void print_member(const char *name, const char *value)
{
	printf(",\"%s\":", name);
	print_string(value);
}

static void print_json(const struct host_facts *f, const struct finding *list, unsigned n)
{
	printf("{\"verdict\":\"%s\"", finding_verdict_name(host_worst(list, n)));
	if (f->live)
		printf(",\"engine\":\"%s\"", auto_engine(f));
	printf(",\"findings\":[");
	for (unsigned i = 0; i < n; i++) {
		printf("%s\n{\"verdict\":\"%s\"", i ? "," : "",
		       finding_verdict_name(list[i].verdict));
		print_member("section", list[i].section);
		print_member("id", list[i].id);
		print_member("state", list[i].state);
		print_member("advice", list[i].advice);
		printf("}");
	}
	printf("]}\n");
}

static int doctor(const char *root, bool json)
{
	struct finding list[HOST_MAX_FINDINGS];
	struct host_facts facts;
	unsigned n;

	host_facts_gather(&facts, root);
	n = host_findings(&facts, list);
	if (json)
		print_json(&facts, list, n);
	else
		print_text(&facts, list, n);
	return host_worst(list, n) == FINDING_BAD ? HV_EXIT_FAILED : HV_EXIT_OK;
}

static const struct option long_options[] = {
	{"json", no_argument, NULL, 'j'},
	{"root", required_argument, NULL, 'r'},
	{"help", no_argument, NULL, 'h'},
	{0},
};

int cmd_doctor(int argc, char **argv)
{
	const char *root = "";
	bool json = false;
	int c;

	while ((c = getopt_long(argc, argv, "h", long_options, NULL)) != -1) {
		switch (c) {
		case 'j':
			json = true;
			break;
		case 'r':
			root = optarg;
			break;
		case 'h':
			print_help();
			return HV_EXIT_OK;
		default:
			return usage_error("doctor", "the options above are not understood");
		}
	}
	if (optind < argc)
		return usage_error("doctor", "'%s' is not an option", argv[optind]);
	if (*root && access(root, R_OK | X_OK))
		return usage_error("doctor", "--root: '%s' is not a directory one can read", root);
	return doctor(root, json);
}
