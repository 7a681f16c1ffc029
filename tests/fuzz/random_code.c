/* random_code.c - a guest that runs random bytes, in every mode, never crashes or hangs us.
 *
 *   random-code SECONDS [START]      each mode for so long; START (1) chooses the cases
 *   random-code --case MODE CASE     one of them again
 *
 * One TAP line per mode; the last two, but in lock step, run two vCPUs at once, that write each
 * other's code, tables and stacks.  A case that takes longer than its kicks allow is a hang: see
 * on_hang. */
#include "cpu_case.h"
#include "insn_random.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

enum { INPUT_MAX = 4096, HANG_S = 30, NR_SMP = 2, NR_TESTS = CASE_NR_MODES + NR_SMP };

static struct case_vm *vms[2];
static struct case_vm *_Atomic running;
static timer_t timer;
static const char *now_mode;
static uint64_t now_case;

/* --- time ---------------------------------------------------------------------------------------
 */

static void on_timer(int sig)
{
	struct case_vm *v = atomic_load(&running);

	(void)sig;
	for (unsigned i = 0; v && i < CASE_CPUS && v->cpu[i]; i++)
		engine_soft.cpu_kick(v->cpu[i]);
}

static void on_death(int sig)
{
	fprintf(stderr, "# %s: random-code --case %s %llu\n",
		sig == SIGALRM ? "the vCPU did not heed its kicks" : "died", now_mode,
		(unsigned long long)now_case);
	signal(sig, SIG_DFL);
	signal(SIGABRT, SIG_DFL);
	abort();
}

static void case_slice_begin(struct case_vm *v)
{
	const struct itimerspec t = {.it_value = {.tv_nsec = CASE_SLICE_NS},
				     .it_interval = {.tv_nsec = CASE_SLICE_NS}};

	atomic_store(&running, v);
	timer_settime(timer, 0, &t, NULL);
}

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void setup(void)
{
	static const int deadly[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT, SIGALRM};
	struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
	struct sigaction sa = {.sa_handler = on_timer, .sa_flags = SA_RESTART};

	for (unsigned i = 0; i < ARRAY_SIZE(deadly); i++) /* the engine puts its own before these */
		signal(deadly[i], on_death);
	if (sigaction(SIGRTMIN, &sa, NULL) || timer_create(CLOCK_MONOTONIC, &ev, &timer))
		abort();
}

/* --- making cases -------------------------------------------------------------------------------
 */

/* Instructions that change how the CPU works, which random bytes seldom spell. */
static const struct snippet {
	uint8_t len, bytes[7];
} snippets[] = {
	{3, {0x0f, 0x22, 0xc0}},
	{3, {0x0f, 0x22, 0xd8}},
	{3, {0x0f, 0x22, 0xe0}},
	{3, {0x0f, 0x23, 0xf8}},
	{3, {0x0f, 0x23, 0xc1}},
	{2, {0x0f, 0x30}},
	{2, {0x0f, 0x32}},
	{3, {0x0f, 0x01, 0x16}},
	{3, {0x0f, 0x01, 0x1e}},
	{3, {0x0f, 0x00, 0xd8}},
	{3, {0x0f, 0x00, 0xd0}},
	{3, {0x0f, 0x01, 0xf0}},
	{3, {0x0f, 0x01, 0x3f}},
	{3, {0x0f, 0x01, 0xd1}},
	{3, {0x0f, 0x01, 0xef}},
	{3, {0x0f, 0x01, 0xf8}},
	{2, {0x0f, 0x05}},
	{3, {0x48, 0x0f, 0x07}},
	{2, {0x0f, 0x34}},
	{2, {0x0f, 0x35}},
	{1, {0xcf}},
	{2, {0x48, 0xcf}},
	{1, {0xcb}},
	{1, {0x9d}},
	{1, {0x9c}},
	{2, {0xcd, 0x80}},
	{1, {0xcc}},
	{1, {0xf1}},
	{1, {0xfb}},
	{1, {0xfa}},
	{1, {0xf4}},
	{2, {0x8e, 0xd8}},
	{2, {0x8e, 0xd0}},
	{2, {0x8e, 0xe0}},
	{1, {0x17}},
	{4, {0xc8, 0x20, 0x00, 0x1f}},
	{2, {0xf3, 0xa4}},
	{2, {0xf3, 0xab}},
	{3, {0xf3, 0x48, 0xa5}},
	{2, {0xf2, 0xae}},
	{2, {0xf3, 0xa6}},
	{2, {0xf3, 0x6c}},
	{2, {0xf3, 0x6e}},
	{1, {0xec}},
	{1, {0xef}},
	{3, {0x0f, 0xae, 0x00}},
	{3, {0x0f, 0xae, 0x08}},
	{3, {0x0f, 0xae, 0x20}},
	{3, {0x0f, 0xae, 0x28}},
	{3, {0x0f, 0xae, 0x10}},
	{3, {0x0f, 0xc7, 0x20}},
	{3, {0x0f, 0xc7, 0x18}},
	{4, {0xf0, 0x0f, 0xc7, 0x0f}},
	{4, {0xf0, 0x0f, 0xb1, 0x0f}},
	{5, {0x66, 0x0f, 0x38, 0x82, 0x07}},
	{2, {0x0f, 0xa2}},
	{2, {0x0f, 0x31}},
	{2, {0x0f, 0x0b}},
	{2, {0x0f, 0x77}},
	{2, {0xdf, 0xe0}},
	{2, {0xdd, 0x20}},
	{2, {0xdd, 0x30}},
	{2, {0xd9, 0x28}},
	{7, {0xea, 0x00, 0x02, 0x01, 0x00, 0x08, 0x00}},
	{7, {0x9a, 0x00, 0x02, 0x01, 0x00, 0xf3, 0x00}},
	{7, {0x9a, 0x00, 0x02, 0x00, 0x00, 0xe3, 0x00}},
	{3, {0x88, 0x47, 0x01}},
	{3, {0x48, 0x89, 0x07}},
	{2, {0xeb, 0x80}},
	{2, {0x60, 0x61}},
	{2, {0x0f, 0xaa}},
	{2, {0x0f, 0x09}},
};

static uint32_t random_immediate(struct insn_random *r)
{
	static const uint32_t pool[] = {
		CASE_CODE,  CASE_DATA,  CASE_GDT,   CASE_PT,    CASE_STACK, CASE_IDT,   0x80000011,
		0x60000010, 0x80050033, 0x000006b0, 0xc0000080, 0xc0000081, 0xc0000100, 0x800,
		0x1b,       0x3b,       0x277,      0xb0,       0xf3,       0x38,       8,
		0xffffffff, 0x10,       0xe3,       0x176,      0xc0000102, 0x40000,    7};
	uint64_t v = insn_random_next(r);

	return v & 1 ? pool[(v >> 8) % ARRAY_SIZE(pool)] : (uint32_t)(v >> 32);
}

static unsigned put_piece(struct insn_random *r, uint8_t *at)
{
	uint64_t v = insn_random_next(r);
	const struct snippet *s = &snippets[(v >> 8) % ARRAY_SIZE(snippets)];
	uint32_t imm;

	switch (v & 7) {
	case 0: /* mov reg, imm */
		imm = random_immediate(r);
		at[0] = (uint8_t)(0xb8 + (v >> 16) % 8);
		memcpy(at + 1, &imm, 4);
		return 5;
	case 1 ... 2:
		memcpy(at, s->bytes, s->len);
		return s->len;
	case 3: /* jump about */
		at[0] = (uint8_t)(0x70 + (v >> 16) % 16);
		at[1] = (uint8_t)(v >> 24);
		return 2;
	default:
		insn_random_bytes(r, at);
		return 2 + (v >> 16) % 8;
	}
}

/* The header's bytes are random, so all of it is covered; the code is a mixture. */
static size_t make_case(struct insn_random *r, uint8_t *in)
{
	size_t n = 16 + insn_random_next(r) % 200, end = 300 + insn_random_next(r) % 3000;

	for (size_t i = 0; i < n; i++)
		in[i] = (uint8_t)(insn_random_next(r) >> 32);
	while (n < end)
		n += put_piece(r, in + n);
	return n;
}

static void case_seed(struct insn_random *r, uint64_t number)
{
	r->state = (number + 1) * 0x9e3779b97f4a7c15ull;
}

/* --- one vCPU -----------------------------------------------------------------------------------
 */

static void one_case(unsigned mode, uint64_t number)
{
	static uint8_t bytes[INPUT_MAX];
	struct case_vm *v = vms[number & 1];
	struct insn_random r;
	struct case_input in = {bytes, 0};

	case_seed(&r, number);
	in.len = make_case(&r, bytes);
	now_case = number;
	alarm(HANG_S);
	case_load_memory(v, case_read_cpu(v, 0, mode, &in), &in);
	if (!case_load_cpu(v, 0))
		return;
	case_slice_begin(v);
	case_run_cpu(v, 0);
	case_check_cpu(v, 0);
	if (v->runs++ % 64 == 0)
		case_check_tlb(v, 0);
}

/* --- two vCPUs ----------------------------------------------------------------------------------
 */

static struct smp {
	pthread_barrier_t begin, end;
	pthread_t thread;
	struct case_vm *v;
	atomic_bool over;
	bool go[CASE_CPUS];
} smp;

static void *second_cpu(void *arg)
{
	(void)arg;
	for (;;) {
		pthread_barrier_wait(&smp.begin);
		if (atomic_load(&smp.over))
			return NULL;
		if (smp.go[1])
			case_run_cpu(smp.v, 1);
		pthread_barrier_wait(&smp.end);
	}
}

static void smp_case(unsigned which, uint64_t number)
{
	static uint8_t bytes[INPUT_MAX];
	struct insn_random r;
	struct case_input in = {bytes, 0}, same;
	unsigned mode, base = 0;

	case_seed(&r, number);
	in.len = make_case(&r, bytes);
	mode = which ? CASE_LONG : (unsigned)(insn_random_next(&r) % CASE_NR_MODES);
	now_case = number;
	alarm(HANG_S);
	same = in; /* the other one begins much the same, elsewhere in the code */
	for (unsigned n = 0; n < CASE_CPUS; n++)
		base = case_read_cpu(smp.v, n, mode, n ? &same : &in);
	smp.v->state[1].rip += number % 64;
	smp.v->state[1].gpr[X86_RDI] = CASE_CODE + number % 512;
	case_load_memory(smp.v, base, &in);
	for (unsigned n = 0; n < CASE_CPUS; n++)
		smp.go[n] = case_load_cpu(smp.v, n);
	case_slice_begin(smp.v);
	pthread_barrier_wait(&smp.begin);
	if (smp.go[0])
		case_run_cpu(smp.v, 0);
	pthread_barrier_wait(&smp.end);
	for (unsigned n = 0; n < CASE_CPUS; n++)
		case_check_cpu(smp.v, n);
	if (smp.v->runs++ % 64 == 0)
		case_check_tlb(smp.v, number & 1);
}

static void smp_begin(void)
{
	sigset_t timer_signal;

	sigemptyset(&timer_signal);
	sigaddset(&timer_signal, SIGRTMIN);
	smp.v = aligned_alloc(64, ALIGN_UP(sizeof(*smp.v), 64));
	case_vm_create(smp.v, 2, "AuthenticAMD");
	atomic_store(&smp.over, false);
	pthread_barrier_init(&smp.begin, NULL, 2);
	pthread_barrier_init(&smp.end, NULL, 2);
	if (pthread_create(&smp.thread, NULL, second_cpu, NULL))
		abort();
}

static void smp_end(void)
{
	atomic_store(&smp.over, true);
	pthread_barrier_wait(&smp.begin);
	pthread_join(smp.thread, NULL);
	pthread_barrier_destroy(&smp.begin);
	pthread_barrier_destroy(&smp.end);
	atomic_store(&running, NULL);
	case_vm_destroy(smp.v);
	free(smp.v);
}

/* --- the whole ----------------------------------------------------------------------------------
 */

static const char *test_name(unsigned t)
{
	static const char *const smp_names[] = {"two-any", "two-long"};

	return t < CASE_NR_MODES ? case_mode_names[t] : smp_names[t - CASE_NR_MODES];
}

static void begin(unsigned t)
{
	static const char *const vendors[] = {"GenuineIntel", "AuthenticAMD"};

	now_mode = test_name(t);
	if (t >= CASE_NR_MODES) {
		smp_begin();
		return;
	}
	for (unsigned i = 0; i < 2; i++) {
		vms[i] = aligned_alloc(64, ALIGN_UP(sizeof(*vms[i]), 64));
		case_vm_create(vms[i], 1, vendors[i]);
	}
}

static uint64_t instructions(unsigned t)
{
	struct case_vm *v[] = {t < CASE_NR_MODES ? vms[0] : smp.v,
			       t < CASE_NR_MODES ? vms[1] : NULL};
	struct engine_stats st;
	uint64_t n = 0;

	for (unsigned i = 0; i < 2 && v[i]; i++)
		for (unsigned c = 0; c < CASE_CPUS && v[i]->cpu[c]; c++) {
			engine_soft.cpu_stats(v[i]->cpu[c], &st);
			n += st.insns;
		}
	return n;
}

static void end(unsigned t)
{
	const struct itimerspec never = {0};

	timer_settime(timer, 0, &never, NULL);
	alarm(0);
	if (t >= CASE_NR_MODES) {
		smp_end();
		return;
	}
	atomic_store(&running, NULL);
	for (unsigned i = 0; i < 2; i++) {
		case_vm_destroy(vms[i]);
		free(vms[i]);
	}
}

static void run_case(unsigned t, uint64_t number)
{
	if (t < CASE_NR_MODES)
		one_case(t, number);
	else
		smp_case(t - CASE_NR_MODES, number);
}

static void run_test(unsigned t, double limit, uint64_t start)
{
	double until = seconds() + limit;
	uint64_t number = start << 32;

	begin(t);
	do
		run_case(t, number++);
	while (seconds() < until);
	printf("ok %u - %s: %llu cases, %llu instructions\n", t + 1, test_name(t),
	       (unsigned long long)(number - (start << 32)), (unsigned long long)instructions(t));
	fflush(stdout);
	end(t);
}

/* vCPUs that write each other's memory do not run a block twice with one outcome. */
static unsigned nr_tests(void)
{
	return strstr(soft_options(), "lockstep") ? CASE_NR_MODES : NR_TESTS;
}

static int repeat(const char *mode, uint64_t number)
{
	for (unsigned t = 0; t < NR_TESTS; t++) {
		if (strcmp(mode, test_name(t)))
			continue;
		begin(t);
		for (unsigned i = 0; i < 20; i++) /* threads and timers do not repeat exactly */
			run_case(t, number);
		printf("%llu instructions\n", (unsigned long long)instructions(t));
		end(t);
		return 0;
	}
	fprintf(stderr, "random-code: no mode '%s'\n", mode);
	return 2;
}

int main(int argc, char **argv)
{
	double limit = argc > 1 ? atof(argv[1]) : 1;
	uint64_t start = argc > 2 ? strtoull(argv[2], NULL, 0) : 1;

	setup();
	if (argc > 3 && !strcmp(argv[1], "--case"))
		return repeat(argv[2], strtoull(argv[3], NULL, 0));
	printf("1..%u\n", nr_tests());
	for (unsigned t = 0; t < nr_tests(); t++)
		run_test(t, limit, start);
	return 0;
}
