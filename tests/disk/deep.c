/* deep.c - a hundred images on top of one another, merged in the middle while a guest works.
 *
 *   deep DEPTH MERGES [SEED]
 *
 * Two threads write to the topmost image and read back, each on its half of the disk, and compare
 * with a copy in memory; meanwhile layers are merged downwards, and snapshots inside the topmost
 * image are made and deleted.  In the end the chain is opened anew: it must read as the copy, and
 * every image must check clean.  Prints TAP. */
#include "check.h"

#include "base/error.h"
#include "base/log.h"
#include "block/image.h"
#include "disk/merge.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>

enum { DISK = 16 * MiB, SECTOR = 512, MAX_DEPTH = 200, SPAN = 64 * KiB, WORKERS = 2 };

static struct {
	char dir[64];
	uint8_t *shadow;
	struct blk *top;
	_Atomic bool stop, bad;
	_Atomic unsigned writes;
} run;

static uint64_t next_random(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

static const char *path_of(unsigned n, char *buf)
{
	snprintf(buf, 128, "%s/layer%u.qcow2", run.dir, n);
	return buf;
}

static void must(int r, const struct error *err)
{
	if (r < 0)
		printf("# %s\n", err->msg);
	CHECK(r == 0);
}

/* --- building the chain ------------------------------------------------------------------------
 */

static void create_layer(unsigned n, uint64_t *rng)
{
	static const char *const clusters[] = {"4k", "64k", "16k", "512k"};
	const struct blk_kv opt = {"cluster_size", clusters[n % ARRAY_SIZE(clusters)]};
	char path[128], below[64];
	struct blk_create c = {.path = path_of(n, path), .size = DISK, .opt = &opt, .nr_opts = 1};
	struct error err;
	struct blk *b;

	if (n) {
		snprintf(below, sizeof(below), "layer%u.qcow2", n - 1);
		c.backing = below;
		c.backing_format = "qcow2";
	}
	must(blk_create("qcow2", &c, &err), &err);
	must(blk_open(&b, path, "qcow2", BLK_NO_POOL, &err), &err);
	for (unsigned i = 0; i < 6; i++) {
		uint64_t len = (1 + next_random(rng) % (SPAN / SECTOR)) * SECTOR;
		uint64_t off = next_random(rng) % ((DISK - len) / SECTOR) * SECTOR;

		for (uint64_t k = 0; k < len; k += 8) {
			uint64_t v = next_random(rng);

			memcpy(run.shadow + off + k, &v, 8);
		}
		CHECK_EQ(0, blk_write(b, run.shadow + off, len, off));
	}
	if (n % 7 == 3) { /* zeroes that hide what is below */
		uint64_t off = next_random(rng) % (DISK / SPAN) * SPAN;

		memset(run.shadow + off, 0, SPAN);
		CHECK_EQ(0, blk_write_zeroes(b, off, SPAN, true));
	}
	blk_close(b);
}

/* --- the guest ---------------------------------------------------------------------------------
 */

static bool one_request(uint64_t base, uint64_t *rng, uint8_t *buf)
{
	uint64_t len = (1 + next_random(rng) % (SPAN / SECTOR)) * SECTOR;
	uint64_t off = base + next_random(rng) % ((DISK / WORKERS - len) / SECTOR) * SECTOR;

	if (next_random(rng) % 3) {
		if (blk_read(run.top, buf, len, off) < 0 || memcmp(buf, run.shadow + off, len))
			return false;
		return true;
	}
	for (uint64_t k = 0; k < len; k += 8) {
		uint64_t v = next_random(rng);

		memcpy(run.shadow + off + k, &v, 8);
	}
	run.writes++;
	if (blk_write(run.top, run.shadow + off, len, off) < 0)
		return false;
	return next_random(rng) % 50 || blk_flush(run.top) == 0;
}

static void *worker(void *arg)
{
	uint64_t n = (uintptr_t)arg, rng = 0x1234567 * (n + 1);
	uint8_t *buf = malloc(SPAN);

	CHECK(buf);
	while (!run.stop && !run.bad)
		if (!one_request(n * (DISK / WORKERS), &rng, buf))
			run.bad = true;
	free(buf);
	return NULL;
}

/* --- what is done to the chain meanwhile -------------------------------------------------------
 */

static unsigned depth_now(void)
{
	unsigned n = 0;

	for (struct blk *b = blk_backing(run.top); b; b = blk_backing(b))
		n++;
	return n;
}

static void snapshot_work(unsigned i)
{
	char name[32];
	struct error err;

	snprintf(name, sizeof(name), "s%u", i);
	must(blk_snapshot_create(run.top, name, &err), &err);
	if (i >= 3) {
		snprintf(name, sizeof(name), "s%u", i - 3);
		must(blk_snapshot_delete(run.top, name, &err), &err);
	}
}

static void merge_one(uint64_t *rng)
{
	unsigned depth = depth_now(), at = 1 + (unsigned)(next_random(rng) % (depth - 1));
	const struct disk_job job = {0};
	struct blk *layer = run.top;
	char path[256];
	struct error err;

	for (unsigned i = 0; i < at; i++)
		layer = blk_backing(layer);
	snprintf(path, sizeof(path), "%s", blk_path(layer));
	must(disk_merge(run.top, at, NULL, &job, &err), &err);
	CHECK_EQ(depth - 1, depth_now());
	CHECK_EQ(0, unlink(path)); /* nobody needs it */
}

/* --- the end -----------------------------------------------------------------------------------
 */

static bool all_check_clean(void)
{
	for (struct blk *b = run.top; b; b = blk_backing(b)) {
		struct blk_check c = {0};
		struct error err;
		struct blk *alone;

		must(blk_open(&alone, blk_path(b), "qcow2",
			      BLK_CHECKING | BLK_READONLY | BLK_NO_POOL | BLK_NO_BACKING, &err),
		     &err);
		must(blk_check(alone, &c, &err), &err);
		blk_close(alone);
		if (c.corruptions || c.leaks) {
			printf("# %s: %" PRIu64 " corruptions, %" PRIu64 " leaks\n", blk_path(b),
			       c.corruptions, c.leaks);
			return false;
		}
	}
	return true;
}

static bool reads_as_shadow(void)
{
	uint8_t *buf = malloc(1 * MiB);
	bool same = true;

	CHECK(buf);
	for (uint64_t off = 0; off < DISK && same; off += 1 * MiB) {
		CHECK_EQ(0, blk_read(run.top, buf, 1 * MiB, off));
		same = !memcmp(buf, run.shadow + off, 1 * MiB);
	}
	free(buf);
	return same;
}

static void remove_all(unsigned n)
{
	char path[128];

	for (unsigned i = 0; i < n; i++)
		unlink(path_of(i, path));
	rmdir(run.dir);
}

int main(int argc, char **argv)
{
	unsigned depth = argc > 1 ? (unsigned)atoi(argv[1]) : 30;
	unsigned merges = argc > 2 ? (unsigned)atoi(argv[2]) : 10;
	uint64_t rng = argc > 3 ? strtoull(argv[3], NULL, 0) : 88172645463325252;
	pthread_t thread[WORKERS];
	struct error err;
	char path[128];

	CHECK(depth <= MAX_DEPTH && merges + 2 < depth);
	log_configure("error", NULL);
	snprintf(run.dir, sizeof(run.dir), "/tmp/deep.XXXXXX");
	CHECK(mkdtemp(run.dir));
	run.shadow = calloc(1, DISK);
	CHECK(run.shadow);
	for (unsigned i = 0; i < depth; i++)
		create_layer(i, &rng);
	must(blk_open(&run.top, path_of(depth - 1, path), "qcow2", BLK_NO_POOL, &err), &err);
	printf("%s 1 - %u images read as what was written to them\n",
	       reads_as_shadow() ? "ok" : "not ok", depth);
	for (uintptr_t i = 0; i < WORKERS; i++)
		CHECK_EQ(0, pthread_create(&thread[i], NULL, worker, (void *)i));
	for (unsigned i = 0; i < merges && !run.bad; i++) {
		snapshot_work(i);
		merge_one(&rng);
	}
	run.stop = true;
	for (unsigned i = 0; i < WORKERS; i++)
		pthread_join(thread[i], NULL);
	printf("%s 2 - %u merges and snapshots during %u writes disturb nobody\n",
	       run.bad ? "not ok" : "ok", merges, run.writes);
	blk_close(run.top);
	must(blk_open(&run.top, path, "qcow2", BLK_READONLY | BLK_NO_POOL, &err), &err);
	bool same = reads_as_shadow() && depth_now() == depth - 1 - merges;
	printf("%s 3 - the chain reads the same when it is opened again\n", same ? "ok" : "not ok");
	bool clean = all_check_clean();
	printf("%s 4 - its images check clean\n1..4\n", clean ? "ok" : "not ok");
	blk_close(run.top);
	remove_all(depth);
	free(run.shadow);
	return run.bad || !same || !clean;
}
