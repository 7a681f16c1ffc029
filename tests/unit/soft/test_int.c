/* Integer instructions in random encodings with random operands, on the soft engine and on this
 * CPU: results, all six flags (also the undefined ones), memory, and faults must be the same. */
#include "vec_guest.h"

static uint64_t rng_state = 0x9e3779b97f4a7c15ull;

static uint64_t rnd(void)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return rng_state;
}

static unsigned rnd_below(unsigned n)
{
	return (unsigned)(rnd() >> 33) % n;
}

/* Numbers at which carries, signs and shifts change their minds. */
static uint64_t rnd_value(void)
{
	static const uint64_t edges[] = {0,          1,          2,          0x7f,
					 0x80,       0xff,       0x7fff,     0x8000,
					 0xffff,     0x7fffffff, 0x80000000, 0xffffffff,
					 0x99,       0x3f,       0x40,       0x7fffffffffffffff,
					 1ull << 63, ~0ull,      0x20,       0x1f};

	switch (rnd_below(4)) {
	case 0:
		return edges[rnd_below(ARRAY_SIZE(edges))];
	case 1:
		return rnd() >> rnd_below(64);
	default:
		return rnd();
	}
}

/* --- what an encoding is made of ---------------------------------------------------------------
 */

enum {
	E_MODRM = 1 << 0,
	E_IB = 1 << 1,    /* immediate byte */
	E_IZ = 1 << 2,    /* 2 or 4 by operand size */
	E_IV = 1 << 3,    /* 2, 4 or 8 */
	E_MEM = 1 << 4,   /* memory form only */
	E_VEX = 1 << 5,   /* VEX prefix instead of legacy ones */
	E_STR = 1 << 6,   /* string: REP prefixes, small counts, pointers to data */
	E_STACK = 1 << 7, /* RSP points into the data */
	E_REL0 = 1 << 8,  /* relative byte 0: the next instruction either way */
	E_ENTER = 1 << 9, /* frame size and level */
};

struct form {
	const char *name;
	uint8_t map;      /* 1, 2 = 0F, 3 = 0F38, 4 = 0F3A */
	uint8_t first, n; /* opcodes */
	int8_t digit;     /* ModRM.reg, or -1: any; or -2: none below the given ones */
	uint8_t prefix;   /* mandatory */
	uint16_t how;
};

// clang-format off
static const struct form forms[] = {
	{"alu r/m,r",   1, 0x00, 4, -1, 0, E_MODRM}, {"or",  1, 0x08, 4, -1, 0, E_MODRM},
	{"adc",         1, 0x10, 4, -1, 0, E_MODRM}, {"sbb", 1, 0x18, 4, -1, 0, E_MODRM},
	{"and",         1, 0x20, 4, -1, 0, E_MODRM}, {"sub", 1, 0x28, 4, -1, 0, E_MODRM},
	{"xor",         1, 0x30, 4, -1, 0, E_MODRM}, {"cmp", 1, 0x38, 4, -1, 0, E_MODRM},
	{"add al",      1, 0x04, 1, -1, 0, E_IB},    {"add ax", 1, 0x05, 1, -1, 0, E_IZ},
	{"adc al",      1, 0x14, 1, -1, 0, E_IB},    {"sbb ax", 1, 0x1d, 1, -1, 0, E_IZ},
	{"and al",      1, 0x24, 1, -1, 0, E_IB},    {"sub ax", 1, 0x2d, 1, -1, 0, E_IZ},
	{"xor al",      1, 0x34, 1, -1, 0, E_IB},    {"cmp ax", 1, 0x3d, 1, -1, 0, E_IZ},
	{"or al",       1, 0x0c, 1, -1, 0, E_IB},
	{"group 1 b",   1, 0x80, 1, -1, 0, E_MODRM | E_IB},
	{"group 1 z",   1, 0x81, 1, -1, 0, E_MODRM | E_IZ},
	{"group 1 s",   1, 0x83, 1, -1, 0, E_MODRM | E_IB},
	{"movsxd",      1, 0x63, 1, -1, 0, E_MODRM},
	{"imul z",      1, 0x69, 1, -1, 0, E_MODRM | E_IZ},
	{"imul b",      1, 0x6b, 1, -1, 0, E_MODRM | E_IB},
	{"test xchg mov", 1, 0x84, 8, -1, 0, E_MODRM},
	{"lea",         1, 0x8d, 1, -1, 0, E_MODRM | E_MEM},
	{"pop m",       1, 0x8f, 1,  0, 0, E_MODRM | E_STACK},
	{"push r",      1, 0x50, 8, -1, 0, E_STACK}, {"pop r", 1, 0x58, 8, -1, 0, E_STACK},
	{"push z",      1, 0x68, 1, -1, 0, E_STACK | E_IZ},
	{"push b",      1, 0x6a, 1, -1, 0, E_STACK | E_IB},
	{"xchg ax",     1, 0x90, 8, -1, 0, 0},       {"cbw cwd", 1, 0x98, 2, -1, 0, 0},
	{"sahf lahf",   1, 0x9e, 2, -1, 0, 0},
	{"test al",     1, 0xa8, 1, -1, 0, E_IB},    {"test ax", 1, 0xa9, 1, -1, 0, E_IZ},
	{"mov r8,i",    1, 0xb0, 8, -1, 0, E_IB},    {"mov r,i", 1, 0xb8, 8, -1, 0, E_IV},
	{"shift i",     1, 0xc0, 2, -1, 0, E_MODRM | E_IB},
	{"shift 1 cl",  1, 0xd0, 4, -1, 0, E_MODRM},
	{"mov m,i b",   1, 0xc6, 1,  0, 0, E_MODRM | E_IB},
	{"mov m,i z",   1, 0xc7, 1,  0, 0, E_MODRM | E_IZ},
	{"leave",       1, 0xc9, 1, -1, 0, E_STACK},
	{"enter",       1, 0xc8, 1, -1, 0, E_STACK | E_ENTER},
	{"xlat",        1, 0xd7, 1, -1, 0, 0},
	{"loop jcxz",   1, 0xe0, 4, -1, 0, E_REL0},  {"jcc", 1, 0x70, 16, -1, 0, E_REL0},
	{"cmc",         1, 0xf5, 1, -1, 0, 0},       {"clc stc", 1, 0xf8, 2, -1, 0, 0},
	{"group 3 test b", 1, 0xf6, 1, 0, 0, E_MODRM | E_IB},
	{"group 3 test z", 1, 0xf7, 1, 0, 0, E_MODRM | E_IZ},
	{"group 3 not", 1, 0xf6, 2,  2, 0, E_MODRM}, {"neg",  1, 0xf6, 2, 3, 0, E_MODRM},
	{"mul",         1, 0xf6, 2,  4, 0, E_MODRM}, {"imul", 1, 0xf6, 2, 5, 0, E_MODRM},
	{"div",         1, 0xf6, 2,  6, 0, E_MODRM}, {"idiv", 1, 0xf6, 2, 7, 0, E_MODRM},
	{"inc",         1, 0xfe, 2,  0, 0, E_MODRM}, {"dec",  1, 0xfe, 2, 1, 0, E_MODRM},
	{"push m",      1, 0xff, 1,  6, 0, E_MODRM | E_STACK},
	{"movs cmps",   1, 0xa4, 4, -1, 0, E_STR},   {"stos..scas", 1, 0xaa, 6, -1, 0, E_STR},
	{"cmov",        2, 0x40, 16, -1, 0, E_MODRM}, {"setcc", 2, 0x90, 16, -1, 0, E_MODRM},
	{"bt",          2, 0xa3, 1, -1, 0, E_MODRM}, {"bts",  2, 0xab, 1, -1, 0, E_MODRM},
	{"btr",         2, 0xb3, 1, -1, 0, E_MODRM}, {"btc",  2, 0xbb, 1, -1, 0, E_MODRM},
	{"bt imm",      2, 0xba, 1, -1, 0, E_MODRM | E_IB},
	{"shld i",      2, 0xa4, 1, -1, 0, E_MODRM | E_IB}, {"shld cl", 2, 0xa5, 1, -1, 0, E_MODRM},
	{"shrd i",      2, 0xac, 1, -1, 0, E_MODRM | E_IB}, {"shrd cl", 2, 0xad, 1, -1, 0, E_MODRM},
	{"imul r",      2, 0xaf, 1, -1, 0, E_MODRM}, {"cmpxchg", 2, 0xb0, 2, -1, 0, E_MODRM},
	{"movzx",       2, 0xb6, 2, -1, 0, E_MODRM}, {"movsx", 2, 0xbe, 2, -1, 0, E_MODRM},
	{"bsf bsr",     2, 0xbc, 2, -1, 0, E_MODRM},
	{"popcnt",      2, 0xb8, 1, -1, 0xf3, E_MODRM},
	{"tzcnt lzcnt", 2, 0xbc, 2, -1, 0xf3, E_MODRM},
	{"xadd",        2, 0xc0, 2, -1, 0, E_MODRM}, {"movnti", 2, 0xc3, 1, -1, 0, E_MODRM | E_MEM},
	{"cmpxchg8b",   2, 0xc7, 1,  1, 0, E_MODRM | E_MEM}, {"bswap", 2, 0xc8, 8, -1, 0, 0},
	{"nop",         2, 0x1f, 1, -1, 0, E_MODRM}, {"prefetch", 2, 0x18, 1, -1, 0, E_MODRM | E_MEM},
	{"movbe",       3, 0xf0, 2, -1, 0, E_MODRM | E_MEM},
	{"crc32",       3, 0xf0, 2, -1, 0xf2, E_MODRM},
	{"adcx",        3, 0xf6, 1, -1, 0x66, E_MODRM}, {"adox", 3, 0xf6, 1, -1, 0xf3, E_MODRM},
	{"andn",        3, 0xf2, 1, -1, 0, E_MODRM | E_VEX},
	{"blsr",        3, 0xf3, 1, 1, 0, E_MODRM | E_VEX}, {"blsmsk", 3, 0xf3, 1, 2, 0, E_MODRM | E_VEX},
	{"blsi",        3, 0xf3, 1, 3, 0, E_MODRM | E_VEX},
	{"bzhi",        3, 0xf5, 1, -1, 0, E_MODRM | E_VEX},
	{"pdep",        3, 0xf5, 1, -1, 0xf2, E_MODRM | E_VEX},
	{"pext",        3, 0xf5, 1, -1, 0xf3, E_MODRM | E_VEX},
	{"mulx",        3, 0xf6, 1, -1, 0xf2, E_MODRM | E_VEX},
	{"bextr",       3, 0xf7, 1, -1, 0, E_MODRM | E_VEX},
	{"shlx",        3, 0xf7, 1, -1, 0x66, E_MODRM | E_VEX},
	{"sarx",        3, 0xf7, 1, -1, 0xf3, E_MODRM | E_VEX},
	{"shrx",        3, 0xf7, 1, -1, 0xf2, E_MODRM | E_VEX},
	{"rorx",        4, 0xf0, 1, -1, 0xf2, E_MODRM | E_VEX | E_IB},
};
// clang-format on

/* --- encoding ----------------------------------------------------------------------------------
 */

static void emit(struct setup *in, uint8_t b)
{
	in->code[in->len++] = b;
}

static void emit_value(struct setup *in, uint64_t v, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		emit(in, (uint8_t)(v >> 8 * i));
}

/* Somewhere in the data, also close to its edges. */
static uint64_t data_address(void)
{
	static const int edge[] = {0, PAGE_SIZE, DATA_SIZE};

	if (rnd_below(4))
		return DATA_AT + 64 + rnd_below(DATA_SIZE - 256);
	return DATA_AT + (uint64_t)edge[rnd_below(3)] - rnd_below(20) + rnd_below(8);
}

/* ModRM naming memory: [base + disp8], [base], [base + index*s + disp32]; the base is made to point
 * into the data, the index register (R9, needs REX.X) is small. */
static void emit_memory(struct setup *in, unsigned reg, unsigned rexb)
{
	unsigned base;

	do
		base = rnd_below(8);
	while (base == 4 || base == 5);
	in->gpr[base + 8 * rexb] = data_address();
	if (rnd_below(3)) {
		emit(in, (uint8_t)(0x40 | reg << 3 | base));
		emit(in, (uint8_t)(rnd_below(16) - 8));
		return;
	}
	emit(in, (uint8_t)(0x80 | reg << 3 | 4));
	emit(in, (uint8_t)(rnd_below(4) << 6 | 4 << 3 | base)); /* no index without REX.X */
	emit_value(in, rnd_below(64), 4);
}

static void emit_modrm(struct setup *in, const struct form *f, unsigned rexb)
{
	unsigned reg = f->digit >= 0 ? (unsigned)f->digit : rnd_below(8);

	if (f->how & E_MEM || rnd_below(2))
		emit_memory(in, reg, rexb);
	else
		emit(in, (uint8_t)(0xc0 | reg << 3 | rnd_below(8)));
}

static void emit_immediate(struct setup *in, const struct form *f, bool w, bool osize)
{
	if (f->how & E_IB)
		emit(in, (uint8_t)rnd_value());
	if (f->how & E_IZ)
		emit_value(in, rnd_value(), osize && !w ? 2 : 4);
	if (f->how & E_IV)
		emit_value(in, rnd_value(), w ? 8 : osize ? 2 : 4);
	if (f->how & E_REL0)
		emit(in, 0);
	if (f->how & E_ENTER) {
		emit_value(in, rnd_below(300), 2);
		emit(in, (uint8_t)(rnd_below(2) ? 0 : rnd_below(8)));
	}
}

static void encode_vex(struct setup *in, const struct form *f)
{
	unsigned w = rnd_below(2), vvvv = rnd_below(8), rexb = rnd_below(2), r = rnd_below(2);
	unsigned pp = f->prefix == 0x66 ? 1 : f->prefix == 0xf3 ? 2 : f->prefix == 0xf2 ? 3 : 0;

	if (!strcmp(f->name, "rorx"))
		vvvv = 0;
	emit(in, 0xc4);
	emit(in, (uint8_t)(!r << 7 | 1 << 6 | !rexb << 5 | (f->map - 1)));
	emit(in, (uint8_t)(w << 7 | (~vvvv & 15) << 3 | pp));
	emit(in, f->first);
	emit_modrm(in, f, rexb);
	emit_immediate(in, f, w, false);
}

static void encode_legacy(struct setup *in, const struct form *f)
{
	bool osize = f->prefix ? false : !rnd_below(4), w = rnd_below(2);
	unsigned rex =
		rnd_below(2) ? 0x40u | (unsigned)w << 3 | rnd_below(2) << 2 | rnd_below(2) : 0;

	if (!rex)
		w = false;
	if (f->how & E_STR && !rnd_below(3))
		emit(in, 0xfd); /* STD */
	if (f->prefix == 0xf2 && f->map == 3)
		osize = !rnd_below(4);
	if (!rnd_below(8) && f->how & E_MODRM)
		emit(in, 0xf0);
	if (osize && !(f->how & E_REL0))
		emit(in, 0x66);
	if (!rnd_below(16))
		emit(in, 0x67);
	if (f->how & E_STR && rnd_below(3))
		emit(in, rnd_below(2) ? 0xf3 : 0xf2);
	if (f->prefix)
		emit(in, f->prefix);
	if (rex)
		emit(in, (uint8_t)rex);
	if (f->map > 1)
		emit(in, 0x0f);
	if (f->map == 3)
		emit(in, 0x38);
	emit(in, (uint8_t)(f->first + rnd_below(f->n)));
	if (f->how & E_MODRM)
		emit_modrm(in, f, rex & 1);
	emit_immediate(in, f, w, osize);
}

static void make_case(struct setup *in, const struct form *f)
{
	for (unsigned i = 0; i < X86_NR_GPR; i++)
		in->gpr[i] = rnd_value();
	for (unsigned i = 0; i < 64; i++)
		memcpy(&in->data[rnd_below(DATA_SIZE - 8)], &(uint64_t){rnd_value()}, 8);
	in->flags = rnd() & RFLAGS_ARITH;
	in->len = 0;
	if (f->how & E_STACK) {
		in->gpr[X86_RSP] = data_address();
		in->gpr[X86_RBP] = data_address();
	}
	if (f->how & E_STR) {
		in->gpr[X86_RSI] = data_address();
		in->gpr[X86_RDI] = data_address();
		in->gpr[X86_RCX] = rnd_below(8) ? rnd_below(40) : rnd_below(3000);
	}
	if (!strcmp(f->name, "xlat"))
		in->gpr[X86_RBX] = data_address();
	if (f->how & E_VEX)
		encode_vex(in, f);
	else
		encode_legacy(in, f);
	/* Bit offsets that reach beyond the operand, but not into this program's own memory. */
	if (f->map == 2 && (f->first & 0xe7) == 0xa3)
		for (unsigned i = 0; i < X86_NR_GPR; i++)
			if (in->gpr[i] - DATA_AT + 64 > DATA_SIZE + 128)
				in->gpr[i] = (uint64_t)(int64_t)((int)rnd_below(2000) - 1000);
}

static const struct engine_cpu_ops no_ops;

static void compare_forms(unsigned first, unsigned end, unsigned rounds)
{
	static struct setup in;
	static struct outcome host, soft;
	struct guest g;
	unsigned bad = 0;

	guest_create(&g, "max", &no_ops);
	for (unsigned i = first; i < end; i++)
		for (unsigned n = 0; n < rounds && bad < 12; n++) {
			make_case(&in, &forms[i]);
			native_run(&in, &host);
			if (host.vector == X86_EXC_PF && host.cr2 < RAM_SIZE)
				continue; /* the guest has its page tables there, mapped */
			if (host.vector == X86_EXC_PF && forms[i].how & E_ENTER)
				continue; /* this CPU has pushed some of the frame by then */
			guest_run(&g, &in, &soft);
			if (!outcomes_agree(&in, &host, &soft)) {
				printf("#   in '%s'\n", forms[i].name);
				bad++;
			}
		}
	guest_destroy(&g);
	CHECK_EQ(0, bad);
}

enum { ROUNDS = 700, PART = (ARRAY_SIZE(forms) + 3) / 4 };

TEST(first_quarter_of_integer_forms_agrees_with_this_cpu)
{
	compare_forms(0, PART, ROUNDS);
}

TEST(second_quarter_of_integer_forms_agrees_with_this_cpu)
{
	compare_forms(PART, 2 * PART, ROUNDS);
}

TEST(third_quarter_of_integer_forms_agrees_with_this_cpu)
{
	compare_forms(2 * PART, 3 * PART, ROUNDS);
}

TEST(last_quarter_of_integer_forms_agrees_with_this_cpu)
{
	compare_forms(3 * PART, ARRAY_SIZE(forms), ROUNDS);
}
