/* host/files.h - small text files of the kernel's, below a root.
 *
 * The root is "" for the running system; tests and `hv doctor --root` put a directory before every
 * path.  No function reports why a file could not be read: on these, absent means "no".
 * Any thread. */
#pragma once

#include "base/types.h"

/* The file's first bytes without the last newline, NUL-terminated; false (and "") when absent. */
bool host_read(const char *root, const char *path, char *text, size_t len);
/* A file that holds one number, in base 10. */
bool host_read_number(const char *root, const char *path, int64_t *value);
bool host_exists(const char *root, const char *path);
/* "always [madvise] never" -> "madvise"; false when nothing is chosen. */
bool host_read_choice(const char *root, const char *path, char *choice, size_t len);
/* How many entries a directory has, dot files aside; -1 when there is none. */
int host_count_entries(const char *root, const char *path);
/* Is this one of the words of a text, parted by blanks? */
bool host_has_word(const char *text, const char *word);
/* Does a line of the file begin with these words, whatever blanks stand between them? */
bool host_file_has_line(const char *root, const char *path, const char *words);
