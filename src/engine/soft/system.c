/* engine/soft/system.c - the instructions that operate the CPU itself.
 *
 * Control and debug registers, descriptor-table registers, TLB invalidation, HLT, CPUID, the time
 * stamp counter, protection keys, FS and GS bases, calls to a hypervisor.
 *
 * Each handler checks in the order the manuals give: #UD for what does not exist here, #GP for
 * privilege, then the operands; nothing is changed before the last check.
 * SDM 2 (the instruction's own page), SDM 3A "Control Registers"; AMD APM 3. */
#include "engine/soft/system.h"
#include "engine/soft/access.h"
#include "engine/soft/debug.h"
#include "engine/soft/insn_exec.gen.h"
#include "engine/soft/vec.h"

static void need_cpl0(struct cpu *cpu)
{
	if (cpu->cpl)
		fault_gp(cpu, 0);
}

static uint64_t *gpr_rm(struct cpu *cpu, const struct insn *in)
{
	return &CPU_REG(cpu, in->rm, uint64_t);
}

/* MOV to and from CR, DR: 64 bits in 64-bit mode, else 32. */
static uint64_t wide_operand(const struct cpu *cpu, uint64_t v)
{
	return cpu->mode == INSN_MODE_64 ? v : (uint32_t)v;
}

static bool pae_paging(uint64_t cr0, uint64_t cr4, uint64_t efer)
{
	return cr0 & CR0_PG && cr4 & CR4_PAE && !(efer & EFER_LMA);
}

/* --- CR0 ------------------------------------------------------------------------------------- */

enum { CR0_KNOWN = CR0_PE | CR0_MP | CR0_EM | CR0_TS | CR0_NE | CR0_WP | CR0_AM };
#define CR0_CACHE (CR0_NW | CR0_CD)

/* SDM 2B "MOV - Move to/from Control Registers", protected mode exceptions. */
static bool cr0_allowed(const struct cpu *cpu, uint64_t v)
{
	bool turns_on = v & CR0_PG && !(cpu->cr0 & CR0_PG);
	bool turns_off = !(v & CR0_PG) && cpu->cr0 & CR0_PG;
	bool cs_long = cpu->seg[X86_CS].attr & X86_SEG_L;

	if (v >> 32 || (v & CR0_PG && !(v & CR0_PE)) || (v & CR0_NW && !(v & CR0_CD)))
		return false;
	if (turns_on && cpu->efer & EFER_LME && (!(cpu->cr4 & CR4_PAE) || cs_long))
		return false;
	return !(turns_off && (cpu->cr4 & CR4_PCIDE || cpu->mode == INSN_MODE_64));
}

void cpu_write_cr0(struct cpu *cpu, uint64_t v)
{
	uint64_t changed, efer = cpu->efer & ~EFER_LMA;

	if (!cr0_allowed(cpu, v))
		fault_gp(cpu, 0);
	v = (v & (CR0_KNOWN | CR0_CACHE | CR0_PG)) | CR0_ET;
	changed = v ^ cpu->cr0;
	if (v & CR0_PG && efer & EFER_LME)
		efer |= EFER_LMA;
	if (changed & (CR0_PG | CR0_CACHE) && pae_paging(v, cpu->cr4, efer) &&
	    !mmu_load_pdptes(cpu, cpu->cr3))
		fault_gp(cpu, 0);
	cpu->cr0 = v;
	cpu->efer = efer;
	if (changed & (CR0_PG | CR0_PE))
		tlb_flush_all(cpu);
	else if (changed & v & CR0_WP)
		tlb_flush_writes(cpu); /* some were allowed by WP = 0 */
	cpu_mode_update(cpu);
	vec_update(cpu);
}

/* --- CR3 ------------------------------------------------------------------------------------- */

void cpu_write_cr3(struct cpu *cpu, uint64_t v)
{
	bool pcide = cpu->cr4 & CR4_PCIDE, keep = pcide && v & BIT(63);
	uint64_t reserved = ~(BIT(cpu->vm->model->phys_bits) - 1);

	if (pcide)
		v &= ~BIT(63);
	if (cpu->long_mode ? (v & reserved) != 0 : v >> 32 != 0)
		fault_gp(cpu, 0);
	if (pae_paging(cpu->cr0, cpu->cr4, cpu->efer) && !mmu_load_pdptes(cpu, v))
		fault_gp(cpu, 0);
	cpu->cr3 = v;
	tlb_switch(cpu, keep);
}

/* --- CR4 ------------------------------------------------------------------------------------- */

uint64_t cpu_cr4_allowed(const struct cpu_model *m)
{
	// clang-format off
	static const struct { uint32_t bits, feature; } needs[] = {
		{CR4_VME | CR4_PVI, CPU_FEAT_VME}, {CR4_TSD, CPU_FEAT_TSC},
		{CR4_DE, CPU_FEAT_DE},             {CR4_PSE, CPU_FEAT_PSE},
		{CR4_PAE, CPU_FEAT_PAE},           {CR4_MCE, CPU_FEAT_MCE},
		{CR4_PGE, CPU_FEAT_PGE},           {CR4_OSFXSR, CPU_FEAT_FXSR},
		{CR4_OSXMMEXCPT, CPU_FEAT_SSE},    {CR4_UMIP, CPU_FEAT_UMIP},
		{CR4_LA57, CPU_FEAT_LA57},         {CR4_FSGSBASE, CPU_FEAT_FSGSBASE},
		{CR4_PCIDE, CPU_FEAT_PCID},        {CR4_OSXSAVE, CPU_FEAT_XSAVE},
		{CR4_SMEP, CPU_FEAT_SMEP},         {CR4_SMAP, CPU_FEAT_SMAP},
		{CR4_PKE, CPU_FEAT_PKU},
	};
	// clang-format on
	uint64_t allowed = CR4_PCE;

	for (size_t i = 0; i < ARRAY_SIZE(needs); i++)
		if (cpu_has(m, needs[i].feature))
			allowed |= needs[i].bits;
	return allowed;
}

static bool cr4_allowed(const struct cpu *cpu, uint64_t v)
{
	uint64_t changed = v ^ cpu->cr4;

	if (v & ~cpu_cr4_allowed(cpu->vm->model))
		return false;
	if (cpu->long_mode && (!(v & CR4_PAE) || changed & CR4_LA57))
		return false;
	/* SDM 3A "Process-Context Identifiers": only in IA-32e mode, and with PCID 0. */
	return !(changed & v & CR4_PCIDE && (!cpu->long_mode || cpu->cr3 & 0xfff));
}

void cpu_write_cr4(struct cpu *cpu, uint64_t v)
{
	const uint64_t pdpte_bits = CR4_PAE | CR4_PGE | CR4_PSE | CR4_SMEP;
	const uint64_t tlb_bits = pdpte_bits | CR4_PCIDE | CR4_PKE | CR4_LA57;
	uint64_t changed = v ^ cpu->cr4;

	if (!cr4_allowed(cpu, v))
		fault_gp(cpu, 0);
	if (changed & pdpte_bits && pae_paging(cpu->cr0, v, cpu->efer) &&
	    !mmu_load_pdptes(cpu, cpu->cr3))
		fault_gp(cpu, 0);
	cpu->cr4 = v;
	if (changed & tlb_bits)
		tlb_flush_all(cpu);
	if (changed & CR4_PCIDE)
		tlb_switch(cpu, false); /* what a slot stands for has another form now */
	cpu_mode_update(cpu);
	vec_update(cpu);
	if (changed & CR4_DE)
		debug_update(cpu);
}

/* --- MOV CRn --------------------------------------------------------------------------------- */

static uint64_t read_cr(struct cpu *cpu, unsigned n)
{
	switch (n) {
	case 0:
		return cpu->cr0;
	case 2:
		return cpu->cr2;
	case 3:
		return cpu->cr3;
	case 4:
		return cpu->cr4;
	default:
		vec_release(cpu);
		return cpu->ops->cr8_read(cpu->opaque);
	}
}

static void check_cr(struct cpu *cpu, unsigned n)
{
	if (n != 0 && n != 2 && n != 3 && n != 4 && n != 8)
		fault_ud(cpu);
	need_cpl0(cpu);
}

void exec_mov_RC(struct cpu *cpu, const struct insn *in)
{
	check_cr(cpu, in->vreg);
	*gpr_rm(cpu, in) = wide_operand(cpu, read_cr(cpu, in->vreg));
}

void exec_mov_CR(struct cpu *cpu, const struct insn *in)
{
	uint64_t v = wide_operand(cpu, *gpr_rm(cpu, in));

	check_cr(cpu, in->vreg);
	switch (in->vreg) {
	case 0:
		cpu_write_cr0(cpu, v);
		break;
	case 2:
		cpu->cr2 = v;
		break;
	case 3:
		cpu_write_cr3(cpu, v);
		break;
	case 4:
		cpu_write_cr4(cpu, v);
		break;
	default:
		if (v > 15)
			fault_gp(cpu, 0);
		vec_release(cpu);
		cpu->ops->cr8_write(cpu->opaque, (uint8_t)v);
		break;
	}
}

void exec_clts(struct cpu *cpu, const struct insn *in)
{
	need_cpl0(cpu);
	cpu->cr0 &= ~CR0_TS;
	vec_update(cpu);
}

/* User-mode instruction prevention: SGDT, SIDT, SLDT, SMSW and STR (SDM 3A, CR4.UMIP). */
static void check_umip(struct cpu *cpu)
{
	if (cpu->cpl && cpu->cr4 & CR4_UMIP)
		fault_gp(cpu, 0);
}

void exec_smsw_E_r(struct cpu *cpu, const struct insn *in)
{
	check_umip(cpu);
	if (in->opsize == 2)
		CPU_REG(cpu, in->rm, uint16_t) = (uint16_t)cpu->cr0;
	else
		*gpr_rm(cpu, in) = cpu->cr0;
}

void exec_smsw_E_m(struct cpu *cpu, const struct insn *in)
{
	check_umip(cpu);
	st16(cpu, insn_linear(cpu, in, 2, true), (uint16_t)cpu->cr0);
}

/* Loads PE, MP, EM and TS; PE can be set but not cleared. */
static void load_msw(struct cpu *cpu, uint16_t v)
{
	const uint64_t loaded = CR0_PE | CR0_MP | CR0_EM | CR0_TS;

	cpu_write_cr0(cpu, (cpu->cr0 & ~loaded) | (v & loaded) | (cpu->cr0 & CR0_PE));
}

void exec_lmsw_E_r(struct cpu *cpu, const struct insn *in)
{
	need_cpl0(cpu);
	load_msw(cpu, CPU_REG(cpu, in->rm, uint16_t));
}

void exec_lmsw_E_m(struct cpu *cpu, const struct insn *in)
{
	need_cpl0(cpu);
	load_msw(cpu, ld16(cpu, insn_linear(cpu, in, 2, false)));
}

/* --- MOV DRn --------------------------------------------------------------------------------- */

/* DR4 and DR5 are other names of DR6 and DR7 unless CR4.DE is set. */
static unsigned check_dr(struct cpu *cpu, unsigned n)
{
	if (n > 7 || ((n == 4 || n == 5) && cpu->cr4 & CR4_DE))
		fault_ud(cpu);
	need_cpl0(cpu);
	debug_check_gd(cpu);
	return n == 4 || n == 5 ? n + 2 : n;
}

void exec_mov_RD(struct cpu *cpu, const struct insn *in)
{
	unsigned n = check_dr(cpu, in->vreg);
	uint64_t v = n == 6 ? cpu->dr6 : n == 7 ? cpu->dr7 : cpu->dr[n & 3];

	*gpr_rm(cpu, in) = wide_operand(cpu, v);
}

void exec_mov_DR(struct cpu *cpu, const struct insn *in)
{
	unsigned n = check_dr(cpu, in->vreg);
	uint64_t v = wide_operand(cpu, *gpr_rm(cpu, in));

	if (n >= 6 && v >> 32)
		fault_gp(cpu, 0);
	if (n == 6)
		cpu->dr6 = (v & DR6_WRITABLE) | DR6_FIXED;
	else if (n == 7)
		cpu->dr7 = (v & DR7_WRITABLE) | DR7_FIXED;
	else
		cpu->dr[n] = v;
	if (n != 6) {
		debug_update(cpu);
		cpu_mode_update(cpu); /* breakpoints on code are part of mode_key */
	}
}

/* --- descriptor-table registers -------------------------------------------------------------- */

/* The operand's second field, wrapped as addresses of the mode are. */
static gva_t base_field(const struct cpu *cpu, gva_t lin)
{
	return cpu->mode == INSN_MODE_64 ? lin + 2 : (uint32_t)(lin + 2);
}

static void store_table(struct cpu *cpu, const struct insn *in, const struct x86_table *t)
{
	bool wide = cpu->mode == INSN_MODE_64;
	gva_t lin;

	check_umip(cpu);
	lin = insn_linear(cpu, in, wide ? 10 : 6, true);
	probe_write(cpu, lin, wide ? 10 : 6);
	st16(cpu, lin, t->limit);
	if (wide)
		st64(cpu, base_field(cpu, lin), t->base);
	else
		st32(cpu, base_field(cpu, lin), (uint32_t)t->base);
}

static void load_table(struct cpu *cpu, const struct insn *in, struct x86_table *t)
{
	bool wide = cpu->mode == INSN_MODE_64;
	struct x86_table v;
	gva_t lin;

	need_cpl0(cpu);
	lin = insn_linear(cpu, in, wide ? 10 : 6, false);
	v.limit = ld16(cpu, lin);
	v.base = wide ? ld64(cpu, base_field(cpu, lin)) : ld32(cpu, base_field(cpu, lin));
	if (wide && !cpu_canonical_base(cpu, v.base))
		fault_gp(cpu, 0);
	if (!wide && in->opsize == 2)
		v.base &= 0xffffff;
	*t = v;
}

void exec_sgdt(struct cpu *cpu, const struct insn *in)
{
	store_table(cpu, in, &cpu->gdtr);
}

void exec_sidt(struct cpu *cpu, const struct insn *in)
{
	store_table(cpu, in, &cpu->idtr);
}

void exec_lgdt(struct cpu *cpu, const struct insn *in)
{
	load_table(cpu, in, &cpu->gdtr);
}

void exec_lidt(struct cpu *cpu, const struct insn *in)
{
	load_table(cpu, in, &cpu->idtr);
}

/* --- TLB and caches -------------------------------------------------------------------------- */

/* The address is not accessed: no limit check, and a non-canonical one does nothing. */
void exec_invlpg(struct cpu *cpu, const struct insn *in)
{
	gva_t lin;

	need_cpl0(cpu);
	lin = insn_ea(cpu, in) + CPU_REG(cpu, in->segbase, const uint64_t);
	if (cpu->mode != INSN_MODE_64)
		lin = (uint32_t)lin;
	tlb_flush_page(cpu, lin);
}

/* SDM 2A "INVPCID", the list of #GP causes. */
static bool invpcid_allowed(const struct cpu *cpu, uint64_t type, uint64_t pcid, gva_t lin)
{
	if (type > INVPCID_ALL_NONGLOBAL || pcid >> 12)
		return false;
	if (type == INVPCID_PAGE && !cpu_canonical_base(cpu, lin))
		return false;
	return type > INVPCID_CONTEXT || !pcid || cpu->cr4 & CR4_PCIDE;
}

void exec_invpcid(struct cpu *cpu, const struct insn *in)
{
	uint64_t type = wide_operand(cpu, CPU_REG(cpu, in->reg, uint64_t)), desc[2];

	need_cpl0(cpu);
	ld_bytes(cpu, insn_linear(cpu, in, 16, false), desc, 16);
	if (!invpcid_allowed(cpu, type, desc[0], desc[1]))
		fault_gp(cpu, 0);
	tlb_invpcid(cpu, (unsigned)type, (uint16_t)desc[0], desc[1]);
}

/* Caches are coherent and cannot be emptied from here: privilege is all there is to check. */
void exec_invd(struct cpu *cpu, const struct insn *in)
{
	need_cpl0(cpu);
}

void exec_wbinvd(struct cpu *cpu, const struct insn *in)
{
	need_cpl0(cpu);
}

void exec_wbnoinvd(struct cpu *cpu, const struct insn *in)
{
	need_cpl0(cpu);
}

/* --- HLT, CPUID ------------------------------------------------------------------------------ */

void exec_hlt(struct cpu *cpu, const struct insn *in)
{
	need_cpl0(cpu);
	cpu->halted = true;
}

/* The bits that follow this CPU's own state. */
static void cpuid_dynamic(const struct cpu *cpu, uint32_t leaf, uint32_t sub, uint32_t r[4])
{
	const uint32_t osxsave = (uint32_t)BIT(27), ospke = (uint32_t)BIT(4);

	if (leaf == 1)
		r[2] = (r[2] & ~osxsave) | (cpu->cr4 & CR4_OSXSAVE ? osxsave : 0);
	else if (leaf == 7 && sub == 0)
		r[2] = (r[2] & ~ospke) | (cpu->cr4 & CR4_PKE ? ospke : 0);
	else if (leaf == 0xd && sub == 0 && r[1])
		r[1] = cpu_xsave_size(cpu->xcr0);
	else if (leaf == 0xd && sub == 1 && r[1])
		r[1] = cpu_xsave_compacted_size(cpu->xcr0 | cpu->xss);
	else if (leaf == 0 && cpu->misc_enable & MISC_ENABLE_LIMIT_CPUID)
		r[0] = MIN(r[0], 3u);
	else if (leaf == 0x80000001 && cpu->misc_enable & MISC_ENABLE_NO_XD)
		r[3] &= ~(uint32_t)BIT(20);
}

void cpu_cpuid(struct cpu *cpu, uint32_t leaf, uint32_t sub, uint32_t r[4])
{
	vec_release(cpu);
	cpu_model_cpuid(cpu->vm->model, leaf, sub, r);
	cpu->ops->cpuid(cpu->opaque, leaf, sub, r);
	cpuid_dynamic(cpu, leaf, sub, r);
}

void exec_cpuid(struct cpu *cpu, const struct insn *in)
{
	uint32_t r[4];

	cpu_cpuid(cpu, (uint32_t)cpu->gpr[X86_RAX], (uint32_t)cpu->gpr[X86_RCX], r);
	cpu->gpr[X86_RAX] = r[0];
	cpu->gpr[X86_RBX] = r[1];
	cpu->gpr[X86_RCX] = r[2];
	cpu->gpr[X86_RDX] = r[3];
}

void exec_serialize(struct cpu *cpu, const struct insn *in)
{
	/* Between two blocks everything is serialized. */
}

/* --- time stamp and performance counters ----------------------------------------------------- */

uint64_t cpu_read_tsc(const struct cpu *cpu)
{
	return __builtin_ia32_rdtsc() + cpu->tsc_offset;
}

static void put_edx_eax(struct cpu *cpu, uint64_t v)
{
	cpu->gpr[X86_RAX] = (uint32_t)v;
	cpu->gpr[X86_RDX] = v >> 32;
}

static void check_tsd(struct cpu *cpu)
{
	if (cpu->cpl && cpu->cr4 & CR4_TSD)
		fault_gp(cpu, 0);
}

void exec_rdtsc(struct cpu *cpu, const struct insn *in)
{
	check_tsd(cpu);
	put_edx_eax(cpu, cpu_read_tsc(cpu));
}

void exec_rdtscp(struct cpu *cpu, const struct insn *in)
{
	check_tsd(cpu);
	put_edx_eax(cpu, cpu_read_tsc(cpu));
	cpu->gpr[X86_RCX] = (uint32_t)cpu->tsc_aux;
}

void exec_rdpid(struct cpu *cpu, const struct insn *in)
{
	*gpr_rm(cpu, in) = (uint32_t)cpu->tsc_aux;
}

/* AMD has four counters that no CPUID bit announces; here they never count.  Intel announces them
 * in leaf 0xA, which says there are none. */
void exec_rdpmc(struct cpu *cpu, const struct insn *in)
{
	if (cpu->cpl && !(cpu->cr4 & CR4_PCE))
		fault_gp(cpu, 0);
	if (!cpu_model_is_amd(cpu->vm->model) || (uint32_t)cpu->gpr[X86_RCX] > 3)
		fault_gp(cpu, 0);
	put_edx_eax(cpu, 0);
}

/* --- protection keys, AC --------------------------------------------------------------------- */

static void check_pkru(struct cpu *cpu)
{
	if (!(cpu->cr4 & CR4_PKE))
		fault_ud(cpu);
	if ((uint32_t)cpu->gpr[X86_RCX])
		fault_gp(cpu, 0);
}

void exec_rdpkru(struct cpu *cpu, const struct insn *in)
{
	check_pkru(cpu);
	put_edx_eax(cpu, cpu->pkru);
}

void exec_wrpkru(struct cpu *cpu, const struct insn *in)
{
	check_pkru(cpu);
	if ((uint32_t)cpu->gpr[X86_RDX])
		fault_gp(cpu, 0);
	cpu_set_pkru(cpu, (uint32_t)cpu->gpr[X86_RAX]);
}

static void set_ac(struct cpu *cpu, bool on)
{
	if (cpu->cpl)
		fault_ud(cpu);
	cpu->rflags = on ? cpu->rflags | RFLAGS_AC : cpu->rflags & ~RFLAGS_AC;
	tlb_pick(cpu);
}

void exec_clac(struct cpu *cpu, const struct insn *in)
{
	set_ac(cpu, false);
}

void exec_stac(struct cpu *cpu, const struct insn *in)
{
	set_ac(cpu, true);
}

/* --- FS and GS bases ------------------------------------------------------------------------- */

static void check_fsgsbase(struct cpu *cpu)
{
	if (!(cpu->cr4 & CR4_FSGSBASE))
		fault_ud(cpu);
}

static void write_base(struct cpu *cpu, unsigned seg, uint64_t v)
{
	/* AMD's processors go by the width in use (seen on Zen 5). */
	bool amd = cpu_model_is_amd(cpu->vm->model);

	check_fsgsbase(cpu);
	if (amd ? !cpu_canonical(cpu, v, 1) : !cpu_canonical_base(cpu, v))
		fault_gp(cpu, 0);
	cpu->seg[seg].base = v;
}

#define FSGSBASE_FUNCTIONS(name, seg_)                                                             \
	void exec_rd##name##_32(struct cpu *cpu, const struct insn *in)                            \
	{                                                                                          \
		check_fsgsbase(cpu);                                                               \
		*gpr_rm(cpu, in) = (uint32_t)cpu->seg[seg_].base;                                  \
	}                                                                                          \
	void exec_rd##name##_64(struct cpu *cpu, const struct insn *in)                            \
	{                                                                                          \
		check_fsgsbase(cpu);                                                               \
		*gpr_rm(cpu, in) = cpu->seg[seg_].base;                                            \
	}                                                                                          \
	void exec_wr##name##_32(struct cpu *cpu, const struct insn *in)                            \
	{                                                                                          \
		write_base(cpu, seg_, (uint32_t)*gpr_rm(cpu, in));                                 \
	}                                                                                          \
	void exec_wr##name##_64(struct cpu *cpu, const struct insn *in)                            \
	{                                                                                          \
		write_base(cpu, seg_, *gpr_rm(cpu, in));                                           \
	}

FSGSBASE_FUNCTIONS(fsbase, X86_FS)
FSGSBASE_FUNCTIONS(gsbase, X86_GS)

/* --- hypervisor calls ------------------------------------------------------------------------ */

static void hypercall(struct cpu *cpu)
{
	vec_release(cpu);
	if (cpu->cpl || !cpu->ops->hypercall ||
	    !cpu->ops->hypercall(cpu->opaque, (struct engine_cpu *)cpu, cpu->gpr))
		fault_ud(cpu);
}

void exec_vmcall(struct cpu *cpu, const struct insn *in)
{
	hypercall(cpu);
}

void exec_vmmcall(struct cpu *cpu, const struct insn *in)
{
	hypercall(cpu);
}
