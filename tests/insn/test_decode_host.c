/* The decoder against the CPU this runs on: what is #UD for us is SIGILL here and the other way
 * round, and an instruction ends where we say.
 *
 * One random instruction at a time runs in user mode with INT3 after it, every general register
 * pointing into a page of its own.  Left out is what would change more than this test can restore:
 * control flow, system calls, segment registers and bases. */
#define TEST_TIMEOUT_S 600
#include "engine/cpu_model.h"
#include "engine/soft/insn_rows.h"
#include "engine/x86_state.h"
#include "insn_random.h"
#include "test.h"

#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>

/* Low addresses, so that no base + index * scale + disp32 reaches anything else of this process. */
#define CODE  0x20000000ull
#define DATA  0x30000000ull
#define STACK 0x40000000ull

enum { CASES = 100000, PAGES = 0x2000, INT3 = 0xcc };

static sigjmp_buf back;
static volatile int signal_got;
static volatile uint64_t signal_rip;

static void on_signal(int sig, siginfo_t *info, void *context)
{
	const ucontext_t *c = context;

	signal_got = sig;
	signal_rip = (uint64_t)c->uc_mcontext.gregs[REG_RIP];
	siglongjmp(back, 1);
}

static void *map_at(uint64_t address)
{
	void *p = mmap((void *)address, PAGES, PROT_READ | PROT_WRITE | PROT_EXEC,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

	CHECK(p == (void *)address);
	return p;
}

static void set_up(void)
{
	static char alternate_stack[1 << 16];
	const stack_t ss = {.ss_sp = alternate_stack, .ss_size = sizeof(alternate_stack)};
	const struct sigaction sa = {
		.sa_sigaction = on_signal,
		.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER,
	};

	map_at(CODE);
	map_at(DATA);
	map_at(STACK);
	CHECK_EQ(0, sigaltstack(&ss, NULL));
	sigaction(SIGILL, &sa, NULL);
	sigaction(SIGTRAP, &sa, NULL);
	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
	sigaction(SIGFPE, &sa, NULL);
}

/* Never returns: INT3 or a fault comes first. */
__attribute__((noinline, noreturn)) static void jump_to_code(void)
{
	uint64_t *top = (uint64_t *)(STACK + PAGES / 2);

	*top = CODE;
	__asm__ volatile("mov %0, %%rsp\n\t"
			 "mov %1, %%rax\n\t"
			 "mov $2, %%ecx\n\t"
			 "mov %%rax, %%rdx\n\tmov %%rax, %%rbx\n\tmov %%rax, %%rbp\n\t"
			 "mov %%rax, %%rsi\n\tmov %%rax, %%rdi\n\tmov %%rax, %%r8\n\t"
			 "mov %%rax, %%r9\n\tmov %%rax, %%r10\n\tmov %%rax, %%r11\n\t"
			 "mov %%rax, %%r12\n\tmov %%rax, %%r13\n\tmov %%rax, %%r14\n\t"
			 "mov %%rax, %%r15\n\t"
			 "ret"
			 :
			 : "r"(top), "i"(DATA + PAGES / 2)
			 : "memory");
	__builtin_unreachable();
}

static void run_native(const uint8_t *bytes, unsigned len)
{
	memset((void *)CODE, INT3, 32);
	memcpy((void *)CODE, bytes, len);
	if (!sigsetjmp(back, 0))
		jump_to_code();
}

/* What this CPU makes of opcodes that we refuse on purpose. */
static const struct {
	uint8_t map, opcode;
	const char *why;
} more_here[] = {
	{MAP_0F38, 0xf9, "MOVDIRI: runs even where CPUID hides it"},
	{MAP_0F38, 0xf8, "MOVDIR64B: likewise"},
	{MAP_0F3A, 0x00, "VPERMQ: Zen 5 ignores VEX.W, which must be 1 (AMD APM 4)"},
	{MAP_0F3A, 0x01, "VPERMPD: likewise"},
	{MAP_0F, 0x20, "LOCK MOV CR0 is CR8, a feature we do not offer"},
	{MAP_0F, 0x22, "likewise"},
	{MAP_0F, 0x01, "VMCALL: a hypervisor may answer it"},
};

static bool is_more_here(const struct insn *in)
{
	for (size_t i = 0; i < ARRAY_SIZE(more_here); i++)
		if (in->id == INSN_bad && more_here[i].map == in->map &&
		    more_here[i].opcode == in->opcode)
			return true;
	return false;
}

static bool can_run(const struct insn *in)
{
	const struct insn_row *row = &insn_rows[in->id];

	if (in->seg >= X86_FS || is_more_here(in))
		return false;
	if (in->id == INSN_bad)
		return true;
	return !(row->attrs & (ROW_END | ROW_UD)) && strcmp(row->name, "wrfsbase") &&
	       strcmp(row->name, "wrgsbase") && strcmp(row->name, "rdpkru");
}

static void explain(const uint8_t *bytes, const struct insn *in)
{
	char text[128];

	insn_print(in, CODE, text, sizeof(text));
	printf("#");
	for (unsigned i = 0; i < 15; i++)
		printf(" %02x", bytes[i]);
	printf(": ours '%s', %u bytes; here signal %d at +%lld\n", text, in->len, signal_got,
	       (long long)(signal_rip - CODE));
}

/* How long an undefined instruction is nobody says; 8F /1../7 was XOP, which has three maps with up
 * to four bytes of immediate.  Beyond 15 bytes it is #GP, not #UD. */
static bool may_be_too_long(const struct insn *in)
{
	return signal_got == SIGSEGV && signal_rip == CODE &&
	       (in->opcode == 0x8f || in->len + 8 > 15);
}

static bool agrees(const uint8_t *bytes, const struct insn *in)
{
	bool bad = in->id == INSN_bad;

	run_native(bytes, bad ? 15 : in->len);
	if (bad)
		return signal_got == SIGILL || may_be_too_long(in);
	if (signal_got == SIGILL)
		return false;
	return signal_got != SIGTRAP || signal_rip == CODE + in->len + 1;
}

static unsigned long nr_cases(void)
{
	const char *s = getenv("DECODE_CASES");

	return s ? strtoul(s, NULL, 0) : CASES;
}

TEST(invalid_instructions_and_lengths_are_those_of_this_cpu)
{
	struct insn_random r = {2024};
	struct cpu_model model;
	unsigned different = 0;
	uint8_t bytes[32];
	struct insn in;

	CHECK_EQ(0, cpu_model_resolve(&model, "max", NULL));
	if (strcmp(model.vendor, "AuthenticAMD"))
		SKIP("corners are known for AMD's CPUs only");
	set_up();
	for (unsigned long n = nr_cases(); n; n--) {
		insn_random_bytes(&r, bytes);
		if (insn_decode(&in, bytes, 32, INSN_MODE_64, &model) != INSN_OK || !can_run(&in))
			continue;
		if (!agrees(bytes, &in) && different++ < 40)
			explain(bytes, &in);
	}
	CHECK_EQ(0, different);
}
