/* engine/soft/string.c - MOVS STOS LODS CMPS SCAS INS OUTS, alone and repeated.
 *
 * A repeated instruction works in runs.  A run is as many elements as lie ahead (DF = 0) in the
 * pages of the source and the destination; when both are plain RAM it is one host REP instruction,
 * else element by element through the slow paths.  After each run RCX, RSI and RDI are what the
 * architecture says they are between iterations, so that
 *   - a fault leaves the instruction ready to be restarted: the first element of a run faults
 *     exactly when its page does, and nothing of the run has been done then;
 *   - a pending event ends the instruction early, with RIP still on it (string_pause).
 * Flags of CMPS and SCAS, when a later element faults: Intel's CPUs restore those from before the
 * instruction (SDM 2B "REP/REPE/REPZ/REPNE/REPNZ"), AMD's keep those of the last comparison. */
#include "engine/soft/debug.h"
#include "engine/soft/int.h"
#include "engine/soft/io.h"
#include "engine/soft/vec.h"

enum { RUN_SLOW = 64 }; /* elements done one by one before events are looked at */

#define INLINE static inline __attribute__((always_inline))

/* --- registers and addresses -------------------------------------------------------------------
 */

INLINE uint64_t index_get(const struct cpu *cpu, const struct insn *in, unsigned reg)
{
	return cpu->gpr[reg] & mask_of(in->adsize);
}

INLINE void index_add(struct cpu *cpu, const struct insn *in, unsigned reg, uint64_t n)
{
	reg_set_sized(cpu, CPU_GPR_OFF(reg), in->adsize, cpu->gpr[reg] + n);
}

INLINE bool repeated(const struct insn *in)
{
	return in->flags & (INSN_REP | INSN_REPNE);
}

INLINE uint64_t string_step(const struct cpu *cpu, unsigned size)
{
	return cpu->rflags & RFLAGS_DF ? (uint64_t) - (int64_t)size : size;
}

INLINE gva_t source(struct cpu *cpu, const struct insn *in, unsigned size)
{
	return linear_at(cpu, in->seg, index_get(cpu, in, X86_RSI), size, false);
}

INLINE gva_t dest(struct cpu *cpu, const struct insn *in, unsigned size, bool write)
{
	return linear_at(cpu, X86_ES, index_get(cpu, in, X86_RDI), size, write);
}

/* --- between runs ------------------------------------------------------------------------------
 */

/* Something waits that can be taken now.  What cannot (a masked NMI) must not stop us each time. */
static bool string_interrupted(const struct cpu *cpu)
{
	uint32_t ev = atomic_load_explicit(&cpu->events, memory_order_relaxed);
	uint32_t mask = CPU_EV_KICK | CPU_EV_PURGE | CPU_EV_INJECT;

	if (cpu->rflags & RFLAGS_IF)
		mask |= CPU_EV_INTR;
	if (!cpu->nmi_masked)
		mask |= CPU_EV_NMI | CPU_EV_NMI2;
	return (ev & mask) || (cpu->rflags & RFLAGS_TF) || cpu->dbg_pending;
}

/* Stop between iterations: the instruction starts again with what is left.  RF keeps a breakpoint
 * on it from firing again (SDM 3B "Resume Flag"). */
static void string_pause(struct cpu *cpu, const struct insn *in)
{
	cpu->rip -= in->len;
	cpu->rflags |= RFLAGS_RF;
	cpu_stop_block(cpu);
}

/* How many of `left` elements may be in one run that begins at offset `off` and linear `lin`: none
 * crosses the page or the end of the address size; one by one when DF = 1, when single-stepping or
 * checking alignment, or when segment limits must be looked at for each. */
INLINE uint64_t run_limit(const struct cpu *cpu, const struct insn *in, unsigned seg, uint64_t off,
			  gva_t lin, unsigned size, uint64_t left)
{
	uint64_t n = (PAGE_SIZE - lin % PAGE_SIZE) / size;

	if (cpu->mode != INSN_MODE_64 && (cpu->seg[seg].flat & (SEG_FLAT_READ | SEG_FLAT_WRITE)) !=
						 (SEG_FLAT_READ | SEG_FLAT_WRITE))
		return 1;
	if (in->adsize != 8 && off + n * size - 1 > mask_of(in->adsize))
		return 1;
	return n ? MIN(n, left) : 1;
}

INLINE bool one_by_one(const struct cpu *cpu)
{
	return cpu->rflags & (RFLAGS_DF | RFLAGS_TF) ||
	       unlikely(cpu->rflags & RFLAGS_AC && cpu->cpl == 3);
}

/* --- MOVS --------------------------------------------------------------------------------------
 */

/* On the host with the guest's element size: overlapping strings repeat as they would there. */
INLINE void host_movs(void *to, const void *from, uint64_t n, unsigned size)
{
	uint64_t bytes = n * size;

	if ((uint64_t)((uint8_t *)to - (const uint8_t *)from) >= bytes)
		asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes) : : "memory");
	else if (size == 1)
		asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
	else if (size == 2)
		asm volatile("rep movsw" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
	else if (size == 4)
		asm volatile("rep movsl" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
	else
		asm volatile("rep movsq" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

INLINE void movs_one(struct cpu *cpu, const struct insn *in, unsigned size)
{
	uint64_t step = string_step(cpu, size);
	uint64_t v = ld_sized(cpu, source(cpu, in, size), size);

	st_sized(cpu, dest(cpu, in, size, true), size, v);
	index_add(cpu, in, X86_RSI, step);
	index_add(cpu, in, X86_RDI, step);
}

/* One run of at most `left`; how many elements it was. */
INLINE uint64_t movs_run(struct cpu *cpu, const struct insn *in, unsigned size, uint64_t left)
{
	gva_t from, to;
	uint64_t n = 1;
	void *s, *d;

	if (one_by_one(cpu)) {
		movs_one(cpu, in, size);
		return 1;
	}
	from = source(cpu, in, size);
	if (cpu->mode != INSN_MODE_64) /* its page comes before the other's segment */
		ld_ptr(cpu, from, size);
	to = dest(cpu, in, size, true);
	n = run_limit(cpu, in, in->seg, index_get(cpu, in, X86_RSI), from, size, left);
	n = run_limit(cpu, in, X86_ES, index_get(cpu, in, X86_RDI), to, size, n);
	s = ld_ptr(cpu, from, (unsigned)(n * size));
	d = s ? st_ptr(cpu, to, (unsigned)(n * size)) : NULL;
	if (!s || !d) {
		movs_one(cpu, in, size);
		return 1;
	}
	host_movs(d, s, n, size);
	index_add(cpu, in, X86_RSI, n * size);
	index_add(cpu, in, X86_RDI, n * size);
	return n;
}

/* --- STOS --------------------------------------------------------------------------------------
 */

INLINE void host_stos(void *to, uint64_t v, uint64_t n, unsigned size)
{
	if (size == 1)
		asm volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(v) : "memory");
	else if (size == 2)
		asm volatile("rep stosw" : "+D"(to), "+c"(n) : "a"(v) : "memory");
	else if (size == 4)
		asm volatile("rep stosl" : "+D"(to), "+c"(n) : "a"(v) : "memory");
	else
		asm volatile("rep stosq" : "+D"(to), "+c"(n) : "a"(v) : "memory");
}

INLINE void stos_one(struct cpu *cpu, const struct insn *in, unsigned size)
{
	st_sized(cpu, dest(cpu, in, size, true), size, cpu->gpr[X86_RAX]);
	index_add(cpu, in, X86_RDI, string_step(cpu, size));
}

INLINE uint64_t stos_run(struct cpu *cpu, const struct insn *in, unsigned size, uint64_t left)
{
	uint64_t n;
	gva_t to;
	void *d;

	if (one_by_one(cpu)) {
		stos_one(cpu, in, size);
		return 1;
	}
	to = dest(cpu, in, size, true);
	n = run_limit(cpu, in, X86_ES, index_get(cpu, in, X86_RDI), to, size, left);
	d = st_ptr(cpu, to, (unsigned)(n * size));
	if (!d) {
		stos_one(cpu, in, size);
		return 1;
	}
	host_stos(d, cpu->gpr[X86_RAX], n, size);
	index_add(cpu, in, X86_RDI, n * size);
	return n;
}

/* --- LODS: only the last element of a run can be seen -------------------------------------------
 */

INLINE uint64_t lods_run(struct cpu *cpu, const struct insn *in, unsigned size, uint64_t left)
{
	uint64_t v = ld_sized(cpu, source(cpu, in, size), size);

	index_add(cpu, in, X86_RSI, string_step(cpu, size));
	reg_set_sized(cpu, CPU_GPR_OFF(X86_RAX), size, v);
	return 1;
}

/* --- INS and OUTS ------------------------------------------------------------------------------
 */

/* Without permission AMD's processors fault even when there is nothing to repeat. */
INLINE void io_begin(struct cpu *cpu, const struct insn *in, unsigned size)
{
	if (cpu_model_is_amd(cpu->vm->model))
		io_check(cpu, (uint16_t)cpu->gpr[X86_RDX], size);
}

/* The port must not be read for an element that could not be stored. */
INLINE uint64_t ins_run(struct cpu *cpu, const struct insn *in, unsigned size, uint64_t left)
{
	uint16_t port = (uint16_t)cpu->gpr[X86_RDX];
	gva_t to;

	io_check(cpu, port, size);
	to = dest(cpu, in, size, true);
	probe_write(cpu, to, size);
	st_sized(cpu, to, size, io_read(cpu, port, size));
	index_add(cpu, in, X86_RDI, string_step(cpu, size));
	return 1;
}

INLINE uint64_t outs_run(struct cpu *cpu, const struct insn *in, unsigned size, uint64_t left)
{
	uint16_t port = (uint16_t)cpu->gpr[X86_RDX];
	uint32_t v;

	io_check(cpu, port, size);
	v = (uint32_t)ld_sized(cpu, source(cpu, in, size), size);
	io_write(cpu, port, size, v);
	index_add(cpu, in, X86_RSI, string_step(cpu, size));
	return 1;
}

/* --- the repeat loop of those without a condition -----------------------------------------------
 */

#define STRING(name, bits, begin)                                                                  \
	void exec_##name##_##bits(struct cpu *cpu, const struct insn *in)                          \
	{                                                                                          \
		uint64_t left, since = 0;                                                          \
                                                                                                   \
		if (!repeated(in)) {                                                               \
			name##_run(cpu, in, bits / 8, 1);                                          \
			return;                                                                    \
		}                                                                                  \
		begin(cpu, in, bits / 8);                                                          \
		while ((left = index_get(cpu, in, X86_RCX)) != 0) {                                \
			uint64_t n = name##_run(cpu, in, bits / 8, left);                          \
                                                                                                   \
			index_add(cpu, in, X86_RCX, -n);                                           \
			since += n;                                                                \
			if (left == n)                                                             \
				return;                                                            \
			if ((since >= RUN_SLOW || one_by_one(cpu) || cpu->dbg_pending) &&          \
			    string_interrupted(cpu)) {                                             \
				string_pause(cpu, in);                                             \
				return;                                                            \
			}                                                                          \
			since = since >= RUN_SLOW ? 0 : since;                                     \
		}                                                                                  \
	}

#define STRING_SIZES(name, begin)                                                                  \
	STRING(name, 8, begin)                                                                     \
	STRING(name, 16, begin)                                                                    \
	STRING(name, 32, begin)

#define NOTHING(cpu, in, size)
STRING_SIZES(movs, NOTHING)
STRING(movs, 64, NOTHING)
STRING_SIZES(stos, NOTHING)
STRING(stos, 64, NOTHING)
STRING_SIZES(lods, NOTHING)
STRING(lods, 64, NOTHING)
STRING_SIZES(ins, io_begin)
STRING_SIZES(outs, io_begin)

/* --- CMPS and SCAS -----------------------------------------------------------------------------
 */

/* Flags of a - b, by the host. */
#define COMPARE_FLAGS(bits)                                                                        \
	INLINE uint64_t compare_##bits(uint64_t a, uint64_t b)                                     \
	{                                                                                          \
		uint32_t f;                                                                        \
                                                                                                   \
		asm("cmp" SFX_##bits " %" RN_##bits "[b], %" RN_##bits "[a]" ASM_FLAGS_OUT         \
		    : "=&a"(f)                                                                     \
		    : [a] "r"(a), [b] "r"(b)                                                       \
		    : "cc");                                                                       \
		return flags_pack(f);                                                              \
	}

COMPARE_FLAGS(8)
COMPARE_FLAGS(16)
COMPARE_FLAGS(32)
COMPARE_FLAGS(64)

INLINE uint64_t host_element(const void *p, uint64_t i, unsigned size)
{
	const uint8_t *at = (const uint8_t *)p + i * size;

	return size == 1   ? *(const mem8_t *)at
	       : size == 2 ? *(const mem16_t *)at
	       : size == 4 ? *(const mem32_t *)at
			   : *(const mem64_t *)at;
}

/* What the last comparison was of. */
struct compared {
	uint64_t a, b;
};

/* Compare elements until the condition ends it; how many were compared. */
INLINE uint64_t cmps_run(struct cpu *cpu, const struct insn *in, unsigned size, uint64_t left,
			 bool while_equal, struct compared *c)
{
	uint64_t step = string_step(cpu, size), n = 1, i = 0;
	gva_t la = source(cpu, in, size), lb;
	const void *a = NULL, *b = NULL;

	if (!one_by_one(cpu) && left > 1) {
		if (cpu->mode != INSN_MODE_64)
			ld_ptr(cpu, la, size);
		lb = dest(cpu, in, size, false);
		n = run_limit(cpu, in, in->seg, index_get(cpu, in, X86_RSI), la, size, left);
		n = run_limit(cpu, in, X86_ES, index_get(cpu, in, X86_RDI), lb, size, n);
		a = ld_ptr(cpu, la, (unsigned)(n * size));
		b = a ? ld_ptr(cpu, lb, (unsigned)(n * size)) : NULL;
	}
	if (b) {
		do {
			c->a = host_element(a, i, size);
			c->b = host_element(b, i, size);
		} while (++i < n && (c->a == c->b) == while_equal);
	} else {
		c->a = ld_sized(cpu, la, size);
		c->b = ld_sized(cpu, dest(cpu, in, size, false), size);
		i = 1;
	}
	index_add(cpu, in, X86_RSI, step * i);
	index_add(cpu, in, X86_RDI, step * i);
	return i;
}

INLINE uint64_t scas_run(struct cpu *cpu, const struct insn *in, unsigned size, uint64_t left,
			 bool while_equal, struct compared *c)
{
	uint64_t step = string_step(cpu, size), n = 1, i = 0;
	gva_t lb = dest(cpu, in, size, false);
	const void *b = NULL;

	c->a = cpu->gpr[X86_RAX] & mask_of(size);
	if (!one_by_one(cpu) && left > 1) {
		n = run_limit(cpu, in, X86_ES, index_get(cpu, in, X86_RDI), lb, size, left);
		b = ld_ptr(cpu, lb, (unsigned)(n * size));
	}
	if (b) {
		do
			c->b = host_element(b, i, size);
		while (++i < n && (c->a == c->b) == while_equal);
	} else {
		c->b = ld_sized(cpu, lb, size);
		i = 1;
	}
	index_add(cpu, in, X86_RDI, step * i);
	return i;
}

#define STRING_COMPARE(name, bits)                                                                 \
	void exec_##name##_##bits(struct cpu *cpu, const struct insn *in)                          \
	{                                                                                          \
		bool while_equal = in->flags & INSN_REP;                                           \
		struct compared c = {0, 0};                                                        \
		uint64_t left, n;                                                                  \
                                                                                                   \
		if (!repeated(in)) {                                                               \
			name##_run(cpu, in, bits / 8, 1, true, &c);                                \
			cpu->cc = compare_##bits(c.a, c.b);                                        \
			return;                                                                    \
		}                                                                                  \
		while ((left = index_get(cpu, in, X86_RCX)) != 0) {                                \
			bool pause;                                                                \
                                                                                                   \
			n = name##_run(cpu, in, bits / 8, left, while_equal, &c);                  \
			index_add(cpu, in, X86_RCX, -n);                                           \
			if (left == n || (c.a == c.b) != while_equal) {                            \
				cpu->cc = compare_##bits(c.a, c.b);                                \
				return;                                                            \
			}                                                                          \
			pause = string_interrupted(cpu);                                           \
			if (pause || cpu_model_is_amd(cpu->vm->model))                             \
				cpu->cc = compare_##bits(c.a, c.b);                                \
			if (pause) {                                                               \
				string_pause(cpu, in);                                             \
				return;                                                            \
			}                                                                          \
		}                                                                                  \
	}

#define STRING_COMPARE_SIZES(name)                                                                 \
	STRING_COMPARE(name, 8)                                                                    \
	STRING_COMPARE(name, 16)                                                                   \
	STRING_COMPARE(name, 32)                                                                   \
	STRING_COMPARE(name, 64)

STRING_COMPARE_SIZES(cmps)
STRING_COMPARE_SIZES(scas)
