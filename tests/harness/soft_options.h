/* soft_options.h - which options a test gives the soft engine: $SOFT_OPTIONS, as after
 * `--engine soft,`; without, the interpreter.  So that each test of the engine runs on each of its
 * tiers. */
#pragma once

#include <stdlib.h>

static inline const char *soft_options(void)
{
	const char *o = getenv("SOFT_OPTIONS");

	return o ? o : "tier=interp";
}
