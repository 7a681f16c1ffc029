/* Volumes of every shape, written by tests/vmfs/mkfs and read back: each file's descriptor, ranges
 * and bytes must be what the writer's manifest says; the doctor has nothing to say.
 *
 * The writer shares no code with the reader; what both could have wrong in the same way is compared
 * with volumes of ESXi (tests/unit/vmfs/volumes.c) and with other readers (mkfs_readers.py). */
#define TEST_TIMEOUT_S 300
#include "vmfs_fixture.h"

#include "mkfs.h"

#include <jansson.h>

/* --- making ------------------------------------------------------------------------------------
 */

/* Runs a script, in which @ stands for the test's directory; the manifest. */
static json_t *make(const char *script)
{
	size_t cap = strlen(script) * 4 + 4096, n = 0;
	char *text = malloc(cap), *json = NULL;
	const char *dir = vf_path("");
	size_t json_len = 0;
	FILE *out = open_memstream(&json, &json_len);
	json_t *m;

	CHECK(text && out);
	for (const char *p = script; *p && n < cap - 256; p++)
		n += (size_t)snprintf(text + n, cap - n, *p == '@' ? "%s" : "%.1s",
				      *p == '@' ? dir : p);
	mkfs_script(text, out);
	fclose(out);
	m = json_loads(json, 0, NULL);
	CHECK(m);
	free(json);
	free(text);
	return m;
}

static uint64_t num(const json_t *o, const char *key)
{
	json_t *n = json_object_get(o, key);

	CHECK(json_is_integer(n));
	return (uint64_t)json_integer_value(n);
}

static const char *str(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	CHECK(s);
	return s;
}

static uint64_t item(const json_t *list, size_t i)
{
	return (uint64_t)json_integer_value(json_array_get(list, i));
}

/* --- comparing ---------------------------------------------------------------------------------
 */

/* The next range that lies somewhere, joined with what goes on there; false: none is left. */
static bool next_placed(struct vmfs *v, const struct vmfs_inode *in, uint64_t *off,
			struct vmfs_range *out)
{
	struct vmfs_range r;

	*out = (struct vmfs_range){0};
	for (; *off < in->length; *off = r.off + r.len) {
		CHECK_EQ(0, vmfs_file_range(v, in, *off, &r));
		CHECK_EQ(*off, r.off);
		CHECK(r.len && r.len <= in->length - r.off);
		CHECK(r.kind != VMFS_RANGE_LOST);
		if (r.kind == VMFS_RANGE_HOLE && !out->len)
			continue;
		if (r.kind == VMFS_RANGE_HOLE ||
		    (out->len && (out->vol + out->len != r.vol || out->dev != r.dev)))
			return true;
		if (!out->len)
			*out = r;
		else
			out->len += r.len;
	}
	return out->len > 0;
}

static void check_ranges(struct vmfs *v, const struct vmfs_inode *in, const json_t *f)
{
	json_t *list = json_object_get(f, "extents"), *want;
	struct vmfs_range r;
	uint64_t off = 0;
	size_t i;

	json_array_foreach(list, i, want)
	{
		CHECK(next_placed(v, in, &off, &r));
		CHECK_EQ(item(want, 0), r.off);
		CHECK_EQ(item(want, 1), r.len);
		CHECK_EQ(item(want, 2), r.vol);
	}
	CHECK(!next_placed(v, in, &off, &r));
}

static void check_pieces(struct vmfs *v, const struct vmfs_inode *in, const json_t *f)
{
	json_t *list = json_object_get(f, "pieces"), *p;
	const char *whole = json_string_value(json_object_get(f, "sha256"));
	char sha[65];
	size_t i;

	json_array_foreach(list, i, p)
	{
		vf_sha256(v, in, num(p, "off"), num(p, "len"), sha);
		CHECK_STR(str(p, "sha256"), sha);
	}
	if (whole) {
		vf_sha256(v, in, 0, in->length, sha);
		CHECK_STR(whole, sha);
	}
}

static enum vmfs_type type_of(const json_t *f)
{
	static const struct {
		const char *name;
		enum vmfs_type type;
	} types[] = {{"dir", VMFS_DIR},
		     {"file", VMFS_FILE},
		     {"symlink", VMFS_SYMLINK},
		     {"rdm", VMFS_RDM},
		     {"system", VMFS_SYSTEM}};

	for (unsigned i = 0; i < ARRAY_SIZE(types); i++)
		if (!strcmp(types[i].name, str(f, "type")))
			return types[i].type;
	CHECK(!"a type that is known");
	return 0;
}

static void check_rdm(struct vmfs *v, const struct vmfs_inode *in)
{
	struct vmfs_range r;
	char byte;

	CHECK_EQ(0, vmfs_file_range(v, in, 0, &r));
	CHECK_EQ(VMFS_RANGE_LOST, r.kind);
	CHECK_EQ(in->length, r.len);
	CHECK_EQ(-EIO, vmfs_file_read(v, in, &byte, 1, 0));
	CHECK(!memcmp(in->data + 34, "naa.", 4)); /* the SCSI id's text */
}

static void check_file(struct vmfs *v, const json_t *f)
{
	struct vmfs_inode *in = vf_inode(v, str(f, "path"));
	char target[256] = "";

	CHECK_EQ(num(f, "fd"), in->addr);
	CHECK_EQ(type_of(f), in->type);
	CHECK_EQ(num(f, "generation"), in->generation);
	CHECK_EQ(num(f, "size"), in->length);
	CHECK_EQ(num(f, "zla"), in->zla);
	CHECK_EQ(num(f, "blocks"), in->nr_blocks);
	CHECK_EQ(num(json_object_get(f, "fd_at"), "vol"), in->vol);
	CHECK(!in->free_bit);
	if (in->type == VMFS_RDM) {
		check_rdm(v, in);
	} else if (in->type != VMFS_SYSTEM) {
		check_ranges(v, in, f);
		check_pieces(v, in, f);
	}
	if (in->type == VMFS_SYMLINK) {
		CHECK(vmfs_file_read(v, in, target, sizeof(target) - 1, 0) > 0);
		CHECK_STR(str(f, "target"), target);
	}
	free(in);
}

/* Directories list what the manifest has in them, no more. */
struct count {
	uint64_t nr;
	const char *wanted;
	bool found, free;
};

static int count_entry(void *opaque, const struct vmfs_dirent *e)
{
	struct count *c = opaque;

	c->nr++;
	if (c->wanted && !strcmp(e->name, c->wanted)) {
		c->found = true;
		c->free = e->free;
	}
	return 0;
}

static uint64_t entries_of(struct vmfs *v, const char *path)
{
	struct vmfs_inode *in = vf_inode(v, path);
	struct count c = {0};
	uint64_t bad = 1;

	CHECK_EQ(0, vmfs_dir_each(v, in, false, count_entry, &c, &bad, &vf_err));
	CHECK_EQ(0, bad);
	free(in);
	return c.nr;
}

static uint64_t children_in(const json_t *files, const char *dir)
{
	size_t len = strcmp(dir, "/") ? strlen(dir) : 0, i;
	uint64_t n = 0;
	json_t *f;

	json_array_foreach(files, i, f)
	{
		const char *path = str(f, "path");

		n += !strncmp(path, dir, len) && path[len] == '/' && path[len + 1] &&
		     !strchr(path + len + 1, '/') && !json_is_true(json_object_get(f, "deleted"));
	}
	return n;
}

static void check_files(struct vmfs *v, const json_t *m)
{
	json_t *files = json_object_get(m, "files"), *f;
	size_t i;

	CHECK_EQ(0, num(m, "not_listed"));
	json_array_foreach(files, i, f)
	{
		if (json_is_true(json_object_get(f, "deleted")))
			continue;
		check_file(v, f);
		if (type_of(f) == VMFS_DIR)
			CHECK_EQ(2 + children_in(files, str(f, "path")),
				 entries_of(v, str(f, "path")));
	}
}

static void check_plan(struct vmfs *v, const json_t *m)
{
	const struct vmfs_geometry *g = &vmfs_plan(v)->geo;
	char uuid[VMFS_UUID_TEXT];

	CHECK_EQ(num(m, "version"), g->version);
	CHECK_STR(str(m, "label"), g->label);
	vmfs_uuid_text(&g->uuid, uuid);
	CHECK_STR(str(m, "uuid"), uuid);
	CHECK_EQ(num(m, "block_size"), g->file_block_size);
	CHECK_EQ(num(m, "sub_block_size"), g->sub_block_size);
	CHECK_EQ(num(m, "volume_size"), g->size);
	CHECK_EQ(json_is_true(json_object_get(m, "local")), g->lite);
	if (vmfs_plan(v)->notes)
		printf("# %s", vmfs_plan(v)->notes);
	CHECK(!vmfs_plan(v)->notes);
}

static void open_extents(const json_t *m, bool backwards)
{
	json_t *list = json_object_get(m, "extents");
	size_t n = json_array_size(list);

	for (size_t i = 0; i < n; i++)
		vf_device(str(json_array_get(list, backwards ? n - 1 - i : i), "file"));
}

/* VMFS3 and 5 have a journal block that nothing points to unless a host is alive. */
static void check_doctor(struct vmfs *v)
{
	struct vf_findings f = vf_check(v);
	unsigned leaks = vmfs_plan(v)->geo.version == 6 ? 0 : 1;

	CHECK_EQ(0, f.nr[VMFS_DAMAGE]);
	CHECK(vf_found(&f, "bitmap-leak") <= leaks);
	CHECK_EQ(f.nr[VMFS_WARNING], vf_found(&f, "bitmap-leak"));
}

static void read_back(const char *script)
{
	json_t *m = make(script);
	struct vmfs *v;

	open_extents(m, false);
	v = vf_open(0);
	check_plan(v, m);
	check_files(v, m);
	check_doctor(v);
	vf_close(v);
	json_decref(m);
}

/* --- shapes ------------------------------------------------------------------------------------
 */

/* What all versions have. */
#define TREE                                                                                       \
	"mkdir /vm\n"                                                                              \
	"mkdir /vm/deeper\n"                                                                       \
	"file /vm/vm.vmx text=\"config.version = 8\\n\"\n"                                         \
	"file /vm/empty\n"                                                                         \
	"file /vm/one text=x\n"                                                                    \
	"file /vm/sub pattern=1 size=60000 layout=sub\n"                                           \
	"file /vm/direct pattern=2 size=3145999\n"                                                 \
	"file /vm/holes size=90M piece=5M:3M:3 piece=64M:1M:4 piece=89M:512:5\n"                   \
	"file /vm/scattered pattern=6 size=7M scatter\n"                                           \
	"file /vm/single pattern=7 size=9M layout=single\n"                                        \
	"file /vm/thin-flat.vmdk size=30G piece=0:1M:8 piece=12G:2M:9 piece=30719M:1M:10\n"        \
	"file /vm/tbz size=8M piece=0:2M:11 piece=3M:2M:12t piece=6M:1M:13c\n"                     \
	"file /vm/deeper/leaf pattern=14 size=4097\n"                                              \
	"symlink /vm/link deeper/leaf\n"                                                           \
	"rdm /vm/lun size=1T id=naa.600\n"

TEST(vmfs3)
{
	read_back("format file=@a size=1G version=3\n" TREE);
}

TEST(vmfs3_with_large_blocks)
{
	read_back("format file=@a size=1G version=3 block=8M\n"
		  "mkdir /d\nfile /d/f pattern=1 size=20M\nfile /d/s pattern=2 size=70000\n");
}

TEST(vmfs5)
{
	read_back("format file=@a size=1G version=5 label=five\n" TREE);
}

TEST(vmfs5_not_dense)
{
	read_back("format file=@a size=1G version=5 sparse-clusters\n" TREE);
}

TEST(vmfs5_alive)
{
	read_back("format file=@a size=1G version=5 live\n" TREE);
}

TEST(vmfs6)
{
	read_back("format file=@a size=1G version=6 label=six\n" TREE);
}

TEST(vmfs_l)
{
	read_back("format file=@a size=1G version=5 local\n" TREE);
	read_back("format file=@a size=1G version=6 local\n" TREE);
}

TEST(on_a_partitioned_disk)
{
	read_back("format file=@a size=1G version=5 disk=gpt\n" TREE);
	read_back("format file=@a size=1G version=6 disk=mbr\n" TREE);
}

TEST(pointer_blocks_in_pb2)
{
	read_back("format file=@a size=1G version=5\n"
		  "file /a pattern=1 size=5M layout=single pb2\n"
		  "file /b size=300G layout=double pb2 piece=299G:2M:2\n");
	read_back("format file=@a size=1G version=6\n"
		  "file /a pattern=1 size=5M layout=single pb2\n"
		  "file /b size=3T layout=double pb2 piece=2900G:2M:2\n");
}

/* 256 GiB is where VMFS5's single pointer blocks end, 2.5 TiB where VMFS6's do. */
TEST(double_indirect)
{
	read_back("format file=@a size=1G version=5\n"
		  "file /a size=600G layout=double piece=0:1M:1 piece=262143M:2M:2 "
		  "piece=614399M:1M:3\n"
		  "file /b size=60T layout=double piece=59T:3M:4\n");
	read_back("format file=@a size=1G version=6\n"
		  "file /a size=4T layout=double piece=0:1M:1 piece=2621439M:2M:2 "
		  "piece=4194303M:1M:3\n");
}

TEST(large_file_blocks)
{
	read_back("format file=@a size=4G version=6\n"
		  "file /lfb size=1536M layout=single piece=0:1M:1 piece=512M:3M:2l "
		  "piece=1023M:1M:3l piece=1030M:2M:4\n"
		  "file /lazy size=1G layout=single piece=0:1M:5tl piece=512M:1M:6\n");
}

TEST(many_entries)
{
	read_back("format file=@a size=1G version=6\n"
		  "mkdir /many\nfill /many count=700 prefix=f\ncollide /many count=40 prefix=c\n"
		  "collide / count=5 prefix=r\n");
	read_back("format file=@a size=1G version=5\n"
		  "mkdir /many\nfill /many count=700 prefix=f size=20\n");
}

static const char spread[] =
	"format version=5 file=@a size=256M file=@b size=256M file=@c size=256M\n"
	"file /wide pattern=1 size=600M layout=single\nfile /small text=hello\n";

TEST(extents_in_any_order)
{
	json_t *m = make(spread);
	struct vmfs *v;

	for (unsigned i = 0; i < 2; i++) {
		open_extents(m, i);
		v = vf_open(0);
		check_plan(v, m);
		CHECK_EQ(3, vmfs_plan(v)->nr_devs);
		check_files(v, m);
		check_doctor(v);
		vf_close(v);
	}
	json_decref(m);
}

TEST(extents_of_vmfs6_on_disks)
{
	json_t *m = make("format version=6 disk=gpt file=@a size=256M file=@b size=256M\n"
			 "file /wide pattern=1 size=400M layout=single\n");
	struct vmfs *v;

	open_extents(m, true);
	v = vf_open(0);
	check_files(v, m);
	check_doctor(v);
	vf_close(v);
	json_decref(m);
}

/* Two of three: refused, unless asked for; then what lies there is lost and the rest reads. */
TEST(a_missing_extent)
{
	json_t *m = make(spread), *list = json_object_get(m, "extents");
	uint64_t from = num(json_array_get(list, 1), "volume_offset"),
		 len = num(json_array_get(list, 1), "length"), lost = 0, data = 0;
	struct vmfs_inode *in;
	struct vmfs_range r;
	struct vmfs *v = NULL;

	vf_device(str(json_array_get(list, 2), "file"));
	vf_device(str(json_array_get(list, 0), "file"));
	CHECK_EQ(-ENODEV, vmfs_open(&v, vf_dev, vf_devs, NULL, 0, &vf_err));
	CHECK(strstr(vf_err.msg, "3 devices"));
	v = vf_open(VMFS_ALLOW_MISSING);
	CHECK_EQ(3, vmfs_plan(v)->nr_devs);
	in = vf_inode(v, "/wide");
	for (uint64_t off = 0; off < in->length; off += r.len) {
		CHECK_EQ(0, vmfs_file_range(v, in, off, &r));
		CHECK(r.kind == VMFS_RANGE_DATA || r.kind == VMFS_RANGE_LOST);
		CHECK(r.kind == VMFS_RANGE_LOST || r.vol + r.len <= from || r.vol >= from + len);
		*(r.kind == VMFS_RANGE_LOST ? &lost : &data) += r.len;
	}
	CHECK_EQ(len, lost);
	CHECK_EQ(in->length - len, data);
	free(in);
	vf_close(v);
	json_decref(m);
}

/* What was deleted still has its name where asked for, and is not in the way where not. */
static void deleted_names(const char *script)
{
	struct count c = {.wanted = "gone"};
	struct vmfs_inode *in;
	uint64_t bad;
	json_t *m = make(script);
	struct vmfs *v;

	open_extents(m, false);
	v = vf_open(0);
	check_files(v, m);
	in = vf_inode(v, "/d");
	CHECK_EQ(0, vmfs_dir_each(v, in, false, count_entry, &c, &bad, &vf_err));
	CHECK(!c.found);
	CHECK_EQ(0, vmfs_dir_each(v, in, true, count_entry, &c, &bad, &vf_err));
	CHECK(c.found && c.free);
	free(in);
	vf_close(v);
	json_decref(m);
}

TEST(names_of_deleted_files)
{
	deleted_names("format file=@a size=1G version=5\nmkdir /d\nfile /d/a text=a\n"
		      "file /d/gone pattern=1 size=2M\nfile /d/b text=b\ndelete /d/gone\n");
	deleted_names("format file=@a size=1G version=6\nmkdir /d\nfile /d/a text=a\n"
		      "file /d/gone pattern=1 size=2M\nfile /d/b text=b\ndelete /d/gone\n");
}
