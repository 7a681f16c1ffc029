#include "insn_random.h"

/* xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators". */
uint64_t insn_random_next(struct insn_random *r)
{
	r->state ^= r->state >> 12;
	r->state ^= r->state << 25;
	r->state ^= r->state >> 27;
	return r->state * 0x2545f4914f6cdd1dull;
}

static unsigned below(struct insn_random *r, unsigned n)
{
	return (unsigned)((insn_random_next(r) >> 32) * n >> 32);
}

static unsigned put_prefixes(struct insn_random *r, uint8_t *b, unsigned at)
{
	static const uint8_t prefixes[] = {0x66, 0x66, 0x66, 0xf2, 0xf2, 0xf3, 0xf3, 0x67,
					   0x67, 0xf0, 0x2e, 0x36, 0x26, 0x3e, 0x64, 0x65};
	static const uint8_t counts[16] = {0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 3, 4};

	for (unsigned n = counts[below(r, 16)]; n; n--)
		b[at++] = prefixes[below(r, sizeof(prefixes))];
	if (below(r, 3) == 0)
		b[at++] = 0x40 | (uint8_t)below(r, 16);
	return at;
}

/* Opcode map in the form that VEX and EVEX have; now and then one that does not exist. */
static uint8_t random_map(struct insn_random *r)
{
	return (uint8_t)(below(r, 20) ? 1 + below(r, 3) : below(r, 8));
}

static unsigned put_vex(struct insn_random *r, uint8_t *b, unsigned at)
{
	uint8_t payload = (uint8_t)insn_random_next(r);

	if (below(r, 2))
		payload |= 0x78; /* vvvv unused */
	if (below(r, 4) == 0) {
		b[at++] = 0xc5;
		b[at++] = payload;
	} else {
		b[at++] = 0xc4;
		b[at++] = (uint8_t)((insn_random_next(r) & 0xe0) | random_map(r));
		b[at++] = payload;
	}
	return at;
}

static unsigned put_evex(struct insn_random *r, uint8_t *b, unsigned at)
{
	uint8_t map = random_map(r);

	if (below(r, 8) == 0)
		map = (uint8_t)(5 + below(r, 2));
	b[at] = 0x62;
	b[at + 1] = (uint8_t)((insn_random_next(r) & 0xf0) | map);
	b[at + 2] = (uint8_t)insn_random_next(r) | 4;
	b[at + 3] = (uint8_t)insn_random_next(r);
	if (below(r, 2))
		b[at + 2] |= 0x78;
	if (below(r, 2))
		b[at + 3] |= 8; /* V' unused */
	if (below(r, 2))
		b[at + 3] &= 0x6f; /* no z, no b */
	if (below(r, 2))
		b[at + 3] &= 0xf8; /* no opmask */
	return at + 4;
}

void insn_random_bytes(struct insn_random *r, uint8_t bytes[32])
{
	unsigned at;

	for (unsigned i = 0; i < 32; i += 8)
		for (uint64_t v = insn_random_next(r), j = 0; j < 8; j++)
			bytes[i + j] = (uint8_t)(v >> j * 8);
	at = put_prefixes(r, bytes, 0);
	switch (below(r, 10)) {
	case 0:
	case 1:
		bytes[at] = 0x0f;
		break;
	case 2:
		bytes[at] = 0x0f;
		bytes[at + 1] = 0x38 + 2 * (uint8_t)below(r, 2);
		break;
	case 3:
	case 4:
		put_vex(r, bytes, below(r, 16) ? 0 : at);
		break;
	case 5:
	case 6:
	case 7:
		put_evex(r, bytes, below(r, 16) ? 0 : at);
		break;
	}
}
