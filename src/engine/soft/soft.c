/* engine/soft/soft.c - the soft engine as engine.h wants it: creation, state in and out, events
 * from other threads, the time-stamp counter.
 *
 * Guest TSC = host TSC + cpu->tsc_offset; the host's rate is measured once per process. */
#include "base/clock.h"
#include "base/error.h"
#include "engine/engine.h"
#include "engine/soft/block.h"
#include "engine/soft/cpu.h"
#include "engine/soft/debug.h"
#include "engine/soft/run.h"
#include "engine/soft/sample.h"
#include "engine/soft/seg.h"
#include "engine/soft/state_check.h"
#include "engine/soft/vec.h"
#include "engine/soft/xlat.h"

#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The names engine.h uses for what cpu.h calls soft_vm and cpu. */
struct engine_vm {
	struct soft_vm vm;
	struct xlat_config xlat;
	char *options;
};
struct engine_cpu {
	struct cpu cpu;
};

/* --- the host's time-stamp counter -------------------------------------------------------------
 */

static uint64_t host_tsc(void)
{
	return __builtin_ia32_rdtsc();
}

/* CPUID 15h gives the rate as crystal * ebx / eax when it knows the crystal; a hypervisor gives it
 * in leaf 4000_0010h (a convention of VMware's that KVM follows). */
static uint64_t tsc_khz_from_cpuid(void)
{
	uint32_t a, b, c, d;

	if (__get_cpuid_count(0x15, 0, &a, &b, &c, &d) && a && b && c)
		return (uint64_t)c * b / a / 1000;
	if (__get_cpuid(1, &a, &b, &c, &d) && (c & BIT(31))) {
		__cpuid(0x40000000, a, b, c, d);
		if (a >= 0x40000010 && a < 0x40010000) {
			__cpuid(0x40000010, a, b, c, d);
			return a;
		}
	}
	return 0;
}

/* A pair of clocks read together: the TSC between two readings of which it is the middle. */
static void clocks_read(uint64_t *tsc, uint64_t *ns)
{
	uint64_t best = UINT64_MAX;

	for (unsigned i = 0; i < 5; i++) {
		uint64_t before = host_tsc(), now = clock_mono_ns(), after = host_tsc();

		if (after - before < best) {
			best = after - before;
			*tsc = before + best / 2;
			*ns = now;
		}
	}
}

/* A millisecond is enough for a few millionths, and is waited for at each start. */
static uint64_t tsc_khz_measured(void)
{
	const struct timespec pause = {.tv_nsec = 1000 * 1000};
	uint64_t tsc0 = 0, tsc1 = 0, ns0 = 0, ns1 = 0;

	clocks_read(&tsc0, &ns0);
	do {
		nanosleep(&pause, NULL);
		clocks_read(&tsc1, &ns1);
	} while (ns1 <= ns0);
	return (uint64_t)((unsigned __int128)(tsc1 - tsc0) * 1000000 / (ns1 - ns0));
}

static uint64_t host_tsc_khz;
static pthread_once_t host_tsc_once = PTHREAD_ONCE_INIT;

static void host_tsc_init(void)
{
	host_tsc_khz = tsc_khz_from_cpuid();
	if (!host_tsc_khz)
		host_tsc_khz = tsc_khz_measured();
}

/* --- engine and VM -----------------------------------------------------------------------------
 */

static int soft_probe(struct error *err)
{
	return 0;
}

static unsigned soft_caps(void)
{
	return 0;
}

static int copy_ram_map(struct soft_vm *vm, struct error *err)
{
	const struct mem_range *r;

	vm->nr_ram = mem_ram_ranges(vm->mem, &r);
	if (vm->nr_ram > ARRAY_SIZE(vm->ram))
		return err_set(err, E2BIG, "the soft engine takes at most %zu ranges of memory",
			       ARRAY_SIZE(vm->ram));
	for (unsigned i = 0; i < vm->nr_ram; i++)
		vm->ram[i] = r[i];
	return 0;
}

/* One of the options that follow --engine soft, separated by commas. */
static int parse_option(struct xlat_config *c, char *opt, struct error *err)
{
	char *value = strchr(opt, '=');

	if (!strcmp(opt, "tier=interp") || !strcmp(opt, "tier=translate"))
		c->on = value[1] == 't';
	else if (!strcmp(opt, "flags=exact"))
		c->exact = true;
	else if (!strcmp(opt, "lockstep"))
		c->lockstep = true;
	else if (!strcmp(opt, "count"))
		c->count = true;
	else if (!strncmp(opt, "hot=", 4) && opt[4] >= '0' && opt[4] <= '9' && !opt[5])
		c->hot = (uint8_t)(opt[4] - '0');
	else if (!strncmp(opt, "dump=", 5) && value[1])
		c->dump = value + 1;
	else if (!strncmp(opt, "perf=", 5) && value[1])
		c->perf = value + 1;
	else
		return err_set(err, EINVAL,
			       "engine soft: unknown option '%s', known: tier=interp, "
			       "tier=translate, flags=exact, lockstep, count, hot=0..9, dump=FILE, "
			       "perf=FILE",
			       opt);
	return 0;
}

/* cfg's file names stay in *text, which the VM keeps. */
static int parse_options(struct xlat_config *c, char **text, const char *options, struct error *err)
{
	char *opt, *rest;
	int r = 0;

	*c = (struct xlat_config){.on = true, .hot = 8};
	*text = strdup(options ? options : "");
	if (!*text)
		return err_errno(err, ENOMEM, "soft engine");
	rest = *text;
	while (!r && (opt = strsep(&rest, ",")))
		if (*opt)
			r = parse_option(c, opt, err);
	if (r < 0)
		free(*text);
	return r;
}

/* Somebody but a vCPU has written code, a device say: the translators look after their blocks. */
static void code_written(void *opaque, struct mem_page *page)
{
	xlat_tell_written(opaque, NULL, page);
}

static int soft_vm_create(struct engine_vm **out, const struct engine_vm_config *cfg,
			  struct error *err)
{
	struct engine_vm *evm;
	struct xlat_config xlat;
	char *text;
	int r = parse_options(&xlat, &text, cfg->options, err);

	if (r < 0)
		return r;
	evm = calloc(1, sizeof(*evm));
	if (!evm) {
		free(text);
		return err_errno(err, ENOMEM, "soft engine");
	}
	evm->xlat = xlat;
	evm->options = text;
	if (xlat.on)
		mem_watch_code(cfg->mem, code_written, &evm->vm);
	evm->vm.mem = cfg->mem;
	evm->vm.model = cfg->model;
	evm->vm.nr_cpus = cfg->nr_cpus;
	evm->vm.sample = cfg->sample;
	evm->vm.cpus = calloc(cfg->nr_cpus, sizeof(struct cpu *));
	r = evm->vm.cpus ? copy_ram_map(&evm->vm, err) : err_errno(err, ENOMEM, "soft engine");
	if (r < 0) {
		free(evm->vm.cpus);
		free(evm->options);
		free(evm);
		return r;
	}
	pthread_once(&host_tsc_once, host_tsc_init);
	evm->vm.tsc_khz = host_tsc_khz;
	*out = evm;
	return 0;
}

static void soft_vm_destroy(struct engine_vm *evm)
{
	if (!evm)
		return;
	mem_watch_code(evm->vm.mem, NULL, NULL);
	free(evm->vm.cpus);
	free(evm->options);
	free(evm);
}

static uint64_t soft_tsc_khz(struct engine_vm *evm)
{
	return evm->vm.tsc_khz;
}

/* Guests read the host's counter; 250 ppm is what NTP's discipline of a clock copes with. */
static int soft_tsc_khz_set(struct engine_vm *evm, uint64_t khz, struct error *err)
{
	uint64_t have = evm->vm.tsc_khz, off = khz > have ? khz - have : have - khz;

	if (off > have / 4000)
		return err_set(
			err, ENOTSUP,
			"the guest's time-stamp counter runs at %llu kHz, this host's at %llu; "
			"the soft engine cannot change the rate",
			(unsigned long long)khz, (unsigned long long)have);
	return 0;
}

/* --- dirty pages -------------------------------------------------------------------------------
 */

/* Entries for writing from before the tracking let stores pass unseen. */
static int soft_dirty_start(struct engine_vm *evm, struct error *err)
{
	mem_dirty_track(evm->vm.mem, true);
	block_drop_writes(&evm->vm);
	return 0;
}

/* Marks first, then the entries that a mark made possible: see stores_unseen() in mmu.c. */
static int soft_dirty_fetch(struct engine_vm *evm, gpa_t gpa, uint64_t size, uint64_t *bitmap,
			    struct error *err)
{
	int r = mem_dirty_fetch(evm->vm.mem, gpa, size, bitmap);

	if (r < 0)
		return err_errno(err, -r, "dirty pages at %#llx", (unsigned long long)gpa);
	block_drop_writes(&evm->vm);
	return 0;
}

static void soft_dirty_stop(struct engine_vm *evm)
{
	mem_dirty_track(evm->vm.mem, false);
}

/* --- CPU ---------------------------------------------------------------------------------------
 */

static void soft_cpu_destroy(struct engine_cpu *ecpu)
{
	struct cpu *cpu = &ecpu->cpu;

	if (!ecpu)
		return;
	cpu->vm->cpus[cpu->index] = NULL;
	sample_detach(cpu);
	block_cache_destroy(cpu);
	if (cpu->vec)
		vec_destroy(cpu);
	mmu_destroy(cpu);
	xlat_destroy(cpu);
	xlat_region_destroy(ecpu);
}

static int cpu_parts_create(struct cpu *cpu, const struct xlat_config *xlat, struct error *err)
{
	int r = mmu_create(cpu, err);

	if (!r)
		r = vec_create(cpu, err);
	if (!r)
		r = block_cache_create(cpu, err);
	if (!r && xlat->on)
		r = xlat_create(cpu, xlat, err);
	return r;
}

static int soft_cpu_set(struct engine_cpu *ecpu, const struct x86_state *s, struct error *err);

static int cpu_reset(struct engine_cpu *ecpu, struct error *err)
{
	struct x86_state *s = aligned_alloc(64, sizeof(*s));
	int r;

	if (!s)
		return err_errno(err, ENOMEM, "vCPU %u", ecpu->cpu.index);
	x86_state_reset(s);
	r = soft_cpu_set(ecpu, s, err);
	free(s);
	return r;
}

static int soft_cpu_create(struct engine_cpu **out, struct engine_vm *evm, unsigned index,
			   const struct engine_cpu_ops *ops, void *opaque, struct error *err)
{
	struct engine_cpu *ecpu;
	void *room;
	int r = xlat_region_create(&room, sizeof(*ecpu), evm->vm.nr_cpus, err);

	if (r < 0)
		return err_wrap(err, r, "vCPU %u", index);
	ecpu = room;
	ecpu->cpu.vm = &evm->vm;
	ecpu->cpu.index = index;
	ecpu->cpu.ops = ops;
	ecpu->cpu.opaque = opaque;
	ecpu->cpu.delivering = CPU_IDLE;
	r = cpu_parts_create(&ecpu->cpu, &evm->xlat, err);
	if (!r)
		r = cpu_reset(ecpu, err);
	if (r < 0) {
		soft_cpu_destroy(ecpu);
		return r;
	}
	evm->vm.cpus[index] = &ecpu->cpu;
	*out = ecpu;
	return 0;
}

static enum engine_exit soft_cpu_run(struct engine_cpu *ecpu, struct engine_exit_info *info)
{
	enum engine_exit why = run_cpu(&ecpu->cpu);

	*info = ecpu->cpu.exit_info;
	return why;
}

/* --- events, any thread ------------------------------------------------------------------------
 */

static void soft_cpu_kick(struct engine_cpu *ecpu)
{
	atomic_fetch_or(&ecpu->cpu.events, CPU_EV_KICK);
}

static void soft_cpu_intr(struct engine_cpu *ecpu, bool level)
{
	if (level)
		atomic_fetch_or(&ecpu->cpu.events, CPU_EV_INTR);
	else
		atomic_fetch_and(&ecpu->cpu.events, ~(uint32_t)CPU_EV_INTR);
}

static void soft_cpu_nmi(struct engine_cpu *ecpu)
{
	if (atomic_fetch_or(&ecpu->cpu.events, CPU_EV_NMI) & CPU_EV_NMI)
		atomic_fetch_or(&ecpu->cpu.events, CPU_EV_NMI2);
}

/* --- state out ---------------------------------------------------------------------------------
 */

static struct x86_segment seg_out(const struct cpu_seg *c)
{
	return (struct x86_segment){
		.base = c->base, .limit = c->limit, .attr = c->attr, .selector = c->selector};
}

static void get_segments(const struct cpu *cpu, struct x86_state *s)
{
	for (unsigned i = 0; i < X86_NR_SEG; i++)
		s->seg[i] = seg_out(&cpu->seg[i]);
	/* CPL travels as SS.DPL, also while SS is null. */
	s->seg[X86_SS].attr = (s->seg[X86_SS].attr & ~(3u << 5)) | (uint32_t)cpu->cpl << 5;
	s->ldtr = seg_out(&cpu->ldtr);
	s->tr = seg_out(&cpu->tr);
	s->gdtr = cpu->gdtr;
	s->idtr = cpu->idtr;
}

/* Fields of the same name in both structures. */
#define SAME_FIELDS(X)                                                                             \
	X(cr0)                                                                                     \
	X(cr2)                                                                                     \
	X(cr3)                                                                                     \
	X(cr4)                                                                                     \
	X(efer)                                                                                    \
	X(xcr0)                                                                                    \
	X(dr6)                                                                                     \
	X(dr7)                                                                                     \
	X(star)                                                                                    \
	X(lstar)                                                                                   \
	X(cstar)                                                                                   \
	X(sfmask)                                                                                  \
	X(kernel_gs_base)                                                                          \
	X(sysenter_cs)                                                                             \
	X(sysenter_esp)                                                                            \
	X(sysenter_eip)                                                                            \
	X(pat)                                                                                     \
	X(tsc_aux)                                                                                 \
	X(misc_enable)                                                                             \
	X(spec_ctrl)                                                                               \
	X(xss)                                                                                     \
	X(mtrr_def_type)                                                                           \
	X(tsc_adjust)                                                                              \
	X(pkru)                                                                                    \
	X(int_shadow)                                                                              \
	X(nmi_masked)

static void get_events(const struct cpu *cpu, struct x86_state *s)
{
	uint32_t ev = atomic_load(&cpu->events);

	s->mp_state = cpu->wait_sipi ? X86_MP_WAIT_SIPI
		      : cpu->halted  ? X86_MP_HALTED
				     : X86_MP_RUNNABLE;
	s->nmi_pending = (ev & (CPU_EV_NMI | CPU_EV_NMI2)) != 0;
	s->event_pending = (ev & CPU_EV_INJECT) != 0;
	s->event_type = cpu->inject.type;
	s->event_vector = cpu->inject.vector;
	s->event_has_error = cpu->inject.has_error;
	s->event_error = cpu->inject.error;
	/* A #DB trap that is due travels as an event; one held back by a load of SS is lost. */
	if (cpu->dbg_pending && !s->event_pending && !(cpu->int_shadow & CPU_SHADOW_SS)) {
		s->dr6 = (s->dr6 & ~DR6_BMASK) | cpu->dbg_pending;
		s->event_pending = 1;
		s->event_type = X86_EVENT_EXCEPTION;
		s->event_vector = X86_EXC_DB;
		s->event_has_error = 0;
	}
}

static void soft_cpu_get(struct engine_cpu *ecpu, struct x86_state *s)
{
	struct cpu *cpu = &ecpu->cpu;

	memcpy(s->gpr, cpu->gpr, sizeof(s->gpr));
	s->rip = cpu->rip;
	s->rflags = cpu_rflags(cpu);
	get_segments(cpu, s);
	memcpy(s->dr, cpu->dr, sizeof(s->dr));
	memcpy(s->mtrr_fixed, cpu->mtrr_fixed, sizeof(s->mtrr_fixed));
	memcpy(s->mtrr_var, cpu->mtrr_var, sizeof(s->mtrr_var));
#define X(field) s->field = cpu->field;
	SAME_FIELDS(X)
#undef X
	s->tsc = host_tsc() + cpu->tsc_offset;
	get_events(cpu, s);
	vec_get(cpu, s);
}

/* --- state in ----------------------------------------------------------------------------------
 */

static void seg_in(struct cpu_seg *c, const struct x86_segment *s)
{
	*c = (struct cpu_seg){
		.base = s->base, .limit = s->limit, .attr = s->attr, .selector = s->selector};
}

static void set_segments(struct cpu *cpu, const struct x86_state *s)
{
	for (unsigned i = 0; i < X86_NR_SEG; i++)
		seg_in(&cpu->seg[i], &s->seg[i]);
	cpu->cpl = (uint8_t)X86_SEG_DPL(s->seg[X86_SS].attr);
	seg_in(&cpu->ldtr, &s->ldtr);
	seg_in(&cpu->tr, &s->tr);
	cpu->gdtr = s->gdtr;
	cpu->idtr = s->idtr;
}

static void set_events(struct cpu *cpu, const struct x86_state *s)
{
	cpu->wait_sipi = s->mp_state == X86_MP_WAIT_SIPI;
	cpu->halted = s->mp_state != X86_MP_RUNNABLE;
	cpu->inject = (struct cpu_inject){.type = s->event_type,
					  .vector = s->event_vector,
					  .has_error = s->event_has_error,
					  .error = s->event_error};
	atomic_fetch_and(&cpu->events, ~(uint32_t)(CPU_EV_NMI | CPU_EV_NMI2 | CPU_EV_INJECT));
	atomic_fetch_or(&cpu->events, (s->nmi_pending ? CPU_EV_NMI : 0u) |
					      (s->event_pending ? CPU_EV_INJECT : 0u));
}

/* A state that was taken a moment ago and comes back, changed, is no reason to turn the counter
 * back.  All vCPUs of a VM are set one after another, from states that were taken one after
 * another, and their counters must still agree: offsets less than a second apart are taken for the
 * same. */
static void set_tsc(struct cpu *cpu, uint64_t tsc)
{
	struct soft_vm *vm = cpu->vm;
	uint64_t offset = tsc - host_tsc(), second = vm->tsc_khz * 1000;

	if (cpu->tsc_offset - offset < second)
		return;
	if (vm->tsc_offset_known && offset - vm->tsc_offset + second < 2 * second)
		offset = vm->tsc_offset;
	cpu->tsc_offset = vm->tsc_offset = offset;
	vm->tsc_offset_known = true;
}

/* What follows from the registers: modes, translations, breakpoints. */
static void state_settle(struct cpu *cpu)
{
	cpu_mode_update(cpu);
	tlb_flush_all(cpu);
	tlb_switch(cpu, false);
	if (cpu->paging == PAGING_PAE)
		mmu_load_pdptes(cpu, cpu->cr3);
	cpu->dbg_pending = 0;
	debug_update(cpu);
	cpu_mode_update(cpu);
	seg_update_flat_all(cpu);
	vec_update(cpu);
}

static int soft_cpu_set(struct engine_cpu *ecpu, const struct x86_state *s, struct error *err)
{
	struct cpu *cpu = &ecpu->cpu;
	int r = cpu_state_check(cpu->vm->model, s, err);

	if (r == 0)
		r = vec_set(cpu, s, err);
	if (r < 0)
		return err_wrap(err, r, "vCPU %u", cpu->index);
	memcpy(cpu->gpr, s->gpr, sizeof(s->gpr));
	cpu->rip = s->rip;
	cpu->in = NULL;
	cpu_set_rflags(cpu, s->rflags);
	set_segments(cpu, s);
	memcpy(cpu->dr, s->dr, sizeof(s->dr));
	memcpy(cpu->mtrr_fixed, s->mtrr_fixed, sizeof(s->mtrr_fixed));
	memcpy(cpu->mtrr_var, s->mtrr_var, sizeof(s->mtrr_var));
#define X(field) cpu->field = s->field;
	SAME_FIELDS(X)
#undef X
	cpu->dr6 = (s->dr6 & DR6_WRITABLE) | DR6_FIXED;
	cpu->dr7 = (s->dr7 & DR7_WRITABLE) | DR7_FIXED;
	set_tsc(cpu, s->tsc);
	set_events(cpu, s);
	state_settle(cpu);
	return 0;
}

/* --- the rest ----------------------------------------------------------------------------------
 */

static void soft_cpu_debug(struct engine_cpu *ecpu, const struct engine_debug *d)
{
	struct cpu *cpu = &ecpu->cpu;

	cpu->debug = *d;
	if (d->single_step)
		atomic_fetch_or(&cpu->events, CPU_EV_STEP);
	else
		atomic_fetch_and(&cpu->events, ~(uint32_t)CPU_EV_STEP);
}

static void soft_cpu_stats(struct engine_cpu *ecpu, struct engine_stats *st)
{
	*st = ecpu->cpu.stats;
	st->counted = xlat_counts(&ecpu->cpu);
}

static uint64_t soft_cpu_tsc(struct engine_cpu *ecpu)
{
	return host_tsc() + ecpu->cpu.tsc_offset;
}

/* At most 2^63 ticks: some centuries, no overflow below 2^64 ns for rates above 1 GHz. */
static uint64_t tsc_ticks_to_ns(uint64_t ticks, uint64_t khz)
{
	return (uint64_t)((unsigned __int128)ticks * 1000000 / khz);
}

static uint64_t soft_cpu_tsc_to_ns(struct engine_cpu *ecpu, uint64_t tsc)
{
	uint64_t khz = ecpu->cpu.vm->tsc_khz, now_tsc = 0, now_ns = 0, delta;

	clocks_read(&now_tsc, &now_ns);
	delta = tsc - (now_tsc + ecpu->cpu.tsc_offset);
	if ((int64_t)delta < 0) {
		delta = tsc_ticks_to_ns(-delta, khz);
		return delta > now_ns ? 0 : now_ns - delta;
	}
	delta = tsc_ticks_to_ns(delta, khz);
	return now_ns + delta < now_ns ? UINT64_MAX : now_ns + delta;
}

const struct engine engine_soft = {
	.name = "soft",
	.probe = soft_probe,
	.caps = soft_caps,
	.vm_create = soft_vm_create,
	.vm_destroy = soft_vm_destroy,
	.cpu_create = soft_cpu_create,
	.cpu_destroy = soft_cpu_destroy,
	.cpu_run = soft_cpu_run,
	.cpu_kick = soft_cpu_kick,
	.cpu_intr = soft_cpu_intr,
	.cpu_nmi = soft_cpu_nmi,
	.cpu_get = soft_cpu_get,
	.cpu_set = soft_cpu_set,
	.cpu_debug = soft_cpu_debug,
	.cpu_stats = soft_cpu_stats,
	.cpu_tsc = soft_cpu_tsc,
	.tsc_khz = soft_tsc_khz,
	.cpu_tsc_to_ns = soft_cpu_tsc_to_ns,
	.tsc_khz_set = soft_tsc_khz_set,
	.dirty_start = soft_dirty_start,
	.dirty_fetch = soft_dirty_fetch,
	.dirty_stop = soft_dirty_stop,
};
