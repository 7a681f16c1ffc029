/* vm/savefile_impl.h - the record format, for savefile*.c only; see savefile.h. */
#pragma once

#include "vm/savefile.h"

enum {
	SAVE_HEADER_LEN = 32, /* of the file and of each record */
	SAVE_BITMAP_LEN = SAVE_RECORD_PAGES / 8,
	SAVE_END_LEN = 8,
	SAVE_ZSTD_LEVEL = 1,
};
#define SAVE_RECORD_BYTES (SAVE_RECORD_PAGES * PAGE_SIZE)

struct save_record {
	uint32_t kind, number;
	uint64_t gpa;
	uint32_t pages, len, crc;
};

void save_header_make(uint8_t h[SAVE_HEADER_LEN]);
int save_header_check(const uint8_t *h, size_t len,
		      struct error *err); /* of a file's first len bytes */
void save_record_make(uint8_t h[SAVE_HEADER_LEN], const struct save_record *rec);
int save_record_parse(const uint8_t h[SAVE_HEADER_LEN], struct save_record *rec, struct error *err);
