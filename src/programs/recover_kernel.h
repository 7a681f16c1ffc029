/* recover_kernel.h - the kernel a guest would boot, found on its disks.
 *
 * Linux only, by what GRUB's configuration says, else the newest kernel in /boot.  In the worker:
 * the guest wrote all of it. */
#pragma once

#include "guestfs/guestfs.h"

#include <limits.h>

enum { RECOVER_KERNEL_MAX = 256 * MiB, RECOVER_APPEND_MAX = 2000 };

struct recover_kernel {
	char *kernel, *initrd; /* malloc'd bytes; initrd may be NULL */
	size_t kernel_len, initrd_len;
	char append[RECOVER_APPEND_MAX];
	char from[PATH_MAX / 4 + 32]; /* "/boot/vmlinuz-6.1.0-18-amd64 of partition 1" */
};

/* disk: its number on the board, from 0.  0, -ENOENT when there is none on it, or an error. */
int recover_kernel_find(struct guestfs *g, unsigned disk, struct recover_kernel *k,
			struct error *err);
void recover_kernel_free(struct recover_kernel *k);
