/* The decoder against Zydis: validity, length, name, operands, addresses, immediates.
 *
 * DECODE_CASES in the environment sets the number of random cases per mode and vendor. */
#include "insn_random.h"
#include "test.h"
#include "zydis_compare.h"

enum { CASES = 300000, SHOWN = 20 };

static unsigned long nr_cases(void)
{
	const char *s = getenv("DECODE_CASES");

	return s ? strtoul(s, NULL, 0) : CASES;
}

struct tally {
	unsigned long by_verdict[4];
};

static void compare_one(struct zydis_pair *p, const uint8_t bytes[32], struct tally *t)
{
	char why[512];
	enum zydis_verdict v = zydis_compare(p, bytes, 32, why, sizeof(why));

	if (v == ZYDIS_DIFFERENT && t->by_verdict[v] < SHOWN)
		printf("# %s\n", why);
	t->by_verdict[v]++;
}

static void compare_random(enum insn_mode mode, bool amd, uint64_t seed)
{
	struct zydis_pair *p = zydis_pair_create(mode, amd);
	struct insn_random r = {seed};
	struct tally t = {{0}};
	uint8_t bytes[32];

	for (unsigned long n = nr_cases(); n; n--) {
		insn_random_bytes(&r, bytes);
		compare_one(p, bytes, &t);
	}
	printf("# %lu the same, %lu invalid to both, %lu known differences\n",
	       t.by_verdict[ZYDIS_SAME], t.by_verdict[ZYDIS_BOTH_BAD], t.by_verdict[ZYDIS_KNOWN]);
	zydis_pair_destroy(p);
	CHECK_EQ(0, t.by_verdict[ZYDIS_DIFFERENT]);
	CHECK(t.by_verdict[ZYDIS_SAME] > nr_cases() / 4);
}

TEST(random_16_bit_code_decodes_as_zydis_says)
{
	compare_random(INSN_MODE_16, false, 16);
}

TEST(random_32_bit_code_decodes_as_zydis_says)
{
	compare_random(INSN_MODE_32, false, 32);
}

TEST(random_64_bit_code_decodes_as_zydis_says_of_intel)
{
	compare_random(INSN_MODE_64, false, 64);
}

TEST(random_64_bit_code_decodes_as_zydis_says_of_amd)
{
	compare_random(INSN_MODE_64, true, 128);
}

/* Every opcode of every map with every ModRM byte, and each mandatory prefix. */
static void compare_every_opcode(enum insn_mode mode)
{
	static const uint8_t prefixes[] = {0x90, 0x66, 0xf3, 0xf2};
	static const uint8_t maps[4][2] = {{0}, {0x0f}, {0x0f, 0x38}, {0x0f, 0x3a}};
	struct zydis_pair *p = zydis_pair_create(mode, false);
	struct tally t = {{0}};

	for (unsigned n = 0; n < 4 * 4 * 65536; n++) {
		uint8_t bytes[32] = {0};
		unsigned at = 0;

		if (n >> 18)
			bytes[at++] = prefixes[n >> 18];
		for (unsigned i = 0; i < (n >> 16 & 3) - (n >> 17 & 1); i++)
			bytes[at++] = maps[n >> 16 & 3][i];
		bytes[at++] = (uint8_t)(n >> 8);
		bytes[at++] = (uint8_t)n;
		compare_one(p, bytes, &t);
	}
	zydis_pair_destroy(p);
	CHECK_EQ(0, t.by_verdict[ZYDIS_DIFFERENT]);
}

TEST(every_opcode_with_every_modrm_agrees_in_32_bit_code)
{
	compare_every_opcode(INSN_MODE_32);
}

TEST(every_opcode_with_every_modrm_agrees_in_64_bit_code)
{
	compare_every_opcode(INSN_MODE_64);
}
