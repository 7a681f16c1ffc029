/* Volumes of the test writer: what was deleted, overwritten, lost, formatted over; VMs of them. */
#define TEST_TIMEOUT_S 120
#include "recover_fixture.h"

/* A VM with a disk of its own pointer blocks, a small one, and a file that stays. */
#define VM_SCRIPT                                                                                  \
	"mkdir /db\n"                                                                              \
	"file /db/db.vmdk text=\"# Disk DescriptorFile\\nversion=1\\nCID=fffffffe\\n"              \
	"parentCID=ffffffff\\ncreateType=\\\"vmfs\\\"\\nRW 24576 VMFS \\\"db-flat.vmdk\\\"\\n"     \
	"ddb.adapterType = \\\"lsilogic\\\"\\n\"\n"                                                \
	"file /db/db-flat.vmdk size=12M pattern=9 layout=single\n"                                 \
	"file /db/data.bin size=3M pattern=11 layout=direct\n"                                     \
	"file /db/db.vmx text=\".encoding = \\\"UTF-8\\\"\\nconfig.version = \\\"8\\\"\\n"         \
	"virtualHW.version = \\\"8\\\"\\ndisplayName = \\\"Data Base\\\"\\n"                       \
	"scsi0:0.present = \\\"TRUE\\\"\\nscsi0:0.fileName = \\\"db.vmdk\\\"\\n\"\n"               \
	"file /keep.bin size=5M pattern=21 layout=direct\n"

#define FORMAT(v) "format file=@v.img size=512M version=" v " label=store\n"

static void check_vm_disk(const char *name, uint64_t seed, uint64_t size)
{
	struct rec_vm vm;
	struct blk *b = NULL;
	uint8_t *got = malloc(MiB), *want = malloc(MiB);

	CHECK_EQ(0, rec_vm_find(rf_rec, name, &vm, &rf_err));
	CHECK_EQ(1u, vm.nr_disks);
	CHECK_EQ(size, vm.disk[0].size);
	CHECK_EQ(0, rec_open_disk(rf_rec, vm.disk[0].descriptor, REC_BLK_STRICT, &b, &rf_err));
	CHECK_EQ(size, blk_size(b));
	for (uint64_t off = 0; off < size; off += MiB) {
		CHECK_EQ(0, blk_read(b, got, MiB, off));
		mkfs_pattern(seed, off, want, MiB);
		CHECK(!memcmp(got, want, MiB));
	}
	blk_close(b);
	free(got);
	free(want);
}

/* --- as it is ----------------------------------------------------------------------------------
 */

static void vm_as_it_is(const char *script)
{
	rf_make(script);
	rf_recover("v.img", REC_AS_IS);
	rf_check_pattern("/db/db-flat.vmdk", 9, 12 * MiB);
	CHECK_EQ(REC_EXACT, rf_entry("/db/db-flat.vmdk").worst);
	CHECK(!strcmp("vmdk-descriptor", rf_entry("/db/db.vmdk").what));
	check_vm_disk("Data Base", 9, 12 * MiB);
	rf_close();
}

TEST(vmfs5_a_vm_and_its_disk)
{
	vm_as_it_is(FORMAT("5") VM_SCRIPT);
}

TEST(vmfs6_a_vm_and_its_disk)
{
	vm_as_it_is(FORMAT("6") VM_SCRIPT);
}

TEST(vmfs3_without_its_first_20_mib)
{
	rf_make(FORMAT("3") "mkdir /a\nfile /a/b size=3M pattern=5 layout=direct\n");
	rf_zero("v.img", 0, 20 * MiB);
	rf_recover("v.img", REC_AS_IS);
	rf_check_pattern("/a/b", 5, 3 * MiB);
	rf_close();
}

/* --- deleted -----------------------------------------------------------------------------------
 */

static void check_grade_1(const char *script)
{
	rf_make(script);
	rf_recover("v.img", REC_META);
	CHECK_EQ(REC_DELETED, rf_entry("/deleted/db").state);
	CHECK_EQ(1u, rf_entry("/deleted/db/db-flat.vmdk").grade);
	CHECK_EQ(REC_EXACT, rf_entry("/deleted/db/db-flat.vmdk").worst);
	rf_check_pattern("/deleted/db/db-flat.vmdk", 9, 12 * MiB);
	rf_check_pattern("/deleted/db/data.bin", 11, 3 * MiB);
	rf_check_pattern("/keep.bin", 21, 5 * MiB);
	check_vm_disk("Data Base", 9, 12 * MiB);
	rf_close();
}

TEST(vmfs5_deleted_with_addresses)
{
	check_grade_1(FORMAT("5") VM_SCRIPT "delete /db grade=1\n");
}

TEST(vmfs6_deleted_with_addresses)
{
	check_grade_1(FORMAT("6") VM_SCRIPT "delete /db grade=1\n");
}

static void check_grade_2(const char *script)
{
	struct rec_entry e;

	rf_make(script);
	rf_recover("v.img", REC_META);
	e = rf_entry("/deleted/db/db-flat.vmdk");
	CHECK_EQ(2u, e.grade);
	CHECK_EQ(12 * MiB, e.bytes[REC_INFERRED]);
	rf_check_pattern("/deleted/db/db-flat.vmdk", 9, 12 * MiB);
	check_vm_disk("Data Base", 9, 12 * MiB);
	e = rf_entry("/deleted/db/data.bin"); /* had no pointer blocks: nothing tells */
	CHECK_EQ(3 * MiB, e.bytes[REC_UNKNOWN]);
	rf_close();
}

TEST(vmfs5_deleted_without_addresses)
{
	check_grade_2(FORMAT("5") VM_SCRIPT "delete /db grade=2\n");
}

TEST(vmfs6_deleted_without_addresses)
{
	check_grade_2(FORMAT("6") VM_SCRIPT "delete /db grade=2\n");
}

TEST(pointer_blocks_of_two_deleted_files_are_told_apart)
{
	rf_make(FORMAT("5") "file /a size=12M pattern=1 layout=single\n"
			    "file /b size=9M pattern=2 layout=single\n"
			    "delete /a grade=2\ndelete /b grade=2\n");
	rf_recover("v.img", REC_META);
	rf_check_pattern("/deleted/a", 1, 12 * MiB);
	rf_check_pattern("/deleted/b", 2, 9 * MiB);
	rf_close();
}

TEST(pieces_of_a_wiped_file_are_listed)
{
	rf_make(FORMAT("5") VM_SCRIPT "delete /db grade=3\n");
	rf_recover("v.img", REC_FULL);
	CHECK(!rf_there("/deleted/db/db-flat.vmdk"));
	rf_check_pattern("/keep.bin", 21, 5 * MiB);
	rf_close();
}

/* A VMX of almost 2 KiB lies in a sub-block on VMFS5, which a delete leaves as it is. */
static void make_deleted_vmx(unsigned grade)
{
	char script[8192];
	size_t n;

	n = (size_t)snprintf(script, sizeof(script),
			     FORMAT("5") "mkdir /vm\nfile /vm/l.vmx layout=sub text=\""
					 "config.version = \\\"8\\\"\\n"
					 "virtualHW.version = \\\"8\\\"\\n"
					 "displayName = \\\"Lost\\\"\\n");
	for (unsigned i = 0; i < 60; i++)
		n += (size_t)snprintf(script + n, sizeof(script) - n,
				      "pad%02u = \\\"xxxxxxxxxxxxxxxxxxxx\\\"\\n", i);
	snprintf(script + n, sizeof(script) - n, "\"\ndelete /vm grade=%u\n", grade);
	rf_make(script);
}

TEST(a_wiped_text_gets_its_bytes_by_length)
{
	char buf[64] = "";

	make_deleted_vmx(2);
	rf_recover("v.img", REC_META);
	CHECK_EQ(2u, rf_entry("/deleted/vm/l.vmx").grade);
	CHECK_EQ(REC_INFERRED, rf_entry("/deleted/vm/l.vmx").worst);
	rf_read("/deleted/vm/l.vmx", buf, 14, 0);
	CHECK(!strcmp("config.version", buf));
	rf_close();
}

TEST(a_text_that_nothing_leads_to_is_carved)
{
	struct rec_vm vm;

	make_deleted_vmx(3);
	rf_recover("v.img", REC_FULL);
	CHECK_EQ(REC_CARVED, rf_entry("/carved/Lost.vmx").state);
	CHECK_EQ(0, rec_vm_find(rf_rec, "Lost", &vm, &rf_err));
	CHECK_EQ(REC_CARVED, vm.state);
	rf_close();
}

/* --- overwritten -------------------------------------------------------------------------------
 */

static void check_overwritten(const char *script)
{
	uint64_t off = 0, sure = 0, lost = 0;
	struct rec_entry e;
	struct rec_range x;
	struct blk *b = NULL;
	uint8_t one;

	rf_make(script);
	rf_recover("v.img", REC_META);
	rf_check_pattern("/new", 22, 4 * MiB);
	e = rf_entry("/deleted/old");
	CHECK_EQ(10 * MiB, e.length);
	CHECK_EQ(REC_OVERWRITTEN, e.worst);
	CHECK_EQ(0, rec_blk(rf_rec, e.id, REC_BLK_STRICT, &b, &rf_err));
	for (; off < e.length; off += x.len) {
		CHECK_EQ(0, rec_range(rf_rec, e.id, off, &x));
		CHECK_EQ(x.trust == REC_OVERWRITTEN ? -EIO : 0, blk_read(b, &one, 1, off));
		if (x.trust == REC_OVERWRITTEN) {
			CHECK(x.why);
			lost += x.len;
			continue;
		}
		CHECK(rf_is_pattern("/deleted/old", 21, off, x.len));
		sure += x.len;
	}
	CHECK_EQ(lost, e.bytes[REC_OVERWRITTEN]);
	CHECK_EQ(sure, e.bytes[REC_EXACT]);
	CHECK(lost >= 3 * MiB && lost <= 4 * MiB); /* one block of the new file may be another's */
	CHECK_EQ(10 * MiB, sure + lost);
	blk_close(b);
	rf_close();
}

TEST(vmfs6_what_a_new_file_took_of_a_deleted_one_is_marked)
{
	/* The new descriptor must not be the deleted one's. */
	check_overwritten(FORMAT("6") "file /first text=1\n"
				      "file /old size=10M pattern=21 layout=direct\n"
				      "delete /first grade=3\ndelete /old grade=1\n"
				      "file /new size=4M pattern=22 layout=direct reuse\n");
}

TEST(vmfs5_what_a_new_file_took_of_a_deleted_one_is_marked)
{
	check_overwritten(FORMAT("5") "file /first text=1\n"
				      "file /old size=10M pattern=21 layout=direct\n"
				      "delete /first grade=3\ndelete /old grade=1\n"
				      "file /new size=4M pattern=22 layout=direct reuse\n");
}

TEST(discarded_blocks_are_marked)
{
	rf_make(FORMAT("6") "file /old size=4M pattern=3 layout=direct\n"
			    "delete /old grade=1 unmap\n");
	rf_recover("v.img", REC_META);
	CHECK_EQ(4 * MiB, rf_entry("/deleted/old").bytes[REC_OVERWRITTEN]);
	rf_close();
}

/* --- several extents ---------------------------------------------------------------------------
 */

#define TWO(v)                                                                                     \
	"format file=@1.img size=256M file=@2.img size=256M version=" v "\n"                       \
	"mkdir /d\nfile /d/a size=20M pattern=1 layout=direct\n"                                   \
	"file /d/b size=200M pattern=2 layout=direct\n"                                            \
	"file /d/c size=20M pattern=3 layout=direct\n"

static void check_two(void)
{
	rf_check_pattern("/d/a", 1, 20 * MiB);
	rf_check_pattern("/d/c", 3, 20 * MiB);
	CHECK(rf_is_pattern("/d/b", 2, 190 * MiB, MiB));
}

TEST(two_extents_in_the_wrong_order)
{
	rf_make(TWO("5"));
	rf_source_add("2.img");
	rf_recover("1.img", REC_AS_IS);
	check_two();
	rf_close();
}

TEST(two_extents_without_any_header_of_the_first)
{
	rf_make(TWO("5"));
	rf_zero("1.img", 0, 20 * MiB);
	rf_source_add("1.img");
	rf_recover("2.img", REC_AS_IS);
	check_two();
	rf_close();
}

TEST(what_lay_on_a_missing_extent_is_unreadable)
{
	struct rec_entry e;

	rf_make(TWO("6"));
	rf_recover("1.img", REC_AS_IS);
	rf_check_pattern("/d/a", 1, 20 * MiB);
	e = rf_entry("/d/c");
	CHECK_EQ(e.length, e.bytes[REC_EXACT] + e.bytes[REC_UNREADABLE]);
	CHECK(e.bytes[REC_UNREADABLE] > 0);
	rf_close();
}

/* --- formatted over ----------------------------------------------------------------------------
 */

TEST(an_older_volume_of_another_version)
{
	const struct rec_volume *v;
	unsigned n, old = 0;

	rf_make(FORMAT("5") "mkdir /old\nfile /old/f size=30M pattern=4 layout=direct\n"
			    "fill /old count=2000 size=10\n" FORMAT("6") "file /new text=new\n");
	rf_recover("v.img", REC_META);
	rf_check_text("/new", "new");
	n = rec_volumes(rf_rec, &v);
	for (unsigned i = 0; i < n; i++)
		if (v[i].older)
			old = i;
	CHECK(old);
	CHECK_EQ(5u, v[old].version ? v[old].version : 5u);
	rf_close();
}

/* --- bad sectors -------------------------------------------------------------------------------
 */

TEST(bad_sectors_are_marked_and_the_rest_is_read)
{
	struct blk_fault fault = {.ops = BLK_FAULT_READ, .first = 1, .error = EIO, .len = 4096};
	struct rec_range x;
	struct rec_entry e;
	struct blk *b = NULL;

	rf_make(FORMAT("5") "file /a size=6M pattern=1 layout=direct\n");
	rf_recover("v.img", REC_AS_IS);
	CHECK_EQ(0, rec_range(rf_rec, rf_entry("/a").id, 2 * MiB, &x));
	fault.off = x.source_off + (2 * MiB - x.off) + 8192;
	rf_close();
	CHECK_EQ(0, blk_inject(&b, rf_blk("v.img"), &fault, 1,
			       BLK_READONLY | BLK_FILE | BLK_NO_POOL, &rf_err));
	rf_add_blk(b, "v.img");
	rf_recover(NULL, REC_META);
	e = rf_entry("/a");
	CHECK_EQ(4096u, e.bytes[REC_UNREADABLE]);
	CHECK_EQ(6 * MiB - 4096, e.bytes[REC_EXACT]);
	CHECK(rf_is_pattern("/a", 1, 3 * MiB, MiB));
	rf_close();
}

/* --- findings ----------------------------------------------------------------------------------
 */

TEST(findings_are_kept_for_the_next_time)
{
	char path[256];

	rf_make(FORMAT("6") VM_SCRIPT "delete /db grade=1\n");
	snprintf(path, sizeof(path), "%s", rf_path("findings"));
	rf_source_add("v.img");
	CHECK_EQ(0, rf_open(path, false));
	CHECK_EQ(0, rf_scan(REC_META, false, 0));
	uint64_t id = rf_entry("/deleted/db/db-flat.vmdk").id;
	rec_close(rf_rec);
	CHECK_EQ(0, rf_open(path, true)); /* AS_IS is enough: the deeper scan is in the file */
	CHECK_EQ(0, rf_scan(REC_AS_IS, false, 0));
	CHECK_EQ(id, rf_entry("/deleted/db/db-flat.vmdk").id);
	rec_close(rf_rec);
	rf_source[0].identity = "another";
	CHECK_EQ(-ESTALE, rf_open(path, false));
	blk_close(rf_source[--rf_sources].blk);
}

static bool stop_soon(void *opaque)
{
	unsigned *n = opaque;

	return ++*n > 1;
}

TEST(an_interrupted_scan_goes_on)
{
	unsigned asked = 0;
	struct rec_scan s = {.depth = REC_FULL, .threads = 1, .stop = stop_soon, .opaque = &asked};
	char path[256];

	rf_make(FORMAT("5") VM_SCRIPT);
	snprintf(path, sizeof(path), "%s", rf_path("findings"));
	rf_source_add("v.img");
	CHECK_EQ(0, rf_open(path, false));
	CHECK_EQ(-EINTR, rec_scan(rf_rec, &s, &rf_err));
	rec_close(rf_rec);
	CHECK_EQ(0, rf_open(path, false));
	CHECK_EQ(0, rf_scan(REC_FULL, false, 0));
	check_vm_disk("Data Base", 9, 12 * MiB);
	rf_close();
}

/* --- VMs ---------------------------------------------------------------------------------------
 */

TEST(a_missing_vmx_and_descriptor_are_made)
{
	struct rec_vm vm;

	rf_make(FORMAT(
		"5") "mkdir /web\nfile /web/web-flat.vmdk size=4M pattern=6 layout=direct\n");
	rf_recover("v.img", REC_AS_IS);
	CHECK_EQ(REC_MADE, rf_entry("/web/web.vmdk").state);
	CHECK_EQ(REC_MADE, rf_entry("/web/web.vmx").state);
	CHECK_EQ(0, rec_vm_find(rf_rec, "/web", &vm, &rf_err));
	CHECK(!strcmp("web", vm.name));
	CHECK_EQ(REC_MADE, vm.state);
	check_vm_disk("web", 6, 4 * MiB);
	rf_close();
}

TEST(a_snapshot_stands_on_its_parent)
{
	struct rec_vm vm;
	struct blk *b = NULL;
	uint8_t got[4096], want[4096];

	rf_make(FORMAT("6") "mkdir /s\nfile /s/s.vmdk text=\"# Disk DescriptorFile\\nversion=1\\n"
			    "CID=11223344\\nparentCID=ffffffff\\ncreateType=\\\"vmfs\\\"\\n"
			    "RW 8192 VMFS \\\"s-flat.vmdk\\\"\\n\"\n"
			    "file /s/s-flat.vmdk size=4M pattern=6 layout=direct\n"
			    "file /s/s-000001.vmdk text=\"# Disk DescriptorFile\\nversion=1\\n"
			    "CID=55667788\\nparentCID=11223344\\ncreateType=\\\"custom\\\"\\n"
			    "parentFileNameHint=\\\"s.vmdk\\\"\\nRW 8192 ZERO\\n\"\n");
	rf_recover("v.img", REC_AS_IS);
	CHECK_EQ(0, rec_vm_find(rf_rec, "/s", &vm, &rf_err));
	CHECK_EQ(1u, vm.nr_disks);
	CHECK_EQ(rf_entry("/s/s-000001.vmdk").id, vm.disk[0].descriptor);
	CHECK_EQ(0, rec_open_disk(rf_rec, rf_entry("/s/s.vmdk").id, 0, &b, &rf_err));
	CHECK_EQ(0, blk_read(b, got, sizeof(got), MiB));
	mkfs_pattern(6, MiB, want, sizeof(want));
	CHECK(!memcmp(got, want, sizeof(want)));
	blk_close(b);
	rf_close();
}

/* --- nothing there -----------------------------------------------------------------------------
 */

TEST(a_disk_of_zeroes_is_no_volume)
{
	int fd = open(rf_path("z.img"), O_CREAT | O_WRONLY, 0600);

	CHECK(fd >= 0);
	CHECK_EQ(0, ftruncate(fd, 64 * MiB));
	close(fd);
	rf_source_add("z.img");
	CHECK_EQ(0, rf_open(NULL, false));
	CHECK_EQ(-ENODATA, rf_scan(REC_AS_IS, true, 0));
	CHECK(rf_err.msg[0]);
	rf_close();
}
