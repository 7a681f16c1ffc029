/* machine/smbios.c - the SMBIOS 3.0 entry point and structures.
 *
 * A structure is type, length, handle, fixed fields, then its strings, each ended by a zero, and
 * one more zero.  Fields name strings by number from 1. */
#include "machine/smbios.h"

#include "base/bytes.h"
#include "base/error.h"

#include <errno.h>

enum { ENTRY_SIZE = 24, MAX_FIXED = 128 };

/* Handles, by what refers to them. */
enum {
	HANDLE_BIOS,
	HANDLE_SYSTEM = 0x100,
	HANDLE_CHASSIS = 0x300,
	HANDLE_CPU = 0x400,
	HANDLE_ARRAY = 0x1000,
	HANDLE_DIMM = 0x1100,
	HANDLE_RANGE = 0x1300,
	HANDLE_BOOT = 0x2000,
	HANDLE_END = 0x7F00
};

struct smbios {
	uint8_t *buf;
	size_t cap, len, start; /* start of the structure being written */
	unsigned nr_strings;
	bool overflow;
};

static void smb_put(struct smbios *s, const void *p, size_t n)
{
	if (!range_inside(s->len, n, s->cap)) {
		s->overflow = true;
		return;
	}
	memcpy(s->buf + s->len, p, n);
	s->len += n;
}

/* Begin a structure of `length` fixed bytes, zeroed; fields are set through what it returns. */
static uint8_t *smb_begin(struct smbios *s, uint8_t type, uint8_t length, uint16_t handle)
{
	static const uint8_t zero[MAX_FIXED];

	s->start = s->len;
	s->nr_strings = 0;
	smb_put(s, zero, length);
	if (s->overflow)
		s->start = 0; /* scribble where it does no harm: the result is thrown away */
	s->buf[s->start] = type;
	s->buf[s->start + 1] = length;
	le16_store(s->buf + s->start + 2, handle);
	return s->buf + s->start;
}

static uint8_t smb_string(struct smbios *s, const char *text)
{
	smb_put(s, text, strlen(text) + 1);
	return ++s->nr_strings;
}

static void smb_end(struct smbios *s)
{
	smb_put(s, "\0\0", s->nr_strings ? 1 : 2);
}

static void smb_bios(struct smbios *s, const struct smbios_config *cfg)
{
	uint8_t *p = smb_begin(s, 0, 0x18, HANDLE_BIOS);

	p[4] = smb_string(s, "Trivisor");
	p[5] = smb_string(s, cfg->version);
	p[8] = smb_string(s, "01/01/2024");
	le16_store(p + 6, 0xE000);
	le64_store(p + 0x0A, BIT(3)); /* characteristics: not supported */
	p[0x12] = 1;                  /* ACPI */
	p[0x13] = BIT(4);             /* this is a virtual machine */
	p[0x14] = p[0x15] = p[0x16] = p[0x17] = 0xFF;
	smb_end(s);
}

static void smb_system(struct smbios *s, const struct smbios_config *cfg)
{
	uint8_t *p = smb_begin(s, 1, 0x1B, HANDLE_SYSTEM);

	p[4] = smb_string(s, "Trivisor");
	p[5] = smb_string(s, "Trivisor virtual machine");
	p[6] = smb_string(s, cfg->version);
	memcpy(p + 8, cfg->uuid, 16);
	p[0x18] = 6; /* woken by the power switch */
	smb_end(s);
}

static void smb_chassis(struct smbios *s)
{
	uint8_t *p = smb_begin(s, 3, 0x16, HANDLE_CHASSIS);

	p[4] = smb_string(s, "Trivisor");
	p[5] = 1;                                  /* other */
	p[9] = p[0x0A] = p[0x0B] = p[0x0C] = 0x03; /* states: safe; security: none */
	smb_end(s);
}

static void smb_processor(struct smbios *s, const struct smbios_config *cfg)
{
	uint8_t *p = smb_begin(s, 4, 0x30, HANDLE_CPU);
	uint8_t cores = MIN(cfg->nr_cpus, 0xFFu);

	p[4] = smb_string(s, "CPU 0");
	p[7] = smb_string(s, "Trivisor");
	p[5] = 3;                     /* central processor */
	p[6] = 1;                     /* family: other */
	p[0x18] = 0x41;               /* populated, enabled */
	p[0x19] = 1;                  /* upgrade: other */
	le16_store(p + 0x1A, 0xFFFF); /* no cache information */
	le16_store(p + 0x1C, 0xFFFF);
	le16_store(p + 0x1E, 0xFFFF);
	p[0x23] = p[0x24] = p[0x25] = cores;
	le16_store(p + 0x26, BIT(2) | BIT(3)); /* 64-bit, multi-core */
	le16_store(p + 0x28, 1);
	le16_store(p + 0x2A, cfg->nr_cpus);
	le16_store(p + 0x2C, cfg->nr_cpus);
	le16_store(p + 0x2E, cfg->nr_cpus);
	smb_end(s);
}

static void smb_memory_array(struct smbios *s, uint64_t total)
{
	uint8_t *p = smb_begin(s, 16, 0x17, HANDLE_ARRAY);

	p[4] = 1;                      /* location: other */
	p[5] = 3;                      /* system memory */
	p[6] = 6;                      /* multi-bit ECC */
	le32_store(p + 7, 0x80000000); /* the capacity is in the extended field */
	le16_store(p + 0x0B, 0xFFFE);  /* no error information */
	le16_store(p + 0x0D, 1);
	le64_store(p + 0x0F, total);
	smb_end(s);
}

static void smb_dimm(struct smbios *s, uint64_t total)
{
	uint8_t *p = smb_begin(s, 17, 0x28, HANDLE_DIMM);
	uint64_t mib = total / MiB;

	p[0x10] = smb_string(s, "DIMM 0");
	p[0x17] = smb_string(s, "Trivisor");
	le16_store(p + 4, HANDLE_ARRAY);
	le16_store(p + 6, 0xFFFE);
	le16_store(p + 8, 0xFFFF); /* widths unknown */
	le16_store(p + 0x0A, 0xFFFF);
	le16_store(p + 0x0C, mib < 0x7FFF ? mib : 0x7FFF);
	if (mib >= 0x7FFF)
		le32_store(p + 0x1C, MIN(mib, 0x7FFFFFFFu));
	p[0x0E] = 9; /* form factor: DIMM */
	p[0x12] = 7; /* type: RAM */
	le16_store(p + 0x13, BIT(1));
	smb_end(s);
}

static void smb_range(struct smbios *s, unsigned n, uint64_t base, uint64_t size)
{
	uint8_t *p = smb_begin(s, 19, 0x1F, HANDLE_RANGE + n);

	le32_store(p + 4, 0xFFFFFFFF); /* see the extended addresses */
	le32_store(p + 8, 0xFFFFFFFF);
	le16_store(p + 0x0C, HANDLE_ARRAY);
	p[0x0E] = 1;
	le64_store(p + 0x0F, base);
	le64_store(p + 0x17, base + size - 1);
	smb_end(s);
}

static void smb_boot_status(struct smbios *s)
{
	smb_begin(s, 32, 0x0B, HANDLE_BOOT); /* status 0: no errors */
	smb_end(s);
}

static void smb_structures(struct smbios *s, const struct smbios_config *cfg)
{
	uint64_t total = cfg->below_4g + cfg->above_4g;

	smb_bios(s, cfg);
	smb_system(s, cfg);
	smb_chassis(s);
	smb_processor(s, cfg);
	smb_memory_array(s, total);
	smb_dimm(s, total);
	smb_range(s, 0, 0, cfg->below_4g);
	if (cfg->above_4g)
		smb_range(s, 1, 4 * GiB, cfg->above_4g);
	smb_boot_status(s);
	smb_begin(s, 127, 4, HANDLE_END);
	smb_end(s);
}

static void smb_entry_point(uint8_t *p, uint32_t table_gpa, uint32_t table_size)
{
	uint8_t sum = 0;

	memset(p, 0, ENTRY_SIZE);
	memcpy(p, "_SM3_", 5);
	p[6] = ENTRY_SIZE;
	p[7] = 3; /* SMBIOS 3.0 */
	p[0x0A] = 1;
	le32_store(p + 0x0C, table_size);
	le64_store(p + 0x10, table_gpa);
	for (unsigned i = 0; i < ENTRY_SIZE; i++)
		sum += p[i];
	p[5] = -sum;
}

int smbios_build(uint8_t *buf, size_t cap, uint32_t gpa, const struct smbios_config *cfg,
		 struct error *err)
{
	struct smbios s = {.buf = buf, .cap = cap, .len = 32};

	if (cap < 32 + MAX_FIXED)
		return err_set(err, ENOSPC, "no room for SMBIOS structures");
	smb_structures(&s, cfg);
	if (s.overflow)
		return err_set(err, ENOSPC, "the SMBIOS structures do not fit in %zu bytes", cap);
	smb_entry_point(buf, gpa + 32, s.len - 32);
	return s.len;
}
