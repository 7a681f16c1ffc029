/* engine/soft/xlat.c - one decoded block into host code, and running it. */
#include "engine/soft/xlat_int.h"

#include "engine/soft/run.h"
#include "engine/soft/vec_int.h"

#include <asm/prctl.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>

/* --- what C and translated code must agree on ----------------------------------------------------
 */

#ifndef HWCAP2_FSGSBASE
#define HWCAP2_FSGSBASE (1 << 1)
#endif

static __thread bool gs_quick;

bool xlat_gs_is_quick(void)
{
	return gs_quick;
}

static __attribute__((noinline)) void gs_set(struct cpu *cpu)
{
	struct tlb *t = cpu->tlb;

	cpu->xl_gs = t;
	if (likely(gs_quick))
		__asm__ volatile("wrgsbase %0" : : "r"(t));
	else
		syscall(SYS_arch_prctl, ARCH_SET_GS, t);
}

void xlat_settle(struct cpu *cpu)
{
	uint32_t mask = ~0u;

	if (unlikely(cpu->xl_gs != cpu->tlb))
		gs_set(cpu);
	if (!(cpu->rflags & RFLAGS_IF))
		mask &= ~(uint32_t)CPU_EV_INTR;
	cpu->xl_events = mask;
}

/* --- translation ---------------------------------------------------------------------------------
 */

static uint32_t xlat_key(const struct cpu *cpu)
{
	return cpu->mode_key | cpu->vec->deny_key << 8;
}

/* False: there is nothing to translate. */
static bool analyse(struct xgen *g)
{
	uint16_t live;

	g->next_rip = g->lin;
	for (unsigned i = 0; i < g->nr; i++) {
		const struct insn *in = &g->b->insns[i];

		g->next_rip += in->len;
		g->info[i].kind = xlat_insn_kind(g, in);
		if (g->x->cfg.lockstep && g->info[i].kind == XLAT_INTERP) {
			g->nr = i;
			break;
		}
		if (g->info[i].kind == XLAT_INTERP && in->flags & INSN_END)
			g->nr = i + 1;
		g->xb->uses_vec |= g->info[i].kind == XLAT_VEC;
		g->xb->uses_x87 |= insn_rows[in->id].cls == CLASS_X87;
		xlat_flags_of(g, in, &g->info[i]);
	}
	g->xb->nr = (uint8_t)g->nr;
	live = xlat_liveness(g);
	g->xb->flags_in = xlat_flags_in(g, live);
	xlat_groups(g);
	return g->nr;
}

static void generate(struct xgen *g)
{
	xlat_entries(g);
	g->next_rip = g->lin;
	for (unsigned i = 0; i < g->nr; i++) {
		const struct insn *in = &g->b->insns[i];
		unsigned slow = g->nr_slow;

		g->index = i;
		g->next_rip += in->len;
		g->xb->site[i] = (struct xsite){.host = x_offset(g) - g->xb->code,
						.next = (uint16_t)(g->next_rip - g->lin),
						.index = (uint8_t)i};
		xlat_group_begin(g);
		xlat_insn(g, in);
		xlat_group_end(g);
		for (; slow < g->nr_slow; slow++)
			if (g->slow[slow].back)
				g->slow[slow].back = x_offset(g);
	}
	if (!g->ended)
		xlat_exit_jump(g, 0, g->next_rip, EXIT_JMP);
}

static struct xblock *xblock_new(struct xlat *x, struct block *b, uint64_t lin)
{
	struct xblock *xb = (struct xblock *)(x->meta + x->meta_used);
	size_t size = ALIGN_UP(sizeof(*xb) + b->nr * sizeof(struct xsite), 16);
	struct xexit *mid = (struct xexit *)((uint8_t *)xb + size);

	*xb = (struct xblock){.b = b, .lin = lin, .nr = b->nr, .key = x->key, .mid = mid};
	for (unsigned i = 0; i + 1 < b->nr; i++)
		if (insn_rows[b->insns[i].id].xlat == XLAT_JCC)
			mid[xb->nr_mid++] = (struct xexit){.from = xb};
	x->meta_used += ALIGN_UP(size + xb->nr_mid * sizeof(*mid), 16);
	for (unsigned i = 0; i < ARRAY_SIZE(xb->exit); i++)
		xb->exit[i].from = xb;
	return xb;
}

static void xblock_keep(struct xlat *x, struct xblock *xb)
{
	struct block *b = xb->b;

	xb->b_next = b->xlat;
	b->xlat = xb;
	b->xlat_flush = x->flushes;
	xb->page_next = xb->page->blocks;
	xb->page->blocks = xb;
	if (xb->page2) {
		xb->page2_next = xb->page2->ending;
		xb->page2->ending = xb;
	}
	x->order[-(ptrdiff_t)x->nr_order++] = xb;
	x->cpu->stats.blocks_translated++;
}

static struct xblock *translate(struct cpu *cpu, struct block *b)
{
	struct xlat *x = cpu->xlat;
	struct xgen *g = x->gen;

	xlat_room(x);
	if (b->xlat_flush != x->flushes)
		b->xlat = NULL;
	g->x = x;
	g->cpu = cpu;
	g->b = b;
	g->nr = b->nr;
	g->lin = cpu->rip;
	g->narrow = cpu->mode == INSN_MODE_32;
	g->xb = xblock_new(x, b, g->lin);
	g->xb->page = xlat_page(x, b->page, g->lin, b->gen);
	if (b->flags & BLOCK_CROSS)
		g->xb->page2 = xlat_page(x, b->page2, g->lin + PAGE_SIZE, b->gen2);
	g->nr_slow = 0;
	g->next_group = g->next_mid = 0;
	g->in_cold = false;
	g->vec_checked = g->ended = false;
	if (!analyse(g))
		return NULL;
	g->p = x->rw + x->hot_used;
	g->xb->code = (uint32_t)x->hot_used;
	generate(g);
	g->xb->code_end = x_offset(g);
	x->hot_used = ALIGN_UP(x_offset(g), 16);
	g->p = x->rw + x->cold_used;
	xlat_cold(g);
	x->cold_used = x_offset(g);
	xblock_keep(x, g->xb);
	if (unlikely(x->cfg.dump || x->cfg.perf))
		xlat_dump_block(x, g->xb);
	return g->xb;
}

/* --- finding and running -------------------------------------------------------------------------
 */

/* When the block before was interpreted there is nothing to link. */
static struct xblock *find(struct xlat *x, struct block *b, uint64_t lin)
{
	struct xblock **at, *xb;

	if (b->xlat_flush != x->flushes)
		return NULL;
	for (at = &b->xlat; (xb = *at); at = &xb->b_next)
		if (xb->lin == lin && xb->key == x->key) {
			*at = xb->b_next;
			xb->b_next = b->xlat;
			b->xlat = xb;
			return xb;
		}
	return NULL;
}

static void key_update(struct cpu *cpu)
{
	struct xlat *x = cpu->xlat;
	uint32_t key = xlat_key(cpu);

	if (likely(x->key == key))
		return;
	x->key = key;
	xlat_jump_choose(x);
}

/* From here on the page's guards let jumps in, where `hva` is what lin is mapped to. */
static void admit_page(struct cpu *cpu, uint64_t lin, const uint8_t *hva, const struct xpage *page)
{
	unsigned i = (lin >> PAGE_SHIFT) % TLB_ENTRIES;
	const struct tlb_entry *e = &cpu->tlb->ex[i];

	if (tlb_hit(e, lin, 1) && (const uint8_t *)(lin + e->addend) == hva)
		cpu->tlb->exid[i] = page->id;
}

static void admit(struct cpu *cpu, const struct xblock *xb)
{
	admit_page(cpu, xb->lin, xb->b->hva, xb->page);
	if (xb->page2)
		admit_page(cpu, (xb->lin & PAGE_MASK) + PAGE_SIZE, xb->b->hva2, xb->page2);
}

/* Is it worth a translation?  What many processes run is known since long, but most of it, such as
 * the linking of a program when it starts, is run once in each, at another address each time. */
static bool hot(const struct cpu *cpu, struct block *b)
{
	if (b->heat_at != (uint32_t)cpu->rip) {
		b->heat_at = (uint32_t)cpu->rip;
		b->heat = 0;
	}
	return b->heat++ >= cpu->xlat->cfg.hot;
}

static bool is_flat(const struct cpu *cpu, unsigned seg)
{
	return !cpu->seg[seg].base && cpu->seg[seg].flat == (SEG_FLAT_READ | SEG_FLAT_WRITE);
}

/* 32-bit code is translated as long as offsets are linear addresses.  FS and GS may be anything. */
static bool can_translate(const struct cpu *cpu)
{
	if (likely(cpu->mode == INSN_MODE_64))
		return true;
	return cpu->mode == INSN_MODE_32 && !cpu->seg[X86_CS].base &&
	       cpu->seg[X86_CS].limit == ~0u && is_flat(cpu, X86_SS) && is_flat(cpu, X86_DS) &&
	       is_flat(cpu, X86_ES) && cpu->sp_mask == ~0u;
}

struct xblock *xlat_lookup(struct cpu *cpu, struct block *b)
{
	struct xblock *xb;

	if (!can_translate(cpu) || (cpu->mode != INSN_MODE_64 && cpu->rip + b->len > ~0u) ||
	    b->flags & ~BLOCK_CROSS || b == cpu->blocks->once)
		return NULL;
	key_update(cpu);
	xb = find(cpu->xlat, b, cpu->rip);
	if (!xb) {
		if (!hot(cpu, b))
			return NULL;
		cpu->doing = CPU_DOING_TRANSLATION;
		xb = translate(cpu, cpu->xlat->cfg.count ? b : block_extend(cpu, b));
		cpu->doing = CPU_DOING_REST;
		if (!xb)
			return NULL;
	}
	admit(cpu, xb);
	if (!cpu->xlat->cfg.lockstep)
		xlat_jump_set(cpu->xlat, xb);
	return xb;
}

void xlat_enter(struct cpu *cpu, struct xblock *xb)
{
	struct xlat *x = cpu->xlat;

	if (x->from && !x->cfg.lockstep)
		xlat_link(x, x->from, xb);
	x->from = NULL;
	xlat_settle(cpu);
	cpu->stats.entries++;
	x->from = xlat_thunks_of(x, xb->key)->enter(x_rx(x, xb->plain));
	if (VEC_EAGER_RELEASE)
		vec_release(cpu);
	if (unlikely((uintptr_t)x->from == XLAT_FOUND)) {
		x->from = NULL;
		cpu->rip = x->expected;
	} else if (x->from) {
		cpu->rip = x->from->target;
	}
}

bool xlat_counts(const struct cpu *cpu)
{
	return !cpu->xlat || cpu->xlat->cfg.count || cpu->xlat->cfg.lockstep;
}

bool xlat_is_lockstep(const struct cpu *cpu)
{
	return unlikely(cpu->xlat->cfg.lockstep);
}

void xlat_attach(struct cpu *cpu)
{
	gs_quick = getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE;
	gs_set(cpu);
	xlat_signal_attach(cpu);
}

/* --- one instruction in the interpreter
 * ------------------------------------------------------------
 */

struct xblock *xlat_block_of(const struct xsite *s)
{
	return (struct xblock *)((uint8_t *)(uintptr_t)(s - s->index) -
				 offsetof(struct xblock, site));
}

/* Have it interpreted, with cpu->run_end and rip saying how that went. */
static struct xblock *interpret(struct cpu *cpu, const struct xsite *s)
{
	struct xblock *xb = xlat_block_of(s);
	const struct insn *in = &xb->b->insns[s->index];
	bool live = cpu->vec_live;

	if (VEC_EAGER_RELEASE)
		vec_release(cpu);
	cpu->stats.interp_calls++;
	cpu->stats.slow_paths += !s->interp;
	cpu->doing = CPU_DOING_SLOW;
	if (xb->uses_x87)
		xlat_x87_settle(cpu, xb, s->index);
	cpu->rip = xb->lin + s->next;
	cpu->in = in;
	cpu->run_first = in;
	cpu->run_end = in + 1;
	cpu->xl_left = cpu->xlat->cfg.count ? xb->nr - s->index : 0;
	in->exec(cpu, in);
	cpu->doing = CPU_DOING_REST;
	cpu->in = NULL;
	if (live || xb->uses_vec) /* what follows in the block does not ask again */
		vec_load(cpu);
	xlat_settle(cpu);
	return xb;
}

/* What follows in the block is not run now. */
static void uncount(struct cpu *cpu)
{
	if (cpu->xl_left)
		cpu->stats.insns -= cpu->xl_left - 1;
	cpu->xl_left = 0;
}

/* Called by translated code.  Nonzero: do not go back there. */
uint64_t xlat_interp_one(struct cpu *cpu, const struct xsite *s)
{
	const struct xblock *xb = interpret(cpu, s);

	if (likely(cpu->run_end && cpu->rip == xb->lin + s->next && !xb->dead)) {
		cpu->xl_left = 0;
		return 0;
	}
	uncount(cpu);
	return 1;
}

/* The translation at rip, if the run loop would do nothing but go there. */
static const void *onward(const struct cpu *cpu)
{
	const struct xlat *x = cpu->xlat;
	const struct xlat_jump *j = xlat_jump_at(x, cpu->rip);

	if (j->lin != cpu->rip || run_wants_attention(cpu) || !can_translate(cpu) ||
	    x->key != xlat_key(cpu) || x->cfg.lockstep)
		return NULL;
	return j->code;
}

/* Called by translated code, which does not go on after the instruction by itself.  Where it does
 * go on; NULL: in the run loop. */
const void *xlat_interp_last(struct cpu *cpu, const struct xsite *s)
{
	interpret(cpu, s);
	uncount(cpu);
	return likely(cpu->run_end) ? onward(cpu) : NULL;
}
