/* run_control.h - ties a VM to its control socket.  Programs only. */
#pragma once

struct error;
struct run_control;
struct vm;

/* Between vm_create and vm_run; close after vm_run and before vm_destroy (NULL is fine). */
int run_control_open(struct run_control **out, struct vm *vm, const char *path, struct error *err);
void run_control_close(struct run_control *c);
