/* vmfs/volume.c - bytes of the logical volume: the run table and a cache for metadata. */
#include "vmfs/internal.h"

#include <stdlib.h>

static const struct vmfs_run *find_run(const struct vmfs_plan *p, uint64_t vol)
{
	unsigned lo = 0, hi = p->nr_runs;

	while (lo < hi) {
		unsigned mid = lo + (hi - lo) / 2;

		if (p->run[mid].vol + p->run[mid].len <= vol)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < p->nr_runs && p->run[lo].vol <= vol ? &p->run[lo] : NULL;
}

uint64_t volume_end(const struct vmfs_plan *p)
{
	const struct vmfs_run *last = p->nr_runs ? &p->run[p->nr_runs - 1] : NULL;

	return MAX(p->geo.size, last ? last->vol + last->len : 0);
}

int vmfs_locate(struct vmfs *v, uint64_t vol, uint64_t *len, unsigned *dev, uint64_t *dev_off)
{
	const struct vmfs_run *r = find_run(&v->plan, vol);

	if (!r || !v->plan.dev[r->dev])
		return vol < volume_end(&v->plan) ? -ENODATA : -ERANGE;
	*len = MIN(*len, r->vol + r->len - vol);
	*dev = r->dev;
	*dev_off = r->dev_off + (vol - r->vol);
	return 0;
}

static int read_direct(struct vmfs *v, uint8_t *buf, size_t len, uint64_t vol)
{
	uint64_t step, dev_off;
	unsigned dev;
	int r = 0;

	for (; len && !r; len -= step, buf += step, vol += step) {
		step = len;
		r = vmfs_locate(v, vol, &step, &dev, &dev_off);
		if (!r)
			r = blk_read(v->plan.dev[dev], buf, step, dev_off);
	}
	return r;
}

/* --- the cache ---------------------------------------------------------------------------------
 */

int cache_init(struct vmfs *v)
{
	return -pthread_mutex_init(&v->cache.lock, NULL);
}

void cache_fini(struct vmfs *v)
{
	for (unsigned i = 0; i < CACHE_SETS; i++)
		for (unsigned k = 0; k < CACHE_WAYS; k++)
			free(v->cache.page[i][k].bytes);
	pthread_mutex_destroy(&v->cache.lock);
}

/* The page, or the one to be replaced by it. */
static struct cache_page *page_slot(struct vmfs_cache *c, uint64_t vol)
{
	struct cache_page *set = c->page[vol / CACHE_PAGE % CACHE_SETS], *oldest = set;

	for (unsigned i = 0; i < CACHE_WAYS; i++) {
		if (set[i].used && set[i].vol == vol)
			return &set[i];
		if (set[i].used < oldest->used)
			oldest = &set[i];
	}
	return oldest;
}

/* Only pages that lie on a device in one piece; NULL: read it without. */
static struct cache_page *page_get(struct vmfs *v, uint64_t vol)
{
	struct cache_page *p = page_slot(&v->cache, vol);
	uint64_t len = CACHE_PAGE, dev_off;
	unsigned dev;

	if (!p->used || p->vol != vol) {
		p->used = 0;
		if (vmfs_locate(v, vol, &len, &dev, &dev_off) < 0 || len < CACHE_PAGE)
			return NULL;
		if (!p->bytes)
			p->bytes = malloc(CACHE_PAGE);
		if (!p->bytes || blk_read(v->plan.dev[dev], p->bytes, CACHE_PAGE, dev_off) < 0)
			return NULL;
		p->vol = vol;
	}
	p->used = ++v->cache.clock;
	return p;
}

int volume_read(struct vmfs *v, void *buf, size_t len, uint64_t vol)
{
	uint8_t *to = buf;
	size_t step;
	int r = 0;

	if (len > UINT64_MAX - vol)
		return -ERANGE;
	pthread_mutex_lock(&v->cache.lock);
	for (; len && !r; len -= step, to += step, vol += step) {
		struct cache_page *p = page_get(v, ALIGN_DOWN(vol, CACHE_PAGE));

		step = MIN(len, CACHE_PAGE - vol % CACHE_PAGE);
		if (p)
			memcpy(to, p->bytes + vol % CACHE_PAGE, step);
		else
			r = read_direct(v, to, step, vol);
	}
	pthread_mutex_unlock(&v->cache.lock);
	return r;
}

int vmfs_read_volume(struct vmfs *v, void *buf, size_t len, uint64_t vol)
{
	if (len > UINT64_MAX - vol)
		return -ERANGE;
	return len <= CACHE_PAGE ? volume_read(v, buf, len, vol) : read_direct(v, buf, len, vol);
}
