/* gen.c - see gen.h. */
#include "gen.h"

#include "base/types.h"
#include "engine/cpu_model.h"
#include "engine/x86_state.h"
#include "native.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_LEN = 15 };

static uint64_t rng = 1;
static struct gen_row *rows[GEN_NR_MODES];
static const struct cpu_model *model;
static const char *why_excluded[INSN_NR_IDS], *why_absent[INSN_NR_IDS];

void gen_seed(uint64_t seed)
{
	rng = seed ? seed : 1;
}

uint64_t gen_random(void) /* splitmix64 */
{
	uint64_t z = (rng += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

/* --- what is left out ---------------------------------------------------------------------------
 */

/* Rows that cannot be compared with a process on the host, by name in the table. */
static const struct {
	const char *name, *why;
} excluded[] = {
	{"cpuid", "the guest's CPU model answers, not the host"},
	{"rdtsc", "time"},
	{"rdtscp", "time"},
	{"rdpmc", "the host's counters"},
	{"rdrand", "random"},
	{"rdseed", "random"},
	{"rdpkru", "CR4.PKE is the host kernel's"},
	{"wrpkru", "takes this program's own memory away"},
	{"xgetbv", "XCR0 is the host kernel's"},
	{"wrfsbase", "the C library's thread pointer"},
	{"lfs", "the C library's thread pointer"},
	{"sgdt", "UMIP: the host kernel emulates"},
	{"sidt", "UMIP: the host kernel emulates"},
	{"sldt", "UMIP: the host kernel emulates"},
	{"smsw", "UMIP: the host kernel emulates"},
	{"str", "UMIP: the host kernel emulates"},
	{"int3", "ends every case"},
	{"int1", "delivered through the guest's IDT: tests/guest"},
	{"syscall", "system call of the host"},
	{"sysenter", "system call of the host"},
	{"vmcall", "the hypervisor under the host"},
	{"vmmcall", "the hypervisor under the host"},
};

bool gen_is(const struct insn *in, const char *name)
{
	const char *n;
	unsigned len = insn_name(in, &n);

	return strlen(name) == len && !memcmp(n, name, len);
}

static const char *row_excluded(unsigned id)
{
	const char *name = insn_rows[id].name;

	if (!id)
		return "invalid opcodes: tests/insn/test_decode_host.c";
	for (size_t i = 0; i < ARRAY_SIZE(excluded); i++)
		if (!strcmp(excluded[i].name, name))
			return excluded[i].why;
	return NULL;
}

static const char *row_absent(unsigned id)
{
	const struct insn_row *row = &insn_rows[id];

	if (row->attrs & ROW_UD)
		return "never offered: always #UD, see tests/insn/test_decode_host.c";
	if (row->feature >= 0 && !cpu_feature_on_host(row->feature))
		return "not on this host";
	if (row->feature >= 0 && !cpu_has(model, row->feature))
		return "not offered to guests";
	return NULL;
}

const char *gen_row_excluded(unsigned id)
{
	return why_excluded[id];
}

const char *gen_row_absent(unsigned id)
{
	return why_absent[id] ? why_absent[id] : "no encoding was found";
}

/* The kernel has gates for some vectors, and the guest has no IDT. */
static bool is_host_gate(const struct insn *in)
{
	return gen_is(in, "int") && (in->imm == 0x80 || in->imm == 3 || in->imm == 4);
}

static bool loads_fs(const struct insn *in)
{
	const struct insn_op *op = &insn_rows[in->id].op[0];

	if (op->kind == OP_SEG)
		return op->fixed == X86_FS && op->access & OP_WRITE;
	return op->kind == OP_SEG_REG && op->access & OP_WRITE && (in->modrm >> 3 & 7) == X86_FS;
}

const char *gen_excluded(const struct insn *in, enum insn_mode mode)
{
	if (why_excluded[in->id])
		return why_excluded[in->id];
	if (why_absent[in->id])
		return why_absent[in->id];
	if (is_host_gate(in))
		return "a gate of the host kernel";
	if (loads_fs(in))
		return "the C library's thread pointer";
	if (mode != INSN_MODE_64 && in->seg == X86_FS)
		return "FS is null on the host";
	if ((gen_is(in, "rdfsbase") || gen_is(in, "rdgsbase") || gen_is(in, "wrgsbase")) &&
	    !native_fsgsbase())
		return "CR4.FSGSBASE is clear on the host";
	return NULL;
}

/* --- random strings -----------------------------------------------------------------------------
 */

static unsigned put_vex(uint8_t *p, enum insn_mode mode)
{
	uint8_t real = mode == INSN_MODE_64 ? 0 : 0xc0; /* or it is LES, LDS */
	unsigned n = 0;

	if (gen_one_in(3)) {
		p[n++] = 0xc5;
		p[n++] = gen_random() | real;
		return n;
	}
	p[n++] = 0xc4;
	p[n++] = (gen_random() & 0xe0) | real | (1 + gen_random() % 3);
	p[n++] = gen_random();
	return n;
}

static unsigned put_evex(uint8_t *p, enum insn_mode mode)
{
	static const uint8_t maps[] = {1, 2, 3, 1, 2, 3, 5, 6};

	p[0] = 0x62;
	p[1] = (gen_random() & 0xf0) | maps[gen_random() % ARRAY_SIZE(maps)];
	if (mode != INSN_MODE_64)
		p[1] |= 0xc0; /* or it is BOUND */
	p[2] = gen_random() | 4;
	p[3] = gen_random();
	if (gen_one_in(2))
		p[3] &= ~0x87; /* no mask, no zeroing */
	if (gen_one_in(2))
		p[3] &= ~0x10;
	if (gen_one_in(2))
		p[2] |= 0x78, p[3] |= 8; /* vvvv unused */
	return 4;
}

static unsigned put_legacy(uint8_t *p, enum insn_mode mode)
{
	unsigned n = 0;

	if (gen_one_in(4))
		p[n++] = 0x66;
	if (gen_one_in(5))
		p[n++] = 0xf2 + gen_random() % 2;
	if (gen_one_in(20))
		p[n++] = 0x67;
	if (gen_one_in(30))
		p[n++] = 0xf0;
	if (mode == INSN_MODE_64 && !gen_one_in(3))
		p[n++] = 0x40 + gen_random() % 16;
	switch (gen_random() % 5) {
	case 0:
	case 1:
		break;
	case 2:
		p[n++] = 0x0f;
		break;
	case 3:
		p[n++] = 0x0f;
		p[n++] = 0x38;
		break;
	case 4:
		p[n++] = 0x0f;
		p[n++] = 0x3a;
		break;
	}
	return n;
}

static void random_bytes(uint8_t p[16], enum insn_mode mode)
{
	unsigned n;

	switch (gen_random() % 4) {
	case 0:
		n = put_vex(p, mode);
		break;
	case 1:
		n = put_evex(p, mode);
		break;
	default:
		n = put_legacy(p, mode);
	}
	for (; n < 16; n++)
		p[n] = gen_random();
}

bool gen_decode(struct insn *in, const uint8_t *code, enum insn_mode mode)
{
	if (insn_decode(in, code, MAX_LEN, mode, model) != INSN_OK || !in->id)
		return false;
	memcpy(in->bytes, code, in->len);
	return true;
}

static void build_mode(enum insn_mode mode, unsigned tries)
{
	unsigned *seen = calloc(INSN_NR_IDS, sizeof(*seen));
	uint8_t p[16];
	struct insn in;

	rows[mode] = calloc(INSN_NR_IDS, sizeof(*rows[mode]));
	while (tries--) {
		struct gen_row *r;
		uint64_t at;

		random_bytes(p, mode);
		if (!gen_decode(&in, p, mode) || gen_excluded(&in, mode))
			continue;
		/* Reservoir sampling: every encoding found has the same chance to stay. */
		r = &rows[mode][in.id];
		at = seen[in.id]++;
		if (at >= GEN_STOCK)
			at = gen_random() % seen[in.id];
		if (at >= GEN_STOCK)
			continue;
		r->stock[at] = in;
		r->nr = MIN(seen[in.id], (unsigned)GEN_STOCK);
	}
	free(seen);
}

void gen_build(const struct cpu_model *m, unsigned tries)
{
	model = m;
	for (unsigned id = 0; id < INSN_NR_IDS; id++) {
		why_excluded[id] = row_excluded(id);
		why_absent[id] = row_absent(id);
	}
	build_mode(INSN_MODE_64, tries);
	build_mode(INSN_MODE_32, tries);
	build_mode(INSN_MODE_16, tries);
}

const struct gen_row *gen_row(enum insn_mode mode, unsigned id)
{
	return &rows[mode][id];
}

/* --- variations ---------------------------------------------------------------------------------
 */

static bool is_legacy_prefix(uint8_t b)
{
	return b == 0x26 || b == 0x2e || b == 0x36 || b == 0x3e || (b >= 0x64 && b <= 0x67) ||
	       b == 0xf0 || b == 0xf2 || b == 0xf3;
}

static unsigned skip_prefixes(const struct insn *in, enum insn_mode mode)
{
	unsigned n = 0;

	while (is_legacy_prefix(in->bytes[n]) ||
	       (mode == INSN_MODE_64 && (in->bytes[n] & 0xf0) == 0x40))
		n++;
	return n;
}

static unsigned payload_bytes(const struct insn *in, unsigned at)
{
	if (in->flags & INSN_EVEX)
		return 4;
	if (in->flags & INSN_VEX)
		return in->bytes[at] == 0xc5 ? 2 : 3;
	return in->map == MAP_0F ? 1 : in->map == MAP_0F38 || in->map == MAP_0F3A ? 2 : 0;
}

/* Bytes of SIB, and of the displacement. */
static void operand_bytes(unsigned adsize, uint8_t modrm, uint8_t sib, unsigned *nr_sib,
			  unsigned *nr_disp)
{
	unsigned mod = modrm >> 6, rm = modrm & 7;

	*nr_sib = adsize != 2 && rm == 4;
	if (adsize == 2)
		*nr_disp = mod == 1 ? 1 : mod == 2 || rm == 6 ? 2 : 0;
	else if (mod == 0)
		*nr_disp = (*nr_sib ? sib & 7 : rm) == 5 ? 4 : 0;
	else
		*nr_disp = mod == 1 ? 1 : 4;
}

void gen_layout(const struct insn *in, enum insn_mode mode, struct gen_layout *l)
{
	unsigned n = skip_prefixes(in, mode), nr_sib;

	l->opcode = n + payload_bytes(in, n);
	l->modrm = l->opcode + 1;
	operand_bytes(in->adsize, in->bytes[l->modrm], in->bytes[l->modrm + 1], &nr_sib,
		      &l->disp_len);
	l->disp = l->modrm + 1 + nr_sib;
	l->rest = l->disp + l->disp_len;
}

static bool has_modrm_memory(const struct insn *in)
{
	const struct insn_row *row = &insn_rows[in->id];

	for (unsigned i = 0; i < row->nr_ops; i++)
		if (row->op[i].kind == OP_MOFFS)
			return false;
	return in->flags & INSN_MEM;
}

/* Take the bytes as the new encoding if they are still one of the same row. */
static bool accept(struct insn *in, const uint8_t *bytes, enum insn_mode mode)
{
	struct insn new;

	if (!gen_decode(&new, bytes, mode) || new.id != in->id || gen_excluded(&new, mode) ||
	    has_modrm_memory(&new) != has_modrm_memory(in))
		return false;
	*in = new;
	return true;
}

/* Another memory operand: RIP-relative, absolute, with SIB, with or without displacement. */
static void vary_memory(struct insn *in, enum insn_mode mode)
{
	uint8_t b[64], *p = b;
	struct gen_layout l;
	unsigned nr_sib, nr_disp;

	gen_layout(in, mode, &l);
	memcpy(b, in->bytes, l.modrm);
	p += l.modrm;
	p[0] = (in->bytes[l.modrm] & 0x38) | (gen_random() % 3) << 6 | gen_random() % 8;
	p[1] = gen_random();
	if (gen_one_in(8))
		p[0] = (p[0] & 0x38) | (gen_one_in(2) ? 5 : in->adsize == 2 ? 6 : 4);
	if (gen_one_in(3))
		p[1] = (p[1] & 0xf8) | 5; /* no base, if there is a SIB */
	operand_bytes(in->adsize, p[0], p[1], &nr_sib, &nr_disp);
	p += 1 + nr_sib;
	for (unsigned i = 0; i < nr_disp; i++)
		*p++ = gen_random();
	memcpy(p, in->bytes + l.rest, in->len - l.rest);
	memset(p + in->len - l.rest, 0, 16);
	accept(in, b, mode);
}

static void vary_prefix(struct insn *in, enum insn_mode mode)
{
	static const uint8_t prefixes[] = {0x66, 0x67, 0xf2, 0xf3, 0x26,
					   0x2e, 0x36, 0x3e, 0x65, 0x67};
	uint8_t b[32] = {0};

	b[0] = prefixes[gen_random() % ARRAY_SIZE(prefixes)];
	if (insn_rows[in->id].attrs & ROW_LOCK && gen_one_in(2))
		b[0] = 0xf0;
	memcpy(b + 1, in->bytes, in->len);
	accept(in, b, mode);
}

static void vary_rex(struct insn *in, enum insn_mode mode)
{
	unsigned n = skip_prefixes(in, mode);
	uint8_t b[32] = {0}, rex = 0x40 | gen_random() % 16;

	if (mode != INSN_MODE_64 || in->flags & (INSN_VEX | INSN_EVEX))
		return;
	memcpy(b, in->bytes, n);
	if (n && (b[n - 1] & 0xf0) == 0x40) {
		b[n - 1] = rex;
		memcpy(b + n, in->bytes + n, in->len - n);
	} else {
		b[n] = rex;
		memcpy(b + n + 1, in->bytes + n, in->len - n);
	}
	accept(in, b, mode);
}

static void vary_last_byte(struct insn *in, enum insn_mode mode)
{
	uint8_t b[32] = {0};

	memcpy(b, in->bytes, in->len);
	b[in->len - 1] = gen_random();
	accept(in, b, mode);
}

/* Other registers and lengths: the payload of VEX and EVEX, or ModRM. */
static void vary_registers(struct insn *in, enum insn_mode mode)
{
	unsigned n = skip_prefixes(in, mode), len = payload_bytes(in, n);
	uint8_t b[32] = {0};

	memcpy(b, in->bytes, in->len);
	if (in->flags & INSN_EVEX && gen_one_in(2))
		b[n + 3] = gen_random();
	else if (in->flags & (INSN_VEX | INSN_EVEX) && gen_one_in(2))
		b[n + len - 1] ^= (gen_random() & 0x78);
	else if (n + len + 1 < in->len)
		b[n + len + 1] ^= gen_random() & (has_modrm_memory(in) ? 0x38 : 0x3f);
	accept(in, b, mode);
}

void gen_vary(struct insn *in, enum insn_mode mode)
{
	if (has_modrm_memory(in) && !gen_one_in(3))
		vary_memory(in, mode);
	if (gen_one_in(4))
		vary_prefix(in, mode);
	if (gen_one_in(3))
		vary_rex(in, mode);
	if (gen_one_in(2))
		vary_registers(in, mode);
	if (gen_one_in(3))
		vary_last_byte(in, mode);
}
