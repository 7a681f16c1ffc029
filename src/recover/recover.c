/* recover/recover.c - opening, the order of work, and the tree as its callers see it. */
#include "recover/internal.h"

#include "block/blk.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- words ---- */

const char *rec_trust_name(enum rec_trust t)
{
	static const char *const names[REC_NR_TRUST] = {
		[REC_EXACT] = "exact",
		[REC_INFERRED] = "inferred",
		[REC_OVERWRITTEN] = "overwritten",
		[REC_UNREADABLE] = "unreadable",
		[REC_UNKNOWN] = "unknown",
	};

	return t < REC_NR_TRUST ? names[t] : "?";
}

const char *rec_state_name(enum rec_state s)
{
	static const char *const names[] = {
		[REC_LIVE] = "live",     [REC_ORPHAN] = "orphan", [REC_DELETED] = "deleted",
		[REC_CARVED] = "carved", [REC_MADE] = "made",
	};

	return s < ARRAY_SIZE(names) ? names[s] : "?";
}

enum { NOTES_MAX = 64 << 10 };

/* A line each; the same one once. */
void rec_note(struct rec *r, const char *fmt, ...)
{
	char line[1024];
	va_list ap;
	size_t n;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line) - 1, fmt, ap);
	va_end(ap);
	n = strlen(line);
	if (!n || r->notes.len > NOTES_MAX || (r->notes.s && strstr(r->notes.s, line)))
		return;
	(void)text_add(&r->notes, "%s%s", line, line[n - 1] == '\n' ? "" : "\n");
}

const char *rec_notes(struct rec *r)
{
	return r->notes.s ? r->notes.s : "";
}

bool rec_stopped(struct rec *r)
{
	return r->scan && r->scan->stop && r->scan->stop(r->scan->opaque);
}

void rec_tell(struct rec *r, enum rec_phase phase, uint64_t done, uint64_t total)
{
	struct rec_progress p = {.phase = phase, .done = done, .total = total, .hits = r->hits.n};

	for (unsigned i = 0; i < r->nr_sources; i++)
		for (size_t k = 0; k < r->bad[i].n; k++)
			p.unreadable_bytes += r->bad[i].v[k].end - r->bad[i].v[k].start;
	if (r->scan && r->scan->progress)
		r->scan->progress(r->scan->opaque, &p);
}

/* ---- opening ---- */

static int copy_sources(struct rec *r, const struct rec_config *cfg, struct error *err)
{
	if (!cfg->nr_sources || cfg->nr_sources > VMFS_MAX_DEVICES)
		return err_set(err, EINVAL, "%u sources: it must be 1 to %d", cfg->nr_sources,
			       VMFS_MAX_DEVICES);
	r->source = calloc(cfg->nr_sources, sizeof(*r->source));
	r->bad = calloc(cfg->nr_sources, sizeof(*r->bad));
	r->zero = calloc(cfg->nr_sources, sizeof(*r->zero));
	if (!r->source || !r->bad || !r->zero)
		return err_errno(err, ENOMEM, "recovery");
	r->nr_sources = cfg->nr_sources;
	for (unsigned i = 0; i < r->nr_sources; i++) {
		const struct rec_source *s = &cfg->source[i];

		r->source[i].blk = s->blk;
		r->source[i].name = arena_text(&r->arena, s->name, strlen(s->name));
		r->source[i].identity = arena_text(&r->arena, s->identity, strlen(s->identity));
		if (!r->source[i].name || !r->source[i].identity)
			return err_errno(err, ENOMEM, "recovery");
	}
	return 0;
}

int rec_open(struct rec **out, const struct rec_config *cfg, struct error *err)
{
	struct rec *r = calloc(1, sizeof(*r));
	int e;

	if (!r)
		return err_errno(err, ENOMEM, "recovery");
	pthread_mutex_init(&r->lock, NULL);
	r->cfg = *cfg;
	r->cfg.source = NULL;
	e = copy_sources(r, cfg, err);
	if (!e && cfg->findings)
		e = findings_open(&r->findings, r, err);
	r->cfg.findings = NULL;
	if (e < 0)
		rec_close(r);
	else
		*out = r;
	return e;
}

void rec_close(struct rec *r)
{
	if (!r)
		return;
	owners_fini(r);
	group_fini(r);
	tree_fini(&r->tree);
	names_fini(&r->names);
	vmfs_close(r->v);
	segments_fini(&r->segments);
	for (unsigned i = 0; i < r->nr_sources; i++) {
		spans_fini(&r->bad[i]);
		spans_fini(&r->zero[i]);
	}
	free(r->bad);
	free(r->zero);
	free(r->hits.v);
	free(r->cand);
	free(r->volume_list);
	findings_close(r->findings);
	text_fini(&r->notes);
	arena_fini(&r->arena);
	pthread_mutex_destroy(&r->lock);
	free(r->source);
	free(r);
}

/* ---- the order of work ---- */

static int forget(struct rec *r, struct error *err)
{
	segments_fini(&r->segments);
	scan_settle(r);
	r->depth = REC_AS_IS;
	r->scanned = false;
	return findings_clear(r->findings, err);
}

static int load(struct rec *r, struct error *err)
{
	int64_t done = findings_get(r->findings, "done.depth");

	if (r->segments.n || !r->findings)
		return 0;
	r->depth = done >= REC_AS_IS && done <= REC_FULL ? (enum rec_depth)done : REC_AS_IS;
	return scan_load(r, err);
}

/* The volume by what is known; -ENODATA: there is none. */
static int find_volume(struct rec *r, const struct rec_scan *scan, struct error *err)
{
	struct error why = {""};
	struct candidate *c;
	int e;

	vmfs_close(r->v);
	r->v = NULL;
	r->trouble = 0;
	r->lost_files = false;
	text_fini(&r->notes);
	e = bases_by_headers(r, err);
	if (!e && r->scanned)
		e = bases_by_votes(r, err);
	if (e < 0)
		return e;
	if (scan->volume >= MAX(r->nr_cand, 1u))
		return err_set(err, ENOENT, "there is no volume %u: %u were found", scan->volume,
			       r->nr_cand);
	if (!r->nr_cand)
		return err_set(err, ENODATA, "no VMFS volume is on '%s'", r->source[0].name);
	r->volume = scan->volume;
	c = &r->cand[r->volume];
	if (c->has_lv) {
		e = rebuild_open(r, c, &why);
		if (e < 0)
			rec_note(r, "%s", why.msg);
		r->trouble += e < 0;
	} else {
		rec_note(r, "the LVM header is lost: the place of the volume is what its metadata "
			    "say of themselves");
		r->trouble++;
	}
	c->reads = r->v;
	if (!r->scanned)
		return r->v ? 0 : err_set(err, ENODATA, "%s", why.msg);
	return rebuild_assemble(r, c, err);
}

static void publish_volumes(struct rec *r)
{
	free(r->volume_list);
	r->volume_list = calloc(MAX(r->nr_cand, 1u), sizeof(*r->volume_list));
	for (unsigned i = 0; r->volume_list && i < r->nr_cand; i++) {
		struct candidate *c = &r->cand[i];

		c->pub.label = arena_text(&r->arena, c->label, strnlen(c->label, VMFS_LABEL_MAX));
		if (!c->pub.label)
			c->pub.label = "";
		if (i == r->volume)
			c->pub.whole = c->reads && !r->trouble;
		r->volume_list[i] = c->pub;
	}
}

static bool has_live_files(const struct rec *r)
{
	for (uint32_t i = 2; i < r->tree.n; i++)
		if (r->tree.v[i].state == REC_LIVE && !r->tree.v[i].unreachable &&
		    !r->tree.v[i].system)
			return true;
	return false;
}

/* One depth: what of it is not done, then the tree. */
static int do_depth(struct rec *r, const struct rec_scan *scan, enum rec_depth depth,
		    struct error *err)
{
	struct rec_scan s = *scan;
	int e = 0;

	s.depth = depth;
	if (depth > REC_AS_IS) {
		if (r->cfg.read_only && r->findings && depth > r->depth)
			return err_set(err, EROFS,
				       "the findings file does not hold so deep a scan");
		e = scan_run(r, &s, err);
		scan_settle(r);
		if (e < 0 && e != -EINTR)
			return e;
		r->scanned = true;
	}
	if (!e && depth >= r->depth) {
		r->depth = depth;
		e = findings_set(r->findings, "done.depth", depth, err);
		if (!e)
			e = findings_flush(r->findings, err);
	}
	if (e < 0)
		return e;
	rec_tell(r, REC_PHASE_REBUILD, 0, 1);
	e = find_volume(r, scan, err);
	if (e == -ENODATA && depth == REC_FULL && r->hits.n)
		e = 0; /* what is known by content is something */
	if (!e)
		e = tree_build(r, err);
	return e;
}

int rec_scan(struct rec *r, const struct rec_scan *scan, struct error *err)
{
	enum rec_depth depth;
	int e = 0;

	r->scan = scan;
	rec_tell(r, REC_PHASE_OPEN, 0, 1);
	if (scan->again)
		e = forget(r, err);
	if (!e)
		e = load(r, err);
	depth = MAX(scan->depth, r->depth);
	while (!e) {
		e = do_depth(r, scan, depth, err);
		if (!scan->deepen || depth == REC_FULL || (e < 0 && e != -ENODATA))
			break;
		if (!e && (!r->trouble || (depth == REC_META && has_live_files(r))))
			break;
		depth++;
		e = 0;
	}
	if (!e)
		publish_volumes(r);
	r->scan = NULL;
	return e;
}

unsigned rec_volumes(struct rec *r, const struct rec_volume **list)
{
	*list = r->volume_list;
	return r->volume_list ? r->nr_cand : 0;
}

/* ---- entries ---- */

static enum rec_trust worst_of(const struct measure *m)
{
	static const enum rec_trust order[] = {REC_UNKNOWN, REC_UNREADABLE, REC_OVERWRITTEN,
					       REC_INFERRED};

	for (size_t i = 0; i < ARRAY_SIZE(order); i++)
		if (m->bytes[order[i]])
			return order[i];
	return REC_EXACT;
}

static void fill_entry(struct rec *r, uint32_t node, struct rec_entry *e)
{
	const struct node *n;

	node_look(r, node);
	node_measure(r, node);
	n = &r->tree.v[node];
	*e = (struct rec_entry){
		.id = n->id,
		.parent = r->tree.v[n->parent].id,
		.name = n->name,
		.name_made = n->name_made,
		.type = n->type,
		.state = n->state,
		.grade = n->grade,
		.fd = n->synthetic && node != REC_ROOT ? 0 : n->fd,
		.length = n->length,
		.mtime = n->mtime,
		.mode = n->mode,
		.uid = n->uid,
		.gid = n->gid,
		.is_dir = n->is_dir,
		.system = n->system,
		.what = n->what,
		.note = n->note,
	};
	if (n->measure) {
		memcpy(e->bytes, n->measure->bytes, sizeof(e->bytes));
		e->stored = n->measure->stored;
		e->worst = worst_of(n->measure);
	}
	if (n->unreachable)
		e->worst = REC_UNKNOWN;
}

static int need_node(struct rec *r, uint64_t id, uint32_t *node, struct error *err)
{
	*node = node_by_id(r, id);
	return *node ? 0 : err_set(err, ENOENT, "there is no entry #%llu", (unsigned long long)id);
}

int rec_entry(struct rec *r, uint64_t id, struct rec_entry *e, struct error *err)
{
	uint32_t node;
	int r_ = need_node(r, id, &node, err);

	if (!r_)
		fill_entry(r, node, e);
	return r_;
}

static uint32_t by_path(struct rec *r, const char *path)
{
	uint32_t at = r->tree.n > REC_ROOT ? REC_ROOT : 0;
	char name[512];

	while (at && *path) {
		size_t n = strcspn(path, "/");

		if (n >= sizeof(name))
			return 0;
		memcpy(name, path, n);
		name[n] = 0;
		path += n + strspn(path + n, "/");
		if (n && strcmp(name, ".") != 0)
			at = node_child(r, at, name);
	}
	return at;
}

int rec_lookup(struct rec *r, const char *path, struct rec_entry *e, struct error *err)
{
	uint32_t node =
		path[0] == '#' ? node_by_id(r, strtoull(path + 1, NULL, 0)) : by_path(r, path);

	if (!node)
		return err_set(err, ENOENT, "'%s' is not on the volume", path);
	fill_entry(r, node, e);
	return 0;
}

static int by_name(const void *a, const void *b, void *arg)
{
	const struct node *v = arg;

	return strcmp(v[*(const uint32_t *)a].name, v[*(const uint32_t *)b].name);
}

int rec_children(struct rec *r, uint64_t id, int (*child)(void *opaque, const struct rec_entry *e),
		 void *opaque, struct error *err)
{
	struct rec_entry e;
	uint32_t node, *list;
	size_t n = 0;
	int r_ = need_node(r, id, &node, err);

	if (r_ < 0)
		return r_;
	if (!r->tree.v[node].is_dir)
		return err_set(err, ENOTDIR, "'%s' is no directory", r->tree.v[node].name);
	for (uint32_t i = r->tree.v[node].first; i; i = r->tree.v[i].next)
		n++;
	list = malloc(MAX(n, (size_t)1) * sizeof(*list));
	if (!list)
		return err_errno(err, ENOMEM, "'%s'", r->tree.v[node].name);
	n = 0;
	for (uint32_t i = r->tree.v[node].first; i; i = r->tree.v[i].next)
		list[n++] = i;
	qsort_r(list, n, sizeof(*list), by_name, r->tree.v);
	for (size_t i = 0; i < n && !r_; i++) {
		fill_entry(r, list[i], &e);
		r_ = child(opaque, &e);
	}
	free(list);
	return r_;
}

int rec_path(struct rec *r, uint64_t id, char *buf, size_t cap)
{
	uint32_t node = node_by_id(r, id);
	int e = node ? tree_path(r, node, buf, cap) : -ERANGE;

	return e < 0 ? e : 0;
}

int rec_readlink(struct rec *r, uint64_t id, char *buf, size_t cap)
{
	uint32_t node = node_by_id(r, id);
	int e;

	if (!node || r->tree.v[node].type != VMFS_SYMLINK)
		return -EINVAL;
	if (r->tree.v[node].length >= cap)
		return -ERANGE;
	e = node_read(r, node, buf, r->tree.v[node].length, 0);
	buf[r->tree.v[node].length] = 0;
	return e;
}

int rec_range(struct rec *r, uint64_t id, uint64_t off, struct rec_range *range)
{
	uint32_t node = node_by_id(r, id);
	struct vmfs_inode in;
	bool has;

	if (!node || r->tree.v[node].synthetic)
		return -ENOENT;
	has = node_inode(r, node, &in, NULL) == 0;
	return node_range(r, node, has ? &in : NULL, off, range);
}

int rec_blk(struct rec *r, uint64_t id, unsigned flags, struct blk **out, struct error *err)
{
	uint32_t node;
	int e = need_node(r, id, &node, err);

	if (e < 0)
		return e;
	if (r->tree.v[node].is_dir)
		return err_set(err, EISDIR, "'%s' is a directory", r->tree.v[node].name);
	if (r->tree.v[node].unreachable)
		return err_set(err, ENODATA, "'%s': its descriptor is lost, and with it the file",
			       r->tree.v[node].name);
	return node_blk(r, node, flags, out, err);
}

/* ---- the doctor ---- */

int rec_check(struct rec *r,
	      void (*finding)(void *opaque, enum vmfs_severity severity, const char *what,
			      const char *sentence),
	      void *opaque, bool (*stop)(void *opaque), struct error *err)
{
	char *notes = strdup(rec_notes(r)), *line, *rest = NULL;

	if (!notes)
		return err_errno(err, ENOMEM, "check");
	for (line = strtok_r(notes, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
		finding(opaque, VMFS_DAMAGE, "recovery", line);
	free(notes);
	if (!r->v)
		return 0;
	return vmfs_check(r->v, finding, opaque, stop, err);
}
