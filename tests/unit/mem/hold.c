/* How the host holds guest memory: alignment, huge pages, NUMA nodes, preallocation, locking. */
#include "base/error.h"
#include "mem/mem.h"

#include "test.h"

#include <errno.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

static struct mem *pc_memory(void)
{
	struct mem *m;

	CHECK_EQ(0, mem_create(&m, NULL));
	CHECK_EQ(0, mem_add_ram(m, 0, 0xa0000, NULL));
	CHECK_EQ(0, mem_add_ram(m, 0xc0000, 200 * MiB - 0xc0000, NULL));
	CHECK_EQ(0, mem_add_ram(m, 4 * GiB, 4 * MiB, NULL));
	return m;
}

/* Else a hypervisor could not map huge pages. */
TEST(addresses_agree_modulo_a_huge_page)
{
	struct mem *m = pc_memory();
	const struct mem_range *r;

	CHECK_EQ(3, mem_ram_ranges(m, &r));
	for (unsigned i = 0; i < 3; i++)
		CHECK_EQ(r[i].gpa % (2 * MiB), (uintptr_t)r[i].hva % (2 * MiB));
	CHECK_EQ(204 * MiB - 0x20000, mem_ram_size(m));
	mem_destroy(m);
}

/* The records of pages are found across the hole. */
TEST(pages_around_the_hole_have_records_of_their_own)
{
	struct mem *m = pc_memory();
	const gpa_t last = 0xa0000 - PAGE_SIZE, first = 0xc0000, high = 4 * GiB;

	CHECK(mem_page(m, last) != mem_page(m, first));
	CHECK(mem_page(m, first) != mem_page(m, high));
	CHECK(!mem_page(m, 0xa0000) && !mem_page(m, 0xbffff));
	CHECK_EQ(-EFAULT, mem_zero(m, 0xa0000, 1));
	CHECK_EQ(0, mem_store32(m, last, 1));
	CHECK_EQ(0, mem_store32(m, first, 2));
	CHECK_EQ(0, mem_store32(m, high, 3));
	mem_destroy(m);
}

static uint64_t resident_pages(const struct mem_range *r)
{
	uint8_t *vec = calloc(1, r->size / PAGE_SIZE);
	uint64_t n = 0;

	CHECK(vec);
	CHECK(mincore(r->hva, r->size, vec) == 0);
	for (uint64_t i = 0; i < r->size / PAGE_SIZE; i++)
		n += vec[i] & 1;
	free(vec);
	return n;
}

TEST(preallocation_brings_every_page)
{
	struct mem *m = pc_memory();
	struct mem_hold h = {.prealloc = true};
	const struct mem_range *r;
	uint32_t v;

	CHECK_EQ(0, mem_store32(m, 0x100000, 0x12345678));
	mem_ram_ranges(m, &r);
	CHECK(resident_pages(&r[1]) < r[1].size / PAGE_SIZE);
	CHECK_EQ(0, mem_hold(m, &h, NULL));
	for (unsigned i = 0; i < 3; i++)
		CHECK_EQ(r[i].size / PAGE_SIZE, resident_pages(&r[i]));
	CHECK_EQ(0, mem_load32(m, 0x100000, &v));
	CHECK_EQ(0x12345678, v);
	mem_destroy(m);
}

TEST(nothing_asked_for_changes_nothing)
{
	struct mem *m = pc_memory();
	struct mem_hold h = {0};
	const struct mem_range *r;

	CHECK_EQ(0, mem_hold(m, &h, NULL));
	mem_ram_ranges(m, &r);
	CHECK_EQ(0, resident_pages(&r[1]));
	mem_destroy(m);
}

static long policy_of(const void *p, unsigned long *nodes)
{
	int mode = -1;

	*nodes = 0;
	if (syscall(SYS_get_mempolicy, &mode, nodes, 65ul, p, MPOL_F_ADDR))
		return -errno;
	return mode;
}

TEST(numa_policies)
{
	static const struct {
		enum mem_numa numa;
		int mode;
	} cases[] = {{MEM_NUMA_BIND, MPOL_BIND},
		     {MEM_NUMA_PREFER, MPOL_PREFERRED},
		     {MEM_NUMA_INTERLEAVE, MPOL_INTERLEAVE}};
	unsigned long nodes;

	for (unsigned i = 0; i < 3; i++) {
		struct mem *m = pc_memory();
		struct mem_hold h = {.numa = cases[i].numa, .nodes = 1};
		const struct mem_range *r;
		struct error err;
		int ret = mem_hold(m, &h, &err);

		if (ret == -ENOSYS)
			SKIP("this kernel knows no NUMA nodes");
		CHECK_EQ(0, ret);
		mem_ram_ranges(m, &r);
		for (unsigned k = 0; k < 3; k++) {
			CHECK_EQ(cases[i].mode, policy_of(r[k].hva, &nodes));
			CHECK_EQ(1, nodes);
		}
		mem_destroy(m);
	}
}

TEST(a_node_that_is_not_there)
{
	struct mem *m = pc_memory();
	struct mem_hold h = {.numa = MEM_NUMA_BIND, .nodes = BIT(63)};
	struct error err;
	int r = mem_hold(m, &h, &err);

	if (r == -ENOSYS)
		SKIP("this kernel knows no NUMA nodes");
	CHECK_EQ(-EINVAL, r);
	CHECK(strstr(err.msg, "NUMA"));
	mem_destroy(m);
}

TEST(locking)
{
	struct mem *m = pc_memory();
	struct mem_hold h = {.lock = true};
	struct rlimit none = {0, 0};
	struct error err;
	int r = mem_hold(m, &h, &err);

#ifdef __SANITIZE_ADDRESS__
	SKIP("the address sanitizer makes mlock() do nothing");
#endif
	if (r < 0)
		CHECK(strstr(err.msg, "memlock"));
	CHECK(setrlimit(RLIMIT_MEMLOCK, &none) == 0);
	if (geteuid() == 0)
		CHECK(seteuid(65534) == 0);
	CHECK(mem_hold(m, &h, &err) < 0);
	CHECK(strstr(err.msg, "ulimit -l"));
	mem_destroy(m);
}

/* From the host's pool where it has one; else the sentence says what is missing. */
TEST(huge_pages)
{
	struct mem_hold h = {.prealloc = true};
	const struct mem_range *r;
	struct mem *m;
	struct error err = {""};
	char got[6] = "";
	int ret = mem_create_huge(&m, 2 * MiB, &err);

	if (ret < 0) {
		CHECK(strstr(err.msg, "no huge pages of 2 MiB"));
		SKIP(err.msg);
	}
	ret = mem_add_ram(m, 0, 0xa0000, &err);
	if (ret == 0)
		ret = mem_add_ram(m, 0xc0000, 5 * MiB - 0xc0000, &err);
	if (ret < 0) {
		CHECK(strstr(err.msg, "nr_hugepages"));
		mem_destroy(m);
		SKIP(err.msg);
	}
	CHECK_EQ(0, mem_hold(m, &h, &err));
	CHECK_EQ(2, mem_ram_ranges(m, &r));
	CHECK_EQ(0xc0000, (uintptr_t)r[1].hva % (2 * MiB));
	CHECK_EQ(5 * MiB - 0x20000, mem_ram_size(m));
	CHECK_EQ(0, mem_write(m, 5 * MiB - 6, "hello", 6));
	CHECK_EQ(0, mem_read(m, 5 * MiB - 6, got, 6));
	CHECK_STR("hello", got);
	mem_destroy(m);
}

TEST(huge_pages_of_a_size_no_host_has)
{
	struct error err = {""};
	struct mem *m;

	CHECK(mem_create_huge(&m, 64 * MiB, &err) < 0);
	CHECK(strstr(err.msg, "no huge pages of 64 MiB"));
}
