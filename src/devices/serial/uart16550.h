/* devices/serial/uart16550.h - a 16550A serial port.
 *
 * Bytes leave as fast as the host end takes them, whatever the divisor says; the divisor only times
 * the receive time-out.  create sets the chardev's handlers and does not take it; destroy unsets
 * them, then the caller may close the chardev.  Destroy on the event loop, or with that stopped.
 *
 * Spec followed: National Semiconductor PC16550D datasheet. */
#pragma once

#include "base/types.h"
#include "bus/irq.h"

struct bus;
struct chardev;
struct error;
struct evloop;
struct state;
struct uart;

struct uart_config {
	const char *name; /* borrowed; "com1" */
	struct bus *bus;
	uint16_t port; /* 0x3f8, 0x2f8, 0x3e8, 0x2e8 */
	struct irq_line irq;
	struct evloop *loop; /* times the receive time-out */
	struct chardev *chr; /* NULL: nothing plugged in */
};

int uart_create(struct uart **out, const struct uart_config *cfg, struct error *err);
void uart_destroy(struct uart *u);
void uart_reset(struct uart *u);
void uart_state(struct state *s, void *uart);
