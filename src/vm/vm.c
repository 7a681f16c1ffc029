/* vm/vm.c - one guest from creation to its end: wiring, lifecycle, who waits for whom.
 *
 * The event loop's thread is the only one that parks vCPUs, resets and ends; everybody else posts.
 * A vCPU never waits for the loop while it is in the engine, so parking cannot deadlock. */
#include "vm/vm.h"

#include "base/clock.h"
#include "base/error.h"
#include "console/chardev.h"
#include "machine/machine.h"
#include "mem/mem.h"
#include "vm/save.h"
#include "vm/vm_internal.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

/* --- ending and resetting ----------------------------------------------------------------------
 */

void vm_end(struct vm *vm, enum vm_end how, int code)
{
	pthread_mutex_lock(&vm->end_lock);
	if (!vm->ended) {
		vm->ended = true;
		vm->result.end = how;
		vm->result.code = code;
	}
	pthread_mutex_unlock(&vm->end_lock);
	evloop_stop(vm->loop);
}

void vm_power_button(struct vm *vm)
{
	machine_power_button(vm->machine);
}

void vm_set_observer(struct vm *vm, void (*fn)(void *opaque, const struct vm_event *ev),
		     void *opaque)
{
	vm->observer = fn;
	vm->observer_opaque = opaque;
}

void vm_tell(struct vm *vm, const struct vm_event *ev)
{
	if (vm->observer)
		vm->observer(vm->observer_opaque, ev);
}

struct evloop *vm_loop(struct vm *vm)
{
	return vm->loop;
}

const struct vm_config *vm_config(const struct vm *vm)
{
	return &vm->cfg;
}

/* Ask every vCPU out of the engine, at once and without waiting. */
static void vm_request_park(struct vm *vm)
{
	for (unsigned i = 0; i < vm->nr_cpus; i++)
		vcpu_request(&vm->cpu[i], VCPU_PARK);
}

/* The state every CPU starts from: the kernel's on the first, waiting for start-up on the rest. */
static int vm_load(struct vm *vm, struct error *err)
{
	struct machine_boot_info info;
	struct boot_range map[ARRAY_SIZE(info.e820)];
	struct boot_config boot = {.kernel = vm->cfg.kernel,
				   .initrd = vm->cfg.initrd,
				   .cmdline = vm->cfg.append,
				   .map = map};
	struct x86_state s;
	uint64_t mtrr_def_type;
	int r = machine_boot_info(vm->machine, &info, err);

	if (r < 0)
		return r;
	for (unsigned i = 0; i < info.nr_e820; i++)
		map[i] =
			(struct boot_range){info.e820[i].gpa, info.e820[i].size, info.e820[i].type};
	boot.nr_map = info.nr_e820;
	boot.rsdp = info.rsdp;
	x86_state_reset(&s);
	r = boot_load(&boot, vm->mem, &s, err);
	mtrr_def_type = s.mtrr_def_type;
	for (unsigned i = 0; r == 0 && i < vm->nr_cpus; i++) {
		r = vcpu_set_state(&vm->cpu[i], &s, err);
		x86_state_reset(&s);
		s.mp_state = X86_MP_WAIT_SIPI;
		/* Firmware gives all CPUs the same MTRRs (SDM 3A "MTRR Considerations in MP
		 * Systems"). */
		s.mtrr_def_type = mtrr_def_type;
	}
	return r;
}

bool vm_has_ended(struct vm *vm)
{
	bool ended;

	pthread_mutex_lock(&vm->end_lock);
	ended = vm->ended;
	pthread_mutex_unlock(&vm->end_lock);
	return ended;
}

/* On the loop's thread. */
void vm_do_reset(void *arg)
{
	struct vm *vm = arg;
	struct error err;

	if (vm_has_ended(vm)) /* another CPU switched the guest off: it stays parked */
		return;
	if (vm->cfg.no_reboot || !vm->cfg.kernel) {
		if (!vm->cfg.no_reboot)
			fprintf(stderr, "hv: the guest restarts: a VM resumed without --kernel "
					"ends here\n");
		vm_end(vm, VM_END_RESET, 0);
		return;
	}
	vm_request_park(vm);
	for (unsigned i = 0; i < vm->nr_cpus; i++)
		vcpu_wait_parked(&vm->cpu[i]);
	machine_reset(vm->machine);
	vm_devices_reset(vm);
	atomic_store(&vm->reset_posted, false);
	if (machine_start_chips(vm->machine, &err) < 0 || vm_load(vm, &err) < 0) {
		fprintf(stderr, "hv: reset: %s\n", err.msg);
		vm_end(vm, VM_END_ERROR, 0);
		return;
	}
	vm_tell(vm, &(struct vm_event){.what = VM_EVENT_RESET, .guest = !vm->host_reset});
	vm->host_reset = false;
	for (unsigned i = 0; i < vm->nr_cpus && !vm->paused; i++)
		vcpu_unpark(&vm->cpu[i]);
	memset(vm->paused_tsc, 0, sizeof(vm->paused_tsc)); /* it began anew */
}

void vm_stop_with(struct vm *vm, enum vm_end how, int code)
{
	vm_request_park(vm);
	vm_end(vm, how, code);
}

void vm_request_reset(struct vm *vm)
{
	vm_request_park(vm);
	if (!atomic_exchange(&vm->reset_posted, true))
		evloop_post(vm->loop, vm_do_reset, vm);
}

/* --- what the board asks of us -----------------------------------------------------------------
 */

static void on_intr(void *opaque, unsigned cpu, bool level)
{
	struct vm *vm = opaque;
	struct vcpu *v = &vm->cpu[cpu];

	if (!v->ec)
		return; /* power-on reset of the board, before there are CPUs */
	vm->engine->cpu_intr(v->ec, level);
	if (level)
		vcpu_wake(v);
}

static void on_nmi(void *opaque, unsigned cpu)
{
	struct vm *vm = opaque;

	vm->engine->cpu_nmi(vm->cpu[cpu].ec);
	vcpu_wake(&vm->cpu[cpu]);
}

/* INIT sends the first CPU to the firmware, which begins anew; that is us. */
static void on_init(void *opaque, unsigned cpu)
{
	struct vm *vm = opaque;

	if (cpu == 0)
		vm_request_reset(vm);
	else
		vcpu_request(&vm->cpu[cpu], VCPU_INIT);
}

static void on_sipi(void *opaque, unsigned cpu, uint8_t vector)
{
	struct vm *vm = opaque;

	vcpu_sipi(&vm->cpu[cpu], vector);
}

static void on_power_off(void *opaque)
{
	vm_stop_with(opaque, VM_END_POWEROFF, 0);
}

static void on_reset(void *opaque)
{
	vm_request_reset(opaque);
}

static uint64_t on_cpu_tsc(void *opaque, unsigned cpu)
{
	struct vm *vm = opaque;

	return vm->engine->cpu_tsc(vm->cpu[cpu].ec);
}

static uint64_t on_cpu_tsc_to_ns(void *opaque, unsigned cpu, uint64_t tsc)
{
	struct vm *vm = opaque;

	return vm->engine->cpu_tsc_to_ns(vm->cpu[cpu].ec, tsc);
}

static struct engine_cpu *on_engine_cpu(void *opaque, unsigned cpu)
{
	struct vm *vm = opaque;

	return vm->cpu[cpu].ec;
}

static const struct machine_ops board_ops = {
	.intr = on_intr,
	.nmi = on_nmi,
	.init = on_init,
	.sipi = on_sipi,
	.power_off = on_power_off,
	.reset = on_reset,
	.cpu_tsc = on_cpu_tsc,
	.cpu_tsc_to_ns = on_cpu_tsc_to_ns,
	.engine_cpu = on_engine_cpu,
};

/* --- signals -----------------------------------------------------------------------------------
 */

static void on_signal(void *opaque, unsigned events)
{
	struct vm *vm = opaque;
	struct signalfd_siginfo si;

	if (read(vm->signal_fd, &si, sizeof(si)) == sizeof(si))
		vm_end(vm, VM_END_QUIT, 128 + si.ssi_signo);
}

/* SIGINT, SIGTERM and SIGHUP end the VM in order.  Blocked before any thread starts, so that only
 * the descriptor sees them. */
static void vm_watch_signals(struct vm *vm)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	vm->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (vm->signal_fd >= 0)
		ev_fd_add(vm->loop, &vm->signals, vm->signal_fd, EV_READ, on_signal, vm);
}

static void vm_unwatch_signals(struct vm *vm)
{
	sigset_t set;

	if (vm->signal_fd >= 0) {
		ev_fd_del(&vm->signals);
		close(vm->signal_fd);
	}
	sigemptyset(&set);
	pthread_sigmask(SIG_SETMASK, &set, NULL);
}

/* --- building ----------------------------------------------------------------------------------
 */

static int vm_create_machine(struct vm *vm, struct error *err)
{
	struct machine_config cfg = {
		.nr_cpus = vm->cfg.cpus,
		.memory = vm->cfg.memory,
		.mem = vm->mem,
		.loop = vm->loop,
		.ops = &board_ops,
		.opaque = vm,
		.phys_bits = vm->model.phys_bits,
		.micro = vm->cfg.micro,
	};

	return machine_create(&vm->machine, &cfg, err);
}

/* A page of the huge-page pool that is missing on a node would be a SIGBUS later, so with both they
 * are had now. */
static int vm_hold_memory(struct vm *vm, struct error *err)
{
	struct mem_hold hold = vm->cfg.hold;

	hold.prealloc |= vm->cfg.huge_page && hold.numa != MEM_NUMA_NONE;
	return mem_hold(vm->mem, &hold, err);
}

static int vm_create_cpus(struct vm *vm, struct error *err)
{
	struct engine_vm_config cfg = {
		.mem = vm->mem,
		.nr_cpus = vm->cfg.cpus,
		.model = &vm->model,
		.options = vm->cfg.engine_options,
		.sample = vm->cfg.sample,
	};
	int r = vm->engine->vm_create(&vm->evm, &cfg, err);

	if (r < 0)
		return err_wrap(err, r, "engine %s", vm->engine->name);
	machine_set_tsc_khz(vm->machine, vm->engine->tsc_khz(vm->evm));
	machine_connect(vm->machine, vm->engine, vm->evm);
	for (unsigned i = 0; r == 0 && i < vm->cfg.cpus; i++) {
		vm->nr_cpus = i + 1;
		r = vcpu_create(&vm->cpu[i], vm, i, err);
	}
	if (r == 0)
		r = machine_start_chips(vm->machine, err);
	return r;
}

static int vm_choose_cpu(struct vm *vm, struct error *err)
{
	uint64_t lacks[ARRAY_SIZE(vm->model.features)] = {0};
	int r;

	if (vm->cfg.saved)
		return vm_saved_cpu(vm->cfg.saved, vm->engine, &vm->model, err);
	r = cpu_model_resolve(&vm->model, vm->cfg.cpu, err);
	if (r == 0 && vm->engine->cpu_lacks)
		r = vm->engine->cpu_lacks(&vm->model, lacks, err);
	return r == 0 ? cpu_model_fit(&vm->model, vm->cfg.cpu, lacks, err) : r;
}

static int vm_build(struct vm *vm, struct error *err)
{
	struct machine_legacy legacy;
	int r;

	r = evloop_create(&vm->loop, err);
	if (r < 0)
		return r;
	vm_watch_signals(vm);
	r = mem_create_huge(&vm->mem, vm->cfg.huge_page, err);
	if (r == 0)
		r = vm_choose_cpu(vm, err);
	if (r == 0)
		r = vm_create_machine(vm, err);
	if (r == 0)
		r = vm_hold_memory(vm, err);
	if (r == 0)
		r = vm_devices_create(vm, err);
	if (r < 0)
		return r;
	vm_devices_legacy(vm, &legacy);
	r = machine_finish(vm->machine, &legacy, err);
	if (r == 0)
		r = vm_create_cpus(vm, err);
	if (r == 0)
		r = vm->cfg.saved ? vm_resume_load(vm, err) : vm_load(vm, err);
	return r;
}

int vm_create(struct vm **out, const struct vm_config *cfg, struct error *err)
{
	struct vm *vm = calloc(1, sizeof(*vm));
	int r;

	if (!vm)
		return err_set(err, ENOMEM, "out of memory");
	vm->cfg = *cfg;
	vm->engine = cfg->engine;
	vm->signal_fd = -1;
	pthread_mutex_init(&vm->end_lock, NULL);
	r = vm_build(vm, err);
	if (r < 0) {
		vm_destroy(vm);
		return r;
	}
	*out = vm;
	return 0;
}

void vm_destroy(struct vm *vm)
{
	vm_devices_destroy(vm);
	vm_unwatch_signals(vm);
	for (unsigned i = 0; i < vm->nr_cpus; i++)
		vcpu_destroy(&vm->cpu[i]);
	if (vm->machine)
		machine_connect(vm->machine, NULL, NULL);
	if (vm->evm)
		vm->engine->vm_destroy(vm->evm);
	if (vm->machine)
		machine_destroy(vm->machine);
	if (vm->loop)
		evloop_destroy(vm->loop);
	if (vm->mem)
		mem_destroy(vm->mem);
	pthread_mutex_destroy(&vm->end_lock);
	free(vm);
}

/* --- running -----------------------------------------------------------------------------------
 */

static void on_timeout(void *opaque)
{
	vm_end(opaque, VM_END_TIMEOUT, 0);
}

static void on_quit_key(void *opaque)
{
	vm_end(opaque, VM_END_QUIT, 0);
}

static void vm_sum_stats(struct vm *vm)
{
	struct engine_stats *sum = &vm->result.stats, one;

	for (unsigned i = 0; i < vm->nr_cpus; i++) {
		vm->engine->cpu_stats(vm->cpu[i].ec, &one);
		sum->insns += one.insns;
		sum->blocks_decoded += one.blocks_decoded;
		sum->tlb_fills += one.tlb_fills;
		sum->smc_hits += one.smc_hits;
		sum->exits_mmio += one.exits_mmio;
		sum->exits_pio += one.exits_pio;
		sum->interrupts += one.interrupts;
		sum->exceptions += one.exceptions;
		sum->blocks_translated += one.blocks_translated;
		sum->xblocks_dropped += one.xblocks_dropped;
		sum->links += one.links;
		sum->evictions += one.evictions;
		sum->interp_calls += one.interp_calls;
		sum->entries += one.entries;
		sum->slow_paths += one.slow_paths;
		sum->operands += one.operands;
		sum->counted = one.counted;
		for (unsigned t = 0; t < ENGINE_TIMES; t++)
			sum->samples[t] += one.samples[t];
		sum->compared += one.compared;
	}
}

static int vm_start_cpus(struct vm *vm, struct error *err)
{
	int r = 0;

	for (unsigned i = 0; r == 0 && i < vm->nr_cpus; i++)
		r = vcpu_start(&vm->cpu[i], err);
	return r;
}

static bool vm_end_is_guests(enum vm_end how)
{
	return how == VM_END_POWEROFF || how == VM_END_RESET || how == VM_END_EXIT_PORT ||
	       how == VM_END_DIED;
}

void vm_run(struct vm *vm, struct vm_result *res)
{
	uint64_t start = clock_mono_ns();
	struct error err;

	chr_set_quit(on_quit_key, vm);
	ev_timer_init(&vm->timeout, vm->loop, on_timeout, vm);
	if (vm->cfg.timeout_s)
		ev_timer_arm(&vm->timeout, start + vm->cfg.timeout_s * NSEC_PER_SEC);
	vm_set_going(vm);
	if (vm_start_cpus(vm, &err) < 0) {
		fprintf(stderr, "hv: %s\n", err.msg);
		vm_end(vm, VM_END_ERROR, 0);
	}
	evloop_run(vm->loop);
	vm_save_cancel(vm);
	ev_timer_cancel(&vm->timeout);
	for (unsigned i = 0; i < vm->nr_cpus; i++)
		vcpu_join(&vm->cpu[i]);
	chr_set_quit(NULL, NULL);
	vm_sum_stats(vm);
	vm->result.run_ns = clock_mono_ns() - start;
	vm_tell(vm, &(struct vm_event){.what = VM_EVENT_SHUTDOWN,
				       .guest = vm_end_is_guests(vm->result.end),
				       .end = vm->result.end});
	*res = vm->result;
}
