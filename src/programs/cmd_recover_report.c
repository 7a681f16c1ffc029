/* cmd_recover_report.c - hv recover report: what was found, how sure it is, what is missing and
 * what to do, as a page for people and as JSON. */
#include "programs/hv.h"
#include "programs/recover_cli.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { OPT_OVERWRITE = RECOVER_OPT_OWN, MAX_DEPTH = 64 };

static const struct option options[] = {{"overwrite", no_argument, NULL, OPT_OVERWRITE}, {0}};

static struct {
	bool overwrite;
	FILE *html, *json;
} opt;

static int take_option(struct recover *rc, int c)
{
	if (c != OPT_OVERWRITE)
		return 0;
	opt.overwrite = true;
	return 1;
}

/* --- before: the files -------------------------------------------------------------------------
 */

static FILE *make(struct recover *rc, const char *suffix)
{
	int flags = O_WRONLY | O_CREAT | O_CLOEXEC | (opt.overwrite ? O_TRUNC : O_EXCL);
	char path[RECOVER_PATH_MAX];
	int fd;

	snprintf(path, sizeof(path), "%s%s", rc->extra[0], suffix);
	fd = open(path, flags, 0644);
	if (fd >= 0)
		return fdopen(fd, "w");
	fprintf(stderr, "hv recover report: cannot write '%s': %s%s\n", path, strerror(errno),
		errno == EEXIST ? " (--overwrite replaces it)" : "");
	return NULL;
}

static int before(struct recover *rc)
{
	opt.html = make(rc, ".html");
	if (opt.html)
		opt.json = make(rc, ".json");
	return opt.html && opt.json ? 0 : HV_EXIT_FAILED;
}

/* --- what it is made of ------------------------------------------------------------------------
 */

struct totals {
	uint64_t files[REC_MADE + 1], bytes[REC_NR_TRUST], doubtful;
};

struct report {
	struct recover *rc;
	struct error *err;
	unsigned depth;
	struct totals total;
	uint64_t nr_vms;
	int (*file)(struct report *p, const struct rec_entry *e);
	struct json j;
};

/* Every file below a directory, but the file system's own. */
static int each_file(void *opaque, const struct rec_entry *e)
{
	struct report *p = opaque;
	struct rec_entry copy = *e;
	int r = 0;

	if (copy.system)
		return 0;
	if (!copy.is_dir)
		return p->file(p, &copy);
	if (p->depth < MAX_DEPTH) {
		p->depth++;
		r = rec_children(p->rc->rec, copy.id, each_file, p, p->err);
		p->depth--;
	}
	return r;
}

static int walk(struct report *p, int (*file)(struct report *p, const struct rec_entry *e))
{
	p->file = file;
	return rec_children(p->rc->rec, REC_ROOT, each_file, p, p->err);
}

static int add_up(struct report *p, const struct rec_entry *e)
{
	p->total.files[e->state]++;
	for (unsigned t = 0; t < REC_NR_TRUST; t++)
		p->total.bytes[t] += e->bytes[t];
	p->total.doubtful += e->worst > REC_INFERRED;
	return 0;
}

/* --- HTML --------------------------------------------------------------------------------------
 */

static void text(const char *s)
{
	char safe[RECOVER_PATH_MAX];

	for (const char *p = recover_safe_text(s, safe, sizeof(safe)); *p; p++)
		switch (*p) {
		case '<':
			fputs("&lt;", opt.html);
			break;
		case '>':
			fputs("&gt;", opt.html);
			break;
		case '&':
			fputs("&amp;", opt.html);
			break;
		case '"':
			fputs("&quot;", opt.html);
			break;
		default:
			fputc(*p, opt.html);
		}
}

// clang-format off
static const char style[] =
	"body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1c2024;background:#fff}\n"
	"h1{font-size:1.6rem;margin:0 0 .2rem}h2{font-size:1.2rem;margin:2rem 0 .5rem}\n"
	".sub{color:#5b636b}table{border-collapse:collapse;width:100%}\n"
	"th,td{text-align:left;padding:.3rem .6rem .3rem 0;border-bottom:1px solid #e3e6e9;vertical-align:top}\n"
	"td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}\n"
	"code,pre{font:14px/1.45 ui-monospace,monospace;background:#f3f5f7;border-radius:4px}\n"
	"code{padding:.05rem .3rem;overflow-wrap:anywhere}pre{padding:.6rem .8rem;overflow:auto}\n"
	".bar{display:flex;height:.7rem;border-radius:3px;overflow:hidden;min-width:8rem;background:#e3e6e9}\n"
	".exact{background:#2f9e5b}.inferred{background:#d6a419}.overwritten{background:#d4572b}\n"
	".unreadable{background:#8a3ab9}.unknown{background:#5b636b}\n"
	".key span{display:inline-block;width:.7rem;height:.7rem;border-radius:2px;margin:0 .3rem 0 .8rem}\n"
	"@media (prefers-color-scheme:dark){body{color:#e6e9ec;background:#15181b}.sub{color:#9aa3ab}\n"
	"th,td{border-color:#2b3035}code,pre,.bar{background:#23282d}}\n"
	"@media print{body{margin:0}}\n";
// clang-format on

/* Per thousand of the whole, so that even a little of something is seen. */
static void bar(const uint64_t bytes[REC_NR_TRUST])
{
	uint64_t sum = 0;

	for (unsigned t = 0; t < REC_NR_TRUST; t++)
		sum += bytes[t];
	fputs("<div class=bar>", opt.html);
	for (unsigned t = 0; t < REC_NR_TRUST && sum; t++)
		if (bytes[t])
			fprintf(opt.html, "<div class=%s style=\"flex:%.0f\" title=\"%s\"></div>",
				rec_trust_name((enum rec_trust)t),
				MAX(1000.0 * (double)bytes[t] / (double)sum, 12.0),
				rec_trust_name((enum rec_trust)t));
	fputs("</div>", opt.html);
}

static void key(void)
{
	fputs("<p class=\"sub key\">How sure the bytes are:", opt.html);
	for (unsigned t = 0; t < REC_NR_TRUST; t++)
		fprintf(opt.html, "<span class=%s></span>%s", rec_trust_name((enum rec_trust)t),
			rec_trust_name((enum rec_trust)t));
	fputs("</p>\n", opt.html);
}

static void html_head(struct report *p, const struct rec_volume *v)
{
	char when[64], uuid[VMFS_UUID_TEXT], size[32];
	time_t now = time(NULL);
	struct tm tm;

	if (!localtime_r(&now, &tm) || !strftime(when, sizeof(when), "%Y-%m-%d %H:%M", &tm))
		*when = 0;
	fputs("<!doctype html>\n<html lang=en><meta charset=utf-8>\n"
	      "<meta name=viewport content=\"width=device-width\">\n<title>Recovery "
	      "report</title>\n<style>\n",
	      opt.html);
	fputs(style, opt.html);
	fputs("</style>\n<h1>Recovery report", opt.html);
	if (v && v->label && *v->label) {
		fputs(": ", opt.html);
		text(v->label);
	}
	fprintf(opt.html, "</h1>\n<p class=sub>%s", when);
	for (unsigned i = 0; i < p->rc->nr_sources; i++) {
		fputs(i ? ", " : " &middot; ", opt.html);
		text(p->rc->name[i]);
	}
	fputs("</p>\n<h2>The volume</h2>\n<table>\n", opt.html);
	if (v) {
		vmfs_uuid_text(&v->uuid, uuid);
		fprintf(opt.html, "<tr><th>kind<td>VMFS%u\n<tr><th>uuid<td><code>%s</code>\n",
			v->version, uuid);
		fprintf(opt.html, "<tr><th>size<td>%s\n<tr><th>extents<td>%u found",
			size_text(v->size, size, sizeof(size)), v->nr_extents);
		if (v->nr_missing)
			fprintf(opt.html, ", <b>%u missing</b>", v->nr_missing);
		fprintf(opt.html, "\n<tr><th>metadata<td>%s\n",
			v->whole ? "in order"
				 : "damaged; the tree was rebuilt from what was found");
	}
	fputs("</table>\n", opt.html);
	if (rec_notes(p->rc->rec) && *rec_notes(p->rc->rec)) {
		char line[2048];

		fputs("<ul>\n", opt.html);
		for (const char *s = rec_notes(p->rc->rec), *end; *s; s = *end ? end + 1 : end) {
			end = strchrnul(s, '\n');
			snprintf(line, sizeof(line), "%.*s", (int)MIN(end - s, 2000), s);
			fputs("<li>", opt.html);
			text(line);
		}
		fputs("</ul>\n", opt.html);
	}
}

static void html_totals(const struct totals *t)
{
	char size[32];

	fputs("<h2>What was found</h2>\n<table><tr>", opt.html);
	for (unsigned s = 0; s <= REC_MADE; s++)
		if (t->files[s] || s == REC_LIVE)
			fprintf(opt.html, "<th class=n>%s files",
				rec_state_name((enum rec_state)s));
	fputs("<th class=n>with doubtful bytes<tr>", opt.html);
	for (unsigned s = 0; s <= REC_MADE; s++)
		if (t->files[s] || s == REC_LIVE)
			fprintf(opt.html, "<td class=n>%" PRIu64, t->files[s]);
	fprintf(opt.html, "<td class=n>%" PRIu64 "</table>\n<table>", t->doubtful);
	for (unsigned k = 0; k < REC_NR_TRUST; k++)
		fprintf(opt.html, "<tr><td>%s<td class=n>%s\n", rec_trust_name((enum rec_trust)k),
			size_text(t->bytes[k], size, sizeof(size)));
	fputs("</table>\n", opt.html);
	bar(t->bytes);
	key();
}

static void html_disk(struct report *p, const struct rec_vm *vm, unsigned i)
{
	char path[RECOVER_PATH_MAX] = "?", size[32];
	struct rec_entry e;

	(void)rec_path(p->rc->rec, vm->disk[i].descriptor, path, sizeof(path));
	if (i)
		fputs("<br>", opt.html);
	if (vm->disk[i].slot && *vm->disk[i].slot) {
		text(vm->disk[i].slot);
		fputs(": ", opt.html);
	}
	fputs("<code>", opt.html);
	text(path);
	fprintf(opt.html, "</code> %s", size_text(vm->disk[i].size, size, sizeof(size)));
	if (!vm->disk[i].extent)
		fputs(" <b>its data were not found</b>", opt.html);
	else if (rec_entry(p->rc->rec, vm->disk[i].extent, &e, NULL) == 0)
		bar(e.bytes);
}

static int html_vm(void *opaque, const struct rec_vm *vm)
{
	struct report *p = opaque;

	if (p->nr_vms++ == 0)
		fputs("<h2>Virtual machines</h2>\n<table><tr><th>name<th>state<th>disks\n",
		      opt.html);
	fputs("<tr><td><b>", opt.html);
	text(vm->name);
	fprintf(opt.html, "</b><td>%s, %s<td>", rec_state_name(vm->state),
		rec_trust_name(vm->worst));
	for (unsigned i = 0; i < vm->nr_disks; i++)
		html_disk(p, vm, i);
	if (vm->note) {
		fputs("<br>", opt.html);
		text(vm->note);
	}
	fputc('\n', opt.html);
	return 0;
}

static int html_file(struct report *p, const struct rec_entry *e)
{
	char path[RECOVER_PATH_MAX] = "?", size[32], trust[160];

	(void)rec_path(p->rc->rec, e->id, path, sizeof(path));
	fputs("<tr><td><code>", opt.html);
	text(path);
	fprintf(opt.html, "</code><td>%s", rec_state_name(e->state));
	if (e->grade)
		fprintf(opt.html, " (%u)", e->grade);
	fprintf(opt.html, "<td class=n>%s<td>", size_text(e->length, size, sizeof(size)));
	bar(e->bytes);
	if (e->worst != REC_EXACT)
		text(recover_trust_text(e, trust, sizeof(trust)));
	if (e->note) {
		fputs("<br>", opt.html);
		text(e->note);
	}
	fputc('\n', opt.html);
	return 0;
}

static void html_advice(struct report *p, const struct rec_volume *v)
{
	const struct totals *t = &p->total;

	fputs("<h2>What to do</h2>\n<ul>\n<li>Leave the sources as they are: nothing was written "
	      "to them, "
	      "and nothing should be.\n",
	      opt.html);
	if (v && v->nr_missing)
		fputs("<li>Extents are missing.  Name all disks of the datastore; files on the "
		      "missing "
		      "ones are marked unreadable until then.\n",
		      opt.html);
	if (t->bytes[REC_UNREADABLE])
		fputs("<li>Some bytes could not be read.  Copy the device with <code>ddrescue "
		      "DEVICE COPY "
		      "MAP</code> and use <code>hv recover --map MAP ... COPY</code>.\n",
		      opt.html);
	if (t->bytes[REC_OVERWRITTEN])
		fputs("<li>Bytes marked overwritten are gone here: look for them in backups or "
		      "snapshots.\n",
		      opt.html);
	if (t->bytes[REC_INFERRED])
		fputs("<li>Inferred bytes are very likely right, and should be looked at: <code>hv "
		      "recover "
		      "preview</code> shows a disk's partitions and files.\n",
		      opt.html);
	if (p->nr_vms)
		fputs("<li>To see a machine run without copying it: <code>hv recover boot SOURCE "
		      "NAME</code>.\n",
		      opt.html);
	fputs("<li>Copy what you need: <code>hv recover cp -r SOURCE:/DIRECTORY TARGET</code>, or "
	      "a disk "
	      "into another format: <code>hv recover cp SOURCE:/vm/disk.vmdk disk.qcow2</code>.\n",
	      opt.html);
	if (!p->rc->opt.full)
		fputs("<li>This report did not look at every byte: <code>hv recover report "
		      "--full</code> "
		      "also finds pieces of files by their content.\n",
		      opt.html);
	fputs("</ul>\n", opt.html);
}

static int html(struct report *p, const struct rec_volume *v)
{
	int r;

	html_head(p, v);
	html_totals(&p->total);
	r = rec_vms(p->rc->rec, html_vm, p, p->err);
	if (p->nr_vms)
		fputs("</table>\n", opt.html);
	html_advice(p, v);
	fputs("<h2>Files</h2>\n<table><tr><th>path<th>state<th class=n>size<th>bytes\n", opt.html);
	if (r >= 0)
		r = walk(p, html_file);
	fputs("</table>\n</html>\n", opt.html);
	return r;
}

/* --- JSON --------------------------------------------------------------------------------------
 */

static int json_file(struct report *p, const struct rec_entry *e)
{
	recover_json_entry(&p->j, p->rc, e, true);
	return 0;
}

static int json(struct report *p)
{
	struct json *j = &p->j;
	int r;

	*j = (struct json){.f = opt.json};
	json_begin(j, NULL, false);
	json_begin(j, "sources", true);
	for (unsigned i = 0; i < p->rc->nr_sources; i++)
		json_text(j, NULL, p->rc->name[i]);
	json_end(j);
	recover_json_volumes(j, p->rc);
	if (rec_notes(p->rc->rec))
		json_text(j, "notes", rec_notes(p->rc->rec));
	json_begin(j, "bytes", false);
	for (unsigned t = 0; t < REC_NR_TRUST; t++)
		json_number(j, rec_trust_name((enum rec_trust)t), p->total.bytes[t]);
	json_end(j);
	r = recover_json_vms(j, p->rc, p->err);
	json_begin(j, "files", true);
	if (r >= 0)
		r = walk(p, json_file);
	json_end(j);
	json_end(j);
	return r;
}

static int finish(FILE *f)
{
	bool bad = ferror(f) != 0;

	return fclose(f) != 0 || bad ? -EIO : 0;
}

static int work(struct recover *rc)
{
	const struct rec_volume *v;
	unsigned n = rec_volumes(rc->rec, &v);
	struct error err = {0};
	struct report p = {.rc = rc, .err = &err};
	int r = walk(&p, add_up);

	v = rc->opt.volume < n ? v + rc->opt.volume : NULL;
	if (r >= 0)
		r = html(&p, v);
	if (r >= 0)
		r = json(&p);
	if (finish(opt.html) < 0 || finish(opt.json) < 0)
		r = err_set(&err, EIO, "cannot write '%s.html' and '%s.json'", rc->extra[0],
			    rc->extra[0]);
	if (r < 0)
		return recover_fail(rc, &err);
	recover_say(rc, "written: %s.html, %s.json", rc->extra[0], rc->extra[0]);
	return p.total.doubtful ? RECOVER_EXIT_DOUBT : HV_EXIT_OK;
}

const struct recover_command recover_report = {
	.name = "report",
	.summary = "write a page and a JSON file that tell all",
	.usage = "[--full] [--overwrite] SOURCE... NAME",
	.help = "Writes NAME.html, for people, and NAME.json, for programs: what was found, how "
		"sure each byte\n"
		"range of each file is, what is missing, and what to do.\n\n"
		"  --overwrite         replace files that are there\n",
	.options = options,
	.extra_args = 1,
	.depth = REC_META,
	.option = take_option,
	.before = before,
	.work = work,
};
