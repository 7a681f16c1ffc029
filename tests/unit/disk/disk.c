/* Unit tests of src/disk: converting, comparing, journals and manifests, with a toy format. */
#include "toy_format.h"

#include "disk/compare.h"
#include "disk/convert.h"
#include "disk/cursor.h"
#include "disk/journal.h"
#include "disk/manifest.h"
#include "disk/zero.h"
#include "test.h"

#include <fcntl.h>
#include <sys/stat.h>

static char dir[] = "test-disk-XXXXXX";
static struct error err;

static void cleanup(void)
{
	char cmd[64];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	if (system(cmd))
		perror(cmd);
}

static void new_dir(void)
{
	CHECK(mkdtemp(dir));
	atexit(cleanup);
}

static char *in_dir(const char *name)
{
	static char path[8][128];
	static unsigned i;

	i = (i + 1) % ARRAY_SIZE(path);
	snprintf(path[i], sizeof(path[i]), "%s/%s", dir, name);
	return path[i];
}

static struct blk *make(const char *format, const char *name, uint64_t size)
{
	struct blk_create c = {.path = in_dir(name), .size = size};
	struct blk *b = NULL;

	if (blk_create(format, &c, &err) < 0 ||
	    blk_open(&b, in_dir(name), format, BLK_NO_POOL, &err) < 0)
		printf("# %s\n", err.msg);
	CHECK(b);
	return b;
}

/* Something of everything: data, zeroes that are stored, holes, repeated bytes, odd edges. */
static void fill(struct blk *b)
{
	static uint8_t buf[300000];
	unsigned seed = 1;

	for (size_t i = 0; i < sizeof(buf); i++) {
		seed = seed * 1103515245 + 12345;
		buf[i] = (uint8_t)(seed >> 16);
	}
	CHECK_EQ(0, blk_write(b, buf, sizeof(buf), 1000));
	memset(buf + 4000, 0, 100000);
	CHECK_EQ(0, blk_write(b, buf, sizeof(buf), 5 * MiB + 512));
	memset(buf, 0x77, 65536);
	CHECK_EQ(0, blk_write(b, buf, 65536, 9 * MiB));
	CHECK_EQ(0, blk_write(b, buf, 512, blk_size(b) - 512));
	memset(buf, 0, sizeof(buf));
	CHECK_EQ(0, blk_write(b, buf, sizeof(buf), 12 * MiB));
}

static bool same(struct blk *a, struct blk *b)
{
	struct disk_compare c = {0};

	CHECK_EQ(0, disk_compare(a, b, &c, &err));
	return c.same;
}

static int convert(struct blk *a, struct blk *b, struct disk_convert o)
{
	int r = disk_convert(a, b, &o, &err);

	if (r < 0)
		printf("# %s\n", err.msg);
	return r;
}

static uint64_t blocks_of(const char *name)
{
	struct stat st;

	CHECK_EQ(0, stat(in_dir(name), &st));
	return (uint64_t)st.st_blocks * 512;
}

TEST(every_pair_of_formats_converts)
{
	static const char *const formats[] = {"raw", "toy"};
	struct blk *a, *b;
	char name[16];

	new_dir();
	for (int i = 0; i < 8; i++) {
		snprintf(name, sizeof(name), "a%d", i);
		a = make(formats[i & 1], name, 20 * MiB + 1536);
		fill(a);
		snprintf(name, sizeof(name), "b%d", i);
		b = make(formats[i >> 1 & 1], name, 20 * MiB + 1536);
		CHECK(!same(a, b));
		CHECK_EQ(0, convert(a, b,
				    (struct disk_convert){.sparse = i & 4 ? 0 : 4096,
							  .job.threads = 3}));
		CHECK(same(a, b));
		CHECK(same(b, a));
		blk_close(a);
		blk_close(b);
	}
}

TEST(zeroes_are_left_out)
{
	struct blk *a, *b;

	new_dir();
	a = make("raw", "a", 20 * MiB);
	fill(a);
	b = make("raw", "b", 20 * MiB);
	CHECK_EQ(0, convert(a, b, (struct disk_convert){.sparse = 4096}));
	CHECK(same(a, b));
	CHECK(blocks_of("b") < MiB);
	blk_close(b);
	b = make("raw", "c", 20 * MiB);
	CHECK_EQ(0, convert(a, b, (struct disk_convert){.sparse = 0}));
	CHECK(same(a, b));
	CHECK(blocks_of("c") >= 20 * MiB);
	blk_close(a);
	blk_close(b);
}

TEST(what_was_in_the_target_goes)
{
	struct blk *a, *b;
	static uint8_t junk[3 * 1024 * 1024];

	new_dir();
	a = make("toy", "a", 20 * MiB);
	fill(a);
	b = make("toy", "b", 24 * MiB);
	memset(junk, 0xdd, sizeof(junk));
	for (unsigned i = 0; i < 8; i++)
		CHECK_EQ(0, blk_write(b, junk, sizeof(junk), i * sizeof(junk)));
	CHECK_EQ(0, convert(a, b, (struct disk_convert){.sparse = 4096}));
	CHECK(same(a, b)); /* and zeroes behind the end of the shorter one */
	blk_close(a);
	blk_close(b);
}

static void compress(bool in_order)
{
	struct blk_format format = toy_format;
	struct blk_info info;
	struct blk *a, *b;

	format.packs_in_order = in_order;
	new_dir();
	a = make("raw", "a", 30 * MiB + 512);
	fill(a);
	b = make("toy", "b", 30 * MiB + 512);
	info = *blk_info(b);
	b->fmt = &format;
	CHECK_EQ(0, convert(a, b,
			    (struct disk_convert){
				    .sparse = 4096, .compress = true, .job.threads = 4}));
	CHECK(same(a, b));
	CHECK_EQ(TOY_PACKED, ((struct toy *)b->priv)->state[9 * MiB / TOY_CLUSTER]);
	CHECK_EQ(TOY_ABSENT, ((struct toy *)b->priv)->state[12 * MiB / TOY_CLUSTER]);
	CHECK_EQ(TOY_CLUSTER, info.cluster);
	b->fmt = &toy_format;
	blk_close(a);
	blk_close(b);
}

TEST(clusters_are_compressed_in_any_order)
{
	compress(false);
}

TEST(clusters_are_compressed_in_order_when_the_format_wants_that)
{
	compress(true);
}

TEST(a_part_of_a_disk_is_copied)
{
	struct blk *a, *b;
	uint8_t x[4096], y[4096];

	new_dir();
	a = make("raw", "a", 20 * MiB);
	fill(a);
	b = make("raw", "b", 8 * MiB);
	CHECK_EQ(0, convert(a, b,
			    (struct disk_convert){.sparse = 4096,
						  .src_off = 5 * MiB,
						  .dst_off = 1024,
						  .len = 2 * MiB}));
	CHECK_EQ(0, blk_read(a, x, sizeof(x), 5 * MiB + 512));
	CHECK_EQ(0, blk_read(b, y, sizeof(y), 1536));
	CHECK_EQ(0, memcmp(x, y, sizeof(x)));
	CHECK_EQ(-ENOSPC, convert(a, b, (struct disk_convert){.sparse = 4096}));
	CHECK(strstr(err.msg, "has only 8388608 bytes, 20971520 are needed"));
	CHECK_EQ(-EINVAL, convert(a, b, (struct disk_convert){.src_off = 21 * MiB}));
	blk_close(a);
	blk_close(b);
}

TEST(with_a_backing_file_only_the_top_layer_is_copied)
{
	struct blk_create c = {.size = 20 * MiB, .backing = "base", .backing_format = "toy"};
	struct blk *base, *a, *b;

	new_dir();
	base = make("toy", "base", 20 * MiB);
	fill(base);
	blk_close(base);
	for (int i = 0; i < 2; i++) {
		c.path = in_dir(i ? "b" : "a");
		CHECK_EQ(0, blk_create("toy", &c, &err));
	}
	CHECK_EQ(0, blk_open(&a, in_dir("a"), "toy", BLK_NO_POOL, &err));
	CHECK_EQ(0, blk_write(a, "top", 4, 700000));
	CHECK_EQ(0, blk_write_zeroes(a, 8192, 4096, true));
	CHECK_EQ(0, blk_open(&b, in_dir("b"), "toy", BLK_NO_POOL, &err));
	CHECK_EQ(0, convert(a, b, (struct disk_convert){.sparse = 4096, .top_only = true}));
	CHECK(same(a, b));
	CHECK_EQ(TOY_ABSENT, ((struct toy *)b->priv)->state[1]);
	CHECK_EQ(TOY_ZERO, ((struct toy *)b->priv)->state[2]);
	blk_close(a);
	blk_close(b);
}

/* ---- failing and stopping ---- */

static _Atomic int writes_left;

static int failing_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			  uint64_t off)
{
	return writes_left-- > 0 ? toy_writev(b, iov, n, len, off) : -ENOSPC;
}

TEST(an_error_ends_the_work_with_its_place)
{
	struct blk_format failing = toy_format;
	struct blk *a, *b;

	new_dir();
	failing.writev = failing_writev;
	a = make("raw", "a", 20 * MiB);
	fill(a);
	for (int in_order = 0; in_order < 2; in_order++) {
		b = make("toy", in_order ? "b" : "c", 20 * MiB);
		failing.packs_in_order = in_order;
		b->fmt = &failing;
		writes_left = 1;
		CHECK_EQ(-ENOSPC,
			 convert(a, b,
				 (struct disk_convert){
					 .sparse = 4096, .compress = in_order, .job.threads = 4}));
		CHECK(strstr(err.msg, "cannot write '"));
		CHECK(strstr(err.msg, "No space left on device"));
		b->fmt = &toy_format;
		blk_close(b);
	}
	blk_close(a);
}

static _Atomic bool cancel;
static uint64_t last_done, last_total;

static void cancel_soon(void *opaque, uint64_t done, uint64_t total)
{
	CHECK(done <= total);
	cancel = true;
}

static void note_progress(void *opaque, uint64_t done, uint64_t total)
{
	CHECK(done >= last_done);
	last_done = done;
	last_total = total;
}

TEST(progress_ends_at_everything)
{
	struct blk *a, *b;

	new_dir();
	a = make("raw", "a", 20 * MiB);
	fill(a);
	b = make("raw", "b", 20 * MiB);
	CHECK_EQ(0, convert(a, b,
			    (struct disk_convert){.sparse = 4096, .job.progress = note_progress}));
	CHECK_EQ(last_total, last_done);
	CHECK(last_total > 600000);
	CHECK(last_total < 2 * MiB);
	blk_close(a);
	blk_close(b);
}

TEST(a_cancelled_job_with_a_journal_goes_on_where_it_was)
{
	struct disk_convert o = {.sparse = 4096,
				 .job = {.threads = 1, .cancel = &cancel, .progress = cancel_soon},
				 .key = "a to b"};
	struct blk *a, *b;
	static uint8_t junk[4096];

	new_dir();
	a = make("raw", "a", 20 * MiB);
	fill(a);
	b = make("toy", "b", 20 * MiB);
	o.journal = in_dir("journal");
	CHECK_EQ(-ECANCELED, disk_convert(a, b, &o, &err));
	CHECK_STR("cancelled", err.msg);
	CHECK(!same(a, b));
	/* What the journal says, and something that came behind the last flush. */
	CHECK_EQ(0, disk_journal_save(o.journal, o.key, 2 * MiB, &err));
	memset(junk, 0xee, sizeof(junk));
	CHECK_EQ(0, blk_write(b, junk, sizeof(junk), 15 * MiB));
	cancel = false;
	o.job.progress = NULL;
	CHECK_EQ(0, disk_convert(a, b, &o, &err));
	CHECK_EQ(2 * MiB, o.skipped);
	CHECK(same(a, b));
	CHECK(access(o.journal, F_OK));
	blk_close(a);
	blk_close(b);
}

TEST(a_journal_is_of_one_work_only)
{
	const char *path;
	uint64_t done = 0;
	FILE *f;

	new_dir();
	path = in_dir("j");
	CHECK_EQ(0, disk_journal_load(path, "k", &done));
	CHECK_EQ(0, disk_journal_save(path, "k", 77, &err));
	CHECK_EQ(1, disk_journal_load(path, "k", &done));
	CHECK_EQ(77, done);
	CHECK_EQ(0, disk_journal_load(path, "other", &done));
	f = fopen(path, "w");
	fputs("Trivisor job 1\nk\ndone 7", f); /* cut off: not "done 77 end" */
	fclose(f);
	disk_journal_remove(path);
	CHECK(access(path, F_OK));
}

/* ---- comparing ---- */

TEST(the_first_difference_is_found_and_all_are_counted)
{
	struct disk_compare c = {.job.threads = 4, .count_all = true};
	struct blk *a, *b;

	new_dir();
	a = make("raw", "a", 20 * MiB);
	fill(a);
	b = make("toy", "b", 20 * MiB);
	CHECK_EQ(0, convert(a, b, (struct disk_convert){.sparse = 4096}));
	CHECK_EQ(0, blk_write(b, "x", 1, 19 * MiB + 77)); /* in a hole of both */
	CHECK_EQ(0, blk_write(b, "xyz", 3, 9 * MiB));
	CHECK_EQ(0, disk_compare(a, b, &c, &err));
	CHECK(!c.same);
	CHECK_EQ(9 * MiB, c.first);
	CHECK_EQ(4, c.nr_different);
	CHECK(!c.size_differs);
	c.count_all = false;
	CHECK_EQ(0, disk_compare(b, a, &c, &err));
	CHECK_EQ(9 * MiB, c.first);
	blk_close(a);
	blk_close(b);
}

TEST(a_longer_disk_is_the_same_when_its_rest_is_zeroes)
{
	struct disk_compare c = {0};
	struct blk *a, *b;

	new_dir();
	a = make("raw", "a", 2 * MiB);
	b = make("raw", "b", 3 * MiB);
	CHECK_EQ(0, disk_compare(a, b, &c, &err));
	CHECK(c.same);
	CHECK(c.size_differs);
	CHECK_EQ(0, blk_write(b, "x", 1, 2 * MiB + 5));
	CHECK_EQ(0, disk_compare(a, b, &c, &err));
	CHECK(!c.same);
	CHECK_EQ(2 * MiB + 5, c.first);
	blk_close(a);
	blk_close(b);
}

TEST(what_both_have_from_one_file_is_not_read)
{
	struct blk_create c = {.size = 20 * MiB, .backing = "base", .backing_format = "toy"};
	struct disk_compare o = {0};
	struct blk *b[2];

	new_dir();
	b[0] = make("toy", "base", 20 * MiB);
	fill(b[0]);
	blk_close(b[0]);
	for (int i = 0; i < 2; i++) {
		c.path = in_dir(i ? "b" : "a");
		CHECK_EQ(0, blk_create("toy", &c, &err));
		CHECK_EQ(0, blk_open(&b[i], c.path, "toy", BLK_NO_POOL, &err));
	}
	/* Data that cannot be read would show: the toy is told that it lies behind the end. */
	CHECK_EQ(0, truncate(in_dir("base"), TOY_DATA));
	CHECK_EQ(0, disk_compare(b[0], b[1], &o, &err));
	CHECK(o.same);
	blk_close(b[0]);
	blk_close(b[1]);
}

/* ---- pieces ---- */

TEST(pieces_cover_the_disk_and_keep_to_units)
{
	struct disk_cursor c = {.chunk = 1 * MiB, .round = 65536};
	struct disk_piece p;
	uint64_t at = 0;
	struct blk *b;
	int r;

	new_dir();
	b = make("toy", "b", 20 * MiB + 512);
	fill(b);
	c.blk = b;
	c.end = blk_size(b);
	while ((r = disk_cursor_next(&c, &p)) > 0) {
		CHECK_EQ(at, p.off);
		CHECK(p.len);
		CHECK_EQ(0, p.off % 65536);
		CHECK(p.kind == DISK_ZERO || p.len <= MiB);
		at += p.len;
	}
	CHECK_EQ(0, r);
	CHECK_EQ(blk_size(b), at);
	blk_close(b);
}

TEST(zero_is_all_zeroes)
{
	static uint8_t buf[200];

	for (unsigned len = 0; len <= 130; len++) {
		CHECK(disk_is_zero(buf, len));
		for (unsigned i = 0; i < len; i += 7) {
			buf[i] = 1;
			CHECK(!disk_is_zero(buf, len));
			buf[i] = 0;
		}
	}
}

/* ---- manifests ---- */

TEST(manifests_tell_where_content_differs)
{
	struct disk_manifest *m[2], *loaded;
	struct blk *a, *b;
	struct disk_convert o = {.sparse = 4096};

	new_dir();
	a = make("raw", "a", 20 * MiB);
	fill(a);
	b = make("toy", "b", 20 * MiB);
	CHECK_EQ(0, disk_manifest_create(&m[0], 20 * MiB, &err));
	o.manifest = m[0];
	CHECK_EQ(0, disk_convert(a, b, &o, &err));
	CHECK_EQ(0, disk_manifest_save(m[0], in_dir("m"), &err));
	CHECK_EQ(0, disk_manifest_load(&loaded, in_dir("m"), &err));
	CHECK_EQ(20 * MiB, disk_manifest_size(loaded));
	CHECK_EQ(UINT64_MAX, disk_manifest_compare(m[0], loaded));
	CHECK_EQ(0, disk_manifest_create(&m[1], 20 * MiB, &err));
	CHECK_EQ(0, disk_manifest_add(m[1], 0, "x", 1));
	CHECK_EQ(0, disk_manifest_compare(m[1], loaded));
	for (int i = 0; i < 2; i++)
		disk_manifest_destroy(m[i]);
	disk_manifest_destroy(loaded);
	CHECK_EQ(0, truncate(in_dir("m"), 200));
	CHECK_EQ(-EINVAL, disk_manifest_load(&loaded, in_dir("m"), &err));
	CHECK(strstr(err.msg, "is not a manifest, or not all of one"));
	blk_close(a);
	blk_close(b);
}
