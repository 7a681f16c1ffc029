/* A VHDX file of somebody else, with its log. */
#include "block/vhdx/vhdx.h"
#include "fuzz_image.h"

static void seal_at(uint64_t at, size_t len)
{
	static uint8_t buf[65536];

	fuzz_bytes(at, buf, len, false);
	vhdx_seal(buf, len);
	fuzz_bytes(at, buf, len, true);
}

/* The first entry of the log, too. */
static void seal(uint64_t len)
{
	uint8_t head[12];

	seal_at(VHDX_HEADER_1, HEAD_LEN);
	seal_at(VHDX_HEADER_2, HEAD_LEN);
	seal_at(VHDX_REGIONS_1, VHDX_REGION_LEN);
	seal_at(VHDX_REGIONS_2, VHDX_REGION_LEN);
	fuzz_bytes(MiB, head, sizeof(head), false);
	if (!memcmp(head, "loge", 4) && le32_load(head + 8) <= 65536)
		seal_at(MiB, le32_load(head + 8));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	return fuzz_image("vhdx", data, size, seal);
}
