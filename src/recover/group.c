#include "recover/internal.h"

#include <errno.h>

void group_fini(struct rec *r)
{
}

void node_look(struct rec *r, uint32_t node)
{
}

int rec_vms(struct rec *r, int (*vm)(void *opaque, const struct rec_vm *vm), void *opaque,
	    struct error *err)
{
	return 0;
}

int rec_vm_find(struct rec *r, const char *name, struct rec_vm *vm, struct error *err)
{
	return err_set(err, ENOENT, "there is no VM '%s'", name);
}
