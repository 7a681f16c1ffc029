/* Unit tests of src/block/vhdx. */
#include "image_fixture.h"

#include "base/bytes.h"

#define SIZE (12 * MiB + 4096)

static uint8_t model[SIZE + 60 * MiB];

static const struct blk_kv small[] = {{"block_size", "1M"}, {NULL, NULL}};
static const struct blk_kv fixed[] = {{"subformat", "fixed"}, {"block_size", "2M"}, {NULL, NULL}};
static const struct blk_kv large_sectors[] = {
	{"logical_sector_size", "4096"}, {"block_size", "1M"}, {NULL, NULL}};

TEST(random_operations_match_a_model)
{
	fx_create("d", "vhdx", SIZE, small, NULL);
	fx_storm("d", "vhdx", model, SIZE, 250);
	fx_is_clean("d", "vhdx");
}

TEST(large_blocks_and_a_fixed_image_do_the_same)
{
	fx_create("d", "vhdx", SIZE, FX_OPTS({"block_size", "4M"}, {"block_state_zero", "off"}),
		  NULL);
	fx_storm("d", "vhdx", model, SIZE, 90);
	fx_is_clean("d", "vhdx");
	memset(model, 0, sizeof(model));
	fx_create("f", "vhdx", SIZE, fixed, NULL);
	fx_storm("f", "vhdx", model, SIZE, 90);
	fx_is_clean("f", "vhdx");
}

TEST(sectors_of_4096_bytes)
{
	struct blk *b;

	fx_create("a", "vhdx", SIZE, large_sectors, NULL);
	b = fx_open("a", "vhdx", BLK_READONLY);
	CHECK_EQ(4096, blk_info(b)->block_size);
	blk_close(b);
	fx_storm("a", "vhdx", model, SIZE, 100);
	fx_create("d", "vhdx", 0, large_sectors, "a");
	fx_storm("d", "vhdx", model, SIZE, 90);
	fx_is_clean("d", "vhdx");
}

TEST(threads_that_share_blocks_do_not_lose_bytes)
{
	fx_create("a", "vhdx", SIZE, small, NULL);
	fx_crowd("a", "vhdx", model, 12 * MiB);
	fx_is_clean("a", "vhdx");
	fx_create("d", "vhdx", 0, small, "a");
	fx_crowd("d", "vhdx", model, 12 * MiB);
	fx_is_clean("d", "vhdx");
}

TEST(qemu_img_reads_what_we_write)
{
	NEED("qemu-img");
	fx_create("d", "vhdx", SIZE, small, NULL);
	fx_storm("d", "vhdx", model, SIZE, 90);
	fx_qemu_reads("d", "vhdx", model, SIZE);
	CHECK_EQ(0, fx_run("qemu-img check -f vhdx %s", fx_path("d")));
}

TEST(we_read_and_go_on_with_what_qemu_img_writes)
{
	NEED("qemu-img");
	for (unsigned i = 0; i < SIZE; i++)
		model[i] = i / MiB % 3 ? 0 : (uint8_t)(i * 7 >> 3);
	fx_qemu_writes("d", "vhdx", "-o block_size=1M", model, SIZE);
	fx_storm("d", "vhdx", model, SIZE, 100);
	fx_is_clean("d", "vhdx");
	fx_qemu_writes("f", "vhdx", "-o subformat=fixed", model, SIZE);
	fx_storm("f", "vhdx", model, SIZE, 50);
}

TEST(libvhdi_takes_our_images)
{
	NEED("vhdiinfo");
	fx_create("base.vhdx", "vhdx", SIZE, small, NULL);
	fx_storm("base.vhdx", "vhdx", model, SIZE, 60);
	fx_create("child.vhdx", "vhdx", 0, small, "base.vhdx");
	CHECK_EQ(0, fx_run("vhdiinfo %s", fx_path("base.vhdx")));
	CHECK_EQ(0, fx_run("vhdiinfo %s | grep -i 'type.*differential'", fx_path("child.vhdx")));
	CHECK_EQ(0, fx_run("vhdiinfo %s | grep 'base.vhdx'", fx_path("child.vhdx")));
}

/* ---- the log ---- */

/* A copy of the file as it is now, while the image is open. */
static void copy_file(const char *from, const char *to)
{
	CHECK_EQ(0, fx_run("cp %s %s", fx_path(from), fx_path(to)));
}

static void expect_text(const char *name, unsigned flags, uint64_t at, const char *text)
{
	struct blk *b = fx_open(name, "vhdx", flags);
	char got[16] = "";

	CHECK_EQ(0, blk_read(b, got, strlen(text), at));
	CHECK_STR(text, got);
	blk_close(b);
}

/* Take the entry out of the table in place; only the log has it then. */
static void forget_in_place(const char *name)
{
	static const uint8_t nothing[4096];

	fx_patch(name, 3 * MiB, nothing, sizeof(nothing));
}

static void make_dirty(void)
{
	struct blk *b;

	fx_create("d", "vhdx", SIZE, small, NULL);
	b = fx_open("d", "vhdx", 0);
	CHECK_EQ(0, blk_write(b, "logged", 6, 5 * MiB));
	CHECK_EQ(0, blk_flush(b));
	copy_file("d", "dirty");
	blk_close(b);
	forget_in_place("dirty");
}

TEST(a_dirty_log_is_replayed_in_memory_for_readers)
{
	struct stat before, after;
	struct blk *b;

	make_dirty();
	CHECK_EQ(0, stat(fx_path("dirty"), &before));
	CHECK_EQ(0, fx_run("cp %s %s", fx_path("dirty"), fx_path("same")));
	b = fx_open("dirty", "vhdx", BLK_READONLY);
	CHECK(blk_info(b)->dirty);
	blk_close(b);
	expect_text("dirty", BLK_READONLY, 5 * MiB, "logged");
	CHECK_EQ(0, stat(fx_path("dirty"), &after));
	CHECK_EQ(before.st_mtime, after.st_mtime);
	CHECK_EQ(0, fx_run("cmp %s %s", fx_path("dirty"), fx_path("same")));
}

TEST(a_dirty_log_is_replayed_in_the_file_for_writers)
{
	make_dirty();
	expect_text("dirty", 0, 5 * MiB, "logged");
	expect_text("dirty", BLK_READONLY, 5 * MiB, "logged");
	fx_is_clean("dirty", "vhdx");
}

TEST(qemu_img_replays_our_log)
{
	NEED("qemu-img");
	make_dirty();
	CHECK(fx_run("qemu-img info -f vhdx %s", fx_path("dirty")) != 0); /* refused read-only */
	CHECK_EQ(0, fx_run("qemu-img check -r all -f vhdx %s", fx_path("dirty")));
	expect_text("dirty", BLK_READONLY, 5 * MiB, "logged");
}

TEST(a_log_that_is_not_whole_is_not_replayed)
{
	make_dirty();
	fx_patch("dirty", MiB + 100, "\xff\xff", 2);
	forget_in_place("dirty");
	expect_text("dirty", 0, 5 * MiB, "");
}

TEST(a_file_shorter_than_its_log_says_is_refused)
{
	make_dirty();
	CHECK_EQ(0, truncate(fx_path("dirty"), (off_t)(fx_file_size("dirty") - MiB)));
	fx_refused("dirty", "vhdx", BLK_READONLY, "is shorter than when its log was written");
}

TEST(many_commits_go_round_the_log)
{
	static uint8_t buf[4096];
	struct blk *b;

	fx_create("d", "vhdx", 160 * MiB, small, NULL);
	b = fx_open("d", "vhdx", 0);
	for (unsigned i = 0; i < 160; i++) {
		memset(buf, (int)i, sizeof(buf));
		CHECK_EQ(0, blk_write(b, buf, sizeof(buf), i * MiB));
		CHECK_EQ(0, blk_flush(b));
	}
	copy_file("d", "dirty");
	blk_close(b);
	forget_in_place("dirty");
	b = fx_open("dirty", "vhdx", BLK_READONLY);
	for (unsigned i = 0; i < 160; i++) {
		CHECK_EQ(0, blk_read(b, buf, sizeof(buf), i * MiB));
		CHECK_EQ(i & 0xff, buf[4095]);
	}
	blk_close(b);
}

/* ---- chains ---- */

TEST(a_chain_of_differencing_images)
{
	static const char *const name[] = {"a", "b", "c", "d"};

	fx_create("a", "vhdx", SIZE, small, NULL);
	fx_storm("a", "vhdx", model, SIZE, 100);
	for (unsigned i = 1; i < ARRAY_SIZE(name); i++) {
		fx_create(name[i], "vhdx", 0, i % 2 ? small : NULL, name[i - 1]);
		fx_storm(name[i], "vhdx", model, SIZE, 70);
		fx_is_clean(name[i], "vhdx");
	}
}

TEST(parents_are_found_by_relative_name_or_identifier)
{
	struct blk *b;

	CHECK_EQ(0, mkdir(fx_path("sub"), 0700));
	fx_create("sub/base", "vhdx", SIZE, NULL, NULL);
	fx_create("child", "vhdx", 0, NULL, "sub/base");
	b = fx_open("child", "vhdx", BLK_READONLY);
	CHECK(strstr(blk_path(blk_backing(b)), "sub/base"));
	blk_close(b);
	CHECK_EQ(0, rename(fx_path("sub/base"), fx_path("renamed")));
	b = fx_open("child", "vhdx", BLK_READONLY);
	CHECK(strstr(blk_path(blk_backing(b)), "renamed"));
	blk_close(b);
}

TEST(a_parent_that_is_missing_or_has_changed_is_refused)
{
	struct blk *b;

	fx_create("base", "vhdx", SIZE, NULL, NULL);
	fx_create("child", "vhdx", 0, NULL, "base");
	b = fx_open("base", "vhdx", 0);
	CHECK_EQ(0, blk_write(b, "x", 1, 0));
	blk_close(b);
	fx_refused("child", "vhdx", BLK_READONLY, "was changed after it");
	unlink(fx_path("base"));
	fx_refused("child", "vhdx", BLK_READONLY, "--allow-ref");
	b = fx_open("child", "vhdx", BLK_READONLY | BLK_NO_BACKING);
	blk_close(b);
}

TEST(qemu_img_refuses_what_we_open)
{
	NEED("qemu-img");
	fx_create("base", "vhdx", SIZE, small, NULL);
	fx_create("child.avhdx", "vhdx", 0, small, "base");
	CHECK(fx_run("qemu-img info -f vhdx %s", fx_path("child.avhdx")) != 0);
	blk_close(fx_open("child.avhdx", "vhdx", BLK_READONLY));
}

/* ---- sizes ---- */

static void resize_through(const struct blk_kv *opt)
{
	const uint64_t sizes[] = {SIZE + 20 * MiB, 5 * MiB + 4096, 9 * MiB, SIZE + 33 * MiB};
	uint64_t size = SIZE;
	struct blk *b;

	memset(model, 0, sizeof(model));
	fx_create("d", "vhdx", SIZE, opt, NULL);
	fx_storm("d", "vhdx", model, SIZE, 60);
	for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
		b = fx_open("d", "vhdx", 0);
		CHECK_EQ(0, blk_resize(b, sizes[i]));
		if (sizes[i] < size)
			memset(model + sizes[i], 0, size - sizes[i]);
		size = sizes[i];
		fx_same(b, model, size);
		blk_close(b);
		fx_storm("d", "vhdx", model, size, 40);
		fx_check("d", "vhdx", BLK_FIX_LEAKS);
		fx_is_clean("d", "vhdx");
	}
}

TEST(resizing_keeps_the_content_and_adds_zeroes)
{
	resize_through(small);
	resize_through(fixed);
}

/* 1 MiB of table is 128 GiB of blocks of 1 MiB. */
TEST(a_table_that_does_not_fit_any_more_moves)
{
	uint64_t size = 300 * GiB;
	struct blk *b;

	fx_create("d", "vhdx", SIZE, small, NULL);
	fx_storm("d", "vhdx", model, SIZE, 60);
	b = fx_open("d", "vhdx", 0);
	CHECK_EQ(0, blk_resize(b, size));
	CHECK_EQ(0, blk_write(b, "end", 3, size - 3));
	fx_same(b, model, SIZE);
	blk_close(b);
	expect_text("d", BLK_READONLY, size - 3, "end");
	b = fx_open("d", "vhdx", 0);
	fx_same(b, model, SIZE);
	blk_close(b);
	CHECK_EQ(0, fx_check("d", "vhdx", 0).corruptions);
}

TEST(sixty_four_tebibytes)
{
	uint64_t size = 64 * 1024 * GiB;
	struct blk *b;

	fx_create("d", "vhdx", size, NULL, NULL);
	b = fx_open("d", "vhdx", 0);
	CHECK_EQ(0, blk_write(b, "last", 4, size - 4));
	blk_close(b);
	expect_text("d", BLK_READONLY, size - 4, "last");
	fx_is_clean("d", "vhdx");
	CHECK(fx_try_create("d", "vhdx", size + 512, NULL, NULL) < 0);
	CHECK(strstr(fx_err.msg, "64 TiB"));
}

/* ---- damage ---- */

static uint32_t crc32c(const uint8_t *p, size_t len)
{
	uint32_t c = ~0u;

	while (len--) {
		c ^= *p++;
		for (unsigned k = 0; k < 8; k++)
			c = c >> 1 ^ (c & 1 ? 0x82f63b78 : 0);
	}
	return ~c;
}

static void patch_sealed(uint64_t at, size_t len, unsigned field, const char *bytes, unsigned n)
{
	static uint8_t buf[65536];
	int fd = open(fx_path("d"), O_RDWR);

	CHECK_EQ(len, pread(fd, buf, len, (off_t)at));
	memcpy(buf + field, bytes, n);
	le32_store(buf + 4, 0);
	le32_store(buf + 4, crc32c(buf, len));
	CHECK_EQ(len, pwrite(fd, buf, len, (off_t)at));
	close(fd);
}

static void refuse_head(unsigned field, const char *bytes, unsigned n, const char *words)
{
	fx_create("d", "vhdx", SIZE, small, NULL);
	patch_sealed(64 * KiB, 4096, field, bytes, n);
	patch_sealed(128 * KiB, 4096, field, bytes, n);
	fx_refused("d", "vhdx", BLK_READONLY, words);
}

static void refuse_region(unsigned field, const char *bytes, unsigned n, const char *words)
{
	fx_create("d", "vhdx", SIZE, small, NULL);
	patch_sealed(192 * KiB, 65536, field, bytes, n);
	fx_refused("d", "vhdx", BLK_READONLY, words);
}

static void refuse_meta(unsigned field, const char *bytes, unsigned n, const char *words)
{
	fx_create("d", "vhdx", SIZE, small, NULL);
	fx_patch("d", 2 * MiB + field, bytes, n);
	fx_refused("d", "vhdx", BLK_READONLY, words);
}

TEST(headers_that_cannot_be_are_refused_with_words)
{
	refuse_head(64, "\1", 1, "log version 1");
	refuse_head(66, "\7", 1, "neither of its headers");
	refuse_head(68, "\0\0\0\x40", 4, "its log is said to be at");
	refuse_head(72, "\0\0\0\0\1", 5, "its log is said to be at");
	refuse_region(8, "\0\x08\0\0", 4, "2048 regions");
	refuse_region(8, "\1", 1, "it has no metadata");
	refuse_region(16, "\1", 1, "which is not known");
	refuse_region(32, "\1", 1, "its block table is said to be at");
	refuse_region(34, "\x10", 1, "its regions overlap");
	refuse_region(40, "\0\0\0\x40", 4, "its block table is said to be at");
	refuse_meta(0, "x", 1, "its metadata table is damaged");
	refuse_meta(10, "\0\x08", 2, "its metadata table is damaged");
	refuse_meta(32, "x", 1, "needs the metadata item");
	refuse_meta(48, "\0\0\0\x10", 4, "lies outside its region");
	refuse_meta(52, "\4", 1, "a metadata item has 4 bytes, not 8");
	refuse_meta(65536, "\0\0\0\x20", 4, "blocks of 536870912 bytes");
	refuse_meta(65536, "\0\0\x30\0", 4, "blocks of 3145728 bytes");
	refuse_meta(65536 + 4, "\2", 1, "does not name it");
	refuse_meta(65536 + 8, "\1", 1, "is no whole sectors");
	refuse_meta(65536 + 13, "\x41", 1, "64 TiB is the most");
	refuse_meta(65536 + 13, "\1", 1, "its block table is too short");
	refuse_meta(65536 + 32, "\0\4", 2, "sectors of 1024 bytes");
}

TEST(one_good_header_and_region_table_are_enough)
{
	struct blk *b;

	fx_create("d", "vhdx", SIZE, small, NULL);
	fx_patch("d", 128 * KiB + 100, "\xff", 1);
	fx_patch("d", 192 * KiB + 100, "\xff", 1);
	blk_close(fx_open("d", "vhdx", BLK_READONLY));
	CHECK_EQ(1, fx_check("d", "vhdx", BLK_FIX_LEAKS).leaks_fixed);
	fx_is_clean("d", "vhdx");
	fx_patch("d", 64 * KiB + 100, "\xff", 1);
	b = fx_open("d", "vhdx", 0);
	CHECK_EQ(0, blk_write(b, "x", 1, 0));
	blk_close(b);
	fx_is_clean("d", "vhdx");
}

TEST(entries_out_of_the_file_are_errors_and_can_be_mended)
{
	struct blk *b;
	char got[4];

	fx_create("d", "vhdx", SIZE, small, NULL);
	fx_patch("d", 3 * MiB + 8, "\6\0\0\1\0\0\0\0", 8); /* 16 MiB */
	CHECK_EQ(1, fx_check("d", "vhdx", 0).corruptions);
	b = fx_open("d", "vhdx", BLK_READONLY);
	CHECK_EQ(-EIO, blk_read(b, got, 4, MiB));
	CHECK_EQ(0, blk_read(b, got, 4, 0));
	blk_close(b);
	CHECK_EQ(1, fx_check("d", "vhdx", BLK_FIX_ERRORS).corruptions_fixed);
	fx_is_clean("d", "vhdx");
}

TEST(a_partial_block_without_a_parent_is_an_error)
{
	fx_create("d", "vhdx", SIZE, small, NULL);
	fx_patch("d", 3 * MiB, "\7\0\x10\0\0\0\0\0", 8);
	CHECK_EQ(1, fx_check("d", "vhdx", 0).corruptions);
}

/* ---- images of others ---- */

static struct blk *open_sample(const char *name, unsigned flags)
{
	struct blk *b = NULL;

	if (blk_open(&b, fx_sample(name), "vhdx", flags | BLK_NO_POOL, &fx_err) < 0)
		printf("# %s\n", fx_err.msg);
	CHECK(b);
	return b;
}

TEST(samples_open_with_their_size)
{
	struct blk *b = open_sample("qemu-iotests/iotest-dynamic-1G.vhdx", BLK_READONLY);

	CHECK_EQ(GiB, blk_info(b)->size);
	CHECK_EQ(32 * MiB, blk_info(b)->cluster);
	blk_close(b);
	b = open_sample("qemu-iotests/test-disk2vhd.vhdx", BLK_READONLY);
	CHECK_EQ(256 * MiB, blk_info(b)->size);
	CHECK_EQ(2 * MiB, blk_info(b)->cluster);
	blk_close(b);
}

/* What is seen with the log replayed in memory is what is there after it was replayed. */
TEST(the_sample_with_a_dirty_log_reads_as_after_its_replay)
{
	static const char name[] = "qemu-iotests/iotest-dirtylog-10G-4M.vhdx";
	static uint8_t one[MiB], two[MiB];
	struct blk *ro = open_sample(name, BLK_READONLY), *rw;

	CHECK_EQ(10 * GiB, blk_info(ro)->size);
	CHECK(blk_info(ro)->dirty);
	CHECK_EQ(0, fx_run("cp %s %s", fx_path("iotest-dirtylog-10G-4M.vhdx"), fx_path("w")));
	rw = fx_open("w", "vhdx", 0);
	for (uint64_t off = 0; off < blk_info(ro)->size; off += 64 * MiB) {
		CHECK_EQ(0, blk_read(ro, one, MiB, off));
		CHECK_EQ(0, blk_read(rw, two, MiB, off));
		CHECK_EQ(0, memcmp(one, two, MiB));
	}
	blk_close(ro);
	blk_close(rw);
	CHECK_EQ(0, fx_check("w", "vhdx", 0).corruptions);
}

TEST(the_sample_with_a_dirty_log_reads_as_qemu_img_replays_it)
{
	NEED("qemu-img");
	fx_sample("qemu-iotests/iotest-dirtylog-10G-4M.vhdx");
	CHECK_EQ(0, fx_run("cp %s %s", fx_path("iotest-dirtylog-10G-4M.vhdx"), fx_path("q")));
	CHECK_EQ(0, fx_run("qemu-img check -r all -f vhdx %s", fx_path("q")));
	struct blk *ours = fx_open("iotest-dirtylog-10G-4M.vhdx", "vhdx", BLK_READONLY);
	struct blk *theirs = fx_open("q", "vhdx", BLK_READONLY);
	static uint8_t one[MiB], two[MiB];

	for (uint64_t off = 0; off < blk_info(ours)->size; off += 16 * MiB) {
		CHECK_EQ(0, blk_read(ours, one, MiB, off));
		CHECK_EQ(0, blk_read(theirs, two, MiB, off));
		CHECK_EQ(0, memcmp(one, two, MiB));
	}
	blk_close(ours);
	blk_close(theirs);
}
