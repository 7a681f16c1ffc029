/* export/place.h - can something be mounted by FUSE on a directory?  What libfuse would say in its
 * own words, or not at all.  0 or -errno with the sentence.  Any thread. */
#pragma once

struct error;

/* instead: what needs no FUSE, for the sentence; NULL: nothing does. */
int mount_place_check(const char *dir, const char *instead, struct error *err);
