/* block/qcow2/pack.c - compressed clusters: raw deflate (RFC 1951) or one zstd frame.
 *
 * Compressing and expanding happen without any lock; contexts are kept for the next caller. */
#include "block/qcow2/pack.h"

#include "block/entropy.h"
#include "block/qcow2/qcow2.h"

#include <libdeflate.h>
#include <stdlib.h>
#include <zstd.h>

/* Other writers of this format use zlib's level 6 with a window of 4 KiB only: libdeflate's level
 * 2, with 32 KiB, packs closer in a seventh of the time.  zstd's own default is what they use. */
enum { DEFLATE_LEVEL = 2, ZSTD_LEVEL = ZSTD_CLEVEL_DEFAULT };

struct q_codec {
	struct libdeflate_decompressor *inflate;
	struct libdeflate_compressor *deflate;
	ZSTD_DStream *unzstd;
	ZSTD_CCtx *zstd;
	uint8_t *in; /* what is read from the file, or a last cluster made whole */
	size_t in_cap;
	struct q_codec *next;
};

static void codec_free(struct q_codec *c)
{
	libdeflate_free_decompressor(c->inflate);
	libdeflate_free_compressor(c->deflate);
	ZSTD_freeDStream(c->unzstd);
	ZSTD_freeCCtx(c->zstd);
	free(c->in);
	free(c);
}

int q_codecs_init(struct q_codecs *cs)
{
	cs->idle = NULL;
	return -pthread_mutex_init(&cs->lock, NULL);
}

void q_codecs_fini(struct q_codecs *cs)
{
	while (cs->idle) {
		struct q_codec *c = cs->idle;

		cs->idle = c->next;
		codec_free(c);
	}
	pthread_mutex_destroy(&cs->lock);
}

static struct q_codec *codec_get(struct q_codecs *cs, size_t in_cap)
{
	struct q_codec *c;

	pthread_mutex_lock(&cs->lock);
	c = cs->idle;
	if (c)
		cs->idle = c->next;
	pthread_mutex_unlock(&cs->lock);
	if (!c)
		c = calloc(1, sizeof(*c));
	if (!c || c->in_cap >= in_cap)
		return c;
	free(c->in);
	c->in = malloc(in_cap);
	c->in_cap = c->in ? in_cap : 0;
	if (!c->in) {
		codec_free(c);
		return NULL;
	}
	return c;
}

static void codec_put(struct q_codecs *cs, struct q_codec *c)
{
	pthread_mutex_lock(&cs->lock);
	c->next = cs->idle;
	cs->idle = c;
	pthread_mutex_unlock(&cs->lock);
}

/* ---- expanding ---- */

static int inflate_cluster(struct q_codec *c, size_t in_len, uint8_t *out, size_t out_len)
{
	size_t used, got;

	if (!c->inflate)
		c->inflate = libdeflate_alloc_decompressor();
	if (!c->inflate)
		return -ENOMEM;
	/* What follows the stream belongs to somebody else. */
	if (libdeflate_deflate_decompress_ex(c->inflate, c->in, in_len, out, out_len, &used,
					     &got) != LIBDEFLATE_SUCCESS)
		return -EBADMSG;
	return got == out_len ? 0 : -EBADMSG;
}

/* Writers need no window beyond a cluster; hostile ones may ask for 128 MiB. */
enum { ZSTD_WINDOW_LOG_MAX = 23 };

static int unzstd_cluster(struct q_codec *c, size_t in_len, uint8_t *out, size_t out_len)
{
	ZSTD_inBuffer in = {c->in, in_len, 0};
	ZSTD_outBuffer to = {out, out_len, 0};

	if (!c->unzstd)
		c->unzstd = ZSTD_createDStream();
	if (!c->unzstd)
		return -ENOMEM;
	ZSTD_DCtx_reset(c->unzstd, ZSTD_reset_session_only);
	ZSTD_DCtx_setParameter(c->unzstd, ZSTD_d_windowLogMax, ZSTD_WINDOW_LOG_MAX);
	while (to.pos < to.size) {
		size_t before = to.pos + in.pos, r = ZSTD_decompressStream(c->unzstd, &to, &in);

		if (ZSTD_isError(r) || to.pos + in.pos == before)
			return -EBADMSG;
	}
	return 0;
}

int q_unpack(struct qcow2 *q, const struct q_run *run, uint8_t *cluster)
{
	struct q_codec *c;
	int r;

	if (run->host >= Q_HOST_MAX)
		return q_corrupt(q, true, "compressed data lies behind 2^56");
	c = codec_get(&q->codecs, run->packed_len);
	if (!c)
		return -ENOMEM;
	r = q_file_read(q->file, c->in, run->packed_len, run->host);
	if (!r)
		r = q->h.compression == Q_ZSTD
			    ? unzstd_cluster(c, run->packed_len, cluster, q->cluster)
			    : inflate_cluster(c, run->packed_len, cluster, q->cluster);
	codec_put(&q->codecs, c);
	if (r == -EBADMSG)
		r = q_corrupt(q, false, "the compressed data at %#llx of the file is damaged",
			      (unsigned long long)run->host);
	return r;
}

/* ---- compressing ---- */

size_t q_pack_bound(const struct blk *b)
{
	const struct qcow2 *q = q_of(b);

	return q->has_data_file || q->h.crypt ? 0 : q->cluster;
}

static size_t deflate_cluster(struct q_codec *c, const void *data, size_t len, void *out,
			      size_t cap)
{
	if (blk_looks_random(data, len))
		return 0;
	if (!c->deflate)
		c->deflate = libdeflate_alloc_compressor(DEFLATE_LEVEL);
	return c->deflate ? libdeflate_deflate_compress(c->deflate, data, len, out, cap) : 0;
}

static size_t zstd_cluster(struct q_codec *c, const void *data, size_t len, void *out, size_t cap)
{
	size_t n;

	if (!c->zstd)
		c->zstd = ZSTD_createCCtx();
	n = c->zstd ? ZSTD_compressCCtx(c->zstd, out, cap, data, len, ZSTD_LEVEL) : 0;
	return ZSTD_isError(n) ? 0 : n;
}

int q_pack(struct blk *b, const void *data, size_t len, void *out, size_t cap, size_t *out_len)
{
	struct qcow2 *q = q_of(b);
	struct q_codec *c = codec_get(&q->codecs, q->cluster);

	if (!c)
		return -ENOMEM;
	if (len < q->cluster) {
		memcpy(c->in, data, len);
		memset(c->in + len, 0, q->cluster - len);
		data = c->in;
	}
	cap = MIN(cap, q->cluster - 1); /* no smaller is no gain */
	*out_len = q->h.compression == Q_ZSTD ? zstd_cluster(c, data, q->cluster, out, cap)
					      : deflate_cluster(c, data, q->cluster, out, cap);
	codec_put(&q->codecs, c);
	return *out_len ? 0 : -E2BIG;
}

static int link_packed(struct qcow2 *q, uint64_t guest, uint64_t host, size_t len)
{
	struct q_place at;
	struct q_entry old;
	int r = q_l2_find(q, guest, true, &at);

	if (r < 0)
		return r;
	old = q_entry_get(q, &at);
	q_entry_set(q, &at, (struct q_entry){.desc = q_packed_desc(q, host, len)});
	return q_entry_free(q, old, false);
}

static int place_packed(struct qcow2 *q, const void *packed, size_t packed_len, uint64_t off)
{
	uint64_t host;
	int r;

	pthread_mutex_lock(&q->lock);
	r = q->corrupt ? -EIO : q_alloc_packed(q, packed_len, &host);
	pthread_mutex_unlock(&q->lock);
	if (!r)
		r = blk_write(q->file, packed, packed_len, host);
	if (r < 0)
		return r;
	pthread_mutex_lock(&q->lock);
	r = link_packed(q, off, host, packed_len);
	pthread_mutex_unlock(&q->lock);
	return r;
}

int q_write_packed(struct blk *b, const void *packed, size_t packed_len, size_t len, uint64_t off)
{
	struct qcow2 *q = q_of(b);
	int r;

	if (q->has_data_file || q->h.crypt)
		return -ENOTSUP;
	pthread_rwlock_rdlock(&q->io);
	r = q_bitmaps_note(q, off, len);
	if (!r)
		r = place_packed(q, packed, packed_len, off);
	if (!r)
		r = q_commit_if_full(q);
	pthread_rwlock_unlock(&q->io);
	return r;
}
