/* vm/savefile.h - the file a saved VM is in: records, checksums, RAM.  Knows memory, no VM.
 *
 *   file    = header record*
 *   header  = "TRVSAVED", u32 version (1), u32 zero, u64 zero, u32 zero, u32 CRC-32C of the above
 *   record  = u32 kind, u32 number (from 0), u64 gpa, u32 pages, u32 length,
 *             u32 CRC-32C of the payload, u32 CRC-32C of this header, payload
 *
 * Records come in this order: CONFIG, RAM..., STATE, END.  CONFIG and STATE hold a state stream
 * (state/stream.h).  A RAM record holds up to 256 pages from gpa on: a bitmap of those that are
 * not all zeroes, then one zstd frame with their bytes.  RAM that no record names is zeroes.  END
 * holds u64 pages stored and is the end of the file.  All numbers are little-endian; see
 * docs/save-file.md for the drawing.
 *
 * Writing goes to a temporary file beside the named one, which save_writer_commit puts in its
 * place: there never is half a file under the name.  Reading takes the file for hostile; it needs
 * no seeking and never more memory than one record.
 *
 * Errors are -errno and a sentence.  One thread at a time per object. */
#pragma once

#include "base/types.h"

struct error;
struct mem;
struct save_reader;
struct save_writer;

enum {
	SAVE_VERSION = 1,
	SAVE_RECORD_PAGES = 256, /* of RAM */
	SAVE_STATE_MAX = 16 << 20,
};

enum save_kind {
	SAVE_CONFIG = 0x464e4f43, /* "CONF" */
	SAVE_RAM = 0x204d4152,    /* "RAM " */
	SAVE_STATE = 0x54415453,  /* "STAT" */
	SAVE_END = 0x20444e45,    /* "END " */
};

/* Told as RAM goes by; false: give up, with -ECANCELED. */
struct save_progress {
	bool (*tell)(void *opaque, uint64_t done, uint64_t total); /* bytes of guest RAM */
	void *opaque;
};

/* An existing file is replaced only if it is a saved VM, or empty. */
int save_writer_open(struct save_writer **out, const char *path, struct error *err);
/* CONFIG or STATE. */
int save_writer_put(struct save_writer *w, enum save_kind kind, const void *buf, size_t len,
		    struct error *err);
int save_writer_ram(struct save_writer *w, struct mem *mem, const struct save_progress *progress,
		    struct error *err);
/* Everything is on the disk under its name when this returns 0; *bytes (NULL is fine) is its size.
 * Ends the writer either way. */
int save_writer_commit(struct save_writer *w, uint64_t *bytes, struct error *err);
void save_writer_abort(struct save_writer *w); /* nothing is left; NULL is fine */

int save_reader_open(struct save_reader **out, const char *path, struct error *err);
int save_reader_fd(struct save_reader **out, int fd, const char *name,
		   struct error *err); /* takes fd */
/* The next record, which has to be of this kind; *buf is the caller's to free. */
int save_reader_get(struct save_reader *r, enum save_kind kind, uint8_t **buf, size_t *len,
		    struct error *err);
/* All RAM records, into memory that is all zeroes. */
int save_reader_ram(struct save_reader *r, struct mem *mem, const struct save_progress *progress,
		    struct error *err);
int save_reader_end(struct save_reader *r, struct error *err);
void save_reader_close(struct save_reader *r); /* NULL is fine */
