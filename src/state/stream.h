/* state/stream.h - the binary form of saved state, and a text form for people.
 *
 *   stream   = header record* end
 *   header   = "TRVSTATE", u32 format version (1), u32 zero, u64 length of the whole stream
 *   record   = 0x01 u8 name length, name, u32 version      section begins
 *            | 0x02                                        section ends
 *            | 0x03 u8 name length, name, u32 length, bytes    number, little-endian
 *            | 0x04 u8 name length, name, u32 length, bytes    bytes
 *   end      = 0xff, u32 CRC-32C of everything before it
 *
 * All numbers are little-endian.  Records come in the order they were written and must be asked for
 * in that order: a name, a kind or a size that differs fails the load with a sentence that says
 * where.  A reader checks length and checksum before it looks at the first record, and every
 * length again when it gets there; it never allocates what a stream asks for.
 *
 * Guest RAM does not go through here; whoever saves a VM stores it beside the stream.
 * One thread at a time per object. */
#pragma once

#include "state/state.h"

#include <stdio.h>

#define STATE_STREAM_VERSION 1
enum { STATE_MAX_DEPTH = 16 };

/* Saving: init, pass &w.state to the xxx_state functions, finish. */
struct state_writer {
	struct state state;
	uint8_t *buf;
	size_t len, cap;
	unsigned depth;
	unsigned versions[STATE_MAX_DEPTH]; /* of the enclosing sections */
};

void state_writer_init(struct state_writer *w, struct error *err);
/* 0 and the bytes (caller frees), or the first error.  Ends the writer either way. */
int state_writer_finish(struct state_writer *w, uint8_t **buf, size_t *len);

/* Loading: buf is borrowed until finish. */
struct state_reader {
	struct state state;
	const uint8_t *buf;
	size_t pos, end; /* records are [pos, end) */
	unsigned depth;
	unsigned versions[STATE_MAX_DEPTH];
	char path[256]; /* "machine/uart0", for messages */
};

/* Checks header, length and checksum; a failure is also what finish will return. */
int state_reader_init(struct state_reader *r, const void *buf, size_t len, struct error *err);
/* 0 when everything was read and nothing is left over, else the first error. */
int state_reader_finish(struct state_reader *r);

/* Saving as indented text, "name = 0x12": for debugging and for comparing in tests. */
struct state_dump {
	struct state state;
	FILE *out;
	unsigned depth;
	unsigned versions[STATE_MAX_DEPTH];
};

void state_dump_init(struct state_dump *d, FILE *out);

uint32_t state_crc32c(const void *p, size_t len);
