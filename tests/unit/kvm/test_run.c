/* Tests of the kvm engine's run loop: modes, ports, MMIO, MSRs, kicks, debugging, and ends. */
#include "kvm_guest.h"

#include <sys/eventfd.h>
#include <time.h>

#define OUT_EXIT 0xe6, KG_EXIT /* out KG_EXIT, al */

static const char *const chips[] = {"irqchip=user", "irqchip=split", "irqchip=kernel"};

/* --- modes -------------------------------------------------------------------------------------
 */

TEST(real_mode_code_runs)
{
	static const uint8_t code[] = {
		0xb8,     0x34, 0x12, /* mov ax, 0x1234 */
		0x40,                 /* inc ax */
		0xbb,     0x00, 0x20, /* mov bx, 0x2000 */
		0x8e,     0xdb,       /* mov ds, bx */
		0xa3,     0x10, 0x00, /* mov [0x10], ax */
		OUT_EXIT,
	};
	struct kg *g = kg_create("", 1);

	kg_state_real(&g->state);
	CHECK_EQ(ENGINE_EXIT_KICKED, kg_run_code(g, code, sizeof(code)));
	CHECK_EQ(0x1235, kg_get64(g, 0x20010) & 0xffff);
	CHECK_EQ(0x1235, g->state.gpr[X86_RAX]);
	CHECK_EQ(sizeof(code), g->state.rip);
	CHECK_EQ(0x20000, g->state.seg[X86_DS].base);
	kg_destroy(g);
}

TEST(protected_mode_code_runs)
{
	static const uint8_t code[] = {
		0xb8,     0x78, 0x56, 0x34, 0x12, /* mov eax, 0x12345678 */
		0xa3,     0x00, 0x00, 0x02, 0x00, /* mov [0x20000], eax */
		OUT_EXIT,
	};
	struct kg *g = kg_create("", 1);

	kg_state_protected(&g->state);
	CHECK_EQ(ENGINE_EXIT_KICKED, kg_run_code(g, code, sizeof(code)));
	CHECK_EQ(0x12345678, kg_get64(g, 0x20000));
	CHECK_EQ(KG_CODE + sizeof(code), g->state.rip);
	kg_destroy(g);
}

TEST(long_mode_code_runs_with_chips_anywhere)
{
	static const uint8_t code[] = {
		0x31,     0xc0,                   /* xor eax, eax */
		0xb9,     0x64, 0x00, 0x00, 0x00, /* mov ecx, 100 */
		0x48,     0x01, 0xc8,             /* again: add rax, rcx */
		0x48,     0xff, 0xc9,             /* dec rcx */
		0x75,     0xf8,                   /* jnz again */
		OUT_EXIT,
	};

	for (unsigned i = 0; i < ARRAY_SIZE(chips); i++) {
		struct kg *g = kg_create(chips[i], 1);

		CHECK_EQ(ENGINE_EXIT_KICKED, kg_run_code(g, code, sizeof(code)));
		CHECK_EQ(5050, g->state.gpr[X86_RAX]);
		CHECK_EQ(KG_CODE + sizeof(code), g->state.rip);
		kg_destroy(g);
	}
}

/* --- ports and MMIO ----------------------------------------------------------------------------
 */

static void check_access(const struct kg *g, unsigned n, struct kg_access want)
{
	const struct kg_access *got = &g->machine[0].log[n];

	CHECK(n < g->machine[0].nr_log);
	CHECK_EQ(want.write, got->write);
	CHECK_EQ(want.pio, got->pio);
	CHECK_EQ(want.addr, got->addr);
	CHECK_EQ(want.value, got->value);
	CHECK_EQ(want.size, got->size);
}

TEST(ports_of_all_sizes)
{
	static const uint8_t code[] = {
		0xba,     0x34, 0x12, 0x00, 0x00, /* mov edx, 0x1234 */
		0xb8,     0x44, 0x33, 0x22, 0x11, /* mov eax, 0x11223344 */
		0xee,                             /* out dx, al */
		0x66,     0xef,                   /* out dx, ax */
		0xef,                             /* out dx, eax */
		0xed,                             /* in eax, dx */
		OUT_EXIT,
	};
	struct kg *g = kg_create("", 1);

	g->machine[0].pio_next = 0xabcdef01;
	CHECK_EQ(ENGINE_EXIT_KICKED, kg_run_code(g, code, sizeof(code)));
	check_access(g, 0, (struct kg_access){true, true, 0x1234, 0x44, 1});
	check_access(g, 1, (struct kg_access){true, true, 0x1234, 0x3344, 2});
	check_access(g, 2, (struct kg_access){true, true, 0x1234, 0x11223344, 4});
	check_access(g, 3, (struct kg_access){false, true, 0x1234, 0xabcdef01, 4});
	CHECK_EQ(0xabcdef01, g->state.gpr[X86_RAX]);
	kg_destroy(g);
}

TEST(string_instructions_move_every_element)
{
	static const uint8_t code[] = {
		0xba,     0x10, 0x03, 0x00, 0x00, /* mov edx, 0x310 */
		0xbe,     0x00, 0x00, 0x02, 0x00, /* mov esi, 0x20000 */
		0xb9,     0x05, 0x00, 0x00, 0x00, /* mov ecx, 5 */
		0xf3,     0x6e,                   /* rep outsb */
		0xbf,     0x00, 0x00, 0x03, 0x00, /* mov edi, 0x30000 */
		0xb9,     0x04, 0x00, 0x00, 0x00, /* mov ecx, 4 */
		0xf3,     0x66, 0x6d,             /* rep insw */
		OUT_EXIT,
	};
	struct kg *g = kg_create("", 1);

	kg_put(g, 0x20000, "guest", 5);
	g->machine[0].pio_next = 0x100;
	CHECK_EQ(ENGINE_EXIT_KICKED, kg_run_code(g, code, sizeof(code)));
	for (unsigned i = 0; i < 5; i++)
		check_access(g, i, (struct kg_access){true, true, 0x310, (uint8_t) "guest"[i], 1});
	for (unsigned i = 0; i < 4; i++)
		check_access(g, 5 + i, (struct kg_access){false, true, 0x310, 0x100 + i, 2});
	CHECK_EQ(0x0103010201010100, kg_get64(g, 0x30000));
	CHECK_EQ(0, g->state.gpr[X86_RCX]);
	CHECK_EQ(0x20005, g->state.gpr[X86_RSI]);
	CHECK_EQ(0x30008, g->state.gpr[X86_RDI]);
	kg_destroy(g);
}

TEST(mmio_of_all_sizes)
{
	static const uint8_t code[] = {
		0xbb,     0x00, 0x00, 0x00, 0xc0, /* mov ebx, KG_MMIO */
		0x48,     0xb8, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, /* mov rax, ... */
		0x88,     0x03,                                                 /* mov [rbx], al */
		0x66,     0x89, 0x43, 0x02, /* mov [rbx+2], ax */
		0x89,     0x43, 0x04,       /* mov [rbx+4], eax */
		0x48,     0x89, 0x43, 0x08, /* mov [rbx+8], rax */
		0x48,     0x8b, 0x4b, 0x10, /* mov rcx, [rbx+16] */
		0x0f,     0xb6, 0x53, 0x01, /* movzx edx, byte [rbx+1] */
		OUT_EXIT,
	};
	struct kg *g = kg_create("", 1);
	const uint64_t at = KG_MMIO;

	CHECK_EQ(ENGINE_EXIT_KICKED, kg_run_code(g, code, sizeof(code)));
	check_access(g, 0, (struct kg_access){true, false, at, 0x88, 1});
	check_access(g, 1, (struct kg_access){true, false, at + 2, 0x7788, 2});
	check_access(g, 2, (struct kg_access){true, false, at + 4, 0x55667788, 4});
	check_access(g, 3, (struct kg_access){true, false, at + 8, 0x1122334455667788, 8});
	CHECK_EQ(0x8877665544332211ull + at + 16, g->state.gpr[X86_RCX]);
	CHECK_EQ((0x11 + at + 1) & 0xff, g->state.gpr[X86_RDX]);
	kg_destroy(g);
}

TEST(a_write_over_a_page_edge_comes_in_pieces_of_device_sizes)
{
	static const uint8_t code[] = {
		0xbb,     0xfb, 0x0f, 0x00, 0xc0, /* mov ebx, KG_MMIO + 0xffb */
		0x48,     0xb8, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, /* mov rax, ... */
		0x48,     0x89, 0x03,                                           /* mov [rbx], rax */
		OUT_EXIT,
	};
	struct kg *g = kg_create("", 1);
	uint64_t seen = 0, mask = 0;

	CHECK_EQ(ENGINE_EXIT_KICKED, kg_run_code(g, code, sizeof(code)));
	for (unsigned i = 0; i + 1 < g->machine[0].nr_log; i++) {
		const struct kg_access *a = &g->machine[0].log[i];
		unsigned off = (unsigned)(a->addr - (KG_MMIO + 0xffbull));

		CHECK(a->size == 1 || a->size == 2 || a->size == 4);
		CHECK(off + a->size <= 8);
		seen |= a->value << off * 8;
		mask |= (BIT(a->size * 8) - 1) << off * 8;
	}
	CHECK_EQ(~0ull, mask);
	CHECK_EQ(0x1122334455667788, seen);
	kg_destroy(g);
}

TEST(gathered_writes_come_in_order_before_the_next_exit)
{
	static const uint8_t code[] = {
		0xbb,     0x00, 0x00, 0x00, 0xc0, /* mov ebx, KG_MMIO */
		0xb8,     0x01, 0x00, 0x00, 0x00, /* mov eax, 1 */
		0x89,     0x03,                   /* mov [rbx], eax */
		0xff,     0xc0,                   /* inc eax */
		0x89,     0x43, 0x04,             /* mov [rbx+4], eax */
		OUT_EXIT,
	};
	struct kg *g = kg_create("", 1);
	const uint64_t at = KG_MMIO;
	int r = g->e->coalesce_add(g->vm, at, PAGE_SIZE, false);

	if (r == -ENOTSUP)
		SKIP("this KVM gathers no writes");
	CHECK_EQ(0, r);
	CHECK_EQ(ENGINE_EXIT_KICKED, kg_run_code(g, code, sizeof(code)));
	check_access(g, 0, (struct kg_access){true, false, at, 1, 4});
	check_access(g, 1, (struct kg_access){true, false, at + 4, 2, 4});
	check_access(g, 2, (struct kg_access){true, true, KG_EXIT, 2, 1});
	g->e->coalesce_del(g->vm, at, PAGE_SIZE, false);
	kg_destroy(g);
}

/* --- MSRs --------------------------------------------------------------------------------------
 */

TEST(the_machine_has_the_deadline_timer_when_it_has_the_local_apics)
{
	static const uint8_t code[] = {
		0xb9,     0xe0, 0x06, 0x00, 0x00, /* mov ecx, IA32_TSC_DEADLINE */
		0xb8,     0x78, 0x56, 0x34, 0x12, /* mov eax, 0x12345678 */
		0xba,     0x01, 0x00, 0x00, 0x00, /* mov edx, 1 */
		0x0f,     0x30,                   /* wrmsr */
		0x31,     0xc0,                   /* xor eax, eax */
		0x0f,     0x32,                   /* rdmsr */
		OUT_EXIT,
	};
	struct kg *g = kg_create("irqchip=user", 1);

	g->machine[0].msr_known = true;
	CHECK_EQ(ENGINE_EXIT_KICKED, kg_run_code(g, code, sizeof(code)));
	CHECK_EQ(0x6e0, g->machine[0].msr_index);
	CHECK_EQ(0x112345678, g->machine[0].msr_value);
	CHECK_EQ(0x12345678, g->state.gpr[X86_RAX]);
	CHECK_EQ(1, g->state.gpr[X86_RDX]);
	kg_destroy(g);
}

TEST(an_msr_that_nobody_knows_is_a_fault)
{
	static const uint8_t code[] = {
		0xb9, 0x78,    0x56, 0x34, 0x12, /* mov ecx, 0x12345678 */
		0x0f, 0x32,                      /* rdmsr */
		0xe6, KG_EXIT,
	};
	struct kg *g = kg_create("irqchip=user", 1);

	kg_handler(g, X86_EXC_GP, false);
	/* The handler's IRET meets the error code, which is the end of it. */
	CHECK_EQ(ENGINE_EXIT_SHUTDOWN, kg_run_code(g, code, sizeof(code)));
	CHECK_EQ(0x12345678, g->machine[0].msr_index);
	CHECK_EQ(X86_EXC_GP, g->machine[0].vectors[0]);
	kg_destroy(g);
}

/* --- kicks -------------------------------------------------------------------------------------
 */

static const uint8_t spin[] = {0x48, 0xff, 0xc0, 0xeb, 0xfb}; /* again: inc rax; jmp again */

struct kicker {
	struct kg *g;
	atomic_uint got;
	unsigned want;
};

static void *kick_often(void *arg)
{
	struct kicker *k = arg;
	const struct timespec pause = {.tv_nsec = 100000};

	for (unsigned seen = 0; seen < k->want; seen = atomic_load(&k->got)) {
		k->g->e->cpu_kick(k->g->cpu[0]);
		nanosleep(&pause, NULL);
	}
	return NULL;
}

TEST(a_spinning_guest_can_be_kicked_again_and_again)
{
	for (unsigned i = 0; i < ARRAY_SIZE(chips); i++) {
		struct kg *g = kg_create(chips[i], 1);
		struct kicker k = {.g = g, .want = 100};
		uint64_t last = 0;
		pthread_t t;

		kg_put(g, KG_CODE, spin, sizeof(spin));
		kg_load(g);
		CHECK_EQ(0, pthread_create(&t, NULL, kick_often, &k));
		for (unsigned n = 0; n < k.want; n++) {
			CHECK_EQ(ENGINE_EXIT_KICKED, kg_run(g));
			CHECK(g->state.gpr[X86_RAX] >= last);
			last = g->state.gpr[X86_RAX];
			atomic_fetch_add(&k.got, 1);
		}
		pthread_join(t, NULL);
		kg_destroy(g);
	}
}

TEST(a_kick_before_the_run_ends_it_at_once)
{
	struct kg *g = kg_create("", 1);

	kg_put(g, KG_CODE, spin, sizeof(spin));
	kg_load(g);
	for (unsigned n = 0; n < 100; n++) {
		g->e->cpu_kick(g->cpu[0]);
		CHECK_EQ(ENGINE_EXIT_KICKED, kg_run(g));
	}
	kg_destroy(g);
}

/* A guest that does nothing but ask for a port, kicked all the time: each IN counts once, and the
 * state after a kick is between two instructions. */
TEST(a_kick_in_the_middle_of_a_port_access_lets_it_end)
{
	static const uint8_t code[] = {
		0xba, 0x10, 0x03, 0x00, 0x00, /* mov edx, 0x310 */
		0xed,                         /* again: in eax, dx */
		0x48, 0x01, 0xc3,             /* add rbx, rax */
		0xff, 0xc1,                   /* inc ecx */
		0xeb, 0xf8,                   /* jmp again */
	};
	struct kg *g = kg_create("", 1);
	struct kicker k = {.g = g, .want = 200};
	pthread_t t;

	kg_put(g, KG_CODE, code, sizeof(code));
	kg_load(g);
	CHECK_EQ(0, pthread_create(&t, NULL, kick_often, &k));
	while (atomic_load(&k.got) < k.want) {
		uint64_t n, sum;

		CHECK_EQ(ENGINE_EXIT_KICKED, kg_run(g));
		n = g->machine[0].pio_next; /* values 0 .. n-1 were read */
		sum = n * (n - 1) / 2;
		if (n && g->state.rip == KG_CODE + 6) /* the last of them is not added yet */
			sum -= n - 1;
		CHECK_EQ(sum, n ? g->state.gpr[X86_RBX] : 0);
		atomic_fetch_add(&k.got, 1);
	}
	pthread_join(t, NULL);
	kg_destroy(g);
}

TEST(a_halted_cpu_whose_local_apic_is_in_the_kernel_can_be_kicked)
{
	static const uint8_t code[] = {0xf4, 0xf4}; /* hlt; hlt */
	struct kg *g = kg_create("irqchip=split", 1);
	struct kicker k = {.g = g, .want = 5};
	pthread_t t;

	kg_put(g, KG_CODE, code, sizeof(code));
	kg_load(g);
	CHECK_EQ(0, pthread_create(&t, NULL, kick_often, &k));
	/* The first kicks may come before the guest has run at all. */
	while (atomic_load(&k.got) < k.want) {
		CHECK_EQ(ENGINE_EXIT_KICKED, kg_run(g));
		if (g->state.mp_state == X86_MP_HALTED)
			atomic_fetch_add(&k.got, 1);
	}
	CHECK_EQ(KG_CODE + 1, g->state.rip);
	pthread_join(t, NULL);
	kg_destroy(g);
}

/* --- doorbells ---------------------------------------------------------------------------------
 */

static uint64_t rung(int fd)
{
	uint64_t n = 0;

	return read(fd, &n, sizeof(n)) == sizeof(n) ? n : 0;
}

TEST(doorbells_ring_without_leaving_the_engine)
{
	static const uint8_t code[] = {
		0xbb,     0x00, 0x00, 0x00, 0xc0,       /* mov ebx, KG_MMIO */
		0xb8,     0x05, 0x00, 0x00, 0x00,       /* mov eax, 5 */
		0x89,     0x03,                         /* mov [rbx], eax: any value */
		0x66,     0x89, 0x43, 0x10,             /* mov [rbx+16], ax: 5 rings */
		0xff,     0xc0,                         /* inc eax */
		0x66,     0x89, 0x43, 0x10,             /* mov [rbx+16], ax: 6 does not */
		0xba,     0x00, 0x05, 0x00, 0x00, 0xef, /* mov edx, 0x500; out dx, eax */
		OUT_EXIT,
	};
	struct kg *g = kg_create("", 1);
	const uint64_t at = KG_MMIO;
	const struct engine_doorbell bells[] = {
		{.addr = at, .size = 4},
		{.addr = at + 16, .size = 2, .match = true, .value = 5},
		{.addr = 0x500, .size = 4, .pio = true},
	};
	int fd[3];

	for (unsigned i = 0; i < 3; i++) {
		fd[i] = eventfd(0, EFD_NONBLOCK);
		CHECK_EQ(0, g->e->doorbell_add(g->vm, &bells[i], fd[i]));
	}
	CHECK_EQ(ENGINE_EXIT_KICKED, kg_run_code(g, code, sizeof(code)));
	for (unsigned i = 0; i < 3; i++)
		CHECK_EQ(1, rung(fd[i]));
	CHECK_EQ(2, g->machine[0].nr_log); /* the 6 and the exit */
	check_access(g, 0, (struct kg_access){true, false, at + 16, 6, 2});
	for (unsigned i = 0; i < 3; i++) {
		g->e->doorbell_del(g->vm, &bells[i], fd[i]);
		close(fd[i]);
	}
	g->machine[0].nr_log = 0;
	kg_state_long(&g->state);
	CHECK_EQ(ENGINE_EXIT_KICKED, kg_run_code(g, code, sizeof(code)));
	CHECK_EQ(5, g->machine[0].nr_log);
	kg_destroy(g);
}

/* --- ends --------------------------------------------------------------------------------------
 */

TEST(a_triple_fault_is_a_shutdown)
{
	static const uint8_t code[] = {0x0f, 0x0b}; /* ud2 */
	struct kg *g = kg_create("", 1);

	g->state.idtr.limit = 0;
	CHECK_EQ(ENGINE_EXIT_SHUTDOWN, kg_run_code(g, code, sizeof(code)));
	kg_destroy(g);
}

TEST(what_kvm_cannot_do_is_said_in_words)
{
	static const uint8_t code[] = {
		0xb8, 0x00, 0x00, 0x00, 0xc0, /* mov eax, KG_MMIO */
		0xff, 0xe0,                   /* jmp rax: no instruction can be had there */
	};
	struct kg *g = kg_create("", 1);
	enum engine_exit why;

	/* A kernel may also give the guest a fault for it, which here has no handler. */
	why = kg_run_code(g, code, sizeof(code));
	CHECK(why == ENGINE_EXIT_ERROR || why == ENGINE_EXIT_SHUTDOWN);
	if (why == ENGINE_EXIT_ERROR)
		CHECK(strstr(g->info.message, "KVM") != NULL);
	kg_destroy(g);
}

TEST(options_that_are_not_known_are_refused)
{
	struct kg g = {.e = &engine_kvm};
	struct engine_vm_config cfg = {.nr_cpus = 1, .model = &g.model, .options = "irqchip=usr"};
	struct error err = {""};

	kg_need_kvm();
	kg_model(&g);
	CHECK_EQ(0, mem_create(&g.mem, &err));
	cfg.mem = g.mem;
	CHECK_EQ(-EINVAL, engine_kvm.vm_create(&g.vm, &cfg, &err));
	CHECK(strstr(err.msg, "irqchip=user|split|kernel") != NULL);
	mem_destroy(g.mem);
}

TEST(a_model_with_what_the_engine_lacks_is_refused_by_name)
{
	struct kg g = {.e = &engine_kvm};
	struct engine_vm_config cfg = {.nr_cpus = 1, .model = &g.model};
	uint64_t lacks[ARRAY_SIZE(g.model.features)] = {0};
	struct error err = {""};
	unsigned f = 0;

	kg_need_kvm();
	for (unsigned i = 0; i < CPU_NR_FEATURES; i++)
		g.model.features[i / 64] |= BIT(i % 64);
	CHECK_EQ(0, engine_kvm.cpu_lacks(&g.model, lacks, &err));
	while (f < CPU_NR_FEATURES && !(lacks[f / 64] >> f % 64 & 1))
		f++;
	if (f == CPU_NR_FEATURES)
		SKIP("this KVM has every feature there is");
	CHECK_EQ(0, mem_create(&g.mem, &err));
	cfg.mem = g.mem;
	CHECK_EQ(-ENOTSUP, engine_kvm.vm_create(&g.vm, &cfg, &err));
	CHECK(strstr(err.msg, cpu_feature_name(f)) != NULL);
	mem_destroy(g.mem);
}

/* --- a debugger --------------------------------------------------------------------------------
 */

TEST(single_steps)
{
	static const uint8_t code[] = {
		0xb8,     0x01, 0x00, 0x00, 0x00, /* mov eax, 1 */
		0xff,     0xc0,                   /* inc eax */
		0xff,     0xc0,                   /* inc eax */
		OUT_EXIT,
	};
	static const uint64_t rips[] = {KG_CODE + 5, KG_CODE + 7, KG_CODE + 9};
	struct kg *g = kg_create("", 1);
	const struct engine_debug on = {.single_step = true}, off = {0};
	enum engine_exit why;

	kg_put(g, KG_CODE, code, sizeof(code));
	kg_load(g);
	g->e->cpu_debug(g->cpu[0], &on);
	for (unsigned i = 0; i < ARRAY_SIZE(rips); i++) {
		why = kg_run(g);
		if (i == 0 && why == ENGINE_EXIT_KICKED)
			SKIP("this KVM runs on where it should step (an emulated one does)");
		CHECK_EQ(ENGINE_EXIT_DEBUG, why);
		CHECK_EQ(X86_EXC_DB, g->info.vector);
		CHECK_EQ(rips[i], g->state.rip);
		CHECK_EQ(0, g->state.rflags & RFLAGS_TF);
	}
	CHECK_EQ(3, g->state.gpr[X86_RAX]);
	g->e->cpu_debug(g->cpu[0], &off);
	CHECK_EQ(ENGINE_EXIT_KICKED, kg_run(g));
	kg_destroy(g);
}

TEST(a_breakpoint_is_the_debuggers_or_the_guests)
{
	static const uint8_t code[] = {0x90, 0xcc, OUT_EXIT}; /* nop; int3 */
	struct kg *g = kg_create("", 1);
	const struct engine_debug on = {.intercept = BIT(X86_EXC_BP)}, off = {0};
	enum engine_exit why;

	kg_handler(g, X86_EXC_BP, false);
	g->e->cpu_debug(g->cpu[0], &on);
	why = kg_run_code(g, code, sizeof(code));
	if (why == ENGINE_EXIT_ERROR)
		SKIP("this KVM emulates ring 0, and not INT3");
	if (why == ENGINE_EXIT_KICKED && g->machine[0].nr_vectors)
		SKIP("this KVM's processor does not intercept INT3 (an emulated one)");
	CHECK_EQ(ENGINE_EXIT_DEBUG, why);
	CHECK_EQ(X86_EXC_BP, g->info.vector);
	CHECK_EQ(KG_CODE + 1, g->state.rip);
	CHECK_EQ(0, g->machine[0].nr_vectors);
	g->e->cpu_debug(g->cpu[0], &off);
	CHECK_EQ(ENGINE_EXIT_KICKED, kg_run(g));
	CHECK_EQ(1, g->machine[0].nr_vectors);
	CHECK_EQ(X86_EXC_BP, g->machine[0].vectors[0]);
	kg_destroy(g);
}
