/* Unit tests of src/block/vmdk beside other programs: what they write we read, and the other way.
 * Sample images come from the folder that TRIVISOR_SAMPLES names; without it those tests skip. */
#include "image_fixture.h"

enum { SIZE = 6 * 1024 * 1024 + 512 * 3 };

static uint8_t model[SIZE];

/* Random, words, zeroes; the last grain is short. */
static void make_model(void)
{
	for (unsigned i = 0; i < SIZE; i++) {
		switch (i >> 18 & 3) {
		case 0:
			model[i] = (uint8_t)fx_rnd(256);
			break;
		case 1:
			model[i] = (uint8_t) "what lies in a grain "[i % 21];
			break;
		default:
			model[i] = 0;
		}
	}
}

static const char *const hosted[] = {"monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse",
				     "twoGbMaxExtentFlat", "streamOptimized"};

TEST(qemu_img_reads_what_we_write)
{
	static const char *const all[] = {
		"monolithicSparse",   "monolithicFlat",  "twoGbMaxExtentSparse",
		"twoGbMaxExtentFlat", "streamOptimized", "vmfs",
		"vmfsThin",           "vmfsSparse",      "seSparse"};

	NEED("qemu-img");
	make_model();
	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		struct blk *b;

		fx_create("d.vmdk", "vmdk", SIZE, FX_OPTS({"subformat", all[i]}), NULL);
		b = fx_open("d.vmdk", "vmdk", BLK_NO_FLUSH);
		CHECK_EQ(0, blk_write(b, model, SIZE, 0));
		blk_close(b);
		printf("# %s\n", all[i]);
		fx_qemu_reads("d.vmdk", "vmdk", model, SIZE);
	}
	CHECK_EQ(0, fx_run("qemu-img check -f vmdk %s", fx_path("d.vmdk")));
}

TEST(qemu_img_writes_what_we_read)
{
	NEED("qemu-img");
	make_model();
	for (size_t i = 0; i < ARRAY_SIZE(hosted); i++) {
		char opts[64];
		struct blk *b;

		snprintf(opts, sizeof(opts), "-o subformat=%s", hosted[i]);
		fx_qemu_writes("d.vmdk", "vmdk", opts, model, SIZE);
		b = fx_open("d.vmdk", "vmdk", BLK_READONLY);
		fx_same(b, model, SIZE);
		fx_map_is_true(b, model, SIZE);
		blk_close(b);
	}
}

TEST(images_of_qemu_img_are_written)
{
	NEED("qemu-img");
	for (size_t i = 0; i < ARRAY_SIZE(hosted); i++) {
		char opts[64];
		struct blk *b;

		make_model();
		snprintf(opts, sizeof(opts), "-o subformat=%s", hosted[i]);
		fx_qemu_writes("d.vmdk", "vmdk", opts, model, SIZE);
		b = fx_open("d.vmdk", "vmdk", 0);
		for (unsigned n = 0; n < 40; n++)
			fx_one_op(b, model, SIZE);
		blk_close(b);
		fx_qemu_reads("d.vmdk", "vmdk", model, SIZE);
	}
}

TEST(our_streams_are_not_larger)
{
	uint64_t theirs, ours;
	struct blk *b;

	NEED("qemu-img");
	make_model();
	fx_qemu_writes("q.vmdk", "vmdk", "-o subformat=streamOptimized", model, SIZE);
	theirs = fx_file_size("q.vmdk");
	fx_create("d.vmdk", "vmdk", SIZE, FX_OPTS({"subformat", "streamOptimized"}), NULL);
	b = fx_open("d.vmdk", "vmdk", BLK_NO_FLUSH);
	CHECK_EQ(0, blk_write(b, model, SIZE, 0));
	blk_close(b);
	ours = fx_file_size("d.vmdk");
	printf("# qemu-img %" PRIu64 ", ours %" PRIu64 "\n", theirs, ours);
	CHECK(ours <= theirs);
}

TEST(qemu_img_reads_our_chains)
{
	struct blk *b;

	NEED("qemu-img");
	make_model();
	fx_create("0.vmdk", "vmdk", SIZE, FX_OPTS({"subformat", "monolithicFlat"}), NULL);
	fx_create("1.vmdk", "vmdk", SIZE, FX_OPTS({"zeroed_grain", "on"}), "0.vmdk");
	b = fx_open("1.vmdk", "vmdk", 0);
	CHECK_EQ(0, blk_write(b, model, SIZE / 2, 0));
	blk_close(b);
	fx_create("2.vmdk", "vmdk", SIZE, FX_OPTS({"subformat", "vmfsSparse"}), "1.vmdk");
	b = fx_open("2.vmdk", "vmdk", 0);
	CHECK_EQ(0, blk_write(b, model + SIZE / 2, SIZE - SIZE / 2, SIZE / 2));
	blk_close(b);
	fx_create("3.vmdk", "vmdk", SIZE, FX_OPTS({"subformat", "twoGbMaxExtentSparse"}), "2.vmdk");
	fx_qemu_reads("3.vmdk", "vmdk", model, SIZE);
}

TEST(chains_of_qemu_img_are_read)
{
	struct blk *b;

	NEED("qemu-img");
	NEED("qemu-io");
	make_model();
	fx_qemu_writes("0.vmdk", "vmdk", "", model, SIZE);
	CHECK_EQ(0, fx_run("(cd %s && qemu-img create -f vmdk -b 0.vmdk -F vmdk 1.vmdk && "
			   "qemu-io -f vmdk -c 'write -P 77 100k 200k' 1.vmdk && "
			   "qemu-img create -f vmdk -b 1.vmdk -F vmdk -o zeroed_grain=on 2.vmdk && "
			   "qemu-io -f vmdk -c 'write -z 1M 1M' 2.vmdk)",
			   fx_dir));
	memset(model + 100 * 1024, 77, 200 * 1024);
	memset(model + MiB, 0, MiB);
	b = fx_open("2.vmdk", "vmdk", 0);
	fx_same(b, model, SIZE);
	CHECK_EQ(0, blk_write(b, "more", 4, 3 * MiB));
	memcpy(model + 3 * MiB, "more", 4);
	blk_close(b);
	fx_qemu_reads("2.vmdk", "vmdk", model, SIZE);
}

TEST(the_options_are_those_of_qemu_img)
{
	NEED("qemu-img");
	NEED("strings");
	fx_create(
		"d.vmdk", "vmdk", SIZE,
		FX_OPTS({"adapter_type", "lsilogic"}, {"hwversion", "9"}, {"toolsversion", "1234"}),
		NULL);
	CHECK_EQ(0, fx_run("qemu-img create -f vmdk -o adapter_type=lsilogic,hwversion=9,"
			   "toolsversion=1234 %s %d",
			   fx_path("q.vmdk"), SIZE));
	CHECK_EQ(0, fx_run("(cd %s && strings d.vmdk | grep ddb > d.txt && "
			   "strings q.vmdk | grep ddb > q.txt && cmp d.txt q.txt)",
			   fx_dir));
	CHECK(fx_try_create("e.vmdk", "vmdk", SIZE, FX_OPTS({"adapter_type", "sata"}), NULL) < 0);
	CHECK(strstr(fx_err.msg, "lsilogic"));
	CHECK(fx_try_create("e.vmdk", "vmdk", SIZE, FX_OPTS({"subformat", "qcow2"}), NULL) < 0);
	CHECK(strstr(fx_err.msg, "subformat"));
	CHECK(fx_try_create("e.vmdk", "vmdk", SIZE, FX_OPTS({"compat6", "on"}, {"hwversion", "7"}),
			    NULL) < 0);
	CHECK(strstr(fx_err.msg, "exclude"));
	CHECK(fx_try_create("e.vmdk", "vmdk", SIZE, FX_OPTS({"hwversion", "\"\nRW 1"}), NULL) < 0);
	CHECK(fx_run("test -e %s", fx_path("e.vmdk")) != 0);
}

TEST(vmdkinfo_takes_what_we_write)
{
	static const char *const all[] = {
		"monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse",
		"streamOptimized",  "vmfs",           "vmfsSparse"};

	NEED("vmdkinfo");
	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		printf("# %s\n", all[i]);
		fx_create("d.vmdk", "vmdk", SIZE, FX_OPTS({"subformat", all[i]}), NULL);
		CHECK_EQ(0, fx_run("vmdkinfo %s | grep -q '%d bytes'", fx_path("d.vmdk"), SIZE));
	}
}

TEST(vmdkmount_reads_what_we_write)
{
	static const char *const all[] = {"monolithicSparse", "streamOptimized", "vmfsSparse"};
	bool same = true;

	NEED("vmdkmount");
	make_model();
	CHECK_EQ(0, fx_run("mkdir %s", fx_path("mnt")));
	for (size_t i = 0; i < ARRAY_SIZE(all) && same; i++) {
		struct blk *b;
		int fd;

		fx_create("d.vmdk", "vmdk", SIZE, FX_OPTS({"subformat", all[i]}), NULL);
		b = fx_open("d.vmdk", "vmdk", BLK_NO_FLUSH);
		CHECK_EQ(0, blk_write(b, model, SIZE, 0));
		blk_close(b);
		fd = open(fx_path("model.raw"), O_CREAT | O_RDWR | O_TRUNC, 0600);
		CHECK_EQ(SIZE, write(fd, model, SIZE));
		close(fd);
		if (fx_run("vmdkmount %s %s", fx_path("d.vmdk"), fx_path("mnt")))
			SKIP("file systems cannot be mounted here");
		same = !fx_run("cmp %s %s/vmdk1", fx_path("model.raw"), fx_path("mnt"));
		CHECK_EQ(0, fx_run("umount %s", fx_path("mnt")));
		if (!same)
			printf("# %s differs\n", all[i]);
	}
	CHECK(same);
}

/* --- samples ----------------------------------------------------------------------------------
 */

TEST(a_capacity_out_of_all_bounds_is_refused)
{
	fx_sample("qemu-iotests/afl9.vmdk");
	fx_refused("afl9.vmdk", "vmdk", BLK_READONLY, "too large");
}

TEST(a_stream_of_version_3_opens)
{
	struct blk_check c;
	struct blk *b;

	fx_sample("qemu-iotests/iotest-version3.vmdk");
	c = fx_check("iotest-version3.vmdk", "vmdk", 0);
	CHECK_EQ(0, c.corruptions);
	CHECK_EQ(151, c.compressed_clusters);
	b = fx_open("iotest-version3.vmdk", "vmdk", BLK_READONLY);
	CHECK_EQ(33554432ull * 512, blk_info(b)->size);
	blk_close(b);
	NEED("qemu-img");
	CHECK_EQ(0, fx_run("qemu-img convert -f vmdk -O raw %s %s", fx_path("iotest-version3.vmdk"),
			   fx_path("q.raw")));
	b = fx_open("iotest-version3.vmdk", "vmdk", BLK_READONLY);
	for (uint64_t off = 0; off < blk_info(b)->size;) {
		static uint8_t a[65536], q[65536];
		struct blk_map m = {.len = blk_info(b)->size - off};
		int fd = open(fx_path("q.raw"), O_RDONLY);

		CHECK_EQ(0, blk_map(b, off, &m));
		if (m.what == BLK_EXT_DATA) {
			m.len = MIN(m.len, sizeof(a));
			CHECK_EQ(0, blk_read(b, a, m.len, off));
			CHECK_EQ(m.len, pread(fd, q, m.len, (off_t)off));
			CHECK_EQ(0, memcmp(a, q, m.len));
		}
		close(fd);
		off += m.len;
	}
	blk_close(b);
}

TEST(one_file_system_in_three_formats)
{
	struct blk *a, *b;
	static uint8_t x[4 << 20], y[4 << 20];

	fx_sample("dfvfs/ext2.vmdk");
	a = fx_open("ext2.vmdk", "vmdk", BLK_READONLY);
	CHECK_EQ(sizeof(x), blk_info(a)->size);
	CHECK_EQ(0, blk_read(a, x, sizeof(x), 0));
	blk_close(a);
	CHECK_EQ(0xef53, x[1080] | x[1081] << 8); /* the superblock of ext2 */
	fx_is_clean("ext2.vmdk", "vmdk");
	NEED("qemu-img");
	CHECK_EQ(0, fx_run("qemu-img convert -f vmdk -O raw %s %s", fx_path("ext2.vmdk"),
			   fx_path("q.raw")));
	b = fx_open("q.raw", "raw", BLK_READONLY);
	CHECK_EQ(0, blk_read(b, y, sizeof(y), 0));
	CHECK_EQ(0, memcmp(x, y, sizeof(x)));
	blk_close(b);
}
