/* gen.c - see gen.h. */
#include "gen.h"

#include "base/types.h"
#include "engine/cpu_model.h"

#include <string.h>

static uint64_t rng = 1;

void gen_seed(uint64_t seed)
{
	rng = seed ? seed : 1;
}

uint64_t gen_random(void) /* splitmix64 */
{
	uint64_t z = (rng += 0x9e3779b97f4a7c15ull);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

static bool one_in(unsigned n)
{
	return gen_random() % n == 0;
}

/* What cannot be compared with a process on the host, and why. */
static const struct {
	const char *name, *why;
} excluded[] = {
	{"cpuid", "the guest's CPU model answers, not the host"},
	{"rdtsc", "time"},
	{"rdtscp", "time"},
	{"rdpmc", "the host's counters"},
	{"rdpru", "the host's counters"},
	{"rdrand", "random"},
	{"rdseed", "random"},
	{"rdpid", "TSC_AUX is the host kernel's"},
	{"xgetbv", "XCR0 is the host kernel's"},
	{"rdpkru", "CR4.PKE is the host kernel's"},
	{"wrpkru", "CR4.PKE is the host kernel's"},
	{"rdfsbase", "the host's thread pointer"},
	{"rdgsbase", "the host's GS base"},
	{"wrfsbase", "the host's thread pointer"},
	{"wrgsbase", "the host's GS base"},
	{"sgdt", "UMIP: the host kernel emulates"},
	{"sidt", "UMIP: the host kernel emulates"},
	{"sldt", "UMIP: the host kernel emulates"},
	{"smsw", "UMIP: the host kernel emulates"},
	{"str", "UMIP: the host kernel emulates"},
	{"lar", "the host's GDT"},
	{"lsl", "the host's GDT"},
	{"verr", "the host's GDT"},
	{"verw", "the host's GDT"},
	{"callf", "the host's GDT"},
	{"jmpf", "the host's GDT"},
	{"retf", "the host's GDT"},
	{"iret", "the host's GDT"},
	{"lds", "the host's GDT"},
	{"les", "the host's GDT"},
	{"lfs", "the host's GDT"},
	{"lgs", "the host's GDT"},
	{"lss", "the host's GDT"},
	{"int", "system-level: tests/guest"},
	{"int1", "system-level: tests/guest"},
	{"into", "system-level: tests/guest"},
	{"int3", "ends every case"},
	{"syscall", "system call of the host"},
	{"sysenter", "system call of the host"},
	{"popf", "TF would trap into the test"},
	{"vmcall", "the hypervisor under the host"},
	{"vmmcall", "the hypervisor under the host"},
	{"xsave", "layout is checked in tests/unit/soft"},
	{"xsavec", "layout is checked in tests/unit/soft"},
	{"xsaveopt", "layout is checked in tests/unit/soft"},
	{"xrstor", "layout is checked in tests/unit/soft"},
	{"fxsave", "layout is checked in tests/unit/soft"},
	{"fxrstor", "layout is checked in tests/unit/soft"},
	{"fnsave", "instruction pointers: tests/unit/soft"},
	{"fnstenv", "instruction pointers: tests/unit/soft"},
	{"frstor", "instruction pointers: tests/unit/soft"},
	{"fldenv", "instruction pointers: tests/unit/soft"},
	{"monitor", "kernel setting of the host"},
	{"mwait", "kernel setting of the host"},
	{"monitorx", "not offered"},
	{"mwaitx", "not offered"},
	{"clzero", "not offered"},
};

const char *gen_excluded(const struct insn *in)
{
	const char *name;
	unsigned len = insn_name(in, &name);
	const struct insn_row *row = &insn_rows[in->id];

	for (size_t i = 0; i < ARRAY_SIZE(excluded); i++)
		if (strlen(excluded[i].name) == len && !memcmp(excluded[i].name, name, len))
			return excluded[i].why;
	if (len > 2 && !memcmp(name, "xsa", 3))
		return "layout is checked in tests/unit/soft";
	if (len > 3 && !memcmp(name, "xrst", 4))
		return "layout is checked in tests/unit/soft";
	if (len > 2 && (!memcmp(name, "popf", MIN(len, 4u)) || !memcmp(name, "iret", MIN(len, 4u))))
		return "TF, segments";
	for (unsigned i = 0; i < row->nr_ops; i++)
		if (row->op[i].kind == OP_SEG || row->op[i].kind == OP_SEG_REG)
			return "the host's segment registers";
	if (row->attrs & ROW_UD)
		return "never offered";
	if (row->feature >= 0 && !cpu_feature_on_host(row->feature))
		return "not on this host";
	return NULL;
}

static unsigned put_vex(uint8_t *p)
{
	unsigned n = 0;

	if (one_in(3)) {
		p[n++] = 0xc5;
		p[n++] = gen_random();
		return n;
	}
	p[n++] = 0xc4;
	p[n++] = (gen_random() & 0xe0) | (1 + gen_random() % 3);
	p[n++] = gen_random();
	return n;
}

static unsigned put_evex(uint8_t *p)
{
	static const uint8_t maps[] = {1, 2, 3, 1, 2, 3, 5, 6};

	p[0] = 0x62;
	p[1] = (gen_random() & 0xf0) | maps[gen_random() % ARRAY_SIZE(maps)];
	p[2] = gen_random() | 4;
	p[3] = gen_random();
	if (one_in(2))
		p[3] &= ~0x87; /* no mask, no zeroing */
	if (one_in(2))
		p[3] &= ~0x10;
	if (one_in(2))
		p[2] |= 0x78, p[3] |= 8; /* vvvv unused */
	return 4;
}

static unsigned put_legacy(uint8_t *p)
{
	unsigned n = 0;

	if (one_in(4))
		p[n++] = 0x66;
	if (one_in(5))
		p[n++] = 0xf2 + gen_random() % 2;
	if (one_in(20))
		p[n++] = 0x67;
	if (one_in(30))
		p[n++] = 0xf0;
	if (!one_in(3))
		p[n++] = 0x40 + gen_random() % 16;
	switch (gen_random() % 5) {
	case 0:
	case 1:
		break;
	case 2:
		p[n++] = 0x0f;
		break;
	case 3:
		p[n++] = 0x0f;
		p[n++] = 0x38;
		break;
	case 4:
		p[n++] = 0x0f;
		p[n++] = 0x3a;
		break;
	}
	return n;
}

static void random_bytes(uint8_t p[16])
{
	unsigned n;

	switch (gen_random() % 4) {
	case 0:
		n = put_vex(p);
		break;
	case 1:
		n = put_evex(p);
		break;
	default:
		n = put_legacy(p);
	}
	for (; n < 16; n++)
		p[n] = gen_random();
}

void gen_build(struct gen_row *rows, const struct cpu_model *model, unsigned tries)
{
	static unsigned seen[INSN_NR_IDS];
	uint8_t p[16];
	struct insn in;

	while (tries--) {
		struct gen_row *r;
		unsigned at;

		random_bytes(p);
		if (insn_decode(&in, p, 15, INSN_MODE_64, model) != INSN_OK || in.id == 0)
			continue;
		if (gen_excluded(&in))
			continue;
		/* Reservoir sampling: every encoding found has the same chance to stay. */
		r = &rows[in.id];
		at = seen[in.id]++;
		if (at >= GEN_STOCK)
			at = gen_random() % seen[in.id];
		if (at >= GEN_STOCK)
			continue;
		memcpy(in.bytes, p, in.len);
		r->stock[at] = in;
		r->nr = MIN(seen[in.id], (unsigned)GEN_STOCK);
	}
}
