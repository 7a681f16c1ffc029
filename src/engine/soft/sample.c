/* engine/soft/sample.c - see sample.h.
 *
 * A timer that runs on the thread's CPU time sends SIGPROF.  The kernel looks at such timers in its
 * own tick, which may be longer than ours: the overrun says how many looks this one stands for. */
#include "engine/soft/sample.h"

#include "base/clock.h"
#include "engine/soft/xlat.h"

#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static __thread struct cpu *sampled;
static pthread_once_t install_once = PTHREAD_ONCE_INIT;

static enum engine_time time_class(const struct cpu *cpu, uint64_t rip)
{
	if (xlat_is_code(cpu, rip))
		return ENGINE_TIME_TRANSLATED;
	switch (cpu->doing) {
	case CPU_DOING_DEVICE:
		return ENGINE_TIME_DEVICE;
	case CPU_DOING_TRANSLATION:
		return ENGINE_TIME_TRANSLATION;
	case CPU_DOING_SLOW:
		return ENGINE_TIME_SLOW;
	default:
		return cpu->in ? ENGINE_TIME_INTERPRETED : ENGINE_TIME_REST;
	}
}

static void on_sample(int sig, siginfo_t *info, void *context)
{
	const mcontext_t *m = &((ucontext_t *)context)->uc_mcontext;
	struct cpu *cpu = sampled;

	if (cpu)
		cpu->stats.samples[time_class(cpu, (uint64_t)m->gregs[REG_RIP])] +=
			1 + (info->si_overrun > 0 ? (unsigned)info->si_overrun : 0);
}

static void install(void)
{
	struct sigaction sa = {.sa_sigaction = on_sample,
			       .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART};

	sigemptyset(&sa.sa_mask);
	sigaction(SIGPROF, &sa, NULL);
}

static void unblock(void)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGPROF);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

void sample_attach(struct cpu *cpu)
{
	const struct timespec ms = {.tv_nsec = NSEC_PER_SEC / ENGINE_SAMPLES_PER_S};
	struct sigevent ev = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGPROF};

	if (likely(sampled == cpu))
		return;
	pthread_once(&install_once, install);
	sample_detach(cpu);
	sampled = cpu;
	ev._sigev_un._tid = gettid();
	if (timer_create(CLOCK_THREAD_CPUTIME_ID, &ev, &cpu->sampler) < 0)
		return;
	cpu->has_sampler = true;
	unblock();
	timer_settime(cpu->sampler, 0, &(struct itimerspec){.it_interval = ms, .it_value = ms},
		      NULL);
}

void sample_detach(struct cpu *cpu)
{
	if (cpu->has_sampler)
		timer_delete(cpu->sampler);
	cpu->has_sampler = false;
	if (sampled == cpu)
		sampled = NULL;
}
