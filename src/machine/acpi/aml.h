/* machine/acpi/aml.h - writing ACPI Machine Language, the little of it that a DSDT needs.
 *
 * A struct aml is a cursor over a caller's buffer.  Running out of room sets .overflow and further
 * output is dropped; the caller looks once, at the end.  Things with a length are opened and
 * closed: `p = aml_device(a, "PWRB"); ...; aml_end(a, p);`.
 * Pure functions over the caller's memory.  Spec: ACPI 6.4 "AML Specification". */
#pragma once

#include "base/types.h"

struct aml {
	uint8_t *buf;
	size_t cap, len;
	bool overflow;
};

/* Where an open thing's length is to be filled in. */
typedef size_t aml_mark;

void aml_byte(struct aml *a, uint8_t v);
void aml_bytes(struct aml *a, const void *p, size_t n);
void aml_name_string(struct aml *a, const char *path); /* "_HID", "\\_SB.PCI0"; segments of 4 */

/* Data */
void aml_int(struct aml *a, uint64_t v);
void aml_string(struct aml *a, const char *s);
void aml_eisa_id(struct aml *a, const char *id); /* "PNP0A08" */
void aml_buffer(struct aml *a, const void *p, size_t n);
aml_mark aml_package(struct aml *a, uint8_t nr_elements);

/* Name (path, value) for the common values; aml_name alone must be followed by a data object. */
void aml_name(struct aml *a, const char *path);
void aml_name_int(struct aml *a, const char *path, uint64_t v);
void aml_name_string_value(struct aml *a, const char *path, const char *s);
void aml_name_eisa_id(struct aml *a, const char *path, const char *id);

aml_mark aml_scope(struct aml *a, const char *path);
aml_mark aml_device(struct aml *a, const char *name);
aml_mark aml_method(struct aml *a, const char *name, unsigned args, bool serialized);
void aml_end(struct aml *a, aml_mark m);

/* Statements and expressions, prefix form: operands follow. */
enum aml_op {
	AML_STORE = 0x70,  /* source target */
	AML_AND = 0x7B,    /* a b target */
	AML_OR = 0x7D,     /* a b target */
	AML_LNOT = 0x92,   /* a */
	AML_LEQUAL = 0x93, /* a b */
	AML_RETURN = 0xA4, /* value */
	AML_LOCAL0 = 0x60,
	AML_ARG0 = 0x68,
};
aml_mark aml_if(struct aml *a); /* predicate, then statements */
aml_mark aml_else(struct aml *a);
void aml_create_dword_field(struct aml *a, unsigned arg, uint8_t offset, const char *name);

/* A resource template: Name (path, ResourceTemplate () {...}). */
struct aml_resources {
	aml_mark length;
	size_t size_at, start;
};
struct aml_resources aml_resources(struct aml *a, const char *path);
void aml_resources_end(struct aml *a, struct aml_resources r);
void aml_res_io(struct aml *a, uint16_t port, uint8_t count);
void aml_res_irq(struct aml *a, unsigned irq); /* edge, active high, exclusive */
void aml_res_memory32(struct aml *a, uint32_t base, uint32_t size, bool writable);
/* Windows a bridge passes on.  size 0 writes nothing. */
void aml_res_bus_window(struct aml *a, uint16_t first, uint16_t last);
void aml_res_io_window(struct aml *a, uint16_t first, uint16_t last);
void aml_res_memory32_window(struct aml *a, uint32_t base, uint32_t size);
void aml_res_memory64_window(struct aml *a, uint64_t base, uint64_t size);
