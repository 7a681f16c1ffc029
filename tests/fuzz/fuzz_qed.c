/* A file of somebody else that is said to be of the format qed. */
#include "fuzz_image.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	return fuzz_image("qed", data, size, NULL);
}
