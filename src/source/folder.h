/* source/folder.h - what a datastore browser shows: names, sizes and dates of a folder on an ESXi
 * host or a vCenter (`https://HOST/folder/PATH?dcPath=..&dsName=..`).
 *
 * The server's pages are hostile: they are parsed by libxml2 as a stream, without fetching or
 * building anything, up to a fixed size; names that are no file names and links that lead away from
 * the host are left out.  Any thread.  Errors are negative errno with a sentence. */
#pragma once

#include "block/blk.h"

struct source_entry {
	char *name;     /* UTF-8, no '/', no control characters, not "." nor ".." */
	char *url;      /* to open it, or to list it; with the user of the listing's */
	bool is_folder; /* also a datacenter or a datastore */
	bool has_size;
	uint64_t size;   /* bytes */
	int64_t mtime_s; /* seconds since 1970 as the host's clock has it, -1: not said */
};

struct source_listing {
	struct source_entry *entry; /* in the server's order */
	size_t nr;
	size_t left_out; /* rows that were no good, or too many */
};

/* url: https://[USER@]HOST[:PORT]/folder... ; opts as for blk_open_with (credentials), may be NULL.
 */
int source_folder_list(const char *url, const struct blk_open_opts *opts,
		       struct source_listing *out, struct error *err);
/* The same in two steps, for who parses in another process: the page, malloc'd; then what it says.
 * url is where it came from. */
int source_folder_fetch(const char *url, const struct blk_open_opts *opts, char **html, size_t *len,
			struct error *err);
int source_folder_parse(const char *html, size_t len, const char *url, struct source_listing *out,
			struct error *err);
void source_listing_fini(struct source_listing *l);
/* Does a name stand for a folder: http(s)://HOST/folder whose path ends with '/' or has none? */
bool source_is_folder_url(const char *url);
