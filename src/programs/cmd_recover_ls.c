/* cmd_recover_ls.c - hv recover ls and tree: what files there are. */
#include "programs/hv.h"
#include "programs/recover_cli.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

static struct {
	bool all, names;
} opt;

static int take_option(struct recover *rc, int c)
{
	if (c == 'a')
		opt.all = true;
	else if (c == '1')
		opt.names = true;
	else
		return 0;
	return 1;
}

static const struct option options[] = {
	{"all", no_argument, NULL, 'a'}, {"names", no_argument, NULL, '1'}, {0}};

static bool hidden(const struct rec_entry *e)
{
	return e->system && !opt.all;
}

/* The entry that SOURCE:/PATH names, or the root. */
static int find(struct recover *rc, struct rec_entry *e, struct error *err)
{
	return rc->path ? recover_find(rc, e, err) : rec_entry(rc->rec, REC_ROOT, e, err);
}

/* What a host still shows of its datastores has no damage to look for. */
static int ls_before(struct recover *rc)
{
	return recover_is_folder(rc) ? recover_folder_show(rc, false, opt.names) : 0;
}

static int tree_before(struct recover *rc)
{
	return recover_is_folder(rc) ? recover_folder_show(rc, true, false) : 0;
}

/* --- ls ----------------------------------------------------------------------------------------
 */

struct listing {
	struct recover *rc;
	struct json json;
	bool any;
};

/* "deleted/2" */
static const char *state_text(const struct rec_entry *e, char *buf, size_t cap)
{
	if (e->grade)
		snprintf(buf, cap, "%s/%u", rec_state_name(e->state), e->grade);
	else
		snprintf(buf, cap, "%s", rec_state_name(e->state));
	return buf;
}

static void print_line(struct recover *rc, const struct rec_entry *e)
{
	char name[1024], when[32], size[32], state[32], trust[160], target[1024], safe[1024];

	recover_safe_text(e->name, name, sizeof(name));
	if (opt.names) {
		printf("%s%s\n", name, e->is_dir ? "/" : "");
		return;
	}
	printf("%-10s %9s  %16s  %s%s", state_text(e, state, sizeof(state)),
	       e->is_dir ? "-" : size_text(e->length, size, sizeof(size)),
	       recover_time_text(e->mtime, when, sizeof(when)), name, e->is_dir ? "/" : "");
	if (e->type == VMFS_SYMLINK && rec_readlink(rc->rec, e->id, target, sizeof(target)) == 0)
		printf(" -> %s", recover_safe_text(target, safe, sizeof(safe)));
	if (e->worst != REC_EXACT && !e->is_dir)
		printf("  [%s]", recover_trust_text(e, trust, sizeof(trust)));
	if (e->name_made)
		printf("  (the name is lost)");
	putchar('\n');
}

static int list_one(void *opaque, const struct rec_entry *e)
{
	struct listing *l = opaque;

	if (hidden(e))
		return 0;
	if (l->rc->opt.json)
		recover_json_entry(&l->json, l->rc, e, false);
	else
		print_line(l->rc, e);
	return 0;
}

static int ls_work(struct recover *rc)
{
	struct listing l = {.rc = rc, .json = {.f = stdout}};
	struct error err = {0};
	struct rec_entry e;
	int r = find(rc, &e, &err);

	if (r < 0)
		return recover_fail(rc, &err);
	if (rc->opt.json)
		json_begin(&l.json, NULL, true);
	else if (!opt.names)
		printf("%-10s %9s  %-16s  %s\n", "STATE", "SIZE", "CHANGED", "NAME");
	if (e.is_dir)
		r = rec_children(rc->rec, e.id, list_one, &l, &err);
	else
		list_one(&l, &e);
	if (rc->opt.json)
		json_end(&l.json);
	return r < 0 ? recover_fail(rc, &err) : HV_EXIT_OK;
}

const struct recover_command recover_ls = {
	.name = "ls",
	.summary = "list a directory",
	.usage = "[-a] [-1] SOURCE...[:/PATH]",
	.help = "Lists what is in a directory (/ without one): the state of each file, its size, "
		"when it\n"
		"changed, its name, and how sure its bytes are, where that is not 'exact'.\n\n"
		"States: live; orphan (in use, but no directory names it); deleted/N (1: its "
		"addresses are\n"
		"intact, 2: put together from what was left, 3: found by content); carved (found "
		"by content\n"
		"alone); made (text put together here, for a file that is lost).  What has no "
		"place any more\n"
		"is in /lost+found, /deleted and /carved.\n\n"
		"  -a, --all           also the file system's own files (.fdc.sf, ...)\n"
		"  -1, --names         names only\n",
	.letters = "a1",
	.options = options,
	.takes_path = true,
	.option = take_option,
	.before = ls_before,
	.work = ls_work,
};

/* --- tree --------------------------------------------------------------------------------------
 */

enum { MAX_DEPTH = 64 };

struct totals {
	uint64_t files, dirs, bytes;
	char prefix[MAX_DEPTH * 4 + 1];
};

static int show(struct recover *rc, uint64_t dir, unsigned depth, struct totals *t,
		struct error *err);

static int show_one(struct recover *rc, const struct rec_entry *e, bool last, unsigned depth,
		    struct totals *t, struct error *err)
{
	char name[1024], size[32], state[32], trust[160];
	size_t used = strlen(t->prefix);
	int r = 0;

	recover_safe_text(e->name, name, sizeof(name));
	printf("%s%s %s", t->prefix, last ? "└──" : "├──", name);
	if (e->is_dir)
		putchar('/');
	else
		printf("  %s", size_text(e->length, size, sizeof(size)));
	if (e->state != REC_LIVE)
		printf("  %s", state_text(e, state, sizeof(state)));
	if (e->worst != REC_EXACT && !e->is_dir)
		printf("  [%s]", recover_trust_text(e, trust, sizeof(trust)));
	putchar('\n');
	t->files += !e->is_dir;
	t->dirs += e->is_dir;
	t->bytes += e->is_dir ? 0 : e->length;
	if (e->is_dir && depth < MAX_DEPTH / 2) {
		snprintf(t->prefix + used, sizeof(t->prefix) - used, "%s", last ? "    " : "│   ");
		r = show(rc, e->id, depth + 1, t, err);
		t->prefix[used] = 0;
	}
	return r;
}

/* A directory under way: an entry is shown when the next one comes, or when there is none. */
struct branch {
	struct recover *rc;
	struct totals *t;
	struct error *err;
	unsigned depth;
	bool any;
	struct rec_entry waiting;
};

static int show_waiting(struct branch *b, bool last)
{
	return b->any ? show_one(b->rc, &b->waiting, last, b->depth, b->t, b->err) : 0;
}

static int show_child(void *opaque, const struct rec_entry *e)
{
	struct branch *b = opaque;
	struct rec_entry next = *e;
	int r = hidden(e) ? 0 : show_waiting(b, false);

	if (!hidden(&next)) {
		b->waiting = next;
		b->any = true;
	}
	return r < 0 ? r : 0;
}

static int show(struct recover *rc, uint64_t dir, unsigned depth, struct totals *t,
		struct error *err)
{
	struct branch b = {.rc = rc, .t = t, .err = err, .depth = depth};
	int r = rec_children(rc->rec, dir, show_child, &b, err);

	return r < 0 ? r : show_waiting(&b, true);
}

/* JSON: all entries below, flat, each with its path. */
struct flat {
	struct recover *rc;
	struct json *json;
	struct error *err;
	unsigned depth;
};

static int flat_one(void *opaque, const struct rec_entry *e)
{
	struct flat *f = opaque, below = *f;
	struct rec_entry copy = *e;

	if (hidden(e))
		return 0;
	recover_json_entry(f->json, f->rc, &copy, false);
	below.depth++;
	if (!copy.is_dir || below.depth >= MAX_DEPTH)
		return 0;
	return rec_children(f->rc->rec, copy.id, flat_one, &below, f->err) < 0 ? -1 : 0;
}

static int tree_json(struct recover *rc, const struct rec_entry *e, struct error *err)
{
	struct json json = {.f = stdout};
	struct flat f = {.rc = rc, .json = &json, .err = err};
	int r;

	json_begin(&json, NULL, true);
	r = rec_children(rc->rec, e->id, flat_one, &f, err);
	json_end(&json);
	return r;
}

static int tree_work(struct recover *rc)
{
	struct totals t = {0};
	struct error err = {0};
	struct rec_entry e;
	char size[32], path[RECOVER_PATH_MAX], safe[RECOVER_PATH_MAX];
	int r = find(rc, &e, &err);

	if (r == 0 && !e.is_dir)
		r = err_set(&err, ENOTDIR, "'%s' is no directory", rc->path);
	if (r == 0 && rc->opt.json) {
		r = tree_json(rc, &e, &err);
	} else if (r == 0) {
		if (rec_path(rc->rec, e.id, path, sizeof(path)) == 0)
			puts(recover_safe_text(path, safe, sizeof(safe)));
		r = show(rc, e.id, 0, &t, &err);
		printf("\n%" PRIu64 " directories, %" PRIu64 " files, %s\n", t.dirs, t.files,
		       size_text(t.bytes, size, sizeof(size)));
	}
	return r < 0 ? recover_fail(rc, &err) : HV_EXIT_OK;
}

const struct recover_command recover_tree = {
	.name = "tree",
	.summary = "show all directories as a tree",
	.usage = "[-a] SOURCE...[:/PATH]",
	.help = "Shows a directory (/ without one) and everything below it.  With --json a list of "
		"all entries.\n\n"
		"  -a, --all           also the file system's own files (.fdc.sf, ...)\n",
	.letters = "a1",
	.options = options,
	.takes_path = true,
	.option = take_option,
	.before = tree_before,
	.work = tree_work,
};
