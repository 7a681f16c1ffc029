/* LVM metadata and partition tables, made by hand. */
#include "vmfs_fixture.h"

#include "vmfs/internal.h"

static void put(const char *path, uint64_t off, const void *bytes, size_t len)
{
	int fd = open(path, O_RDWR | O_CREAT, 0644);

	CHECK(fd >= 0);
	CHECK_EQ(len, (size_t)pwrite(fd, bytes, len, (off_t)off));
	close(fd);
}

static void make(const char *path, uint64_t size)
{
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0644);

	CHECK(fd >= 0);
	CHECK_EQ(0, ftruncate(fd, (off_t)size));
	close(fd);
}

struct pe {
	uint64_t vol, len, dev;
};

static void put_pe(const char *path, uint64_t at, const struct pe *pe)
{
	uint8_t e[LVM_PE_BYTES] = {0};

	e[LVM_PE_USED] = 1;
	le64_store(e + LVM_PE_VOLUME_OFFSET, pe->vol);
	le64_store(e + LVM_PE_LENGTH, pe->len);
	le64_store(e + LVM_PE_DEVICE_OFFSET, pe->dev);
	put(path, at, e, sizeof(e));
}

/* An extent in a file, at `start` of it. */
static void put_extent(const char *path, uint64_t start, unsigned major, uint64_t first_pe,
		       uint32_t devices, const struct pe *pe, uint32_t nr)
{
	uint32_t block = major < 6 ? 512 : 4096;
	uint64_t table = LVM_HEADER + 0x80000 + block + (major < 6 ? 1024 : 4096);
	uint8_t h[LVM_H_SIZE] = {0}, v[LVM_VOLUME_SIZE] = {0};

	le32_store(h + LVM_H_MAGIC, LVM_MAGIC);
	le32_store(h + LVM_H_MAJOR, major);
	le32_store(h + LVM_H_VOLUMES, 1);
	le32_store(h + LVM_H_PES, nr);
	le64_store(h + LVM_H_DATA_OFFSET, LVM_DATA);
	le64_store(h + LVM_H_TOTAL_BYTES, 1ull << 40);
	le32_store(h + LVM_H_MD_ALIGN, major < 6 ? 0 : 4096);
	put(path, start + LVM_HEADER, h, sizeof(h));
	memset(v + LVM_V_UUID, 0x5a, 16);
	memcpy(v + LVM_V_NAME, "a volume", 8);
	le64_store(v + LVM_V_SIZE, 3 * GiB);
	le32_store(v + LVM_V_STATE, LVM_NORMAL);
	le64_store(v + LVM_V_FIRST_PE, first_pe);
	le64_store(v + LVM_V_LAST_PE, first_pe + 1);
	le32_store(v + LVM_V_DEVICES, devices);
	put(path, start + LVM_HEADER + block, v, sizeof(v));
	for (uint32_t i = 0; i < nr; i++)
		put_pe(path, start + table + 128ull * i, &pe[i]);
}

static struct lvm_extent extent(struct blk *b, uint64_t start)
{
	struct lvm_extent e = {.dev = b, .place = {start, blk_size(b) - start, start != 0}};

	CHECK_EQ(0, vmfs_lvm_read(b, &e.place, &e.h, &vf_err));
	return e;
}

static void check_run(const struct vmfs_run *r, uint64_t vol, uint64_t len, uint64_t off,
		      unsigned dev)
{
	CHECK_EQ(vol, r->vol);
	CHECK_EQ(len, r->len);
	CHECK_EQ(off, r->dev_off);
	CHECK_EQ(dev, r->dev);
}

static void header_of(unsigned major)
{
	const struct pe pe = {0, 512 * MiB, LVM_DATA};
	const char *path = vf_path("one");
	struct vmfs_plan p = {0};
	struct lvm_extent e;

	make(path, GiB);
	put_extent(path, 0, major, 0, 1, &pe, 1);
	p.dev[0] = vf_device(path);
	p.nr_devs = 1;
	e = extent(p.dev[0], 0);
	CHECK_EQ(major, e.h.major);
	CHECK_STR("a volume", e.h.label);
	CHECK_EQ(3 * GiB, e.h.volume_size);
	CHECK_EQ(1, e.h.nr_devices);
	CHECK_EQ(1, e.h.last_pe);
	CHECK_EQ(0, lvm_add_runs(&p, &e, 0));
	runs_settle(&p);
	CHECK_EQ(1, p.nr_runs);
	check_run(&p.run[0], 0, 512 * MiB, LVM_DATA, 0);
	vmfs_plan_free(&p);
	vf_close(NULL);
}

TEST(a_header_of_each_kind)
{
	header_of(3);
	header_of(5);
	header_of(6);
}

TEST(extents_out_of_order)
{
	/* the second half of the volume first on the disk; on another disk the end of it */
	const struct pe one[] = {{256 * MiB, 256 * MiB, LVM_DATA},
				 {0, 256 * MiB, LVM_DATA + 256 * MiB}};
	const struct pe two[] = {{512 * MiB, 256 * MiB, LVM_DATA},
				 {768 * MiB, 256 * MiB, LVM_DATA + 256 * MiB}};
	struct vmfs_plan p = {0};
	struct lvm_extent e;

	make(vf_path("a"), GiB);
	make(vf_path("b"), GiB);
	put_extent(vf_path("a"), MiB, 5, 0, 2, one, 2);
	put_extent(vf_path("b"), 0, 5, 2, 2, two, 2);
	p.dev[0] = vf_device(vf_path("b"));
	p.dev[1] = vf_device(vf_path("a"));
	p.nr_devs = 2;
	e = extent(p.dev[0], 0);
	CHECK_EQ(0, lvm_add_runs(&p, &e, 0));
	e = extent(p.dev[1], MiB);
	CHECK_EQ(0, lvm_add_runs(&p, &e, 1));
	runs_settle(&p);
	CHECK_EQ(3, p.nr_runs);
	check_run(&p.run[0], 0, 256 * MiB, MiB + LVM_DATA + 256 * MiB, 1);
	check_run(&p.run[1], 256 * MiB, 256 * MiB, MiB + LVM_DATA, 1);
	check_run(&p.run[2], 512 * MiB, 512 * MiB, LVM_DATA, 0);
	CHECK(!p.notes);
	vmfs_plan_free(&p);
	vf_close(NULL);
}

TEST(more_maps_than_stand_in_a_row)
{
	const char *path = vf_path("long");
	uint8_t x[LVM_X_SIZE] = {0}, n[8];
	uint32_t nr = 8 * LVM_PES_PER_MAP + 1;
	uint64_t row = 1024 + 8192ull * 128;
	struct pe last = {7 * GiB, 256 * MiB, LVM_DATA + 512 * MiB};
	const struct pe pe = {0, 256 * MiB, LVM_DATA};
	struct vmfs_plan p = {0};
	struct lvm_extent e;

	make(path, 2 * GiB);
	put_extent(path, 0, 5, 0, 1, &pe, 1);
	le32_store(n, nr);
	put(path, LVM_HEADER + LVM_H_PES, n, 4);
	le32_store(n, 8);
	put(path, LVM_HEADER + LVM_H_PE_MAPS, n, 4);
	le64_store(n, 0xc00000);
	put(path, LVM_HEADER + LVM_H_EXT_META, n, 8);
	le32_store(x + LVM_X_MAGIC, LVM_MAGIC);
	le32_store(x + LVM_X_PE_MAPS, 1);
	le64_store(x + LVM_X_DATA_OFFSET, 0xd00000);
	put(path, 0xc00000, x, sizeof(x));
	put_pe(path, 0xd00000 + 1024, &last);
	/* and one in the second map of the row */
	last.vol = 3 * GiB;
	put_pe(path, LVM_HEADER + 0x80200 + row + 1024, &last);
	p.dev[0] = vf_device(path);
	p.nr_devs = 1;
	e = extent(p.dev[0], 0);
	CHECK_EQ(0, lvm_add_runs(&p, &e, 0));
	runs_settle(&p);
	CHECK_EQ(3, p.nr_runs);
	CHECK_EQ(3 * GiB, p.run[1].vol);
	CHECK_EQ(7 * GiB, p.run[2].vol);
	vmfs_plan_free(&p);
	vf_close(NULL);
}

TEST(tables_that_lie)
{
	const struct pe pe[] = {
		{0, 256 * MiB, LVM_DATA},
		{128 * MiB, 256 * MiB, LVM_DATA + 256 * MiB}, /* overlaps */
		{512 * MiB, UINT64_MAX, LVM_DATA},            /* too long */
		{UINT64_MAX - 5, 256 * MiB, LVM_DATA},        /* wraps */
		{1024 * MiB, 256 * MiB, 1ull << 50},          /* off the disk */
		{2048 * MiB, 256 * MiB, 512 * MiB},           /* over its end */
	};
	const char *path = vf_path("lies");
	struct vmfs_plan p = {0};
	struct lvm_extent e;

	make(path, 600 * MiB);
	put_extent(path, 0, 5, 0, 1, pe, ARRAY_SIZE(pe));
	p.dev[0] = vf_device(path);
	p.nr_devs = 1;
	e = extent(p.dev[0], 0);
	CHECK_EQ(0, lvm_add_runs(&p, &e, 0));
	runs_settle(&p);
	CHECK_EQ(2, p.nr_runs);
	check_run(&p.run[0], 0, 256 * MiB, LVM_DATA, 0);
	check_run(&p.run[1], 2048 * MiB, 88 * MiB, 512 * MiB, 0);
	CHECK(p.notes);
	vmfs_plan_free(&p);
	vf_close(NULL);
}

TEST(a_lost_table_is_one_piece)
{
	const char *path = vf_path("lost");
	struct vmfs_plan p = {0};
	struct lvm_extent e;

	make(path, GiB);
	put_extent(path, 0, 5, 0, 1, NULL, 0);
	p.dev[0] = vf_device(path);
	p.nr_devs = 1;
	e = extent(p.dev[0], 0);
	CHECK_EQ(0, lvm_add_runs(&p, &e, 0));
	CHECK_EQ(1, p.nr_runs);
	CHECK_EQ(LVM_DATA, p.run[0].dev_off);
	CHECK(p.notes);
	vmfs_plan_free(&p);
	vf_close(NULL);
}

TEST(no_header_is_said)
{
	const char *path = vf_path("none");
	struct vmfs_lvm_header h;
	struct vmfs_place place;

	make(path, 4 * MiB);
	vf_device(path);
	place = (struct vmfs_place){0, 4 * MiB, false};
	CHECK_EQ(-EINVAL, vmfs_lvm_read(vf_dev[0], &place, &h, &vf_err));
	CHECK(vf_err.msg[0]);
	place.len = 4096;
	CHECK_EQ(-EINVAL, vmfs_lvm_read(vf_dev[0], &place, &h, &vf_err));
	vf_close(NULL);
}

/* --- partition tables --------------------------------------------------------------------------
 */

static const uint8_t vmfs_type[16] = {0x2a, 0xe0, 0x31, 0xaa, 0x0f, 0x40, 0xdb, 0x11,
				      0x95, 0x90, 0x00, 0x0c, 0x29, 0x11, 0xd1, 0xb8};
static const uint8_t other_type[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

static void put_gpt(const char *path, uint64_t header, uint64_t entries, uint32_t sector,
		    const uint8_t *type, uint64_t first, uint64_t last)
{
	uint8_t h[512] = {0}, e[128] = {0};

	memcpy(h, "EFI PART", 8);
	le64_store(h + 72, entries);
	le32_store(h + 80, 128);
	le32_store(h + 84, 128);
	put(path, header * sector, h, sizeof(h));
	memcpy(e, type, 16);
	le64_store(e + 32, first);
	le64_store(e + 40, last);
	put(path, entries * sector + 5 * 128, e, sizeof(e));
}

static void check_place(const struct vmfs_place *p, uint64_t start, uint64_t len, bool partition)
{
	CHECK_EQ(start, p->start);
	CHECK_EQ(len, p->len);
	CHECK_EQ(partition, p->partition);
}

static void gpt_is_found(uint32_t sector, bool backup)
{
	const char *path = vf_path("gpt");
	uint64_t size = GiB, end = size / sector, first = 2 * MiB / sector;
	struct vmfs_place p[4];

	make(path, size);
	if (backup)
		put_gpt(path, end - 1, end - 40, sector, vmfs_type, first, end - 100);
	else
		put_gpt(path, 1, 2, sector, vmfs_type, first, end - 100);
	vf_device(path);
	CHECK_EQ(2, vmfs_places(vf_dev[0], p, 4));
	check_place(&p[0], 2 * MiB, (end - 100 - first + 1) * sector, true);
	check_place(&p[1], 0, size, false);
	CHECK_EQ(1, vmfs_places(vf_dev[0], p, 1));
	vf_close(NULL);
}

TEST(partitions_of_a_gpt)
{
	gpt_is_found(512, false);
	gpt_is_found(512, true);
	gpt_is_found(4096, false);
	gpt_is_found(4096, true);
}

/* The type is not what decides: an extent's header is. */
TEST(a_partition_of_another_type)
{
	const struct pe pe = {0, 256 * MiB, LVM_DATA};
	const char *path = vf_path("other");
	struct vmfs_place p[4];

	make(path, GiB);
	put_gpt(path, 1, 2, 512, other_type, 8192, 1000000);
	vf_device(path);
	CHECK_EQ(1, vmfs_places(vf_dev[0], p, 4));
	vf_close(NULL);
	put_extent(path, 8192 * 512, 5, 0, 1, &pe, 1);
	vf_device(path);
	CHECK_EQ(2, vmfs_places(vf_dev[0], p, 4));
	CHECK_EQ(8192 * 512, p[0].start);
	vf_close(NULL);
}

static void put_mbr(const char *path, uint64_t sector, unsigned i, uint8_t type, uint32_t first,
		    uint32_t nr)
{
	uint8_t e[16] = {0}, end[2] = {0x55, 0xaa};

	e[4] = type;
	le32_store(e + 8, first);
	le32_store(e + 12, nr);
	put(path, sector * 512 + 446 + 16u * i, e, sizeof(e));
	put(path, sector * 512 + 510, end, 2);
}

TEST(partitions_of_an_mbr)
{
	const char *path = vf_path("mbr");
	struct vmfs_place p[8];

	make(path, GiB);
	put_mbr(path, 0, 0, 0x83, 2048, 4096);
	put_mbr(path, 0, 1, 0x0f, 100000, 900000);
	put_mbr(path, 0, 3, 0xfb, 20480, 65536);
	put_mbr(path, 100000, 0, 0x83, 63, 1000);
	put_mbr(path, 100000, 1, 0x05, 50000, 60000);
	put_mbr(path, 150000, 0, 0xfb, 63, 59000);    /* a logical one */
	put_mbr(path, 150000, 1, 0x05, 50000, 60000); /* and a loop */
	vf_device(path);
	CHECK_EQ(3, vmfs_places(vf_dev[0], p, 8));
	check_place(&p[0], 20480 * 512, 65536 * 512, true);
	check_place(&p[1], 150063ull * 512, 59000 * 512, true);
	check_place(&p[2], 0, GiB, false);
	vf_close(NULL);
}
