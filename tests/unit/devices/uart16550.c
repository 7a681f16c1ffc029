/* The 16550A as its drivers use it. */
#include "devices/serial/uart16550.h"

#include "base/clock.h"
#include "base/evloop.h"
#include "bus/bus.h"
#include "fake_chr.h"
#include "state/stream.h"
#include "test.h"

enum {
	COM1 = 0x3f8,
	DATA = 0,
	IER = 1,
	IIR = 2,
	FCR = 2,
	LCR = 3,
	MCR = 4,
	LSR = 5,
	MSR = 6,
	SCR = 7
};

struct box {
	struct bus *bus;
	struct evloop *loop;
	struct uart *u;
	bool irq;
	unsigned edges;
};

static void set_irq(void *opaque, unsigned n, bool level)
{
	struct box *b = opaque;

	b->edges += level && !b->irq;
	b->irq = level;
}

static void box_init(struct box *b)
{
	struct uart_config cfg = {.name = "com1", .port = COM1, .chr = FAKE_CHR};

	memset(b, 0, sizeof(*b));
	CHECK_EQ(0, bus_create(&b->bus, NULL));
	CHECK_EQ(0, evloop_create(&b->loop, NULL));
	cfg.bus = b->bus;
	cfg.loop = b->loop;
	cfg.irq = (struct irq_line){set_irq, b, 4};
	CHECK_EQ(0, uart_create(&b->u, &cfg, NULL));
}

static void box_fini(struct box *b)
{
	uart_destroy(b->u);
	evloop_destroy(b->loop);
	bus_destroy(b->bus);
}

static uint8_t rd(struct box *b, unsigned reg)
{
	return bus_pio_read(b->bus, COM1 + reg, 1);
}

static void wr(struct box *b, unsigned reg, uint8_t v)
{
	bus_pio_write(b->bus, COM1 + reg, v, 1);
}

TEST(after_reset_the_transmitter_is_empty_and_nothing_is_pending)
{
	struct box b;

	box_init(&b);
	CHECK_EQ(0x60, rd(&b, LSR));
	CHECK_EQ(0x01, rd(&b, IIR));
	CHECK_EQ(0x00, rd(&b, IER));
	CHECK_EQ(0xb0, rd(&b, MSR)); /* carrier, ready, clear to send; no deltas */
	CHECK(!b.irq);
	box_fini(&b);
}

TEST(bytes_written_reach_the_host_in_order)
{
	struct box b;

	box_init(&b);
	wr(&b, DATA, 'h');
	wr(&b, DATA, 'i');
	CHECK_EQ(2, fake_chr_len());
	CHECK(!memcmp(fake_chr.out, "hi", 2));
	CHECK_EQ(0x60, rd(&b, LSR));
	box_fini(&b);
}

TEST(the_divisor_hides_behind_dlab)
{
	struct box b;

	box_init(&b);
	wr(&b, LCR, 0x83);
	wr(&b, DATA, 0x34);
	wr(&b, IER, 0x12);
	CHECK_EQ(0x34, rd(&b, DATA));
	CHECK_EQ(0x12, rd(&b, IER));
	wr(&b, LCR, 0x03);
	CHECK_EQ(0, rd(&b, IER));
	CHECK_EQ(0, fake_chr_len());
	box_fini(&b);
}

TEST(the_scratch_register_and_16550_identity_are_there)
{
	struct box b;

	box_init(&b);
	wr(&b, SCR, 0x5a);
	CHECK_EQ(0x5a, rd(&b, SCR));
	wr(&b, IER, 0xff);
	CHECK_EQ(0x0f, rd(&b, IER));
	wr(&b, IER, 0);
	wr(&b, FCR, 1);
	CHECK_EQ(0xc1, rd(&b, IIR));
	wr(&b, FCR, 0);
	CHECK_EQ(0x01, rd(&b, IIR));
	box_fini(&b);
}

TEST(enabling_thre_interrupts_with_an_empty_transmitter_fires_at_once)
{
	struct box b;

	box_init(&b);
	wr(&b, IER, 2);
	CHECK(b.irq);
	CHECK_EQ(0x02, rd(&b, IIR)); /* reading it takes it away */
	CHECK(!b.irq);
	CHECK_EQ(0x01, rd(&b, IIR));
	wr(&b, IER, 2); /* already set: not an edge */
	CHECK(!b.irq);
	wr(&b, IER, 0);
	wr(&b, IER, 2);
	CHECK(b.irq);
	box_fini(&b);
}

TEST(each_write_that_drains_fires_thre_again)
{
	struct box b;

	box_init(&b);
	wr(&b, IER, 2);
	rd(&b, IIR);
	wr(&b, DATA, 'x');
	CHECK(b.irq);
	CHECK_EQ(0x02, rd(&b, IIR));
	wr(&b, DATA, 'y');
	CHECK_EQ(0x02, rd(&b, IIR));
	box_fini(&b);
}

TEST(received_bytes_are_read_in_order_and_then_data_ready_falls)
{
	struct box b;

	box_init(&b);
	wr(&b, FCR, 1);
	CHECK_EQ(3, fake_chr_type("abc"));
	CHECK_EQ(0x61, rd(&b, LSR));
	CHECK_EQ('a', rd(&b, DATA));
	CHECK_EQ('b', rd(&b, DATA));
	CHECK_EQ('c', rd(&b, DATA));
	CHECK_EQ(0x60, rd(&b, LSR));
	box_fini(&b);
}

TEST(the_receive_interrupt_waits_for_the_trigger_level)
{
	struct box b;

	box_init(&b);
	wr(&b, FCR, 0x41); /* four bytes */
	wr(&b, IER, 1);
	fake_chr_type("abc");
	CHECK(!b.irq);
	fake_chr_type("d");
	CHECK(b.irq);
	CHECK_EQ(0xc4, rd(&b, IIR));
	rd(&b, DATA);
	CHECK(!b.irq);
	box_fini(&b);
}

static void stop_loop(void *opaque)
{
	evloop_stop(opaque);
}

static void run_loop_ms(struct box *b, unsigned ms)
{
	struct ev_timer t;

	ev_timer_init(&t, b->loop, stop_loop, b->loop);
	ev_timer_arm(&t, clock_mono_ns() + ms * 1000000ull);
	evloop_run(b->loop);
}

TEST(a_few_bytes_below_the_trigger_time_out)
{
	struct box b;

	box_init(&b);
	wr(&b, FCR, 0xc1); /* fourteen bytes */
	wr(&b, IER, 1);
	fake_chr_type("ab");
	CHECK(!b.irq);
	run_loop_ms(&b, 50); /* four characters at 9600 baud are about 4 ms */
	CHECK(b.irq);
	CHECK_EQ(0xcc, rd(&b, IIR));
	CHECK_EQ('a', rd(&b, DATA)); /* a read starts the time anew */
	CHECK_EQ(0xc1, rd(&b, IIR));
	run_loop_ms(&b, 50);
	CHECK_EQ(0xcc, rd(&b, IIR));
	rd(&b, DATA);
	run_loop_ms(&b, 20);
	CHECK(!b.irq);
	box_fini(&b);
}

TEST(the_host_is_told_how_much_fits_and_when_there_is_room_again)
{
	struct box b;

	box_init(&b);
	CHECK_EQ(1, fake_chr_type("ab")); /* no FIFO: one byte */
	rd(&b, DATA);
	wr(&b, FCR, 1);
	CHECK_EQ(16, fake_chr_type("0123456789abcdefXYZ"));
	CHECK_EQ(0, fake_chr_type("XYZ"));
	CHECK_EQ(0, fake_chr_accepts());
	rd(&b, DATA);
	CHECK_EQ(1, fake_chr_accepts());
	CHECK_EQ(1, fake_chr_type("XYZ"));
	box_fini(&b);
}

TEST(a_byte_too_many_is_an_overrun)
{
	struct box b;
	static const uint8_t more[20] = "0123456789abcdefXYZ";

	box_init(&b);
	wr(&b, FCR, 1);
	wr(&b, IER, 4);
	fake_chr.h.receive(fake_chr.h.opaque, more, 17);
	CHECK(b.irq);
	CHECK_EQ(0xc6, rd(&b, IIR));
	CHECK_EQ(0x63, rd(&b, LSR));
	CHECK_EQ(0x61, rd(&b, LSR)); /* reading clears it */
	CHECK(!b.irq);
	CHECK_EQ('0', rd(&b, DATA));
	box_fini(&b);
}

TEST(loopback_returns_what_is_sent_and_the_modem_lines)
{
	struct box b;

	box_init(&b);
	wr(&b, MCR, 0x10);
	wr(&b, DATA, 'q');
	CHECK_EQ(0, fake_chr_len());
	CHECK_EQ('q', rd(&b, DATA));
	rd(&b, MSR);
	wr(&b, MCR, 0x1f);
	CHECK_EQ(0xfb, rd(&b, MSR)); /* all up: three changes, ring has no trailing edge */
	wr(&b, MCR, 0x1a);
	CHECK_EQ(0x90 | 0x06, rd(&b, MSR)); /* DSR and the end of ring */
	CHECK_EQ(0, fake_chr_type("z"));
	box_fini(&b);
}

TEST(modem_changes_interrupt)
{
	struct box b;

	box_init(&b);
	wr(&b, IER, 8);
	wr(&b, MCR, 0x10);
	CHECK(b.irq);
	CHECK_EQ(0x00, rd(&b, IIR));
	rd(&b, MSR);
	CHECK(!b.irq);
	box_fini(&b);
}

TEST(a_full_host_end_holds_output_back_without_loss)
{
	struct box b;

	box_init(&b);
	wr(&b, FCR, 1);
	wr(&b, IER, 2);
	fake_chr_set_room(1);
	wr(&b, DATA, 'a');
	wr(&b, DATA, 'b'); /* sits in the shift register */
	CHECK_EQ(0x20, rd(&b, LSR));
	wr(&b, DATA, 'c');
	CHECK_EQ(0x00, rd(&b, LSR));
	rd(&b, IIR);
	CHECK_EQ(0xc1, rd(&b, IIR));
	fake_chr_set_room(100);
	fake_chr.h.writable(fake_chr.h.opaque);
	CHECK_EQ(3, fake_chr_len());
	CHECK(!memcmp(fake_chr.out, "abc", 3));
	CHECK_EQ(0x60, rd(&b, LSR));
	CHECK_EQ(0xc2, rd(&b, IIR));
	box_fini(&b);
}

TEST(clearing_the_fifos_empties_them)
{
	struct box b;

	box_init(&b);
	wr(&b, FCR, 1);
	fake_chr_type("abc");
	fake_chr_set_room(0);
	wr(&b, DATA, 'x');
	wr(&b, DATA, 'y');
	wr(&b, FCR, 7);
	CHECK_EQ(0x20, rd(&b, LSR)); /* the shift register still holds x */
	fake_chr_set_room(100);
	fake_chr.h.writable(fake_chr.h.opaque);
	CHECK_EQ(1, fake_chr_len());
	box_fini(&b);
}

TEST(a_port_with_nothing_plugged_in_swallows_output)
{
	struct box b;
	struct uart *u;
	struct uart_config cfg = {.name = "com2", .port = 0x2f8};

	box_init(&b);
	cfg.bus = b.bus;
	cfg.loop = b.loop;
	CHECK_EQ(0, uart_create(&u, &cfg, NULL));
	bus_pio_write(b.bus, 0x2f8, 'x', 1);
	CHECK_EQ(0x60, bus_pio_read(b.bus, 0x2fd, 1));
	CHECK_EQ(0x00, bus_pio_read(b.bus, 0x2fe, 1));
	uart_destroy(u);
	box_fini(&b);
}

static void save(struct box *b, uint8_t **buf, size_t *len)
{
	struct state_writer w;

	state_writer_init(&w, NULL);
	uart_state(&w.state, b->u);
	CHECK_EQ(0, state_writer_finish(&w, buf, len));
}

TEST(saved_state_keeps_fifos_registers_and_the_interrupt)
{
	struct box a, b;
	struct state_reader r;
	uint8_t *buf;
	size_t len;

	box_init(&a);
	wr(&a, FCR, 0x01);
	wr(&a, IER, 0x01);
	wr(&a, SCR, 0x77);
	fake_chr_type("abc");
	rd(&a, DATA);
	save(&a, &buf, &len);
	box_fini(&a);
	box_init(&b);
	state_reader_init(&r, buf, len, NULL);
	uart_state(&r.state, b.u);
	CHECK_EQ(0, state_reader_finish(&r));
	CHECK(b.irq);
	CHECK_EQ(0x77, rd(&b, SCR));
	CHECK_EQ('b', rd(&b, DATA));
	CHECK_EQ('c', rd(&b, DATA));
	free(buf);
	box_fini(&b);
}
