/* engine/soft/insn_tables.h - what gen_insn.py writes for decode.c, and only for it.
 *
 * A decision tree per opcode map leads from opcode bytes to a row.  A tree entry is a row number,
 * or TREE_NODE + the number of a node; a node says which property of the encoding chooses among its
 * children.  Row 0 is the invalid opcode. */
#pragma once

#include "engine/soft/insn.h"

enum { TREE_NODE = 0x8000 };

/* What a node looks at, and how many children it has. */
enum tree_kind {
	TREE_PREFIX, /* 4: none, 66, F3, F2 (F3 and F2 win over 66; the last of them wins) */
	TREE_MOD,    /* 2: ModRM is memory, register */
	TREE_REG,    /* 8: ModRM.reg */
	TREE_RM,     /* 8: ModRM.rm */
	TREE_W,      /* 2: REX.W, VEX.W, EVEX.W */
	TREE_L,      /* 4: VEX.L, EVEX.L'L (2 when it is a rounding mode) */
	TREE_REXR,   /* 2: REX.R */
	TREE_REXB,   /* 2: REX.B */
};

struct tree_node {
	uint8_t kind;
	uint16_t child; /* first of its children in tree_entries[] */
};

/* dec_row.flags */
enum {
	DEC_MODRM = 1 << 0,    /* has a ModRM byte */
	DEC_MODR = 1 << 1,     /* ModRM.mod is ignored, taken as 3 (MOV CR) */
	DEC_BY_S = 1 << 2,     /* exec by operand size */
	DEC_BY_M = 1 << 3,     /* exec by register, memory, locked memory */
	DEC_LOCK = 1 << 4,     /* LOCK allowed on the memory form */
	DEC_END = 1 << 5,      /* INSN_END */
	DEC_D64 = 1 << 6,      /* operand size is 64 by default in 64-bit mode, 16 with 66h */
	DEC_F64 = 1 << 7,      /* always 64 in 64-bit mode */
	DEC_BRANCH = 1 << 8,   /* near branch: as DEC_F64 on Intel, as DEC_D64 on AMD */
	DEC_REG_B = 1 << 9,    /* ModRM.reg is a byte register */
	DEC_RM_B = 1 << 10,    /* ModRM.rm is a byte register */
	DEC_OPC_REG = 1 << 11, /* the register operand is in the opcode */
	DEC_OPC_SEG = 1 << 12, /* a segment register is in opcode bits 5:3 */
	DEC_FAR = 1 << 13,     /* LSS and such: no 64-bit offsets on AMD */
	DEC_VSIB = 1 << 14,
	DEC_VVVV = 1 << 15, /* vvvv is an operand; else it must be 1111b */
	DEC_MASK = 1 << 16, /* EVEX: see ROW_MASK ... */
	DEC_MASK_Z = 1 << 17,
	DEC_MASK_REQ = 1 << 18,
	DEC_BCAST = 1 << 19,
	DEC_ER = 1 << 20,
	DEC_SAE = 1 << 21,
	DEC_SCALAR = 1 << 22,       /* vector length ignored */
	DEC_K_REG = 1 << 23,        /* ModRM.reg is an opmask: extension bits must be clear */
	DEC_K_RM = 1 << 24,         /* ModRM.rm is an opmask */
	DEC_K_VVVV = 1 << 25,       /* vvvv is an opmask */
	DEC_VEXGPR = 1 << 26,       /* VEX-encoded, GPRs only */
	DEC_DISTINCT = 1 << 27,     /* VEX gather: destination, index and mask must differ */
	DEC_DEST_NOT_SRC = 1 << 28, /* destination must not be the index or a source register */
	DEC_MOFFS = 1 << 29,
	DEC_RM_WRITE = 1 << 30, /* ModRM.rm is written */
	DEC_GPR_REG = 1u << 31, /* ModRM.reg is a GPR: EVEX.R' must not extend it */
};

/* How the effective operand size comes about; 1 2 4 8 stand for themselves. */
enum dec_size {
	DEC_SIZE_V = 16, /* 66h, REX.W */
	DEC_SIZE_Z,      /* as V, but never 8 */
	DEC_SIZE_Y,      /* 8 with REX.W in 64-bit mode, else 4 */
	DEC_SIZE_C,      /* 8 in 64-bit mode, else 4 */
};

enum dec_imm {
	DEC_IMM_NONE,
	DEC_IMM_B,   /* byte, zero-extended */
	DEC_IMM_BS,  /* byte, sign-extended */
	DEC_IMM_IS4, /* byte of which bits 7:4 are a vector register */
	DEC_IMM_W,   /* word, zero-extended */
	DEC_IMM_Z,   /* 2 or 4 bytes by operand size, sign-extended */
	DEC_IMM_V,   /* 2, 4 or 8 bytes by operand size */
	DEC_IMM_W_B, /* word, then byte in imm2 (ENTER) */
	DEC_IMM_B_B, /* byte, then byte in imm2 (EXTRQ, INSERTQ) */
	DEC_IMM_FAR, /* offset by operand size, then selector */
	DEC_IMM_A,   /* address by address size (moffs) */
};

enum { DEC_FEAT_NONE = 255, DEC_FEAT_NEVER = 254 };

struct dec_row {
	uint32_t flags;  /* DEC_* */
	uint16_t exec;   /* first of its entries in insn_execs[] */
	uint16_t alt;    /* row to use when the feature is missing; 0: #UD */
	uint8_t feat[3]; /* enum cpu_feature, all needed; or DEC_FEAT_* */
	uint8_t imm;     /* enum dec_imm */
	uint8_t size;    /* enum dec_size or bytes */
	uint8_t msize;   /* enum insn_size of the memory operand */
	uint8_t prefix;  /* mandatory prefix */
	uint8_t elem;    /* EVEX: element bytes for broadcast */
	uint8_t disp8n;  /* EVEX disp8*N where it is not the memory operand's size; else 0 */
	uint8_t vlen;    /* fixed vector length; 0: from L */
};

extern const struct tree_node tree_nodes[];
extern const uint16_t tree_entries[];
extern const uint16_t dec_legacy[2][4][256]; /* [64-bit mode][MAP_1..MAP_0F3A][opcode] */
extern const uint16_t dec_vex[2][3][256];    /* [64-bit mode][0F, 0F38, 0F3A][opcode] */
extern const uint16_t dec_evex[2][5][256];   /* [64-bit mode][0F, 0F38, 0F3A, 5, 6][opcode] */
extern const uint8_t dec_has_modrm[4][32];   /* legacy: bit per opcode, for invalid rows too */
extern const struct dec_row dec_rows[];
extern insn_exec *const insn_execs[];
