/* machine/irqchip/gsi.c - the wires between devices and the interrupt chips. */
#include "machine/irqchip/gsi.h"

#include "base/error.h"
#include "machine/irqchip/ioapic.h"
#include "machine/irqchip/pic.h"
#include "machine/memmap.h"
#include "state/state.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

enum { MAX_SOURCES = 128 };

struct gsi_source {
	int8_t pic_irq, pin;
	bool level;
};

struct gsi {
	struct pic *pic;
	struct ioapic *ioapic;
	void (*remote_pic)(void *opaque, unsigned irq, bool level); /* NULL: ours */
	void (*remote_pin)(void *opaque, unsigned pin, bool level);
	void *remote_opaque;

	pthread_mutex_t lock; /* guards everything below */
	unsigned nr_sources;
	struct gsi_source source[MAX_SOURCES];
	unsigned pic_users[NR_ISA_IRQS], pin_users[NR_GSIS]; /* how many sources are high */
};

/* One more or one less pulls the wire; true when that changes its level. */
static bool gsi_count(unsigned *users, bool level)
{
	*users += level ? 1 : -1;
	return *users == (level ? 1 : 0);
}

static void gsi_pull_pic(struct gsi *g, unsigned irq, bool level)
{
	if (g->remote_pic)
		g->remote_pic(g->remote_opaque, irq, level);
	else
		pic_set(g->pic, irq, level);
}

static void gsi_pull_pin(struct gsi *g, unsigned pin, bool level)
{
	if (g->remote_pin)
		g->remote_pin(g->remote_opaque, pin, level);
	else
		ioapic_set(g->ioapic, pin, level);
}

static void gsi_set(void *opaque, unsigned n, bool level)
{
	struct gsi *g = opaque;
	struct gsi_source *s = &g->source[n];

	pthread_mutex_lock(&g->lock);
	if (s->level != level) {
		s->level = level;
		if (s->pic_irq >= 0 && gsi_count(&g->pic_users[s->pic_irq], level))
			gsi_pull_pic(g, s->pic_irq, level);
		if (s->pin >= 0 && gsi_count(&g->pin_users[s->pin], level))
			gsi_pull_pin(g, s->pin, level);
	}
	pthread_mutex_unlock(&g->lock);
}

struct irq_line gsi_source(struct gsi *g, int pic_irq, int pin)
{
	unsigned n;

	pthread_mutex_lock(&g->lock);
	assert(g->nr_sources < MAX_SOURCES && pic_irq < NR_ISA_IRQS && pin < NR_GSIS);
	n = g->nr_sources++;
	g->source[n] = (struct gsi_source){.pic_irq = pic_irq, .pin = pin};
	pthread_mutex_unlock(&g->lock);
	return (struct irq_line){.set = gsi_set, .opaque = g, .n = n};
}

struct irq_line gsi_source_isa(struct gsi *g, unsigned irq)
{
	if (irq == 2) /* the cascade: nothing can be connected */
		return (struct irq_line){0};
	return gsi_source(g, irq, irq == IRQ_PIT ? GSI_PIT : (int)irq);
}

int gsi_create(struct gsi **out, struct pic *pic, struct ioapic *ioapic, struct error *err)
{
	struct gsi *g = calloc(1, sizeof(*g));

	if (!g)
		return err_set(err, ENOMEM, "no memory for the interrupt wires");
	g->pic = pic;
	g->ioapic = ioapic;
	pthread_mutex_init(&g->lock, NULL);
	*out = g;
	return 0;
}

void gsi_destroy(struct gsi *g)
{
	if (!g)
		return;
	pthread_mutex_destroy(&g->lock);
	free(g);
}

/* The chips restore their own view of the wires, so only the counting is redone. */
void gsi_state(struct state *s, struct gsi *g)
{
	uint32_t nr;

	pthread_mutex_lock(&g->lock);
	nr = g->nr_sources;
	state_enter(s, "gsi", 1);
	state_u32(s, "nr_sources", &nr);
	state_check(s, nr == g->nr_sources, "another number of interrupt sources");
	for (unsigned n = 0; n < g->nr_sources; n++) {
		struct gsi_source *src = &g->source[n];
		bool was = src->level;

		state_bool(s, "level", &src->level);
		if (was == src->level)
			continue;
		if (src->pic_irq >= 0)
			gsi_count(&g->pic_users[src->pic_irq], src->level);
		if (src->pin >= 0)
			gsi_count(&g->pin_users[src->pin], src->level);
	}
	state_leave(s);
	pthread_mutex_unlock(&g->lock);
}

void gsi_set_remote(struct gsi *g, void (*pic)(void *opaque, unsigned irq, bool level),
		    void (*pin)(void *opaque, unsigned pin, bool level), void *opaque)
{
	pthread_mutex_lock(&g->lock);
	g->remote_pic = pic;
	g->remote_pin = pin;
	g->remote_opaque = opaque;
	pthread_mutex_unlock(&g->lock);
}

uint32_t gsi_pin_levels(struct gsi *g)
{
	uint32_t levels = 0;

	pthread_mutex_lock(&g->lock);
	for (unsigned n = 0; n < NR_GSIS; n++)
		if (g->pin_users[n])
			levels |= 1u << n;
	pthread_mutex_unlock(&g->lock);
	return levels;
}
