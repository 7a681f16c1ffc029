/* engine/soft/msr.c - model-specific registers: one table row each.
 *
 * A row says where the value is kept (`field`, an offset into struct cpu) or what computes it,
 * which bits must be zero, whether it holds an address (cpu_canonical_base) and which CPUID feature
 * it belongs to.  What is in no row is the machine's (APIC, deadline timer, paravirtual clock);
 * what the machine does not know either is #GP.
 *
 * SDM 4 "Model-Specific Registers", AMD APM 2 "MSRs", and for AMD's C001_xxxx what the public
 * processor programming references say about the few that operating systems look at. */
#include "engine/soft/insn_exec.gen.h"
#include "engine/soft/system.h"
#include "engine/soft/vec.h"

enum {
	MSR_CANONICAL = 1 << 0, /* holds a linear address */
	MSR_READ_ONLY = 1 << 1, /* writes are #GP */
	MSR_NO_READ = 1 << 2,   /* reads are #GP */
	MSR_IGNORE = 1 << 3,    /* allowed writes change nothing */
	MSR_AMD = 1 << 4,       /* exists on this maker's CPUs only */
	MSR_INTEL = 1 << 5,
};

#define NO_FEATURE CPU_NR_FEATURES

struct msr {
	uint32_t first, last; /* registers first..last, 8 bytes apart in `field` */
	uint16_t field;       /* offset in struct cpu; 0: `value` when there is no read function */
	uint16_t feature;     /* NO_FEATURE: always there */
	uint16_t flags;
	uint64_t value;    /* constant */
	uint64_t reserved; /* bits that are #GP to set */
	uint64_t (*read)(struct cpu *cpu, uint32_t index);
	bool (*write)(struct cpu *cpu, uint32_t index, uint64_t v);
};

/* --- time stamp counter ---------------------------------------------------------------------- */

static uint64_t read_tsc(struct cpu *cpu, uint32_t index)
{
	return cpu_read_tsc(cpu);
}

/* SDM 3B "Time-Stamp Counter Adjustment": TSC and TSC_ADJUST move by the same amount. */
static bool tsc_move(struct cpu *cpu, uint64_t delta)
{
	cpu->tsc_offset += delta;
	cpu->tsc_adjust += delta;
	vec_release(cpu);
	if (cpu->ops->tsc_written)
		cpu->ops->tsc_written(cpu->opaque);
	return true;
}

static bool write_tsc(struct cpu *cpu, uint32_t index, uint64_t v)
{
	return tsc_move(cpu, v - cpu_read_tsc(cpu));
}

static bool write_tsc_adjust(struct cpu *cpu, uint32_t index, uint64_t v)
{
	return tsc_move(cpu, v - cpu->tsc_adjust);
}

/* AMD drops the upper half, Intel refuses it. */
static bool write_tsc_aux(struct cpu *cpu, uint32_t index, uint64_t v)
{
	if (v >> 32 && !cpu_model_is_amd(cpu->vm->model))
		return false;
	cpu->tsc_aux = (uint32_t)v;
	return true;
}

/* --- EFER ------------------------------------------------------------------------------------ */

#define EFER_AUTOIBRS BIT(21)

uint64_t cpu_efer_allowed(const struct cpu_model *m)
{
	uint64_t v = 0;

	if (cpu_has(m, CPU_FEAT_SYSCALL))
		v |= EFER_SCE;
	if (cpu_has(m, CPU_FEAT_LM))
		v |= EFER_LME | EFER_LMA;
	if (cpu_has(m, CPU_FEAT_NX))
		v |= EFER_NXE;
	if (cpu_has(m, CPU_FEAT_AUTOIBRS))
		v |= EFER_AUTOIBRS;
	return v;
}

/* LME cannot change under paging; LMA is the CPU's own (APM 2 "Extended Feature Enable
 * Register"). */
static bool write_efer(struct cpu *cpu, uint32_t index, uint64_t v)
{
	uint64_t changed;

	if (v & ~cpu_efer_allowed(cpu->vm->model))
		return false;
	if (v & EFER_NXE && cpu->misc_enable & MISC_ENABLE_NO_XD)
		return false;
	v = (v & ~EFER_LMA) | (cpu->efer & EFER_LMA);
	changed = v ^ cpu->efer;
	if (changed & EFER_LME && cpu->cr0 & CR0_PG)
		return false;
	cpu->efer = v;
	if (changed & EFER_NXE)
		tlb_flush_all(cpu);
	cpu_mode_update(cpu);
	return true;
}

/* --- memory types ---------------------------------------------------------------------------- */

/* Uncacheable 0, write combining 1, write through 4, write protected 5, write back 6. */
static bool memory_type_known(unsigned type)
{
	return type < 8 && 0x73 >> type & 1;
}

/* Each byte a type; PAT also knows 7, UC-. */
static bool types_known(uint64_t v, bool pat)
{
	for (unsigned i = 0; i < 8; i++, v >>= 8)
		if (!memory_type_known(v & 0xff) && !(pat && (v & 0xff) == 7))
			return false;
	return true;
}

static bool write_pat(struct cpu *cpu, uint32_t index, uint64_t v)
{
	if (!types_known(v, true))
		return false;
	cpu->pat = v;
	return true;
}

static bool write_mtrr_def_type(struct cpu *cpu, uint32_t index, uint64_t v)
{
	if (v & ~0xcffull || !memory_type_known(v & 0xff))
		return false;
	cpu->mtrr_def_type = v;
	return true;
}

static bool write_mtrr_var(struct cpu *cpu, uint32_t index, uint64_t v)
{
	uint64_t reserved = ~(BIT(cpu->vm->model->phys_bits) - 1);
	bool mask = index & 1;

	reserved |= mask ? 0x7ff : 0xf00;
	if (v & reserved || (!mask && !memory_type_known(v & 0xff)))
		return false;
	cpu->mtrr_var[index - MSR_MTRR_PHYSBASE0] = v;
	return true;
}

static unsigned mtrr_fixed_index(uint32_t index)
{
	switch (index) {
	case 0x250: /* 64 KiB pieces */
		return 0;
	case 0x258: /* 16 KiB pieces */
	case 0x259:
		return index - 0x258 + 1;
	default: /* 0x268.., 4 KiB pieces */
		return index - 0x268 + 3;
	}
}

static uint64_t read_mtrr_fixed(struct cpu *cpu, uint32_t index)
{
	return cpu->mtrr_fixed[mtrr_fixed_index(index)];
}

static bool write_mtrr_fixed(struct cpu *cpu, uint32_t index, uint64_t v)
{
	if (!types_known(v, false))
		return false;
	cpu->mtrr_fixed[mtrr_fixed_index(index)] = v;
	return true;
}

/* --- others ---------------------------------------------------------------------------------- */

/* Read-only facts and features we do not have (SDM 4, IA32_MISC_ENABLE) cannot change.  Two bits
 * hide things from CPUID: system.c.  MWAIT may be enabled, but CPUID does not have it.  Intel's
 * register, but hypervisors give it to guests on any CPU. */
static bool write_misc_enable(struct cpu *cpu, uint32_t index, uint64_t v)
{
	const uint64_t changeable = BIT(0) | BIT(3) | BIT(16) | BIT(23) | MISC_ENABLE_MWAIT |
				    MISC_ENABLE_LIMIT_CPUID | MISC_ENABLE_NO_XD;

	if ((v ^ cpu->misc_enable) & ~changeable)
		return false;
	cpu->misc_enable = v;
	return true;
}

/* The revision is in the upper half on Intel, in the lower on AMD (there "PATCH_LEVEL"). */
static uint64_t read_microcode(struct cpu *cpu, uint32_t index)
{
	return cpu_model_is_amd(cpu->vm->model) ? 0x01000065 : BIT(32);
}

/* Flaws we do not have: RDCL, L1D flush, SSB, MDS, page-size change, TAA, MMIO stale data, BHI,
 * PBRSB, GDS, RFDS, ITS; and IBRS_ALL. */
#define ARCH_CAPABILITIES                                                                          \
	(BIT(0) | BIT(1) | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(8) | BIT(13) | BIT(14) |        \
	 BIT(15) | BIT(20) | BIT(24) | BIT(26) | BIT(27) | BIT(62))

#define FIELD(name)          .field = CPU_OFF(name), .feature = NO_FEATURE
#define FIELD_IF(name, feat) .field = CPU_OFF(name), .feature = CPU_FEAT_##feat
#define FIXED(v, f)          .value = (v), .flags = (f), .feature = NO_FEATURE
#define HIGH_HALF            0xffffffff00000000ull

// clang-format off
static const struct msr msrs[] = {
	{0x00, 0x01, FIXED(0, MSR_IGNORE)}, /* P5_MC_ADDR, P5_MC_TYPE */
	{MSR_TSC, MSR_TSC, .feature = CPU_FEAT_TSC, .read = read_tsc, .write = write_tsc},
	{0x17, 0x17, FIXED(0, MSR_READ_ONLY | MSR_INTEL)}, /* PLATFORM_ID */
	{MSR_TSC_ADJUST, MSR_TSC_ADJUST, FIELD_IF(tsc_adjust, TSC_ADJUST), .write = write_tsc_adjust},
	{MSR_SPEC_CTRL, MSR_SPEC_CTRL, FIELD_IF(spec_ctrl, SPEC_CTRL), .reserved = ~7ull},
	{MSR_PRED_CMD, MSR_PRED_CMD, .feature = CPU_FEAT_SPEC_CTRL, .flags = MSR_NO_READ | MSR_IGNORE,
	 .reserved = ~1ull},
	{MSR_BIOS_SIGN_ID, MSR_BIOS_SIGN_ID, FIXED(0, MSR_IGNORE), .read = read_microcode},
	{0xce, 0xce, FIXED(0, MSR_READ_ONLY | MSR_INTEL)}, /* PLATFORM_INFO */
	{MSR_MTRRCAP, MSR_MTRRCAP, .value = 8 | BIT(8) | BIT(10), .flags = MSR_READ_ONLY,
	 .feature = CPU_FEAT_MTRR}, /* 8 variable ranges, fixed ranges, write combining */
	{MSR_ARCH_CAPABILITIES, MSR_ARCH_CAPABILITIES, .value = ARCH_CAPABILITIES,
	 .flags = MSR_READ_ONLY, .feature = CPU_FEAT_ARCH_CAPABILITIES},
	{MSR_SYSENTER_CS, MSR_SYSENTER_CS, FIELD_IF(sysenter_cs, SEP)},
	{MSR_SYSENTER_ESP, MSR_SYSENTER_ESP, FIELD_IF(sysenter_esp, SEP), .flags = MSR_CANONICAL},
	{MSR_SYSENTER_EIP, MSR_SYSENTER_EIP, FIELD_IF(sysenter_eip, SEP), .flags = MSR_CANONICAL},
	{MSR_MCG_CAP, MSR_MCG_CAP, FIXED(0, MSR_READ_ONLY)}, /* no bank reports errors */
	{MSR_MCG_STATUS, MSR_MCG_STATUS, FIXED(0, MSR_IGNORE), .reserved = ~0ull},
	{MSR_MISC_ENABLE, MSR_MISC_ENABLE, FIELD(misc_enable), .write = write_misc_enable},
	{0x1d9, 0x1d9, FIXED(0, MSR_IGNORE), .reserved = ~0ull}, /* DEBUGCTL: no branch records */
	{MSR_MTRR_PHYSBASE0, MSR_MTRR_PHYSBASE0 + 15, FIELD_IF(mtrr_var, MTRR),
	 .write = write_mtrr_var},
	{0x250, 0x250, .feature = CPU_FEAT_MTRR, .read = read_mtrr_fixed, .write = write_mtrr_fixed},
	{0x258, 0x259, .feature = CPU_FEAT_MTRR, .read = read_mtrr_fixed, .write = write_mtrr_fixed},
	{0x268, 0x26f, .feature = CPU_FEAT_MTRR, .read = read_mtrr_fixed, .write = write_mtrr_fixed},
	{MSR_PAT, MSR_PAT, FIELD_IF(pat, PAT), .write = write_pat},
	{MSR_MTRR_DEF_TYPE, MSR_MTRR_DEF_TYPE, FIELD_IF(mtrr_def_type, MTRR),
	 .write = write_mtrr_def_type},
	{MSR_XSS, MSR_XSS, FIELD_IF(xss, XSAVES), .reserved = ~0ull}, /* no supervisor states */
	{MSR_EFER, MSR_EFER, FIELD(efer), .write = write_efer},
	{MSR_STAR, MSR_STAR, FIELD_IF(star, SYSCALL)},
	{MSR_LSTAR, MSR_LSTAR, FIELD_IF(lstar, LM), .flags = MSR_CANONICAL},
	{MSR_CSTAR, MSR_CSTAR, FIELD_IF(cstar, LM), .flags = MSR_CANONICAL},
	{MSR_SFMASK, MSR_SFMASK, FIELD_IF(sfmask, LM), .reserved = HIGH_HALF},
	{MSR_FS_BASE, MSR_FS_BASE, FIELD_IF(seg[X86_FS].base, LM), .flags = MSR_CANONICAL},
	{MSR_GS_BASE, MSR_GS_BASE, FIELD_IF(seg[X86_GS].base, LM), .flags = MSR_CANONICAL},
	{MSR_KERNEL_GS_BASE, MSR_KERNEL_GS_BASE, FIELD_IF(kernel_gs_base, LM), .flags = MSR_CANONICAL},
	{MSR_TSC_AUX, MSR_TSC_AUX, FIELD_IF(tsc_aux, RDTSCP), .write = write_tsc_aux},
	/* AMD */
	{0xc0010000, 0xc0010007, FIXED(0, MSR_IGNORE | MSR_AMD)}, /* PerfEvtSel, PerfCtr: none count */
	{0xc0010010, 0xc0010010, FIXED(0, MSR_IGNORE | MSR_AMD)}, /* SYSCFG */
	{0xc0010015, 0xc0010015, FIXED(BIT(24), MSR_IGNORE | MSR_AMD)}, /* HWCR: TSC at P0 rate */
	{0xc001001a, 0xc001001a, FIXED(0, MSR_IGNORE | MSR_AMD)}, /* TOP_MEM */
	{0xc001001d, 0xc001001d, FIXED(0, MSR_IGNORE | MSR_AMD)}, /* TOP_MEM2 */
	{0xc001001f, 0xc001001f, FIXED(0, MSR_IGNORE | MSR_AMD)}, /* NB_CFG */
	{0xc0010055, 0xc0010055, FIXED(0, MSR_IGNORE | MSR_AMD)}, /* INT_PENDING: no C1E */
	{0xc0010058, 0xc0010058, FIXED(0, MSR_IGNORE | MSR_AMD)}, /* MMIO_CFG_BASE */
	{0xc0010112, 0xc0010113, FIXED(0, MSR_READ_ONLY | MSR_AMD)}, /* SMM base and mask */
	{0xc0011020, 0xc0011023, FIXED(0, MSR_IGNORE | MSR_AMD)}, /* LS, IC, DC, TW _CFG */
	{0xc0011029, 0xc0011029, FIXED(BIT(1), MSR_IGNORE | MSR_AMD)}, /* DE_CFG: LFENCE serializes */
	{0xc001102a, 0xc001102a, FIXED(0, MSR_IGNORE | MSR_AMD)}, /* BU_CFG2 */
};
// clang-format on

static const struct msr *msr_find(const struct cpu *cpu, uint32_t index)
{
	bool amd = cpu_model_is_amd(cpu->vm->model);

	for (size_t i = 0; i < ARRAY_SIZE(msrs); i++) {
		const struct msr *m = &msrs[i];

		if (index < m->first || index > m->last)
			continue;
		return m->flags & (amd ? MSR_INTEL : MSR_AMD) ? NULL : m;
	}
	return NULL;
}

static bool msr_exists(const struct cpu *cpu, const struct msr *m)
{
	return m->feature == NO_FEATURE || cpu_has(cpu->vm->model, m->feature);
}

static uint64_t *msr_field(struct cpu *cpu, const struct msr *m, uint32_t index)
{
	return &CPU_REG(cpu, m->field + (index - m->first) * 8, uint64_t);
}

bool msr_read(struct cpu *cpu, uint32_t index, uint64_t *v)
{
	const struct msr *m = msr_find(cpu, index);

	if (!m) {
		vec_release(cpu);
		return cpu->ops->msr_read(cpu->opaque, index, v);
	}
	if (!msr_exists(cpu, m) || m->flags & MSR_NO_READ)
		return false;
	*v = m->read ? m->read(cpu, index) : m->field ? *msr_field(cpu, m, index) : m->value;
	return true;
}

bool msr_write(struct cpu *cpu, uint32_t index, uint64_t v)
{
	const struct msr *m = msr_find(cpu, index);

	if (!m) {
		vec_release(cpu);
		return cpu->ops->msr_write(cpu->opaque, index, v);
	}
	if (!msr_exists(cpu, m) || m->flags & MSR_READ_ONLY || v & m->reserved)
		return false;
	if (m->flags & MSR_CANONICAL && !cpu_canonical_base(cpu, v))
		return false;
	if (m->write)
		return m->write(cpu, index, v);
	if (!(m->flags & MSR_IGNORE))
		*msr_field(cpu, m, index) = v;
	return true;
}

static void check_cpl0(struct cpu *cpu)
{
	if (cpu->cpl)
		fault_gp(cpu, 0);
}

void exec_rdmsr(struct cpu *cpu, const struct insn *in)
{
	uint64_t v = 0;

	check_cpl0(cpu);
	if (!msr_read(cpu, (uint32_t)cpu->gpr[X86_RCX], &v))
		fault_gp(cpu, 0);
	cpu->gpr[X86_RAX] = (uint32_t)v;
	cpu->gpr[X86_RDX] = v >> 32;
}

void exec_wrmsr(struct cpu *cpu, const struct insn *in)
{
	uint64_t v = cpu->gpr[X86_RDX] << 32 | (uint32_t)cpu->gpr[X86_RAX];

	check_cpl0(cpu);
	if (!msr_write(cpu, (uint32_t)cpu->gpr[X86_RCX], v))
		fault_gp(cpu, 0);
}
