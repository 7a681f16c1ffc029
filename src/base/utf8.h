/* base/utf8.h - is text from strangers UTF-8?  Any thread. */
#pragma once

#include "base/types.h"

/* Bytes of the character at text (RFC 3629), which ends with a NUL; 0: there is none. */
unsigned utf8_char_len(const char *text);
