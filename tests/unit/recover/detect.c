/* What the scan takes for what. */
#include "recover/internal.h"

#include "test.h"

static uint8_t buf[65536];
static struct hits hits;

static void run(void)
{
	struct detect d = {
		.buf = buf, .look = 32768, .len = sizeof(buf), .pos = 1 << 20, .out = &hits};

	hits.n = 0;
	detect_run(&d);
}

TEST(zeroes_hold_nothing)
{
	run();
	CHECK_EQ((size_t)0, hits.n);
}

TEST(a_lock_header_tells_where_it_lies)
{
	le32_store(buf + 512, 0x10c00003);
	le64_store(buf + 516, 0x810000);
	run();
	CHECK_EQ((size_t)1, hits.n);
	CHECK_EQ(HIT_SBC, hits.v[0].kind);
	CHECK_EQ((1ull << 20) + 512, hits.v[0].pos);
	CHECK_EQ(0x810000ull, hits.v[0].self);
	free(hits.v);
}

TEST(a_self_address_that_is_no_sectors_is_no_lock_header)
{
	le32_store(buf + 512, 0x10c00003);
	le64_store(buf + 516, 0x810001);
	run();
	CHECK_EQ((size_t)0, hits.n);
}

TEST(only_what_is_asked_for_is_looked_at)
{
	le32_store(buf + 32768, 0x10c00003);
	le64_store(buf + 32772, 0x810000);
	run();
	CHECK_EQ((size_t)0, hits.n);
}

TEST(a_vmx_is_known_by_its_settings)
{
	strcpy((char *)buf + 4096, "displayName = \"x\"\nguestOS = \"other\"\n"
				   "virtualHW.version = \"8\"\n");
	run();
	CHECK_EQ((size_t)1, hits.n);
	CHECK_EQ(HIT_VMX, hits.v[0].kind);
	free(hits.v);
}

TEST(random_bytes_are_nothing)
{
	uint64_t x = 88172645463325252ull;

	for (size_t i = 0; i < sizeof(buf); i += 8) {
		x ^= x << 13;
		x ^= x >> 7;
		x ^= x << 17;
		le64_store(buf + i, x);
	}
	run();
	CHECK_EQ((size_t)0, hits.n);
}
