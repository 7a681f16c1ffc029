/* machine/fw_cfg.h - the firmware configuration device: named items a guest can read.
 *
 * Firmware and test kernels learn from it what a board's own chips do not tell: number of CPUs,
 * size of memory, and files (tables, boot order) put there by name.  Items are copied and read-only
 * for the guest.
 *
 * Create, add and destroy while the board is built, by one thread; the guest's accesses come from
 * any vCPU.  Errors: negative errno and a sentence.
 * Spec: "QEMU Firmware Configuration Device" (docs/specs/fw_cfg of QEMU): ports 510h selector,
 * 511h data, 514h..51Bh DMA address. */
#pragma once

#include "base/types.h"

struct bus;
struct error;
struct fw_cfg;
struct mem;
struct state;

/* Keys of items that have no name. */
enum fw_cfg_key {
	FW_CFG_SIGNATURE = 0x00,
	FW_CFG_ID = 0x01,
	FW_CFG_UUID = 0x02,
	FW_CFG_RAM_SIZE = 0x03, /* bytes, 64 bits */
	FW_CFG_NO_GRAPHIC = 0x04,
	FW_CFG_NR_CPUS = 0x05,  /* 16 bits */
	FW_CFG_MAX_CPUS = 0x0F, /* 16 bits; APIC ids are below it */
	FW_CFG_FILE_DIR = 0x19,
	FW_CFG_FILE_FIRST = 0x20,
};

enum { FW_CFG_MAX_FILES = 64, FW_CFG_MAX_NAME = 55 };

/* Has the signature, the feature bits and an empty directory. */
int fw_cfg_create(struct fw_cfg **out, struct bus *bus, struct mem *mem, struct error *err);
void fw_cfg_destroy(struct fw_cfg *f);

int fw_cfg_add(struct fw_cfg *f, enum fw_cfg_key key, const void *data, uint32_t len,
	       struct error *err);
int fw_cfg_add_u16(struct fw_cfg *f, enum fw_cfg_key key, uint16_t v, struct error *err);
int fw_cfg_add_u64(struct fw_cfg *f, enum fw_cfg_key key, uint64_t v, struct error *err);
/* "etc/something"; -EEXIST when the name is taken. */
int fw_cfg_add_file(struct fw_cfg *f, const char *name, const void *data, uint32_t len,
		    struct error *err);

void fw_cfg_reset(struct fw_cfg *f);
void fw_cfg_state(struct state *s, struct fw_cfg *f);
