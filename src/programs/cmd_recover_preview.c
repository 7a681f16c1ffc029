/* cmd_recover_preview.c - hv recover preview: what is in a file, without copying it. */
#include "programs/hv.h"
#include "programs/recover_cli.h"

#include "guestfs/guestfs.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { OPT_IN = RECOVER_OPT_OWN, TEXT_MAX = 256 * KiB, LISTED_MAX = 200 };

static const char *inside; /* --in: a path in the guest's file systems */

static const struct option options[] = {{"in", required_argument, NULL, OPT_IN}, {0}};

static int take_option(struct recover *rc, int c)
{
	if (c != OPT_IN)
		return 0;
	inside = optarg;
	return 1;
}

struct preview {
	struct recover *rc;
	struct json json;
	bool as_json;
	uint64_t listed;
};

/* --- text --------------------------------------------------------------------------------------
 */

/* Most of it can be shown: the descriptor of a disk, a VMX, a log. */
static bool is_text(const char *p, size_t n)
{
	size_t odd = 0;

	for (size_t i = 0; i < n; i++)
		odd += (uint8_t)p[i] < 0x20 && p[i] != '\n' && p[i] != '\r' && p[i] != '\t';
	return odd * 50 <= n;
}

static void print_lines(char *text)
{
	char safe[4096];

	for (char *line = text, *end; *line; line = end) {
		end = strchrnul(line, '\n');
		if (*end)
			*end++ = 0;
		line[strcspn(line, "\r")] = 0;
		printf("    %s\n", recover_safe_text(line, safe, sizeof(safe)));
	}
}

/* 1: it was shown as text. */
static int show_text(struct preview *p, const struct rec_entry *e, struct error *err)
{
	size_t n = (size_t)MIN(e->length, (uint64_t)TEXT_MAX);
	struct blk *b = NULL;
	char *text = calloc(1, n + 1);
	int r = text ? rec_blk(p->rc->rec, e->id, 0, &b, err) : err_errno(err, ENOMEM, "preview");

	if (r == 0 && n)
		r = blk_read(b, text, n, 0) < 0 ? err_set(err, EIO, "cannot read it") : 0;
	if (r == 0 && e->length <= TEXT_MAX && is_text(text, strnlen(text, n))) {
		r = 1;
		text[strnlen(text, n)] = 0;
		if (p->as_json)
			json_text(&p->json, "text", text);
		else
			print_lines(text);
	}
	blk_close(b);
	free(text);
	return r;
}

/* --- disks -------------------------------------------------------------------------------------
 */

static int show_guest_file(void *opaque, const struct guestfs_file *f)
{
	struct preview *p = opaque;
	char safe[1024], size[32], when[32];

	if (p->as_json) {
		json_begin(&p->json, NULL, false);
		json_text(&p->json, "name", f->name);
		json_text(&p->json, "type",
			  f->is_dir    ? "directory"
			  : f->is_link ? "symlink"
				       : "file");
		json_number(&p->json, "size", f->size);
		json_end(&p->json);
		return 0;
	}
	if (++p->listed > LISTED_MAX && !inside) {
		printf("      ... (--in / lists all)\n");
		return 1;
	}
	printf("      %9s  %16s  %s%s\n", f->is_dir ? "-" : size_text(f->size, size, sizeof(size)),
	       recover_time_text(f->mtime > 0 && f->mtime < UINT32_MAX ? (uint32_t)f->mtime : 0,
				 when, sizeof(when)),
	       recover_safe_text(f->name, safe, sizeof(safe)),
	       f->is_dir    ? "/"
	       : f->is_link ? "@"
			    : "");
	return 0;
}

static void show_files(struct preview *p, struct guestfs *g, unsigned i)
{
	struct error err = {0};
	int r;

	p->listed = 0;
	if (p->as_json)
		json_begin(&p->json, "files", true);
	r = guestfs_list(g, i, inside ? inside : "/", show_guest_file, p, &err);
	if (p->as_json)
		json_end(&p->json);
	else if (r < 0)
		printf("      %s\n", err.msg);
}

static void show_part(struct preview *p, struct guestfs *g, unsigned i,
		      const struct guestfs_part *part)
{
	char safe[256], size[32];

	if (p->as_json) {
		json_begin(&p->json, NULL, false);
		json_number(&p->json, "number", part->number);
		json_number(&p->json, "start", part->start);
		json_number(&p->json, "length", part->len);
		json_text(&p->json, "name", part->name);
		json_text(&p->json, "content", part->content ?: "");
		json_text(&p->json, "label", part->label);
	} else {
		if (part->number)
			printf("    partition %u: ", part->number);
		else
			printf("    no partitions: ");
		printf("%s at %" PRIu64, size_text(part->len, size, sizeof(size)), part->start);
		if (part->mbr_type)
			printf(", type 0x%02x", part->mbr_type);
		if (*part->name)
			printf(", \"%s\"", recover_safe_text(part->name, safe, sizeof(safe)));
		printf(", %s", part->content ?: "nothing that is known");
		if (*part->label)
			printf(" \"%s\"", recover_safe_text(part->label, safe, sizeof(safe)));
		putchar('\n');
	}
	if (part->readable)
		show_files(p, g, i);
	if (p->as_json)
		json_end(&p->json);
}

static int show_disk(struct preview *p, const struct rec_entry *e, struct error *err)
{
	const struct guestfs_part *part;
	struct guestfs *g = NULL;
	struct blk *b = NULL;
	char size[32];
	unsigned n;
	int r = rec_open_disk(p->rc->rec, e->id, 0, &b, err);

	if (r == 0)
		r = guestfs_open(&g, b, err);
	if (r == 0) {
		n = guestfs_parts(g, &part);
		if (p->as_json) {
			json_number(&p->json, "disk-size", blk_size(b));
			json_begin(&p->json, "partitions", true);
		} else {
			printf("  a disk of %s:\n", size_text(blk_size(b), size, sizeof(size)));
		}
		for (unsigned i = 0; i < n; i++)
			show_part(p, g, i, &part[i]);
		if (p->as_json)
			json_end(&p->json);
	}
	guestfs_close(g);
	blk_close(b);
	return r;
}

/* --- what was named ----------------------------------------------------------------------------
 */

static bool ends_with(const char *name, const char *suffix)
{
	size_t n = strlen(name), k = strlen(suffix);

	return n >= k && !strcasecmp(name + n - k, suffix);
}

static bool is_disk(const struct rec_entry *e)
{
	return ends_with(e->name, ".vmdk") ||
	       (e->what &&
		(strstr(e->what, "vmdk") || strstr(e->what, "flat") || strstr(e->what, "sparse")));
}

static int show_one(struct preview *p, const struct rec_entry *e, bool errors_matter,
		    struct error *err)
{
	char path[RECOVER_PATH_MAX], safe[RECOVER_PATH_MAX], trust[160];
	struct error why = {0};
	int r;

	if (rec_path(p->rc->rec, e->id, path, sizeof(path)) < 0)
		snprintf(path, sizeof(path), "#%" PRIu64, e->id);
	if (p->as_json) {
		json_begin(&p->json, NULL, false);
		json_text(&p->json, "path", path);
		json_text(&p->json, "trust", rec_trust_name(e->worst));
	} else {
		printf("%s  [%s]\n", recover_safe_text(path, safe, sizeof(safe)),
		       recover_trust_text(e, trust, sizeof(trust)));
	}
	r = show_text(p, e, &why);
	if (r >= 0 && is_disk(e)) {
		r = show_disk(p, e, &why);
	} else if (r == 0 && !p->as_json) {
		printf("  %s, not text\n", e->what ?: "data");
	}
	if (r < 0 && !p->as_json)
		printf("  %s\n", recover_safe_text(why.msg, safe, sizeof(safe)));
	if (p->as_json) {
		if (r < 0)
			json_text(&p->json, "error", why.msg);
		json_end(&p->json);
	}
	return r < 0 && errors_matter ? err_set(err, -r, "%s", why.msg) : 0;
}

struct in_dir {
	struct preview *p;
	struct error *err;
};

/* Of a VM's directory: its VMX and its disks' descriptors. */
static int show_child(void *opaque, const struct rec_entry *e)
{
	struct in_dir *d = opaque;
	struct rec_entry copy = *e;

	if (copy.is_dir || copy.system || ends_with(copy.name, "-flat.vmdk") ||
	    ends_with(copy.name, "-delta.vmdk") || ends_with(copy.name, "-sesparse.vmdk"))
		return 0;
	if (ends_with(copy.name, ".vmx") || ends_with(copy.name, ".vmdk"))
		return show_one(d->p, &copy, false, d->err);
	return 0;
}

static int work(struct recover *rc)
{
	struct preview p = {.rc = rc, .json = {.f = stdout}, .as_json = rc->opt.json};
	struct error err = {0};
	struct in_dir d = {&p, &err};
	struct rec_entry e;
	int r = recover_find(rc, &e, &err);

	if (r == 0 && rc->opt.json)
		json_begin(&p.json, NULL, true);
	if (r == 0 && e.is_dir)
		r = rec_children(rc->rec, e.id, show_child, &d, &err);
	else if (r == 0)
		r = show_one(&p, &e, true, &err);
	if (rc->opt.json && p.json.depth)
		json_end(&p.json);
	return r < 0 ? recover_fail(rc, &err) : HV_EXIT_OK;
}

const struct recover_command recover_preview = {
	.name = "preview",
	.summary = "look into a file: VMX text, a disk's partitions and files",
	.usage = "[--in PATH] SOURCE...:/PATH",
	.help = "Shows what a file holds without copying it: the text of a VMX or of a disk's "
		"descriptor; for\n"
		"a VMDK also its partitions, what is in them, and the top directory of each file "
		"system that\n"
		"can be read (ext2 to ext4, FAT, exFAT, NTFS, XFS, HFS+, ISO 9660, UFS).  For a "
		"directory:\n"
		"of each VMX and disk in it.\n\n"
		"  --in PATH           list this directory of the guest's file systems in place of "
		"/\n",
	.options = options,
	.takes_path = true,
	.needs_path = true,
	.option = take_option,
	.work = work,
};
