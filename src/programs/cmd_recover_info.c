/* cmd_recover_info.c - hv recover info and cat: one file, or the volume. */
#include "programs/hv.h"
#include "programs/recover_cli.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* --- info --------------------------------------------------------------------------------------
 */

static const char *kind_text(enum vmfs_range_kind k)
{
	static const char *const names[] = {
		[VMFS_RANGE_DATA] = "data",
		[VMFS_RANGE_HOLE] = "hole, zeroes",
		[VMFS_RANGE_ZERO] = "to be zeroed, zeroes",
		[VMFS_RANGE_RESIDENT] = "in the descriptor",
		[VMFS_RANGE_LOST] = "lost",
	};

	return names[k];
}

static void print_ranges(struct recover *rc, const struct rec_entry *e)
{
	struct rec_range r;

	printf("%16s %16s  %-11s %s\n", "offset", "length", "sure", "where");
	for (uint64_t off = 0; off < e->length; off += r.len) {
		if (rec_range(rc->rec, e->id, off, &r) < 0 || r.len == 0)
			break;
		printf("%16" PRIu64 " %16" PRIu64 "  %-11s %s", r.off, r.len,
		       rec_trust_name(r.trust), kind_text(r.kind));
		if (r.source >= 0)
			printf(" at %" PRIu64 " of %s", r.source_off, rc->name[r.source]);
		if (r.why)
			printf(" (%s)", r.why);
		putchar('\n');
	}
}

static void print_file(struct recover *rc, const struct rec_entry *e)
{
	char path[RECOVER_PATH_MAX], safe[RECOVER_PATH_MAX], text[160];

	if (rec_path(rc->rec, e->id, path, sizeof(path)) == 0)
		printf("path:       %s\n", recover_safe_text(path, safe, sizeof(safe)));
	if (e->name_made)
		printf("            (the name is lost; this one was made up)\n");
	printf("state:      %s", rec_state_name(e->state));
	if (e->grade)
		printf(", grade %u", e->grade);
	printf("\nsize:       %" PRIu64 " bytes (%s), ", e->length,
	       size_text(e->length, text, sizeof(text)));
	printf("%s stored\n", size_text(e->stored, text, sizeof(text)));
	printf("changed:    %s\n", recover_time_text(e->mtime, text, sizeof(text)));
	printf("mode:       %04o, uid %u, gid %u\n", e->mode & 07777, e->uid, e->gid);
	if (e->fd)
		printf("descriptor: 0x%x\n", e->fd);
	if (e->what)
		printf("content:    %s\n", e->what);
	printf("bytes:      %s\n", recover_trust_text(e, text, sizeof(text)));
	if (e->note)
		printf("note:       %s\n", recover_safe_text(e->note, safe, sizeof(safe)));
	if (!e->is_dir && e->length) {
		putchar('\n');
		print_ranges(rc, e);
	}
}

static void print_volume(struct recover *rc)
{
	const struct rec_volume *v;
	unsigned n = rec_volumes(rc->rec, &v);
	char uuid[VMFS_UUID_TEXT], text[256];
	const char *notes = rec_notes(rc->rec);

	if (rc->opt.volume >= n)
		return;
	v += rc->opt.volume;
	vmfs_uuid_text(&v->uuid, uuid);
	printf("label:      %s\n", recover_safe_text(v->label ?: "", text, sizeof(text)));
	printf("uuid:       %s\n", uuid);
	if (v->version)
		printf("version:    VMFS%u\n", v->version);
	printf("size:       %" PRIu64 " bytes (%s)\n", v->size,
	       size_text(v->size, text, sizeof(text)));
	printf("extents:    %u", v->nr_extents);
	if (v->nr_missing)
		printf(", and %u missing", v->nr_missing);
	printf("\nmetadata:   %s\n", v->whole ? "in order" : "rebuilt from what was found");
	if (v->older)
		printf("            another volume was made over this one\n");
	if (notes && *notes)
		printf("notes:\n%s", notes);
}

static int volume_json(struct recover *rc)
{
	const struct rec_volume *v;
	unsigned n = rec_volumes(rc->rec, &v);
	struct json j = {.f = stdout};
	char uuid[VMFS_UUID_TEXT];

	json_begin(&j, NULL, false);
	if (rc->opt.volume < n) {
		v += rc->opt.volume;
		vmfs_uuid_text(&v->uuid, uuid);
		json_text(&j, "label", v->label ?: "");
		json_text(&j, "uuid", uuid);
		json_number(&j, "version", v->version);
		json_number(&j, "size", v->size);
		json_number(&j, "extents", v->nr_extents);
		json_number(&j, "missing", v->nr_missing);
		json_flag(&j, "in-order", v->whole);
		json_flag(&j, "older", v->older);
	}
	if (rec_notes(rc->rec))
		json_text(&j, "notes", rec_notes(rc->rec));
	json_end(&j);
	return HV_EXIT_OK;
}

static int info_work(struct recover *rc)
{
	struct json j = {.f = stdout};
	struct error err = {0};
	struct rec_entry e;

	if (!rc->path) {
		if (rc->opt.json)
			return volume_json(rc);
		print_volume(rc);
		return HV_EXIT_OK;
	}
	if (recover_find(rc, &e, &err) < 0)
		return recover_fail(rc, &err);
	if (rc->opt.json) {
		recover_json_entry(&j, rc, &e, true);
		putchar('\n');
	} else {
		print_file(rc, &e);
	}
	return e.worst > REC_INFERRED ? RECOVER_EXIT_DOUBT : HV_EXIT_OK;
}

const struct recover_command recover_info = {
	.name = "info",
	.summary = "tell about the volume, or about one file and its byte ranges",
	.usage = "SOURCE...[:/PATH]",
	.help = "Without a path: the volume, and what was wrong with it.  With one: all that is "
		"known of the\n"
		"file, and for each of its byte ranges where it lies and how sure that is:\n"
		"  exact        the file system's own records say so\n"
		"  inferred     concluded, from pointer blocks left over or from the content\n"
		"  overwritten  it belongs to another file now, or was zeroed\n"
		"  unreadable   the device cannot read it, or its extent is missing\n"
		"  unknown      nothing tells where it lies\n",
	.takes_path = true,
	.work = info_work,
};

/* --- cat ---------------------------------------------------------------------------------------
 */

static int put(struct blk *b, struct error *err)
{
	uint64_t size = blk_size(b);
	char *buf = malloc(MiB);
	int r = buf ? 0 : err_errno(err, ENOMEM, "cat");

	for (uint64_t off = 0; off < size && r == 0;) {
		size_t n = (size_t)MIN(MiB, size - off);

		r = blk_read(b, buf, n, off);
		if (r < 0)
			r = err_errno(err, -r, "cannot read at byte %" PRIu64, off);
		else if (fwrite(buf, 1, n, stdout) != n)
			r = err_errno(err, errno, "cannot write the output");
		off += n;
	}
	free(buf);
	return r;
}

static bool cat_strict;

static int cat_option(struct recover *rc, int c)
{
	if (c != RECOVER_OPT_OWN)
		return 0;
	cat_strict = true;
	return 1;
}

static int cat_work(struct recover *rc)
{
	struct error err = {0};
	struct rec_entry e;
	struct blk *b = NULL;
	char trust[160];
	int r = recover_find(rc, &e, &err);

	if (r == 0 && e.is_dir)
		r = err_set(&err, EISDIR, "'%s' is a directory (`hv recover ls` lists it)",
			    rc->path);
	if (r == 0)
		r = rec_blk(rc->rec, e.id, cat_strict ? REC_BLK_STRICT : 0, &b, &err);
	if (r == 0)
		r = put(b, &err);
	blk_close(b);
	if (r < 0)
		return recover_fail(rc, &err);
	if (e.worst <= REC_INFERRED)
		return HV_EXIT_OK;
	fflush(stdout);
	recover_say(rc, "not all of it is sure: %s", recover_trust_text(&e, trust, sizeof(trust)));
	return RECOVER_EXIT_DOUBT;
}

static const struct option cat_options[] = {{"strict", no_argument, NULL, RECOVER_OPT_OWN}, {0}};

const struct recover_command recover_cat = {
	.name = "cat",
	.summary = "write one file to standard output",
	.usage = "[--strict] SOURCE...:/PATH",
	.help = "Writes the bytes of a file to standard output.  What cannot be read is zeroes, "
		"and the exit\n"
		"status is 4 then.\n\n"
		"  --strict            stop at the first byte that is not exact or inferred\n",
	.options = cat_options,
	.takes_path = true,
	.needs_path = true,
	.option = cat_option,
	.work = cat_work,
};
