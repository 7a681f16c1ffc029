/* jail/proxy.c - see proxy.h.
 *
 * A reply's head always says how many bytes follow it, so both ends stay in step after an error. */
#include "jail/proxy.h"

#include "base/error.h"
#include "block/format.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum proxy_op { OP_READ = 1, OP_EXTENT, OP_BAD };
enum { PROXY_MAGIC = 0x74767078, PROXY_PIECE = 1 * MiB, PROXY_WORDS = 512 };

struct request {
	uint32_t op, reserved;
	uint64_t off, len;
};

struct reply {
	int32_t result; /* 0 or -errno */
	uint32_t what;  /* EXTENT: enum blk_extent; BAD: 0 or 1 */
	uint64_t len;   /* READ: bytes that follow; EXTENT: of the run */
};

/* The first thing the serving end says. */
struct hello {
	uint32_t magic;
	int32_t result;
	uint64_t size;
	uint32_t block_size, reserved;
	char words[PROXY_WORDS]; /* result < 0: the sentence */
};

/* --- the wire ----------------------------------------------------------------------------------
 */

int proxy_pair(int fd[2])
{
	const int space = 2 * PROXY_PIECE;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd) < 0)
		return -errno;
	for (int i = 0; i < 2; i++)
		(void)setsockopt(fd[i], SOL_SOCKET, SO_SNDBUF, &space, sizeof(space));
	return 0;
}

/* 1, 0 at the end before the first byte, or -EIO. */
static int take(int fd, void *buf, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = recv(fd, (char *)buf + done, len - done, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n == 0 && done == 0 ? 0 : -EIO;
		done += (size_t)n;
	}
	return 1;
}

static int give(int fd, const void *buf, size_t len)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = send(fd, (const char *)buf + done, len - done, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return -EIO;
		done += (size_t)n;
	}
	return 0;
}

/* --- serving -----------------------------------------------------------------------------------
 */

static int serve_read(int fd, struct blk *b, const struct request *q, void *buf)
{
	struct reply a = {.result = blk_read(b, buf, (size_t)q->len, q->off)};
	int r;

	a.len = a.result == 0 ? q->len : 0;
	r = give(fd, &a, sizeof(a));
	return r < 0 || a.len == 0 ? r : give(fd, buf, (size_t)a.len);
}

static int serve_extent(int fd, struct blk *b, const struct request *q)
{
	enum blk_extent what = BLK_EXT_DATA;
	struct reply a = {.len = q->len};

	a.result = blk_extent(b, q->off, &a.len, &what);
	a.what = (uint32_t)what;
	return give(fd, &a, sizeof(a));
}

static int serve_one(int fd, struct blk *b, const struct request *q, proxy_bad_fn bad, void *opaque,
		     void *buf)
{
	uint64_t size = blk_size(b);
	bool inside = q->len > 0 && q->len <= size && q->off <= size - q->len;
	struct reply a = {0};

	if (!inside || (q->op == OP_READ && q->len > PROXY_PIECE))
		return -EIO;
	switch (q->op) {
	case OP_READ:
		return serve_read(fd, b, q, buf);
	case OP_EXTENT:
		return serve_extent(fd, b, q);
	case OP_BAD:
		a.what = bad && bad(opaque, q->off, q->len);
		return give(fd, &a, sizeof(a));
	default:
		return -EIO;
	}
}

int proxy_serve(int fd, struct blk *b, proxy_bad_fn bad, void *opaque)
{
	struct hello h = {
		.magic = PROXY_MAGIC, .size = blk_size(b), .block_size = blk_info(b)->block_size};
	void *buf = malloc(PROXY_PIECE);
	struct request q;
	int r = buf ? give(fd, &h, sizeof(h)) : -ENOMEM;

	while (r == 0) {
		r = take(fd, &q, sizeof(q));
		if (r <= 0)
			break;
		r = serve_one(fd, b, &q, bad, opaque, buf);
	}
	free(buf);
	return r;
}

void proxy_refuse(int fd, int code, const char *sentence)
{
	struct hello h = {.magic = PROXY_MAGIC, .result = code < 0 ? code : -EIO};

	snprintf(h.words, sizeof(h.words), "%s", sentence);
	(void)give(fd, &h, sizeof(h));
}

/* --- the disk ----------------------------------------------------------------------------------
 */

struct proxy {
	int fd;
	pthread_mutex_t lock; /* one request at a time on fd */
	bool broken;
};

/* Ask; *a is the head of the answer.  Under the lock. */
static int ask(struct proxy *p, const struct request *q, struct reply *a)
{
	if (p->broken)
		return -EIO;
	if (give(p->fd, q, sizeof(*q)) < 0 || take(p->fd, a, sizeof(*a)) != 1) {
		p->broken = true;
		return -EIO;
	}
	return 0;
}

static int read_piece(struct proxy *p, void *buf, size_t len, uint64_t off)
{
	struct request q = {.op = OP_READ, .off = off, .len = len};
	struct reply a;
	int r;

	pthread_mutex_lock(&p->lock);
	r = ask(p, &q, &a);
	if (r == 0 && a.result < 0 && a.len == 0)
		r = a.result;
	else if (r == 0 && (a.result != 0 || a.len != len || take(p->fd, buf, len) != 1)) {
		p->broken = true;
		r = -EIO;
	}
	pthread_mutex_unlock(&p->lock);
	return r;
}

static int proxy_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
		       uint64_t off)
{
	for (unsigned i = 0; i < n; i++)
		for (size_t done = 0; done < iov[i].iov_len;) {
			size_t piece = MIN((size_t)PROXY_PIECE, iov[i].iov_len - done);
			int r = read_piece(b->priv, (char *)iov[i].iov_base + done, piece, off);

			if (r < 0)
				return r;
			done += piece;
			off += piece;
		}
	return 0;
}

static int proxy_extent(struct blk *b, uint64_t off, uint64_t *len, enum blk_extent *what)
{
	struct request q = {.op = OP_EXTENT, .off = off, .len = *len};
	struct proxy *p = b->priv;
	struct reply a;
	int r;

	pthread_mutex_lock(&p->lock);
	r = ask(p, &q, &a);
	pthread_mutex_unlock(&p->lock);
	if (r < 0)
		return r;
	if (a.result < 0)
		return a.result;
	if (a.result > 0 || a.what > BLK_EXT_HOLE || a.len == 0 || a.len > *len)
		return -EIO;
	*len = a.len;
	*what = (enum blk_extent)a.what;
	return 0;
}

static void proxy_free(struct proxy *p)
{
	close(p->fd);
	pthread_mutex_destroy(&p->lock);
	free(p);
}

static void proxy_close(struct blk *b)
{
	proxy_free(b->priv);
}

static const struct blk_format blk_proxy = {
	.name = "proxy",
	.help = "a disk held by another process",
	.parallel = true,
	.readv = proxy_readv,
	.extent = proxy_extent,
	.close = proxy_close,
};

static int greet(int fd, const char *name, struct hello *h, struct error *err)
{
	if (take(fd, h, sizeof(*h)) != 1 || h->magic != PROXY_MAGIC)
		return err_set(err, EIO, "'%s': the process that reads it has died", name);
	h->words[PROXY_WORDS - 1] = 0;
	if (h->result < 0)
		return err_set(err, -h->result, "%s", h->words);
	if (h->block_size != 512 && h->block_size != 4096)
		h->block_size = 512;
	return h->size <= INT64_MAX ? 0 : err_set(err, EIO, "'%s': has no sensible size", name);
}

int proxy_open(struct blk **out, int fd, const char *name, struct error *err)
{
	struct proxy *p = calloc(1, sizeof(*p));
	struct hello h;
	int r = p ? greet(fd, name, &h, err) : err_errno(err, ENOMEM, "'%s'", name);

	*out = NULL;
	if (r < 0) {
		free(p);
		close(fd);
		return r;
	}
	p->fd = fd;
	pthread_mutex_init(&p->lock, NULL);
	r = blk_wrap(out, &blk_proxy, p,
		     &(struct blk_info){.format = "proxy",
					.size = h.size,
					.block_size = h.block_size,
					.readonly = true},
		     BLK_READONLY | BLK_FILE | BLK_NO_POOL, err);
	if (r < 0)
		proxy_free(p);
	return r;
}

bool proxy_is_bad(struct blk *b, uint64_t off, uint64_t len)
{
	struct request q = {.op = OP_BAD, .off = off, .len = len};
	struct proxy *p;
	struct reply a;
	int r;

	if (b->fmt != &blk_proxy || len == 0)
		return false;
	p = b->priv;
	pthread_mutex_lock(&p->lock);
	r = ask(p, &q, &a);
	pthread_mutex_unlock(&p->lock);
	return r == 0 && a.result == 0 && a.what == 1;
}
