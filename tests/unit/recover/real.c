/* The volumes that ESXi made, whole and with each part of their metadata destroyed. */
#define TEST_TIMEOUT_S 120
#include "recover_fixture.h"

enum { FILE5 = 8193 };

struct fault {
	uint64_t off, len;
};

static void check_files(const char *dir)
{
	char path[256], buf[FILE5];

	for (unsigned i = 1; i <= 3; i++) {
		snprintf(path, sizeof(path), "%s/file%u", dir, i);
		CHECK_EQ(0u, rf_entry(path).length);
	}
	snprintf(path, sizeof(path), "%s/file4", dir);
	rf_check_text(path, "content\n");
	CHECK_EQ(REC_EXACT, rf_entry(path).worst);
	snprintf(path, sizeof(path), "%s/file5", dir);
	CHECK_EQ((uint64_t)FILE5, rf_entry(path).length);
	CHECK(rf_entry(path).worst <= REC_INFERRED);
	rf_read(path, buf, FILE5, 0);
	for (unsigned i = 0; i < FILE5 - 1; i++)
		CHECK_EQ('a', buf[i]);
	CHECK_EQ('\n', buf[FILE5 - 1]);
	snprintf(path, sizeof(path), "%s/symlink", dir);
	CHECK_EQ(0, rec_readlink(rf_rec, rf_entry(path).id, buf, sizeof(buf)));
	CHECK(!strcmp("file4", buf));
}

/* All of the tree, by its names, after each of these. */
static void survives(const char *name, const struct fault *f, unsigned n)
{
	rf_sample(name);
	for (unsigned i = 0; i < n; i++)
		rf_zero(name, f[i].off, f[i].len);
	rf_recover(name, REC_AS_IS);
	check_files("/directory");
	CHECK_EQ(REC_LIVE, rf_entry("/directory/file5").state);
	CHECK(!rf_there("/lost+found"));
	rf_close();
}

#define SURVIVES(test, name, ...)                                                                  \
	TEST(test)                                                                                 \
	{                                                                                          \
		static const struct fault f[] = {__VA_ARGS__};                                     \
		survives(name, f, ARRAY_SIZE(f));                                                  \
	}

#define V5 "vmfs5-esxi.bin"
#define V6 "vmfs6-esxi.bin"
#define AT 0x1100000 /* of volume offset 0 */

__attribute__((constructor)) static void unpack_both(void)
{
	(void)rf_unpack(V5);
	(void)rf_unpack(V6);
}

// clang-format off
SURVIVES(vmfs5_without_lvm_header, V5, {0x100000, 512})
SURVIVES(vmfs5_without_lvm_tables, V5, {0x100000, 0x200000})
SURVIVES(vmfs5_without_superblock, V5, {0x1300000, 512})
SURVIVES(vmfs5_without_heartbeats, V5, {0x1400000, 0x100000})
SURVIVES(vmfs5_without_its_first_20_mib, V5, {0, 20 * MiB})
SURVIVES(vmfs5_without_root_descriptor, V5, {AT + 0x420000, 2048})
SURVIVES(vmfs5_without_fdc_header, V5, {AT + 0x400000, 512})
SURVIVES(vmfs5_without_fdc_descriptor, V5, {AT + 0x421000, 2048})
SURVIVES(vmfs5_without_fd_clusters, V5, {AT + 0x410000, 65536})
SURVIVES(vmfs5_without_resource_headers, V5, {AT + 6 * MiB, 512}, {AT + 7 * MiB, 512},
	 {AT + 8 * MiB, 512}, {AT + 11 * MiB, 512})
SURVIVES(vmfs5_without_system_descriptors, V5, {AT + 0x420000, 8 * 2048})
SURVIVES(vmfs6_without_system_descriptors, V6, {AT + 0x720000, 9 * 8192})
SURVIVES(vmfs6_without_lvm_header, V6, {0x100000, 512})
SURVIVES(vmfs6_without_lvm_tables, V6, {0x100000, 0x300000})
SURVIVES(vmfs6_without_superblock, V6, {0x1300000, 512})
SURVIVES(vmfs6_without_heartbeats, V6, {0x1400000, 0x400000})
SURVIVES(vmfs6_without_its_first_20_mib, V6, {0, 20 * MiB})
SURVIVES(vmfs6_without_root_descriptor, V6, {AT + 0x720000, 8192})
SURVIVES(vmfs6_without_root_header, V6, {AT + 8 * MiB, 65536})
SURVIVES(vmfs6_without_root_alloc_map, V6, {AT + 8 * MiB + 0x10000, 4096})
SURVIVES(vmfs6_without_fdc_header, V6, {AT + 0x700000, 512})
SURVIVES(vmfs6_without_fdc_descriptor, V6, {AT + 0x724000, 8192})
SURVIVES(vmfs6_without_fd_clusters, V6, {AT + 0x710000, 65536})
// clang-format on

static void as_is(const char *name, unsigned version, const char *label)
{
	const struct rec_volume *v;

	rf_sample(name);
	rf_recover(name, REC_AS_IS);
	CHECK_EQ(1u, rec_volumes(rf_rec, &v));
	CHECK_EQ(version, v->version);
	CHECK(!strcmp(label, v->label));
	CHECK(v->whole);
	check_files("/directory");
	CHECK(rf_entry("/.fdc.sf").system);
	rf_close();
}

TEST(vmfs5_as_it_is)
{
	as_is(V5, 5, "VMFS5 Test");
}

TEST(vmfs6_as_it_is)
{
	as_is(V6, 6, "VMFS6 Test");
}

/* The name of the directory is lost with its entry; those of its files are not. */
TEST(vmfs5_without_root_entries)
{
	rf_sample(V5);
	rf_zero(V5, AT + 5 * MiB, 1400);
	rf_recover(V5, REC_AS_IS);
	CHECK(rf_entry("/dir-02000004").name_made);
	CHECK_EQ(REC_ORPHAN, rf_entry("/dir-02000004").state);
	check_files("/dir-02000004");
	CHECK(rf_entry("/.sbc.sf").system);
	rf_close();
}

TEST(vmfs6_without_root_entries)
{
	rf_sample(V6);
	rf_zero(V6, AT + 8 * MiB + 0x11000, 4096);
	rf_recover(V6, REC_AS_IS);
	CHECK(rf_entry("/dir-02400004").name_made);
	check_files("/dir-02400004");
	rf_close();
}

/* Cut off at 26 MiB the directory and file5 are gone, and said to be. */
TEST(vmfs5_cut_short)
{
	rf_sample(V5);
	CHECK_EQ(0, truncate(rf_path(V5), 26 * MiB));
	rf_recover(V5, REC_AS_IS);
	CHECK_EQ(REC_UNREADABLE, rf_entry("/directory").worst);
	rf_check_text("/lost+found/file-03000004", "content\n");
	CHECK_EQ((uint64_t)FILE5, rf_entry("/lost+found/file-03400004").bytes[REC_UNREADABLE]);
	rf_close();
}

/* At 200 MiB .pb2.sf is gone, and with it the map of .sbc.sf: its clusters' headers are left. */
TEST(vmfs6_cut_short)
{
	rf_sample(V6);
	CHECK_EQ(0, truncate(rf_path(V6), 200 * MiB));
	rf_recover(V6, REC_AS_IS);
	check_files("/directory");
	CHECK_EQ(REC_INFERRED, rf_entry("/directory/file5").worst);
	rf_close();
}
