/* json_out.c - see json_out.h. */
#include "programs/json_out.h"

#include <assert.h>

static void put_string(FILE *f, const char *text)
{
	fputc('"', f);
	for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
		if (*p == '"' || *p == '\\')
			fprintf(f, "\\%c", *p);
		else if (*p < 0x20 || *p == 0x7f)
			fprintf(f, "\\u%04x", *p);
		else
			fputc(*p, f);
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
