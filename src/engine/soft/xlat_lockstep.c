/* engine/soft/xlat_lockstep.c - each block twice: interpreted, undone, translated, compared.
 *
 * --engine soft,tier=translate,lockstep is for finding mistakes, slowly.  A block is cut before its
 * first instruction that the translator leaves to the interpreter.  The interpreter runs it first,
 * with a log of what it writes; an operand that is not plain RAM in one page ends the comparison of
 * this block, which has then simply been interpreted.  Then memory and registers are put back, the
 * translation runs, and registers, flags, vector state and the bytes written must be equal.
 * Devices and other vCPUs may write between the two, so a difference counts when it comes again. */
#include "engine/soft/xlat_int.h"

#include "engine/soft/vec_int.h"

#include <stdio.h>
#include <stdlib.h>

enum { TRIES = 4, WRITE_MAX = PAGE_SIZE };

struct written {
	uint8_t *p;
	unsigned len;
	uint8_t before[WRITE_MAX], after[WRITE_MAX];
};

struct state {
	uint64_t gpr[X86_NR_GPR], rip, cc;
	struct x87_ptr x87;
	uint8_t vec[X86_XSAVE_MAX];
};

struct xlat_lockstep {
	struct state start, interp, xlat;
	unsigned nr_written;
	unsigned nr_run; /* instructions interpreted */
	struct written written[BLOCK_MAX_INSNS];
};

const size_t xlat_lockstep_size = sizeof(struct xlat_lockstep);

/* --- state -------------------------------------------------------------------------------------
 */

static void state_get(struct cpu *cpu, struct state *s, bool vec)
{
	vec_copy(s->gpr, cpu->gpr, sizeof(s->gpr));
	s->rip = cpu->rip;
	s->cc = cpu->cc & RFLAGS_ARITH;
	vec_copy(&s->x87, &cpu->x87, sizeof(s->x87));
	if (!vec)
		return;
	vec_release(cpu);
	vec_copy(s->vec, cpu->vec->area, sizeof(s->vec));
	vec_zero(s->vec + XS_FOP, XS_MXCSR - XS_FOP); /* pointers into code of ours */
}

static void state_set(struct cpu *cpu, const struct state *s, bool vec)
{
	vec_copy(cpu->gpr, s->gpr, sizeof(s->gpr));
	cpu->rip = s->rip;
	cpu->cc = s->cc;
	vec_copy(&cpu->x87, &s->x87, sizeof(s->x87));
	if (!vec)
		return;
	vec_release(cpu);
	vec_copy(cpu->vec->area, s->vec, sizeof(s->vec));
}

static bool bytes_same(const void *a, const void *b, size_t n)
{
	const volatile uint8_t *p = a, *q = b;

	while (n && *p == *q) {
		p++;
		q++;
		n--;
	}
	return !n;
}

/* --- what is written ---------------------------------------------------------------------------
 */

static bool log_write(struct cpu *cpu, struct xlat_lockstep *l, gva_t lin, unsigned len)
{
	struct written *w = &l->written[l->nr_written];

	if (!len || len > WRITE_MAX)
		return false;
	w->p = st_ptr(cpu, lin, len);
	w->len = len;
	if (!w->p)
		return false;
	vec_copy(w->before, w->p, len);
	l->nr_written++;
	return true;
}

/* The memory operand of a copied instruction. */
static bool log_operand(struct cpu *cpu, struct xlat_lockstep *l, const struct insn *in)
{
	const struct insn_row *row = &insn_rows[in->id];
	gva_t lin;

	if (!(in->flags & INSN_MEM) || row->xlat == XLAT_LEA || row->xlat == XLAT_NOP)
		return true;
	if (xlat_is_moffs(in))
		return false;
	lin = insn_linear(cpu, in, in->msize, false);
	for (unsigned i = 0; i < row->nr_ops; i++)
		if (row->op[i].access & OP_WRITE &&
		    (row->op[i].kind == OP_GPR_RM || row->op[i].kind == OP_MMX_RM ||
		     row->op[i].kind == OP_VEC_RM || row->op[i].kind == OP_K_RM))
			return log_write(cpu, l, lin, in->msize);
	return ld_ptr(cpu, lin, in->msize) != NULL;
}

static bool log_push(struct cpu *cpu, struct xlat_lockstep *l)
{
	unsigned word = cpu->mode == INSN_MODE_64 ? 8 : 4;

	return log_write(cpu, l, (cpu->gpr[X86_RSP] - word) & cpu->sp_mask, word);
}

/* What POP, RET and LEAVE read. */
static bool log_pop(struct cpu *cpu, unsigned reg)
{
	return ld_ptr(cpu, cpu->gpr[reg] & cpu->sp_mask, cpu->mode == INSN_MODE_64 ? 8 : 4) != NULL;
}

static bool leaves_page(gva_t lin, uint64_t n)
{
	return lin % PAGE_SIZE + n > PAGE_SIZE;
}

static bool log_string(struct cpu *cpu, struct xlat_lockstep *l, const struct insn *in)
{
	const struct insn_row *row = &insn_rows[in->id];
	uint64_t mask = cpu->mode == INSN_MODE_64 ? ~0ull : ~0u, n = in->opsize;
	gva_t from = cpu->gpr[X86_RSI] & mask, to = cpu->gpr[X86_RDI] & mask;

	if (in->flags & (INSN_REP | INSN_REPNE))
		n *= MIN(cpu->gpr[X86_RCX] & mask, WRITE_MAX + 1); /* more is too much */
	if (!n)
		return true;
	if (n > WRITE_MAX || cpu->rflags & RFLAGS_DF || !(in->flags & INSN_FLAT) ||
	    in->seg >= X86_FS || leaves_page(from, n) || leaves_page(to, n))
		return false;
	for (unsigned i = 0; i < row->nr_ops; i++)
		if (row->op[i].kind == OP_STR_SRC && !ld_ptr(cpu, from, (unsigned)n))
			return false;
	if (row->op[0].kind == OP_STR_DST && row->op[0].access & OP_WRITE)
		return log_write(cpu, l, to, (unsigned)n);
	for (unsigned i = 0; i < row->nr_ops; i++)
		if (row->op[i].kind == OP_STR_DST && !ld_ptr(cpu, to, (unsigned)n))
			return false;
	return true;
}

/* False: the instruction does more than can be undone. */
static bool log_insn(struct cpu *cpu, struct xlat_lockstep *l, const struct insn *in)
{
	switch ((enum insn_xlat)insn_rows[in->id].xlat) {
	case XLAT_CALL:
		return log_push(cpu, l);
	case XLAT_PUSH:
		return log_operand(cpu, l, in) && log_push(cpu, l);
	case XLAT_POP:
	case XLAT_RET:
		return log_pop(cpu, X86_RSP);
	case XLAT_LEAVE:
		return log_pop(cpu, X86_RBP);
	case XLAT_STRING:
		return log_string(cpu, l, in);
	case XLAT_CALLIND:
		return log_operand(cpu, l, in) && log_push(cpu, l);
	default:
		return log_operand(cpu, l, in);
	}
}

static void undo(struct xlat_lockstep *l)
{
	for (unsigned i = 0; i < l->nr_written; i++)
		vec_copy(l->written[i].after, l->written[i].p, l->written[i].len);
	for (unsigned i = l->nr_written; i--;)
		vec_copy(l->written[i].p, l->written[i].before, l->written[i].len);
}

static const struct written *differs(const struct xlat_lockstep *l)
{
	for (unsigned i = 0; i < l->nr_written; i++)
		if (!bytes_same(l->written[i].after, l->written[i].p, l->written[i].len))
			return &l->written[i];
	return NULL;
}

/* --- both runs ---------------------------------------------------------------------------------
 */

/* False: not comparable; then some or all of it has been interpreted for good. */
static bool interpret(struct cpu *cpu, struct xlat_lockstep *l, const struct xblock *xb)
{
	bool all = true;

	l->nr_written = 0;
	for (unsigned i = 0; i < xb->nr && all; i++) {
		const struct insn *in = &xb->b->insns[i];

		cpu->rip += in->len;
		cpu->in = cpu->run_first = in;
		cpu->run_end = in + 1;
		all = log_insn(cpu, l, in);
		in->exec(cpu, in);
		all &= cpu->run_end != NULL;
		cpu->stats.insns++;
		cpu->in = NULL;
		l->nr_run = i + 1;
		if (cpu->rip != xb->lin + xb->site[i].next)
			break;
	}
	return all;
}

static bool equal(const struct xlat_lockstep *l, bool vec)
{
	return bytes_same(&l->interp, &l->xlat,
			  vec ? sizeof(l->xlat) : offsetof(struct state, vec)) &&
	       !differs(l);
}

static _Noreturn void report(struct cpu *cpu, struct xlat_lockstep *l, struct xblock *xb)
{
	const struct written *w = differs(l);

	vec_release(cpu);
	fprintf(stderr, "lockstep: block %#llx differs; before, interpreted, translated:\n",
		(unsigned long long)xb->lin);
	for (unsigned i = 0; i < X86_NR_GPR; i++)
		fprintf(stderr, "  r%-2u %16llx %16llx %16llx%s\n", i,
			(unsigned long long)l->start.gpr[i], (unsigned long long)l->interp.gpr[i],
			(unsigned long long)l->xlat.gpr[i],
			l->interp.gpr[i] != l->xlat.gpr[i] ? "  <-" : "");
	fprintf(stderr, "  rip %16llx %16llx %16llx\n  cc  %16llx %16llx %16llx\n",
		(unsigned long long)l->start.rip, (unsigned long long)l->interp.rip,
		(unsigned long long)l->xlat.rip, (unsigned long long)l->start.cc,
		(unsigned long long)l->interp.cc, (unsigned long long)l->xlat.cc);
	fprintf(stderr, "  x87 ip %llx %llx dp %llx %llx op %x %x\n",
		(unsigned long long)l->interp.x87.ip, (unsigned long long)l->xlat.x87.ip,
		(unsigned long long)l->interp.x87.dp, (unsigned long long)l->xlat.x87.dp,
		l->interp.x87.op, l->xlat.x87.op);
	for (unsigned i = 0; i < X86_XSAVE_MAX; i++)
		if (l->interp.vec[i] != l->xlat.vec[i])
			fprintf(stderr, "  xsave+%#x %02x %02x %02x\n", i, l->start.vec[i],
				l->interp.vec[i], l->xlat.vec[i]);
	if (w)
		fprintf(stderr, "  memory written by write %td, %u bytes\n", w - l->written,
			w->len);
	cpu->xlat->dump_fd = 2;
	xlat_dump_block(cpu->xlat, xb);
	abort();
}

static bool compare_once(struct cpu *cpu, struct xlat_lockstep *l, struct xblock *xb, bool *same)
{
	bool vec = xb->uses_vec;

	state_get(cpu, &l->start, vec);
	if (!interpret(cpu, l, xb))
		return false;
	state_get(cpu, &l->interp, vec);
	undo(l);
	state_set(cpu, &l->start, vec);
	xlat_jump_expect(cpu->xlat, l->interp.rip);
	xlat_enter(cpu, xb);
	state_get(cpu, &l->xlat, vec);
	*same = equal(l, vec);
	return true;
}

/* Put everything back for another try. */
static void rewind_all(struct cpu *cpu, struct xlat_lockstep *l, struct xblock *xb)
{
	undo(l);
	state_set(cpu, &l->start, xb->uses_vec);
}

void xlat_lockstep(struct cpu *cpu, struct xblock *xb)
{
	struct xlat_lockstep *l = cpu->xlat->lockstep;
	bool same = false;

	for (unsigned n = 0;; n++) {
		if (!compare_once(cpu, l, xb, &same))
			return;
		if (same)
			break;
		if (n == TRIES)
			report(cpu, l, xb);
		rewind_all(cpu, l, xb);
	}
	cpu->stats.compared += l->nr_run;
}
