/* block/sources.c - see source.h: everything a name can stand for besides a file. */
#include "block/source.h"

#include "base/error.h"

#include <errno.h>
#include <string.h>

static const struct blk_source *const none[] = {NULL};
static const struct blk_source *const *sources = none;

void blk_sources_register(const struct blk_source *const *list)
{
	sources = list;
}

const struct blk_source *const *blk_sources(void)
{
	return sources;
}

static size_t scheme_len(const char *name)
{
	size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789+.-");

	return n && name[n] == ':' ? n : 0;
}

int blk_source_find(const char *name, const struct blk_source **source, const char **path,
		    struct error *err)
{
	size_t n = scheme_len(name);

	*source = NULL;
	*path = name;
	if (!n)
		return 0;
	if (!strncmp(name, "file:", 5)) {
		*path = name + (strncmp(name, "file:///", 8) ? 5 : 7);
		return 0;
	}
	for (unsigned i = 0; sources[i]; i++) {
		if (strlen(sources[i]->scheme) == n && !memcmp(sources[i]->scheme, name, n)) {
			*source = sources[i];
			return 0;
		}
	}
	if (!strncmp(name + n, "://", 3))
		return err_set(err, EINVAL,
			       "'%s': there is no source '%.*s' (a file of this name: 'file:%s')",
			       name, (int)n, name, name);
	return 0; /* a file with a colon in its name */
}
