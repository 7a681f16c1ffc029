/* vmfs/check_meta.c - heartbeats, journals, and the headers of clusters. */
#include "vmfs/check.h"

#include <stdlib.h>

/* --- heartbeats --------------------------------------------------------------------------------
 */

static void mark_journal(struct check *c, uint32_t raw)
{
	enum vmfs_resource_kind kind;
	struct vmfs_addr a;
	uint64_t index;

	if (raw && !vmfs_addr_parse(&c->v->plan.geo, raw, &a) && check_index(c, &a, &kind, &index))
		bit_set(c->use[kind].used, index);
}

/* Hosts write there every few seconds; whether one is alive, only a second look would tell. */
static void tell_heartbeat(struct check *c, const uint8_t *hb, uint64_t vol)
{
	char uuid[VMFS_UUID_TEXT], ip[FS_HB_IP_LEN + 1] = "";
	struct vmfs_uuid owner;

	memcpy(owner.b, hb + FS_HB_OWNER, sizeof(owner.b));
	vmfs_uuid_text(&owner, uuid);
	for (unsigned i = 0; i < FS_HB_IP_LEN && hb[FS_HB_IP + i] > ' ' && hb[FS_HB_IP + i] < 127;
	     i++)
		ip[i] = (char)hb[FS_HB_IP + i];
	check_tell(c, VMFS_INFO, "heartbeat",
		   "host %s (%s) has the volume open, or was cut off while it had: heartbeat at "
		   "%llu, journal %#x",
		   uuid, ip[0] ? ip : "no address", (unsigned long long)vol,
		   le32_load(hb + FS_HB_JOURNAL));
	mark_journal(c, le32_load(hb + FS_HB_JOURNAL));
}

static void check_heartbeat(struct check *c, const uint8_t *hb, uint64_t vol, unsigned *bad)
{
	uint32_t state = le32_load(hb + FS_HB_STATE);

	*bad += state != FS_HB_FREE && state != FS_HB_USED;
	if (state == FS_HB_USED)
		tell_heartbeat(c, hb, vol);
	if ((state == FS_HB_FREE || state == FS_HB_USED) && le64_load(hb + FS_HB_SELF) != vol)
		check_tell(c, VMFS_WARNING, "heartbeat-self",
			   "the heartbeat at %llu says that it belongs to %llu",
			   (unsigned long long)vol, (unsigned long long)le64_load(hb + FS_HB_SELF));
}

int check_heartbeats(struct check *c)
{
	const struct vmfs_geometry *g = &c->v->plan.geo;
	unsigned nr = g->version == 6 ? FS_NR_HEARTBEATS_6 : FS_NR_HEARTBEATS_5, bad = 0;
	uint8_t hb[FS_HB_SIZE];

	for (unsigned i = 0; i < nr; i++) {
		uint64_t vol = FS_HEARTBEATS + (uint64_t)i * g->md_align;

		if (volume_read(c->v, hb, sizeof(hb), vol) < 0)
			bad++;
		else
			check_heartbeat(c, hb, vol, &bad);
	}
	if (bad)
		check_tell(c, VMFS_WARNING, "heartbeat-state",
			   "%u of %u heartbeats are not readable as such", bad, nr);
	return check_stopped(c) ? -ECANCELED : 0;
}

/* --- clusters ----------------------------------------------------------------------------------
 */

static const uint32_t lock_type[VMFS_NR_RES] = {
	[VMFS_RES_FBB] = FS_LOCK_LFB, [VMFS_RES_SFB] = FS_LOCK_FB, [VMFS_RES_FDC] = FS_LOCK_FDC,
	[VMFS_RES_PBC] = FS_LOCK_PB,  [VMFS_RES_SBC] = FS_LOCK_SB, [VMFS_RES_PB2] = FS_LOCK_PB2,
	[VMFS_RES_JBC] = FS_LOCK_JB,
};

struct cluster {
	enum vmfs_resource_kind kind;
	uint64_t number, vol;
	uint8_t lock[FS_L_SIZE];
	uint8_t meta[4096];
};

struct counters {
	uint64_t number;
	uint32_t total, free, next;
};

static void load_counters(const struct vmfs_geometry *g, const uint8_t *m, struct counters *n)
{
	if (g->version == 6)
		*n = (struct counters){le64_load(m + FS_C6_NUMBER), le16_load(m + FS_C6_TOTAL),
				       le16_load(m + FS_C6_FREE), le32_load(m + FS_C6_NEXT)};
	else
		*n = (struct counters){le32_load(m + FS_C5_NUMBER), le32_load(m + FS_C5_TOTAL),
				       le32_load(m + FS_C5_FREE), le32_load(m + FS_C5_NEXT)};
}

static unsigned state_of(const struct vmfs_geometry *g, const uint8_t *m, unsigned bits, uint32_t i)
{
	const uint8_t *map = m + (g->version == 6 ? FS_C6_BITMAP : FS_C5_BITMAP);
	uint32_t bit = i * bits;

	return (unsigned)(le16_load(map + bit / 8) >> bit % 8) & ((1u << bits) - 1);
}

/* Fills in what the bitmap gives out; how many it calls free. */
static uint32_t take_bitmap(struct check *c, const struct cluster *k, uint32_t total)
{
	const struct vmfs_geometry *g = &c->v->plan.geo;
	const struct vmfs_resource *r = &g->res[k->kind];
	struct use *u = &c->use[k->kind];
	uint32_t nr_free = 0;

	for (uint32_t i = 0; i < total; i++) {
		uint64_t index = k->number * r->per_cluster + i;
		unsigned state = state_of(g, k->meta, r->bits, i);
		bool split = r->bits == FS_LFB_BITS && state == FS_LFB_SPLIT;

		nr_free += state && !split;
		if (!state && index < u->nr)
			bit_set(u->allocated, index);
	}
	return nr_free;
}

/* Small blocks are owned by descriptors, and the counts must add up to what is used. */
static void check_owners(struct check *c, const struct cluster *k, const struct counters *n)
{
	uint32_t pairs = le16_load(k->meta + FS_C6_AFFINITY), sum = 0;

	if (k->kind != VMFS_RES_SFB || c->v->plan.geo.version != 6 ||
	    FS_C6_SFB_OWNERS + 8ull * pairs > sizeof(k->meta))
		return;
	for (uint32_t i = 0; i < pairs; i++)
		sum += le32_load(k->meta + FS_C6_SFB_OWNERS + 8ull * i + 4);
	if (pairs && sum != n->total - n->free)
		check_tell(c, VMFS_INFO, "affinity",
			   "cluster %llu of file blocks uses %u of them; its owners add up to %u",
			   (unsigned long long)k->number, n->total - n->free, sum);
}

static const char *header_fault(const struct check *c, const struct cluster *k,
				const struct counters *n)
{
	const struct vmfs_geometry *g = &c->v->plan.geo;
	const struct vmfs_resource *r = &g->res[k->kind];
	uint32_t type = le32_load(k->lock + FS_L_TYPE), want = lock_type[k->kind];
	uint32_t map = g->version == 6 ? FS_C6_BITMAP : FS_C5_BITMAP;

	if (g->version != 6 && k->kind == VMFS_RES_FBB)
		want = FS_LOCK_FB;
	if (type != want)
		return "it has not the lock of such a header";
	if (le64_load(k->lock + FS_L_SELF) != k->vol)
		return "it says that it belongs elsewhere";
	if (g->version == 6 && le32_load(k->meta + FS_C6_SIGNATURE) != FS_RCMD)
		return "its signature is missing";
	if (n->number != k->number)
		return "it is numbered otherwise";
	if (!n->total || n->total > r->per_cluster ||
	    map + ((uint64_t)n->total * r->bits + 7) / 8 + 1 > g->md_align)
		return "it counts more resources than there are in a cluster";
	return NULL;
}

static bool count_unknown(const struct check *c, const struct cluster *k)
{
	return k->number && c->v->plan.geo.res[k->kind].nr_resources == RESOURCES_UNKNOWN;
}

/* The bitmap of one that is not readable is left out of all comparisons.  False: how many there are
 * is not known, and this is none. */
static bool check_cluster(struct check *c, const struct cluster *k)
{
	const char *file = resource_file_name[k->kind], *fault;
	unsigned long long number = k->number;
	struct counters n;
	uint32_t nr_free;

	load_counters(&c->v->plan.geo, k->meta, &n);
	fault = header_fault(c, k, &n);
	if (fault && count_unknown(c, k))
		return false;
	if (fault) {
		check_tell(c, VMFS_DAMAGE, "cluster-header", "the header of cluster %llu of %s: %s",
			   number, file, fault);
		bit_set(c->use[k->kind].unknown, k->number);
		return true;
	}
	nr_free = take_bitmap(c, k, n.total);
	if (nr_free != n.free)
		check_tell(c, VMFS_WARNING, "cluster-count",
			   "cluster %llu of %s says that %u are free; its bitmap says %u", number,
			   file, n.free, nr_free);
	check_owners(c, k, &n);
	return true;
}

static int read_cluster(struct check *c, struct cluster *k)
{
	const struct vmfs_geometry *g = &c->v->plan.geo;
	uint64_t off, len = g->res[k->kind].header_size;
	struct vmfs_range range;
	int r = resource_header(g, k->kind, k->number, &off);

	if (!r && off >= c->v->sys[k->kind]->length)
		r = -ERANGE;
	if (!r)
		r = file_range(c->v, c->v->sys[k->kind], off, len, 0, &range);
	if (!r && (range.kind != VMFS_RANGE_DATA || range.len < len))
		r = -ENODATA;
	if (r < 0)
		return r;
	k->vol = range.vol;
	r = volume_read(c->v, k->lock, sizeof(k->lock), range.vol);
	return r < 0 ? r : volume_read(c->v, k->meta, g->md_align, range.vol + g->md_align);
}

static int check_kind(struct check *c, struct cluster *k)
{
	uint32_t per = c->v->plan.geo.res[k->kind].per_cluster;

	for (k->number = 0; k->number * per < c->use[k->kind].nr; k->number++) {
		if (check_stopped(c))
			return -ECANCELED;
		if (!read_cluster(c, k)) {
			if (check_cluster(c, k))
				continue;
			c->use[k->kind].nr = k->number * per;
			return 0;
		}
		if (count_unknown(c, k)) {
			c->use[k->kind].nr = k->number * per;
			return 0;
		}
		bit_set(c->use[k->kind].unknown, k->number);
		check_tell(c, VMFS_DAMAGE, "cluster-header",
			   "the header of cluster %llu of %s is not readable",
			   (unsigned long long)k->number, resource_file_name[k->kind]);
	}
	return 0;
}

/* Hosts that have the volume open hold one each; so may ones that were cut off. */
static void tell_journals(struct check *c)
{
	const struct use *u = &c->use[VMFS_RES_JBC];
	uint64_t nr = 0;

	for (uint64_t i = 0; i < u->nr; i++)
		nr += bit_get(u->allocated, i);
	if (nr)
		check_tell(c, VMFS_INFO, "journal",
			   "%llu of %llu journal blocks are given to hosts; what they hold is not "
			   "replayed",
			   (unsigned long long)nr, (unsigned long long)u->nr);
}

int check_clusters(struct check *c)
{
	struct cluster *k = calloc(1, sizeof(*k));
	int r = k ? 0 : -ENOMEM;

	for (unsigned i = 0; i < VMFS_NR_RES && !r; i++) {
		if (!c->use[i].nr)
			continue;
		k->kind = i;
		r = check_kind(c, k);
	}
	free(k);
	tell_journals(c);
	return r;
}
