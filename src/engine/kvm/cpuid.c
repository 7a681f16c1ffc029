/* engine/kvm/cpuid.c - what the guest sees of the CPU model.
 *
 * KVM wants the whole table of CPUID answers at once.  It is made of the model's answers and the
 * machine's corrections; KVM itself keeps what changes with CR4, XCR0 and IA32_APIC_BASE (OSXSAVE,
 * OSPKE, APIC, sizes in leaf 0Dh).  A model with a feature that this KVM cannot give is refused
 * before (kvm_cpu_lacks).  Hints are the exception: features that a guest may believe in without
 * harm where they are not, because nothing works differently but the speed or a known flaw. */
#include "engine/kvm/kvm.h"

#include "base/error.h"
#include "engine/cpu_model.h"

#include <asm/kvm_para.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { EAX, EBX, ECX, EDX };
enum { MAX_ENTRIES = 256 };

static const struct {
	uint32_t leaf;
	uint8_t sub, reg, bit;
} features[CPU_NR_FEATURES] = {
#define X(id, name, leaf, sub, reg, bit, flags) [CPU_FEAT_##id] = {leaf, sub, reg, bit},
#include "engine/cpu_features.def"
#undef X
};

/* KVM gives these whatever the table of the host says: its local APIC has them, ours does too. */
static const enum cpu_feature always[] = {
	CPU_FEAT_APIC,       CPU_FEAT_X2APIC, CPU_FEAT_TSC_DEADLINE_TIMER,
	CPU_FEAT_HYPERVISOR, CPU_FEAT_ARAT,
};

static const enum cpu_feature hints[] = {
	CPU_FEAT_ERMS,    CPU_FEAT_FSRM,      CPU_FEAT_3DNOWPREFETCH, CPU_FEAT_NONSTOP_TSC,
	CPU_FEAT_SSB_NO,  CPU_FEAT_BTC_NO,    CPU_FEAT_LFENCE_RDTSC,  CPU_FEAT_NULL_SEL_CLR_BASE,
	CPU_FEAT_SRSO_NO, CPU_FEAT_TSA_SQ_NO, CPU_FEAT_TSA_L1_NO,     CPU_FEAT_TOPOEXT,
};

static bool among(enum cpu_feature f, const enum cpu_feature *list, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (list[i] == f)
			return true;
	return false;
}

/* --- what the kernel supports ------------------------------------------------------------------
 */

#define TABLE_SIZE (sizeof(struct kvm_cpuid2) + MAX_ENTRIES * sizeof(struct kvm_cpuid_entry2))

static int supported_ask(struct kvm_cpuid2 *c, struct error *err)
{
	int fd = kvm_open(err), r;

	if (fd < 0)
		return fd;
	c->nent = MAX_ENTRIES;
	r = kvm_ioctl(fd, KVM_GET_SUPPORTED_CPUID, c);
	close(fd);
	if (r < 0)
		err_errno(err, -r, "KVM does not say which CPU features it has");
	return r;
}

/* A copy for the caller to free.  The kernel is asked once: in a virtual machine the question takes
 * it half a millisecond. */
static struct kvm_cpuid2 *supported_get(struct error *err)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards known */
	static struct kvm_cpuid2 *known;
	struct kvm_cpuid2 *c = calloc(1, TABLE_SIZE);
	int r = 0;

	if (!c) {
		err_errno(err, ENOMEM, "CPUID table");
		return NULL;
	}
	pthread_mutex_lock(&lock);
	if (known)
		memcpy(c, known, TABLE_SIZE);
	else
		r = supported_ask(c, err);
	if (r == 0 && !known && (known = malloc(TABLE_SIZE)))
		memcpy(known, c, TABLE_SIZE);
	pthread_mutex_unlock(&lock);
	if (r == 0)
		return c;
	free(c);
	return NULL;
}

static uint32_t entry_reg(const struct kvm_cpuid_entry2 *e, unsigned reg)
{
	const uint32_t regs[4] = {e->eax, e->ebx, e->ecx, e->edx};

	return regs[reg];
}

static uint32_t supported_reg(const struct kvm_cpuid2 *c, uint32_t leaf, uint32_t sub, unsigned reg)
{
	for (uint32_t i = 0; i < c->nent; i++)
		if (c->entries[i].function == leaf && c->entries[i].index == sub)
			return entry_reg(&c->entries[i], reg);
	return 0;
}

static bool supported(const struct kvm_cpuid2 *c, enum cpu_feature f)
{
	return among(f, always, ARRAY_SIZE(always)) ||
	       supported_reg(c, features[f].leaf, features[f].sub, features[f].reg) >>
			       features[f].bit &
		       1;
}

int kvm_cpu_lacks(const struct cpu_model *m, uint64_t *lacks, struct error *err)
{
	struct kvm_cpuid2 *c = supported_get(err);

	if (!c)
		return -ENOTSUP;
	memset(lacks, 0, sizeof(m->features));
	for (unsigned f = 0; f < CPU_NR_FEATURES; f++)
		if (cpu_has(m, f) && !supported(c, f) && !among(f, hints, ARRAY_SIZE(hints)))
			lacks[f / 64] |= BIT(f % 64);
	free(c);
	return 0;
}

int kvm_check_model(const struct cpu_model *m, struct error *err)
{
	uint64_t lacks[ARRAY_SIZE(m->features)];
	int r = kvm_cpu_lacks(m, lacks, err);

	for (unsigned f = 0; r == 0 && f < CPU_NR_FEATURES; f++)
		if (lacks[f / 64] >> (f % 64) & 1)
			return err_set(err, ENOTSUP,
				       "KVM on this host cannot give the guest the CPU feature %s; "
				       "leave it out (--cpu %s,-%s)",
				       cpu_feature_name(f), m->name, cpu_feature_name(f));
	return r;
}

int kvm_host_pv_features(uint32_t *pv, struct error *err)
{
	struct kvm_cpuid2 *c = supported_get(err);

	if (!c)
		return -ENOTSUP;
	*pv = supported_reg(c, KVM_CPUID_FEATURES, 0, EAX);
	free(c);
	return 0;
}

/* --- the guest's table -------------------------------------------------------------------------
 */

struct table {
	struct engine_cpu *cpu;
	const struct kvm_cpuid2 *host;
	struct kvm_cpuid2 *out;
};

/* What of KVM's own leaf works here: the kernel serves most of it, and without its local APIC it
 * neither sends IPIs nor wakes CPUs by hypercall, while the end of interrupt in memory is ours. */
static uint32_t pv_features(const struct engine_vm *vm, uint32_t machine)
{
	uint32_t kernel = vm->pv_features | BIT(KVM_FEATURE_MSI_EXT_DEST_ID);

	if (!kvm_has_lapic(vm)) {
		kernel &= ~(uint32_t)(BIT(KVM_FEATURE_PV_SEND_IPI) | BIT(KVM_FEATURE_PV_UNHALT));
		kernel |= BIT(KVM_FEATURE_PV_EOI);
	} else if (!vm->has_x2apic_api) {
		kernel &= ~(uint32_t)BIT(KVM_FEATURE_MSI_EXT_DEST_ID);
	}
	return machine & kernel;
}

static void drop_hints(const struct table *t, uint32_t leaf, uint32_t sub, uint32_t regs[4])
{
	for (size_t i = 0; i < ARRAY_SIZE(hints); i++) {
		enum cpu_feature f = hints[i];

		if (features[f].leaf == leaf && features[f].sub == sub && !supported(t->host, f))
			regs[features[f].reg] &= ~(1u << features[f].bit);
	}
}

static void answer(const struct table *t, uint32_t leaf, uint32_t sub, uint32_t regs[4])
{
	const struct engine_cpu *cpu = t->cpu;

	cpu_model_cpuid(cpu->vm->model, leaf, sub, regs);
	if (cpu->ops->cpuid)
		cpu->ops->cpuid(cpu->opaque, leaf, sub, regs);
	drop_hints(t, leaf, sub, regs);
	if (leaf == KVM_CPUID_FEATURES)
		regs[EAX] = pv_features(cpu->vm, regs[EAX]);
}

static void put(struct table *t, uint32_t leaf, uint32_t sub, bool indexed, const uint32_t regs[4])
{
	if (t->out->nent == MAX_ENTRIES)
		return;
	t->out->entries[t->out->nent++] = (struct kvm_cpuid_entry2){
		.function = leaf,
		.index = sub,
		.flags = indexed ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
		.eax = regs[EAX],
		.ebx = regs[EBX],
		.ecx = regs[ECX],
		.edx = regs[EDX],
	};
}

/* Does leaf have more subleaves after sub, whose answer regs is? */
static bool more_subleaves(uint32_t leaf, uint32_t sub, const uint32_t regs[4], uint32_t *last)
{
	switch (leaf) {
	case 4:
	case 0x8000001d:
		return (regs[EAX] & 31) != 0;
	case 7:
		if (sub == 0)
			*last = regs[EAX];
		return sub < *last;
	case 0xb:
	case 0x1f:
		return (regs[ECX] >> 8 & 0xff) != 0;
	case 0xd:
		return sub < 62;
	}
	return false;
}

static bool leaf_is_indexed(uint32_t leaf)
{
	return leaf == 4 || leaf == 7 || leaf == 0xb || leaf == 0xd || leaf == 0x14 ||
	       leaf == 0x1f || leaf == 0x8000001d;
}

static void put_leaf(struct table *t, uint32_t leaf)
{
	bool indexed = leaf_is_indexed(leaf), more = true;
	uint32_t regs[4], last = 0;

	for (uint32_t sub = 0; more && sub < 64; sub++) {
		answer(t, leaf, sub, regs);
		/* What is not in the table reads as zero, all leaf 0Dh is mostly. */
		if (sub == 0 || regs[EAX] || regs[EBX] || regs[ECX] || regs[EDX])
			put(t, leaf, sub, indexed, regs);
		more = indexed && more_subleaves(leaf, sub, regs, &last);
	}
}

static void put_range(struct table *t, uint32_t first, uint32_t room)
{
	uint32_t regs[4], last;

	answer(t, first, 0, regs);
	last = regs[EAX] < first ? first : MIN(regs[EAX], first + room);
	for (uint32_t leaf = first; leaf <= last; leaf++)
		put_leaf(t, leaf);
}

int kvm_set_cpuid(struct engine_cpu *cpu, struct error *err)
{
	struct kvm_cpuid2 *host = supported_get(err);
	struct table t = {.cpu = cpu, .host = host};
	int r = -ENOMEM;

	if (!host)
		return -ENOTSUP;
	t.out = calloc(1, sizeof(*t.out) + MAX_ENTRIES * sizeof(struct kvm_cpuid_entry2));
	if (t.out) {
		put_range(&t, 0, 0x1f);
		put_range(&t, KVM_CPUID_SIGNATURE, 0x10);
		put_range(&t, 0x80000000, 0x28);
		r = kvm_ioctl(cpu->fd, KVM_SET_CPUID2, t.out);
		free(t.out);
	}
	free(host);
	return r < 0 ? err_errno(err, -r, "vCPU %u: KVM does not take the CPUID table", cpu->index)
		     : 0;
}
