/* vm/save_state.h - the STATE record: everything of a VM that is not memory.  For save*.c only. */
#pragma once

struct saved_config;
struct state;
struct vm;

/* While the VM stands (saving), or before it has run (loading, memory being in place). */
void vm_state(struct state *s, struct vm *vm);

void vm_describe(struct vm *vm, struct saved_config *c);
