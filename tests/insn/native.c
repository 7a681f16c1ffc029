/* native.c - see native.h.
 *
 * How: native_run raises SIGTRAP; the handler swaps the state under test into the signal frame, and
 * returning from the handler starts it.  The exception that ends the code brings the next signal,
 * whose frame is the result; the handler swaps the caller's state back.  So the kernel does all the
 * loading and storing, vector registers included.  CS and SS are in the frame too; DS, ES and GS
 * mean nothing to this program and are loaded before and read after. */
#include "native.h"

#include <asm/ldt.h>
#include <asm/prctl.h>
#include <cpuid.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

/* Linux arch/x86/include/uapi/asm: where the frame says which components it has; AT_HWCAP2. */
enum { FX_SW_BYTES = 464, XSTATE_HEADER = 512, HWCAP2_BIT_FSGSBASE = 1 };
enum { ES, CS, SS, DS, FS, GS };
/* Flags that signal handlers inherit from the interrupted code. */
#define LEFT_OVER (1ull << 14 | 1ull << 18 | 1ull << 21) /* NT, AC, ID */

static const int greg_of[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
				REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
				REG_R12, REG_R13, REG_R14, REG_R15};

static struct native_state *current;
static volatile enum { IDLE, START, RUNNING } phase;
static greg_t saved_gregs[NGREG];
static uint8_t saved_fp[NATIVE_XSAVE_MAX] __attribute__((aligned(64)));
static unsigned xsave_size;

static void load_state(ucontext_t *uc, const struct native_state *s)
{
	greg_t *g = uc->uc_mcontext.gregs;

	for (int i = 0; i < 16; i++)
		g[greg_of[i]] = (greg_t)s->gpr[i];
	g[REG_RIP] = (greg_t)s->rip;
	g[REG_EFL] = (greg_t)s->rflags;
	g[REG_CSGSFS] = (greg_t)(s->sel[CS] | (uint64_t)s->sel[SS] << 48);
	/* The frame's own size words stay; they are in the "available" bytes of the FXSAVE part. */
	memcpy(uc->uc_mcontext.fpregs, s->xsave, FX_SW_BYTES);
	memcpy((char *)uc->uc_mcontext.fpregs + XSTATE_HEADER, s->xsave + XSTATE_HEADER,
	       xsave_size - XSTATE_HEADER);
}

static void store_state(const ucontext_t *uc, struct native_state *s)
{
	const greg_t *g = uc->uc_mcontext.gregs;

	for (int i = 0; i < 16; i++)
		s->gpr[i] = (uint64_t)g[greg_of[i]];
	s->rip = (uint64_t)g[REG_RIP];
	s->rflags = (uint64_t)g[REG_EFL];
	s->sel[CS] = (uint16_t)g[REG_CSGSFS];
	s->sel[SS] = (uint16_t)(g[REG_CSGSFS] >> 48);
	s->vector = (int)g[REG_TRAPNO];
	s->error = (uint64_t)g[REG_ERR];
	s->cr2 = (uint64_t)g[REG_CR2];
	memcpy(s->xsave, uc->uc_mcontext.fpregs, xsave_size);
	memset(s->xsave + FX_SW_BYTES, 0, XSTATE_HEADER - FX_SW_BYTES);
}

static void on_exception(int sig, siginfo_t *si, void *p)
{
	ucontext_t *uc = p;

	__builtin_ia32_writeeflags_u64(__builtin_ia32_readeflags_u64() & ~LEFT_OVER);
	if (phase == START) {
		memcpy(saved_gregs, uc->uc_mcontext.gregs, sizeof(saved_gregs));
		memcpy(saved_fp, uc->uc_mcontext.fpregs, xsave_size);
		load_state(uc, current);
		phase = RUNNING;
	} else if (phase == RUNNING) {
		store_state(uc, current);
		memcpy(uc->uc_mcontext.gregs, saved_gregs, sizeof(saved_gregs));
		memcpy(uc->uc_mcontext.fpregs, saved_fp, xsave_size);
		phase = IDLE;
	} else {
		signal(sig, SIG_DFL); /* a bug in the test itself: die of it */
	}
}

uint64_t native_xcr0(void)
{
	uint32_t lo, hi;

	asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	return (uint64_t)hi << 32 | lo;
}

unsigned native_xsave_size(void)
{
	return xsave_size;
}

bool native_fsgsbase(void)
{
	return getauxval(AT_HWCAP2) >> HWCAP2_BIT_FSGSBASE & 1;
}

uint64_t native_fs_base(void)
{
	uint64_t base = 0;

	syscall(SYS_arch_prctl, ARCH_GET_FS, &base);
	return base;
}

bool native_set_ldt(unsigned entry, uint64_t d)
{
	struct user_desc u = {
		.entry_number = entry,
		.base_addr = (unsigned)((d >> 16 & 0xffffff) | d >> 56 << 24),
		.limit = (unsigned)((d & 0xffff) | (d >> 48 & 15) << 16),
		.seg_32bit = d >> 54 & 1,
		.contents = d >> 42 & 3,
		.read_exec_only = !(d >> 41 & 1),
		.limit_in_pages = d >> 55 & 1,
		.seg_not_present = !(d >> 47 & 1),
		.useable = d >> 52 & 1,
	};

	return !syscall(SYS_modify_ldt, 0x11, &u, sizeof(u));
}

void native_init(void)
{
	static const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
	stack_t stack = {.ss_size = 128 * 1024};
	struct sigaction sa = {.sa_sigaction = on_exception, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	unsigned a, b, c, d;

	__cpuid_count(0xd, 0, a, b, c, d);
	xsave_size = b < NATIVE_XSAVE_MAX ? b : NATIVE_XSAVE_MAX;
	stack.ss_sp = mmap(NULL, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			   -1, 0);
	if (stack.ss_sp == MAP_FAILED || sigaltstack(&stack, NULL))
		abort();
	sigfillset(&sa.sa_mask);
	for (size_t i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
		sigaction(signals[i], &sa, NULL);
}

static void load_segments(const struct native_state *s)
{
	asm volatile("mov %0, %%ds\n\tmov %1, %%es\n\tmov %2, %%gs"
		     :
		     : "rm"(s->sel[DS]), "rm"(s->sel[ES]), "rm"(s->sel[GS]));
	if (!(s->sel[GS] & ~3))
		syscall(SYS_arch_prctl, ARCH_SET_GS, s->gs_base);
}

static void store_segments(struct native_state *s)
{
	asm volatile("mov %%ds, %0\n\tmov %%es, %1\n\tmov %%fs, %2\n\tmov %%gs, %3"
		     : "=rm"(s->sel[DS]), "=rm"(s->sel[ES]), "=rm"(s->sel[FS]), "=rm"(s->sel[GS]));
	syscall(SYS_arch_prctl, ARCH_GET_GS, &s->gs_base);
}

void native_run(struct native_state *s)
{
	current = s;
	load_segments(s);
	phase = START;
	asm volatile("int3" : : : "memory");
	store_segments(s);
}
