/* The board as a whole: memory map, reset, saved state, and time by the real event loop. */
#include "board.h"

#include "base/clock.h"
#include "base/evloop.h"
#include "state/stream.h"

#include <pthread.h>
#include <stdatomic.h>

TEST(the_map_given_to_the_guest_is_ram_where_it_says_so)
{
	struct machine_boot_info info;
	struct error err;
	struct board b;
	uint64_t ram = 0;
	uint8_t byte;

	board_start(&b, 1, 3 * GiB);
	CHECK_EQ(0, machine_boot_info(b.machine, &info, &err));
	for (unsigned i = 0; i < info.nr_e820; i++) {
		if (info.e820[i].type != 1)
			continue;
		ram += info.e820[i].size;
		CHECK_EQ(0, mem_read(b.mem, info.e820[i].gpa, &byte, 1));
		CHECK_EQ(0, mem_read(b.mem, info.e820[i].gpa + info.e820[i].size - 1, &byte, 1));
	}
	/* All but the first MiB's holes and the end of conventional memory. */
	CHECK_EQ(3 * GiB - (1 * MiB - 0x9FC00), ram);
	CHECK(mem_read(b.mem, 0x80000000, &byte, 1) < 0);
	CHECK(mem_read(b.mem, 0xB8000, &byte, 1) < 0);
	CHECK_EQ(0, mem_read(b.mem, 4 * GiB, &byte, 1));
	board_stop(&b);
}

TEST(bad_sizes_are_refused_with_a_sentence)
{
	struct machine_config cfg = {.memory = 16 * MiB, .nr_cpus = 0, .ops = &board_ops};
	struct machine *m;
	struct error err;

	CHECK(machine_create(&m, &cfg, &err) < 0);
	CHECK_STR("0 CPUs: this board takes 1 to 288", err.msg);
	cfg.nr_cpus = 1;
	cfg.memory = 1000;
	CHECK(machine_create(&m, &cfg, &err) < 0);
	CHECK_STR("memory must be whole MiB, and at least 2", err.msg);
}

TEST(reset_quiets_everything_a_guest_started)
{
	struct board b;
	uint64_t base;

	board_start(&b, 2, 16 * MiB);
	apic_enter_x2apic(&b, 1);
	apic_enable(&b, 0);
	ioapic_route(&b, GSI_PIT, 0x40, 0);
	outb(&b, 0x43, 0x34);
	outb(&b, 0x40, 0xA9);
	outb(&b, 0x40, 0x04);
	apic_write(&b, 0, APIC_LVT_TIMER, 1 << 17 | 0x41);
	apic_write(&b, 0, APIC_TIMER_INIT, 1000);
	board_advance(&b, 5000000);
	CHECK(b.intr[0]);
	machine_reset(b.machine);
	CHECK(!b.intr[0]);
	board_advance(&b, 50000000);
	CHECK(!b.intr[0] && !b.intr[1]);
	CHECK_EQ(0x10000, ioapic_read(&b, 0x10 + GSI_PIT * 2));
	CHECK(rdmsr(&b, 1, MSR_APIC_BASE, &base));
	CHECK_EQ(MEMMAP_LAPIC | BASE_ENABLE, base);
	CHECK(rdmsr(&b, 0, MSR_APIC_BASE, &base));
	CHECK_EQ(MEMMAP_LAPIC | BASE_ENABLE | BASE_BSP, base);
	board_stop(&b);
}

/* ---- saved state ---- */

static void save(struct board *b, uint8_t **buf, size_t *len)
{
	struct state_writer w;
	struct error err = {""};

	state_writer_init(&w, &err);
	machine_state(&w.state, b->machine);
	CHECK_EQ(0, state_writer_finish(&w, buf, len));
}

static int restore(struct board *b, const uint8_t *buf, size_t len)
{
	struct state_reader r;
	struct error err = {""};
	int ret;

	if (state_reader_init(&r, buf, len, &err) == 0)
		machine_state(&r.state, b->machine);
	ret = state_reader_finish(&r);
	if (ret < 0)
		printf("# %s\n", err.msg);
	return ret;
}

/* A guest in the middle of things: periodic timer, a level interrupt in service, one waiting. */
static void make_busy(struct board *b)
{
	board_advance(b, 123456789);
	apic_enable(b, 0);
	ioapic_route(b, IRQ_SCI, 1 << 15 | 0x59, 0);
	out(b, PORT_PM + 2, 1 << 8, 2);
	machine_power_button(b->machine);
	CHECK_EQ(0x59, ack(b, 0));
	apic_self(b, 0, 0x42);
	apic_write(b, 0, APIC_TIMER_DIVIDE, 0xB);
	apic_write(b, 0, APIC_LVT_TIMER, 1 << 17 | 0x61);
	apic_write(b, 0, APIC_TIMER_INIT, 1000000);
	outb(b, 0x43, 0x34);
	outb(b, 0x40, 0xA9);
	outb(b, 0x40, 0x04);
	CHECK(wrmsr(b, 0, 0x4b564d01, 0x200001));
	board_advance(b, 400000);
}

TEST(a_restored_board_goes_on_where_it_was)
{
	struct board a, b;
	uint8_t *buf;
	size_t len;

	board_start(&a, 2, 16 * MiB);
	make_busy(&a);
	save(&a, &buf, &len);
	board_start(&b, 2, 16 * MiB);
	board_advance(&b, 5000); /* another host, at another time */
	CHECK_EQ(0, restore(&b, buf, len));
	machine_resume(b.machine);
	CHECK(!b.intr[0]); /* 0x42 is below 0x59 */
	board_advance(&b, 599999);
	CHECK(!b.intr[0]);
	board_advance(&b, 1);
	CHECK_EQ(0x61, ack(&b, 0));
	apic_eoi(&b, 0);
	apic_eoi(&b, 0);
	CHECK_EQ(0x59, ack(&b, 0)); /* the power button still holds its line */
	out(&b, PORT_PM, 1 << 8, 2);
	apic_eoi(&b, 0);
	CHECK_EQ(0x42, ack(&b, 0));
	free(buf);
	board_stop(&a);
	board_stop(&b);
}

/* A one-shot that had matched, but whose interrupt had not been sent, when the clock stopped. */
TEST(an_hpet_match_on_its_way_is_not_lost)
{
	const uint64_t t2 = MEMMAP_HPET + 0x140;
	struct board a, b;
	uint8_t *buf;
	size_t len;

	board_start(&a, 1, 16 * MiB);
	mmio_write(&a, 0, MEMMAP_HPET + 0x10, 1, 8);
	mmio_write(&a, 0, t2, 20 << 9 | 1 << 8 | 1 << 2 | 1 << 1, 8);
	board_advance(&a, 10000000);
	mmio_write(&a, 0, t2 + 8, 999999, 8);
	save(&a, &buf, &len);
	board_start(&b, 1, 16 * MiB);
	CHECK_EQ(0, restore(&b, buf, len));
	machine_resume(b.machine);
	board_advance(&b, 1);
	CHECK_EQ(4, mmio_read(&b, 0, MEMMAP_HPET + 0x20, 8));
	free(buf);
	board_stop(&a);
	board_stop(&b);
}

/* The thread that fires may be late.  With a clock that stands when it is due, the deadline has
 * come and nothing has been fired when the guest writes the next register. */
TEST(an_hpet_match_is_not_undone_by_a_write)
{
	const uint64_t t2 = MEMMAP_HPET + 0x140;
	struct board b;

	board_start(&b, 1, 16 * MiB);
	mmio_write(&b, 0, MEMMAP_HPET + 0x10, 1, 8);
	mmio_write(&b, 0, t2, 20 << 9 | 1 << 8 | 1 << 2 | 1 << 1, 8);
	board_advance(&b, 10000000);
	mmio_write(&b, 0, t2 + 8, 999999, 8); /* due now, and not fired */
	mmio_write(&b, 0, MEMMAP_HPET + 0x10, 1, 8);
	CHECK_EQ(4, mmio_read(&b, 0, MEMMAP_HPET + 0x20, 8));
	board_stop(&b);
}

TEST(state_saved_twice_is_the_same)
{
	struct board a, b;
	uint8_t *one, *two;
	size_t one_len, two_len;

	board_start(&a, 2, 16 * MiB);
	make_busy(&a);
	machine_pause(a.machine);
	save(&a, &one, &one_len);
	board_start(&b, 2, 16 * MiB);
	CHECK_EQ(0, restore(&b, one, one_len));
	/* The RTC keeps the difference to the host's time of day: make that equal too. */
	vclock_set_real_ns(b.clock, vclock_real_ns(a.clock));
	save(&b, &two, &two_len);
	CHECK_EQ(one_len, two_len);
	CHECK(!memcmp(one, two, one_len));
	free(one);
	free(two);
	board_stop(&a);
	board_stop(&b);
}

TEST(another_board_refuses_the_state)
{
	struct board a, b;
	uint8_t *buf;
	size_t len;

	board_start(&a, 2, 16 * MiB);
	save(&a, &buf, &len);
	board_start(&b, 1, 16 * MiB);
	CHECK(restore(&b, buf, len) < 0);
	free(buf);
	board_stop(&a);
	board_stop(&b);
}

/* Any bytes in a stream with a good checksum may be refused, and must do no harm. */
TEST(hostile_state_does_no_harm)
{
	struct board a, b;
	uint8_t *buf, *evil;
	unsigned seed = 1, refused = 0;
	size_t len;

	board_start(&a, 1, 16 * MiB);
	make_busy(&a);
	save(&a, &buf, &len);
	evil = malloc(len);
	board_start(&b, 1, 16 * MiB);
	for (unsigned i = 0; i < 3000; i++) {
		uint32_t crc;

		memcpy(evil, buf, len);
		evil[24 + rand_r(&seed) % (len - 24 - 5)] = rand_r(&seed);
		evil[24 + rand_r(&seed) % (len - 24 - 5)] = 0xFF;
		crc = state_crc32c(evil, len - 4);
		memcpy(evil + len - 4, &crc, 4);
		struct state_reader r;

		if (state_reader_init(&r, evil, len, NULL) == 0)
			machine_state(&r.state, b.machine);
		refused += state_reader_finish(&r) < 0;
		machine_resume(b.machine);
		board_advance(&b, 10000);
		ack(&b, 0);
		apic_eoi(&b, 0);
		inb(&b, 0x40);
		inb(&b, 0x61);
		mmio_read(&b, 0, MEMMAP_HPET + 0xF0, 8);
		machine_reset(b.machine);
	}
	CHECK(refused > 0 && refused < 3000);
	free(evil);
	free(buf);
	board_stop(&a);
	board_stop(&b);
}

/* ---- real time ---- */

struct live {
	struct machine *machine;
	pthread_mutex_t lock;
	pthread_cond_t changed;
	uint64_t rose_ns; /* when INTR last went up, 0 = not yet */
};

static void live_intr(void *opaque, unsigned cpu, bool level)
{
	struct live *v = opaque;

	if (!level)
		return;
	pthread_mutex_lock(&v->lock);
	v->rose_ns = clock_mono_ns();
	pthread_cond_signal(&v->changed);
	pthread_mutex_unlock(&v->lock);
}

static uint64_t live_tsc(void *opaque, unsigned cpu)
{
	return clock_mono_ns() * TSC_PER_NS;
}

static uint64_t live_tsc_to_ns(void *opaque, unsigned cpu, uint64_t tsc)
{
	return tsc / TSC_PER_NS;
}

static void live_nothing(void *opaque)
{
}

static void *live_loop(void *loop)
{
	evloop_run(loop);
	return NULL;
}

static uint64_t live_wait(struct live *v)
{
	uint64_t t;

	pthread_mutex_lock(&v->lock);
	while (!v->rose_ns)
		pthread_cond_wait(&v->changed, &v->lock);
	t = v->rose_ns;
	v->rose_ns = 0;
	pthread_mutex_unlock(&v->lock);
	return t;
}

static int compare_u64(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Never early; half of them within a millisecond even on a busy host. */
TEST(tsc_deadlines_are_met_by_the_event_loop)
{
	static const struct machine_ops ops = {
		.intr = live_intr,
		.cpu_tsc = live_tsc,
		.cpu_tsc_to_ns = live_tsc_to_ns,
		.power_off = live_nothing,
		.reset = live_nothing,
	};
	struct live v = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};
	struct machine_config cfg = {.nr_cpus = 1,
				     .memory = 16 * MiB,
				     .ops = &ops,
				     .opaque = &v,
				     .tsc_khz = 3000000,
				     .phys_bits = 40};
	uint64_t late[51];
	pthread_t thread;
	void *cpu;

	CHECK_EQ(0, evloop_create(&cfg.loop, NULL));
	CHECK_EQ(0, mem_create(&cfg.mem, NULL));
	CHECK_EQ(0, machine_create(&v.machine, &cfg, NULL));
	CHECK_EQ(0, pthread_create(&thread, NULL, live_loop, cfg.loop));
	cpu = machine_cpu(v.machine, 0);
	machine_cpu_ops.mmio_write(cpu, MEMMAP_LAPIC + APIC_SVR, 0x1FF, 4);
	machine_cpu_ops.mmio_write(cpu, MEMMAP_LAPIC + APIC_LVT_TIMER, 2 << 17 | 0x40, 4);
	for (unsigned i = 0; i < ARRAY_SIZE(late); i++) {
		uint64_t deadline = clock_mono_ns() + 2000000, rose;

		CHECK(machine_cpu_ops.msr_write(cpu, MSR_TSC_DEADLINE, deadline * TSC_PER_NS));
		rose = live_wait(&v);
		CHECK(rose >= deadline);
		late[i] = rose - deadline;
		CHECK_EQ(0x40, machine_cpu_ops.intr_ack(cpu));
		machine_cpu_ops.mmio_write(cpu, MEMMAP_LAPIC + APIC_EOI, 0, 4);
	}
	qsort(late, ARRAY_SIZE(late), sizeof(late[0]), compare_u64);
	printf("# late by: median %" PRIu64 " ns, most %" PRIu64 " ns\n", late[25], late[50]);
	CHECK(late[25] < 1000000000); /* a busy host has other things to do */
	evloop_stop(cfg.loop);
	pthread_join(thread, NULL);
	machine_destroy(v.machine);
	mem_destroy(cfg.mem);
	evloop_destroy(cfg.loop);
}

/* ---- threads ---- */

/* One vCPU thread: takes interrupts, ends them as a KVM guest does, counts. */
struct runner {
	struct ring *ring;
	unsigned cpu;
	gpa_t eoi_gpa;
	pthread_t thread;
	_Atomic bool intr;
	_Atomic unsigned taken[256];
};

enum { RING_CPUS = 3, RING_VECTOR = 0x60, DEVICE_VECTOR = 0x50, RING_ROUNDS = 3000 };

struct ring {
	struct machine *machine;
	struct mem *mem;
	struct runner cpu[RING_CPUS];
	_Atomic bool stop;
};

static void ring_intr(void *opaque, unsigned cpu, bool level)
{
	struct ring *r = opaque;

	atomic_store(&r->cpu[cpu].intr, level);
}

static void runner_wrmsr(struct runner *c, uint32_t index, uint64_t v)
{
	if (!machine_cpu_ops.msr_write(machine_cpu(c->ring->machine, c->cpu), index, v))
		abort();
}

static void runner_eoi(struct runner *c)
{
	uint8_t byte;

	mem_read(c->ring->mem, c->eoi_gpa, &byte, 1);
	if (byte & 1) {
		byte = 0;
		mem_write(c->ring->mem, c->eoi_gpa, &byte, 1);
	} else {
		runner_wrmsr(c, MSR_X2APIC + 0xB, 0);
	}
}

/* A ring interrupt is passed to the next CPU. */
static void runner_handle(struct runner *c, unsigned vector)
{
	uint64_t next = (c->cpu + 1) % RING_CPUS;

	atomic_fetch_add(&c->taken[vector], 1);
	if (vector == RING_VECTOR && !atomic_load(&c->ring->stop))
		runner_wrmsr(c, MSR_X2APIC + 0x30, next << 32 | RING_VECTOR);
	runner_eoi(c);
}

static void *runner_main(void *arg)
{
	struct runner *c = arg;
	void *cpu = machine_cpu(c->ring->machine, c->cpu);

	while (!atomic_load(&c->ring->stop)) {
		int v = -1;

		if (atomic_load(&c->intr))
			v = machine_cpu_ops.intr_ack(cpu);
		if (v >= 0)
			runner_handle(c, v);
		else
			usleep(1);
	}
	return NULL;
}

static void ring_start(struct ring *r)
{
	static const struct machine_ops ops = {
		.intr = ring_intr,
		.cpu_tsc = live_tsc,
		.cpu_tsc_to_ns = live_tsc_to_ns,
	};
	struct machine_config cfg = {.nr_cpus = RING_CPUS,
				     .memory = 16 * MiB,
				     .ops = &ops,
				     .opaque = r,
				     .phys_bits = 40};

	CHECK_EQ(0, mem_create(&r->mem, NULL));
	cfg.mem = r->mem;
	CHECK_EQ(0, machine_create(&r->machine, &cfg, NULL));
	for (unsigned i = 0; i < RING_CPUS; i++) {
		struct runner *c = &r->cpu[i];

		c->ring = r;
		c->cpu = i;
		c->eoi_gpa = 0x200000 + i * 64;
		runner_wrmsr(c, MSR_APIC_BASE,
			     MEMMAP_LAPIC | BASE_ENABLE | BASE_X2APIC | (i ? 0 : BASE_BSP));
		runner_wrmsr(c, MSR_X2APIC + 0xF, 0x1FF);
		runner_wrmsr(c, 0x4b564d04, c->eoi_gpa | 1);
	}
	for (unsigned i = 0; i < RING_CPUS; i++)
		CHECK_EQ(0, pthread_create(&r->cpu[i].thread, NULL, runner_main, &r->cpu[i]));
}

/* An interrupt goes round and round while a device sends others of a lower class into every
 * handler; were one EOI or one wake-up lost, the ring would stand still. */
TEST(no_interrupt_is_lost_between_threads)
{
	struct ring r = {0};
	struct msi_sink msi;
	unsigned n = 0;

	ring_start(&r);
	msi = machine_msi(r.machine);
	msi_send(&msi, 0xFEE00000, RING_VECTOR);
	while (atomic_load(&r.cpu[0].taken[RING_VECTOR]) < RING_ROUNDS)
		msi_send(&msi, 0xFEE00000 | (n++ % RING_CPUS) << 12, DEVICE_VECTOR);
	atomic_store(&r.stop, true);
	for (unsigned i = 0; i < RING_CPUS; i++) {
		pthread_join(r.cpu[i].thread, NULL);
		CHECK(r.cpu[i].taken[DEVICE_VECTOR] > 0);
	}
	machine_destroy(r.machine);
	mem_destroy(r.mem);
}
