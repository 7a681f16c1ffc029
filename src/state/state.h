/* state/state.h - one description of a stateful part, used to save and to restore it.
 *
 * A part writes one function `void xxx_state(struct state *s, void *self)` that names each field
 * once; the same function runs when saving and when loading.  Snapshots, migration, debug dumps
 * and test comparison all use it.  A stream being loaded is hostile: each value is checked with
 * state_check(), and after the first failure every later call is a no-op that leaves fields alone.
 * A struct state belongs to one thread. */
#pragma once

#include "base/types.h"

struct error;
struct state;

/* What happens to a field.  The stream formats (binary, text dump) implement this. */
struct state_ops {
	/* Save: write *data.  Load: fill *data, or fail when the name or size differs. */
	int (*field)(struct state *s, const char *name, void *data, size_t len, bool is_number);
	int (*enter)(struct state *s, const char *name, unsigned version);
	int (*leave)(struct state *s);
};

struct state {
	const struct state_ops *ops;
	bool loading;
	int failed;        /* first negative errno */
	struct error *err; /* may be NULL */
	unsigned version;  /* of the section being read or written */
};

/* A section: its name and the version this build writes.  On load, .version is what was found;
 * a newer one than `version` fails. */
void state_enter(struct state *s, const char *name, unsigned version);
void state_leave(struct state *s);
static inline bool state_loading(const struct state *s)
{
	return s->loading && !s->failed;
}
static inline bool state_since(const struct state *s, unsigned version)
{
	return s->version >= version;
}

void state_u8(struct state *s, const char *name, uint8_t *v);
void state_u16(struct state *s, const char *name, uint16_t *v);
void state_u32(struct state *s, const char *name, uint32_t *v);
void state_u64(struct state *s, const char *name, uint64_t *v);
void state_bool(struct state *s, const char *name, bool *v); /* load fails unless 0 or 1 */
void state_bytes(struct state *s, const char *name, void *p, size_t len);

/* On load: when !ok, fail with the sentence.  On save: nothing. */
void state_check(struct state *s, bool ok, const char *what);
