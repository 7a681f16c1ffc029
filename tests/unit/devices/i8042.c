/* The keyboard controller as firmware, Linux and small kernels use it. */
#include "devices/ps2/i8042.h"

#include "bus/bus.h"
#include "state/stream.h"
#include "test.h"

enum { KEY_A = 0x1e, KEY_UP = I8042_EXTENDED | 0x48, KEY_F7 = 0x41 };

struct box {
	struct bus *bus;
	struct i8042 *k;
	bool irq, a20;
	unsigned edges, nr_resets;
};

static void set_irq(void *opaque, unsigned n, bool level)
{
	struct box *b = opaque;

	b->edges += level && !b->irq;
	b->irq = level;
}

static void take_reset(void *opaque)
{
	((struct box *)opaque)->nr_resets++;
}

static void take_a20(void *opaque, bool on)
{
	((struct box *)opaque)->a20 = on;
}

static void box_init(struct box *b)
{
	struct i8042_config cfg = {.reset = take_reset, .a20 = take_a20, .opaque = b};

	memset(b, 0, sizeof(*b));
	b->a20 = true;
	CHECK_EQ(0, bus_create(&b->bus, NULL));
	cfg.bus = b->bus;
	cfg.irq = (struct irq_line){set_irq, b, 1};
	CHECK_EQ(0, i8042_create(&b->k, &cfg, NULL));
}

static void box_fini(struct box *b)
{
	i8042_destroy(b->k);
	bus_destroy(b->bus);
}

static uint8_t status(struct box *b)
{
	return bus_pio_read(b->bus, 0x64, 1);
}

static uint8_t data(struct box *b)
{
	CHECK(status(b) & 1);
	return bus_pio_read(b->bus, 0x60, 1);
}

static void cmd(struct box *b, uint8_t v)
{
	bus_pio_write(b->bus, 0x64, v, 1);
}

static void put(struct box *b, uint8_t v)
{
	bus_pio_write(b->bus, 0x60, v, 1);
}

static uint8_t ask(struct box *b, uint8_t v)
{
	cmd(b, v);
	return data(b);
}

static void set_command_byte(struct box *b, uint8_t v)
{
	cmd(b, 0x60);
	put(b, v);
}

TEST(self_tests_pass)
{
	struct box b;

	box_init(&b);
	CHECK_EQ(0x55, ask(&b, 0xaa));
	CHECK_EQ(0x00, ask(&b, 0xab));
	CHECK(!(status(&b) & 1));
	CHECK(status(&b) & 4); /* system flag */
	box_fini(&b);
}

TEST(the_command_byte_is_kept_but_says_no_mouse)
{
	struct box b;

	box_init(&b);
	set_command_byte(&b, 0x43);
	CHECK_EQ(0x63, ask(&b, 0x20));
	cmd(&b, 0xa8); /* enable the mouse port: there is none */
	CHECK_EQ(0x63, ask(&b, 0x20));
	box_fini(&b);
}

TEST(the_absent_mouse_port_fails_its_tests_at_once)
{
	struct box b;

	box_init(&b);
	cmd(&b, 0xd3);
	put(&b, 0x5a);
	CHECK(!(status(&b) & 0x20)); /* not from a mouse */
	CHECK_EQ(0x5a, data(&b));
	CHECK_EQ(0x04, ask(&b, 0xa9));
	cmd(&b, 0xd4);
	put(&b, 0xf2);
	CHECK_EQ(0x60, status(&b) & 0x60); /* time-out */
	CHECK_EQ(0xfe, data(&b));
	CHECK(!(status(&b) & 1));
	box_fini(&b);
}

TEST(the_keyboard_identifies_itself)
{
	struct box b;

	box_init(&b);
	put(&b, 0xf2);
	CHECK_EQ(0xfa, data(&b));
	CHECK_EQ(0xab, data(&b));
	CHECK_EQ(0x41, data(&b)); /* 83 as translated */
	set_command_byte(&b, 0);
	put(&b, 0xf2);
	data(&b);
	data(&b);
	CHECK_EQ(0x83, data(&b));
	box_fini(&b);
}

TEST(the_keyboard_resets_and_echoes)
{
	struct box b;

	box_init(&b);
	put(&b, 0xff);
	CHECK_EQ(0xfa, data(&b));
	CHECK_EQ(0xaa, data(&b));
	put(&b, 0xee);
	CHECK_EQ(0xee, data(&b));
	put(&b, 0x01); /* no such command */
	CHECK_EQ(0xfe, data(&b));
	CHECK(!(status(&b) & 1));
	box_fini(&b);
}

TEST(commands_with_a_parameter_take_it)
{
	struct box b;

	box_init(&b);
	put(&b, 0xed);
	CHECK_EQ(0xfa, data(&b));
	put(&b, 0x02);
	CHECK_EQ(0xfa, data(&b));
	CHECK_EQ(2, i8042_leds(b.k));
	put(&b, 0xf3);
	data(&b);
	put(&b, 0x20);
	CHECK_EQ(0xfa, data(&b));
	set_command_byte(&b, 0);
	put(&b, 0xf0);
	data(&b);
	put(&b, 0x00);
	CHECK_EQ(0xfa, data(&b));
	CHECK_EQ(0x02, data(&b)); /* scan code set 2 */
	box_fini(&b);
}

TEST(a_new_command_in_place_of_a_parameter_starts_over)
{
	struct box b;

	box_init(&b);
	put(&b, 0xed);
	data(&b);
	put(&b, 0xee);
	CHECK_EQ(0xee, data(&b));
	box_fini(&b);
}

TEST(keys_are_translated_to_set_1)
{
	struct box b;

	box_init(&b);
	set_command_byte(&b, 0x41);
	CHECK(i8042_key(b.k, KEY_A, true));
	i8042_key(b.k, KEY_A, false);
	i8042_key(b.k, KEY_UP, true);
	i8042_key(b.k, KEY_UP, false);
	i8042_key(b.k, KEY_F7, true);
	CHECK_EQ(0x1e, data(&b));
	CHECK_EQ(0x9e, data(&b));
	CHECK_EQ(0xe0, data(&b));
	CHECK_EQ(0x48, data(&b));
	CHECK_EQ(0xe0, data(&b));
	CHECK_EQ(0xc8, data(&b));
	CHECK_EQ(0x41, data(&b));
	CHECK_EQ(7, b.edges); /* one interrupt a byte */
	CHECK(!b.irq);
	box_fini(&b);
}

TEST(every_set_1_code_survives_the_way_through_set_2)
{
	struct box b;

	box_init(&b);
	set_command_byte(&b, 0x41);
	for (unsigned key = 1; key <= 0x58; key++) {
		i8042_key(b.k, key, true);
		CHECK_EQ(key, data(&b));
		i8042_key(b.k, key, false);
		CHECK_EQ(key | 0x80, data(&b));
	}
	box_fini(&b);
}

TEST(untranslated_keys_are_set_2)
{
	struct box b;

	box_init(&b);
	set_command_byte(&b, 0x01);
	i8042_key(b.k, KEY_A, true);
	i8042_key(b.k, KEY_A, false);
	CHECK_EQ(0x1c, data(&b));
	CHECK_EQ(0xf0, data(&b));
	CHECK_EQ(0x1c, data(&b));
	box_fini(&b);
}

TEST(a_disabled_keyboard_keeps_its_bytes)
{
	struct box b;

	box_init(&b);
	set_command_byte(&b, 0x41);
	cmd(&b, 0xad);
	i8042_key(b.k, KEY_A, true);
	CHECK(!(status(&b) & 1));
	cmd(&b, 0xae);
	CHECK_EQ(0x1e, data(&b));
	put(&b, 0xf5);
	CHECK_EQ(0xfa, data(&b));
	CHECK(!i8042_key(b.k, KEY_A, true)); /* scanning is off */
	put(&b, 0xf4);
	CHECK_EQ(0xfa, data(&b));
	CHECK(i8042_key(b.k, KEY_A, true));
	box_fini(&b);
}

TEST(too_many_keys_end_in_an_overrun_code)
{
	struct box b;
	unsigned n = 0;
	uint8_t last = 0;

	box_init(&b);
	set_command_byte(&b, 0x00);
	for (int i = 0; i < 200; i++)
		i8042_key(b.k, KEY_A, true);
	for (; status(&b) & 1; n++)
		last = data(&b);
	CHECK_EQ(17, n);
	CHECK_EQ(0x1c, last);
	box_fini(&b);
}

TEST(the_interrupt_obeys_the_command_byte)
{
	struct box b;

	box_init(&b);
	i8042_key(b.k, KEY_A, true);
	CHECK(!b.irq);
	set_command_byte(&b, 0x41);
	CHECK(b.irq);
	data(&b);
	CHECK(!b.irq);
	box_fini(&b);
}

TEST(three_ways_to_reset)
{
	struct box b;

	box_init(&b);
	cmd(&b, 0xfe);
	CHECK_EQ(1, b.nr_resets);
	cmd(&b, 0xff); /* pulses nothing */
	CHECK_EQ(1, b.nr_resets);
	cmd(&b, 0xd1);
	put(&b, 0x02);
	CHECK_EQ(2, b.nr_resets);
	bus_pio_write(b.bus, 0x92, 0x03, 1);
	bus_pio_write(b.bus, 0x92, 0x03, 1); /* only the rising edge */
	CHECK_EQ(3, b.nr_resets);
	box_fini(&b);
}

TEST(a20_has_two_switches)
{
	struct box b;

	box_init(&b);
	CHECK_EQ(0x02, bus_pio_read(b.bus, 0x92, 1));
	bus_pio_write(b.bus, 0x92, 0x00, 1);
	CHECK(!b.a20);
	CHECK_EQ(0x01, ask(&b, 0xd0) & 0x03);
	cmd(&b, 0xd1);
	put(&b, 0x03);
	CHECK(b.a20);
	CHECK_EQ(0x02, bus_pio_read(b.bus, 0x92, 1));
	CHECK_EQ(0, b.nr_resets);
	box_fini(&b);
}

TEST(saved_state_keeps_queued_bytes)
{
	struct box a, b;
	struct state_writer w;
	struct state_reader r;
	uint8_t *buf;
	size_t len;

	box_init(&a);
	set_command_byte(&a, 0x41);
	i8042_key(a.k, KEY_A, true);
	i8042_key(a.k, KEY_A, false);
	state_writer_init(&w, NULL);
	i8042_state(&w.state, a.k);
	CHECK_EQ(0, state_writer_finish(&w, &buf, &len));
	box_fini(&a);
	box_init(&b);
	state_reader_init(&r, buf, len, NULL);
	i8042_state(&r.state, b.k);
	CHECK_EQ(0, state_reader_finish(&r));
	CHECK(b.irq);
	CHECK_EQ(0x1e, data(&b));
	CHECK_EQ(0x9e, data(&b));
	free(buf);
	box_fini(&b);
}
