/* vm/savefile_write.c - making a save file; see savefile.h. */
#include "vm/savefile_impl.h"

#include "base/bytes.h"
#include "base/error.h"
#include "mem/mem.h"
#include "state/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

struct save_writer {
	int fd;
	char *path, *temp;
	uint32_t next; /* number of the next record */
	uint64_t bytes, pages;
	ZSTD_CCtx *zstd;
	uint8_t *plain, *packed; /* one record's RAM; bitmap and frame */
	size_t packed_max;
};

/* ---- the file ---- */

static int put(struct save_writer *w, const void *buf, size_t len, struct error *err)
{
	const uint8_t *p = buf;

	while (len) {
		ssize_t n = write(w->fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return err_errno(err, n < 0 ? errno : EIO, "cannot write '%s'", w->path);
		p += n;
		len -= (size_t)n;
		w->bytes += (uint64_t)n;
	}
	return 0;
}

static int put_record(struct save_writer *w, struct save_record *rec, const void *payload,
		      struct error *err)
{
	uint8_t h[SAVE_HEADER_LEN];
	int r;

	rec->number = w->next++;
	rec->crc = state_crc32c(payload, rec->len);
	save_record_make(h, rec);
	r = put(w, h, sizeof(h), err);
	return r < 0 ? r : put(w, payload, rec->len, err);
}

/* A name mistyped must not cost anybody a disk image. */
static int check_target(const char *path, struct error *err)
{
	uint8_t head[SAVE_HEADER_LEN];
	struct stat st;
	ssize_t n = 0;
	int fd;

	if (lstat(path, &st) < 0)
		return errno == ENOENT ? 0 : err_errno(err, errno, "cannot save to '%s'", path);
	if (!S_ISREG(st.st_mode))
		return err_set(err, EEXIST, "'%s' exists and is not a file", path);
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	if (fd < 0)
		return err_errno(err, errno, "cannot look into '%s'", path);
	n = pread(fd, head, sizeof(head), 0);
	close(fd);
	if (n != 0 && (n < 8 || memcmp(head, "TRVSAVED", 8)))
		return err_set(err, EEXIST,
			       "'%s' exists and is not a saved VM; choose another name", path);
	return 0;
}

static int open_temp(struct save_writer *w, const char *path, struct error *err)
{
	w->path = strdup(path);
	if (!w->path || asprintf(&w->temp, "%s.XXXXXX", path) < 0) {
		w->temp = NULL;
		return err_errno(err, ENOMEM, "saving");
	}
	w->fd = mkostemp(w->temp, O_CLOEXEC); /* mode 0600: what is in RAM is nobody else's */
	if (w->fd < 0) {
		free(w->temp);
		w->temp = NULL;
		return err_errno(err, errno, "cannot save to '%s'", path);
	}
	return 0;
}

static int open_buffers(struct save_writer *w, struct error *err)
{
	w->packed_max = SAVE_BITMAP_LEN + ZSTD_compressBound(SAVE_RECORD_BYTES);
	w->plain = malloc(SAVE_RECORD_BYTES);
	w->packed = malloc(w->packed_max);
	w->zstd = ZSTD_createCCtx();
	if (!w->plain || !w->packed || !w->zstd)
		return err_errno(err, ENOMEM, "saving");
	ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_compressionLevel, SAVE_ZSTD_LEVEL);
	ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_checksumFlag, 1);
	return 0;
}

static void writer_free(struct save_writer *w)
{
	if (w->fd >= 0)
		close(w->fd);
	ZSTD_freeCCtx(w->zstd);
	free(w->plain);
	free(w->packed);
	free(w->path);
	free(w->temp);
	free(w);
}

void save_writer_abort(struct save_writer *w)
{
	if (!w)
		return;
	if (w->temp)
		unlink(w->temp);
	writer_free(w);
}

int save_writer_open(struct save_writer **out, const char *path, struct error *err)
{
	struct save_writer *w = calloc(1, sizeof(*w));
	uint8_t h[SAVE_HEADER_LEN];
	int r;

	if (!w)
		return err_errno(err, ENOMEM, "saving");
	w->fd = -1;
	r = check_target(path, err);
	if (r == 0)
		r = open_temp(w, path, err);
	if (r == 0)
		r = open_buffers(w, err);
	save_header_make(h);
	if (r == 0)
		r = put(w, h, sizeof(h), err);
	if (r < 0) {
		save_writer_abort(w);
		return r;
	}
	*out = w;
	return 0;
}

int save_writer_put(struct save_writer *w, enum save_kind kind, const void *buf, size_t len,
		    struct error *err)
{
	struct save_record rec = {.kind = kind, .len = (uint32_t)len};

	if (len > SAVE_STATE_MAX)
		return err_set(err, E2BIG, "the state of this VM is too large to save: %zu bytes",
			       len);
	return put_record(w, &rec, buf, err);
}

/* ---- RAM ---- */

static bool all_zero(const uint8_t *p, size_t len)
{
	return !p[0] && !memcmp(p, p + 1, len - 1);
}

/* The pages of one record that hold something, packed together; how many. */
static unsigned gather(struct save_writer *w, const uint8_t *from, unsigned pages)
{
	unsigned kept = 0;

	memset(w->packed, 0, SAVE_BITMAP_LEN);
	for (unsigned i = 0; i < pages; i++) {
		const uint8_t *page = from + i * PAGE_SIZE;

		if (all_zero(page, PAGE_SIZE))
			continue;
		w->packed[i / 8] |= (uint8_t)(1u << i % 8);
		memcpy(w->plain + kept++ * PAGE_SIZE, page, PAGE_SIZE);
	}
	return kept;
}

static int put_ram(struct save_writer *w, gpa_t gpa, const uint8_t *from, unsigned pages,
		   struct error *err)
{
	unsigned kept = gather(w, from, pages);
	struct save_record rec = {.kind = SAVE_RAM, .gpa = gpa, .pages = pages};
	size_t n;

	if (!kept)
		return 0;
	n = ZSTD_compress2(w->zstd, w->packed + SAVE_BITMAP_LEN, w->packed_max - SAVE_BITMAP_LEN,
			   w->plain, kept * PAGE_SIZE);
	if (ZSTD_isError(n))
		return err_set(err, EIO, "cannot compress guest memory: %s", ZSTD_getErrorName(n));
	rec.len = (uint32_t)(SAVE_BITMAP_LEN + n);
	w->pages += kept;
	return put_record(w, &rec, w->packed, err);
}

/* Records begin at multiples of their size, so that the same memory makes the same file whatever
 * the host knows of holes in it.  How much of the range comes next; *hole: nobody ever touched it.
 */
static uint64_t next_step(struct mem *mem, gpa_t gpa, uint64_t left, bool *hole)
{
	uint64_t block = MIN(SAVE_RECORD_BYTES - gpa % SAVE_RECORD_BYTES, left);
	uint64_t empty = mem_hole(mem, gpa, left);

	*hole = empty >= block;
	return *hole ? block + ALIGN_DOWN(empty - block, SAVE_RECORD_BYTES) : block;
}

static int put_range(struct save_writer *w, struct mem *mem, const struct mem_range *range,
		     uint64_t before, const struct save_progress *progress, struct error *err)
{
	uint64_t total = mem_ram_size(mem), step;
	bool hole;
	int r = 0;

	for (uint64_t off = 0; off < range->size && r == 0; off += step) {
		step = next_step(mem, range->gpa + off, range->size - off, &hole);
		if (!hole)
			r = put_ram(w, range->gpa + off, range->hva + off,
				    (unsigned)(step / PAGE_SIZE), err);
		if (r == 0 && progress &&
		    !progress->tell(progress->opaque, before + off + step, total))
			r = err_set(err, ECANCELED, "the save was given up");
	}
	return r;
}

int save_writer_ram(struct save_writer *w, struct mem *mem, const struct save_progress *progress,
		    struct error *err)
{
	const struct mem_range *range;
	unsigned nr = mem_ram_ranges(mem, &range);
	uint64_t before = 0;
	int r = 0;

	for (unsigned i = 0; i < nr && r == 0; i++) {
		r = put_range(w, mem, &range[i], before, progress, err);
		before += range[i].size;
	}
	return r;
}

/* ---- the end ---- */

/* The directory too: else a power cut may take the name away again. */
static int sync_directory(const char *path)
{
	char *copy = strdup(path), *slash = copy ? strrchr(copy, '/') : NULL;
	const char *dir = slash == copy ? "/" : slash ? copy : ".";
	int fd, r = 0;

	if (!copy)
		return -ENOMEM;
	if (slash)
		*slash = slash == copy ? '/' : '\0';
	fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || (fsync(fd) < 0 && errno != EINVAL))
		r = -errno;
	if (fd >= 0)
		close(fd);
	free(copy);
	return r;
}

int save_writer_commit(struct save_writer *w, uint64_t *bytes, struct error *err)
{
	struct save_record rec = {.kind = SAVE_END, .len = SAVE_END_LEN};
	uint8_t end[SAVE_END_LEN];
	int r;

	le64_store(end, w->pages);
	r = put_record(w, &rec, end, err);
	if (r == 0 && fsync(w->fd) < 0)
		r = err_errno(err, errno, "cannot write '%s'", w->path);
	if (r == 0 && rename(w->temp, w->path) < 0)
		r = err_errno(err, errno, "cannot save to '%s'", w->path);
	if (r < 0) {
		save_writer_abort(w);
		return r;
	}
	if (bytes)
		*bytes = w->bytes;
	r = sync_directory(w->path);
	if (r < 0)
		err_errno(err, -r, "cannot write the directory of '%s'", w->path);
	writer_free(w);
	return r;
}
