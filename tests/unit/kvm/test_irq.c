/* Tests of interrupts into kvm guests: by our chips, by the kernel's local APIC, by descriptors. */
#include "kvm_guest.h"

#include <sys/eventfd.h>

enum { V1 = 0x41, V2 = 0x52 };

/* sti; 1: pause; dec ecx; jnz 1b; out KG_EXIT.  An emulated KVM looks for interrupts now and then.
 */
static const uint8_t open_and_wait[] = {0xfb, 0xf3, 0x90, 0xff, 0xc9, 0x75, 0xfa, 0xe6, KG_EXIT};

/* Message to the CPU with APIC id `dest`, fixed delivery. */
static uint64_t msi_to(unsigned dest)
{
	return 0xfee00000 | dest << 12;
}

static void request(struct kg *g, uint8_t vector)
{
	atomic_store(&g->machine[0].intr_vector, vector);
	g->e->cpu_intr(g->cpu[0], true);
}

/* Runs until the guest's own end, whoever else kicks. */
static void run_to_end(struct kg *g, const uint8_t *code, size_t len)
{
	g->state.gpr[X86_RCX] = 1000;
	CHECK_EQ(ENGINE_EXIT_KICKED, kg_run_code(g, code, len));
	CHECK_EQ(KG_CODE + len, g->state.rip);
}

/* Again and again, until `n` handlers have run: the kernel may deliver from a thread of its own. */
static void run_to_vector(struct kg *g, unsigned n)
{
	while (g->machine[0].nr_vectors < n) {
		kg_state_long(&g->state);
		run_to_end(g, open_and_wait, sizeof(open_and_wait));
		usleep(100);
	}
	CHECK_EQ(n, g->machine[0].nr_vectors);
}

/* --- our own chips -----------------------------------------------------------------------------
 */

TEST(an_interrupt_waits_for_sti)
{
	static const uint8_t closed[] = {
		0xe6, 0x10, /* out 0x10, al: an exit with interrupts closed */
		0xf3, 0x90,    0xff, 0xc9, 0x75, 0xfa, /* 1: pause; dec ecx; jnz 1b */
		0xe6, KG_EXIT,
	};
	struct kg *g = kg_create("irqchip=user", 1);

	kg_handler(g, V1, false);
	request(g, V1);
	run_to_end(g, closed, sizeof(closed));
	CHECK_EQ(0, g->machine[0].nr_vectors);
	kg_state_long(&g->state);
	run_to_end(g, open_and_wait, sizeof(open_and_wait));
	CHECK_EQ(1, g->machine[0].nr_vectors);
	CHECK_EQ(V1, g->machine[0].vectors[0]);
	kg_destroy(g);
}

TEST(an_interrupt_ends_a_halt)
{
	static const uint8_t code[] = {0xfb, 0xf4, 0xe6, KG_EXIT}; /* sti; hlt; out */
	struct kg *g = kg_create("irqchip=user", 1);

	kg_handler(g, V1, false);
	CHECK_EQ(ENGINE_EXIT_HALTED, kg_run_code(g, code, sizeof(code)));
	CHECK_EQ(X86_MP_HALTED, g->state.mp_state);
	CHECK_EQ(KG_CODE + 2, g->state.rip);
	CHECK_EQ(ENGINE_EXIT_HALTED, kg_run(g)); /* nothing has come */
	kg_load(g);                              /* as if saved and loaded */
	request(g, V1);
	CHECK_EQ(ENGINE_EXIT_KICKED, kg_run(g));
	CHECK_EQ(1, g->machine[0].nr_vectors);
	CHECK_EQ(X86_MP_RUNNABLE, g->state.mp_state);
	kg_destroy(g);
}

TEST(a_halt_with_interrupts_closed_waits_for_an_nmi)
{
	static const uint8_t code[] = {0xf4, 0xe6, KG_EXIT}; /* hlt; out */
	struct kg *g = kg_create("irqchip=user", 1);

	kg_handler(g, X86_EXC_NMI, false);
	CHECK_EQ(ENGINE_EXIT_HALTED, kg_run_code(g, code, sizeof(code)));
	request(g, V1);
	CHECK_EQ(ENGINE_EXIT_HALTED, kg_run(g));
	g->e->cpu_nmi(g->cpu[0]);
	CHECK_EQ(ENGINE_EXIT_KICKED, kg_run(g));
	CHECK_EQ(X86_EXC_NMI, g->machine[0].vectors[0]);
	kg_destroy(g);
}

TEST(task_priority_goes_both_ways)
{
	static const uint8_t code[] = {
		0x44, 0x0f,    0x20, 0xc0, /* mov rax, cr8 */
		0xb9, 0x09,    0x00, 0x00, 0x00,
		0x44, 0x0f,    0x22, 0xc1, /* mov ecx, 9; mov cr8, rcx */
		0xe6, KG_EXIT,
	};
	struct kg *g = kg_create("irqchip=user", 1);

	g->machine[0].cr8 = 5;
	CHECK_EQ(ENGINE_EXIT_KICKED, kg_run_code(g, code, sizeof(code)));
	CHECK_EQ(5, g->state.gpr[X86_RAX]);
	CHECK_EQ(9, g->machine[0].cr8);
	kg_destroy(g);
}

/* --- the kernel's local APIC -------------------------------------------------------------------
 */

TEST(messages_reach_a_handler)
{
	static const char *const chips[] = {"irqchip=split", "irqchip=kernel"};

	for (unsigned i = 0; i < ARRAY_SIZE(chips); i++) {
		struct kg *g = kg_create(chips[i], 1);

		kg_handler(g, V1, true);
		kg_handler(g, V2, true);
		kg_enable_lapic(g, 0);
		CHECK_EQ(0, g->e->irq->msi_send(g->vm, msi_to(0), V1));
		CHECK_EQ(0, g->e->irq->msi_send(g->vm, msi_to(0), V2));
		run_to_end(g, open_and_wait, sizeof(open_and_wait));
		CHECK_EQ(2, g->machine[0].nr_vectors);
		CHECK_EQ(V2, g->machine[0].vectors[0]); /* the higher first */
		CHECK_EQ(V1, g->machine[0].vectors[1]);
		kg_destroy(g);
	}
}

TEST(a_message_to_elsewhere_is_no_interrupt)
{
	struct kg *g = kg_create("irqchip=split", 1);

	CHECK_EQ(-EINVAL, g->e->irq->msi_send(g->vm, 0xfed00000, V1));
	kg_destroy(g);
}

static void *run_cpu(void *arg)
{
	struct kg_cpu *m = arg;
	struct engine_exit_info info;

	while (m->g->e->cpu_run(m->g->cpu[m->index], &info) == ENGINE_EXIT_KICKED && !m->nr_vectors)
		;
	return NULL;
}

TEST(a_halted_cpu_in_another_thread_is_woken)
{
	static const uint8_t code[] = {0xfb, 0xf4, 0xeb, 0xfd}; /* sti; 1: hlt; jmp 1b */
	struct kg *g = kg_create("irqchip=split", 1);
	struct x86_state *s = &g->state;
	pthread_t t;

	kg_handler(g, V1, true);
	kg_put(g, KG_CODE, code, sizeof(code));
	kg_load(g);
	kg_enable_lapic(g, 0);
	CHECK_EQ(0, pthread_create(&t, NULL, run_cpu, &g->machine[0]));
	while (!__atomic_load_n(&g->machine[0].nr_vectors, __ATOMIC_SEQ_CST)) {
		CHECK_EQ(0, g->e->irq->msi_send(g->vm, msi_to(0), V1));
		usleep(1000);
	}
	g->e->cpu_kick(g->cpu[0]);
	pthread_join(t, NULL);
	CHECK_EQ(V1, g->machine[0].vectors[0]);
	g->e->cpu_get(g->cpu[0], s);
	CHECK(s->rip > KG_CODE || s->rip >= KG_HANDLERS);
	kg_destroy(g);
}

TEST(the_8259_pair_comes_past_the_kernels_local_apic)
{
	struct kg *g = kg_create("irqchip=split", 1);
	struct engine_lapic l;
	struct error err = {""};

	kg_handler(g, V1, false);
	CHECK_EQ(0, g->e->irq->lapic_get(g->cpu[0], &l));
	l.reg[0x0f] = 0x1ff;
	l.reg[0x35] = 0x700; /* LINT0: ExtINT, not masked */
	CHECK_EQ(0, g->e->irq->lapic_set(g->cpu[0], &l, &err));
	request(g, V1);
	run_to_end(g, open_and_wait, sizeof(open_and_wait));
	CHECK_EQ(1, g->machine[0].nr_vectors);
	CHECK_EQ(V1, g->machine[0].vectors[0]);
	kg_destroy(g);
}

TEST(the_end_of_a_level_interrupt_is_reported)
{
	struct kg *g = kg_create("irqchip=split", 1);
	const uint32_t level = 1u << 15;

	kg_handler(g, V1, true);
	kg_enable_lapic(g, 0);
	CHECK_EQ(0, g->e->irq->pin_route(g->vm, 20, true, msi_to(0), V1 | level));
	CHECK_EQ(0, g->e->irq->msi_send(g->vm, msi_to(0), V1 | level));
	run_to_end(g, open_and_wait, sizeof(open_and_wait));
	CHECK_EQ(1, g->machine[0].nr_vectors);
	CHECK_EQ(1, g->machine[0].nr_eois);
	CHECK_EQ(V1, g->machine[0].eoi_vector);
	kg_destroy(g);
}

/* --- event descriptors -------------------------------------------------------------------------
 */

static void signal_fd(int fd)
{
	const uint64_t one = 1;

	CHECK_EQ(sizeof(one), write(fd, &one, sizeof(one)));
}

TEST(a_descriptor_interrupts_and_can_be_routed_anew)
{
	struct engine_irq_source src = {.msi = true, .addr = msi_to(0), .data = V1};
	struct kg *g = kg_create("irqchip=split", 1);
	int fd = eventfd(0, EFD_NONBLOCK);
	struct error err = {""};
	unsigned handle;

	kg_handler(g, V1, true);
	kg_handler(g, V2, true);
	kg_enable_lapic(g, 0);
	CHECK_EQ(0, g->e->irq->irqfd_add(g->vm, fd, &src, &handle, &err));
	signal_fd(fd);
	run_to_vector(g, 1);
	CHECK_EQ(V1, g->machine[0].vectors[0]);
	CHECK_EQ(0, g->e->irq->irqfd_route(g->vm, handle, msi_to(0), V2));
	signal_fd(fd);
	run_to_vector(g, 2);
	CHECK_EQ(V2, g->machine[0].vectors[1]);
	g->e->irq->irqfd_del(g->vm, handle);
	signal_fd(fd);
	kg_state_long(&g->state);
	run_to_end(g, open_and_wait, sizeof(open_and_wait));
	CHECK_EQ(2, g->machine[0].nr_vectors);
	close(fd);
	kg_destroy(g);
}

TEST(descriptors_need_the_kernels_local_apic)
{
	struct engine_irq_source src = {.msi = true, .addr = msi_to(0), .data = V1};
	struct kg *g = kg_create("irqchip=user", 1);
	int fd = eventfd(0, EFD_NONBLOCK);
	struct error err = {""};
	unsigned handle;

	CHECK_EQ(-ENOTSUP, g->e->irq->irqfd_add(g->vm, fd, &src, &handle, &err));
	CHECK(strstr(err.msg, "irqchip=split") != NULL);
	close(fd);
	kg_destroy(g);
}

/* Pin 20 of the kernel's I/O APIC, level-triggered: the descriptor pulls it until the guest's EOI,
 * which is told by the other descriptor. */
TEST(a_level_descriptor_tells_of_the_end)
{
	struct kg *g = kg_create("irqchip=kernel", 1);
	int fd = eventfd(0, EFD_NONBLOCK), again = eventfd(0, EFD_NONBLOCK);
	struct engine_irq_source src = {.gsi = 20, .resample_fd = again};
	struct engine_ioapic io;
	struct error err = {""};
	unsigned handle;
	uint64_t n = 0;

	kg_handler(g, V1, true);
	kg_enable_lapic(g, 0);
	CHECK_EQ(0, g->e->irq->ioapic_get(g->vm, &io));
	io.rte[20] = V1 | BIT(15);
	CHECK_EQ(0, g->e->irq->ioapic_set(g->vm, &io));
	CHECK_EQ(0, g->e->irq->irqfd_add(g->vm, fd, &src, &handle, &err));
	signal_fd(fd);
	run_to_vector(g, 1);
	CHECK_EQ(sizeof(n), read(again, &n, sizeof(n)));
	CHECK_EQ(1, n);
	g->e->irq->irqfd_del(g->vm, handle);
	close(fd);
	close(again);
	kg_destroy(g);
}

TEST(wires_of_the_kernels_chips)
{
	struct kg *g = kg_create("irqchip=kernel", 1);
	struct engine_ioapic io;

	kg_handler(g, V1, true);
	kg_enable_lapic(g, 0);
	CHECK_EQ(0, g->e->irq->ioapic_get(g->vm, &io));
	io.rte[17] = V1; /* edge */
	CHECK_EQ(0, g->e->irq->ioapic_set(g->vm, &io));
	CHECK_EQ(0, g->e->irq->gsi_set(g->vm, 17, true));
	run_to_end(g, open_and_wait, sizeof(open_and_wait));
	CHECK_EQ(1, g->machine[0].nr_vectors);
	CHECK_EQ(V1, g->machine[0].vectors[0]);
	kg_destroy(g);
}

/* --- registers in and out ----------------------------------------------------------------------
 */

TEST(a_local_apic_comes_back)
{
	struct kg *g = kg_create("irqchip=split", 2);
	struct engine_lapic l, got;
	struct error err = {""};

	for (unsigned x2 = 0; x2 < 2; x2++) {
		CHECK_EQ(0, g->e->irq->lapic_get(g->cpu[1], &l));
		if (x2)
			l.base |= 1 << 10;
		l.reg[0x02] = x2 ? 1 : 1 << 24;
		l.reg[0x08] = 0x20;                     /* TPR */
		l.reg[0x0f] = 0x1ef;                    /* SVR */
		l.reg[0x20 + V1 / 32] |= 1u << V1 % 32; /* IRR */
		l.reg[0x10 + V2 / 32] |= 1u << V2 % 32; /* ISR */
		l.reg[0x36] = 0x400;                    /* LINT1: NMI */
		CHECK_EQ(0, g->e->irq->lapic_set(g->cpu[1], &l, &err));
		CHECK_EQ(0, g->e->irq->lapic_get(g->cpu[1], &got));
		CHECK_EQ(l.base, got.base);
		CHECK_EQ(l.reg[0x02], got.reg[0x02]);
		CHECK_EQ(0x20, got.reg[0x08]);
		CHECK_EQ(0x1ef, got.reg[0x0f]);
		CHECK_EQ(l.reg[0x20 + V1 / 32], got.reg[0x20 + V1 / 32]);
		CHECK_EQ(l.reg[0x10 + V2 / 32], got.reg[0x10 + V2 / 32]);
		CHECK_EQ(0x400, got.reg[0x36]);
	}
	kg_destroy(g);
}

/* Half of a long one-shot count is left; it goes on from there, and one that is over stays so. */
TEST(a_local_apic_timer_goes_on)
{
	struct kg *g = kg_create("irqchip=split", 1);
	struct engine_lapic l, got;
	struct error err = {""};

	CHECK_EQ(0, g->e->irq->lapic_get(g->cpu[0], &l));
	l.reg[0x0f] = 0x1ff;
	l.reg[0x32] = V1;
	l.reg[0x3e] = 0xa; /* by 128 */
	l.reg[0x38] = 4000000000;
	l.reg[0x39] = 2000000000; /* 256 s */
	CHECK_EQ(0, g->e->irq->lapic_set(g->cpu[0], &l, &err));
	CHECK_EQ(0, g->e->irq->lapic_get(g->cpu[0], &got));
	CHECK_EQ(4000000000, got.reg[0x38]);
	CHECK(got.reg[0x39] <= 2000000000 && got.reg[0x39] > 1000000000);
	l.reg[0x39] = 0;
	CHECK_EQ(0, g->e->irq->lapic_set(g->cpu[0], &l, &err));
	run_to_end(g, open_and_wait, sizeof(open_and_wait));
	CHECK_EQ(0, g->machine[0].nr_vectors);
	kg_destroy(g);
}

TEST(the_kernels_8259_pair_comes_back)
{
	struct kg *g = kg_create("irqchip=kernel", 1);
	struct engine_pic pic[2], got[2];

	CHECK_EQ(0, g->e->irq->pic_get(g->vm, pic));
	pic[0].icw2 = 0x30;
	pic[0].imr = 0xfa;
	pic[1].icw2 = 0x38;
	pic[1].imr = 0xff;
	pic[1].elcr = 0x0c;
	CHECK_EQ(0, g->e->irq->pic_set(g->vm, pic));
	CHECK_EQ(0, g->e->irq->pic_get(g->vm, got));
	for (unsigned i = 0; i < 2; i++) {
		CHECK_EQ(pic[i].icw2, got[i].icw2);
		CHECK_EQ(pic[i].imr, got[i].imr);
		CHECK_EQ(pic[i].elcr, got[i].elcr);
	}
	kg_destroy(g);
}
