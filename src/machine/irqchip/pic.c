/* machine/irqchip/pic.c - the 8259A pair.
 *
 * chip[0] is the master, its input 2 is the output of chip[1].  Special fully nested mode is kept
 * off: ICW4 bit 4 is accepted and has no effect. */
#include "machine/irqchip/pic.h"

#include "base/error.h"
#include "bus/bus.h"
#include "engine/engine.h"
#include "machine/memmap.h"
#include "state/state.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define CASCADE_IRQ 2

struct i8259 {
	uint8_t lines; /* levels of the inputs */
	uint8_t irr, imr, isr;
	uint8_t elcr, elcr_mask;
	uint8_t base;      /* vector of input 0 */
	uint8_t lowest;    /* input of lowest priority: 7 unless rotated */
	uint8_t init_step; /* ICW expected at the odd port, 0 = initialised */
	bool need_icw4, auto_eoi, rotate_on_auto_eoi;
	bool special_mask, read_isr, poll;
	bool output;
};

struct pic {
	struct bus *bus;
	struct io_region *ports[2], *elcr_ports;
	struct irq_line output;

	pthread_mutex_t lock; /* guards chip and output_level */
	struct i8259 chip[2];
	bool output_level;
};

/* The distance of the most urgent set bit from the top of the (rotated) order; 8 = none. */
static unsigned i8259_rank(const struct i8259 *c, uint8_t bits)
{
	unsigned shift = (c->lowest + 1) & 7;
	unsigned rotated = (bits | (unsigned)bits << 8) >> shift & 0xFF;

	return rotated ? (unsigned)__builtin_ctz(rotated) : 8;
}

static unsigned i8259_at_rank(const struct i8259 *c, unsigned rank)
{
	return (c->lowest + 1 + rank) & 7;
}

/* The input to be served now, -1 for none.  In special mask mode an in-service input that is masked
 * holds nobody back. */
static int i8259_pending(const struct i8259 *c)
{
	unsigned want = i8259_rank(c, c->irr & ~c->imr);
	unsigned busy = i8259_rank(c, c->special_mask ? c->isr & ~c->imr : c->isr);

	return want < busy ? (int)i8259_at_rank(c, want) : -1;
}

static void i8259_set(struct i8259 *c, unsigned n, bool level)
{
	uint8_t bit = 1u << n;

	if (level && ((c->elcr & bit) || !(c->lines & bit)))
		c->irr |= bit;
	if (!level) /* the request must be held until INTA, edge mode too */
		c->irr &= ~bit;
	c->lines = level ? c->lines | bit : c->lines & ~bit;
}

static void pic_update(struct pic *p)
{
	bool slave = i8259_pending(&p->chip[1]) >= 0, level;

	if (slave != p->chip[1].output) {
		p->chip[1].output = slave;
		i8259_set(&p->chip[0], CASCADE_IRQ, slave);
	}
	level = i8259_pending(&p->chip[0]) >= 0;
	if (level == p->output_level)
		return;
	p->output_level = level;
	irq_set(&p->output, level);
}

void pic_set(struct pic *p, unsigned irq, bool level)
{
	if (irq == CASCADE_IRQ)
		return;
	pthread_mutex_lock(&p->lock);
	i8259_set(&p->chip[irq >> 3], irq & 7, level);
	pic_update(p);
	pthread_mutex_unlock(&p->lock);
}

/* ---- acknowledge ---- */

static void i8259_accept(struct i8259 *c, unsigned n)
{
	uint8_t bit = 1u << n;

	if (!(c->elcr & bit))
		c->irr &= ~bit;
	if (!c->auto_eoi)
		c->isr |= bit;
	else if (c->rotate_on_auto_eoi)
		c->lowest = n;
}

/* An INTA with nothing pending is answered with input 7 and leaves no trace in the ISR. */
static unsigned i8259_inta(struct i8259 *c)
{
	int n = i8259_pending(c);

	if (n < 0)
		return 7;
	i8259_accept(c, n);
	return n;
}

int pic_ack(struct pic *p)
{
	struct i8259 *c = &p->chip[0];
	bool cascade;
	unsigned n;

	pthread_mutex_lock(&p->lock);
	cascade = i8259_pending(c) == CASCADE_IRQ;
	n = i8259_inta(c);
	if (cascade) {
		c = &p->chip[1];
		n = i8259_inta(c);
		/* The slave has let go for INTA: what it still wants is a new edge. */
		c->output = false;
		i8259_set(&p->chip[0], CASCADE_IRQ, false);
	}
	n += c->base;
	pic_update(p);
	pthread_mutex_unlock(&p->lock);
	return n;
}

/* ---- programming ---- */

static void i8259_icw1(struct i8259 *c, uint8_t v)
{
	uint8_t lines = c->lines, elcr = c->elcr, elcr_mask = c->elcr_mask, base = c->base;
	bool output = c->output;

	*c = (struct i8259){
		.lines = lines,
		.elcr = elcr,
		.elcr_mask = elcr_mask,
		.base = base,
		.lowest = 7,
		.init_step = 2,
		.need_icw4 = v & 1,
		.output = output,
		.irr = lines & elcr, /* edges are forgotten, levels are still there */
	};
}

static void i8259_eoi(struct i8259 *c, unsigned rank, bool rotate)
{
	unsigned n;

	if (rank > 7)
		return;
	n = i8259_at_rank(c, rank);
	c->isr &= ~(1u << n);
	if (rotate)
		c->lowest = n;
}

static unsigned i8259_rank_of_input(const struct i8259 *c, unsigned n)
{
	return (n - c->lowest - 1) & 7;
}

/* In special mask mode a masked in-service bit is not ended by a non-specific EOI. */
static uint8_t i8259_eoi_candidates(const struct i8259 *c)
{
	return c->special_mask ? c->isr & ~c->imr : c->isr;
}

static void i8259_ocw2(struct i8259 *c, uint8_t v)
{
	unsigned n = v & 7;

	switch (v >> 5) { /* R SL EOI */
	case 0:
		c->rotate_on_auto_eoi = false;
		break;
	case 1:
	case 5:
		i8259_eoi(c, i8259_rank(c, i8259_eoi_candidates(c)), v >> 7);
		break;
	case 3:
	case 7:
		i8259_eoi(c, i8259_rank_of_input(c, n), v >> 7);
		break;
	case 4:
		c->rotate_on_auto_eoi = true;
		break;
	case 6:
		c->lowest = n;
		break;
	}
}

static void i8259_ocw3(struct i8259 *c, uint8_t v)
{
	if (v & 0x40)
		c->special_mask = v & 0x20;
	c->poll = v & 4;
	if (v & 2)
		c->read_isr = v & 1;
}

static void i8259_write_even(struct i8259 *c, uint8_t v)
{
	if (v & 0x10)
		i8259_icw1(c, v);
	else if (v & 8)
		i8259_ocw3(c, v);
	else
		i8259_ocw2(c, v);
}

static void i8259_write_odd(struct i8259 *c, uint8_t v)
{
	switch (c->init_step) {
	case 0:
		c->imr = v;
		break;
	case 2:
		c->base = v & 0xF8;
		c->init_step = 3;
		break;
	case 3: /* the wiring of the cascade is fixed */
		c->init_step = c->need_icw4 ? 4 : 0;
		break;
	case 4:
		c->auto_eoi = v & 2;
		c->init_step = 0;
		break;
	}
}

/* Poll command: the read is the acknowledge (bit 7: there was one). */
static uint8_t i8259_poll(struct i8259 *c)
{
	int n = i8259_pending(c);

	c->poll = false;
	if (n < 0)
		return 0;
	i8259_accept(c, n);
	return 0x80 | n;
}

static uint64_t pic_read(struct pic *p, unsigned chip, uint64_t off)
{
	struct i8259 *c = &p->chip[chip];
	uint8_t v;

	pthread_mutex_lock(&p->lock);
	if (c->poll)
		v = i8259_poll(c);
	else if (off == 0)
		v = c->read_isr ? c->isr : c->irr;
	else
		v = c->imr;
	pic_update(p);
	pthread_mutex_unlock(&p->lock);
	return v;
}

static void pic_write(struct pic *p, unsigned chip, uint64_t off, uint8_t v)
{
	pthread_mutex_lock(&p->lock);
	(off == 0 ? i8259_write_even : i8259_write_odd)(&p->chip[chip], v);
	pic_update(p);
	pthread_mutex_unlock(&p->lock);
}

static uint64_t pic_read_master(void *opaque, uint64_t off, unsigned size)
{
	return pic_read(opaque, 0, off);
}

static uint64_t pic_read_slave(void *opaque, uint64_t off, unsigned size)
{
	return pic_read(opaque, 1, off);
}

static void pic_write_master(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	pic_write(opaque, 0, off, value);
}

static void pic_write_slave(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	pic_write(opaque, 1, off, value);
}

static uint64_t elcr_read(void *opaque, uint64_t off, unsigned size)
{
	struct pic *p = opaque;
	uint8_t v;

	pthread_mutex_lock(&p->lock);
	v = p->chip[off].elcr;
	pthread_mutex_unlock(&p->lock);
	return v;
}

static void elcr_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct pic *p = opaque;
	struct i8259 *c = &p->chip[off];

	pthread_mutex_lock(&p->lock);
	c->elcr = value & c->elcr_mask;
	c->irr |= c->lines & c->elcr;
	pic_update(p);
	pthread_mutex_unlock(&p->lock);
}

static const struct io_ops pic_ops[2] = {
	{.read = pic_read_master, .write = pic_write_master, .max_size = 1},
	{.read = pic_read_slave, .write = pic_write_slave, .max_size = 1},
};
static const struct io_ops elcr_ops = {.read = elcr_read, .write = elcr_write, .max_size = 1};

void pic_firmware(struct pic *p, uint16_t level_irqs)
{
	static const uint8_t base[2] = {0x08, 0x70}; /* as on every PC since the AT */

	for (unsigned i = 0; i < 2; i++) {
		pic_write(p, i, 0, 0x11);
		pic_write(p, i, 1, base[i]);
		pic_write(p, i, 1, i == 0 ? 1 << CASCADE_IRQ : CASCADE_IRQ);
		pic_write(p, i, 1, 1);
		pic_write(p, i, 1, 0xFF);
		elcr_write(p, i, level_irqs >> i * 8 & 0xFF, 1);
	}
}

/* ---- life ---- */

void pic_reset(struct pic *p)
{
	pthread_mutex_lock(&p->lock);
	for (unsigned i = 0; i < 2; i++) {
		struct i8259 *c = &p->chip[i];
		uint8_t lines = c->lines;

		memset(c, 0, sizeof(*c));
		c->lines = i == 0 ? lines & ~(1u << CASCADE_IRQ) : lines;
		c->lowest = 7;
		/* IRQ 0, 1, 2, 8 and 13 are edge-triggered for ever. */
		c->elcr_mask = i == 0 ? 0xF8 : 0xDE;
	}
	pic_update(p);
	pthread_mutex_unlock(&p->lock);
}

static int pic_add_ports(struct pic *p, struct error *err)
{
	int r;

	r = bus_add_pio(p->bus, PORT_PIC0, 2, &pic_ops[0], p, "pic0", &p->ports[0], err);
	if (r == 0)
		r = bus_add_pio(p->bus, PORT_PIC1, 2, &pic_ops[1], p, "pic1", &p->ports[1], err);
	if (r == 0)
		r = bus_add_pio(p->bus, PORT_ELCR, 2, &elcr_ops, p, "elcr", &p->elcr_ports, err);
	return r;
}

int pic_create(struct pic **out, struct bus *bus, struct irq_line output, struct error *err)
{
	struct pic *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return err_set(err, ENOMEM, "no memory for the interrupt controller");
	p->bus = bus;
	p->output = output;
	pthread_mutex_init(&p->lock, NULL);
	pic_reset(p);
	r = pic_add_ports(p, err);
	if (r < 0) {
		pic_destroy(p);
		return r;
	}
	*out = p;
	return 0;
}

void pic_destroy(struct pic *p)
{
	if (!p)
		return;
	for (unsigned i = 0; i < 2; i++)
		if (p->ports[i])
			bus_remove(p->bus, p->ports[i]);
	if (p->elcr_ports)
		bus_remove(p->bus, p->elcr_ports);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

static void i8259_state(struct state *s, const char *name, struct i8259 *c)
{
	state_enter(s, name, 1);
	state_u8(s, "lines", &c->lines);
	state_u8(s, "irr", &c->irr);
	state_u8(s, "imr", &c->imr);
	state_u8(s, "isr", &c->isr);
	state_u8(s, "elcr", &c->elcr);
	state_u8(s, "base", &c->base);
	state_u8(s, "lowest", &c->lowest);
	state_check(s, c->lowest < 8, "8259 priority order");
	state_u8(s, "init_step", &c->init_step);
	state_bool(s, "need_icw4", &c->need_icw4);
	state_bool(s, "auto_eoi", &c->auto_eoi);
	state_bool(s, "rotate_on_auto_eoi", &c->rotate_on_auto_eoi);
	state_bool(s, "special_mask", &c->special_mask);
	state_bool(s, "read_isr", &c->read_isr);
	state_bool(s, "poll", &c->poll);
	state_bool(s, "output", &c->output);
	state_leave(s);
}

void pic_state(struct state *s, struct pic *p)
{
	pthread_mutex_lock(&p->lock);
	i8259_state(s, "pic0", &p->chip[0]);
	i8259_state(s, "pic1", &p->chip[1]);
	if (state_loading(s)) {
		for (unsigned i = 0; i < 2; i++) {
			p->chip[i].elcr &= p->chip[i].elcr_mask;
			p->chip[i].lowest &= 7;
		}
		pic_update(p);
	}
	pthread_mutex_unlock(&p->lock);
}

/* ---- as a copy of an engine's ---- */

bool pic_output(struct pic *p)
{
	bool level;

	pthread_mutex_lock(&p->lock);
	level = p->output_level;
	pthread_mutex_unlock(&p->lock);
	return level;
}

/* Initialisation steps are counted from ICW2 there, by the port's ICW number here. */
void pic_export(struct pic *p, struct engine_pic *e)
{
	pthread_mutex_lock(&p->lock);
	for (unsigned n = 0; n < 2; n++) {
		const struct i8259 *c = &p->chip[n];

		e[n] = (struct engine_pic){
			.irr = c->irr,
			.imr = c->imr,
			.isr = c->isr,
			.last_irr = c->lines,
			.priority = (c->lowest + 1) & 7,
			.icw2 = c->base,
			.init_state = c->init_step ? c->init_step - 1 : 0,
			.icw4_needed = c->need_icw4,
			.read_isr = c->read_isr,
			.poll = c->poll,
			.special_mask = c->special_mask,
			.auto_eoi = c->auto_eoi,
			.rotate_aeoi = c->rotate_on_auto_eoi,
			.elcr = c->elcr,
		};
	}
	pthread_mutex_unlock(&p->lock);
}

void pic_import(struct pic *p, const struct engine_pic *e)
{
	pthread_mutex_lock(&p->lock);
	for (unsigned n = 0; n < 2; n++) {
		struct i8259 *c = &p->chip[n];

		c->lines = e[n].last_irr;
		c->irr = e[n].irr;
		c->imr = e[n].imr;
		c->isr = e[n].isr;
		c->lowest = (e[n].priority + 7) & 7;
		c->base = e[n].icw2 & 0xF8;
		c->init_step = e[n].init_state ? MIN(e[n].init_state + 1, 4) : 0;
		c->need_icw4 = e[n].icw4_needed;
		c->read_isr = e[n].read_isr;
		c->poll = e[n].poll;
		c->special_mask = e[n].special_mask;
		c->auto_eoi = e[n].auto_eoi;
		c->rotate_on_auto_eoi = e[n].rotate_aeoi;
		c->elcr = e[n].elcr & c->elcr_mask;
	}
	pic_update(p);
	pthread_mutex_unlock(&p->lock);
}
