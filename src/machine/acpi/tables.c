/* machine/acpi/tables.c - the ACPI tables.
 *
 * Laid out in this order, each aligned to 64 bytes:
 *   RSDP  FACS  DSDT  FADT  MADT  MCFG  HPET  RSDT  XSDT
 * Offsets below are those of the tables' definitions in the specifications. */
#include "machine/acpi/tables.h"

#include "base/bytes.h"
#include "base/error.h"
#include "machine/acpi/dsdt.h"
#include "machine/memmap.h"
#include "machine/timer/hpet.h"

#include <assert.h>
#include <errno.h>

enum { HEADER_SIZE = 36, RSDP_SIZE = 36, FACS_SIZE = 64, FADT_SIZE = 276, MAX_TABLES = 8 };
enum { GAS_MEMORY = 0, GAS_IO = 1 };

struct acpi {
	uint8_t *buf;
	size_t cap, len;
	uint32_t gpa;
	bool overflow;
	uint32_t table[MAX_TABLES]; /* what the XSDT lists */
	unsigned nr_tables;
};

static uint8_t acpi_checksum(const uint8_t *p, size_t n)
{
	uint8_t sum = 0;

	while (n--)
		sum += *p++;
	return -sum;
}

/* Room for n zeroed bytes at the next 64-byte boundary. */
static uint8_t *acpi_alloc(struct acpi *t, size_t n)
{
	size_t at = ALIGN_UP(t->len, 64);

	if (!range_inside(at, n, t->cap)) {
		t->overflow = true;
		return NULL;
	}
	t->len = at + n;
	memset(t->buf + at, 0, n);
	return t->buf + at;
}

static uint32_t acpi_gpa_of(const struct acpi *t, const uint8_t *p)
{
	return t->gpa + (p - t->buf);
}

static void acpi_header(uint8_t *p, const char *signature, uint32_t length, uint8_t revision)
{
	memcpy(p, signature, 4);
	le32_store(p + 4, length);
	p[8] = revision;
	memcpy(p + 10, "TRIVSR", 6);
	memcpy(p + 16, "TRIVISOR", 8);
	le32_store(p + 24, 1);
	memcpy(p + 28, "TRIV", 4);
	le32_store(p + 32, 1);
	p[9] = 0;
	p[9] = acpi_checksum(p, length);
}

static void acpi_list(struct acpi *t, const uint8_t *p)
{
	assert(t->nr_tables < MAX_TABLES);
	t->table[t->nr_tables++] = acpi_gpa_of(t, p);
}

/* Generic address structure: space, width in bits, bit offset, access size, address. */
static void acpi_gas(uint8_t *p, uint8_t space, uint8_t bits, uint8_t access, uint64_t address)
{
	p[0] = space;
	p[1] = bits;
	p[2] = 0;
	p[3] = access;
	le64_store(p + 4, address);
}

static uint32_t acpi_facs(struct acpi *t)
{
	uint8_t *p = acpi_alloc(t, FACS_SIZE);

	if (!p)
		return 0;
	memcpy(p, "FACS", 4);
	le32_store(p + 4, FACS_SIZE);
	p[32] = 2; /* version */
	return acpi_gpa_of(t, p);
}

static uint32_t acpi_dsdt(struct acpi *t, const struct acpi_config *cfg)
{
	uint8_t *p = acpi_alloc(t, HEADER_SIZE);
	struct aml a;

	if (!p)
		return 0;
	a = (struct aml){.buf = p + HEADER_SIZE, .cap = t->cap - t->len};
	dsdt_write(&a, cfg);
	t->overflow |= a.overflow;
	t->len += a.len;
	acpi_header(p, "DSDT", HEADER_SIZE + a.len, 2);
	return acpi_gpa_of(t, p);
}

/* Each register block: 32-bit port address, its length, its generic address. */
static void fadt_block(uint8_t *p, unsigned port_at, unsigned length_at, unsigned gas_at,
		       uint16_t port, uint8_t length, uint8_t access)
{
	le32_store(p + port_at, port);
	p[length_at] = length;
	acpi_gas(p + gas_at, GAS_IO, length * 8, access, port);
}

static void acpi_fadt(struct acpi *t, const struct acpi_config *cfg, uint32_t facs, uint32_t dsdt)
{
	enum { LEGACY_DEVICES = 1, HAS_8042 = 2, NO_VGA = 4, NO_RTC = 32 };
	enum {
		WBINVD = 1 << 0,
		PROC_C1 = 1 << 2,
		NO_SLEEP_BUTTON = 1 << 5,
		NO_RTC_WAKE = 1 << 6,
		TIMER_32 = 1 << 8,
		RESET_REGISTER = 1 << 10
	};
	uint8_t *p = acpi_alloc(t, FADT_SIZE);

	if (!p)
		return;
	le32_store(p + 36, facs);
	le32_store(p + 40, dsdt);
	p[45] = 4; /* profile: enterprise server */
	le16_store(p + 46, IRQ_SCI);
	fadt_block(p, 56, 88, 148, PORT_PM + PM_OFF_EVT, 4, 2);
	fadt_block(p, 64, 89, 172, PORT_PM + PM_OFF_CNT, 2, 2);
	fadt_block(p, 76, 91, 208, PORT_PM + PM_OFF_TMR, 4, 3);
	fadt_block(p, 80, 92, 220, PORT_PM + PM_OFF_GPE0, 4, 1);
	le16_store(p + 96, 0xFFFF);         /* no C2 */
	le16_store(p + 98, 0xFFFF);         /* no C3 */
	p[108] = cfg->no_timers ? 0 : 0x32; /* century byte of the RTC */
	le16_store(p + 109, LEGACY_DEVICES | (cfg->ps2 ? HAS_8042 : 0) | NO_VGA |
				    (cfg->no_timers ? NO_RTC : 0));
	le32_store(p + 112,
		   WBINVD | PROC_C1 | NO_SLEEP_BUTTON | NO_RTC_WAKE | TIMER_32 | RESET_REGISTER);
	acpi_gas(p + 116, GAS_IO, 8, 1, PORT_RESET);
	p[128] = 6;                /* reset the CPU and the system */
	p[131] = 4;                /* FADT 6.4 */
	le64_store(p + 132, facs); /* the same twice: systems that know one field only exist */
	le64_store(p + 140, dsdt);
	memcpy(p + 268, "TRIVISOR", 8); /* hypervisor vendor identity */
	acpi_header(p, "FACP", FADT_SIZE, 6);
	acpi_list(t, p);
}

/* ---- MADT ---- */

static size_t madt_cpu(uint8_t *p, unsigned id)
{
	if (id < 255) { /* processor local APIC */
		p[0] = 0;
		p[1] = 8;
		p[2] = id;
		p[3] = id;
		le32_store(p + 4, 1); /* enabled */
		return 8;
	}
	p[0] = 9; /* processor local x2APIC */
	p[1] = 16;
	le32_store(p + 4, id);
	le32_store(p + 8, 1);
	le32_store(p + 12, id);
	return 16;
}

static size_t madt_ioapic(uint8_t *p)
{
	p[0] = 1;
	p[1] = 12;
	le32_store(p + 4, MEMMAP_IOAPIC);
	return 12;
}

static size_t madt_override(uint8_t *p, uint8_t irq, uint32_t gsi, uint16_t flags)
{
	p[0] = 2;
	p[1] = 10;
	p[3] = irq;
	le32_store(p + 4, gsi);
	le16_store(p + 8, flags);
	return 10;
}

static size_t madt_nmi(uint8_t *p, bool x2apic)
{
	p[0] = x2apic ? 10 : 4;
	p[1] = x2apic ? 12 : 6;
	if (x2apic) {
		le32_store(p + 4, 0xFFFFFFFF); /* all processors */
		p[8] = 1;
		return 12;
	}
	p[2] = 0xFF;
	p[5] = 1; /* LINT1 */
	return 6;
}

static void acpi_madt(struct acpi *t, const struct acpi_config *cfg)
{
	enum { PCAT_COMPAT = 1, LEVEL_HIGH = 0xD };
	size_t n = HEADER_SIZE + 8;
	uint8_t *p = acpi_alloc(t, n + cfg->nr_cpus * 16 + 12 + 2 * 10 + 6 + 12);

	if (!p)
		return;
	le32_store(p + 36, MEMMAP_LAPIC);
	le32_store(p + 40, PCAT_COMPAT);
	for (unsigned i = 0; i < cfg->nr_cpus; i++)
		n += madt_cpu(p + n, i);
	n += madt_ioapic(p + n);
	n += madt_override(p + n, IRQ_PIT, GSI_PIT, 0);
	n += madt_override(p + n, IRQ_SCI, IRQ_SCI, LEVEL_HIGH);
	n += madt_nmi(p + n, false);
	if (cfg->nr_cpus > 255)
		n += madt_nmi(p + n, true);
	acpi_header(p, "APIC", n, 5);
	acpi_list(t, p);
}

static void acpi_mcfg(struct acpi *t)
{
	uint8_t *p = acpi_alloc(t, HEADER_SIZE + 8 + 16);

	if (!p)
		return;
	le64_store(p + 44, MEMMAP_ECAM);
	p[55] = MEMMAP_ECAM_SIZE / MiB - 1; /* last bus; segment and first bus are 0 */
	acpi_header(p, "MCFG", HEADER_SIZE + 8 + 16, 1);
	acpi_list(t, p);
}

static void acpi_hpet(struct acpi *t)
{
	uint8_t *p = acpi_alloc(t, 56);

	if (!p)
		return;
	le32_store(p + 36, HPET_ID);
	acpi_gas(p + 40, GAS_MEMORY, 64, 0, MEMMAP_HPET);
	le16_store(p + 53, 0x80); /* shortest period that keeps periodic mode whole, in ticks */
	acpi_header(p, "HPET", 56, 1);
	acpi_list(t, p);
}

/* ---- the roots ---- */

static uint32_t acpi_root(struct acpi *t, const char *signature, unsigned entry_size)
{
	uint32_t length = HEADER_SIZE + t->nr_tables * entry_size;
	uint8_t *p = acpi_alloc(t, length);

	if (!p)
		return 0;
	for (unsigned i = 0; i < t->nr_tables; i++)
		le32_store(p + HEADER_SIZE + i * entry_size, t->table[i]);
	acpi_header(p, signature, length, 1);
	return acpi_gpa_of(t, p);
}

static void acpi_rsdp(uint8_t *p, uint32_t rsdt, uint32_t xsdt)
{
	memcpy(p, "RSD PTR ", 8);
	memcpy(p + 9, "TRIVSR", 6);
	p[15] = 2;
	le32_store(p + 16, rsdt);
	le32_store(p + 20, RSDP_SIZE);
	le64_store(p + 24, xsdt);
	p[8] = acpi_checksum(p, 20); /* the ACPI 1.0 part */
	p[32] = acpi_checksum(p, RSDP_SIZE);
}

int acpi_build(uint8_t *buf, size_t cap, uint32_t gpa, const struct acpi_config *cfg,
	       struct error *err)
{
	struct acpi t = {.buf = buf, .cap = cap, .gpa = gpa};
	uint8_t *rsdp = acpi_alloc(&t, RSDP_SIZE);
	uint32_t facs = acpi_facs(&t), dsdt = acpi_dsdt(&t, cfg), rsdt, xsdt;

	acpi_fadt(&t, cfg, facs, dsdt);
	acpi_madt(&t, cfg);
	acpi_mcfg(&t);
	if (!cfg->no_timers)
		acpi_hpet(&t);
	rsdt = acpi_root(&t, "RSDT", 4);
	xsdt = acpi_root(&t, "XSDT", 8);
	if (t.overflow)
		return err_set(err, ENOSPC, "the ACPI tables for %u CPUs do not fit in %zu bytes",
			       cfg->nr_cpus, cap);
	acpi_rsdp(rsdp, rsdt, xsdt);
	return t.len;
}
