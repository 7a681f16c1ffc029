/* fuzz_folder.c - the page of a datastore browser: whatever it holds, the entries are file names
 * and lead to where the page came from. */
#include "source/folder.h"

#include "base/error.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect(bool good)
{
	if (!good)
		abort();
}

static void check(const struct source_entry *e)
{
	size_t n = strlen(e->name);

	expect(n > 0 && n <= 255 && strcmp(e->name, ".") && strcmp(e->name, ".."));
	for (const char *p = e->name; *p; p++)
		expect((unsigned char)*p >= ' ' && *p != '/' && *p != 0x7f);
	expect(!strncasecmp(e->url, "https://user@esx", 16));
	expect(e->url[16] == '/' || e->url[16] == ':');
	expect(strstr(e->url, "/folder"));
	expect(!e->has_size || e->size <= INT64_MAX);
	expect(e->mtime_s >= -1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct source_listing l;
	struct error err = {""};
	int r = source_folder_parse((const char *)data, size,
				    "https://user@esx/folder/vm?dcPath=a&dsName=b", &l, &err);

	expect(r == 0 || err.msg[0]);
	for (size_t i = 0; i < l.nr; i++)
		check(&l.entry[i]);
	source_listing_fini(&l);
	return 0;
}
