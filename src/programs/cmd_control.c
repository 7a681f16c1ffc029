/* cmd_control.c - hv control: ask a running VM, through its control socket. */
#include "control/client.h"
#include "control/control.h"
#include "programs/hv.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>

struct control_options {
	bool json, follow;
};

static void print_help(void)
{
	printf("Usage: hv control PATH COMMAND [KEY=VALUE]... [--json] [--follow]\n"
	       "       hv control PATH --follow [--json]\n"
	       "       hv control --protocol\n\n"
	       "Asks the VM that was started with --control unix=PATH.\n\n"
	       "Commands:\n"
	       "  query-status          whether the guest runs\n"
	       "  query-cpus-fast       its CPUs and their threads\n"
	       "  stop, cont            pause the guest, let it go on\n"
	       "  system_reset          the reset button\n"
	       "  system_powerdown      the power button\n"
	       "  quit                  end the VM at once\n"
	       "  save file=FILE [then=stop|cont|quit]\n"
	       "                        save it for hv run --resume FILE\n"
	       "  query-commands        all there are\n\n"
	       "Options:\n"
	       "  --json                print answers and events as JSON, one a line\n"
	       "  --follow              go on printing events until the VM ends\n"
	       "  --protocol            print the protocol's commands and events\n"
	       "  --help                this text\n\n"
	       "Exit status: 0 done, 1 the VM refused or cannot be reached, 2 wrong usage.\n");
}

static int failed(const struct error *err)
{
	fprintf(stderr, "hv control: %s\n", err->msg);
	return HV_EXIT_FAILED;
}

static int talk(const struct control_options *o, char **words, unsigned nr)
{
	enum control_print how = o->json ? CONTROL_JSON : CONTROL_PLAIN;
	FILE *events = o->follow ? stdout : NULL;
	struct control_client *c;
	struct error err = {""};
	int r = control_client_open(&c, words[0], &err);

	if (r < 0)
		return failed(&err);
	if (nr > 1)
		r = control_client_run(c, words[1], words + 2, nr - 2, how, stdout, events, &err);
	if (r == 0 && o->follow)
		r = control_client_follow(c, how, stdout, &err);
	control_client_close(c);
	if (r == -EINVAL)
		return usage_error("control", "%s", err.msg);
	return r < 0 ? failed(&err) : HV_EXIT_OK;
}

int cmd_control(int argc, char **argv)
{
	static const struct option options[] = {{"help", no_argument, NULL, 'h'},
						{"json", no_argument, NULL, 'j'},
						{"follow", no_argument, NULL, 'f'},
						{"protocol", no_argument, NULL, 'p'},
						{0}};
	struct control_options o = {0};
	int c, nr;

	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (c) {
		case 'h':
			print_help();
			return HV_EXIT_OK;
		case 'j':
			o.json = true;
			break;
		case 'f':
			o.follow = true;
			break;
		case 'p':
			control_print_protocol(stdout);
			return HV_EXIT_OK;
		default:
			return usage_error("control", "see above");
		}
	}
	nr = argc - optind;
	if (nr < 1)
		return usage_error("control", "name the VM's control socket and a command");
	if (nr < 2 && !o.follow)
		return usage_error("control", "say what to do, or --follow");
	return talk(&o, argv + optind, (unsigned)nr);
}
