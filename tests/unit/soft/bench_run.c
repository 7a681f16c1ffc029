/* How fast guest code runs: compiled C as guest code, in a flat long-mode guest, and natively.
 *
 * The guest is this program's own section "guest", copied into guest memory: same ISA, and it calls
 * nothing outside.  Not a test; `meson test --benchmark soft-run` or run it by hand:
 *
 *	BENCH_ONLY=sort SOFT_OPTIONS=tier=translate bench-soft-run times_native
 *
 * Instructions are counted by the interpreter, and by the translator with its option `count`. */
#include "fake_engine_ops.h"

#include <sys/mman.h>
#include <time.h>

#define GUEST __attribute__((section("guest"), noinline, used))
#define HEAP  ((uint64_t *)0x100000) /* guest memory the workloads may use: 1 MiB */

extern const uint8_t __start_guest[], __stop_guest[];

static inline uint64_t next_random(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	*s ^= *s << 17;
	return *s;
}

/* Register arithmetic with branches. */
GUEST static uint64_t guest_alu(uint64_t n)
{
	uint64_t a = 1, b = 2, c = 0;

	for (uint64_t i = 0; i < n; i++) {
		a = a * 3 + i;
		if (a & 4)
			b ^= a >> 3;
		else
			c += b;
	}
	return a + b + c;
}

GUEST static uint64_t guest_fib(uint64_t n)
{
	return n < 2 ? n : guest_fib(n - 1) + guest_fib(n - 2);
}

/* Loads, stores, compares, unpredictable branches. */
GUEST static uint64_t guest_sort(uint64_t n)
{
	uint64_t *a = HEAP, seed = 88172645463325252ull;

	for (uint64_t i = 0; i < n; i++)
		a[i] = next_random(&seed) % 1000000;
	for (uint64_t gap = n / 2; gap; gap /= 2)
		for (uint64_t i = gap; i < n; i++) {
			uint64_t v = a[i], j = i;

			for (; j >= gap && a[j - gap] > v; j -= gap)
				a[j] = a[j - gap];
			a[j] = v;
		}
	return a[n / 2];
}

struct node {
	struct node *next;
	uint64_t key, value;
};

/* Hash table of linked nodes: dependent loads, calls, byte work. */
GUEST static uint64_t guest_hash_bytes(const uint8_t *p, uint64_t len)
{
	uint64_t h = 1469598103934665603ull;

	for (uint64_t i = 0; i < len; i++)
		h = (h ^ p[i]) * 1099511628211ull;
	return h;
}

GUEST static uint64_t guest_table(uint64_t n)
{
	struct node **head = (struct node **)HEAP, *pool = (struct node *)(HEAP + 1024);
	uint64_t used = 0, found = 0, seed = 42;

	for (unsigned i = 0; i < 1024; i++)
		head[i] = NULL;
	for (uint64_t i = 0; i < n; i++) {
		uint64_t key = next_random(&seed) % 20000;
		uint64_t h = guest_hash_bytes((const uint8_t *)&key, 4) % 1024;
		struct node *e = head[h];

		while (e && e->key != key)
			e = e->next;
		if (e) {
			e->value++;
			found++;
		} else {
			e = &pool[used++];
			*e = (struct node){head[h], key, 1};
			head[h] = e;
		}
	}
	return found;
}

/* A little bytecode machine: what interpreters do. */
GUEST static uint64_t guest_vm(uint64_t n)
{
	const uint64_t prog = 0x04010300020100; /* opcodes, one a byte */
	uint64_t acc = 1, x = 7, steps = 0, pc = 0;

	while (steps++ < n) {
		uint8_t op = (uint8_t)(prog >> pc * 8);

		if (op == 0)
			acc += x;
		else if (op == 1)
			x ^= acc << 1;
		else if (op == 2)
			acc = acc >> 3 | acc << 61;
		else if (op == 3)
			HEAP[acc % 512] += x;
		else
			pc = (uint64_t)-1;
		pc++;
	}
	return acc;
}

/* Fresh code: writes a function of 8 instructions into each of n pages and calls it twice. */
GUEST static uint64_t guest_fresh(uint64_t n)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < n; i++) {
		uint64_t *p = (uint64_t *)(0x200000 + i * 4096);

		p[0] = 0xc0ffc0ffc0ffc031; /* xor eax, eax; inc eax x 3 */
		p[1] = 0xc3c0ffc0ffc0ff90; /* nop; inc eax x 3; ret */
		for (unsigned j = 0; j < 2; j++)
			sum += ((uint64_t(*)(void))(uintptr_t)p)();
	}
	return sum;
}

/* Many blocks: calls one function in each of 1024 pages, over and over. */
GUEST static uint64_t guest_spread(uint64_t n)
{
	uint64_t sum = guest_fresh(1024);

	for (uint64_t i = 0; i < n; i++)
		sum += ((uint64_t(*)(void))(0x200000 + i % 1024 * 4096))();
	return sum;
}

/* x87: a series, with operands in memory, conversions and a comparison. */
GUEST static uint64_t guest_x87(uint64_t n)
{
	uint64_t *out = HEAP, odd = 1, less = 0;

	__asm__ volatile("fninit");
	for (uint64_t i = 0; i < n; i++, odd += 2) {
		out[64] = odd;
		__asm__ volatile("fildll %1; fld1; fdivp; faddl %0; fstl %0; fldz; fcomip %%st(1), "
				 "%%st; fstp %%st(0); adc $0, %2"
				 : "+m"(out[i % 64]), "+m"(out[64]), "+r"(less)
				 :
				 : "cc");
	}
	return out[0] + out[63] + less;
}

/* memset and memcpy of 64 to 4096 bytes by REP, as kernels do them. */
GUEST static uint64_t guest_rep(uint64_t n)
{
	uint8_t *a = (uint8_t *)HEAP, *b = a + 128 * KiB;

	for (uint64_t i = 0; i < n; i++) {
		uint64_t len = 64 + i * 72 % 4032;
		void *to = a + i % 16 * 4096 + i % 64, *from = to;

		__asm__ volatile("rep stosb" : "+D"(to), "+c"(len) : "a"(i) : "memory");
		len = 64 + i * 72 % 4032;
		to = b + i % 16 * 4096;
		__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(len) : : "memory");
	}
	return b[4096] + b[64];
}

/* Short strings, one element at a time. */
GUEST static uint64_t guest_strings(uint64_t n)
{
	uint8_t *a = (uint8_t *)HEAP;
	uint64_t sum = 0;

	for (uint64_t i = 0; i < n; i++) {
		void *from = a + i % 1024, *to = a + 2048 + i % 1024;
		uint64_t left = 20, v;

		__asm__ volatile("lodsb" : "+S"(from), "=a"(v) : : "memory");
		__asm__ volatile("stosb ; movsb" : "+S"(from), "+D"(to) : "a"(v + 1) : "memory");
		__asm__ volatile("repne scasb" : "+D"(to), "+c"(left) : "a"(7) : "cc", "memory");
		sum += left + (v & 0xff);
	}
	return sum;
}

struct workload {
	const char *name;
	uint64_t (*fn)(uint64_t n);
	uint64_t n;
};

static const struct workload workloads[] = {
	{"alu", guest_alu, 5000000},       {"fib", guest_fib, 30},
	{"sort", guest_sort, 100000},      {"table", guest_table, 400000},
	{"vm", guest_vm, 4000000},         {"fresh", guest_fresh, 1400},
	{"spread", guest_spread, 1000000}, {"x87", guest_x87, 1000000},
	{"rep", guest_rep, 200000},        {"strings", guest_strings, 300000},
};

static uint64_t cpu_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

/* The same function here, with the guest's memory at the same addresses. */
static uint64_t native(const struct workload *w, uint64_t *result)
{
	uint64_t us = cpu_us();

	*result = w->fn(w->n);
	return MAX(cpu_us() - us, 1);
}

static void bench(struct soft_guest *g, const struct workload *w)
{
	static const uint8_t start[] = {0xff, 0xd0, 0xf4}; /* call rax; hlt */
	struct engine_stats before, after;
	uint64_t us, insns, here, result;

	sg_put(g, SG_DATA, __start_guest, (uint64_t)(__stop_guest - __start_guest));
	g->state.gpr[X86_RAX] =
		SG_DATA + (uint64_t)((const uint8_t *)(uintptr_t)w->fn - __start_guest);
	g->state.gpr[X86_RDI] = w->n;
	g->state.gpr[X86_RSP] = 0x80000;
	engine_soft.cpu_stats(g->cpu[0], &before);
	us = cpu_us();
	CHECK_EQ(ENGINE_EXIT_HALTED, soft_guest_run_code(g, start, sizeof(start)));
	us = cpu_us() - us;
	engine_soft.cpu_stats(g->cpu[0], &after);
	insns = after.insns - before.insns;
	here = native(w, &result);
	CHECK_EQ(result, g->state.gpr[X86_RAX]);
	printf("# %-6s %10" PRIu64 " insns, %7" PRIu64 " us, native %6" PRIu64 " us: %3" PRIu64
	       ".%02" PRIu64 " times\n",
	       w->name, insns, us, here, us / here, us * 100 / here % 100);
}

TEST(times_native)
{
	struct soft_guest *g = soft_guest_create(1);
	void *heap = mmap(HEAP, 8 * MiB, PROT_READ | PROT_WRITE | PROT_EXEC,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	const char *only = getenv("BENCH_ONLY");

	CHECK_EQ((uintptr_t)HEAP, (uintptr_t)heap);
	for (unsigned i = 0; i < sizeof(workloads) / sizeof(*workloads); i++)
		if (!only || !strcmp(only, workloads[i].name))
			bench(g, &workloads[i]);
	soft_guest_destroy(g);
}
