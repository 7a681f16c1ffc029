/* machine/irqchip/lapic.c - one CPU's local APIC.
 *
 * The three 256-bit registers IRR (requested), ISR (in service) and TMR (was level-triggered) are
 * the heart.  A vector's priority class is its high four bits.  The processor priority is the
 * higher of TPR and the class of the highest vector in service; what is requested above it is
 * announced to the CPU by ops->intr(true), and the CPU collects it with lapic_ack.
 *
 * Paravirtual end of interrupt (KVM's interface).  An edge interrupt that leaves nothing else to
 * do gets bit 0 of a byte in guest memory set when it is taken.  The guest's EOI is then: clear the
 * bit, and when it was set, be done.  So the APIC learns of the EOI late.  The guest clears the bit
 * with a plain read-modify-write, which is only safe from this CPU's own thread: other threads must
 * not touch the byte.  Therefore
 *
 *   eoi_lent     the bit was set for the highest vector in service, and not yet looked at again
 *   own thread   every entry calls lapic_pv_eoi_collect: clears the bit; was it clear already, the
 *                guest has done its EOI and the vector leaves the ISR now
 *   others       assume the best: lapic_update announces what would be deliverable if the EOI had
 *                been done.  The CPU then calls lapic_ack, which collects, and answers -1 when the
 *                guest is still inside its handler; that guest will find the bit clear and write
 *                a real EOI. */
#include "machine/irqchip/lapic.h"

#include "base/error.h"
#include "engine/engine.h"
#include "machine/memmap.h"
#include "machine/timer/vclock.h"
#include "mem/mem.h"
#include "state/state.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Registers by number: MMIO offset >> 4, MSR index - 0x800. */
// clang-format off
enum {
	REG_ID = 0x02, REG_VERSION = 0x03, REG_TPR = 0x08, REG_APR = 0x09, REG_PPR = 0x0A,
	REG_EOI = 0x0B, REG_RRD = 0x0C, REG_LDR = 0x0D, REG_DFR = 0x0E, REG_SVR = 0x0F,
	REG_ISR = 0x10, REG_TMR = 0x18, REG_IRR = 0x20, REG_ESR = 0x28, REG_ICR = 0x30,
	REG_ICR_HIGH = 0x31, REG_LVT = 0x32, REG_TIMER_INIT = 0x38, REG_TIMER_CURRENT = 0x39,
	REG_TIMER_DIVIDE = 0x3E, REG_SELF_IPI = 0x3F,
};
enum { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, NR_LVTS };
// clang-format on

#define APIC_VERSION  (0x14u | (NR_LVTS - 1) << 16)
#define SVR_ENABLE    0x100u
#define SVR_MASK      0x3FFu
#define LVT_VECTOR    0xFFu
#define LVT_MODE(v)   ((v) >> 8 & 7)
#define LVT_PENDING   (1u << 12)
#define LVT_LOW       (1u << 13)
#define LVT_RIRR      (1u << 14)
#define LVT_LEVEL     (1u << 15)
#define LVT_MASKED    (1u << 16)
#define TIMER_MODE(v) ((v) >> 17 & 3)
enum { TIMER_ONESHOT, TIMER_PERIODIC, TIMER_DEADLINE };

#define ESR_SEND_VECTOR (1u << 5)
#define ESR_RECV_VECTOR (1u << 6)
#define ESR_REGISTER    (1u << 7)

#define ICR_PENDING  (1u << 12)
#define ICR_WRITABLE 0x000CCFFFu

#define MSR_APIC_BASE    0x1Bu
#define MSR_TSC_DEADLINE 0x6E0u
#define MSR_X2APIC       0x800u
#define BASE_BSP         (1u << 8)
#define BASE_X2APIC      (1u << 10)
#define BASE_ENABLE      (1u << 11)

/* The bits of each LVT entry a guest may write. */
static const uint32_t lvt_writable[NR_LVTS] = {
	[LVT_TIMER] = 0x000700FF, [LVT_THERMAL] = 0x000107FF, [LVT_PERF] = 0x000107FF,
	[LVT_LINT0] = 0x0001A7FF, [LVT_LINT1] = 0x0001A7FF,   [LVT_ERROR] = 0x000100FF,
};

struct lapic {
	unsigned cpu;
	struct vclock *clock;
	struct mem *mem;
	const struct lapic_ops *ops;
	void *opaque;
	unsigned phys_bits;
	bool remote; /* a copy of one in the engine; set once, before there are CPUs */

	/* Mode and address.  Written on the CPU's own thread with the lock held; read by anyone. */
	_Atomic uint64_t base;

	/* Guards everything below. */
	pthread_mutex_t lock;
	uint32_t irr[8], isr[8], tmr[8];
	uint32_t tpr, ldr, dfr, svr, esr, esr_latched;
	uint64_t icr;
	uint32_t lvt[NR_LVTS];
	bool lint_level[2];
	bool intr; /* what ops->intr was last told */

	uint32_t timer_init, timer_divide;
	uint64_t timer_start_ns;    /* when the counter was timer_init */
	uint64_t timer_deadline_ns; /* next expiry, while timer_armed */
	uint64_t tsc_deadline;
	bool timer_armed;
	struct vtimer timer;

	bool eoi_pv, eoi_lent;
	gpa_t eoi_gpa;
};

/* ---- 256-bit registers ---- */

static void vec_set(uint32_t *r, unsigned v)
{
	r[v / 32] |= 1u << v % 32;
}

static void vec_clear(uint32_t *r, unsigned v)
{
	r[v / 32] &= ~(1u << v % 32);
}

static bool vec_test(const uint32_t *r, unsigned v)
{
	return r[v / 32] >> v % 32 & 1;
}

static int vec_highest(const uint32_t *r)
{
	for (int i = 7; i >= 0; i--)
		if (r[i])
			return i * 32 + 31 - __builtin_clz(r[i]);
	return -1;
}

/* ---- priorities ---- */

bool lapic_enabled(const struct lapic *l)
{
	return atomic_load_explicit(&l->base, memory_order_relaxed) & BASE_ENABLE;
}

bool lapic_x2apic(const struct lapic *l)
{
	return atomic_load_explicit(&l->base, memory_order_relaxed) & BASE_X2APIC;
}

gpa_t lapic_mmio_base(const struct lapic *l)
{
	uint64_t base = atomic_load_explicit(&l->base, memory_order_relaxed);

	return (base & (BASE_ENABLE | BASE_X2APIC)) == BASE_ENABLE ? base & PAGE_MASK : ~0ull;
}

static bool lapic_software_enabled(const struct lapic *l)
{
	return lapic_enabled(l) && (l->svr & SVR_ENABLE);
}

static uint32_t lapic_priority_over(const struct lapic *l, int in_service)
{
	uint32_t isrv = in_service < 0 ? 0 : in_service;

	return l->tpr >> 4 >= isrv >> 4 ? l->tpr : isrv & 0xF0;
}

static uint32_t lapic_ppr(const struct lapic *l)
{
	return lapic_priority_over(l, vec_highest(l->isr));
}

/* As lapic_ppr, but as if a lent EOI had been done. */
static uint32_t lapic_ppr_at_best(const struct lapic *l)
{
	uint32_t isr[8];
	int v;

	if (!l->eoi_lent)
		return lapic_ppr(l);
	memcpy(isr, l->isr, sizeof(isr));
	v = vec_highest(isr);
	if (v >= 0)
		vec_clear(isr, v);
	return lapic_priority_over(l, vec_highest(isr));
}

static bool lapic_extint(const struct lapic *l)
{
	uint32_t lvt = l->lvt[LVT_LINT0];

	if (!l->lint_level[0])
		return false;
	if (!lapic_enabled(l)) /* SDM: then LINT0 is the plain INTR pin; wired so on CPU 0 only */
		return l->cpu == 0;
	return !(lvt & LVT_MASKED) && LVT_MODE(lvt) == APIC_EXTINT;
}

static bool lapic_irr_above(const struct lapic *l, uint32_t ppr)
{
	int v = vec_highest(l->irr);

	return v >= 0 && (uint32_t)v >> 4 > ppr >> 4 && lapic_software_enabled(l);
}

/* Tell the CPU when what it should know has changed. */
static void lapic_update(struct lapic *l)
{
	bool level = lapic_irr_above(l, lapic_ppr_at_best(l)) || lapic_extint(l);

	if (level == l->intr || l->remote)
		return;
	l->intr = level;
	l->ops->intr(l->opaque, l->cpu, level);
}

/* ---- end of interrupt ---- */

/* Ends the highest vector in service.  Returns it when the I/O APIC must hear of it, else -1. */
static int lapic_end_of_interrupt(struct lapic *l)
{
	int v = vec_highest(l->isr);

	if (v < 0)
		return -1;
	vec_clear(l->isr, v);
	for (unsigned i = LVT_LINT0; i <= LVT_LINT1; i++)
		if ((l->lvt[i] & LVT_RIRR) && (l->lvt[i] & LVT_VECTOR) == (unsigned)v) {
			l->lvt[i] &= ~LVT_RIRR;
			if (l->lint_level[i - LVT_LINT0] && !(l->lvt[i] & LVT_MASKED)) {
				l->lvt[i] |= LVT_RIRR;
				vec_set(l->irr, v);
			}
			return -1; /* a local level interrupt is no business of the I/O APIC */
		}
	return vec_test(l->tmr, v) ? v : -1;
}

static void lapic_pv_eoi_collect(struct lapic *l)
{
	uint8_t byte;

	if (likely(!l->eoi_lent))
		return;
	l->eoi_lent = false;
	if (mem_read(l->mem, l->eoi_gpa, &byte, 1) < 0)
		return; /* the guest gave an address that is no RAM: it will write real EOIs */
	if (!(byte & 1)) {
		lapic_end_of_interrupt(l);
		return;
	}
	byte &= ~1;
	mem_write(l->mem, l->eoi_gpa, &byte, 1);
}

/* The vector v has just gone into service: may the guest end it by itself? */
static void lapic_pv_eoi_lend(struct lapic *l, int v)
{
	uint8_t byte;

	if (!l->eoi_pv || vec_test(l->tmr, v) || vec_highest(l->irr) >= 0)
		return;
	if (mem_read(l->mem, l->eoi_gpa, &byte, 1) < 0)
		return;
	byte |= 1;
	l->eoi_lent = mem_write(l->mem, l->eoi_gpa, &byte, 1) == 0;
}

void lapic_pv_eoi_set(struct lapic *l, bool on, gpa_t gpa)
{
	pthread_mutex_lock(&l->lock);
	lapic_pv_eoi_collect(l);
	l->eoi_pv = on && l->mem;
	l->eoi_gpa = gpa;
	lapic_update(l);
	pthread_mutex_unlock(&l->lock);
}

/* ---- requests ---- */

static void lapic_request(struct lapic *l, uint8_t vector, bool level);

static void lapic_error(struct lapic *l, uint32_t bit)
{
	bool news = !(l->esr_latched & bit);

	l->esr_latched |= bit;
	if (news && !(l->lvt[LVT_ERROR] & LVT_MASKED) && (l->lvt[LVT_ERROR] & LVT_VECTOR) >= 16)
		lapic_request(l, l->lvt[LVT_ERROR] & LVT_VECTOR, false);
}

static void lapic_request(struct lapic *l, uint8_t vector, bool level)
{
	if (!lapic_software_enabled(l))
		return;
	if (vector < 16) {
		lapic_error(l, ESR_RECV_VECTOR);
		return;
	}
	vec_set(l->irr, vector);
	(level ? vec_set : vec_clear)(l->tmr, vector);
	lapic_update(l);
}

/* A local source (timer, error, LINT pins) fires. */
static void lapic_local(struct lapic *l, unsigned n)
{
	uint32_t lvt = l->lvt[n];

	if (lvt & LVT_MASKED)
		return;
	switch (n == LVT_TIMER || n == LVT_ERROR ? APIC_FIXED : LVT_MODE(lvt)) {
	case APIC_FIXED:
		lapic_request(l, lvt & LVT_VECTOR, lvt & LVT_RIRR);
		break;
	case APIC_NMI:
		l->ops->nmi(l->opaque, l->cpu);
		break;
	case APIC_INIT:
		l->ops->init(l->opaque, l->cpu);
		break;
	}
}

void lapic_lint(struct lapic *l, unsigned pin, bool level)
{
	unsigned n = LVT_LINT0 + pin;

	pthread_mutex_lock(&l->lock);
	if (l->lint_level[pin] != level) {
		l->lint_level[pin] = level;
		if (level && lapic_enabled(l) && !(l->lvt[n] & (LVT_RIRR | LVT_MASKED))) {
			if ((l->lvt[n] & LVT_LEVEL) && LVT_MODE(l->lvt[n]) == APIC_FIXED)
				l->lvt[n] |= LVT_RIRR;
			lapic_local(l, n);
		}
		lapic_update(l);
	}
	pthread_mutex_unlock(&l->lock);
}

/* ---- messages from the other APICs ---- */

/* x2APIC logical id: cluster in the high half, one bit in the low half (SDM "Deriving Logical
 * x2APIC ID from the Local x2APIC ID"). */
static uint32_t lapic_x2apic_ldr(const struct lapic *l)
{
	return l->cpu >> 4 << 16 | 1u << (l->cpu & 15);
}

static bool lapic_matches_logical(const struct lapic *l, uint32_t dest)
{
	uint32_t ldr = l->ldr >> 24;

	if (lapic_x2apic(l)) {
		ldr = lapic_x2apic_ldr(l);
		return dest >> 16 == ldr >> 16 && (dest & ldr & 0xFFFF);
	}
	if (dest & ~0xFFu)
		return false;
	if (l->dfr >> 28 == 0xF) /* flat model */
		return dest & ldr;
	return dest >> 4 == ldr >> 4 && (dest & ldr & 0xF);
}

bool lapic_matches(struct lapic *l, const struct apic_msg *m)
{
	bool match;

	if (m->broadcast)
		return true;
	if (!m->logical)
		return m->dest == l->cpu;
	pthread_mutex_lock(&l->lock);
	match = lapic_matches_logical(l, m->dest);
	pthread_mutex_unlock(&l->lock);
	return match;
}

int lapic_arb_priority(struct lapic *l)
{
	int p = -1;

	pthread_mutex_lock(&l->lock);
	if (lapic_software_enabled(l))
		p = lapic_ppr_at_best(l);
	pthread_mutex_unlock(&l->lock);
	return p;
}

static void lapic_init_registers(struct lapic *l);

bool lapic_accept(struct lapic *l, const struct apic_msg *m)
{
	bool ok;

	pthread_mutex_lock(&l->lock);
	ok = lapic_enabled(l);
	if (ok)
		switch (m->mode) {
		case APIC_FIXED:
		case APIC_LOWEST:
			ok = lapic_software_enabled(l);
			lapic_request(l, m->vector, m->level);
			break;
		case APIC_NMI:
			l->ops->nmi(l->opaque, l->cpu);
			break;
		case APIC_INIT:
			lapic_init_registers(l);
			l->ops->init(l->opaque, l->cpu);
			break;
		case APIC_SIPI:
			l->ops->sipi(l->opaque, l->cpu, m->vector);
			break;
		default: /* no SMM; the 8259 pair reaches us through LINT0 only */
			ok = false;
		}
	pthread_mutex_unlock(&l->lock);
	return ok;
}

/* ---- the CPU takes an interrupt ---- */

static int lapic_take(struct lapic *l)
{
	int v = vec_highest(l->irr);

	if (!lapic_irr_above(l, lapic_ppr(l)))
		return -1;
	vec_clear(l->irr, v);
	vec_set(l->isr, v);
	lapic_pv_eoi_lend(l, v);
	return v;
}

int lapic_ack(struct lapic *l)
{
	int v = -1;
	bool extint;

	pthread_mutex_lock(&l->lock);
	lapic_pv_eoi_collect(l);
	extint = lapic_extint(l);
	if (!extint)
		v = lapic_take(l);
	lapic_update(l);
	pthread_mutex_unlock(&l->lock);
	if (extint)
		v = l->ops->pic_ack(l->opaque);
	return v;
}

/* ---- timer ---- */

static unsigned lapic_timer_shift(uint32_t divide)
{
	return ((divide & 3) + (divide >> 1 & 4) + 1) & 7;
}

static uint64_t lapic_timer_span_ns(const struct lapic *l)
{
	return ticks_to_ns((uint64_t)l->timer_init << lapic_timer_shift(l->timer_divide),
			   LAPIC_TIMER_HZ);
}

static void lapic_timer_stop(struct lapic *l)
{
	l->timer_armed = false;
	vtimer_cancel(&l->timer);
}

static void lapic_timer_arm(struct lapic *l, uint64_t deadline_ns)
{
	l->timer_armed = true;
	l->timer_deadline_ns = MIN(deadline_ns, (uint64_t)INT64_MAX);
	if (!l->remote)
		vtimer_arm(&l->timer, l->timer_deadline_ns);
}

static void lapic_timer_start(struct lapic *l)
{
	l->timer_start_ns = vclock_now_ns(l->clock);
	if (l->timer_init)
		lapic_timer_arm(l, l->timer_start_ns + lapic_timer_span_ns(l));
	else
		lapic_timer_stop(l);
}

static uint32_t lapic_timer_current(const struct lapic *l)
{
	uint64_t elapsed = vclock_now_ns(l->clock) - l->timer_start_ns;
	uint64_t count = ns_to_ticks(elapsed, LAPIC_TIMER_HZ) >> lapic_timer_shift(l->timer_divide);
	unsigned mode = TIMER_MODE(l->lvt[LVT_TIMER]);

	if (!l->timer_armed || mode == TIMER_DEADLINE)
		return 0;
	if (mode == TIMER_PERIODIC)
		return l->timer_init - count % l->timer_init;
	return count < l->timer_init ? l->timer_init - count : 0;
}

static void lapic_timer_write_divide(struct lapic *l, uint32_t value)
{
	uint32_t current = lapic_timer_current(l);
	uint64_t done;

	l->timer_divide = value & 0xB;
	if (!l->timer_armed || TIMER_MODE(l->lvt[LVT_TIMER]) == TIMER_DEADLINE)
		return;
	/* The count stays, the pace changes: move the start so that both hold. */
	done = (uint64_t)(l->timer_init - current) << lapic_timer_shift(l->timer_divide);
	l->timer_start_ns = vclock_now_ns(l->clock) - ticks_to_ns(done, LAPIC_TIMER_HZ);
	lapic_timer_arm(l, l->timer_start_ns + lapic_timer_span_ns(l));
}

/* The count goes on from where it is, but will not start again at its end. */
static void lapic_timer_end_periods(struct lapic *l)
{
	uint64_t span = lapic_timer_span_ns(l), elapsed;

	if (!l->timer_armed)
		return;
	elapsed = vclock_now_ns(l->clock) - l->timer_start_ns;
	l->timer_start_ns += elapsed - elapsed % span;
	lapic_timer_arm(l, l->timer_start_ns + span);
}

static void lapic_timer_expire(struct lapic *l, uint64_t now_ns)
{
	unsigned mode = TIMER_MODE(l->lvt[LVT_TIMER]);

	l->timer_armed = false;
	l->tsc_deadline = 0;
	if (mode == TIMER_PERIODIC && l->timer_init)
		lapic_timer_arm(l, vtimer_next_period(l->timer_deadline_ns, lapic_timer_span_ns(l),
						      now_ns));
	lapic_local(l, LVT_TIMER);
}

static void lapic_timer_write_lvt(struct lapic *l, uint32_t value)
{
	uint32_t was = l->lvt[LVT_TIMER], changed = value ^ was;
	uint64_t now = vclock_now_ns(l->clock);

	/* An end the guest can have seen in the count comes before the new mode, even if the
	 * timer's thread is late: a one-shot that is over does not start again as periodic. */
	if (l->timer_armed && l->timer_deadline_ns <= now)
		lapic_timer_expire(l, now);
	l->lvt[LVT_TIMER] = value;
	if (TIMER_MODE(was) == TIMER_PERIODIC && TIMER_MODE(value) == TIMER_ONESHOT)
		lapic_timer_end_periods(l);
	if (TIMER_MODE(changed) & TIMER_DEADLINE) { /* SDM: this transition disarms the timer */
		lapic_timer_stop(l);
		l->timer_init = 0;
		l->tsc_deadline = 0;
	}
}

static void lapic_timer_fire(void *opaque)
{
	struct lapic *l = opaque;
	uint64_t now = vclock_now_ns(l->clock);

	pthread_mutex_lock(&l->lock);
	if (l->timer_armed && l->timer_deadline_ns <= now)
		lapic_timer_expire(l, now);
	pthread_mutex_unlock(&l->lock);
}

static void lapic_write_tsc_deadline(struct lapic *l, uint64_t tsc)
{
	uint64_t now = vclock_now_ns(l->clock), deadline;

	if (TIMER_MODE(l->lvt[LVT_TIMER]) != TIMER_DEADLINE)
		return;
	l->tsc_deadline = tsc;
	if (!tsc) {
		lapic_timer_stop(l);
		return;
	}
	deadline = vclock_from_mono_ns(l->clock, l->ops->tsc_to_mono_ns(l->opaque, l->cpu, tsc));
	if (deadline <= now) {
		lapic_timer_stop(l);
		l->timer_deadline_ns = deadline;
		lapic_timer_expire(l, now);
	} else {
		lapic_timer_arm(l, deadline);
	}
}

/* ---- inter-processor interrupts ---- */

/* An IPI on its way out; sent once the lock is dropped. */
struct lapic_ipi {
	bool valid;
	enum apic_shorthand to;
	struct apic_msg msg;
};

static struct lapic_ipi lapic_decode_icr(struct lapic *l, uint64_t icr)
{
	struct lapic_ipi ipi = {.valid = true, .to = icr >> 18 & 3};
	bool assert_level = icr >> 14 & 1, wide = lapic_x2apic(l);

	ipi.msg.vector = icr;
	ipi.msg.mode = icr >> 8 & 7;
	ipi.msg.logical = icr >> 11 & 1;
	ipi.msg.dest = wide ? icr >> 32 : icr >> 56;
	ipi.msg.broadcast = ipi.msg.dest == (wide ? 0xFFFFFFFF : 0xFF);
	if (ipi.msg.mode <= APIC_LOWEST && ipi.msg.vector < 16) {
		lapic_error(l, ESR_SEND_VECTOR);
		ipi.valid = false;
	}
	/* INIT level de-assert only synchronised arbitration ids, long ago. */
	if (ipi.msg.mode == APIC_INIT && !assert_level && (icr & LVT_LEVEL))
		ipi.valid = false;
	if (ipi.msg.mode == APIC_EXTINT || ipi.msg.mode == APIC_RESERVED)
		ipi.valid = false;
	return ipi;
}

static void lapic_send(struct lapic *l, const struct lapic_ipi *ipi)
{
	if (ipi->valid)
		l->ops->send(l->opaque, l->cpu, &ipi->msg, ipi->to);
}

/* ---- registers ---- */

/* What a register write leaves to be done without the lock. */
struct lapic_after {
	struct lapic_ipi ipi;
	int eoi_vector;
};

static void lapic_write_svr(struct lapic *l, uint32_t value)
{
	bool was = l->svr & SVR_ENABLE;

	l->svr = value & SVR_MASK;
	if (was && !(l->svr & SVR_ENABLE))
		for (unsigned i = 0; i < NR_LVTS; i++)
			l->lvt[i] |= LVT_MASKED;
}

static void lapic_write_lvt(struct lapic *l, unsigned n, uint32_t value)
{
	value &= lvt_writable[n];
	value |= l->lvt[n] & LVT_RIRR;
	/* SDM "Local APIC State After It Has Been Software Disabled": masks stay set.  Kept off
	 * LINT0 in ExtINT mode, by which a PC's 8259 pair works before the APIC is in use. */
	if (!(l->svr & SVR_ENABLE) && !(n == LVT_LINT0 && LVT_MODE(value) == APIC_EXTINT))
		value |= LVT_MASKED;
	if (n == LVT_TIMER)
		lapic_timer_write_lvt(l, value);
	else
		l->lvt[n] = value;
}

static bool lapic_reg_exists(const struct lapic *l, unsigned reg)
{
	bool x2 = lapic_x2apic(l);

	switch (reg) {
	case REG_APR:
	case REG_RRD:
	case REG_DFR:
	case REG_ICR_HIGH:
		return !x2;
	case REG_SELF_IPI:
		return x2;
	case REG_ID:
	case REG_VERSION:
	case REG_TPR:
	case REG_PPR:
	case REG_EOI:
	case REG_LDR:
	case REG_SVR:
	case REG_ISR ... REG_ESR:
	case REG_ICR:
	case REG_LVT ... REG_TIMER_CURRENT:
	case REG_TIMER_DIVIDE:
		return true;
	}
	return false;
}

static uint64_t lapic_reg_read(struct lapic *l, unsigned reg)
{
	bool x2 = lapic_x2apic(l);

	switch (reg) {
	case REG_ID:
		return x2 ? l->cpu : l->cpu << 24;
	case REG_VERSION:
		return APIC_VERSION;
	case REG_TPR:
		return l->tpr;
	case REG_APR:
	case REG_PPR:
		return lapic_ppr(l);
	case REG_LDR:
		return x2 ? lapic_x2apic_ldr(l) : l->ldr;
	case REG_DFR:
		return l->dfr;
	case REG_SVR:
		return l->svr;
	case REG_ISR ... REG_ISR + 7:
		return l->isr[reg - REG_ISR];
	case REG_TMR ... REG_TMR + 7:
		return l->tmr[reg - REG_TMR];
	case REG_IRR ... REG_IRR + 7:
		return l->irr[reg - REG_IRR];
	case REG_ESR:
		return l->esr;
	case REG_ICR:
		return x2 ? l->icr : (uint32_t)l->icr;
	case REG_ICR_HIGH:
		return l->icr >> 32;
	case REG_LVT ... REG_LVT + NR_LVTS - 1:
		return l->lvt[reg - REG_LVT];
	case REG_TIMER_INIT:
		return l->timer_init;
	case REG_TIMER_CURRENT:
		return lapic_timer_current(l);
	case REG_TIMER_DIVIDE:
		return l->timer_divide;
	}
	return 0;
}

static void lapic_reg_write(struct lapic *l, unsigned reg, uint64_t v, struct lapic_after *after)
{
	switch (reg) {
	case REG_TPR:
		l->tpr = v & 0xFF;
		break;
	case REG_EOI:
		after->eoi_vector = lapic_end_of_interrupt(l);
		break;
	case REG_LDR:
		l->ldr = v & 0xFF000000;
		break;
	case REG_DFR:
		l->dfr = v | 0x0FFFFFFF;
		break;
	case REG_SVR:
		lapic_write_svr(l, v);
		break;
	case REG_ESR: /* a write shows what was gathered since the last one */
		l->esr = l->esr_latched;
		l->esr_latched = 0;
		break;
	case REG_ICR:
		if (lapic_x2apic(l))
			l->icr = v & (ICR_WRITABLE | ~0ull << 32);
		else
			l->icr = (l->icr & ~0ull << 32) | (v & ICR_WRITABLE);
		after->ipi = lapic_decode_icr(l, l->icr);
		break;
	case REG_ICR_HIGH:
		l->icr = (v & 0xFF000000) << 32 | (uint32_t)l->icr;
		break;
	case REG_LVT ... REG_LVT + NR_LVTS - 1:
		lapic_write_lvt(l, reg - REG_LVT, v);
		break;
	case REG_TIMER_INIT:
		if (TIMER_MODE(l->lvt[LVT_TIMER]) == TIMER_DEADLINE)
			break;
		l->timer_init = v;
		lapic_timer_start(l);
		break;
	case REG_TIMER_DIVIDE:
		lapic_timer_write_divide(l, v);
		break;
	case REG_SELF_IPI:
		lapic_request(l, v, false);
		break;
	}
}

static void lapic_write(struct lapic *l, unsigned reg, uint64_t value)
{
	struct lapic_after after = {.eoi_vector = -1};

	pthread_mutex_lock(&l->lock);
	lapic_pv_eoi_collect(l);
	if (lapic_reg_exists(l, reg))
		lapic_reg_write(l, reg, value, &after);
	else
		lapic_error(l, ESR_REGISTER);
	lapic_update(l);
	pthread_mutex_unlock(&l->lock);
	lapic_send(l, &after.ipi);
	if (after.eoi_vector >= 0)
		l->ops->eoi(l->opaque, after.eoi_vector);
}

static uint64_t lapic_read(struct lapic *l, unsigned reg)
{
	uint64_t v = 0;

	pthread_mutex_lock(&l->lock);
	lapic_pv_eoi_collect(l);
	if (lapic_reg_exists(l, reg))
		v = lapic_reg_read(l, reg);
	else
		lapic_error(l, ESR_REGISTER);
	lapic_update(l);
	pthread_mutex_unlock(&l->lock);
	return v;
}

/* SDM: registers are 32 bits wide on 16-byte boundaries and must be accessed as a whole; narrower
 * reads of a register's bytes do work on every CPU that was ever built. */
uint64_t lapic_mmio_read(struct lapic *l, uint64_t off, unsigned size)
{
	uint64_t in_reg = off & 15;

	if (in_reg + size > 4)
		return 0;
	return (uint32_t)lapic_read(l, off >> 4) >> in_reg * 8 & (BIT(size * 8) - 1);
}

void lapic_mmio_write(struct lapic *l, uint64_t off, uint64_t value, unsigned size)
{
	if ((off & 15) == 0 && size == 4)
		lapic_write(l, off >> 4, (uint32_t)value);
}

/* ---- MSRs ---- */

bool lapic_has_msr(uint32_t index)
{
	return index == MSR_APIC_BASE || index == MSR_TSC_DEADLINE || index >> 8 == MSR_X2APIC >> 8;
}

void lapic_set_phys_bits(struct lapic *l, unsigned bits)
{
	l->phys_bits = bits;
}

/* SDM "x2APIC State Transitions": only disabled <-> xAPIC -> x2APIC -> disabled. */
static bool lapic_base_transition_ok(uint64_t from, uint64_t to)
{
	bool was_on = from & BASE_ENABLE, was_x2 = from & BASE_X2APIC;
	bool on = to & BASE_ENABLE, x2 = to & BASE_X2APIC;

	if (x2 && !on)
		return false;
	if (was_x2 && on && !x2)
		return false;
	return was_on || !x2;
}

static bool lapic_write_base(struct lapic *l, uint64_t value)
{
	uint64_t was = atomic_load(&l->base);
	uint64_t writable = (BIT(l->phys_bits) - 1) & PAGE_MASK;

	writable |= BASE_BSP | BASE_X2APIC | BASE_ENABLE;
	if ((value & ~writable) || !lapic_base_transition_ok(was, value))
		return false;
	pthread_mutex_lock(&l->lock);
	lapic_pv_eoi_collect(l);
	atomic_store(&l->base, (value & ~(uint64_t)BASE_BSP) | (was & BASE_BSP));
	if (was & ~value & BASE_ENABLE)
		lapic_init_registers(l);
	lapic_update(l);
	pthread_mutex_unlock(&l->lock);
	return true;
}

/* Reserved bits of the x2APIC MSRs, which fault where xAPIC ignores. */
static bool lapic_x2apic_value_ok(unsigned reg, uint64_t v)
{
	switch (reg) {
	case REG_TPR:
	case REG_SELF_IPI:
		return v <= 0xFF;
	case REG_EOI:
	case REG_ESR:
		return v == 0;
	case REG_SVR:
		return !(v & ~0x3FFull);
	case REG_ICR:
		return !((uint32_t)v & ~(ICR_WRITABLE | ICR_PENDING));
	case REG_LVT ... REG_LVT + NR_LVTS - 1:
		return !(v & ~(uint64_t)(lvt_writable[reg - REG_LVT] | LVT_PENDING | LVT_RIRR));
	case REG_TIMER_INIT:
		return v <= UINT32_MAX;
	case REG_TIMER_DIVIDE:
		return !(v & ~0xBull);
	}
	return false; /* read-only, or not there */
}

bool lapic_msr_read(struct lapic *l, uint32_t index, uint64_t *value)
{
	unsigned reg = index - MSR_X2APIC;

	if (index == MSR_APIC_BASE) {
		*value = atomic_load(&l->base);
		return true;
	}
	if (index == MSR_TSC_DEADLINE) {
		pthread_mutex_lock(&l->lock);
		*value = l->tsc_deadline;
		pthread_mutex_unlock(&l->lock);
		return true;
	}
	if (!lapic_x2apic(l) || !lapic_reg_exists(l, reg))
		return false;
	if (reg == REG_EOI || reg == REG_SELF_IPI) /* write-only */
		return false;
	*value = lapic_read(l, reg);
	return true;
}

bool lapic_msr_write(struct lapic *l, uint32_t index, uint64_t value)
{
	unsigned reg = index - MSR_X2APIC;

	if (index == MSR_APIC_BASE)
		return lapic_write_base(l, value);
	if (index == MSR_TSC_DEADLINE) {
		pthread_mutex_lock(&l->lock);
		lapic_pv_eoi_collect(l);
		lapic_write_tsc_deadline(l, value);
		lapic_update(l);
		pthread_mutex_unlock(&l->lock);
		return true;
	}
	if (!lapic_x2apic(l) || !lapic_reg_exists(l, reg) || !lapic_x2apic_value_ok(reg, value))
		return false;
	lapic_write(l, reg, value);
	return true;
}

void lapic_tsc_written(struct lapic *l)
{
	pthread_mutex_lock(&l->lock);
	lapic_pv_eoi_collect(l);
	if (l->tsc_deadline)
		lapic_write_tsc_deadline(l, l->tsc_deadline);
	lapic_update(l);
	pthread_mutex_unlock(&l->lock);
}

uint8_t lapic_cr8_read(struct lapic *l)
{
	uint8_t v;

	pthread_mutex_lock(&l->lock);
	v = l->tpr >> 4;
	pthread_mutex_unlock(&l->lock);
	return v;
}

void lapic_cr8_write(struct lapic *l, uint8_t value)
{
	pthread_mutex_lock(&l->lock);
	lapic_pv_eoi_collect(l);
	l->tpr = (value & 15u) << 4;
	lapic_update(l);
	pthread_mutex_unlock(&l->lock);
}

/* ---- life ---- */

/* SDM "Local APIC State After an INIT Reset": everything but the id and IA32_APIC_BASE.  With the
 * lock held, perhaps by another CPU's thread: so a lent EOI is forgotten, not collected. */
static void lapic_init_registers(struct lapic *l)
{
	memset(l->irr, 0, sizeof(l->irr));
	memset(l->isr, 0, sizeof(l->isr));
	memset(l->tmr, 0, sizeof(l->tmr));
	for (unsigned i = 0; i < NR_LVTS; i++)
		l->lvt[i] = LVT_MASKED;
	l->tpr = l->ldr = l->esr = l->esr_latched = 0;
	l->dfr = 0xFFFFFFFF;
	l->svr = 0xFF;
	l->icr = 0;
	l->timer_init = l->timer_divide = 0;
	l->tsc_deadline = 0;
	lapic_timer_stop(l);
	l->eoi_pv = l->eoi_lent = false;
	lapic_update(l);
}

void lapic_reset(struct lapic *l)
{
	pthread_mutex_lock(&l->lock);
	atomic_store(&l->base, MEMMAP_LAPIC | BASE_ENABLE | (l->cpu == 0 ? BASE_BSP : 0));
	lapic_init_registers(l);
	if (l->cpu == 0) {
		l->lvt[LVT_LINT0] = APIC_EXTINT << 8;
		l->lvt[LVT_LINT1] = APIC_NMI << 8;
	}
	lapic_update(l);
	pthread_mutex_unlock(&l->lock);
}

int lapic_create(struct lapic **out, unsigned cpu, struct vclock *clock, struct mem *mem,
		 const struct lapic_ops *ops, void *opaque, struct error *err)
{
	struct lapic *l = calloc(1, sizeof(*l));

	if (!l)
		return err_set(err, ENOMEM, "no memory for the local APIC of CPU %u", cpu);
	l->cpu = cpu;
	l->clock = clock;
	l->mem = mem;
	l->ops = ops;
	l->opaque = opaque;
	l->phys_bits = 40;
	pthread_mutex_init(&l->lock, NULL);
	vtimer_init(&l->timer, clock, lapic_timer_fire, l);
	lapic_reset(l);
	*out = l;
	return 0;
}

void lapic_destroy(struct lapic *l)
{
	if (!l)
		return;
	pthread_mutex_destroy(&l->lock);
	free(l);
}

/* ---- state ---- */

static void lapic_state_timer(struct state *s, struct lapic *l)
{
	state_u32(s, "timer_init", &l->timer_init);
	state_u32(s, "timer_divide", &l->timer_divide);
	state_u64(s, "timer_start_ns", &l->timer_start_ns);
	state_u64(s, "timer_deadline_ns", &l->timer_deadline_ns);
	state_u64(s, "tsc_deadline", &l->tsc_deadline);
	state_bool(s, "timer_armed", &l->timer_armed);
	state_check(s, !(l->timer_divide & ~0xBu), "APIC timer divider");
	state_check(s, l->timer_deadline_ns <= INT64_MAX, "APIC timer out of range");
	state_check(s,
		    !l->timer_armed || l->timer_init ||
			    TIMER_MODE(l->lvt[LVT_TIMER]) >= TIMER_DEADLINE,
		    "APIC timer without a count");
}

static void lapic_mask_registers(struct lapic *l)
{
	for (unsigned i = 0; i < NR_LVTS; i++)
		l->lvt[i] &= lvt_writable[i] | LVT_RIRR;
	l->icr &= ICR_WRITABLE | ~0ull << 32;
	l->svr &= SVR_MASK;
	l->tpr &= 0xFF;
}

static void lapic_state_loaded(struct lapic *l)
{
	lapic_mask_registers(l);
	if (l->remote)
		return;
	if (l->timer_armed)
		vtimer_arm(&l->timer, l->timer_deadline_ns);
	else
		vtimer_cancel(&l->timer);
	l->intr = false;
	l->ops->intr(l->opaque, l->cpu, false);
	lapic_update(l);
}

void lapic_state(struct state *s, struct lapic *l)
{
	uint64_t base = atomic_load(&l->base);

	pthread_mutex_lock(&l->lock);
	state_enter(s, "lapic", 1);
	if (!s->loading)
		lapic_pv_eoi_collect(l);
	state_u64(s, "base", &base);
	state_check(s, lapic_base_transition_ok(BASE_ENABLE, base), "IA32_APIC_BASE");
	state_bytes(s, "irr", l->irr, sizeof(l->irr));
	state_bytes(s, "isr", l->isr, sizeof(l->isr));
	state_bytes(s, "tmr", l->tmr, sizeof(l->tmr));
	state_u32(s, "tpr", &l->tpr);
	state_u32(s, "ldr", &l->ldr);
	state_u32(s, "dfr", &l->dfr);
	state_u32(s, "svr", &l->svr);
	state_u32(s, "esr", &l->esr);
	state_u32(s, "esr_latched", &l->esr_latched);
	state_u64(s, "icr", &l->icr);
	for (unsigned i = 0; i < NR_LVTS; i++)
		state_u32(s, "lvt", &l->lvt[i]);
	state_bool(s, "lint0", &l->lint_level[0]);
	state_bool(s, "lint1", &l->lint_level[1]);
	lapic_state_timer(s, l);
	state_bool(s, "eoi_pv", &l->eoi_pv);
	state_u64(s, "eoi_gpa", &l->eoi_gpa);
	state_leave(s);
	if (state_loading(s)) {
		atomic_store(&l->base, base);
		l->eoi_lent = false;
		l->eoi_pv = l->eoi_pv && l->mem;
		lapic_state_loaded(l);
	}
	pthread_mutex_unlock(&l->lock);
}

/* ---- as a copy of an engine's ---- */

void lapic_set_remote(struct lapic *l, bool remote)
{
	l->remote = remote;
	vtimer_cancel(&l->timer);
}

void lapic_export(struct lapic *l, struct engine_lapic *e)
{
	bool x2 = lapic_x2apic(l);

	memset(e, 0, sizeof(*e));
	pthread_mutex_lock(&l->lock);
	lapic_pv_eoi_collect(l);
	e->base = atomic_load(&l->base);
	e->tsc_deadline = l->timer_armed ? l->tsc_deadline : 0;
	e->pv_eoi = l->eoi_pv ? l->eoi_gpa | 1 : 0;
	for (unsigned reg = 0; reg < ARRAY_SIZE(e->reg); reg++)
		if (lapic_reg_exists(l, reg) && reg != REG_EOI)
			e->reg[reg] = (uint32_t)lapic_reg_read(l, reg);
	e->reg[REG_ICR_HIGH] = l->icr >> 32;
	e->reg[REG_DFR] = x2 ? 0xFFFFFFFF : l->dfr;
	pthread_mutex_unlock(&l->lock);
}

/* From the count as it stands, when the count began and when it ends. */
static void lapic_import_count(struct lapic *l, uint32_t current)
{
	unsigned shift = lapic_timer_shift(l->timer_divide);
	uint64_t done = (uint64_t)(l->timer_init - MIN(current, l->timer_init)) << shift;
	bool periodic = TIMER_MODE(l->lvt[LVT_TIMER]) == TIMER_PERIODIC;

	l->timer_start_ns = vclock_now_ns(l->clock) - ticks_to_ns(done, LAPIC_TIMER_HZ);
	if (l->timer_init && (current || periodic))
		lapic_timer_arm(l, l->timer_start_ns + lapic_timer_span_ns(l));
}

static void lapic_import_timer(struct lapic *l, const struct engine_lapic *e)
{
	uint64_t at;

	lapic_timer_stop(l);
	l->timer_init = e->reg[REG_TIMER_INIT];
	l->timer_divide = e->reg[REG_TIMER_DIVIDE] & 0xB;
	l->tsc_deadline = 0;
	if (TIMER_MODE(l->lvt[LVT_TIMER]) < TIMER_DEADLINE) {
		lapic_import_count(l, e->reg[REG_TIMER_CURRENT]);
	} else if (e->tsc_deadline) {
		l->tsc_deadline = e->tsc_deadline;
		at = l->ops->tsc_to_mono_ns(l->opaque, l->cpu, e->tsc_deadline);
		lapic_timer_arm(l, vclock_from_mono_ns(l->clock, at));
	}
}

void lapic_import(struct lapic *l, const struct engine_lapic *e, bool lint0)
{
	pthread_mutex_lock(&l->lock);
	atomic_store(&l->base, e->base);
	memcpy(l->isr, &e->reg[REG_ISR], sizeof(l->isr));
	memcpy(l->tmr, &e->reg[REG_TMR], sizeof(l->tmr));
	memcpy(l->irr, &e->reg[REG_IRR], sizeof(l->irr));
	memcpy(l->lvt, &e->reg[REG_LVT], sizeof(l->lvt));
	l->tpr = e->reg[REG_TPR];
	l->dfr = e->reg[REG_DFR] | 0x0FFFFFFF;
	l->svr = e->reg[REG_SVR];
	l->esr = e->reg[REG_ESR];
	l->esr_latched = 0;
	l->icr = (uint64_t)e->reg[REG_ICR_HIGH] << 32 | e->reg[REG_ICR];
	if (!lapic_x2apic(l))
		l->ldr = e->reg[REG_LDR] & 0xFF000000;
	l->lint_level[0] = lint0;
	l->eoi_lent = false;
	l->eoi_pv = (e->pv_eoi & 1) && l->mem;
	l->eoi_gpa = e->pv_eoi & ~3ull;
	lapic_mask_registers(l);
	lapic_import_timer(l, e);
	pthread_mutex_unlock(&l->lock);
}
