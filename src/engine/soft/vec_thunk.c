/* engine/soft/vec_thunk.c - host code for guest vector instructions: see vec_int.h.
 *
 *     mov  rax, [rdi + reg]      when ModRM.reg is a general register
 *     mov  rcx, [rdi + rm]       when ModRM.rm is one
 *     mov  rax, [rdi + cc]       FCMOVcc reads flags
 *     shl  eax, 8 ; sahf
 *     <the instruction, memory operand [rsi]>
 *     mov  [rdi + reg], rax ...
 *     pushfq ; pop rdx           when it sets flags
 *     mov  [rdi + cc], rdx
 *     xor  eax, eax
 *     ret
 *
 * The code itself is the cache key: it is built on the side, and if the same bytes exist already
 * those are used.  Code memory is one memfd mapped twice, so nothing is ever writable and
 * executable at one address.  When either table is full all thunks go at once: thunk_gen changes
 * and struct insn.thunk of every decoded instruction stops matching. */
#include "engine/soft/vec_int.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MAX_THUNKS = 32768, HASH_SIZE = 65536, BODY_MAX = 112, CODE_ALIGN = 16, CODE_FIRST = 16 };
enum { RAX, RCX, RDX, RSI = 6, RDI = 7 };
#define REX_W 8u
#define REX_R 4u
#define REX_B 1u

struct body {
	uint8_t b[BODY_MAX];
	unsigned n;
};

/* Where things are in in->bytes. */
struct raw {
	uint8_t rex;
	unsigned vex, op, imm, end; /* indices; vex: of C4, C5 or 62 */
	bool modrm;
};

static _Atomic uint32_t last_gen;

/* --- reading the guest's bytes ------------------------------------------------------------------
 */

static bool is_legacy_prefix(uint8_t b)
{
	switch (b) {
	case 0x26:
	case 0x2e:
	case 0x36:
	case 0x3e:
	case 0x64 ... 0x67:
	case 0xf0:
	case 0xf2:
	case 0xf3:
		return true;
	default:
		return false;
	}
}

static unsigned skip_prefixes(const struct cpu *cpu, const struct insn *in, uint8_t *rex)
{
	unsigned i = 0;

	for (*rex = 0; i < in->len; i++) {
		if (is_legacy_prefix(in->bytes[i]))
			*rex = 0; /* a REX that is not last counts for nothing */
		else if (cpu->mode == INSN_MODE_64 && (in->bytes[i] & 0xf0) == 0x40)
			*rex = in->bytes[i];
		else
			break;
	}
	return i;
}

static unsigned opcode_offset(const struct insn *in, unsigned vex)
{
	if (in->flags & INSN_EVEX)
		return 4;
	if (in->flags & INSN_VEX)
		return in->bytes[vex] == 0xc5 ? 2 : 3;
	return in->map == MAP_0F ? 1 : in->map == MAP_0F38 || in->map == MAP_0F3A ? 2 : 0;
}

/* Bytes of SIB and displacement after ModRM. */
static unsigned memory_bytes(const struct insn *in, uint8_t modrm, uint8_t sib)
{
	unsigned mod = modrm >> 6, rm = modrm & 7, n = 0;

	if (mod == 3)
		return 0;
	if (in->adsize == 2)
		return mod == 1 ? 1 : mod == 2 || rm == 6 ? 2 : 0;
	if (rm == 4) {
		n = 1;
		rm = sib & 7;
	}
	if (mod == 0)
		return rm == 5 ? n + 4 : n;
	return mod == 1 ? n + 1 : n + 4;
}

static bool has_modrm(const struct insn *in)
{
	if (in->map == MAP_0F && in->opcode == 0x77) /* EMMS, VZEROUPPER, VZEROALL */
		return false;
	return !(in->map == MAP_1 && in->opcode == 0x9b); /* FWAIT */
}

static void raw_parse(struct raw *r, const struct cpu *cpu, const struct insn *in)
{
	r->vex = skip_prefixes(cpu, in, &r->rex);
	r->op = r->vex + opcode_offset(in, r->vex);
	r->imm = r->op + 1;
	r->end = in->len;
	r->modrm = has_modrm(in);
	if (r->modrm) {
		uint8_t sib = r->op + 2 < in->len ? in->bytes[r->op + 2] : 0;

		r->imm += 1 + memory_bytes(in, in->bytes[r->op + 1], sib);
	}
}

/* --- writing the host's -------------------------------------------------------------------------
 */

static void put(struct body *o, uint8_t b)
{
	if (o->n < BODY_MAX)
		o->b[o->n++] = b;
}

static void put32(struct body *o, uint32_t v)
{
	for (int i = 0; i < 4; i++)
		put(o, (uint8_t)(v >> 8 * i));
}

/* mov reg, [rdi + off] or mov [rdi + off], reg */
static void put_move(struct body *o, uint8_t opcode, unsigned reg, unsigned off)
{
	put(o, 0x48);
	put(o, opcode);
	put(o, (uint8_t)(0x80 | reg << 3 | RDI));
	put32(o, off);
}

static void put_load(struct body *o, unsigned reg, unsigned off)
{
	put_move(o, 0x8b, reg, off);
}

static void put_store(struct body *o, unsigned reg, unsigned off)
{
	put_move(o, 0x89, reg, off);
}

static uint8_t new_modrm(const struct insn *in, uint16_t use)
{
	uint8_t m = in->modrm;

	if (use & VEC_USE_REG)
		m &= 0xc7; /* RAX */
	if (m >> 6 != 3)
		m = (m & 0x38) | RSI;
	else if (use & VEC_USE_RM)
		m = (m & 0xf8) | RCX;
	return m;
}

/* Which extension bits of the encoding to drop, as REX bits: what was replaced. */
static unsigned dropped_bits(const struct insn *in, uint16_t use)
{
	unsigned drop = use & VEC_USE_REG ? REX_R : 0;

	if (in->flags & INSN_MEM || use & VEC_USE_RM)
		drop |= REX_B;
	return drop;
}

static void put_legacy(struct body *o, const struct insn *in, const struct raw *r, uint16_t use)
{
	uint8_t rex = r->rex & (REX_W | REX_R | REX_B) & ~dropped_bits(in, use);

	if (in->prefix)
		put(o, in->prefix);
	if (rex)
		put(o, 0x40 | rex);
	if (in->map == MAP_0F || in->map == MAP_0F38 || in->map == MAP_0F3A)
		put(o, 0x0f);
	if (in->map == MAP_0F38)
		put(o, 0x38);
	if (in->map == MAP_0F3A)
		put(o, 0x3a);
}

/* Outside 64-bit mode the bits that would extend register numbers are ignored, and so is W where
 * it chooses between general registers of 32 and 64 bits. */
static void put_vex(struct body *o, const struct cpu *cpu, const struct insn *in,
		    const struct raw *r, uint16_t use)
{
	const uint8_t *v = in->bytes + r->vex;
	bool short_form = v[0] == 0xc5;
	uint8_t p0 = short_form ? (v[1] & 0x80) | 0x61 : v[1];
	uint8_t p1 = short_form ? v[1] & 0x7f : v[2];
	unsigned drop = dropped_bits(in, use);

	if (drop & REX_R)
		p0 |= 0x80;
	if (drop & REX_B)
		p0 |= 0x60;
	if (cpu->mode != INSN_MODE_64) {
		p0 |= 0xe0;
		p1 |= 0x40;
		if (use & VEC_W_SIZE)
			p1 &= 0x7f;
	}
	put(o, 0xc4);
	put(o, p0);
	put(o, p1);
}

static void put_evex(struct body *o, const struct cpu *cpu, const struct insn *in,
		     const struct raw *r, uint16_t use)
{
	const uint8_t *v = in->bytes + r->vex;
	uint8_t p0 = v[1], p1 = v[2], p2 = v[3];
	unsigned drop = dropped_bits(in, use);

	if (drop & REX_R)
		p0 |= 0x90;
	if (drop & REX_B)
		p0 |= 0x60;
	if (cpu->mode != INSN_MODE_64) {
		p0 |= 0xf0;
		p1 |= 0x40;
		p2 |= 0x08;
		if (use & VEC_W_SIZE)
			p1 &= 0x7f;
	}
	put(o, 0x62);
	put(o, p0);
	put(o, p1);
	put(o, p2);
}

static void put_insn(struct body *o, const struct cpu *cpu, const struct insn *in, uint16_t use)
{
	struct raw r;

	raw_parse(&r, cpu, in);
	if (in->flags & INSN_EVEX)
		put_evex(o, cpu, in, &r, use);
	else if (in->flags & INSN_VEX)
		put_vex(o, cpu, in, &r, use);
	else
		put_legacy(o, in, &r, use);
	put(o, in->bytes[r.op]);
	if (r.modrm)
		put(o, new_modrm(in, use));
	/* The decoder has cut register numbers in an immediate to what the mode has. */
	if (r.imm < r.end)
		put(o, (uint8_t)in->imm);
	for (unsigned i = r.imm + 1; i < r.end; i++)
		put(o, in->bytes[i]);
}

/* Offsets of the general registers ModRM names. */
static unsigned reg_offset(const struct cpu *cpu, const struct insn *in)
{
	struct raw r;
	unsigned n = in->modrm >> 3 & 7;

	raw_parse(&r, cpu, in);
	if (cpu->mode != INSN_MODE_64)
		return CPU_GPR_OFF(n);
	if (in->flags & (INSN_VEX | INSN_EVEX))
		return CPU_GPR_OFF(n | (in->bytes[r.vex + 1] & 0x80 ? 0 : 8));
	return CPU_GPR_OFF(n | (r.rex & REX_R ? 8 : 0));
}

static unsigned rm_offset(const struct cpu *cpu, const struct insn *in)
{
	struct raw r;
	unsigned n = in->modrm & 7;

	raw_parse(&r, cpu, in);
	if (cpu->mode != INSN_MODE_64)
		return CPU_GPR_OFF(n);
	if (in->flags & (INSN_VEX | INSN_EVEX)) {
		const uint8_t *v = in->bytes + r.vex;

		return CPU_GPR_OFF(n | (v[0] != 0xc5 && !(v[1] & 0x20) ? 8 : 0));
	}
	return CPU_GPR_OFF(n | (r.rex & REX_B ? 8 : 0));
}

static void put_inputs(struct body *o, const struct cpu *cpu, const struct insn *in, uint16_t use)
{
	if (use & VEC_USE_REG)
		put_load(o, RAX, reg_offset(cpu, in));
	if (use & VEC_USE_RM && !(in->flags & INSN_MEM))
		put_load(o, RCX, rm_offset(cpu, in));
	if (use & (VEC_USE_AX | VEC_USE_CMPSTR))
		put_load(o, RAX, CPU_GPR_OFF(X86_RAX));
	if (use & VEC_USE_CMPSTR) {
		put_load(o, RCX, CPU_GPR_OFF(X86_RCX));
		put_load(o, RDX, CPU_GPR_OFF(X86_RDX));
	}
	if (use & VEC_FLAGS_IN) {
		put_load(o, RAX, CPU_OFF(cc));
		put(o, 0xc1); /* shl eax, 8 */
		put(o, 0xe0);
		put(o, 8);
		put(o, 0x9e); /* sahf */
	}
}

static void put_outputs(struct body *o, const struct cpu *cpu, const struct insn *in, uint16_t use)
{
	if (use & VEC_USE_REG && use & VEC_WRITES)
		put_store(o, RAX, reg_offset(cpu, in));
	if (use & VEC_USE_RM && use & VEC_WRITES && !(in->flags & INSN_MEM))
		put_store(o, RCX, rm_offset(cpu, in));
	if (use & VEC_USE_AX)
		put_store(o, RAX, CPU_GPR_OFF(X86_RAX));
	if (use & VEC_USE_CMPSTR)
		put_store(o, RCX, CPU_GPR_OFF(X86_RCX));
	if (use & VEC_FLAGS_OUT) {
		put(o, 0x9c); /* pushfq */
		put(o, 0x5a); /* pop rdx */
		put_store(o, RDX, CPU_OFF(cc));
	}
	put(o, 0x31); /* xor eax, eax */
	put(o, 0xc0);
	put(o, 0xc3);
}

/* --- the cache ----------------------------------------------------------------------------------
 */

static uint32_t body_hash(const struct body *o)
{
	uint32_t h = 0x811c9dc5;

	for (unsigned i = 0; i < o->n; i++)
		h = (h ^ o->b[i]) * 0x01000193;
	return h ^ h >> 15;
}

static bool same_code(const struct vec_thunk *t, const struct body *o)
{
	const uint8_t *code = (const uint8_t *)(uintptr_t)t->run;

	for (unsigned i = 0; i < o->n; i++)
		if (code[i] != o->b[i])
			return false;
	return true;
}

/* The slot of the thunk with this code, or the free slot where it belongs. */
static uint16_t *find_slot(struct vec_state *vs, const struct body *o, uint32_t hash, uint16_t id)
{
	for (uint32_t i = hash;; i++) {
		uint16_t *slot = &vs->thunk_hash[i % HASH_SIZE];
		const struct vec_thunk *t = &vs->thunks[*slot];

		if (!*slot)
			return slot;
		if (t->hash == hash && t->id == id && t->len == o->n && same_code(t, o))
			return slot;
	}
}

static void flush_thunks(struct vec_state *vs)
{
	do {
		vs->thunk_gen = atomic_fetch_add(&last_gen, 1) + 1;
	} while (!vs->thunk_gen);
	vec_zero(vs->thunk_hash, HASH_SIZE * sizeof(*vs->thunk_hash));
	vs->nr_thunks = 1; /* 0 marks a free hash slot */
	vs->code_used = CODE_FIRST;
}

static unsigned add_thunk(struct vec_state *vs, const struct body *o, uint32_t hash, uint16_t id)
{
	unsigned n = vs->nr_thunks++;
	struct vec_thunk *t = &vs->thunks[n];

	vec_copy(vs->code_rw + vs->code_used, o->b, o->n);
	t->run = (int (*)(struct cpu *, void *))(uintptr_t)(vs->code_rx + vs->code_used);
	t->id = id;
	t->len = (uint8_t)o->n;
	t->hash = hash;
	vs->code_used += ALIGN_UP(o->n, CODE_ALIGN);
	return n;
}

struct vec_thunk *vec_thunk_build(struct cpu *cpu, const struct insn *in)
{
	struct vec_state *vs = cpu->vec;
	struct body o;
	struct vec_attr a;
	uint32_t hash;
	uint16_t *slot;

	o.n = 0;
	vec_attr_of(&a, cpu, in);
	put_inputs(&o, cpu, in, a.use);
	put_insn(&o, cpu, in, a.use);
	put_outputs(&o, cpu, in, a.use);
	if (vs->nr_thunks == MAX_THUNKS || vs->code_used + BODY_MAX > VEC_CODE_SIZE)
		flush_thunks(vs);
	hash = body_hash(&o);
	slot = find_slot(vs, &o, hash, in->id);
	if (!*slot) {
		*slot = (uint16_t)add_thunk(vs, &o, hash, in->id);
		vs->thunks[*slot].a = a;
	}
	/* The block cache owns the instruction and its memory is not const. */
	((struct insn *)(uintptr_t)in)->thunk = (uint64_t)vs->thunk_gen << 32 | *slot;
	return &vs->thunks[*slot];
}

static int map_code(struct vec_state *vs, int fd, struct error *err)
{
	if (ftruncate(fd, VEC_CODE_SIZE) < 0)
		return err_errno(err, errno, "code memory for vector instructions");
	vs->code_rw = mmap(NULL, VEC_CODE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (vs->code_rw == MAP_FAILED)
		return err_errno(err, errno, "code memory for vector instructions");
	vs->code_rx = mmap(NULL, VEC_CODE_SIZE, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	if (vs->code_rx == MAP_FAILED) {
		int r = err_errno(err, errno, "executable memory for vector instructions");

		munmap(vs->code_rw, VEC_CODE_SIZE);
		return r;
	}
	return 0;
}

int vec_code_create(struct vec_state *vs, struct error *err)
{
	int r, fd = memfd_create("hv-vector-code", MFD_CLOEXEC);

	if (fd < 0)
		return err_errno(err, errno, "code memory for vector instructions");
	r = map_code(vs, fd, err);
	close(fd);
	if (r < 0)
		return r;
	vs->thunks = calloc(MAX_THUNKS, sizeof(*vs->thunks));
	vs->thunk_hash = calloc(HASH_SIZE, sizeof(*vs->thunk_hash));
	if (!vs->thunks || !vs->thunk_hash) {
		vec_code_destroy(vs);
		return err_set(err, ENOMEM, "no memory for the vector thunk table");
	}
	vs->code_rw[0] = 0xc3; /* RET: where the signal handler sends a thunk that faulted */
	flush_thunks(vs);
	return 0;
}

void vec_code_destroy(struct vec_state *vs)
{
	munmap(vs->code_rw, VEC_CODE_SIZE);
	munmap(vs->code_rx, VEC_CODE_SIZE);
	free(vs->thunks);
	free(vs->thunk_hash);
}
