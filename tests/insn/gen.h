/* gen.h - random valid instructions for every user-level row of the instruction table.
 *
 * gen_build searches random byte strings with the decoder until each row has a stock of encodings
 * (operand sizes, prefixes, memory forms, vector lengths as they come).  No second encoder is
 * needed, and a row added to insn.tbl is tested without a line here. */
#pragma once

#include "engine/soft/insn_rows.h"

enum { GEN_STOCK = 48 };

struct gen_row {
	unsigned nr;
	struct insn stock[GEN_STOCK];
};

struct cpu_model;
uint64_t gen_random(void);
void gen_seed(uint64_t seed);

/* Why a row is not compared with the host, or NULL when it is. */
const char *gen_excluded(const struct insn *in);

/* Fill rows[INSN_NR_IDS]. */
void gen_build(struct gen_row *rows, const struct cpu_model *model, unsigned tries);
