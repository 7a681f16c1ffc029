/* engine/x86_state.c - see x86_state.h. */
#include "engine/x86_state.h"

#include "base/bytes.h"
#include "engine/x86_defs.h"
#include "state/state.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Offsets in the XSAVE area (SDM 1 "XSAVE Area"). */
enum { XSAVE_FCW = 0, XSAVE_FTW = 4, XSAVE_MXCSR = 24, XSAVE_MXCSR_MASK = 28, XSAVE_BV = 512 };

enum {
	ATTR_CODE = X86_SEG_P | X86_SEG_S | 0xb, /* code, readable, accessed */
	ATTR_DATA = X86_SEG_P | X86_SEG_S | 0x3, /* data, writable, accessed */
	ATTR_LDT = X86_SEG_P | 0x2,
	ATTR_TSS = X86_SEG_P | 0xb, /* busy 32-bit TSS */
};

static struct x86_segment segment(uint16_t selector, uint64_t base, uint32_t attr)
{
	return (struct x86_segment){
		.base = base, .limit = 0xffff, .attr = attr, .selector = selector};
}

/* What RESET and INIT do alike (SDM 3A "Processor State After Reset", first column group). */
static void reset_common(struct x86_state *s)
{
	memset(s->gpr, 0, sizeof(s->gpr));
	s->gpr[X86_RDX] = 0x600; /* family; the engine that knows the model may refine it */
	s->rip = 0xfff0;
	s->rflags = RFLAGS_FIXED;
	for (unsigned i = 0; i < X86_NR_SEG; i++)
		s->seg[i] = segment(0, 0, ATTR_DATA);
	s->seg[X86_CS] = segment(0xf000, 0xffff0000, ATTR_CODE);
	s->ldtr = segment(0, 0, ATTR_LDT);
	s->tr = segment(0, 0, ATTR_TSS);
	s->gdtr = s->idtr = (struct x86_table){.base = 0, .limit = 0xffff};
	s->cr0 = CR0_CD | CR0_NW | CR0_ET;
	s->cr2 = s->cr3 = s->cr4 = s->efer = 0;
	memset(s->dr, 0, sizeof(s->dr));
	s->dr6 = 0xffff0ff0;
	s->dr7 = 0x400;
	s->mp_state = X86_MP_RUNNABLE;
	s->int_shadow = s->nmi_masked = s->nmi_pending = 0;
	s->event_pending = s->event_type = s->event_vector = s->event_has_error = 0;
	s->event_error = 0;
}

void x86_state_reset(struct x86_state *s)
{
	memset(s, 0, sizeof(*s));
	reset_common(s);
	s->xcr0 = XCR0_X87;
	s->pat = 0x0007040600070406;
	s->misc_enable = BIT(0) | BIT(11) | BIT(12); /* fast strings; no BTS, no PEBS */
	le16_store(s->xsave + XSAVE_FCW, 0x40);
	s->xsave[XSAVE_FTW] = 0xff; /* tag word 5555: eight zeroes, none empty */
	le32_store(s->xsave + XSAVE_MXCSR, 0x1f80);
	le32_store(s->xsave + XSAVE_MXCSR_MASK, 0xffff);
	le64_store(s->xsave + XSAVE_BV, XCR0_X87 | XCR0_SSE);
}

void x86_state_init_signal(struct x86_state *s)
{
	uint64_t cache_bits = s->cr0 & (CR0_CD | CR0_NW);

	reset_common(s);
	s->cr0 = CR0_ET | cache_bits;
}

void x86_state_sipi(struct x86_state *s, uint8_t vector)
{
	s->seg[X86_CS] = segment((uint16_t)(vector << 8), (uint64_t)vector << 12, ATTR_CODE);
	s->rip = 0;
	s->mp_state = X86_MP_RUNNABLE;
}

/* --- text --------------------------------------------------------------------------------------
 */

struct text {
	char *buf;
	size_t len, used; /* used: as if buf were long enough */
};

static void PRINTF_LIKE(2, 3) put(struct text *t, const char *fmt, ...)
{
	size_t left = t->used < t->len ? t->len - t->used : 0;
	va_list ap;

	va_start(ap, fmt);
	t->used += (size_t)vsnprintf(left ? t->buf + t->used : NULL, left, fmt, ap);
	va_end(ap);
}

static void put_segment(struct text *t, const char *name, const struct x86_segment *s)
{
	put(t, "%-4s %04x base %016llx limit %08x attr %05x\n", name, s->selector,
	    (unsigned long long)s->base, s->limit, s->attr);
}

int x86_state_print(const struct x86_state *s, char *buf, size_t len)
{
	static const char *const gpr[X86_NR_GPR] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp",
						    "rsi", "rdi", "r8",  "r9",  "r10", "r11",
						    "r12", "r13", "r14", "r15"};
	static const char *const seg[X86_NR_SEG] = {"es", "cs", "ss", "ds", "fs", "gs"};
	struct text t = {buf, len, 0};

	for (unsigned i = 0; i < X86_NR_GPR; i++)
		put(&t, "%-3s %016llx%s", gpr[i], (unsigned long long)s->gpr[i],
		    i % 4 == 3 ? "\n" : "  ");
	put(&t, "rip %016llx  rflags %08llx\n", (unsigned long long)s->rip,
	    (unsigned long long)s->rflags);
	for (unsigned i = 0; i < X86_NR_SEG; i++)
		put_segment(&t, seg[i], &s->seg[i]);
	put_segment(&t, "ldtr", &s->ldtr);
	put_segment(&t, "tr", &s->tr);
	put(&t, "gdtr base %016llx limit %04x  idtr base %016llx limit %04x\n",
	    (unsigned long long)s->gdtr.base, s->gdtr.limit, (unsigned long long)s->idtr.base,
	    s->idtr.limit);
	put(&t, "cr0 %08llx  cr2 %016llx  cr3 %016llx  cr4 %08llx  efer %llx\n",
	    (unsigned long long)s->cr0, (unsigned long long)s->cr2, (unsigned long long)s->cr3,
	    (unsigned long long)s->cr4, (unsigned long long)s->efer);
	put(&t, "dr6 %08llx  dr7 %08llx  xcr0 %llx  mp_state %u  int_shadow %u\n",
	    (unsigned long long)s->dr6, (unsigned long long)s->dr7, (unsigned long long)s->xcr0,
	    s->mp_state, s->int_shadow);
	return (int)t.used;
}

/* --- saving and restoring ----------------------------------------------------------------------
 */

static void visit_segment(struct state *s, const char *name, struct x86_segment *g)
{
	state_enter(s, name, 1);
	state_u64(s, "base", &g->base);
	state_u32(s, "limit", &g->limit);
	state_u32(s, "attr", &g->attr);
	state_u16(s, "selector", &g->selector);
	state_leave(s);
}

static void visit_table(struct state *s, const char *name, struct x86_table *t)
{
	state_enter(s, name, 1);
	state_u64(s, "base", &t->base);
	state_u16(s, "limit", &t->limit);
	state_leave(s);
}

static void visit_array(struct state *s, const char *name, uint64_t *v, size_t n)
{
	state_enter(s, name, 1);
	for (size_t i = 0; i < n; i++) {
		char index[8];

		snprintf(index, sizeof(index), "%zu", i);
		state_u64(s, index, &v[i]);
	}
	state_leave(s);
}

static void visit_segments(struct state *s, struct x86_state *x)
{
	static const char *const names[X86_NR_SEG] = {"es", "cs", "ss", "ds", "fs", "gs"};

	for (unsigned i = 0; i < X86_NR_SEG; i++)
		visit_segment(s, names[i], &x->seg[i]);
	visit_segment(s, "ldtr", &x->ldtr);
	visit_segment(s, "tr", &x->tr);
	visit_table(s, "gdtr", &x->gdtr);
	visit_table(s, "idtr", &x->idtr);
}

static void visit_control(struct state *s, struct x86_state *x)
{
	state_u64(s, "cr0", &x->cr0);
	state_u64(s, "cr2", &x->cr2);
	state_u64(s, "cr3", &x->cr3);
	state_u64(s, "cr4", &x->cr4);
	state_u64(s, "efer", &x->efer);
	state_u64(s, "xcr0", &x->xcr0);
	visit_array(s, "dr", x->dr, ARRAY_SIZE(x->dr));
	state_u64(s, "dr6", &x->dr6);
	state_u64(s, "dr7", &x->dr7);
}

static void visit_msrs(struct state *s, struct x86_state *x)
{
	state_u64(s, "star", &x->star);
	state_u64(s, "lstar", &x->lstar);
	state_u64(s, "cstar", &x->cstar);
	state_u64(s, "sfmask", &x->sfmask);
	state_u64(s, "kernel_gs_base", &x->kernel_gs_base);
	state_u64(s, "sysenter_cs", &x->sysenter_cs);
	state_u64(s, "sysenter_esp", &x->sysenter_esp);
	state_u64(s, "sysenter_eip", &x->sysenter_eip);
	state_u64(s, "pat", &x->pat);
	state_u64(s, "tsc_aux", &x->tsc_aux);
	state_u64(s, "misc_enable", &x->misc_enable);
	state_u64(s, "spec_ctrl", &x->spec_ctrl);
	state_u64(s, "xss", &x->xss);
	state_u64(s, "mtrr_def_type", &x->mtrr_def_type);
	visit_array(s, "mtrr_fixed", x->mtrr_fixed, ARRAY_SIZE(x->mtrr_fixed));
	visit_array(s, "mtrr_var", x->mtrr_var, ARRAY_SIZE(x->mtrr_var));
	state_u64(s, "tsc", &x->tsc);
	state_u64(s, "tsc_adjust", &x->tsc_adjust);
	state_u32(s, "pkru", &x->pkru);
}

static void visit_between(struct state *s, struct x86_state *x)
{
	state_u8(s, "mp_state", &x->mp_state);
	state_check(s, x->mp_state <= X86_MP_WAIT_SIPI, "mp_state is unknown");
	state_u8(s, "int_shadow", &x->int_shadow);
	state_check(s, x->int_shadow <= 2, "int_shadow is unknown");
	state_u8(s, "nmi_masked", &x->nmi_masked);
	state_u8(s, "nmi_pending", &x->nmi_pending);
	state_u8(s, "event_pending", &x->event_pending);
	state_u8(s, "event_type", &x->event_type);
	state_check(s, x->event_type <= X86_EVENT_SOFT_INT, "event_type is unknown");
	state_u8(s, "event_vector", &x->event_vector);
	state_u8(s, "event_has_error", &x->event_has_error);
	state_u32(s, "event_error", &x->event_error);
}

void x86_state_visit(struct state *s, struct x86_state *x)
{
	state_enter(s, "x86", 1);
	visit_array(s, "gpr", x->gpr, ARRAY_SIZE(x->gpr));
	state_u64(s, "rip", &x->rip);
	state_u64(s, "rflags", &x->rflags);
	visit_segments(s, x);
	visit_control(s, x);
	visit_msrs(s, x);
	visit_between(s, x);
	state_bytes(s, "xsave", x->xsave, sizeof(x->xsave));
	state_leave(s);
}
