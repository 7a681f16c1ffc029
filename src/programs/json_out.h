/* json_out.h - writing JSON as it comes, indented, to a FILE.  Programs only; one thread. */
#pragma once

#include "base/types.h"

#include <stdio.h>

struct json {
	FILE *f;
	unsigned depth;
	bool list[32], some[32]; /* of the level: a list; it has a member already */
};

/* key NULL inside a list, and at the top. */
void json_begin(struct json *j, const char *key, bool list);
void json_end(struct json *j); /* a newline behind the last */
void json_text(struct json *j, const char *key, const char *value);
void json_number(struct json *j, const char *key, uint64_t value);
void json_real(struct json *j, const char *key, double value);
void json_flag(struct json *j, const char *key, bool value);
