/* gen.h - random valid instructions for every user-level row of the instruction table.
 *
 * gen_build searches random byte strings with the decoder until each row has a stock of encodings
 * in each mode.  gen_vary then changes prefixes, operand form, displacement, immediate and EVEX
 * bits of one while it stays that row's.  No second encoder is needed, and a row added to insn.tbl
 * is tested without a line here. */
#pragma once

#include "engine/soft/insn_rows.h"

enum { GEN_STOCK = 24, GEN_NR_MODES = 3 };

struct gen_row {
	unsigned nr;
	struct insn stock[GEN_STOCK];
};

struct cpu_model;
uint64_t gen_random(void);
void gen_seed(uint64_t seed);
static inline bool gen_one_in(unsigned n)
{
	return gen_random() % n == 0;
}

/* Search: `tries` random strings per mode. */
void gen_build(const struct cpu_model *model, unsigned tries);
const struct gen_row *gen_row(enum insn_mode mode, unsigned id);
void gen_vary(struct insn *in, enum insn_mode mode);
/* Decode code[] again: it was patched. */
bool gen_decode(struct insn *in, const uint8_t *code, enum insn_mode mode);

/* Where the parts of an encoding with a ModRM memory operand are in in->bytes. */
struct gen_layout {
	unsigned opcode, modrm, disp, disp_len, rest; /* rest: immediates */
};
void gen_layout(const struct insn *in, enum insn_mode mode, struct gen_layout *l);

/* Why an encoding, or all of a row, is not compared with the host; NULL when it is. */
const char *gen_excluded(const struct insn *in, enum insn_mode mode);
const char *gen_row_excluded(unsigned id);
/* Why a row that is not excluded has no encoding. */
const char *gen_row_absent(unsigned id);

bool gen_is(const struct insn *in, const char *name);
