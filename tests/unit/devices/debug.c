/* The debug console, the exit port and the test device. */
#include "devices/debug/debugcon.h"
#include "devices/debug/exitport.h"
#include "devices/debug/testdev.h"

#include "base/error.h"
#include "bus/bus.h"
#include "fake_chr.h"
#include "test.h"

static int exit_status = -1;

static void take_exit(void *opaque, int status)
{
	exit_status = status;
}

TEST(the_debug_console_is_detected_and_prints)
{
	struct bus *bus;
	struct debugcon *d;

	CHECK_EQ(0, bus_create(&bus, NULL));
	CHECK_EQ(0, debugcon_create(&d, &(struct debugcon_config){bus, 0xe9, FAKE_CHR}, NULL));
	CHECK_EQ(0xe9, bus_pio_read(bus, 0xe9, 1));
	bus_pio_write(bus, 0xe9, 'o', 1);
	bus_pio_write(bus, 0xe9, 'k', 1);
	CHECK_EQ(2, fake_chr_len());
	CHECK(!memcmp(fake_chr.out, "ok", 2));
	debugcon_destroy(d);
	CHECK_EQ(0xff, bus_pio_read(bus, 0xe9, 1));
	bus_destroy(bus);
}

TEST(the_exit_port_reports_an_odd_status)
{
	struct bus *bus;
	struct exitport *e;
	struct exitport_config cfg = {.port = 0xf4, .exit = take_exit};

	CHECK_EQ(0, bus_create(&bus, NULL));
	cfg.bus = bus;
	CHECK_EQ(0, exitport_create(&e, &cfg, NULL));
	bus_pio_write(bus, 0xf4, 0, 1);
	CHECK_EQ(1, exit_status);
	bus_pio_write(bus, 0xf4, 0x10, 4);
	CHECK_EQ(33, exit_status);
	exitport_destroy(e);
	bus_destroy(bus);
}

TEST(a_taken_port_is_refused_with_a_sentence)
{
	struct bus *bus;
	struct debugcon *d;
	struct exitport *e;
	struct error err = {0};
	struct exitport_config cfg = {.port = 0xe8, .exit = take_exit};

	CHECK_EQ(0, bus_create(&bus, NULL));
	cfg.bus = bus;
	CHECK_EQ(0, debugcon_create(&d, &(struct debugcon_config){bus, 0xe9, FAKE_CHR}, NULL));
	CHECK(exitport_create(&e, &cfg, &err) < 0);
	CHECK(strstr(err.msg, "exit port"));
	debugcon_destroy(d);
	bus_destroy(bus);
}

static int line_level[TESTDEV_NR_LINES];

static void take_line(void *opaque, unsigned n, bool level)
{
	line_level[n] = level;
}

static struct testdev *testdev_on(struct bus *bus)
{
	struct testdev_config cfg = {.bus = bus};
	struct testdev *t;

	for (unsigned n = 0; n < TESTDEV_NR_LINES; n++)
		cfg.line[n] = (struct irq_line){take_line, NULL, n};
	CHECK_EQ(0, testdev_create(&t, &cfg, NULL));
	return t;
}

TEST(the_test_device_keeps_what_is_written)
{
	struct bus *bus;
	struct testdev *t;

	CHECK_EQ(0, bus_create(&bus, NULL));
	t = testdev_on(bus);
	bus_pio_write(bus, 0xe0, 0x12345678, 4);
	CHECK_EQ(0x34, bus_pio_read(bus, 0xe2, 1));
	bus_pio_write(bus, 0xe2, 0xabcd, 2);
	CHECK_EQ(0xabcd5678, bus_pio_read(bus, 0xe8, 4));
	bus_mmio_write(bus, 0xff00fff8, 0x1122334455667788, 8);
	CHECK_EQ(0x1122, bus_mmio_read(bus, 0xff00fffe, 2));
	testdev_reset(t);
	CHECK_EQ(0, bus_pio_read(bus, 0xe0, 4));
	CHECK_EQ(0, bus_mmio_read(bus, 0xff00fff8, 8));
	testdev_destroy(t);
	bus_destroy(bus);
}

TEST(the_test_device_drives_interrupt_lines)
{
	struct bus *bus;
	struct testdev *t;

	CHECK_EQ(0, bus_create(&bus, NULL));
	t = testdev_on(bus);
	bus_pio_write(bus, 0x200e, 1, 1);
	bus_pio_write(bus, 0x2017, 2, 1);
	CHECK_EQ(1, line_level[14]);
	CHECK_EQ(1, line_level[23]);
	bus_pio_write(bus, 0x200e, 0, 1);
	CHECK_EQ(0, line_level[14]);
	testdev_reset(t);
	CHECK_EQ(0, line_level[23]);
	testdev_destroy(t);
	bus_destroy(bus);
}
