/* A guest and a host end that do anything, in any order, to a UART and a keyboard controller.
 * Input: pairs of an operation and its value.  At the end both states are saved and loaded back. */
#include "base/evloop.h"
#include "bus/bus.h"
#include "devices/ps2/i8042.h"
#include "devices/serial/uart16550.h"
#include "fake_chr.h"
#include "state/stream.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct bus *bus;
static struct evloop *loop;
static struct uart *uart;
static struct i8042 *kbd;

static void set_irq(void *opaque, unsigned n, bool level)
{
}

static void reset(void *opaque)
{
}

static void setup(void)
{
	struct irq_line irq = {set_irq, NULL, 0};

	if (bus_create(&bus, NULL) < 0 || evloop_create(&loop, NULL) < 0)
		abort();
	if (uart_create(&uart, &(struct uart_config){"com1", bus, 0x3f8, irq, loop, FAKE_CHR},
			NULL) < 0 ||
	    i8042_create(&kbd, &(struct i8042_config){bus, irq, reset, NULL, NULL}, NULL) < 0)
		abort();
}

static void host_types(uint8_t value)
{
	char s[33];
	size_t n = value % 32;

	memset(s, 'a' + value % 26, n);
	s[n] = 0;
	if (value & 0x80) /* an end that does not ask first */
		fake_chr.h.receive(fake_chr.h.opaque, (const uint8_t *)s, n);
	else
		fake_chr_type(s);
}

static void step(uint8_t op, uint8_t value)
{
	switch (op >> 4) {
	case 0 ... 5:
		bus_pio_write(bus, 0x3f8 + (op & 7), value, op & 8 ? 2 : 1);
		break;
	case 6 ... 8:
		bus_pio_read(bus, 0x3f8 + (op & 7), op & 8 ? 4 : 1);
		break;
	case 9:
		host_types(value);
		break;
	case 10:
		fake_chr.len = 0;
		fake_chr_set_room(value);
		fake_chr.h.writable(fake_chr.h.opaque);
		break;
	case 11 ... 13:
		bus_pio_write(bus, op & 1 ? 0x64 : op & 2 ? 0x92 : 0x60, value, 1);
		break;
	case 14:
		bus_pio_read(bus, op & 1 ? 0x64 : op & 2 ? 0x92 : 0x60, 1);
		break;
	default:
		i8042_key(kbd, value | (op & 1 ? I8042_EXTENDED : 0), op & 2);
	}
}

static void states(struct state *s)
{
	uart_state(s, uart);
	i8042_state(s, kbd);
}

static void save_and_load(void)
{
	struct state_writer w;
	struct state_reader r;
	uint8_t *buf;
	size_t len;

	state_writer_init(&w, NULL);
	states(&w.state);
	if (state_writer_finish(&w, &buf, &len) < 0)
		abort();
	state_reader_init(&r, buf, len, NULL);
	states(&r.state);
	if (state_reader_finish(&r) < 0)
		abort();
	free(buf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	if (!bus)
		setup();
	uart_reset(uart);
	i8042_reset(kbd);
	fake_chr.len = 0;
	fake_chr_set_room(4096);
	for (size_t i = 0; i + 1 < len && i < 4096; i += 2) {
		step(data[i], data[i + 1]);
		if (fake_chr.len > 4096)
			fake_chr.len = 0;
	}
	save_and_load();
	return 0;
}
