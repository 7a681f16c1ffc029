/* cmd_recover_mount.c - hv recover mount: the tree as files. */
#include "programs/hv.h"
#include "programs/recover_cli.h"
#include "programs/recover_tree.h"

#include <signal.h>
#include <stdio.h>

static struct {
	struct tree_mount *mount;
	bool allow_other;
} opt;

static int take_option(struct recover *rc, int c)
{
	if (c != RECOVER_OPT_OWN)
		return 0;
	opt.allow_other = true;
	return 1;
}

static int before(struct recover *rc)
{
	struct error err = {0};

	if (tree_mount(&opt.mount, rc->extra[0], rc->name[0], opt.allow_other, &err) < 0)
		return recover_fail(rc, &err);
	return 0;
}

static int work(struct recover *rc)
{
	if (!rc->opt.quiet)
		fprintf(stderr, "mounted on %s; Ctrl-C or `fusermount3 -u %s` ends it\n",
			rc->extra[0], rc->extra[0]);
	/* libfuse ends the mount on these where nobody else has taken them. */
	signal(SIGINT, SIG_DFL);
	signal(SIGTERM, SIG_DFL);
	return recover_tree_serve(rc, opt.mount, 0) < 0 ? HV_EXIT_FAILED : HV_EXIT_OK;
}

static void after(struct recover *rc)
{
	tree_unmount(opt.mount);
}

static const struct option options[] = {{"allow-other", no_argument, NULL, RECOVER_OPT_OWN}, {0}};

const struct recover_command recover_mount = {
	.name = "mount",
	.summary = "show the datastore as files (FUSE)",
	.usage = "[--allow-other] SOURCE... DIR",
	.help = "Shows the datastore in DIR, which must be empty, read-only, until it is unmounted "
		"or Ctrl-C.\n"
		"In DIR/.disks each virtual machine found has a directory with its disks as the "
		"guest saw\n"
		"them (disk0.raw, ...).\n\n"
		"  --allow-other       other users may look too (see mount.fuse3(8))\n",
	.options = options,
	.extra_args = 1,
	.option = take_option,
	.before = before,
	.work = work,
	.after = after,
};
