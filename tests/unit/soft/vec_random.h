/* vec_random.h - random bytes that are vector instructions, or nearly.
 *
 * Opcodes are random over whole maps, so invalid encodings are made too: both sides must then
 * raise #UD.  Left out: opcodes of other instructions that would leave user code (SYSCALL ...) or
 * change what the test process stands on (segment bases). */
#pragma once

#include "vec_guest.h"

enum random_kind { RANDOM_X87, RANDOM_LEGACY, RANDOM_VEX, RANDOM_EVEX, RANDOM_NR_KINDS };

static inline void random_put(struct setup *s, uint8_t b)
{
	s->code[s->len++] = b;
}

/* Vector opcodes of map 0F; the rest are integer or system instructions. */
static inline bool random_is_vector_0f(uint8_t op)
{
	return (op >= 0x10 && op <= 0x17) || (op >= 0x28 && op <= 0x2f) ||
	       (op >= 0x50 && op <= 0x7f && op != 0x77 && op != 0x78 && op != 0x79) || op == 0xc2 ||
	       (op >= 0xc4 && op <= 0xc6) || op >= 0xd0;
}

/* An immediate; where the instruction has none it is executed: prefixes of the UD2 that follows,
 * and instructions of one byte that do no harm. */
static inline void random_imm(struct setup *s, uint64_t r)
{
	static const uint8_t harmless[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67,
					   0x90, 0x91, 0x92, 0x93, 0x95, 0x96, 0x97, 0x98,
					   0x99, 0xf5, 0xf8, 0xf9, 0x40, 0x41, 0x44, 0x4f};

	random_put(s, harmless[r % ARRAY_SIZE(harmless)]);
}

static inline bool random_is_mem(uint64_t r)
{
	return (r >> 3 & 7) >= 4;
}

/* A register, or memory at RSI: plain, with displacement, or far enough to cross pages. */
static inline void random_modrm(struct setup *s, uint64_t r)
{
	uint8_t reg = (r & 7) << 3;
	uint32_t end;

	switch (r >> 3 & 7) {
	case 0 ... 3:
		random_put(s, 0xc0 | reg | (r >> 8 & 7));
		break;
	case 4:
		random_put(s, reg | 6);
		break;
	case 5:
		random_put(s, 0x40 | reg | 6);
		random_put(s, (uint8_t)(r >> 16) & 0x70);
		break;
	case 6: /* [rsi + rbx*2^n], or with VSIB */
		random_put(s, 0x40 | reg | 4);
		random_put(s, (uint8_t)((r >> 16 & 0xc0) | 3 << 3 | 6));
		random_put(s, (uint8_t)(r >> 24) & 0x3f);
		break;
	default: /* across the edge of the second data page, or off its end */
		random_put(s, 0x80 | reg | 6);
		end = (r >> 32 & 1 ? PAGE_SIZE : DATA_SIZE) - 0x400 - (uint32_t)(r >> 16 & 0x3f);
		for (int i = 0; i < 4; i++)
			random_put(s, (uint8_t)(end >> 8 * i));
	}
}

static inline void random_legacy(struct setup *s, uint64_t r, uint64_t r2)
{
	static const uint8_t prefixes[] = {0, 0x66, 0xf3, 0xf2};
	uint8_t op = (uint8_t)r;

	if (r >> 8 & 3)
		random_put(s, prefixes[r >> 8 & 3]);
	if (r >> 10 & 1)
		random_put(s, 0x40 | (r >> 11 & (random_is_mem(r2) ? 12 : 13))); /* W R B */
	random_put(s, 0x0f);
	switch (r >> 16 & 7) {
	case 0:
		random_put(s, 0x38);
		if (op >= 0xf0)
			op &= 0x7f;
		break;
	case 1:
		random_put(s, 0x3a);
		break;
	default:
		while (!random_is_vector_0f(op))
			op = (uint8_t)(op * 5 + 1);
	}
	random_put(s, op);
	random_modrm(s, r2);
	random_imm(s, r >> 32);
}

static inline void random_vex(struct setup *s, uint64_t r, uint64_t r2)
{
	uint8_t map = 1 + (r >> 8) % 3;

	random_put(s, 0xc4);
	random_put(s, (uint8_t)((r >> 16 & 0xa0) | (random_is_mem(r2) ? 0x60 : 0x40) | map));
	random_put(s, (uint8_t)(r >> 24));
	random_put(s, (uint8_t)r);
	random_modrm(s, r2);
	random_imm(s, r >> 32);
}

static inline void random_evex(struct setup *s, uint64_t r, uint64_t r2)
{
	static const uint8_t maps[] = {1, 2, 3, 1, 2, 3, 5, 6};
	bool mem = random_is_mem(r2);

	random_put(s, 0x62);
	random_put(s, (uint8_t)((r >> 16 & (mem ? 0x90 : 0xf0)) | (mem ? 0x60 : 0) |
				maps[r >> 8 & 7]));
	random_put(s, (uint8_t)(r >> 24) | 4);
	random_put(s, (uint8_t)(r >> 40));
	random_put(s, (uint8_t)r);
	random_modrm(s, r2);
	random_imm(s, r >> 32);
}

static inline void random_insn(struct setup *s, enum random_kind kind, uint64_t r, uint64_t r2)
{
	switch (kind) {
	case RANDOM_X87:
		random_put(s, 0xd8 | (r & 7));
		random_modrm(s, r2);
		break;
	case RANDOM_LEGACY:
		random_legacy(s, r, r2);
		break;
	case RANDOM_VEX:
		random_vex(s, r, r2);
		break;
	default:
		random_evex(s, r, r2);
	}
}
