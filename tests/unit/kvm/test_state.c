/* Tests of state in and out of the kvm engine: every field comes back, and soft understands it. */
#include "kvm_guest.h"

#include "base/bytes.h"

/* --- comparing ---------------------------------------------------------------------------------
 */

static void check_segment(const char *name, const struct x86_segment *a,
			  const struct x86_segment *b)
{
	bool same = a->base == b->base && a->limit == b->limit && a->attr == b->attr &&
		    a->selector == b->selector;

	if (!same)
		printf("# %s: %04x %llx %x %x, then %04x %llx %x %x\n", name, a->selector,
		       (unsigned long long)a->base, a->limit, a->attr, b->selector,
		       (unsigned long long)b->base, b->limit, b->attr);
	CHECK(same);
}

/* Everything but the time. */
static void check_same(const struct x86_state *a, const struct x86_state *b)
{
	static const char *const names[X86_NR_SEG] = {"es", "cs", "ss", "ds", "fs", "gs"};

	for (unsigned i = 0; i < X86_NR_GPR; i++)
		CHECK_EQ(a->gpr[i], b->gpr[i]);
	CHECK_EQ(a->rip, b->rip);
	CHECK_EQ(a->rflags, b->rflags);
	for (unsigned i = 0; i < X86_NR_SEG; i++)
		check_segment(names[i], &a->seg[i], &b->seg[i]);
	check_segment("ldtr", &a->ldtr, &b->ldtr);
	check_segment("tr", &a->tr, &b->tr);
	CHECK_EQ(a->gdtr.base, b->gdtr.base);
	CHECK_EQ(a->gdtr.limit, b->gdtr.limit);
	CHECK_EQ(a->idtr.base, b->idtr.base);
	CHECK_EQ(a->idtr.limit, b->idtr.limit);
#define SAME(f) CHECK_EQ(a->f, b->f)
	SAME(cr0);
	SAME(cr2);
	SAME(cr3);
	SAME(cr4);
	SAME(efer);
	SAME(xcr0);
	SAME(dr[0]);
	SAME(dr[1]);
	SAME(dr[2]);
	SAME(dr[3]);
	SAME(dr6);
	SAME(dr7);
	SAME(star);
	SAME(lstar);
	SAME(cstar);
	SAME(sfmask);
	SAME(kernel_gs_base);
	SAME(sysenter_cs);
	SAME(sysenter_esp);
	SAME(sysenter_eip);
	SAME(pat);
	SAME(tsc_aux);
	SAME(misc_enable);
	SAME(spec_ctrl);
	SAME(xss);
	SAME(pkru);
	SAME(mtrr_def_type);
	SAME(tsc_adjust);
	for (unsigned i = 0; i < ARRAY_SIZE(a->mtrr_fixed); i++)
		SAME(mtrr_fixed[i]);
	for (unsigned i = 0; i < ARRAY_SIZE(a->mtrr_var); i++)
		SAME(mtrr_var[i]);
	SAME(mp_state);
	SAME(int_shadow);
	SAME(nmi_masked);
	SAME(nmi_pending);
	SAME(event_pending);
	SAME(event_type);
	SAME(event_vector);
	SAME(event_has_error);
	SAME(event_error);
#undef SAME
	for (unsigned i = 0; i < X86_XSAVE_MAX; i++)
		if (a->xsave[i] != b->xsave[i]) {
			printf("# xsave byte %u\n", i);
			CHECK_EQ(a->xsave[i], b->xsave[i]);
		}
}

/* --- filling -----------------------------------------------------------------------------------
 */

static void fill_registers(struct x86_state *s)
{
	for (unsigned i = 0; i < X86_NR_GPR; i++)
		s->gpr[i] = 0x1111111111111111ull * (i + 1) % 0x7fffffffffffull;
	s->rip = KG_CODE + 0x123;
	s->rflags = RFLAGS_FIXED | RFLAGS_IF | RFLAGS_ZF | RFLAGS_CF;
	s->seg[X86_FS].base = 0x7f1234567000;
	s->seg[X86_GS].base = 0xffff888012345000;
	s->kernel_gs_base = 0x7fabcdef0000;
	s->tr = (struct x86_segment){.base = 0xfffffe0000003000,
				     .limit = 0x206f,
				     .attr = X86_SEG_P | 0xb,
				     .selector = 0x40};
	s->ldtr = (struct x86_segment){
		.base = 0x5000, .limit = 0xff, .attr = X86_SEG_P | 0x2, .selector = 0x48};
	s->cr2 = 0xdeadbeef000;
	s->dr[0] = 0x1000;
	s->dr[3] = 0x4000;
	s->dr6 = 0xffff0ff1;
	s->dr7 = 0x401;
}

static void fill_msrs(struct x86_state *s)
{
	s->star = 0x0023001000000000;
	s->lstar = 0xffffffff81a00000;
	s->cstar = 0xffffffff81a01000;
	s->sfmask = 0x47700;
	s->sysenter_cs = 0x10;
	s->sysenter_esp = 0x81002000; /* AMD's has 32 bits */
	s->sysenter_eip = 0x81a02000;
	s->pat = 0x0407050600070106;
	s->mtrr_def_type = 0xc06;
	s->mtrr_fixed[0] = 0x0606060606060606;
	s->mtrr_fixed[10] = 0x0505050505050505;
	s->mtrr_var[0] = 0xc0000000;
	s->mtrr_var[1] = 0xffc0000800;
}

static void fill_vectors(struct x86_state *s, const struct cpu_model *m)
{
	enum { FCW = 0, FSW = 2, FTW = 4, MXCSR = 24, ST0 = 32, XMM0 = 160, BV = 512 };
	uint64_t bv = XCR0_X87 | XCR0_SSE;
	uint32_t offset, size;

	le16_store(s->xsave + FCW, 0x27f);
	le16_store(s->xsave + FSW, 7 << 11); /* one value pushed */
	s->xsave[FTW] = 0x80;
	le64_store(s->xsave + ST0, 0x8000000000000000);
	le16_store(s->xsave + ST0 + 8, 0x3fff); /* 1.0 */
	le32_store(s->xsave + MXCSR, 0x1fa0);
	for (unsigned i = 0; i < 256; i++)
		s->xsave[XMM0 + i] = (uint8_t)(i * 7 + 1);
	if (m->xcr0_supported & XCR0_AVX && cpu_xsave_component(2, &offset, &size)) {
		s->cr4 |= CR4_OSXSAVE;
		s->xcr0 = m->xcr0_supported & (XCR0_X87 | XCR0_SSE | XCR0_AVX);
		bv |= XCR0_AVX;
		for (unsigned i = 0; i < size; i++)
			s->xsave[offset + i] = (uint8_t)(i * 5 + 3);
	}
	le64_store(s->xsave + BV, bv);
}

/* Registers that this KVM or this model does not have stay as a reset leaves them. */
static void fill(struct kg *g)
{
	struct x86_state *s = &g->state;

	kg_state_long(s);
	fill_registers(s);
	fill_msrs(s);
	fill_vectors(s, &g->model);
	if (cpu_has(&g->model, CPU_FEAT_RDTSCP))
		s->tsc_aux = 3;
	if (cpu_has(&g->model, CPU_FEAT_TSC_ADJUST))
		s->tsc_adjust = 0x1000;
	if (cpu_has(&g->model, CPU_FEAT_PKU) && s->cr4 & CR4_OSXSAVE) {
		s->cr4 |= CR4_PKE;
		s->xcr0 |= XCR0_PKRU;
		s->pkru = 0x55555554;
	}
}

static void get(struct kg *g, struct x86_state *s)
{
	g->e->cpu_get(g->cpu[0], s);
}

/* --- there and back ----------------------------------------------------------------------------
 */

TEST(a_full_state_comes_back_as_it_was_given)
{
	static const char *const chips[] = {"irqchip=user", "irqchip=split", "irqchip=kernel"};

	for (unsigned i = 0; i < ARRAY_SIZE(chips); i++) {
		struct kg *g = kg_create(chips[i], 1);
		struct x86_state got;

		fill(g);
		kg_load(g);
		get(g, &got);
		le32_store(g->state.xsave + 28,
			   le32_load(got.xsave + 28)); /* MXCSR_MASK: the host's */
		check_same(&g->state, &got);
		kg_destroy(g);
	}
}

TEST(reset_real_and_protected_states_come_back)
{
	struct kg *g = kg_create("", 1);
	struct x86_state once, twice;

	for (unsigned mode = 0; mode < 3; mode++) {
		(mode == 0   ? x86_state_reset
		 : mode == 1 ? kg_state_real
			     : kg_state_protected)(&g->state);
		kg_load(g);
		get(g, &once);
		CHECK_EQ(g->state.cr0, once.cr0);
		CHECK_EQ(g->state.rip, once.rip);
		for (unsigned i = 0; i < X86_NR_SEG; i++)
			check_segment("segment", &g->state.seg[i], &once.seg[i]);
		g->state = once;
		kg_load(g);
		get(g, &twice);
		check_same(&once, &twice);
	}
	kg_destroy(g);
}

TEST(events_between_instructions_come_back)
{
	static const struct {
		uint8_t type, vector, has_error;
		uint32_t error;
	} events[] = {
		{X86_EVENT_EXCEPTION, X86_EXC_PF, 1, 2},
		{X86_EVENT_EXCEPTION, X86_EXC_UD, 0, 0},
		{X86_EVENT_INTR, 0x55, 0, 0},
		{X86_EVENT_NMI, X86_EXC_NMI, 0, 0},
	};
	struct kg *g = kg_create("", 1);
	struct x86_state got;

	for (unsigned i = 0; i < ARRAY_SIZE(events); i++) {
		kg_state_long(&g->state);
		g->state.event_pending = 1;
		g->state.event_type = events[i].type;
		g->state.event_vector = events[i].vector;
		g->state.event_has_error = events[i].has_error;
		g->state.event_error = events[i].error;
		kg_load(g);
		get(g, &got);
		CHECK_EQ(1, got.event_pending);
		CHECK_EQ(events[i].type, got.event_type);
		CHECK_EQ(events[i].vector, got.event_vector);
		CHECK_EQ(events[i].has_error, got.event_has_error);
		CHECK_EQ(events[i].error, got.event_error);
	}
	kg_state_long(&g->state);
	g->state.nmi_pending = g->state.nmi_masked = 1;
	kg_load(g);
	get(g, &got);
	CHECK_EQ(1, got.nmi_pending);
	CHECK_EQ(1, got.nmi_masked);
	CHECK_EQ(0, got.event_pending);
	kg_destroy(g);
}

/* Intel's hardware keeps both kinds of shadow, AMD's one bit for the two. */
TEST(an_interrupt_shadow_comes_back)
{
	struct kg *g = kg_create("", 1);
	struct x86_state got;

	kg_state_long(&g->state);
	g->state.rflags |= RFLAGS_IF;
	g->state.int_shadow = 1;
	kg_load(g);
	get(g, &got);
	CHECK(got.int_shadow != 0);
	g->state.int_shadow = 0;
	kg_load(g);
	get(g, &got);
	CHECK_EQ(0, got.int_shadow);
	kg_destroy(g);
}

TEST(a_pending_interrupt_of_a_loaded_state_is_delivered_first)
{
	static const uint8_t code[] = {0xe6, KG_EXIT};
	struct kg *g = kg_create("", 1);

	kg_handler(g, 0x55, false);
	kg_state_long(&g->state);
	g->state.rflags |= RFLAGS_IF;
	g->state.event_pending = 1;
	g->state.event_type = X86_EVENT_INTR;
	g->state.event_vector = 0x55;
	CHECK_EQ(ENGINE_EXIT_KICKED, kg_run_code(g, code, sizeof(code)));
	CHECK_EQ(1, g->machine[0].nr_vectors);
	CHECK_EQ(0x55, g->machine[0].vectors[0]);
	CHECK_EQ(0, g->state.event_pending);
	kg_destroy(g);
}

TEST(run_states_come_back)
{
	static const uint8_t states[] = {X86_MP_WAIT_SIPI, X86_MP_HALTED, X86_MP_RUNNABLE};
	static const char *const chips[] = {"irqchip=user", "irqchip=split"};

	for (unsigned c = 0; c < ARRAY_SIZE(chips); c++) {
		struct kg *g = kg_create(chips[c], 1);
		struct x86_state got;

		for (unsigned i = 0; i < ARRAY_SIZE(states); i++) {
			kg_state_long(&g->state);
			g->state.mp_state = states[i];
			kg_load(g);
			get(g, &got);
			CHECK_EQ(states[i], got.mp_state);
		}
		kg_destroy(g);
	}
}

TEST(states_that_no_cpu_can_be_in_are_refused)
{
	struct kg *g = kg_create("", 1);
	struct error err = {""};

	kg_state_long(&g->state);
	g->state.cr4 &= ~CR4_PAE; /* long mode without it */
	CHECK(g->e->cpu_set(g->cpu[0], &g->state, &err) < 0);
	CHECK(strstr(err.msg, "control registers") != NULL);
	kg_state_long(&g->state);
	g->state.pat = 0x0202020202020202; /* a reserved memory type */
	if (g->e->cpu_set(g->cpu[0], &g->state, &err) == 0)
		SKIP("this KVM does not look at the PAT");
	CHECK(strstr(err.msg, "MSR 0x277") != NULL);
	kg_destroy(g);
}

/* --- between engines ---------------------------------------------------------------------------
 */

struct soft {
	struct mem *mem;
	struct engine_vm *vm;
	struct engine_cpu *cpu;
};

static void soft_create(struct soft *o, const struct cpu_model *m)
{
	struct engine_vm_config cfg = {.nr_cpus = 1, .model = m, .options = ""};
	static struct kg_cpu machine;
	struct error err = {""};

	CHECK_EQ(0, mem_create(&o->mem, &err));
	CHECK_EQ(0, mem_add_ram(o->mem, 0, KG_RAM, &err));
	cfg.mem = o->mem;
	CHECK_EQ(0, engine_soft.vm_create(&o->vm, &cfg, &err));
	CHECK_EQ(0, engine_soft.cpu_create(&o->cpu, o->vm, 0, &kg_ops, &machine, &err));
}

static void soft_destroy(struct soft *o)
{
	engine_soft.cpu_destroy(o->cpu);
	engine_soft.vm_destroy(o->vm);
	mem_destroy(o->mem);
}

TEST(a_state_goes_from_soft_to_kvm_and_back)
{
	struct kg *g = kg_create("", 1);
	struct x86_state soft, back;
	struct error err = {""};
	struct soft o;

	soft_create(&o, &g->model);
	fill(g);
	CHECK_EQ(0, engine_soft.cpu_set(o.cpu, &g->state, &err));
	engine_soft.cpu_get(o.cpu, &soft);
	g->state = soft;
	kg_load(g);
	get(g, &g->state);
	CHECK_EQ(0, engine_soft.cpu_set(o.cpu, &g->state, &err));
	engine_soft.cpu_get(o.cpu, &back);
	check_same(&soft, &back);
	soft_destroy(&o);
	kg_destroy(g);
}

/* --- time --------------------------------------------------------------------------------------
 */

TEST(the_time_stamp_counter_goes_on_from_where_it_was_set)
{
	static const uint8_t code[] = {
		0x0f, 0x31,                                  /* rdtsc */
		0x48, 0xc1,    0xe2, 0x20, 0x48, 0x09, 0xd0, /* shl rdx, 32; or rax, rdx */
		0xe6, KG_EXIT,
	};
	const uint64_t start = 0x123456789abc;

	for (unsigned user = 0; user < 2; user++) {
		struct kg *g = kg_create(user ? "irqchip=user" : "", 1);
		uint64_t second = g->e->tsc_khz(g->vm) * 1000, before, after, host;

		CHECK(second > 100000000);
		kg_state_long(&g->state);
		g->state.tsc = start;
		kg_put(g, KG_CODE, code, sizeof(code));
		kg_load(g);
		host = __builtin_ia32_rdtsc();
		before = g->e->cpu_tsc(g->cpu[0]);
		CHECK(before >= start && before - start < 60 * second);
		CHECK_EQ(ENGINE_EXIT_KICKED, kg_run(g));
		after = g->e->cpu_tsc(g->cpu[0]);
		if (g->state.gpr[X86_RAX] - host < 60 * second)
			SKIP("this KVM gives its guests the host's counter as it is");
		/* The kernel's idea of the offset and ours differ by less than a microsecond. */
		CHECK(g->state.gpr[X86_RAX] + second / 1000000 >= before);
		CHECK(g->state.gpr[X86_RAX] <= after + second / 1000000);
		kg_destroy(g);
	}
}

TEST(the_cpus_of_a_vm_share_one_time)
{
	struct kg *g = kg_create("", 2);
	struct error err = {""};
	uint64_t a, b, c;

	kg_state_long(&g->state);
	g->state.tsc = 0x123456789abc;
	for (unsigned i = 0; i < 2; i++)
		CHECK_EQ(0, g->e->cpu_set(g->cpu[i], &g->state, &err));
	a = g->e->cpu_tsc(g->cpu[0]);
	b = g->e->cpu_tsc(g->cpu[1]);
	c = g->e->cpu_tsc(g->cpu[0]);
	CHECK(a <= b && b <= c);
	kg_destroy(g);
}

/* After a pause, however short, time goes on where it stood; what only comes back does not stop it.
 */
TEST(a_counter_goes_back_when_that_is_meant_only)
{
	struct kg *g = kg_create("", 2);
	uint64_t before[2], host, a, b, c;
	struct error err = {""};

	kg_state_long(&g->state);
	g->state.tsc = 0x123456789abc;
	for (unsigned i = 0; i < 2; i++)
		CHECK_EQ(0, g->e->cpu_set(g->cpu[i], &g->state, &err));
	for (unsigned i = 0; i < 2; i++) {
		g->e->cpu_get(g->cpu[i], &g->state);
		before[i] = g->e->cpu_tsc(g->cpu[i]);
		CHECK_EQ(0, g->e->cpu_set(g->cpu[i], &g->state, &err));
		CHECK(g->e->cpu_tsc(g->cpu[i]) >= before[i]);
	}
	host = __builtin_ia32_rdtsc();
	for (unsigned i = 0; i < 2; i++) {
		g->e->cpu_get(g->cpu[i], &g->state);
		g->state.tsc = before[i] - 1000000;
		CHECK_EQ(0, g->e->cpu_set(g->cpu[i], &g->state, &err));
	}
	a = g->e->cpu_tsc(g->cpu[0]);
	b = g->e->cpu_tsc(g->cpu[1]);
	c = g->e->cpu_tsc(g->cpu[0]);
	CHECK(a <= b && b <= c);
	CHECK(c - (before[0] - 1000000) <= __builtin_ia32_rdtsc() - host);
	kg_destroy(g);
}

TEST(another_rate_is_given_or_refused_in_words)
{
	struct kg *g = kg_create("", 1);
	uint64_t khz = g->e->tsc_khz(g->vm);
	struct error err = {""};
	int r;

	CHECK_EQ(0, g->e->tsc_khz_set(g->vm, khz, &err));
	CHECK_EQ(0, g->e->tsc_khz_set(g->vm, khz + khz / 10000, &err)); /* 100 ppm */
	r = g->e->tsc_khz_set(g->vm, khz / 2, &err);
	if (r == 0) {
		CHECK_EQ(khz / 2, g->e->tsc_khz(g->vm));
	} else {
		CHECK_EQ(-ENOTSUP, r);
		CHECK(strstr(err.msg, "cannot scale") != NULL);
		CHECK_EQ(khz, g->e->tsc_khz(g->vm));
	}
	kg_destroy(g);
}

TEST(the_paravirtual_clock_goes_on_from_where_it_was_set)
{
	struct kg *g = kg_create("", 1);
	const uint64_t start = 1000000000000;
	uint64_t now = 0;

	CHECK_EQ(0, g->e->pv_clock_set(g->vm, start));
	CHECK_EQ(0, g->e->pv_clock_get(g->vm, &now));
	CHECK(now >= start && now - start < 60000000000);
	kg_destroy(g);
}
