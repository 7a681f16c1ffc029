/* block/ids.h - the 16-byte identifiers in images, and the parents images find by them.
 *
 * Two byte orders are in use: VHD stores a UUID as it is printed; VDI and VHDX store Microsoft's
 * GUID structure, whose first three parts are little-endian.  For drivers only. */
#pragma once

#include "block/format.h"

enum { ID_LEN = 16, ID_TEXT = 37 };

int id_random(uint8_t id[ID_LEN]); /* version 4, in either order; or -errno */
bool id_is_zero(const uint8_t id[ID_LEN]);
void id_text(const uint8_t id[ID_LEN], bool little, char text[ID_TEXT]);

/* UTF-16 to UTF-8, at most cap bytes with the final 0; what cannot be said becomes '?'.  Ends at a
 * zero unit or at len bytes. */
void utf16_to_utf8(const uint8_t *in, size_t len, bool little, char *out, size_t cap);
/* The other way: bytes written, at most cap (an even number), or 0 when it is not UTF-8 or does
 * not fit. */
size_t utf8_to_utf16(const char *in, bool little, uint8_t *out, size_t cap);

/* Open the backing file of an image being made: named by the user, so it may lie anywhere. */
int parent_open_new(const struct blk_create *c, const char *format, struct blk **out,
		    struct error *err);
/* c->backing as an absolute path with no links; malloc'd, or NULL. */
char *parent_real_path(const struct blk_create *c);
/* from's directory to path, both absolute: "../x/y"; malloc'd, or NULL. */
char *parent_relative(const char *from, const char *path);
