/* boot/boot.h - start a kernel without firmware: write guest memory and a CPU state.
 *
 * boot_load recognises the kernel by its content: Linux bzImage (64-bit entry), ELF with a PVH
 * note, multiboot 1.  It knows no machine: the caller says where RAM is and where the tables are.
 * Files are read again at each call, so that a reset boots what is on disk now.  The files are
 * hostile input.  Called with no vCPU running.
 *
 * Specs: Linux Documentation/arch/x86/boot.rst; Xen public/arch-x86/hvm/start_info.h (PVH);
 * Multiboot Specification 0.6.96. */
#pragma once

#include "base/types.h"
#include "engine/x86_state.h"

struct error;
struct mem;

enum boot_mem_type { BOOT_MEM_RAM = 1, BOOT_MEM_RESERVED, BOOT_MEM_ACPI, BOOT_MEM_NVS };

struct boot_mem {
	gpa_t gpa;
	uint64_t size;
	uint32_t type; /* enum boot_mem_type, the e820 numbers */
};

struct boot_config {
	const char *kernel;  /* path */
	const char *initrd;  /* path or NULL; multiboot: "FILE ARGS,FILE ARGS" */
	const char *cmdline; /* or NULL */
	const struct boot_mem *map;
	unsigned nr_map;
	gpa_t rsdp; /* 0: none */
};

/* Fills *s completely (x86_state_reset first).  -errno with a sentence that names the file. */
int boot_load(const struct boot_config *cfg, struct mem *m, struct x86_state *s,
	      struct error *err);
