/* A VHD file of somebody else. */
#include "fuzz_image.h"

static void seal_at(uint64_t at, size_t len, unsigned field)
{
	uint8_t buf[1024];
	uint32_t sum = 0;

	fuzz_bytes(at, buf, len, false);
	for (size_t i = 0; i < len; i++)
		sum += i >= field && i < field + 4 ? 0 : buf[i];
	be32_store(buf + field, ~sum);
	fuzz_bytes(at, buf, len, true);
}

static void seal(uint64_t len)
{
	seal_at(0, 512, 0x40);
	seal_at(512, 1024, 0x24);
	if (len >= 512)
		seal_at(len - 512, 512, 0x40);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	return fuzz_image("vpc", data, size, seal);
}
