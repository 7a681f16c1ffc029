/* Fuzz target: loading saved state.  The frame (length and checksum) is made right, because an
 * attacker can, so that the records are reached; the first byte says whether.
 *
 * Input: a byte, then the stream.  Bit 0: leave the frame alone.  Bit 1: x86_state instead of a
 * structure with everything a section may hold.  Bit 2: the version this build knows. */
#include "base/bytes.h"
#include "base/error.h"
#include "engine/x86_state.h"
#include "state/stream.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LEN = 64 * 1024, HEADER = 24, END = 5 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct part {
	uint8_t u8, bytes[9], late;
	uint16_t u16;
	uint32_t u32;
	uint64_t u64;
	bool flag;
};

static void part_state(struct state *s, struct part *p, unsigned version)
{
	state_enter(s, "part", version);
	state_u8(s, "u8", &p->u8);
	state_u16(s, "u16", &p->u16);
	state_enter(s, "inner", 1);
	state_u32(s, "u32", &p->u32);
	state_check(s, p->u32 <= 1000, "u32 is at most 1000");
	state_enter(s, "deeper", 3);
	state_u64(s, "u64", &p->u64);
	state_leave(s);
	state_bool(s, "flag", &p->flag);
	state_leave(s);
	state_bytes(s, "bytes", p->bytes, sizeof(p->bytes));
	if (state_since(s, 2))
		state_u8(s, "late", &p->late);
	state_leave(s);
}

static void make_frame(uint8_t *stream, size_t len)
{
	memcpy(stream, "TRVSTATE", 8);
	le32_store(stream + 8, STATE_STREAM_VERSION);
	le32_store(stream + 12, 0);
	le64_store(stream + 16, len);
	stream[len - END] = 0xff;
	le32_store(stream + len - 4, state_crc32c(stream, len - 4));
}

/* What loads has passed its checks, and can be saved. */
static void save_again(struct part *p, struct x86_state *x)
{
	struct state_writer w;
	uint8_t *buf;
	size_t len;

	if (p)
		assert(p->u32 <= 1000 && *(const uint8_t *)&p->flag <= 1);
	state_writer_init(&w, NULL);
	if (p)
		part_state(&w.state, p, 2);
	else
		x86_state_visit(&w.state, x);
	if (state_writer_finish(&w, &buf, &len) < 0)
		abort();
	free(buf);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_Alignas(64) static struct x86_state x;
	struct error err = {""};
	struct state_reader r;
	struct part p = {0};
	uint8_t *stream, how;

	if (size < 1 + HEADER + END || size > MAX_LEN)
		return 0;
	how = *data++;
	size--;
	stream = malloc(size); /* exact: a sanitizer sees reads behind the end */
	if (!stream)
		return 0;
	memcpy(stream, data, size);
	if (!(how & 1))
		make_frame(stream, size);
	state_reader_init(&r, stream, size, &err);
	if (how & 2)
		x86_state_visit(&r.state, &x);
	else
		part_state(&r.state, &p, how & 4 ? 2 : 1);
	if (state_reader_finish(&r) == 0)
		save_again(how & 2 ? NULL : &p, &x);
	else
		assert(err.msg[0]);
	free(stream);
	return 0;
}
