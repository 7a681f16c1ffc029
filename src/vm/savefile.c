/* vm/savefile.c - what writer and reader of the save file share: the two headers. */
#include "vm/savefile_impl.h"

#include "base/bytes.h"
#include "base/error.h"
#include "state/stream.h"

#include <errno.h>
#include <string.h>

static const char magic[8] = {'T', 'R', 'V', 'S', 'A', 'V', 'E', 'D'};

void save_header_make(uint8_t h[SAVE_HEADER_LEN])
{
	memset(h, 0, SAVE_HEADER_LEN);
	memcpy(h, magic, sizeof(magic));
	le32_store(h + 8, SAVE_VERSION);
	le32_store(h + 28, state_crc32c(h, 28));
}

/* The version comes before the checksum: what a newer file keeps there is not ours to know. */
int save_header_check(const uint8_t *h, size_t len, struct error *err)
{
	if (len < sizeof(magic) || memcmp(h, magic, sizeof(magic)))
		return err_set(err, EINVAL, "not a saved VM");
	if (len < SAVE_HEADER_LEN)
		return err_set(err, EINVAL, "the saved VM is cut short");
	if (le32_load(h + 8) != SAVE_VERSION)
		return err_set(err, ENOTSUP,
			       "saved by another version: format %u, this build reads %u",
			       le32_load(h + 8), SAVE_VERSION);
	if (le32_load(h + 28) != state_crc32c(h, 28))
		return err_set(err, EINVAL, "the saved VM is damaged: checksum of the header");
	return 0;
}

void save_record_make(uint8_t h[SAVE_HEADER_LEN], const struct save_record *rec)
{
	le32_store(h, rec->kind);
	le32_store(h + 4, rec->number);
	le64_store(h + 8, rec->gpa);
	le32_store(h + 16, rec->pages);
	le32_store(h + 20, rec->len);
	le32_store(h + 24, rec->crc);
	le32_store(h + 28, state_crc32c(h, 28));
}

int save_record_parse(const uint8_t h[SAVE_HEADER_LEN], struct save_record *rec, struct error *err)
{
	if (le32_load(h + 28) != state_crc32c(h, 28))
		return err_set(err, EINVAL, "damaged: checksum of a record's header");
	*rec = (struct save_record){
		.kind = le32_load(h),
		.number = le32_load(h + 4),
		.gpa = le64_load(h + 8),
		.pages = le32_load(h + 16),
		.len = le32_load(h + 20),
		.crc = le32_load(h + 24),
	};
	return 0;
}
