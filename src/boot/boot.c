/* boot/boot.c - see boot.h: which loader a file is for. */
#include "boot/boot.h"

#include "base/error.h"
#include "boot/load.h"

#include <errno.h>

static int load_elf(struct boot_job *j, const struct elf_image *elf, struct error *err)
{
	struct multiboot_header h;
	uint32_t entry;
	int r;

	r = pvh_find_entry(&j->kernel, elf, &entry, err);
	if (r > 0)
		return pvh_load(j, elf, entry, err);
	if (!r)
		r = multiboot_recognise(&j->kernel, &h, err);
	if (r > 0)
		return multiboot_load(j, &h, elf, err);
	if (r < 0)
		return r;
	return err_set(err, ENOTSUP,
		       "'%s': an ELF file with neither a PVH entry note (Linux: CONFIG_PVH) nor a "
		       "multiboot header",
		       j->kernel.name);
}

int boot_load_job(struct boot_job *j, struct error *err)
{
	struct multiboot_header h;
	struct elf_image elf;
	int r;

	r = bzimage_recognise(&j->kernel, err);
	if (r > 0)
		return bzimage_load(j, err);
	if (!r)
		r = elf_recognise(&j->kernel, &elf, err);
	if (r > 0)
		return load_elf(j, &elf, err);
	if (!r)
		r = multiboot_recognise(&j->kernel, &h, err);
	if (r > 0)
		return multiboot_load(j, &h, NULL, err);
	if (r < 0)
		return r;
	return err_set(err, ENOTSUP,
		       "'%s' is not a kernel that can be booted: a Linux bzImage, an ELF file with "
		       "a PVH note, or one with a multiboot header",
		       j->kernel.name);
}

int boot_load(const struct boot_config *cfg, struct mem *m, struct x86_state *s, struct error *err)
{
	struct boot_job j;
	int r;

	boot_job_init(&j, cfg, m, s);
	r = boot_file_open(&j.kernel, cfg->kernel, err);
	if (r < 0)
		return err_wrap(err, r, "kernel");
	r = boot_load_job(&j, err);
	boot_file_close(&j.kernel);
	return r;
}
