/* The two volumes that ESXi made: read exactly as is known of them, also where parts are gone. */
#define TEST_TIMEOUT_S 300
#include "vmfs_fixture.h"

__attribute__((constructor)) static void unpack(void)
{
	vf_unpack("vmfs5-esxi.bin");
	vf_unpack("vmfs6-esxi.bin");
}

/* What is in /directory of both. */
static const struct {
	const char *name;
	enum vmfs_type type;
	uint64_t len;
	const char *sha256;
} files[] = {
	{"file1", VMFS_FILE, 0, NULL},
	{"file2", VMFS_FILE, 0, NULL},
	{"file3", VMFS_FILE, 0, NULL},
	{"file4", VMFS_FILE, 8, "434728a410a78f56fc1b5899c3593436e61ab0c731e9072d95e96db290205e53"},
	{"file5", VMFS_FILE, 8193,
	 "227c62ef44ec9d9d4dbda23feaf622078a496368e919980afcd786acd9f455c4"},
	{"symlink", VMFS_SYMLINK, 5, NULL},
};

struct names {
	unsigned nr, found[ARRAY_SIZE(files)], dots;
};

static int take_name(void *opaque, const struct vmfs_dirent *e)
{
	struct names *n = opaque;

	n->nr++;
	n->dots += !strcmp(e->name, ".") || !strcmp(e->name, "..");
	for (unsigned i = 0; i < ARRAY_SIZE(files); i++)
		n->found[i] +=
			!strcmp(e->name, files[i].name) && e->type == files[i].type && !e->free;
	return 0;
}

static void check_listing(struct vmfs *v)
{
	struct vmfs_inode *dir = vf_inode(v, "/directory");
	struct names n = {0};
	uint64_t bad = 1;

	CHECK(dir->is_dir && dir->links == 2);
	CHECK_EQ(0, vmfs_dir_each(v, dir, false, take_name, &n, &bad, &vf_err));
	CHECK_EQ(0, bad);
	CHECK_EQ(8, n.nr);
	CHECK_EQ(2, n.dots);
	for (unsigned i = 0; i < ARRAY_SIZE(files); i++)
		CHECK_EQ(1, n.found[i]);
	free(dir);
}

static void check_file(struct vmfs *v, unsigned i)
{
	struct vmfs_inode *in;
	char path[64], sha[65], target[6] = "";

	snprintf(path, sizeof(path), "/directory/%s", files[i].name);
	in = vf_inode(v, path);
	CHECK_EQ(files[i].type, in->type);
	CHECK_EQ(files[i].len, in->length);
	CHECK_EQ(1, in->links);
	CHECK(!in->free_bit);
	CHECK(in->mtime >= 1628553600 && in->mtime < 1628726400); /* 2021-08-10 and -11 */
	if (in->length) {
		vf_sha256(v, in, 0, in->length, sha);
		if (files[i].sha256)
			CHECK_STR(files[i].sha256, sha);
	}
	if (in->type == VMFS_SYMLINK) {
		CHECK_EQ(5, vmfs_file_read(v, in, target, sizeof(target), 0));
		CHECK_STR("file4", target);
	}
	free(in);
}

static void check_tree(struct vmfs *v)
{
	check_listing(v);
	for (unsigned i = 0; i < ARRAY_SIZE(files); i++)
		check_file(v, i);
}

static void check_geometry(const struct vmfs_geometry *g, unsigned version)
{
	CHECK_EQ(version, g->version);
	CHECK(g->dense && !g->lite);
	CHECK_STR(version == 5 ? "VMFS5 Test" : "VMFS6 Test", g->label);
	CHECK_EQ(MiB, g->file_block_size);
	CHECK_EQ(version == 5 ? 8192u : 65536u, g->sub_block_size);
	CHECK_EQ(version == 5 ? 0x420000u : 0x720000u, g->fdc_base);
	CHECK_EQ(version == 5 ? 32u : 256u, g->res[VMFS_RES_FDC].per_cluster);
	CHECK_EQ(version == 5 ? 64u : 8u, g->res[VMFS_RES_FDC].per_group);
}

static void check_volume(const char *name, unsigned version)
{
	const struct vmfs_plan *p;
	struct vf_findings f;
	struct vmfs *v;

	vf_device(vf_sample(name));
	v = vf_open(0);
	p = vmfs_plan(v);
	check_geometry(&p->geo, version);
	CHECK(!p->notes);
	CHECK_EQ(1, p->nr_runs);
	CHECK_EQ(0x1100000, p->run[0].dev_off);
	check_tree(v);
	f = vf_check(v);
	CHECK_EQ(0, f.nr[VMFS_WARNING]);
	CHECK_EQ(0, f.nr[VMFS_DAMAGE]);
	/* On the VMFS5 volume a host's heartbeat and journal are in use. */
	CHECK_EQ(version == 5, f.nr[VMFS_INFO]);
	vf_close(v);
}

TEST(a_vmfs5_volume_of_esxi)
{
	check_volume("vmfs5-esxi.bin", 5);
}

TEST(a_vmfs6_volume_of_esxi)
{
	check_volume("vmfs6-esxi.bin", 6);
}

/* --- with parts overwritten ----------------------------------------------------------------------
 */

static void wipe(const char *path, uint64_t off, uint64_t len)
{
	int fd = open(path, O_WRONLY);
	char *zero = calloc(1, len);

	CHECK(fd >= 0 && zero);
	CHECK_EQ(len, (uint64_t)pwrite(fd, zero, len, (off_t)off));
	close(fd);
	free(zero);
}

/* The header of a resource file, of the volume's device in place 0. */
static uint64_t place_of(struct vmfs *v, uint32_t fd, uint64_t off)
{
	struct vmfs_inode *in = malloc(sizeof(*in));
	struct vmfs_range r;

	CHECK(in);
	CHECK_EQ(0, vmfs_inode_read(v, fd, in, &vf_err));
	CHECK_EQ(0, vmfs_file_range(v, in, off, &r));
	CHECK_EQ(VMFS_RANGE_DATA, r.kind);
	free(in);
	return r.dev_off;
}

/* Headers of resource files gone: the usual layout is the right one here. */
static void without_headers(const char *name)
{
	static const uint32_t fd[] = {0x400004, 0x800004, 0xc00004, 0x1000004, 0x1800004};
	const char *path = vf_sample(name);
	uint64_t at[ARRAY_SIZE(fd)];
	struct vf_findings f;
	struct vmfs *v;

	vf_device(path);
	v = vf_open(0);
	for (unsigned i = 0; i < ARRAY_SIZE(fd); i++)
		at[i] = place_of(v, fd[i], 0);
	vf_close(v);
	for (unsigned i = 0; i < ARRAY_SIZE(fd); i++)
		wipe(path, at[i], 8192);
	vf_device(path);
	v = vf_open(0);
	CHECK(vmfs_plan(v)->notes);
	check_tree(v);
	f = vf_check(v);
	CHECK(vf_found(&f, "header") >= ARRAY_SIZE(fd) - 1);
	vf_close(v);
}

TEST(vmfs5_without_the_headers_of_resource_files)
{
	without_headers("vmfs5-esxi.bin");
}

TEST(vmfs6_without_the_headers_of_resource_files)
{
	without_headers("vmfs6-esxi.bin");
}

/* The descriptor of .sbc.sf gone: what needs sub-blocks is lost, the rest reads. */
TEST(vmfs6_without_sub_blocks)
{
	const char *path = vf_sample("vmfs6-esxi.bin");
	struct vmfs_inode *dir;
	struct vmfs_range r;
	struct vmfs *v;
	uint64_t bad = 0;
	struct names n = {0};

	wipe(path, 0x1820000 + 4 * 8192, 8192);
	vf_device(path);
	v = vf_open(0);
	dir = vf_inode(v, "/directory");
	CHECK_EQ(0, vmfs_file_range(v, dir, 0, &r));
	CHECK_EQ(VMFS_RANGE_LOST, r.kind);
	CHECK(r.why);
	CHECK_EQ(0, vmfs_dir_each(v, dir, false, take_name, &n, &bad, &vf_err));
	CHECK(bad);
	CHECK_EQ(2, n.nr); /* "." and "..", which the descriptor knows */
	free(dir);
	dir = malloc(sizeof(*dir));
	CHECK(dir);
	CHECK_EQ(0, vmfs_inode_read(v, 0x3400004, dir, &vf_err)); /* file4, resident */
	CHECK_EQ(8, dir->length);
	free(dir);
	vf_close(v);
}

/* A directory's alloc map gone: its blocks are found without. */
TEST(vmfs6_without_an_alloc_map)
{
	const char *path = vf_sample("vmfs6-esxi.bin");
	struct vf_findings f;
	struct vmfs *v;
	uint64_t at;

	vf_device(path);
	v = vf_open(0);
	at = place_of(v, 0x2400004, 0x10000);
	vf_close(v);
	wipe(path, at, 4096);
	vf_device(path);
	v = vf_open(0);
	check_tree(v);
	f = vf_check(v);
	CHECK_EQ(1, vf_found(&f, "alloc-map"));
	vf_close(v);
}

/* What lies behind the cut is lost, and said to be; the rest reads. */
TEST(vmfs5_cut_off)
{
	const char *path = vf_sample("vmfs5-esxi.bin");
	struct vmfs_inode *in;
	struct vmfs_range r;
	struct vmfs *v;
	char byte;

	CHECK_EQ(0, truncate(path, 27 << 20));
	vf_device(path);
	v = vf_open(0);
	check_listing(v);
	check_file(v, 3);
	in = vf_inode(v, "/directory/file5");
	CHECK_EQ(0, vmfs_file_range(v, in, 0, &r));
	CHECK_EQ(VMFS_RANGE_LOST, r.kind);
	CHECK_EQ(8193, r.len);
	CHECK_EQ(-ENODATA, vmfs_file_read(v, in, &byte, 1, 0));
	free(in);
	vf_close(v);
	CHECK_EQ(0, truncate(path, 26 << 20)); /* now the directory too */
	vf_device(path);
	v = vf_open(0);
	in = malloc(sizeof(*in));
	CHECK(in);
	CHECK_EQ(-ENOENT, vmfs_lookup(v, "/directory/file4", in, &vf_err));
	CHECK(strstr(vf_err.msg, "damaged"));
	CHECK_EQ(0, vmfs_inode_read(v, 0x3000004, in, &vf_err));
	CHECK_EQ(8, in->length);
	free(in);
	vf_close(v);
}

static void refused(const char *path, int code)
{
	struct vmfs *v = NULL;

	vf_device(path);
	CHECK_EQ(code, vmfs_open(&v, vf_dev, vf_devs, NULL, 0, &vf_err));
	CHECK(vf_err.msg[0] && !strchr(vf_err.msg, '\n'));
	vf_close(NULL);
}

TEST(what_is_gone_is_said)
{
	const char *path = vf_sample("vmfs5-esxi.bin");

	wipe(path, 0x1520000, 2048); /* the root's descriptor */
	refused(path, -EUCLEAN);
	wipe(path, 0x1300000, 512); /* the superblock */
	refused(path, -EUCLEAN);
	wipe(path, 0x100000, 512); /* the LVM header */
	refused(path, -EINVAL);
	CHECK_EQ(0, truncate(path, 0));
	refused(path, -EINVAL);
}
