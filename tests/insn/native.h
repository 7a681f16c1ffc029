/* native.h - run a few bytes of code on the host CPU itself, from a given state to a captured one.
 *
 * The oracle of the instruction tests.  The code runs in this process, in ring 3, and ends by an
 * exception: the INT3 bytes the caller filled the page with, or whatever the code under test
 * raised.  The caller maps code and data at fixed low addresses and makes sure that the code cannot
 * reach anything else.  One thread only. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { NATIVE_XSAVE_MAX = 4096 };

struct native_state {
	uint64_t gpr[16]; /* rax rcx rdx rbx rsp rbp rsi rdi r8..r15 */
	uint64_t rip, rflags;
	uint16_t sel[6];  /* es cs ss ds fs gs; the code segment says which mode the code runs in.
			   * fs stays what it is: it is the C library's. */
	uint64_t gs_base; /* with a null gs at start; always in the result */
	/* How it ended. */
	int vector; /* exception number */
	uint64_t error, cr2;
	_Alignas(64) uint8_t xsave[NATIVE_XSAVE_MAX]; /* standard layout */
};

void native_init(void);
/* Bytes of the XSAVE area the host kernel gives user space, and its components. */
unsigned native_xsave_size(void);
uint64_t native_xcr0(void);
bool native_fsgsbase(void); /* RDFSBASE and friends are allowed here */
uint64_t native_fs_base(void);

/* An entry of this process's LDT, as descriptor bytes.  False: the kernel refuses. */
bool native_set_ldt(unsigned entry, uint64_t descriptor);

/* Start at s->rip with everything in s; on return s is what the exception saw. */
void native_run(struct native_state *s);
