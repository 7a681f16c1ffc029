/* base/clock.h - host time.  Any thread, never fails. */
#pragma once

#include "base/types.h"

#define NSEC_PER_SEC 1000000000ull

uint64_t clock_mono_ns(void); /* CLOCK_MONOTONIC: device timers, time-outs */
uint64_t clock_real_ns(void); /* CLOCK_REALTIME: RTC, kvm-clock wall clock */
