/* engine/soft/insn.h - one decoded guest instruction, and the table it comes from.
 *
 * Instruction knowledge is written once, in insn.tbl.  gen_insn.py turns it into the decoder's
 * tables, the binding to exec functions, the disassembler's names and the test generator's rows.
 * decode.c fills a struct insn; the interpreter calls insn->exec; the translator will read the
 * same struct.
 *
 * Register operands are byte offsets into struct cpu, so that AL and AH, a GPR and "no register"
 * (cpu.zero) are all reached the same way. */
#pragma once

#include "base/types.h"

struct cpu;
struct insn;
typedef void insn_exec(struct cpu *cpu, const struct insn *in);

/* insn.flags */
enum {
	INSN_MEM = 1 << 0,    /* ModRM names memory (or the row has an implicit moffs operand) */
	INSN_FLAT = 1 << 1,   /* 64-bit mode with 64-bit addresses: linear = segbase + ea */
	INSN_LOCK = 1 << 2,   /* F0 prefix (only where the row allows it, else decoded as #UD) */
	INSN_REP = 1 << 3,    /* F3 prefix, not mandatory */
	INSN_REPNE = 1 << 4,  /* F2 prefix, not mandatory */
	INSN_END = 1 << 5,    /* may change RIP, mode or what follows: last of its block */
	INSN_REX = 1 << 6,    /* any REX present (SPL..DIL) */
	INSN_REXW = 1 << 7,   /* REX.W, VEX.W, EVEX.W */
	INSN_EVEX_B = 1 << 8, /* broadcast / rounding / SAE */
	INSN_EVEX_Z = 1 << 9, /* zeroing masking */
	INSN_VEX = 1 << 10,   /* VEX-encoded */
	INSN_EVEX = 1 << 11,  /* EVEX-encoded */
	INSN_STACK = 1 << 12, /* memory operand's segment is SS: faults are #SS, not #GP */
};

struct insn {
	insn_exec *exec;
	uint64_t imm;   /* immediate, sign- or zero-extended as the row says; moffs; far offset */
	uint64_t thunk; /* vec.c's: the thunk that runs it; the decoder leaves 0 */
	int32_t disp;   /* displacement, sign-extended (EVEX disp8*N already scaled) */
	uint32_t flags; /* INSN_* */
	uint16_t id;    /* row in insn.tbl: enum insn_id, index into insn_rows[] */
	uint16_t reg;   /* offset of the ModRM.reg (or opcode) GPR operand */
	uint16_t rm;    /* offset of the ModRM.rm GPR operand when it is a register */
	uint16_t base;  /* offset of the base register; of cpu.rip for RIP-relative; of cpu.zero */
	uint16_t index; /* offset of the index register or cpu.zero */
	uint16_t segbase; /* offset of the base of the effective segment; cpu.zero where it is 0 */
	uint16_t vvvv;    /* offset of the VEX.vvvv GPR operand (BMI rows) */
	uint8_t scale;    /* 0..3 */
	uint8_t seg;      /* effective segment, X86_ES.. */
	uint8_t len;      /* bytes */
	uint8_t opsize;   /* effective operand size in bytes: 1 2 4 8 (rows with b operands: 1) */
	uint8_t adsize;   /* effective address size in bytes: 2 4 8 */
	uint8_t imm2;     /* ENTER level, far selector low byte is in sel */
	uint16_t sel;     /* far pointer selector */
	/* What thunks and the disassembler need of the encoding. */
	uint8_t modrm;
	uint8_t opcode; /* last opcode byte */
	uint8_t map;    /* enum insn_map */
	uint8_t prefix; /* mandatory prefix: 0, 0x66, 0xF3, 0xF2 */
	uint8_t vreg;   /* vector/mask/mmx/st register numbers, all extension bits in: ModRM.reg */
	uint8_t vrm;    /* ... ModRM.rm when a register; VSIB index register when memory */
	uint8_t vv;     /* ... vvvv */
	uint8_t vlen;   /* vector length in bytes: 16 32 64; 0 for legacy */
	uint8_t k;      /* EVEX.aaa */
	uint8_t rc;     /* EVEX.L'L as rounding control when INSN_EVEX_B on a register form */
	uint8_t msize; /* bytes the memory operand spans (after broadcast), 0 if row says special */
	uint8_t bytes[15];
};

enum insn_map { MAP_1, MAP_0F, MAP_0F38, MAP_0F3A, MAP_X87, MAP_EVEX5, MAP_EVEX6 };

/* What the code segment and mode mean for decoding. */
enum insn_mode { INSN_MODE_16, INSN_MODE_32, INSN_MODE_64 };

enum insn_result {
	INSN_OK,
	INSN_SHORT,    /* more bytes are needed than were given (never when 15 were) */
	INSN_TOO_LONG, /* over 15 bytes: #GP(0) */
		       /* An invalid encoding is INSN_OK with exec = exec_ud. */
};

struct cpu_model;
/* Decode one instruction.  avail: bytes readable at p.  in->exec is bound to the handler.
 * Features the model lacks decode as #UD (or, LZCNT/TZCNT/ENDBR style, as what old CPUs did). */
enum insn_result insn_decode(struct insn *in, const uint8_t *p, size_t avail, enum insn_mode mode,
			     const struct cpu_model *model);

/* Text in Intel syntax, for logs and debuggers.  rip: address of the instruction. */
int insn_print(const struct insn *in, uint64_t rip, char *buf, size_t len);
