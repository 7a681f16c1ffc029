/* vmfs/plan.c - from devices to a volume: finds the extents, makes the plan and opens it. */
#include "vmfs/internal.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

enum { MAX_EXTENTS = 4 * VMFS_MAX_DEVICES, PLACES_PER_DEVICE = 16 };

/* --- notes -------------------------------------------------------------------------------------
 */

void plan_note(struct vmfs_plan *p, const char *fmt, ...)
{
	size_t had = p->notes ? strlen(p->notes) : 0, len;
	char line[256], *more;
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	len = strlen(line);
	if (had + len > VMFS_NOTES_MAX || (p->notes && strstr(p->notes, line)))
		return;
	more = realloc(p->notes, had + len + 2);
	if (!more)
		return;
	memcpy(more + had, line, len);
	memcpy(more + had + len, "\n", 2);
	p->notes = more;
}

void vmfs_plan_free(struct vmfs_plan *p)
{
	free(p->run);
	free(p->fd);
	free(p->notes);
	for (unsigned i = 0; i < VMFS_NR_RES; i++)
		free(p->piece[i]);
	*p = (struct vmfs_plan){0};
}

/* --- finding extents ---------------------------------------------------------------------------
 */

struct search {
	struct lvm_extent e[MAX_EXTENTS];
	unsigned nr;
	bool device_error;
	struct error err; /* why the last place was none */
};

static void search_device(struct search *s, struct blk *dev)
{
	struct vmfs_place place[PLACES_PER_DEVICE];
	int n = vmfs_places(dev, place, PLACES_PER_DEVICE);

	for (int i = 0; i < n && s->nr < MAX_EXTENTS; i++) {
		struct lvm_extent *e = &s->e[s->nr];
		int r;

		e->dev = dev;
		e->place = place[i];
		r = vmfs_lvm_read(dev, &place[i], &e->h, &s->err);
		s->nr += r == 0;
		s->device_error |= r == -EIO;
	}
}

static bool same_volume(const struct vmfs_lvm_header *a, const struct vmfs_lvm_header *b)
{
	return !memcmp(a->volume.b, b->volume.b, sizeof(a->volume.b));
}

/* The devices the volume of extent i says it has, and how many of them are here. */
static unsigned count_devices(const struct search *s, unsigned i, unsigned *here)
{
	unsigned wanted = 1;

	*here = 0;
	for (unsigned k = 0; k < s->nr; k++) {
		bool twice = false;

		if (!same_volume(&s->e[i].h, &s->e[k].h))
			continue;
		for (unsigned j = 0; j < k && !twice; j++)
			twice = same_volume(&s->e[j].h, &s->e[k].h) &&
				s->e[j].h.first_pe == s->e[k].h.first_pe;
		*here += !twice;
		wanted = MAX(wanted, s->e[k].h.nr_devices);
	}
	return MIN(wanted, (unsigned)VMFS_MAX_DEVICES);
}

/* Which volume: the one asked for, else the first complete one, else the first.  -1: none. */
static int choose(const struct search *s, const struct vmfs_uuid *uuid)
{
	unsigned here;

	for (unsigned i = 0; i < s->nr; i++) {
		if (uuid && !memcmp(uuid->b, s->e[i].h.volume.b, sizeof(uuid->b)))
			return (int)i;
		if (!uuid && count_devices(s, i, &here) <= here && !s->e[i].h.copy)
			return (int)i;
	}
	return uuid || !s->nr ? -1 : 0;
}

/* --- the plan ----------------------------------------------------------------------------------
 */

static int by_first_pe(const void *a, const void *b)
{
	const struct lvm_extent *const *x = a, *const *y = b;

	if ((*x)->h.first_pe != (*y)->h.first_pe)
		return (*x)->h.first_pe < (*y)->h.first_pe ? -1 : 1;
	return 0;
}

/* Its extents in order, each once. */
static unsigned collect(struct search *s, const struct lvm_extent *first, struct lvm_extent **list,
			struct vmfs_plan *p)
{
	unsigned n = 0, kept = 0;

	for (unsigned i = 0; i < s->nr && n < MAX_EXTENTS; i++)
		if (same_volume(&first->h, &s->e[i].h))
			list[n++] = &s->e[i];
	qsort(list, n, sizeof(*list), by_first_pe);
	for (unsigned i = 0; i < n && kept < VMFS_MAX_DEVICES; i++) {
		if (kept && list[kept - 1]->h.first_pe == list[i]->h.first_pe)
			plan_note(p, "an extent is there twice: one of them is taken");
		else
			list[kept++] = list[i];
	}
	return kept;
}

static int add_extents(struct vmfs_plan *p, struct lvm_extent **list, unsigned n)
{
	int r = 0;

	for (unsigned i = 0; i < n && !r; i++) {
		p->dev[i] = list[i]->dev;
		p->nr_devs = MAX(p->nr_devs, i + 1);
		p->geo.size = MAX(p->geo.size, list[i]->h.volume_size);
		r = lvm_add_runs(p, list[i], i);
	}
	return r;
}

/* A volume over several devices has the size of all of them; its records may each say their own
 * part only. */
static void settle_size(struct vmfs_plan *p)
{
	const struct vmfs_run *last = p->nr_runs ? &p->run[p->nr_runs - 1] : NULL;

	if (last && last->vol + last->len > p->geo.size)
		p->geo.size = last->vol + last->len;
}

static int check_complete(struct vmfs_plan *p, struct lvm_extent **list, unsigned n, unsigned flags,
			  struct error *err)
{
	unsigned wanted = 1;
	bool gap = n && list[0]->h.first_pe != 0;

	for (unsigned i = 0; i < n; i++) {
		wanted = MAX(wanted, list[i]->h.nr_devices);
		gap |= i && list[i]->h.first_pe != list[i - 1]->h.last_pe + 1;
		if (list[i]->h.copy && !(flags & VMFS_OTHER_SNAPSHOT))
			return err_set(err, ENODEV,
				       "an extent of volume '%s' calls itself a copy whose "
				       "signature is being changed; it is read only when asked for",
				       list[i]->h.label);
	}
	wanted = MIN(wanted, (unsigned)VMFS_MAX_DEVICES);
	if (n >= wanted && !gap)
		return 0;
	if (!(flags & VMFS_ALLOW_MISSING) && n < wanted)
		return err_set(err, ENODEV,
			       "volume '%s' lies on %u devices and %u of them are here: give the "
			       "others too, or allow them to be missing",
			       list[0]->h.label, wanted, n);
	plan_note(p, "%u of the volume's %u devices are here", n, wanted);
	p->nr_devs = MAX(p->nr_devs, wanted); /* the missing ones are NULL */
	return 0;
}

static int read_superblock(struct vmfs *v, struct error *err)
{
	struct vmfs_plan *p = &v->plan;
	uint64_t size = p->geo.size;
	uint8_t sb[FS_S_SIZE];
	struct vmfs_geometry g;
	int r = volume_read(v, sb, sizeof(sb), FS_SUPERBLOCK);

	if (r < 0)
		return err_errno(err, -r, "cannot read the superblock");
	if (geometry_parse(&g, sb, p) < 0)
		return err_set(err, EUCLEAN,
			       "there is no VMFS superblock on the volume; a scan can look for "
			       "what is left of it");
	g.size = size;
	p->geo = g;
	if (g.version == 5 && !g.dense) {
		v->extra[0] = (struct vmfs_fd_place){le32_load(sb + FS_S_PB2_FD),
						     le64_load(sb + FS_S_PB2_VOL)};
		v->extra[1] = (struct vmfs_fd_place){le32_load(sb + FS_S_SDD_FD),
						     le64_load(sb + FS_S_SDD_VOL)};
		/* Made as VMFS3: these two came later, wherever there was room. */
		v->pb2_fd = v->extra[0].vol ? v->extra[0].addr : 0;
		for (unsigned i = 0; i < 2; i++)
			if (v->extra[i].addr && v->extra[i].vol)
				v->extra[v->nr_extra++] = v->extra[i];
	}
	return 0;
}

/* --- opening -----------------------------------------------------------------------------------
 */

static int volume_new(struct vmfs **out, struct error *err)
{
	struct vmfs *v = calloc(1, sizeof(*v));
	int r = v ? cache_init(v) : -ENOMEM;

	if (r < 0) {
		free(v);
		return err_set(err, ENOMEM, "out of memory for a volume");
	}
	*out = v;
	return 0;
}

void vmfs_close(struct vmfs *v)
{
	if (!v)
		return;
	for (unsigned i = 0; i < VMFS_NR_RES; i++)
		free(v->sys[i]);
	cache_fini(v);
	vmfs_plan_free(&v->plan);
	free(v);
}

const struct vmfs_plan *vmfs_plan(const struct vmfs *v)
{
	return &v->plan;
}

/* What vmfs_assemble and vmfs_open have in common: geometry and runs are in the plan. */
static int finish(struct vmfs *v, struct error *err)
{
	int r = resource_open_all(v);

	return r < 0 ? err_errno(err, -r, "cannot open the volume") : 0;
}

static int check_geometry(const struct vmfs_geometry *g, struct error *err)
{
	if ((g->version != 3 && g->version != 5 && g->version != 6) ||
	    !is_pow2(g->file_block_size) || g->file_block_size < 64 * KiB ||
	    g->file_block_size > 64 * MiB || !is_pow2(g->ptr_per_block) || g->ptr_per_block < 64 ||
	    g->ptr_per_block > 131072 || g->lfb_shift > 20 ||
	    g->md_align != (g->version == 6 ? 4096u : 512u) ||
	    g->fd_size != (g->version == 6 ? 8192u : 2048u))
		return err_set(err, EINVAL, "the geometry of the volume cannot be");
	return 0;
}

int vmfs_assemble(struct vmfs **out, struct vmfs_plan *plan, struct error *err)
{
	struct vmfs *v = NULL;
	int r = check_geometry(&plan->geo, err);

	if (!r)
		r = volume_new(&v, err);
	if (r < 0) {
		vmfs_plan_free(plan);
		return r;
	}
	v->plan = *plan;
	*plan = (struct vmfs_plan){0};
	runs_settle(&v->plan);
	r = finish(v, err);
	if (r < 0) {
		vmfs_close(v);
		return r;
	}
	*out = v;
	return 0;
}

static int check_root(struct vmfs *v, struct error *err)
{
	struct vmfs_inode *in = malloc(sizeof(*in));
	int r = in ? vmfs_inode_read(v, VMFS_FD_ROOT, in, err)
		   : err_set(err, ENOMEM, "out of memory for a volume");

	free(in);
	return r < 0 ? err_wrap(err, r, "the volume's root is lost") : 0;
}

static int open_volume(struct vmfs *v, struct search *s, int which, unsigned flags,
		       struct error *err)
{
	struct lvm_extent **list = calloc(MAX_EXTENTS, sizeof(*list));
	struct vmfs_plan *p = &v->plan;
	unsigned n;
	int r;

	if (!list)
		return err_set(err, ENOMEM, "out of memory for a volume");
	n = collect(s, &s->e[which], list, p);
	r = check_complete(p, list, n, flags, err);
	if (!r) {
		r = add_extents(p, list, n);
		if (r < 0)
			err_errno(err, -r, "cannot read the tables of physical extents");
	}
	free(list);
	if (r < 0)
		return r;
	if (p->nr_devs < VMFS_MAX_DEVICES && n < p->nr_devs)
		plan_note(p, "what lies on the missing devices cannot be read");
	runs_settle(p);
	settle_size(p);
	r = read_superblock(v, err);
	if (!r)
		r = finish(v, err);
	return r < 0 ? r : check_root(v, err);
}

static int none_found(const struct search *s, const struct vmfs_uuid *uuid, unsigned n,
		      struct error *err)
{
	char text[VMFS_UUID_TEXT];

	if (uuid && s->nr) {
		vmfs_uuid_text(uuid, text);
		return err_set(err, ENOENT, "there is no volume %s on what was given", text);
	}
	if (s->device_error)
		return err_set(err, EIO, "%s", s->err.msg);
	return err_set(err, EINVAL, "%s is no VMFS volume: there is no LVM header on %s",
		       n == 1 ? "this" : "this set", n == 1 ? "it" : "any of them");
}

int vmfs_open(struct vmfs **out, struct blk *const *dev, unsigned n, const struct vmfs_uuid *uuid,
	      unsigned flags, struct error *err)
{
	struct search *s = calloc(1, sizeof(*s));
	struct vmfs *v = NULL;
	int which, r;

	if (!s)
		return err_set(err, ENOMEM, "out of memory for a volume");
	for (unsigned i = 0; i < n; i++)
		search_device(s, dev[i]);
	which = choose(s, uuid);
	r = which < 0 ? none_found(s, uuid, n, err) : volume_new(&v, err);
	if (!r)
		r = open_volume(v, s, which, flags, err);
	free(s);
	if (r < 0) {
		vmfs_close(v);
		return r;
	}
	*out = v;
	return 0;
}
