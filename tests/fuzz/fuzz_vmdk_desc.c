/* fuzz_vmdk_desc.c - a VMDK descriptor: what was understood is understood again after a change, and
 * the change is there. */
#include "block/vmdk/vmdk.h"

#include "base/error.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect(bool good)
{
	if (!good)
		abort();
}

static void change(struct vmdk_desc *d)
{
	char value[64];
	struct vmdk_desc again;

	expect(vmdk_desc_set(d, "CID", "0badcafe", false, "version") == 0);
	expect(vmdk_desc_set(d, "ddb.toolsVersion", "7", true, NULL) == 0);
	if (d->nr_ext)
		expect(vmdk_desc_set_sectors(d, d->nr_ext - 1, 8) == 0);
	expect(vmdk_desc_value(d, "ddb.toolsVersion", value, sizeof(value)));
	expect(!strcmp(value, "7"));
	if (vmdk_desc_parse(&again, d->text, strlen(d->text), "again", NULL) < 0)
		abort();
	expect(again.cid == 0x0badcafe);
	expect(again.nr_ext == d->nr_ext);
	expect(!again.nr_ext || again.ext[again.nr_ext - 1].sectors == 8);
	vmdk_desc_fini(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct vmdk_desc d;
	struct error err = {""};

	vmdk_desc_probe(data, size);
	if (vmdk_desc_parse(&d, (const char *)data, size, "d.vmdk", &err) < 0) {
		expect(err.msg[0]);
		return 0;
	}
	change(&d);
	expect(vmdk_desc_set(&d, "parentFileNameHint", NULL, true, NULL) == 0);
	vmdk_desc_fini(&d);
	return 0;
}
