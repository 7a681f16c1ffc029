/* memfile.c - see memfile.h. */
#include "memfile.h"

#include "check.h"

#include "block/iov.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

enum { MEMFILE_MAX = 1 << 30 };

static void *must(void *p)
{
	CHECK(p);
	return p;
}

static void memfile_resize(struct memfile *f, uint64_t size)
{
	CHECK(size <= MEMFILE_MAX);
	if (size > f->cap) {
		f->cap = ALIGN_UP(size + size / 2, 4096);
		f->data = must(realloc(f->data, f->cap));
	}
	if (size > f->size)
		memset(f->data + f->size, 0, size - f->size);
	f->size = size;
}

void memfile_load(struct memfile *f, const char *path)
{
	int fd = open(path, O_RDONLY);
	struct stat st;

	CHECK(fd >= 0);
	CHECK_EQ(0, fstat(fd, &st));
	memfile_resize(f, (uint64_t)st.st_size);
	CHECK_EQ(st.st_size, pread(fd, f->data, (size_t)st.st_size, 0));
	close(fd);
}

void memfile_copy(struct memfile *to, const struct memfile *from)
{
	to->size = 0;
	memfile_resize(to, from->size);
	memcpy(to->data, from->data, from->size);
}

void memfile_free(struct memfile *f)
{
	free(f->data);
	*f = (struct memfile){0};
}

void cut_log_free(struct cut_log *log)
{
	for (unsigned i = 0; i < log->n; i++)
		free(log->entry[i].data);
	free(log->entry);
	*log = (struct cut_log){0};
}

void memfile_apply(struct memfile *f, const struct cut_entry *e)
{
	uint64_t end;

	switch (e->what) {
	case CHANGE_WRITE:
		if (e->off + e->len > f->size)
			memfile_resize(f, e->off + e->len);
		memcpy(f->data + e->off, e->data, e->len);
		break;
	case CHANGE_ZERO:
		if (e->off + e->len > f->size)
			memfile_resize(f, e->off + e->len);
		memset(f->data + e->off, 0, e->len);
		break;
	case CHANGE_DISCARD:
		end = MIN(e->off + e->len, f->size);
		if (e->off < end)
			memset(f->data + e->off, 0, end - e->off);
		break;
	case CHANGE_SIZE:
		memfile_resize(f, e->off);
		break;
	case CHANGE_FLUSH:
		break;
	}
}

/* Does it and remembers it.  e->data becomes the log's. */
static void memfile_change(struct memfile *f, struct cut_entry e)
{
	struct cut_log *log = f->log;

	memfile_apply(f, &e);
	if (!log) {
		free(e.data);
		return;
	}
	if (log->n == log->cap) {
		log->cap = log->cap ? 2 * log->cap : 1024;
		log->entry = must(realloc(log->entry, log->cap * sizeof(*log->entry)));
	}
	log->entry[log->n++] = e;
}

static int memfile_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			 uint64_t off)
{
	const struct memfile *f = b->priv;

	for (unsigned i = 0; i < n; i++) {
		uint64_t have = off < f->size ? MIN(iov[i].iov_len, f->size - off) : 0;

		memcpy(iov[i].iov_base, f->data + off, have);
		memset((char *)iov[i].iov_base + have, 0, iov[i].iov_len - have);
		off += iov[i].iov_len;
	}
	return 0;
}

static int memfile_writev(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			  uint64_t off)
{
	struct memfile *f = b->priv;
	uint8_t *data = must(malloc(len)), *to = data;

	for (unsigned i = 0; i < n; i++) {
		memcpy(to, iov[i].iov_base, iov[i].iov_len);
		to += iov[i].iov_len;
	}
	memfile_change(f, (struct cut_entry){CHANGE_WRITE, off, len, data});
	blk_set_size(b, f->size);
	return 0;
}

static int memfile_flush(struct blk *b)
{
	memfile_change(b->priv, (struct cut_entry){.what = CHANGE_FLUSH});
	return 0;
}

static int memfile_discard(struct blk *b, uint64_t off, uint64_t len)
{
	memfile_change(b->priv, (struct cut_entry){CHANGE_DISCARD, off, len, NULL});
	return 0;
}

static int memfile_write_zeroes(struct blk *b, uint64_t off, uint64_t len, bool may_unmap)
{
	struct memfile *f = b->priv;

	memfile_change(f, (struct cut_entry){CHANGE_ZERO, off, len, NULL});
	blk_set_size(b, f->size);
	return 0;
}

static int memfile_set_size(struct blk *b, uint64_t size)
{
	memfile_change(b->priv, (struct cut_entry){CHANGE_SIZE, size, 0, NULL});
	b->info.size = size;
	return 0;
}

static void memfile_close(struct blk *b)
{
}

static const struct blk_format memfile_format = {
	.name = "memory",
	.close = memfile_close,
	.readv = memfile_readv,
	.writev = memfile_writev,
	.flush = memfile_flush,
	.discard = memfile_discard,
	.write_zeroes = memfile_write_zeroes,
	.resize = memfile_set_size,
};

int memfile_open(struct blk **out, struct memfile *f, unsigned flags, struct error *err)
{
	struct blk_info info = {.size = f->size, .block_size = 512};

	return blk_wrap(out, &memfile_format, f, &info, flags | BLK_FILE | BLK_NO_POOL, err);
}
