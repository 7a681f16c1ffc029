/* Fuzz target: the Linux bzImage loader.  The magic numbers are put in place, as finding them is
 * not what is tested. */
#include "fuzz_boot.h"

enum { MAX_LEN = 64 * 1024 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct boot_job j;
	uint8_t *image;
	int r;

	if (size < 0x264 || size > MAX_LEN)
		return 0;
	image = malloc(size); /* exact: a sanitizer sees reads behind the end */
	if (!image)
		return 0;
	memcpy(image, data, size);
	memcpy(image + 0x1fe, "\x55\xaa", 2);
	memcpy(image + 0x202, "HdrS", 4);

	fuzz_job(&j, image, size);
	r = bzimage_recognise(&j.kernel, &fuzz_error);
	if (r > 0)
		r = bzimage_load(&j, &fuzz_error);
	fuzz_check(&j, r);
	free(image);
	return 0;
}
