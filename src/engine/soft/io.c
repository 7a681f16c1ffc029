/* engine/soft/io.c - IN and OUT, and the I/O permission rules (SDM 1 "I/O-Sensitive Instructions",
 * "I/O Permission Bit Map").  INS and OUTS are in string.c. */
#include "engine/soft/io.h"

#include "engine/soft/debug.h"
#include "engine/soft/int.h"
#include "engine/soft/seg.h"
#include "engine/soft/vec.h"

enum { TSS_IO_BASE = 102 }; /* word: where the bitmap begins, from the TSS base */

static bool bitmap_allows(struct cpu *cpu, uint16_t port, unsigned size)
{
	unsigned type = X86_SEG_TYPE(cpu->tr.attr);
	uint32_t at;
	uint16_t bits;

	if (!(cpu->tr.attr & X86_SEG_P) || (type != DESC_TSS && type != DESC_TSS_BUSY) ||
	    cpu->tr.limit < TSS_IO_BASE + 1)
		return false;
	at = sys_ld16(cpu, sys_linear(cpu, cpu->tr.base, TSS_IO_BASE)) + port / 8u;
	/* Two bytes are read whatever the port: both must lie inside the TSS. */
	if (at + 1 > cpu->tr.limit)
		return false;
	bits = sys_ld16(cpu, sys_linear(cpu, cpu->tr.base, at));
	return !(bits >> port % 8 & ((1u << size) - 1));
}

void io_check(struct cpu *cpu, uint16_t port, unsigned size)
{
	if (cpu->real || (!cpu->v86 && cpu->cpl <= cpu_iopl(cpu)))
		return;
	if (!bitmap_allows(cpu, port, size))
		fault_gp(cpu, 0);
}

uint32_t io_read(struct cpu *cpu, uint16_t port, unsigned size)
{
	uint8_t doing = cpu->doing;
	uint32_t v;

	if (unlikely(cpu->dbg_io))
		debug_note_io(cpu, port, size);
	cpu->stats.exits_pio++;
	vec_release(cpu);
	cpu->doing = CPU_DOING_DEVICE;
	v = cpu->ops->pio_read(cpu->opaque, port, size);
	cpu->doing = doing;
	cpu_notice_events(cpu);
	return v;
}

void io_write(struct cpu *cpu, uint16_t port, unsigned size, uint32_t v)
{
	uint8_t doing = cpu->doing;

	if (unlikely(cpu->dbg_io))
		debug_note_io(cpu, port, size);
	cpu->stats.exits_pio++;
	vec_release(cpu);
	cpu->doing = CPU_DOING_DEVICE;
	cpu->ops->pio_write(cpu->opaque, port, v, size);
	cpu->doing = doing;
	cpu_notice_events(cpu);
}

#define IN_OUT(bits)                                                                               \
	static inline void in_##bits(struct cpu *cpu, uint16_t port)                               \
	{                                                                                          \
		io_check(cpu, port, bits / 8);                                                     \
		reg_set_##bits(cpu, CPU_GPR_OFF(X86_RAX),                                          \
			       (uint##bits##_t)io_read(cpu, port, bits / 8));                      \
	}                                                                                          \
	static inline void out_##bits(struct cpu *cpu, uint16_t port)                              \
	{                                                                                          \
		io_check(cpu, port, bits / 8);                                                     \
		io_write(cpu, port, bits / 8, (uint##bits##_t)cpu->gpr[X86_RAX]);                  \
	}                                                                                          \
	void exec_in_AI_##bits(struct cpu *cpu, const struct insn *in)                             \
	{                                                                                          \
		in_##bits(cpu, (uint8_t)in->imm);                                                  \
	}                                                                                          \
	void exec_in_AD_##bits(struct cpu *cpu, const struct insn *in)                             \
	{                                                                                          \
		in_##bits(cpu, (uint16_t)cpu->gpr[X86_RDX]);                                       \
	}                                                                                          \
	void exec_out_IA_##bits(struct cpu *cpu, const struct insn *in)                            \
	{                                                                                          \
		out_##bits(cpu, (uint8_t)in->imm);                                                 \
	}                                                                                          \
	void exec_out_DA_##bits(struct cpu *cpu, const struct insn *in)                            \
	{                                                                                          \
		out_##bits(cpu, (uint16_t)cpu->gpr[X86_RDX]);                                      \
	}

IN_OUT(8)
IN_OUT(16)
IN_OUT(32)
