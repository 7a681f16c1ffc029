/* Unit tests of the formats that are only read: QED, Parallels, DMG, cloop, Bochs. */
#include "image_fixture.h"

#include "base/bytes.h"

#define SIZE (5 * MiB + 512)

static uint8_t model[SIZE];

static void make_model(void)
{
	for (unsigned i = 0; i < SIZE; i++)
		model[i] = i / 300000 % 3 ? 0 : (uint8_t)(i * 7 >> 3);
}

static void reads_as_model(const char *name, const char *format)
{
	struct blk *b = fx_open(name, format, BLK_READONLY);

	fx_same(b, model, SIZE);
	fx_map_is_true(b, model, SIZE);
	blk_close(b);
}

TEST(qed_of_qemu_img_reads_the_same)
{
	NEED("qemu-img");
	make_model();
	fx_qemu_writes("d", "qed", "", model, SIZE);
	reads_as_model("d", "qed");
	fx_qemu_writes("e", "qed", "-o cluster_size=4096", model, SIZE);
	reads_as_model("e", "qed");
}

TEST(qed_shows_its_backing_file_where_it_has_nothing)
{
	NEED("qemu-img");
	make_model();
	fx_qemu_writes("base", "qed", "", model, SIZE);
	CHECK_EQ(0, fx_run("cd %s && qemu-img create -f qed -b base -F qed top", fx_path(".")));
	CHECK_EQ(0, fx_run("qemu-io -f qed -c 'write -P 7 1M 64k' -c 'write -z 2M 64k' %s",
			   fx_path("top")));
	memset(model + MiB, 7, 64 * KiB);
	memset(model + 2 * MiB, 0, 64 * KiB);
	reads_as_model("top", "qed");
}

TEST(parallels_of_qemu_img_reads_the_same)
{
	struct blk *b;

	NEED("qemu-img");
	make_model();
	fx_qemu_writes("d", "parallels", "", model, SIZE);
	b = fx_open("d", "parallels", BLK_READONLY);
	fx_same(b, model, SIZE);
	blk_close(b);
}

TEST(what_can_only_be_read_is_not_opened_for_writing)
{
	NEED("qemu-img");
	CHECK_EQ(0, fx_run("qemu-img create -f qed %s 1M", fx_path("d")));
	fx_refused("d", "qed", 0, "can only be read");
}

/* What qemu-img makes of a sample is what we read in it. */
static void same_as_qemu(const char *sample, const char *format, uint64_t size)
{
	static uint8_t ours[MiB], theirs[MiB];
	const char *path = fx_sample(sample);
	struct blk *b = NULL, *raw;

	CHECK_EQ(0, fx_run("qemu-img convert -f %s -O raw %s %s", format, path, fx_path("raw")));
	if (blk_open(&b, path, format, BLK_READONLY | BLK_NO_POOL, &fx_err) < 0)
		printf("# %s\n", fx_err.msg);
	CHECK(b);
	raw = fx_open("raw", "raw", BLK_READONLY);
	CHECK_EQ(size, blk_info(b)->size);
	for (uint64_t off = 0; off < MIN(size, 256 * MiB); off += MiB) {
		uint64_t n = MIN(size - off, MiB);

		CHECK_EQ(0, blk_read(b, ours, n, off));
		CHECK_EQ(0, blk_read(raw, theirs, n, off));
		CHECK_EQ(0, memcmp(ours, theirs, n));
	}
	blk_close(b);
	blk_close(raw);
}

TEST(samples_read_as_qemu_img_reads_them)
{
	NEED("qemu-img");
	same_as_qemu("qemu-iotests/parallels-v1", "parallels", 2 * MiB);
	same_as_qemu("qemu-iotests/parallels-v2", "parallels", 2 * MiB);
	same_as_qemu("qemu-iotests/parallels-with-bitmap", "parallels", 64 * GiB);
	same_as_qemu("qemu-iotests/empty.bochs", "bochs", 1032192);
	same_as_qemu("qemu-iotests/simple-pattern.cloop", "cloop", MiB);
}

TEST(samples_are_recognised)
{
	const char *format;

	CHECK_EQ(0, blk_probe(fx_sample("qemu-iotests/simple-dmg.dmg"), &format, &fx_err));
	CHECK_STR("dmg", format);
	CHECK_EQ(0, blk_probe(fx_sample("qemu-iotests/simple-pattern.cloop"), &format, &fx_err));
	CHECK_STR("cloop", format);
	CHECK_EQ(0, blk_probe(fx_sample("qemu-iotests/parallels-v1"), &format, &fx_err));
	CHECK_STR("parallels", format);
	CHECK_EQ(0, blk_probe(fx_sample("qemu-iotests/empty.bochs"), &format, &fx_err));
	CHECK_STR("bochs", format);
}

TEST(the_dmg_sample_reads_to_its_end)
{
	static uint8_t buf[MiB];
	const char *path = fx_sample("qemu-iotests/simple-dmg.dmg");
	struct blk *b = NULL;

	if (blk_open(&b, path, "dmg", BLK_READONLY | BLK_NO_POOL, &fx_err) < 0)
		printf("# %s\n", fx_err.msg);
	CHECK(b);
	CHECK_EQ(1799168, blk_info(b)->size);
	CHECK_EQ(0, blk_read(b, buf, MiB, 0));
	CHECK_EQ(0x55, buf[510]); /* a protective MBR, and a GPT behind it */
	CHECK_EQ(0, memcmp(buf + 512, "EFI PART", 8));
	CHECK_EQ(0, blk_read(b, buf, 1799168 - MiB, MiB));
	CHECK_EQ(0, memcmp(buf + 1799168 - MiB - 512, "EFI PART", 8));
	blk_close(b);
}

/* ---- damage ---- */

static void refuse_qed(unsigned field, const char *bytes, unsigned n, const char *words)
{
	CHECK_EQ(0, fx_run("qemu-img create -f qed %s 1M", fx_path("d")));
	fx_patch("d", field, bytes, n);
	fx_refused("d", "qed", BLK_READONLY, words);
}

TEST(qed_headers_that_cannot_be_are_refused_with_words)
{
	NEED("qemu-img");
	refuse_qed(4, "\0\0\0\x40", 4, "clusters of bytes");
	refuse_qed(4, "\1", 1, "clusters of bytes");
	refuse_qed(8, "\3", 1, "tables of clusters");
	refuse_qed(16, "\x8", 1, "features of QED that are not known");
	refuse_qed(48, "\1", 1, "a size of");
	refuse_qed(55, "\x7f", 1, "a size of");
}

static void write_file(const char *name, const void *data, size_t len, off_t size)
{
	int fd = open(fx_path(name), O_CREAT | O_TRUNC | O_RDWR, 0600);

	CHECK(fd >= 0);
	CHECK_EQ(len, write(fd, data, len));
	CHECK_EQ(0, ftruncate(fd, size));
	close(fd);
}

TEST(cloop_headers_that_cannot_be_are_refused_with_words)
{
	uint8_t h[136 + 16] = "#!/bin/sh\n#V2.0 Format\n";

	write_file("d", h, sizeof(h), sizeof(h));
	fx_refused("d", "cloop", BLK_READONLY, "block size");
	be32_store(h + 128, 512);
	be32_store(h + 132, 0xffffffff);
	write_file("d", h, sizeof(h), sizeof(h));
	fx_refused("d", "cloop", BLK_READONLY, "more than 4194304 blocks");
	be32_store(h + 132, 1000);
	write_file("d", h, sizeof(h), sizeof(h));
	fx_refused("d", "cloop", BLK_READONLY, "before its table");
	be32_store(h + 132, 1);
	be64_store(h + 136, 500);
	write_file("d", h, sizeof(h), sizeof(h));
	fx_refused("d", "cloop", BLK_READONLY, "outside the file");
}

TEST(parallels_headers_that_cannot_be_are_refused_with_words)
{
	uint8_t h[64] = "WithoutFreeSpace";

	h[16] = 2;
	write_file("d", h, sizeof(h), 4096);
	fx_refused("d", "parallels", BLK_READONLY, "clusters of sectors: 0");
	le32_store(h + 28, 63);
	le32_store(h + 32, 0x7fffffff);
	write_file("d", h, sizeof(h), 4096);
	fx_refused("d", "parallels", BLK_READONLY, "a table of entries");
	le32_store(h + 32, 1);
	le32_store(h + 36, 64);
	write_file("d", h, sizeof(h), 4096);
	fx_refused("d", "parallels", BLK_READONLY, "more sectors than its table holds");
}

TEST(a_dmg_of_another_packer_is_refused_by_name)
{
	static const char base64[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	uint8_t mish[204 + 42] = "mish", koly[512] = "koly";
	char xml[1024] = "<key>blkx</key><array><data>", *at = xml + strlen(xml);
	static uint8_t file[2048];

	be32_store(mish + 200, 1);
	be32_store(mish + 204, 0x80000007);
	be64_store(mish + 204 + 16, 1);
	for (unsigned i = 0; i < sizeof(mish); i += 3) {
		uint32_t v = (uint32_t)mish[i] << 16 | (uint32_t)mish[i + 1] << 8 | mish[i + 2];

		for (int k = 18; k >= 0; k -= 6)
			*at++ = base64[v >> k & 63];
	}
	strcpy(at, "</data></array>");
	be32_store(koly + 8, 512);
	be64_store(koly + 0xd8, 0);
	be64_store(koly + 0xe0, strlen(xml));
	be64_store(koly + 0x1ec, 1);
	memcpy(file, xml, strlen(xml));
	memcpy(file + 1536, koly, 512);
	write_file("d", file, sizeof(file), sizeof(file));
	fx_refused("d", "dmg", BLK_READONLY, "LZFSE (ULFO)");
}
