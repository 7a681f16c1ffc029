/* Unit tests of src/block/qcow2: content, options, and what qemu-img says. */
#include "image_fixture.h"

#include "base/bytes.h"

#define SIZE (6 * MiB + 1536)

static uint8_t model[SIZE + 16 * MiB];

/* From inside the directory: where qemu-img looks for a data file. */
static void qemu_agrees(void)
{
	struct blk *raw;

	if (!fx_have("qemu-img"))
		return;
	CHECK_EQ(0, fx_run("cd %s && qemu-img convert -f qcow2 -O raw d qemu.raw", fx_dir));
	raw = fx_open("qemu.raw", "raw", BLK_READONLY);
	CHECK_EQ(SIZE, blk_size(raw));
	fx_same(raw, model, SIZE);
	blk_close(raw);
	CHECK_EQ(0, fx_run("cd %s && qemu-img check -f qcow2 d", fx_dir));
}

static void storm(const struct blk_kv *opt, unsigned ops)
{
	memset(model, 0, sizeof(model));
	fx_create("d", "qcow2", SIZE, opt, NULL);
	fx_storm("d", "qcow2", model, SIZE, ops);
	fx_is_clean("d", "qcow2");
	qemu_agrees();
}

TEST(random_operations_match_a_model)
{
	storm(NULL, 600);
}

TEST(the_smallest_clusters)
{
	storm(FX_OPTS({"cluster_size", "512"}), 200);
}

TEST(clusters_of_4k_and_counts_of_8_bits)
{
	storm(FX_OPTS({"cluster_size", "4k"}, {"refcount_bits", "8"}), 300);
}

TEST(the_smallest_clusters_with_the_widest_counts)
{
	storm(FX_OPTS({"cluster_size", "512"}, {"refcount_bits", "64"}), 150);
}

TEST(counts_of_one_bit)
{
	storm(FX_OPTS({"cluster_size", "1k"}, {"refcount_bits", "1"}), 150);
}

TEST(the_largest_clusters)
{
	storm(FX_OPTS({"cluster_size", "2M"}, {"refcount_bits", "32"}), 150);
}

TEST(subclusters)
{
	storm(FX_OPTS({"extended_l2", "on"}), 500);
}

TEST(the_smallest_subclusters)
{
	storm(FX_OPTS({"extended_l2", "on"}, {"cluster_size", "16k"}), 400);
}

TEST(the_largest_subclusters)
{
	storm(FX_OPTS({"extended_l2", "on"}, {"cluster_size", "2M"}), 200);
}

TEST(version_2)
{
	storm(FX_OPTS({"compat", "0.10"}), 300);
}

TEST(lazy_refcounts)
{
	storm(FX_OPTS({"lazy_refcounts", "on"}), 300);
}

TEST(preallocated)
{
	storm(FX_OPTS({"preallocation", "metadata"}), 200);
	storm(FX_OPTS({"preallocation", "falloc"}), 20);
	storm(FX_OPTS({"preallocation", "full"}, {"extended_l2", "on"}), 50);
}

TEST(threads_that_share_clusters_do_not_lose_bytes)
{
	fx_create("d", "qcow2", SIZE, NULL, NULL);
	fx_crowd("d", "qcow2", model, 6 * MiB);
	fx_is_clean("d", "qcow2");
}

TEST(threads_that_share_subclusters_do_not_lose_bytes)
{
	fx_create("d", "qcow2", SIZE,
		  FX_OPTS({"extended_l2", "on"}, {"cluster_size", "2M"}, {"lazy_refcounts", "on"}),
		  NULL);
	fx_crowd("d", "qcow2", model, 6 * MiB);
	fx_is_clean("d", "qcow2");
}

/* ---- chains and references ---- */

TEST(a_chain_of_images)
{
	memset(model, 0, sizeof(model));
	fx_create("base", "qcow2", SIZE, NULL, NULL);
	fx_storm("base", "qcow2", model, SIZE, 60);
	fx_create("mid", "qcow2", 0, FX_OPTS({"cluster_size", "4k"}), "base");
	fx_storm("mid", "qcow2", model, SIZE, 60);
	fx_create("d", "qcow2", 0, FX_OPTS({"extended_l2", "on"}), "mid");
	fx_storm("d", "qcow2", model, SIZE, 100);
	fx_is_clean("d", "qcow2");
	NEED("qemu-img");
	fx_qemu_reads("d", "qcow2", model, SIZE);
}

TEST(version_2_on_a_backing_file)
{
	memset(model, 0, sizeof(model));
	fx_create("base", "qcow2", SIZE, FX_OPTS({"compat", "0.10"}), NULL);
	fx_storm("base", "qcow2", model, SIZE, 60);
	fx_create("d", "qcow2", 0, FX_OPTS({"compat", "0.10"}), "base");
	fx_storm("d", "qcow2", model, SIZE, 100);
	fx_is_clean("d", "qcow2");
	NEED("qemu-img");
	fx_qemu_reads("d", "qcow2", model, SIZE);
}

TEST(a_shorter_backing_file_ends_in_zeroes)
{
	struct blk *b;

	fx_create("base", "qcow2", MiB, NULL, NULL);
	memset(model, 0xee, MiB);
	b = fx_open("base", "qcow2", 0);
	CHECK_EQ(0, blk_write(b, model, MiB, 0));
	blk_close(b);
	fx_create("d", "qcow2", SIZE, NULL, "base");
	fx_storm("d", "qcow2", model, SIZE, 80);
	fx_is_clean("d", "qcow2");
}

TEST(an_external_data_file)
{
	storm(FX_OPTS({"data_file", "data"}), 150);
}

TEST(an_external_data_file_with_subclusters)
{
	storm(FX_OPTS({"data_file", "data"}, {"extended_l2", "on"}), 150);
}

TEST(a_raw_data_file_is_the_disk)
{
	struct blk *b;

	fx_create("d", "qcow2", SIZE, FX_OPTS({"data_file", "data"}, {"data_file_raw", "on"}),
		  NULL);
	fx_storm("d", "qcow2", model, SIZE, 200);
	b = fx_open("data", "raw", BLK_READONLY);
	CHECK_EQ(SIZE, blk_size(b));
	fx_same(b, model, SIZE);
	blk_close(b);
}

TEST(another_backing_file_and_none)
{
	struct blk *b;
	char byte;

	fx_create("base", "qcow2", MiB, NULL, NULL);
	fx_create("other", "qcow2", MiB, NULL, NULL);
	b = fx_open("other", "qcow2", 0);
	CHECK_EQ(0, blk_write(b, "x", 1, 5));
	blk_close(b);
	fx_create("d", "qcow2", 0, NULL, "base");
	b = fx_open("d", "qcow2", 0);
	CHECK_EQ(0, blk_change_backing(b, "other", "qcow2", &fx_err));
	blk_close(b);
	b = fx_open("d", "qcow2", 0);
	CHECK_EQ(0, blk_read(b, &byte, 1, 5));
	CHECK_EQ('x', byte);
	CHECK_EQ(0, blk_change_backing(b, NULL, NULL, &fx_err));
	blk_close(b);
	b = fx_open("d", "qcow2", 0);
	CHECK(!blk_backing(b));
	CHECK_EQ(0, blk_read(b, &byte, 1, 5));
	CHECK_EQ(0, byte);
	blk_close(b);
}

/* ---- compressed ---- */

/* Cluster `i` of the model, packed when it packs. */
static unsigned pack_cluster(struct blk *b, uint64_t off, uint64_t size)
{
	static uint8_t out[2 << 20];
	uint32_t cluster = blk_info(b)->cluster;
	size_t len = MIN(cluster, size - off), n;
	int r = blk_pack(b, model + off, len, out, sizeof(out), &n);

	if (r == -E2BIG) {
		CHECK_EQ(0, blk_write(b, model + off, len, off));
		return 0;
	}
	CHECK_EQ(0, r);
	CHECK_EQ(0, blk_write_packed(b, out, n, len, off));
	return 1;
}

static void fill_text(uint64_t size)
{
	for (uint64_t i = 0; i < size; i++)
		model[i] = i / 100000 % 4 == 3 ? (uint8_t)fx_rnd(256)
					       : (uint8_t) "abcdefgh  \n"[fx_rnd(11)];
}

static void packed(const struct blk_kv *opt)
{
	struct blk_check c;
	unsigned n = 0;
	struct blk *b;

	fill_text(SIZE);
	fx_create("d", "qcow2", SIZE, opt, NULL);
	b = fx_open("d", "qcow2", 0);
	CHECK(blk_can_pack(b));
	for (uint64_t off = 0; off < SIZE; off += blk_info(b)->cluster)
		n += pack_cluster(b, off, SIZE);
	fx_same(b, model, SIZE);
	blk_close(b);
	CHECK(n > 0);
	c = fx_check("d", "qcow2", 0);
	CHECK_EQ(0, c.corruptions + c.leaks);
	CHECK_EQ(n, c.compressed_clusters);
	if (fx_have("qemu-img")) {
		fx_qemu_reads("d", "qcow2", model, SIZE);
		CHECK_EQ(0, fx_run("qemu-img check -f qcow2 %s", fx_path("d")));
	}
	fx_storm("d", "qcow2", model, SIZE, 150);
	fx_is_clean("d", "qcow2");
}

TEST(compressed_with_zlib)
{
	packed(NULL);
}

TEST(compressed_with_zstd)
{
	packed(FX_OPTS({"compression_type", "zstd"}));
}

TEST(compressed_with_clusters_of_any_size)
{
	packed(FX_OPTS({"cluster_size", "4k"}));
	packed(FX_OPTS({"cluster_size", "512"}, {"refcount_bits", "2"}));
	packed(FX_OPTS({"cluster_size", "2M"}, {"compression_type", "zstd"}));
	packed(FX_OPTS({"cluster_size", "16k"}, {"extended_l2", "on"}));
	packed(FX_OPTS({"cluster_size", "4k"}, {"refcount_bits", "1"}));
}

/* ---- what qemu-img writes ---- */

static void fill_blocks(uint64_t size)
{
	for (uint64_t i = 0; i < size; i++)
		model[i] = i / 30000 % 3 == 1 ? 0 : (uint8_t)(i * 7 >> 3);
}

static void from_qemu(const char *opts)
{
	struct blk *b;

	fill_blocks(SIZE);
	fx_qemu_writes("d", "qcow2", opts, model, SIZE);
	b = fx_open("d", "qcow2", BLK_READONLY);
	fx_same(b, model, SIZE);
	fx_map_is_true(b, model, SIZE);
	blk_close(b);
	fx_is_clean("d", "qcow2");
	fx_storm("d", "qcow2", model, SIZE, 60);
	fx_is_clean("d", "qcow2");
	fx_qemu_reads("d", "qcow2", model, SIZE);
	CHECK_EQ(0, fx_run("qemu-img check -f qcow2 %s", fx_path("d")));
}

TEST(images_of_qemu_img_with_every_cluster_size)
{
	static const char *const sizes[] = {"512", "1k",   "2k",   "4k",   "8k", "16k", "32k",
					    "64k", "128k", "256k", "512k", "1M", "2M"};
	char opts[64];

	NEED("qemu-img");
	for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
		snprintf(opts, sizeof(opts), "-o cluster_size=%s", sizes[i]);
		from_qemu(opts);
	}
}

TEST(images_of_qemu_img_with_every_width_of_counts)
{
	char opts[64];

	NEED("qemu-img");
	for (unsigned bits = 1; bits <= 64; bits *= 2) {
		snprintf(opts, sizeof(opts), "-o refcount_bits=%u,cluster_size=1k", bits);
		from_qemu(opts);
	}
}

TEST(images_of_qemu_img_with_other_options)
{
	NEED("qemu-img");
	from_qemu("-o compat=0.10");
	from_qemu("-o lazy_refcounts=on");
	from_qemu("-o extended_l2=on");
	from_qemu("-o extended_l2=on,cluster_size=16k");
	from_qemu("-o preallocation=metadata");
	from_qemu("-o preallocation=full");
	from_qemu("-c");
	from_qemu("-c -o cluster_size=4k,refcount_bits=8");
	from_qemu("-c -o compression_type=zstd");
	from_qemu("-c -o extended_l2=on,compression_type=zstd,cluster_size=128k");
}

TEST(a_data_file_of_qemu_img)
{
	struct blk *b;

	NEED("qemu-img");
	fill_blocks(SIZE);
	/* The name is written as it is given. */
	fx_path("makes the directory");
	CHECK_EQ(0, fx_run("cd %s && qemu-img create -f qcow2 -o data_file=data d %u", fx_dir,
			   (unsigned)SIZE));
	b = fx_open("d", "qcow2", 0);
	CHECK_EQ(0, blk_write(b, model, SIZE, 0));
	blk_close(b);
	fx_is_clean("d", "qcow2");
	qemu_agrees();
}

/* ---- snapshots ---- */

static uint8_t past[4][SIZE];

static void snap(struct blk *b, const char *name)
{
	if (blk_snapshot_create(b, name, &fx_err) < 0) {
		printf("# %s\n", fx_err.msg);
		CHECK(!"the snapshot is made");
	}
}

static void shows(const char *snapshot, const uint8_t *want)
{
	struct blk_open_opts opts = {.snapshot = snapshot};
	struct blk *b;

	CHECK_EQ(0, blk_open_with(&b, fx_path("d"), "qcow2", BLK_READONLY | BLK_NO_POOL, &opts,
				  &fx_err));
	fx_same(b, want, SIZE);
	blk_close(b);
}

static void snapshots(const struct blk_kv *opt)
{
	static const char *const names[] = {"one", "two", "three", "four"};
	struct blk *b;

	memset(model, 0, sizeof(model));
	fx_create("d", "qcow2", SIZE, opt, NULL);
	for (unsigned i = 0; i < 4; i++) {
		fx_storm("d", "qcow2", model, SIZE, 60);
		b = fx_open("d", "qcow2", 0);
		snap(b, names[i]);
		memcpy(past[i], model, SIZE);
		blk_close(b);
	}
	fx_storm("d", "qcow2", model, SIZE, 60);
	fx_is_clean("d", "qcow2");
	for (unsigned i = 0; i < 4; i++)
		shows(names[i], past[i]);
	b = fx_open("d", "qcow2", 0);
	CHECK_EQ(0, blk_snapshot_delete(b, "two", &fx_err));
	fx_same(b, model, SIZE);
	CHECK_EQ(0, blk_snapshot_apply(b, "three", &fx_err));
	fx_same(b, past[2], SIZE);
	memcpy(model, past[2], SIZE);
	blk_close(b);
	fx_is_clean("d", "qcow2");
	fx_storm("d", "qcow2", model, SIZE, 60);
	shows("one", past[0]);
	shows("3", past[2]);
	shows("four", past[3]);
	qemu_agrees();
	b = fx_open("d", "qcow2", 0);
	CHECK_EQ(0, blk_snapshot_delete(b, "1", &fx_err));
	CHECK_EQ(0, blk_snapshot_delete(b, "four", &fx_err));
	CHECK_EQ(0, blk_snapshot_delete(b, "three", &fx_err));
	CHECK_EQ(-ENOENT, blk_snapshot_delete(b, "three", &fx_err));
	fx_same(b, model, SIZE);
	blk_close(b);
	fx_is_clean("d", "qcow2");
	qemu_agrees();
}

TEST(snapshots_keep_the_past)
{
	snapshots(NULL);
}

TEST(snapshots_of_small_clusters)
{
	snapshots(FX_OPTS({"cluster_size", "1k"}, {"refcount_bits", "4"}));
}

TEST(snapshots_of_subclusters)
{
	snapshots(FX_OPTS({"extended_l2", "on"}, {"cluster_size", "16k"}));
}

TEST(snapshots_of_version_2_with_late_counts_off)
{
	snapshots(FX_OPTS({"compat", "0.10"}));
}

TEST(snapshots_with_lazy_refcounts)
{
	snapshots(FX_OPTS({"lazy_refcounts", "on"}));
}

TEST(counts_that_are_too_narrow_refuse_a_snapshot)
{
	struct blk *b;

	fx_create("d", "qcow2", MiB, FX_OPTS({"refcount_bits", "1"}), NULL);
	b = fx_open("d", "qcow2", 0);
	CHECK_EQ(0, blk_write(b, model, 200000, 0));
	CHECK_EQ(-EMLINK, blk_snapshot_create(b, "s", &fx_err));
	CHECK(strstr(fx_err.msg, "refcount_bits=1"));
	CHECK_EQ(0, blk_write(b, model, 200000, 100000));
	blk_close(b);
	fx_is_clean("d", "qcow2");
}

TEST(snapshots_of_qemu_img)
{
	struct blk_snapshot *list;
	struct blk *b;
	unsigned n;

	NEED("qemu-img");
	fill_blocks(SIZE);
	fx_qemu_writes("d", "qcow2", "", model, SIZE);
	CHECK_EQ(0, fx_run("qemu-img snapshot -c then %s", fx_path("d")));
	memcpy(past[0], model, SIZE);
	fx_storm("d", "qcow2", model, SIZE, 60);
	b = fx_open("d", "qcow2", 0);
	CHECK_EQ(0, blk_snapshot_list(b, &list, &n, &fx_err));
	CHECK_EQ(1, n);
	CHECK_STR("then", list[0].name);
	CHECK_STR("1", list[0].id);
	CHECK_EQ(SIZE, list[0].disk_size);
	free(list);
	snap(b, "ours");
	blk_close(b);
	shows("then", past[0]);
	CHECK_EQ(0, fx_run("qemu-img snapshot -a then %s", fx_path("d")));
	memcpy(past[1], model, SIZE);
	memcpy(model, past[0], SIZE);
	qemu_agrees();
	shows("ours", past[1]);
	CHECK_EQ(0, fx_run("qemu-img snapshot -d then %s", fx_path("d")));
	fx_is_clean("d", "qcow2");
	fx_storm("d", "qcow2", model, SIZE, 60);
	shows("ours", past[1]);
}

struct snapshotter {
	struct blk *b;
	_Atomic bool stop;
	unsigned made;
};

static void *make_snapshots(void *arg)
{
	struct snapshotter *s = arg;
	char name[16];

	for (unsigned i = 0; i < 100; i++) {
		snprintf(name, sizeof(name), "s%u", i);
		if (blk_snapshot_create(s->b, name, NULL) < 0)
			return (void *)"create";
		snprintf(name, sizeof(name), "s%u", i / 2);
		if (i % 3 == 2 && i % 6 != 5 && blk_snapshot_delete(s->b, name, NULL) < 0 &&
		    i % 12 == 2)
			return (void *)"delete";
		s->made++;
	}
	s->stop = true;
	return NULL;
}

TEST(a_hundred_snapshots_under_running_writes)
{
	struct snapshotter s = {0};
	pthread_t t;
	void *why;

	memset(model, 0, sizeof(model));
	fx_create("d", "qcow2", SIZE, FX_OPTS({"cluster_size", "4k"}), NULL);
	s.b = fx_open("d", "qcow2", 0);
	CHECK_EQ(0, pthread_create(&t, NULL, make_snapshots, &s));
	for (unsigned i = 0; i < 4000 && (!s.stop || i < 500); i++) {
		uint64_t off = fx_rnd(SIZE / 512 - 8) * 512;

		memset(model + off, (int)i | 1, 4096);
		CHECK_EQ(0, blk_write(s.b, model + off, 4096, off));
	}
	pthread_join(t, &why);
	CHECK(!why);
	CHECK_EQ(100, s.made);
	fx_same(s.b, model, SIZE);
	blk_close(s.b);
	fx_is_clean("d", "qcow2");
	qemu_agrees();
}

/* ---- size ---- */

TEST(growing_and_shrinking)
{
	static const uint64_t sizes[] = {SIZE, 3 * MiB + 512, 9 * MiB, 1 * MiB, 20 * MiB, SIZE};
	struct blk *b;

	memset(model, 0, sizeof(model));
	fx_create("d", "qcow2", SIZE, FX_OPTS({"cluster_size", "1k"}), NULL);
	for (unsigned i = 1; i < ARRAY_SIZE(sizes); i++) {
		fx_storm("d", "qcow2", model, sizes[i - 1], 60);
		b = fx_open("d", "qcow2", 0);
		CHECK_EQ(0, blk_resize(b, sizes[i]));
		CHECK_EQ(sizes[i], blk_size(b));
		if (sizes[i] < sizes[i - 1])
			memset(model + sizes[i], 0, sizes[i - 1] - sizes[i]);
		fx_same(b, model, sizes[i]);
		blk_close(b);
		fx_is_clean("d", "qcow2");
	}
	qemu_agrees();
}

TEST(what_grows_hides_a_longer_backing_file)
{
	static const char *const compat[] = {"1.1", "0.10"};
	struct blk *b;

	for (unsigned i = 0; i < 2; i++) {
		fx_create("base", "qcow2", SIZE, NULL, NULL);
		memset(model, 0x77, SIZE);
		b = fx_open("base", "qcow2", 0);
		CHECK_EQ(0, blk_write(b, model, SIZE, 0));
		blk_close(b);
		fx_create("d", "qcow2", MiB + 512, FX_OPTS({"compat", compat[i]}), "base");
		b = fx_open("d", "qcow2", 0);
		CHECK_EQ(0, blk_resize(b, SIZE));
		memset(model + MiB + 512, 0, SIZE - MiB - 512);
		fx_same(b, model, SIZE);
		blk_close(b);
		fx_is_clean("d", "qcow2");
	}
}

TEST(an_image_can_be_emptied)
{
	struct blk *b;

	memset(model, 0x66, SIZE);
	fx_create("base", "qcow2", SIZE, NULL, NULL);
	b = fx_open("base", "qcow2", 0);
	CHECK_EQ(0, blk_write(b, model, SIZE, 0));
	blk_close(b);
	memcpy(past[0], model, SIZE);
	fx_create("d", "qcow2", 0, NULL, "base");
	fx_storm("d", "qcow2", model, SIZE, 80);
	b = fx_open("d", "qcow2", 0);
	CHECK_EQ(0, blk_make_empty(b, &fx_err));
	fx_same(b, past[0], SIZE);
	blk_close(b);
	fx_is_clean("d", "qcow2");
}

TEST(version_2_becomes_3)
{
	struct blk_kv opt[] = {{"compat", "1.1"}, {"lazy_refcounts", "on"}};
	struct blk *b;

	memset(model, 0, sizeof(model));
	fx_create("d", "qcow2", SIZE, FX_OPTS({"compat", "0.10"}), NULL);
	fx_storm("d", "qcow2", model, SIZE, 80);
	b = fx_open("d", "qcow2", 0);
	snap(b, "s");
	CHECK_EQ(0, blk_amend(b, opt, 2, &fx_err));
	CHECK_EQ(-ENOTSUP, blk_amend(b, (struct blk_kv[]){{"cluster_size", "4k"}}, 1, &fx_err));
	blk_close(b);
	fx_is_clean("d", "qcow2");
	qemu_agrees();
	fx_storm("d", "qcow2", model, SIZE, 80);
	qemu_agrees();
}

TEST(measure_foretells_what_an_image_takes)
{
	struct blk_measure m = {.size = SIZE, .data = SIZE};
	struct blk *b;

	CHECK_EQ(0, blk_measure("qcow2", NULL, 0, &m, &fx_err));
	fx_create("d", "qcow2", SIZE, NULL, NULL);
	memset(model, 0x11, SIZE);
	b = fx_open("d", "qcow2", 0);
	CHECK_EQ(0, blk_write(b, model, SIZE, 0));
	blk_close(b);
	CHECK(fx_file_size("d") <= m.required);
	CHECK(m.required - fx_file_size("d") < 128 * KiB);
	CHECK_EQ(m.required, m.fully_allocated);
}

/* ---- encryption ---- */

static int tell_secret(void *opaque, const char *path, char *buf, size_t cap)
{
	return snprintf(buf, cap, "%s", (const char *)opaque);
}

static struct blk *open_secret(const char *secret, unsigned flags)
{
	struct blk_open_opts opts = {.secret = tell_secret, .opaque = (void *)(uintptr_t)secret};
	struct blk *b = NULL;

	if (blk_open_with(&b, fx_path("d"), "qcow2", flags | BLK_NO_POOL, &opts, &fx_err) < 0)
		printf("# %s\n", fx_err.msg);
	return b;
}

static void create_luks(const struct blk_kv *opt)
{
	struct blk_create c = {.path = fx_path("d"),
			       .size = SIZE,
			       .opt = opt,
			       .overwrite = true,
			       .secret = "horse",
			       .secret_len = 5};

	while (opt[c.nr_opts].key)
		c.nr_opts++;
	if (blk_create("qcow2", &c, &fx_err) < 0) {
		printf("# %s\n", fx_err.msg);
		CHECK(!"the image is made");
	}
}

static const char qemu_luks[] = "--object secret,id=s,data=%s --image-opts "
				"driver=qcow2,encrypt.key-secret=s,file.filename=%s";

static void qemu_reads_luks(void)
{
	struct blk *raw;
	char args[512];

	if (!fx_have("qemu-img"))
		return;
	snprintf(args, sizeof(args), qemu_luks, "horse", fx_path("d"));
	CHECK_EQ(0, fx_run("qemu-img convert %s -O raw %s", args, fx_path("qemu.raw")));
	raw = fx_open("qemu.raw", "raw", BLK_READONLY);
	fx_same(raw, model, SIZE);
	blk_close(raw);
	CHECK_EQ(0, fx_run("qemu-img check %s", args));
}

static void luks(const struct blk_kv *opt)
{
	struct blk *b;

	memset(model, 0, sizeof(model));
	create_luks(opt);
	b = open_secret("horse", 0);
	CHECK(b);
	CHECK(blk_info(b)->encrypted);
	CHECK(!blk_can_pack(b));
	for (unsigned i = 0; i < 120; i++)
		fx_one_op(b, model, SIZE);
	fx_same(b, model, SIZE);
	blk_close(b);
	b = open_secret("horse", BLK_READONLY);
	CHECK(b);
	fx_same(b, model, SIZE);
	blk_close(b);
	CHECK(!open_secret("cow", BLK_READONLY));
	CHECK(strstr(fx_err.msg, "passphrase"));
	fx_is_clean("d", "qcow2");
	qemu_reads_luks();
}

TEST(encrypted_with_luks)
{
	luks(FX_OPTS({"encrypt.format", "luks"}, {"encrypt.iter-time", "10"}));
}

TEST(encrypted_with_other_ciphers)
{
	luks(FX_OPTS({"encrypt.format", "luks"}, {"encrypt.iter-time", "10"},
		     {"encrypt.cipher-alg", "aes-128"}, {"encrypt.hash-alg", "sha1"}));
	luks(FX_OPTS({"encrypt.format", "luks"}, {"encrypt.iter-time", "10"},
		     {"encrypt.cipher-mode", "cbc"}, {"encrypt.ivgen-alg", "essiv"},
		     {"encrypt.ivgen-hash-alg", "sha256"}, {"encrypt.hash-alg", "sha512"}));
}

TEST(encrypted_subclusters_preallocated)
{
	luks(FX_OPTS({"encrypt.format", "luks"}, {"encrypt.iter-time", "10"}, {"extended_l2", "on"},
		     {"preallocation", "metadata"}));
	luks(FX_OPTS({"encrypt.format", "luks"}, {"encrypt.iter-time", "10"},
		     {"preallocation", "metadata"}));
}

TEST(encrypted_images_of_qemu_img)
{
	struct blk *b;
	int fd, made = 1;

	NEED("qemu-img");
	fill_blocks(SIZE);
	fd = open(fx_path("model.raw"), O_CREAT | O_RDWR | O_TRUNC, 0600);
	CHECK_EQ(SIZE, write(fd, model, SIZE));
	close(fd);
	/* It measures how fast it hashes, and gives up when a busy machine makes that impossible.
	 */
	for (unsigned i = 0; made && i < 5; i++)
		made = fx_run("qemu-img convert --object secret,id=s,data=horse -f raw -O qcow2 -o "
			      "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=%u %s %s",
			      10 + 100 * i, fx_path("model.raw"), fx_path("d"));
	if (made)
		SKIP("qemu-img makes no encrypted image here");
	b = open_secret("horse", 0);
	CHECK(b);
	fx_same(b, model, SIZE);
	for (unsigned i = 0; i < 60; i++)
		fx_one_op(b, model, SIZE);
	blk_close(b);
	qemu_reads_luks();
}

TEST(the_old_encryption_can_be_read)
{
	struct blk *b;
	int fd;

	NEED("qemu-img");
	fill_blocks(SIZE);
	fd = open(fx_path("model.raw"), O_CREAT | O_RDWR | O_TRUNC, 0600);
	CHECK_EQ(SIZE, write(fd, model, SIZE));
	close(fd);
	CHECK_EQ(0, fx_run("qemu-img convert --object secret,id=s,data=horse -f raw -O qcow2 -o "
			   "encrypt.format=aes,encrypt.key-secret=s %s %s",
			   fx_path("model.raw"), fx_path("d")));
	CHECK(!open_secret("horse", 0));
	CHECK(strstr(fx_err.msg, "can only be read"));
	b = open_secret("horse", BLK_READONLY);
	CHECK(b);
	fx_same(b, model, SIZE);
	blk_close(b);
}

/* ---- dirty bitmaps ---- */

static bool is_dirty(struct blk *b, const char *name, uint64_t off)
{
	uint64_t len = 1;
	bool dirty;

	CHECK_EQ(0, blk_bitmap_query(b, name, off, &len, &dirty, &fx_err));
	return dirty;
}

static uint64_t dirty_bytes(struct blk *b, unsigned which)
{
	struct blk_bitmap *list;
	uint64_t bytes;
	unsigned n;

	CHECK_EQ(0, blk_bitmap_list(b, &list, &n, &fx_err));
	CHECK(which < n);
	bytes = list[which].dirty_bytes;
	free(list);
	return bytes;
}

TEST(bitmaps_remember_writes)
{
	struct blk *b;

	fx_create("d", "qcow2", SIZE, NULL, NULL);
	b = fx_open("d", "qcow2", 0);
	CHECK_EQ(0, blk_bitmap_add(b, "b", 4096, &fx_err));
	CHECK_EQ(-EEXIST, blk_bitmap_add(b, "b", 4096, &fx_err));
	CHECK_EQ(0, blk_bitmap_add(b, "coarse", 0, &fx_err));
	CHECK_EQ(0, blk_write(b, "x", 1, 10000));
	CHECK(is_dirty(b, "b", 8192));
	CHECK(!is_dirty(b, "b", 8191));
	blk_close(b);
	b = fx_open("d", "qcow2", 0);
	CHECK(is_dirty(b, "b", 12287));
	CHECK(!is_dirty(b, "b", 12288));
	CHECK_EQ(4096, dirty_bytes(b, 0));
	CHECK_EQ(65536, dirty_bytes(b, 1));
	CHECK_EQ(0, blk_bitmap_record(b, "b", false, &fx_err));
	CHECK_EQ(0, blk_write_zeroes(b, MiB, 512, true));
	CHECK_EQ(0, blk_discard(b, 2 * MiB, 65536));
	CHECK_EQ(4096, dirty_bytes(b, 0));
	CHECK(is_dirty(b, "coarse", MiB) && is_dirty(b, "coarse", 2 * MiB));
	CHECK_EQ(0, blk_bitmap_merge(b, "b", "coarse", &fx_err));
	CHECK(is_dirty(b, "b", MiB + 65535) && !is_dirty(b, "b", MiB + 65536));
	CHECK_EQ(0, blk_bitmap_clear(b, "coarse", &fx_err));
	CHECK_EQ(0, dirty_bytes(b, 1));
	blk_close(b);
	fx_is_clean("d", "qcow2");
	b = fx_open("d", "qcow2", 0);
	CHECK_EQ(3 * 65536, dirty_bytes(b, 0));
	CHECK_EQ(0, blk_bitmap_remove(b, "b", &fx_err));
	CHECK_EQ(0, blk_bitmap_remove(b, "coarse", &fx_err));
	blk_close(b);
	fx_is_clean("d", "qcow2");
}

TEST(bitmaps_of_a_crash_are_not_trusted)
{
	struct blk_bitmap *list;
	struct blk *b;
	unsigned n;

	fx_create("d", "qcow2", SIZE, NULL, NULL);
	b = fx_open("d", "qcow2", 0);
	CHECK_EQ(0, blk_bitmap_add(b, "b", 4096, &fx_err));
	blk_close(b);
	fflush(stdout);
	if (fork() == 0) {
		b = fx_open("d", "qcow2", 0);
		blk_write(b, "x", 1, 0);
		blk_flush(b);
		_exit(0);
	}
	wait(NULL);
	b = fx_open("d", "qcow2", 0);
	CHECK_EQ(0, blk_bitmap_list(b, &list, &n, &fx_err));
	CHECK(n == 1 && list[0].in_use);
	free(list);
	CHECK_EQ(-EINVAL, blk_bitmap_clear(b, "b", &fx_err));
	CHECK_EQ(0, blk_bitmap_remove(b, "b", &fx_err));
	blk_close(b);
	fx_is_clean("d", "qcow2");
}

TEST(bitmaps_grow_with_the_disk)
{
	struct blk *b;

	fx_create("d", "qcow2", MiB, NULL, NULL);
	b = fx_open("d", "qcow2", 0);
	CHECK_EQ(0, blk_bitmap_add(b, "b", 512, &fx_err));
	CHECK_EQ(0, blk_write(b, "x", 1, MiB - 1));
	CHECK_EQ(0, blk_resize(b, 900 * MiB));
	CHECK_EQ(0, blk_write(b, "x", 1, 900 * MiB - 1));
	blk_close(b);
	b = fx_open("d", "qcow2", 0);
	CHECK(is_dirty(b, "b", MiB - 1) && !is_dirty(b, "b", MiB));
	CHECK(is_dirty(b, "b", 900 * MiB - 1));
	CHECK_EQ(1024, dirty_bytes(b, 0));
	CHECK_EQ(0, blk_resize(b, MiB));
	blk_close(b);
	fx_is_clean("d", "qcow2");
	NEED("qemu-img");
	CHECK_EQ(0, fx_run("qemu-img check %s", fx_path("d")));
}

TEST(bitmaps_of_qemu_img)
{
	struct blk *b;

	NEED("qemu-io");
	CHECK_EQ(0, fx_run("qemu-img create -f qcow2 %s 10M", fx_path("d")));
	CHECK_EQ(0, fx_run("qemu-img bitmap --add -g 4k %s theirs", fx_path("d")));
	CHECK_EQ(0, fx_run("qemu-io -f qcow2 -c 'write 1M 64k' %s", fx_path("d")));
	fx_is_clean("d", "qcow2");
	b = fx_open("d", "qcow2", 0);
	CHECK_EQ(65536, dirty_bytes(b, 0));
	CHECK(is_dirty(b, "theirs", MiB));
	CHECK_EQ(0, blk_write(b, "x", 1, 5 * MiB));
	CHECK_EQ(0, blk_bitmap_add(b, "ours", 512, &fx_err));
	CHECK_EQ(0, blk_write(b, "x", 1, 6 * MiB));
	blk_close(b);
	fx_is_clean("d", "qcow2");
	CHECK_EQ(0, fx_run("qemu-img bitmap --merge theirs %s ours", fx_path("d")));
	b = fx_open("d", "qcow2", 0);
	CHECK(is_dirty(b, "ours", MiB) && is_dirty(b, "ours", 5 * MiB));
	CHECK(is_dirty(b, "ours", 6 * MiB) && !is_dirty(b, "ours", 7 * MiB));
	blk_close(b);
	CHECK_EQ(0, fx_run("qemu-img check %s", fx_path("d")));
}

/* ---- damage ---- */

static uint64_t at64(const char *name, uint64_t off)
{
	uint8_t p[8];
	int fd = open(fx_path(name), O_RDONLY);

	CHECK(fd >= 0);
	CHECK_EQ(8, pread(fd, p, 8, (off_t)off));
	close(fd);
	return be64_load(p);
}

static void patch64(const char *name, uint64_t off, uint64_t value)
{
	uint8_t p[8];

	be64_store(p, value);
	fx_patch(name, off, p, 8);
}

static void patch32(const char *name, uint64_t off, uint32_t value)
{
	uint8_t p[4];

	be32_store(p, value);
	fx_patch(name, off, p, 4);
}

static void small_image(void)
{
	struct blk *b;

	fill_blocks(SIZE);
	memset(model, 0x21, 300000);
	fx_create("d", "qcow2", SIZE, NULL, NULL);
	b = fx_open("d", "qcow2", 0);
	CHECK_EQ(0, blk_write(b, model, SIZE, 0));
	blk_close(b);
}

static uint64_t first_block(void)
{
	return at64("d", at64("d", 48));
}

static uint64_t first_table(void)
{
	return at64("d", at64("d", 40)) & 0x00fffffffffffe00;
}

/* The check finds it, repairs it, and the content is what it was. */
static void is_mended(void)
{
	struct blk *b;

	CHECK(fx_check("d", "qcow2", 0).corruptions > 0);
	CHECK_EQ(0, fx_check("d", "qcow2", BLK_FIX_LEAKS | BLK_FIX_ERRORS).corruptions);
	fx_is_clean("d", "qcow2");
	b = fx_open("d", "qcow2", 0);
	fx_same(b, model, SIZE);
	blk_close(b);
	qemu_agrees();
}

TEST(counts_that_are_too_low_are_mended)
{
	small_image();
	patch64("d", first_block() + 16, 0);
	is_mended();
}

TEST(a_lost_refcount_block_is_made_anew)
{
	small_image();
	patch64("d", at64("d", 48), 0);
	is_mended();
}

TEST(a_refcount_block_over_data_is_made_anew)
{
	small_image();
	patch64("d", at64("d", 48), at64("d", first_table()) & 0x00fffffffffffe00);
	is_mended();
}

TEST(a_lost_refcount_table_is_made_anew)
{
	small_image();
	patch64("d", 48, 1ull << 40);
	is_mended();
}

TEST(a_leak_is_a_leak)
{
	struct blk_check c;

	small_image();
	patch64("d", first_table(), 0);
	memset(model, 0, 65536);
	c = fx_check("d", "qcow2", 0);
	CHECK_EQ(0, c.corruptions);
	CHECK_EQ(1, c.leaks);
	c = fx_check("d", "qcow2", BLK_FIX_LEAKS);
	CHECK_EQ(1, c.leaks_fixed);
	CHECK_EQ(0, c.leaks);
	fx_is_clean("d", "qcow2");
	qemu_agrees();
}

TEST(data_used_twice_is_told_apart)
{
	struct blk *b;

	small_image();
	patch64("d", first_table() + 8, at64("d", first_table()));
	memcpy(model + 65536, model, 65536);
	CHECK(fx_check("d", "qcow2", 0).corruptions > 0);
	CHECK_EQ(0, fx_check("d", "qcow2", BLK_FIX_LEAKS | BLK_FIX_ERRORS).corruptions);
	b = fx_open("d", "qcow2", 0);
	fx_same(b, model, SIZE);
	memset(model, 0x99, 4096);
	CHECK_EQ(0, blk_write(b, model, 4096, 0));
	fx_same(b, model, SIZE);
	blk_close(b);
	/* The one that is left does not know that it is alone. */
	CHECK_EQ(1, fx_check("d", "qcow2", BLK_FIX_LEAKS).leaks_fixed);
	fx_is_clean("d", "qcow2");
	qemu_agrees();
}

TEST(entries_that_point_nowhere_are_dropped)
{
	struct blk *b;

	small_image();
	patch64("d", first_table(), 1ull << 50 | 1ull << 63);
	patch64("d", first_table() + 8, 0x100200 | 1ull << 63);
	b = fx_open("d", "qcow2", BLK_READONLY);
	CHECK_EQ(-EIO, blk_read(b, model, 1, 65536));
	blk_close(b);
	memset(model, 0, 2 * 65536);
	is_mended();
}

TEST(nonsense_met_while_writing_marks_the_image_corrupt)
{
	struct blk *b;

	small_image();
	patch64("d", first_table(), 0x100200 | 1ull << 63);
	b = fx_open("d", "qcow2", 0);
	CHECK_EQ(-EIO, blk_write(b, model, 512, 0));
	CHECK(blk_info(b)->corrupt);
	CHECK_EQ(-EIO, blk_write(b, model, 512, MiB));
	CHECK_EQ(0, blk_read(b, past[0], 512, MiB));
	blk_close(b);
	fx_refused("d", "qcow2", 0, "marked corrupt");
	b = fx_open("d", "qcow2", BLK_READONLY);
	CHECK(blk_info(b)->corrupt);
	blk_close(b);
	memset(model, 0, 65536);
	is_mended();
	b = fx_open("d", "qcow2", 0);
	CHECK(!blk_info(b)->corrupt);
	blk_close(b);
}

TEST(data_over_metadata_is_not_written)
{
	static const uint8_t at[] = {0, 40, 48}; /* the header, L1, refcount table */
	struct blk *b;

	for (unsigned i = 0; i < 3; i++) {
		small_image();
		patch64("d", first_table(), (i ? at64("d", at[i]) : 0x1000000000000) | 1ull << 63);
		b = fx_open("d", "qcow2", 0);
		if (i)
			CHECK_EQ(-EIO, blk_write(b, model, 512, 0));
		blk_close(b);
		CHECK(fx_check("d", "qcow2", 0).corruptions > 0);
	}
}

TEST(a_crash_with_lazy_refcounts_is_recovered_from)
{
	struct blk *b;

	memset(model, 0, sizeof(model));
	fx_create("d", "qcow2", SIZE, FX_OPTS({"lazy_refcounts", "on"}), NULL);
	fflush(stdout);
	if (fork() == 0) {
		b = fx_open("d", "qcow2", 0);
		memset(model, 0x31, MiB);
		blk_write(b, model, MiB, MiB);
		blk_flush(b);
		_exit(0);
	}
	wait(NULL);
	memset(model + MiB, 0x31, MiB);
	b = fx_open("d", "qcow2", BLK_READONLY);
	CHECK(blk_info(b)->dirty);
	fx_same(b, model, SIZE);
	blk_close(b);
	CHECK_EQ(0, fx_check("d", "qcow2", 0).corruptions);
	b = fx_open("d", "qcow2", 0);
	CHECK(!blk_info(b)->dirty);
	fx_same(b, model, SIZE);
	blk_close(b);
	fx_is_clean("d", "qcow2");
	qemu_agrees();
}

/* ---- what is refused, and in which words ---- */

static void refused32(uint64_t off, uint32_t value, const char *words)
{
	fx_create("d", "qcow2", SIZE, NULL, NULL);
	patch32("d", off, value);
	fx_refused("d", "qcow2", BLK_READONLY, words);
}

static void refused64(uint64_t off, uint64_t value, const char *words)
{
	fx_create("d", "qcow2", SIZE, NULL, NULL);
	patch64("d", off, value);
	fx_refused("d", "qcow2", BLK_READONLY, words);
}

TEST(headers_beyond_the_limits_are_refused)
{
	refused32(0, 0, "not a qcow2 image");
	refused32(4, 4, "version 4");
	refused32(20, 8, "2^8");
	refused32(20, 22, "2^22");
	refused64(24, UINT64_MAX - 511, "2^63");
	refused64(24, 1ull << 50, "too small for the disk");
	refused32(32, 3, "encryption method 3");
	refused32(36, 4 << 20 | 1, "32 MiB");
	refused64(40, 0x30200, "not at a cluster");
	refused64(40, 1ull << 63, "not at a cluster");
	refused64(48, 0x200, "not at a cluster");
	refused32(56, 129, "8 MiB");
	refused32(60, 65537, "65536 snapshots");
	refused64(72, 1ull << 40, "bit 40");
	refused64(72, 1 << 3, "disagree");
	refused32(96, 7, "64 bits");
	refused32(100, 103, "header's length");
	refused32(100, 65537, "header's length");
	refused64(8, 65537, "backing file's name");
	refused64(88, 2, "without a data file");
	refused32(116, 70000, "longer than its cluster");
}

TEST(an_unknown_feature_is_named)
{
	static const char name[46] = "time travel";
	uint8_t table[2] = {0, 9};

	fx_create("d", "qcow2", SIZE, NULL, NULL);
	patch64("d", 72, 1 << 9);
	fx_patch("d", 120, table, 2);
	fx_patch("d", 122, name, sizeof(name));
	fx_refused("d", "qcow2", BLK_READONLY, "'time travel' (bit 9)");
}

TEST(unknown_extensions_are_kept)
{
	uint8_t ext[24] = {0};
	struct blk *b;

	fx_create("base", "qcow2", SIZE, NULL, NULL);
	fx_create("d", "qcow2", SIZE, NULL, NULL);
	be32_store(ext, 0x12345678);
	be32_store(ext + 4, 5);
	memcpy(ext + 8, "kept!", 5);
	fx_patch("d", 112, ext, sizeof(ext));
	b = fx_open("d", "qcow2", 0);
	CHECK_EQ(0, blk_change_backing(b, "base", "qcow2", &fx_err));
	blk_close(b);
	CHECK_EQ(0, fx_run("grep -aq 'kept!' %s", fx_path("d")));
	b = fx_open("d", "qcow2", 0);
	CHECK(blk_backing(b));
	blk_close(b);
}

TEST(a_backing_file_elsewhere_is_not_opened)
{
	fx_create("base", "qcow2", SIZE, NULL, NULL);
	fx_create("d", "qcow2", SIZE, NULL, NULL);
	CHECK_EQ(0, fx_run("cp %s %s", fx_path("d"), fx_path("e")));
	{
		struct blk *b = fx_open("e", "qcow2", 0);

		CHECK_EQ(0, blk_change_backing(b, "/etc/passwd", "raw", &fx_err));
		blk_close(b);
	}
	fx_refused("e", "qcow2", BLK_READONLY, "/etc/passwd");
}

TEST(samples_of_others)
{
	static const char *const names[] = {"dfvfs/ext2.qcow2", "dfvfs/windows_volume.qcow2"};

	for (unsigned i = 0; i < 2; i++) {
		const char *path = fx_sample(names[i]);
		struct blk *b, *raw;
		uint64_t size;

		NEED("qemu-img");
		CHECK_EQ(0, fx_run("qemu-img convert -O raw %s %s", path, fx_path("s.raw")));
		CHECK_EQ(0, blk_open(&b, path, "qcow2", BLK_READONLY | BLK_NO_POOL, &fx_err));
		raw = fx_open("s.raw", "raw", BLK_READONLY);
		size = MIN(blk_size(raw), sizeof(model));
		CHECK_EQ(0, blk_read(raw, model, size, 0));
		fx_same(b, model, size);
		blk_close(raw);
		blk_close(b);
	}
}
