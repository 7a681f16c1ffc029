/* machine/timer/hpet.c - the high precision event timer.
 *
 * The main counter is the board's clock minus an origin; a comparator that can fire keeps a timer.
 * 32-bit comparators are compared with the low half of the counter. */
#include "machine/timer/hpet.h"

#include "base/error.h"
#include "bus/bus.h"
#include "machine/timer/vclock.h"
#include "state/state.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

enum { NR_TIMERS = 3 };

// clang-format off
enum { REG_CAPS = 0x00, REG_CONFIG = 0x10, REG_STATUS = 0x20, REG_COUNTER = 0xF0,
       REG_TIMER = 0x100, TIMER_STRIDE = 0x20 };
enum { TIMER_CONFIG = 0x00, TIMER_COMPARATOR = 0x08, TIMER_FSB = 0x10 };
enum { CONFIG_ENABLE = 1, CONFIG_LEGACY = 2 };

#define T_LEVEL		BIT(1)
#define T_ENABLE	BIT(2)
#define T_PERIODIC	BIT(3)
#define T_CAN_PERIODIC	BIT(4)
#define T_64BIT		BIT(5)
#define T_SET_VALUE	BIT(6)
#define T_FORCE_32	BIT(8)
#define T_ROUTE(c)	((c) >> 9 & 31)
#define T_FSB		BIT(14)
#define T_CAN_FSB	BIT(15)
#define T_WRITABLE	(T_LEVEL | T_ENABLE | T_PERIODIC | T_FORCE_32 | 31u << 9 | T_FSB)
#define T_ROUTES_SHIFT	32
// clang-format on

struct hpet_timer {
	struct hpet *hpet;
	unsigned n;
	uint64_t config; /* writable bits */
	uint64_t comparator, period;
	uint64_t start;           /* of a periodic timer: the comparator that T_SET_VALUE gave it */
	uint64_t fsb;             /* address << 32 | data */
	bool set_value, starting; /* starting: the period is still to be written */
	bool armed, loaded_due;
	uint64_t deadline_ns;
	struct vtimer timer;
};

struct hpet {
	struct hpet_config cfg;
	struct io_region *region;
	uint64_t caps;

	pthread_mutex_t lock; /* guards everything below */
	/* When the lock was taken.  All that is done under it is done at that moment: between two
	 * readings of the clock a busy host may let a match pass. */
	uint64_t now_ns;
	uint32_t config, status;
	uint64_t counter;   /* while stopped */
	uint64_t origin_ns; /* while running: when the counter was `counter` */
	uint32_t gsi_level; /* what each line was last told */
	struct hpet_timer t[NR_TIMERS];
};

static void hpet_lock(struct hpet *h)
{
	pthread_mutex_lock(&h->lock);
	h->now_ns = vclock_now_ns(h->cfg.clock);
}

/* ---- counting ---- */

static uint64_t hpet_counter_at(const struct hpet *h, uint64_t now_ns)
{
	if (!(h->config & CONFIG_ENABLE))
		return h->counter;
	return h->counter + ns_to_ticks(now_ns - h->origin_ns, HPET_HZ);
}

static bool hpet_timer_is_32(const struct hpet_timer *t)
{
	return t->config & T_FORCE_32;
}

/* Counter ticks until the comparator matches: 1 .. the whole round. */
static uint64_t hpet_ticks_to_match(const struct hpet_timer *t, uint64_t counter)
{
	uint64_t d = t->comparator - counter;

	if (hpet_timer_is_32(t))
		return (uint32_t)d ? (uint32_t)d : BIT(32);
	return d ? d : UINT64_MAX;
}

static void hpet_timer_arm(struct hpet_timer *t)
{
	struct hpet *h = t->hpet;
	uint64_t at;

	/* The flag of a level-triggered timer shows even with its interrupt disabled, but nobody
	 * would see it before enabling: armed by T_ENABLE alone. */
	t->armed = (h->config & CONFIG_ENABLE) && (t->config & T_ENABLE);
	if (!t->armed) {
		vtimer_cancel(&t->timer);
		return;
	}
	at = ns_to_ticks(h->now_ns - h->origin_ns, HPET_HZ);
	at += MIN(hpet_ticks_to_match(t, h->counter + at), (uint64_t)INT64_MAX / 16);
	t->deadline_ns = h->origin_ns + ticks_to_ns(at, HPET_HZ);
	vtimer_arm(&t->timer, t->deadline_ns);
}

static void hpet_timer_due(struct hpet_timer *t)
{
	t->deadline_ns = t->hpet->now_ns;
	vtimer_arm(&t->timer, t->deadline_ns);
}

/* A guest reads the counter, adds to it and writes the comparator.  On hardware that takes less
 * than a microsecond; here the host may stop the CPU in between until the moment has passed, and
 * the next match is 43 seconds away with 32 bits.  What has just been passed is due at once. */
static void hpet_timer_arm_written(struct hpet_timer *t)
{
	struct hpet *h = t->hpet;
	uint64_t counter = hpet_counter_at(h, h->now_ns);

	hpet_timer_arm(t);
	if (hpet_timer_is_32(t))
		counter = (uint32_t)counter;
	if (t->armed && t->comparator <= counter && counter - t->comparator < BIT(31))
		hpet_timer_due(t);
}

static void hpet_arm_all(struct hpet *h)
{
	for (unsigned n = 0; n < NR_TIMERS; n++)
		hpet_timer_arm(&h->t[n]);
}

/* ---- interrupts ---- */

static bool hpet_timer_legacy(const struct hpet_timer *t)
{
	return (t->hpet->config & CONFIG_LEGACY) && t->n < 2;
}

static bool hpet_route_ok(const struct hpet *h, unsigned gsi)
{
	return h->caps >> (T_ROUTES_SHIFT + gsi) & 1;
}

/* Lines of level-triggered timers follow the status register. */
static void hpet_update_lines(struct hpet *h)
{
	uint32_t level = 0, changed;

	for (unsigned n = 0; n < NR_TIMERS; n++) {
		const struct hpet_timer *t = &h->t[n];
		unsigned gsi = T_ROUTE(t->config);

		if ((h->status >> n & 1) && (t->config & T_ENABLE) && (t->config & T_LEVEL) &&
		    !(t->config & T_FSB) && !hpet_timer_legacy(t) && hpet_route_ok(h, gsi))
			level |= 1u << gsi;
	}
	changed = level ^ h->gsi_level;
	h->gsi_level = level;
	for (unsigned gsi = 0; gsi < NR_GSIS; gsi++)
		if (changed >> gsi & 1)
			irq_set(&h->cfg.gsi[gsi], level >> gsi & 1);
}

/* The 8259 wants a request held until it is acknowledged, so IRQ 0 and 8 stay high between edges.
 * A pin above may be shared with level-triggered devices and must fall again. */
static void hpet_pulse(const struct irq_line *line, bool stay_high)
{
	irq_set(line, false);
	irq_set(line, true);
	if (!stay_high)
		irq_set(line, false);
}

static void hpet_timer_interrupt(struct hpet_timer *t)
{
	struct hpet *h = t->hpet;
	unsigned gsi = T_ROUTE(t->config);

	if (t->config & T_LEVEL)
		h->status |= 1u << t->n;
	if (t->config & T_FSB) {
		msi_send(&h->cfg.msi, t->fsb >> 32, (uint32_t)t->fsb);
	} else if (hpet_timer_legacy(t)) {
		hpet_pulse(&h->cfg.legacy[t->n], true);
	} else if (t->config & T_LEVEL) {
		hpet_update_lines(h);
	} else if (hpet_route_ok(h, gsi) && !(h->gsi_level >> gsi & 1)) {
		hpet_pulse(&h->cfg.gsi[gsi], false);
	}
}

/* Move a periodic comparator past the counter, at least VTIMER_MIN_PERIOD_NS ahead. */
static void hpet_timer_advance(struct hpet_timer *t)
{
	uint64_t counter = hpet_counter_at(t->hpet, t->hpet->now_ns), behind;

	if (!(t->config & T_PERIODIC) || !t->period)
		return;
	if (t->period < VTIMER_MIN_PERIOD_NS / 10)
		counter += VTIMER_MIN_PERIOD_NS / 10;
	behind = counter - t->comparator;
	if (hpet_timer_is_32(t))
		behind = (uint32_t)behind;
	t->comparator += (behind / t->period + 1) * t->period;
	if (hpet_timer_is_32(t))
		t->comparator = (uint32_t)t->comparator;
}

/* Matches that have come.  Also before each write: the thread that fires may be late, and what is
 * set anew must not make a match undone. */
static void hpet_catch_up(struct hpet *h)
{
	for (unsigned n = 0; n < NR_TIMERS; n++) {
		struct hpet_timer *t = &h->t[n];

		if (!t->armed || t->deadline_ns > h->now_ns)
			continue;
		hpet_timer_advance(t);
		hpet_timer_arm(t);
		hpet_timer_interrupt(t);
	}
}

static void hpet_fire(void *opaque)
{
	struct hpet_timer *t = opaque;

	hpet_lock(t->hpet);
	hpet_catch_up(t->hpet);
	pthread_mutex_unlock(&t->hpet->lock);
}

/* ---- registers ---- */

static uint64_t hpet_timer_read(const struct hpet_timer *t, unsigned reg)
{
	switch (reg) {
	case TIMER_CONFIG:
		return t->config | T_CAN_PERIODIC | T_64BIT | T_CAN_FSB |
		       (t->hpet->caps >> T_ROUTES_SHIFT << T_ROUTES_SHIFT);
	case TIMER_COMPARATOR:
		return t->comparator;
	case TIMER_FSB: /* value in the low half, address in the high half */
		return t->fsb;
	}
	return 0;
}

static uint64_t hpet_reg_read(struct hpet *h, unsigned reg)
{
	switch (reg) {
	case REG_CAPS:
		return (uint64_t)HPET_PERIOD_FS << 32 | HPET_ID;
	case REG_CONFIG:
		return h->config;
	case REG_STATUS:
		return h->status;
	case REG_COUNTER:
		return hpet_counter_at(h, h->now_ns);
	}
	if (reg < REG_TIMER || reg >= REG_TIMER + NR_TIMERS * TIMER_STRIDE)
		return 0;
	reg -= REG_TIMER;
	return hpet_timer_read(&h->t[reg / TIMER_STRIDE], reg % TIMER_STRIDE);
}

static void hpet_set_legacy(struct hpet *h, bool on)
{
	for (unsigned n = 0; n < 2; n++)
		irq_set(&h->cfg.legacy[n], false);
	h->cfg.legacy_mode(h->cfg.legacy_opaque, on);
}

static void hpet_write_config(struct hpet *h, uint64_t v)
{
	uint32_t was = h->config;

	if ((was & CONFIG_ENABLE) && !(v & CONFIG_ENABLE))
		h->counter = hpet_counter_at(h, h->now_ns);
	h->config = v & (CONFIG_ENABLE | CONFIG_LEGACY);
	if (!(was & CONFIG_ENABLE))
		h->origin_ns = h->now_ns;
	if ((was ^ h->config) & CONFIG_LEGACY)
		hpet_set_legacy(h, h->config & CONFIG_LEGACY);
	hpet_update_lines(h);
	hpet_arm_all(h);
}

/* Written bits clear: all of them for the flags, masked to what was written by the caller. */
static void hpet_write_status(struct hpet *h, uint64_t v)
{
	h->status &= ~(uint32_t)v;
	hpet_update_lines(h);
}

static void hpet_write_counter(struct hpet *h, uint64_t v)
{
	if (h->config & CONFIG_ENABLE) /* the specification leaves this open; Windows never does */
		h->origin_ns = h->now_ns;
	h->counter = v;
	hpet_arm_all(h);
}

static void hpet_timer_write_config(struct hpet_timer *t, uint64_t v)
{
	t->config = v & T_WRITABLE;
	t->starting = false;
	t->set_value = (v & T_SET_VALUE) && (v & T_PERIODIC);
	if (hpet_timer_is_32(t)) {
		t->comparator = (uint32_t)t->comparator;
		t->period = (uint32_t)t->period;
	}
	if (!(t->config & T_LEVEL))
		t->hpet->status &= ~(1u << t->n);
	hpet_update_lines(t->hpet);
	hpet_timer_arm(t);
}

/* A periodic timer has two numbers behind one register: after T_SET_VALUE the next write is the
 * comparator too, and not the period alone.  Should it match before the true period is written, it
 * has moved on by a number that is none. */
static void hpet_timer_write_comparator(struct hpet_timer *t, uint64_t v)
{
	if (hpet_timer_is_32(t))
		v = (uint32_t)v;
	if (!(t->config & T_PERIODIC) || t->set_value)
		t->comparator = t->start = v;
	else if (t->starting)
		t->comparator = t->start;
	if (t->config & T_PERIODIC)
		t->period = v;
	t->starting = t->set_value;
	t->set_value = false;
	hpet_timer_arm_written(t);
}

static void hpet_timer_write(struct hpet_timer *t, unsigned reg, uint64_t v)
{
	switch (reg) {
	case TIMER_CONFIG:
		hpet_timer_write_config(t, v);
		break;
	case TIMER_COMPARATOR: /* 32-bit drivers write the low half, which means all of it */
		hpet_timer_write_comparator(t, v);
		break;
	case TIMER_FSB:
		t->fsb = v;
		break;
	}
}

static void hpet_reg_write(struct hpet *h, unsigned reg, uint64_t v)
{
	switch (reg) {
	case REG_CONFIG:
		hpet_write_config(h, v);
		return;
	case REG_STATUS:
		hpet_write_status(h, v);
		return;
	case REG_COUNTER:
		hpet_write_counter(h, v);
		return;
	}
	if (reg < REG_TIMER || reg >= REG_TIMER + NR_TIMERS * TIMER_STRIDE)
		return;
	reg -= REG_TIMER;
	hpet_timer_write(&h->t[reg / TIMER_STRIDE], reg % TIMER_STRIDE, v);
}

static uint64_t hpet_read(void *opaque, uint64_t off, unsigned size)
{
	struct hpet *h = opaque;
	uint64_t v;

	hpet_lock(h);
	v = hpet_reg_read(h, off & ~7ull);
	pthread_mutex_unlock(&h->lock);
	return v >> (off & 7) * 8;
}

/* The specification allows 32- and 64-bit accesses.  Half a register is merged with the other half,
 * except where a write has an effect of its own. */
static void hpet_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct hpet *h = opaque;
	unsigned reg = off & ~7ull, shift = (off & 4) * 8;
	uint64_t old;

	if (size < 4 || (off & (size - 1)))
		return;
	hpet_lock(h);
	hpet_catch_up(h);
	if (size == 4) {
		old = reg == REG_STATUS ? 0 : hpet_reg_read(h, reg);
		value = (old & ~(0xFFFFFFFFull << shift)) | (value & 0xFFFFFFFF) << shift;
	}
	hpet_reg_write(h, reg, value);
	pthread_mutex_unlock(&h->lock);
}

static const struct io_ops hpet_ops = {.read = hpet_read, .write = hpet_write, .max_size = 8};

/* ---- life ---- */

void hpet_reset(struct hpet *h)
{
	hpet_lock(h);
	if (h->config & CONFIG_LEGACY)
		hpet_set_legacy(h, false);
	h->config = h->status = 0;
	h->counter = 0;
	for (unsigned n = 0; n < NR_TIMERS; n++) {
		struct hpet_timer *t = &h->t[n];

		t->config = t->period = t->fsb = 0;
		t->comparator = ~0ull;
		t->set_value = t->starting = false;
	}
	hpet_update_lines(h);
	hpet_arm_all(h);
	pthread_mutex_unlock(&h->lock);
}

int hpet_create(struct hpet **out, const struct hpet_config *cfg, struct error *err)
{
	struct hpet *h = calloc(1, sizeof(*h));
	int r;

	if (!h)
		return err_set(err, ENOMEM, "no memory for the HPET");
	h->cfg = *cfg;
	for (unsigned gsi = 0; gsi < NR_GSIS; gsi++)
		if (cfg->gsi[gsi].set)
			h->caps |= BIT(T_ROUTES_SHIFT + gsi);
	pthread_mutex_init(&h->lock, NULL);
	for (unsigned n = 0; n < NR_TIMERS; n++) {
		h->t[n].hpet = h;
		h->t[n].n = n;
		vtimer_init(&h->t[n].timer, cfg->clock, hpet_fire, &h->t[n]);
	}
	hpet_reset(h);
	r = bus_add_mmio(cfg->bus, MEMMAP_HPET, MEMMAP_HPET_SIZE, &hpet_ops, h, "hpet", &h->region,
			 err);
	if (r < 0) {
		hpet_destroy(h);
		return r;
	}
	*out = h;
	return 0;
}

void hpet_destroy(struct hpet *h)
{
	if (!h)
		return;
	if (h->region)
		bus_remove(h->cfg.bus, h->region);
	pthread_mutex_destroy(&h->lock);
	free(h);
}

static void hpet_timer_state(struct state *s, struct hpet_timer *t)
{
	/* A match whose interrupt was still on its way when the clock stopped. */
	bool due = t->armed && t->deadline_ns <= t->hpet->now_ns;

	state_enter(s, "timer", 2);
	state_u64(s, "config", &t->config);
	state_u64(s, "comparator", &t->comparator);
	state_u64(s, "period", &t->period);
	state_u64(s, "fsb", &t->fsb);
	state_bool(s, "set_value", &t->set_value);
	if (state_since(s, 2)) {
		state_u64(s, "start", &t->start);
		state_bool(s, "starting", &t->starting);
		state_bool(s, "due", &due);
	} else {
		due = t->starting = false;
	}
	state_leave(s);
	t->loaded_due = due;
	t->config &= T_WRITABLE;
}

void hpet_state(struct state *s, struct hpet *h)
{
	hpet_lock(h);
	state_enter(s, "hpet", 1);
	state_u32(s, "config", &h->config);
	state_u32(s, "status", &h->status);
	state_u64(s, "counter", &h->counter);
	state_u64(s, "origin_ns", &h->origin_ns);
	state_u32(s, "gsi_level", &h->gsi_level);
	for (unsigned n = 0; n < NR_TIMERS; n++)
		hpet_timer_state(s, &h->t[n]);
	state_leave(s);
	h->config &= CONFIG_ENABLE | CONFIG_LEGACY;
	h->status &= BIT(NR_TIMERS) - 1;
	if (state_loading(s)) {
		h->cfg.legacy_mode(h->cfg.legacy_opaque, h->config & CONFIG_LEGACY);
		hpet_update_lines(h);
		hpet_arm_all(h);
		for (unsigned n = 0; n < NR_TIMERS; n++)
			if (h->t[n].loaded_due && h->t[n].armed)
				hpet_timer_due(&h->t[n]);
	}
	pthread_mutex_unlock(&h->lock);
}
