#include "recover/internal.h"

int carve_find(struct rec *r, struct error *err)
{
	return 0;
}
