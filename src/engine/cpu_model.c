/* engine/cpu_model.c - see cpu_model.h.
 *
 * The answer to CPUID has three parts: feature bits come from cpu_features.def, the few numbers
 * that describe sizes (leaves 4, 0xD, 0x80000005 ...) are written here, and whatever depends on the
 * machine or on the state of one CPU (APIC ids, counts, OSXSAVE, OSPKE) is left 0 for the callers
 * named in engine.h to fill in. */
#include "engine/cpu_model_impl.h"

#include "base/error.h"
#include "engine/x86_defs.h"

#include <cpuid.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { CPU_F_BASE = 1 << 0, CPU_F_SELF = 1 << 1, CPU_F_INTEL = 1 << 2, CPU_F_AMD = 1 << 3 };
enum { EAX, EBX, ECX, EDX };

struct feature {
	const char *name;
	uint32_t leaf;
	uint8_t sub, reg, bit, flags;
};

static const struct feature features[CPU_NR_FEATURES] = {
#define X(id, name, leaf, sub, reg, bit, flags)                                                    \
	[CPU_FEAT_##id] = {name, leaf, sub, reg, bit, flags},
#include "engine/cpu_features.def"
#undef X
};

/* `feature` is of no use, and not offered, without `needs`. */
// clang-format off
static const struct dependency {
	uint16_t feature, needs;
} dependencies[] = {
	{CPU_FEAT_SSE, CPU_FEAT_FXSR},           {CPU_FEAT_SSE2, CPU_FEAT_SSE},
	{CPU_FEAT_SSE3, CPU_FEAT_SSE2},          {CPU_FEAT_SSSE3, CPU_FEAT_SSE3},
	{CPU_FEAT_SSE4_1, CPU_FEAT_SSSE3},       {CPU_FEAT_SSE4_2, CPU_FEAT_SSE4_1},
	{CPU_FEAT_SSE4A, CPU_FEAT_SSE3},         {CPU_FEAT_AES, CPU_FEAT_SSE2},
	{CPU_FEAT_PCLMULQDQ, CPU_FEAT_SSE2},     {CPU_FEAT_SHA_NI, CPU_FEAT_SSSE3},
	{CPU_FEAT_GFNI, CPU_FEAT_SSE2},          {CPU_FEAT_XSAVE, CPU_FEAT_FXSR},
	{CPU_FEAT_XSAVEOPT, CPU_FEAT_XSAVE},     {CPU_FEAT_XSAVEC, CPU_FEAT_XSAVE},
	{CPU_FEAT_XGETBV1, CPU_FEAT_XSAVE},      {CPU_FEAT_XSAVES, CPU_FEAT_XSAVEC},
	{CPU_FEAT_XSAVEERPTR, CPU_FEAT_XSAVE},   {CPU_FEAT_AVX, CPU_FEAT_XSAVE},
	{CPU_FEAT_AVX, CPU_FEAT_SSE4_2},         {CPU_FEAT_F16C, CPU_FEAT_AVX},
	{CPU_FEAT_FMA, CPU_FEAT_AVX},            {CPU_FEAT_AVX2, CPU_FEAT_AVX},
	{CPU_FEAT_VAES, CPU_FEAT_AVX},           {CPU_FEAT_VAES, CPU_FEAT_AES},
	{CPU_FEAT_VPCLMULQDQ, CPU_FEAT_AVX},     {CPU_FEAT_VPCLMULQDQ, CPU_FEAT_PCLMULQDQ},
	{CPU_FEAT_AVX_VNNI, CPU_FEAT_AVX2},      {CPU_FEAT_AVX_IFMA, CPU_FEAT_AVX2},
	{CPU_FEAT_AVX512F, CPU_FEAT_AVX2},       {CPU_FEAT_AVX512F, CPU_FEAT_FMA},
	{CPU_FEAT_AVX512F, CPU_FEAT_F16C},       {CPU_FEAT_AVX512DQ, CPU_FEAT_AVX512F},
	{CPU_FEAT_AVX512IFMA, CPU_FEAT_AVX512F}, {CPU_FEAT_AVX512CD, CPU_FEAT_AVX512F},
	{CPU_FEAT_AVX512BW, CPU_FEAT_AVX512F},   {CPU_FEAT_AVX512VL, CPU_FEAT_AVX512F},
	{CPU_FEAT_AVX512VBMI, CPU_FEAT_AVX512BW},
	{CPU_FEAT_AVX512_VBMI2, CPU_FEAT_AVX512BW},
	{CPU_FEAT_AVX512_VNNI, CPU_FEAT_AVX512F},
	{CPU_FEAT_AVX512_BITALG, CPU_FEAT_AVX512BW},
	{CPU_FEAT_AVX512_VPOPCNTDQ, CPU_FEAT_AVX512F},
	{CPU_FEAT_AVX512_BF16, CPU_FEAT_AVX512BW},
	{CPU_FEAT_AVX512_FP16, CPU_FEAT_AVX512BW},
	{CPU_FEAT_AVX512_VP2INTERSECT, CPU_FEAT_AVX512F},
	{CPU_FEAT_PSE36, CPU_FEAT_PSE},          {CPU_FEAT_NX, CPU_FEAT_PAE},
	{CPU_FEAT_LM, CPU_FEAT_PAE},             {CPU_FEAT_PDPE1GB, CPU_FEAT_LM},
	{CPU_FEAT_LA57, CPU_FEAT_LM},            {CPU_FEAT_PCID, CPU_FEAT_LM},
	{CPU_FEAT_INVPCID, CPU_FEAT_PCID},       {CPU_FEAT_X2APIC, CPU_FEAT_APIC},
	{CPU_FEAT_PKU, CPU_FEAT_LM},             {CPU_FEAT_FSGSBASE, CPU_FEAT_LM},
	{CPU_FEAT_TSC_DEADLINE_TIMER, CPU_FEAT_TSC},
	{CPU_FEAT_TSC_ADJUST, CPU_FEAT_TSC},     {CPU_FEAT_RDTSCP, CPU_FEAT_TSC},
	{CPU_FEAT_CLFLUSHOPT, CPU_FEAT_CLFLUSH},
};
// clang-format on

static const struct cpu_model_info models[] = {
	{"base", "x86-64-v2 and what every host of the last ten years has"},
	{"max", "all this host offers that is implemented, and all that needs no host"},
};

/* --- the host ----------------------------------------------------------------------------------
 */

static void host_cpuid_ask(uint32_t leaf, uint32_t sub, uint32_t r[4])
{
	memset(r, 0, 4 * sizeof(*r));
	if ((uint32_t)__get_cpuid_max(leaf & 0x80000000u, NULL) >= leaf)
		__cpuid_count(leaf, sub, r[EAX], r[EBX], r[ECX], r[EDX]);
}

/* Each feature asks again, and in a virtual machine each CPUID is a way out of it and back. */
static void host_cpuid(uint32_t leaf, uint32_t sub, uint32_t r[4])
{
	static _Thread_local struct {
		uint32_t leaf, sub, regs[4];
	} known[24];
	static _Thread_local unsigned nr_known;

	for (unsigned i = 0; i < nr_known; i++)
		if (known[i].leaf == leaf && known[i].sub == sub) {
			memcpy(r, known[i].regs, sizeof(known[i].regs));
			return;
		}
	host_cpuid_ask(leaf, sub, r);
	if (nr_known == ARRAY_SIZE(known))
		return;
	known[nr_known].leaf = leaf;
	known[nr_known].sub = sub;
	memcpy(known[nr_known++].regs, r, sizeof(known->regs));
}

static void host_vendor(char vendor[13])
{
	uint32_t r[4];

	host_cpuid(0, 0, r);
	memcpy(vendor, &r[EBX], 4);
	memcpy(vendor + 4, &r[EDX], 4);
	memcpy(vendor + 8, &r[ECX], 4);
	vendor[12] = '\0';
}

static bool vendor_is_amd(const char *vendor)
{
	return !strcmp(vendor, "AuthenticAMD") || !strcmp(vendor, "HygonGenuine");
}

static uint64_t host_xcr0(void)
{
	uint32_t r[4], lo, hi;

	host_cpuid(1, 0, r);
	if (!(r[ECX] & BIT(27))) /* OSXSAVE */
		return 0;
	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	return (uint64_t)hi << 32 | lo;
}

/* XCR0 bits a feature's registers live under. */
static uint64_t feature_xcr0(enum cpu_feature f)
{
	switch (f) {
	case CPU_FEAT_AVX:
		return XCR0_X87 | XCR0_SSE | XCR0_AVX;
	case CPU_FEAT_AVX512F:
		return XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512;
	default:
		return 0;
	}
}

bool cpu_feature_on_host(enum cpu_feature f)
{
	const struct feature *d = &features[f];
	uint64_t need = feature_xcr0(f);
	uint32_t r[4];

	/* Subleaf 7.1 is valid up to what 7.0 EAX says; 0xD.1 always is where leaf 0xD is. */
	if (d->leaf == 7 && d->sub) {
		host_cpuid(7, 0, r);
		if (r[EAX] < d->sub)
			return false;
	}
	host_cpuid(d->leaf, d->sub, r);
	/* The operating system below us must have switched the registers on, too. */
	return (r[d->reg] >> d->bit & 1) && (host_xcr0() & need) == need;
}

/* --- choosing features -------------------------------------------------------------------------
 */

static void feature_put(struct cpu_model *m, enum cpu_feature f, bool on)
{
	if (on)
		m->features[f / 64] |= BIT(f % 64);
	else
		m->features[f / 64] &= ~BIT(f % 64);
}

/* Does it exist on this vendor's CPUs? */
static bool feature_of_vendor(const struct cpu_model *m, enum cpu_feature f)
{
	unsigned only = features[f].flags & (CPU_F_INTEL | CPU_F_AMD);

	return !only || only == (vendor_is_amd(m->vendor) ? CPU_F_AMD : CPU_F_INTEL);
}

bool cpu_model_possible(const struct cpu_model *m, enum cpu_feature f)
{
	return feature_of_vendor(m, f) &&
	       (features[f].flags & CPU_F_SELF || cpu_feature_on_host(f));
}

/* Remove what lacks something it needs; again until nothing changes. */
static void drop_orphans(struct cpu_model *m)
{
	bool again = true;

	while (again) {
		again = false;
		for (size_t i = 0; i < ARRAY_SIZE(dependencies); i++) {
			const struct dependency *d = &dependencies[i];

			if (!cpu_has(m, d->feature) || cpu_has(m, d->needs))
				continue;
			feature_put(m, d->feature, false);
			again = true;
		}
	}
}

bool cpu_model_consistent(const struct cpu_model *m)
{
	for (size_t i = 0; i < ARRAY_SIZE(dependencies); i++)
		if (cpu_has(m, dependencies[i].feature) && !cpu_has(m, dependencies[i].needs))
			return false;
	return true;
}

/* Switch f on with all it needs.  dependencies[] has no cycle, so this ends. */
static int feature_add(struct cpu_model *m, enum cpu_feature f, struct error *err)
{
	if (!feature_of_vendor(m, f))
		return err_set(err, EINVAL, "CPU feature %s does not exist on %s CPUs",
			       features[f].name, m->vendor);
	if (!cpu_model_possible(m, f))
		return err_set(err, ENOTSUP, "this host's CPU lacks the feature %s",
			       features[f].name);
	feature_put(m, f, true);
	for (size_t i = 0; i < ARRAY_SIZE(dependencies); i++) {
		int r = 0;

		if (dependencies[i].feature == f && !cpu_has(m, dependencies[i].needs))
			r = feature_add(m, dependencies[i].needs, err);
		if (r < 0)
			return err_wrap(err, r, "%s", features[f].name);
	}
	return 0;
}

static int feature_find(const char *name, size_t len)
{
	for (int f = 0; f < CPU_NR_FEATURES; f++)
		if (strlen(features[f].name) == len && !memcmp(features[f].name, name, len))
			return f;
	return -1;
}

/* One "+name" or "-name". */
static int apply_word(struct cpu_model *m, const char *word, size_t len, struct error *err)
{
	int f;

	if (len < 2 || (word[0] != '+' && word[0] != '-'))
		return err_set(err, EINVAL, "CPU model: '%.*s' is neither +feature nor -feature",
			       (int)MIN(len, 64), word);
	f = feature_find(word + 1, len - 1);
	if (f < 0)
		return err_set(err, EINVAL, "CPU model: there is no feature '%.*s'",
			       (int)MIN(len - 1, 64), word + 1);
	if (word[0] == '+')
		return feature_add(m, f, err);
	feature_put(m, f, false);
	drop_orphans(m);
	return 0;
}

static int choose_base(struct cpu_model *m, struct error *err)
{
	for (int f = 0; f < CPU_NR_FEATURES; f++) {
		int r = 0;

		if (features[f].flags & CPU_F_BASE && feature_of_vendor(m, f))
			r = feature_add(m, f, err);
		if (r < 0)
			return err_wrap(err, r, "CPU model base");
	}
	return 0;
}

static void choose_max(struct cpu_model *m)
{
	for (int f = 0; f < CPU_NR_FEATURES; f++)
		feature_put(m, f, cpu_model_possible(m, f));
	drop_orphans(m);
}

/* --- numbers -----------------------------------------------------------------------------------
 */

/* Where a state component is in the standard XSAVE area.  Makers differ: Intel left a gap where
 * MPX was.  The host decides where it has the component, since its XSAVE fills our areas. */
// clang-format off
static const struct { uint16_t size, intel, amd; } xsave_layout[] = {
	[2] = {256, 576, 576},    /* AVX: upper halves of YMM0-15 */
	[5] = {64, 1088, 832},    /* opmask */
	[6] = {512, 1152, 896},   /* upper halves of ZMM0-15 */
	[7] = {1024, 1664, 1408}, /* ZMM16-31 */
	[9] = {8, 2688, 2432},    /* PKRU */
};
// clang-format on

static uint32_t xsave_offset_find(unsigned component)
{
	char vendor[13];
	uint32_t r[4];

	host_cpuid(0xd, component, r);
	if (r[EAX] == xsave_layout[component].size && r[EBX])
		return r[EBX];
	host_vendor(vendor);
	return vendor_is_amd(vendor) ? xsave_layout[component].amd : xsave_layout[component].intel;
}

bool cpu_xsave_component(unsigned component, uint32_t *offset, uint32_t *size)
{
	/* Remembered: CPUID costs microseconds when we run in a VM ourselves.  0: not known yet. */
	static _Atomic uint32_t offsets[ARRAY_SIZE(xsave_layout)];

	if (component >= ARRAY_SIZE(xsave_layout) || !xsave_layout[component].size)
		return false;
	*size = xsave_layout[component].size;
	*offset = offsets[component];
	if (!*offset)
		offsets[component] = *offset = xsave_offset_find(component);
	return true;
}

/* Bytes of the standard area when the components of xcr0 are in use. */
uint32_t cpu_xsave_size(uint64_t xcr0)
{
	uint32_t end = 576, offset, size; /* legacy region and header */

	for (unsigned i = 2; i < 63; i++)
		if (xcr0 >> i & 1 && cpu_xsave_component(i, &offset, &size))
			end = MAX(end, offset + size);
	return end;
}

uint32_t cpu_xsave_compacted_size(uint64_t xcr0)
{
	uint32_t end = 576, offset, size;

	for (unsigned i = 2; i < 63; i++)
		if (xcr0 >> i & 1 && cpu_xsave_component(i, &offset, &size))
			end += size;
	return end;
}

void cpu_model_settle(struct cpu_model *m)
{
	m->xcr0_supported = 0;
	if (cpu_has(m, CPU_FEAT_XSAVE))
		m->xcr0_supported = XCR0_X87 | XCR0_SSE;
	if (cpu_has(m, CPU_FEAT_AVX))
		m->xcr0_supported |= XCR0_AVX;
	if (cpu_has(m, CPU_FEAT_AVX512F))
		m->xcr0_supported |= XCR0_AVX512;
	if (cpu_has(m, CPU_FEAT_XSAVE) && cpu_has(m, CPU_FEAT_PKU))
		m->xcr0_supported |= XCR0_PKRU;
	m->xsave_size = cpu_xsave_size(m->xcr0_supported);
}

static uint32_t host_phys_bits(void)
{
	uint32_t r[4], bits;

	host_cpuid(0x80000008, 0, r);
	bits = r[EAX] & 0xff;
	return bits >= 36 && bits <= 52 ? bits : 36;
}

/* `max` is the host's own generation; `base` is one that had at least what base offers. */
static void set_signature(struct cpu_model *m, bool max)
{
	uint32_t r[4];

	if (!max) {
		bool amd = vendor_is_amd(m->vendor);

		m->family = amd ? 25 : 6;
		m->model = amd ? 1 : 94;
		m->stepping = amd ? 1 : 3;
		return;
	}
	host_cpuid(1, 0, r);
	m->stepping = r[EAX] & 15;
	m->family = r[EAX] >> 8 & 15;
	m->model = r[EAX] >> 4 & 15;
	if (m->family == 6 || m->family == 15)
		m->model |= r[EAX] >> 12 & 0xf0;
	if (m->family == 15)
		m->family += r[EAX] >> 20 & 0xff;
}

static void set_numbers(struct cpu_model *m, bool max)
{
	cpu_model_settle(m);
	set_signature(m, max);
	/* 40 is what the smallest hosts with second-level paging map. */
	m->phys_bits = max ? host_phys_bits() : MIN(host_phys_bits(), 40u);
	m->virt_bits = cpu_has(m, CPU_FEAT_LA57) ? 57 : cpu_has(m, CPU_FEAT_LM) ? 48 : 32;
	snprintf(m->brand, sizeof(m->brand), "Trivisor virtual CPU (%.8s)", m->name);
}

int cpu_model_resolve(struct cpu_model *m, const char *spec, struct error *err)
{
	size_t len = strcspn(spec, ",");
	bool max = len == 3 && !memcmp(spec, "max", 3);
	int r = 0;

	memset(m, 0, sizeof(*m));
	if (!max && (len != 4 || memcmp(spec, "base", 4)))
		return err_set(err, EINVAL, "there is no CPU model '%.*s'; try base or max",
			       (int)MIN(len, 64), spec);
	memcpy(m->name, spec, len);
	host_vendor(m->vendor);
	if (max)
		choose_max(m);
	else
		r = choose_base(m, err);
	while (r == 0 && spec[len] == ',') {
		spec += len + 1;
		len = strcspn(spec, ",");
		r = apply_word(m, spec, len, err);
	}
	if (r < 0)
		return r;
	set_numbers(m, max);
	return 0;
}

/* Is "+name" among the words of spec? */
static bool spec_asks_for(const char *spec, enum cpu_feature f)
{
	for (const char *w = strchr(spec, ','); w; w = strchr(w + 1, ','))
		if (w[1] == '+' && feature_find(w + 2, strcspn(w + 2, ",")) == (int)f)
			return true;
	return false;
}

static int refuse_lacks(const uint64_t *lacks, struct error *err)
{
	char names[256];

	cpu_features_print(lacks, names, sizeof(names));
	return err_set(err, ENOTSUP,
		       "the engine cannot give a guest here these CPU features: %s; leave them out "
		       "(--cpu MODEL,-FEATURE) or use --engine soft",
		       names);
}

int cpu_model_fit(struct cpu_model *m, const char *spec, const uint64_t *lacks, struct error *err)
{
	bool max = strcspn(spec, ",") == 3 && !memcmp(spec, "max", 3);

	for (int f = 0; f < CPU_NR_FEATURES; f++) {
		if (!(lacks[f / 64] >> (f % 64) & 1))
			continue;
		if (!max || spec_asks_for(spec, f))
			return refuse_lacks(lacks, err);
		feature_put(m, f, false);
	}
	drop_orphans(m);
	cpu_model_settle(m);
	m->virt_bits = cpu_has(m, CPU_FEAT_LA57) ? 57 : cpu_has(m, CPU_FEAT_LM) ? 48 : 32;
	return 0;
}

/* --- CPUID -------------------------------------------------------------------------------------
 */

enum {
	INTEL_MAX_LEAF = 0x16,
	AMD_MAX_LEAF = 0xd,
	INTEL_MAX_EXT = 0x80000008,
	AMD_MAX_EXT = 0x80000021,
};

static void add_features(const struct cpu_model *m, uint32_t leaf, uint32_t sub, uint32_t r[4])
{
	for (int f = 0; f < CPU_NR_FEATURES; f++) {
		const struct feature *d = &features[f];

		if (d->leaf == leaf && d->sub == sub && cpu_has(m, f))
			r[d->reg] |= (uint32_t)BIT(d->bit);
	}
}

static void put_vendor(const struct cpu_model *m, uint32_t r[4])
{
	memcpy(&r[EBX], m->vendor, 4);
	memcpy(&r[EDX], m->vendor + 4, 4);
	memcpy(&r[ECX], m->vendor + 8, 4);
}

/* SDM 2A "CPUID", figure "Version Information Returned by CPUID in EAX". */
static uint32_t signature(const struct cpu_model *m)
{
	uint32_t family = MIN(m->family, 15u), ext = m->family - family;

	return m->stepping | (m->model & 15) << 4 | family << 8 | (m->model >> 4) << 16 | ext << 20;
}

/* The same caches in Intel's leaf 4 and AMD's 0x8000001D; the layout is the same too. */
static void put_cache(unsigned n, uint32_t r[4])
{
	// clang-format off
	static const struct { uint8_t type, level; uint16_t ways; uint32_t sets; } caches[] = {
		{1, 1, 8, 64},     /* 32 KiB data */
		{2, 1, 8, 64},     /* 32 KiB code */
		{3, 2, 8, 1024},   /* 512 KiB unified */
		{3, 3, 16, 16384}, /* 16 MiB unified */
	};
	// clang-format on

	if (n >= ARRAY_SIZE(caches))
		return;
	/* Bit 8: self-initializing.  How many CPUs share it is the machine's to say. */
	r[EAX] = caches[n].type | caches[n].level << 5 | 1u << 8;
	r[EBX] = 63 | (caches[n].ways - 1u) << 22;
	r[ECX] = caches[n].sets - 1;
}

static void put_xsave_leaf(const struct cpu_model *m, uint32_t sub, uint32_t r[4])
{
	if (!m->xcr0_supported)
		return;
	if (sub == 0) {
		/* EBX, the size for the current XCR0, is corrected by who knows XCR0. */
		r[EAX] = (uint32_t)m->xcr0_supported;
		r[EBX] = m->xsave_size;
		r[ECX] = m->xsave_size;
		r[EDX] = (uint32_t)(m->xcr0_supported >> 32);
	} else if (sub == 1) {
		r[EBX] = cpu_xsave_compacted_size(m->xcr0_supported);
	} else if (sub < 63 && m->xcr0_supported >> sub & 1) {
		cpu_xsave_component(sub, &r[EBX], &r[EAX]);
	}
}

static void put_basic(const struct cpu_model *m, uint32_t leaf, uint32_t sub, uint32_t r[4])
{
	bool amd = vendor_is_amd(m->vendor);

	switch (leaf) {
	case 0:
		r[EAX] = amd ? AMD_MAX_LEAF : INTEL_MAX_LEAF;
		put_vendor(m, r);
		break;
	case 1:
		r[EAX] = signature(m);
		r[EBX] = 64 / 8 << 8; /* CLFLUSH line */
		break;
	case 2:
		r[EAX] = amd ? 0 : 0x00feff01; /* TLBs in leaf 0x18, caches in leaf 4 */
		break;
	case 4:
		if (!amd)
			put_cache(sub, r);
		break;
	case 7:
		r[EAX] = sub == 0 ? 1 : 0; /* highest subleaf */
		break;
	case 0xb:
		/* One CPU; the machine puts in counts, shifts and the x2APIC id. */
		r[EBX] = sub < 2;
		r[ECX] = (sub & 0xff) | (sub < 2 ? sub + 1 : 0) << 8;
		break;
	case 0xd:
		put_xsave_leaf(m, sub, r);
		break;
	default: /* 0x14 and 0x15/0x16: no processor trace, rates are not told here */
		break;
	}
}

static void put_extended(const struct cpu_model *m, uint32_t leaf, uint32_t sub, uint32_t r[4])
{
	/* Bits 0-9, 12-17, 23 and 24 of leaf 1 EDX again (APM 3 "CPUID Fn8000_0001_EDX"). */
	enum { AMD_MIRROR = 0x0183f3ff };
	bool amd = vendor_is_amd(m->vendor);
	uint32_t one[4] = {0};

	switch (leaf) {
	case 0x80000000:
		r[EAX] = amd ? AMD_MAX_EXT : INTEL_MAX_EXT;
		if (amd)
			put_vendor(m, r);
		break;
	case 0x80000001:
		if (amd) {
			r[EAX] = signature(m);
			add_features(m, 1, 0, one);
			r[EDX] = one[EDX] & AMD_MIRROR;
		}
		break;
	case 0x80000002 ... 0x80000004:
		memcpy(r, m->brand + 16 * (leaf - 0x80000002), 16);
		break;
	case 0x80000005: /* L1: KiB, ways, lines per tag, line size */
		r[ECX] = r[EDX] = amd ? 32u << 24 | 8 << 16 | 1 << 8 | 64 : 0;
		break;
	case 0x80000006: /* L2: KiB, 8-way (code 6), line size; L3 in 512 KiB units, 16-way (8) */
		r[ECX] = 512u << 16 | 6 << 12 | (amd ? 1 << 8 : 0) | 64;
		r[EDX] = amd ? 32u << 18 | 8 << 12 | 1 << 8 | 64 : 0;
		break;
	case 0x80000008:
		r[EAX] = m->phys_bits | m->virt_bits << 8;
		break;
	case 0x8000001d:
		if (cpu_has(m, CPU_FEAT_TOPOEXT))
			put_cache(sub, r);
		break;
	default: /* 0x8000001E is the machine's topology altogether */
		break;
	}
}

static bool leaf_has_subleaves(uint32_t leaf)
{
	return leaf == 4 || leaf == 7 || leaf == 0xb || leaf == 0xd || leaf == 0x14 ||
	       leaf == 0x8000001d;
}

void cpu_model_cpuid(const struct cpu_model *m, uint32_t leaf, uint32_t sub, uint32_t regs[4])
{
	bool amd = vendor_is_amd(m->vendor);

	memset(regs, 0, 4 * sizeof(*regs));
	if (!leaf_has_subleaves(leaf))
		sub = 0;
	if (leaf >= 0x80000000) {
		if (leaf > (amd ? (uint32_t)AMD_MAX_EXT : (uint32_t)INTEL_MAX_EXT))
			return;
		put_extended(m, leaf, sub, regs);
	} else {
		if (leaf > (uint32_t)(amd ? AMD_MAX_LEAF : INTEL_MAX_LEAF))
			return;
		put_basic(m, leaf, sub, regs);
	}
	if (leaf == 0xd && !m->xcr0_supported)
		return;
	add_features(m, leaf, sub, regs);
}

unsigned cpu_model_list(const struct cpu_model_info **out)
{
	*out = models;
	return ARRAY_SIZE(models);
}

const char *cpu_feature_name(enum cpu_feature f)
{
	return features[f].name;
}
