/* devices/debug/testdev.c - see testdev.h. */
#include "devices/debug/testdev.h"

#include "base/bytes.h"
#include "base/error.h"
#include "bus/bus.h"
#include "state/state.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

enum { PORT_ECHO = 0xE0, PORT_FLUSH = 0xE4, PORT_ECHO_BYTES = 0xE8, PORT_LINES = 0x2000 };
enum { NR_ECHO = 4, MEM_SIZE = 64 * KiB };

#define MEM_GPA 0xFF000000ull

enum { ECHO, FLUSH, ECHO_BYTES, LINES, MEM, NR_REGIONS };

struct testdev {
	struct testdev_config cfg;
	struct io_region *region[NR_REGIONS];

	pthread_mutex_t lock; /* guards everything below */
	uint8_t echo[NR_ECHO];
	uint8_t mem[MEM_SIZE];
};

/* The bus has split what crosses the end of a region. */
static uint64_t bytes_read(struct testdev *t, const uint8_t *p, unsigned size)
{
	uint8_t v[8] = {0};

	pthread_mutex_lock(&t->lock);
	memcpy(v, p, size);
	pthread_mutex_unlock(&t->lock);
	return le64_load(v);
}

static void bytes_write(struct testdev *t, uint8_t *p, uint64_t value, unsigned size)
{
	uint8_t v[8];

	le64_store(v, value);
	pthread_mutex_lock(&t->lock);
	memcpy(p, v, size);
	pthread_mutex_unlock(&t->lock);
}

static uint64_t echo_read(void *opaque, uint64_t off, unsigned size)
{
	struct testdev *t = opaque;

	return bytes_read(t, t->echo + off, size);
}

static void echo_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct testdev *t = opaque;

	bytes_write(t, t->echo + off, value, size);
}

static uint64_t mem_window_read(void *opaque, uint64_t off, unsigned size)
{
	struct testdev *t = opaque;

	return bytes_read(t, t->mem + off, size);
}

static void mem_window_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct testdev *t = opaque;

	bytes_write(t, t->mem + off, value, size);
}

static void lines_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct testdev *t = opaque;

	irq_set(&t->cfg.line[off], value != 0);
}

static const struct io_ops echo_ops = {echo_read, echo_write, 4};
static const struct io_ops echo_byte_ops = {echo_read, echo_write, 1};
static const struct io_ops flush_ops = {.max_size = 4};
static const struct io_ops line_ops = {NULL, lines_write, 1};
static const struct io_ops mem_ops = {mem_window_read, mem_window_write, 8};

static int testdev_map(struct testdev *t, struct error *err)
{
	struct io_region **r = t->region;
	struct bus *bus = t->cfg.bus;
	int rc;

	rc = bus_add_pio(bus, PORT_ECHO, NR_ECHO, &echo_ops, t, "testdev", &r[ECHO], err);
	if (rc == 0)
		rc = bus_add_pio(bus, PORT_FLUSH, 4, &flush_ops, t, "testdev-flush", &r[FLUSH],
				 err);
	if (rc == 0)
		rc = bus_add_pio(bus, PORT_ECHO_BYTES, NR_ECHO, &echo_byte_ops, t, "testdev-bytes",
				 &r[ECHO_BYTES], err);
	if (rc == 0)
		rc = bus_add_pio(bus, PORT_LINES, TESTDEV_NR_LINES, &line_ops, t, "testdev-lines",
				 &r[LINES], err);
	if (rc == 0)
		rc = bus_add_mmio(bus, MEM_GPA, MEM_SIZE, &mem_ops, t, "testdev-memory", &r[MEM],
				  err);
	return rc;
}

int testdev_create(struct testdev **out, const struct testdev_config *cfg, struct error *err)
{
	struct testdev *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return err_set(err, ENOMEM, "test device: out of memory");
	t->cfg = *cfg;
	pthread_mutex_init(&t->lock, NULL);
	r = testdev_map(t, err);
	if (r < 0) {
		testdev_destroy(t);
		return err_wrap(err, r, "test device");
	}
	*out = t;
	return 0;
}

void testdev_destroy(struct testdev *t)
{
	if (!t)
		return;
	for (unsigned i = 0; i < NR_REGIONS; i++)
		if (t->region[i])
			bus_remove(t->cfg.bus, t->region[i]);
	pthread_mutex_destroy(&t->lock);
	free(t);
}

void testdev_reset(struct testdev *t)
{
	pthread_mutex_lock(&t->lock);
	memset(t->echo, 0, sizeof(t->echo));
	memset(t->mem, 0, sizeof(t->mem));
	pthread_mutex_unlock(&t->lock);
	for (unsigned i = 0; i < TESTDEV_NR_LINES; i++)
		irq_set(&t->cfg.line[i], false);
}

void testdev_state(struct state *s, struct testdev *t)
{
	state_enter(s, "testdev", 1);
	state_bytes(s, "echo", t->echo, sizeof(t->echo));
	state_bytes(s, "memory", t->mem, sizeof(t->mem));
	state_leave(s);
}
