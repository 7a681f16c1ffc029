/* machine/pv/kvm_pv.c - KVM's paravirtual interface.
 *
 * kvm-clock.  The guest names a place in its memory; we write there once
 *
 *   0 version  8 tsc_timestamp  16 system_time  24 mul  28 shift  29 flags
 *
 * and the guest computes  system_time + scale(TSC - tsc_timestamp)  for ever after.  The version is
 * odd while we write.  When every CPU's TSC counts alike, all get the same pair of numbers and the
 * STABLE flag, which lets the guest compare times between CPUs without a lock. */
#include "machine/pv/kvm_pv.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "base/error.h"
#include "machine/irqchip/apic_bus.h"
#include "machine/timer/vclock.h"
#include "mem/mem.h"
#include "state/state.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

// clang-format off
enum {
	LEAF_SIGNATURE = 0x40000000, LEAF_FEATURES = 0x40000001, LEAF_FREQUENCIES = 0x40000010,
};
enum {
	FEATURE_CLOCKSOURCE = 0, FEATURE_NOP_IO_DELAY = 1, FEATURE_CLOCKSOURCE2 = 3,
	FEATURE_PV_EOI = 6, FEATURE_PV_UNHALT = 7, FEATURE_PV_SEND_IPI = 11,
	FEATURE_MSI_EXT_DEST_ID = 15, FEATURE_CLOCKSOURCE_STABLE = 24,
	HINT_REALTIME = 0,
};
enum {
	MSR_WALL_CLOCK_OLD = 0x11, MSR_SYSTEM_TIME_OLD = 0x12,
	MSR_WALL_CLOCK = 0x4b564d00, MSR_SYSTEM_TIME = 0x4b564d01, MSR_PV_EOI = 0x4b564d04,
};
enum { HC_VAPIC_POLL_IRQ = 1, HC_KICK_CPU = 5, HC_SEND_IPI = 10 };
enum { KVM_ENOSYS = 1000, KVM_EINVAL = 22 };
enum { FLAG_TSC_STABLE = 1 << 0, FLAG_GUEST_STOPPED = 1 << 1 };
// clang-format on

struct kvm_pv_cpu {
	uint64_t eoi_msr; /* its own thread's */
	/* Under kvm_pv.lock: a CPU that sets its TSC has the pages of others written. */
	uint64_t system_time_msr;
	uint32_t version; /* of the clock page, even */
};

struct kvm_pv {
	struct kvm_pv_config cfg;
	uint64_t tsc_khz;
	bool remote;
	uint32_t mul; /* scaled from tsc_khz */
	int8_t shift;

	pthread_mutex_t lock; /* guards the master pair, the wall clock and the clock pages */
	bool master_valid;
	uint64_t master_tsc, master_mono_ns;
	uint64_t wall_clock_msr;
	uint32_t wall_version;

	struct kvm_pv_cpu cpu[];
};

/* ---- CPUID ---- */

static uint32_t kvm_pv_features(const struct kvm_pv *pv)
{
	uint32_t f = BIT(FEATURE_CLOCKSOURCE) | BIT(FEATURE_NOP_IO_DELAY) |
		     BIT(FEATURE_CLOCKSOURCE2) | BIT(FEATURE_PV_EOI) | BIT(FEATURE_PV_SEND_IPI) |
		     BIT(FEATURE_MSI_EXT_DEST_ID) | BIT(FEATURE_CLOCKSOURCE_STABLE);

	return pv->cfg.wake ? f | BIT(FEATURE_PV_UNHALT) : f;
}

void kvm_pv_cpuid(const struct kvm_pv *pv, uint32_t leaf, uint32_t regs[4])
{
	memset(regs, 0, 4 * sizeof(regs[0]));
	switch (leaf) {
	case LEAF_SIGNATURE:
		regs[0] = LEAF_FREQUENCIES;
		memcpy(&regs[1], "KVMKVMKVM\0\0\0", 12);
		break;
	case LEAF_FEATURES:
		regs[0] = kvm_pv_features(pv);
		regs[3] = pv->cfg.realtime ? BIT(HINT_REALTIME) : 0;
		break;
	case LEAF_FREQUENCIES:
		regs[0] = pv->tsc_khz;
		regs[1] = LAPIC_TIMER_HZ / 1000;
		break;
	}
}

/* ---- clock ---- */

/* ns = (ticks << shift) * mul >> 32, a negative shift being to the right; mul has its top bit set
 * to lose as little as possible. */
static void kvm_pv_scale(uint64_t hz, uint32_t *mul, int8_t *shift)
{
	unsigned __int128 v = (unsigned __int128)NSEC_PER_SEC << 64;
	int s = -32;

	for (v /= hz; v >> 32; v >>= 1)
		s++;
	*mul = v;
	*shift = s;
}

void kvm_pv_set_tsc_khz(struct kvm_pv *pv, uint64_t khz)
{
	pv->tsc_khz = khz;
	if (khz)
		kvm_pv_scale(khz * 1000, &pv->mul, &pv->shift);
}

/* A TSC value of this CPU and the moment that goes with it.  The engine is asked about a moment one
 * second (1000 * khz ticks) ahead, for which its answer does not depend on when it is asked. */
static void kvm_pv_read_pair(struct kvm_pv *pv, unsigned cpu, uint64_t *tsc, uint64_t *mono_ns)
{
	void *opaque = pv->cfg.opaque;

	*tsc = pv->cfg.cpu_tsc(opaque, cpu);
	*mono_ns = pv->cfg.cpu_tsc_to_mono_ns(opaque, cpu, *tsc + 1000 * pv->tsc_khz);
	*mono_ns -= NSEC_PER_SEC;
}

/* Does this CPU's TSC count as CPU 0's does?  Read between two readings of that one it must lie
 * between them; TSCs that differ do so by far more than the time of three readings. */
static bool kvm_pv_same_tsc(struct kvm_pv *pv, unsigned cpu)
{
	uint64_t before = pv->cfg.cpu_tsc(pv->cfg.opaque, 0);
	uint64_t tsc = pv->cfg.cpu_tsc(pv->cfg.opaque, cpu);
	uint64_t after = pv->cfg.cpu_tsc(pv->cfg.opaque, 0);

	return tsc - before <= after - before;
}

/* The numbers for this CPU's page.  True when they are everybody's.  With the lock held. */
static bool kvm_pv_pair(struct kvm_pv *pv, unsigned cpu, uint64_t *tsc, uint64_t *mono_ns)
{
	if (!kvm_pv_same_tsc(pv, cpu)) {
		kvm_pv_read_pair(pv, cpu, tsc, mono_ns);
		return false;
	}
	if (!pv->master_valid)
		kvm_pv_read_pair(pv, 0, &pv->master_tsc, &pv->master_mono_ns);
	pv->master_valid = true;
	*tsc = pv->master_tsc;
	*mono_ns = pv->master_mono_ns;
	return true;
}

/* Write a structure whose first word is a version: odd, content, even.  A place that is no RAM is
 * the guest's loss. */
static void kvm_pv_publish(struct kvm_pv *pv, gpa_t gpa, uint32_t *version, const uint8_t *p,
			   size_t len)
{
	if (mem_store32(pv->cfg.mem, gpa, *version + 1) < 0)
		return;
	*version += 2;
	mem_write(pv->cfg.mem, gpa + 4, p + 4, len - 4);
	mem_store32(pv->cfg.mem, gpa, *version);
}

/* With the lock held. */
static void kvm_pv_write_time(struct kvm_pv *pv, unsigned cpu, uint8_t extra_flags)
{
	struct kvm_pv_cpu *c = &pv->cpu[cpu];
	uint8_t page[32] = {0};
	uint64_t tsc, mono;
	bool stable;

	if (!(c->system_time_msr & 1) || !pv->tsc_khz || pv->remote)
		return;
	stable = kvm_pv_pair(pv, cpu, &tsc, &mono);
	le64_store(page + 8, tsc);
	le64_store(page + 16, vclock_from_mono_ns(pv->cfg.clock, mono));
	le32_store(page + 24, pv->mul);
	page[28] = (uint8_t)pv->shift;
	page[29] = extra_flags | (stable ? FLAG_TSC_STABLE : 0);
	kvm_pv_publish(pv, c->system_time_msr & ~3ull, &c->version, page, sizeof(page));
}

/* Time of day at which system time was 0. */
static void kvm_pv_write_wall_clock(struct kvm_pv *pv, uint64_t value)
{
	uint64_t real = vclock_real_ns(pv->cfg.clock) - vclock_now_ns(pv->cfg.clock);
	uint8_t page[12] = {0};

	le32_store(page + 4, real / NSEC_PER_SEC);
	le32_store(page + 8, real % NSEC_PER_SEC);
	pthread_mutex_lock(&pv->lock);
	pv->wall_clock_msr = value;
	kvm_pv_publish(pv, value & ~3ull, &pv->wall_version, page, sizeof(page));
	pthread_mutex_unlock(&pv->lock);
}

/* All pages from a fresh pair. */
static void kvm_pv_write_all(struct kvm_pv *pv, uint8_t extra_flags)
{
	pthread_mutex_lock(&pv->lock);
	pv->master_valid = false;
	for (unsigned i = 0; i < pv->cfg.nr_cpus; i++)
		kvm_pv_write_time(pv, i, extra_flags);
	pthread_mutex_unlock(&pv->lock);
}

void kvm_pv_resumed(struct kvm_pv *pv)
{
	kvm_pv_write_all(pv, FLAG_GUEST_STOPPED);
}

/* CPU 0's TSC is the one that others are compared with. */
void kvm_pv_tsc_written(struct kvm_pv *pv, unsigned cpu)
{
	if (cpu == 0) {
		kvm_pv_write_all(pv, 0);
		return;
	}
	pthread_mutex_lock(&pv->lock);
	kvm_pv_write_time(pv, cpu, 0);
	pthread_mutex_unlock(&pv->lock);
}

/* ---- MSRs ---- */

bool kvm_pv_has_msr(uint32_t index)
{
	switch (index) {
	case MSR_WALL_CLOCK_OLD:
	case MSR_SYSTEM_TIME_OLD:
	case MSR_WALL_CLOCK:
	case MSR_SYSTEM_TIME:
	case MSR_PV_EOI:
		return true;
	}
	return false;
}

bool kvm_pv_msr_read(struct kvm_pv *pv, unsigned cpu, uint32_t index, uint64_t *value)
{
	switch (index) {
	case MSR_WALL_CLOCK_OLD:
	case MSR_WALL_CLOCK:
		pthread_mutex_lock(&pv->lock);
		*value = pv->wall_clock_msr;
		pthread_mutex_unlock(&pv->lock);
		return true;
	case MSR_SYSTEM_TIME_OLD:
	case MSR_SYSTEM_TIME:
		*value = pv->cpu[cpu].system_time_msr;
		return true;
	case MSR_PV_EOI:
		*value = pv->cpu[cpu].eoi_msr;
		return true;
	}
	return false;
}

static bool kvm_pv_write_eoi_msr(struct kvm_pv *pv, unsigned cpu, uint64_t value)
{
	if (value & 2) /* bit 0 enables, bit 1 is reserved, the rest is the address */
		return false;
	pv->cpu[cpu].eoi_msr = value;
	lapic_pv_eoi_set(apic_bus_lapic(pv->cfg.apics, cpu), value & 1, value & ~3ull);
	return true;
}

bool kvm_pv_msr_write(struct kvm_pv *pv, unsigned cpu, uint32_t index, uint64_t value)
{
	switch (index) {
	case MSR_WALL_CLOCK_OLD:
	case MSR_WALL_CLOCK:
		kvm_pv_write_wall_clock(pv, value);
		return true;
	case MSR_SYSTEM_TIME_OLD:
	case MSR_SYSTEM_TIME:
		pthread_mutex_lock(&pv->lock);
		pv->cpu[cpu].system_time_msr = value;
		kvm_pv_write_time(pv, cpu, 0);
		pthread_mutex_unlock(&pv->lock);
		return true;
	case MSR_PV_EOI:
		return kvm_pv_write_eoi_msr(pv, cpu, value);
	}
	return false;
}

/* ---- hypercalls ---- */

/* RBX, RCX: 128 bits of CPUs, counted from APIC id RDX; RSI: as ICR.  The number reached. */
static int64_t kvm_pv_send_ipi(struct kvm_pv *pv, unsigned cpu, const uint64_t gpr[X86_NR_GPR])
{
	struct apic_msg m = {
		.vector = gpr[X86_RSI],
		.mode = gpr[X86_RSI] >> 8 & 7,
	};
	int64_t reached = 0;

	if ((gpr[X86_RSI] >> 18 & 3) || (m.mode != APIC_FIXED && m.mode != APIC_NMI))
		return -KVM_EINVAL;
	for (unsigned i = 0; i < 128; i++) {
		uint64_t bits = i < 64 ? gpr[X86_RBX] : gpr[X86_RCX];
		uint64_t dest = (uint64_t)(uint32_t)gpr[X86_RDX] + i;

		if (!(bits >> i % 64 & 1) || dest >= pv->cfg.nr_cpus)
			continue;
		m.dest = (uint32_t)dest;
		reached += apic_bus_send(pv->cfg.apics, cpu, &m, APIC_DEST);
	}
	return reached;
}

/* RCX: APIC id of the CPU that should stop waiting. */
static int64_t kvm_pv_kick(struct kvm_pv *pv, const uint64_t gpr[X86_NR_GPR])
{
	if (!pv->cfg.wake)
		return -KVM_ENOSYS;
	if (gpr[X86_RCX] < pv->cfg.nr_cpus)
		pv->cfg.wake(pv->cfg.opaque, gpr[X86_RCX]);
	return 0;
}

void kvm_pv_hypercall(struct kvm_pv *pv, unsigned cpu, uint64_t gpr[X86_NR_GPR])
{
	int64_t result = -KVM_ENOSYS;

	switch (gpr[X86_RAX]) {
	case HC_VAPIC_POLL_IRQ:
		result = 0;
		break;
	case HC_KICK_CPU:
		result = kvm_pv_kick(pv, gpr);
		break;
	case HC_SEND_IPI:
		result = kvm_pv_send_ipi(pv, cpu, gpr);
		break;
	}
	gpr[X86_RAX] = (uint64_t)result;
}

/* ---- as a copy of an engine's ---- */

void kvm_pv_set_remote(struct kvm_pv *pv, bool remote)
{
	pv->remote = remote;
}

void kvm_pv_export(struct kvm_pv *pv, unsigned cpu, struct kvm_pv_msrs *msrs)
{
	*msrs = (struct kvm_pv_msrs){
		.wall_clock = pv->wall_clock_msr,
		.system_time = pv->cpu[cpu].system_time_msr,
		.eoi = pv->cpu[cpu].eoi_msr,
	};
}

/* The version of a clock page must go up from what the guest has seen there. */
static uint32_t kvm_pv_version(struct kvm_pv *pv, uint64_t msr)
{
	uint32_t version = 0;

	if (msr & 1)
		mem_load32(pv->cfg.mem, msr & ~3ull, &version);
	return (version + 1) & ~1u;
}

void kvm_pv_import(struct kvm_pv *pv, unsigned cpu, const struct kvm_pv_msrs *msrs)
{
	struct kvm_pv_cpu *c = &pv->cpu[cpu];

	pv->wall_clock_msr = msrs->wall_clock;
	c->system_time_msr = msrs->system_time;
	c->eoi_msr = msrs->eoi;
	c->version = kvm_pv_version(pv, msrs->system_time);
}

/* ---- life ---- */

void kvm_pv_reset(struct kvm_pv *pv)
{
	for (unsigned i = 0; i < pv->cfg.nr_cpus; i++)
		pv->cpu[i] = (struct kvm_pv_cpu){0};
	pv->wall_clock_msr = 0;
	pv->master_valid = false;
}

int kvm_pv_create(struct kvm_pv **out, const struct kvm_pv_config *cfg, struct error *err)
{
	struct kvm_pv *pv = calloc(1, sizeof(*pv) + cfg->nr_cpus * sizeof(pv->cpu[0]));

	if (!pv)
		return err_set(err, ENOMEM, "no memory for the paravirtual clock");
	pv->cfg = *cfg;
	pthread_mutex_init(&pv->lock, NULL);
	*out = pv;
	return 0;
}

void kvm_pv_destroy(struct kvm_pv *pv)
{
	if (!pv)
		return;
	pthread_mutex_destroy(&pv->lock);
	free(pv);
}

void kvm_pv_state(struct state *s, struct kvm_pv *pv)
{
	state_enter(s, "kvm-pv", 1);
	state_u64(s, "wall_clock_msr", &pv->wall_clock_msr);
	state_u32(s, "wall_version", &pv->wall_version);
	for (unsigned i = 0; i < pv->cfg.nr_cpus; i++) {
		state_u64(s, "system_time_msr", &pv->cpu[i].system_time_msr);
		state_u64(s, "eoi_msr", &pv->cpu[i].eoi_msr);
		state_u32(s, "version", &pv->cpu[i].version);
	}
	state_leave(s);
	if (state_loading(s))
		pv->master_valid = false; /* written anew by kvm_pv_resumed */
}
