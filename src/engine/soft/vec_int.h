/* engine/soft/vec_int.h - what the vec*.c files share.  Nobody else includes this.
 *
 * How a vector instruction runs: exec_vec() finds its thunk, a few bytes of host code that hold
 * the very instruction with
 *   - vector, mask, x87 and MMX registers as they are (the guest's are live in the host's),
 *   - a memory operand turned into [rsi], which points into guest RAM or at vs->bounce,
 *   - general registers turned into RAX (ModRM.reg) and RCX (ModRM.rm), loaded from and stored to
 *     struct cpu around the instruction; flags likewise.
 * A thunk returns 0, or the vector of the exception the instruction raised: the signal handler
 * makes it return early.  Thunks are leaves: RSP at the instruction is RSP at entry. */
#pragma once

#include "engine/soft/access.h"
#include "engine/soft/vec.h"

#if defined(__SANITIZE_ADDRESS__)
#define VEC_EAGER_RELEASE 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define VEC_EAGER_RELEASE 1
#endif
#endif
#ifndef VEC_EAGER_RELEASE
#define VEC_EAGER_RELEASE 0 /* 1: sanitizer run time uses vector registers between instructions */
#endif

/* XSAVE area offsets that never move (SDM 1 "XSAVE Area"). */
enum {
	XS_FCW = 0,
	XS_FSW = 2,
	XS_FTW = 4,
	XS_FOP = 6,
	XS_FIP = 8,
	XS_FCS = 12,
	XS_FDP = 16,
	XS_FDS = 20,
	XS_MXCSR = 24,
	XS_MXCSR_MASK = 28,
	XS_ST = 32,
	XS_XMM = 160,
	XS_BV = 512,
	XS_XCOMP = 520,
	XS_EXT = 576,
};

enum { FSW_ES = 1 << 7, MXCSR_MM = 1 << 17, MXCSR_DEFAULT = 0x1f80, FCW_DEFAULT = 0x37f };

/* What the memory operand is to the instruction. */
enum vec_mem { VEC_MEM_NONE, VEC_MEM_LOAD, VEC_MEM_STORE };

/* vec_attr.use */
enum {
	VEC_USE_REG = 1 << 0,       /* ModRM.reg is a general register */
	VEC_USE_RM = 1 << 1,        /* ModRM.rm is a general register or memory of its size */
	VEC_WRITES = 1 << 2,        /* the general register(s) may be changed */
	VEC_FLAGS_OUT = 1 << 3,     /* sets arithmetic flags */
	VEC_FLAGS_IN = 1 << 4,      /* FCMOVcc */
	VEC_USE_AX = 1 << 5,        /* FNSTSW AX */
	VEC_USE_CMPSTR = 1 << 6,    /* PCMPxSTRx: EAX, EDX in, ECX out */
	VEC_X87_PTR = 1 << 7,       /* x87, not a control instruction: updates FIP and friends */
	VEC_ALIGN_MM = 1 << 8,      /* alignment is not needed while MXCSR.MM = 1 */
	VEC_WAITS = 1 << 9,         /* waits: a pending x87 exception comes before memory faults */
	VEC_MASKED = 1 << 10,       /* elements masked off do not fault */
	VEC_PACKED = 1 << 11,       /* the elements touched are the first popcount(mask) ones */
	VEC_FAULTS_WHOLE = 1 << 13, /* VEC_MASKED, but all of the operand must be accessible */
	VEC_W_SIZE = 1 << 12, /* W chooses the size of a general register: ignored in 32-bit code */
};

struct vec_attr {
	uint8_t cls; /* enum vec_class */
	uint8_t mem; /* enum vec_mem */
	uint8_t size;
	uint8_t align; /* bytes the operand must be aligned to, or 0 */
	uint8_t ac;    /* the same for #AC */
	uint8_t elem;  /* VEC_MASKED: bytes of one memory element, */
	uint8_t bits;  /* and how many mask bits there are */
	uint16_t use;
};

struct vec_thunk {
	int (*run)(struct cpu *cpu, void *mem);
	struct vec_attr a;
	uint16_t id;
	uint8_t len;
	uint32_t hash;
};

/* vec_row.c: what the instruction table says about one decoded instruction. */
void vec_attr_of(struct vec_attr *a, const struct cpu *cpu, const struct insn *in);

/* vec_thunk.c */
int vec_code_create(struct vec_state *vs, struct error *err);
void vec_code_destroy(struct vec_state *vs);
struct vec_thunk *vec_thunk_build(struct cpu *cpu, const struct insn *in);
static inline struct vec_thunk *vec_thunk_of(struct cpu *cpu, const struct insn *in)
{
	struct vec_state *vs = cpu->vec;

	if (unlikely((uint32_t)(in->thunk >> 32) != vs->thunk_gen))
		return vec_thunk_build(cpu, in);
	return &vs->thunks[(uint32_t)in->thunk];
}

/* vec_signal.c */
int vec_signal_install(struct error *err);
void vec_signal_attach(struct vec_state *vs); /* this thread runs vs's thunks now */
void vec_signal_detach(struct vec_state *vs);
enum { VEC_CODE_SIZE = 2 * MiB };

/* vec.c */
/* The host's XSAVE components, which are the guest's: asked once, CPUID is slow in a VM. */
enum { VEC_NR_COMPONENTS = 10 };
struct vec_component {
	uint32_t offset, size; /* size 0: there is none */
};
extern struct vec_component vec_components[VEC_NR_COMPONENTS];
void vec_load_slow(struct cpu *cpu);
/* Once through the registers: XSTATE_BV, FSW.ES and unused bytes as the hardware makes them. */
void vec_settle(struct vec_state *vs);
static inline void vec_load(struct cpu *cpu)
{
	if (!cpu->vec_live)
		vec_load_slow(cpu);
}
_Noreturn void vec_fault(struct cpu *cpu, int vector);
void vec_check(struct cpu *cpu, const struct vec_thunk *t);
/* #AC where alignment checking is on.  access.c sees to it that no TLB entry hits then. */
static inline void vec_check_ac(struct cpu *cpu, gva_t lin, unsigned align)
{
	if (unlikely(cpu->cpl == 3 && cpu->cr0 & CR0_AM && cpu->rflags & RFLAGS_AC &&
		     lin & (align - 1)))
		cpu_fault(cpu, X86_EXC_AC, 0);
}

/* Address of an operand's last byte; below 64-bit mode addresses wrap at 4 GiB. */
static inline gva_t vec_last(const struct cpu *cpu, gva_t lin, unsigned size)
{
	gva_t last = lin + size - 1;

	return cpu->mode == INSN_MODE_64 ? last : (uint32_t)last;
}

/* At the end of each vector instruction, and before calling what does not return. */
static inline void vec_end(struct cpu *cpu)
{
	if (VEC_EAGER_RELEASE)
		vec_release(cpu);
}

/* Run t on the state that is or becomes live; unwinds when the instruction faulted. */
static inline void vec_run(struct cpu *cpu, const struct vec_thunk *t, void *mem)
{
	int r;

	vec_load(cpu);
	r = t->run(cpu, mem);
	if (unlikely(r)) {
		vec_end(cpu);
		vec_fault(cpu, r);
	}
}

/* vec_mask.c: the memory operand could not be used directly and some elements may be masked off. */
bool vec_mask_empty(struct cpu *cpu, const struct insn *in, const struct vec_thunk *t);
void vec_masked_limits(struct cpu *cpu, const struct insn *in, const struct vec_thunk *t,
		       bool write);
void vec_masked_load(struct cpu *cpu, const struct insn *in, const struct vec_thunk *t, gva_t lin);
void vec_masked_store(struct cpu *cpu, const struct insn *in, const struct vec_thunk *t, gva_t lin);

/* vec_x87.c */
void vec_x87_note(struct cpu *cpu, const struct insn *in);
void vec_x87_pending(struct cpu *cpu); /* #MF now if an unmasked exception waits */
void vec_x87_probe_host(void);
/* Do the pointers follow every instruction, whether it raises an exception or not? */
bool vec_x87_ptr_always(void);
/* Are selectors kept beside them? */
bool vec_x87_has_selectors(void);
/* Put FOP, FIP and FDP as this CPU's FXSAVE and XSAVE would show them into an image. */
void vec_x87_put_ptr(const struct cpu *cpu, uint8_t *image, bool wide);
void vec_x87_take_ptr(struct cpu *cpu, const uint8_t *image, bool wide);

/* vec_xsave.c */
uint32_t vec_mxcsr_mask(const struct cpu *cpu);

/* Bytes without libc: guest state may be live in the registers memcpy uses. */
static inline void vec_copy(void *d, const void *s, size_t n)
{
	__asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n) : : "memory");
}

static inline void vec_zero(void *d, size_t n)
{
	__asm__ volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(0) : "memory");
}

/* Unaligned little-endian access to images. */
#define VEC_AT(ty, p, off)                                                                         \
	(((struct { ty v; }                                                                        \
	   __attribute__((packed, may_alias)) *)((uint8_t *)(uintptr_t)(p) + (off)))               \
		 ->v)
