/* insn_random.h - random instruction bytes, mostly valid ones.
 *
 * Purely random bytes are short one-byte instructions nine times in ten; this prefers the large
 * opcode maps, sensible VEX and EVEX payloads and few prefixes, and leaves everything after the
 * opcode random. */
#pragma once

#include <stdint.h>

struct insn_random {
	uint64_t state;
};

uint64_t insn_random_next(struct insn_random *r);
/* Fill all 32 bytes. */
void insn_random_bytes(struct insn_random *r, uint8_t bytes[32]);
