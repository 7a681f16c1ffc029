/* vmfs/lvm.c - an extent's LVM metadata: its header, the volume it is a part of, and which of its
 * bytes are which of the volume.  Layout: vmfs/ondisk.h. */
#include "vmfs/internal.h"

#include <stdio.h>
#include <stdlib.h>

enum { MAX_CHAIN = 64, PE_BATCH = 512 };

void vmfs_uuid_text(const struct vmfs_uuid *u, char text[VMFS_UUID_TEXT])
{
	snprintf(text, VMFS_UUID_TEXT, "%08x-%08x-%04x-%02x%02x%02x%02x%02x%02x", le32_load(u->b),
		 le32_load(u->b + 4), le16_load(u->b + 8), u->b[10], u->b[11], u->b[12], u->b[13],
		 u->b[14], u->b[15]);
}

/* --- the header --------------------------------------------------------------------------------
 */

static int place_read(struct blk *dev, const struct vmfs_place *place, void *buf, size_t len,
		      uint64_t off)
{
	if (!range_inside(off, len, place->len) ||
	    !range_inside(place->start, place->len, blk_size(dev)))
		return -ERANGE;
	return blk_read(dev, buf, len, place->start + off);
}

/* The volume table and the maps come after the header's block. */
static uint32_t header_block(const uint8_t *h)
{
	uint32_t align = le32_load(h + LVM_H_MD_ALIGN);

	if (le32_load(h + LVM_H_MAJOR) < 6)
		return FS_SECTOR;
	return is_pow2(align) && align >= FS_SECTOR && align <= 64 * KiB ? align : 4096;
}

static void parse_header(struct vmfs_lvm_header *out, const uint8_t *h, uint64_t device_len)
{
	out->major = le32_load(h + LVM_H_MAJOR);
	out->minor = le32_load(h + LVM_H_MINOR);
	out->lite = le32_load(h + LVM_H_FLAGS) & 1;
	memcpy(out->device.b, h + LVM_H_UUID, sizeof(out->device.b));
	out->total_bytes = le64_load(h + LVM_H_TOTAL_BYTES);
	out->data_offset = le64_load(h + LVM_H_DATA_OFFSET);
	if (!out->data_offset || out->data_offset >= device_len)
		out->data_offset = LVM_DATA;
	out->nr_pes = le32_load(h + LVM_H_PES);
}

static void parse_volume(struct vmfs_lvm_header *out, const uint8_t *e)
{
	memcpy(out->volume.b, e + LVM_V_UUID, sizeof(out->volume.b));
	out->snap_id = le32_load(e + LVM_V_SNAP_ID);
	memcpy(out->label, e + LVM_V_NAME, LVM_VOLUME_NAME);
	out->label[LVM_VOLUME_NAME] = 0;
	out->volume_size = le64_load(e + LVM_V_SIZE);
	out->first_pe = le64_load(e + LVM_V_FIRST_PE);
	out->last_pe = le64_load(e + LVM_V_LAST_PE);
	out->nr_devices = le32_load(e + LVM_V_DEVICES);
	out->copy = le32_load(e + LVM_V_STATE) == LVM_RESIG_PENDING ||
		    le32_load(e + LVM_V_STATE) == LVM_RESIG_DONE;
}

/* An LVM device belongs to one volume; the table has room for more, which nobody uses. */
static int read_volume(struct blk *dev, const struct vmfs_place *place, const uint8_t *h,
		       struct vmfs_lvm_header *out)
{
	static const uint8_t none[16];
	uint32_t nr = MIN(le32_load(h + LVM_H_VOLUMES), LVM_MAX_VOLUMES);
	uint8_t e[LVM_VOLUME_SIZE];
	int r;

	for (uint32_t i = 0; i < MAX(nr, 1u); i++) {
		r = place_read(dev, place, e, sizeof(e),
			       LVM_HEADER + header_block(h) + (uint64_t)i * sizeof(e));
		if (r < 0)
			return r;
		if (memcmp(e + LVM_V_UUID, none, sizeof(none))) {
			parse_volume(out, e);
			return 0;
		}
	}
	return -EUCLEAN;
}

int vmfs_lvm_read(struct blk *dev, const struct vmfs_place *place, struct vmfs_lvm_header *h,
		  struct error *err)
{
	uint8_t b[LVM_H_SIZE];
	int r = place_read(dev, place, b, sizeof(b), LVM_HEADER);

	*h = (struct vmfs_lvm_header){0};
	if (r == -ERANGE || (!r && le32_load(b + LVM_H_MAGIC) != LVM_MAGIC))
		return err_set(err, EINVAL, "there is no VMFS extent: no LVM header at its place");
	if (r < 0)
		return err_errno(err, -r, "cannot read the LVM header");
	parse_header(h, b, place->len);
	r = read_volume(dev, place, b, h);
	if (r == -EUCLEAN)
		return err_set(err, EUCLEAN, "the LVM header names no volume");
	return r < 0 ? err_errno(err, -r, "cannot read the table of volumes") : 0;
}

/* --- physical extents --------------------------------------------------------------------------
 */

int runs_add(struct vmfs_plan *p, const struct vmfs_run *run)
{
	struct vmfs_run *last = p->nr_runs ? &p->run[p->nr_runs - 1] : NULL, *more;

	if (last && last->dev == run->dev && last->vol + last->len == run->vol &&
	    last->dev_off + last->len == run->dev_off) {
		last->len += run->len;
		return 0;
	}
	if (p->nr_runs >= VMFS_MAX_RUNS)
		return -EFBIG;
	if (is_pow2(p->nr_runs) || !p->nr_runs) {
		more = realloc(p->run, 2 * MAX(p->nr_runs, 1u) * sizeof(*more));
		if (!more)
			return -ENOMEM;
		p->run = more;
	}
	p->run[p->nr_runs++] = *run;
	return 0;
}

static int add_pe(struct vmfs_plan *p, const struct lvm_extent *e, unsigned dev, const uint8_t *pe)
{
	struct vmfs_run run = {
		.vol = le64_load(pe + LVM_PE_VOLUME_OFFSET),
		.len = le64_load(pe + LVM_PE_LENGTH),
		.dev_off = le64_load(pe + LVM_PE_DEVICE_OFFSET),
		.dev = dev,
	};

	if (pe[LVM_PE_USED] != 1)
		return 0;
	if (!run.len || run.len > INT64_MAX || run.vol > INT64_MAX - run.len ||
	    run.dev_off >= e->place.len) {
		plan_note(p, "an entry of a table of physical extents points outside its device");
		return 0;
	}
	run.len = MIN(run.len, e->place.len - run.dev_off);
	run.dev_off += e->place.start;
	return runs_add(p, &run);
}

/* A map: its bitmap is skipped, the entries say themselves whether they are used. */
static int add_map(struct vmfs_plan *p, const struct lvm_extent *e, unsigned dev, uint64_t table,
		   uint32_t nr)
{
	uint8_t *buf = malloc(PE_BATCH * LVM_PE_STRIDE);
	int r = buf ? 0 : -ENOMEM;

	for (uint32_t i = 0; i < nr && !r; i += PE_BATCH) {
		uint32_t n = MIN(nr - i, (uint32_t)PE_BATCH);

		r = place_read(e->dev, &e->place, buf, (size_t)n * LVM_PE_STRIDE,
			       table + (uint64_t)i * LVM_PE_STRIDE);
		for (uint32_t k = 0; k < n && !r; k++)
			r = add_pe(p, e, dev, buf + (size_t)k * LVM_PE_STRIDE);
	}
	free(buf);
	return r;
}

/* Maps in a row from `at` on; *left entries are still to come. */
static int add_maps(struct vmfs_plan *p, const struct lvm_extent *e, unsigned dev, uint64_t at,
		    uint32_t nr, uint32_t block, uint32_t *left)
{
	uint64_t bitmap = MAX(block, (uint32_t)LVM_BITMAP_MIN);
	int r = 0;

	for (uint32_t i = 0; i < nr && *left && !r; i++) {
		uint32_t n = MIN(*left, (uint32_t)LVM_PES_PER_MAP);

		r = add_map(p, e, dev, at + bitmap, n);
		at += bitmap + (uint64_t)LVM_PES_PER_MAP * LVM_PE_STRIDE;
		*left -= n;
	}
	return r;
}

static int add_chain(struct vmfs_plan *p, const struct lvm_extent *e, unsigned dev, uint64_t at,
		     uint32_t block, uint32_t *left)
{
	uint8_t x[LVM_X_SIZE];
	int r = 0;

	for (unsigned i = 0; i < MAX_CHAIN && at && *left && !r; i++) {
		r = place_read(e->dev, &e->place, x, sizeof(x), at);
		if (!r && le32_load(x + LVM_X_MAGIC) != LVM_MAGIC)
			r = -EUCLEAN;
		if (!r)
			r = add_maps(p, e, dev, le64_load(x + LVM_X_DATA_OFFSET),
				     MIN(le32_load(x + LVM_X_PE_MAPS), 4096u), block, left);
		at = le64_load(x + LVM_X_NEXT);
	}
	return r;
}

/* Without a table: the data of an extent lie in one piece, as ESXi makes them. */
static int add_one_run(struct vmfs_plan *p, const struct lvm_extent *e, unsigned dev)
{
	uint64_t room = e->place.len > e->h.data_offset ? e->place.len - e->h.data_offset : 0;
	struct vmfs_run run = {.dev = dev, .dev_off = e->place.start + e->h.data_offset};

	if (e->h.first_pe > INT64_MAX / LVM_PE_SIZE || !room)
		return -EUCLEAN;
	run.vol = e->h.first_pe * LVM_PE_SIZE;
	run.len = room;
	if (e->h.last_pe >= e->h.first_pe && e->h.last_pe - e->h.first_pe < room / LVM_PE_SIZE)
		run.len = (e->h.last_pe - e->h.first_pe + 1) * LVM_PE_SIZE;
	if (e->h.nr_devices <= 1 && e->h.volume_size)
		run.len = MIN(room, e->h.volume_size);
	plan_note(p, "a table of physical extents is lost: that device's data are taken for one "
		     "piece");
	return runs_add(p, &run);
}

int lvm_add_runs(struct vmfs_plan *p, const struct lvm_extent *e, unsigned dev)
{
	unsigned before = p->nr_runs;
	uint32_t left, maps, block;
	uint8_t h[LVM_H_SIZE];
	int r = place_read(e->dev, &e->place, h, sizeof(h), LVM_HEADER);

	if (r < 0)
		return r;
	block = header_block(h);
	left = e->h.nr_pes;
	maps = MAX(le32_load(h + LVM_H_PE_MAPS), 1u);
	r = add_maps(p, e, dev, LVM_HEADER + LVM_PE_MAPS + block,
		     MIN(maps, (uint32_t)LVM_MAPS_IN_ROW), block, &left);
	if (!r && left)
		r = add_chain(p, e, dev, le64_load(h + LVM_H_EXT_META), block, &left);
	if (r < 0 && r != -ENOMEM)
		plan_note(p, "a table of physical extents cannot be read to its end: %s",
			  strerror(-r));
	if (r == -ENOMEM || p->nr_runs != before)
		return r == -ENOMEM ? r : 0;
	return add_one_run(p, e, dev);
}

/* --- the run table -----------------------------------------------------------------------------
 */

static int by_vol(const void *a, const void *b)
{
	const struct vmfs_run *x = a, *y = b;

	if (x->vol != y->vol)
		return x->vol < y->vol ? -1 : 1;
	return x->dev < y->dev ? -1 : x->dev > y->dev;
}

/* Cut to what is there; false: nothing is. */
static bool cut_run(const struct vmfs_plan *p, struct vmfs_run *run)
{
	uint64_t size;

	if (run->dev >= p->nr_devs || run->len > INT64_MAX || run->vol > INT64_MAX - run->len)
		return false;
	if (!p->dev[run->dev])
		return run->len;
	size = blk_size(p->dev[run->dev]);
	if (run->dev_off >= size)
		return false;
	run->len = MIN(run->len, size - run->dev_off);
	return run->len;
}

void runs_settle(struct vmfs_plan *p)
{
	unsigned n = 0;

	if (p->nr_runs)
		qsort(p->run, p->nr_runs, sizeof(*p->run), by_vol);
	for (unsigned i = 0; i < p->nr_runs; i++) {
		struct vmfs_run run = p->run[i], *last = n ? &p->run[n - 1] : NULL;
		uint64_t end = last ? last->vol + last->len : 0;

		if (!cut_run(p, &run))
			continue;
		if (run.vol < end) {
			plan_note(p, "two extents claim the same place of the volume (at %llu)",
				  (unsigned long long)run.vol);
			continue;
		}
		if (last && last->dev == run.dev && end == run.vol &&
		    last->dev_off + last->len == run.dev_off)
			last->len += run.len;
		else
			p->run[n++] = run;
	}
	p->nr_runs = n;
}
