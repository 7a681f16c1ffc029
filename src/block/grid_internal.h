/* block/grid_internal.h - what the parts of the grid share.  For them alone; rules as in grid.h. */
#pragma once

#include "block/grid.h"

/* With the lock: units that were taken and never entered in the tables. */
void grid_untake(struct grid *g, uint64_t at, uint64_t nr);
/* Within the file; what is behind its end reads as zeroes. */
int grid_copy(struct grid *g, uint64_t from, uint64_t to, uint64_t len);
/* Forget one of g->freed. */
void grid_drop_freed(struct grid *g);
