/* The decoder and the disassembler take any bytes in any mode, read no further than they were
 * given, and keep their promises; where Zydis is installed they agree with it. */
#include "engine/cpu_model.h"
#include "engine/soft/insn_rows.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef HAVE_ZYDIS
#include "zydis_compare.h"
#endif

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct cpu_model model_with_everything(void)
{
	struct cpu_model m = {.vendor = "AuthenticAMD"};

	memset(m.features, 0xff, sizeof(m.features));
	return m;
}

static void check_promises(const struct insn *in, size_t size)
{
	char text[160];
	int len = insn_print(in, 0xfffffffffffffff0ull, text, sizeof(text));

	assert(in->len >= 1 && in->len <= 15 && in->len <= size);
	assert(in->id < INSN_NR_IDS && in->exec);
	assert(len > 0 && (size_t)len < sizeof(text) && strlen(text) == (size_t)len);
}

/* The bytes lie at the very end of a heap block, so that a sanitizer sees an overrun. */
static void decode_exactly(const uint8_t *data, size_t size, enum insn_mode mode,
			   const struct cpu_model *m)
{
	uint8_t *exact = malloc(size ? size : 1);
	struct insn in;
	enum insn_result r;

	if (!exact)
		return;
	memcpy(exact, data, size);
	r = insn_decode(&in, exact, size, mode, m);
	if (r == INSN_OK)
		check_promises(&in, size);
	else
		assert(r == INSN_TOO_LONG || size < 15);
	free(exact);
}

static void compare(const uint8_t *data, size_t size)
{
#ifdef HAVE_ZYDIS
	static struct zydis_pair *pairs[3];
	uint8_t bytes[32] = {0};
	char why[512];

	memcpy(bytes, data, size < sizeof(bytes) ? size : sizeof(bytes));
	for (int mode = INSN_MODE_16; mode <= INSN_MODE_64; mode++) {
		if (!pairs[mode])
			pairs[mode] = zydis_pair_create((enum insn_mode)mode, false);
		if (zydis_compare(pairs[mode], bytes, 32, why, sizeof(why)) == ZYDIS_DIFFERENT) {
			fprintf(stderr, "%s\n", why);
			abort();
		}
	}
#else
	(void)data;
	(void)size;
#endif
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct cpu_model all = model_with_everything(), none = {.vendor = "GenuineIntel"};

	for (int mode = INSN_MODE_16; mode <= INSN_MODE_64; mode++) {
		decode_exactly(data, size, (enum insn_mode)mode, &all);
		decode_exactly(data, size, (enum insn_mode)mode, &none);
	}
	compare(data, size);
	return 0;
}
