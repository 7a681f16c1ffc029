/* Unit tests of src/bus/bus.c. */
#include "bus/bus.h"

#include "base/error.h"
#include "test.h"

#include <errno.h>
#include <pthread.h>

/* A device that remembers its accesses as text: "w1.2=34 r0.4 ". */
struct spy {
	char trace[256];
	uint64_t answer;
};

static void spy_note(struct spy *s, const char *fmt, uint64_t off, unsigned size, uint64_t v)
{
	size_t n = strlen(s->trace);

	snprintf(s->trace + n, sizeof(s->trace) - n, fmt, (int)off, size, (long)v);
}

static uint64_t spy_read(void *opaque, uint64_t off, unsigned size)
{
	struct spy *s = opaque;

	spy_note(s, "r%d.%u ", off, size, 0);
	return off < 8 ? s->answer >> 8 * off : 0;
}

static void spy_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	spy_note(opaque, "w%d.%u=%lx ", off, size, value);
}

static const struct io_ops spy_ops = {.read = spy_read, .write = spy_write};
static const struct io_ops spy_ops_bytes = {.read = spy_read, .write = spy_write, .max_size = 1};
static const struct io_ops no_ops;

static struct bus *new_bus(void)
{
	struct bus *b;

	CHECK_EQ(0, bus_create(&b, NULL));
	return b;
}

TEST(a_port_reaches_its_device)
{
	struct bus *b = new_bus();
	struct spy s = {.answer = 0x11223344};

	CHECK_EQ(0, bus_add_pio(b, 0x3f8, 8, &spy_ops, &s, "com1", NULL, NULL));
	CHECK_EQ(0x33, bus_pio_read(b, 0x3f9, 1));
	bus_pio_write(b, 0x3fc, 0x12345678, 2);
	CHECK_STR("r1.1 w4.2=5678 ", s.trace);
	bus_destroy(b);
}

TEST(nobody_reads_all_ones)
{
	struct bus *b = new_bus();

	CHECK_EQ(0xff, bus_pio_read(b, 0x80, 1));
	CHECK_EQ(0xffffffff, bus_pio_read(b, 0xffff, 4));
	CHECK_EQ(0xffff, bus_mmio_read(b, 0xfee00000, 2));
	CHECK_EQ(UINT64_MAX, bus_mmio_read(b, UINT64_MAX, 8));
	bus_mmio_write(b, UINT64_MAX - 2, 0, 8);
	bus_pio_write(b, 0xfffe, 0, 4);
	bus_destroy(b);
}

TEST(missing_callbacks_read_ones_and_drop_writes)
{
	struct bus *b = new_bus();

	CHECK_EQ(0, bus_add_mmio(b, 0x1000, 4, &no_ops, NULL, "rom", NULL, NULL));
	bus_mmio_write(b, 0x1000, 1, 4);
	CHECK_EQ(0xffffffff, bus_mmio_read(b, 0x1000, 4));
	bus_destroy(b);
}

TEST(wide_accesses_are_split_for_narrow_devices)
{
	struct bus *b = new_bus();
	struct spy s = {.answer = 0x44332211};

	CHECK_EQ(0, bus_add_pio(b, 0x70, 8, &spy_ops_bytes, &s, "cmos", NULL, NULL));
	CHECK_EQ(0x44332211, bus_pio_read(b, 0x70, 4));
	bus_pio_write(b, 0x72, 0xbbaa, 2);
	CHECK_STR("r0.1 r1.1 r2.1 r3.1 w2.1=aa w3.1=bb ", s.trace);
	bus_destroy(b);
}

TEST(an_access_over_the_end_is_shared)
{
	struct bus *b = new_bus();
	struct spy s = {.answer = 0}, t = {.answer = 0x7766};

	CHECK_EQ(0, bus_add_mmio(b, 0x1000, 0x10, &spy_ops, &s, "low", NULL, NULL));
	CHECK_EQ(0, bus_add_mmio(b, 0x1010, 1, &spy_ops, &t, "high", NULL, NULL));
	CHECK_EQ(0xff660000, bus_mmio_read(b, 0x100e, 4));
	CHECK_STR("r14.2 ", s.trace);
	CHECK_STR("r0.1 ", t.trace);
	bus_destroy(b);
}

TEST(a_region_may_end_at_the_top)
{
	struct bus *b = new_bus();
	struct spy s = {.answer = 0x55};

	CHECK_EQ(0, bus_add_mmio(b, UINT64_MAX, 1, &spy_ops, &s, "top", NULL, NULL));
	CHECK_EQ(0xff55, bus_mmio_read(b, UINT64_MAX, 2));
	bus_destroy(b);
}

TEST(overlap_is_refused_with_both_names)
{
	struct bus *b = new_bus();
	struct spy s = {.answer = 0};
	struct error err = {""};

	CHECK_EQ(0, bus_add_pio(b, 0x60, 1, &spy_ops, &s, "kbd-data", NULL, NULL));
	CHECK_EQ(0, bus_add_pio(b, 0x64, 1, &spy_ops, &s, "kbd-status", NULL, NULL));
	CHECK_EQ(0, bus_add_pio(b, 0x61, 3, &spy_ops, &s, "speaker", NULL, NULL));
	CHECK_EQ(-EEXIST, bus_add_pio(b, 0x5f, 6, &spy_ops, &s, "thief", NULL, &err));
	CHECK(strstr(err.msg, "thief") && strstr(err.msg, "kbd-data"));
	CHECK_EQ(-EINVAL, bus_add_pio(b, 0xffff, 2, &spy_ops, &s, "long", NULL, &err));
	CHECK_EQ(-EINVAL, bus_add_mmio(b, UINT64_MAX, 2, &spy_ops, &s, "long", NULL, &err));
	CHECK_EQ(-EINVAL, bus_add_mmio(b, 0, 0, &spy_ops, &s, "empty", NULL, &err));
	bus_destroy(b);
}

TEST(a_removed_region_no_longer_answers)
{
	struct bus *b = new_bus();
	struct spy s = {.answer = 0};
	struct io_region *r;

	CHECK_EQ(0, bus_add_mmio(b, 0x1000, 0x1000, &spy_ops, &s, "bar0", &r, NULL));
	CHECK_EQ(0, bus_mmio_read(b, 0x1000, 4));
	bus_remove(b, r);
	CHECK_EQ(0xffffffff, bus_mmio_read(b, 0x1000, 4));
	CHECK_EQ(0, bus_add_mmio(b, 0x1800, 0x1000, &spy_ops, &s, "bar0", &r, NULL));
	bus_destroy(b);
}

static struct bus *shared_bus;
static struct io_region *self_region;

static void remove_self(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	bus_remove(shared_bus, self_region);
}

static const struct io_ops self_ops = {.write = remove_self};

TEST(a_callback_may_remove_its_own_region)
{
	shared_bus = new_bus();
	CHECK_EQ(0, bus_add_pio(shared_bus, 1, 1, &self_ops, NULL, "self", &self_region, NULL));
	bus_pio_write(shared_bus, 1, 0, 1);
	CHECK_EQ(0xff, bus_pio_read(shared_bus, 1, 1));
	bus_destroy(shared_bus);
}

static _Atomic int slow_state;

static uint64_t slow_read(void *opaque, uint64_t off, unsigned size)
{
	slow_state = 1;
	usleep(30000);
	slow_state = 2;
	return 0;
}

static const struct io_ops slow_ops = {.read = slow_read};

static void *slow_caller(void *arg)
{
	bus_mmio_read(shared_bus, 0, 4);
	return NULL;
}

TEST(removal_waits_for_running_callbacks)
{
	struct io_region *r;
	struct spy s = {.answer = 7};
	pthread_t t;

	shared_bus = new_bus();
	CHECK_EQ(0, bus_add_mmio(shared_bus, 0, 4, &slow_ops, NULL, "slow", &r, NULL));
	CHECK_EQ(0, bus_add_mmio(shared_bus, 4, 4, &spy_ops, &s, "fast", NULL, NULL));
	pthread_create(&t, NULL, slow_caller, NULL);
	while (!slow_state)
		usleep(500);
	CHECK_EQ(7, bus_mmio_read(shared_bus, 4, 4)); /* another device is not held up */
	CHECK_EQ(1, slow_state);
	bus_remove(shared_bus, r);
	CHECK_EQ(2, slow_state);
	pthread_join(t, NULL);
	bus_destroy(shared_bus);
}

static _Atomic bool hammer_stop;

static void *hammer(void *arg)
{
	while (!hammer_stop) {
		uint64_t v = bus_mmio_read(shared_bus, 0x1000, 4);

		CHECK(v == 5 || v == 0xffffffff);
	}
	return NULL;
}

TEST(regions_come_and_go_under_load)
{
	struct spy s;
	struct io_region *r;
	pthread_t t;

	shared_bus = new_bus();
	pthread_create(&t, NULL, hammer, NULL);
	for (int i = 0; i < 2000; i++) {
		s = (struct spy){.answer = 5};
		CHECK_EQ(0, bus_add_mmio(shared_bus, 0x1000, 4, &spy_ops, &s, "bar", &r, NULL));
		bus_remove(shared_bus, r);
		memset(&s, 0xee, sizeof(s)); /* whoever still looks would answer 0xeeeeeeee */
	}
	hammer_stop = true;
	pthread_join(t, NULL);
	bus_destroy(shared_bus);
}

/* --- doorbells ---------------------------------------------------------------------------------
 */

struct porter {
	unsigned nr;
	uint64_t addr[8];
	bool full;
};

static bool porter_add(void *opaque, const struct io_doorbell *d, bool pio, uint64_t addr)
{
	struct porter *p = opaque;

	CHECK(!pio && d->size == 2 && d->fd == 77);
	if (p->full)
		return false;
	p->addr[p->nr++] = addr;
	return true;
}

static void porter_del(void *opaque, const struct io_doorbell *d, bool pio, uint64_t addr)
{
	struct porter *p = opaque;

	for (unsigned i = 0; i < p->nr; i++)
		if (p->addr[i] == addr) {
			p->addr[i] = p->addr[--p->nr];
			return;
		}
	CHECK(!"a doorbell that was taken before");
}

static const struct bus_doorbells porter_ops = {porter_add, porter_del};

static unsigned two_bells(void *opaque, struct io_doorbell *out, unsigned max)
{
	CHECK(max >= 2);
	out[0] = (struct io_doorbell){.off = 0x10, .size = 2, .fd = 77};
	out[1] = (struct io_doorbell){.off = 0x14, .size = 2, .fd = 77};
	return 2;
}

TEST(doorbells_follow_their_region)
{
	static const struct io_ops ops = {.doorbells = two_bells};
	struct porter p = {0};
	struct io_region *r;
	struct error err;
	struct bus *b;

	CHECK_EQ(0, bus_create(&b, &err));
	CHECK_EQ(0, bus_add_mmio(b, 0x1000, 0x100, &ops, NULL, "one", &r, &err));
	bus_set_doorbells(b, &porter_ops, &p); /* those that are there already */
	CHECK_EQ(2, p.nr);
	CHECK_EQ(0x1010, p.addr[0]);
	CHECK_EQ(0x1014, p.addr[1]);
	bus_remove(b, r);
	CHECK_EQ(0, p.nr);
	CHECK_EQ(0, bus_add_mmio(b, 0x2000, 0x100, &ops, NULL, "two", &r, &err));
	CHECK_EQ(2, p.nr);
	bus_set_doorbells(b, NULL, NULL);
	CHECK_EQ(0, p.nr);
	bus_remove(b, r);
	p.full = true; /* not taken, so not given back */
	bus_set_doorbells(b, &porter_ops, &p);
	CHECK_EQ(0, bus_add_mmio(b, 0x3000, 0x100, &ops, NULL, "three", &r, &err));
	bus_remove(b, r);
	CHECK_EQ(0, p.nr);
	bus_destroy(b);
}
