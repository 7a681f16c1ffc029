/* integer.c - rows of plain integer code, as compilers make it. */
#include "workload.h"

#include <stdlib.h>
#include <string.h>

static uint64_t run_alu(uint64_t ops)
{
	uint64_t a = 1, b = 0x9e3779b97f4a7c15ull, c = 0, d = 3;

	for (uint64_t i = 0; i < ops; i++) {
		a += b ^ i;
		b = (b << 7 | b >> 57) + a;
		if (i & 4)
			c ^= b;
		else
			c -= a >> 3;
		d += c;
		if ((i & 31) == 17)
			d ^= d << 5;
	}
	return mix(mix(a, b), mix(c, d));
}

static uint64_t run_division(uint64_t ops)
{
	uint64_t x = 0xfedcba9876543210ull, sum = 0;

	for (uint64_t i = 0; i < ops; i++) {
		uint64_t q = x / (i * 77 + 3), r = x % (i * 77 + 3);

		sum += q ^ r;
		x = x * 6364136223846793005ull + (uint32_t)sum % 1000;
	}
	return sum;
}

/* --- lists, a matrix, a state machine, a CRC -----------------------------------------------------
 */

enum { LIST = 256, MATRIX = 24 };

struct item {
	struct item *next;
	int16_t key, value;
};

static struct item *list_make(struct item *items)
{
	uint64_t seed = 11;

	for (int i = 0; i < LIST; i++) {
		items[i].next = i + 1 < LIST ? &items[i + 1] : NULL;
		items[i].key = random_next(&seed) >> 20;
		items[i].value = i;
	}
	return items;
}

static struct item *list_reverse(struct item *head)
{
	struct item *done = NULL;

	while (head) {
		struct item *next = head->next;

		head->next = done;
		done = head;
		head = next;
	}
	return done;
}

static struct item *list_merge(struct item *a, struct item *b)
{
	struct item *head = NULL, **end = &head;

	while (a && b) {
		struct item **least = a->key <= b->key ? &a : &b;

		*end = *least;
		end = &(*least)->next;
		*least = *end;
	}
	*end = a ? a : b;
	return head;
}

static struct item *list_sort(struct item *head, int len)
{
	struct item *half = head;

	if (len < 2) {
		if (head)
			head->next = NULL;
		return head;
	}
	for (int i = 0; i < len / 2; i++)
		half = half->next;
	half = list_sort(half, len - len / 2);
	return list_merge(list_sort(head, len / 2), half);
}

static uint16_t crc16(uint16_t crc, uint32_t value, int bits)
{
	for (; bits; bits--, value >>= 1)
		crc = (crc >> 1) ^ (((crc ^ value) & 1) ? 0xa001 : 0);
	return crc;
}

static uint32_t matrix_step(int16_t *a, int16_t *b, int32_t *c, int add)
{
	uint32_t sum = 0;

	for (int i = 0; i < MATRIX * MATRIX; i++)
		a[i] = a[i] * 3 + add + i, b[i] = b[i] ^ a[i] >> 2;
	for (int i = 0; i < MATRIX; i++) {
		for (int j = 0; j < MATRIX; j++) {
			int32_t dot = 0;

			for (int k = 0; k < MATRIX; k++)
				dot += a[i * MATRIX + k] * b[k * MATRIX + j];
			c[i * MATRIX + j] = dot;
			sum += dot >> 4;
		}
	}
	return sum;
}

/* Which of the words of a line are numbers, and of which kind? */
enum { NUM_START, NUM_SIGN, NUM_INT, NUM_POINT, NUM_EXP, NUM_EXPSIGN, NUM_BAD, NUM_STATES };

static int number_step(int state, char c)
{
	int digit = c >= '0' && c <= '9';

	switch (state) {
	case NUM_START:
		return digit                  ? NUM_INT
		       : c == '+' || c == '-' ? NUM_SIGN
		       : c == '.'             ? NUM_POINT
					      : NUM_BAD;
	case NUM_SIGN:
		return digit ? NUM_INT : c == '.' ? NUM_POINT : NUM_BAD;
	case NUM_INT:
		return digit ? NUM_INT : c == '.' ? NUM_POINT : c == 'e' ? NUM_EXP : NUM_BAD;
	case NUM_POINT:
		return digit ? NUM_POINT : c == 'e' ? NUM_EXP : NUM_BAD;
	case NUM_EXP:
		return c == '+' || c == '-' ? NUM_EXPSIGN : digit ? NUM_EXPSIGN : NUM_BAD;
	case NUM_EXPSIGN:
		return digit ? NUM_EXPSIGN : NUM_BAD;
	}
	return NUM_BAD;
}

static uint32_t count_numbers(const char *line)
{
	unsigned count[NUM_STATES] = {0};
	int state = NUM_START;

	for (; *line; line++) {
		if (*line == ' ') {
			count[state]++;
			state = NUM_START;
		} else {
			state = number_step(state, *line);
		}
	}
	return count[NUM_INT] | count[NUM_POINT] << 8 | count[NUM_EXPSIGN] << 16 |
	       count[NUM_BAD] << 24;
}

static uint64_t run_mixed(uint64_t ops)
{
	static struct item items[LIST];
	static int16_t a[MATRIX * MATRIX], b[MATRIX * MATRIX];
	static int32_t c[MATRIX * MATRIX];
	struct item *list = list_make(items);
	uint64_t sum = 0;
	uint16_t crc = 0xffff;

	memset(a, 1, sizeof(a));
	memset(b, 2, sizeof(b));
	for (uint64_t i = 0; i < ops; i++) {
		for (struct item *p = list; p; p = p->next)
			p->key = p->key * 5 + i;
		list = list_reverse(list_sort(list, LIST));
		crc = crc16(crc, list->value, 16);
		crc = crc16(crc, matrix_step(a, b, c, i), 32);
		crc = crc16(crc,
			    count_numbers("12 +7 -3.5 1e9 2.5e-7 x17 99 .5 1.e3 --4 6e 0.001 "),
			    32);
		sum = mix(sum, crc);
	}
	return sum;
}

/* --- SHA-256 (FIPS 180-4) ------------------------------------------------------------------------
 */

static const uint32_t sha_k[64] = {
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
	0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
	0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
	0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
	0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
	0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
	0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
	0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
	0xc67178f2};

static uint32_t rotr(uint32_t x, int n)
{
	return x >> n | x << (32 - n);
}

static void sha_block(uint32_t h[8], const unsigned char *in)
{
	uint32_t w[64], a = h[0], b = h[1], c = h[2], d = h[3], e = h[4], f = h[5], g = h[6],
			k = h[7];

	for (int i = 0; i < 16; i++)
		w[i] = (uint32_t)in[4 * i] << 24 | in[4 * i + 1] << 16 | in[4 * i + 2] << 8 |
		       in[4 * i + 3];
	for (int i = 16; i < 64; i++)
		w[i] = w[i - 16] + w[i - 7] +
		       (rotr(w[i - 15], 7) ^ rotr(w[i - 15], 18) ^ w[i - 15] >> 3) +
		       (rotr(w[i - 2], 17) ^ rotr(w[i - 2], 19) ^ w[i - 2] >> 10);
	for (int i = 0; i < 64; i++) {
		uint32_t t1 = k + (rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25)) + ((e & f) ^ (~e & g)) +
			      sha_k[i] + w[i];
		uint32_t t2 =
			(rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));

		k = g, g = f, f = e, e = d + t1;
		d = c, c = b, b = a, a = t1 + t2;
	}
	h[0] += a, h[1] += b, h[2] += c, h[3] += d;
	h[4] += e, h[5] += f, h[6] += g, h[7] += k;
}

/* ops bytes, whole blocks, without the padding. */
static uint64_t run_sha256(uint64_t ops)
{
	static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
					  0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
	unsigned char block[64];
	uint32_t h[8];

	memcpy(h, start, sizeof(h));
	for (int i = 0; i < 64; i++)
		block[i] = i;
	for (uint64_t done = 0; done < ops; done += 64) {
		block[done >> 6 & 63]++;
		sha_block(h, block);
	}
	return (uint64_t)h[0] << 32 | h[7];
}

/* -------------------------------------------------------------------------------------------------
 */

static int compare(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static uint64_t run_sort(uint64_t ops)
{
	static uint32_t values[1 << 15];
	uint64_t seed = 3;

	for (uint64_t i = 0; i < ops; i++)
		values[i] = random_next(&seed) >> 32;
	qsort(values, ops, sizeof(*values), compare);
	return mix(mix(values[0], values[ops / 2]), values[ops - 1]);
}

__attribute__((noinline, noclone)) static int tak(int x, int y, int z)
{
	if (y >= x)
		return z;
	return tak(tak(x - 1, y, z), tak(y - 1, z, x), tak(z - 1, x, y));
}

/* 63609 calls each */
static uint64_t run_calls(uint64_t ops)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < ops; i += 63609)
		sum = mix(sum, tak(18, 12, 6));
	return sum;
}

/* --- an interpreter of byte code -----------------------------------------------------------------
 */

enum {
	OP_SET,
	OP_MOVE,
	OP_ADD,
	OP_MUL,
	OP_AND,
	OP_SHR,
	OP_JUMP,
	OP_JZERO,
	OP_JLESS2,
	OP_JSAME,
	OP_END
};

struct op {
	uint8_t op, to, from, value;
};

/* The sum of the Collatz steps of all numbers below r0: r1 the number, r2 its chain, r3 the sum. */
static const struct op program[] = {
	{OP_SET, 1, 0, 1},
	/* 1: */ {OP_JSAME, 1, 0, 14},
	{OP_MOVE, 2, 1, 0},
	/* 3: */ {OP_JLESS2, 2, 0, 12},
	{OP_ADD, 3, 3, 1},
	{OP_AND, 4, 2, 1},
	{OP_JZERO, 4, 0, 10},
	{OP_MUL, 2, 2, 3},
	{OP_ADD, 2, 2, 1},
	{OP_JUMP, 0, 0, 3},
	/* 10: */ {OP_SHR, 2, 2, 1},
	{OP_JUMP, 0, 0, 3},
	/* 12: */ {OP_ADD, 1, 1, 1},
	{OP_JUMP, 0, 0, 1},
	/* 14: */ {OP_END, 0, 0, 0},
};

__attribute__((noinline)) static uint64_t interpret(const struct op *code, uint64_t r[8])
{
	static const void *const handlers[] = {&&set,  &&move,  &&add,    &&mul,   &&and, &&shr,
					       &&jump, &&jzero, &&jless2, &&jsame, &&end};
	const struct op *at = code;

#define NEXT goto *handlers[at->op]
	NEXT;
set:
	r[at->to] = at->value, at++;
	NEXT;
move:
	r[at->to] = r[at->from], at++;
	NEXT;
add:
	r[at->to] = r[at->from] + at->value, at++;
	NEXT;
mul:
	r[at->to] = r[at->from] * at->value, at++;
	NEXT;
	and : r[at->to] = r[at->from] & at->value, at++;
	NEXT;
shr:
	r[at->to] = r[at->from] >> at->value, at++;
	NEXT;
jump:
	at = code + at->value;
	NEXT;
jzero:
	at = !r[at->to] ? code + at->value : at + 1;
	NEXT;
jless2:
	at = r[at->to] < 2 ? code + at->value : at + 1;
	NEXT;
jsame:
	at = r[at->to] == r[at->from] ? code + at->value : at + 1;
	NEXT;
end:
	return r[3];
#undef NEXT
}

static uint64_t run_interpreter(uint64_t ops)
{
	uint64_t r[8] = {ops};

	return interpret(program, r);
}

/* --- indirect calls ------------------------------------------------------------------------------
 */

#define TARGET(n, expression)                                                                      \
	static uint64_t target_##n(uint64_t x)                                                     \
	{                                                                                          \
		return expression;                                                                 \
	}
TARGET(0, x + 1)
TARGET(1, x ^ x >> 7)
TARGET(2, x * 3)
TARGET(3, x - 12345)
TARGET(4, x << 1 | x >> 63)
TARGET(5, ~x)
TARGET(6, x + (x >> 3))
TARGET(7, x ^ 0x5555555555555555)

static uint64_t run_indirect(uint64_t ops)
{
	static uint64_t (*const targets[])(uint64_t) = {target_0, target_1, target_2, target_3,
							target_4, target_5, target_6, target_7};
	static const uint8_t order[32] = {0, 3, 1, 7, 2, 2, 5, 4, 6, 0, 1, 3, 3, 7, 5, 0,
					  6, 2, 4, 1, 1, 0, 7, 5, 3, 6, 2, 4, 0, 5, 1, 6};
	uint64_t x = 1;

	for (uint64_t i = 0; i < ops; i++)
		x = targets[order[i & 31]](x);
	return x;
}

/* -------------------------------------------------------------------------------------------------
 */

static char text[64 << 10];

static void prepare_scan(void)
{
	text_fill(text, sizeof(text), 5);
}

/* Count words, lines and capitals-to-be, a byte at a time. */
static uint64_t run_scan(uint64_t ops)
{
	uint64_t words = 0, lines = 0, other = 0;

	for (uint64_t done = 0; done < ops; done += sizeof(text)) {
		int in_word = 0;

		for (const char *p = text; p < text + sizeof(text); p++) {
			char c = *p;

			if (c == '\n')
				lines++;
			if (c == ' ' || c == '\n') {
				in_word = 0;
			} else {
				words += !in_word;
				other += in_word && c == 'o';
				in_word = 1;
			}
		}
	}
	return mix(mix(words, lines), other);
}

static uint64_t run_atomic(uint64_t ops)
{
	static uint64_t counter;

	counter = 0;
	for (uint64_t i = 0; i < ops; i++)
		__atomic_fetch_add(&counter, i, __ATOMIC_SEQ_CST);
	return counter;
}

const struct row integer_rows[] = {
	{"alu", "turn of a loop on registers, with branches", 1000000, NULL, run_alu, NULL},
	{"division", "64-bit quotient and remainder, 32-bit remainder", 200000, NULL, run_division,
	 NULL},
	{"mixed", "list sort, matrix product, state machine, CRC", 60, NULL, run_mixed, NULL},
	{"sha256", "byte of SHA-256 in plain C", 512 << 10, NULL, run_sha256, NULL},
	{"sort", "element sorted by qsort", 1 << 15, NULL, run_sort, NULL},
	{"calls", "recursive call", 20 * 63609, NULL, run_calls, NULL},
	{"interpreter", "number through a byte-code interpreter", 6000, NULL, run_interpreter,
	 NULL},
	{"indirect", "indirect call, eight targets", 1000000, NULL, run_indirect, NULL},
	{"scan", "byte looked at", 20 * sizeof(text), prepare_scan, run_scan, NULL},
	{"atomic", "locked addition", 500000, NULL, run_atomic, NULL},
	{0},
};
