/* base/tmpfile.h - a temporary file without a name: gone when its descriptor is closed.
 *
 * It lies in $TMPDIR, else in /var/tmp, which is meant for what may be large.  Any thread. */
#pragma once

struct error;

int tmpfile_open(struct error *err); /* the descriptor, or -errno */
