/* source/ssh.c - a disk or file of another host, read over SSH: what an ESXi host that still runs,
 * but shows no datastore, can give.
 *
 * Bytes come in chunks, which are kept for a while.  Reads that go forward have chunks on their way
 * that nobody asked for yet, more and more of them.  There is no thread: whoever needs a chunk that
 * is not here drives the connection until it is, one at a time (d->driven).
 *
 * Three things go wrong.  The connection is lost: it is made anew, and the read fails with ENOTCONN
 * only after some attempts in a row brought nothing.  A chunk there cannot be read: its parts are
 * then read one by one as they are asked for, and those that cannot be are EIO.  The file is no
 * longer what it was: ESTALE. */
#include "base/error.h"
#include "base/log.h"
#include "block/format.h"
#include "source/source.h"
#include "source/ssh_conn.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum {
	CHUNK = 256 * KiB,
	NR_CHUNKS = 192,
	MAX_AHEAD = 32,   /* chunks; 8 MiB */
	MAX_REQUEST = 16, /* chunks in one dd */
	NR_REQUESTS = 8,
	MAX_BS = 1024 * KiB,
	SECTOR = 512,
	CAREFUL = 64, /* requests that are probed first, after one that failed */
	ATTEMPTS = 5,
};

static struct log_component log_ssh = LOG_COMPONENT("ssh");

enum chunk_state { CHUNK_NONE, CHUNK_COMING, CHUNK_HERE, CHUNK_BAD };

struct chunk {
	uint64_t index, used; /* used: when, by the disk's clock */
	enum chunk_state state;
	uint8_t *data;
};

/* [at, end) of the file is on its way. */
struct request {
	uint64_t at, end;
	bool probed; /* a verdict comes first */
};

struct ssh_disk {
	struct ssh_where where;
	struct ssh_how how;
	unsigned attempts;
	uint64_t size;
	bool told; /* that host said the size; else it was found out by reading */

	pthread_mutex_t lock;   /* guards all below */
	pthread_cond_t changed; /* a chunk is here, or nobody drives */
	bool driven;            /* somebody uses conn and queue, without the lock */
	struct ssh_conn conn;
	struct request queue[NR_REQUESTS]; /* in the order of their answers */
	unsigned nr_queue;
	unsigned failed; /* connections in a row that brought nothing */
	unsigned careful;
	struct chunk chunk[NR_CHUNKS];
	uint64_t clock;
	uint64_t front; /* where a run of forward reads has come to, a chunk index */
	unsigned ahead; /* chunks to have on their way from there */
};

/* --- chunks -------------------------------------------------------------------------------------
 */

static uint64_t chunk_end(const struct ssh_disk *d, uint64_t index)
{
	return MIN((index + 1) * CHUNK, d->size);
}

static struct chunk *find(struct ssh_disk *d, uint64_t index)
{
	for (unsigned i = 0; i < NR_CHUNKS; i++)
		if (d->chunk[i].state != CHUNK_NONE && d->chunk[i].index == index)
			return &d->chunk[i];
	return NULL;
}

/* A place for another chunk: none is taken that is on its way.  The queue is shorter than that. */
static struct chunk *make_room(struct ssh_disk *d)
{
	struct chunk *oldest = NULL;

	for (unsigned i = 0; i < NR_CHUNKS; i++) {
		struct chunk *c = &d->chunk[i];

		if (c->state != CHUNK_COMING && (!oldest || c->used < oldest->used))
			oldest = c;
	}
	return oldest;
}

static bool want(struct ssh_disk *d, uint64_t index)
{
	struct chunk *c = make_room(d);

	if (!c)
		return false;
	if (!c->data)
		c->data = malloc(CHUNK);
	if (!c->data)
		return false;
	*c = (struct chunk){index, ++d->clock, CHUNK_COMING, c->data};
	return true;
}

/* Nothing more will come. */
static void forget_coming(struct ssh_disk *d)
{
	for (unsigned i = 0; i < NR_CHUNKS; i++)
		if (d->chunk[i].state == CHUNK_COMING)
			d->chunk[i] = (struct chunk){.data = d->chunk[i].data};
	d->nr_queue = 0;
}

/* --- the connection, for who drives -------------------------------------------------------------
 */

static void pause_before(unsigned attempt)
{
	unsigned ms = MIN(250u << MIN(attempt, 8u), 8000u);
	const struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};

	nanosleep(&t, NULL);
}

static bool pointless(int r)
{
	switch (-r) {
	case ENOENT:
	case EACCES:
	case EISDIR:
	case EIO:
	case EPERM:
	case EKEYREJECTED:
	case EPROTO:
	case ENOEXEC:
	case ESTALE:
		return true;
	default:
		return false;
	}
}

static int connect_once(struct ssh_disk *d, struct error *err)
{
	uint64_t size;
	int r = ssh_conn_open(&d->conn, &d->where, &d->how, &size, err);

	if (r < 0)
		return r;
	if (d->told && size < d->size) {
		ssh_conn_close(&d->conn);
		return err_set(err, ESTALE, "'%s' on '%s' has become smaller", d->where.path,
			       d->where.shown);
	}
	return 0;
}

/* The errno readers get: never one that means that the medium is bad. */
static int lost(int r)
{
	return r == -ESTALE || r == -ETIMEDOUT || r == -ENOMEM ? r : -ENOTCONN;
}

static int connect_again(struct ssh_disk *d)
{
	struct error err = {""};
	int r = -ENOTCONN;

	while (d->failed < d->attempts) {
		if (d->failed)
			pause_before(d->failed - 1);
		d->failed++;
		r = connect_once(d, &err);
		if (!r || pointless(r))
			break;
		log_warn(&log_ssh, "%s (attempt %u of %u)", err.msg, d->failed, d->attempts);
	}
	if (r < 0) {
		log_error(&log_ssh, "%s", err.msg[0] ? err.msg : "the connection is lost");
		d->failed = 0; /* the next read may try again */
		return lost(r);
	}
	return 0;
}

/* The largest block that fits the place: dd skips whole blocks. */
static uint32_t block_size(uint64_t off, uint64_t len)
{
	uint64_t both = off | len | MAX_BS;

	return (uint32_t)(both & -both);
}

/* What can be asked for at once: whole sectors, or the odd bytes behind the last of them. */
static uint64_t askable(uint64_t len)
{
	return len > SECTOR ? len - len % SECTOR : len;
}

static int ask(struct ssh_disk *d, enum ssh_op op, uint64_t off, uint64_t len)
{
	uint32_t bs = block_size(off, len);

	return ssh_conn_ask(&d->conn, op, bs, off / bs, len / bs);
}

/* The connection has ended, or should, because of `how`.  0: the file could not be read. */
static int find_out(struct ssh_disk *d, int how)
{
	struct error err = {""};
	bool medium;

	if (how == -ETIMEDOUT)
		err_set(&err, ETIMEDOUT, "'%s' sends nothing any more", d->where.shown);
	medium = how != -ETIMEDOUT && ssh_conn_why(&d->conn, &d->where, &err);
	log_at(&log_ssh, medium ? LOG_INFO : LOG_WARN, "%s", err.msg);
	ssh_conn_close(&d->conn);
	return medium ? 0 : -ENOTCONN;
}

static int take_all(struct ssh_disk *d, uint8_t *to, size_t len)
{
	for (size_t have = 0; have < len;) {
		ssize_t n = ssh_conn_take(&d->conn, to + have, len - have);

		if (n <= 0)
			return n ? (int)n : -EPIPE;
		have += (size_t)n;
	}
	d->failed = 0;
	return 0;
}

/* --- reading chunks, driving --------------------------------------------------------------------
 */

/* Under the lock: the chunks from `index` on that are not here, as one more request. */
static bool enqueue(struct ssh_disk *d, uint64_t index, uint64_t last)
{
	uint64_t end = index;
	struct request *q = &d->queue[d->nr_queue];

	if (d->nr_queue + 2 > NR_REQUESTS) /* the last chunk may take two */
		return false;
	while (end < last && end - index < (d->careful ? 1 : MAX_REQUEST) && !find(d, end) &&
	       want(d, end))
		end++;
	if (end == index)
		return false;
	*q = (struct request){index * CHUNK, chunk_end(d, end - 1), d->careful > 0};
	d->careful -= d->careful > 0;
	d->nr_queue++;
	return true;
}

static int send_request(struct ssh_disk *d, struct request *q)
{
	uint64_t first = askable(q->end - q->at);

	/* The odd bytes of the file's end: a request of their own. */
	if (q->at + first < q->end) {
		d->queue[d->nr_queue++] = (struct request){q->at + first, q->end, q->probed};
		q->end = q->at + first;
	}
	for (; q < &d->queue[d->nr_queue]; q++) {
		int r = ask(d, q->probed ? SSH_PROBE_DATA : SSH_DATA, q->at, q->end - q->at);

		if (r < 0)
			return r;
	}
	return 0;
}

/* Under the lock, driving: index first, then what lies ahead of it. */
static int request_from(struct ssh_disk *d, uint64_t index)
{
	uint64_t nr = (d->size + CHUNK - 1) / CHUNK, last = MIN(nr, index + MAX(d->ahead, 1u));

	for (; index < last; index++) {
		unsigned at = d->nr_queue;
		int r;

		if (find(d, index))
			continue;
		if (!enqueue(d, index, last))
			break;
		r = send_request(d, &d->queue[at]);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Under the lock: the first request's chunk cannot be read. */
static void mark_bad(struct ssh_disk *d)
{
	struct chunk *c = d->nr_queue ? find(d, d->queue[0].at / CHUNK) : NULL;

	if (c)
		c->state = CHUNK_BAD;
}

/* Without the lock: the next bytes of the first request, at most to the end of a chunk.  0 and how
 * many in *got; 1: it cannot be read there, and the connection goes on; -errno: it does not.
 * data NULL: the odd bytes of a chunk whose other bytes cannot be read. */
static int take_some(struct ssh_disk *d, struct request *q, uint8_t *data, uint64_t *got)
{
	uint64_t stop = MIN(q->end, chunk_end(d, q->at / CHUNK));
	uint8_t odd[SECTOR];
	int r;

	*got = 0;
	if (q->probed) {
		r = ssh_conn_verdict(&d->conn);
		if (r <= 0)
			return r ? r : 1;
		q->probed = false;
	}
	if (!data && stop - q->at > SECTOR)
		return -EPROTO; /* it answers for more than it was asked */
	r = take_all(d, data ? data + q->at % CHUNK : odd, stop - q->at);
	if (!r)
		*got = stop - q->at;
	return r;
}

/* Under the lock again, after take_some. */
static void account(struct ssh_disk *d, struct chunk *c, struct request q, uint64_t got)
{
	uint64_t index = q.at / CHUNK;

	q.at += got;
	if (c && q.at == chunk_end(d, index))
		c->state = CHUNK_HERE;
	d->queue[0] = q;
	if (q.at == q.end)
		memmove(d->queue, d->queue + 1, --d->nr_queue * sizeof(d->queue[0]));
}

static void drop_first(struct ssh_disk *d)
{
	mark_bad(d);
	d->careful = CAREFUL;
	memmove(d->queue, d->queue + 1, --d->nr_queue * sizeof(d->queue[0]));
}

/* Driving, with the lock, which is given up meanwhile: one step towards the first request.  What
 * goes wrong shows in the state of its chunk, and in whether there is still a connection. */
static void step(struct ssh_disk *d)
{
	struct request q = d->queue[0];
	struct chunk *c = find(d, q.at / CHUNK);
	uint8_t *data;
	uint64_t got;
	bool medium;
	int r;

	if (c && c->state != CHUNK_COMING)
		c = NULL;
	data = c ? c->data : NULL;
	pthread_mutex_unlock(&d->lock);
	r = take_some(d, &q, data, &got);
	medium = r < 0 && find_out(d, r) == 0;
	pthread_mutex_lock(&d->lock);
	if (r == 0)
		account(d, c, q, got);
	if (r == 1 || medium)
		drop_first(d);
	if (r < 0)
		forget_coming(d);
}

static int reconnect(struct ssh_disk *d)
{
	int r;

	pthread_mutex_unlock(&d->lock);
	r = connect_again(d);
	pthread_mutex_lock(&d->lock);
	return r;
}

/* Driving, with the lock: bring index here.  A lost connection is no error as long as another
 * can be made. */
static int drive(struct ssh_disk *d, uint64_t index)
{
	struct chunk *c;
	int r = 0;

	for (;;) {
		c = find(d, index);
		if (c && c->state != CHUNK_COMING)
			return 0;
		if (!d->conn.pid) {
			forget_coming(d);
			r = reconnect(d);
			if (r < 0)
				return r;
		}
		r = request_from(d, index);
		if (r < 0) {
			find_out(d, r);
			forget_coming(d);
			continue;
		}
		if (!d->nr_queue)
			return -ENOMEM;
		step(d);
		pthread_cond_broadcast(&d->changed);
	}
}

/* Forward reads have more and more on their way; threads that share a copy are not exactly in
 * order. */
static void notice(struct ssh_disk *d, uint64_t index)
{
	bool near = index + MAX_AHEAD > d->front && index <= d->front + 8;

	if (!near) {
		d->front = index + 1;
		d->ahead = 1;
	} else if (index >= d->front) {
		d->front = index + 1;
		d->ahead = MIN(d->ahead * 2, MAX_AHEAD);
	}
}

static int copy_out(struct ssh_disk *d, struct chunk *c, uint8_t *to, size_t at, size_t len)
{
	c->used = ++d->clock;
	if (c->state == CHUNK_BAD)
		return -EIO;
	memcpy(to, c->data + at, len);
	return 0;
}

/* Keeps the requests coming while what has arrived is used. */
static void top_up(struct ssh_disk *d, uint64_t index)
{
	if (d->driven || !d->conn.pid || d->ahead < 4 || d->nr_queue > 2)
		return;
	if (request_from(d, index) < 0) {
		ssh_conn_close(&d->conn);
		forget_coming(d);
	}
}

static int read_chunk(struct ssh_disk *d, uint64_t index, uint8_t *to, size_t at, size_t len)
{
	struct chunk *c;
	int r = 0;

	pthread_mutex_lock(&d->lock);
	notice(d, index);
	for (;;) {
		c = find(d, index);
		if (c && c->state != CHUNK_COMING) {
			r = copy_out(d, c, to, at, len);
			top_up(d, index);
			break;
		}
		if (d->driven) {
			pthread_cond_wait(&d->changed, &d->lock);
			continue;
		}
		d->driven = true;
		r = drive(d, index);
		d->driven = false;
		pthread_cond_broadcast(&d->changed);
		if (r < 0)
			break;
	}
	pthread_mutex_unlock(&d->lock);
	return r;
}

/* --- reading exactly: where a chunk is bad ------------------------------------------------------
 */

/* Driving, without the lock.  1: it cannot be read. */
static int probe_and_read(struct ssh_disk *d, uint8_t *to, uint64_t off, size_t len)
{
	int r = ask(d, SSH_PROBE_DATA, off, len);

	if (!r)
		r = ssh_conn_verdict(&d->conn);
	if (r == 0)
		d->failed = 0;
	return r > 0 ? take_all(d, to, len) : r < 0 ? r : 1;
}

static int read_exact(struct ssh_disk *d, uint8_t *to, uint64_t off, size_t len)
{
	int r = -EPIPE;

	while (r < 0) {
		r = d->conn.pid ? 0 : connect_again(d);
		if (r < 0)
			return r;
		r = probe_and_read(d, to, off, len);
		if (r >= 0)
			break;
		r = find_out(d, r);
		if (r == 0) /* readable a moment ago */
			r = 1;
	}
	return r ? -EIO : 0;
}

/* Driving, with the lock: what is on its way comes first, or the answers would be mixed up. */
static void settle(struct ssh_disk *d)
{
	while (d->conn.pid && d->nr_queue)
		step(d);
	forget_coming(d);
}

static int read_bad_chunk(struct ssh_disk *d, uint8_t *to, size_t len, uint64_t off)
{
	uint64_t first = off - off % SECTOR;
	uint64_t end = MIN((off + len + SECTOR - 1) / SECTOR * SECTOR, d->size);
	uint64_t most = askable(end - first);
	uint8_t *whole = malloc(end - first);
	int r = whole ? 0 : -ENOMEM;

	pthread_mutex_lock(&d->lock);
	while (d->driven)
		pthread_cond_wait(&d->changed, &d->lock);
	d->driven = true;
	settle(d);
	pthread_mutex_unlock(&d->lock);
	if (!r)
		r = read_exact(d, whole, first, most);
	if (!r && first + most < end)
		r = read_exact(d, whole + most, first + most, end - first - most);
	pthread_mutex_lock(&d->lock);
	d->driven = false;
	pthread_cond_broadcast(&d->changed);
	pthread_mutex_unlock(&d->lock);
	if (!r)
		memcpy(to, whole + (off - first), len);
	free(whole);
	return r;
}

static int read_span(struct ssh_disk *d, uint8_t *to, size_t len, uint64_t off)
{
	int r = 0;

	while (len && !r) {
		size_t at = off % CHUNK, piece = MIN(len, CHUNK - at);

		r = read_chunk(d, off / CHUNK, to, at, piece);
		if (r == -EIO)
			r = read_bad_chunk(d, to, piece, off);
		to += piece;
		off += piece;
		len -= piece;
	}
	return r;
}

static int ssh_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len, uint64_t off)
{
	int r = 0;

	for (unsigned i = 0; i < n && !r; off += iov[i++].iov_len)
		r = read_span(b->priv, iov[i].iov_base, iov[i].iov_len, off);
	return r;
}

/* --- the size, when that host cannot tell -------------------------------------------------------
 */

/* Does block nr of bs bytes exist?  1, 0 or -errno. */
static int exists(struct ssh_disk *d, uint32_t bs, uint64_t nr)
{
	int r = ssh_conn_ask(&d->conn, SSH_PROBE, bs, nr, 1);

	return r < 0 ? r : ssh_conn_verdict(&d->conn);
}

/* The first block from lo on that does not exist, by halving; hi does not. */
static int bisect(struct ssh_disk *d, uint32_t bs, uint64_t lo, uint64_t hi, uint64_t *end)
{
	while (lo < hi) {
		uint64_t mid = lo + (hi - lo) / 2;
		int r = exists(d, bs, mid);

		if (r < 0)
			return r;
		if (r)
			lo = mid + 1;
		else
			hi = mid;
	}
	*end = lo;
	return 0;
}

static int find_end(struct ssh_disk *d)
{
	uint64_t hi = 1, sectors, bytes;
	int r;

	/* Behind 2^54 sectors there is no off_t. */
	while (hi < 1ull << 54 && (r = exists(d, SECTOR, hi)) > 0)
		hi *= 2;
	r = r < 0 ? r : bisect(d, SECTOR, 0, hi, &sectors);
	if (r < 0)
		return r;
	r = bisect(d, 1, sectors * SECTOR, (sectors + 1) * SECTOR - 1, &bytes);
	if (r < 0)
		return r;
	d->size = bytes;
	return 0;
}

static int settle_size(struct ssh_disk *d, uint64_t size, struct error *err)
{
	int r = 0;

	d->size = size;
	d->told = size != UINT64_MAX && size;
	if (!d->told)
		r = find_end(d);
	if (r < 0) {
		r = find_out(d, r);
		return err_set(err, r ? -r : EIO, "cannot find out how large '%s' on '%s' is",
			       d->where.path, d->where.shown);
	}
	if (d->size == 0)
		return err_set(err, EINVAL,
			       "'%s' on '%s' is empty, or not a byte of it can be read",
			       d->where.path, d->where.shown);
	return d->size > INT64_MAX
		       ? err_set(err, EFBIG, "'%s' says that '%s' has %" PRIu64 " bytes",
				 d->where.shown, d->where.path, d->size)
		       : 0;
}

/* --- opening ------------------------------------------------------------------------------------
 */

static void ssh_free(struct ssh_disk *d)
{
	ssh_conn_close(&d->conn);
	for (unsigned i = 0; i < NR_CHUNKS; i++)
		free(d->chunk[i].data);
	ssh_where_fini(&d->where);
	ssh_how_fini(&d->how);
	pthread_cond_destroy(&d->changed);
	pthread_mutex_destroy(&d->lock);
	free(d);
}

static void ssh_close(struct blk *b)
{
	ssh_free(b->priv);
}

static const struct blk_format ssh_format = {
	.name = "ssh",
	.parallel = true,
	.close = ssh_close,
	.readv = ssh_readv,
};

static int ssh_start(struct ssh_disk *d, const char *name, const struct blk_remote_opts *remote,
		     struct error *err)
{
	uint64_t size;
	int r = ssh_where_parse(&d->where, name, err);

	d->attempts = remote && remote->attempts ? remote->attempts : ATTEMPTS;
	if (!r)
		r = ssh_how_init(&d->how, remote, err);
	if (!r)
		r = ssh_conn_open(&d->conn, &d->where, &d->how, &size, err);
	return r ? r : settle_size(d, size, err);
}

static int ssh_open(struct blk **file, const char *name, unsigned flags,
		    const struct blk_open_opts *opts, struct error *err)
{
	struct blk_info info = {.block_size = SECTOR};
	struct ssh_disk *d;
	int r;

	if (!(flags & BLK_READONLY))
		return err_set(err, EROFS, "'%s': what is on another host is only read over SSH",
			       name);
	d = calloc(1, sizeof(*d));
	if (!d)
		return err_errno(err, ENOMEM, "'%s'", name);
	d->conn = (struct ssh_conn){.in = -1, .out = -1, .err = -1};
	d->ahead = 1;
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->changed, NULL);
	r = ssh_start(d, name, opts ? opts->remote : NULL, err);
	info.size = d->size;
	if (r == 0)
		r = blk_wrap(file, &ssh_format, d, &info, flags, err);
	if (r < 0)
		ssh_free(d);
	return r;
}

const struct blk_source source_ssh = {
	.scheme = "ssh",
	.help = "ssh://[USER@]HOST[:PORT]/PATH: a disk or file of another host, over SSH",
	.open = ssh_open,
};
