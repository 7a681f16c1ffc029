/* boot/load.h - what the loaders of one kernel format share: the file, the memory, the CPU.
 *
 * Inside boot/ (and its tests and fuzz targets) only.  A loader reads headers from a boot_file,
 * which may lie, claims memory in a boot_space, and fills an x86_state. */
#pragma once

#include "boot/boot.h"

struct x86_state;

/* ---- files ---- */

/* A file, or for tests a piece of memory.  Payloads go from here straight to guest memory. */
struct boot_file {
	const char *name; /* for messages */
	int fd;           /* -1: data */
	const uint8_t *data;
	uint64_t size;
};

int boot_file_open(struct boot_file *f, const char *path, struct error *err);
void boot_file_close(struct boot_file *f);
/* All of [off, off+len), or an error with the file's name. */
int boot_file_read(const struct boot_file *f, uint64_t off, void *buf, size_t len,
		   struct error *err);
int boot_file_to_mem(const struct boot_file *f, uint64_t off, struct mem *m, gpa_t gpa,
		     uint64_t len, struct error *err);

/* ---- memory ---- */

enum { BOOT_MAX_CLAIMS = 64 };

/* Which parts of the map's RAM are spoken for. */
struct boot_space {
	const struct boot_range *map;
	unsigned nr_map;
	unsigned nr_claims;
	struct boot_range claims[BOOT_MAX_CLAIMS];
};

void boot_space_init(struct boot_space *s, const struct boot_range *map, unsigned nr_map);
bool boot_space_is_free(const struct boot_space *s, gpa_t gpa, uint64_t size);
/* -EEXIST: not RAM, or taken.  -E2BIG: too many claims. */
int boot_space_claim(struct boot_space *s, gpa_t gpa, uint64_t size);
/* Claim `size` bytes in [low, limit), as low or as high as they fit; 0 when they do not. */
gpa_t boot_space_low(struct boot_space *s, uint64_t size, uint64_t align, gpa_t low, gpa_t limit);
gpa_t boot_space_high(struct boot_space *s, uint64_t size, uint64_t align, gpa_t low, gpa_t limit);

/* ---- one boot ---- */

struct boot_job {
	const struct boot_config *cfg;
	struct boot_file kernel;
	struct mem *mem;
	struct x86_state *state;
	struct boot_space space;
};

void boot_job_init(struct boot_job *j, const struct boot_config *cfg, struct mem *m,
		   struct x86_state *s);

/* Put bytes in low RAM where the loaders keep what they hand over; 0 and an error when full. */
gpa_t boot_put(struct boot_job *j, const void *p, size_t len, uint64_t align, struct error *err);
gpa_t boot_put_string(struct boot_job *j, const char *s, struct error *err);
/* Load a file as high as possible below limit. */
int boot_put_file_high(struct boot_job *j, const char *path, gpa_t limit, gpa_t *gpa,
		       uint64_t *size, struct error *err);

/* Flat 32-bit protected mode without paging, interrupts off. */
void boot_enter_32(struct boot_job *j, uint32_t entry, gpa_t gdt);
/* 64-bit mode with the first 4 GiB mapped one to one, interrupts off. */
void boot_enter_64(struct boot_job *j, uint64_t entry, gpa_t gdt, gpa_t page_tables);
/* The GDT both use: 0x10 code, 0x18 data. */
gpa_t boot_put_gdt(struct boot_job *j, bool long_mode, struct error *err);
gpa_t boot_put_page_tables(struct boot_job *j, struct error *err);

/* ---- formats: 1 = this is it (recognise), 0 = it is not, negative = cannot be read ---- */

int bzimage_recognise(const struct boot_file *f, struct error *err);
int bzimage_load(struct boot_job *j, struct error *err);

struct elf_image {
	bool is_64;
	uint64_t entry; /* physical, where it can be told */
	unsigned nr_phdrs;
	uint64_t phdr_off;
};
int elf_recognise(const struct boot_file *f, struct elf_image *elf, struct error *err);
/* Copy the segments to their physical addresses and claim them. */
int elf_load(struct boot_job *j, const struct elf_image *elf, struct error *err);

int pvh_find_entry(const struct boot_file *f, const struct elf_image *elf, uint32_t *entry,
		   struct error *err);
int pvh_load(struct boot_job *j, const struct elf_image *elf, uint32_t entry, struct error *err);

struct multiboot_header {
	uint32_t off; /* in the file */
	uint32_t flags;
	uint32_t header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr;
};
int multiboot_recognise(const struct boot_file *f, struct multiboot_header *h, struct error *err);
/* elf: NULL when the file is not ELF. */
int multiboot_load(struct boot_job *j, const struct multiboot_header *h,
		   const struct elf_image *elf, struct error *err);

/* boot_load after the kernel file is open. */
int boot_load_job(struct boot_job *j, struct error *err);
