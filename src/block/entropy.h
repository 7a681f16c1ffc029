/* block/entropy.h - is it worth compressing?  For formats that pack clusters.  Pure, any thread. */
#pragma once

#include "base/types.h"

/* Do these bytes look as if nothing could make them smaller?  Never true of less than 16 KiB. */
bool blk_looks_random(const void *data, size_t len);
