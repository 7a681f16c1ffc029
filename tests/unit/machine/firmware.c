/* What a guest finds instead of firmware: the configuration device and the BIOS's places. */
#include "board.h"

#include "base/bytes.h"
#include "machine/fw_cfg.h"

#include <errno.h>

enum { SELECTOR = 0x510, DATA = 0x511, DMA = 0x514 };
enum { DMA_ERROR = 1, DMA_READ = 2, DMA_SKIP = 4, DMA_SELECT = 8, DMA_WRITE = 16 };

#define REQUEST 0x2000
#define BUFFER  0x3000

static uint64_t item(struct board *b, uint16_t key, unsigned nr_bytes)
{
	uint64_t v = 0;

	out(b, SELECTOR, key, 2);
	for (unsigned i = 0; i < nr_bytes; i++)
		v |= (uint64_t)inb(b, DATA) << 8 * i;
	return v;
}

/* The control word that is left. */
static uint32_t dma(struct board *b, uint32_t control, uint32_t len, uint64_t address)
{
	uint8_t req[16];

	be32_store(req, control);
	be32_store(req + 4, len);
	be64_store(req + 8, address);
	CHECK_EQ(0, mem_write(b->mem, REQUEST, req, sizeof(req)));
	out(b, DMA, 0, 4);
	out(b, DMA + 4, __builtin_bswap32(REQUEST), 4);
	CHECK_EQ(0, mem_read(b->mem, REQUEST, req, sizeof(req)));
	return be32_load(req);
}

TEST(items_tell_cpus_and_memory)
{
	struct board b;

	board_start(&b, 3, 48 * MiB);
	CHECK_EQ(le32_load("QEMU"), item(&b, FW_CFG_SIGNATURE, 4));
	CHECK_EQ(3, item(&b, FW_CFG_ID, 4));
	CHECK_EQ(3, item(&b, FW_CFG_NR_CPUS, 2));
	CHECK_EQ(3, item(&b, FW_CFG_MAX_CPUS, 2));
	CHECK_EQ(48 * MiB, item(&b, FW_CFG_RAM_SIZE, 8));
	board_stop(&b);
}

TEST(behind_an_item_and_without_one_there_are_zeros)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	CHECK_EQ(1, item(&b, FW_CFG_NR_CPUS, 8));
	CHECK_EQ(0, item(&b, 0x3fff, 8));
	CHECK_EQ(0, item(&b, 0xbfff, 8));
	board_stop(&b);
}

TEST(files_are_found_by_name)
{
	struct board b;
	uint8_t dir[4 + 64];
	struct error err;

	board_start(&b, 1, 16 * MiB);
	CHECK_EQ(0, fw_cfg_add_file(machine_fw_cfg(b.machine), "etc/a", "hello", 5, &err));
	CHECK_EQ(0, item(&b, FW_CFG_FILE_DIR, 0));
	for (unsigned i = 0; i < sizeof(dir); i++)
		dir[i] = inb(&b, DATA);
	CHECK_EQ(1, be32_load(dir));
	CHECK_EQ(5, be32_load(dir + 4));
	CHECK_EQ(FW_CFG_FILE_FIRST, be16_load(dir + 8));
	CHECK_STR("etc/a", (char *)dir + 12);
	CHECK_EQ('h' | 'e' << 8, item(&b, FW_CFG_FILE_FIRST, 2));
	CHECK_EQ(-EEXIST, fw_cfg_add_file(machine_fw_cfg(b.machine), "etc/a", "", 0, &err));
	CHECK_STR("firmware file 'etc/a' exists", err.msg);
	board_stop(&b);
}

TEST(dma_copies_into_memory)
{
	struct board b;
	char got[8];

	board_start(&b, 1, 16 * MiB);
	CHECK_EQ(0, fw_cfg_add_file(machine_fw_cfg(b.machine), "f", "abcdef", 6, NULL));
	CHECK_EQ(0, dma(&b, DMA_SELECT | DMA_SKIP | FW_CFG_FILE_FIRST << 16, 2, 0));
	CHECK_EQ(0, dma(&b, DMA_READ, sizeof(got), BUFFER));
	CHECK_EQ(0, mem_read(b.mem, BUFFER, got, sizeof(got)));
	CHECK(!memcmp("cdef\0\0\0", got, sizeof(got)));
	/* The signature by which it is found. */
	CHECK_EQ(le32_load("QEMU"), in(&b, DMA, 4));
	CHECK_EQ(le32_load(" CFG"), in(&b, DMA + 4, 4));
	board_stop(&b);
}

TEST(dma_that_cannot_be_done_says_so)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	CHECK_EQ(DMA_ERROR, dma(&b, DMA_SELECT | DMA_READ, 4, 0xA0000));
	CHECK_EQ(DMA_ERROR, dma(&b, DMA_READ, UINT32_MAX, 16 * MiB - 4));
	CHECK_EQ(DMA_ERROR, dma(&b, DMA_WRITE, 4, BUFFER));
	/* No memory where the request should be: nothing to tell, nothing happens. */
	out(&b, DMA, UINT32_MAX, 4);
	out(&b, DMA + 4, UINT32_MAX, 4);
	CHECK_EQ(0, dma(&b, DMA_SKIP, UINT32_MAX, 0));
	CHECK_EQ(0, dma(&b, DMA_SKIP, UINT32_MAX, 0));
	CHECK_EQ(0, inb(&b, DATA));
	board_stop(&b);
}

TEST(the_bios_data_area_tells_low_memory_and_serial_ports)
{
	struct machine_boot_info info;
	struct error err;
	struct board b;
	uint8_t bda[256];

	board_start(&b, 1, 16 * MiB);
	CHECK_EQ(0, machine_boot_info(b.machine, &info, &err));
	CHECK_EQ(0, mem_read(b.mem, 0x400, bda, sizeof(bda)));
	CHECK_EQ(0x3F8, le16_load(bda));
	CHECK_EQ(0x2E8, le16_load(bda + 6));
	CHECK_EQ(0x9FC0, le16_load(bda + 0x0E));
	CHECK_EQ(639, le16_load(bda + 0x13));
	CHECK_EQ(4, le16_load(bda + 0x10) >> 9 & 7);
	board_stop(&b);
}

TEST(every_real_mode_vector_leads_to_code)
{
	struct machine_boot_info info;
	struct error err;
	struct board b;
	uint8_t ivt[1024], code;

	board_start(&b, 1, 16 * MiB);
	CHECK_EQ(0, machine_boot_info(b.machine, &info, &err));
	CHECK_EQ(0, mem_read(b.mem, 0, ivt, sizeof(ivt)));
	for (unsigned i = 0; i < 256; i++) {
		gpa_t at = le16_load(ivt + 4 * i + 2) * 16u + le16_load(ivt + 4 * i);

		CHECK_EQ(0, mem_read(b.mem, at, &code, 1));
		CHECK_EQ(0x55, code);
	}
	CHECK_EQ(0, mem_read(b.mem, 0xFFFF0, &code, 1));
	CHECK_EQ(0xBA, code);
	board_stop(&b);
}
