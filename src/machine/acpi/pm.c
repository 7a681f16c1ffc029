/* machine/acpi/pm.c - ACPI fixed hardware.
 *
 *  offset  0       2       4            8         20h        22h
 *          PM1_STS PM1_EN  PM1_CNT      PM_TMR    GPE0_STS   GPE0_EN
 *
 * The registers are one small array of bytes; a write is done byte by byte, which gives every
 * access width that the specification allows the right effect. */
#include "machine/acpi/pm.h"

#include "base/bytes.h"
#include "base/error.h"
#include "base/log.h"
#include "bus/bus.h"
#include "machine/memmap.h"
#include "machine/timer/pmtmr.h"
#include "state/state.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

static struct log_component log_acpi = LOG_COMPONENT("acpi");

// clang-format off
enum { STS = PM_OFF_EVT, EN = PM_OFF_EVT + 2, CNT = PM_OFF_CNT, TMR = PM_OFF_TMR,
       GPE_STS = PM_OFF_GPE0, GPE_EN = PM_OFF_GPE0 + 2 };
enum { PM1_TMR = 1 << 0, PM1_GBL = 1 << 5, PM1_PWRBTN = 1 << 8, PM1_SLPBTN = 1 << 9,
       PM1_RTC = 1 << 10 };
enum { CNT_SCI_EN = 1 << 0, CNT_SLP_EN = 1 << 13 };
#define PM1_SCI_SOURCES (PM1_TMR | PM1_GBL | PM1_PWRBTN | PM1_SLPBTN | PM1_RTC)
// clang-format on

/* What a written byte does: set these bits, or clear those that are written as one. */
static const struct {
	uint8_t writable, w1c;
} pm_byte[PORT_PM_SIZE] = {
	[STS] = {.w1c = 0x31},         [STS + 1] = {.w1c = 0x87},
	[EN] = {.writable = 0x21},     [EN + 1] = {.writable = 0x47},
	[CNT] = {.writable = 0x02},    [CNT + 1] = {.writable = 0x1C},
	[GPE_STS] = {.w1c = 0xFF},     [GPE_STS + 1] = {.w1c = 0xFF},
	[GPE_EN] = {.writable = 0xFF}, [GPE_EN + 1] = {.writable = 0xFF},
};

struct acpi_pm {
	struct acpi_pm_config cfg;
	struct io_region *ports;

	pthread_mutex_t lock; /* guards everything below */
	uint8_t reg[PORT_PM_SIZE];
	uint64_t carry_ns; /* when TMR_STS is next set */
	struct vtimer carry;
};

static void pm_update_sci(struct acpi_pm *pm)
{
	uint16_t pm1 = le16_load(pm->reg + STS) & le16_load(pm->reg + EN) & PM1_SCI_SOURCES;
	uint16_t gpe = le16_load(pm->reg + GPE_STS) & le16_load(pm->reg + GPE_EN);

	irq_set(&pm->cfg.sci, pm1 || gpe);
}

/* TMR_STS is wanted only by somebody who looks, or when its interrupt is enabled. */
static void pm_update_timer(struct acpi_pm *pm)
{
	uint64_t now = vclock_now_ns(pm->cfg.clock);

	if (now >= pm->carry_ns) {
		pm->reg[STS] |= PM1_TMR;
		pm->carry_ns = pmtmr_next_carry_ns(now);
	}
	if (pm->reg[EN] & PM1_TMR)
		vtimer_arm(&pm->carry, pm->carry_ns);
	else
		vtimer_cancel(&pm->carry);
	pm_update_sci(pm);
}

static void pm_carry(void *opaque)
{
	struct acpi_pm *pm = opaque;

	pthread_mutex_lock(&pm->lock);
	pm_update_timer(pm);
	pthread_mutex_unlock(&pm->lock);
}

void acpi_pm_power_button(struct acpi_pm *pm)
{
	pthread_mutex_lock(&pm->lock);
	pm->reg[STS + 1] |= PM1_PWRBTN >> 8;
	pm_update_sci(pm);
	pthread_mutex_unlock(&pm->lock);
}

/* SLP_EN was written.  True: this is soft-off. */
static bool pm_sleep(struct acpi_pm *pm)
{
	unsigned type = pm->reg[CNT + 1] >> 2 & 7;

	if (type == ACPI_SLP_TYP_S5)
		return true;
	log_guest(&log_acpi, "guest asks for sleep type %u, which this board does not have", type);
	return false;
}

static bool pm_write_byte(struct acpi_pm *pm, unsigned off, uint8_t v)
{
	uint8_t keep = ~pm_byte[off].writable;

	pm->reg[off] = (pm->reg[off] & keep) | (v & pm_byte[off].writable);
	pm->reg[off] &= ~(v & pm_byte[off].w1c);
	return off == CNT + 1 && (v & CNT_SLP_EN >> 8) && pm_sleep(pm);
}

static void pm_write(void *opaque, uint64_t off, uint64_t value, unsigned size)
{
	struct acpi_pm *pm = opaque;
	bool off_now = false;

	pthread_mutex_lock(&pm->lock);
	pm_update_timer(pm);
	for (unsigned i = 0; i < size; i++)
		off_now |= pm_write_byte(pm, off + i, value >> i * 8);
	pm_update_timer(pm);
	pthread_mutex_unlock(&pm->lock);
	if (off_now)
		pm->cfg.power_off(pm->cfg.opaque);
}

static uint64_t pm_read(void *opaque, uint64_t off, unsigned size)
{
	struct acpi_pm *pm = opaque;
	uint64_t v = 0;

	pthread_mutex_lock(&pm->lock);
	pm_update_timer(pm);
	le32_store(pm->reg + TMR, pmtmr_count(vclock_now_ns(pm->cfg.clock)));
	for (unsigned i = 0; i < size; i++)
		v |= (uint64_t)pm->reg[off + i] << i * 8;
	pthread_mutex_unlock(&pm->lock);
	return v;
}

static const struct io_ops pm_ops = {.read = pm_read, .write = pm_write, .max_size = 4};

void acpi_pm_reset(struct acpi_pm *pm)
{
	pthread_mutex_lock(&pm->lock);
	memset(pm->reg, 0, sizeof(pm->reg));
	pm->reg[CNT] = CNT_SCI_EN;
	pm->carry_ns = pmtmr_next_carry_ns(vclock_now_ns(pm->cfg.clock));
	pm_update_timer(pm);
	pthread_mutex_unlock(&pm->lock);
}

int acpi_pm_create(struct acpi_pm **out, const struct acpi_pm_config *cfg, struct error *err)
{
	struct acpi_pm *pm = calloc(1, sizeof(*pm));
	int r;

	if (!pm)
		return err_set(err, ENOMEM, "no memory for the ACPI registers");
	pm->cfg = *cfg;
	pthread_mutex_init(&pm->lock, NULL);
	vtimer_init(&pm->carry, cfg->clock, pm_carry, pm);
	acpi_pm_reset(pm);
	r = bus_add_pio(cfg->bus, PORT_PM, PORT_PM_SIZE, &pm_ops, pm, "acpi-pm", &pm->ports, err);
	if (r < 0) {
		acpi_pm_destroy(pm);
		return r;
	}
	*out = pm;
	return 0;
}

void acpi_pm_destroy(struct acpi_pm *pm)
{
	if (!pm)
		return;
	if (pm->ports)
		bus_remove(pm->cfg.bus, pm->ports);
	pthread_mutex_destroy(&pm->lock);
	free(pm);
}

void acpi_pm_state(struct state *s, struct acpi_pm *pm)
{
	pthread_mutex_lock(&pm->lock);
	state_enter(s, "acpi-pm", 1);
	if (!s->loading) { /* the timer's value is the clock's, and its flag is set by looking */
		pm_update_timer(pm);
		le32_store(pm->reg + TMR, 0);
	}
	state_bytes(s, "registers", pm->reg, sizeof(pm->reg));
	state_u64(s, "carry_ns", &pm->carry_ns);
	state_leave(s);
	if (state_loading(s)) {
		for (unsigned i = 0; i < PORT_PM_SIZE; i++)
			pm->reg[i] &= pm_byte[i].writable | pm_byte[i].w1c;
		pm->reg[CNT] |= CNT_SCI_EN;
		pm_update_timer(pm);
	}
	pthread_mutex_unlock(&pm->lock);
}
