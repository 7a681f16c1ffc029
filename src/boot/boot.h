/* boot/boot.h - put a kernel into guest memory and a CPU at its first instruction.
 *
 * What kind of kernel it is shows in the file itself: a Linux bzImage (boot protocol 2.12 or
 * later), an ELF file with a PVH entry note, or an ELF or flat file with a multiboot 1 header. Boot
 * knows no machine: the caller says where memory is and where its ACPI tables are.
 *
 * Files are hostile.  Errors: negative errno and a sentence that names the file.
 * One thread, before any vCPU runs.  Specs: Linux Documentation/arch/x86/boot.rst and
 * zero-page.rst, Xen docs/misc/pvh.pandoc, Multiboot Specification 0.6.96. */
#pragma once

#include "base/types.h"

struct error;
struct mem;
struct x86_state;

/* As in an E820 map (ACPI 6.5 15.1). */
enum boot_range_type {
	BOOT_RAM = 1,
	BOOT_RESERVED = 2,
	BOOT_ACPI = 3, /* tables; reclaimable */
	BOOT_ACPI_NVS = 4,
};

struct boot_range {
	gpa_t gpa;
	uint64_t size;
	enum boot_range_type type;
};

struct boot_config {
	const char *kernel;  /* path */
	const char *initrd;  /* path or NULL; multiboot: "file args,file args" become modules */
	const char *cmdline; /* NULL = empty */
	const struct boot_range *map; /* sorted, not overlapping; reported to the guest as it is */
	unsigned nr_map;
	gpa_t rsdp; /* ACPI root pointer; 0 = none */
};

/* Loads everything and changes *s, which holds the state after RESET, to that of the first
 * instruction.  Only bytes of BOOT_RAM ranges are written.  As there is no firmware, MTRRs are set
 * to write-back throughout; give the other CPUs the same s->mtrr_def_type. */
int boot_load(const struct boot_config *cfg, struct mem *m, struct x86_state *s, struct error *err);
