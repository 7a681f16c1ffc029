/* engine/soft/xlat_signal.c - exceptions the host raises in translated code.
 *
 * #DE of a division, #XM, #MF, #UD and #GP of vector instructions: the guest's registers are as
 * before the instruction, so it is handed to the interpreter, which raises what the guest shall
 * see.  The handler finds the instruction by the host's RIP and goes on in the interp_end thunk. */
#include "engine/soft/vec.h"
#include "engine/soft/xlat_int.h"

#include <ucontext.h>

static __thread struct cpu *current;

void xlat_signal_attach(struct cpu *cpu)
{
	current = cpu;
	vec_signal_unblock();
}

void xlat_signal_detach(struct cpu *cpu)
{
	if (current == cpu)
		current = NULL;
}

static bool is_cold(const struct xlat *x, uint32_t offset)
{
	return offset >= x->cold_start;
}

static uint32_t begin(const struct xblock *xb, bool cold)
{
	return cold ? xb->cold : xb->code;
}

/* The last block that begins at or before the offset: both parts are in the order of time. */
static struct xblock *block_at(const struct xlat *x, uint32_t offset)
{
	size_t low = 0, high = x->nr_order;

	while (low + 1 < high) {
		size_t mid = (low + high) / 2;

		if (begin(x->order[-(ptrdiff_t)mid], is_cold(x, offset)) <= offset)
			low = mid;
		else
			high = mid;
	}
	return high ? x->order[-(ptrdiff_t)low] : NULL;
}

/* Not every instruction has a copy in the cold part. */
static const struct xsite *cold_site_at(const struct xblock *xb, uint32_t offset)
{
	const struct xsite *best = NULL;

	for (unsigned i = 0; i < xb->nr; i++)
		if (xb->site[i].has_cold && xb->site[i].cold <= offset - xb->cold &&
		    (!best || xb->site[i].cold > best->cold))
			best = &xb->site[i];
	return best;
}

static const struct xsite *site_at(const struct xblock *xb, uint32_t offset)
{
	unsigned i = xb->nr;

	while (i-- > 1)
		if (xb->site[i].host <= offset - xb->code)
			break;
	return &xb->site[i];
}

static bool expected(greg_t trap)
{
	return trap == X86_EXC_DE || trap == X86_EXC_UD || trap == X86_EXC_GP ||
	       trap == X86_EXC_MF || trap == X86_EXC_XM;
}

bool xlat_is_code(const struct cpu *cpu, uint64_t rip)
{
	const struct xlat *x = cpu->xlat;

	return x && rip - (uintptr_t)x->rx < x->size;
}

bool xlat_host_fault(void *ucontext)
{
	mcontext_t *m = &((ucontext_t *)ucontext)->uc_mcontext;
	struct xlat *x = current ? current->xlat : NULL;
	uint64_t offset, flags = (uint64_t)m->gregs[REG_EFL];
	const struct xsite *s;
	struct xblock *xb;
	bool cold;

	if (!x || !expected(m->gregs[REG_TRAPNO]))
		return false;
	offset = (uint64_t)m->gregs[REG_RIP] - (uintptr_t)x->rx;
	if (offset >= x->size)
		return false;
	xb = block_at(x, (uint32_t)offset);
	cold = is_cold(x, (uint32_t)offset);
	if (!xb || offset < begin(xb, cold) || offset >= (cold ? xb->cold_end : xb->code_end))
		return false;
	s = cold ? cold_site_at(xb, (uint32_t)offset) : site_at(xb, (uint32_t)offset);
	if (!s)
		return false;
	if (s->in_host & (cold ? IN_HOST_COLD : IN_HOST_HOT))
		x->cpu->xl_flags = (uint32_t)((flags & 0xff) << 8 | (flags >> 11 & 1));
	m->gregs[REG_R13] = (greg_t)(uintptr_t)s;
	m->gregs[REG_RIP] = (greg_t)(uintptr_t)x_rx(x, xlat_thunks_of(x, xb->key)->interp_end);
	return true;
}
