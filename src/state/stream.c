/* state/stream.c - see stream.h. */
#include "state/stream.h"

#include "base/bytes.h"
#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { HEADER_LEN = 24, END_LEN = 5 };
enum { REC_ENTER = 1, REC_LEAVE, REC_NUMBER, REC_BYTES, REC_END = 0xff };

static const char magic[8] = {'T', 'R', 'V', 'S', 'T', 'A', 'T', 'E'};

/* CRC-32C (Castagnoli), reflected polynomial 0x82f63b78, four bits at a time: state is small. */
uint32_t state_crc32c(const void *p, size_t len)
{
	// clang-format off
	static const uint32_t nibble[16] = {
		0x00000000, 0x105ec76f, 0x20bd8ede, 0x30e349b1, 0x417b1dbc, 0x5125dad3, 0x61c69362, 0x7198540d,
		0x82f63b78, 0x92a8fc17, 0xa24bb5a6, 0xb21572c9, 0xc38d26c4, 0xd3d3e1ab, 0xe330a81a, 0xf36e6f75,
	};
	// clang-format on
	const uint8_t *b = p;
	uint32_t crc = ~0u;

	for (size_t i = 0; i < len; i++) {
		crc ^= b[i];
		crc = crc >> 4 ^ nibble[crc & 15];
		crc = crc >> 4 ^ nibble[crc & 15];
	}
	return ~crc;
}

/* ---- saving ---- */

static int put(struct state_writer *w, const void *p, size_t len)
{
	if (len > w->cap - w->len) {
		size_t cap = MAX(2 * w->cap, w->len + len + 4096);
		uint8_t *buf = realloc(w->buf, cap);

		if (!buf)
			return err_errno(w->state.err, ENOMEM, "saving state");
		w->buf = buf;
		w->cap = cap;
	}
	memcpy(w->buf + w->len, p, len);
	w->len += len;
	return 0;
}

static int put_u32(struct state_writer *w, uint32_t v)
{
	uint8_t b[4];

	le32_store(b, v);
	return put(w, b, sizeof(b));
}

static int put_named(struct state_writer *w, uint8_t kind, const char *name, uint32_t arg)
{
	size_t len = strlen(name);
	uint8_t head[2] = {kind, (uint8_t)len};
	int r;

	assert(len > 0 && len < 256);
	r = put(w, head, sizeof(head));
	if (!r)
		r = put(w, name, len);
	if (!r)
		r = put_u32(w, arg);
	return r;
}

static int writer_field(struct state *s, const char *name, void *data, size_t len, bool is_number)
{
	struct state_writer *w = container_of(s, struct state_writer, state);
	int r;

	assert(len <= UINT32_MAX);
	r = put_named(w, is_number ? REC_NUMBER : REC_BYTES, name, (uint32_t)len);
	return r < 0 ? r : put(w, data, len);
}

static int writer_enter(struct state *s, const char *name, unsigned version)
{
	struct state_writer *w = container_of(s, struct state_writer, state);

	assert(w->depth < STATE_MAX_DEPTH);
	w->versions[w->depth++] = s->version;
	s->version = version;
	return put_named(w, REC_ENTER, name, version);
}

static int writer_leave(struct state *s)
{
	struct state_writer *w = container_of(s, struct state_writer, state);
	uint8_t kind = REC_LEAVE;

	assert(w->depth > 0);
	s->version = w->versions[--w->depth];
	return put(w, &kind, 1);
}

static const struct state_ops writer_ops = {writer_field, writer_enter, writer_leave};

void state_writer_init(struct state_writer *w, struct error *err)
{
	uint8_t head[HEADER_LEN] = {0};

	*w = (struct state_writer){.state = {.ops = &writer_ops, .err = err}};
	memcpy(head, magic, sizeof(magic));
	le32_store(head + 8, STATE_STREAM_VERSION);
	w->state.failed = put(w, head, sizeof(head)); /* the length is filled in at the end */
}

int state_writer_finish(struct state_writer *w, uint8_t **buf, size_t *len)
{
	uint8_t kind = REC_END;

	assert(w->state.failed || !w->depth);
	if (!w->state.failed)
		w->state.failed = put(w, &kind, 1);
	if (!w->state.failed) {
		le64_store(w->buf + 16, w->len + 4);
		w->state.failed = put_u32(w, state_crc32c(w->buf, w->len));
	}
	if (w->state.failed) {
		free(w->buf);
		w->buf = NULL;
		return w->state.failed;
	}
	*buf = w->buf;
	*len = w->len;
	w->buf = NULL;
	return 0;
}

/* ---- loading ---- */

static int bad(struct state_reader *r, const char *what, const char *name)
{
	return err_set(r->state.err, EINVAL, "saved state of '%s': field '%s' %s",
		       r->path[0] ? r->path : "/", name, what);
}

/* The record at pos must be of this kind and name; steps past them and reads the u32. */
static int take_named(struct state_reader *r, uint8_t kind, const char *name, uint32_t *arg)
{
	size_t len = strlen(name);
	const uint8_t *p = r->buf + r->pos;

	if (r->end - r->pos < 2 + len + 4)
		return bad(r, "is missing", name);
	if (p[0] != kind || p[1] != len || memcmp(p + 2, name, len))
		return bad(r, "was expected, something else is there", name);
	*arg = le32_load(p + 2 + len);
	r->pos += 2 + len + 4;
	return 0;
}

static int reader_field(struct state *s, const char *name, void *data, size_t len, bool is_number)
{
	struct state_reader *r = container_of(s, struct state_reader, state);
	uint32_t got = 0;
	int ret;

	ret = take_named(r, is_number ? REC_NUMBER : REC_BYTES, name, &got);
	if (ret < 0)
		return ret;
	if (got != len)
		return bad(r, "has another size", name);
	if (len > r->end - r->pos)
		return bad(r, "is cut short", name);
	memcpy(data, r->buf + r->pos, len);
	r->pos += len;
	return 0;
}

static void path_push(struct state_reader *r, const char *name)
{
	size_t n = strlen(r->path);

	snprintf(r->path + n, sizeof(r->path) - n, "%s%s", n ? "/" : "", name);
}

static void path_pop(struct state_reader *r)
{
	char *slash = strrchr(r->path, '/');

	*(slash ? slash : r->path) = '\0';
}

static int reader_enter(struct state *s, const char *name, unsigned version)
{
	struct state_reader *r = container_of(s, struct state_reader, state);
	uint32_t found = 0;
	int ret;

	assert(r->depth < STATE_MAX_DEPTH);
	ret = take_named(r, REC_ENTER, name, &found);
	if (ret < 0)
		return ret;
	if (!found || found > version)
		return err_set(s->err, ENOTSUP,
			       "saved state of '%s': version %u, this build reads up to %u", name,
			       found, version);
	r->versions[r->depth++] = s->version;
	s->version = found;
	path_push(r, name);
	return 0;
}

static int reader_leave(struct state *s)
{
	struct state_reader *r = container_of(s, struct state_reader, state);

	assert(r->depth > 0);
	if (r->pos == r->end || r->buf[r->pos] != REC_LEAVE)
		return err_set(s->err, EINVAL, "saved state of '%s': more fields than are known",
			       r->path);
	r->pos++;
	s->version = r->versions[--r->depth];
	path_pop(r);
	return 0;
}

static const struct state_ops reader_ops = {reader_field, reader_enter, reader_leave};

static int check_frame(const uint8_t *b, size_t len, struct error *err)
{
	if (len < HEADER_LEN + END_LEN || memcmp(b, magic, sizeof(magic)))
		return err_set(err, EINVAL, "not a saved state");
	if (le32_load(b + 8) != STATE_STREAM_VERSION || le32_load(b + 12))
		return err_set(err, ENOTSUP, "saved state: format %u, this build reads %u",
			       le32_load(b + 8), STATE_STREAM_VERSION);
	if (le64_load(b + 16) != len || b[len - END_LEN] != REC_END)
		return err_set(err, EINVAL, "saved state: cut short or joined with something");
	if (le32_load(b + len - 4) != state_crc32c(b, len - 4))
		return err_set(err, EINVAL, "saved state: damaged, the checksum differs");
	return 0;
}

int state_reader_init(struct state_reader *r, const void *buf, size_t len, struct error *err)
{
	*r = (struct state_reader){
		.state = {.ops = &reader_ops, .loading = true, .err = err},
		.buf = buf,
	};
	r->state.failed = check_frame(buf, len, err);
	if (!r->state.failed) {
		r->pos = HEADER_LEN;
		r->end = len - END_LEN;
	}
	return r->state.failed;
}

int state_reader_finish(struct state_reader *r)
{
	if (!r->state.failed && (r->depth || r->pos != r->end))
		r->state.failed =
			err_set(r->state.err, EINVAL, "saved state: more parts than are known");
	return r->state.failed;
}

/* ---- text ---- */

static void indent(struct state_dump *d)
{
	fprintf(d->out, "%*s", 2 * (int)d->depth, "");
}

static int dump_field(struct state *s, const char *name, void *data, size_t len, bool is_number)
{
	struct state_dump *d = container_of(s, struct state_dump, state);
	const uint8_t *b = data;

	indent(d);
	fprintf(d->out, is_number ? "%s = 0x" : "%s =", name);
	if (is_number)
		while (len--)
			fprintf(d->out, "%02x", b[len]);
	else
		for (size_t i = 0; i < len; i++)
			fprintf(d->out, i && i % 32 == 0 ? "\n %02x" : " %02x", b[i]);
	fputc('\n', d->out);
	return ferror(d->out) ? -EIO : 0;
}

static int dump_enter(struct state *s, const char *name, unsigned version)
{
	struct state_dump *d = container_of(s, struct state_dump, state);

	indent(d);
	fprintf(d->out, "[%s %u]\n", name, version);
	assert(d->depth < STATE_MAX_DEPTH);
	d->versions[d->depth++] = s->version;
	s->version = version;
	return ferror(d->out) ? -EIO : 0;
}

static int dump_leave(struct state *s)
{
	struct state_dump *d = container_of(s, struct state_dump, state);

	assert(d->depth > 0);
	s->version = d->versions[--d->depth];
	return 0;
}

static const struct state_ops dump_ops = {dump_field, dump_enter, dump_leave};

void state_dump_init(struct state_dump *d, FILE *out)
{
	*d = (struct state_dump){.state = {.ops = &dump_ops}, .out = out};
}
