#include "recover/internal.h"

#include <errno.h>

int rec_open_disk(struct rec *r, uint64_t id, unsigned flags, struct blk **out, struct error *err)
{
	return rec_blk(r, id, flags, out, err);
}
