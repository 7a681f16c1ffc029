/* source/register.c - see source.h: the list. */
#include "source/source.h"

void source_register(void)
{
	static const struct blk_source *const list[] = {
		&source_nbd,   &source_nbds,    &source_nbd_unix, &source_nbds_unix,  &source_http,
		&source_https, &source_archive, &source_ova,      &source_compressed, &source_ssh,
		NULL,
	};

	blk_sources_register(list);
}
