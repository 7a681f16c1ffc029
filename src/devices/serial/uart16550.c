/* The 16550A.
 *
 *	guest ─THR─> tx FIFO ─> out ─chr_write─> host        out: the shift register, so to say:
 *bytes guest <─RBR─ rx FIFO <─────receive────── host             taken from the FIFO, not yet
 *accepted
 *
 * The chardev is always called with the lock dropped, because it may be calling us at the same
 * moment.  Whoever finds `sending` clear becomes the one that sends; the others only leave bytes.
 *
 * Interrupts, highest first (PC16550D table 4): line status, received data, receive time-out,
 * transmitter empty, modem status.  Transmitter empty is an event, not a level: it arises when the
 * FIFO runs empty, or when IER bit 1 is set while it is empty, and ends when IIR shows it or THR is
 * written. */
#include "devices/serial/uart16550.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/evloop.h"
#include "bus/bus.h"
#include "console/chardev.h"
#include "state/state.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

// clang-format off
enum {
	REG_DATA = 0, REG_IER = 1, REG_IIR = 2, REG_FCR = 2, REG_LCR = 3, REG_MCR = 4,
	REG_LSR = 5, REG_MSR = 6, REG_SCR = 7, NR_REGS = 8, FIFO_SIZE = 16,

	IER_RX = 1, IER_TX = 2, IER_LINE = 4, IER_MODEM = 8, IER_ALL = 15,
	IIR_NONE = 1, IIR_MODEM = 0, IIR_TX = 2, IIR_RX = 4, IIR_LINE = 6, IIR_TIMEOUT = 12,
	IIR_FIFO = 0xc0,
	FCR_ENABLE = 1, FCR_CLEAR_RX = 2, FCR_CLEAR_TX = 4, FCR_KEPT = 0xc9,
	LCR_DLAB = 0x80, LCR_BREAK = 0x40, LCR_PARITY = 8, LCR_STOP = 4,
	MCR_DTR = 1, MCR_RTS = 2, MCR_OUT1 = 4, MCR_OUT2 = 8, MCR_LOOP = 16, MCR_ALL = 31,
	LSR_DR = 1, LSR_OE = 2, LSR_ERRORS = 0x1e, LSR_BI = 16, LSR_THRE = 32, LSR_TEMT = 64,
	MSR_CTS = 16, MSR_DSR = 32, MSR_RI = 64, MSR_DCD = 128, MSR_TERI = 4,

	BASE_BAUD = 115200, TIMEOUT_CHARS = 4,
};
// clang-format on

struct fifo {
	uint8_t data[FIFO_SIZE];
	uint32_t head, nr;
};

struct uart {
	struct uart_config cfg;
	struct io_region *region;

	pthread_mutex_t lock; /* guards all below */
	uint8_t ier, fcr, lcr, mcr, msr, scr;
	uint8_t errors; /* LSR bits 1..4 */
	uint16_t divisor;
	struct fifo rx, tx;
	bool tx_event, rx_timeout; /* interrupt causes */
	uint8_t out[FIFO_SIZE];
	uint32_t nr_out;
	bool sending, send_again;
	bool full_reported; /* the chardev has been told there is no room */
	struct ev_timer timeout;
};

static void fifo_put(struct fifo *f, uint8_t byte)
{
	f->data[(f->head + f->nr++) % FIFO_SIZE] = byte;
}

static uint8_t fifo_get(struct fifo *f)
{
	uint8_t byte = f->data[f->head];

	f->head = (f->head + 1) % FIFO_SIZE;
	f->nr--;
	return byte;
}

/* ---- what the registers say: lock held ---- */

static unsigned depth(const struct uart *u)
{
	return u->fcr & FCR_ENABLE ? FIFO_SIZE : 1;
}

static unsigned trigger(const struct uart *u)
{
	static const uint8_t level[] = {1, 4, 8, 14};

	return u->fcr & FCR_ENABLE ? level[u->fcr >> 6] : 1;
}

static uint8_t lsr(const struct uart *u)
{
	uint8_t v = u->errors;

	if (u->rx.nr)
		v |= LSR_DR;
	if (!u->tx.nr)
		v |= LSR_THRE;
	if (!u->tx.nr && !u->nr_out)
		v |= LSR_TEMT;
	return v;
}

static uint8_t cause(const struct uart *u)
{
	if ((u->ier & IER_LINE) && u->errors)
		return IIR_LINE;
	if ((u->ier & IER_RX) && u->rx.nr >= trigger(u))
		return IIR_RX;
	if ((u->ier & IER_RX) && u->rx_timeout)
		return IIR_TIMEOUT;
	if ((u->ier & IER_TX) && u->tx_event)
		return IIR_TX;
	if ((u->ier & IER_MODEM) && (u->msr & 15))
		return IIR_MODEM;
	return IIR_NONE;
}

/* On a PC the OUT2 pin gates this line.  Many small kernels never set it and rely on emulators
 * that do not look, so neither do we. */
static void update_irq(struct uart *u)
{
	irq_set(&u->cfg.irq, cause(u) != IIR_NONE);
}

/* The pins as the other end, or the loopback wires, drive them. */
static void update_modem(struct uart *u)
{
	uint8_t pins = MSR_CTS | MSR_DSR | MSR_DCD, changed;

	if (u->mcr & MCR_LOOP)
		pins = (u->mcr & MCR_RTS ? MSR_CTS : 0) | (u->mcr & MCR_DTR ? MSR_DSR : 0) |
		       (u->mcr & MCR_OUT1 ? MSR_RI : 0) | (u->mcr & MCR_OUT2 ? MSR_DCD : 0);
	else if (!u->cfg.chr)
		pins = 0;
	changed = pins ^ (u->msr & 0xf0);
	u->msr = pins | (u->msr & 15) | ((changed >> 4) & 11);
	if ((changed & MSR_RI) && !(pins & MSR_RI)) /* only the trailing edge counts */
		u->msr |= MSR_TERI;
}

/* PC16550D 8.4.2: four characters without anything moving.  A character is start, data, parity and
 * stop bits at 115200 / divisor. */
static void arm_timeout(struct uart *u)
{
	unsigned bits = 1 + 5 + (u->lcr & 3) + !!(u->lcr & LCR_PARITY) + 1 + !!(u->lcr & LCR_STOP);
	uint64_t bit_ns = NSEC_PER_SEC / BASE_BAUD * (u->divisor ? u->divisor : 1);

	u->rx_timeout = false;
	if (u->rx.nr && (u->fcr & FCR_ENABLE))
		ev_timer_arm(&u->timeout, clock_mono_ns() + TIMEOUT_CHARS * bits * bit_ns);
	else
		ev_timer_cancel(&u->timeout);
}

static void on_timeout(void *opaque)
{
	struct uart *u = opaque;

	pthread_mutex_lock(&u->lock);
	u->rx_timeout = u->rx.nr && (u->fcr & FCR_ENABLE);
	update_irq(u);
	pthread_mutex_unlock(&u->lock);
}

/* ---- receiving ---- */

static void rx_put(struct uart *u, uint8_t byte)
{
	if (u->rx.nr >= depth(u)) {
		u->errors |= LSR_OE;
		if (depth(u) > 1)
			return; /* the FIFO keeps what it has, the single register does not */
		fifo_get(&u->rx);
	}
	fifo_put(&u->rx, byte);
	arm_timeout(u);
}

static size_t can_receive(void *opaque)
{
	struct uart *u = opaque;
	size_t room = 0;

	pthread_mutex_lock(&u->lock);
	if (!(u->mcr & MCR_LOOP) && u->rx.nr < depth(u))
		room = depth(u) - u->rx.nr;
	u->full_reported = room == 0;
	pthread_mutex_unlock(&u->lock);
	return room;
}

static void receive(void *opaque, const uint8_t *buf, size_t len)
{
	struct uart *u = opaque;

	pthread_mutex_lock(&u->lock);
	for (size_t i = 0; i < len && !(u->mcr & MCR_LOOP); i++)
		rx_put(u, buf[i]);
	update_irq(u);
	pthread_mutex_unlock(&u->lock);
}

/* Whether the chardev, told there was no room, should now be told otherwise. */
static bool room_again(struct uart *u)
{
	bool yes = u->full_reported && !(u->mcr & MCR_LOOP) && u->rx.nr < depth(u);

	if (yes)
		u->full_reported = false;
	return yes && u->cfg.chr;
}

/* ---- sending ---- */

static void tx_event(struct uart *u)
{
	u->tx_event = true;
}

/* Move the FIFO into the shift register when that is free. */
static void tx_load(struct uart *u)
{
	if (u->nr_out || !u->tx.nr)
		return;
	while (u->tx.nr)
		u->out[u->nr_out++] = fifo_get(&u->tx);
	tx_event(u);
}

/* One chr_write; the lock is dropped around it.  False: the host end is full. */
static bool send_some(struct uart *u)
{
	uint8_t buf[FIFO_SIZE];
	uint32_t n = u->nr_out, sent;

	memcpy(buf, u->out, n);
	pthread_mutex_unlock(&u->lock);
	sent = u->cfg.chr ? chr_write(u->cfg.chr, buf, n) : n;
	pthread_mutex_lock(&u->lock);
	sent = MIN(sent, u->nr_out); /* a reset may have emptied it */
	u->nr_out -= sent;
	memmove(u->out, u->out + sent, u->nr_out);
	return sent == n;
}

/* Lock held on entry and exit. */
static void send_all(struct uart *u)
{
	if (u->sending) {
		u->send_again = true;
		return;
	}
	u->sending = true;
	do {
		u->send_again = false;
		tx_load(u);
		while (u->nr_out && send_some(u))
			tx_load(u);
	} while (u->send_again);
	u->sending = false;
	update_irq(u);
}

static void writable(void *opaque)
{
	struct uart *u = opaque;

	pthread_mutex_lock(&u->lock);
	send_all(u);
	pthread_mutex_unlock(&u->lock);
}

/* ---- register access: lock held ---- */

static void write_thr(struct uart *u, uint8_t byte)
{
	u->tx_event = false;
	if (u->mcr & MCR_LOOP) {
		rx_put(u, byte);
		tx_event(u);
		return;
	}
	if (u->tx.nr >= depth(u))
		return; /* overrun: the byte is lost */
	fifo_put(&u->tx, byte);
	send_all(u);
}

static void write_ier(struct uart *u, uint8_t value)
{
	uint8_t rising = value & ~u->ier;

	u->ier = value & IER_ALL;
	if ((rising & IER_TX) && !u->tx.nr)
		tx_event(u);
}

static void write_fcr(struct uart *u, uint8_t value)
{
	bool toggled = (value ^ u->fcr) & FCR_ENABLE;

	if (toggled || (value & FCR_CLEAR_RX)) {
		u->rx.nr = 0;
		arm_timeout(u);
	}
	if ((toggled || (value & FCR_CLEAR_TX)) && u->tx.nr) {
		u->tx.nr = 0;
		tx_event(u);
	}
	u->fcr = value & FCR_ENABLE ? value & FCR_KEPT : 0; /* other bits need bit 0 */
}

static void write_lcr(struct uart *u, uint8_t value)
{
	bool breaks = (value & ~u->lcr) & LCR_BREAK;

	u->lcr = value;
	if (breaks && (u->mcr & MCR_LOOP)) {
		rx_put(u, 0);
		u->errors |= LSR_BI;
	}
}

static void write_reg(struct uart *u, unsigned reg, uint8_t value)
{
	bool dlab = u->lcr & LCR_DLAB;

	switch (reg) {
	case REG_DATA:
		if (dlab)
			u->divisor = (u->divisor & 0xff00) | value;
		else
			write_thr(u, value);
		break;
	case REG_IER:
		if (dlab)
			u->divisor = (u->divisor & 0xff) | value << 8;
		else
			write_ier(u, value);
		break;
	case REG_FCR:
		write_fcr(u, value);
		break;
	case REG_LCR:
		write_lcr(u, value);
		break;
	case REG_MCR:
		u->mcr = value & MCR_ALL;
		update_modem(u);
		break;
	case REG_SCR:
		u->scr = value;
		break;
	}
}

static uint8_t read_rbr(struct uart *u)
{
	uint8_t byte = u->rx.nr ? fifo_get(&u->rx) : 0;

	arm_timeout(u);
	return byte;
}

static uint8_t read_iir(struct uart *u)
{
	uint8_t v = cause(u);

	if (v == IIR_TX)
		u->tx_event = false;
	return v | (u->fcr & FCR_ENABLE ? IIR_FIFO : 0);
}

static uint8_t read_lsr(struct uart *u)
{
	uint8_t v = lsr(u);

	u->errors = 0;
	return v;
}

static uint8_t read_msr(struct uart *u)
{
	uint8_t v = u->msr;

	u->msr &= 0xf0;
	return v;
}

static uint8_t read_reg(struct uart *u, unsigned reg)
{
	bool dlab = u->lcr & LCR_DLAB;

	switch (reg) {
	case REG_DATA:
		return dlab ? u->divisor & 0xff : read_rbr(u);
	case REG_IER:
		return dlab ? u->divisor >> 8 : u->ier;
	case REG_IIR:
		return read_iir(u);
	case REG_LCR:
		return u->lcr;
	case REG_MCR:
		return u->mcr;
	case REG_LSR:
		return read_lsr(u);
	case REG_MSR:
		return read_msr(u);
	}
	return u->scr;
}

static uint64_t port_read(void *opaque, uint64_t off, unsigned size)
{
	struct uart *u = opaque;
	uint8_t value;
	bool accept;

	pthread_mutex_lock(&u->lock);
	value = read_reg(u, off);
	update_irq(u);
	accept = room_again(u);
	pthread_mutex_unlock(&u->lock);
	if (accept)
		chr_accept_input(u->cfg.chr);
	return value;
}

static void port_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct uart *u = opaque;
	bool accept;

	pthread_mutex_lock(&u->lock);
	write_reg(u, off, value);
	update_irq(u);
	accept = room_again(u);
	pthread_mutex_unlock(&u->lock);
	if (accept)
		chr_accept_input(u->cfg.chr);
}

static const struct io_ops ops = {port_read, port_write, 1};

/* ---- life ---- */

static void reset_locked(struct uart *u)
{
	u->ier = u->fcr = u->lcr = u->mcr = u->errors = 0;
	u->divisor = 12; /* 9600 baud */
	u->rx.nr = u->tx.nr = u->nr_out = 0;
	u->tx_event = u->rx_timeout = false;
	update_modem(u);
	u->msr &= 0xf0;
	ev_timer_cancel(&u->timeout);
	update_irq(u);
}

void uart_reset(struct uart *u)
{
	bool accept;

	pthread_mutex_lock(&u->lock);
	reset_locked(u);
	accept = room_again(u);
	pthread_mutex_unlock(&u->lock);
	if (accept)
		chr_accept_input(u->cfg.chr);
}

int uart_create(struct uart **out, const struct uart_config *cfg, struct error *err)
{
	struct uart *u = calloc(1, sizeof(*u));
	int r;

	if (!u)
		return err_set(err, ENOMEM, "%s: out of memory", cfg->name);
	u->cfg = *cfg;
	pthread_mutex_init(&u->lock, NULL);
	ev_timer_init(&u->timeout, cfg->loop, on_timeout, u);
	reset_locked(u);
	r = bus_add_pio(cfg->bus, cfg->port, NR_REGS, &ops, u, cfg->name, &u->region, err);
	if (r < 0) {
		pthread_mutex_destroy(&u->lock);
		free(u);
		return err_wrap(err, r, "%s", cfg->name);
	}
	if (cfg->chr)
		chr_set_handlers(cfg->chr,
				 &(struct chr_handlers){can_receive, receive, writable, u});
	*out = u;
	return 0;
}

void uart_destroy(struct uart *u)
{
	if (!u)
		return;
	if (u->cfg.chr)
		chr_set_handlers(u->cfg.chr, NULL);
	bus_remove(u->cfg.bus, u->region);
	ev_timer_cancel(&u->timeout);
	pthread_mutex_destroy(&u->lock);
	free(u);
}

/* ---- state ---- */

static void fifo_state(struct state *s, const char *name, struct fifo *f)
{
	state_enter(s, name, 1);
	state_bytes(s, "data", f->data, sizeof(f->data));
	state_u32(s, "head", &f->head);
	state_u32(s, "nr", &f->nr);
	state_check(s, f->head < FIFO_SIZE && f->nr <= FIFO_SIZE, "FIFO index out of range");
	if (s->failed) /* a guest must not meet the bad index */
		f->head = f->nr = 0;
	state_leave(s);
}

static void load_finish(struct state *s, struct uart *u)
{
	state_check(s, u->nr_out <= FIFO_SIZE, "output longer than the shift register");
	u->nr_out = MIN(u->nr_out, (uint32_t)FIFO_SIZE);
	u->ier &= IER_ALL;
	u->mcr &= MCR_ALL;
	u->errors &= LSR_ERRORS;
	u->fcr = u->fcr & FCR_ENABLE ? u->fcr & FCR_KEPT : 0;
	if (!u->rx_timeout)
		arm_timeout(u);
	send_all(u);
}

void uart_state(struct state *s, void *uart)
{
	struct uart *u = uart;

	pthread_mutex_lock(&u->lock);
	state_enter(s, "uart16550", 1);
	state_u8(s, "ier", &u->ier);
	state_u8(s, "fcr", &u->fcr);
	state_u8(s, "lcr", &u->lcr);
	state_u8(s, "mcr", &u->mcr);
	state_u8(s, "msr", &u->msr);
	state_u8(s, "scr", &u->scr);
	state_u8(s, "errors", &u->errors);
	state_u16(s, "divisor", &u->divisor);
	fifo_state(s, "rx", &u->rx);
	fifo_state(s, "tx", &u->tx);
	state_bool(s, "tx_event", &u->tx_event);
	state_bool(s, "rx_timeout", &u->rx_timeout);
	state_bytes(s, "out", u->out, sizeof(u->out));
	state_u32(s, "nr_out", &u->nr_out);
	if (state_loading(s))
		load_finish(s, u);
	state_leave(s);
	pthread_mutex_unlock(&u->lock);
}
