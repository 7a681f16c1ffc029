/* machine/acpi/aml.c - writing ACPI Machine Language. */
#include "machine/acpi/aml.h"

#include "base/bytes.h"

#include <assert.h>

// clang-format off
enum {
	OP_ZERO = 0x00, OP_ONE = 0x01, OP_NAME = 0x08, OP_BYTE = 0x0A, OP_WORD = 0x0B, OP_DWORD = 0x0C,
	OP_STRING = 0x0D, OP_QWORD = 0x0E, OP_SCOPE = 0x10, OP_BUFFER = 0x11, OP_PACKAGE = 0x12,
	OP_METHOD = 0x14, OP_DUAL_NAME = 0x2E, OP_MULTI_NAME = 0x2F, OP_EXT = 0x5B,
	OP_EXT_DEVICE = 0x82, OP_CREATE_DWORD_FIELD = 0x8A, OP_IF = 0xA0, OP_ELSE = 0xA1,
};
// clang-format on

void aml_bytes(struct aml *a, const void *p, size_t n)
{
	if (!range_inside(a->len, n, a->cap)) {
		a->overflow = true;
		return;
	}
	memcpy(a->buf + a->len, p, n);
	a->len += n;
}

void aml_byte(struct aml *a, uint8_t v)
{
	aml_bytes(a, &v, 1);
}

static void aml_word(struct aml *a, uint16_t v)
{
	uint8_t b[2];

	le16_store(b, v);
	aml_bytes(a, b, sizeof(b));
}

static void aml_dword(struct aml *a, uint32_t v)
{
	uint8_t b[4];

	le32_store(b, v);
	aml_bytes(a, b, sizeof(b));
}

static void aml_qword(struct aml *a, uint64_t v)
{
	uint8_t b[8];

	le64_store(b, v);
	aml_bytes(a, b, sizeof(b));
}

/* PkgLength counts itself.  Always the three-byte form, so that it can be filled in afterwards:
 *   byte 0: 10 00 length[3:0]   byte 1: length[11:4]   byte 2: length[19:12] */
static aml_mark aml_begin(struct aml *a)
{
	static const uint8_t room[3];
	aml_mark m = a->len;

	aml_bytes(a, room, sizeof(room));
	return m;
}

void aml_end(struct aml *a, aml_mark m)
{
	size_t n = a->len - m;

	if (a->overflow)
		return;
	assert(n < BIT(20));
	a->buf[m] = 2 << 6 | (n & 15);
	a->buf[m + 1] = n >> 4;
	a->buf[m + 2] = n >> 12;
}

/* One segment, padded with underscores.  Returns what follows it. */
static const char *aml_segment(struct aml *a, const char *s)
{
	for (unsigned i = 0; i < 4; i++)
		aml_byte(a, *s && *s != '.' ? (uint8_t)*s++ : '_');
	return *s == '.' ? s + 1 : s;
}

void aml_name_string(struct aml *a, const char *path)
{
	unsigned nr = 1;

	if (*path == '\\')
		aml_byte(a, *path++);
	for (const char *p = path; *p; p++)
		nr += *p == '.';
	if (nr == 2)
		aml_byte(a, OP_DUAL_NAME);
	if (nr > 2) {
		aml_byte(a, OP_MULTI_NAME);
		aml_byte(a, nr);
	}
	while (*path)
		path = aml_segment(a, path);
}

void aml_int(struct aml *a, uint64_t v)
{
	if (v <= 1) {
		aml_byte(a, v ? OP_ONE : OP_ZERO);
	} else if (v <= UINT8_MAX) {
		aml_byte(a, OP_BYTE);
		aml_byte(a, v);
	} else if (v <= UINT16_MAX) {
		aml_byte(a, OP_WORD);
		aml_word(a, v);
	} else if (v <= UINT32_MAX) {
		aml_byte(a, OP_DWORD);
		aml_dword(a, v);
	} else {
		aml_byte(a, OP_QWORD);
		aml_qword(a, v);
	}
}

void aml_string(struct aml *a, const char *s)
{
	aml_byte(a, OP_STRING);
	aml_bytes(a, s, strlen(s) + 1);
}

static unsigned aml_hex_digit(char c)
{
	return c <= '9' ? c - '0' : c - 'A' + 10;
}

/* Three letters of five bits, four hexadecimal digits, most significant byte first. */
void aml_eisa_id(struct aml *a, const char *id)
{
	uint32_t v = (id[0] - '@') << 26 | (id[1] - '@') << 21 | (id[2] - '@') << 16;
	uint8_t b[4];

	assert(strlen(id) == 7);
	for (unsigned i = 0; i < 4; i++)
		v |= aml_hex_digit(id[3 + i]) << (12 - 4 * i);
	be32_store(b, v);
	aml_byte(a, OP_DWORD);
	aml_bytes(a, b, sizeof(b));
}

void aml_buffer(struct aml *a, const void *p, size_t n)
{
	aml_mark m;

	aml_byte(a, OP_BUFFER);
	m = aml_begin(a);
	aml_int(a, n);
	aml_bytes(a, p, n);
	aml_end(a, m);
}

aml_mark aml_package(struct aml *a, uint8_t nr_elements)
{
	aml_mark m;

	aml_byte(a, OP_PACKAGE);
	m = aml_begin(a);
	aml_byte(a, nr_elements);
	return m;
}

void aml_name(struct aml *a, const char *path)
{
	aml_byte(a, OP_NAME);
	aml_name_string(a, path);
}

void aml_name_int(struct aml *a, const char *path, uint64_t v)
{
	aml_name(a, path);
	aml_int(a, v);
}

void aml_name_string_value(struct aml *a, const char *path, const char *s)
{
	aml_name(a, path);
	aml_string(a, s);
}

void aml_name_eisa_id(struct aml *a, const char *path, const char *id)
{
	aml_name(a, path);
	aml_eisa_id(a, id);
}

aml_mark aml_scope(struct aml *a, const char *path)
{
	aml_mark m;

	aml_byte(a, OP_SCOPE);
	m = aml_begin(a);
	aml_name_string(a, path);
	return m;
}

aml_mark aml_device(struct aml *a, const char *name)
{
	aml_mark m;

	aml_byte(a, OP_EXT);
	aml_byte(a, OP_EXT_DEVICE);
	m = aml_begin(a);
	aml_name_string(a, name);
	return m;
}

aml_mark aml_method(struct aml *a, const char *name, unsigned args, bool serialized)
{
	aml_mark m;

	aml_byte(a, OP_METHOD);
	m = aml_begin(a);
	aml_name_string(a, name);
	aml_byte(a, args | serialized << 3);
	return m;
}

aml_mark aml_if(struct aml *a)
{
	aml_byte(a, OP_IF);
	return aml_begin(a);
}

aml_mark aml_else(struct aml *a)
{
	aml_byte(a, OP_ELSE);
	return aml_begin(a);
}

void aml_create_dword_field(struct aml *a, unsigned arg, uint8_t offset, const char *name)
{
	aml_byte(a, OP_CREATE_DWORD_FIELD);
	aml_byte(a, AML_ARG0 + arg);
	aml_int(a, offset);
	aml_name_string(a, name);
}

/* ---- resource templates: ACPI 6.4 "Resource Data Types for ACPI" ---- */

struct aml_resources aml_resources(struct aml *a, const char *path)
{
	struct aml_resources r;

	aml_name(a, path);
	aml_byte(a, OP_BUFFER);
	r.length = aml_begin(a);
	aml_byte(a, OP_WORD);
	r.size_at = a->len;
	aml_word(a, 0);
	r.start = a->len;
	return r;
}

void aml_resources_end(struct aml *a, struct aml_resources r)
{
	aml_byte(a, 0x79); /* end tag */
	aml_byte(a, 0);    /* checksum: 0 = not used */
	if (a->overflow)
		return;
	le16_store(a->buf + r.size_at, a->len - r.start);
	aml_end(a, r.length);
}

void aml_res_io(struct aml *a, uint16_t port, uint8_t count)
{
	aml_byte(a, 0x47); /* I/O port descriptor, 7 bytes */
	aml_byte(a, 1);    /* decodes 16 bits */
	aml_word(a, port);
	aml_word(a, port);
	aml_byte(a, 1);
	aml_byte(a, count);
}

void aml_res_irq(struct aml *a, unsigned irq)
{
	aml_byte(a, 0x22); /* IRQ descriptor without flags: edge, active high, exclusive */
	aml_word(a, 1u << irq);
}

void aml_res_memory32(struct aml *a, uint32_t base, uint32_t size, bool writable)
{
	aml_byte(a, 0x86);
	aml_word(a, 9);
	aml_byte(a, writable);
	aml_dword(a, base);
	aml_dword(a, size);
}

/* Address space descriptors: granularity, first, last, translation, length. */
enum { SPACE_MEMORY, SPACE_IO, SPACE_BUS };
#define SPACE_FIXED 0x0C /* producer, both ends fixed, positive decode */

static void aml_res_word_space(struct aml *a, uint8_t type, uint8_t flags, uint16_t first,
			       uint16_t last)
{
	aml_byte(a, 0x88);
	aml_word(a, 13);
	aml_byte(a, type);
	aml_byte(a, SPACE_FIXED);
	aml_byte(a, flags);
	aml_word(a, 0);
	aml_word(a, first);
	aml_word(a, last);
	aml_word(a, 0);
	aml_word(a, last - first + 1);
}

void aml_res_bus_window(struct aml *a, uint16_t first, uint16_t last)
{
	aml_res_word_space(a, SPACE_BUS, 0, first, last);
}

void aml_res_io_window(struct aml *a, uint16_t first, uint16_t last)
{
	aml_res_word_space(a, SPACE_IO, 3, first, last); /* 3: the entire range */
}

void aml_res_memory32_window(struct aml *a, uint32_t base, uint32_t size)
{
	if (!size)
		return;
	aml_byte(a, 0x87);
	aml_word(a, 23);
	aml_byte(a, SPACE_MEMORY);
	aml_byte(a, SPACE_FIXED);
	aml_byte(a, 1); /* read-write, not cacheable */
	aml_dword(a, 0);
	aml_dword(a, base);
	aml_dword(a, base + size - 1);
	aml_dword(a, 0);
	aml_dword(a, size);
}

void aml_res_memory64_window(struct aml *a, uint64_t base, uint64_t size)
{
	if (!size)
		return;
	aml_byte(a, 0x8A);
	aml_word(a, 43);
	aml_byte(a, SPACE_MEMORY);
	aml_byte(a, SPACE_FIXED);
	aml_byte(a, 1);
	aml_qword(a, 0);
	aml_qword(a, base);
	aml_qword(a, base + size - 1);
	aml_qword(a, 0);
	aml_qword(a, size);
}
