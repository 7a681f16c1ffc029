/* engine/soft/state_check.c - a state from outside, before it becomes a CPU.
 *
 * A saved VM is a file that anybody may have made, and the rest of this engine relies on what the
 * guest's own instructions cannot bring about.  So the state is held to the rules of the writes
 * that would have led to it: MOV to control registers (SDM 3A "Control Registers"), WRMSR, loads
 * of segments; and to what AMD APM 2 "Canonicalization and Consistency Checks" asks of a guest. */
#include "engine/soft/state_check.h"
#include "base/error.h"
#include "engine/soft/cpu.h"
#include "engine/soft/system.h"
#include "engine/x86_defs.h"

#include <errno.h>

struct rule {
	bool broken;
	const char *what;
	uint64_t value;
};

static int judge(const struct rule *rules, size_t n, struct error *err)
{
	for (size_t i = 0; i < n; i++)
		if (rules[i].broken)
			return err_set(err, EINVAL, "the state is no CPU's: %s (%#llx)",
				       rules[i].what, (unsigned long long)rules[i].value);
	return 0;
}

static bool canonical(const struct cpu_model *m, uint64_t v)
{
	uint64_t half = cpu_has(m, CPU_FEAT_LA57) ? BIT(56) : BIT(47);

	return v + half < 2 * half;
}

static bool in_64bit_mode(const struct x86_state *s)
{
	return s->efer & EFER_LMA && s->seg[X86_CS].attr & X86_SEG_L;
}

/* ---- control registers ---- */

#define CR0_KNOWN                                                                                  \
	(CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_NW | CR0_CD | \
	 CR0_PG)

static bool paging_consistent(const struct x86_state *s)
{
	bool pg = s->cr0 & CR0_PG, lme = s->efer & EFER_LME, lma = s->efer & EFER_LMA;

	return lma == (pg && lme) && (!lma || s->cr4 & CR4_PAE) && (!(s->cr4 & CR4_PCIDE) || lma);
}

static int check_control(const struct cpu_model *m, const struct x86_state *s, struct error *err)
{
	const struct rule rules[] = {
		{s->cr0 & ~CR0_KNOWN, "reserved bits of CR0", s->cr0},
		{s->cr0 & CR0_PG && !(s->cr0 & CR0_PE), "CR0 pages without protection", s->cr0},
		{s->cr0 & CR0_NW && !(s->cr0 & CR0_CD), "CR0 has NW without CD", s->cr0},
		{s->cr3 & ~(BIT(m->phys_bits) - 1), "CR3 is beyond memory", s->cr3},
		{s->cr4 & ~cpu_cr4_allowed(m), "CR4 has bits this CPU lacks", s->cr4},
		{s->efer & ~cpu_efer_allowed(m), "EFER has bits this CPU lacks", s->efer},
		{!paging_consistent(s), "CR0, CR4 and EFER contradict each other", s->efer},
	};

	return judge(rules, ARRAY_SIZE(rules), err);
}

/* XCR0: x87 always, AVX only with SSE, AVX-512 whole and only with AVX (SDM 1 "XSETBV"). */
static bool xcr0_good(const struct cpu_model *m, uint64_t v)
{
	uint64_t wide = v & XCR0_AVX512;

	return v & XCR0_X87 && !(v & ~(m->xcr0_supported | XCR0_X87)) &&
	       (!(v & XCR0_AVX) || v & XCR0_SSE) &&
	       (!wide || (wide == XCR0_AVX512 && v & XCR0_AVX));
}

/* ---- segments ---- */

#define ATTR_KNOWN 0x1f0ffu

static bool segment_good(const struct cpu_model *m, const struct x86_segment *g, bool wide_base)
{
	return !(g->attr & ~ATTR_KNOWN) &&
	       (wide_base ? canonical(m, g->base) : g->base <= UINT32_MAX);
}

static int check_segments(const struct cpu_model *m, const struct x86_state *s, struct error *err)
{
	uint32_t cs = s->seg[X86_CS].attr;
	const struct rule rules[] = {
		{!segment_good(m, &s->ldtr, true), "LDTR", s->ldtr.base},
		{!segment_good(m, &s->tr, true), "TR", s->tr.base},
		{!canonical(m, s->gdtr.base), "GDTR is not canonical", s->gdtr.base},
		{!canonical(m, s->idtr.base), "IDTR is not canonical", s->idtr.base},
		{s->efer & EFER_LMA && cs & X86_SEG_L && cs & X86_SEG_DB,
		 "CS is 64 bits and 32 bits wide", cs},
		{s->rip >> 32 && !in_64bit_mode(s), "RIP outside 64-bit mode", s->rip},
	};

	for (unsigned i = 0; i < X86_NR_SEG; i++)
		if (!segment_good(m, &s->seg[i], i == X86_FS || i == X86_GS))
			return err_set(err, EINVAL, "the state is no CPU's: segment %u (%#llx)", i,
				       (unsigned long long)s->seg[i].base);
	return judge(rules, ARRAY_SIZE(rules), err);
}

/* ---- the rest ---- */

#define RFLAGS_KNOWN                                                                               \
	(RFLAGS_ARITH | RFLAGS_ONE | RFLAGS_TF | RFLAGS_IF | RFLAGS_DF | RFLAGS_IOPL | RFLAGS_NT | \
	 RFLAGS_RF | RFLAGS_VM | RFLAGS_AC | RFLAGS_VIF | RFLAGS_VIP | RFLAGS_ID)

static int check_flags(const struct x86_state *s, struct error *err)
{
	bool v86 = s->rflags & RFLAGS_VM;
	const struct rule rules[] = {
		{s->rflags & ~RFLAGS_KNOWN, "reserved bits of RFLAGS", s->rflags},
		{v86 && (s->efer & EFER_LMA || !(s->cr0 & CR0_PE)),
		 "virtual-8086 mode where there is none", s->rflags},
		{s->dr6 >> 32, "upper half of DR6", s->dr6},
		{s->dr7 >> 32, "upper half of DR7", s->dr7},
	};

	return judge(rules, ARRAY_SIZE(rules), err);
}

static bool pat_good(uint64_t v)
{
	for (unsigned i = 0; i < 8; i++, v >>= 8)
		if ((v & 0xff) > 7 || (v & 0xff) == 2 || (v & 0xff) == 3)
			return false;
	return true;
}

static int check_msrs(const struct cpu_model *m, const struct x86_state *s, struct error *err)
{
	const struct rule rules[] = {
		{!canonical(m, s->lstar), "LSTAR is not canonical", s->lstar},
		{!canonical(m, s->cstar), "CSTAR is not canonical", s->cstar},
		{!canonical(m, s->kernel_gs_base), "KERNEL_GS_BASE is not canonical",
		 s->kernel_gs_base},
		{!canonical(m, s->sysenter_esp), "SYSENTER_ESP is not canonical", s->sysenter_esp},
		{!canonical(m, s->sysenter_eip), "SYSENTER_EIP is not canonical", s->sysenter_eip},
		{s->sfmask >> 32, "SFMASK", s->sfmask},
		{s->tsc_aux >> 32, "TSC_AUX", s->tsc_aux},
		{!pat_good(s->pat), "PAT", s->pat},
		{s->xss, "XSS has states this CPU lacks", s->xss},
		{!xcr0_good(m, s->xcr0), "XCR0", s->xcr0},
	};

	return judge(rules, ARRAY_SIZE(rules), err);
}

static int check_events(const struct x86_state *s, struct error *err)
{
	bool exception = s->event_pending && s->event_type == X86_EVENT_EXCEPTION;
	const struct rule rules[] = {
		{s->mp_state > X86_MP_WAIT_SIPI, "mp_state", s->mp_state},
		{s->int_shadow > 2, "interrupt shadow", s->int_shadow},
		{s->nmi_masked > 1 || s->nmi_pending > 1, "NMI", s->nmi_masked},
		{s->event_pending > 1 || s->event_has_error > 1, "pending event", s->event_pending},
		{s->event_type > X86_EVENT_SOFT_INT, "type of an event", s->event_type},
		{exception && (s->event_vector > 31 || s->event_vector == 2),
		 "vector of an exception", s->event_vector},
	};

	return judge(rules, ARRAY_SIZE(rules), err);
}

int cpu_state_check(const struct cpu_model *m, const struct x86_state *s, struct error *err)
{
	int r = check_control(m, s, err);

	if (r == 0)
		r = check_segments(m, s, err);
	if (r == 0)
		r = check_flags(s, err);
	if (r == 0)
		r = check_msrs(m, s, err);
	return r == 0 ? check_events(s, err) : r;
}
