/* json_out.c - see json_out.h. */
#include "programs/json_out.h"

#include "base/utf8.h"

#include <assert.h>

/* Bytes that are no UTF-8 become U+FFFD: what reads JSON refuses them. */
static void put_string(FILE *f, const char *text)
{
	fputc('"', f);
	while (*text) {
		unsigned n = utf8_char_len(text);
		uint8_t c = (uint8_t)*text;

		if (n == 0)
			fputs("\\ufffd", f);
		else if (c == '"' || c == '\\')
			fprintf(f, "\\%c", c);
		else if (c < 0x20 || c == 0x7f)
			fprintf(f, "\\u%04x", c);
		else
			fwrite(text, 1, n, f);
		text += n ? n : 1;
	}
	fputc('"', f);
}

static void put_key(struct json *j, const char *key)
{
	if (!j->depth)
		return;
	fprintf(j->f, "%s\n%*s", j->some[j->depth] ? "," : "", (int)(4 * j->depth), "");
	j->some[j->depth] = true;
	if (!j->list[j->depth]) {
		put_string(j->f, key);
		fputs(": ", j->f);
	}
}

void json_begin(struct json *j, const char *key, bool list)
{
	put_key(j, key);
	fputc(list ? '[' : '{', j->f);
	j->depth++;
	assert(j->depth < ARRAY_SIZE(j->list));
	j->list[j->depth] = list;
	j->some[j->depth] = false;
}

void json_end(struct json *j)
{
	bool list = j->list[j->depth], some = j->some[j->depth];

	j->depth--;
	if (some)
		fprintf(j->f, "\n%*s", (int)(4 * j->depth), "");
	fputc(list ? ']' : '}', j->f);
	if (!j->depth)
		fputc('\n', j->f);
}

void json_text(struct json *j, const char *key, const char *value)
{
	put_key(j, key);
	put_string(j->f, value);
}

void json_number(struct json *j, const char *key, uint64_t value)
{
	put_key(j, key);
	fprintf(j->f, "%llu", (unsigned long long)value);
}

void json_real(struct json *j, const char *key, double value)
{
	put_key(j, key);
	fprintf(j->f, "%.3f", value);
}

void json_flag(struct json *j, const char *key, bool value)
{
	put_key(j, key);
	fputs(value ? "true" : "false", j->f);
}
