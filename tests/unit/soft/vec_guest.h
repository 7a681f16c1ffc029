/* vec_guest.h - run a few instructions twice, on the soft engine and on this CPU, and compare.
 *
 * Both sides see the same linear addresses: code at CODE_AT, two data pages at DATA_AT, nothing
 * mapped after them.  Both end at a UD2 after the code.  Natively, state goes in and out through
 * signal frames: a UD2 traps, the handler puts the wanted state into the frame; the next trap,
 * whatever it is, is the outcome.  Handlers run on a stack of their own. */
#pragma once

#include "base/error.h"
#include "engine/cpu_model.h"
#include "engine/engine.h"
#include "engine/x86_defs.h"
#include "mem/mem.h"
#include "soft_options.h"
#include "test.h"

#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

enum {
	CODE_AT = 0x10000000,
	DATA_AT = 0x10010000,
	DATA_SIZE = 2 * PAGE_SIZE, /* the page after it is not there */
	CODE_GPA = 0x100000,
	DATA_GPA = 0x110000,
	RAM_SIZE = 4 * MiB,
	PML4_GPA = 0x1000,
	FP_LEGACY = 512,
	XS_BV_AT = 512,
};

/* What is compared. */
struct outcome {
	uint8_t vector; /* X86_EXC_UD with rip at the end: it went through */
	uint64_t rip, cr2;
	uint64_t gpr[X86_NR_GPR];
	uint64_t flags;
	uint8_t data[DATA_SIZE];
	_Alignas(64) uint8_t xsave[X86_XSAVE_MAX];
};

/* What both sides start from. */
struct setup {
	uint64_t gpr[X86_NR_GPR];
	uint64_t flags; /* arithmetic ones */
	uint8_t data[DATA_SIZE];
	_Alignas(64) uint8_t xsave[X86_XSAVE_MAX];
	uint8_t code[PAGE_SIZE - 2];
	unsigned len;
};

/* --- the soft engine ----------------------------------------------------------------------------
 */

struct guest {
	struct mem *mem;
	struct cpu_model model;
	struct engine_vm *vm;
	struct engine_cpu *cpu;
	struct x86_state base;
};

static inline void guest_put64(struct guest *g, gpa_t gpa, uint64_t v)
{
	CHECK_EQ(0, mem_write(g->mem, gpa, &v, sizeof(v)));
}

/* Linear [0, 4 MiB) is RAM as it is; CODE_AT and DATA_AT are windows to it. */
static inline void guest_page_tables(struct guest *g)
{
	const uint64_t rwu = PTE_P | PTE_W | PTE_U | PTE_A | PTE_D;

	guest_put64(g, PML4_GPA, 0x2000 | rwu);
	guest_put64(g, 0x2000, 0x3000 | rwu);
	guest_put64(g, 0x3000, 0 | rwu | PTE_PS);
	guest_put64(g, 0x3008, 0x200000 | rwu | PTE_PS);
	guest_put64(g, 0x3000 + (CODE_AT >> 21) * 8, 0x4000 | rwu);
	guest_put64(g, 0x4000 + (CODE_AT >> 12 & 511) * 8, CODE_GPA | rwu);
	guest_put64(g, 0x4000 + (DATA_AT >> 12 & 511) * 8, DATA_GPA | rwu);
	guest_put64(g, 0x4008 + (DATA_AT >> 12 & 511) * 8, (DATA_GPA + PAGE_SIZE) | rwu);
}

static inline void guest_flat(struct x86_segment *s, uint16_t selector, uint32_t attr)
{
	*s = (struct x86_segment){.selector = selector, .limit = ~0u, .attr = attr};
}

/* User code of a 64-bit system that has switched everything on. */
static inline void guest_base_state(struct guest *g)
{
	struct x86_state *s = &g->base;
	const uint32_t data = X86_SEG_S | X86_SEG_P | X86_SEG_G | X86_SEG_DB | 3 << 5 | 3;

	x86_state_reset(s);
	s->cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
	s->cr3 = PML4_GPA;
	s->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT |
		 (cpu_has(&g->model, CPU_FEAT_XSAVE) ? CR4_OSXSAVE : 0);
	s->efer = EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
	s->xcr0 = g->model.xcr0_supported ? g->model.xcr0_supported & ~XCR0_PKRU : XCR0_X87;
	for (int i = 0; i < X86_NR_SEG; i++)
		guest_flat(&s->seg[i], 0x2b, data);
	guest_flat(&s->seg[X86_CS], 0x33,
		   X86_SEG_S | X86_SEG_P | X86_SEG_G | X86_SEG_L | 3 << 5 | 11);
	/* As a Linux process has them in 64-bit mode; FNSTENV shows DS. */
	s->seg[X86_DS].selector = s->seg[X86_ES].selector = 0;
	s->seg[X86_FS].selector = s->seg[X86_GS].selector = 0;
	s->rip = CODE_AT;
}

static inline void guest_create(struct guest *g, const char *model,
				const struct engine_cpu_ops *ops)
{
	struct error err = {""};
	struct engine_vm_config cfg = {.nr_cpus = 1, .model = &g->model, .options = soft_options()};
	const struct engine_debug debug = {.intercept = ~0u};

	memset(g, 0, sizeof(*g));
	CHECK_EQ(0, cpu_model_resolve(&g->model, model, &err));
	CHECK_EQ(0, mem_create(&g->mem, &err));
	CHECK_EQ(0, mem_add_ram(g->mem, 0, RAM_SIZE, &err));
	cfg.mem = g->mem;
	CHECK_EQ(0, engine_soft.vm_create(&g->vm, &cfg, &err));
	CHECK_EQ(0, engine_soft.cpu_create(&g->cpu, g->vm, 0, ops, NULL, &err));
	engine_soft.cpu_debug(g->cpu, &debug);
	guest_page_tables(g);
	guest_base_state(g);
}

static inline void guest_destroy(struct guest *g)
{
	engine_soft.cpu_destroy(g->cpu);
	engine_soft.vm_destroy(g->vm);
	mem_destroy(g->mem);
}

static inline void guest_load(struct guest *g, const struct setup *in)
{
	static const uint8_t end[] = {0x0f, 0x0b};
	struct x86_state *s = &g->base;
	struct error err;

	CHECK_EQ(0, mem_write(g->mem, CODE_GPA, in->code, in->len));
	CHECK_EQ(0, mem_write(g->mem, CODE_GPA + in->len, end, sizeof(end)));
	CHECK_EQ(0, mem_write(g->mem, DATA_GPA, in->data, DATA_SIZE));
	memcpy(s->gpr, in->gpr, sizeof(s->gpr));
	memcpy(s->xsave, in->xsave, sizeof(s->xsave));
	s->rflags = (s->rflags & ~RFLAGS_ARITH) | in->flags | RFLAGS_FIXED;
	CHECK_EQ(0, engine_soft.cpu_set(g->cpu, s, &err));
}

/* Bring the XSAVE image to one form: unused components zero, no pointers, no reserved bytes. */
static inline void outcome_normalize(struct outcome *o)
{
	uint64_t bv;
	uint32_t offset, size;

	memcpy(&bv, o->xsave + XS_BV_AT, 8);
	for (unsigned i = 2; i < 10; i++)
		if (!(bv >> i & 1) && cpu_xsave_component(i, &offset, &size))
			memset(o->xsave + offset, 0, size);
	if (!(bv & XCR0_X87)) {
		memset(o->xsave, 0, 24);
		memset(o->xsave + 32, 0, 128);
		o->xsave[0] = 0x7f;
		o->xsave[1] = 0x03;
	}
	if (!(bv & XCR0_SSE))
		memset(o->xsave + 160, 0, 256);
	memset(o->xsave + 6, 0, 18); /* pointers: compared by FNSTENV */
	memset(o->xsave + 28, 0, 4);
	for (int i = 0; i < 8; i++)
		memset(o->xsave + 32 + 16 * i + 10, 0, 6);
	memset(o->xsave + 416, 0, 576 - 416);
	if (cpu_xsave_component(9, &offset, &size))
		memset(o->xsave + offset, 0, size);
}

static inline void guest_outcome(struct guest *g, const struct engine_exit_info *info,
				 struct outcome *o)
{
	static struct x86_state s;

	engine_soft.cpu_get(g->cpu, &s);
	o->vector = info->vector;
	o->rip = s.rip;
	o->cr2 = info->vector == X86_EXC_PF ? info->cr2 : 0;
	memcpy(o->gpr, s.gpr, sizeof(o->gpr));
	o->flags = s.rflags & RFLAGS_ARITH;
	CHECK_EQ(0, mem_read(g->mem, DATA_GPA, o->data, DATA_SIZE));
	memcpy(o->xsave, s.xsave, sizeof(o->xsave));
	outcome_normalize(o);
}

static inline void guest_run(struct guest *g, const struct setup *in, struct outcome *o)
{
	struct engine_exit_info info = {0};

	guest_load(g, in);
	CHECK_EQ(ENGINE_EXIT_DEBUG, engine_soft.cpu_run(g->cpu, &info));
	guest_outcome(g, &info, o);
}

/* --- this CPU -----------------------------------------------------------------------------------
 */

static struct {
	uint8_t *code_rw, *code, *data;
	const struct setup *in;
	struct outcome *out;
	ucontext_t host;
	uint8_t host_fp[X86_XSAVE_MAX + 64];
	unsigned fp_size;
	volatile int phase;
} native;

static const uint8_t native_gregs[X86_NR_GPR] = {
	REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
	REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
};

/* Bytes 464-511 of the frame's area are the kernel's, with the size of it all at 464 + 16. */
static inline void native_begin(ucontext_t *uc)
{
	greg_t *r = uc->uc_mcontext.gregs;
	uint8_t *fp = (uint8_t *)uc->uc_mcontext.fpregs;
	uint64_t mask, bv;
	uint32_t size;

	native.host = *uc;
	memcpy(&size, fp + 464 + 16, 4);
	memcpy(&mask, fp + 464 + 8, 8);
	native.fp_size = size;
	memcpy(native.host_fp, fp, size);
	memcpy(fp, native.in->xsave, 464);
	memcpy(fp + 512, native.in->xsave + 512, size - 512);
	memcpy(&bv, native.in->xsave + 512, 8);
	bv &= mask;
	memcpy(fp + 512, &bv, 8);
	for (int i = 0; i < X86_NR_GPR; i++)
		r[native_gregs[i]] = (greg_t)native.in->gpr[i];
	r[REG_EFL] = (greg_t)(((uint64_t)r[REG_EFL] & ~RFLAGS_ARITH) | native.in->flags);
	r[REG_RIP] = CODE_AT;
	native.phase = 1;
}

static inline void native_end(ucontext_t *uc)
{
	greg_t *r = uc->uc_mcontext.gregs;
	uint8_t *fp = (uint8_t *)uc->uc_mcontext.fpregs;
	struct outcome *o = native.out;

	o->vector = (uint8_t)r[REG_TRAPNO];
	o->rip = (uint64_t)r[REG_RIP];
	o->cr2 = o->vector == X86_EXC_PF ? (uint64_t)r[REG_CR2] : 0;
	for (int i = 0; i < X86_NR_GPR; i++)
		o->gpr[i] = (uint64_t)r[native_gregs[i]];
	o->flags = (uint64_t)r[REG_EFL] & RFLAGS_ARITH;
	memset(o->xsave, 0, sizeof(o->xsave));
	memcpy(o->xsave, fp, native.fp_size);
	memcpy(fp, native.host_fp, native.fp_size);
	memcpy(uc->uc_mcontext.gregs, native.host.uc_mcontext.gregs, sizeof(gregset_t));
	r[REG_RIP] += 2; /* past our own UD2 */
	native.phase = 0;
}

static void native_signal(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;

	if (native.phase == 0)
		native_begin(uc);
	else
		native_end(uc);
}

static inline void native_map(void)
{
	int fd = memfd_create("code", 0);

	CHECK(fd >= 0);
	CHECK_EQ(0, ftruncate(fd, PAGE_SIZE));
	native.code_rw = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	native.code = mmap((void *)CODE_AT, PAGE_SIZE, PROT_READ | PROT_EXEC,
			   MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0);
	native.data = mmap((void *)DATA_AT, DATA_SIZE, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	CHECK_EQ(CODE_AT, (uintptr_t)native.code);
	CHECK_EQ(DATA_AT, (uintptr_t)native.data);
	close(fd);
}

static inline void native_run(const struct setup *in, struct outcome *o)
{
	static const int signals[] = {SIGILL, SIGFPE, SIGSEGV, SIGBUS, SIGTRAP};
	static uint8_t stack[64 * KiB]; /* the code under test may change RSP */
	const stack_t alt = {.ss_sp = stack, .ss_size = sizeof(stack)};
	struct sigaction sa = {.sa_sigaction = native_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
	struct sigaction old[ARRAY_SIZE(signals)];

	if (!native.code)
		native_map();
	memcpy(native.code_rw, in->code, in->len);
	memcpy(native.code_rw + in->len, "\x0f\x0b", 2);
	memcpy(native.data, in->data, DATA_SIZE);
	native.in = in;
	native.out = o;
	sigaltstack(&alt, NULL);
	for (unsigned i = 0; i < ARRAY_SIZE(signals); i++)
		sigaction(signals[i], &sa, &old[i]);
	__asm__ volatile("ud2" : : : "memory");
	for (unsigned i = 0; i < ARRAY_SIZE(signals); i++)
		sigaction(signals[i], &old[i], NULL);
	memcpy(o->data, native.data, DATA_SIZE);
	outcome_normalize(o);
}

/* --- comparing ---------------------------------------------------------------------------------
 */

static inline unsigned differ_at(const void *a, const void *b, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (((const uint8_t *)a)[i] != ((const uint8_t *)b)[i])
			return i;
	return n;
}

static inline void print_code(const struct setup *in)
{
	printf("#   code");
	for (unsigned i = 0; i < in->len && i < 32; i++)
		printf(" %02x", in->code[i]);
	printf("\n");
}

static inline bool outcomes_same(const struct outcome *host, const struct outcome *soft)
{
	return host->vector == soft->vector && host->rip == soft->rip && host->cr2 == soft->cr2 &&
	       !memcmp(host->gpr, soft->gpr, sizeof(host->gpr)) && host->flags == soft->flags &&
	       !memcmp(host->xsave, soft->xsave, X86_XSAVE_MAX) &&
	       !memcmp(host->data, soft->data, DATA_SIZE);
}

/* True when both agree; else says where they do not. */
static inline bool outcomes_agree(const struct setup *in, const struct outcome *host,
				  const struct outcome *soft)
{
	unsigned at;

	if (host->vector != soft->vector || host->rip != soft->rip || host->cr2 != soft->cr2) {
		print_code(in);
		printf("#   host: exception %u at %#" PRIx64 " cr2 %#" PRIx64
		       "; soft: %u at %#" PRIx64 " cr2 %#" PRIx64 "\n",
		       host->vector, host->rip, host->cr2, soft->vector, soft->rip, soft->cr2);
		return false;
	}
	for (int i = 0; i < X86_NR_GPR; i++)
		if (host->gpr[i] != soft->gpr[i]) {
			print_code(in);
			printf("#   register %d: host %#" PRIx64 ", soft %#" PRIx64 "\n", i,
			       host->gpr[i], soft->gpr[i]);
			return false;
		}
	if (host->flags != soft->flags) {
		print_code(in);
		printf("#   flags: host %#" PRIx64 ", soft %#" PRIx64 "\n", host->flags,
		       soft->flags);
		return false;
	}
	at = differ_at(host->xsave, soft->xsave, X86_XSAVE_MAX);
	if (at < X86_XSAVE_MAX) {
		print_code(in);
		printf("#   vector state byte %u: was %#x, host %#x, soft %#x\n", at, in->xsave[at],
		       host->xsave[at], soft->xsave[at]);
		return false;
	}
	at = differ_at(host->data, soft->data, DATA_SIZE);
	if (at < DATA_SIZE) {
		print_code(in);
		printf("#   memory byte %#x: host %#x, soft %#x\n", at, host->data[at],
		       soft->data[at]);
		return false;
	}
	return true;
}
