/* Addresses, names' hashes, descriptors' bytes: as the format has them. */
#include "vmfs_fixture.h"

#include "vmfs/internal.h"

static struct vmfs_geometry geometry(unsigned version, bool dense)
{
	return (struct vmfs_geometry){
		.version = version,
		.dense = dense,
		.file_block_size = MiB,
		.sub_block_size = version == 6 ? 65536 : 8192,
		.md_align = version == 6 ? 4096 : 512,
		.lfb_shift = 9,
		.ptr_per_block = version == 6 ? 8192 : 1024,
		.fd_size = version == 6 ? 8192 : 2048,
	};
}

static struct vmfs_addr parse(const struct vmfs_geometry *g, uint64_t raw)
{
	struct vmfs_addr a;

	CHECK_EQ(0, vmfs_addr_parse(g, raw, &a));
	return a;
}

TEST(addresses_of_32_bits)
{
	struct vmfs_geometry g = geometry(5, true), sparse = geometry(5, false);
	struct vmfs_addr a = parse(&g, 0x341);

	CHECK(a.type == VMFS_ADDR_FB && a.cluster == 13 && !a.cow && !a.tbz);
	a = parse(&g, 0x341 | 1 << 4);
	CHECK(a.cow && !a.tbz);
	a = parse(&g, 0xffffffc1 | 1 << 5);
	CHECK(a.tbz && !a.cow && a.cluster == 0x3ffffff);
	a = parse(&g, 0xf0000000 | 5 << 6 | 3 << 3 | 2);
	CHECK(a.type == VMFS_ADDR_SB && a.cluster == 5 && a.resource == 63);
	a = parse(&sparse, 0xf0000000 | 5 << 6 | 3 << 3 | 2);
	CHECK(a.resource == 15);
	a = parse(&g, 0x10000003 | 7 << 6 | 1 << 5);
	CHECK(a.type == VMFS_ADDR_PB && a.cluster == 7 && a.resource == 1 && a.cow);
	a = parse(&g, 0x2400004);
	CHECK(a.type == VMFS_ADDR_FD && a.cluster == 0 && a.resource == 9);
	a = parse(&g, 0xffc00004 | 0x3fffc0);
	CHECK(a.cluster == 0xffff && a.resource == 1023);
}

TEST(addresses_of_64_bits)
{
	struct vmfs_geometry g = geometry(6, true);
	struct vmfs_addr a = parse(&g, 0x48000000000001);

	CHECK(a.type == VMFS_ADDR_FB && a.cluster == 9 && !a.tbz && !a.cow);
	a = parse(&g, 0x48000000000001 | 2ull << 15 | 1 << 7 | 1 << 5);
	CHECK(a.cluster == 2 * 512 + 9 && a.tbz && a.cow);
	a = parse(&g, 7 | 3ull << 15);
	CHECK(a.type == VMFS_ADDR_LFB && a.cluster == 3);
	a = parse(&g, 2 | 300ull << 6 | 255ull << 56);
	CHECK(a.type == VMFS_ADDR_SB && a.cluster == 300 && a.resource == 255);
	a = parse(&g, 5);
	CHECK(a.type == VMFS_ADDR_PB2 && a.cluster == 0 && a.resource == 0);
}

TEST(what_is_no_address)
{
	struct vmfs_geometry five = geometry(5, true), six = geometry(6, true);
	struct vmfs_addr a;

	CHECK_EQ(0, vmfs_addr_parse(&five, 0, &a));
	CHECK_EQ(VMFS_ADDR_NONE, a.type);
	CHECK_EQ(-EUCLEAN, vmfs_addr_parse(&five, 8, &a));              /* no type */
	CHECK_EQ(-EUCLEAN, vmfs_addr_parse(&five, 7, &a));              /* no large blocks */
	CHECK_EQ(-EUCLEAN, vmfs_addr_parse(&five, 1ull << 32 | 1, &a)); /* too long */
	CHECK_EQ(-EUCLEAN, vmfs_addr_parse(&five, 0xc, &a));
	/* resource 512 of a cluster of 512 */
	CHECK_EQ(-EUCLEAN, vmfs_addr_parse(&six, 1 | 512ull << 51, &a));
}

/* Found in the hash tables of a volume that ESXi made. */
TEST(hashes_of_names)
{
	CHECK_EQ(0xd2b970eb, (uint32_t)dir_hash("file1"));
	CHECK_EQ(4348, dir_hash_slot("file1", false));
	CHECK_EQ(14444, dir_hash_slot("file2", false));
	CHECK_EQ(8954, dir_hash_slot("file5", false));
	CHECK_EQ(6767, dir_hash_slot("symlink", false));
	CHECK_EQ(15490, dir_hash_slot("directory", true));
	CHECK_EQ(0x3e66, dir_hash_slot(".fbb.sf", true));
	CHECK_EQ(0x3e6d, dir_hash_slot(".jbc.sf", true));
}

TEST(descriptors_that_are_none)
{
	struct vmfs_geometry g = geometry(6, true);
	uint8_t fd[8192] = {0}, *m = fd + 4096;
	struct vmfs_inode *in = malloc(sizeof(*in));
	const char *why = NULL;

	CHECK(in);
	CHECK_EQ(-EUCLEAN, vmfs_inode_parse(&g, fd, 0x1000, in, &why));
	CHECK(why);
	le32_store(fd + FS_L_TYPE, FS_LOCK_FD);
	le64_store(fd + FS_L_SELF, 0x1000);
	le32_store(m + FS_FD_ADDR, 0x2400004);
	le32_store(m + FS_FD_TYPE, VMFS_FILE);
	CHECK_EQ(-EUCLEAN, vmfs_inode_parse(&g, fd, 0x1000, in, NULL)); /* no signature */
	le32_store(m + FS_FD_SIGNATURE, FS_FDMD);
	CHECK_EQ(-EUCLEAN, vmfs_inode_parse(&g, fd, 0x2000, in, NULL)); /* elsewhere */
	m[FS_FD_BLOCK_SHIFT] = 200;
	CHECK_EQ(0, vmfs_inode_parse(&g, fd, 0x1000, in, NULL));
	CHECK_EQ(20, in->block_shift);
	CHECK_EQ(320, in->nr_addr);
	le32_store(m + FS_FD_TYPE, 9);
	CHECK_EQ(-EUCLEAN, vmfs_inode_parse(&g, fd, 0x1000, in, NULL));
	free(in);
}

TEST(a_uuid_as_people_see_it)
{
	struct vmfs_uuid u = {{0xd5, 0x7d, 0x13, 0x61, 0x10, 0x78, 0x72, 0xd0, 0xc2, 0x7a, 0x00,
			       0x0c, 0x29, 0x80, 0x16, 0x86}};
	char text[VMFS_UUID_TEXT];

	vmfs_uuid_text(&u, text);
	CHECK_STR("61137dd5-d0727810-7ac2-000c29801686", text);
}
