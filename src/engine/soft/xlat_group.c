/* engine/soft/xlat_group.c - one TLB lookup for several accesses off the same base register.
 *
 * Pushes and pops of a prologue, fields of one structure: instructions in a row whose memory
 * operands are all [base + constant], with nothing between them that changes the base, calls out or
 * needs T1, form a group.  Before its first instruction the span of all operands is looked up; T1
 * holds the addend to the end of the group.  If the span is not in one page, or its page not in the
 * TLB, the group runs as a second copy in the cold part, each access for itself.
 *
 * A group may begin before its first access: a lookup made before the instruction that sets flags
 * destroys none.  Nothing faults by that, a lookup only looks. */
#include "engine/soft/xlat_int.h"

#include "engine/soft/vec_int.h"

enum { SPAN_MAX = 512 };

struct access {
	bool any;    /* touches memory */
	int base;    /* guest register, -1: not of the simple form */
	int32_t off; /* from the base before the instruction */
	unsigned size;
	bool write;
	int32_t move; /* of RSP, by the instruction */
	bool last;    /* the block ends with it */
	bool alone;   /* cannot be in a group */
};

/* --- what an instruction does ------------------------------------------------------------------
 */

static int simple_base(const struct xgen *g, const struct insn *in)
{
	unsigned n = in->base / 8;

	if (in->base >= CPU_GPR_OFF(X86_NR_GPR) || in->index != CPU_OFF(zero) ||
	    xlat_has_segbase(g, in) || host_reg(n) == H_NONE)
		return -1;
	return (int)n;
}

static bool in_memory(uint16_t off)
{
	return off < CPU_GPR_OFF(X86_NR_GPR) && host_reg(off / 8) == H_NONE;
}

static void operand(const struct xgen *g, const struct insn *in, const struct insn_row *row,
		    struct access *a)
{
	a->any = in->flags & INSN_MEM;
	if (!a->any)
		return;
	a->base = simple_base(g, in);
	a->off = in->disp;
	a->size = in->msize;
	for (unsigned i = 0; i < row->nr_ops; i++)
		if (row->op[i].kind == OP_GPR_RM || row->op[i].kind == OP_VEC_RM ||
		    row->op[i].kind == OP_MMX_RM || row->op[i].kind == OP_K_RM)
			a->write |= row->op[i].access & OP_WRITE;
	a->alone |= a->base < 0 || in->disp != (int16_t)in->disp;
}

/* Two registers that live in memory take both scratch registers. */
static bool uses_t1(const struct insn *in, const struct insn_row *row)
{
	unsigned n = 0;

	for (unsigned i = 0; i < row->nr_ops; i++)
		switch (row->op[i].kind) {
		case OP_GPR_REG:
		case OP_GPR_OPC:
			n += in_memory(in->reg);
			break;
		case OP_GPR_RM:
			n += !(in->flags & INSN_MEM) && in_memory(in->rm);
			break;
		case OP_GPR_VVVV:
			n += in_memory(in->vvvv);
			break;
		}
	return n > 1;
}

static void describe_vec(struct xgen *g, const struct insn *in, struct access *a, bool first)
{
	struct vec_attr v;

	vec_attr_of(&v, g->cpu, in);
	a->alone |= first || v.use & (VEC_USE_CMPSTR | VEC_USE_AX) ||
		    (in->flags & INSN_EVEX && in->flags & INSN_MEM && in->disp);
}

static void describe(struct xgen *g, unsigned i, bool first_vec, struct access *a)
{
	const struct insn *in = &g->b->insns[i];
	const struct insn_row *row = &insn_rows[in->id];
	int word = (int)xgen_word(g);

	*a = (struct access){.base = -1};
	switch ((enum insn_xlat)g->info[i].kind) {
	case XLAT_VEC:
		describe_vec(g, in, a, first_vec);
		operand(g, in, row, a);
		break;
	case XLAT_COPY:
		operand(g, in, row, a);
		a->alone |= uses_t1(in, row);
		break;
	case XLAT_PUSH:
	case XLAT_CALL:
		*a = (struct access){.any = true,
				     .base = X86_RSP,
				     .off = -word,
				     .size = (unsigned)word,
				     .write = true,
				     .move = -word,
				     .alone = in->flags & INSN_MEM};
		break;
	case XLAT_POP:
	case XLAT_RET:
		*a = (struct access){
			.any = true, .base = X86_RSP, .size = (unsigned)word, .move = word};
		break;
	case XLAT_NOP:
		break;
	case XLAT_LEA:
		a->alone = in_memory(in->index);
		break;
	default:
		a->alone = true;
	}
	a->last = g->info[i].kind == XLAT_CALL || g->info[i].kind == XLAT_RET;
}

/* Instructions of which the operands do not tell all that they write. */
static bool writes_implicitly(const struct insn *in)
{
	if (in->map == MAP_1)
		return (in->opcode & 0xfe) == 0xf6 || in->opcode == 0x98 || in->opcode == 0x99 ||
		       in->opcode == 0x9f;
	return in->map == MAP_0F &&
	       (in->opcode == 0xb0 || in->opcode == 0xb1 || in->opcode == 0xc7);
}

/* May the instruction change guest register n, but for RSP by what access.move says? */
static bool writes(const struct insn *in, unsigned n)
{
	const struct insn_row *row = &insn_rows[in->id];

	if ((n == X86_RAX || n == X86_RDX) && writes_implicitly(in))
		return true;
	for (unsigned i = 0; i < row->nr_ops; i++) {
		const struct insn_op *op = &row->op[i];

		if (!(op->access & OP_WRITE))
			continue;
		if (((op->kind == OP_GPR_REG || op->kind == OP_GPR_OPC) && in->reg / 8 == n) ||
		    (op->kind == OP_GPR_RM && !(in->flags & INSN_MEM) && in->rm / 8 == n) ||
		    (op->kind == OP_GPR_VVVV && in->vvvv / 8 == n) ||
		    (op->kind == OP_GPR_FIXED && op->fixed == n))
			return true;
	}
	return false;
}

/* --- groups ------------------------------------------------------------------------------------
 */

static bool grows(struct xgroup *p, const struct access *a, int32_t moved)
{
	int32_t lo = MIN(p->lo, a->off + moved), hi = MAX(p->hi, a->off + moved + (int32_t)a->size);

	if (hi - lo > SPAN_MAX)
		return false;
	p->lo = lo;
	p->hi = hi;
	p->write |= a->write;
	return true;
}

/* As many instructions from p->first, whose access is a, as belong together.  Returns how many of
 * them access memory. */
static unsigned extend(struct xgen *g, struct xgroup *p, const struct access *a,
		       const uint8_t *vec1)
{
	const struct insn *in = &g->b->insns[p->first];
	int32_t moved = a->move;
	unsigned n = 1;
	bool over = a->last || writes(in, (unsigned)p->base);

	for (unsigned i = p->first + 1; i < g->nr && !over; i++) {
		struct access next;

		describe(g, i, vec1[i], &next);
		if (next.alone || (next.any && next.base != p->base) ||
		    (next.any && !grows(p, &next, moved)))
			break;
		if (next.any) {
			p->last = (uint8_t)i;
			n++;
		}
		moved += next.move;
		over = next.last || writes(&g->b->insns[i], (unsigned)p->base);
	}
	return n;
}

/* Back to where no flag is live, over what leaves base and memory alone.  True: there is such a
 * place, and the group begins there now. */
static bool hoist(struct xgen *g, struct xgroup *p, unsigned from, const uint8_t *vec1)
{
	for (unsigned i = p->first; i-- > from;) {
		struct access a;

		describe(g, i, vec1[i], &a);
		if (a.alone || a.any || writes(&g->b->insns[i], (unsigned)p->base))
			return false;
		if (!xlat_flags_needed(&g->info[i])) {
			p->first = (uint8_t)i;
			return true;
		}
	}
	return false;
}

void xlat_groups(struct xgen *g)
{
	uint8_t vec1[BLOCK_MAX_INSNS];
	bool seen = false;
	unsigned from = 0;

	g->nr_groups = 0;
	g->group = NULL;
	for (unsigned i = 0; i < g->nr; i++) {
		vec1[i] = !seen && g->info[i].kind == XLAT_VEC;
		seen |= vec1[i];
	}
	for (unsigned i = 0; i < g->nr && g->nr_groups < XLAT_GROUPS; i++) {
		struct xgroup *p = &g->groups[g->nr_groups];
		struct access a;
		unsigned n;
		bool live;

		describe(g, i, vec1[i], &a);
		if (!a.any || a.alone)
			continue;
		*p = (struct xgroup){.first = (uint8_t)i, .last = (uint8_t)i, .base = a.base};
		p->lo = a.off;
		p->hi = a.off + (int32_t)a.size;
		p->write = a.write;
		n = extend(g, p, &a, vec1);
		live = xlat_flags_needed(&g->info[i]) && hoist(g, p, from, vec1);
		i = p->last;
		from = i + 1;
		g->nr_groups += n > 1 || live;
	}
}

/* --- code --------------------------------------------------------------------------------------
 */

void xlat_group_begin(struct xgen *g)
{
	struct xgroup *p = &g->groups[g->next_group];

	if (g->next_group == g->nr_groups || p->first != g->index)
		return;
	xlat_flags_clobber(g);
	p->flags_in = g->flags;
	p->from = xlat_lookup_span(g, (unsigned)host_reg((unsigned)p->base), p->lo,
				   (unsigned)(p->hi - p->lo), p->write);
	g->group = p;
}

void xlat_group_end(struct xgen *g)
{
	struct xgroup *p = g->group;

	if (!p || p->last != g->index)
		return;
	if (!p->back) {
		p->back = x_offset(g);
		p->flags_out = g->flags;
	}
	g->group = NULL;
	g->next_group++;
}

/* Flags as the hot copy has them where it goes on. */
static void agree(struct xgen *g, const struct xgroup *p)
{
	if (!g->info[p->last].live)
		return;
	if (p->flags_out & FL_HOST && !(g->flags & FL_HOST))
		xlat_flags_restore(g);
	if (p->flags_out & FL_MEM && !(g->flags & FL_MEM))
		xlat_flags_save(g);
}

static void cold_copy(struct xgen *g, const struct xgroup *p)
{
	g->next_rip = g->lin;
	for (unsigned i = 0; i < p->first; i++)
		g->next_rip += g->b->insns[i].len;
	g->flags = p->flags_in;
	x_patch(g->x, p->from, x_offset(g));
	for (unsigned i = p->first; i <= p->last; i++) {
		const struct insn *in = &g->b->insns[i];
		unsigned slow = g->nr_slow;

		g->index = i;
		g->next_rip += in->len;
		g->xb->site[i].has_cold = true;
		g->xb->site[i].cold = x_offset(g) - g->xb->cold;
		if (i == p->last && p->inside) {
			struct xmem m;

			xlat_mem_at(g, H_GUEST_RSP, p->write_last ? -(int32_t)xgen_word(g) : 0,
				    xgen_word(g), p->write_last, false, &m);
			x_jmp_to(g, p->back);
			return;
		}
		xlat_insn(g, in);
		for (; slow < g->nr_slow; slow++)
			if (g->slow[slow].back)
				g->slow[slow].back = x_offset(g);
	}
	agree(g, p);
	x_jmp_to(g, p->back);
}

void xlat_group_cold(struct xgen *g)
{
	g->group = NULL;
	g->in_cold = true;
	for (unsigned i = 0; i < g->nr_groups; i++)
		cold_copy(g, &g->groups[i]);
	g->in_cold = false;
}
