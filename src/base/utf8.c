/* base/utf8.c - see utf8.h. */
#include "base/utf8.h"

/* The bytes a leading byte announces; 0: it is none. */
static unsigned announced(uint8_t first)
{
	if (first < 0x80)
		return 1;
	if (first >= 0xc2 && first < 0xe0)
		return 2;
	if (first >= 0xe0 && first < 0xf0)
		return 3;
	return first >= 0xf0 && first < 0xf5 ? 4 : 0;
}

unsigned utf8_char_len(const char *text)
{
	const uint8_t *p = (const uint8_t *)text;
	unsigned n = announced(p[0]);

	for (unsigned i = 1; i < n; i++)
		if ((p[i] & 0xc0) != 0x80)
			return 0;
	/* Longer than need be, surrogates, beyond U+10FFFF. */
	if ((p[0] == 0xe0 && n && p[1] < 0xa0) || (p[0] == 0xed && n && p[1] >= 0xa0) ||
	    (p[0] == 0xf0 && n && p[1] < 0x90) || (p[0] == 0xf4 && n && p[1] >= 0x90))
		return 0;
	return n;
}
