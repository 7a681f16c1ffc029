/* CPU models: what a guest is told, against what this host says of itself; and the state a CPU
 * starts from. */
#include "base/error.h"
#include "engine/cpu_model.h"
#include "engine/x86_defs.h"
#include "engine/x86_state.h"
#include "state/stream.h"
#include "test.h"

#include <cpuid.h>
#include <stdlib.h>

enum { EAX, EBX, ECX, EDX };

static void host(uint32_t leaf, uint32_t sub, uint32_t r[4])
{
	memset(r, 0, 16);
	if ((uint32_t)__get_cpuid_max(leaf & 0x80000000, NULL) >= leaf)
		__cpuid_count(leaf, sub, r[EAX], r[EBX], r[ECX], r[EDX]);
}

static struct cpu_model resolve(const char *spec)
{
	struct cpu_model m;
	struct error err = {0};

	if (cpu_model_resolve(&m, spec, &err)) {
		printf("# %s: %s\n", spec, err.msg);
		CHECK(!"resolves");
	}
	return m;
}

static const char *refusal(const char *spec)
{
	static struct error err;
	struct cpu_model m;

	err.msg[0] = 0;
	CHECK(cpu_model_resolve(&m, spec, &err) < 0);
	return err.msg;
}

/* --- which features --------------------------------------------------------------------------- */

TEST(vector_and_user_instructions_are_offered_only_if_the_host_has_them)
{
	// clang-format off
	static const struct { uint32_t leaf, sub; int reg; uint32_t mask; } rows[] = {
		{1, 0, ECX, 0x76d83203},          /* SSE3 .. F16C, RDRAND; not PCID, x2APIC, deadline */
		{1, 0, EDX, 0x07800001},          /* FPU, MMX, FXSR, SSE, SSE2 */
		{7, 0, EBX, 0xf02f0128}, /* BMI, AVX2, AVX-512, ADX, RDSEED, SHA */
		{7, 0, ECX, 0x00005f42},          /* VBMI .. VPOPCNTDQ */
		{7, 0, EDX, 0x00800100},          /* VP2INTERSECT, FP16 */
		{7, 1, EAX, 0x00800030},          /* AVX-VNNI, BF16, AVX-IFMA */
		{0xd, 1, EAX, 0x0000000f},
		{0x80000001, 0, ECX, 0x00000060}, /* ABM, SSE4A */
	};
	// clang-format on
	struct cpu_model m = resolve("max");

	for (unsigned i = 0; i < ARRAY_SIZE(rows); i++) {
		uint32_t guest[4], here[4];

		cpu_model_cpuid(&m, rows[i].leaf, rows[i].sub, guest);
		host(rows[i].leaf, rows[i].sub, here);
		CHECK_EQ(0, guest[rows[i].reg] & rows[i].mask & ~here[rows[i].reg]);
	}
}

TEST(what_the_engine_does_alone_is_offered_on_any_host)
{
	static const enum cpu_feature self[] = {
		CPU_FEAT_LA57,    CPU_FEAT_PCID,       CPU_FEAT_INVPCID,  CPU_FEAT_SMEP,
		CPU_FEAT_SMAP,    CPU_FEAT_UMIP,       CPU_FEAT_PKU,      CPU_FEAT_PGE,
		CPU_FEAT_NX,      CPU_FEAT_PDPE1GB,    CPU_FEAT_FSGSBASE, CPU_FEAT_LM,
		CPU_FEAT_SYSCALL, CPU_FEAT_TSC_ADJUST, CPU_FEAT_X2APIC,   CPU_FEAT_RDTSCP};
	struct cpu_model m = resolve("max");

	for (unsigned i = 0; i < ARRAY_SIZE(self); i++)
		CHECK(cpu_has(&m, self[i]));
}

TEST(base_is_a_part_of_max_and_has_no_avx)
{
	struct cpu_model base = resolve("base"), max = resolve("max");

	for (int f = 0; f < CPU_NR_FEATURES; f++)
		CHECK(!cpu_has(&base, f) || cpu_has(&max, f));
	CHECK(cpu_has(&base, CPU_FEAT_SSE4_2) && cpu_has(&base, CPU_FEAT_CX16));
	CHECK(cpu_has(&base, CPU_FEAT_POPCNT) && cpu_has(&base, CPU_FEAT_LAHF_LM));
	CHECK(!cpu_has(&base, CPU_FEAT_XSAVE) && !cpu_has(&base, CPU_FEAT_AVX));
	CHECK_EQ(0, base.xcr0_supported);
}

TEST(features_come_and_go_with_what_they_need)
{
	struct cpu_model m = resolve("max,-sse4_1");

	CHECK(!cpu_has(&m, CPU_FEAT_SSE4_2) && !cpu_has(&m, CPU_FEAT_AVX));
	CHECK(!cpu_has(&m, CPU_FEAT_AVX512F) && cpu_has(&m, CPU_FEAT_SSSE3));
	m = resolve("max,-pcid");
	CHECK(!cpu_has(&m, CPU_FEAT_INVPCID));
	m = resolve("base,+invpcid");
	CHECK(cpu_has(&m, CPU_FEAT_PCID));
	m = resolve("max,-la57,+la57,-la57");
	CHECK(!cpu_has(&m, CPU_FEAT_LA57));
	CHECK_EQ(48, m.virt_bits);
	if (!cpu_feature_on_host(CPU_FEAT_AVX2))
		return;
	m = resolve("base,+avx2");
	CHECK(cpu_has(&m, CPU_FEAT_AVX) && cpu_has(&m, CPU_FEAT_XSAVE));
	CHECK_EQ(XCR0_X87 | XCR0_SSE | XCR0_AVX, m.xcr0_supported);
	CHECK_EQ(832, m.xsave_size);
}

TEST(bad_specifications_are_refused_by_name)
{
	CHECK(strstr(refusal("max,+frobnicate"), "frobnicate"));
	CHECK(strstr(refusal("max,avx"), "avx"));
	CHECK(strstr(refusal("i486"), "i486"));
	CHECK(strstr(refusal("max,"), "''"));
	CHECK(strstr(refusal(""), "base or max"));
	CHECK(strstr(refusal("max,+"), "'+'"));
	for (int f = 0; f < CPU_NR_FEATURES; f++) {
		char spec[64];
		struct cpu_model m = resolve("max");

		snprintf(spec, sizeof(spec), "base,+%s", cpu_feature_name(f));
		if (cpu_has(&m, f))
			continue;
		CHECK(strstr(refusal(spec), cpu_feature_name(f)));
	}
}

TEST(each_feature_has_a_name_and_a_bit_of_its_own)
{
	for (int a = 0; a < CPU_NR_FEATURES; a++)
		for (int b = 0; b < a; b++)
			CHECK(strcmp(cpu_feature_name(a), cpu_feature_name(b)));
	/* Taking one away changes CPUID by exactly its bits. */
	for (int f = 0; f < CPU_NR_FEATURES; f++) {
		struct cpu_model m = resolve("max"), without = m;
		unsigned changed = 0;

		without.features[f / 64] &= ~BIT(f % 64);
		for (uint32_t leaf = 0; leaf < 0x80000022;
		     leaf = leaf == 0x20 ? 0x80000000 : leaf + 1)
			for (uint32_t sub = 0; sub < 2; sub++) {
				uint32_t x[4], y[4];

				cpu_model_cpuid(&m, leaf, sub, x);
				cpu_model_cpuid(&without, leaf, sub, y);
				for (unsigned i = 0; i < 4; i++)
					changed += (unsigned)__builtin_popcount(x[i] ^ y[i]);
			}
		CHECK(cpu_has(&m, f) ? changed > 0 : changed == 0);
	}
}

/* --- numbers ---------------------------------------------------------------------------------- */

TEST(the_guest_sees_the_hosts_maker_and_a_name)
{
	struct cpu_model m = resolve("max");
	uint32_t guest[4], here[4];
	char brand[49] = "";

	cpu_model_cpuid(&m, 0, 0, guest);
	host(0, 0, here);
	CHECK_EQ(here[EBX], guest[EBX]);
	CHECK_EQ(here[ECX], guest[ECX]);
	CHECK_EQ(here[EDX], guest[EDX]);
	cpu_model_cpuid(&m, 1, 0, guest);
	host(1, 0, here);
	CHECK_EQ(here[EAX] & 0x0fff0fff, guest[EAX]);
	for (uint32_t i = 0; i < 3; i++)
		cpu_model_cpuid(&m, 0x80000002 + i, 0, (uint32_t *)(void *)(brand + 16 * i));
	CHECK_STR(m.brand, brand);
}

TEST(state_components_are_where_the_host_puts_them)
{
	struct cpu_model m = resolve("max");
	uint32_t guest[4], here[4];

	if (!cpu_has(&m, CPU_FEAT_XSAVE))
		SKIP("this host has no XSAVE");
	for (uint32_t i = 2; i < 63; i++) {
		bool offered = m.xcr0_supported >> i & 1;

		cpu_model_cpuid(&m, 0xd, i, guest);
		host(0xd, i, here);
		CHECK_EQ(offered, guest[EAX] != 0);
		if (offered && here[EAX] == guest[EAX])
			CHECK_EQ(here[EBX], guest[EBX]);
		CHECK(!offered || guest[EAX] + guest[EBX] <= m.xsave_size);
	}
	cpu_model_cpuid(&m, 0xd, 0, guest);
	CHECK_EQ(m.xcr0_supported, guest[EAX]);
	CHECK_EQ(m.xsave_size, guest[ECX]);
	CHECK(m.xsave_size <= X86_XSAVE_MAX);
}

TEST(leaves_beyond_the_last_are_empty)
{
	struct cpu_model m = resolve("max");
	uint32_t r[4];

	cpu_model_cpuid(&m, 0, 0, r);
	cpu_model_cpuid(&m, r[EAX] + 1, 0, r);
	CHECK(!r[EAX] && !r[EBX] && !r[ECX] && !r[EDX]);
	cpu_model_cpuid(&m, 0x80000000, 0, r);
	CHECK(r[EAX] >= 0x80000008);
	cpu_model_cpuid(&m, r[EAX] + 1, 0, r);
	CHECK(!r[EAX] && !r[EBX] && !r[ECX] && !r[EDX]);
	cpu_model_cpuid(&m, 0x80000008, 0, r);
	CHECK_EQ(m.phys_bits | 57u << 8, r[EAX]);
}

/* --- x86_state -------------------------------------------------------------------------------- */

static struct x86_state *fresh(void)
{
	struct x86_state *s = aligned_alloc(64, sizeof(*s));

	memset(s, 0xee, sizeof(*s));
	x86_state_reset(s);
	return s;
}

TEST(after_reset_the_first_instruction_is_16_bytes_below_4g)
{
	struct x86_state *s = fresh();

	CHECK_EQ(0xfffffff0, s->seg[X86_CS].base + s->rip);
	CHECK_EQ(0xf000, s->seg[X86_CS].selector);
	CHECK_EQ(2, s->rflags);
	CHECK_EQ(CR0_ET | CR0_CD | CR0_NW, s->cr0);
	CHECK_EQ(0xffff0ff0, s->dr6);
	CHECK_EQ(0x400, s->dr7);
	CHECK_EQ(0x0007040600070406, s->pat);
	CHECK_EQ(1, s->xcr0);
	CHECK_EQ(0x1f80, s->xsave[24] | s->xsave[25] << 8);
	CHECK_EQ(0, s->event_pending | s->nmi_masked | s->int_shadow | s->pkru);
	free(s);
}

TEST(init_keeps_fpu_msrs_and_cache_bits)
{
	struct x86_state *s = fresh();

	s->cr0 = CR0_PE | CR0_PG | CR0_CD;
	s->cr4 = s->cr3 = s->efer = 0x500;
	s->xsave[200] = 0x5a;
	s->tsc = 12345;
	s->lstar = 77;
	s->xcr0 = 7;
	x86_state_init_signal(s);
	CHECK_EQ(CR0_ET | CR0_CD, s->cr0);
	CHECK_EQ(0, s->cr4 | s->cr3 | s->efer);
	CHECK_EQ(0x5a, s->xsave[200]);
	CHECK_EQ(12345, s->tsc);
	CHECK_EQ(77, s->lstar);
	CHECK_EQ(7, s->xcr0);
	CHECK_EQ(0xfff0, s->rip);
	x86_state_sipi(s, 0x9a);
	CHECK_EQ(0x9a000, s->seg[X86_CS].base);
	CHECK_EQ(0x9a00, s->seg[X86_CS].selector);
	CHECK_EQ(0, s->rip);
	free(s);
}

// clang-format off
/* All there is in a state but padding. */
#define FIELD(f) {offsetof(struct x86_state, f), sizeof(((struct x86_state *)NULL)->f)}
static const struct {
	size_t offset, size;
} fields[] = {
	FIELD(gpr), FIELD(rip), FIELD(rflags), FIELD(gdtr.base), FIELD(gdtr.limit),
	FIELD(idtr.base), FIELD(idtr.limit), FIELD(cr0), FIELD(cr2), FIELD(cr3), FIELD(cr4),
	FIELD(efer), FIELD(xcr0), FIELD(dr), FIELD(dr6), FIELD(dr7), FIELD(star), FIELD(lstar),
	FIELD(cstar), FIELD(sfmask), FIELD(kernel_gs_base), FIELD(sysenter_cs),
	FIELD(sysenter_esp), FIELD(sysenter_eip), FIELD(pat), FIELD(tsc_aux),
	FIELD(misc_enable), FIELD(spec_ctrl), FIELD(xss), FIELD(mtrr_def_type),
	FIELD(mtrr_fixed), FIELD(mtrr_var), FIELD(tsc), FIELD(tsc_adjust), FIELD(pkru),
	FIELD(mp_state), FIELD(int_shadow), FIELD(nmi_masked), FIELD(nmi_pending),
	FIELD(event_pending), FIELD(event_type), FIELD(event_vector), FIELD(event_has_error),
	FIELD(event_error), FIELD(xsave), FIELD(ldtr.base), FIELD(ldtr.limit), FIELD(ldtr.attr),
	FIELD(ldtr.selector), FIELD(tr.base), FIELD(tr.attr), FIELD(seg[0].base),
	FIELD(seg[0].limit), FIELD(seg[0].attr), FIELD(seg[0].selector), FIELD(seg[1].base),
	FIELD(seg[1].limit), FIELD(seg[1].attr), FIELD(seg[1].selector), FIELD(seg[2].base),
	FIELD(seg[2].limit), FIELD(seg[2].attr), FIELD(seg[2].selector), FIELD(seg[3].base),
	FIELD(seg[3].limit), FIELD(seg[3].attr), FIELD(seg[3].selector), FIELD(seg[4].base),
	FIELD(seg[4].limit), FIELD(seg[4].attr), FIELD(seg[4].selector), FIELD(seg[5].base),
	FIELD(seg[5].limit), FIELD(seg[5].attr), FIELD(seg[5].selector),
};
// clang-format on

TEST(a_state_survives_being_saved)
{
	struct x86_state *a = fresh(), *b = fresh();
	struct state_writer w;
	struct state_reader r;
	uint8_t *buf = NULL;
	size_t len = 0;

	/* Every byte different from a fresh one; the few checked fields stay in range. */
	for (size_t i = 0; i < sizeof(*a); i++)
		((uint8_t *)a)[i] ^= (uint8_t)(i * 7 + 1);
	a->mp_state = X86_MP_HALTED;
	a->int_shadow = 2;
	a->event_type = X86_EVENT_NMI;
	state_writer_init(&w, NULL);
	x86_state_visit(&w.state, a);
	CHECK_EQ(0, state_writer_finish(&w, &buf, &len));
	CHECK_EQ(0, state_reader_init(&r, buf, len, NULL));
	x86_state_visit(&r.state, b);
	CHECK_EQ(0, state_reader_finish(&r));
	for (unsigned i = 0; i < ARRAY_SIZE(fields); i++)
		CHECK(!memcmp((char *)a + fields[i].offset, (char *)b + fields[i].offset,
			      fields[i].size));
	free(buf);
	free(a);
	free(b);
}

TEST(a_saved_state_out_of_range_is_refused)
{
	struct x86_state *a = fresh(), *b = fresh();
	struct state_writer w;
	struct state_reader r;
	uint8_t *buf = NULL;
	size_t len = 0;

	a->mp_state = 9;
	state_writer_init(&w, NULL);
	x86_state_visit(&w.state, a);
	CHECK_EQ(0, state_writer_finish(&w, &buf, &len));
	CHECK_EQ(0, state_reader_init(&r, buf, len, NULL));
	x86_state_visit(&r.state, b);
	CHECK(state_reader_finish(&r) < 0);
	free(buf);
	free(a);
	free(b);
}

TEST(a_state_prints_within_its_buffer)
{
	struct x86_state *s = fresh();
	char buf[4096], small[16];
	int n = x86_state_print(s, buf, sizeof(buf));

	CHECK(n > 0 && n < (int)sizeof(buf));
	CHECK(strstr(buf, "rip 000000000000fff0"));
	memset(small, 'x', sizeof(small));
	CHECK_EQ(n, x86_state_print(s, small, 8));
	CHECK_EQ(7, strlen(small));
	CHECK_EQ('x', small[8]);
	CHECK_EQ(n, x86_state_print(s, NULL, 0));
	free(s);
}
