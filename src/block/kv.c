/* block/kv.c - options of formats: key=value, sizes, switches. */
#include "block/format.h"

#include "base/error.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The last one counts, as on a command line. */
const char *blk_kv_get(const struct blk_kv *kv, unsigned n, const char *key)
{
	while (n--)
		if (!strcmp(kv[n].key, key))
			return kv[n].value;
	return NULL;
}

static int parse_digits(const char **text, uint64_t *value)
{
	char *end;

	if (**text < '0' || **text > '9')
		return -EINVAL;
	errno = 0;
	*value = strtoull(*text, &end, 10);
	if (errno)
		return -EINVAL;
	*text = end;
	return 0;
}

/* ".5" of a unit, in bytes; digits beyond the ninth change nothing. */
static uint64_t parse_fraction(const char **text, unsigned shift)
{
	uint64_t sum = 0, scale = 1;

	for (; **text >= '0' && **text <= '9'; ++*text) {
		if (scale < 1000000000) {
			sum = sum * 10 + (uint64_t)(**text - '0');
			scale *= 10;
		}
	}
	return (uint64_t)(((unsigned __int128)sum << shift) / scale);
}

int blk_parse_size(const char *text, uint64_t *bytes)
{
	static const char units[] = "bKMGTPE";
	const char *dot, *unit;
	uint64_t whole, part = 0;
	unsigned shift = 0;

	if (!strncmp(text, "0x", 2)) {
		char *end;

		errno = 0;
		*bytes = strtoull(text, &end, 16);
		return errno || *end || end == text + 2 ? -EINVAL : 0;
	}
	if (parse_digits(&text, &whole) < 0)
		return -EINVAL;
	dot = *text == '.' ? text + 1 : NULL;
	text += dot ? 1 + strspn(dot, "0123456789") : 0;
	if (*text) {
		unit = *text == 'b' || *text == 'B' ? units : strchr(units + 1, *text & ~0x20);
		if (!unit || !*unit || text[1])
			return -EINVAL;
		shift = 10 * (unsigned)(unit - units);
	}
	if (dot)
		part = parse_fraction(&dot, shift);
	if (whole > (UINT64_MAX >> shift))
		return -EINVAL;
	*bytes = (whole << shift) + part;
	return *bytes < part || *bytes > INT64_MAX ? -EINVAL : 0;
}

int blk_kv_size(const struct blk_kv *kv, unsigned n, const char *key, uint64_t preset,
		uint64_t *value, struct error *err)
{
	const char *text = blk_kv_get(kv, n, key);

	*value = preset;
	if (!text || !blk_parse_size(text, value))
		return 0;
	return err_set(err, EINVAL, "%s=%s: not a size such as 65536, 64k or 2M", key, text);
}

int blk_kv_number(const struct blk_kv *kv, unsigned n, const char *key, uint64_t preset,
		  uint64_t *value, struct error *err)
{
	const char *text = blk_kv_get(kv, n, key);
	const char *end = text;

	*value = preset;
	if (!text || (!parse_digits(&end, value) && !*end))
		return 0;
	return err_set(err, EINVAL, "%s=%s: not a number", key, text);
}

int blk_kv_bool(const struct blk_kv *kv, unsigned n, const char *key, bool preset, bool *value,
		struct error *err)
{
	static const char *const words[] = {"off", "on", "no", "yes", "false", "true", "n", "y"};
	const char *text = blk_kv_get(kv, n, key);

	*value = preset;
	if (!text)
		return 0;
	for (unsigned i = 0; i < ARRAY_SIZE(words); i++) {
		if (!strcmp(text, words[i])) {
			*value = i & 1;
			return 0;
		}
	}
	return err_set(err, EINVAL, "%s=%s: use on or off", key, text);
}
