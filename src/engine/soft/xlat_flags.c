/* engine/soft/xlat_flags.c - which flags matter where, and where they are kept.
 *
 * Liveness goes backwards through one block; at its end all flags count as read.  An instruction
 * that sets some flags and keeps others needs the kept ones in the host's flags while it runs.
 *
 * With xlat_config.exact every instruction that can fault or be interrupted counts as a reader, so
 * that each exception frame is as the hardware would push it.  Without, a frame may hold stale
 * flags that the interrupted code overwrites before it reads them. */
#include "engine/soft/xlat_int.h"

/* A count of 0 leaves all flags, and one other than 1 may leave OF. */
static uint16_t kill_of_shift(const struct insn *in, const struct insn_row *row)
{
	for (unsigned i = 0; i < row->nr_ops; i++) {
		if (row->op[i].kind == OP_ONE)
			return row->fl_kill;
		if (row->op[i].kind == OP_IMM && in->imm & (in->opsize == 8 ? 63 : 31))
			return row->fl_kill & (uint16_t)~RFLAGS_OF;
	}
	return 0;
}

static bool may_fault(const struct insn *in, const struct xinfo *f)
{
	return f->clobber || in->flags & INSN_MEM || f->kind == XLAT_VEC || in->id == INSN_div_Eb ||
	       in->id == INSN_div_Ev || in->id == INSN_idiv_Eb || in->id == INSN_idiv_Ev;
}

static bool kind_clobbers(const struct insn *in, uint8_t kind)
{
	switch (kind) {
	case XLAT_COPY:
		return in->flags & INSN_MEM;
	case XLAT_VEC: /* the first of a block asks whether the guest's registers are loaded */
	case XLAT_PUSH:
	case XLAT_POP:
	case XLAT_LEAVE:
	case XLAT_STRING:
	case XLAT_SYS:
	case XLAT_CALL:
	case XLAT_CALLIND:
	case XLAT_RET:
	case XLAT_JMPIND:
	case XLAT_INTERP:
		return true;
	default:
		return false;
	}
}

void xlat_flags_of(struct xgen *g, const struct insn *in, struct xinfo *f)
{
	const struct insn_row *row = &insn_rows[in->id];

	f->clobber = kind_clobbers(in, f->kind);
	f->touch = ((row->fl_write | row->fl_undef) & FLAGS_ALL) != 0;
	f->own_read = f->read = row->fl_read & FLAGS_ALL;
	f->kill = row->fl_kill & FLAGS_ALL;
	if (row->attrs & ROW_COUNT)
		f->kill = kill_of_shift(in, row) & FLAGS_ALL;
	if (f->kind == XLAT_JCC) /* where it leads they may all be read */
		f->read = FLAGS_ALL;
	if (f->kind == XLAT_INTERP) {
		f->read = FLAGS_ALL;
		f->kill = 0;
	} else if (g->x->cfg.exact && may_fault(in, f)) {
		f->read = FLAGS_ALL;
	}
}

uint16_t xlat_liveness(struct xgen *g)
{
	uint16_t live = FLAGS_ALL;

	for (unsigned i = g->nr; i--;) {
		struct xinfo *f = &g->info[i];

		f->live = live;
		live = (live & ~f->kill) | f->read;
	}
	return g->x->cfg.exact ? FLAGS_ALL : live;
}

uint16_t xlat_flags_needed(const struct xinfo *f)
{
	return f->read | (f->live & ~f->kill);
}

/* Must they be in the host's flags while the instruction itself runs? */
static bool needed_in_host(const struct xinfo *f)
{
	if (f->kind == XLAT_INTERP)
		return false;
	if (f->touch)
		return xlat_flags_needed(f) != 0;
	return f->own_read != 0;
}

uint8_t xlat_flags_in(struct xgen *g, uint16_t live)
{
	if (!live)
		return 0;
	for (unsigned i = 0; i < g->nr; i++) {
		const struct xinfo *f = &g->info[i];

		if (f->clobber)
			return FL_MEM;
		if (f->touch || f->read)
			return FL_HOST;
	}
	return FL_HOST;
}

/* --- moving them -------------------------------------------------------------------------------
 */

void xlat_flags_save(struct xgen *g)
{
	const struct xmem fl = XMEM_CPU(g, xl_flags);

	x_mov(g, T0, H_RAX);
	x8(g, 0x9f); /* lahf */
	x8(g, 0x0f); /* seto al */
	x8(g, 0x90);
	x8(g, 0xc0);
	x_store32(g, &fl, H_RAX);
	x_mov(g, H_RAX, T0);
	g->flags |= FL_MEM;
}

void xlat_flags_restore(struct xgen *g)
{
	const struct xmem fl = XMEM_CPU(g, xl_flags);

	x_mov(g, T0, H_RAX);
	x_load32(g, H_RAX, &fl);
	x8(g, 0x04); /* add al, 0x7f: OF */
	x8(g, 0x7f);
	x8(g, 0x9e); /* sahf */
	x_mov(g, H_RAX, T0);
	g->flags |= FL_HOST;
}

void xlat_flags_clobber(struct xgen *g)
{
	if (xlat_flags_needed(&g->info[g->index]) && !(g->flags & FL_MEM))
		xlat_flags_save(g);
	g->flags &= (uint8_t)~FL_HOST;
}

void xlat_flags_before(struct xgen *g)
{
	if (needed_in_host(&g->info[g->index]) && !(g->flags & FL_HOST))
		xlat_flags_restore(g);
}

void xlat_flags_after(struct xgen *g)
{
	if (g->info[g->index].touch)
		g->flags = FL_HOST;
}
