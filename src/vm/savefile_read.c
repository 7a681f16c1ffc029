/* vm/savefile_read.c - reading a save file that may be anybody's; see savefile.h. */
#include "vm/savefile_impl.h"

#include "base/bytes.h"
#include "base/error.h"
#include "mem/mem.h"
#include "state/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

struct save_reader {
	int fd;
	char *name;
	uint32_t next; /* number the next record must have */
	uint64_t pages;
	bool peeked; /* .rec is a record whose payload has not been read */
	struct save_record rec;
	ZSTD_DCtx *zstd;
	uint8_t *plain, *packed;
};

static int wrap(struct save_reader *r, int e, struct error *err)
{
	return err_wrap(err, e, "'%s'", r->name);
}

/* ---- bytes ---- */

/* len bytes, or as many as the file still has. */
static ssize_t take_some(struct save_reader *r, void *buf, size_t len)
{
	size_t got = 0;

	while (got < len) {
		ssize_t n = read(r->fd, (uint8_t *)buf + got, len - got);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		got += (size_t)n;
	}
	return (ssize_t)got;
}

static int take(struct save_reader *r, void *buf, size_t len, struct error *err)
{
	ssize_t n = take_some(r, buf, len);

	if (n < 0)
		return err_errno(err, (int)-n, "cannot read it");
	if ((size_t)n != len)
		return err_set(err, EINVAL, "the saved VM is cut short");
	return 0;
}

/* The header of the next record; its payload follows. */
static int peek(struct save_reader *r, struct error *err)
{
	uint8_t h[SAVE_HEADER_LEN];
	int e;

	if (r->peeked)
		return 0;
	e = take(r, h, sizeof(h), err);
	if (e == 0)
		e = save_record_parse(h, &r->rec, err);
	if (e == 0 && r->rec.number != r->next)
		e = err_set(err, EINVAL, "the saved VM is damaged: record %u where %u belongs",
			    r->rec.number, r->next);
	if (e < 0)
		return e;
	r->next++;
	r->peeked = true;
	return 0;
}

static int payload(struct save_reader *r, uint8_t *buf, struct error *err)
{
	int e = take(r, buf, r->rec.len, err);

	r->peeked = false;
	if (e == 0 && state_crc32c(buf, r->rec.len) != r->rec.crc)
		e = err_set(err, EINVAL, "the saved VM is damaged: checksum of record %u",
			    r->rec.number);
	return e;
}

static const char *kind_name(uint32_t kind)
{
	switch (kind) {
	case SAVE_CONFIG:
		return "configuration";
	case SAVE_RAM:
		return "memory";
	case SAVE_STATE:
		return "state";
	case SAVE_END:
		return "end";
	}
	return "unknown";
}

static int expect(struct save_reader *r, enum save_kind kind, struct error *err)
{
	int e = peek(r, err);

	if (e == 0 && r->rec.kind != kind)
		e = err_set(err, EINVAL,
			    "the saved VM is damaged: a record of kind '%s' where '%s' belongs",
			    kind_name(r->rec.kind), kind_name(kind));
	return e;
}

/* ---- life ---- */

int save_reader_fd(struct save_reader **out, int fd, const char *name, struct error *err)
{
	struct save_reader *r = calloc(1, sizeof(*r));
	uint8_t h[SAVE_HEADER_LEN];
	ssize_t n;
	int e;

	if (!r || !(r->name = strdup(name))) {
		free(r);
		close(fd);
		return err_errno(err, ENOMEM, "resuming");
	}
	r->fd = fd;
	n = take_some(r, h, sizeof(h));
	if (n < 0)
		e = err_errno(err, (int)-n, "cannot read it");
	else
		e = save_header_check(h, (size_t)n, err);
	if (e < 0) {
		e = wrap(r, e, err);
		save_reader_close(r);
		return e;
	}
	*out = r;
	return 0;
}

int save_reader_open(struct save_reader **out, const char *path, struct error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
	struct stat st;

	if (fd < 0)
		return err_errno(err, errno, "cannot open '%s'", path);
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		close(fd);
		return err_set(err, EINVAL, "'%s' is not a file", path);
	}
	posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
	return save_reader_fd(out, fd, path, err);
}

void save_reader_close(struct save_reader *r)
{
	if (!r)
		return;
	close(r->fd);
	ZSTD_freeDCtx(r->zstd);
	free(r->plain);
	free(r->packed);
	free(r->name);
	free(r);
}

/* ---- streams ---- */

int save_reader_get(struct save_reader *r, enum save_kind kind, uint8_t **buf, size_t *len,
		    struct error *err)
{
	int e = expect(r, kind, err);

	if (e == 0 && (r->rec.len > SAVE_STATE_MAX || r->rec.gpa || r->rec.pages))
		e = err_set(err, EINVAL, "the saved VM is damaged: record %u", r->rec.number);
	if (e < 0)
		return wrap(r, e, err);
	*len = r->rec.len;
	*buf = malloc(*len + 1);
	if (!*buf)
		return err_errno(err, ENOMEM, "resuming");
	e = payload(r, *buf, err);
	if (e < 0) {
		free(*buf);
		*buf = NULL;
		return wrap(r, e, err);
	}
	return 0;
}

/* ---- RAM ---- */

static int ram_buffers(struct save_reader *r, struct error *err)
{
	size_t max = SAVE_BITMAP_LEN + ZSTD_compressBound(SAVE_RECORD_BYTES);

	if (!r->plain)
		r->plain = malloc(SAVE_RECORD_BYTES);
	if (!r->packed)
		r->packed = malloc(max);
	if (!r->zstd)
		r->zstd = ZSTD_createDCtx();
	if (!r->plain || !r->packed || !r->zstd)
		return err_errno(err, ENOMEM, "resuming");
	return 0;
}

/* Records go up in memory, so that what a small file makes us write is bounded by RAM's size. */
static int check_ram(const struct save_record *rec, gpa_t at_least, struct error *err)
{
	uint64_t size = rec->pages * PAGE_SIZE;

	if (!rec->pages || rec->pages > SAVE_RECORD_PAGES || rec->gpa % PAGE_SIZE ||
	    rec->gpa < at_least || rec->gpa + size < rec->gpa || rec->len < SAVE_BITMAP_LEN ||
	    rec->len > SAVE_BITMAP_LEN + ZSTD_compressBound(SAVE_RECORD_BYTES))
		return err_set(err, EINVAL, "the saved VM is damaged: memory record %u",
			       rec->number);
	return 0;
}

static unsigned count_bits(const uint8_t *bitmap, unsigned pages)
{
	unsigned n = 0;

	for (unsigned i = 0; i < pages; i++)
		n += bitmap[i / 8] >> i % 8 & 1;
	return n;
}

static int scatter(struct save_reader *r, struct mem *mem, struct error *err)
{
	const uint8_t *from = r->plain;

	for (unsigned i = 0; i < r->rec.pages; i++) {
		gpa_t gpa = r->rec.gpa + i * PAGE_SIZE;

		if (!(r->packed[i / 8] >> i % 8 & 1))
			continue;
		if (mem_write(mem, gpa, from, PAGE_SIZE) < 0)
			return err_set(
				err, EINVAL,
				"the saved VM has memory at %#llx, this board has none there",
				(unsigned long long)gpa);
		from += PAGE_SIZE;
		r->pages++;
	}
	return 0;
}

static int take_ram(struct save_reader *r, struct mem *mem, gpa_t at_least, struct error *err)
{
	size_t want, got;
	int e = check_ram(&r->rec, at_least, err);

	if (e == 0)
		e = payload(r, r->packed, err);
	if (e < 0)
		return e;
	want = count_bits(r->packed, r->rec.pages) * PAGE_SIZE;
	got = ZSTD_decompressDCtx(r->zstd, r->plain, want, r->packed + SAVE_BITMAP_LEN,
				  r->rec.len - SAVE_BITMAP_LEN);
	if (ZSTD_isError(got) || got != want)
		return err_set(err, EINVAL, "the saved VM is damaged: memory record %u: %s",
			       r->rec.number,
			       ZSTD_isError(got) ? ZSTD_getErrorName(got) : "too short");
	return scatter(r, mem, err);
}

int save_reader_ram(struct save_reader *r, struct mem *mem, const struct save_progress *progress,
		    struct error *err)
{
	uint64_t total = mem_ram_size(mem);
	gpa_t at_least = 0;
	int e = ram_buffers(r, err);

	while (e == 0) {
		e = peek(r, err);
		if (e < 0 || r->rec.kind != SAVE_RAM)
			break;
		e = take_ram(r, mem, at_least, err);
		at_least = r->rec.gpa + r->rec.pages * PAGE_SIZE;
		if (e == 0 && progress &&
		    !progress->tell(progress->opaque, MIN(r->pages * PAGE_SIZE, total), total))
			e = err_set(err, ECANCELED, "given up");
	}
	return e < 0 ? wrap(r, e, err) : 0;
}

int save_reader_end(struct save_reader *r, struct error *err)
{
	uint8_t end[SAVE_END_LEN], extra;
	int e = expect(r, SAVE_END, err);

	if (e == 0 && r->rec.len != SAVE_END_LEN)
		e = err_set(err, EINVAL, "the saved VM is damaged: its end");
	if (e == 0)
		e = payload(r, end, err);
	if (e == 0 && le64_load(end) != r->pages)
		e = err_set(err, EINVAL, "the saved VM is damaged: another amount of memory");
	if (e == 0 && take_some(r, &extra, 1) != 0)
		e = err_set(err, EINVAL, "the saved VM is damaged: something follows its end");
	return e < 0 ? wrap(r, e, err) : 0;
}
