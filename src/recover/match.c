/* recover/match.c - deleted files whose block addresses were wiped: whose pointer blocks are these?
 *
 * A delete may clear the addresses in the descriptor and leave length, number of blocks and the
 * pointer blocks themselves.  So: all pointer blocks that are free but still hold addresses are
 * gathered, in the order of their own addresses, which is the order they were allocated in.  A file
 * of k pointer blocks is matched by k neighbours in that order whose addresses add up to its number
 * of blocks and end where its length does.  What is left over are pieces of files that nothing
 * else is known of: they become files of their own, cut where a disk begins.
 *
 * Two deleted files can claim the same block: the one deleted later has it, and the range is lost
 * to the other. */
#include "recover/internal.h"

#include "vmfs/ondisk.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_ORPHANS = 1 << 18 };

/* A free pointer block that still holds addresses. */
struct orphan {
	uint64_t raw;   /* its own address */
	uint64_t count; /* blocks below it */
	uint64_t first; /* the first address */
	uint32_t last;  /* index of the last word that is not 0 */
	uint32_t lead;  /* index of the first */
	bool upper;     /* holds addresses of pointer blocks */
	bool used;
};

struct matcher {
	struct rec *r;
	const struct vmfs_geometry *g;
	struct orphan *v;
	size_t n, cap;
	uint32_t *by_raw; /* indices of v, by its own address */
	uint8_t *buf;
	uint32_t words, word_size;
	uint64_t work; /* steps that matching may still take */
};
#define MATCH_WORK (1ull << 30)

/* ---- gathering ---- */

static uint64_t word_at(const struct matcher *m, uint32_t i)
{
	return m->word_size == 8 ? le64_load(m->buf + 8ull * i) : le32_load(m->buf + 4ull * i);
}

static bool is_data(enum vmfs_addr_type t)
{
	return t == VMFS_ADDR_FB || t == VMFS_ADDR_LFB;
}

static bool is_pointer(const struct vmfs_geometry *g, enum vmfs_addr_type t)
{
	return t == VMFS_ADDR_PB || t == VMFS_ADDR_PB2 || (g->version == 6 && t == VMFS_ADDR_SB);
}

/* One word: 0 and more, or no address that can be. */
static bool read_word(struct matcher *m, uint64_t raw, struct orphan *o, uint32_t i)
{
	struct vmfs_addr a;
	uint64_t vol, len;
	bool upper;

	if (!raw)
		return true;
	if (vmfs_addr_parse(m->g, raw, &a) < 0 || vmfs_addr_locate(m->r->v, &a, &vol, &len) < 0)
		return false;
	upper = is_pointer(m->g, a.type);
	if (!upper && !is_data(a.type))
		return false;
	if (!o->count) {
		o->first = raw;
		o->lead = i;
		o->upper = upper;
	}
	if (upper != o->upper)
		return false;
	o->last = i;
	o->count++;
	return true;
}

/* Are these bytes of a pointer block?  The first words tell soon when not. */
static bool parse_orphan(struct matcher *m, uint64_t vol, struct orphan *o)
{
	size_t len = (size_t)m->words * m->word_size, head = MIN(len, (size_t)4096);
	uint32_t probe = (uint32_t)(head / m->word_size);
	struct orphan tried = *o;

	if (vmfs_read_volume(m->r->v, m->buf, head, vol) < 0)
		return false;
	for (uint32_t i = 0; i < probe; i++)
		if (!read_word(m, word_at(m, i), &tried, i))
			return false;
	if (len > head && vmfs_read_volume(m->r->v, m->buf, len, vol) < 0)
		return false;
	for (uint32_t i = probe; i < m->words; i++)
		if (!read_word(m, word_at(m, i), &tried, i))
			return false;
	if (tried.count)
		*o = tried;
	return tried.count;
}

static uint64_t raw_address(const struct matcher *m, enum vmfs_addr_type type, uint64_t cluster,
			    uint32_t resource)
{
	static const uint8_t code[] = {[VMFS_ADDR_SB] = 2, [VMFS_ADDR_PB] = 3, [VMFS_ADDR_PB2] = 5};

	if (m->g->version == 6)
		return code[type] | cluster << 6 | (uint64_t)resource << 56;
	return code[type] | cluster << 6 | (uint64_t)resource << 28;
}

static bool look_at(struct matcher *m, enum vmfs_addr_type type, uint64_t cluster, uint32_t res)
{
	struct orphan o = {.raw = raw_address(m, type, cluster, res)};
	struct vmfs_addr a;
	uint64_t vol, len;

	if (vmfs_addr_parse(m->g, o.raw, &a) < 0 || vmfs_addr_locate(m->r->v, &a, &vol, &len) < 0)
		return false;
	if (len < (uint64_t)m->words * m->word_size || vmfs_addr_used(m->r->v, &a) == 1)
		return true;
	if (parse_orphan(m, vol, &o) && m->n < MAX_ORPHANS &&
	    array_room(&m->v, m->n, &m->cap, sizeof(*m->v)))
		m->v[m->n++] = o;
	return true;
}

static void gather_kind(struct matcher *m, enum vmfs_addr_type type, enum vmfs_resource_kind kind)
{
	const struct vmfs_resource *res = &vmfs_plan(m->r->v)->geo.res[kind];
	uint64_t clusters, misses = 0;

	if (!res->per_cluster || !res->size)
		return;
	clusters = (res->nr_resources + res->per_cluster - 1) / res->per_cluster;
	clusters = MIN(clusters, volume_room(m->r, res->size) / res->per_cluster + 2);
	for (uint64_t c = 0; c < clusters && c < BIT(22) && misses < 2; c++) {
		bool any = false;

		for (uint32_t i = 0; i < res->per_cluster && i < 256; i++)
			any |= look_at(m, type, c, i);
		misses = any ? 0 : misses + 1;
		if (rec_stopped(m->r))
			return;
	}
}

/* In the order of allocation: cluster, then number in it. */
static int place_order(const void *a, const void *b, void *arg)
{
	const struct vmfs_geometry *g = arg;
	const struct orphan *x = a, *y = b;
	struct vmfs_addr p, q;

	(void)vmfs_addr_parse(g, x->raw, &p);
	(void)vmfs_addr_parse(g, y->raw, &q);
	if (p.type != q.type)
		return p.type < q.type ? -1 : 1;
	if (p.cluster != q.cluster)
		return p.cluster < q.cluster ? -1 : 1;
	return p.resource < q.resource ? -1 : p.resource > q.resource;
}

static int raw_order(const void *a, const void *b, void *arg)
{
	const struct orphan *v = arg, *x = &v[*(const uint32_t *)a], *y = &v[*(const uint32_t *)b];

	return x->raw < y->raw ? -1 : x->raw > y->raw;
}

static struct orphan *find_orphan(struct matcher *m, uint64_t raw)
{
	for (size_t lo = 0, hi = m->n; lo < hi;) {
		size_t mid = (lo + hi) / 2;
		struct orphan *o = &m->v[m->by_raw[mid]];

		if (o->raw == raw)
			return o;
		if (o->raw < raw)
			lo = mid + 1;
		else
			hi = mid;
	}
	return NULL;
}

static bool make_index(struct matcher *m)
{
	m->by_raw = malloc(MAX(m->n, (size_t)1) * sizeof(*m->by_raw));
	for (size_t i = 0; m->by_raw && i < m->n; i++)
		m->by_raw[i] = (uint32_t)i;
	if (m->by_raw)
		qsort_r(m->by_raw, m->n, sizeof(*m->by_raw), raw_order, m->v);
	return m->by_raw;
}

static bool load_block(struct matcher *m, uint64_t raw)
{
	struct vmfs_addr a;
	uint64_t vol, len;

	return vmfs_addr_parse(m->g, raw, &a) == 0 &&
	       vmfs_addr_locate(m->r->v, &a, &vol, &len) == 0 &&
	       vmfs_read_volume(m->r->v, m->buf, (size_t)m->words * m->word_size, vol) == 0;
}

/* Upper ones: how many blocks are below them, as far as those are orphans too. */
static void count_upper(struct matcher *m)
{
	for (size_t i = 0; i < m->n; i++) {
		struct orphan *o = &m->v[i];
		uint64_t sum = 0;

		if (!o->upper || !load_block(m, o->raw))
			continue;
		for (uint32_t k = 0; k < m->words; k++) {
			struct orphan *below = find_orphan(m, word_at(m, k));

			if (word_at(m, k) && below && !below->upper) {
				below->used = true;
				sum += below->count;
			}
		}
		o->count = sum;
	}
}

static bool gather(struct matcher *m)
{
	gather_kind(m, VMFS_ADDR_PB, VMFS_RES_PBC);
	gather_kind(m, VMFS_ADDR_PB2, VMFS_RES_PB2);
	if (m->g->version == 6)
		gather_kind(m, VMFS_ADDR_SB, VMFS_RES_SBC);
	if (m->n)
		qsort_r(m->v, m->n, sizeof(*m->v), place_order, (void *)(uintptr_t)m->g);
	if (!make_index(m))
		return false;
	count_upper(m);
	return true;
}

/* ---- matching ---- */

/* What a descriptor tells of its pointer blocks. */
struct want {
	uint64_t blocks; /* that are no holes */
	uint64_t nr;     /* pointer blocks its descriptor named, when none is a hole */
	uint64_t end;    /* blocks of its length */
	uint64_t per;    /* blocks below one of them */
	bool upper;
};

static bool want_of(const struct matcher *m, const struct vmfs_inode *in, struct want *w)
{
	uint64_t block = 1ull << in->block_shift;

	if (in->zla != FS_ZLA_PB && in->zla != FS_ZLA_PB2 && in->zla != FS_ZLA_DOUBLE)
		return false;
	w->upper = in->zla == FS_ZLA_DOUBLE;
	w->blocks = in->nr_blocks;
	w->end = in->length / block + !!(in->length % block);
	w->per = w->upper ? (uint64_t)m->words * m->words : m->words;
	w->nr = w->end / w->per + !!(w->end % w->per);
	return w->nr && w->nr <= in->nr_addr;
}

/* The next n orphans from `from` on that may belong together; false: there are not so many. */
static bool window(const struct matcher *m, const struct want *w, size_t from, uint64_t n,
		   size_t *at)
{
	uint64_t have = 0;

	for (size_t i = from; i < m->n && have < n; i++)
		if (!m->v[i].used && m->v[i].upper == w->upper)
			at[have++] = i;
	return have == n;
}

/* Higher is better; 0: it cannot be. */
static unsigned rate(const struct matcher *m, const struct want *w, const size_t *at)
{
	const struct orphan *last = &m->v[at[w->nr - 1]];
	uint64_t sum = 0, in_last = (w->end - 1) % w->per;

	for (uint64_t i = 0; i < w->nr; i++)
		sum += m->v[at[i]].count;
	if (sum != w->blocks)
		return 0;
	if (w->upper)
		in_last /= m->words;
	if (last->last > in_last)
		return 0;
	return 1 + (last->last == in_last) + (m->v[at[0]].lead == 0);
}

struct choice {
	size_t at[320];
	unsigned rate, nr;
};

static void choose(struct matcher *m, const struct want *w, struct choice *best)
{
	size_t at[320];

	*best = (struct choice){.rate = 0};
	for (size_t from = 0; from < m->n; from++) {
		unsigned rated;

		if (m->v[from].used || m->v[from].upper != w->upper)
			continue;
		if (m->work < w->nr || !window(m, w, from, w->nr, at))
			break;
		m->work -= w->nr;
		rated = rate(m, w, at);
		if (rated && rated == best->rate)
			best->nr++;
		if (rated <= best->rate)
			continue;
		memcpy(best->at, at, sizeof(at));
		best->rate = rated;
		best->nr = 1;
	}
}

static void use_below(struct matcher *m, const struct orphan *o)
{
	if (!o->upper || !load_block(m, o->raw))
		return;
	for (uint32_t k = 0; k < m->words; k++) {
		struct orphan *below = word_at(m, k) ? find_orphan(m, word_at(m, k)) : NULL;

		if (below)
			below->used = true;
	}
}

/* Those that descriptors of deleted files still name. */
static void use_known(struct matcher *m)
{
	struct rec *r = m->r;
	struct vmfs_inode in;

	for (uint32_t i = 1; i < r->tree.n && m->n; i++) {
		const struct node *n = &r->tree.v[i];

		if (n->synthetic || n->length <= m->g->file_block_size ||
		    node_inode(r, i, &in, NULL) < 0 || in.resident)
			continue;
		for (unsigned k = 0; k < in.nr_addr; k++) {
			struct orphan *o = in.address[k] ? find_orphan(m, in.address[k]) : NULL;

			if (o) {
				o->used = true;
				use_below(m, o);
			}
		}
	}
}

static struct vmfs_inode *keep_inode(struct rec *r, const struct vmfs_inode *in)
{
	struct vmfs_inode *copy = arena_alloc(&r->arena, sizeof(*copy));

	if (copy)
		*copy = *in;
	return copy;
}

static void give(struct matcher *m, uint32_t node, struct vmfs_inode *in, const struct want *w,
		 const struct choice *c)
{
	struct node *n = &m->r->tree.v[node];

	for (uint64_t i = 0; i < w->nr; i++) {
		struct orphan *o = &m->v[c->at[i]];

		in->address[i] = o->raw;
		o->used = true;
		use_below(m, o);
	}
	n->inode = keep_inode(m->r, in);
	if (!n->inode)
		return;
	n->grade = 2;
	n->note = c->nr > 1 ? "its pointer blocks were found; others fit as well"
			    : "its pointer blocks were found by number and length";
}

/* Those with most blocks first: they are the hardest to be wrong about. */
static int size_order(const void *a, const void *b, void *arg)
{
	const struct node *v = arg, *x = &v[*(const uint32_t *)a], *y = &v[*(const uint32_t *)b];

	if (x->length != y->length)
		return x->length > y->length ? -1 : 1;
	return x->gen < y->gen ? -1 : x->gen > y->gen;
}

static void match_all(struct matcher *m, uint32_t *list, size_t n)
{
	struct vmfs_inode in;
	struct choice best;
	struct want w;

	qsort_r(list, n, sizeof(*list), size_order, m->r->tree.v);
	for (size_t i = 0; i < n; i++) {
		if (node_inode(m->r, list[i], &in, NULL) < 0 || !want_of(m, &in, &w))
			continue;
		choose(m, &w, &best);
		if (best.rate)
			give(m, list[i], &in, &w, &best);
		if (rec_stopped(m->r))
			return;
	}
}

/* ---- pieces nobody is known of ---- */

static bool begins_disk(struct matcher *m, const struct orphan *o)
{
	uint8_t head[4096];
	struct vmfs_addr a;
	uint64_t vol, len;

	if (o->lead || vmfs_addr_parse(m->g, o->first, &a) < 0 ||
	    vmfs_addr_locate(m->r->v, &a, &vol, &len) < 0 ||
	    vmfs_read_volume(m->r->v, head, sizeof(head), vol) < 0)
		return false;
	return le16_load(head + 510) == 0xaa55 || detect_file(head, sizeof(head));
}

static void make_fragment(struct matcher *m, const size_t *at, unsigned n)
{
	const struct orphan *last = &m->v[at[n - 1]];
	uint64_t block = m->g->file_block_size;
	struct vmfs_inode in = {.type = VMFS_FILE,
				.mode = 0100600,
				.block_size = block,
				.zla = FS_ZLA_PB,
				.nr_addr = m->g->version == 6 ? FS_FD_ADDRS_6 : FS_FD_ADDRS_5,
				.block_shift = (unsigned)__builtin_ctzll(block)};
	uint32_t top = tree_top(m->r, ID_CARVED), node;
	struct node *nd;

	node = top ? tree_node(m->r, ID_PLACE + m->v[at[0]].raw % BIT(40)) : 0;
	if (!node)
		return;
	for (unsigned i = 0; i < n; i++) {
		in.address[i] = m->v[at[i]].raw;
		in.nr_blocks += m->v[at[i]].count;
		m->v[at[i]].used = true;
	}
	in.length = ((uint64_t)(n - 1) * m->words + last->last + 1) * block;
	nd = &m->r->tree.v[node];
	node_from_inode(nd, &in);
	nd->state = REC_CARVED;
	nd->grade = 3;
	nd->inode = keep_inode(m->r, &in);
	nd->name = arena_printf(&m->r->arena, "blocks-%llx", (unsigned long long)m->v[at[0]].raw);
	nd->name = nd->name ? nd->name : "blocks";
	nd->name_made = true;
	nd->note = "the blocks of pointer blocks that belong to no known file";
	node_attach(m->r, node, top);
}

static void make_fragments(struct matcher *m)
{
	size_t at[320];
	unsigned n = 0;

	for (size_t i = 0; i < m->n; i++) {
		struct orphan *o = &m->v[i];

		if (o->used || o->upper)
			continue;
		if (n && (n == 256 || begins_disk(m, o) || m->v[at[n - 1]].last + 1 < m->words)) {
			make_fragment(m, at, n);
			n = 0;
		}
		at[n++] = i;
	}
	if (n)
		make_fragment(m, at, n);
}

/* ---- which deleted file has a block ---- */

static int later_first(const void *a, const void *b, void *arg)
{
	const struct node *v = arg, *x = &v[*(const uint32_t *)a], *y = &v[*(const uint32_t *)b];

	if (x->mtime != y->mtime)
		return x->mtime > y->mtime ? -1 : 1;
	return x->gen > y->gen ? -1 : x->gen < y->gen;
}

enum { CLAIM_MAX_RANGES = 1 << 20 };

static void lose(struct node *n, uint64_t start, uint64_t end)
{
	if (!n->lost_to)
		n->lost_to = calloc(1, sizeof(*n->lost_to));
	if (n->lost_to)
		(void)spans_add(n->lost_to, start, end);
}

static void claim(struct rec *r, uint32_t node, uint8_t *map, uint64_t nr, uint64_t block)
{
	struct vmfs_inode in;
	struct vmfs_range x;

	if (node_inode(r, node, &in, NULL) < 0 || 1ull << in.block_shift < block || in.resident)
		return;
	for (uint64_t off = 0, i = 0; off < in.length && i < CLAIM_MAX_RANGES; off += x.len, i++) {
		if (vmfs_file_range(r->v, &in, off, &x) < 0)
			return;
		for (uint64_t at = 0; x.kind == VMFS_RANGE_DATA && at < x.len;) {
			uint64_t b = (x.vol + at) / block, len = block - (x.vol + at) % block;

			len = MIN(len, x.len - at);
			if (b < nr && map[b / 8] >> (b % 8) & 1)
				lose(&r->tree.v[node], off + at, off + at + len);
			else if (b < nr)
				map[b / 8] |= (uint8_t)(1u << (b % 8));
			at += len;
		}
	}
	if (r->tree.v[node].lost_to)
		spans_settle(r->tree.v[node].lost_to);
}

static void claim_all(struct rec *r, uint32_t *list, size_t n)
{
	const struct vmfs_plan *p = vmfs_plan(r->v);
	uint64_t block = p->geo.file_block_size, end = 0, nr;
	uint8_t *map;

	for (unsigned i = 0; i < p->nr_runs; i++)
		end = MAX(end, p->run[i].vol + p->run[i].len);
	nr = MIN(end / block + 1, BIT(28));
	map = calloc(1, nr / 8 + 1);
	if (!map)
		return;
	qsort_r(list, n, sizeof(*list), later_first, r->tree.v);
	for (size_t i = 0; i < n && !rec_stopped(r); i++)
		claim(r, list[i], map, nr, block);
	free(map);
}

/* ---- all of it ---- */

static int run(struct matcher *m, struct error *err)
{
	struct rec *r = m->r;
	uint32_t *list = malloc(MAX(r->tree.n, 1u) * sizeof(*list)), n = 0;

	if (!list)
		return err_errno(err, ENOMEM, "deleted files");
	if (!gather(m)) {
		free(list);
		return err_errno(err, ENOMEM, "deleted files");
	}
	use_known(m);
	for (uint32_t i = 1; i < r->tree.n; i++)
		if (r->tree.v[i].state == REC_DELETED && r->tree.v[i].grade == 3 &&
		    !r->tree.v[i].synthetic)
			list[n++] = i;
	match_all(m, list, n);
	make_fragments(m);
	n = 0;
	free(list);
	list = malloc(r->tree.n * sizeof(*list));
	for (uint32_t i = 1; list && i < r->tree.n; i++)
		if (r->tree.v[i].state == REC_DELETED && !r->tree.v[i].synthetic)
			list[n++] = i;
	if (list)
		claim_all(r, list, n);
	free(list);
	return rec_stopped(r) ? err_set(err, EINTR, "stopped; what was found is kept") : 0;
}

int deleted_match(struct rec *r, struct error *err)
{
	struct matcher m = {.r = r, .g = &vmfs_plan(r->v)->geo, .work = MATCH_WORK};
	int e;

	m.word_size = m.g->version == 6 ? 8 : 4;
	m.words = m.g->ptr_per_block;
	if (!m.words || m.words > 1 << 20)
		return 0;
	m.buf = malloc((size_t)m.words * m.word_size);
	if (!m.buf)
		return err_errno(err, ENOMEM, "deleted files");
	e = run(&m, err);
	free(m.by_raw);
	free(m.buf);
	free(m.v);
	return e;
}
