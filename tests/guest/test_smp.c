/* test_smp.c - what two or more CPUs do to each other: code that one changes and another runs,
 * page tables with shootdowns, locked operations on every kind of operand, the order of loads and
 * stores, a device that writes over code.
 *
 * SDM 3A "Handling Self- and Cross-Modifying Code", "Memory Ordering", "Locked Atomic Operations",
 * "Propagation of Paging-Structure Changes to Multiple Processors"; AMD APM 2 "Memory System".
 *
 * Each test does rounds until a number or a time is reached, whichever is first: a busy host makes
 * it see less, never wait long.  What is checked must hold in every order of events. */
#include "apic.h"

enum { PAGE = 4096, SHOOT = 0xb0 };
#define HERE   (2ull << 39)
#define BUDGET 800000000ull /* TSC ticks for one test or row: a quarter of a second */

static unsigned cpus;
static u64 *pt;       /* maps HERE */
static u8 *frames[4]; /* of RAM, for it */

static u64 *map_table(u64 va)
{
	u64 *pdpt = page_alloc(), *pd = page_alloc(), *table = page_alloc();

	boot_pml4[va >> 39] = (u64)pdpt | 7;
	pdpt[0] = (u64)pd | 7;
	pd[0] = (u64)table | 7;
	return table;
}

static void flush_here(void)
{
	for (unsigned i = 0; i < 8; i++)
		invlpg((void *)(HERE + i * PAGE));
}

static bool setup(unsigned need)
{
	cpus = smp_count();
	apic_on();
	if (cpus < need) {
		guest_skip("too few CPUs");
		return false;
	}
	if (!pt) {
		pt = map_table(HERE);
		for (unsigned i = 0; i < ARRAY_SIZE(frames); i++)
			frames[i] = page_alloc_n(2); /* the second stays between them */
	}
	for (unsigned i = 0; i < ARRAY_SIZE(frames); i++)
		pt[i] = (u64)frames[i] | 7;
	flush_here();
	return true;
}

static void serialise(void)
{
	u32 r[4];

	cpuid(0, 0, r);
}

static void mfence(void)
{
	asm volatile("mfence" : : : "memory");
}

/* Rounds of a test: while (more(&r, n)). */
struct rounds {
	u64 end;
	unsigned n;
};

static bool more(struct rounds *r, unsigned max)
{
	if (!r->end)
		r->end = rdtsc() + BUDGET;
	return r->n++ < max && rdtsc() < r->end;
}

/* --- asking another CPU by an interrupt ----------------------------------------------------------
 */

static struct {
	volatile u32 asked, acked; /* numbers of requests */
	volatile bool hold;        /* stay in the handler until it is false */
	volatile bool held;
	volatile bool by_cr3; /* flush everything, not one page */
	const void *volatile page;
} shoot;

static void on_shoot(struct trap_frame *f)
{
	u32 n = shoot.asked;

	if (shoot.by_cr3)
		WRITE_CR(3, READ_CR(3));
	else if (shoot.page)
		invlpg(shoot.page);
	shoot.held = true;
	while (shoot.hold)
		asm volatile("pause");
	shoot.held = false;
	serialise();
	shoot.acked = n;
	apic_eoi();
}

static void shoot_send(unsigned cpu)
{
	shoot.asked++;
	apic_send(cpu, ICR_ASSERT | SHOOT);
}

/* CPU `cpu` has dropped what it knew of the page, and serialised, when this returns. */
static bool shootdown(unsigned cpu, const void *page)
{
	shoot.page = page;
	shoot_send(cpu);
	return CHECK(WAIT_FOR(shoot.acked == shoot.asked));
}

/* As above; it stays in its handler until shoot_release(). */
static bool shoot_hold(unsigned cpu, const void *page)
{
	shoot.page = page;
	shoot.hold = true;
	shoot_send(cpu);
	return CHECK(WAIT_FOR(shoot.held));
}

static bool shoot_release(void)
{
	shoot.hold = false;
	return CHECK(WAIT_FOR(shoot.acked == shoot.asked));
}

/* --- a CPU that runs something until it is told to stop ------------------------------------------
 */

static struct {
	volatile bool stop, going;
	void (*volatile turn)(void);
} worker;

static void worker_main(void *arg)
{
	apic_on();
	asm volatile("sti");
	worker.going = true;
	while (!worker.stop)
		worker.turn();
	asm volatile("cli");
}

static bool worker_start(unsigned cpu, void (*turn)(void))
{
	trap_set_handler(SHOOT, on_shoot);
	shoot.hold = false;
	worker.stop = worker.going = false;
	worker.turn = turn;
	return CHECK(smp_run(cpu, worker_main, NULL)) && CHECK(WAIT_FOR(worker.going));
}

static void worker_stop(unsigned cpu)
{
	worker.stop = true;
	smp_wait(cpu);
}

/* --- code that another CPU changes ---------------------------------------------------------------
 */

typedef u32 (*routine)(void);
static volatile u32 written, seen_low, seen_high; /* versions of the code */
static routine volatile patched;

/* mov $v, %eax; ret, with the constant aligned, so that one store changes it. */
static u8 *put_routine(u8 *at, u32 v)
{
	at[3] = 0xb8;
	*(volatile u32 *)(at + 4) = v;
	at[8] = 0xc3;
	return at + 3;
}

/* What was read before the call is the least that the code may say, after it the most. */
static void run_patched(void)
{
	u32 low = shoot.acked, v = patched(), high = written;

	if (v < low)
		seen_low++;
	if (v > high)
		seen_high++;
}

/* For code that may not be found in the middle of itself. */
static void run_patched_closed(void)
{
	asm volatile("cli" : : : "memory");
	run_patched();
	asm volatile("sti" : : : "memory");
}

static const struct {
	const char *name;
	unsigned offset; /* in the page, of the constant */
} patch_rows[] = {
	{"in a page", 64},
	{"at its start", 4},
	{"at its end", PAGE - 8},
};

TEST(code_changed_before_an_interrupt)
{
	if (!setup(2))
		return;
	for (unsigned i = 0; i < ARRAY_SIZE(patch_rows); i++) {
		u8 *at = (u8 *)HERE + (patch_rows[i].offset ?: 4) - 4;
		struct rounds r = {0};

		shoot.page = NULL;
		shoot.asked = shoot.acked = written = seen_low = seen_high = 0;
		patched = (routine)(put_routine(at, 0));
		if (!worker_start(1, run_patched))
			return;
		while (more(&r, 3000)) {
			written++;
			*(volatile u32 *)(at + 4) = written;
			if (!shootdown(1, NULL))
				break;
		}
		worker_stop(1);
		CHECK_ROW(patch_rows[i].name, 0, seen_low);
		CHECK_ROW(patch_rows[i].name, 0, seen_high);
		CHECK(r.n > 1);
	}
}

/* The whole routine, one byte after the other and to another length, while its CPU is held. */
static void put_long_routine(u8 *at, u32 v, unsigned nops)
{
	u8 bytes[64];
	unsigned n = 0;

	for (; n < nops; n++)
		bytes[n] = 0x90;
	bytes[n++] = 0xb8;
	for (unsigned i = 0; i < 4; i++)
		bytes[n++] = v >> 8 * i;
	bytes[n++] = 0xc3;
	for (unsigned i = 0; i < n; i++)
		((volatile u8 *)at)[i] = bytes[i];
}

TEST(code_rewritten_while_its_cpu_is_held)
{
	struct rounds r = {0};

	if (!setup(2))
		return;
	shoot.asked = shoot.acked = written = seen_low = seen_high = 0;
	put_long_routine((u8 *)HERE + PAGE - 20, 0, 0);
	patched = (routine)(HERE + PAGE - 20);
	if (!worker_start(1, run_patched_closed))
		return;
	while (more(&r, 2000)) {
		if (!shoot_hold(1, NULL))
			break;
		/* up to 34 bytes: over the page's edge, or not */
		written++;
		put_long_routine((u8 *)HERE + PAGE - 20, written, written % 28);
		if (!shoot_release())
			break;
	}
	worker_stop(1);
	CHECK_EQ(0, seen_low);
	CHECK_EQ(0, seen_high);
}

static struct {
	volatile u32 turn, done, wrong;
} flag;

/* No interrupt: a flag, and the instruction that serialises. */
static void run_after_flag(void)
{
	u32 want = flag.turn;

	if (want == flag.done) {
		asm volatile("pause");
		return;
	}
	serialise();
	if (patched() != want)
		flag.wrong++;
	flag.done = want;
}

enum store { BY_MOV, BY_XCHG, BY_STOS, BY_MOVS, BY_SSE, BY_LOCK, BY_CMPXCHG8B, BY_BYTES, BY_DMA };
static const char *const store_names[] = {"MOV",    "XCHG",     "REP STOS",  "REP MOVS",
					  "MOVUPS", "LOCK ADD", "CMPXCHG8B", "byte by byte"};

static void store_by(enum store how, volatile u32 *at, u32 v)
{
	u32 block[4] = {v, at[1], at[2], at[3]}, old = *at;
	void *to = (void *)at, *from = block;
	u64 count = 4;

	switch (how) {
	case BY_MOV:
		*at = v;
		break;
	case BY_XCHG:
		asm volatile("xchg %0, %1" : "+r"(v), "+m"(*at));
		break;
	case BY_STOS:
		count = 1;
		asm volatile("rep stosl" : "+D"(to), "+c"(count) : "a"(v) : "memory");
		break;
	case BY_MOVS:
		asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(count) : : "memory");
		break;
	case BY_SSE:
		asm volatile("movups (%0), %%xmm0; movups %%xmm0, (%1)"
			     :
			     : "r"(from), "r"(to)
			     : "memory");
		break;
	case BY_LOCK:
		asm volatile("lock addl %1, %0" : "+m"(*at) : "r"(v - old));
		break;
	case BY_CMPXCHG8B:
		asm volatile("lock cmpxchg8b (%2)"
			     : "+a"(old), "+d"(block[1])
			     : "r"(at), "b"(v), "c"(block[1])
			     : "memory");
		break;
	default:
		for (unsigned i = 0; i < 4; i++)
			((volatile u8 *)at)[i] = v >> 8 * i;
	}
}

TEST(code_changed_before_a_flag)
{
	if (!setup(2))
		return;
	for (unsigned how = 0; how < ARRAY_SIZE(store_names); how++) {
		u8 *at = (u8 *)HERE + 256 + 16 * how;
		struct rounds r = {0};

		flag.turn = flag.done = flag.wrong = 0;
		patched = (routine)put_routine(at, 0);
		if (!worker_start(1, run_after_flag))
			return;
		while (more(&r, 1500)) {
			store_by(how, (u32 *)(at + 4), flag.turn + 1);
			flag.turn++;
			if (!CHECK(WAIT_FOR(flag.done == flag.turn)))
				break;
		}
		worker_stop(1);
		CHECK_ROW(store_names[how], 0, flag.wrong);
	}
}

/* A loop that nothing ever interrupts learns of its change all the same. */
CODE(".balign 16\n"
     "smp_loop: mov (%rsi), %ecx; .balign 4, 0x90; .skip 3, 0x90\n"
     "1:	mov $0, %eax; mov %eax, (%rdi); cmpb $0, (%rsi); je 1b; ret\n"
     "smp_loop_end:\n");
extern char smp_loop[], smp_loop_end[];
static volatile u32 loop_says;

static void run_loop(void)
{
	asm volatile("call *%2"
		     :
		     : "D"(&loop_says), "S"(&worker.stop), "r"(HERE + 1024)
		     : "rax", "rcx", "memory");
}

TEST(a_loop_learns_of_its_change)
{
	struct rounds r = {0};
	u8 *code = (u8 *)HERE + 1024;
	volatile u32 *constant = NULL;

	if (!setup(2))
		return;
	for (unsigned i = 0; i < (unsigned)(smp_loop_end - smp_loop); i++) {
		code[i] = smp_loop[i];
		if (i && code[i - 1] == 0xb8)
			constant = (u32 *)(code + i);
	}
	if (!CHECK_EQ(0, (u64)constant % 4) || !worker_start(1, run_loop))
		return;
	while (more(&r, 3000)) {
		*constant = r.n;
		if (!CHECK(WAIT_FOR(loop_says == r.n)))
			break;
	}
	worker_stop(1);
}

/* Two CPUs change code of one page at the same time, each its own, and run it. */
static volatile u32 own_wrong[2], own_rounds[2];

static void change_own(unsigned me, unsigned rounds)
{
	u8 *at = (u8 *)HERE + 512 + 16 * me; /* the same cache line */
	routine fn = (routine)put_routine(at, 0);
	struct rounds r = {0};

	while (more(&r, rounds)) {
		*(volatile u32 *)(at + 4) = r.n;
		if (fn() != r.n)
			own_wrong[me]++;
		own_rounds[me]++;
	}
}

static void change_own_other(void *arg)
{
	change_own(1, 5000);
}

TEST(each_changes_its_own_code)
{
	if (!setup(2) || !CHECK(smp_run(1, change_own_other, NULL)))
		return;
	change_own(0, 5000);
	smp_wait(1);
	CHECK_EQ(0, own_wrong[0]);
	CHECK_EQ(0, own_wrong[1]);
	CHECK(own_rounds[0] && own_rounds[1]);
}

/* --- a device that writes over code ------------------------------------------------------------
 *
 * The fw_cfg device copies an item to memory by DMA before the OUT that asks for it is complete:
 * item 0 begins with "QEMU", item 1 is a small number of other bytes. */

static struct {
	u32 control, length;
	u64 address;
} __attribute__((packed, aligned(16))) dma;

static bool fw_cfg_to(void *to, u16 item)
{
	u64 request = (u64)&dma;

	dma.control = __builtin_bswap32((u32)item << 16 | 8 | 2); /* select, read */
	dma.length = __builtin_bswap32(4);
	dma.address = __builtin_bswap64((u64)to);
	mfence();
	outl(0x514, __builtin_bswap32(request >> 32));
	outl(0x518, __builtin_bswap32((u32)request));
	return WAIT_FOR(!(*(volatile u32 *)&dma.control & ~__builtin_bswap32(1))) && !dma.control;
}

static bool has_fw_cfg(void)
{
	outw(0x510, 0);
	return inb(0x511) == 'Q' && inb(0x511) == 'E';
}

TEST(a_device_writes_over_code)
{
	u8 *at = frames[0] ? frames[0] + 2048 : NULL;
	struct rounds r = {0};
	u32 item[2];

	if (!setup(2))
		return;
	if (!has_fw_cfg()) {
		guest_skip("no fw_cfg device");
		return;
	}
	at = frames[0] + 2048;
	for (unsigned i = 0; i < 2; i++) {
		CHECK(fw_cfg_to(&item[i], i));
		CHECK(item[i] != 0);
	}
	CHECK(item[0] != item[1]);
	patched = (routine)put_routine(at, 0);
	flag.turn = flag.done = flag.wrong = 0;
	if (!worker_start(1, run_after_flag))
		return;
	while (more(&r, 1000)) {
		if (!CHECK(fw_cfg_to(at + 4, r.n % 2)) || !CHECK_EQ(item[r.n % 2], patched()))
			break;
		flag.turn = item[r.n % 2];
		if (!CHECK(WAIT_FOR(flag.done == flag.turn)))
			break;
	}
	worker_stop(1);
	CHECK_EQ(0, flag.wrong);
}

/* --- page tables -------------------------------------------------------------------------------
 */

static volatile u64 *const shared = (u64 *)HERE;
static volatile u64 epoch; /* what `shared` has to say at least once a shootdown is done */

static void read_shared(void)
{
	u64 low = shoot.acked, v = *shared, high = epoch;

	if (v < low)
		seen_low++;
	if (v > high)
		seen_high++;
}

static const struct {
	const char *name;
	bool by_cr3;
} flush_rows[] = {{"INVLPG", false}, {"MOV to CR3", true}};

/* The page moves from frame to frame, each with a higher number in it. */
TEST(a_page_moves)
{
	if (!setup(2))
		return;
	for (unsigned i = 0; i < ARRAY_SIZE(flush_rows); i++) {
		struct rounds r = {0};

		seen_low = seen_high = shoot.asked = shoot.acked = 0;
		shoot.by_cr3 = flush_rows[i].by_cr3;
		epoch = *shared = 0;
		if (!worker_start(1, read_shared))
			return;
		while (more(&r, 3000)) {
			u8 *next = frames[(epoch + 1) % ARRAY_SIZE(frames)];

			*(volatile u64 *)next = epoch + 1;
			epoch++;
			pt[0] = (u64)next | 7;
			invlpg((void *)HERE);
			if (!shootdown(1, (void *)HERE))
				break;
		}
		worker_stop(1);
		CHECK_ROW(flush_rows[i].name, 0, seen_low);
		CHECK_ROW(flush_rows[i].name, 0, seen_high);
	}
	shoot.by_cr3 = false;
}

/* The same with code in it. */
TEST(a_page_of_code_moves)
{
	struct rounds r = {0};

	if (!setup(2))
		return;
	seen_low = seen_high = shoot.asked = shoot.acked = written = 0;
	patched = (routine)(put_routine((u8 *)HERE, 0));
	if (!worker_start(1, run_patched))
		return;
	while (more(&r, 3000)) {
		u8 *next = frames[(written + 1) % ARRAY_SIZE(frames)];

		put_routine(next, written + 1);
		written++;
		pt[0] = (u64)next | 7;
		invlpg((void *)HERE);
		if (!shootdown(1, (void *)HERE))
			break;
	}
	worker_stop(1);
	CHECK_EQ(0, seen_low);
	CHECK_EQ(0, seen_high);
}

static volatile u32 faults;
static volatile bool protected;

static void add_shared(void)
{
	(*shared)++;
}

/* As a kernel does on a write to a shared page: wait until it may be written, then again. */
static void on_write_fault(struct trap_frame *f)
{
	faults++;
	asm volatile("sti" : : : "memory");
	while (protected)
		asm volatile("pause");
	asm volatile("cli" : : : "memory");
	invlpg((void *)HERE);
}

/* From the shootdown on no write gets through, as fork relies on. */
TEST(a_page_becomes_read_only)
{
	struct rounds r = {0};
	u64 changed = 0, clean = 0;

	if (!setup(2))
		return;
	faults = 0;
	protected = false;
	trap_set_handler(PF, on_write_fault);
	if (!worker_start(1, add_shared))
		return;
	while (more(&r, 1500)) {
		u64 before;

		protected = true;
		pt[0] &= ~2ull;
		invlpg((void *)HERE);
		if (!shootdown(1, (void *)HERE))
			break;
		before = *shared;
		for (unsigned i = 0; i < 200; i++)
			asm volatile("pause");
		changed += *shared != before;
		pt[0] |= 2;
		mfence();
		protected = false;
		WAIT_FOR(*shared != before);
		clean += !(pt[0] & BIT(6));
	}
	worker_stop(1);
	trap_set_handler(PF, NULL);
	CHECK_EQ(0, changed);
	CHECK_EQ(0, clean); /* dirty when it has been written */
}

/* Accessed and dirty bits that are cleared are set again by the next access. */
TEST(dirty_bits_come_back)
{
	struct rounds r = {0};
	u64 early = 0, missing = 0;

	if (!setup(2) || !worker_start(1, add_shared))
		return;
	while (more(&r, 1500)) {
		u64 before;

		if (!shoot_hold(1, (void *)HERE))
			break;
		__atomic_fetch_and(&pt[0], ~0x60ull, __ATOMIC_SEQ_CST);
		before = frames[0] == (u8 *)(pt[0] & ~0xfffull) ? *(volatile u64 *)frames[0] : 0;
		early += (pt[0] & 0x60) != 0;
		shoot.hold = false;
		/* It was flushed before the bits were cleared, and has not touched the page since.
		 */
		CHECK(WAIT_FOR(*(volatile u64 *)frames[0] != before));
		missing += (pt[0] & 0x60) != 0x60;
		CHECK(WAIT_FOR(shoot.acked == shoot.asked));
	}
	worker_stop(1);
	CHECK_EQ(0, early);
	CHECK_EQ(0, missing);
}

/* --- locked operations --------------------------------------------------------------------------
 */

static volatile unsigned lined_up;
static unsigned line_size;

/* All of line_size CPUs come here before one goes on. */
static void line_up(void)
{
	unsigned mine = __atomic_fetch_add(&lined_up, 1, __ATOMIC_SEQ_CST) / line_size + 1;

	while (lined_up < mine * line_size)
		asm volatile("pause");
}

enum { ADDS = 3000 };
static void *volatile lock_at;
static void (*volatile lock_op)(void *at);

static void lock_work(void *arg)
{
	void (*op)(void *) = lock_op;
	void *at = lock_at;

	line_up();
	for (unsigned i = 0; i < ADDS; i++)
		op(at);
}

#define LOCK_OP(id, text, ...)                                                                     \
	static void id(void *at)                                                                   \
	{                                                                                          \
		asm volatile(text : : "r"(at) : "memory", "cc", ##__VA_ARGS__);                    \
	}
LOCK_OP(inc8, "lock incb (%0)")
LOCK_OP(inc16, "lock incw (%0)")
LOCK_OP(inc32, "lock incl (%0)")
LOCK_OP(inc64, "lock incq (%0)")
LOCK_OP(add64, "lock addq $1, (%0)")
LOCK_OP(sub64, "lock subq $-1, (%0)")
LOCK_OP(xadd64, "mov $1, %%eax; lock xaddq %%rax, (%0)", "rax")
LOCK_OP(cmpxchg64, "mov (%0), %%rax; 1: lea 1(%%rax), %%rdx; lock cmpxchgq %%rdx, (%0); jne 1b",
	"rax", "rdx")
LOCK_OP(cmpxchg8b,
	"mov (%0), %%eax; mov 4(%0), %%edx; 1: mov %%eax, %%ebx; mov %%edx, %%ecx; add $1, %%ebx;"
	"adc $0, %%ecx; lock cmpxchg8b (%0); jne 1b",
	"rax", "rbx", "rcx", "rdx")
LOCK_OP(cmpxchg16b,
	"mov (%0), %%rax; mov 8(%0), %%rdx; 1: lea 1(%%rax), %%rbx; lea -1(%%rdx), %%rcx;"
	"lock cmpxchg16b (%0); jne 1b",
	"rax", "rbx", "rcx", "rdx")
/* A lock of one bit, and of XCHG, around an addition that is not atomic. */
LOCK_OP(bts_lock, "1: lock btsl $31, 8(%0); jc 1b; incq (%0); lock btrl $31, 8(%0)")
LOCK_OP(xchg_lock,
	"1: mov $1, %%eax; xchg %%eax, 8(%0); test %%eax, %%eax; jnz 1b; incq (%0); movl $0, 8(%0)",
	"rax")

enum place { ALIGNED, SPLIT_LINE, SPLIT_PAGE, SPLIT_FRAMES, IN_CODE, CODE_SPLIT, NR_PLACES };
static const char *const place_names[] = {
	"aligned",          "over a cache line", "over pages in a row",
	"over pages apart", "beside code",       "over a page of code"};

static const struct {
	const char *name;
	void (*op)(void *);
	u8 size;
	bool aligned_only, locks;
} lock_rows[] = {
	{"INC m8", inc8, 1, true, false},
	{"INC m16", inc16, 2, false, false},
	{"INC m32", inc32, 4, false, false},
	{"INC m64", inc64, 8, false, false},
	{"ADD", add64, 8, false, false},
	{"SUB", sub64, 8, false, false},
	{"XADD", xadd64, 8, false, false},
	{"CMPXCHG", cmpxchg64, 8, false, false},
	{"CMPXCHG8B", cmpxchg8b, 8, false, false},
	{"CMPXCHG16B", cmpxchg16b, 16, true, false},
	{"a lock of BTS", bts_lock, 8, true, true},
	{"a lock of XCHG", xchg_lock, 8, true, true},
};

static u8 *place(enum place p, unsigned size)
{
	static u8 *row;

	if (!row)
		row = page_alloc_n(2);
	switch (p) {
	case ALIGNED:
		return (u8 *)HERE + 2 * PAGE + 128;
	case SPLIT_LINE:
		return (u8 *)HERE + 2 * PAGE + 192 - size / 2;
	case SPLIT_PAGE: /* identity-mapped */
		return row + PAGE - size / 2;
	case SPLIT_FRAMES:
		return (u8 *)HERE + 3 * PAGE - size / 2;
	case IN_CODE:
		return (u8 *)HERE + 128;
	default:
		return (u8 *)HERE + PAGE - size / 2;
	}
}

static void clear(u8 *at, unsigned size)
{
	for (unsigned i = 0; i < size; i++)
		((volatile u8 *)at)[i] = 0;
}

/* CPUs add to one operand; nothing is lost. */
static void lock_row(unsigned row, enum place where)
{
	u8 *at = place(where, lock_rows[row].size);
	u64 want = (u64)ADDS * line_size, got = 0;

	clear(at, 16);
	lock_at = at;
	lock_op = lock_rows[row].op;
	for (unsigned c = 1; c < line_size; c++)
		if (!CHECK(smp_run(c, lock_work, NULL)))
			return;
	lock_work(NULL);
	for (unsigned c = 1; c < line_size; c++)
		smp_wait(c);
	for (unsigned i = 0; i < lock_rows[row].size && i < 8; i++)
		got |= (u64)at[i] << 8 * i;
	if (lock_rows[row].size < 8)
		want &= BIT(8 * lock_rows[row].size) - 1;
	CHECK_ROW(guest_name("%s, %s", lock_rows[row].name, place_names[where]), want, got);
	if (lock_rows[row].size == 16)
		CHECK_ROW(lock_rows[row].name, -want, *(u64 *)(at + 8));
}

TEST(locked_operations_are_whole)
{
	struct rounds r = {0};

	if (!setup(2))
		return;
	line_size = cpus < 4 ? cpus : 4;
	lined_up = 0;
	/* The first page of HERE holds code that runs. */
	CHECK_EQ(5, ((routine)put_routine((u8 *)HERE + 64, 5))());
	CHECK_EQ(5, ((routine)put_routine((u8 *)HERE + PAGE + 64, 5))());
	for (unsigned p = 0; p < NR_PLACES; p++)
		for (unsigned i = 0; i < ARRAY_SIZE(lock_rows); i++) {
			bool split = p != ALIGNED && p != IN_CODE;

			if (split && lock_rows[i].aligned_only)
				continue;
			/* Always the aligned ones; the others while there is time. */
			if (p == ALIGNED || more(&r, 1000))
				lock_row(i, p);
		}
}

/* --- order of loads and stores -------------------------------------------------------------------
 */

static struct {
	volatile u64 v;
	u64 pad[15];
} var[2] __attribute__((aligned(128)));
static volatile u64 *at_var[2];
static volatile u64 result[4][2];
static volatile u32 litmus_end; /* the round after the last */
static void (*volatile litmus_step)(unsigned me);

static inline void store_to(unsigned n, u64 v)
{
	*at_var[n] = v;
}

static inline u64 load_from(unsigned n)
{
	return *at_var[n];
}

static void litmus_run(unsigned me)
{
	for (u32 round = 1;; round++) {
		if (me == 0)
			at_var[0][0] = at_var[1][0] = 0;
		line_up();
		if (round == litmus_end)
			return;
		litmus_step(me);
		line_up();
	}
}

static void litmus_other(void *arg)
{
	litmus_run((unsigned)(u64)arg);
}

/* Store buffering, with what forbids it. */
static void sb_mfence(unsigned me)
{
	store_to(me, 1);
	mfence();
	result[me][0] = load_from(!me);
}

static void sb_locked(unsigned me)
{
	u64 one = 1;

	asm volatile("xchg %0, %1" : "+r"(one), "+m"(*at_var[me]) : : "memory");
	result[me][0] = load_from(!me);
}

static void sb_other_lock(unsigned me)
{
	static u64 own[4][16];

	store_to(me, 1);
	asm volatile("lock orl $0, %0" : "+m"(own[me][0]) : : "memory");
	result[me][0] = load_from(!me);
}

static void sb_cpuid(unsigned me)
{
	store_to(me, 1);
	serialise();
	result[me][0] = load_from(!me);
}

static bool sb_bad(void)
{
	return !result[0][0] && !result[1][0];
}

static void message(unsigned me)
{
	if (me == 0) {
		store_to(0, 1);
		store_to(1, 1);
	} else {
		result[1][1] = load_from(1);
		result[1][0] = load_from(0);
	}
}

static bool message_bad(void)
{
	return result[1][1] && !result[1][0];
}

static void load_buffer(unsigned me)
{
	result[me][0] = load_from(me);
	store_to(!me, 1);
}

static bool load_buffer_bad(void)
{
	return result[0][0] && result[1][0];
}

static void independent(unsigned me)
{
	if (me < 2) {
		store_to(me, 1);
	} else {
		result[me][0] = load_from(me & 1);
		result[me][1] = load_from(!(me & 1));
	}
}

/* Two readers may not see the two stores in opposite orders. */
static bool independent_bad(void)
{
	return result[2][0] && !result[2][1] && result[3][0] && !result[3][1];
}

static const struct {
	const char *name;
	void (*step)(unsigned);
	bool (*bad)(void);
	u8 cpus;
} litmus_rows[] = {
	{"store buffering, MFENCE", sb_mfence, sb_bad, 2},
	{"store buffering, XCHG", sb_locked, sb_bad, 2},
	{"store buffering, a lock elsewhere", sb_other_lock, sb_bad, 2},
	{"store buffering, CPUID", sb_cpuid, sb_bad, 2},
	{"message passing", message, message_bad, 2},
	{"load buffering", load_buffer, load_buffer_bad, 2},
	{"independent reads of independent writes", independent, independent_bad, 4},
};

static unsigned litmus_me0(unsigned row, unsigned max)
{
	struct rounds r = {0};
	unsigned bad = 0;

	for (u32 round = 1;; round++) {
		at_var[0][0] = at_var[1][0] = 0;
		if (!more(&r, max))
			litmus_end = round;
		line_up();
		if (round == litmus_end)
			return bad;
		litmus_step(0);
		line_up();
		bad += litmus_rows[row].bad();
	}
}

static void litmus_row(unsigned row, const char *where)
{
	line_size = litmus_rows[row].cpus;
	lined_up = 0;
	litmus_end = 0;
	litmus_step = litmus_rows[row].step;
	for (unsigned c = 1; c < line_size; c++)
		if (!CHECK(smp_run(c, litmus_other, (void *)(u64)c)))
			return;
	CHECK_ROW(guest_name("%s, %s", litmus_rows[row].name, where), 0, litmus_me0(row, 20000));
	for (unsigned c = 1; c < line_size; c++)
		smp_wait(c);
}

TEST(loads_and_stores_keep_their_order)
{
	if (!setup(2))
		return;
	for (unsigned i = 0; i < ARRAY_SIZE(litmus_rows); i++) {
		if (litmus_rows[i].cpus > cpus)
			continue;
		at_var[0] = &var[0].v;
		at_var[1] = &var[1].v;
		litmus_row(i, "in data pages");
		/* One of them where stores are looked at. */
		put_routine((u8 *)HERE + 64, 5);
		CHECK_EQ(5, ((routine)(HERE + 67))());
		at_var[i % 2] = (u64 *)(HERE + 512);
		litmus_row(i, "one beside code");
	}
}
