/* boot/bzimage.c - Linux: the compressed kernel as distributions ship it.
 *
 * Boot protocol (Documentation/arch/x86/boot.rst): the file is a boot sector, setup_sects sectors
 * of real-mode setup we do not run, and the protected-mode kernel.  We load the last, fill a "zero
 * page" (struct boot_params) with a copy of the file's setup header in it, and enter at the 64-bit
 * entry, 0x200 into the kernel; a 32-bit kernel is entered at its start.
 *
 *   the zero page            0x070 acpi_rsdp_addr   0x0c0 ext_ramdisk_image  0x0c4 .._size
 *   (only what we set)       0x1e8 e820_entries     0x1f1 setup header       0x2d0 e820_table
 */
#include "base/bytes.h"
#include "base/error.h"
#include "boot/load.h"
#include "engine/x86_state.h"
#include "mem/mem.h"

#include <errno.h>
#include <string.h>

// clang-format off
enum { /* offsets in the file and in the zero page alike */
	ZP_RSDP             = 0x070,
	ZP_EXT_RAMDISK_ADDR = 0x0c0,
	ZP_EXT_RAMDISK_SIZE = 0x0c4,
	ZP_E820_ENTRIES     = 0x1e8,
	HDR_START           = 0x1f1,
	HDR_SETUP_SECTS     = 0x1f1,
	HDR_VID_MODE        = 0x1fa,
	HDR_BOOT_FLAG       = 0x1fe, /* 0xaa55 */
	HDR_JUMP_LEN        = 0x201, /* the header ends this far after 0x202 */
	HDR_MAGIC           = 0x202, /* "HdrS" */
	HDR_VERSION         = 0x206,
	HDR_LOADER          = 0x210,
	HDR_LOADFLAGS       = 0x211,
	HDR_CODE32_START    = 0x214,
	HDR_RAMDISK_ADDR    = 0x218,
	HDR_RAMDISK_SIZE    = 0x21c,
	HDR_CMDLINE_PTR     = 0x228,
	HDR_INITRD_MAX      = 0x22c,
	HDR_ALIGNMENT       = 0x230,
	HDR_RELOCATABLE     = 0x234,
	HDR_XLOADFLAGS      = 0x236,
	HDR_CMDLINE_SIZE    = 0x238,
	HDR_PREF_ADDRESS    = 0x258,
	HDR_INIT_SIZE       = 0x260,
	HDR_MAX_END         = 0x290, /* the zero page has other things from here */
	ZP_E820_TABLE       = 0x2d0,
	ZP_E820_MAX         = 128,
	E820_ENTRY_LEN      = 20,
};
// clang-format on

#define HDR_VERSION_MIN    0x20c
#define LOADED_HIGH        BIT(0)
#define XLF_KERNEL_64      BIT(0)
#define XLF_ABOVE_4G       BIT(1)
#define LOADER_OTHER       0xff
#define VID_MODE_NORMAL    0xffff
#define ENTRY_64           0x200
#define MIN_KERNEL_ADDRESS (1 * MiB)

struct bzimage {
	uint8_t head[1024]; /* of the file, zeroes where it is shorter */
	uint64_t payload_off, payload_size;
	bool is_64;
	gpa_t load;
};

static int read_head(const struct boot_file *f, uint8_t *head, size_t len, struct error *err)
{
	memset(head, 0, len);
	return boot_file_read(f, 0, head, MIN(f->size, len), err);
}

int bzimage_recognise(const struct boot_file *f, struct error *err)
{
	uint8_t head[HDR_VERSION];
	int r = read_head(f, head, sizeof(head), err);

	if (r < 0)
		return r;
	return le16_load(head + HDR_BOOT_FLAG) == 0xaa55 && !memcmp(head + HDR_MAGIC, "HdrS", 4);
}

static int parse(const struct boot_job *j, struct bzimage *k, struct error *err)
{
	const char *name = j->kernel.name;
	unsigned version, sects;
	int r;

	r = read_head(&j->kernel, k->head, sizeof(k->head), err);
	if (r < 0)
		return r;
	version = le16_load(k->head + HDR_VERSION);
	if (version < HDR_VERSION_MIN)
		return err_set(err, ENOTSUP,
			       "'%s': Linux boot protocol %u.%02u; 2.12 (Linux 3.8) or later is "
			       "supported",
			       name, version >> 8, version & 0xff);
	if (!(k->head[HDR_LOADFLAGS] & LOADED_HIGH))
		return err_set(err, ENOTSUP, "'%s': a zImage for low memory, not a bzImage", name);
	sects = k->head[HDR_SETUP_SECTS] ? k->head[HDR_SETUP_SECTS] : 4;
	k->payload_off = (sects + 1) * 512;
	if (k->payload_off + ENTRY_64 >= j->kernel.size)
		return err_set(err, EINVAL, "'%s': a bzImage that is cut short", name);
	k->payload_size = j->kernel.size - k->payload_off;
	k->is_64 = le16_load(k->head + HDR_XLOADFLAGS) & XLF_KERNEL_64;
	return 0;
}

/* The kernel unpacks itself in place: init_size bytes from its address must be its own. */
static int place(struct boot_job *j, struct bzimage *k, struct error *err)
{
	uint64_t size = MAX(k->payload_size, (uint64_t)le32_load(k->head + HDR_INIT_SIZE));
	uint64_t align = MAX(le32_load(k->head + HDR_ALIGNMENT), (uint32_t)PAGE_SIZE);

	k->load = le64_load(k->head + HDR_PREF_ADDRESS);
	if (align & (align - 1))
		return err_set(err, EINVAL, "'%s': its alignment is not a power of two",
			       j->kernel.name);
	if (k->load >= MIN_KERNEL_ADDRESS && k->load < 4 * GiB &&
	    !boot_space_claim(&j->space, k->load, size))
		return 0;
	k->load = 0;
	if (k->head[HDR_RELOCATABLE])
		k->load = boot_space_low(&j->space, size, align, MIN_KERNEL_ADDRESS, 4 * GiB);
	if (!k->load)
		return err_set(err, ENOSPC, "'%s': needs %llu MiB of guest memory to start",
			       j->kernel.name, (unsigned long long)(size / MiB + 1));
	return 0;
}

static int put_initrd(struct boot_job *j, const struct bzimage *k, uint8_t *zp, struct error *err)
{
	gpa_t limit = MIN((gpa_t)le32_load(k->head + HDR_INITRD_MAX) + 1, 4 * GiB);
	uint64_t size;
	gpa_t at;
	int r;

	if (!j->cfg->initrd)
		return 0;
	r = boot_put_file_high(j, j->cfg->initrd, limit, &at, &size, err);
	if (r == -ENOSPC && le16_load(k->head + HDR_XLOADFLAGS) & XLF_ABOVE_4G)
		r = boot_put_file_high(j, j->cfg->initrd, UINT64_MAX, &at, &size, err);
	if (r < 0)
		return r;
	le32_store(zp + HDR_RAMDISK_ADDR, (uint32_t)at);
	le32_store(zp + ZP_EXT_RAMDISK_ADDR, (uint32_t)(at >> 32));
	le32_store(zp + HDR_RAMDISK_SIZE, (uint32_t)size);
	le32_store(zp + ZP_EXT_RAMDISK_SIZE, (uint32_t)(size >> 32));
	return 0;
}

static int put_cmdline(struct boot_job *j, const struct bzimage *k, uint8_t *zp, struct error *err)
{
	const char *text = j->cfg->cmdline ? j->cfg->cmdline : "";
	uint32_t max = le32_load(k->head + HDR_CMDLINE_SIZE);
	gpa_t at;

	if (strlen(text) > max)
		return err_set(err, E2BIG, "'%s': the command line has %zu characters, it takes %u",
			       j->kernel.name, strlen(text), max);
	at = boot_put_string(j, text, err);
	if (!at)
		return -ENOSPC;
	le32_store(zp + HDR_CMDLINE_PTR, (uint32_t)at);
	return 0;
}

static int put_map(const struct boot_job *j, uint8_t *zp, struct error *err)
{
	if (j->cfg->nr_map > ZP_E820_MAX)
		return err_set(err, E2BIG, "memory map of more than %d ranges", ZP_E820_MAX);
	zp[ZP_E820_ENTRIES] = (uint8_t)j->cfg->nr_map;
	for (unsigned i = 0; i < j->cfg->nr_map; i++) {
		uint8_t *e = zp + ZP_E820_TABLE + i * E820_ENTRY_LEN;

		le64_store(e, j->cfg->map[i].gpa);
		le64_store(e + 8, j->cfg->map[i].size);
		le32_store(e + 16, j->cfg->map[i].type);
	}
	return 0;
}

/* Everything but what was put elsewhere already: the header as the file has it, and our answers. */
static void fill_header(const struct boot_job *j, const struct bzimage *k, uint8_t *zp)
{
	size_t end = MIN(HDR_MAGIC + k->head[HDR_JUMP_LEN], HDR_MAX_END);

	memcpy(zp + HDR_START, k->head + HDR_START, end - HDR_START);
	zp[HDR_LOADER] = LOADER_OTHER;
	le16_store(zp + HDR_VID_MODE, VID_MODE_NORMAL);
	le32_store(zp + HDR_CODE32_START, (uint32_t)k->load);
	le32_store(zp + HDR_RAMDISK_ADDR, 0);
	le32_store(zp + HDR_RAMDISK_SIZE, 0);
	le64_store(zp + ZP_RSDP, j->cfg->rsdp);
}

static int enter(struct boot_job *j, const struct bzimage *k, gpa_t zero_page, struct error *err)
{
	gpa_t gdt = boot_put_gdt(j, k->is_64, err), tables = 0;

	if (!gdt)
		return -ENOSPC;
	if (k->is_64) {
		tables = boot_put_page_tables(j, err);
		if (!tables)
			return -ENOSPC;
		boot_enter_64(j, k->load + ENTRY_64, gdt, tables);
	} else {
		boot_enter_32(j, (uint32_t)k->load, gdt);
	}
	j->state->gpr[X86_RSI] = zero_page;
	return 0;
}

int bzimage_load(struct boot_job *j, struct error *err)
{
	uint8_t zp[PAGE_SIZE] = {0};
	struct bzimage k = {0};
	gpa_t at;
	int r;

	r = parse(j, &k, err);
	if (!r)
		r = place(j, &k, err);
	if (r < 0)
		return r;
	fill_header(j, &k, zp);
	r = put_map(j, zp, err);
	if (!r)
		r = put_cmdline(j, &k, zp, err);
	if (!r)
		r = put_initrd(j, &k, zp, err);
	if (!r)
		r = boot_file_to_mem(&j->kernel, k.payload_off, j->mem, k.load, k.payload_size,
				     err);
	if (r < 0)
		return r;
	at = boot_put(j, zp, sizeof(zp), PAGE_SIZE, err);
	return at ? enter(j, &k, at, err) : -ENOSPC;
}
