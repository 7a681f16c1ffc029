/* Fuzz target: a guest in any mode and ring, with any tables and any code.  See cpu_case.h.
 *
 * Input: mode, maker of the CPU, then the case. */
#include "cpu_case.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct case_vm vms[2]; /* AMD's rules and Intel's */
static struct case_vm *volatile running;
static timer_t timer;

static void on_timer(int sig)
{
	struct case_vm *v = running;

	(void)sig;
	if (v)
		engine_soft.cpu_kick(v->cpu[0]);
}

static void case_slice_begin(struct case_vm *v)
{
	const struct itimerspec t = {.it_value = {.tv_nsec = CASE_SLICE_NS}};

	running = v;
	timer_settime(timer, 0, &t, NULL);
}

static void setup(void)
{
	struct sigevent ev = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
	struct sigaction sa = {.sa_handler = on_timer, .sa_flags = SA_RESTART};

	case_vm_create(&vms[0], 1, "AuthenticAMD");
	case_vm_create(&vms[1], 1, "GenuineIntel");
	if (sigaction(SIGRTMIN, &sa, NULL) || timer_create(CLOCK_MONOTONIC, &ev, &timer))
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct case_input in = {data, size};
	unsigned mode = take8(&in) % CASE_NR_MODES;
	struct case_vm *v;

	if (!vms[0].vm)
		setup();
	v = &vms[take8(&in) & 1];
	case_load_memory(v, case_read_cpu(v, 0, mode, &in), &in);
	if (!case_load_cpu(v, 0))
		return 0;
	case_slice_begin(v);
	case_run_cpu(v, 0);
	case_check_cpu(v, 0);
	if (v->runs++ % 64 == 0)
		case_check_tlb(v, 0);
	return 0;
}
