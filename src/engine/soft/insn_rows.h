/* engine/soft/insn_rows.h - what insn.tbl says about each instruction, at run time.
 *
 * insn_rows[in->id] belongs to a decoded instruction.  The vector executor, the disassembler, the
 * translator and the tests read it; nobody writes it.  enum insn_id and the array come from
 * gen_insn.py.  How to read or add a row: docs/insn-table.md. */
#pragma once

#include "engine/soft/insn.h"
#include "engine/soft/insn_ids.gen.h"

/* Which part of the encoding an operand comes from. */
enum insn_op_kind {
	OP_NONE,
	OP_GPR_REG,   /* G: ModRM.reg */
	OP_GPR_RM,    /* E R M: ModRM.rm, register or memory */
	OP_GPR_VVVV,  /* B: VEX.vvvv */
	OP_GPR_OPC,   /* Z: low bits of the opcode */
	OP_GPR_FIXED, /* AL, rAX, CL, DX ...: number in .fixed */
	OP_SEG,       /* ES .. GS named by the opcode: number in .fixed */
	OP_SEG_REG,   /* S: ModRM.reg names a segment register */
	OP_CR,        /* C: ModRM.reg */
	OP_DR,        /* D: ModRM.reg */
	OP_MOFFS,     /* O: address in the instruction */
	OP_STR_SRC,   /* X: [rSI] */
	OP_STR_DST,   /* Y: [rDI] */
	OP_IMM,       /* I: in->imm */
	OP_IMM2,      /* second immediate: in->imm2 */
	OP_ONE,       /* the constant 1 */
	OP_REL,       /* J: target = next RIP + in->imm */
	OP_FAR,       /* A: sel:offset in the instruction */
	OP_ST0,       /* x87 ST(0) */
	OP_STI,       /* x87 ST(i), i = in->vrm */
	OP_MMX_REG,   /* P: ModRM.reg */
	OP_MMX_RM,    /* Q N: ModRM.rm, register or memory */
	OP_VEC_REG,   /* V: ModRM.reg */
	OP_VEC_RM,    /* W U: ModRM.rm, register or memory */
	OP_VEC_VVVV,  /* H: VEX/EVEX.vvvv */
	OP_VEC_IS4,   /* L: immediate bits 7:4 */
	OP_XMM0,      /* implicit XMM0 */
	OP_VSIB,      /* memory with a vector index, register number in->vrm */
	OP_K_REG,     /* opmask, ModRM.reg */
	OP_K_RM,      /* opmask, ModRM.rm, register or memory */
	OP_K_VVVV,    /* opmask, vvvv */
};

/* Operand and memory sizes.  A number of bytes, or one of these, which depend on the encoding. */
enum insn_size {
	SIZE_NONE = 0,  /* no memory touched through the operand (LEA), or special */
	SIZE_V = 0x80,  /* in->opsize */
	SIZE_Z,         /* in->opsize, but 4 where that is 8 */
	SIZE_Y,         /* 8 with REX.W (VEX.W, EVEX.W), else 4 */
	SIZE_FAR,       /* selector and offset: in->opsize + 2 */
	SIZE_TABLE,     /* limit and base: 10 in 64-bit mode, else 6 */
	SIZE_BOUND,     /* two of in->opsize */
	SIZE_VL = 0x90, /* in->vlen, /2, /4, /8: SIZE_VL + log2 of the divisor */
	SIZE_VL2,
	SIZE_VL4,
	SIZE_VL8,
};

enum { OP_READ = 1, OP_WRITE = 2 };

struct insn_op {
	uint8_t kind;   /* enum insn_op_kind */
	uint8_t size;   /* of the register form */
	uint8_t msize;  /* of the memory form, before broadcast */
	uint8_t access; /* OP_READ | OP_WRITE */
	uint8_t fixed;
};

/* Which units an instruction needs; availability rules are in vec.h. */
enum insn_class {
	CLASS_GPR,    /* none */
	CLASS_VEXGPR, /* none, but #UD in real and virtual-8086 mode (BMI1, BMI2) */
	CLASS_X87,
	CLASS_MMX,
	CLASS_SSE,
	CLASS_AVX,
	CLASS_AVX512,
	CLASS_K, /* opmask instructions: as CLASS_AVX512 */
	CLASS_FWAIT,
};

/* row.attrs */
enum {
	ROW_VEX = 1 << 0,
	ROW_EVEX = 1 << 1,
	ROW_ALIGN = 1 << 2,         /* memory operand must be aligned to its size, else #GP(0) */
	ROW_FPX = 1 << 3,           /* may raise SIMD or x87 floating-point exceptions */
	ROW_GPR_READ = 1 << 4,      /* vector row that reads a GPR (explicit or implicit) */
	ROW_GPR_WRITE = 1 << 5,     /* vector row that writes a GPR */
	ROW_FLAGS_WRITE = 1 << 6,   /* writes EFLAGS (any of fl_write, fl_undef) */
	ROW_SPECIAL = 1 << 7,       /* the executor needs code of its own: see .special */
	ROW_MASK = 1 << 8,          /* EVEX: takes an opmask */
	ROW_MASK_Z = 1 << 9,        /* ... and zeroing */
	ROW_MASK_REQ = 1 << 10,     /* ... and k0 is #UD (gathers, scatters) */
	ROW_BCAST = 1 << 11,        /* EVEX.b on memory: broadcast of .elem bytes */
	ROW_ER = 1 << 12,           /* EVEX.b on registers: embedded rounding */
	ROW_SAE = 1 << 13,          /* EVEX.b on registers: suppress all exceptions */
	ROW_SCALAR = 1 << 14,       /* vector length is ignored: works on element 0 */
	ROW_END = 1 << 15,          /* INSN_END */
	ROW_LOCK = 1 << 16,         /* LOCK allowed on the memory form */
	ROW_UD = 1 << 17,           /* known but never offered: always #UD */
	ROW_HINT = 1 << 18,         /* NOP; the memory operand is not touched */
	ROW_BITSTRING = 1 << 19,    /* the bit offset moves the memory operand (BT Ev,Gv) */
	ROW_PAIR = 1 << 20,         /* writes an aligned pair of opmasks (VP2INTERSECT) */
	ROW_NAMEA = 1 << 21,        /* .name's alternatives go by address size (JCXZ) */
	ROW_MASK_PARTIAL = 1 << 22, /* memory is touched for selected elements only (VMASKMOV) */
	ROW_FAULTS_WHOLE = 1 << 23, /* the opmask keeps no memory fault away (types E4NF, E6NF) */
	ROW_XMM0_WRITE = 1 << 24,   /* writes XMM0 implicitly (PCMPxSTRM) */
	ROW_DISTINCT = 1 << 25,     /* destination equal to a source is #UD (complex FP16) */
	ROW_COUNT = 1 << 26,        /* a shift: with a count of 0 no flag changes */
};

/* row.special: rows whose memory or state access is not one operand of msize bytes. */
enum insn_special {
	SPECIAL_NONE,
	SPECIAL_GATHER,
	SPECIAL_SCATTER,
	SPECIAL_MASKMOV,  /* VMASKMOVPx, VPMASKMOV: elements chosen by a vector register */
	SPECIAL_MASKMOVU, /* MASKMOVQ, MASKMOVDQU: bytes at DS:rDI */
	SPECIAL_COMPRESS, /* packed elements to memory, as many as the opmask has bits */
	SPECIAL_EXPAND,
	SPECIAL_XSAVE, /* XSAVE, XRSTOR and their variants */
	SPECIAL_FXSAVE,
	SPECIAL_FPENV,   /* FLDENV, FSTENV, FSAVE, FRSTOR: size by operand size and mode */
	SPECIAL_CONTROL, /* x87, MXCSR, XCR0 control state: FNINIT, LDMXCSR, EMMS, FWAIT ... */
};

/* row.xlat: which template of the translator makes host code of the row (xlat_insn.c). */
enum insn_xlat {
	XLAT_INTERP, /* none: the interpreter's function is called */
	XLAT_COPY,   /* the instruction itself, with registers and memory operand renamed */
	XLAT_VEC,    /* likewise, on vector registers, which keep their names: xlat_vec.c */
	XLAT_LEA,
	XLAT_NOP,
	XLAT_PUSH, /* register or immediate */
	XLAT_POP,  /* register */
	XLAT_LEAVE,
	XLAT_STRING, /* xlat_string.c */
	XLAT_SYS,    /* xlat_sys.c */
	XLAT_JCC,
	XLAT_JMP,
	XLAT_JMPIND,
	XLAT_CALL,
	XLAT_CALLIND,
	XLAT_RET,
};

struct insn_row {
	const char *name; /* alternatives by operand size separated by '/' */
	struct insn_op op[5];
	uint8_t nr_ops;
	uint8_t cls;     /* enum insn_class */
	uint8_t special; /* enum insn_special */
	uint8_t elem;    /* ROW_BCAST: bytes of a broadcast element.  Else: vlen / mask bits */
	int16_t feature; /* enum cpu_feature, or -1 */
	uint32_t attrs;  /* ROW_* */
	uint16_t fl_read, fl_write, fl_undef; /* RFLAGS bits */
	uint16_t fl_kill; /* those it sets whatever they were: but see ROW_COUNT */
	uint8_t xlat;     /* enum insn_xlat */
};

extern const struct insn_row insn_rows[INSN_NR_IDS];

/* Bytes that a size stands for in this instruction. */
unsigned insn_size_bytes(const struct insn *in, uint8_t size);

/* The row's name as it applies to this encoding ("movsw" of "movsw/movsd/movsq"); returns its
 * length, sets *name to its first character (not terminated there). */
unsigned insn_name(const struct insn *in, const char **name);
