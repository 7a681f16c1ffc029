/* ACPI registers and tables, SMBIOS. */
#include "base/bytes.h"
#include "board.h"
#include "machine/acpi/aml.h"

#include <sys/stat.h>

/* ---- fixed hardware ---- */

TEST(the_board_is_in_acpi_mode_from_the_start)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	CHECK_EQ(1, in(&b, PORT_PM + 4, 2));
	out(&b, PORT_PM + 4, 0, 2);
	CHECK_EQ(1, in(&b, PORT_PM + 4, 2));
	board_stop(&b);
}

TEST(power_button_raises_the_sci_until_its_status_is_cleared)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	apic_enable(&b, 0);
	ioapic_route(&b, IRQ_SCI, 1 << 15 | 0x39, 0);
	machine_power_button(b.machine);
	CHECK(!b.intr[0]); /* not enabled */
	CHECK_EQ(1 << 8, in(&b, PORT_PM, 2));
	out(&b, PORT_PM + 2, 1 << 8, 2);
	CHECK_EQ(0x39, ack(&b, 0));
	out(&b, PORT_PM, 1 << 8, 2);
	apic_eoi(&b, 0);
	CHECK(!b.intr[0]);
	board_stop(&b);
}

TEST(s5_turns_the_power_off_and_other_sleeps_do_nothing)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	out(&b, PORT_PM + 4, 1 << 13 | 3 << 10, 2);
	CHECK_EQ(0, b.power_offs);
	out(&b, PORT_PM + 4, 5 << 10, 2); /* without SLP_EN */
	CHECK_EQ(0, b.power_offs);
	out(&b, PORT_PM + 4, 1 << 13 | 5 << 10, 2);
	CHECK_EQ(1, b.power_offs);
	board_stop(&b);
}

TEST(gpe_bits_are_kept_and_cleared_by_ones)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	out(&b, PORT_PM + 0x22, 0x8001, 2);
	CHECK_EQ(0x8001, in(&b, PORT_PM + 0x22, 2));
	CHECK_EQ(0, in(&b, PORT_PM + 0x20, 2));
	board_stop(&b);
}

TEST(port_cf9_resets)
{
	struct board b;

	board_start(&b, 1, 16 * MiB);
	outb(&b, PORT_RESET, 2);
	CHECK_EQ(0, b.resets);
	outb(&b, PORT_RESET, 6);
	CHECK_EQ(1, b.resets);
	outb(&b, PORT_RESET, 6); /* only a rising bit 2 counts */
	CHECK_EQ(1, b.resets);
	board_stop(&b);
}

/* ---- tables, found as a system finds them ---- */

static void load(struct board *b, gpa_t gpa, void *buf, size_t len)
{
	CHECK_EQ(0, mem_read(b->mem, gpa, buf, len));
}

static uint8_t sum_of(struct board *b, gpa_t gpa, size_t len)
{
	uint8_t *p = malloc(len), sum = 0;

	load(b, gpa, p, len);
	for (size_t i = 0; i < len; i++)
		sum += p[i];
	free(p);
	return sum;
}

static gpa_t boot(struct board *b)
{
	struct machine_boot_info info;
	struct error err;

	CHECK_EQ(0, machine_boot_info(b->machine, &info, &err));
	return info.rsdp;
}

/* The table with this signature, by way of the XSDT; its checksum is right. */
static gpa_t find_table(struct board *b, const char *signature, uint32_t *length)
{
	uint8_t rsdp[36], header[36], entry[8], head[8];
	gpa_t xsdt, table;

	load(b, boot(b), rsdp, sizeof(rsdp));
	xsdt = le64_load(rsdp + 24);
	load(b, xsdt, header, sizeof(header));
	CHECK(!memcmp(header, "XSDT", 4));
	for (uint32_t at = 36; at < le32_load(header + 4); at += 8) {
		load(b, xsdt + at, entry, 8);
		table = le64_load(entry);
		load(b, table, head, 8);
		*length = le32_load(head + 4);
		CHECK_EQ(0, sum_of(b, table, *length));
		if (!memcmp(head, signature, 4))
			return table;
	}
	printf("# no %s\n", signature);
	CHECK(0);
	return 0;
}

TEST(rsdp_and_both_roots_have_good_checksums)
{
	struct board b;
	uint8_t rsdp[36], head[8];
	gpa_t at;

	board_start(&b, 1, 16 * MiB);
	at = boot(&b);
	CHECK(at >= 0xE0000 && at < 0x100000 && at % 16 == 0);
	load(&b, at, rsdp, sizeof(rsdp));
	CHECK(!memcmp(rsdp, "RSD PTR ", 8));
	CHECK_EQ(0, sum_of(&b, at, 20));
	CHECK_EQ(0, sum_of(&b, at, 36));
	load(&b, le32_load(rsdp + 16), head, 8);
	CHECK(!memcmp(head, "RSDT", 4));
	CHECK_EQ(0, sum_of(&b, le32_load(rsdp + 16), le32_load(head + 4)));
	load(&b, le64_load(rsdp + 24), head, 8);
	CHECK_EQ(0, sum_of(&b, le64_load(rsdp + 24), le32_load(head + 4)));
	board_stop(&b);
}

TEST(fadt_names_the_registers_that_work)
{
	struct board b;
	uint8_t fadt[276];
	uint32_t length;

	board_start(&b, 1, 16 * MiB);
	load(&b, find_table(&b, "FACP", &length), fadt, sizeof(fadt));
	CHECK_EQ(276, length);
	CHECK_EQ(6, fadt[8]);
	CHECK_EQ(9, le16_load(fadt + 46));
	CHECK_EQ(0, le32_load(fadt + 48)); /* no SMI command port */
	CHECK_EQ(PORT_PM, le32_load(fadt + 56));
	CHECK_EQ(PORT_PM + 4, le32_load(fadt + 64));
	CHECK_EQ(PORT_PM + 8, le32_load(fadt + 76));
	CHECK_EQ(PORT_RESET, le64_load(fadt + 120));
	outb(&b, le64_load(fadt + 120), fadt[128]);
	CHECK_EQ(1, b.resets);
	/* The FACS is on a 64-byte boundary. */
	CHECK_EQ(0, le32_load(fadt + 36) % 64);
	board_stop(&b);
}

TEST(madt_lists_cpus_ioapic_and_overrides)
{
	struct board b;
	uint8_t madt[256];
	unsigned count[16] = {0};
	uint32_t length;
	gpa_t at;

	board_start(&b, 3, 16 * MiB);
	at = find_table(&b, "APIC", &length);
	CHECK(length <= sizeof(madt));
	load(&b, at, madt, length);
	CHECK_EQ(MEMMAP_LAPIC, le32_load(madt + 36));
	CHECK_EQ(1, le32_load(madt + 40));
	for (uint32_t i = 44; i < length; i += madt[i + 1]) {
		CHECK(madt[i + 1] >= 6 && madt[i] < 16);
		count[madt[i]]++;
	}
	CHECK_EQ(3, count[0]);
	CHECK_EQ(1, count[1]);
	CHECK_EQ(2, count[2]);
	CHECK_EQ(1, count[4]);
	board_stop(&b);
}

TEST(mcfg_names_a_window_that_answers)
{
	struct board b;
	uint8_t mcfg[60];
	uint32_t length;

	board_start(&b, 1, 16 * MiB);
	load(&b, find_table(&b, "MCFG", &length), mcfg, sizeof(mcfg));
	CHECK_EQ(60, length);
	CHECK_EQ(0x8086, mmio_read(&b, 0, le64_load(mcfg + 44), 2));
	CHECK_EQ(255, mcfg[55]);
	board_stop(&b);
}

TEST(hpet_table_agrees_with_the_hpet)
{
	struct board b;
	uint8_t hpet[56];
	uint32_t length;

	board_start(&b, 1, 16 * MiB);
	load(&b, find_table(&b, "HPET", &length), hpet, sizeof(hpet));
	CHECK_EQ(mmio_read(&b, 0, le64_load(hpet + 44), 4), le32_load(hpet + 36));
	board_stop(&b);
}

/* ---- AML through the reference compiler ---- */

static void save_dsdt(struct board *b, const char *path)
{
	uint8_t fadt[276], head[8], *p;
	uint32_t length;
	FILE *f;

	load(b, find_table(b, "FACP", &length), fadt, sizeof(fadt));
	load(b, le32_load(fadt + 40), head, 8);
	CHECK(!memcmp(head, "DSDT", 4));
	length = le32_load(head + 4);
	CHECK_EQ(0, sum_of(b, le32_load(fadt + 40), length));
	p = malloc(length);
	load(b, le32_load(fadt + 40), p, length);
	f = fopen(path, "wb");
	CHECK(f != NULL);
	CHECK_EQ(length, fwrite(p, 1, length, f));
	fclose(f);
	free(p);
}

static bool output_says(const char *command, const char *wanted)
{
	FILE *f = popen(command, "r");
	bool found = false;
	char line[512];

	CHECK(f != NULL);
	while (fgets(line, sizeof(line), f)) {
		found |= strstr(line, wanted) != NULL;
		printf("# %s", line);
	}
	CHECK_EQ(0, pclose(f));
	return found;
}

/* Disassembled and compiled again: the compiler checks what the disassembler lets pass. */
static void check_with_iasl(struct board *b)
{
	char dir[] = "/tmp/trivisor-dsdt-XXXXXX", command[512];

	if (system("iasl -v >/dev/null 2>&1") != 0)
		SKIP("no iasl (Debian package acpica-tools)");
	CHECK(mkdtemp(dir) != NULL);
	snprintf(command, sizeof(command), "%s/dsdt.dat", dir);
	save_dsdt(b, command);
	snprintf(command, sizeof(command), "cd %s && iasl -d dsdt.dat 2>&1", dir);
	CHECK(output_says(command, "ASL Output"));
	snprintf(command, sizeof(command), "cd %s && ! grep -i 'error\\|warning' dsdt.dsl", dir);
	CHECK_EQ(0, system(command));
	snprintf(command, sizeof(command), "cd %s && iasl -p again dsdt.dsl 2>&1", dir);
	CHECK(output_says(command, "0 Errors, 0 Warnings"));
	snprintf(command, sizeof(command), "rm -rf %s", dir);
	CHECK_EQ(0, system(command));
}

TEST(iasl_takes_the_dsdt_without_a_word)
{
	struct board b;

	board_start(&b, 2, 3 * GiB);
	check_with_iasl(&b);
	board_stop(&b);
}

TEST(aml_that_does_not_fit_says_so)
{
	uint8_t buf[8];
	struct aml a = {.buf = buf, .cap = sizeof(buf)};

	aml_name_string_value(&a, "_HID", "ACPI0007");
	CHECK(a.overflow);
	CHECK(a.len <= sizeof(buf));
}

TEST(aml_names_and_numbers_are_encoded_as_short_as_they_go)
{
	uint8_t buf[64];
	struct aml a = {.buf = buf, .cap = sizeof(buf)};

	aml_name_string(&a, "\\_SB.PCI0");
	CHECK_EQ(10, a.len);
	CHECK(!memcmp(buf, "\\\x2E_SB_PCI0", 10));
	a.len = 0;
	aml_int(&a, 0);
	aml_int(&a, 1);
	aml_int(&a, 0x12);
	aml_int(&a, 0x1234);
	CHECK(!memcmp(buf, "\x00\x01\x0A\x12\x0B\x34\x12", 7));
	a.len = 0;
	aml_eisa_id(&a, "PNP0A08");
	CHECK(!memcmp(buf, "\x0C\x41\xD0\x0A\x08", 5));
}

/* ---- SMBIOS ---- */

TEST(smbios_structures_can_be_walked_to_the_end)
{
	struct board b;
	uint8_t entry[24], *p;
	unsigned seen[256] = {0};
	uint32_t size, at = 0;

	board_start(&b, 2, 3 * GiB);
	boot(&b);
	load(&b, MEMMAP_SMBIOS, entry, sizeof(entry));
	CHECK(!memcmp(entry, "_SM3_", 5));
	CHECK_EQ(0, sum_of(&b, MEMMAP_SMBIOS, entry[6]));
	size = le32_load(entry + 0x0C);
	p = malloc(size);
	load(&b, le64_load(entry + 0x10), p, size);
	while (!seen[127]) {
		CHECK(at + 4 <= size);
		seen[p[at]]++;
		at += p[at + 1];
		while (p[at] || p[at + 1]) {
			at++;
			CHECK(at + 1 < size);
		}
		at += 2;
	}
	CHECK_EQ(size, at);
	CHECK_EQ(1, seen[0]);
	CHECK_EQ(1, seen[1]);
	CHECK_EQ(1, seen[3]);
	CHECK_EQ(1, seen[4]);
	CHECK_EQ(1, seen[16]);
	CHECK_EQ(1, seen[17]);
	CHECK_EQ(2, seen[19]);
	CHECK_EQ(1, seen[32]);
	free(p);
	board_stop(&b);
}
