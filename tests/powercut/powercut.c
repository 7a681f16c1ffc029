/* powercut.c - does an image survive the power going at any moment?
 *
 *   powercut CUTS [CASE [SEED]]
 *
 * Random operations run on an image that lives in a file in memory, which remembers every change
 * and every flush.  Then the file is made again as a power cut would have left it: after each
 * change in turn, with what was not flushed there, gone, in part, in another order, or torn in the
 * middle. Each of these must open, hold all that the guest had flushed and nothing that it never
 * wrote, check without corruption, and have only leaks that can be repaired.  Prints TAP. */
#include "check.h"
#include "history.h"
#include "memfile.h"

#include "base/error.h"
#include "base/log.h"

#include <errno.h>
#include <stdarg.h>

enum {
	MAX_OPS = 160,
	MAX_SECTORS = 128, /* one operation */
	MAX_SNAPSHOTS = 6,
	HOT_SPOTS = 5,
};

enum {
	DO_DISCARD = 1,
	DO_SNAPSHOT = 2,
	DO_GROW = 4,
	DO_SHRINK = 8,
	DO_ZERO = 16,
	DO_REOPEN = 32,
};

// clang-format off
static const struct pc_case {
	const char *name, *format;
	struct blk_kv opt[6];
	uint64_t size;
	unsigned may;
} cases[] = {
	{"raw", "raw", {{NULL, NULL}}, 1 * MiB, DO_DISCARD | DO_ZERO | DO_REOPEN},
	{"qcow2", "qcow2", {{"cluster_size", "4k"}}, 3 * MiB,
		DO_DISCARD | DO_ZERO | DO_SNAPSHOT | DO_GROW | DO_SHRINK | DO_REOPEN},
	{"qcow2-512", "qcow2", {{"cluster_size", "512"}, {"refcount_bits", "1"}}, 1 * MiB,
		DO_DISCARD | DO_ZERO | DO_GROW | DO_REOPEN},
	{"qcow2-64k", "qcow2", {{"cluster_size", "64k"}}, 8 * MiB,
		DO_DISCARD | DO_ZERO | DO_SNAPSHOT | DO_GROW | DO_REOPEN},
	{"qcow2-v2", "qcow2", {{"compat", "0.10"}, {"cluster_size", "1k"}}, 2 * MiB,
		DO_DISCARD | DO_ZERO | DO_SNAPSHOT | DO_GROW | DO_REOPEN},
	{"qcow2-lazy", "qcow2", {{"lazy_refcounts", "on"}, {"cluster_size", "4k"}}, 2 * MiB,
		DO_DISCARD | DO_ZERO | DO_SNAPSHOT | DO_GROW | DO_REOPEN},
	{"qcow2-subclusters", "qcow2", {{"extended_l2", "on"}, {"cluster_size", "16k"}}, 3 * MiB,
		DO_DISCARD | DO_ZERO | DO_SNAPSHOT | DO_GROW | DO_REOPEN},
	{"vmdk", "vmdk", {{"subformat", "monolithicSparse"}}, 6 * MiB,
		DO_DISCARD | DO_ZERO | DO_GROW | DO_REOPEN},
	{"vmdk-stream", "vmdk", {{"subformat", "streamOptimized"}}, 6 * MiB,
		DO_ZERO | DO_REOPEN},
	{"vmdk-zeroed-grain", "vmdk", {{"subformat", "monolithicSparse"}, {"zeroed_grain", "on"}}, 6 * MiB,
		DO_DISCARD | DO_ZERO | DO_REOPEN},
	{"vdi", "vdi", {{NULL, NULL}}, 24 * MiB, DO_DISCARD | DO_ZERO | DO_GROW | DO_REOPEN},
	{"vhd", "vpc", {{"subformat", "dynamic"}, {"force_size", "on"}}, 16 * MiB,
		DO_DISCARD | DO_ZERO | DO_REOPEN},
	{"vhdx", "vhdx", {{"block_size", "1M"}}, 16 * MiB, DO_DISCARD | DO_ZERO | DO_GROW | DO_REOPEN},
};
// clang-format on

struct snapshot {
	char name[16];
	uint64_t *id, nr_sectors;
	unsigned done, gone; /* gone: when its deletion began, ~0u: never */
};

struct size_change {
	uint64_t size;
	unsigned begun;
};

static struct run {
	const struct pc_case *c;
	uint64_t rng;
	struct memfile initial, live;
	struct cut_log log;
	struct history history;
	struct snapshot snapshot[MAX_OPS];
	unsigned nr_snapshots;
	struct size_change size[MAX_OPS];
	unsigned nr_sizes;
	uint64_t hot[HOT_SPOTS];
	struct blk *blk;
	uint64_t op;
	char what[512]; /* what went wrong */
} run;

static uint64_t rnd(void)
{
	run.rng ^= run.rng << 13;
	run.rng ^= run.rng >> 7;
	run.rng ^= run.rng << 17;
	return run.rng;
}

static bool one_in(unsigned n)
{
	return rnd() % n == 0;
}

static bool wrong(const char *fmt, ...) PRINTF_LIKE(1, 2);
static bool wrong(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(run.what, sizeof(run.what), fmt, ap);
	va_end(ap);
	return false;
}

/* --- the guest ---------------------------------------------------------------------------------
 */

static void fill(uint8_t *sector, uint64_t id)
{
	for (unsigned i = 0; i < SECTOR; i += 8)
		memcpy(sector + i, &id, 8);
}

/* The id a sector holds; false when it holds no version whole. */
static bool id_of(const uint8_t *sector, uint64_t *id)
{
	memcpy(id, sector, 8);
	return !memcmp(sector, sector + 8, SECTOR - 8);
}

static int open_image(struct blk **out, struct memfile *f, unsigned flags,
		      const struct blk_open_opts *opts, struct error *err)
{
	struct blk *file;
	int r = memfile_open(&file, f, flags & BLK_READONLY, err);

	return r < 0 ? r
		     : blk_open_on(out, file, "image", run.c->format, flags | BLK_NO_POOL, opts,
				   err);
}

static void pick_range(uint64_t *sector, unsigned *n)
{
	uint64_t total = run.history.nr_sectors;

	*n = 1 + (unsigned)(one_in(3) ? rnd() % MAX_SECTORS : rnd() % 9);
	if (one_in(3)) {
		*sector = rnd() % total;
	} else {
		*sector = (run.hot[rnd() % HOT_SPOTS] + rnd() % 64) % total;
	}
	*n = (unsigned)MIN(*n, total - *sector);
}

static bool guest_write(void)
{
	static uint8_t buf[MAX_SECTORS * SECTOR];
	unsigned begun = run.log.n, n;
	uint64_t sector;
	int r;

	pick_range(&sector, &n);
	for (unsigned i = 0; i < n; i++)
		fill(buf + i * SECTOR, run.op << 32 | (sector + i));
	r = blk_write(run.blk, buf, n * SECTOR, sector * SECTOR);
	if (r < 0)
		return wrong("write: %s", strerror(-r));
	for (unsigned i = 0; i < n; i++)
		history_write(
			&run.history, sector + i,
			(struct version){run.op << 32 | (sector + i), begun, run.log.n, false});
	return true;
}

/* What a discarded sector reads as is the format's choice: look. */
static bool guest_discard(void)
{
	static uint8_t buf[MAX_SECTORS * SECTOR];
	unsigned begun = run.log.n, n;
	uint64_t sector, id;
	int r;

	pick_range(&sector, &n);
	r = blk_discard(run.blk, sector * SECTOR, n * SECTOR);
	if (r == 0)
		r = blk_read(run.blk, buf, n * SECTOR, sector * SECTOR);
	if (r < 0)
		return wrong("discard: %s", strerror(-r));
	for (unsigned i = 0; i < n; i++) {
		if (!id_of(buf + i * SECTOR, &id))
			return wrong("a discarded sector is broken");
		history_write(&run.history, sector + i,
			      (struct version){id, begun, run.log.n, true});
	}
	return true;
}

static bool guest_zero(void)
{
	unsigned begun = run.log.n, n;
	uint64_t sector;
	int r;

	pick_range(&sector, &n);
	r = blk_write_zeroes(run.blk, sector * SECTOR, n * SECTOR, one_in(2));
	if (r < 0)
		return wrong("write zeroes: %s", strerror(-r));
	for (unsigned i = 0; i < n; i++)
		history_write(&run.history, sector + i,
			      (struct version){0, begun, run.log.n, false});
	return true;
}

static bool guest_flush(void)
{
	unsigned begun = run.log.n;
	int r = blk_flush(run.blk);

	if (r < 0)
		return wrong("flush: %s", strerror(-r));
	history_flush(&run.history, begun, run.log.n);
	return true;
}

static bool snapshot_create(void)
{
	struct snapshot *s = &run.snapshot[run.nr_snapshots];
	struct error err;

	snprintf(s->name, sizeof(s->name), "snap%u", run.nr_snapshots);
	if (blk_snapshot_create(run.blk, s->name, &err) < 0)
		return wrong("snapshot: %s", err.msg);
	s->nr_sectors = run.history.nr_sectors;
	s->id = malloc(s->nr_sectors * sizeof(*s->id));
	CHECK(s->id);
	for (uint64_t i = 0; i < s->nr_sectors; i++)
		s->id[i] = history_now(&run.history, i);
	s->done = run.log.n;
	s->gone = ~0u;
	run.nr_snapshots++;
	return true;
}

static struct snapshot *snapshot_pick(void)
{
	struct snapshot *living[MAX_OPS];
	unsigned n = 0;

	for (unsigned i = 0; i < run.nr_snapshots; i++)
		if (run.snapshot[i].gone == ~0u)
			living[n++] = &run.snapshot[i];
	return n ? living[rnd() % n] : NULL;
}

static void size_is(uint64_t size, unsigned begun)
{
	run.size[run.nr_sizes++] = (struct size_change){size, begun};
}

/* What is behind the new end comes back as zeroes. */
static void cut_off(uint64_t nr_sectors, unsigned begun)
{
	for (uint64_t i = nr_sectors; i < run.history.nr_sectors; i++)
		history_write(&run.history, i, (struct version){0, begun, run.log.n, false});
}

static bool snapshot_apply(const struct snapshot *s)
{
	unsigned begun = run.log.n;
	struct error err;

	if (blk_snapshot_apply(run.blk, s->name, &err) < 0)
		return wrong("going back to a snapshot: %s", err.msg);
	for (uint64_t i = s->nr_sectors; i < run.history.nr_sectors; i++) /* as in guest_resize */
		history_write(&run.history, i, (struct version){0, begun, run.log.n, false});
	cut_off(s->nr_sectors, begun);
	history_grow(&run.history, s->nr_sectors);
	run.history.nr_sectors = s->nr_sectors;
	size_is(s->nr_sectors * SECTOR, begun);
	for (uint64_t i = 0; i < s->nr_sectors; i++)
		if (history_now(&run.history, i) != s->id[i])
			history_write(&run.history, i,
				      (struct version){s->id[i], begun, run.log.n, false});
	return true;
}

static bool snapshot_delete(struct snapshot *s)
{
	struct error err;

	s->gone = run.log.n;
	return blk_snapshot_delete(run.blk, s->name, &err) == 0 ||
	       wrong("deleting a snapshot: %s", err.msg);
}

static bool guest_snapshot(void)
{
	struct snapshot *s = snapshot_pick();

	if (!s || one_in(2))
		return run.nr_snapshots < MAX_SNAPSHOTS ? snapshot_create() : true;
	return one_in(2) ? snapshot_apply(s) : snapshot_delete(s);
}

static bool guest_resize(bool grow)
{
	uint64_t old = run.history.nr_sectors, now;
	unsigned begun = run.log.n;
	int r;

	now = grow ? old + 8 * (1 + rnd() % 400) : old - 8 * (rnd() % (old / 16));
	r = blk_resize(run.blk, now * SECTOR);
	if (r == -ENOTSUP && run.nr_snapshots) /* version 2 of qcow2 */
		return true;
	if (r < 0)
		return wrong("resize from %" PRIu64 " to %" PRIu64 " sectors: %s", old, now,
			     strerror(-r));
	cut_off(now, begun);
	history_grow(&run.history, now);
	run.history.nr_sectors = now;
	size_is(now * SECTOR, begun);
	return true;
}

static bool guest_reopen(void)
{
	unsigned begun = run.log.n;
	struct error err;

	blk_close(run.blk);
	run.blk = NULL;
	history_flush(&run.history, begun, run.log.n);
	return open_image(&run.blk, &run.live, 0, NULL, &err) == 0 ||
	       wrong("opening again: %s", err.msg);
}

static bool guest_op(void)
{
	unsigned may = run.c->may;

	run.op++;
	switch (rnd() % 24) {
	case 0 ... 2:
		return guest_flush();
	case 3 ... 4:
		return may & DO_DISCARD ? guest_discard() : guest_write();
	case 5 ... 6:
		return may & DO_ZERO ? guest_zero() : guest_write();
	case 7 ... 8:
		return may & DO_SNAPSHOT ? guest_snapshot() : guest_write();
	case 9:
		if (may & DO_GROW && one_in(3))
			return guest_resize(true);
		return may & DO_SHRINK && one_in(3) ? guest_resize(false) : guest_write();
	case 10:
		return may & DO_REOPEN && one_in(2) ? guest_reopen() : guest_write();
	default:
		return guest_write();
	}
}

/* --- after the cut ------------------------------------------------------------------------------
 */

static bool content_allowed(struct blk *b, unsigned cut)
{
	static uint8_t buf[256 * SECTOR];
	uint64_t n = MIN(blk_info(b)->size / SECTOR, run.history.cap), id;

	for (uint64_t s = 0; s < n; s++) {
		if (s % 256 == 0) {
			int r = blk_read(b, buf, MIN(256, n - s) * SECTOR, s * SECTOR);

			if (r < 0)
				return wrong("reading sector %" PRIu64 ": %s", s, strerror(-r));
		}
		if (!id_of(buf + s % 256 * SECTOR, &id))
			return wrong("sector %" PRIu64 " is broken", s);
		if (!history_allows(&run.history, s, cut, id))
			return wrong("sector %" PRIu64 " reads as version %#" PRIx64, s, id);
	}
	return true;
}

static bool size_allowed(uint64_t size, unsigned cut)
{
	for (unsigned i = 0; i < run.nr_sizes; i++)
		if (run.size[i].size == size && (run.size[i].begun < cut || i == 0))
			return true;
	return wrong("the disk has %" PRIu64 " bytes", size);
}

static bool snapshot_intact(struct memfile *f, const struct snapshot *s)
{
	const struct blk_open_opts opts = {.snapshot = s->name};
	uint8_t buf[SECTOR];
	struct error err;
	struct blk *b;
	bool good = true;
	uint64_t id;

	if (open_image(&b, f, BLK_READONLY, &opts, &err) < 0)
		return wrong("snapshot %s: %s", s->name, err.msg);
	for (uint64_t i = 0; good && i < s->nr_sectors; i++) {
		if (blk_read(b, buf, SECTOR, i * SECTOR) < 0 || !id_of(buf, &id) || id != s->id[i])
			good = wrong("snapshot %s: sector %" PRIu64 " has changed", s->name, i);
	}
	blk_close(b);
	return good;
}

static unsigned surely_flushed(unsigned cut)
{
	unsigned time = 0;

	for (unsigned i = 0; i < run.history.nr_flushes && run.history.flush[i].done <= cut; i++)
		time = run.history.flush[i].begun;
	return time;
}

static bool snapshots_intact(struct memfile *f, unsigned cut)
{
	unsigned sure = surely_flushed(cut);

	for (unsigned i = 0; i < run.nr_snapshots; i++) {
		const struct snapshot *s = &run.snapshot[i];

		if (s->done <= sure && s->gone >= cut && !snapshot_intact(f, s))
			return false;
	}
	return true;
}

static void remember(void *opaque, const char *text)
{
	snprintf(opaque, 200, "%s", text);
}

static bool checks(struct memfile *f, unsigned fix, uint64_t *leaks)
{
	char first[200] = "";
	struct blk_check c = {.fix = fix, .say = remember, .opaque = first};
	struct error err;
	struct blk *b;
	int r;

	r = open_image(&b, f, BLK_CHECKING | (fix ? 0 : BLK_READONLY), NULL, &err);
	if (r < 0)
		return wrong("opening for a check: %s", err.msg);
	r = blk_check(b, &c, &err);
	blk_close(b);
	*leaks = c.leaks;
	if (r < 0)
		return r == -ENOTSUP || wrong("check: %s", err.msg);
	return !c.corruptions || wrong("%" PRIu64 " corruptions: %s", c.corruptions, first);
}

static bool is_dirty(struct memfile *f)
{
	struct error err;
	struct blk *b;
	bool dirty;

	if (open_image(&b, f, BLK_CHECKING | BLK_READONLY, NULL, &err) < 0)
		return true; /* the open for writing will say why */
	dirty = blk_info(b)->dirty;
	blk_close(b);
	return dirty;
}

/* The life of an image goes on. */
static bool still_works(struct memfile *f)
{
	uint8_t buf[SECTOR], back[SECTOR];
	struct error err;
	struct blk *b;
	uint64_t at;
	int r;

	if (open_image(&b, f, 0, NULL, &err) < 0)
		return wrong("opening once more: %s", err.msg);
	at = rnd() % (blk_info(b)->size / SECTOR) * SECTOR;
	fill(buf, 0x5555);
	r = blk_write(b, buf, SECTOR, at);
	if (r == 0)
		r = blk_flush(b);
	if (r == 0)
		r = blk_read(b, back, SECTOR, at);
	blk_close(b);
	return (r == 0 && !memcmp(buf, back, SECTOR)) || wrong("a later write: %s", strerror(-r));
}

static bool survives(struct memfile *f, unsigned cut)
{
	struct error err;
	uint64_t leaks;
	struct blk *b;
	bool good;

	if (!is_dirty(f) && !checks(f, 0, &leaks))
		return false;
	if (open_image(&b, f, 0, NULL, &err) < 0)
		return wrong("opening: %s", err.msg);
	good = size_allowed(blk_info(b)->size, cut) && content_allowed(b, cut);
	blk_close(b);
	if (!good || !checks(f, 0, &leaks))
		return false;
	if (leaks && (!checks(f, BLK_FIX_LEAKS, &leaks) || !checks(f, 0, &leaks) || leaks))
		return leaks ? wrong("%" PRIu64 " leaks stay", leaks) : false;
	return snapshots_intact(f, cut) && (!one_in(8) || (still_works(f) && checks(f, 0, &leaks)));
}

/* --- cutting ------------------------------------------------------------------------------------
 */

enum loss { LOSS_NONE, LOSS_ALL, LOSS_SOME, LOSS_SHUFFLED, LOSS_TORN, NR_LOSSES };

static unsigned last_flush_before(unsigned cut)
{
	while (cut > 0 && run.log.entry[cut - 1].what != CHANGE_FLUSH)
		cut--;
	return cut;
}

/* Sectors of a write reach the disk one by one. */
static void apply_torn(struct memfile *f, const struct cut_entry *e)
{
	struct cut_entry part = *e;

	if (e->what != CHANGE_WRITE) {
		memfile_apply(f, e);
		return;
	}
	for (uint64_t at = 0; at < e->len; at += part.len) {
		part.off = e->off + at;
		part.len = MIN(SECTOR - part.off % SECTOR, e->len - at);
		part.data = e->data + at;
		if (one_in(2))
			memfile_apply(f, &part);
	}
}

static void apply_with_loss(struct memfile *f, unsigned from, unsigned to, enum loss loss)
{
	static unsigned order[4096];
	unsigned n = MIN(to - from, ARRAY_SIZE(order));

	for (unsigned i = 0; i < n; i++)
		order[i] = from + i;
	for (unsigned i = n; loss == LOSS_SHUFFLED && i > 1; i--) {
		unsigned j = (unsigned)(rnd() % i), t = order[i - 1];

		order[i - 1] = order[j];
		order[j] = t;
	}
	for (unsigned i = 0; i < n; i++) {
		const struct cut_entry *e = &run.log.entry[order[i]];

		if (loss == LOSS_ALL || (loss >= LOSS_SOME && one_in(2))) {
			if (loss == LOSS_TORN)
				apply_torn(f, e);
			continue;
		}
		memfile_apply(f, e);
	}
}

static bool cut_everywhere(unsigned *cuts_left)
{
	struct memfile durable = {0}, f = {0};
	unsigned applied = 0;
	bool good = true;

	memfile_copy(&durable, &run.initial);
	for (unsigned cut = 0; good && cut <= run.log.n && *cuts_left; cut++) {
		unsigned base = last_flush_before(cut);

		for (; applied < base; applied++)
			memfile_apply(&durable, &run.log.entry[applied]);
		for (int i = 0; good && i < 2 && *cuts_left; i++) {
			/* The whole prefix, and then one of the worse fates. */
			enum loss loss = i ? 1 + rnd() % (NR_LOSSES - 1) : LOSS_NONE;

			if (i && base == cut)
				break;
			memfile_copy(&f, &durable);
			apply_with_loss(&f, base, cut, loss);
			good = survives(&f, cut);
			if (!good)
				printf("# cut after change %u of %u (flushed: %u), loss %d: %s\n",
				       cut, run.log.n, base, loss, run.what);
			--*cuts_left;
		}
	}
	memfile_free(&durable);
	memfile_free(&f);
	return good;
}

/* --- one run of a case --------------------------------------------------------------------------
 */

static void run_begin(const struct pc_case *c, uint64_t seed)
{
	char dir[] = "/tmp/powercut.XXXXXX", path[64];
	struct blk_create create = {.path = path, .size = c->size, .opt = c->opt};
	struct error err;

	memset(&run, 0, sizeof(run));
	run.c = c;
	run.rng = seed * 0x9e3779b97f4a7c15 | 1;
	while (create.nr_opts < ARRAY_SIZE(c->opt) && c->opt[create.nr_opts].key)
		create.nr_opts++;
	CHECK(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/image", dir);
	if (blk_create(c->format, &create, &err) < 0)
		printf("# create: %s\n", err.msg);
	memfile_load(&run.initial, path);
	unlink(path);
	rmdir(dir);
	memfile_copy(&run.live, &run.initial);
	run.live.log = &run.log;
	CHECK_EQ(0, open_image(&run.blk, &run.live, 0, NULL, &err));
	history_init(&run.history, blk_info(run.blk)->size / SECTOR);
	size_is(blk_info(run.blk)->size, 0);
	for (unsigned i = 0; i < HOT_SPOTS; i++)
		run.hot[i] = rnd() % run.history.nr_sectors;
}

static void run_end(void)
{
	blk_close(run.blk);
	for (unsigned i = 0; i < run.nr_snapshots; i++)
		free(run.snapshot[i].id);
	history_free(&run.history);
	cut_log_free(&run.log);
	memfile_free(&run.live);
	memfile_free(&run.initial);
}

static bool run_case(const struct pc_case *c, unsigned cuts, uint64_t seed)
{
	bool good = true;

	for (unsigned left = cuts; good && left; seed++) {
		run_begin(c, seed);
		for (unsigned i = 0; good && i < MAX_OPS; i++)
			good = guest_op();
		if (!good)
			printf("# operation %" PRIu64 ": %s\n", run.op, run.what);
		good = good && cut_everywhere(&left);
		if (!good)
			printf("# powercut %u %s %" PRIu64 "\n", cuts, c->name, seed);
		run_end();
	}
	return good;
}

int main(int argc, char **argv)
{
	unsigned cuts = argc > 1 ? (unsigned)atoi(argv[1]) : 200, n = 0, failed = 0;
	const char *only = argc > 2 ? argv[2] : NULL;
	uint64_t seed = argc > 3 ? strtoull(argv[3], NULL, 0) : 1;

	log_configure("error", NULL); /* that an image was not closed is no news here */
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		if (only && strcmp(only, cases[i].name))
			continue;
		bool good = run_case(&cases[i], cuts, seed);

		printf("%s %u - %s survives %u power cuts\n", good ? "ok" : "not ok", ++n,
		       cases[i].name, cuts);
		fflush(stdout);
		failed += !good;
	}
	printf("1..%u\n", n);
	return failed != 0;
}
