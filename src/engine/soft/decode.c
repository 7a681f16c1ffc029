/* engine/soft/decode.c - bytes to struct insn.
 *
 * The order of work, which is also the order in which the architecture defines things:
 *
 *   prefixes -> opcode (legacy, VEX or EVEX map) -> decision tree -> row
 *            -> operand size -> ModRM, SIB, displacement -> immediate -> checks -> exec
 *
 * What instructions exist is in insn.tbl; this file knows only the encodings.
 *
 * Prefix rules (AMD APM 3 1.2, SDM 2A "Instruction Prefixes"):
 *   - of several segment overrides the last counts; in 64-bit mode ES CS SS DS are ignored;
 *   - of F2 and F3 the last counts; as part of an opcode they win over 66h;
 *   - REX counts only directly before the opcode;
 *   - 66 F2 F3 LOCK or REX before VEX and EVEX is #UD.
 * Where vendors differ in 64-bit mode the CPU model's vendor decides: 66h on a near branch makes a
 * 16-bit branch on AMD and is ignored on Intel; far pointers in memory have 64-bit offsets
 * with REX.W on Intel only.
 *
 * VEX and EVEX do not exist in real and virtual-8086 mode.  The decoder does not know these modes
 * (they decode as 16-bit code); the handlers of such rows raise #UD.
 *
 * An invalid instruction is as long as its ModRM operand (and in map 0F3A its immediate) says,
 * since a CPU fetches that much before it raises #UD.  Pure functions, any thread. */
#include "engine/cpu_model.h"
#include "engine/soft/cpu.h"
#include "engine/soft/insn.h"
#include "engine/soft/insn_exec.gen.h"
#include "engine/soft/insn_rows.h"
#include "engine/soft/insn_tables.h"

/* Bytes that may be looked at before the length is checked: 15 of prefixes and what can follow. */
#define DEC_SLACK 40u
#define MAX_LEN   15u

enum dec_encoding { ENC_LEGACY, ENC_VEX, ENC_EVEX };

struct dec {
	const uint8_t *p; /* DEC_SLACK bytes are readable */
	const struct cpu_model *model;
	uint8_t pos; /* bytes consumed */
	uint8_t mode;
	bool mode64;
	bool bad; /* #UD whatever the row says */
	uint8_t enc;
	/* prefixes */
	bool p66, p67, lock;
	uint8_t rep; /* 0, 0xF3, 0xF2 */
	uint8_t seg; /* override or SEG_DEFAULT */
	uint8_t rex; /* the whole byte, 0: none */
	/* extension bits, in place: 0 or 8, 0 or 16 */
	uint8_t w, r, x, b, r2, v2;
	uint8_t vvvv, l, evex_b, z, aaa;
};

enum { SEG_DEFAULT = 0xff };

/* --- prefixes ----------------------------------------------------------------------------------
 */

enum prefix_kind { PFX_NONE, PFX_SEG, PFX_66, PFX_67, PFX_REP, PFX_LOCK, PFX_REX };

// clang-format off
static const uint8_t prefix_kind[256] = {
	[0x26] = PFX_SEG, [0x2e] = PFX_SEG, [0x36] = PFX_SEG, [0x3e] = PFX_SEG,
	[0x64] = PFX_SEG, [0x65] = PFX_SEG, [0x66] = PFX_66, [0x67] = PFX_67,
	[0xf0] = PFX_LOCK, [0xf2] = PFX_REP, [0xf3] = PFX_REP,
	[0x40 ... 0x4f] = PFX_REX,
};
// clang-format on

static void dec_segment_prefix(struct dec *d, uint8_t byte)
{
	if (byte >= 0x64)
		d->seg = byte - 0x64 + X86_FS;
	else if (!d->mode64)
		d->seg = (byte >> 3) & 3;
}

static void dec_one_prefix(struct dec *d, uint8_t kind, uint8_t byte)
{
	switch (kind) {
	case PFX_SEG:
		dec_segment_prefix(d, byte);
		break;
	case PFX_66:
		d->p66 = true;
		break;
	case PFX_67:
		d->p67 = true;
		break;
	case PFX_REP:
		d->rep = byte;
		break;
	case PFX_LOCK:
		d->lock = true;
		break;
	}
}

static void dec_prefixes(struct dec *d)
{
	uint8_t rex = 0;

	for (; d->pos < MAX_LEN; d->pos++) {
		uint8_t byte = d->p[d->pos], kind = prefix_kind[byte];

		if (likely(kind == PFX_NONE) || (kind == PFX_REX && !d->mode64))
			break;
		rex = kind == PFX_REX ? byte : 0;
		dec_one_prefix(d, kind, byte);
	}
	d->rex = rex;
	d->w = rex >> 3 & 1;
	d->r = (rex & 4) << 1;
	d->x = (rex & 2) << 2;
	d->b = (rex & 1) << 3;
}

/* --- opcode ------------------------------------------------------------------------------------
 */

/* C4, C5 and 62 are LES, LDS and BOUND outside 64-bit mode unless what would be their ModRM says
 * register, which those do not have. */
static bool dec_is_vex(const struct dec *d)
{
	return d->mode64 || d->p[d->pos + 1] >= 0xc0;
}

static void dec_vex_payload(struct dec *d, uint8_t byte)
{
	static const uint8_t pp_rep[4] = {0, 0, 0xf3, 0xf2};

	d->bad |= d->p66 | d->lock | (d->rep != 0) | (d->rex != 0);
	d->p66 = (byte & 3) == 1;
	d->rep = pp_rep[byte & 3];
	d->vvvv = ~byte >> 3 & 15;
}

static void dec_inverted_rxb(struct dec *d, uint8_t byte)
{
	d->r = ~byte >> 4 & 8;
	d->x = ~byte >> 3 & 8;
	d->b = d->mode64 ? ~byte >> 2 & 8 : 0;
}

static unsigned dec_vex2(struct dec *d)
{
	const uint8_t *p = d->p + d->pos;

	d->enc = ENC_VEX;
	dec_vex_payload(d, p[1]);
	d->r = ~p[1] >> 4 & 8;
	d->x = d->b = d->w = 0;
	d->l = p[1] >> 2 & 1;
	d->pos += 3;
	return dec_vex[d->mode64][0][p[2]];
}

static unsigned dec_vex3(struct dec *d)
{
	const uint8_t *p = d->p + d->pos;
	unsigned map = p[1] & 31;

	d->enc = ENC_VEX;
	dec_vex_payload(d, p[2]);
	dec_inverted_rxb(d, p[1]);
	d->w = p[2] >> 7;
	d->l = p[2] >> 2 & 1;
	d->pos += 4;
	return map >= 1 && map <= 3 ? dec_vex[d->mode64][map - 1][p[3]] : 0;
}

/*   62  R X B R' 0 m m m   W v v v v 1 p p   z L' L b V' a a a   opcode     (RXB R' vvvv V'
 * inverted) */
static unsigned dec_evex4(struct dec *d)
{
	static const uint8_t maps[8] = {0xff, 0, 1, 2, 0xff, 3, 4, 0xff};
	const uint8_t *p = d->p + d->pos;
	unsigned map = maps[p[1] & 7];

	d->enc = ENC_EVEX;
	dec_vex_payload(d, p[2]);
	dec_inverted_rxb(d, p[1]);
	d->r2 = ~p[1] & 16;
	d->v2 = p[3] & 8 ? 0 : 16;
	d->w = p[2] >> 7;
	d->l = p[3] >> 5 & 3;
	d->evex_b = p[3] >> 4 & 1;
	d->z = p[3] >> 7;
	d->aaa = p[3] & 7;
	d->pos += 5;
	d->bad |= (p[1] & 8) || !(p[2] & 4) || map == 0xff;
	d->bad |= !d->mode64 && d->v2;
	if (!d->mode64)
		d->r2 = 0;
	return map == 0xff ? 0 : dec_evex[d->mode64][map][p[4]];
}

static unsigned dec_legacy_opcode(struct dec *d, struct insn *in)
{
	uint8_t op = d->p[d->pos++];

	in->map = MAP_1;
	if (op == 0x0f) {
		op = d->p[d->pos++];
		in->map = MAP_0F;
		if (op == 0x38 || op == 0x3a) {
			in->map = op == 0x38 ? MAP_0F38 : MAP_0F3A;
			op = d->p[d->pos++];
		}
	}
	in->opcode = op;
	return dec_legacy[d->mode64][in->map][op];
}

/* Map and opcode of a VEX or EVEX instruction whose prefix has just been consumed. */
static unsigned dec_vector_opcode(struct dec *d, struct insn *in, unsigned entry)
{
	static const uint8_t evex_maps[8] = {0, MAP_0F,    MAP_0F38,  MAP_0F3A,
					     0, MAP_EVEX5, MAP_EVEX6, 0};
	const uint8_t *p = d->p + d->pos;

	in->opcode = p[-1];
	if (d->enc == ENC_EVEX) {
		in->map = evex_maps[p[-4] & 7];
		in->flags |= INSN_EVEX;
		return entry;
	}
	in->map = p[-3] == 0xc5 ? MAP_0F : evex_maps[p[-3] & 3];
	in->flags |= INSN_VEX;
	return entry;
}

static unsigned dec_opcode(struct dec *d, struct insn *in)
{
	switch (d->p[d->pos]) {
	case 0xc5:
		if (dec_is_vex(d))
			return dec_vector_opcode(d, in, dec_vex2(d));
		break;
	case 0xc4:
		if (dec_is_vex(d))
			return dec_vector_opcode(d, in, dec_vex3(d));
		break;
	case 0x62:
		if (dec_is_vex(d))
			return dec_vector_opcode(d, in, dec_evex4(d));
		break;
	}
	return dec_legacy_opcode(d, in);
}

/* --- row ---------------------------------------------------------------------------------------
 */

/* The ModRM byte lies at pos until dec_modrm takes it. */
static unsigned tree_answer(const struct dec *d, uint8_t kind)
{
	uint8_t modrm = d->p[d->pos];

	switch ((enum tree_kind)kind) {
	case TREE_PREFIX:
		return d->rep == 0xf3 ? 2 : d->rep ? 3 : d->p66;
	case TREE_MOD:
		return modrm >= 0xc0;
	case TREE_REG:
		return modrm >> 3 & 7;
	case TREE_RM:
		return modrm & 7;
	case TREE_W:
		return d->w;
	case TREE_L:
		/* EVEX.b on registers makes L'L a rounding mode of a 512-bit operation. */
		return d->evex_b && modrm >= 0xc0 ? 2 : d->l;
	case TREE_REXR:
		return d->r != 0;
	case TREE_REXB:
		return d->b != 0;
	}
	return 0;
}

static unsigned tree_walk(const struct dec *d, unsigned entry)
{
	while (entry & TREE_NODE) {
		const struct tree_node *n = &tree_nodes[entry & ~TREE_NODE];

		entry = tree_entries[n->child + tree_answer(d, n->kind)];
	}
	return entry;
}

static bool dec_has_features(const struct dec *d, const struct dec_row *row)
{
	for (unsigned i = 0; i < ARRAY_SIZE(row->feat) && row->feat[i] != DEC_FEAT_NONE; i++)
		if (!cpu_has(d->model, row->feat[i]))
			return false;
	return true;
}

/* A row the CPU model lacks is what CPUs made of these bytes before it existed. */
static unsigned dec_offered(const struct dec *d, unsigned id)
{
	if (unlikely(!dec_has_features(d, &dec_rows[id])))
		return dec_rows[id].alt;
	return id;
}

/* --- sizes -------------------------------------------------------------------------------------
 */

static bool dec_amd(const struct dec *d)
{
	return cpu_model_is_amd(d->model);
}

static unsigned dec_opsize_64(const struct dec *d, const struct dec_row *row, bool p66)
{
	if ((row->flags & DEC_F64) && !(row->flags & DEC_BRANCH && p66 && dec_amd(d)))
		return 8;
	if (d->w)
		return (row->flags & DEC_FAR) && dec_amd(d) ? 4 : 8;
	if (p66)
		return 2;
	return row->flags & (DEC_D64 | DEC_F64) ? 8 : 4;
}

static unsigned dec_opsize_v(const struct dec *d, const struct dec_row *row)
{
	bool p66 = d->p66 && row->prefix != 0x66;

	if (d->mode64)
		return dec_opsize_64(d, row, p66);
	return (d->mode == INSN_MODE_16) != p66 ? 2 : 4;
}

static unsigned dec_opsize(const struct dec *d, const struct dec_row *row)
{
	switch (row->size) {
	case DEC_SIZE_V:
		return dec_opsize_v(d, row);
	case DEC_SIZE_Z:
		return MIN(dec_opsize_v(d, row), 4u);
	case DEC_SIZE_Y:
		return d->mode64 && d->w ? 8 : 4;
	case DEC_SIZE_C:
		return d->mode64 ? 8 : 4;
	default:
		return row->size;
	}
}

static unsigned dec_adsize(const struct dec *d)
{
	static const uint8_t sizes[3][2] = {{2, 4}, {4, 2}, {8, 4}};

	return sizes[d->mode][d->p67];
}

static unsigned dec_vlen(const struct dec *d, const struct dec_row *row)
{
	if (d->enc == ENC_LEGACY || (row->flags & DEC_VEXGPR))
		return 0;
	if (row->vlen)
		return row->vlen;
	if (d->evex_b && d->p[d->pos] >= 0xc0)
		return 64;
	return 16u << MIN(d->l, 2);
}

static unsigned dec_msize(const struct insn *in, const struct dec_row *row)
{
	if (row->msize < SIZE_V)
		return row->msize;
	return insn_size_bytes(in, row->msize);
}

unsigned insn_size_bytes(const struct insn *in, uint8_t size)
{
	switch ((enum insn_size)size) {
	case SIZE_V:
		return in->opsize;
	case SIZE_Z:
		return MIN(in->opsize, 4);
	case SIZE_Y: /* REX.W exists in 64-bit mode only, VEX.W is ignored elsewhere */
		if (in->flags & (INSN_VEX | INSN_EVEX))
			return in->opsize;
		return in->flags & INSN_REXW ? 8 : 4;
	case SIZE_FAR:
		return in->opsize + 2;
	case SIZE_TABLE:
		return in->opsize == 8 ? 10 : 6;
	case SIZE_BOUND:
		return in->opsize * 2;
	case SIZE_VL:
	case SIZE_VL2:
	case SIZE_VL4:
	case SIZE_VL8:
		return (in->vlen ? in->vlen : 16) >> (size - SIZE_VL);
	default:
		return size;
	}
}

/* --- ModRM -------------------------------------------------------------------------------------
 */

static uint16_t gpr_off(unsigned n)
{
	return CPU_GPR_OFF(n);
}

/* AH CH DH BH are byte registers 4..7 unless there is a REX prefix. */
static uint16_t gpr_off_byte(const struct dec *d, unsigned n)
{
	if (d->rex || n < 4)
		return CPU_GPR_OFF(n);
	return CPU_GPR_OFF(n - 4) + 1;
}

static int32_t dec_read32(struct dec *d)
{
	int32_t v;

	__builtin_memcpy(&v, d->p + d->pos, 4);
	d->pos += 4;
	return v;
}

static int32_t dec_read16(struct dec *d)
{
	int16_t v;

	__builtin_memcpy(&v, d->p + d->pos, 2);
	d->pos += 2;
	return v;
}

static void dec_disp8(struct dec *d, struct insn *in, const struct dec_row *row)
{
	int32_t n = 1;

	if (d->enc == ENC_EVEX)
		n = row->disp8n ? row->disp8n : MAX(in->msize, 1);
	in->disp = (int8_t)d->p[d->pos++] * n;
}

static void dec_addr16(struct dec *d, struct insn *in, const struct dec_row *row)
{
	static const uint8_t bases[8] = {X86_RBX, X86_RBX, X86_RBP, X86_RBP,
					 X86_RSI, X86_RDI, X86_RBP, X86_RBX};
	unsigned mod = in->modrm >> 6, rm = in->modrm & 7;

	if (mod == 0 && rm == 6) {
		in->disp = dec_read16(d);
		return;
	}
	in->base = gpr_off(bases[rm]);
	if (rm < 4)
		in->index = gpr_off(rm & 1 ? X86_RDI : X86_RSI);
	if (bases[rm] == X86_RBP)
		in->seg = X86_SS;
	if (mod == 1)
		dec_disp8(d, in, row);
	else if (mod == 2)
		in->disp = dec_read16(d);
}

/* Returns the base register's number in the encoding (3 bits). */
static unsigned dec_sib(struct dec *d, struct insn *in, const struct dec_row *row)
{
	uint8_t sib = d->p[d->pos++];
	unsigned index = (sib >> 3 & 7) | d->x;

	in->scale = sib >> 6;
	if (row->flags & DEC_VSIB)
		in->vrm = index | d->v2;
	else if (index != 4)
		in->index = gpr_off(index);
	return sib & 7;
}

static void dec_addr32(struct dec *d, struct insn *in, const struct dec_row *row)
{
	unsigned mod = in->modrm >> 6, base = in->modrm & 7;
	bool sib = base == 4;

	if (sib)
		base = dec_sib(d, in, row);
	else
		d->bad |= (row->flags & DEC_VSIB) != 0;
	if (mod == 0 && base == 5) {
		if (!sib && d->mode64)
			in->base = CPU_OFF(rip);
		in->disp = dec_read32(d);
		return;
	}
	base |= d->b;
	in->base = gpr_off(base);
	if (base == X86_RSP || base == X86_RBP)
		in->seg = X86_SS;
	if (mod == 1)
		dec_disp8(d, in, row);
	else if (mod == 2)
		in->disp = dec_read32(d);
}

static void dec_memory(struct dec *d, struct insn *in, const struct dec_row *row)
{
	in->flags |= INSN_MEM;
	if (in->adsize == 2) {
		d->bad |= (row->flags & DEC_VSIB) != 0;
		dec_addr16(d, in, row);
	} else {
		dec_addr32(d, in, row);
	}
}

static void dec_register_rm(const struct dec *d, struct insn *in, const struct dec_row *row)
{
	unsigned rm = (in->modrm & 7) | d->b;

	in->vrm = rm | (d->enc == ENC_EVEX ? d->x << 1 : 0);
	in->rm = row->flags & DEC_RM_B ? gpr_off_byte(d, rm) : gpr_off(rm);
	in->msize = 0;
}

static void dec_modrm(struct dec *d, struct insn *in, const struct dec_row *row)
{
	unsigned reg;

	in->modrm = d->p[d->pos++];
	reg = (in->modrm >> 3 & 7) | d->r;
	in->vreg = reg | d->r2;
	in->reg = row->flags & DEC_REG_B ? gpr_off_byte(d, reg) : gpr_off(reg);
	if (in->modrm >= 0xc0 || (row->flags & DEC_MODR))
		dec_register_rm(d, in, row);
	else
		dec_memory(d, in, row);
}

static void dec_opcode_register(const struct dec *d, struct insn *in, const struct dec_row *row)
{
	unsigned n = (in->opcode & 7) | d->b;

	in->vreg = n;
	in->reg = row->flags & DEC_REG_B ? gpr_off_byte(d, n) : gpr_off(n);
}

/* --- immediates --------------------------------------------------------------------------------
 */

static uint64_t dec_read(struct dec *d, unsigned size)
{
	uint64_t v = 0;

	if (size == 2)
		return (uint16_t)dec_read16(d);
	if (size == 4)
		return (uint32_t)dec_read32(d);
	__builtin_memcpy(&v, d->p + d->pos, 8);
	d->pos += 8;
	return v;
}

static void dec_immediate(struct dec *d, struct insn *in, const struct dec_row *row)
{
	switch ((enum dec_imm)row->imm) {
	case DEC_IMM_NONE:
		break;
	case DEC_IMM_B:
		in->imm = d->p[d->pos++];
		break;
	case DEC_IMM_IS4: /* eight registers outside 64-bit mode */
		in->imm = d->p[d->pos++] & (d->mode64 ? 0xff : 0x7f);
		break;
	case DEC_IMM_BS:
		in->imm = (uint64_t)(int8_t)d->p[d->pos++];
		break;
	case DEC_IMM_W:
		in->imm = dec_read(d, 2);
		break;
	case DEC_IMM_Z:
		in->imm = (uint64_t)(in->opsize == 2 ? dec_read16(d) : dec_read32(d));
		break;
	case DEC_IMM_V:
		in->imm = dec_read(d, in->opsize);
		break;
	case DEC_IMM_W_B:
		in->imm = dec_read(d, 2);
		in->imm2 = d->p[d->pos++];
		break;
	case DEC_IMM_B_B:
		in->imm = d->p[d->pos++];
		in->imm2 = d->p[d->pos++];
		break;
	case DEC_IMM_FAR:
		in->imm = dec_read(d, in->opsize);
		in->sel = (uint16_t)dec_read(d, 2);
		break;
	case DEC_IMM_A:
		in->imm = dec_read(d, in->adsize);
		in->flags |= INSN_MEM;
		break;
	}
}

/* --- what else can be wrong --------------------------------------------------------------------
 */

/* An unused vvvv must be 1111b in all modes, though only three bits of a used one count in 32-bit
 * code. */
static bool dec_vvvv_ok(const struct dec *d, const struct dec_row *row)
{
	if (!(row->flags & DEC_VVVV))
		return d->vvvv == 0 && (d->v2 == 0 || (row->flags & DEC_VSIB));
	if (row->flags & DEC_K_VVVV)
		return (d->vvvv < 8 || !d->mode64) && d->v2 == 0;
	return true;
}

/* VEX gathers: destination, index and mask must be three registers.  EVEX gathers and complex FP16
 * multiplications: the destination must be no other operand. */
static bool dec_distinct_ok(const struct insn *in, const struct dec_row *row)
{
	bool rm_is_reg = !(in->flags & INSN_MEM) || row->flags & DEC_VSIB;

	if (row->flags & DEC_DISTINCT)
		return in->vreg != in->vrm && in->vreg != in->vv && in->vrm != in->vv;
	if (!(row->flags & DEC_DEST_NOT_SRC))
		return true;
	return !(rm_is_reg && in->vreg == in->vrm) &&
	       !(row->flags & DEC_VVVV && in->vreg == in->vv);
}

/* Opmask, zeroing, broadcast and rounding: SDM 2A "#UD Equations for EVEX". */
static bool dec_evex_ok(const struct dec *d, const struct insn *in, const struct dec_row *row)
{
	bool mem = in->flags & INSN_MEM;

	if (d->aaa && !(row->flags & DEC_MASK))
		return false;
	if (!d->aaa && (d->z || (row->flags & DEC_MASK_REQ)))
		return false;
	if (d->z && (!(row->flags & DEC_MASK_Z) || (mem && row->flags & DEC_RM_WRITE)))
		return false;
	if (d->evex_b && !(row->flags & (mem ? DEC_BCAST : DEC_ER | DEC_SAE)))
		return false;
	if (d->l == 3 && (mem || !d->evex_b))
		return false;
	if (d->enc == ENC_EVEX && in->vlen < 64 && !(row->flags & DEC_SCALAR))
		return cpu_has(d->model, CPU_FEAT_AVX512VL);
	return true;
}

static bool dec_vector_ok(const struct dec *d, const struct insn *in, const struct dec_row *row)
{
	if (!dec_vvvv_ok(d, row) || !dec_distinct_ok(in, row))
		return false;
	if ((row->flags & DEC_K_REG) && (d->r | d->r2))
		return false;
	if ((row->flags & DEC_GPR_REG) && d->r2)
		return false;
	return d->enc != ENC_EVEX || dec_evex_ok(d, in, row);
}

static bool dec_lock_ok(const struct insn *in, const struct dec_row *row)
{
	return (row->flags & DEC_LOCK) && (in->flags & INSN_MEM);
}

/* --- putting it together -----------------------------------------------------------------------
 */

static void dec_segment(const struct dec *d, struct insn *in)
{
	if (d->seg != SEG_DEFAULT)
		in->seg = d->seg;
	if (in->seg == X86_SS)
		in->flags |= INSN_STACK;
	if (!d->mode64 || in->seg >= X86_FS)
		in->segbase = (uint16_t)(CPU_OFF(seg[0].base) + in->seg * sizeof(struct cpu_seg));
}

static void dec_flags(const struct dec *d, struct insn *in, const struct dec_row *row)
{
	uint32_t f = in->flags;

	f |= d->rex ? INSN_REX : 0;
	f |= d->lock ? INSN_LOCK : 0;
	f |= row->flags & DEC_END ? INSN_END : 0;
	f |= d->mode64 && in->adsize == 8 ? INSN_FLAT : 0;
	if (d->enc == ENC_LEGACY && d->rep && d->rep != row->prefix)
		f |= d->rep == 0xf3 ? INSN_REP : INSN_REPNE;
	f |= d->evex_b ? INSN_EVEX_B : 0;
	f |= d->z ? INSN_EVEX_Z : 0;
	in->flags = f;
}

static void dec_bind(struct insn *in, const struct dec_row *row)
{
	unsigned slot = row->exec;
	unsigned shapes = row->flags & DEC_BY_M ? 3 : 1;

	if (row->flags & DEC_BY_S)
		slot += (unsigned)__builtin_ctz(in->opsize) * shapes;
	if (row->flags & DEC_BY_M && in->flags & INSN_MEM)
		slot += in->flags & INSN_LOCK ? 2 : 1;
	in->exec = insn_execs[slot];
}

static void dec_set_invalid(struct insn *in)
{
	in->id = INSN_bad;
	in->exec = exec_ud;
	in->flags |= INSN_END;
}

static void dec_vector_fields(struct dec *d, struct insn *in, const struct dec_row *row)
{
	in->vlen = (uint8_t)dec_vlen(d, row);
	in->vv = (d->vvvv | d->v2) & (d->mode64 ? 31 : 7);
	in->vvvv = gpr_off(in->vv & 15);
	in->k = d->aaa;
	in->rc = d->l;
}

static void dec_operands(struct dec *d, struct insn *in, const struct dec_row *row)
{
	in->opsize = (uint8_t)dec_opsize(d, row);
	in->adsize = (uint8_t)dec_adsize(d);
	if (d->enc != ENC_LEGACY)
		dec_vector_fields(d, in, row);
	in->flags |= d->w ? INSN_REXW : 0; /* sizes may depend on it */
	in->msize = (uint8_t)dec_msize(in, row);
	if (d->evex_b && (row->flags & DEC_BCAST))
		in->msize = row->elem;
	if (row->flags & DEC_MODRM)
		dec_modrm(d, in, row);
	else if (row->flags & DEC_OPC_REG)
		dec_opcode_register(d, in, row);
	else if (row->flags & DEC_OPC_SEG)
		in->vreg = in->opcode >> 3 & 7;
	dec_immediate(d, in, row);
	dec_segment(d, in);
}

/* Row 0 stands for all invalid opcodes, those with and those without ModRM. */
static bool dec_invalid_has_modrm(const struct dec *d, const struct insn *in)
{
	return d->enc != ENC_LEGACY || dec_has_modrm[in->map][in->opcode / 8] >> in->opcode % 8 & 1;
}

/* Everything in map 0F3A has an immediate byte, defined or not. */
static const struct dec_row *dec_invalid_row(const struct dec *d, const struct insn *in)
{
	static const struct dec_row with_modrm = {.flags = DEC_MODRM, .size = DEC_SIZE_V};
	static const struct dec_row with_imm = {
		.flags = DEC_MODRM, .size = DEC_SIZE_V, .imm = DEC_IMM_B};

	if (in->map == MAP_0F3A)
		return &with_imm;
	return dec_invalid_has_modrm(d, in) ? &with_modrm : &dec_rows[INSN_bad];
}

static void dec_invalid(struct dec *d, struct insn *in)
{
	dec_operands(d, in, dec_invalid_row(d, in));
	dec_set_invalid(in);
}

static void dec_instruction(struct dec *d, struct insn *in)
{
	const struct dec_row *row;
	unsigned id;

	dec_prefixes(d);
	if (d->pos >= MAX_LEN)
		return;
	id = dec_offered(d, tree_walk(d, dec_opcode(d, in)));
	if (unlikely(id == INSN_bad)) {
		dec_invalid(d, in);
		return;
	}
	row = &dec_rows[id];
	in->id = (uint16_t)id;
	in->prefix = row->prefix;
	dec_operands(d, in, row);
	dec_flags(d, in, row);
	dec_bind(in, row);
	if (unlikely(d->lock) && !dec_lock_ok(in, row))
		d->bad = true;
	if (d->enc != ENC_LEGACY && !dec_vector_ok(d, in, row))
		d->bad = true;
	if (unlikely(d->bad))
		dec_set_invalid(in);
}

static void insn_init(struct insn *in, const uint8_t *bytes)
{
	*in = (struct insn){
		.base = CPU_OFF(zero),
		.index = CPU_OFF(zero),
		.segbase = CPU_OFF(zero),
		.reg = CPU_OFF(zero),
		.rm = CPU_OFF(zero),
		.seg = X86_DS,
	};
	__builtin_memcpy(in->bytes, bytes, sizeof(in->bytes));
}

static void bytes_copy(uint8_t *to, const uint8_t *from, size_t n)
{
	for (size_t i = 0; i < n; i++)
		to[i] = from[i];
}

enum insn_result insn_decode(struct insn *in, const uint8_t *p, size_t avail, enum insn_mode mode,
			     const struct cpu_model *model)
{
	struct dec d = {
		.p = p,
		.model = model,
		.mode = (uint8_t)mode,
		.mode64 = mode == INSN_MODE_64,
		.seg = SEG_DEFAULT,
	};
	uint8_t padded[DEC_SLACK];

	if (unlikely(avail < DEC_SLACK)) {
		__builtin_memset(padded, 0, sizeof(padded));
		bytes_copy(padded, p, MIN(avail, MAX_LEN));
		d.p = padded;
	}
	insn_init(in, d.p);
	dec_instruction(&d, in);
	if (avail < MAX_LEN && (d.pos > avail || !in->exec))
		return INSN_SHORT;
	if (d.pos > MAX_LEN || !in->exec)
		return INSN_TOO_LONG;
	in->len = d.pos;
	return INSN_OK;
}
