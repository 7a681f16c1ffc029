/* Fuzz target: ELF kernels, by PVH note or multiboot header.  The identification is put in place:
 * bit 0 of the first byte chooses 32 or 64 bits. */
#include "fuzz_boot.h"

#include <elf.h>

enum { MAX_LEN = 64 * 1024 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct boot_job j;
	uint8_t *image;
	int r;

	if (size < sizeof(Elf64_Ehdr) || size > MAX_LEN)
		return 0;
	image = malloc(size); /* exact: a sanitizer sees reads behind the end */
	if (!image)
		return 0;
	memcpy(image, data, size);
	memcpy(image, ELFMAG, SELFMAG);
	image[EI_CLASS] = data[0] & 1 ? ELFCLASS64 : ELFCLASS32;
	image[EI_DATA] = ELFDATA2LSB;
	image[16] = ET_EXEC;
	image[17] = 0;
	image[18] = EM_X86_64;
	image[19] = 0;

	fuzz_job(&j, image, size);
	r = boot_load_job(&j, &fuzz_error);
	fuzz_check(&j, r);
	free(image);
	return 0;
}
