/* block/ids.c - see ids.h. */
#include "block/ids.h"

#include "base/error.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

int id_random(uint8_t id[ID_LEN])
{
	if (getrandom(id, ID_LEN, 0) != ID_LEN)
		return -EIO;
	/* RFC 4122 4.4; byte 6 holds the version in one order, byte 7 in the other. */
	id[6] = id[7] = (uint8_t)((id[7] & 0x0f) | 0x40);
	id[8] = (uint8_t)((id[8] & 0x3f) | 0x80);
	return 0;
}

bool id_is_zero(const uint8_t id[ID_LEN])
{
	static const uint8_t zero[ID_LEN];

	return !memcmp(id, zero, ID_LEN);
}

void id_text(const uint8_t id[ID_LEN], bool little, char text[ID_TEXT])
{
	static const uint8_t as_is[ID_LEN] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
	static const uint8_t guid[ID_LEN] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};
	const uint8_t *order = little ? guid : as_is;

	for (unsigned i = 0; i < ID_LEN; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*text++ = '-';
		text += sprintf(text, "%02x", id[order[i]]);
	}
}

/* ---- UTF-16 ---- */

static unsigned unit_load(const uint8_t *p, bool little)
{
	return little ? p[0] | (unsigned)p[1] << 8 : p[1] | (unsigned)p[0] << 8;
}

static void unit_store(uint8_t *p, unsigned u, bool little)
{
	p[little ? 0 : 1] = (uint8_t)u;
	p[little ? 1 : 0] = (uint8_t)(u >> 8);
}

static size_t put_utf8(unsigned c, char *out)
{
	if (c < 0x80) {
		out[0] = (char)c;
		return 1;
	}
	if (c < 0x800) {
		out[0] = (char)(0xc0 | c >> 6);
		out[1] = (char)(0x80 | (c & 0x3f));
		return 2;
	}
	if (c < 0x10000) {
		out[0] = (char)(0xe0 | c >> 12);
		out[1] = (char)(0x80 | (c >> 6 & 0x3f));
		out[2] = (char)(0x80 | (c & 0x3f));
		return 3;
	}
	out[0] = (char)(0xf0 | c >> 18);
	out[1] = (char)(0x80 | (c >> 12 & 0x3f));
	out[2] = (char)(0x80 | (c >> 6 & 0x3f));
	out[3] = (char)(0x80 | (c & 0x3f));
	return 4;
}

void utf16_to_utf8(const uint8_t *in, size_t len, bool little, char *out, size_t cap)
{
	size_t n = 0;

	for (size_t i = 0; i + 1 < len && n + 5 <= cap; i += 2) {
		unsigned c = unit_load(in + i, little);

		if (!c)
			break;
		if (c >= 0xd800 && c < 0xdc00 && i + 3 < len) {
			unsigned low = unit_load(in + i + 2, little);

			if (low >= 0xdc00 && low < 0xe000) {
				c = 0x10000 + ((c - 0xd800) << 10) + (low - 0xdc00);
				i += 2;
			}
		}
		if (c >= 0xd800 && c < 0xe000)
			c = '?'; /* half of a pair */
		n += put_utf8(c, out + n);
	}
	out[n] = 0;
}

/* One character; 0 when it is not UTF-8. */
static size_t get_utf8(const uint8_t *in, unsigned *c)
{
	size_t n = in[0] < 0x80       ? 1
		   : in[0] >> 5 == 6  ? 2
		   : in[0] >> 4 == 14 ? 3
		   : in[0] >> 3 == 30 ? 4
				      : 0;
	static const uint8_t mask[] = {0, 0x7f, 0x1f, 0x0f, 0x07};

	*c = in[0] & mask[n];
	for (size_t i = 1; i < n; i++) {
		if (in[i] >> 6 != 2)
			return 0;
		*c = *c << 6 | (in[i] & 0x3f);
	}
	return *c < 0x110000 ? n : 0;
}

size_t utf8_to_utf16(const char *text, bool little, uint8_t *out, size_t cap)
{
	const uint8_t *in = (const uint8_t *)text;
	size_t len = 0, n;
	unsigned c;

	for (; *in; in += n) {
		n = get_utf8(in, &c);
		if (!n || len + (c >= 0x10000 ? 4 : 2) > cap)
			return 0;
		if (c >= 0x10000) {
			unit_store(out + len, 0xd800 + ((c - 0x10000) >> 10), little);
			len += 2;
			c = 0xdc00 + (c & 0x3ff);
		}
		unit_store(out + len, c, little);
		len += 2;
	}
	return len;
}

/* ---- parents ---- */

static char *named_path(const struct blk_create *c)
{
	const char *slash = strrchr(c->path, '/');
	char *path = NULL;

	if (c->backing[0] == '/' || !slash)
		return strdup(c->backing);
	if (asprintf(&path, "%.*s%s", (int)(slash - c->path + 1), c->path, c->backing) < 0)
		return NULL;
	return path;
}

int parent_open_new(const struct blk_create *c, const char *format, struct blk **out,
		    struct error *err)
{
	char *path;
	int r;

	if (!c->backing_format || strcmp(c->backing_format, format))
		return err_set(err, EINVAL,
			       "an image of format %s can only stand on another one of format %s",
			       format, format);
	path = named_path(c);
	if (!path)
		return err_errno(err, ENOMEM, "'%s'", c->backing);
	r = blk_open_with(out, path, format, BLK_READONLY | BLK_NO_POOL, c->open, err);
	free(path);
	return r < 0 ? err_wrap(err, r, "backing file") : 0;
}

char *parent_real_path(const struct blk_create *c)
{
	char *path = named_path(c), *real = path ? realpath(path, NULL) : NULL;

	free(path);
	return real;
}

char *parent_relative(const char *from, const char *path)
{
	size_t same = 0;
	unsigned ups = 0;
	char *out, *at;

	for (size_t i = 0; from[i] && from[i] == path[i]; i++)
		if (from[i] == '/')
			same = i + 1;
	for (const char *p = from + same; *p; p++)
		ups += *p == '/';
	out = malloc(3 * (size_t)ups + strlen(path + same) + 3);
	if (!out)
		return NULL;
	at = stpcpy(out, ups ? "" : "./");
	while (ups--)
		at = stpcpy(at, "../");
	strcpy(at, path + same);
	return out;
}
