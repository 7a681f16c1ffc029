/* Fuzz target: multiboot kernels.  A header with a right checksum is put where the first byte says;
 * its flags and addresses are the input's. */
#include "fuzz_boot.h"

#include "base/bytes.h"

enum { MAX_LEN = 64 * 1024 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct boot_job j;
	uint8_t *image, *header;
	int r;

	if (size < 64 || size > MAX_LEN)
		return 0;
	image = malloc(size); /* exact: a sanitizer sees reads behind the end */
	if (!image)
		return 0;
	memcpy(image, data, size);
	header = image + 4u * (data[0] % ((size - 12) / 4));
	le32_store(header, 0x1badb002);
	le32_store(header + 8, -(0x1badb002u + le32_load(header + 4)));

	fuzz_job(&j, image, size);
	r = boot_load_job(&j, &fuzz_error);
	fuzz_check(&j, r);
	free(image);
	return 0;
}
