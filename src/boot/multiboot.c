/* boot/multiboot.c - Multiboot Specification 0.6.96: what hobby systems and unit-test kernels use.
 *
 * A header {magic, flags, -(magic + flags)} stands somewhere in the first 8 KiB.  With flag 16 it
 * says where the file goes; otherwise the file is ELF.  The kernel starts in flat 32-bit protected
 * mode with eax = 0x2badb002 and ebx at
 *
 *   info      0 flags  4 mem_lower  8 mem_upper  16 cmdline  20 mods_count  24 mods_addr
 *             44 mmap_length  48 mmap_addr  64 boot_loader_name
 *   module    0 start  4 end  8 string  12 reserved
 *   mmap      0 size of the rest (20)  4 address  12 length  20 type
 */
#include "base/bytes.h"
#include "base/error.h"
#include "boot/load.h"
#include "engine/x86_state.h"
#include "mem/mem.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { SEARCH_LEN = 8192, INFO_LEN = 120, MODULE_LEN = 16, MMAP_LEN = 24, MAX_MODULES = 32 };

#define HEADER_MAGIC 0x1badb002u
#define LOADER_MAGIC 0x2badb002u

/* Header flags.  0..15 must be understood; 2 asks for a video mode, which is a wish. */
#define WANT_KNOWN     0x0007u
#define WANT_MUST      0xffffu
#define HAVE_ADDRESSES BIT(16)

// clang-format off
#define INFO_MEM     BIT(0)
#define INFO_CMDLINE BIT(2)
#define INFO_MODS    BIT(3)
#define INFO_MMAP    BIT(6)
#define INFO_LOADER  BIT(9)
// clang-format on

int multiboot_recognise(const struct boot_file *f, struct multiboot_header *h, struct error *err)
{
	uint8_t head[SEARCH_LEN];
	size_t len = MIN(f->size, sizeof(head));
	int r = boot_file_read(f, 0, head, len, err);

	if (r < 0)
		return r;
	for (size_t i = 0; i + 12 <= len; i += 4) {
		const uint8_t *p = head + i;

		if (le32_load(p) != HEADER_MAGIC ||
		    le32_load(p) + le32_load(p + 4) + le32_load(p + 8))
			continue;
		*h = (struct multiboot_header){.off = (uint32_t)i, .flags = le32_load(p + 4)};
		if (h->flags & HAVE_ADDRESSES && i + 32 <= len) {
			h->header_addr = le32_load(p + 12);
			h->load_addr = le32_load(p + 16);
			h->load_end_addr = le32_load(p + 20);
			h->bss_end_addr = le32_load(p + 24);
			h->entry_addr = le32_load(p + 28);
		}
		return 1;
	}
	return 0;
}

/* The header's own address says which file offset goes to load_addr. */
static int load_flat(struct boot_job *j, const struct multiboot_header *h, struct error *err)
{
	uint64_t before = (uint64_t)h->header_addr - h->load_addr, off, len, size;
	int r;

	if (h->header_addr < h->load_addr || before > h->off)
		goto lies;
	off = h->off - before;
	len = j->kernel.size - off;
	if (h->load_end_addr) {
		if (h->load_end_addr < h->load_addr || h->load_end_addr - h->load_addr > len)
			goto lies;
		len = h->load_end_addr - h->load_addr;
	}
	size = len;
	if (h->bss_end_addr) {
		if (h->bss_end_addr < h->load_addr || h->bss_end_addr - h->load_addr < len)
			goto lies;
		size = h->bss_end_addr - h->load_addr;
	}
	if (!size)
		goto lies;
	r = boot_space_claim(&j->space, h->load_addr, size);
	if (r < 0)
		return err_set(err, -r, "'%s': wants %#llx bytes at %#x, where there is no memory",
			       j->kernel.name, (unsigned long long)size, h->load_addr);
	r = boot_file_to_mem(&j->kernel, off, j->mem, h->load_addr, len, err);
	if (!r && mem_zero(j->mem, h->load_addr + len, size - len) < 0)
		r = err_set(err, EFAULT, "'%s': no guest memory behind its end", j->kernel.name);
	return r;
lies:
	return err_set(err, EINVAL, "'%s': the addresses in its multiboot header do not fit",
		       j->kernel.name);
}

/* First byte after everything claimed so far. */
static gpa_t claims_end(const struct boot_job *j)
{
	gpa_t end = 1 * MiB;

	for (unsigned i = 0; i < j->space.nr_claims; i++)
		end = MAX(end, j->space.claims[i].gpa + j->space.claims[i].size);
	return end;
}

/* "file args": the string is the module's command line, its first word the file. */
static int put_module(struct boot_job *j, char *spec, uint8_t *entry, struct error *err)
{
	size_t name_len = strcspn(spec, " ");
	char saved = spec[name_len];
	struct boot_file f;
	gpa_t at, string;
	int r;

	string = boot_put_string(j, spec, err);
	if (!string)
		return -ENOSPC;
	spec[name_len] = '\0';
	r = boot_file_open(&f, spec, err);
	if (r < 0)
		return r;
	/* Above the kernel but low: small systems map only the first few MiB. */
	at = boot_space_low(&j->space, MAX(f.size, 1), PAGE_SIZE, claims_end(j), 4 * GiB);
	r = at ? boot_file_to_mem(&f, 0, j->mem, at, f.size, err)
	       : err_set(err, ENOSPC, "module '%s' does not fit into guest memory", spec);
	le32_store(entry, (uint32_t)at);
	le32_store(entry + 4, (uint32_t)(at + f.size));
	le32_store(entry + 8, (uint32_t)string);
	boot_file_close(&f);
	spec[name_len] = saved;
	return r;
}

static int put_modules(struct boot_job *j, uint8_t *info, struct error *err)
{
	uint8_t list[MAX_MODULES * MODULE_LEN] = {0};
	char *specs, *next, *spec;
	unsigned nr = 0;
	gpa_t at = 0;
	int r = 0;

	if (!j->cfg->initrd)
		return 0;
	specs = next = strdup(j->cfg->initrd);
	if (!specs)
		return err_errno(err, ENOMEM, "modules");
	while (!r && (spec = strsep(&next, ","))) {
		if (nr == MAX_MODULES)
			r = err_set(err, E2BIG, "more than %d multiboot modules", MAX_MODULES);
		else if (!*spec)
			r = err_set(err, EINVAL, "empty name in the list of multiboot modules");
		else
			r = put_module(j, spec, list + nr++ * MODULE_LEN, err);
	}
	free(specs);
	if (!r) {
		at = boot_put(j, list, nr * MODULE_LEN, 16, err);
		r = at ? 0 : -ENOSPC;
	}
	le32_store(info + 20, nr);
	le32_store(info + 24, (uint32_t)at);
	return r;
}

/* KiB from 0 and KiB from 1 MiB up to the first hole, as the BIOS used to tell. */
static void fill_mem_sizes(const struct boot_job *j, uint8_t *info)
{
	gpa_t low = 0, high = 1 * MiB;

	for (unsigned i = 0; i < j->cfg->nr_map; i++) {
		const struct boot_range *r = &j->cfg->map[i];

		if (r->type != BOOT_RAM)
			continue;
		if (r->gpa <= low && r->gpa + r->size > low)
			low = r->gpa + r->size;
		if (r->gpa <= high && r->gpa + r->size > high)
			high = r->gpa + r->size;
	}
	le32_store(info + 4, (uint32_t)(MIN(low, 640 * KiB) / KiB));
	le32_store(info + 8, (uint32_t)MIN((high - MiB) / KiB, (uint64_t)UINT32_MAX));
}

static int put_mmap(struct boot_job *j, uint8_t *info, struct error *err)
{
	size_t len = (size_t)j->cfg->nr_map * MMAP_LEN;
	uint8_t *map = calloc(1, len + 1);
	gpa_t at = 0;

	for (unsigned i = 0; map && i < j->cfg->nr_map; i++) {
		uint8_t *e = map + i * MMAP_LEN;

		le32_store(e, MMAP_LEN - 4);
		le64_store(e + 4, j->cfg->map[i].gpa);
		le64_store(e + 12, j->cfg->map[i].size);
		le32_store(e + 20, j->cfg->map[i].type);
	}
	if (map)
		at = boot_put(j, map, len, 16, err);
	free(map);
	le32_store(info + 44, (uint32_t)len);
	le32_store(info + 48, (uint32_t)at);
	return at ? 0 : -ENOSPC;
}

/* The kernel's own name comes first, as systems that parse argv[0] expect. */
static int put_cmdline(struct boot_job *j, uint8_t *info, struct error *err)
{
	const char *args = j->cfg->cmdline ? j->cfg->cmdline : "";
	size_t len = strlen(j->kernel.name) + strlen(args) + 2;
	char *text = malloc(len);
	gpa_t at = 0, name;

	if (text) {
		strcpy(text, j->kernel.name);
		strcat(*args ? strcat(text, " ") : text, args);
		at = boot_put_string(j, text, err);
	}
	free(text);
	name = at ? boot_put_string(j, "Trivisor", err) : 0;
	le32_store(info + 16, (uint32_t)at);
	le32_store(info + 64, (uint32_t)name);
	return name ? 0 : -ENOSPC;
}

int multiboot_load(struct boot_job *j, const struct multiboot_header *h,
		   const struct elf_image *elf, struct error *err)
{
	bool flat = h->flags & HAVE_ADDRESSES;
	uint8_t info[INFO_LEN] = {0};
	gpa_t at, gdt;
	int r;

	if (h->flags & WANT_MUST & ~WANT_KNOWN)
		return err_set(err, ENOTSUP, "'%s': multiboot flags %#x ask for what is not known",
			       j->kernel.name, h->flags & WANT_MUST);
	if (!flat && !elf)
		return err_set(err, EINVAL,
			       "'%s': a multiboot header without addresses, and the "
			       "file is not ELF",
			       j->kernel.name);
	r = flat ? load_flat(j, h, err) : elf_load(j, elf, err);
	if (!r)
		r = put_modules(j, info, err);
	if (!r)
		r = put_mmap(j, info, err);
	if (!r)
		r = put_cmdline(j, info, err);
	if (r < 0)
		return r;
	fill_mem_sizes(j, info);
	le32_store(info, INFO_MEM | INFO_CMDLINE | INFO_MMAP | INFO_LOADER |
				 (j->cfg->initrd ? INFO_MODS : 0));
	at = boot_put(j, info, sizeof(info), 16, err);
	gdt = at ? boot_put_gdt(j, false, err) : 0;
	if (!gdt)
		return -ENOSPC;
	boot_enter_32(j, flat ? h->entry_addr : (uint32_t)elf->entry, gdt);
	j->state->gpr[X86_RAX] = LOADER_MAGIC;
	j->state->gpr[X86_RBX] = at;
	return 0;
}
