/* host/kvm_probe.h - is there a KVM here, may we use it, and does it run ring 0 on the hardware?
 *
 * The last question cannot be answered by names or capability bits: some KVMs offer the whole
 * interface and emulate every kernel instruction.  So a guest of one page runs a counting loop and
 * a loop of privileged instructions at CPL 0 for about a millisecond of CPU time, and its speed is
 * the answer.  Uses ioctls of its own (Linux Documentation/virt/kvm/api.rst); no engine is
 * involved.
 *
 * Programs only, from one thread, best before others start: a real-time signal bounds the guest's
 * run and its handler is put back afterwards.  Speeds are in millions of instructions per second
 * of CPU time. */
#pragma once

#include "base/types.h"

enum kvm_probe_state {
	KVM_PROBE_ABSENT,        /* no such device, or nothing behind it */
	KVM_PROBE_NO_PERMISSION, /* it is there, we may not open it */
	KVM_PROBE_BUSY,          /* another hypervisor holds the CPU's virtualization */
	KVM_PROBE_BROKEN,        /* an ioctl or the guest failed: step and error say which */
	KVM_PROBE_EMULATED,      /* works, but ring 0 runs in software */
	KVM_PROBE_FAST,
};

struct kvm_probe {
	enum kvm_probe_state state;
	const char *step; /* what failed, "opening"; NULL when nothing did */
	int error;        /* its errno, 0 when it was not a system call */
	double plain_minsn, privileged_minsn;
	uint64_t cost_ns; /* wall time of the whole probe */
};

/* Below either of these a KVM counts as emulated.  The software-only KVM we know does 1.5 of
 * either; the slowest true one (AMD's SVM inside an emulator) does hundreds, and where its shadow
 * paging leaves the guest at every second instruction of the other loop still 0.1 to 0.3 of those.
 * The second loop is not run when the first has decided. */
#define KVM_PROBE_MIN_PLAIN_MINSN      20.0
#define KVM_PROBE_MIN_PRIVILEGED_MINSN 0.02

#define KVM_DEVICE "/dev/kvm"

/* Takes a few milliseconds; at worst, where the guest never ends, KVM_PROBE_LIMIT_NS. */
#define KVM_PROBE_LIMIT_NS 100000000ull
void kvm_probe(const char *device, struct kvm_probe *p);

/* The judgement alone, for tests: FAST or EMULATED. */
enum kvm_probe_state kvm_probe_judge(double plain_minsn, double privileged_minsn);

/* A few words: "hardware speed: 3400 million instructions/s in ring 0". */
void kvm_probe_describe(const struct kvm_probe *p, char *text, size_t len);
