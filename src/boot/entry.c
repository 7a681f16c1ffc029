/* boot/entry.c - what every loader ends with: tables in low memory and the CPU's registers. */
#include "base/bytes.h"
#include "base/error.h"
#include "boot/load.h"
#include "engine/x86_state.h"
#include "mem/mem.h"

#include <errno.h>
#include <string.h>

enum { BOOT_CS = 0x10, BOOT_DS = 0x18 };

/* The first page is left alone: guests look there for vectors and BIOS data. */
#define LOW_START 0x1000ull
#define LOW_END   GiB

#define CR0_PE   BIT(0)
#define CR0_ET   BIT(4)
#define CR0_PG   BIT(31)
#define CR4_PAE  BIT(5)
#define EFER_LME BIT(8)
#define EFER_LMA BIT(10)

/* IA32_MTRR_DEF_TYPE as firmware leaves it: MTRRs on, everything write-back. */
#define MTRR_ON_WB 0x806

#define PTE_P  BIT(0)
#define PTE_RW BIT(1)
#define PTE_PS BIT(7)

#define SEG_CODE (0xbu | X86_SEG_S | X86_SEG_P | X86_SEG_G) /* execute, read, accessed */
#define SEG_DATA (0x3u | X86_SEG_S | X86_SEG_P | X86_SEG_G | X86_SEG_DB)

void boot_job_init(struct boot_job *j, const struct boot_config *cfg, struct mem *m,
		   struct x86_state *s)
{
	*j = (struct boot_job){.cfg = cfg, .kernel = {.fd = -1}, .mem = m, .state = s};
	boot_space_init(&j->space, cfg->map, cfg->nr_map);
}

gpa_t boot_put(struct boot_job *j, const void *p, size_t len, uint64_t align, struct error *err)
{
	gpa_t at = boot_space_low(&j->space, len, align, LOW_START, LOW_END);

	if (!at || mem_write(j->mem, at, p, len) < 0) {
		err_set(err, ENOSPC, "'%s': not enough guest memory to boot it", j->kernel.name);
		return 0;
	}
	return at;
}

gpa_t boot_put_string(struct boot_job *j, const char *s, struct error *err)
{
	return boot_put(j, s, strlen(s) + 1, 16, err);
}

int boot_put_file_high(struct boot_job *j, const char *path, gpa_t limit, gpa_t *gpa,
		       uint64_t *size, struct error *err)
{
	struct boot_file f;
	int r;

	r = boot_file_open(&f, path, err);
	if (r < 0)
		return r;
	*gpa = 0;
	*size = f.size;
	if (f.size) {
		*gpa = boot_space_high(&j->space, f.size, PAGE_SIZE, 1 * MiB, limit);
		r = *gpa ? boot_file_to_mem(&f, 0, j->mem, *gpa, f.size, err)
			 : err_set(err, ENOSPC,
				   "'%s': its %llu MiB do not fit into guest memory beside the "
				   "kernel",
				   path, (unsigned long long)(f.size / MiB));
	}
	boot_file_close(&f);
	return r;
}

/* A flat segment's descriptor (SDM 3A "Segment Descriptors") from its attributes. */
static uint64_t flat_descriptor(uint32_t attr)
{
	return 0xffff | (uint64_t)(attr & 0xff) << 40 | (uint64_t)(0xf | (attr >> 8 & 0xf0)) << 48;
}

gpa_t boot_put_gdt(struct boot_job *j, bool long_mode, struct error *err)
{
	uint8_t gdt[32] = {0};

	le64_store(gdt + BOOT_CS, flat_descriptor(SEG_CODE | (long_mode ? X86_SEG_L : X86_SEG_DB)));
	le64_store(gdt + BOOT_DS, flat_descriptor(SEG_DATA));
	return boot_put(j, gdt, sizeof(gdt), 16, err);
}

/* One PML4, one PDPT, four page directories of 2 MiB pages: 4 GiB one to one. */
gpa_t boot_put_page_tables(struct boot_job *j, struct error *err)
{
	static const uint8_t empty[6 * PAGE_SIZE];
	gpa_t at = boot_put(j, empty, sizeof(empty), PAGE_SIZE, err);
	gpa_t pdpt = at + PAGE_SIZE, pd = at + 2 * PAGE_SIZE;

	if (!at)
		return 0;
	mem_store64(j->mem, at, pdpt | PTE_P | PTE_RW);
	for (unsigned i = 0; i < 4; i++)
		mem_store64(j->mem, pdpt + 8 * i, (pd + i * PAGE_SIZE) | PTE_P | PTE_RW);
	for (unsigned i = 0; i < 2048; i++)
		mem_store64(j->mem, pd + 8 * i, i * 2 * MiB | PTE_P | PTE_RW | PTE_PS);
	return at;
}

static void enter_flat(struct boot_job *j, uint64_t entry, gpa_t gdt, uint32_t code_attr)
{
	struct x86_state *s = j->state;

	memset(s->gpr, 0, sizeof(s->gpr));
	s->rip = entry;
	s->rflags = 2; /* interrupts off; bit 1 is always set */
	for (unsigned i = 0; i < X86_NR_SEG; i++)
		s->seg[i] = (struct x86_segment){
			.limit = 0xffffffff, .attr = SEG_DATA, .selector = BOOT_DS};
	s->seg[X86_CS].attr = SEG_CODE | code_attr;
	s->seg[X86_CS].selector = BOOT_CS;
	s->gdtr = (struct x86_table){.base = gdt, .limit = gdt ? 31 : 0};
	/*
	 * No protocol defines the IDTR, but a PC's firmware leaves that of real mode, and a kernel
	 * that goes back there runs INT n through it.
	 */
	s->idtr = (struct x86_table){.base = 0, .limit = 0x3ff};
	/* PVH asks for this TSS; the others do not mind. */
	s->tr = (struct x86_segment){.limit = 0x67, .attr = 0xbu | X86_SEG_P};
	s->cr0 = CR0_PE | CR0_ET;
	s->cr3 = 0;
	s->cr4 = 0;
	s->efer = 0;
	s->mtrr_def_type = MTRR_ON_WB;
	s->mp_state = X86_MP_RUNNABLE;
}

void boot_enter_32(struct boot_job *j, uint32_t entry, gpa_t gdt)
{
	enter_flat(j, entry, gdt, X86_SEG_DB);
}

void boot_enter_64(struct boot_job *j, uint64_t entry, gpa_t gdt, gpa_t page_tables)
{
	enter_flat(j, entry, gdt, X86_SEG_L);
	j->state->cr0 |= CR0_PG;
	j->state->cr3 = page_tables;
	j->state->cr4 = CR4_PAE;
	j->state->efer = EFER_LME | EFER_LMA;
}
