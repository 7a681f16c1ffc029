/* engine/soft/vec_signal.c - exceptions the host raises inside a thunk.
 *
 * #XM and #MF arrive as SIGFPE.  #UD and #GP come as SIGILL and SIGSEGV: operand rules that only
 * the processor knows (a register named twice, say).  If the fault is inside this thread's thunk
 * code, RIP is turned to a RET and RAX to the vector, so that the thunk seems to return it; the
 * kernel restores the guest's vector state from the signal frame on the way.  Any other fault goes
 * to whoever had the signal before us. */
#include "engine/soft/vec_int.h"

#include "base/error.h"
#include "engine/soft/xlat.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

static const int signals[] = {SIGFPE, SIGILL, SIGSEGV};
static struct sigaction previous[ARRAY_SIZE(signals)];
static pthread_once_t install_once = PTHREAD_ONCE_INIT;
static int install_errno;
static __thread struct vec_state *attached;
static __thread bool unblocked;

static bool is_ours(const mcontext_t *m)
{
	const struct vec_state *vs = attached;

	if (!vs || (uintptr_t)m->gregs[REG_RIP] - (uintptr_t)vs->code_rx >= VEC_CODE_SIZE)
		return false;
	switch (m->gregs[REG_TRAPNO]) {
	case X86_EXC_UD:
	case X86_EXC_GP:
	case X86_EXC_MF:
	case X86_EXC_XM:
		return true;
	default:
		return false;
	}
}

static void pass_on(const struct sigaction *old, int sig, siginfo_t *info, void *context)
{
	if (old->sa_flags & SA_SIGINFO)
		old->sa_sigaction(sig, info, context);
	else if (old->sa_handler != SIG_DFL && old->sa_handler != SIG_IGN)
		old->sa_handler(sig);
	else
		sigaction(sig, old, NULL); /* the instruction faults again and gets the default */
}

static void on_signal(int sig, siginfo_t *info, void *context)
{
	mcontext_t *m = &((ucontext_t *)context)->uc_mcontext;

	if (xlat_host_fault(context))
		return;
	if (is_ours(m)) {
		m->gregs[REG_RAX] = m->gregs[REG_TRAPNO];
		m->gregs[REG_RIP] = (greg_t)(uintptr_t)attached->code_rx;
		return;
	}
	for (unsigned i = 0; i < ARRAY_SIZE(signals); i++)
		if (signals[i] == sig)
			pass_on(&previous[i], sig, info, context);
}

static void install(void)
{
	struct sigaction sa = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};

	sigemptyset(&sa.sa_mask);
	for (unsigned i = 0; i < ARRAY_SIZE(signals); i++)
		if (sigaction(signals[i], &sa, &previous[i]) < 0)
			install_errno = errno;
}

int vec_signal_install(struct error *err)
{
	pthread_once(&install_once, install);
	if (install_errno)
		return err_errno(err, install_errno, "handler for floating-point exceptions");
	return 0;
}

/* A blocked SIGFPE would kill the process instead of reaching the handler. */
static void unblock_signals(void)
{
	sigset_t set;

	sigemptyset(&set);
	for (unsigned i = 0; i < ARRAY_SIZE(signals); i++)
		sigaddset(&set, signals[i]);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	unblocked = true;
}

void vec_signal_unblock(void)
{
	if (unlikely(!unblocked))
		unblock_signals();
}

void vec_signal_attach(struct vec_state *vs)
{
	attached = vs;
	vec_signal_unblock();
}

void vec_signal_detach(struct vec_state *vs)
{
	if (attached == vs)
		attached = NULL;
}
