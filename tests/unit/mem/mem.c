/* Unit tests of src/mem/mem.c. */
#include "mem/mem.h"

#include "base/error.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

/* 64 KiB at 0 and 64 KiB at 1 MiB, a hole between. */
static struct mem *two_ranges(void)
{
	struct mem *m;

	CHECK_EQ(0, mem_create(&m, NULL));
	CHECK_EQ(0, mem_add_ram(m, 0x100000, 0x10000, NULL));
	CHECK_EQ(0, mem_add_ram(m, 0, 0x10000, NULL));
	return m;
}

TEST(what_is_written_is_read_back)
{
	struct mem *m = two_ranges();
	char got[6] = "";

	CHECK_EQ(0, mem_write(m, 0x100ffe, "hello", 6));
	CHECK_EQ(0, mem_read(m, 0x100ffe, got, 6));
	CHECK_STR("hello", got);
	mem_destroy(m);
}

TEST(ranges_are_sorted_and_sized)
{
	struct mem *m = two_ranges();
	const struct mem_range *r;

	CHECK_EQ(2, mem_ram_ranges(m, &r));
	CHECK_EQ(0, r[0].gpa);
	CHECK_EQ(0x100000, r[1].gpa);
	CHECK_EQ(0x10000, r[1].size);
	CHECK_EQ(0x20000, mem_ram_size(m));
	mem_destroy(m);
}

TEST(contents_survive_a_later_add)
{
	struct mem *m;
	char got[4] = "";

	CHECK_EQ(0, mem_create(&m, NULL));
	CHECK_EQ(0, mem_add_ram(m, 0, 0x1000, NULL));
	CHECK_EQ(0, mem_write(m, 0, "abc", 4));
	CHECK_EQ(0, mem_add_ram(m, GiB, GiB, NULL));
	CHECK_EQ(0, mem_read(m, 0, got, 4));
	CHECK_STR("abc", got);
	CHECK_EQ(0, mem_write(m, 2 * GiB - 4, "xyz", 4));
	mem_destroy(m);
}

TEST(an_access_that_leaves_ram_transfers_nothing)
{
	struct mem *m = two_ranges();
	uint8_t b = 7, buf[16] = {0};

	CHECK_EQ(-EFAULT, mem_write(m, 0xfff8, buf, 16));
	CHECK_EQ(0, mem_write(m, 0xffff, &b, 1));
	CHECK_EQ(-EFAULT, mem_zero(m, 0xffff, 2));
	b = 0;
	CHECK_EQ(0, mem_read(m, 0xffff, &b, 1));
	CHECK_EQ(7, b);
	CHECK_EQ(-EFAULT, mem_read(m, UINT64_MAX, buf, 16));
	CHECK_EQ(-EFAULT, mem_read(m, 0x8000, buf, UINT64_MAX - 0x7000));
	mem_destroy(m);
}

TEST(an_access_may_span_ranges_that_touch)
{
	struct mem *m = two_ranges();
	uint64_t v = 0x1122334455667788, got = 0;

	/* Added last, so its bytes do not follow its neighbour's in the memfd. */
	CHECK_EQ(0, mem_add_ram(m, 0x10000, 0x1000, NULL));
	CHECK_EQ(0, mem_write(m, 0xfffc, &v, 8));
	CHECK_EQ(0, mem_read(m, 0xfffc, &got, 8));
	CHECK_EQ(v, got);
	CHECK_EQ(0, mem_zero(m, 0xfffe, 4));
	CHECK_EQ(0, mem_read(m, 0xfffc, &got, 8));
	CHECK_EQ(0x1122000000007788, got);
	mem_destroy(m);
}

TEST(bad_ranges_are_refused_with_words)
{
	struct mem *m = two_ranges();
	struct error err = {""};

	CHECK_EQ(-EINVAL, mem_add_ram(m, 0x200800, 0x1000, &err));
	CHECK(strstr(err.msg, "whole pages"));
	CHECK_EQ(-EINVAL, mem_add_ram(m, 0x200000, 0, &err));
	CHECK_EQ(-EINVAL, mem_add_ram(m, ~0xfffull, 0x2000, &err));
	CHECK_EQ(-EEXIST, mem_add_ram(m, 0xf000, 0x2000, &err));
	CHECK(strstr(err.msg, "overlaps"));
	mem_destroy(m);
}

TEST(single_accesses_want_alignment)
{
	struct mem *m = two_ranges();
	uint16_t v16;
	uint32_t v32;
	uint64_t v64;

	CHECK_EQ(0, mem_store64(m, 0x100008, 0x1122334455667788));
	CHECK_EQ(0, mem_load16(m, 0x10000a, &v16));
	CHECK_EQ(0x5566, v16);
	CHECK_EQ(0, mem_load32(m, 0x10000c, &v32));
	CHECK_EQ(0x11223344, v32);
	CHECK_EQ(0, mem_store16(m, 0x10000e, 0xbeef));
	CHECK_EQ(0, mem_store32(m, 0x100008, 1));
	CHECK_EQ(0, mem_load64(m, 0x100008, &v64));
	CHECK_EQ(0xbeef334400000001, v64);
	CHECK_EQ(-EFAULT, mem_load64(m, 0x10000c, &v64));
	CHECK_EQ(-EFAULT, mem_store16(m, 0x100001, 0));
	CHECK_EQ(-EFAULT, mem_load16(m, 0x20000, &v16));
	mem_destroy(m);
}

TEST(a_write_to_a_code_line_moves_gen)
{
	struct mem *m = two_ranges();
	struct mem_page *p = mem_page(m, 0x100123);
	uint8_t buf[256] = {0};

	p->code_lines = BIT(2); /* bytes 128..191 */
	CHECK_EQ(0, mem_write(m, 0x100000, buf, 128));
	CHECK_EQ(0, mem_write(m, 0x1000c0, buf, 64));
	CHECK_EQ(0, p->gen);
	CHECK_EQ(0, mem_write(m, 0x10007f, buf, 2));
	CHECK_EQ(1, p->gen);
	CHECK_EQ(0, mem_store32(m, 0x1000bc, 5));
	CHECK_EQ(2, p->gen);
	CHECK_EQ(0, mem_zero(m, 0x100000, 0x1000));
	CHECK_EQ(3, p->gen);
	mem_wrote(m, 0x100080, 1);
	CHECK_EQ(4, p->gen);
	CHECK_EQ(0, mem_page(m, 0x101000)->gen);
	CHECK(!mem_page(m, 0x80000));
	mem_destroy(m);
}

TEST(every_page_of_a_long_write_is_told)
{
	struct mem *m = two_ranges();
	static uint8_t buf[0x2002];

	mem_page(m, 0x0000)->code_lines = BIT(63);
	mem_page(m, 0x1000)->code_lines = BIT(30);
	mem_page(m, 0x3000)->code_lines = BIT(0);
	CHECK_EQ(0, mem_write(m, 0xfff, buf, sizeof(buf)));
	CHECK_EQ(1, mem_page(m, 0x0000)->gen);
	CHECK_EQ(1, mem_page(m, 0x1000)->gen);
	CHECK_EQ(1, mem_page(m, 0x3000)->gen);
	mem_destroy(m);
}

TEST(dirty_pages_are_fetched_once)
{
	struct mem *m = two_ranges();
	uint64_t map = ~0ull;

	CHECK_EQ(0, mem_zero(m, 0x102000, 1));
	mem_dirty_track(m, true);
	CHECK(mem_dirty_tracking(m));
	CHECK_EQ(0, mem_zero(m, 0x101fff, 2));
	CHECK_EQ(0, mem_store16(m, 0x10f000, 1));
	CHECK_EQ(0, mem_dirty_fetch(m, 0x100000, 0x10000, &map));
	CHECK_EQ(BIT(1) | BIT(2) | BIT(15), map);
	CHECK_EQ(0, mem_dirty_fetch(m, 0x100000, 0x10000, &map));
	CHECK_EQ(0, map);
	CHECK_EQ(-EFAULT, mem_dirty_fetch(m, 0x100000, 0x11000, &map));
	mem_dirty_track(m, false);
	CHECK_EQ(0, mem_zero(m, 0x100000, 1));
	CHECK_EQ(0, mem_dirty_fetch(m, 0x100000, 0x1000, &map));
	CHECK_EQ(0, map);
	mem_destroy(m);
}

TEST(borrowed_bytes_end_with_their_range)
{
	struct mem *m = two_ranges();
	uint8_t *hva, got;

	CHECK_EQ(0x10, mem_borrow(m, 0xfff0, 0x100, &hva));
	hva[0] = 9;
	mem_wrote(m, 0xfff0, 0x10);
	CHECK_EQ(0, mem_read(m, 0xfff0, &got, 1));
	CHECK_EQ(9, got);
	CHECK_EQ(0, mem_borrow(m, 0x10000, 1, &hva));
	mem_destroy(m);
}

/* How a process that touches that byte ends. */
static int touch(const volatile uint8_t *p)
{
	int status = 0;
	pid_t pid = fork();

	if (!pid) {
		signal(SIGSEGV, SIG_DFL);
		_exit(*p == 0 ? 0 : 1);
	}
	CHECK(waitpid(pid, &status, 0) == pid);
	return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

TEST(nothing_of_ours_lies_next_to_ram)
{
	struct mem *m;
	const struct mem_range *r;

	CHECK_EQ(0, mem_create(&m, NULL));
	for (uint64_t gpa = 0; gpa < 3; gpa++) {
		CHECK_EQ(0, mem_add_ram(m, gpa << 32, 0x3000, NULL));
		mem_ram_ranges(m, &r);
		CHECK_EQ(0, touch(r[0].hva));
		CHECK_EQ(0, touch(r[gpa].hva + 0x2fff));
		CHECK_EQ(SIGSEGV, touch(r[0].hva - 1));
		CHECK_EQ(SIGSEGV, touch(r[gpa].hva + 0x3000));
		CHECK_EQ(SIGSEGV, touch(r[gpa].hva + 0x3000 + MiB));
	}
	mem_destroy(m);
}

TEST(the_memfd_cannot_be_cut_short)
{
	struct mem *m = two_ranges();

	CHECK(ftruncate(mem_fd(m), 0) < 0);
	CHECK_EQ(EPERM, errno);
	CHECK(fcntl(mem_fd(m), F_GETFD) & FD_CLOEXEC);
	mem_destroy(m);
}

/* The protocol of mem.c: whoever decodes while a writer writes either has the new byte or sees
 * that gen moved. */
static struct mem *race_mem;
static _Atomic unsigned race_round;

static void *race_writer(void *arg)
{
	for (unsigned i = 1; i <= 20000; i++) {
		mem_store32(race_mem, 0x40, i);
		race_round = i;
	}
	return NULL;
}

TEST(a_decoder_never_keeps_stale_bytes)
{
	struct mem_page *p;
	pthread_t t;
	unsigned done = 0;

	race_mem = two_ranges();
	p = mem_page(race_mem, 0);
	pthread_create(&t, NULL, race_writer, NULL);
	while (done < 20000) {
		uint32_t gen, bytes;

		done = race_round;
		atomic_store(&p->code_lines, 0);
		atomic_fetch_or(&p->code_lines, BIT(1));
		gen = p->gen;
		CHECK_EQ(0, mem_load32(race_mem, 0x40, &bytes));
		/* All that was written before D1 must be seen, whatever gen says. */
		CHECK(bytes >= done);
		done = race_round;
		if (p->gen == gen)
			CHECK(bytes >= done);
	}
	pthread_join(t, NULL);
	mem_destroy(race_mem);
}
