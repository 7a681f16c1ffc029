/* Tests of dirty-page tracking under kvm, with the log and with the ring, and of soft's beside it.
 */
#include "kvm_guest.h"

enum { NR_PAGES = KG_RAM / PAGE_SIZE };

static const char *const kinds[] = {"dirty=log", "dirty=ring"};

/* for rdi pages from rbx on: write a byte to each; out KG_EXIT */
static const uint8_t touch[] = {
	0xc6, 0x03,    0x01,                         /* again: mov byte [rbx], 1 */
	0x48, 0x81,    0xc3, 0x00, 0x10, 0x00, 0x00, /* add rbx, 0x1000 */
	0xff, 0xcf,                                  /* dec edi */
	0x75, 0xf2,                                  /* jnz again */
	0xe6, KG_EXIT,
};

static void touch_pages(struct kg *g, uint64_t first, uint64_t nr)
{
	kg_state_long(&g->state);
	g->state.gpr[X86_RBX] = first * PAGE_SIZE;
	g->state.gpr[X86_RDI] = nr;
	kg_load(g);
	CHECK_EQ(ENGINE_EXIT_KICKED, kg_run(g));
}

struct bits {
	uint64_t w[NR_PAGES / 64];
};

static struct bits fetch(struct kg *g)
{
	struct bits b;
	struct error err = {""};

	CHECK_EQ(0, g->e->dirty_fetch(g->vm, 0, KG_RAM, b.w, &err));
	return b;
}

static bool has(const struct bits *b, uint64_t page)
{
	return b->w[page / 64] >> page % 64 & 1;
}

static unsigned count(const struct bits *b, uint64_t first, uint64_t nr)
{
	unsigned n = 0;

	for (uint64_t i = 0; i < nr; i++)
		n += has(b, first + i);
	return n;
}

/* Page tables (accessed bits) and the stack are the guest's writes too: they are left out. */
static struct kg *create(const char *options)
{
	struct kg *g = kg_create(options, 1);
	struct error err = {""};

	kg_put(g, KG_CODE, touch, sizeof(touch));
	touch_pages(g, 0x100, 1); /* tables get their accessed bits, code its page */
	CHECK_EQ(0, g->e->dirty_start(g->vm, &err));
	return g;
}

TEST(pages_the_guest_wrote_are_told_once)
{
	for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
		struct kg *g = create(kinds[k]);
		struct bits b;

		touch_pages(g, 0x200, 7);
		b = fetch(g);
		CHECK_EQ(7, count(&b, 0x100, NR_PAGES - 0x100));
		CHECK(has(&b, 0x200) && has(&b, 0x206) && !has(&b, 0x207));
		b = fetch(g);
		CHECK_EQ(0, count(&b, 0x100, NR_PAGES - 0x100));
		touch_pages(g, 0x203, 1);
		b = fetch(g);
		CHECK_EQ(1, count(&b, 0x100, NR_PAGES - 0x100));
		CHECK(has(&b, 0x203));
		g->e->dirty_stop(g->vm);
		kg_destroy(g);
	}
}

TEST(pages_devices_wrote_are_told_too)
{
	for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
		struct kg *g = create(kinds[k]);
		struct bits b;

		kg_put64(g, 0x300000, 1);
		touch_pages(g, 0x301, 1);
		b = fetch(g);
		CHECK(has(&b, 0x300) && has(&b, 0x301));
		CHECK_EQ(2, count(&b, 0x100, NR_PAGES - 0x100));
		g->e->dirty_stop(g->vm);
		kg_destroy(g);
	}
}

TEST(a_part_can_be_fetched_and_the_rest_is_not_lost)
{
	for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
		struct kg *g = create(kinds[k]);
		struct error err = {""};
		uint64_t part[2];
		struct bits b;

		touch_pages(g, 0x250, 3);
		CHECK_EQ(0, g->e->dirty_fetch(g->vm, 0x251000, 70 * PAGE_SIZE, part, &err));
		CHECK_EQ(3, part[0]); /* pages 0x251 and 0x252 */
		CHECK_EQ(0, part[1]);
		b = fetch(g);
		CHECK_EQ(1, count(&b, 0x100, NR_PAGES - 0x100));
		CHECK(has(&b, 0x250));
		g->e->dirty_stop(g->vm);
		kg_destroy(g);
	}
}

/* More pages than a small ring holds, in one go: it is emptied on the way. */
TEST(many_pages_overflow_nothing)
{
	for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
		struct kg *g = create(kinds[k]);
		struct bits b;

		touch_pages(g, 0x100, NR_PAGES - 0x100);
		b = fetch(g);
		CHECK_EQ(NR_PAGES - 0x100, count(&b, 0x100, NR_PAGES - 0x100));
		g->e->dirty_stop(g->vm);
		kg_destroy(g);
	}
}

TEST(tracking_can_be_stopped_and_started_again)
{
	for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
		struct kg *g = create(kinds[k]);
		struct error err = {""};
		struct bits b;

		touch_pages(g, 0x200, 1);
		g->e->dirty_stop(g->vm);
		touch_pages(g, 0x201, 1);
		CHECK_EQ(-EINVAL, g->e->dirty_fetch(g->vm, 0, KG_RAM, b.w, &err));
		CHECK_EQ(0, g->e->dirty_start(g->vm, &err));
		touch_pages(g, 0x202, 1);
		b = fetch(g);
		CHECK_EQ(1, count(&b, 0x100, NR_PAGES - 0x100));
		CHECK(has(&b, 0x202));
		g->e->dirty_stop(g->vm);
		kg_destroy(g);
	}
}

static void *spin_run(void *arg)
{
	struct kg *g = arg;
	struct engine_exit_info info;

	g->e->cpu_run(g->cpu[0], &info);
	return NULL;
}

/* A guest that counts in memory without an end: what was read after a fetch is either what the page
 * has for ever, or the page is in the next fetch. */
TEST(a_running_guests_writes_are_never_missed)
{
	static const uint8_t code[] = {
		0x48, 0xff, 0x03, /* again: inc qword [rbx] */
		0xeb, 0xfb,       /* jmp again */
	};

	for (unsigned k = 0; k < ARRAY_SIZE(kinds); k++) {
		struct kg *g = create(kinds[k]);
		struct bits b;
		uint64_t copy = 0;
		pthread_t t;

		kg_put(g, KG_CODE, code, sizeof(code));
		kg_state_long(&g->state);
		g->state.gpr[X86_RBX] = 0x280000;
		kg_load(g);
		CHECK_EQ(0, pthread_create(&t, NULL, spin_run, g));
		while (!kg_get64(g, 0x280000))
			usleep(1000);
		for (unsigned n = 0; n < 50; n++) {
			b = fetch(g);
			if (has(&b, 0x280))
				copy = kg_get64(g, 0x280000);
			usleep(200);
		}
		g->e->cpu_kick(g->cpu[0]);
		pthread_join(t, NULL);
		b = fetch(g);
		if (has(&b, 0x280))
			copy = kg_get64(g, 0x280000);
		CHECK(copy > 0);
		CHECK_EQ(kg_get64(g, 0x280000), copy);
		g->e->dirty_stop(g->vm);
		kg_destroy(g);
	}
}
