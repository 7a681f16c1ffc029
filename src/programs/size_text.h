/* size_text.h - sizes for people.  Programs only. */
#pragma once

#include "base/types.h"

const char *size_text(uint64_t bytes, char *buf, size_t cap); /* "1.5 GiB", in buf */
