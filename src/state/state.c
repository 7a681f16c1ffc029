/* state/state.c - see state.h.  The typed front; what becomes of a field is up to s->ops. */
#include "state/state.h"

#include "base/error.h"

#include <errno.h>

static void fail(struct state *s, int r)
{
	if (r < 0 && !s->failed)
		s->failed = r;
}

void state_enter(struct state *s, const char *name, unsigned version)
{
	if (!s->failed)
		fail(s, s->ops->enter(s, name, version));
}

void state_leave(struct state *s)
{
	if (!s->failed)
		fail(s, s->ops->leave(s));
}

static void field(struct state *s, const char *name, void *p, size_t len, bool is_number)
{
	if (!s->failed)
		fail(s, s->ops->field(s, name, p, len, is_number));
}

/* Numbers travel little-endian, which on an x86-64 host is how they lie in memory. */
void state_u8(struct state *s, const char *name, uint8_t *v)
{
	field(s, name, v, sizeof(*v), true);
}

void state_u16(struct state *s, const char *name, uint16_t *v)
{
	field(s, name, v, sizeof(*v), true);
}

void state_u32(struct state *s, const char *name, uint32_t *v)
{
	field(s, name, v, sizeof(*v), true);
}

void state_u64(struct state *s, const char *name, uint64_t *v)
{
	field(s, name, v, sizeof(*v), true);
}

void state_bool(struct state *s, const char *name, bool *v)
{
	uint8_t byte = s->loading ? 0 : *v; /* what is loaded over may be anything */

	state_u8(s, name, &byte);
	if (!state_loading(s))
		return;
	if (byte > 1)
		fail(s, err_set(s->err, EINVAL, "field '%s': %u is neither 0 nor 1", name, byte));
	else
		*v = byte;
}

void state_bytes(struct state *s, const char *name, void *p, size_t len)
{
	field(s, name, p, len, false);
}

void state_check(struct state *s, bool ok, const char *what)
{
	if (state_loading(s) && !ok)
		fail(s, err_set(s->err, EINVAL, "saved state: %s", what));
}
