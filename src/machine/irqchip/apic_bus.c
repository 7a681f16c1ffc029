/* machine/irqchip/apic_bus.c - all local APICs of the board and the way a message finds them. */
#include "machine/irqchip/apic_bus.h"

#include "base/error.h"
#include "state/state.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

struct apic_bus {
	unsigned nr_cpus;
	struct lapic **lapic;
	_Atomic unsigned turn; /* where the next lowest-priority search starts */
};

int apic_bus_create(struct apic_bus **out, unsigned nr_cpus, struct vclock *clock, struct mem *mem,
		    const struct lapic_ops *ops, void *opaque, struct error *err)
{
	struct apic_bus *b = calloc(1, sizeof(*b));
	int r = 0;

	if (!b)
		return err_set(err, ENOMEM, "no memory for the local APICs");
	b->lapic = calloc(nr_cpus, sizeof(struct lapic *));
	if (!b->lapic) {
		free(b);
		return err_set(err, ENOMEM, "no memory for the local APICs");
	}
	for (unsigned i = 0; i < nr_cpus && r == 0; i++) {
		r = lapic_create(&b->lapic[i], i, clock, mem, ops, opaque, err);
		b->nr_cpus += r == 0;
	}
	if (r < 0) {
		apic_bus_destroy(b);
		return r;
	}
	*out = b;
	return 0;
}

void apic_bus_destroy(struct apic_bus *b)
{
	if (!b)
		return;
	for (unsigned i = 0; i < b->nr_cpus; i++)
		lapic_destroy(b->lapic[i]);
	free(b->lapic);
	free(b);
}

void apic_bus_reset(struct apic_bus *b)
{
	for (unsigned i = 0; i < b->nr_cpus; i++)
		lapic_reset(b->lapic[i]);
}

struct lapic *apic_bus_lapic(struct apic_bus *b, unsigned cpu)
{
	return b->lapic[cpu];
}

/* Among those addressed, the one doing the least important work; equals take turns. */
static bool apic_bus_send_lowest(struct apic_bus *b, const struct apic_msg *m)
{
	unsigned start = atomic_fetch_add(&b->turn, 1);
	struct lapic *best = NULL;
	int best_priority = 0;

	for (unsigned i = 0; i < b->nr_cpus; i++) {
		struct lapic *l = b->lapic[(start + i) % b->nr_cpus];
		int p = lapic_matches(l, m) ? lapic_arb_priority(l) : -1;

		if (p >= 0 && (!best || p < best_priority)) {
			best = l;
			best_priority = p;
		}
	}
	return best && lapic_accept(best, m);
}

static bool apic_bus_send_matching(struct apic_bus *b, const struct apic_msg *m)
{
	bool taken = false;

	if (!m->logical && !m->broadcast) /* APIC id = CPU number */
		return m->dest < b->nr_cpus && lapic_accept(b->lapic[m->dest], m);
	for (unsigned i = 0; i < b->nr_cpus; i++)
		if (lapic_matches(b->lapic[i], m))
			taken |= lapic_accept(b->lapic[i], m);
	return taken;
}

bool apic_bus_send(struct apic_bus *b, unsigned from, const struct apic_msg *m,
		   enum apic_shorthand to)
{
	bool taken = false;

	if (to == APIC_DEST)
		return m->mode == APIC_LOWEST ? apic_bus_send_lowest(b, m)
					      : apic_bus_send_matching(b, m);
	for (unsigned i = 0; i < b->nr_cpus; i++) {
		/* SDM "Interrupt Command Register": INIT and start-up never reach the sender. */
		bool self_ok = to == APIC_SELF ||
			       (to == APIC_ALL && m->mode != APIC_INIT && m->mode != APIC_SIPI);

		if (i == from ? self_ok : to != APIC_SELF)
			taken |= lapic_accept(b->lapic[i], m);
	}
	return taken;
}

/*  address  31..20  19..12       11..5              4  3   2    1 0
 *           FEE     destination  destination 14..8  0  RH  mode
 *  data     15     14      10..8  7..0
 *           level  assert  mode   vector */
bool apic_bus_msi(struct apic_bus *b, uint64_t addr, uint32_t data)
{
	uint32_t low = addr >> 12 & 0xFF, high = addr >> 5 & 0x7F;
	struct apic_msg m = {
		.dest = low | high << 8,
		.logical = addr >> 2 & 1,
		.level = data >> 15 & 1,
		.mode = data >> 8 & 7,
		.vector = data,
	};

	if (addr >> 20 != 0xFEE)
		return false;
	/* With more CPUs than 8 bits can name, 255 is one of them. */
	m.broadcast = m.dest == 0xFF && b->nr_cpus <= 255;
	if ((addr >> 3 & 1) && m.mode == APIC_FIXED) /* redirection hint: any one of them */
		m.mode = APIC_LOWEST;
	return apic_bus_send(b, 0, &m, APIC_DEST);
}

void apic_bus_lint(struct apic_bus *b, unsigned pin, bool level)
{
	for (unsigned i = 0; i < b->nr_cpus; i++)
		lapic_lint(b->lapic[i], pin, level);
}

void apic_bus_state(struct state *s, struct apic_bus *b)
{
	for (unsigned i = 0; i < b->nr_cpus; i++)
		lapic_state(s, b->lapic[i]);
}
