/* Unit tests of src/block/vmdk/desc.c: descriptors as programs and people write them. */
#include "block/vmdk/vmdk.h"

#include "base/error.h"
#include "test.h"

#define HEAD "# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\n"

static struct vmdk_desc parsed(const char *text)
{
	struct vmdk_desc d;
	struct error err = {""};

	if (vmdk_desc_parse(&d, text, strlen(text), "d.vmdk", &err) < 0) {
		printf("# %s\n", err.msg);
		CHECK(!"the descriptor is understood");
	}
	return d;
}

static void refused(const char *text, const char *words)
{
	struct vmdk_desc d;
	struct error err = {""};

	CHECK(vmdk_desc_parse(&d, text, strlen(text), "d.vmdk", &err) < 0);
	if (!strstr(err.msg, words))
		printf("# it says: %s\n", err.msg);
	CHECK(strstr(err.msg, words));
	CHECK(!d.text); /* nothing stays allocated */
}

TEST(what_vmware_writes_is_read)
{
	struct vmdk_desc d = parsed(HEAD "createType=\"monolithicFlat\"\n"
					 "parentFileNameHint=\"base disk.vmdk\"\n\n"
					 "# Extent description\n"
					 "RW 131072 FLAT \"my disk-flat.vmdk\" 63\n"
					 "RDONLY 100 ZERO\n\n"
					 "#DDB\nddb.adapterType = \"lsilogic\"\n");
	char buf[32];

	CHECK_EQ(0x12345678, d.cid);
	CHECK_EQ(0xffffffff, d.parent_cid);
	CHECK_STR("monolithicFlat", d.create_type);
	CHECK_STR("base disk.vmdk", d.parent_hint);
	CHECK_EQ(2, d.nr_ext);
	CHECK_EQ(131072, d.ext[0].sectors);
	CHECK_EQ(TYPE_FLAT, d.ext[0].type);
	CHECK_STR("my disk-flat.vmdk", d.ext[0].name);
	CHECK_EQ(63, d.ext[0].offset);
	CHECK_EQ(ACCESS_RDONLY, d.ext[1].access);
	CHECK_EQ(TYPE_ZERO, d.ext[1].type);
	CHECK(vmdk_desc_value(&d, "ddb.adapterType", buf, sizeof(buf)));
	CHECK_STR("lsilogic", buf);
	vmdk_desc_fini(&d);
}

TEST(what_people_write_is_read)
{
	struct vmdk_desc d = parsed("\xef\xbb\xbf# disk descriptorfile\r\n"
				    "\tVERSION = 1 \r\n"
				    "cid =abc\r\n"
				    "ParentCID= FFFFFFFF\r\n"
				    "createtype = vmfs\r\n\r\n"
				    "  rw   4096\tvmfs   plain-flat.vmdk  \r\n"
				    "noaccess 8 Flat \"unterminated\r\n"
				    "unknown key = \"kept\"\r\n");
	char buf[8];

	CHECK_EQ(0xabc, d.cid);
	CHECK_EQ(0xffffffff, d.parent_cid);
	CHECK(vmdk_desc_is(&d, "VMFS"));
	CHECK_EQ(2, d.nr_ext);
	CHECK_EQ(TYPE_VMFS, d.ext[0].type);
	CHECK_STR("plain-flat.vmdk", d.ext[0].name);
	CHECK_EQ(ACCESS_NOACCESS, d.ext[1].access);
	CHECK_STR("unterminated", d.ext[1].name);
	CHECK(vmdk_desc_value(&d, "unknown key", buf, sizeof(buf)));
	CHECK_STR("kept", buf);
	vmdk_desc_fini(&d);
}

TEST(old_mac_line_ends_are_read)
{
	struct vmdk_desc d = parsed("# Disk DescriptorFile\rversion=1\rCID=1\rparentCID=ffffffff\r"
				    "createType=\"vmfs\"\rRW 8 VMFS \"a\"\r");

	CHECK_EQ(1, d.nr_ext);
	vmdk_desc_fini(&d);
}

TEST(names_in_other_encodings_become_utf8)
{
	struct vmdk_desc d = parsed(HEAD "encoding=\"windows-1252\"\ncreateType=\"vmfs\"\n"
					 "parentFileNameHint=\"Gr\xfc\xdf"
					 "e.vmdk\"\nRW 8 VMFS \"\xe4.vmdk\"\n");

	CHECK_STR("Gr\xc3\xbc\xc3\x9f"
		  "e.vmdk",
		  d.parent_hint);
	CHECK_STR("\xc3\xa4.vmdk", d.ext[0].name);
	vmdk_desc_fini(&d);
}

TEST(names_in_unknown_encodings_stay)
{
	struct vmdk_desc d = parsed(HEAD "encoding=\"no-such\"\ncreateType=\"vmfs\"\n"
					 "RW 8 VMFS \"\xe4.vmdk\"\n");

	CHECK_STR("\xe4.vmdk", d.ext[0].name);
	vmdk_desc_fini(&d);
}

TEST(what_makes_no_disk_is_refused)
{
	refused(HEAD "RW 8 VMFS \"a\"\n", "createType");
	refused("version=9\ncreateType=\"vmfs\"\n", "version 9");
	refused(HEAD "createType=\"x\"\nRW nine VMFS \"a\"\n", "no sensible size");
	refused(HEAD "createType=\"x\"\nRW -1 VMFS \"a\"\n", "no sensible size");
	refused(HEAD "createType=\"x\"\nRW 99999999999999999999 FLAT \"a\"\n", "no sensible size");
	refused(HEAD "createType=\"x\"\nRW 999999999999999999 FLAT \"a\"\n", "no sensible size");
	refused(HEAD "createType=\"x\"\nRW 9007199254740000 FLAT \"a\"\n"
		     "RW 9007199254740000 FLAT \"a\"\n",
		"too large");
	refused(HEAD "createType=\"x\"\nRW 8 TAPE \"a\"\n", "type TAPE");
	refused(HEAD "createType=\"x\"\nRW 8 FLAT\n", "names no file");
	refused(HEAD "createType=\"x\"\nRW 8 FLAT \"a\" far\n", "offset");
	refused("version=1\nCID=1\nparentCID=zebra\ncreateType=\"x\"\n", "parentCID");
	refused(HEAD "createType=\"x\"\nencryptionKeys=\"vmware:key/list\"\n", "encrypted");
	refused(HEAD "createType=\"x\"\nddb.iofilters = \"vmwarevmcrypt\"\n", "encrypted");
}

TEST(extents_are_bounded)
{
	size_t n = VMDK_EXTENTS_MAX + 1, len = 0;
	char *text = malloc(n * 16 + 256);

	CHECK(text);
	len = (size_t)sprintf(text, HEAD "createType=\"x\"\n");
	for (size_t i = 0; i < n; i++)
		len += (size_t)sprintf(text + len, "RW 8 ZERO\n");
	refused(text, "too many");
	free(text);
}

TEST(a_nul_ends_the_text)
{
	static const char text[] = HEAD "createType=\"vmfs\"\nRW 8 ZERO\n\0RW 8 ZERO\n";
	struct vmdk_desc d;

	CHECK_EQ(0, vmdk_desc_parse(&d, text, sizeof(text), "d", NULL));
	CHECK_EQ(1, d.nr_ext);
	vmdk_desc_fini(&d);
}

TEST(a_change_keeps_every_other_byte)
{
	struct vmdk_desc d = parsed("# Disk DescriptorFile\r\nversion=1\r\n  CID = 52db3b7 \r\n"
				    "parentCID=ffffffff\r\ncreateType=\"vmfs\"\r\n"
				    "RW  8  VMFS \"a b\"  0\r\n# note\r\nodd = \"thing\"\r\n");

	CHECK_EQ(0, vmdk_desc_set(&d, "CID", "0a0b0c0d", false, NULL));
	CHECK_EQ(0, vmdk_desc_set_sectors(&d, 0, 123456));
	CHECK_EQ(0, vmdk_desc_set(&d, "odd", "other thing", true, NULL));
	CHECK_STR("# Disk DescriptorFile\r\nversion=1\r\n  CID = 0a0b0c0d \r\n"
		  "parentCID=ffffffff\r\ncreateType=\"vmfs\"\r\n"
		  "RW  123456  VMFS \"a b\"  0\r\n# note\r\nodd = \"other thing\"\r\n",
		  d.text);
	vmdk_desc_fini(&d);
}

TEST(lines_are_added_and_removed)
{
	struct vmdk_desc d = parsed("version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"vmfs\"\n");

	CHECK_EQ(0, vmdk_desc_set(&d, "parentFileNameHint", "p.vmdk", true, "createType"));
	CHECK_EQ(0, vmdk_desc_set(&d, "ddb.toolsVersion", "7", true, NULL));
	CHECK_STR("version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"vmfs\"\n"
		  "parentFileNameHint=\"p.vmdk\"\nddb.toolsVersion = \"7\"\n",
		  d.text);
	CHECK_EQ(0, vmdk_desc_set(&d, "parentFileNameHint", NULL, true, NULL));
	CHECK_EQ(0, vmdk_desc_set(&d, "not there", NULL, true, NULL));
	CHECK_STR("version=1\nCID=1\nparentCID=ffffffff\ncreateType=\"vmfs\"\n"
		  "ddb.toolsVersion = \"7\"\n",
		  d.text);
	vmdk_desc_fini(&d);
}

TEST(descriptors_are_recognised)
{
	CHECK_EQ(100, vmdk_desc_probe((const uint8_t *)"# Disk DescriptorFile\n", 22));
	CHECK_EQ(100, vmdk_desc_probe((const uint8_t *)"\r\n # disk descriptorfile", 24));
	CHECK_EQ(80, vmdk_desc_probe((const uint8_t *)"version=1\nCID=1\ncreateType=x\n", 29));
	CHECK_EQ(0, vmdk_desc_probe((const uint8_t *)"version=1\n", 10));
	CHECK_EQ(0, vmdk_desc_probe((const uint8_t *)"", 0));
}

TEST(random_cids_mean_nothing_else)
{
	for (int i = 0; i < 1000; i++)
		CHECK(vmdk_random_cid() < 0xfffffffe);
}
