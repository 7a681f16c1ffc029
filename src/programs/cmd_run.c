/* cmd_run.c - hv run: one VM in the foreground, from options to exit status. */
#include "programs/hv.h"
#include "programs/run_control.h"
#include "programs/run_options.h"
#include "programs/run_placement.h"
#include "vm/save.h"

#include <stdio.h>

static unsigned long long percent(uint64_t part, uint64_t all)
{
	return all ? (part * 100 + all / 2) / all : 0;
}

static void print_stats(const struct vm_result *r)
{
	const struct engine_stats *s = &r->stats;
	double seconds = r->run_ns / 1e9;

	if (s->counted)
		fprintf(stderr, "stats: %.1f s, %llu instructions, %.0f million/s\n", seconds,
			(unsigned long long)s->insns, s->insns / seconds / 1e6);
	else
		fprintf(stderr, "stats: %.1f s\n", seconds);
	fprintf(stderr,
		"stats: %llu blocks decoded, %llu dropped by writes; %llu TLB fills; %llu MMIO and "
		"%llu port accesses, %llu interrupts, %llu exceptions\n",
		(unsigned long long)s->blocks_decoded, (unsigned long long)s->smc_hits,
		(unsigned long long)s->tlb_fills, (unsigned long long)s->exits_mmio,
		(unsigned long long)s->exits_pio, (unsigned long long)s->interrupts,
		(unsigned long long)s->exceptions);
}

/* What a translator did; nothing when there was none. */
static void print_translator_stats(const struct engine_stats *s)
{
	if (!s->evictions)
		return;
	fprintf(stderr,
		"stats: %llu blocks translated, %llu dropped, %llu links, %llu times all were "
		"given up; %llu entries, %llu slow paths, %llu instructions interpreted\n",
		(unsigned long long)s->blocks_translated, (unsigned long long)s->xblocks_dropped,
		(unsigned long long)s->links, (unsigned long long)s->evictions - 1,
		(unsigned long long)s->entries, (unsigned long long)s->slow_paths,
		(unsigned long long)(s->interp_calls - s->slow_paths));
	if (s->counted && s->operands >= s->slow_paths)
		fprintf(stderr,
			"stats: %llu memory operands in translated code, %.3f %% TLB hits\n",
			(unsigned long long)s->operands,
			s->operands ? 100 - s->slow_paths * 100.0 / s->operands : 0);
	if (s->compared)
		fprintf(stderr, "stats: %llu instructions compared\n",
			(unsigned long long)s->compared);
}

/* Where the CPUs' threads were seen; nothing from an engine that does not look. */
static void print_time(const struct engine_stats *s)
{
	static const char *const names[ENGINE_TIMES] = {
		[ENGINE_TIME_TRANSLATED] = "in translated code",
		[ENGINE_TIME_SLOW] = "single instructions for it",
		[ENGINE_TIME_INTERPRETED] = "interpreter",
		[ENGINE_TIME_TRANSLATION] = "decoding and translating",
		[ENGINE_TIME_DEVICE] = "devices",
		[ENGINE_TIME_REST] = "the rest",
	};
	uint64_t all = 0;

	for (unsigned t = 0; t < ENGINE_TIMES; t++)
		all += s->samples[t];
	if (!all)
		return;
	fprintf(stderr, "stats: %.2f s of CPU time:", (double)all / ENGINE_SAMPLES_PER_S);
	for (unsigned t = 0; t < ENGINE_TIMES; t++)
		fprintf(stderr, "%s %llu %% %s", t ? "," : "", percent(s->samples[t], all),
			names[t]);
	fprintf(stderr, "\n");
}

static int exit_status(const struct vm_result *r)
{
	switch (r->end) {
	case VM_END_POWEROFF:
	case VM_END_RESET:
		return HV_EXIT_OK;
	case VM_END_EXIT_PORT:
	case VM_END_QUIT:
		return r->code;
	case VM_END_DIED:
		return HV_EXIT_DIED;
	case VM_END_TIMEOUT:
		return HV_EXIT_TIMEOUT;
	case VM_END_ERROR:
		break;
	}
	return HV_EXIT_FAILED;
}

static int run_vm(struct run_options *o)
{
	struct vm_result res;
	struct error err = {""};
	struct run_control *control = NULL;
	const char *why;
	struct vm *vm;

	o->vm.engine = engine_choose(o->engine, &why, &err);
	if (!o->vm.engine) {
		fprintf(stderr, "hv run: %s\n", err.msg);
		return HV_EXIT_USAGE;
	}
	if (vm_create(&vm, &o->vm, &err) < 0) {
		fprintf(stderr, "hv run: %s\n", err.msg);
		return HV_EXIT_FAILED;
	}
	if (o->control && run_control_open(&control, vm, o->control, &err) < 0) {
		fprintf(stderr, "hv run: %s\n", err.msg);
		vm_destroy(vm);
		return HV_EXIT_FAILED;
	}
	fprintf(stderr, "engine: %s (%s)\n", o->vm.engine->name, why);
	vm_run(vm, &res);
	run_control_close(control);
	vm_destroy(vm);
	if (res.end == VM_END_TIMEOUT)
		fprintf(stderr, "hv run: stopped after %u s (--timeout)\n", o->vm.timeout_s);
	if (o->stats) {
		print_stats(&res);
		print_translator_stats(&res.stats);
		print_time(&res.stats);
	}
	return exit_status(&res);
}

static int run_in_share(struct run_options *o)
{
	struct cgroup_child child;
	struct error err = {""};
	int r;

	if (cgroup_cpu_enter(&child, &o->share, &err) < 0) {
		fprintf(stderr, "hv run: --cpu-weight, --cpu-max: %s\n", err.msg);
		return HV_EXIT_FAILED;
	}
	r = run_vm(o);
	cgroup_cpu_leave(&child);
	return r;
}

/* The board of a saved VM in place of options. */
static int prepare(struct run_options *o, struct vm_saved **saved)
{
	struct error err = {""};
	int r;

	if (!o->resume)
		return HV_EXIT_OK;
	r = vm_saved_open(saved, o->resume, &err);
	if (r == 0)
		r = vm_saved_config(*saved, &o->vm, &err);
	if (r == 0) {
		fprintf(stderr, "resume: %s\n", vm_saved_summary(*saved));
		return HV_EXIT_OK;
	}
	fprintf(stderr, "hv run: %s\n", err.msg);
	return HV_EXIT_FAILED;
}

int cmd_run(int argc, char **argv)
{
	struct vm_saved *saved = NULL;
	struct run_options o;
	bool help;
	int r = run_options_parse(&o, argc, argv, &help);

	if (r || help)
		return r;
	r = prepare(&o, &saved);
	if (!r)
		r = placement_check(&o);
	if (!r)
		r = run_in_share(&o);
	vm_saved_close(saved);
	return r;
}
