/* truth_known.c - where the engine and the host may differ, and why: see truth.h.
 *
 * An entry names a row of the instruction table, what of the result may differ, and when.  Every
 * case it excuses is counted and printed. */
#include "gen.h"
#include "truth.h"

#include <stdio.h>
#include <string.h>

struct outcome {
	const struct insn *in;
	const struct program *p;
	const struct native_state *host;
	const struct x86_state *soft;
	int soft_vector;
	uint64_t soft_cr2;
};

static bool faulted(const struct outcome *o)
{
	return o->host->vector != X86_EXC_BP;
}

/* INTO with OF = 1: the kernel's gate is for users, the guest's is not. */
static bool is_into(const struct outcome *o)
{
	return o->host->vector == X86_EXC_OF && o->soft_vector == X86_EXC_GP;
}

/* KMOVQ reads all of RSP even in 32-bit code; see pushes_high() for what is in its upper half. */
static bool is_kmov_of_esp(const struct outcome *o)
{
	const struct truth_seg *ss = truth_seg_of(o->p->start.sel[X86_SS]);

	return o->p->mode != INSN_MODE_64 && o->in->flags & INSN_REXW && (o->in->modrm & 7) == 4 &&
	       !(ss->attr & X86_SEG_DB);
}

/* Some component was in its initial state; whether it counts as in use is the processor's choice
 * (SDM 1 "Determination of Whether an XSAVE-Managed State Component Is in Use"). */
static bool is_part_initial(const struct outcome *o)
{
	uint64_t bv;

	memcpy(&bv, o->p->start.xsave + 512, 8);
	return bv != truth_xcr0;
}

/* FXSAVE over a page edge: which page is reported. */
static bool is_split(const struct outcome *o)
{
	return o->host->vector == X86_EXC_PF && o->host->cr2 >> 12 != o->soft_cr2 >> 12;
}

/* EVEX.X, which is ignored when ModRM.rm names a general register, makes Zen 5 miss that the
 * register is RSP: it is read as it was before a PUSH or POP just before. */
static bool is_stale_rsp(const struct outcome *o)
{
	const struct insn *in = o->in;
	unsigned evex = 0;

	while (evex < in->len && in->bytes[evex] != 0x62)
		evex++;
	return in > o->p->in && in->flags & INSN_EVEX && in->modrm >> 6 == 3 &&
	       (in->modrm & 7) == 4 && !(in->bytes[evex + 1] & 0x40);
}

/* Single steps may come between the elements of a gather or scatter (SDM 2 "VPGATHERDD"). */
static bool is_stepped(const struct outcome *o)
{
	return o->p->tf && o->host->vector == X86_EXC_DB && o->soft_vector != X86_EXC_DB;
}

/* AMD's read 32 bits of offset where our far pointers have 64: far.c. */
static bool is_wide(const struct outcome *o)
{
	return o->p->mode == INSN_MODE_64 && o->in->flags & INSN_REXW && o->in->flags & INSN_MEM;
}

static struct {
	const char *row;
	unsigned what;
	bool (*when)(const struct outcome *o);
	const char *why;
	unsigned long count;
} known[] = {
	{"enter", DIFF_MEMORY, faulted, "whether the frame was written before a fault is not said",
	 0},
	{"callf", DIFF_MEMORY, faulted, "so for what a far call has pushed", 0},
	{"callf", ~0u, is_wide, "64 bits of offset for every maker's CPU", 0},
	{"jmpf", ~0u, is_wide, "64 bits of offset for every maker's CPU", 0},
	{"pusha", DIFF_MEMORY, faulted, "so for what it has pushed", 0},
	{"pushad", DIFF_MEMORY, faulted, "so for what it has pushed", 0},
	{"popa", DIFF_GPR, faulted, "so for the registers it has loaded", 0},
	{"popad", DIFF_GPR, faulted, "so for the registers it has loaded", 0},
	{"kmovd", DIFF_VECTOR, is_kmov_of_esp, "upper half of RSP with a 16-bit stack", 0},
	{"xsave*", DIFF_MEMORY, is_part_initial, "components in their initial state", 0},
	{"fxsave*", DIFF_CR2 | DIFF_ERROR, is_split, "which page of two is reported", 0},
	{"v*", DIFF_VECTOR, is_stale_rsp, "EVEX.X and RSP after PUSH", 0},
	{"vgather*", ~0u, is_stepped, "single steps between elements", 0},
	{"vpgather*", ~0u, is_stepped, "single steps between elements", 0},
	{"vscatter*", ~0u, is_stepped, "single steps between elements", 0},
	{"vpscatter*", ~0u, is_stepped, "single steps between elements", 0},
	{"into", DIFF_EXCEPTION | DIFF_RIP | DIFF_ERROR, is_into,
	 "only the host kernel has a gate for users", 0},
};

static bool matches(const char *pattern, const struct insn *in)
{
	size_t len = strlen(pattern);

	if (pattern[len - 1] == '*')
		return !strncmp(insn_rows[in->id].name, pattern, len - 1);
	return gen_is(in, pattern);
}

bool known_difference(const struct program *p, unsigned what, const struct native_state *host,
		      const struct x86_state *soft, const struct engine_exit_info *info)
{
	struct outcome o = {NULL, p, host, soft, info->vector, info->cr2};

	for (unsigned i = 0; i < p->nr; i++)
		for (size_t k = 0; k < ARRAY_SIZE(known); k++) {
			o.in = &p->in[i];
			if (!matches(known[k].row, o.in) || what & ~known[k].what ||
			    !known[k].when(&o))
				continue;
			known[k].count++;
			return true;
		}
	return false;
}

void known_print(void)
{
	for (size_t k = 0; k < ARRAY_SIZE(known); k++)
		printf("# known: %lu x %s: %s\n", known[k].count, known[k].row, known[k].why);
}
