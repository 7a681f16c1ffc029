/* truth.c - instructions against the host CPU.
 *
 *   truth [CASES] [SEED] [ROW-NAME [MODE]]
 *   truth --list [CASES]
 *
 * Random valid code, one to five instructions in 64-, 32- or 16-bit mode, is run natively
 * (native.h) and in the soft engine from the same registers, flags, segments, vector state and
 * memory; then all of these, the exception and its RIP, error code and CR2 are compared.
 *
 * Prints TAP: one case per class of instructions.  A difference prints the code and what differs.
 * --list prints how many encodings of each row take part, or why none does. */
#include "truth.h"
#include "gen.h"

#include <inttypes.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MAX_REPORTS = 3, BUILD_TRIES = 4000000, HANG_S = 30, FSW_ES = 0x80 };

static unsigned long cases_of[INSN_NR_IDS], bad_of[INSN_NR_IDS];

void die(const char *what)
{
	printf("Bail out! %s\n", what);
	exit(1);
}

/* --- reporting ----------------------------------------------------------------------------------
 */

/* What differs in the case at hand: text is printed when no reason is known. */
static struct {
	unsigned what; /* DIFF_* */
	unsigned len;
	char text[8192];
} diff;

__attribute__((format(printf, 2, 3))) static void differ(unsigned what, const char *fmt, ...)
{
	va_list ap;
	int n;

	diff.what |= what;
	va_start(ap, fmt);
	n = vsnprintf(diff.text + diff.len, sizeof(diff.text) - diff.len, fmt, ap);
	va_end(ap);
	if (n > 0)
		diff.len = MIN(diff.len + (unsigned)n, (unsigned)sizeof(diff.text) - 1);
}

static void report_memory(const char *what, gva_t at)
{
	uint64_t v[5];

	if (!memory_peek(at, v, sizeof(v)))
		return;
	printf("#   %s", what);
	for (unsigned i = 0; i < ARRAY_SIZE(v); i++)
		printf(" %016" PRIx64, v[i]);
	printf("\n");
}

static void report_code(const struct program *p)
{
	char text[128];

	printf("# %u-bit code at %#" PRIx64 ":\n", 16u << p->mode, p->start.rip);
	for (unsigned i = 0, off = 0; i < p->nr; i++) {
		insn_print(&p->in[i], p->start.rip + off, text, sizeof(text));
		printf("#   ");
		for (unsigned k = 0; k < p->in[i].len; k++)
			printf("%02x", p->code[off + k]);
		printf("  %s\n", text);
		off += p->in[i].len;
	}
}

static void report(const struct program *p)
{
	static const char *const names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp",
					      "rsi", "rdi", "r8",  "r9",  "r10", "r11",
					      "r12", "r13", "r14", "r15"};
	const struct native_state *s = &p->start;
	gva_t stack = p->mode == INSN_MODE_64 ? 0 : truth_seg_of(s->sel[X86_SS])->base;

	report_code(p);
	printf("#   start");
	for (unsigned i = 0; i < 16; i++)
		printf(" %s %#" PRIx64, names[i], s->gpr[i]);
	printf("\n#   rflags %#" PRIx64 " mxcsr %#x fcw %#x", s->rflags,
	       *(const uint32_t *)(s->xsave + 24), *(const uint16_t *)s->xsave);
	printf(" es %#x cs %#x ss %#x ds %#x gs %#x gs_base %#" PRIx64 "\n%s", s->sel[X86_ES],
	       s->sel[X86_CS], s->sel[X86_SS], s->sel[X86_DS], s->sel[X86_GS], s->gs_base,
	       diff.text);
	report_memory("operand", p->operand);
	report_memory("XSAVE header", p->operand + 512);
	report_memory("stack", stack + s->gpr[X86_RSP]);
}

/* --- comparing ----------------------------------------------------------------------------------
 */

/* Components in their initial state may hold anything; make them hold that state. */
static void canonical(uint8_t *area)
{
	uint64_t bv;

	memcpy(&bv, area + 512, 8);
	if (!(bv & XCR0_X87)) {
		memset(area, 0, 24);
		area[0] = 0x7f;
		area[1] = 3;
		memset(area + 32, 0, 128);
	}
	if (!(area[2] & FSW_ES)) /* AMD's show the pointers only then */
		memset(area + 6, 0, 18);
	area[5] = 0;
	memset(area + 28, 0, 4); /* MXCSR_MASK */
	if (!(bv & XCR0_SSE))
		memset(area + 160, 0, 256);
	memset(area + 416, 0, 96);
	for (unsigned r = 0; r < 8; r++) /* ST registers are 10 bytes in 16 */
		memset(area + 32 + 16 * r + 10, 0, 6);
	for (unsigned i = 2; i < 32; i++)
		if (truth_comp[i].size && !(bv >> i & 1))
			memset(area + truth_comp[i].off, 0, truth_comp[i].size);
}

static void compare_bytes(unsigned what, const char *name, const uint8_t *host, const uint8_t *soft,
			  unsigned off, unsigned len)
{
	unsigned lines = 0;

	for (unsigned i = off; i < off + len; i += 8) {
		uint64_t h, s;

		memcpy(&h, host + i, 8);
		memcpy(&s, soft + i, 8);
		if (h != s && lines++ < 4)
			differ(what,
			       "#   %s, xsave byte %u: host %#" PRIx64 ", engine %#" PRIx64 "\n",
			       name, i, h, s);
	}
}

static void compare_xsave(uint8_t *host, uint8_t *soft)
{
	canonical(host);
	canonical(soft);
	compare_bytes(DIFF_X87, "x87 and MXCSR", host, soft, 0, 160);
	compare_bytes(DIFF_VECTOR, "XMM", host, soft, 160, 256);
	for (unsigned i = 2; i < 32; i++)
		compare_bytes(DIFF_VECTOR, "vector", host, soft, truth_comp[i].off,
			      truth_comp[i].size);
}

static void compare_exception(struct native_state *host, const struct x86_state *soft,
			      const struct engine_exit_info *info)
{
	bool page_fault = host->vector == X86_EXC_PF && info->vector == X86_EXC_PF;
	/* The upper half is the host kernel's: present there, not in the guest. */
	uint64_t error_mask = page_fault && host->cr2 >> 63 ? ~(uint64_t)PF_P : ~0ull;

	if (host->vector != info->vector)
		differ(DIFF_EXCEPTION,
		       "#   exception: host %d (%#" PRIx64 ", cr2 %#" PRIx64
		       "), engine %d (%#x, cr2 %#" PRIx64 ")\n",
		       host->vector, host->error, host->cr2, info->vector, info->error_code,
		       info->cr2);
	else if (info->has_error && (host->error ^ info->error_code) & error_mask)
		differ(DIFF_ERROR, "#   error code: host %#" PRIx64 ", engine %#x\n", host->error,
		       info->error_code);
	if (page_fault && host->cr2 != info->cr2)
		differ(DIFF_CR2, "#   cr2: host %#" PRIx64 ", engine %#" PRIx64 "\n", host->cr2,
		       info->cr2);
	if (host->vector == X86_EXC_BP)
		host->rip--; /* a trap; the engine stops at the INT3 */
	if (host->rip != soft->rip)
		differ(DIFF_RIP, "#   rip: host %#" PRIx64 ", engine %#" PRIx64 "\n", host->rip,
		       soft->rip);
}

static void compare_registers(const struct program *p, const struct native_state *host,
			      const struct x86_state *soft)
{
	const uint64_t flags = RFLAGS_ARITH | RFLAGS_DF | RFLAGS_AC | RFLAGS_TF | RFLAGS_NT |
			       RFLAGS_ID | RFLAGS_IF | RFLAGS_IOPL;
	/* Outside 64-bit mode the upper halves are nobody's (AMD APM 1 "64-Bit Mode"). */
	bool wide = p->mode == INSN_MODE_64 && host->sel[X86_CS] == SEL_CODE64;
	uint64_t mask = wide ? ~0ull : 0xffffffff;

	for (unsigned i = 0; i < 16; i++)
		if ((host->gpr[i] ^ soft->gpr[i]) & (i < 8 ? mask : ~0ull))
			differ(DIFF_GPR,
			       "#   register %u: host %#" PRIx64 ", engine %#" PRIx64 "\n", i,
			       host->gpr[i], soft->gpr[i]);
	if ((host->rflags ^ soft->rflags) & flags)
		differ(DIFF_FLAGS, "#   rflags: host %#" PRIx64 ", engine %#" PRIx64 "\n",
		       host->rflags & flags, soft->rflags & flags);
	/* Of a null selector the kernel's IRET leaves no RPL behind. */
	for (unsigned i = 0; i < X86_NR_SEG; i++)
		if ((host->sel[i] & ~3 || soft->seg[i].selector & ~3) &&
		    host->sel[i] != soft->seg[i].selector)
			differ(DIFF_SEGMENT, "#   segment %u: host %#x, engine %#x\n", i,
			       host->sel[i], soft->seg[i].selector);
	if (host->gs_base != soft->seg[X86_GS].base)
		differ(DIFF_SEGMENT, "#   GS base: host %#" PRIx64 ", engine %#" PRIx64 "\n",
		       host->gs_base, soft->seg[X86_GS].base);
}

static void compare_memory(void)
{
	uint8_t host, guest;
	unsigned off;

	if (!memory_same(&off, &host, &guest))
		differ(DIFF_MEMORY, "#   memory at %#llx: host %#x, engine %#x\n", DATA_GVA + off,
		       host, guest);
}

static const struct program *running;

static void on_hang(int sig)
{
	diff.text[0] = 0;
	report(running);
	die("the host or the engine hangs in this code");
}

/* True when both agree, or differ for a known reason. */
static bool run_program(unsigned id, const struct program *p)
{
	static struct native_state host;
	static struct x86_state soft;
	struct engine_exit_info info = {0};
	enum engine_exit exit;

	diff.what = diff.len = 0;
	host = p->start;
	memory_put_code(p, true);
	running = p;
	alarm(HANG_S);
	native_run(&host);
	exit = engine_run(p, &info, &soft);
	memory_put_code(p, false);
	if (exit != ENGINE_EXIT_DEBUG)
		differ(~0u, "#   engine exit %d: %s\n", exit, info.message);
	compare_exception(&host, &soft, &info);
	compare_registers(p, &host, &soft);
	compare_xsave(host.xsave, soft.xsave);
	compare_memory();
	if (!diff.what)
		return true;
	memory_sync();
	if (known_difference(p, diff.what, &host, &soft, &info))
		return true;
	if (bad_of[id] < MAX_REPORTS)
		report(p);
	return false;
}

/* --- the whole ----------------------------------------------------------------------------------
 */

// clang-format off
static const char *const class_names[] = {
	[CLASS_GPR] = "integer instructions",
	[CLASS_VEXGPR] = "BMI instructions",
	[CLASS_X87] = "x87 instructions",
	[CLASS_MMX] = "MMX instructions",
	[CLASS_SSE] = "SSE instructions",
	[CLASS_AVX] = "AVX instructions",
	[CLASS_AVX512] = "AVX-512 instructions",
	[CLASS_K] = "opmask instructions",
	[CLASS_FWAIT] = "FWAIT",
};
// clang-format on

static struct {
	const char *name; /* rows that begin with this, or NULL */
	int mode;         /* or -1 */
} only = {.mode = -1};

static bool wanted(enum insn_mode mode, unsigned id)
{
	return gen_row(mode, id)->nr && (only.mode < 0 || only.mode == (int)mode) &&
	       (!only.name || !strncmp(insn_rows[id].name, only.name, strlen(only.name)));
}

static bool wanted_at_all(unsigned id)
{
	return wanted(INSN_MODE_64, id) || wanted(INSN_MODE_32, id) || wanted(INSN_MODE_16, id);
}

/* Half of the cases in 64-bit mode, where the row exists there. */
static bool pick_mode(unsigned id, enum insn_mode *mode)
{
	static const enum insn_mode modes[] = {INSN_MODE_64, INSN_MODE_64, INSN_MODE_64,
					       INSN_MODE_64, INSN_MODE_32, INSN_MODE_32,
					       INSN_MODE_32, INSN_MODE_16};

	*mode = modes[gen_random() % ARRAY_SIZE(modes)];
	return wanted(*mode, id);
}

static void run_case(unsigned id)
{
	static struct program p;
	const struct gen_row *r;
	enum insn_mode mode;
	struct insn in;

	for (unsigned tries = 0; tries < 100; tries++) {
		if (!pick_mode(id, &mode))
			continue;
		r = gen_row(mode, id);
		in = r->stock[gen_random() % r->nr];
		gen_vary(&in, mode);
		if (!program_make(&p, mode, &in))
			continue;
		cases_of[id]++;
		bad_of[id] += !run_program(id, &p);
		return;
	}
}

static void print_class(unsigned cls, unsigned nr_rows)
{
	unsigned long cases = 0, bad = 0;

	for (unsigned id = 0; id < INSN_NR_IDS; id++) {
		if (insn_rows[id].cls != cls)
			continue;
		cases += cases_of[id];
		bad += bad_of[id];
		if (bad_of[id])
			printf("# %lu differences in row %u %s\n", bad_of[id], id,
			       insn_rows[id].name);
	}
	printf("%sok %u - %s: %u rows, %lu of %lu cases agree with the host%s\n", bad ? "not " : "",
	       cls + 1, class_names[cls], nr_rows, cases - bad, cases,
	       nr_rows ? "" : " # SKIP none here");
	fflush(stdout);
}

/* Every row of a class in turn, until its share of the cases is used up. */
static void run_class(unsigned cls, unsigned long share)
{
	unsigned long done = 0;
	unsigned nr_rows = 0;

	for (unsigned id = 0; id < INSN_NR_IDS; id++)
		nr_rows += insn_rows[id].cls == cls && wanted_at_all(id);
	while (nr_rows && done < share)
		for (unsigned id = 0; id < INSN_NR_IDS && done < share; id++)
			if (insn_rows[id].cls == cls && wanted_at_all(id)) {
				run_case(id);
				done++;
			}
	print_class(cls, nr_rows);
}

static void run_all(unsigned long cases, uint64_t seed)
{
	unsigned nr_rows[ARRAY_SIZE(class_names)] = {0}, total = 0;

	for (unsigned id = 0; id < INSN_NR_IDS; id++)
		if (wanted_at_all(id)) {
			nr_rows[insn_rows[id].cls]++;
			total++;
		}
	printf("1..%zu\n# %u rows of %u have encodings to test; seed %" PRIu64 "\n",
	       ARRAY_SIZE(class_names), total, (unsigned)INSN_NR_IDS, seed);
	fflush(stdout);
	for (unsigned c = 0; c < ARRAY_SIZE(class_names); c++)
		run_class(c, total ? cases * nr_rows[c] / total : 0);
	known_print();
}

/* --- --list -------------------------------------------------------------------------------------
 */

static void list_row(unsigned id, const char *why)
{
	if (why)
		printf("%5u %-34s -       %s\n", id, insn_rows[id].name, why);
	else
		printf("%5u %-34s %2u %2u %2u  %lu cases\n", id, insn_rows[id].name,
		       gen_row(INSN_MODE_64, id)->nr, gen_row(INSN_MODE_32, id)->nr,
		       gen_row(INSN_MODE_16, id)->nr, cases_of[id]);
}

/* Encodings in stock in 64-, 32- and 16-bit mode, or why there is none. */
static void list(unsigned long cases)
{
	unsigned nr[2] = {0};

	run_all(cases, 1);
	for (unsigned pass = 0; pass < 2; pass++) {
		printf("\n%s\n", pass ? "Not tested:"
				      : "Tested:   row, encodings in stock in 64-, 32- "
					"and 16-bit mode, cases run");
		for (unsigned id = 0; id < INSN_NR_IDS; id++) {
			const char *why = gen_row_excluded(id);

			if (!why && !wanted_at_all(id))
				why = gen_row_absent(id);
			if (!!why != pass)
				continue;
			nr[pass]++;
			list_row(id, why);
		}
	}
	printf("\n%u rows tested, %u not\n", nr[0], nr[1]);
}

/* LSL and RDPID tell which CPU this is: stay on it. */
static void stay_here(void)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(sched_getcpu(), &set);
	sched_setaffinity(0, sizeof(set), &set);
}

int main(int argc, char **argv)
{
	const struct sigaction hang = {.sa_handler = on_hang, .sa_flags = SA_ONSTACK};
	bool listing = argc > 1 && !strcmp(argv[1], "--list");
	const char *count = argc > 1 + listing ? argv[1 + listing] : NULL;
	unsigned long cases = count ? strtoul(count, NULL, 0) : 20000;
	uint64_t seed = !listing && argc > 2 ? strtoull(argv[2], NULL, 0) : 1;

	if (!listing && argc > 3)
		only.name = argv[3];
	if (!listing && argc > 4)
		only.mode = atoi(argv[4]) / 32; /* 16 32 64 */
	setvbuf(stdout, NULL, _IOLBF, 0);
#ifdef __SANITIZE_ADDRESS__
	/* On the host, random addresses would reach the sanitizer's own memory and change it. */
	printf("1..0 # SKIP not under an address sanitizer\n");
	return 0;
#endif
	stay_here();
	native_init();
	sigaction(SIGALRM, &hang, NULL);
	engine_create();
	gen_seed(seed);
	gen_build(&truth_model, BUILD_TRIES);
	memory_random();
	if (listing)
		list(cases);
	else
		run_all(cases, seed);
	return 0;
}
