/* machine/timer/pit.c - the 8254 interval timer and port 61h.
 *
 * Nothing counts here.  A channel remembers when its count was loaded; what the counter and the
 * output are follows from the clock whenever somebody looks.  Only channel 0 keeps a timer, armed
 * for the next rising edge of its output: that is what the edge-triggered IRQ 0 sees. */
#include "machine/timer/pit.h"

#include "base/error.h"
#include "bus/bus.h"
#include "machine/memmap.h"
#include "machine/timer/vclock.h"
#include "state/state.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { NR_CHANNELS = 3 };
enum { ACCESS_LATCH, ACCESS_LOW, ACCESS_HIGH, ACCESS_BOTH };

#define STATUS_OUT  0x80
#define STATUS_NULL 0x40

/* The DRAM refresh request toggles port 61h bit 4 about every 15 us. */
#define REFRESH_HALF_NS 15085u

enum { P61_GATE2 = 1, P61_SPEAKER = 2, P61_WRITABLE = 0x0F, P61_REFRESH = 0x10, P61_OUT2 = 0x20 };

struct pit_channel {
	uint8_t mode, access;
	bool bcd, gate;
	bool loaded;         /* a count has been written since the control word */
	bool triggered;      /* modes 1 and 5: the gate has risen since then */
	uint32_t count;      /* 1..65536, or ..10000 in BCD */
	uint32_t pending;    /* the count of the next period or trigger, 0 = no change */
	uint64_t start_ns;   /* when the count was loaded */
	uint64_t held_ticks; /* modes 0 and 4: how far it got before the gate fell */

	bool write_high, read_high; /* which byte of ACCESS_BOTH is next */
	uint8_t write_low;
	uint8_t latched; /* bytes of latched_count still to be read */
	uint16_t latched_count;
	bool status_latched;
	uint8_t status;
};

struct pit {
	struct bus *bus;
	struct vclock *clock;
	struct irq_line irq;
	struct io_region *ports, *port61;

	pthread_mutex_t lock; /* guards everything below */
	struct pit_channel ch[NR_CHANNELS];
	uint8_t p61;
	bool armed;
	uint64_t edge_ns; /* while armed */
	struct vtimer timer;
};

/* ---- what a channel shows at a moment ---- */

static bool pit_periodic(const struct pit_channel *c)
{
	return c->mode == 2 || c->mode == 3;
}

static bool pit_running(const struct pit_channel *c)
{
	if (!c->loaded)
		return false;
	if (c->mode == 1 || c->mode == 5)
		return c->triggered;
	return c->gate;
}

static uint64_t pit_elapsed(const struct pit_channel *c, uint64_t now_ns)
{
	return pit_running(c) ? ns_to_ticks(now_ns - c->start_ns, PIT_HZ) : c->held_ticks;
}

/* A count written while mode 2 or 3 runs takes over when the period ends. */
static void pit_roll(struct pit_channel *c, uint64_t now_ns)
{
	uint64_t periods;

	if (!c->pending || !pit_periodic(c) || !pit_running(c))
		return;
	periods = pit_elapsed(c, now_ns) / c->count;
	if (!periods)
		return;
	c->start_ns += ticks_to_ns(c->count, PIT_HZ);
	c->count = c->pending;
	c->pending = 0;
}

static bool pit_out(const struct pit_channel *c, uint64_t now_ns)
{
	uint64_t e = pit_elapsed(c, now_ns);

	switch (c->mode) {
	case 0:
		return c->loaded && e >= c->count;
	case 1:
		return !pit_running(c) || e >= c->count;
	case 2:
		return !pit_running(c) || e % c->count != c->count - 1;
	case 3:
		return !pit_running(c) || e % c->count < (c->count + 1) / 2;
	default: /* 4, 5: low for the one tick after the count ran out */
		return !pit_running(c) || e != c->count;
	}
}

static uint16_t pit_to_bcd(uint32_t v)
{
	return v % 10 | v / 10 % 10 << 4 | v / 100 % 10 << 8 | v / 1000 % 10 << 12;
}

static uint16_t pit_counter(const struct pit_channel *c, uint64_t now_ns)
{
	uint64_t e = pit_elapsed(c, now_ns), modulus = c->bcd ? 10000 : 65536;
	uint64_t v;

	switch (c->mode) {
	case 2:
		v = c->count - e % c->count;
		break;
	case 3: /* counts down by two, twice in a period */
		v = (c->count - 2 * (e % c->count) % c->count) & ~1ull;
		break;
	default: /* goes on below zero */
		v = c->count + modulus - e % modulus;
	}
	v %= modulus;
	return c->bcd ? pit_to_bcd(v) : v;
}

/* ---- channel 0 and IRQ 0 ---- */

/* The output's next rising edge after now; false when there is none. */
static bool pit_next_edge(const struct pit_channel *c, uint64_t now_ns, uint64_t *edge_ns)
{
	uint64_t ticks = 0, e;

	if (!pit_running(c))
		return false;
	if (pit_periodic(c)) {
		now_ns += ticks_to_ns(c->count, PIT_HZ) < VTIMER_MIN_PERIOD_NS
				  ? VTIMER_MIN_PERIOD_NS
				  : 0;
		ticks = (pit_elapsed(c, now_ns) / c->count + 1) * c->count;
	} else {
		e = pit_elapsed(c, now_ns);
		ticks = c->count + (c->mode >= 4);
		if (e >= ticks)
			return false;
	}
	*edge_ns = c->start_ns + ticks_to_ns(ticks, PIT_HZ);
	return true;
}

static void pit_arm(struct pit *p, uint64_t now_ns)
{
	p->armed = pit_next_edge(&p->ch[0], now_ns, &p->edge_ns);
	if (p->armed)
		vtimer_arm(&p->timer, p->edge_ns);
	else
		vtimer_cancel(&p->timer);
}

/* Channel 0 has been reprogrammed.  An output that is high now is raised at its first edge only: a
 * mode that starts high is no tick. */
static void pit_restart(struct pit *p, uint64_t now_ns)
{
	if (!pit_out(&p->ch[0], now_ns))
		irq_set(&p->irq, false);
	pit_arm(p, now_ns);
}

static void pit_fire(void *opaque)
{
	struct pit *p = opaque;
	uint64_t now = vclock_now_ns(p->clock);

	pthread_mutex_lock(&p->lock);
	if (p->armed && p->edge_ns <= now) {
		pit_roll(&p->ch[0], now);
		irq_set(&p->irq, false);
		irq_set(&p->irq, true);
		pit_arm(p, now);
	}
	pthread_mutex_unlock(&p->lock);
}

/* ---- programming ---- */

static void pit_load(struct pit_channel *c, uint16_t value, uint64_t now_ns)
{
	uint32_t count = value;

	if (c->bcd)
		count = (value >> 12) * 1000 + (value >> 8 & 15) * 100 + (value >> 4 & 15) * 10 +
			(value & 15);
	if (!count)
		count = c->bcd ? 10000 : 65536;
	if (count == 1 && pit_periodic(c)) /* not allowed there by the datasheet */
		count = 2;
	if (c->mode != 0 && c->mode != 4 && pit_running(c)) {
		c->pending = count; /* for the next period, or the next trigger */
		return;
	}
	c->count = count;
	c->loaded = true;
	c->start_ns = now_ns;
	c->held_ticks = 0;
}

static void pit_write_count(struct pit *p, unsigned n, uint8_t v)
{
	struct pit_channel *c = &p->ch[n];
	uint64_t now = vclock_now_ns(p->clock);
	uint16_t value;

	pit_roll(c, now);
	if (c->access == ACCESS_BOTH && !c->write_high) {
		c->write_low = v;
		c->write_high = true;
		if (c->mode == 0) /* writing the first byte stops the count */
			c->loaded = false;
		value = 0;
	} else {
		value = c->access == ACCESS_LOW ? v : v << 8;
		if (c->access == ACCESS_BOTH)
			value |= c->write_low;
		c->write_high = false;
		pit_load(c, value, now);
	}
	if (n == 0)
		pit_restart(p, now);
}

static void pit_latch_count(struct pit_channel *c, uint64_t now_ns)
{
	if (c->latched)
		return;
	c->latched_count = pit_counter(c, now_ns);
	c->latched = c->access == ACCESS_BOTH ? 2 : 1;
}

static void pit_latch_status(struct pit_channel *c, uint64_t now_ns)
{
	if (c->status_latched)
		return;
	c->status_latched = true;
	c->status = (pit_out(c, now_ns) ? STATUS_OUT : 0) |
		    (c->loaded && !c->pending ? 0 : STATUS_NULL) | c->access << 4 | c->mode << 1 |
		    c->bcd;
}

static void pit_read_back(struct pit *p, uint8_t v)
{
	uint64_t now = vclock_now_ns(p->clock);

	for (unsigned n = 0; n < NR_CHANNELS; n++) {
		if (!(v >> (n + 1) & 1))
			continue;
		pit_roll(&p->ch[n], now);
		if (!(v & 0x20))
			pit_latch_count(&p->ch[n], now);
		if (!(v & 0x10))
			pit_latch_status(&p->ch[n], now);
	}
}

/*  7 6      5 4     3 2 1  0
 *  channel  access  mode   BCD;  channel 3 = read-back */
static void pit_write_control(struct pit *p, uint8_t v)
{
	struct pit_channel *c = &p->ch[v >> 6 & 3];
	uint64_t now = vclock_now_ns(p->clock);

	if (v >> 6 == 3) {
		pit_read_back(p, v);
		return;
	}
	pit_roll(c, now);
	if ((v >> 4 & 3) == ACCESS_LATCH) {
		pit_latch_count(c, now);
		return;
	}
	*c = (struct pit_channel){
		.access = v >> 4 & 3,
		.mode = (v >> 1 & 7) > 5 ? v >> 1 & 3 : v >> 1 & 7,
		.bcd = v & 1,
		.gate = c->gate,
		.count = c->count,
	};
	if (c == &p->ch[0])
		pit_restart(p, now);
}

static uint8_t pit_read_count(struct pit *p, unsigned n)
{
	struct pit_channel *c = &p->ch[n];
	uint64_t now = vclock_now_ns(p->clock);
	uint16_t v;
	bool high;

	if (c->status_latched) {
		c->status_latched = false;
		return c->status;
	}
	pit_roll(c, now);
	v = c->latched ? c->latched_count : pit_counter(c, now);
	high = c->access == ACCESS_HIGH || (c->access == ACCESS_BOTH && c->read_high);
	if (c->access == ACCESS_BOTH)
		c->read_high = !c->read_high;
	if (c->latched)
		c->latched--;
	return high ? v >> 8 : v;
}

static uint64_t pit_read(void *opaque, uint64_t off, unsigned size)
{
	struct pit *p = opaque;
	uint8_t v = 0xFF;

	pthread_mutex_lock(&p->lock);
	if (off < NR_CHANNELS)
		v = pit_read_count(p, off);
	pthread_mutex_unlock(&p->lock);
	return v;
}

static void pit_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct pit *p = opaque;

	pthread_mutex_lock(&p->lock);
	if (off < NR_CHANNELS)
		pit_write_count(p, off, value);
	else
		pit_write_control(p, value);
	pthread_mutex_unlock(&p->lock);
}

/* ---- port 61h ---- */

static void pit_set_gate(struct pit_channel *c, bool gate, uint64_t now_ns)
{
	bool was = c->gate;
	uint64_t done = pit_elapsed(c, now_ns);

	c->gate = gate;
	if (was == gate)
		return;
	if (c->mode == 0 || c->mode == 4) { /* the gate stops the count and lets it go on */
		if (gate)
			c->start_ns = now_ns - ticks_to_ns(done, PIT_HZ);
		else
			c->held_ticks = done;
	} else if (gate) { /* elsewhere a rising edge starts from the top */
		if (c->pending)
			c->count = c->pending;
		c->pending = 0;
		c->triggered = c->loaded;
		c->start_ns = now_ns;
	}
}

static uint64_t p61_read(void *opaque, uint64_t off, unsigned size)
{
	struct pit *p = opaque;
	uint64_t now;
	uint8_t v;

	pthread_mutex_lock(&p->lock);
	now = vclock_now_ns(p->clock);
	pit_roll(&p->ch[2], now);
	v = p->p61;
	if (now / REFRESH_HALF_NS & 1)
		v |= P61_REFRESH;
	if (pit_out(&p->ch[2], now))
		v |= P61_OUT2;
	pthread_mutex_unlock(&p->lock);
	return v;
}

static void p61_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct pit *p = opaque;

	pthread_mutex_lock(&p->lock);
	p->p61 = value & P61_WRITABLE;
	pit_roll(&p->ch[2], vclock_now_ns(p->clock));
	pit_set_gate(&p->ch[2], value & P61_GATE2, vclock_now_ns(p->clock));
	pthread_mutex_unlock(&p->lock);
}

static const struct io_ops pit_ops = {.read = pit_read, .write = pit_write, .max_size = 1};
static const struct io_ops p61_ops = {.read = p61_read, .write = p61_write, .max_size = 1};

/* ---- life ---- */

void pit_reset(struct pit *p)
{
	pthread_mutex_lock(&p->lock);
	for (unsigned n = 0; n < NR_CHANNELS; n++)
		p->ch[n] = (struct pit_channel){
			.mode = 3,
			.access = ACCESS_BOTH,
			.gate = n != 2,
			.count = 65536,
		};
	p->p61 = 0;
	p->armed = false;
	vtimer_cancel(&p->timer);
	irq_set(&p->irq, false);
	pthread_mutex_unlock(&p->lock);
}

int pit_create(struct pit **out, struct bus *bus, struct vclock *clock, struct irq_line irq,
	       struct error *err)
{
	struct pit *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return err_set(err, ENOMEM, "no memory for the interval timer");
	p->bus = bus;
	p->clock = clock;
	p->irq = irq;
	pthread_mutex_init(&p->lock, NULL);
	vtimer_init(&p->timer, clock, pit_fire, p);
	pit_reset(p);
	r = bus_add_pio(bus, PORT_PIT, 4, &pit_ops, p, "pit", &p->ports, err);
	if (r == 0)
		r = bus_add_pio(bus, PORT_SYSTEM_B, 1, &p61_ops, p, "port61", &p->port61, err);
	if (r < 0) {
		pit_destroy(p);
		return r;
	}
	*out = p;
	return 0;
}

void pit_destroy(struct pit *p)
{
	if (!p)
		return;
	if (p->ports)
		bus_remove(p->bus, p->ports);
	if (p->port61)
		bus_remove(p->bus, p->port61);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

static void pit_channel_state(struct state *s, struct pit_channel *c)
{
	state_enter(s, "channel", 1);
	state_u8(s, "mode", &c->mode);
	state_u8(s, "access", &c->access);
	state_bool(s, "bcd", &c->bcd);
	state_bool(s, "gate", &c->gate);
	state_bool(s, "loaded", &c->loaded);
	state_bool(s, "triggered", &c->triggered);
	state_u32(s, "count", &c->count);
	state_u32(s, "pending", &c->pending);
	state_u64(s, "start_ns", &c->start_ns);
	state_u64(s, "held_ticks", &c->held_ticks);
	state_bool(s, "write_high", &c->write_high);
	state_bool(s, "read_high", &c->read_high);
	state_u8(s, "write_low", &c->write_low);
	state_u8(s, "latched", &c->latched);
	state_u16(s, "latched_count", &c->latched_count);
	state_bool(s, "status_latched", &c->status_latched);
	state_u8(s, "status", &c->status);
	state_check(s, c->mode <= 5 && c->access >= 1 && c->access <= 3, "PIT mode");
	state_check(s, c->count >= 1 && c->count <= 65536 && c->pending <= 65536, "PIT count");
	state_check(s, c->latched <= 2, "PIT channel");
	state_leave(s);
}

void pit_state(struct state *s, struct pit *p)
{
	struct pit_channel ch[NR_CHANNELS];

	pthread_mutex_lock(&p->lock);
	memcpy(ch, p->ch, sizeof(ch));
	state_enter(s, "pit", 1);
	for (unsigned n = 0; n < NR_CHANNELS; n++)
		pit_channel_state(s, &ch[n]);
	state_u8(s, "p61", &p->p61);
	state_leave(s);
	if (state_loading(s)) {
		memcpy(p->ch, ch, sizeof(ch));
		p->p61 &= P61_WRITABLE;
		pit_arm(p, vclock_now_ns(p->clock)); /* the wires keep their own state */
	}
	pthread_mutex_unlock(&p->lock);
}
