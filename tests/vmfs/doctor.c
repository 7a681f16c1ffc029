/* What vmfs_check() finds: one fault after another put into a good volume, each told by its name,
 * and nothing ever written to the volume by the check. */
#define TEST_TIMEOUT_S 300
#include "vmfs_fixture.h"

#include "mkfs.h"
#include "vmfs/ondisk.h"

static const char tree[] = "mkdir /d\nfile /d/a pattern=1 size=3M\nfile /d/b pattern=2 size=2M\n"
			   "file /d/c pattern=3 size=9M layout=single\nfile /d/small text=x\n";

static void make(unsigned version)
{
	char script[512];

	snprintf(script, sizeof(script), "format file=%s size=512M version=%u live\n%s",
		 vf_path("v"), version, tree);
	mkfs_script(script, NULL);
}

static struct vmfs *open_it(void)
{
	vf_device(vf_path("v"));
	return vf_open(0);
}

/* Where on the device byte `off` of a descriptor, and of a file's content, is. */
static uint64_t fd_at(struct vmfs *v, const char *path, uint64_t off)
{
	struct vmfs_inode *in = vf_inode(v, path);
	uint64_t len = 1, dev_off = 0;
	unsigned dev;

	CHECK_EQ(0, vmfs_locate(v, in->vol + off, &len, &dev, &dev_off));
	free(in);
	return dev_off;
}

static uint64_t byte_at(struct vmfs *v, const char *path, uint64_t off)
{
	struct vmfs_inode *in = vf_inode(v, path);
	struct vmfs_range r;

	CHECK_EQ(0, vmfs_file_range(v, in, off, &r));
	CHECK_EQ(VMFS_RANGE_DATA, r.kind);
	free(in);
	return r.dev_off;
}

static void put(uint64_t at, const void *bytes, size_t len)
{
	int fd = open(vf_path("v"), O_WRONLY);

	CHECK(fd >= 0);
	CHECK_EQ(len, (size_t)pwrite(fd, bytes, len, (off_t)at));
	close(fd);
}

static void put_u32(uint64_t at, uint32_t value)
{
	uint8_t b[4];

	le32_store(b, value);
	put(at, b, sizeof(b));
}

static uint32_t meta(unsigned version)
{
	return version == 6 ? 4096 : 512;
}

/* The check of the volume as it is now tells of `what`. */
static void told(const char *what)
{
	struct vmfs *v = open_it();
	struct vf_findings f = vf_check(v);

	if (!vf_found(&f, what))
		printf("# nothing said of: %s\n", what);
	CHECK(vf_found(&f, what));
	vf_close(v);
}

static void healthy(unsigned version)
{
	struct vf_findings f;
	struct vmfs *v;

	make(version);
	v = open_it();
	f = vf_check(v);
	CHECK_EQ(0, f.nr[VMFS_DAMAGE]);
	CHECK_EQ(0, f.nr[VMFS_WARNING]);
	CHECK_EQ(1, vf_found(&f, "heartbeat"));
	vf_close(v);
}

TEST(a_good_volume)
{
	healthy(3);
	healthy(5);
	healthy(6);
}

static void descriptors(unsigned version)
{
	struct vmfs *v;
	uint64_t at;

	make(version);
	v = open_it();
	at = fd_at(v, "/d/a", meta(version));
	vf_close(v);
	put_u32(at + FS_FD_LINKS, 7);
	told("links");
	put_u32(at + FS_FD_BLOCKS, 99);
	told("block-count");
	put_u32(at + FS_FD_LENGTH + 4, 0x7fff0000);
	told("length");
	put_u32(at + FS_FD_GENERATION, 12345);
	told("generation");
	put_u32(at + FS_FD_ZLA, 77);
	told("addressing");
	put_u32(at + FS_FD_ADDR, 0);
	told("descriptor");
	told("entry");
}

TEST(faults_of_descriptors)
{
	descriptors(3);
	descriptors(5);
	descriptors(6);
}

static void addresses(unsigned version)
{
	uint64_t array = version == 6 ? 8192 - 2560 : 1024, a, b;
	unsigned size = version == 6 ? 8 : 4;
	struct vmfs_inode *in;
	struct vmfs *v;
	uint8_t raw[8];

	make(version);
	v = open_it();
	in = vf_inode(v, "/d/a");
	le64_store(raw, in->address[1]);
	free(in);
	a = fd_at(v, "/d/a", array);
	b = fd_at(v, "/d/b", array);
	vf_close(v);
	put(b, raw, size); /* b's first block is a's second */
	told("double-use");
	told("bitmap-leak");
	memset(raw, 0xff, sizeof(raw));
	put(a, raw, size);
	told("address");
}

TEST(faults_of_addresses)
{
	addresses(3);
	addresses(5);
	addresses(6);
}

static void clusters(unsigned version)
{
	uint64_t header, bitmap = version == 6 ? FS_C6_BITMAP : FS_C5_BITMAP;
	struct vmfs *v;

	make(version);
	v = open_it();
	/* .fbb.sf: VMFS6's cluster 0 of small blocks is behind the 8 headers of large ones */
	header = byte_at(v, "/.fbb.sf", version == 6 ? 0x20000 : 0x10000);
	vf_close(v);
	put_u32(header + meta(version) + bitmap, 0xffffffff);
	told("bitmap-free");
	told("cluster-count");
	put_u32(header + FS_L_SELF, 1);
	told("cluster-header");
}

TEST(faults_of_bitmaps)
{
	clusters(3);
	clusters(5);
	clusters(6);
}

TEST(faults_of_hashed_directories)
{
	uint64_t hash, map, block, count;
	uint8_t zero[FS_DIR_SLOTS * 4] = {0};
	struct vmfs *v;

	make(6);
	v = open_it();
	count = byte_at(v, "/d", FS_DH_ENTRIES);
	hash = byte_at(v, "/d", FS_DH_HASH);
	map = byte_at(v, "/d", FS_DH_SIZE);
	block = byte_at(v, "/d", FS_DH_SIZE + 4096);
	vf_close(v);
	put_u32(count, 77);
	told("dir-count");
	put(hash, zero, sizeof(zero));
	told("hash");
	v = open_it(); /* and yet the name is found */
	free(vf_inode(v, "/d/a"));
	vf_close(v);
	put(map, zero, 4096);
	told("alloc-map");
	put(block + FS_DB_SLOTS, zero, 2);
	told("orphan");
}

TEST(faults_of_flat_directories)
{
	struct vmfs *v;
	uint64_t at;

	make(5);
	v = open_it();
	at = byte_at(v, "/d", 2 * FS_D5_SIZE);
	vf_close(v);
	put_u32(at + FS_D5_TYPE, VMFS_SYMLINK);
	told("entry-type");
	put_u32(at + FS_D5_TYPE, 99);
	told("dir-entries");
	told("orphan");
}

static bool at_once(void *opaque)
{
	return true;
}

TEST(a_check_can_be_stopped)
{
	struct vf_findings f = {0};
	struct vmfs *v;

	make(5);
	v = open_it();
	CHECK_EQ(-ECANCELED, vmfs_check(v, vf_finding, &f, at_once, &vf_err));
	vf_close(v);
}
