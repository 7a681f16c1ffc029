/* engine/x86_state.h - the architectural state of one x86-64 CPU, the same for every engine.
 *
 * Boot writes it, snapshots and migration carry it, gdb shows it, tests compare it.  It holds what
 * the manuals define and nothing an engine made up.  Values are as the guest would read them. */
#pragma once

#include "base/types.h"

enum { X86_RAX, X86_RCX, X86_RDX, X86_RBX, X86_RSP, X86_RBP, X86_RSI, X86_RDI, X86_NR_GPR = 16 };
enum { X86_ES, X86_CS, X86_SS, X86_DS, X86_FS, X86_GS, X86_NR_SEG };

/* Attributes in descriptor layout, bytes 5 and 6 of a descriptor without limit[19:16]:
 *
 *   15  14   13  12   11 .. 8 (zero)   7   6 5   4   3..0
 *   G  D/B   L  AVL                    P   DPL   S   type
 *
 * bit 16: unusable (null selector loaded). */
struct x86_segment {
	uint64_t base;
	uint32_t limit; /* in bytes, already scaled by G */
	uint32_t attr;
	uint16_t selector;
};
#define X86_SEG_TYPE(attr) ((attr)&15u)
#define X86_SEG_S          (1u << 4)
#define X86_SEG_DPL(attr)  (((attr) >> 5) & 3u)
#define X86_SEG_P          (1u << 7)
#define X86_SEG_AVL        (1u << 12)
#define X86_SEG_L          (1u << 13)
#define X86_SEG_DB         (1u << 14)
#define X86_SEG_G          (1u << 15)
#define X86_SEG_UNUSABLE   (1u << 16)

struct x86_table {
	uint64_t base;
	uint16_t limit;
};

enum x86_mp_state { X86_MP_RUNNABLE, X86_MP_HALTED, X86_MP_WAIT_SIPI };

#define X86_XSAVE_MAX 4096 /* standard (non-compacted) layout; AVX-512 + PKRU ends at 2696 */

struct x86_state {
	uint64_t gpr[X86_NR_GPR]; /* rax rcx rdx rbx rsp rbp rsi rdi r8..r15 */
	uint64_t rip, rflags;
	struct x86_segment seg[X86_NR_SEG], ldtr, tr;
	struct x86_table gdtr, idtr;
	uint64_t cr0, cr2, cr3, cr4, efer, xcr0;
	uint64_t dr[4], dr6, dr7;

	/* Model-specific registers the engine itself keeps. */
	uint64_t star, lstar, cstar, sfmask, kernel_gs_base;
	uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
	uint64_t pat, tsc_aux, misc_enable, spec_ctrl, xss;
	uint64_t mtrr_def_type, mtrr_fixed[11], mtrr_var[16];
	uint64_t tsc; /* value at the moment the state was taken */
	uint64_t tsc_adjust;
	uint32_t pkru;

	/* Between-instruction state. */
	uint8_t mp_state;   /* enum x86_mp_state */
	uint8_t int_shadow; /* 1: STI, 2: MOV SS/POP SS; covers the next instruction */
	uint8_t nmi_masked; /* an NMI handler has not done IRET yet */
	uint8_t nmi_pending;
	uint8_t event_pending; /* an exception or interrupt was accepted but not yet delivered: */
	uint8_t event_type;    /* enum x86_event_type */
	uint8_t event_vector;
	uint8_t event_has_error;
	uint32_t event_error;

	_Alignas(64) uint8_t xsave[X86_XSAVE_MAX]; /* x87, SSE, AVX, AVX-512 (not PKRU) */
};
enum x86_event_type { X86_EVENT_INTR, X86_EVENT_NMI, X86_EVENT_EXCEPTION, X86_EVENT_SOFT_INT };

/* The state after RESET (SDM 3A "Processor State After Reset"): real mode, CS:IP F000:FFF0. */
void x86_state_reset(struct x86_state *s);

/* After INIT: as RESET but x87/SSE, TSC, MTRRs and CR0.CD/NW survive; mp_state stays for the
 * caller to set. */
void x86_state_init_signal(struct x86_state *s);

/* Start-up IPI: run at vector << 12 in real mode. */
void x86_state_sipi(struct x86_state *s, uint8_t vector);

/* Registers as text for a person, a few lines, for a guest that died. */
int x86_state_print(const struct x86_state *s, char *buf, size_t len);

struct state;
void x86_state_visit(struct state *s, struct x86_state *x); /* save/restore, see state/state.h */
