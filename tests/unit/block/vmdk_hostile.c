/* Unit tests of src/block/vmdk with images that are damaged, cut off, or made to do harm; and of
 * what a check finds and mends. */
#include "vmdk_fixture.h"

#include "base/bytes.h"

#define ODD (9 * MiB + 77 * 512)

static void poke32(const char *name, uint64_t off, uint32_t v)
{
	uint8_t b[4];

	le32_store(b, v);
	poke(name, off, b, 4);
}

static void poke64(const char *name, uint64_t off, uint64_t v)
{
	uint8_t b[8];

	le64_store(b, v);
	poke(name, off, b, 8);
}

static uint64_t peek64(const char *name, uint64_t off)
{
	uint8_t b[8];

	peek(name, off, b, 8);
	return le64_load(b);
}

static uint32_t peek32(const char *name, uint64_t off)
{
	return (uint32_t)peek64(name, off);
}

/* The tables of a small sparse disk: one each. */
static uint64_t table_of(const char *name, bool copy)
{
	return peek32(name, peek64(name, copy ? 0x30 : 0x38) * 512) * 512ull;
}

static void sparse_with_data(uint64_t size)
{
	static uint8_t buf[65536];
	struct blk *b;

	create("a.vmdk", NULL, size, NULL);
	b = open_disk("a.vmdk", 0);
	for (unsigned i = 0; i < 4; i++) {
		memset(buf, 'a' + (int)i, sizeof(buf));
		CHECK_EQ(0, blk_write(b, buf, sizeof(buf), i * 2 * sizeof(buf)));
	}
	blk_close(b);
}

static char byte_at(struct blk *b, uint64_t off)
{
	char c = 0;

	CHECK_EQ(0, blk_read(b, &c, 1, off));
	return c;
}

/* --- headers ----------------------------------------------------------------------------------
 */

TEST(headers_are_bounded)
{
	// clang-format off
	static const struct {
		unsigned off;
		uint64_t value;
		const char *words;
	} bad[] = {
		{0x0c, 0x1efffffc1b000001, "too large"},
		{0x0c, UINT64_MAX, "too large"},
		{0x0c, 1ull << 52, "grain directory"},
		{0x14, 0, "power of two"},
		{0x14, 100, "power of two"},
		{0x14, 1ull << 40, "power of two"},
		{0x14, UINT64_MAX, "power of two"},
		{0x1c, 1ull << 50, "descriptor lies outside"},
		{0x1c, UINT64_MAX, "descriptor lies outside"},
		{0x24, 1ull << 40, "too large"},
	};
	// clang-format on

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		uint64_t good;

		if (!i)
			create("a.vmdk", NULL, 4 * MiB, NULL);
		good = peek64("a.vmdk", bad[i].off);
		poke64("a.vmdk", bad[i].off, bad[i].value);
		open_refused("a.vmdk", BLK_READONLY, bad[i].words);
		open_refused("a.vmdk", 0, bad[i].words);
		poke64("a.vmdk", bad[i].off, good);
	}
	blk_close(open_disk("a.vmdk", 0));
}

TEST(tables_have_sensible_lengths)
{
	create("a.vmdk", NULL, 4 * MiB, NULL);
	poke32("a.vmdk", 0x2c, 0);
	open_refused("a.vmdk", BLK_READONLY, "grain table");
	poke32("a.vmdk", 0x2c, 513);
	open_refused("a.vmdk", BLK_READONLY, "grain table");
	poke32("a.vmdk", 0x2c, 512);
	poke32("a.vmdk", 4, 4);
	open_refused("a.vmdk", BLK_READONLY, "version 4");
}

TEST(text_transfers_are_noticed)
{
	create("a.vmdk", NULL, 4 * MiB, NULL);
	poke("a.vmdk", 0x49, "\r\n \r", 4);
	open_refused("a.vmdk", BLK_READONLY, "binary mode");
	blk_close(open_disk("a.vmdk", BLK_READONLY | BLK_RECOVER));
}

TEST(short_files_are_refused)
{
	for (unsigned len = 1; len < 512; len += 73) {
		if (len == 1)
			create("a.vmdk", NULL, 4 * MiB, NULL);
		CHECK_EQ(0, truncate(at("a.vmdk"), 512 - len));
		open_refused("a.vmdk", BLK_READONLY, "too short");
	}
	CHECK_EQ(0, truncate(at("a.vmdk"), 0));
	open_refused("a.vmdk", BLK_READONLY, "no VMDK image");
}

TEST(flat_files_are_pointed_elsewhere)
{
	create("a.vmdk", "monolithicFlat", MiB, NULL);
	open_refused("a-flat.vmdk", BLK_READONLY, "a.vmdk'");
	CHECK_EQ(0, truncate(at("a-flat.vmdk"), MiB - 512));
	open_refused("a.vmdk", BLK_READONLY, "cut off");
}

TEST(files_of_change_tracking_are_pointed_elsewhere)
{
	write_text_file("a-ctk.vmdk", "\xa2\x72\x19\xf6 and so on");
	open_refused("a-ctk.vmdk", BLK_READONLY, "changed");
}

TEST(tracked_disks_are_not_written_behind_the_tracker)
{
	create("a.vmdk", "monolithicFlat", MiB, NULL);
	write_text_file("d.vmdk", "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
				  "createType=\"vmfs\"\nRW 2048 VMFS \"a-flat.vmdk\"\n"
				  "changeTrackPath=\"a-ctk.vmdk\"\n");
	open_refused("d.vmdk", 0, "tracked by ESXi");
	blk_close(open_disk("d.vmdk", BLK_READONLY));
}

/* --- names ------------------------------------------------------------------------------------
 */

static void described(const char *create_type, const char *extents)
{
	write_text_file("d.vmdk",
			"# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\n"
			"createType=\"%s\"\n%s\n",
			create_type, extents);
}

TEST(names_do_not_lead_out)
{
	described("monolithicFlat", "RW 1 FLAT \"/etc/passwd\" 0");
	open_refused("d.vmdk", BLK_READONLY, "--allow-ref");
	described("monolithicFlat", "RW 1 FLAT \"../../../../../../etc/passwd\" 0");
	open_refused("d.vmdk", BLK_READONLY, "--allow-ref");
	described("monolithicFlat", "RW 1 FLAT \"json:{}\" 0");
	open_refused("d.vmdk", BLK_READONLY, "not a file");
	described("fullDevice", "RW 1 FLAT \"/dev/null\" 0");
	open_refused("d.vmdk", BLK_READONLY, "--allow-ref");
	CHECK_EQ(0, symlink("/etc/passwd", at("link.vmdk")));
	described("monolithicFlat", "RW 1 FLAT \"link.vmdk\" 0");
	open_refused("d.vmdk", BLK_READONLY, "symbolic link");
}

TEST(a_descriptor_is_no_extent_of_itself)
{
	described("monolithicSparse", "RW 8 SPARSE \"d.vmdk\"");
	open_refused("d.vmdk", BLK_READONLY, "leads back");
}

TEST(extents_have_the_kind_that_is_said)
{
	create("a.vmdk", "monolithicSparse", MiB, NULL);
	described("vmfsSparse", "RW 2048 VMFSSPARSE \"a.vmdk\"");
	open_refused("d.vmdk", BLK_READONLY, "no COWD");
	described("seSparse", "RW 2048 SESPARSE \"a.vmdk\"");
	open_refused("d.vmdk", BLK_READONLY, "no seSparse");
	described("monolithicSparse", "RW 4096 SPARSE \"a.vmdk\"");
	open_refused("d.vmdk", BLK_READONLY, "2048 sectors");
	described("twoGbMaxExtentSparse", "RW 2048 SPARSE \"a.vmdk\"\nRW 2048 SPARSE \"a.vmdk\"");
	open_refused("d.vmdk", BLK_READONLY, "two extents");
}

TEST(raw_device_mappings_are_refused_with_words)
{
	write_text_file("d-rdm.vmdk", "x");
	described("vmfsRawDeviceMap", "RW 2048 VMFSRDM \"d-rdm.vmdk\"");
	open_refused("d.vmdk", BLK_READONLY, "raw device mapping");
}

TEST(read_only_extents_are_not_written)
{
	struct blk *b;

	create("a.vmdk", "monolithicFlat", MiB, NULL);
	described("monolithicFlat", "RDONLY 2048 FLAT \"a-flat.vmdk\" 0");
	open_refused("d.vmdk", 0, "none of its extents");
	described("custom", "RW 8 FLAT \"a-flat.vmdk\" 8\nRDONLY 8 FLAT \"a-flat.vmdk\" 0\n"
			    "RW 8 ZERO\nNOACCESS 8 FLAT \"a-flat.vmdk\" 16");
	b = open_disk("d.vmdk", BLK_READONLY);
	CHECK_EQ(32 * 512, blk_info(b)->size);
	CHECK_EQ(0, byte_at(b, 16 * 512));
	CHECK_EQ(-EACCES, blk_read(b, (char[1]){0}, 1, 24 * 512));
	blk_close(b);
}

TEST(one_file_may_hold_several_flat_extents)
{
	struct blk *b;

	create("a.vmdk", "monolithicFlat", MiB, NULL);
	described("custom", "RW 8 FLAT \"a-flat.vmdk\" 8\nRW 8 FLAT \"a-flat.vmdk\" 0\nRW 8 ZERO");
	b = open_disk("d.vmdk", 0);
	CHECK_EQ(0, blk_write(b, "xy", 2, 8 * 512 - 1));
	CHECK_EQ('x', byte_at(b, 8 * 512 - 1));
	CHECK_EQ('y', byte_at(b, 8 * 512));
	CHECK_EQ(-EROFS, blk_write(b, "z", 1, 16 * 512));
	blk_close(b);
}

/* --- damage -----------------------------------------------------------------------------------
 */

TEST(a_damaged_table_is_read_from_its_copy)
{
	struct blk *b;

	sparse_with_data(4 * MiB);
	poke32("a.vmdk", table_of("a.vmdk", false), 0x7fffffff);
	b = open_disk("a.vmdk", 0);
	CHECK_EQ('a', byte_at(b, 0));
	CHECK_EQ('b', byte_at(b, 131072));
	blk_close(b);
}

TEST(a_damaged_directory_is_read_from_its_copy)
{
	struct blk *b;

	sparse_with_data(4 * MiB);
	poke32("a.vmdk", peek64("a.vmdk", 0x38) * 512, 0x7fffffff);
	b = open_disk("a.vmdk", 0);
	CHECK_EQ('b', byte_at(b, 131072));
	CHECK_EQ(0, blk_write(b, "z", 1, 131072));
	blk_close(b);
	b = open_disk("a.vmdk", BLK_READONLY);
	CHECK_EQ('z', byte_at(b, 131072));
	blk_close(b);
	poke64("a.vmdk", 0x38, 1ull << 40); /* the whole directory */
	b = open_disk("a.vmdk", BLK_READONLY);
	CHECK_EQ('z', byte_at(b, 131072));
	blk_close(b);
}

TEST(grains_outside_of_the_file_are_no_zeroes)
{
	struct blk_check c;
	struct blk *b;
	char x;

	sparse_with_data(4 * MiB);
	poke32("a.vmdk", table_of("a.vmdk", false), 0x7fffffff);
	poke32("a.vmdk", table_of("a.vmdk", true), 0x7fffffff);
	b = open_disk("a.vmdk", BLK_READONLY);
	CHECK_EQ(-EIO, blk_read(b, &x, 1, 0));
	CHECK_EQ('b', byte_at(b, 131072));
	blk_close(b);
	CHECK_EQ(1, check_disk("a.vmdk", 0).corruptions);
	c = check_disk("a.vmdk", BLK_FIX_ERRORS | BLK_FIX_LEAKS);
	CHECK_EQ(1, c.corruptions_fixed);
	check_clean("a.vmdk");
}

TEST(overlaps_are_found_and_left)
{
	uint64_t t;

	sparse_with_data(4 * MiB);
	t = table_of("a.vmdk", false);
	poke32("a.vmdk", t + 4, peek32("a.vmdk", t));
	poke32("a.vmdk", table_of("a.vmdk", true) + 4, peek32("a.vmdk", t));
	CHECK_EQ(1, check_disk("a.vmdk", 0).corruptions);
	CHECK_EQ(1, check_disk("a.vmdk", BLK_FIX_ERRORS | BLK_FIX_LEAKS).corruptions);
}

TEST(grains_on_metadata_are_found)
{
	sparse_with_data(4 * MiB);
	poke32("a.vmdk", table_of("a.vmdk", false) + 4, 1);
	poke32("a.vmdk", table_of("a.vmdk", true) + 4, 1);
	CHECK_EQ(1, check_disk("a.vmdk", 0).corruptions);
}

TEST(copies_that_differ_are_found_and_mended)
{
	struct blk_check c;

	sparse_with_data(4 * MiB);
	poke32("a.vmdk", table_of("a.vmdk", true) + 4, 0);
	poke32("a.vmdk", table_of("a.vmdk", true), 0);
	CHECK_EQ(1, check_disk("a.vmdk", 0).corruptions);
	c = check_disk("a.vmdk", BLK_FIX_ERRORS);
	CHECK_EQ(1, c.corruptions_fixed);
	check_clean("a.vmdk");
}

TEST(an_unclean_end_is_shown_and_settled)
{
	struct blk *b;

	sparse_with_data(4 * MiB);
	poke("a.vmdk", 0x48, "\1", 1);
	CHECK_EQ(0, truncate(at("a.vmdk"), (off_t)size_of("a.vmdk") + 200000));
	b = open_disk("a.vmdk", BLK_READONLY);
	CHECK(blk_info(b)->dirty);
	CHECK_EQ('b', byte_at(b, 131072));
	blk_close(b);
	CHECK(check_disk("a.vmdk", 0).leaks > 0);
	CHECK(check_disk("a.vmdk", BLK_FIX_LEAKS).leaks_fixed > 0);
	check_clean("a.vmdk");
	b = open_disk("a.vmdk", BLK_READONLY);
	CHECK(!blk_info(b)->dirty);
	blk_close(b);
}

TEST(after_an_unclean_end_both_copies_say_the_same)
{
	uint64_t t, copy;

	sparse_with_data(4 * MiB);
	t = table_of("a.vmdk", false);
	copy = table_of("a.vmdk", true);
	poke32("a.vmdk", copy + 8, 0);
	poke("a.vmdk", 0x48, "\1", 1);
	CHECK_EQ(1, check_disk("a.vmdk", 0).leaks);
	blk_close(open_disk("a.vmdk", 0));
	CHECK_EQ(peek32("a.vmdk", t + 8), peek32("a.vmdk", copy + 8));
	check_clean("a.vmdk");
}

TEST(unused_space_in_the_middle_is_given_back)
{
	uint64_t t, copy, before;
	struct blk *b;

	sparse_with_data(4 * MiB);
	t = table_of("a.vmdk", false);
	copy = table_of("a.vmdk", true);
	before = size_of("a.vmdk");
	poke32("a.vmdk", t, 0); /* the first grain of four is forgotten */
	poke32("a.vmdk", copy, 0);
	CHECK_EQ(1, check_disk("a.vmdk", 0).leaks);
	CHECK_EQ(1, check_disk("a.vmdk", BLK_FIX_LEAKS).leaks_fixed);
	CHECK_EQ(before - 65536, size_of("a.vmdk"));
	check_clean("a.vmdk");
	b = open_disk("a.vmdk", 0);
	CHECK_EQ(0, byte_at(b, 0));
	CHECK_EQ('b', byte_at(b, 131072));
	CHECK_EQ('d', byte_at(b, 3 * 131072));
	blk_close(b);
}

TEST(the_mark_of_use_is_there_only_while_in_use)
{
	struct blk *b;
	uint8_t mark;

	create("a.vmdk", NULL, 4 * MiB, NULL);
	b = open_disk("a.vmdk", 0);
	CHECK_EQ(0, blk_write(b, "x", 1, 0));
	CHECK_EQ(0, blk_flush(b));
	peek("a.vmdk", 0x48, &mark, 1);
	CHECK_EQ(1, mark);
	blk_close(b);
	peek("a.vmdk", 0x48, &mark, 1);
	CHECK_EQ(0, mark);
}

/* --- streams ----------------------------------------------------------------------------------
 */

static struct shadow stream_with_data(void)
{
	struct shadow s;
	struct blk *b;

	create("a.vmdk", "streamOptimized", 4 * MiB, NULL);
	shadow_init(&s, 4 * MiB);
	b = open_disk("a.vmdk", 0);
	random_write(b, &s, 0, MiB);
	random_write(b, &s, 2 * MiB, MiB);
	blk_close(b);
	return s;
}

TEST(a_stream_without_its_end_is_read_by_its_markers)
{
	struct shadow s = stream_with_data();
	uint64_t size = size_of("a.vmdk");
	struct blk *b;

	for (unsigned gone = 512; gone < 8 * 512; gone += 512) {
		CHECK_EQ(0, truncate(at("a.vmdk"), (off_t)(size - gone)));
		b = open_disk("a.vmdk", BLK_READONLY);
		same_content(b, &s);
		blk_close(b);
	}
	b = open_disk("a.vmdk", 0); /* closing puts a new end there */
	random_write(b, &s, 3 * MiB, 5000);
	same_content(b, &s);
	blk_close(b);
	b = open_disk("a.vmdk", BLK_READONLY);
	CHECK(!blk_info(b)->dirty);
	same_content(b, &s);
	blk_close(b);
	check_clean("a.vmdk");
	shadow_free(&s);
}

TEST(a_stream_with_something_behind_its_end_is_read)
{
	struct shadow s = stream_with_data();
	struct blk *b;

	CHECK_EQ(0, truncate(at("a.vmdk"), (off_t)size_of("a.vmdk") + 10000));
	b = open_disk("a.vmdk", BLK_READONLY);
	CHECK(!blk_info(b)->dirty);
	same_content(b, &s);
	blk_close(b);
	shadow_free(&s);
}

TEST(damaged_packed_grains_are_errors)
{
	struct shadow s = stream_with_data();
	struct blk *b;

	poke("a.vmdk", 65536 + 12, "\xff\xff\xff\xff\xff\xff", 6);
	b = open_disk("a.vmdk", BLK_READONLY);
	CHECK_EQ(-EIO, blk_read(b, s.buf, 512, 0));
	CHECK_EQ(-EIO, blk_read(b, s.buf, 65536, 0));
	CHECK_EQ(0, blk_read(b, s.buf, 65536, 65536));
	CHECK_EQ(0, memcmp(s.buf, s.data + 65536, 65536));
	blk_close(b);
	shadow_free(&s);
}

TEST(markers_are_bounded)
{
	struct shadow s = stream_with_data();
	struct blk *b;

	poke32("a.vmdk", 65536 + 8, 0xffffffff);
	b = open_disk("a.vmdk", BLK_READONLY);
	CHECK_EQ(-EIO, blk_read(b, s.buf, 512, 0));
	blk_close(b);
	CHECK(check_disk("a.vmdk", 0).corruptions > 0);
	shadow_free(&s);
}

TEST(a_rewritten_grain_counts_when_the_end_is_lost)
{
	struct shadow s = stream_with_data();
	struct blk *b = open_disk("a.vmdk", 0);

	random_write(b, &s, 0, 100000);
	random_zero(b, &s, 2 * MiB, 1000);
	blk_close(b);
	CHECK_EQ(0, truncate(at("a.vmdk"), (off_t)size_of("a.vmdk") - 1024));
	b = open_disk("a.vmdk", BLK_READONLY);
	same_content(b, &s);
	blk_close(b);
	shadow_free(&s);
}

/* --- ESXi's -----------------------------------------------------------------------------------
 */

TEST(sesparse_alone_finds_its_descriptor)
{
	struct blk *b;

	create("base.vmdk", NULL, MiB, NULL);
	b = open_disk("base.vmdk", 0);
	CHECK_EQ(0, blk_write(b, "below", 5, 0));
	blk_close(b);
	create("x.vmdk", "seSparse", 0, "base.vmdk");
	b = open_disk("x.vmdk", 0);
	CHECK_EQ(0, blk_write(b, "above", 5, 8192));
	blk_close(b);
	b = open_disk("x-sesparse.vmdk", BLK_READONLY);
	CHECK_EQ('b', byte_at(b, 0));
	CHECK_EQ('a', byte_at(b, 8192));
	CHECK(blk_backing(b));
	blk_close(b);
	open_refused("x-sesparse.vmdk", 0, "descriptor");
	unlink(at("x.vmdk"));
	b = open_disk("x-sesparse.vmdk", BLK_READONLY); /* with a warning */
	CHECK_EQ('a', byte_at(b, 8192));
	CHECK_EQ(0, byte_at(b, 0));
	blk_close(b);
}

TEST(a_delta_alone_finds_its_descriptor)
{
	struct blk *b;

	create("base.vmdk", "vmfs", MiB, NULL);
	b = open_disk("base.vmdk", 0);
	CHECK_EQ(0, blk_write(b, "below", 5, 0));
	blk_close(b);
	create("x.vmdk", "vmfsSparse", 0, "base.vmdk");
	b = open_disk("x-delta.vmdk", BLK_READONLY);
	CHECK_EQ('b', byte_at(b, 0));
	blk_close(b);
}

TEST(a_journal_to_replay_means_reading_only)
{
	struct blk *b;

	create("x.vmdk", "seSparse", MiB, NULL);
	b = open_disk("x.vmdk", 0);
	CHECK_EQ(0, blk_write(b, "data", 4, 0));
	blk_close(b);
	poke64("x-sesparse.vmdk", 512 + 0x18, 1);
	open_refused("x.vmdk", 0, "journal");
	b = open_disk("x.vmdk", BLK_READONLY);
	CHECK(blk_info(b)->dirty);
	CHECK_EQ('d', byte_at(b, 0));
	blk_close(b);
}

TEST(sesparse_with_maps_of_esxi_is_not_written)
{
	create("x.vmdk", "seSparse", MiB, NULL);
	poke64("x-sesparse.vmdk", 0xa8, 8);
	open_refused("x.vmdk", 0, "made by ESXi");
	blk_close(open_disk("x.vmdk", BLK_READONLY));
}

TEST(sesparse_headers_are_bounded)
{
	static const struct {
		unsigned off;
		uint64_t value;
		const char *words;
	} bad[] = {
		{0x08, 3, "version"},
		{0x10, UINT64_MAX, "too large"},
		{0x18, 16, "only 8 and 64"},
		{0x20, 32, "only 8 and 64"},
		{0x28, 1, "flags"},
		{0x50, 1ull << 60, "out of range"},
		{0x50, 1ull << 40, "volatile header"},
		{0x80, 1ull << 40, "outside"},
		{0x88, 0, "too short"},
		{0xc0, UINT64_MAX, "out of range"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		uint64_t good;

		if (!i)
			create("x.vmdk", "seSparse", MiB, NULL);
		good = peek64("x-sesparse.vmdk", bad[i].off);
		poke64("x-sesparse.vmdk", bad[i].off, bad[i].value);
		open_refused("x.vmdk", BLK_READONLY, bad[i].words);
		poke64("x-sesparse.vmdk", bad[i].off, good);
	}
	poke64("x-sesparse.vmdk", 4096 * 512, 0x2000000000000000ull);
	open_refused("x.vmdk", BLK_READONLY, "grain directory is bad");
	poke64("x-sesparse.vmdk", 4096 * 512, 0x10000000ffffff00ull);
	open_refused("x.vmdk", BLK_READONLY, "grain directory is bad");
}

TEST(sesparse_entries_mean_what_they_say)
{
	uint64_t gt;
	struct blk *b;
	char c;

	create("x.vmdk", "seSparse", MiB, NULL);
	b = open_disk("x.vmdk", 0);
	CHECK_EQ(0, blk_write(b, "0", 1, 0));
	CHECK_EQ(0, blk_write(b, "1", 1, 4096));
	CHECK_EQ(0, blk_write(b, "2", 1, 8192));
	CHECK_EQ(0, blk_write(b, "3", 1, 12288));
	blk_close(b);
	gt = peek64("x-sesparse.vmdk", 0x90) * 512;
	CHECK_EQ(0x3001000000000000ull, peek64("x-sesparse.vmdk", gt + 8));
	poke64("x-sesparse.vmdk", gt, 0x1000000000000000ull);
	poke64("x-sesparse.vmdk", gt + 8, 0x2000000000000000ull);
	poke64("x-sesparse.vmdk", gt + 16, 0x4000000000000000ull);
	b = open_disk("x.vmdk", BLK_READONLY);
	CHECK_EQ(0, byte_at(b, 0));
	CHECK_EQ(0, byte_at(b, 4096));
	CHECK_EQ(-EIO, blk_read(b, &c, 1, 8192));
	CHECK_EQ('3', byte_at(b, 12288));
	blk_close(b);
}

TEST(cowd_headers_are_bounded)
{
	create("x.vmdk", "vmfsSparse", 64 * MiB, NULL);
	poke32("x-delta.vmdk", 24, 1);
	open_refused("x.vmdk", BLK_READONLY, "too short");
	poke32("x-delta.vmdk", 24, 0xffffffff);
	blk_close(open_disk("x.vmdk", BLK_READONLY));
	poke32("x-delta.vmdk", 20, 0xfffffff0);
	open_refused("x.vmdk", BLK_READONLY, "outside");
	poke32("x-delta.vmdk", 16, 0);
	open_refused("x.vmdk", BLK_READONLY, "power of two");
	poke32("x-delta.vmdk", 4, 2);
	open_refused("x.vmdk", BLK_READONLY, "version");
}

/* --- a writer that was killed -------------------------------------------------------------------
 */

static void copy_files(const char *from, const char *to)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	char cmd[1024];
	size_t n = strlen(from);

	CHECK(d);
	while ((e = readdir(d))) {
		if (strncmp(e->d_name, from, n) != 0)
			continue;
		snprintf(cmd, sizeof(cmd), "cp --sparse=always %s/%s %s/%s%s", dir, e->d_name, dir,
			 to, e->d_name + n);
		CHECK_EQ(0, system(cmd));
	}
	closedir(d);
}

/* The descriptor names files of the first one. */
static void rename_in_descriptor(const char *from, const char *to)
{
	char cmd[1024];

	snprintf(cmd, sizeof(cmd), "sed -i 's/\"%s-/\"%s-/' %s", from, to, at("k.vmdk"));
	CHECK_EQ(0, system(cmd));
}

/* What the files hold while the disk is open is what a kill leaves: a good disk, and after a flush
 * all of it. */
static void survives_a_kill(const char *subformat, bool own_files)
{
	struct shadow s, copy;
	struct blk *b, *k;

	create("a.vmdk", subformat, ODD, NULL);
	shadow_init(&s, ODD);
	shadow_init(&copy, ODD);
	b = open_disk("a.vmdk", 0);
	for (int i = 0; i < 6; i++) {
		random_ops(b, &s, 40);
		if (i % 2)
			CHECK_EQ(0, blk_flush(b));
		copy_files("a", "k");
		if (own_files)
			rename_in_descriptor("a", "k");
		CHECK_EQ(0, check_disk("k.vmdk", 0).corruptions);
		k = open_disk("k.vmdk", 0);
		if (i % 2)
			same_content(k, &s);
		memcpy(copy.data, s.data, s.size);
		if (i % 2)
			random_ops(k, &copy, 20); /* life goes on */
		blk_close(k);
		CHECK_EQ(0, check_disk("k.vmdk", 0).corruptions);
	}
	blk_close(b);
	shadow_free(&s);
	shadow_free(&copy);
}

TEST(a_killed_writer_leaves_a_good_sparse_disk)
{
	survives_a_kill("monolithicSparse", false);
}

TEST(a_killed_writer_leaves_a_good_stream)
{
	survives_a_kill("streamOptimized", false);
}

TEST(a_killed_writer_leaves_a_good_delta)
{
	survives_a_kill("vmfsSparse", true);
}

TEST(a_killed_writer_leaves_a_good_sesparse)
{
	survives_a_kill("seSparse", true);
}

TEST(a_killed_writer_leaves_a_good_split_disk)
{
	survives_a_kill("twoGbMaxExtentSparse", true);
}
