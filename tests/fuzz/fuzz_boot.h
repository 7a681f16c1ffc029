/* fuzz_boot.h - what the three boot loader targets share: a small guest and a file in memory.
 * Whatever the loader does with hostile bytes, it must not touch a byte outside the guest's RAM
 * ranges: the reserved range in the middle is checked after each run. */
#pragma once

#include "base/error.h"
#include "boot/load.h"
#include "engine/x86_state.h"
#include "mem/mem.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct boot_range fuzz_map[] = {
	{0, 640 * KiB, BOOT_RAM},
	{0xe0000, 0x20000, BOOT_RESERVED},
	{MiB, 7 * MiB, BOOT_RAM},
};

static const struct boot_config fuzz_config = {
	.kernel = "fuzz", .cmdline = "a b c", .map = fuzz_map, .nr_map = ARRAY_SIZE(fuzz_map)};

static struct mem *fuzz_mem;
static struct x86_state fuzz_state;
static struct error fuzz_error;

static inline void fuzz_job(struct boot_job *j, const uint8_t *data, size_t size)
{
	if (!fuzz_mem &&
	    (mem_create(&fuzz_mem, NULL) < 0 || mem_add_ram(fuzz_mem, 0, 8 * MiB, NULL) < 0))
		abort();
	boot_job_init(j, &fuzz_config, fuzz_mem, &fuzz_state);
	j->kernel = (struct boot_file){.name = "fuzz", .fd = -1, .data = data, .size = size};
	fuzz_error.msg[0] = '\0';
}

/* A failure has a sentence; a success has put every claim inside RAM. */
static inline void fuzz_check(const struct boot_job *j, int r)
{
	uint64_t word = 0;

	if (r < 0 && !fuzz_error.msg[0])
		abort();
	for (unsigned i = 0; i < j->space.nr_claims; i++) {
		const struct boot_range *c = &j->space.claims[i];

		if (c->gpa + c->size > 8 * MiB || (c->gpa < MiB && c->gpa + c->size > 640 * KiB))
			abort();
	}
	for (gpa_t at = 0xe0000; at < 0x100000; at += 4096)
		if (mem_load64(fuzz_mem, at, &word) < 0 || word)
			abort();
}
