/* recover/carve.c - files known by their content alone.
 *
 * Where the scan saw the start of a file that no descriptor leads to, the file is taken to lie in
 * one piece from there, as long as its content says: a text to its end, a sparse extent by its
 * header or its markers, a disk by its partition table.  What lies inside the blocks of a file that
 * is known is no find.
 *
 * Some finds belong to a deleted file whose addresses were wiped: a text, or a disk, of exactly its
 * length.  Then that file gets the bytes.  The rest is listed after a full scan only. */
#include "recover/internal.h"

#include "block/blk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CARVED = 1 << 16, MAX_MARKERS = 1 << 22, SECTOR = 512 };

struct find {
	const struct hit *hit;
	uint64_t len;
	uint64_t vol; /* UINT64_MAX: in no volume */
	bool exact;   /* the content says so, not a guess */
};

struct carver {
	struct rec *r;
	struct spans known; /* volume offsets */
	uint8_t *buf;       /* REC_TEXT_MAX and a NUL */
	struct find *v;
	size_t n, cap;
};

/* ---- where a find lies in the volume ---- */

uint64_t carve_volume_offset(struct rec *r, unsigned source, uint64_t pos, uint64_t *len)
{
	const struct vmfs_plan *p = r->v ? vmfs_plan(r->v) : NULL;

	for (unsigned i = 0; p && i < p->nr_runs; i++) {
		const struct vmfs_run *run = &p->run[i];

		if (run->dev >= p->nr_devs || p->dev[run->dev] != r->source[source].blk ||
		    pos < run->dev_off || pos - run->dev_off >= run->len)
			continue;
		*len = MIN(*len, run->len - (pos - run->dev_off));
		return run->vol + (pos - run->dev_off);
	}
	return UINT64_MAX;
}

enum { KNOWN_MAX_RANGES = 1 << 18 };

static void know_file(struct carver *c, const struct vmfs_inode *in)
{
	uint32_t fd_size = vmfs_plan(c->r->v)->geo.fd_size;
	struct vmfs_range x;

	(void)spans_add(&c->known, in->vol, in->vol + fd_size);
	if (in->resident)
		return;
	for (uint64_t off = 0, i = 0; off < in->length && i < KNOWN_MAX_RANGES; off += x.len, i++) {
		if (vmfs_file_range(c->r->v, in, off, &x) < 0)
			return;
		if (x.kind == VMFS_RANGE_DATA)
			(void)spans_add(&c->known, x.vol, x.vol + x.len);
	}
}

static void know_all(struct carver *c)
{
	struct vmfs_inode in;

	for (uint32_t i = 1; i < c->r->tree.n; i++)
		if (!c->r->tree.v[i].system && node_inode(c->r, i, &in, NULL) == 0)
			know_file(c, &in);
	spans_settle(&c->known);
}

static bool is_known(struct carver *c, uint64_t vol)
{
	uint64_t end;

	return vol != UINT64_MAX && spans_at(&c->known, vol, &end);
}

/* ---- how long ---- */

static uint64_t room(struct carver *c, const struct hit *h)
{
	return blk_size(c->r->source[h->source].blk) - h->pos;
}

static bool is_text_byte(uint8_t b)
{
	return b >= 0x20 ? b != 0x7f : b == '\n' || b == '\r' || b == '\t';
}

static uint64_t text_length(struct carver *c, const struct hit *h)
{
	size_t len = (size_t)MIN(room(c, h), (uint64_t)REC_TEXT_MAX), n = 0;

	if (rec_read_source(c->r, h->source, c->buf, len, h->pos) < 0) {
		len = MIN(len, (size_t)4096);
		if (rec_read_source(c->r, h->source, c->buf, len, h->pos) < 0)
			return 0;
	}
	while (n < len && is_text_byte(c->buf[n]))
		n++;
	return n;
}

/* The end of a stream-optimised extent, by its markers from `at` on. */
static uint64_t stream_length(struct carver *c, const struct hit *h, uint64_t at)
{
	uint64_t end = room(c, h);
	uint8_t m[SECTOR];

	for (unsigned i = 0; i < MAX_MARKERS && at + SECTOR <= end; i++) {
		uint64_t sectors;
		uint32_t size, type;

		if (rec_read_source(c->r, h->source, m, sizeof(m), h->pos + at) < 0)
			return at;
		sectors = le64_load(m);
		size = le32_load(m + 8);
		type = le32_load(m + 12);
		if (size) {
			if (size > 64 * MiB)
				return at;
			at += ALIGN_UP(12 + (uint64_t)size, SECTOR);
			continue;
		}
		if (type == 0 || type > 3 || sectors > BIT(32))
			return at + SECTOR;
		at += SECTOR + sectors * SECTOR;
	}
	return MIN(at, end);
}

static uint64_t sparse_length(struct carver *c, const struct hit *h, bool *exact)
{
	uint8_t head[SECTOR];
	uint64_t overhead, capacity;

	if (rec_read_source(c->r, h->source, head, sizeof(head), h->pos) < 0)
		return 0;
	capacity = le64_load(head + 12);
	overhead = le64_load(head + 64);
	if (capacity > BIT(44) || overhead > BIT(32))
		return 0;
	if (le32_load(head + 8) & (3 << 16)) { /* compressed, with markers */
		*exact = true;
		return stream_length(c, h, MAX(overhead, 1ull) * SECTOR);
	}
	return (capacity + overhead) * SECTOR;
}

static uint64_t cowd_length(struct carver *c, const struct hit *h, bool *exact)
{
	uint8_t head[SECTOR];

	if (rec_read_source(c->r, h->source, head, sizeof(head), h->pos) < 0)
		return 0;
	*exact = true;
	return (uint64_t)le32_load(head + 28) * SECTOR; /* the next free sector */
}

static uint64_t sesparse_length(struct carver *c, const struct hit *h)
{
	uint8_t head[SECTOR];

	if (rec_read_source(c->r, h->source, head, sizeof(head), h->pos) < 0)
		return 0;
	return MIN(le64_load(head + 16), BIT(44)) * SECTOR;
}

/* Behind the last byte that is not 0, before a gap of 8 KiB of zeroes. */
static uint64_t nvram_length(struct carver *c, const struct hit *h)
{
	size_t len = (size_t)MIN(room(c, h), (uint64_t)REC_TEXT_MAX), at = 0;

	if (rec_read_source(c->r, h->source, c->buf, len, h->pos) < 0)
		return 0;
	while (at + 8192 <= len && !all_zero(c->buf + at, 8192))
		at += 8192;
	while (at && !c->buf[at - 1])
		at--;
	return at;
}

static uint64_t disk_length(struct carver *c, const struct hit *h, bool *exact)
{
	uint8_t head[2 * SECTOR];
	uint64_t end = 0;

	if (rec_read_source(c->r, h->source, head, sizeof(head), h->pos) < 0)
		return 0;
	if (!memcmp(head + SECTOR, "EFI PART", 8)) {
		*exact = true; /* the backup header is the disk's last sector */
		end = le64_load(head + SECTOR + 32) + 1;
	}
	for (unsigned i = 0; i < 4 && !*exact; i++) {
		const uint8_t *e = head + 446 + i * 16;

		if (e[4])
			end = MAX(end, (uint64_t)le32_load(e + 8) + le32_load(e + 12));
	}
	return MIN(end, BIT(44)) * SECTOR;
}

static uint64_t length_of(struct carver *c, const struct hit *h, bool *exact)
{
	*exact = false;
	switch (h->kind) {
	case HIT_DESCRIPTOR:
	case HIT_VMX:
	case HIT_OVF:
	case HIT_LOG:
		*exact = true;
		return text_length(c, h);
	case HIT_SPARSE:
		return sparse_length(c, h, exact);
	case HIT_COWD:
		return cowd_length(c, h, exact);
	case HIT_SESPARSE:
		return sesparse_length(c, h);
	case HIT_NVRAM:
		return nvram_length(c, h);
	case HIT_DISK:
		return disk_length(c, h, exact);
	default:
		return 0;
	}
}

/* ---- finds ---- */

/* A disk begins where a file block does; others where anything can. */
static bool can_begin(struct carver *c, const struct hit *h, uint64_t vol)
{
	if (h->kind < HIT_FILE || h->kind == HIT_IMAGE)
		return false;
	if (h->kind != HIT_DISK)
		return true;
	return vol != UINT64_MAX && vol % vmfs_plan(c->r->v)->geo.file_block_size == 0;
}

static void gather(struct carver *c)
{
	for (size_t i = 0; i < c->r->hits.n && c->n < MAX_CARVED; i++) {
		const struct hit *h = &c->r->hits.v[i];
		uint64_t one = 1;
		struct find f = {.hit = h};

		if (h->kind < HIT_FILE)
			continue;
		f.vol = carve_volume_offset(c->r, h->source, h->pos, &one);
		if (!can_begin(c, h, f.vol) || is_known(c, f.vol))
			continue;
		f.len = length_of(c, h, &f.exact);
		f.len = MIN(f.len, room(c, h));
		if (f.len && array_room(&c->v, c->n, &c->cap, sizeof(f)))
			c->v[c->n++] = f;
		if (i % 256 == 0)
			rec_tell(c->r, REC_PHASE_CARVE, i, c->r->hits.n);
		if (rec_stopped(c->r))
			return;
	}
}

static bool is_text(unsigned kind)
{
	return kind == HIT_DESCRIPTOR || kind == HIT_VMX || kind == HIT_OVF || kind == HIT_LOG;
}

/* The same text is there already, in a file with a name: a copy in a journal, an old sub-block. */
static bool is_copy(struct carver *c, const struct find *f)
{
	uint8_t *other = NULL;
	bool same = false;

	if (!is_text(f->hit->kind) || f->len > 64 * KiB)
		return false;
	if (rec_read_source(c->r, f->hit->source, c->buf, f->len, f->hit->pos) < 0)
		return false;
	for (uint32_t i = 1; i < c->r->tree.n && !same; i++) {
		const struct node *n = &c->r->tree.v[i];

		if (n->is_dir || n->system || n->length != f->len || n->made)
			continue;
		other = other ? other : malloc(64 * KiB);
		same = other && node_read(c->r, i, other, f->len, 0) == 0 &&
		       !memcmp(other, c->buf, f->len);
	}
	free(other);
	return same;
}

/* ---- whose it was ---- */

static bool could_be(const struct node *n, const struct find *f)
{
	if (n->state != REC_DELETED || n->grade != 3 || n->carved || n->is_dir ||
	    n->type != VMFS_FILE || n->synthetic)
		return false;
	if (f->exact)
		return n->length == f->len;
	return f->hit->kind == HIT_DISK && n->length >= f->len && n->length - f->len < 64 * MiB;
}

/* The one deleted file that this find can be, or 0. */
static uint32_t owner_of(struct carver *c, const struct find *f)
{
	uint32_t found = 0;

	for (uint32_t i = 1; i < c->r->tree.n; i++) {
		if (!could_be(&c->r->tree.v[i], f))
			continue;
		if (found)
			return 0;
		found = i;
	}
	return found;
}

static struct carved *make_place(struct carver *c, const struct find *f, uint64_t len)
{
	struct carved *p = arena_alloc(&c->r->arena, sizeof(*p));

	if (p)
		*p = (struct carved){f->hit->source, f->hit->pos, MIN(len, room(c, f->hit))};
	return p;
}

static bool give_to_owner(struct carver *c, const struct find *f)
{
	uint32_t i = owner_of(c, f);
	struct node *n = &c->r->tree.v[i];

	if (!i)
		return false;
	n->carved = make_place(c, f, n->length);
	if (!n->carved)
		return false;
	n->measure = NULL;
	n->grade = 2;
	n->note = "its bytes were found by content and length";
	return true;
}

static const char *carved_name(struct carver *c, const struct find *f)
{
	static const char *const end[HIT_NR] = {
		[HIT_DESCRIPTOR] = ".vmdk", [HIT_VMX] = ".vmx",   [HIT_OVF] = ".ovf",
		[HIT_SPARSE] = ".vmdk",     [HIT_COWD] = ".vmdk", [HIT_SESPARSE] = ".vmdk",
		[HIT_NVRAM] = ".nvram",     [HIT_LOG] = ".log",   [HIT_DISK] = "-flat.vmdk",
	};
	const char *s = arena_printf(&c->r->arena, "%s-%u-%llx%s", hit_name(f->hit->kind),
				     f->hit->source, (unsigned long long)f->hit->pos,
				     end[f->hit->kind] ? end[f->hit->kind] : "");

	return s ? s : "find";
}

static void make_node(struct carver *c, const struct find *f)
{
	uint32_t top = tree_top(c->r, ID_CARVED), node;
	struct node *n;

	node = top ? tree_node(c->r, ID_PLACE | (uint64_t)f->hit->source << 56 |
					     f->hit->pos / SECTOR << 4 | 1)
		   : 0;
	if (!node)
		return;
	n = &c->r->tree.v[node];
	n->name = carved_name(c, f);
	n->type = VMFS_FILE;
	n->mode = 0100600;
	n->state = REC_CARVED;
	n->length = f->len;
	n->carved = make_place(c, f, f->len);
	n->name_made = n->looked = true;
	n->what = f->hit->kind == HIT_DISK ? "flat" : hit_name(f->hit->kind);
	n->note = f->exact ? "found by its content" : "found by its content; its length is a guess";
	if (!n->carved)
		n->length = 0;
	node_attach(c->r, node, top);
}

int carve_find(struct rec *r, struct error *err)
{
	struct carver c = {.r = r, .buf = malloc(REC_TEXT_MAX + 1)};

	if (!c.buf)
		return err_errno(err, ENOMEM, "carving");
	if (r->v)
		know_all(&c);
	gather(&c);
	for (size_t i = 0; i < c.n && !rec_stopped(r); i++) {
		if (is_copy(&c, &c.v[i]))
			continue;
		if (!give_to_owner(&c, &c.v[i]) && r->depth == REC_FULL)
			make_node(&c, &c.v[i]);
	}
	free(c.v);
	free(c.buf);
	spans_fini(&c.known);
	return rec_stopped(r) ? err_set(err, EINTR, "stopped; what was found is kept") : 0;
}
