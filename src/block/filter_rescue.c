/* block/filter_rescue.c - see filter_rescue.h.
 *
 * The order that makes the cache safe: bytes go to the file, then the map in memory says '+'; to
 * save, the map is copied, the file's data are flushed, then the copy goes to its file.  So what is
 * '+' on the medium was flushed before.  Two threads may fetch the same bytes: they write the
 * same. */
#include "block/filter_rescue.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "block/filter_common.h"
#include "block/internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
	PIECE = 256 * KiB,
	MAX_PIECE = 4 * MiB,
	STEP = 4 * MiB, /* the most that is read from below at once */
	SAVE_S = 4,
	HOLE = 64 * KiB, /* zeroes of this size and place are not written to the cache */
};

static struct log_component log_rescue = LOG_COMPONENT("rescue");

struct rescue {
	char *map_path, *source;
	int cache; /* -1: none */
	bool below_is_copy;
	unsigned retries, give_up;
	uint32_t sector, piece;
	bool cache_bad;      /* it takes no more; atomic */
	uint64_t read_below; /* atomic */

	pthread_mutex_t lock; /* guards the rest */
	struct rescue_map *map;
	uint64_t saved_ns;
	bool changed; /* since the last save */

	pthread_mutex_t saving; /* one at a time; before lock */
};

/* --- the map ------------------------------------------------------------------------------------
 */

static enum rescue_status status_at(struct rescue *s, uint64_t off, uint64_t *len)
{
	enum rescue_status status;

	pthread_mutex_lock(&s->lock);
	status = rescue_map_get(s->map, off, len);
	pthread_mutex_unlock(&s->lock);
	return status;
}

static int mark(struct rescue *s, uint64_t off, uint64_t len, enum rescue_status status)
{
	uint64_t run = len;
	int r = 0;

	pthread_mutex_lock(&s->lock);
	if (rescue_map_get(s->map, off, &run) != status || run < len) {
		r = rescue_map_set(s->map, off, len, status);
		s->changed = true;
	}
	pthread_mutex_unlock(&s->lock);
	return r;
}

static int take_copy(struct rescue *s, struct rescue_map **copy)
{
	int r = 0;

	*copy = NULL;
	pthread_mutex_lock(&s->lock);
	if (s->changed)
		r = rescue_map_copy(s->map, copy);
	s->changed &= r < 0;
	s->saved_ns = clock_mono_ns();
	pthread_mutex_unlock(&s->lock);
	return r;
}

/* With s->saving. */
static int save(struct rescue *s, struct error *err)
{
	struct rescue_map *copy;
	int r = take_copy(s, &copy);

	if (r < 0)
		return err_errno(err, -r, "cannot write the map '%s'", s->map_path);
	if (!copy)
		return 0;
	if (s->cache >= 0 && fdatasync(s->cache) < 0)
		r = err_errno(err, errno, "cannot write the cache of '%s'", s->map_path);
	else
		r = rescue_map_save(copy, s->map_path, s->source, err);
	rescue_map_free(copy);
	if (r < 0) {
		pthread_mutex_lock(&s->lock);
		s->changed = true;
		pthread_mutex_unlock(&s->lock);
	}
	return r;
}

static void save_sometimes(struct rescue *s)
{
	struct error err;
	bool due;

	if (!s->map_path || s->below_is_copy)
		return;
	pthread_mutex_lock(&s->lock);
	due = s->changed && clock_mono_ns() - s->saved_ns > SAVE_S * NSEC_PER_SEC;
	pthread_mutex_unlock(&s->lock);
	if (!due || pthread_mutex_trylock(&s->saving))
		return;
	if (save(s, &err) < 0)
		log_warn(&log_rescue, "%s", err.msg);
	pthread_mutex_unlock(&s->saving);
}

int blk_rescue_save(struct blk *b, struct error *err)
{
	struct rescue *s = b->priv;
	int r;

	if (!s->map_path || s->below_is_copy)
		return 0;
	pthread_mutex_lock(&s->saving);
	r = save(s, err);
	pthread_mutex_unlock(&s->saving);
	return r;
}

/* --- the cache ----------------------------------------------------------------------------------
 */

static bool all_zero(const uint8_t *p, size_t len)
{
	return !p[0] && !memcmp(p, p + 1, len - 1);
}

static int put(int fd, const uint8_t *p, size_t len, uint64_t off)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = pwrite(fd, p + done, len - done, (off_t)(off + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -ENOSPC;
		done += (size_t)n;
	}
	return 0;
}

/* A hole where there are zeroes: also where something else lay before, of a fetch that did not
 * come to its end. */
static int put_sparse(int fd, const uint8_t *p, size_t len, uint64_t off)
{
	int r = 0;

	while (len && !r) {
		size_t step = MIN(len, HOLE - off % HOLE);
		bool hole = step == HOLE && all_zero(p, step) &&
			    fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off,
				      (off_t)step) == 0;

		if (!hole)
			r = put(fd, p, step, off);
		p += step;
		off += step;
		len -= step;
	}
	return r;
}

static int get(int fd, uint8_t *p, size_t len, uint64_t off)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = pread(fd, p + done, len - done, (off_t)(off + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

/* The bytes are good.  A cache that is full loses nothing: the rest is read from below each time.
 */
static int keep(struct rescue *s, const uint8_t *p, size_t len, uint64_t off)
{
	int r = 0;

	if (s->cache >= 0) {
		if (!__atomic_load_n(&s->cache_bad, __ATOMIC_RELAXED))
			r = put_sparse(s->cache, p, len, off);
		if (r < 0 && !__atomic_exchange_n(&s->cache_bad, true, __ATOMIC_RELAXED))
			log_warn(&log_rescue, "the cache of '%s' takes no more: %s", s->map_path,
				 strerror(-r));
		if (__atomic_load_n(&s->cache_bad, __ATOMIC_RELAXED))
			return 0;
	}
	return mark(s, off, len, RESCUE_FINISHED);
}

/* --- reading from below -------------------------------------------------------------------------
 */

/* How one read goes: give_up counts sectors in a row. */
struct attempt {
	unsigned give_up, in_row;
};

static bool medium_error(int r)
{
	return r == -EIO || r == -ENODATA || r == -EILSEQ || r == -EREMOTEIO || r == -EBADMSG;
}

static int below_read(struct blk *b, uint8_t *to, size_t len, uint64_t off)
{
	struct rescue *s = b->priv;

	__atomic_add_fetch(&s->read_below, len, __ATOMIC_RELAXED);
	return blk_read(b->file, to, len, off);
}

static int lost_sector(struct blk *b, uint8_t *to, size_t len, uint64_t off, struct attempt *a)
{
	struct rescue *s = b->priv;
	int r = -EIO;

	for (unsigned i = 0; i < s->retries && medium_error(r); i++)
		r = below_read(b, to, len, off);
	if (r == 0) {
		a->in_row = 0;
		return keep(s, to, len, off);
	}
	if (!medium_error(r))
		return r;
	a->in_row++;
	memset(to, 0, len);
	return mark(s, off, len, RESCUE_BAD);
}

/* [off, off+len), at most STEP: zeroes where it cannot be read.  Halves have ends on sectors. */
static int read_hard(struct blk *b, uint8_t *to, size_t len, uint64_t off, struct attempt *a)
{
	struct rescue *s = b->priv;
	uint64_t mid;
	int r;

	if (a->give_up && a->in_row >= a->give_up) {
		memset(to, 0, len);
		return mark(s, off, len, RESCUE_NON_SCRAPED);
	}
	r = below_read(b, to, len, off);
	if (r == 0) {
		a->in_row = 0;
		return keep(s, to, len, off);
	}
	if (!medium_error(r))
		return r;
	mid = (off + len / 2) / s->sector * s->sector;
	if (mid <= off)
		mid = (off / s->sector + 1) * s->sector;
	if (mid >= off + len)
		return lost_sector(b, to, len, off, a);
	r = read_hard(b, to, mid - off, off, a);
	return r ? r : read_hard(b, to + (mid - off), off + len - mid, mid, a);
}

/* What to read to have [off, *end): whole pieces, as far as nobody has read them. */
static uint64_t widen(struct rescue *s, uint64_t off, uint64_t *end)
{
	uint64_t start, stop, lo = off;

	pthread_mutex_lock(&s->lock);
	rescue_map_around(s->map, off, &start, &stop);
	pthread_mutex_unlock(&s->lock);
	*end = MIN(*end, stop);
	if (s->piece) {
		lo = MAX(start, off - off % s->piece);
		*end = MIN(stop, (*end + s->piece - 1) / s->piece * s->piece);
	}
	*end = MIN(*end, lo + STEP);
	return lo;
}

/* Some bytes from off on, at most len: how many in *got. */
static int fetch(struct blk *b, uint8_t *to, size_t len, uint64_t off, struct attempt *a,
		 uint64_t *got)
{
	struct rescue *s = b->priv;
	uint64_t end = off + MIN(len, (size_t)STEP - MAX_PIECE / 2), lo = widen(s, off, &end);
	uint8_t *whole;
	int r;

	*got = MIN(end - off, len);
	if (lo == off && end - off <= len)
		return read_hard(b, to, end - off, off, a);
	whole = malloc(end - lo);
	if (!whole)
		return -ENOMEM;
	r = read_hard(b, whole, end - lo, lo, a);
	if (!r)
		memcpy(to, whole + (off - lo), *got);
	free(whole);
	return r;
}

/* --- reading ------------------------------------------------------------------------------------
 */

static int read_run(struct blk *b, uint8_t *to, uint64_t len, uint64_t off, uint64_t *got)
{
	struct rescue *s = b->priv;
	struct attempt a = {.give_up = s->give_up};
	enum rescue_status status;

	*got = len;
	status = status_at(s, off, got);
	if (status == RESCUE_FINISHED && s->cache >= 0 && get(s->cache, to, *got, off) == 0)
		return 0;
	if (status == RESCUE_FINISHED && (s->below_is_copy || s->cache >= 0))
		return below_read(b, to, *got, off);
	if (status == RESCUE_FINISHED)
		return read_hard(b, to, *got = MIN(*got, STEP), off, &a);
	if (status == RESCUE_NON_TRIED && !s->below_is_copy)
		return fetch(b, to, *got, off, &a, got);
	memset(to, 0, *got);
	return 0;
}

static int rescue_readv(struct blk *b, const struct iovec *iov, unsigned n, uint64_t len,
			uint64_t off)
{
	int r = 0;

	for (unsigned i = 0; i < n && !r; i++) {
		for (uint64_t done = 0, got; done < iov[i].iov_len && !r; done += got)
			r = read_run(b, (uint8_t *)iov[i].iov_base + done, iov[i].iov_len - done,
				     off + done, &got);
		off += iov[i].iov_len;
	}
	save_sometimes(b->priv);
	return r;
}

static bool is_lost(const struct rescue *s, enum rescue_status status)
{
	return status != RESCUE_FINISHED && (status != RESCUE_NON_TRIED || s->below_is_copy);
}

/* No .map: who knew where the bytes are would read past us. */
static int rescue_extent(struct blk *b, uint64_t off, uint64_t *len, enum blk_extent *what)
{
	struct rescue *s = b->priv;
	enum rescue_status status = status_at(s, off, len);

	if (is_lost(s, status)) {
		*what = BLK_EXT_ZERO;
		return 0;
	}
	*what = BLK_EXT_DATA;
	if (s->cache >= 0)
		return 0;
	if (blk_extent(b->file, off, len, what) < 0)
		*what = BLK_EXT_DATA;
	return 0;
}

/* --- questions ----------------------------------------------------------------------------------
 */

bool blk_rescue_is_bad(struct blk *b, uint64_t off, uint64_t *len)
{
	struct rescue *s = b->priv;
	uint64_t asked = *len, run, done;
	bool bad;

	*len = MIN(asked, blk_size(b) - MIN(off, blk_size(b)));
	if (!*len)
		return false;
	run = *len;
	bad = is_lost(s, status_at(s, off, &run));
	for (done = run; done < *len; done += run) {
		run = *len - done;
		if (is_lost(s, status_at(s, off + done, &run)) != bad)
			break;
	}
	*len = done;
	return bad;
}

bool blk_rescue_has_bad(struct blk *b, uint64_t off, uint64_t len)
{
	uint64_t run = len;

	return blk_rescue_is_bad(b, off, &run) || (run && run < len && off + run < blk_size(b));
}

bool blk_rescue_is_kept(struct blk *b, uint64_t off, uint64_t *len)
{
	if (off >= blk_size(b))
		return false;
	*len = MIN(*len, blk_size(b) - off);
	return status_at(b->priv, off, len) == RESCUE_FINISHED;
}

void blk_rescue_counts(struct blk *b, struct blk_rescue_counts *counts)
{
	struct rescue *s = b->priv;

	pthread_mutex_lock(&s->lock);
	*counts = (struct blk_rescue_counts){
		.finished = rescue_map_count(s->map, RESCUE_FINISHED),
		.bad = rescue_map_count(s->map, RESCUE_BAD),
		.skipped = rescue_map_count(s->map, RESCUE_NON_TRIMMED) +
			   rescue_map_count(s->map, RESCUE_NON_SCRAPED),
		.non_tried = rescue_map_count(s->map, RESCUE_NON_TRIED),
	};
	pthread_mutex_unlock(&s->lock);
	counts->read_below = __atomic_load_n(&s->read_below, __ATOMIC_RELAXED);
}

/* --- fetching -----------------------------------------------------------------------------------
 */

struct fetching {
	struct blk *b;
	uint8_t *buf;
	uint64_t done;
	bool (*progress)(void *opaque, uint64_t done);
	void *opaque;
};

static int fetch_run(struct fetching *f, uint64_t off, uint64_t len, unsigned give_up)
{
	for (uint64_t at = 0, step; at < len; at += step) {
		struct attempt a = {.give_up = give_up};
		int r;

		step = MIN(len - at, STEP);
		r = read_hard(f->b, f->buf, step, off + at, &a);
		if (r < 0)
			return r;
		f->done += step;
		save_sometimes(f->b->priv);
		if (f->progress && !f->progress(f->opaque, f->done))
			return -EINTR;
	}
	return 0;
}

/* All runs of some statuses: each once, though they may change under way. */
static int fetch_pass(struct fetching *f, uint64_t off, uint64_t len, const char *statuses,
		      unsigned give_up)
{
	struct rescue *s = f->b->priv;
	int r = 0;

	for (uint64_t end = off + len, run; off < end && !r; off += run) {
		enum rescue_status status;

		run = end - off;
		status = status_at(s, off, &run);
		if (strchr(statuses, status))
			r = fetch_run(f, off, run, give_up);
	}
	return r;
}

static int fetch_all(struct fetching *f, uint64_t off, uint64_t len, bool retry_bad)
{
	struct rescue *s = f->b->priv;
	char last[4] = "*/";
	int r = fetch_pass(f, off, len, "?", s->give_up);

	/* Scraping and trying again are one pass, or what scraping finds bad would be read twice.
	 */
	if (retry_bad)
		strcat(last, "-");
	return r ? r : fetch_pass(f, off, len, last, 0);
}

int blk_rescue_fetch(struct blk *b, uint64_t off, uint64_t len, bool retry_bad,
		     bool (*progress)(void *opaque, uint64_t done), void *opaque, struct error *err)
{
	struct fetching f = {.b = b, .progress = progress, .opaque = opaque};
	struct rescue *s = b->priv;
	int r;

	if (!range_inside(off, len, blk_size(b)))
		return err_set(err, EINVAL, "what is to be fetched lies behind the end");
	if (s->below_is_copy)
		return 0;
	f.buf = malloc(STEP);
	if (!f.buf)
		return err_errno(err, ENOMEM, "fetch");
	r = fetch_all(&f, off, len, retry_bad);
	free(f.buf);
	if (r < 0)
		return r == -EINTR ? err_set(err, EINTR, "interrupted")
				   : err_errno(err, -r, "cannot fetch from '%s'",
					       s->source ? s->source : "the disk");
	return blk_rescue_save(b, err);
}

/* --- opening ------------------------------------------------------------------------------------
 */

static void rescue_free(struct rescue *s)
{
	if (s->cache >= 0)
		close(s->cache);
	rescue_map_free(s->map);
	pthread_mutex_destroy(&s->lock);
	pthread_mutex_destroy(&s->saving);
	free(s->map_path);
	free(s->source);
	free(s);
}

static void rescue_close(struct blk *b)
{
	struct error err;

	if (blk_rescue_save(b, &err) < 0)
		log_error(&log_rescue, "%s", err.msg);
	rescue_free(b->priv);
}

static const struct blk_format rescue_format = {
	.name = "rescue",
	.parallel = true,
	.close = rescue_close,
	.readv = rescue_readv,
	.extent = rescue_extent,
};

/* What an earlier opening left undone counts as not tried. */
static int look_again(struct rescue *s, bool retry_bad)
{
	uint64_t size = rescue_map_size(s->map);
	int r = 0;

	for (uint64_t off = 0, run; off < size && !r; off += run) {
		enum rescue_status status;

		run = size - off;
		status = rescue_map_get(s->map, off, &run);
		if (status == RESCUE_NON_TRIMMED || status == RESCUE_NON_SCRAPED ||
		    (status == RESCUE_BAD && retry_bad))
			r = rescue_map_set(s->map, off, run, RESCUE_NON_TRIED);
	}
	return r;
}

static int load_map(struct rescue *s, uint64_t size, bool retry_bad, bool *fresh, struct error *err)
{
	int r = -ENOENT;

	if (s->map_path)
		r = rescue_map_load(&s->map, s->map_path, size, s->source, err);
	*fresh = r == -ENOENT;
	if (r == -ENOENT && !s->below_is_copy)
		return rescue_map_new(&s->map, size, err);
	if (r == 0 && !s->below_is_copy && look_again(s, retry_bad) < 0)
		r = err_errno(err, ENOMEM, "'%s'", s->map_path);
	return r;
}

/* A map without its cache would claim what is nowhere; a file without its map is somebody's. */
static int check_cache(struct rescue *s, const char *path, uint64_t size, bool fresh_map,
		       struct error *err)
{
	uint64_t claimed = rescue_map_last(s->map, RESCUE_FINISHED), have;
	struct stat st;

	if (fstat(s->cache, &st) < 0)
		return err_errno(err, errno, "cannot use the cache '%s'", path);
	if (!S_ISREG(st.st_mode))
		return err_set(err, EINVAL, "the cache '%s' is not a regular file", path);
	if (blk_lock_fd(s->cache, false) == -EBUSY)
		return err_set(err, EBUSY, "the cache '%s' is in use by another program", path);
	have = (uint64_t)st.st_size;
	if (have && fresh_map)
		return err_set(err, EEXIST,
			       "'%s' is there already, and no map '%s' that says what is in it; "
			       "remove it, or give another name",
			       path, s->map_path);
	if (claimed > have || have > size)
		return err_set(err, EINVAL,
			       "'%s' is not the cache that the map '%s' is about: it has %" PRIu64
			       " bytes; remove the map and it to begin again",
			       path, s->map_path, have);
	return 0;
}

/* The map is there before the cache, so that no crash leaves a file nobody knows. */
static int open_cache(struct rescue *s, const char *path, uint64_t size, bool fresh_map,
		      struct error *err)
{
	int r;

	s->cache = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NONBLOCK | O_NOCTTY, 0600);
	if (s->cache < 0)
		return err_errno(err, errno, "cannot use the cache '%s'", path);
	r = check_cache(s, path, size, fresh_map, err);
	if (r == 0 && fresh_map)
		r = rescue_map_save(s->map, s->map_path, s->source, err);
	if (r < 0)
		return r;
	if (ftruncate(s->cache, (off_t)size) < 0)
		return err_errno(err, errno, "cannot make the cache '%s' as large as the disk",
				 path);
	r = rescue_sync_directory(path);
	return r < 0 ? err_errno(err, -r, "cannot use the cache '%s'", path) : 0;
}

static int check_opts(const struct blk_rescue_opts *o, struct error *err)
{
	if (o->cache_path && !o->map_path)
		return err_set(err, EINVAL, "a cache needs a map that says what is in it");
	if (o->below_is_copy && (!o->map_path || o->cache_path))
		return err_set(err, EINVAL, "a rescued copy needs its map, and no cache");
	if ((o->piece & (o->piece - 1)) || o->piece > MAX_PIECE / 2 ||
	    (o->sector & (o->sector - 1)))
		return err_set(err, EINVAL, "pieces and sectors are powers of two");
	return 0;
}

static int start(struct rescue *s, const struct blk_rescue_opts *o, const struct blk_info *info,
		 struct error *err)
{
	int r = check_opts(o, err);
	bool fresh;

	if (r < 0)
		return r;
	s->map_path = o->map_path ? strdup(o->map_path) : NULL;
	s->source = o->source ? strdup(o->source) : NULL;
	if ((o->map_path && !s->map_path) || (o->source && !s->source))
		return err_errno(err, ENOMEM, "rescue");
	s->below_is_copy = o->below_is_copy;
	s->retries = o->retries;
	s->give_up = o->give_up;
	s->sector = o->sector ? o->sector : MAX(info->block_size, 512u);
	s->piece = o->piece ? o->piece : o->cache_path ? PIECE : 0;
	s->saved_ns = clock_mono_ns();
	r = load_map(s, info->size, o->retry_bad, &fresh, err);
	if (!r && o->cache_path)
		r = open_cache(s, o->cache_path, info->size, fresh, err);
	return r;
}

int blk_rescue(struct blk **out, struct blk *below, const struct blk_rescue_opts *opts,
	       unsigned flags, struct error *err)
{
	static const struct blk_rescue_opts none;
	struct blk_info info = *blk_info(below);
	struct rescue *s = calloc(1, sizeof(*s));
	int r;

	if (!s) {
		blk_close(below);
		return err_errno(err, ENOMEM, "rescue");
	}
	s->cache = -1;
	pthread_mutex_init(&s->lock, NULL);
	pthread_mutex_init(&s->saving, NULL);
	info.size = blk_size(below);
	r = start(s, opts ? opts : &none, &info, err);
	if (r < 0)
		blk_close(below);
	else
		r = filter_wrap(out, below, &rescue_format, s, flags | BLK_READONLY, err);
	if (r < 0)
		rescue_free(s);
	return r;
}
