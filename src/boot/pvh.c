/* boot/pvh.c - ELF kernels with a PVH entry note (docs/misc/pvh.pandoc in Xen's tree, and
 * xen/include/public/arch-x86/hvm/start_info.h): entered in flat 32-bit protected mode with ebx at
 *
 *   hvm_start_info   0 magic  4 version  8 flags  12 nr_modules  16 modlist  24 cmdline
 *                    32 rsdp  40 memmap  48 memmap_entries
 *   modlist entry    0 address  8 size  16 cmdline  24 reserved
 *   memmap entry     0 address  8 size  16 type  20 reserved
 */
#include "base/bytes.h"
#include "base/error.h"
#include "boot/load.h"
#include "engine/x86_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { START_INFO_LEN = 56, MODULE_LEN = 32, MEMMAP_LEN = 24 };

#define START_INFO_MAGIC 0x336ec578u

static gpa_t put_module(struct boot_job *j, struct error *err)
{
	uint8_t entry[MODULE_LEN] = {0};
	uint64_t size;
	gpa_t at;

	if (boot_put_file_high(j, j->cfg->initrd, 4 * GiB, &at, &size, err) < 0)
		return 0;
	le64_store(entry, at);
	le64_store(entry + 8, size);
	return boot_put(j, entry, sizeof(entry), 16, err);
}

static gpa_t put_memmap(struct boot_job *j, struct error *err)
{
	uint8_t *map = calloc(j->cfg->nr_map, MEMMAP_LEN);
	gpa_t at = 0;

	for (unsigned i = 0; map && i < j->cfg->nr_map; i++) {
		le64_store(map + i * MEMMAP_LEN, j->cfg->map[i].gpa);
		le64_store(map + i * MEMMAP_LEN + 8, j->cfg->map[i].size);
		le32_store(map + i * MEMMAP_LEN + 16, j->cfg->map[i].type);
	}
	if (map)
		at = boot_put(j, map, j->cfg->nr_map * MEMMAP_LEN, 16, err);
	free(map);
	return at;
}

int pvh_load(struct boot_job *j, const struct elf_image *elf, uint32_t entry, struct error *err)
{
	uint8_t info[START_INFO_LEN] = {0};
	gpa_t cmdline, memmap, modules = 0, at;
	int r;

	r = elf_load(j, elf, err);
	if (r < 0)
		return r;
	cmdline = boot_put_string(j, j->cfg->cmdline ? j->cfg->cmdline : "", err);
	memmap = cmdline ? put_memmap(j, err) : 0;
	if (memmap && j->cfg->initrd)
		modules = put_module(j, err);
	if (!memmap || (j->cfg->initrd && !modules))
		return -ENOSPC;

	le32_store(info, START_INFO_MAGIC);
	le32_store(info + 4, 1); /* version 1: has the memory map */
	le32_store(info + 12, modules ? 1 : 0);
	le64_store(info + 16, modules);
	le64_store(info + 24, cmdline);
	le64_store(info + 32, j->cfg->rsdp);
	le64_store(info + 40, memmap);
	le32_store(info + 48, j->cfg->nr_map);
	at = boot_put(j, info, sizeof(info), 16, err);
	if (!at)
		return -ENOSPC;
	boot_enter_32(j, entry, 0);
	j->state->gpr[X86_RBX] = at;
	return 0;
}
