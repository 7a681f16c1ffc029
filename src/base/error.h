/* base/error.h - how a function says what went wrong.
 *
 * A function that can fail returns 0 or a negative errno value and, when the caller passed a
 * struct error, one sentence for a person: what, why, what to try.  The struct lives on the
 * caller's stack and may be NULL.  Each level adds only what it alone knows (err_wrap).
 * Any thread; no locking, a struct error belongs to one caller. */
#pragma once

#include "base/types.h"

struct error {
	char msg[512];
};

/* Set the sentence and return -code, so that `return err_set(err, EINVAL, "...")` reads well. */
int err_set(struct error *err, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* As err_set, with ": " and the words for code (strerror) added. */
int err_errno(struct error *err, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);

/* Put "prefix: " before the sentence.  Returns r, a negative errno, unchanged. */
int err_wrap(struct error *err, int r, const char *fmt, ...) PRINTF_LIKE(3, 4);
