/* zydis_compare.h - one instruction decoded by us and by Zydis, and what differs.
 *
 * Zydis 4 knows instructions that are not offered to guests, and has opinions about a few corners;
 * both are listed in zydis_compare.c with the reason why we differ on purpose. */
#pragma once

#include "engine/soft/insn.h"

#include <stddef.h>

struct zydis_pair; /* our CPU model and Zydis' decoder, set up for one mode and vendor */

struct zydis_pair *zydis_pair_create(enum insn_mode mode, bool amd);
void zydis_pair_destroy(struct zydis_pair *p);

enum zydis_verdict {
	ZYDIS_SAME,      /* both decode it, to the same thing */
	ZYDIS_BOTH_BAD,  /* both refuse it */
	ZYDIS_KNOWN,     /* they differ for a reason that is listed */
	ZYDIS_DIFFERENT, /* they differ */
};

/* bytes: 15 of them at least.  why: what differs, when something does. */
enum zydis_verdict zydis_compare(struct zydis_pair *p, const uint8_t *bytes, size_t len, char *why,
				 size_t why_len);
