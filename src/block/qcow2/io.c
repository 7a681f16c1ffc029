/* block/qcow2/io.c - the file below, and what happens when it holds nonsense. */
#include "base/log.h"
#include "block/iov.h"
#include "block/qcow2/qcow2.h"

#include <stdarg.h>
#include <stdio.h>

static struct log_component log_qcow2 = LOG_COMPONENT("qcow2");

enum { READ_IOVS = 64 };

int q_file_read(struct blk *file, void *buf, size_t len, uint64_t host)
{
	uint64_t size = blk_size(file);
	size_t there = host < size ? MIN(len, size - host) : 0;

	memset((uint8_t *)buf + there, 0, len - there);
	return there ? blk_read(file, buf, there, host) : 0;
}

int q_file_readv(struct blk *file, const struct iovec *iov, unsigned n, uint64_t len, uint64_t host)
{
	uint64_t size = blk_size(file);
	struct iov_walk walk = {iov, n, 0};
	struct iovec part[READ_IOVS];

	if (range_inside(host, len, size))
		return blk_readv(file, iov, n, host);
	while (len && host < size) {
		uint64_t step = MIN(len, size - host);
		unsigned nr = iov_peek(&walk, part, READ_IOVS, &step);
		int r = blk_readv(file, part, nr, host);

		if (r < 0)
			return r;
		iov_advance(&walk, step);
		host += step;
		len -= step;
	}
	iov_zero(&walk, len);
	return 0;
}

int q_file_zero(struct blk *file, uint64_t host, uint64_t len)
{
	static const uint8_t last;
	int r;

	/* The waist keeps to the file's size for zeroes: make it long enough first. */
	if (host + len > blk_size(file)) {
		r = blk_write(file, &last, 1, host + len - 1);
		if (r < 0)
			return r;
	}
	return blk_write_zeroes(file, host, len, false);
}

int q_corrupt(struct qcow2 *q, bool fatal, const char *fmt, ...)
{
	char what[200];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	if (fatal && !q->corrupt && !q->readonly) {
		log_error(&log_qcow2,
			  "%s: %s; the image is marked corrupt and written to no more "
			  "(try: hv disk check -r all)",
			  q->b->path, what);
		q->corrupt = q->b->info.corrupt = true;
		q->h.incompat |= Q_INCOMPAT_CORRUPT;
		if (q->h.version >= 3)
			q_header_write(q->file, &q->h, NULL);
	} else {
		log_guest(&log_qcow2, "%s: %s", q->b->path, what);
	}
	return -EIO;
}
