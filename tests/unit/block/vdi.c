/* Unit tests of src/block/vdi, and through it of src/block/grid. */
#include "image_fixture.h"

#include "base/bytes.h"

#define SIZE (12 * MiB + 512)

static uint8_t model[SIZE + 40 * MiB];

TEST(random_operations_match_a_model)
{
	fx_create("d", "vdi", SIZE, NULL, NULL);
	fx_storm("d", "vdi", model, SIZE, 400);
	fx_is_clean("d", "vdi");
}

TEST(a_static_image_does_the_same)
{
	fx_create("d", "vdi", SIZE, FX_OPTS({"static", "on"}), NULL);
	CHECK_EQ(14 * MiB, fx_file_size("d"));
	fx_storm("d", "vdi", model, SIZE, 150);
	fx_is_clean("d", "vdi");
	CHECK_EQ(14 * MiB, fx_file_size("d"));
}

TEST(threads_that_share_blocks_do_not_lose_bytes)
{
	fx_create("d", "vdi", SIZE, NULL, NULL);
	fx_crowd("d", "vdi", model, 12 * MiB);
	fx_is_clean("d", "vdi");
}

TEST(qemu_img_reads_what_we_write)
{
	NEED("qemu-img");
	fx_create("d", "vdi", SIZE, NULL, NULL);
	fx_storm("d", "vdi", model, SIZE, 150);
	fx_qemu_reads("d", "vdi", model, SIZE);
	CHECK_EQ(0, fx_run("qemu-img check -f vdi %s", fx_path("d")));
}

TEST(we_read_and_go_on_with_what_qemu_img_writes)
{
	NEED("qemu-img");
	for (unsigned i = 0; i < SIZE; i++)
		model[i] = i / MiB % 3 ? 0 : (uint8_t)(i * 7 >> 3);
	fx_qemu_writes("d", "vdi", "", model, SIZE);
	fx_storm("d", "vdi", model, SIZE, 100);
	fx_is_clean("d", "vdi");
	CHECK_EQ(0, fx_run("qemu-img check -f vdi %s", fx_path("d")));
}

TEST(nothing_flushed_is_lost_when_the_process_dies)
{
	static uint8_t buf[4096];
	struct blk *b;

	fx_create("d", "vdi", SIZE, NULL, NULL);
	fflush(stdout);
	if (fork() == 0) {
		b = fx_open("d", "vdi", 0);
		memset(buf, 0x5a, sizeof(buf));
		blk_write(b, buf, sizeof(buf), 3 * MiB);
		blk_flush(b);
		blk_write(b, buf, sizeof(buf), 5 * MiB);
		_exit(0);
	}
	wait(NULL);
	CHECK_EQ(0, fx_check("d", "vdi", 0).corruptions);
	b = fx_open("d", "vdi", BLK_READONLY);
	CHECK_EQ(0, blk_read(b, buf, sizeof(buf), 3 * MiB));
	CHECK_EQ(0x5a, buf[4095]);
	blk_close(b);
	CHECK_EQ(1, fx_check("d", "vdi", BLK_FIX_LEAKS).leaks_fixed);
	fx_is_clean("d", "vdi");
}

/* ---- chains ---- */

TEST(a_chain_of_differencing_images)
{
	static const char *const name[] = {"a", "b", "c", "d"};

	fx_create("a", "vdi", SIZE, NULL, NULL);
	fx_storm("a", "vdi", model, SIZE, 100);
	for (unsigned i = 1; i < ARRAY_SIZE(name); i++) {
		fx_create(name[i], "vdi", 0, NULL, name[i - 1]);
		fx_storm(name[i], "vdi", model, SIZE, 150);
		fx_is_clean(name[i], "vdi");
	}
}

TEST(a_parent_is_found_under_another_name)
{
	struct blk *b;

	fx_create("base", "vdi", SIZE, NULL, NULL);
	fx_create("child", "vdi", SIZE, NULL, "base");
	CHECK_EQ(0, rename(fx_path("base"), fx_path("moved.vdi")));
	b = fx_open("child", "vdi", BLK_READONLY);
	CHECK(strstr(blk_path(blk_backing(b)), "moved.vdi"));
	blk_close(b);
}

TEST(a_parent_that_is_missing_or_has_changed_is_refused)
{
	struct blk *b;

	fx_create("base", "vdi", SIZE, NULL, NULL);
	fx_create("child", "vdi", SIZE, NULL, "base");
	b = fx_open("base", "vdi", 0);
	CHECK_EQ(0, blk_write(b, "x", 1, 0));
	blk_close(b);
	fx_refused("child", "vdi", BLK_READONLY, "was changed after it");
	unlink(fx_path("base"));
	fx_refused("child", "vdi", BLK_READONLY, "is not in its directory");
	b = fx_open("child", "vdi", BLK_READONLY | BLK_NO_BACKING);
	blk_close(b);
}

TEST(a_parent_elsewhere_needs_permission)
{
	const char *allow[] = {fx_path("lib")};
	struct blk_open_opts opts = {.allow_ref = allow, .nr_allow_ref = 1};
	struct blk *b;

	CHECK_EQ(0, mkdir(fx_path("lib"), 0700));
	fx_create("lib/base", "vdi", SIZE, NULL, NULL);
	fx_create("child", "vdi", SIZE, NULL, "lib/base");
	fx_refused("child", "vdi", BLK_READONLY, "--allow-ref");
	CHECK_EQ(0, blk_open_with(&b, fx_path("child"), "vdi", BLK_READONLY, &opts, &fx_err));
	blk_close(b);
}

TEST(an_image_that_is_its_own_parent_is_refused)
{
	uint8_t id[16];
	int fd;

	fx_create("d", "vdi", SIZE, NULL, NULL);
	fd = open(fx_path("d"), O_RDWR);
	CHECK_EQ(16, pread(fd, id, 16, 0x188));
	CHECK_EQ(16, pwrite(fd, id, 16, 0x1a8));
	close(fd);
	fx_refused("d", "vdi", BLK_READONLY, "parent");
}

/* ---- sizes ---- */

TEST(resizing_keeps_the_content_and_adds_zeroes)
{
	const uint64_t sizes[] = {SIZE + 20 * MiB, 5 * MiB + 512, 9 * MiB, SIZE + 33 * MiB};
	uint64_t size = SIZE;
	struct blk *b;

	fx_create("d", "vdi", SIZE, NULL, NULL);
	fx_storm("d", "vdi", model, SIZE, 100);
	for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
		b = fx_open("d", "vdi", 0);
		CHECK_EQ(0, blk_resize(b, sizes[i]));
		if (sizes[i] < size)
			memset(model + sizes[i], 0, size - sizes[i]);
		size = sizes[i];
		fx_same(b, model, size);
		blk_close(b);
		fx_storm("d", "vdi", model, size, 40);
		fx_is_clean("d", "vdi");
	}
}

/* qemu-img packs the map so that the first block follows at once: no room for more entries. */
TEST(a_map_that_does_not_fit_any_more_moves)
{
	uint64_t size = SIZE;
	struct blk *b;

	NEED("qemu-img");
	memset(model, 0x33, SIZE);
	fx_qemu_writes("d", "vdi", "", model, SIZE);
	b = fx_open("d", "vdi", 0);
	size = 300 * GiB;
	CHECK_EQ(0, blk_resize(b, size));
	CHECK_EQ(0, blk_write(b, "end", 3, size - 3));
	fx_same(b, model, SIZE);
	blk_close(b);
	fx_is_clean("d", "vdi");
	b = fx_open("d", "vdi", 0);
	fx_same(b, model, SIZE + MiB);
	blk_close(b);
	CHECK_EQ(0, fx_run("qemu-img check -f vdi %s", fx_path("d")));
	CHECK_EQ(0, fx_run("qemu-img dd -f vdi -O raw bs=1M count=13 if=%s of=%s", fx_path("d"),
			   fx_path("o")));
	b = fx_open("o", "raw", BLK_READONLY);
	fx_same(b, model, SIZE);
	blk_close(b);
}

TEST(two_tebibytes_and_more)
{
	uint64_t size = 3 * 1024 * GiB;
	struct blk *b;
	char got[4];

	fx_create("d", "vdi", size, NULL, NULL);
	b = fx_open("d", "vdi", 0);
	CHECK_EQ(0, blk_write(b, "last", 4, size - 4));
	CHECK_EQ(0, blk_write(b, "mid", 4, size / 2));
	blk_close(b);
	b = fx_open("d", "vdi", BLK_READONLY);
	CHECK_EQ(0, blk_read(b, got, 4, size - 4));
	CHECK_EQ(0, memcmp(got, "last", 4));
	blk_close(b);
	CHECK(fx_file_size("d") < 20 * MiB);
	fx_is_clean("d", "vdi");
}

TEST(space_given_up_is_used_again)
{
	static uint8_t buf[8 * MiB];
	uint64_t before;
	struct blk *b;

	fx_create("d", "vdi", 8 * MiB, NULL, NULL);
	memset(buf, 1, sizeof(buf));
	b = fx_open("d", "vdi", 0);
	CHECK_EQ(0, blk_write(b, buf, sizeof(buf), 0));
	CHECK_EQ(0, blk_flush(b));
	before = fx_file_size("d");
	for (unsigned i = 0; i < 20; i++) {
		CHECK_EQ(0, blk_discard(b, 2 * MiB, 3 * MiB));
		CHECK_EQ(0, blk_write(b, buf, 3 * MiB, 2 * MiB));
	}
	blk_close(b);
	CHECK_EQ(before, fx_file_size("d"));
	fx_is_clean("d", "vdi");
}

/* ---- damage ---- */

static void patch32(uint64_t off, uint32_t value)
{
	uint8_t bytes[4];

	le32_store(bytes, value);
	fx_patch("d", off, bytes, 4);
}

static void refuse_with(uint64_t off, uint32_t value, const char *words)
{
	fx_create("d", "vdi", SIZE, NULL, NULL);
	patch32(off, value);
	fx_refused("d", "vdi", BLK_READONLY, words);
}

TEST(headers_that_cannot_be_are_refused_with_words)
{
	refuse_with(0x40, 1, "is not a VDI image");
	refuse_with(0x44, 0x00000001, "VDI version 0.1");
	refuse_with(0x4c, 9, "type 9");
	refuse_with(0x154, 0x201, "a block map at 513");
	refuse_with(0x154, 0, "a block map at 0");
	refuse_with(0x158, 512, "data at 512");
	refuse_with(0x168, 4096, "a sector size of 4096");
	refuse_with(0x174, 1, "more bytes than its blocks hold");
	refuse_with(0x178, 65536, "only 1 MiB is known");
	refuse_with(0x180, 0x1fffff81, "a number of blocks of 536870785");
	refuse_with(0x180, 0x1fffff80, "data at");
	fx_create("d", "vdi", SIZE, NULL, NULL);
	CHECK_EQ(0, truncate(fx_path("d"), 520));
	fx_refused("d", "vdi", BLK_READONLY, "ends before its block map");
	CHECK_EQ(0, truncate(fx_path("d"), 100));
	fx_refused("d", "vdi", BLK_READONLY, "too short");
}

static void make_two_blocks(void)
{
	struct blk *b;

	fx_create("d", "vdi", 4 * MiB, NULL, NULL);
	b = fx_open("d", "vdi", 0);
	CHECK_EQ(0, blk_write(b, "one", 4, 0));
	CHECK_EQ(0, blk_write(b, "two", 4, MiB));
	blk_close(b);
}

TEST(an_entry_out_of_range_is_an_error_and_can_be_mended)
{
	struct blk *b;
	char got[4];

	make_two_blocks();
	patch32(512, 77);
	CHECK_EQ(1, fx_check("d", "vdi", 0).corruptions);
	b = fx_open("d", "vdi", 0);
	CHECK_EQ(-EIO, blk_read(b, got, 4, 0));
	CHECK_EQ(0, blk_read(b, got, 4, MiB));
	CHECK_EQ(-EIO, blk_write(b, got, 4, 3 * MiB)); /* what is in use is not known */
	blk_close(b);
	CHECK_EQ(1, fx_check("d", "vdi", BLK_FIX_ERRORS | BLK_FIX_LEAKS).corruptions_fixed);
	fx_is_clean("d", "vdi");
}

TEST(two_blocks_in_one_place_are_found_and_parted)
{
	struct blk *b;
	char got[4];

	make_two_blocks();
	patch32(512 + 4, 0);
	CHECK_EQ(1, fx_check("d", "vdi", 0).corruptions);
	CHECK_EQ(1, fx_check("d", "vdi", BLK_FIX_ERRORS | BLK_FIX_LEAKS).corruptions_fixed);
	fx_is_clean("d", "vdi");
	b = fx_open("d", "vdi", 0);
	CHECK_EQ(0, blk_write(b, "new", 4, 0));
	CHECK_EQ(0, blk_read(b, got, 4, MiB));
	CHECK_STR("one", got);
	blk_close(b);
}

TEST(emptied_images_show_their_parent_again)
{
	struct blk *b;
	char got[4];

	fx_create("base", "vdi", 4 * MiB, NULL, NULL);
	b = fx_open("base", "vdi", 0);
	CHECK_EQ(0, blk_write(b, "old", 4, 0));
	blk_close(b);
	fx_create("d", "vdi", 0, NULL, "base");
	b = fx_open("d", "vdi", 0);
	CHECK_EQ(0, blk_write(b, "new", 4, 0));
	CHECK_EQ(0, blk_make_empty(b, &fx_err));
	CHECK_EQ(0, blk_read(b, got, 4, 0));
	CHECK_STR("old", got);
	CHECK_EQ(0, blk_change_backing(b, NULL, NULL, &fx_err));
	blk_close(b);
	b = fx_open("d", "vdi", BLK_READONLY);
	CHECK_EQ(0, blk_read(b, got, 4, 0));
	CHECK_EQ(0, got[0]);
	blk_close(b);
}
