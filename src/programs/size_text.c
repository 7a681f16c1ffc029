/* size_text.c - see size_text.h. */
#include "programs/size_text.h"

#include <stdio.h>

const char *size_text(uint64_t bytes, char *buf, size_t cap)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	double v = (double)bytes;
	unsigned u = 0;

	while (v >= 1000 && u + 1 < ARRAY_SIZE(units)) {
		v /= 1024;
		u++;
	}
	snprintf(buf, cap, "%.3g %s", v, units[u]);
	return buf;
}
