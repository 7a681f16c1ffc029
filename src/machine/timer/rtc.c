/* machine/timer/rtc.c - the MC146818 clock and its CMOS memory.
 *
 * Time is not counted: it is the host's time of day plus offset_ns.  While the guest holds SET (to
 * write the time) the ten time bytes live in cmos[]; when it lets go they become the new offset.
 * Event flags are collected when somebody looks (rtc_collect), a timer runs only for those events
 * whose interrupt is enabled and whose flag is not yet set. */
#include "machine/timer/rtc.h"

#include "base/clock.h"
#include "base/error.h"
#include "bus/bus.h"
#include "machine/memmap.h"
#include "machine/timer/vclock.h"
#include "state/state.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

// clang-format off
enum {
	SECONDS = 0, SECONDS_ALARM = 1, MINUTES = 2, MINUTES_ALARM = 3, HOURS = 4, HOURS_ALARM = 5,
	WEEKDAY = 6, DAY = 7, MONTH = 8, YEAR = 9,
	REG_A = 0x0A, REG_B = 0x0B, REG_C = 0x0C, REG_D = 0x0D, CENTURY = 0x32,
	CMOS_SIZE = 128,
};
enum { A_UIP = 0x80, A_RATE = 0x0F };
enum { B_SET = 0x80, B_PIE = 0x40, B_AIE = 0x20, B_UIE = 0x10, B_BINARY = 0x04, B_24H = 0x02 };
enum { C_IRQF = 0x80, C_PF = 0x40, C_AF = 0x20, C_UF = 0x10 };
enum { D_VALID = 0x80 };
// clang-format on

#define ALARM_ANY   0xC0 /* and above: matches every value */
#define CRYSTAL_HZ  32768u
#define UIP_LEAD_NS 244000u /* UIP rises this long before the update */

struct rtc {
	struct bus *bus;
	struct vclock *clock;
	struct irq_line irq;
	struct io_region *ports;

	pthread_mutex_t lock; /* guards everything below */
	uint8_t index;
	uint8_t cmos[CMOS_SIZE];
	int64_t offset_ns;     /* guest time of day - host time of day */
	uint64_t collected_ns; /* guest time up to which events are in register C */
	struct vtimer timer;
};

static uint64_t rtc_now_ns(const struct rtc *r)
{
	return vclock_real_ns(r->clock) + (uint64_t)r->offset_ns;
}

/* ---- the time as registers ---- */

static uint8_t rtc_encode(const struct rtc *r, unsigned v)
{
	return r->cmos[REG_B] & B_BINARY ? v : (v / 10 % 10) << 4 | v % 10;
}

static unsigned rtc_decode(const struct rtc *r, uint8_t v)
{
	return r->cmos[REG_B] & B_BINARY ? v : (v >> 4) * 10 + (v & 15);
}

static uint8_t rtc_encode_hour(const struct rtc *r, unsigned hour)
{
	if (r->cmos[REG_B] & B_24H)
		return rtc_encode(r, hour);
	return rtc_encode(r, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? 0x80 : 0);
}

static unsigned rtc_decode_hour(const struct rtc *r, uint8_t v)
{
	if (r->cmos[REG_B] & B_24H)
		return rtc_decode(r, v);
	return rtc_decode(r, v & 0x7F) % 12 + (v & 0x80 ? 12 : 0);
}

static void rtc_time_to_cmos(struct rtc *r)
{
	time_t seconds = rtc_now_ns(r) / NSEC_PER_SEC;
	struct tm tm;

	gmtime_r(&seconds, &tm);
	r->cmos[SECONDS] = rtc_encode(r, tm.tm_sec);
	r->cmos[MINUTES] = rtc_encode(r, tm.tm_min);
	r->cmos[HOURS] = rtc_encode_hour(r, tm.tm_hour);
	r->cmos[WEEKDAY] = rtc_encode(r, tm.tm_wday + 1);
	r->cmos[DAY] = rtc_encode(r, tm.tm_mday);
	r->cmos[MONTH] = rtc_encode(r, tm.tm_mon + 1);
	r->cmos[YEAR] = rtc_encode(r, tm.tm_year % 100);
	r->cmos[CENTURY] = rtc_encode(r, (tm.tm_year + 1900) / 100);
}

/* Whatever the guest wrote names some moment: timegm carries what is out of range. */
static void rtc_time_from_cmos(struct rtc *r)
{
	struct tm tm = {
		.tm_sec = rtc_decode(r, r->cmos[SECONDS]),
		.tm_min = rtc_decode(r, r->cmos[MINUTES]),
		.tm_hour = rtc_decode_hour(r, r->cmos[HOURS]),
		.tm_mday = rtc_decode(r, r->cmos[DAY]),
		.tm_mon = (int)rtc_decode(r, r->cmos[MONTH]) - 1,
		.tm_year = (int)(rtc_decode(r, r->cmos[CENTURY]) * 100 +
				 rtc_decode(r, r->cmos[YEAR])) -
			   1900,
	};
	int64_t seconds = timegm(&tm), limit = INT64_MAX / (int64_t)NSEC_PER_SEC;
	uint64_t now = rtc_now_ns(r), wanted;

	seconds = MIN(MAX(seconds, 0), limit - 1);
	wanted = (uint64_t)seconds * NSEC_PER_SEC + now % NSEC_PER_SEC;
	r->offset_ns = (int64_t)((uint64_t)r->offset_ns + wanted - now);
	r->collected_ns = wanted;
}

static bool rtc_is_time(unsigned index)
{
	return index == SECONDS || index == MINUTES || index == HOURS ||
	       (index >= WEEKDAY && index <= YEAR) || index == CENTURY;
}

/* ---- events ---- */

/* Length of the periodic interrupt in crystal ticks, 0 = off. */
static uint32_t rtc_period(const struct rtc *r)
{
	unsigned rate = r->cmos[REG_A] & A_RATE;

	if (rate == 0)
		return 0;
	return 1u << (rate <= 2 ? rate + 6 : rate - 1);
}

/* -1: any value; 0xFF..: can never match. */
static int rtc_alarm_field(const struct rtc *r, unsigned index)
{
	uint8_t v = r->cmos[index];

	if (v >= ALARM_ANY)
		return -1;
	return index == HOURS_ALARM ? rtc_decode_hour(r, v) : rtc_decode(r, v);
}

/* First second after `after` that matches the alarm registers; UINT64_MAX when none ever does. */
static uint64_t rtc_next_alarm(const struct rtc *r, uint64_t after)
{
	int s = rtc_alarm_field(r, SECONDS_ALARM), m = rtc_alarm_field(r, MINUTES_ALARM);
	int h = rtc_alarm_field(r, HOURS_ALARM);
	uint64_t t = after + 1, end = t + 86400;

	if (s > 59 || m > 59 || h > 23)
		return UINT64_MAX;
	while (t <= end) {
		if (h >= 0 && t / 3600 % 24 != (unsigned)h)
			t += 3600 - t % 3600;
		else if (m >= 0 && t / 60 % 60 != (unsigned)m)
			t += 60 - t % 60;
		else if (s >= 0 && t % 60 != (unsigned)s)
			t++;
		else
			return t;
	}
	return UINT64_MAX;
}

static void rtc_collect(struct rtc *r)
{
	uint64_t now = rtc_now_ns(r), was = r->collected_ns;
	uint32_t period = rtc_period(r);

	r->collected_ns = now;
	if (now < was) /* the host's clock was set back */
		return;
	if (period &&
	    ns_to_ticks(now, CRYSTAL_HZ) / period != ns_to_ticks(was, CRYSTAL_HZ) / period)
		r->cmos[REG_C] |= C_PF;
	if (r->cmos[REG_B] & B_SET)
		return;
	if (now / NSEC_PER_SEC != was / NSEC_PER_SEC)
		r->cmos[REG_C] |= C_UF;
	if (rtc_next_alarm(r, was / NSEC_PER_SEC) <= now / NSEC_PER_SEC)
		r->cmos[REG_C] |= C_AF;
}

/* Guest time of the next event that must interrupt; UINT64_MAX for none. */
static uint64_t rtc_next_event_ns(const struct rtc *r)
{
	uint8_t wanted = r->cmos[REG_B] & ~r->cmos[REG_C];
	uint64_t now = r->collected_ns, next = UINT64_MAX, second = now / NSEC_PER_SEC, tick;
	uint32_t period = rtc_period(r);

	if ((wanted & B_PIE) && period) {
		tick = (ns_to_ticks(now, CRYSTAL_HZ) / period + 1) * period;
		next = ticks_to_ns(tick, CRYSTAL_HZ);
	}
	if (r->cmos[REG_B] & B_SET)
		return next;
	if (wanted & B_UIE)
		next = MIN(next, (second + 1) * NSEC_PER_SEC);
	if (wanted & B_AIE) {
		second = rtc_next_alarm(r, second);
		if (second != UINT64_MAX)
			next = MIN(next, second * NSEC_PER_SEC);
	}
	return next;
}

static void rtc_update(struct rtc *r)
{
	uint64_t next;
	bool irq;

	rtc_collect(r);
	irq = r->cmos[REG_B] & r->cmos[REG_C] & (C_PF | C_AF | C_UF);
	r->cmos[REG_C] = (r->cmos[REG_C] & ~C_IRQF) | (irq ? C_IRQF : 0);
	irq_set(&r->irq, irq);
	next = rtc_next_event_ns(r);
	if (next == UINT64_MAX)
		vtimer_cancel(&r->timer);
	else
		vtimer_arm(&r->timer, vclock_now_ns(r->clock) + next - r->collected_ns);
}

static void rtc_fire(void *opaque)
{
	struct rtc *r = opaque;

	pthread_mutex_lock(&r->lock);
	rtc_update(r);
	pthread_mutex_unlock(&r->lock);
}

/* ---- ports ---- */

static uint8_t rtc_read_register(struct rtc *r, unsigned index)
{
	uint64_t into_second;
	uint8_t v;

	if (rtc_is_time(index) && !(r->cmos[REG_B] & B_SET))
		rtc_time_to_cmos(r);
	switch (index) {
	case REG_A:
		into_second = rtc_now_ns(r) % NSEC_PER_SEC;
		v = r->cmos[REG_A];
		if (into_second >= NSEC_PER_SEC - UIP_LEAD_NS && !(r->cmos[REG_B] & B_SET))
			v |= A_UIP;
		return v;
	case REG_C:
		rtc_update(r);
		v = r->cmos[REG_C];
		r->cmos[REG_C] = 0;
		irq_set(&r->irq, false); /* an event due by now has to make a new edge */
		rtc_update(r);
		return v;
	}
	return r->cmos[index];
}

static void rtc_write_b(struct rtc *r, uint8_t v)
{
	uint8_t was = r->cmos[REG_B];

	if (v & B_SET) /* updates are inhibited, and their interrupt with them */
		v &= ~B_UIE;
	if (!(was & B_SET) && (v & B_SET))
		rtc_time_to_cmos(r);
	r->cmos[REG_B] = v;
	if ((was & B_SET) && !(v & B_SET))
		rtc_time_from_cmos(r);
}

static void rtc_write_register(struct rtc *r, unsigned index, uint8_t v)
{
	rtc_collect(r);
	switch (index) {
	case REG_A:
		r->cmos[REG_A] = v & ~A_UIP;
		break;
	case REG_B:
		rtc_write_b(r, v);
		break;
	case REG_C:
	case REG_D:
		break;
	default:
		if (rtc_is_time(index) && !(r->cmos[REG_B] & B_SET)) {
			rtc_time_to_cmos(r);
			r->cmos[index] = v;
			rtc_time_from_cmos(r);
		}
		r->cmos[index] = v;
	}
	rtc_update(r);
}

static uint64_t rtc_read(void *opaque, uint64_t off, unsigned size)
{
	struct rtc *r = opaque;
	uint8_t v = 0xFF; /* the index port is write-only */

	pthread_mutex_lock(&r->lock);
	if (off == 1)
		v = rtc_read_register(r, r->index);
	pthread_mutex_unlock(&r->lock);
	return v;
}

static void rtc_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct rtc *r = opaque;

	pthread_mutex_lock(&r->lock);
	if (off == 0)
		r->index = value % CMOS_SIZE; /* bit 7 is the NMI mask */
	else
		rtc_write_register(r, r->index, value);
	pthread_mutex_unlock(&r->lock);
}

static const struct io_ops rtc_ops = {.read = rtc_read, .write = rtc_write, .max_size = 1};

/* ---- life ---- */

static void rtc_put16(struct rtc *r, unsigned index, uint64_t v)
{
	v = MIN(v, 0xFFFFu);
	r->cmos[index] = v;
	r->cmos[index + 1] = v >> 8;
}

/* What a BIOS finds here or leaves here. */
static void rtc_fill_cmos(struct rtc *r, struct rtc_memory m)
{
	uint64_t above = MIN(m.above_4g / (64 * KiB), 0xFFFFFFu);
	unsigned sum = 0;

	r->cmos[0x14] = 0x06; /* equipment: FPU, PS/2 */
	rtc_put16(r, 0x15, 640);
	rtc_put16(r, 0x17, m.below_4g > MiB ? (m.below_4g - MiB) / KiB : 0);
	rtc_put16(r, 0x30, m.below_4g > MiB ? (m.below_4g - MiB) / KiB : 0);
	rtc_put16(r, 0x34, m.below_4g > 16 * MiB ? (m.below_4g - 16 * MiB) / (64 * KiB) : 0);
	rtc_put16(r, 0x5B, above & 0xFFFF);
	r->cmos[0x5D] = above >> 16;
	for (unsigned i = 0x10; i <= 0x2D; i++)
		sum += r->cmos[i];
	r->cmos[0x2E] = sum >> 8;
	r->cmos[0x2F] = sum;
}

void rtc_reset(struct rtc *r)
{
	pthread_mutex_lock(&r->lock);
	if (r->cmos[REG_B] & B_SET)
		rtc_write_b(r, r->cmos[REG_B] & ~B_SET);
	r->cmos[REG_B] &= ~(B_PIE | B_AIE | B_UIE);
	r->cmos[REG_C] = 0;
	r->index = 0;
	rtc_update(r);
	pthread_mutex_unlock(&r->lock);
}

int rtc_create(struct rtc **out, struct bus *bus, struct vclock *clock, struct irq_line irq,
	       struct rtc_memory memory, struct error *err)
{
	struct rtc *r = calloc(1, sizeof(*r));
	int ret;

	if (!r)
		return err_set(err, ENOMEM, "no memory for the real-time clock");
	r->bus = bus;
	r->clock = clock;
	r->irq = irq;
	pthread_mutex_init(&r->lock, NULL);
	vtimer_init(&r->timer, clock, rtc_fire, r);
	r->cmos[REG_A] = 0x26; /* 32768 Hz crystal, 1024 Hz */
	r->cmos[REG_B] = B_24H;
	r->cmos[REG_D] = D_VALID;
	rtc_fill_cmos(r, memory);
	r->collected_ns = rtc_now_ns(r);
	ret = bus_add_pio(bus, PORT_RTC, 2, &rtc_ops, r, "rtc", &r->ports, err);
	if (ret < 0) {
		rtc_destroy(r);
		return ret;
	}
	*out = r;
	return 0;
}

void rtc_destroy(struct rtc *r)
{
	if (!r)
		return;
	if (r->ports)
		bus_remove(r->bus, r->ports);
	pthread_mutex_destroy(&r->lock);
	free(r);
}

void rtc_state(struct state *s, struct rtc *r)
{
	uint64_t offset;

	pthread_mutex_lock(&r->lock);
	rtc_collect(r);
	offset = (uint64_t)r->offset_ns;
	state_enter(s, "rtc", 1);
	state_u8(s, "index", &r->index);
	state_bytes(s, "cmos", r->cmos, sizeof(r->cmos));
	state_u64(s, "offset_ns", &offset);
	state_check(s, r->index < CMOS_SIZE, "RTC index");
	/* Guest time stays positive and far from wrapping. */
	state_check(s, (int64_t)(vclock_real_ns(r->clock) + offset) >= 0, "RTC offset");
	state_leave(s);
	if (state_loading(s)) {
		r->offset_ns = (int64_t)offset;
		r->cmos[REG_D] = D_VALID;
		r->collected_ns = rtc_now_ns(r);
		rtc_update(r);
	}
	r->index %= CMOS_SIZE;
	pthread_mutex_unlock(&r->lock);
}
