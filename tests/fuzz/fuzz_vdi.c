/* A VDI file of somebody else. */
#include "fuzz_image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	return fuzz_image("vdi", data, size, NULL);
}
