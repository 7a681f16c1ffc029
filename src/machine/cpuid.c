/* machine/cpuid.c - what of CPUID belongs to the board: APIC ids, topology, hypervisor leaves.
 *
 * The topology is one package of nr_cpus cores with one thread each; APIC id = CPU number.  The
 * same is said in each of the ways that Intel and AMD have had for it. Spec: SDM 2A "CPUID", AMD
 * APM 3 appendix E. */
#include "machine/irqchip/lapic.h"
#include "machine/pc.h"
#include "machine/pv/kvm_pv.h"

enum { EAX, EBX, ECX, EDX };

/* Bits of an APIC id that number the cores. */
static unsigned cpuid_core_bits(unsigned nr_cpus)
{
	return nr_cpus > 1 ? 32 - __builtin_clz(nr_cpus - 1) : 0;
}

static void cpuid_put(uint32_t *reg, unsigned low, unsigned nr_bits, uint32_t value)
{
	uint32_t mask = (uint32_t)(BIT(nr_bits) - 1);

	*reg = (*reg & ~(mask << low)) | MIN(value, mask) << low;
}

static void cpuid_features(const struct machine_cpu *c, uint32_t regs[4])
{
	unsigned nr = c->machine->cfg.nr_cpus;

	cpuid_put(&regs[EBX], 24, 8, c->index & 0xFF);
	cpuid_put(&regs[EBX], 16, 8, 1u << cpuid_core_bits(nr));
	regs[ECX] |= 1u << 21 | 1u << 24 | 1u << 31; /* x2APIC, TSC deadline, hypervisor */
	cpuid_put(&regs[EDX], 9, 1, lapic_enabled(c->lapic));
	cpuid_put(&regs[EDX], 28, 1, nr > 1); /* EBX[23:16] is valid */
}

/* Intel leaf 4, AMD leaf 8000001D: one cache each.  Level 3 is shared by all, others by nobody. */
static void cpuid_cache(const struct machine_cpu *c, bool intel, uint32_t regs[4])
{
	unsigned bits = cpuid_core_bits(c->machine->cfg.nr_cpus);
	uint32_t shared = (regs[EAX] >> 5 & 7) >= 3 ? (1u << bits) - 1 : 0;

	if (!(regs[EAX] & 31)) /* no more caches */
		return;
	cpuid_put(&regs[EAX], 14, 12, shared);
	if (intel)
		cpuid_put(&regs[EAX], 26, 6, (1u << bits) - 1);
}

static void cpuid_extended_topology(const struct machine_cpu *c, uint32_t subleaf, uint32_t regs[4])
{
	enum { LEVEL_SMT = 1, LEVEL_CORE = 2 };
	unsigned nr = c->machine->cfg.nr_cpus;

	regs[EAX] = regs[EBX] = 0;
	regs[ECX] = subleaf & 0xFF;
	regs[EDX] = c->index;
	if (subleaf == 0) {
		regs[EBX] = 1;
		regs[ECX] |= LEVEL_SMT << 8;
	} else if (subleaf == 1) {
		regs[EAX] = cpuid_core_bits(nr);
		regs[EBX] = nr;
		regs[ECX] |= LEVEL_CORE << 8;
	}
}

/* AMD 80000008: ECX[7:0] cores - 1, ECX[15:12] bits of the APIC id that number them. */
static void cpuid_amd_cores(const struct machine_cpu *c, uint32_t regs[4])
{
	unsigned nr = c->machine->cfg.nr_cpus;

	cpuid_put(&regs[ECX], 0, 8, nr - 1);
	cpuid_put(&regs[ECX], 12, 4, cpuid_core_bits(nr));
}

static void cpuid_amd_topology(const struct machine_cpu *c, uint32_t regs[4])
{
	regs[EAX] = c->index;
	regs[EBX] = c->index & 0xFF; /* core id, one thread per core */
	regs[ECX] = 0;               /* node 0 of 1 */
	regs[EDX] = 0;
}

void machine_cpuid(struct machine_cpu *c, uint32_t leaf, uint32_t subleaf, uint32_t regs[4])
{
	if (leaf >> 8 == 0x400000) {
		kvm_pv_cpuid(c->machine->pv, leaf, regs);
		return;
	}
	switch (leaf) {
	case 0:
		regs[EAX] = MAX(regs[EAX], 0xBu); /* x2APIC guests read the id there */
		break;
	case 1:
		cpuid_features(c, regs);
		break;
	case 4:
		cpuid_cache(c, true, regs);
		break;
	case 0xB:
	case 0x1F:
		cpuid_extended_topology(c, subleaf, regs);
		break;
	case 0x80000001:
		if (c->machine->cfg.nr_cpus > 1)
			regs[ECX] |= 1u << 1; /* AMD: several cores, not hyper-threads */
		break;
	case 0x80000008:
		cpuid_amd_cores(c, regs);
		break;
	case 0x8000001D:
		cpuid_cache(c, false, regs);
		break;
	case 0x8000001E:
		cpuid_amd_topology(c, regs);
		break;
	}
}
