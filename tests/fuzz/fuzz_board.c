/* Fuzz target: the board's chips.  A guest that does anything to local APICs, I/O APIC, 8259 pair,
 * timers, power management and PCI configuration, on a board whose saved state may be a forged one.
 *
 * Input: a byte that says how many numbers of a saved state are replaced, those (which, value);
 * then operations of 8 bytes: what, where (3 bytes), value (4 bytes).  In the end the state is
 * saved, loaded and saved again, and must be the same. */
#include "base/bytes.h"
#include "base/error.h"
#include "bus/bus.h"
#include "machine/machine.h"
#include "machine/memmap.h"
#include "machine/timer/vclock.h"
#include "mem/mem.h"
#include "state/stream.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CPUS = 3, OP = 8, MAX_OPS = 400, NR_LINES = 4, MAX_NUMBERS = 2048, HEADER = 24 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct mem *mem;
static struct machine *board;
static struct irq_line line[NR_LINES];
static uint64_t mono_ns;

/* A saved state of the board at power-on, and where its numbers are. */
static uint8_t *power_on;
static size_t power_on_len;
static struct {
	uint32_t at, len;
} number[MAX_NUMBERS];
static unsigned nr_numbers;

/* --- what the board asks of us ------------------------------------------------------------------
 */

static void on_intr(void *opaque, unsigned cpu, bool level)
{
	assert(cpu < CPUS);
}

static void on_cpu(void *opaque, unsigned cpu)
{
	assert(cpu < CPUS);
}

static void on_sipi(void *opaque, unsigned cpu, uint8_t vector)
{
	assert(cpu < CPUS);
}

static void on_end(void *opaque)
{
}

static uint64_t on_tsc(void *opaque, unsigned cpu)
{
	return mono_ns * 3;
}

static uint64_t on_tsc_to_ns(void *opaque, unsigned cpu, uint64_t tsc)
{
	return tsc / 3;
}

static const struct machine_ops ops = {
	.intr = on_intr,
	.nmi = on_cpu,
	.init = on_cpu,
	.sipi = on_sipi,
	.power_off = on_end,
	.reset = on_end,
	.cpu_tsc = on_tsc,
	.cpu_tsc_to_ns = on_tsc_to_ns,
	.wake = on_cpu,
};

/* --- states -------------------------------------------------------------------------------------
 */

static uint8_t *save(size_t *len)
{
	struct state_writer w;
	uint8_t *buf;

	state_writer_init(&w, NULL);
	machine_state(&w.state, board);
	if (state_writer_finish(&w, &buf, len) < 0)
		abort();
	return buf;
}

static int load(const uint8_t *buf, size_t len, struct error *err)
{
	struct state_reader r;

	state_reader_init(&r, buf, len, err);
	machine_state(&r.state, board);
	return state_reader_finish(&r);
}

/* Records of stream.h: remember where each number and each string of bytes lies. */
static void find_numbers(void)
{
	size_t at = HEADER;

	while (power_on[at] != 0xff) {
		uint8_t kind = power_on[at];

		at += 1;
		if (kind == 2)
			continue;
		at += 1 + power_on[at] + 4;
		if (kind == 1)
			continue;
		number[nr_numbers].at = (uint32_t)at;
		number[nr_numbers].len = le32_load(power_on + at - 4);
		at += number[nr_numbers].len;
		if (++nr_numbers == MAX_NUMBERS)
			return;
	}
}

/* False: the board refused, with a sentence, and is reset. */
static bool load_forged(const uint8_t **data, size_t *size)
{
	unsigned forged = **data % 16;
	struct error err = {""};
	uint8_t *s = malloc(power_on_len);
	int r;

	if (!s)
		abort();
	memcpy(s, power_on, power_on_len);
	for (++*data, --*size; forged && *size >= 11; forged--, *data += 11, *size -= 11) {
		unsigned n = le16_load(*data) % nr_numbers, len = MIN(number[n].len, 8u);
		unsigned at = number[n].at + (*data)[2] % (number[n].len - len + 1);

		memcpy(s + at, *data + 3, len);
	}
	le32_store(s + power_on_len - 4, state_crc32c(s, power_on_len - 4));
	r = load(s, power_on_len, &err);
	free(s);
	assert(r == 0 || err.msg[0]);
	return r == 0;
}

/* --- operations ---------------------------------------------------------------------------------
 */

static const uint16_t ports[] = {
	PORT_PIC0,     PORT_PIT,     PORT_SYSTEM_B,    PORT_RTC,        PORT_PIC1, PORT_ELCR,
	PORT_PM,       PORT_PM + 32, PORT_PCI_ADDRESS, PORT_RESET,      PORT_POST, PORT_PM + 8,
	PORT_PCI_DATA, PORT_PORT92,  PORT_FW_CFG,      PORT_FW_CFG + 4,
};
static const uint32_t msrs[] = {0x1b,  0x6e0, 0x800,      0x808,      0x80b,      0x80f,
				0x830, 0x832, 0x838,      0x83e,      0x83f,      0x828,
				0x11,  0x12,  0x4b564d00, 0x4b564d01, 0x4b564d04, 0x835};

static uint64_t wide_value(uint32_t v, uint8_t how)
{
	switch (how % 4) {
	case 0:
		return v;
	case 1:
		return (uint64_t)v << 32 | 3;
	case 2:
		return (uint64_t)(int64_t)(int32_t)v;
	default:
		return MEMMAP_LAPIC | (v & 0xfff);
	}
}

static void step_chips(void *cpu, const uint8_t *op, unsigned at, uint32_t v)
{
	static const uint8_t sizes[] = {1, 2, 4, 8};
	unsigned size = sizes[op[3] & 3];
	uint16_t port = ports[at % ARRAY_SIZE(ports)] + (op[2] & 7);

	switch (op[0] % 16) {
	case 0 ... 1:
		machine_cpu_ops.mmio_write(cpu, MEMMAP_LAPIC + (at & 0xff0), v, 4);
		break;
	case 2:
		machine_cpu_ops.mmio_read(cpu, MEMMAP_LAPIC + (at & 0xfff), size);
		break;
	case 3:
		machine_cpu_ops.mmio_write(cpu, MEMMAP_IOAPIC, at, 4);
		machine_cpu_ops.mmio_write(cpu, MEMMAP_IOAPIC + 0x10, v, 4);
		break;
	case 4:
		machine_cpu_ops.mmio_read(cpu, MEMMAP_IOAPIC + (at & 0xff), size);
		break;
	case 5 ... 6:
		machine_cpu_ops.pio_write(cpu, port, v, MIN(size, 4u));
		break;
	case 7:
		machine_cpu_ops.pio_read(cpu, port, MIN(size, 4u));
		break;
	case 8:
		machine_cpu_ops.mmio_write(cpu, MEMMAP_HPET + (at & 0x3ff),
					   wide_value(v, op[3] >> 2), size);
		break;
	case 9:
		machine_cpu_ops.mmio_read(cpu, MEMMAP_HPET + (at & 0x3ff), size);
		break;
	case 10:
		machine_cpu_ops.mmio_write(
			cpu, MEMMAP_ECAM + (at & 0xfff) + (op[3] & 4 ? 31 << 15 : 0), v, size);
		break;
	default:
		machine_cpu_ops.mmio_read(cpu, MEMMAP_ECAM + at, size);
	}
}

static void step_cpu(void *cpu, const uint8_t *op, unsigned at, uint32_t v)
{
	uint64_t gpr[X86_NR_GPR] = {[X86_RAX] = op[1] % 16,
				    [X86_RBX] = wide_value(v, op[3]),
				    [X86_RCX] = v,
				    [X86_RDX] = v >> 8,
				    [X86_RSI] = v & 0xfff};
	uint64_t value;

	switch (op[0] / 16 % 8) {
	case 0:
		machine_cpu_ops.msr_write(cpu, msrs[at % ARRAY_SIZE(msrs)], wide_value(v, op[3]));
		break;
	case 1:
		machine_cpu_ops.msr_read(cpu, 0x800 + (at & 0xff), &value);
		machine_cpu_ops.msr_read(cpu, msrs[at % ARRAY_SIZE(msrs)], &value);
		break;
	case 2:
		assert(machine_cpu_ops.intr_ack(cpu) < 256);
		break;
	case 3:
		machine_cpu_ops.cr8_write(cpu, v & 15);
		assert(machine_cpu_ops.cr8_read(cpu) < 16);
		break;
	case 4:
		machine_cpu_ops.hypercall(cpu, NULL, gpr);
		break;
	case 5:
		msi_send(&(struct msi_sink){machine_msi(board).send, machine_msi(board).opaque},
			 op[3] & 1 ? 0xfee00000 + at : v, v);
		break;
	case 6:
		irq_set(&line[at % NR_LINES], v & 1);
		break;
	default:
		mono_ns += v % 2000000;
		vclock_advance(machine_clock(board), v % 2000000);
	}
}

static void step_board(const uint8_t *op, uint32_t v)
{
	switch (op[1] % 8) {
	case 0:
		machine_reset(board);
		break;
	case 1:
		machine_pause(board);
		break;
	case 2:
		machine_resume(board);
		break;
	case 3:
		machine_power_button(board);
		break;
	case 4:
		machine_nmi(board);
		break;
	case 5:
		mem_write(mem, op[2] | op[3] << 8, &v, sizeof(v));
		break;
	default:
		mono_ns += v;
		vclock_advance(machine_clock(board), v % 10000000);
	}
}

static void step(const uint8_t *op)
{
	unsigned at = op[1] | op[2] << 8;
	void *cpu = machine_cpu(board, op[3] >> 4 < CPUS ? op[3] >> 4 : 0);
	uint32_t v = le32_load(op + 4);

	if (op[0] == 0xff)
		step_board(op, v);
	else if (op[0] & 0x80)
		step_cpu(cpu, op, at, v);
	else
		step_chips(cpu, op, at, v);
}

/* --- the whole ----------------------------------------------------------------------------------
 */

static void setup(void)
{
	static const struct machine_legacy legacy = {.com = {true}, .ps2 = true};
	struct machine_config cfg = {.nr_cpus = CPUS,
				     .memory = 2 * MiB,
				     .ops = &ops,
				     .tsc_khz = 3000000,
				     .phys_bits = 40};

	if (mem_create(&mem, NULL) < 0)
		abort();
	cfg.mem = mem;
	if (machine_create(&board, &cfg, NULL) < 0)
		abort();
	for (unsigned i = 0; i < NR_LINES; i++)
		line[i] = machine_isa_irq(board, 3 + i);
	if (machine_finish(board, &legacy, NULL) < 0)
		abort();
	power_on = save(&power_on_len);
	find_numbers();
}

/* All saved states have the same layout.  The record of a number is kind, name length, name,
 * length, value. */
static void say_difference(const uint8_t *a, const uint8_t *b)
{
	for (unsigned i = 0; i < nr_numbers; i++) {
		unsigned at = number[i].at, name = at - 4;

		if (!memcmp(a + at, b + at, number[i].len))
			continue;
		while (a[name - 1] != at - 4 - name)
			name--;
		fprintf(stderr, "number %u, '%.*s', changed from %#llx to %#llx by being loaded\n",
			i, (int)(at - 4 - name), a + name, (unsigned long long)le64_load(a + at),
			(unsigned long long)le64_load(b + at));
	}
}

static void check_round_trip(void)
{
	struct error err = {""};
	size_t len, len2;
	uint8_t *first = save(&len), *second;

	if (load(first, len, &err) < 0) {
		fprintf(stderr, "own state refused: %s\n", err.msg);
		abort();
	}
	second = save(&len2);
	if (len != len2 || memcmp(first, second, len)) {
		say_difference(first, second);
		abort();
	}
	free(first);
	free(second);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (!board)
		setup();
	if (!size)
		return 0;
	machine_reset(board);
	if (load(power_on, power_on_len, NULL) < 0)
		abort();
	machine_resume(board);
	if (!load_forged(&data, &size))
		return 0;
	machine_resume(board);
	for (unsigned i = 0; i < MAX_OPS && size >= OP; i++, data += OP, size -= OP)
		step(data);
	machine_pause(board);
	check_round_trip();
	return 0;
}
