/* disk/convert.c - see convert.h.
 *
 * One cursor over the source, under a lock, hands pieces to the threads of the team.  What becomes
 * of a piece: shared by the file system; copied by the kernel; read, and written but for its
 * zeroes; or read and packed into a batch of compressed clusters (pack.c). */
#include "disk/convert.h"

#include "base/clock.h"
#include "disk/cursor.h"
#include "disk/journal.h"
#include "disk/manifest.h"
#include "disk/pack.h"
#include "disk/zero.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_WORKERS = 64, LOOK_STEPS = 1 << 20 };

#define COPY_CHUNK    (2 * MiB)
#define PACK_CHUNK    (1 * MiB)
#define ZERO_STEP     (256 * MiB)
#define WHOLE_UNIT    (64 * KiB) /* a smaller part of a cluster is not worth leaving out */
#define SAVE_EVERY_NS (4 * NSEC_PER_SEC)
#define BUFFER_ALIGN  4096
#define IDLE          UINT64_MAX

struct convert {
	struct disk_convert *o;
	struct blk *src, *dst;
	struct disk_team team;
	uint64_t shift; /* where source byte 0 goes, modulo 2^64 */
	size_t grain;   /* zeroes are looked for in units of this; 0: not at all */
	struct pack *pack;
	_Atomic bool no_share, no_copy;
	_Atomic unsigned workers;

	pthread_mutex_t lock; /* guards all below */
	struct disk_cursor cursor;
	uint64_t at[MAX_WORKERS]; /* what each worker is at, or IDLE */
	uint64_t saved_ns;
	bool saving;
};

static int fail_at(struct error *err, int r, const char *verb, struct blk *b, uint64_t off)
{
	return err_errno(err, -r, "cannot %s '%s' at byte %llu", verb, blk_path(b),
			 (unsigned long long)off);
}

/* ---- pieces ---- */

static int write_zeroes(struct convert *cv, uint64_t off, uint64_t len, struct error *err)
{
	int r = 0;

	while (len && !r && !disk_team_stopped(&cv->team)) {
		uint64_t step = MIN(len, ZERO_STEP);

		r = blk_write_zeroes(cv->dst, off, step, true);
		if (r < 0)
			return fail_at(err, r, "write", cv->dst, off);
		off += step;
		len -= step;
	}
	return r;
}

static int write_data(struct convert *cv, const uint8_t *data, size_t len, uint64_t off,
		      struct error *err)
{
	int r = blk_write(cv->dst, data, len, off);

	return r < 0 ? fail_at(err, r, "write", cv->dst, off) : 0;
}

/* The length of the run of one kind at data; units are aligned to the disk, not to the piece. */
static size_t same_kind(const uint8_t *data, size_t len, uint64_t off, size_t grain, bool *zero)
{
	size_t done = 0;

	while (done < len) {
		size_t step = MIN(len - done, grain - (off + done) % grain);
		bool z = disk_is_zero(data + done, step);

		if (done && z != *zero)
			break;
		*zero = z;
		done += step;
	}
	return done;
}

static int write_sparse(struct convert *cv, const uint8_t *data, size_t len, uint64_t off,
			struct error *err)
{
	int r = 0;

	while (len && !r) {
		bool zero = false;
		size_t run = same_kind(data, len, off, cv->grain, &zero);

		if (!zero)
			r = write_data(cv, data, run, off, err);
		else if (!cv->o->target_is_zero)
			r = write_zeroes(cv, off, run, err);
		data += run;
		off += run;
		len -= run;
	}
	return r;
}

static int read_piece(struct convert *cv, const struct disk_piece *p, uint8_t *data,
		      struct error *err)
{
	int r = blk_read(cv->src, data, p->len, p->off);

	if (r < 0)
		return fail_at(err, r, "read", cv->src, p->off);
	if (cv->o->manifest)
		r = disk_manifest_add(cv->o->manifest, p->off, data, p->len);
	return r < 0 ? err_errno(err, -r, "manifest") : 0;
}

/* 1: done. */
static int try_kernel(struct convert *cv, const struct disk_piece *p, bool share,
		      _Atomic bool *cannot)
{
	int r;

	if (*cannot || !p->host)
		return 0;
	if (share && (p->host_off | (p->off + cv->shift) | p->len) % BUFFER_ALIGN)
		return 0;
	r = blk_copy_range(p->host, p->host_off, cv->dst, p->off + cv->shift, p->len, share);
	if (r == -ENOTSUP && share)
		*cannot = true;
	return !r; /* an error shows again, with its sentence, when it is read and written */
}

static int copy_piece(struct convert *cv, const struct disk_piece *p, uint8_t *data,
		      struct error *err)
{
	uint64_t to = p->off + cv->shift;
	int r;

	if (!cv->o->manifest && cv->o->sparse && try_kernel(cv, p, true, &cv->no_share))
		return 0;
	if (cv->o->copy_range && !cv->o->manifest && try_kernel(cv, p, false, &cv->no_copy))
		return 0;
	r = read_piece(cv, p, data, err);
	if (r < 0)
		return r;
	if (!cv->grain)
		return write_data(cv, data, p->len, to, err);
	return write_sparse(cv, data, p->len, to, err);
}

/* ---- the journal ---- */

/* All before this is in the target. */
static uint64_t done_up_to(const struct convert *cv)
{
	uint64_t done = cv->cursor.off;

	for (unsigned i = 0; i < MAX_WORKERS; i++)
		done = MIN(done, cv->at[i]);
	return done;
}

static int save_journal(struct convert *cv, struct error *err)
{
	uint64_t now = clock_mono_ns(), done;
	bool due;
	int r;

	if (!cv->o->journal)
		return 0;
	pthread_mutex_lock(&cv->lock);
	due = !cv->saving && now - cv->saved_ns >= SAVE_EVERY_NS;
	done = done_up_to(cv);
	cv->saving |= due;
	pthread_mutex_unlock(&cv->lock);
	if (!due)
		return 0;
	r = blk_flush(cv->dst);
	if (r < 0)
		err_errno(err, -r, "cannot flush '%s'", blk_path(cv->dst));
	else
		r = disk_journal_save(cv->o->journal, cv->o->key, done, err);
	pthread_mutex_lock(&cv->lock);
	cv->saving = false;
	cv->saved_ns = clock_mono_ns();
	pthread_mutex_unlock(&cv->lock);
	return r;
}

/* ---- threads ---- */

/* 1: *p is for this worker; 0: there is no more. */
static int take_piece(struct convert *cv, unsigned self, struct disk_piece *p, uint64_t *seq,
		      struct error *err)
{
	int r = 0;

	pthread_mutex_lock(&cv->lock);
	cv->at[self] = IDLE;
	if (cv->pack)
		pack_wait(cv->pack, &cv->lock, &cv->team);
	if (!disk_team_stopped(&cv->team)) {
		r = disk_cursor_next(&cv->cursor, p);
		if (r > 0) {
			cv->at[self] = p->off;
			if (cv->pack && p->kind == DISK_DATA)
				*seq = pack_ticket(cv->pack);
		} else if (r < 0) {
			fail_at(err, r, "map", cv->src, cv->cursor.off);
		}
	}
	pthread_mutex_unlock(&cv->lock);
	return r;
}

static int do_piece(struct convert *cv, const struct disk_piece *p, uint64_t seq, unsigned self,
		    uint8_t *data, struct error *err)
{
	struct pack_batch *batch;
	int r;

	if (p->kind == DISK_BELOW)
		return 0;
	if (p->kind == DISK_ZERO)
		return cv->o->target_is_zero ? 0
					     : write_zeroes(cv, p->off + cv->shift, p->len, err);
	if (!cv->pack)
		return copy_piece(cv, p, data, err);
	batch = pack_batch_for(cv->pack, seq, self);
	r = read_piece(cv, p, pack_batch_data(batch), err);
	if (!r)
		r = pack_batch_fill(cv->pack, batch, p->len, p->off + cv->shift, err);
	if (!r)
		r = pack_batch_write(cv->pack, batch, &cv->lock, &cv->team, err);
	return r;
}

static int work(void *opaque, struct error *err)
{
	struct convert *cv = opaque;
	unsigned self = cv->workers++;
	uint8_t *data = cv->pack ? NULL : aligned_alloc(BUFFER_ALIGN, cv->cursor.chunk);
	struct disk_piece p;
	uint64_t seq = 0;
	int r = 0;

	if (!cv->pack && !data)
		r = err_errno(err, ENOMEM, "convert");
	while (!r && (r = take_piece(cv, self, &p, &seq, err)) > 0) {
		r = do_piece(cv, &p, seq, self, data, err);
		if (p.kind == DISK_DATA)
			disk_team_advance(&cv->team, p.len);
		if (!r)
			r = save_journal(cv, err);
	}
	if (cv->pack)
		pack_wake(cv->pack, &cv->lock, r < 0);
	free(data);
	return r;
}

/* ---- setting up ---- */

static bool reads_as_zero(struct blk *b)
{
	struct blk_map m;
	uint64_t off = 0;

	for (unsigned i = 0; i < LOOK_STEPS && off < blk_size(b); i++, off += m.len) {
		m.len = blk_size(b) - off;
		if (blk_map(b, off, &m) < 0 || m.what == BLK_EXT_DATA)
			return false;
	}
	return off >= blk_size(b);
}

static int check_sizes(struct convert *cv, struct error *err)
{
	struct disk_convert *o = cv->o;
	uint64_t from = blk_size(cv->src), to = blk_size(cv->dst);

	if (!o->len && o->src_off <= from)
		o->len = from - o->src_off;
	if (o->src_off > from || o->len > from - o->src_off)
		return err_set(err, EINVAL, "'%s' has only %llu bytes", blk_path(cv->src),
			       (unsigned long long)from);
	if (o->dst_off > to || o->len > to - o->dst_off)
		return err_set(err, ENOSPC, "'%s' has only %llu bytes, %llu are needed",
			       blk_path(cv->dst), (unsigned long long)to,
			       (unsigned long long)(o->dst_off + o->len));
	if (o->compress && !blk_can_pack(cv->dst))
		return err_set(err, ENOTSUP, "format %s has no compression",
			       blk_info(cv->dst)->format);
	if (o->compress && (o->src_off || o->dst_off))
		return err_set(err, EINVAL, "only whole disks are compressed");
	return 0;
}

static uint64_t power_of_two(uint64_t v)
{
	return v && !(v & (v - 1)) ? v : 1;
}

static void set_cursor(struct convert *cv)
{
	const struct disk_convert *o = cv->o;
	uint64_t cluster = power_of_two(blk_info(cv->dst)->cluster);
	uint64_t chunk = o->compress ? MAX(PACK_CHUNK, cluster) : COPY_CHUNK;

	if (o->manifest)
		chunk = MAX(chunk, DISK_MANIFEST_BLOCK);
	cv->cursor = (struct disk_cursor){
		.blk = cv->src,
		.off = o->src_off,
		.end = o->src_off + o->len,
		.chunk = chunk,
		.round = o->manifest ? DISK_MANIFEST_BLOCK
				     : MIN(MAX(cluster, (uint64_t)BUFFER_ALIGN), chunk),
		.everything = !o->sparse,
		.top_only = o->top_only,
	};
	if (o->sparse)
		cv->grain = MAX(o->sparse, MIN(cluster, WHOLE_UNIT));
	cv->shift = o->dst_off - o->src_off;
}

/* What an earlier run left behind the last flush may be there or not: it is made to be not. */
static int resume(struct convert *cv, struct error *err)
{
	struct disk_convert *o = cv->o;
	uint64_t done, at;

	if (!o->journal || !disk_journal_load(o->journal, o->key, &done))
		return 0;
	if (done < cv->cursor.off || done > cv->cursor.end)
		return err_set(err, EINVAL, "the journal '%s' is damaged: remove it to start anew",
			       o->journal);
	at = done + cv->shift;
	o->skipped = done - cv->cursor.off;
	cv->cursor.off = done;
	o->target_is_zero = true;
	return write_zeroes(cv, at, blk_size(cv->dst) - at, err);
}

static int prepare(struct convert *cv, struct error *err)
{
	struct disk_convert *o = cv->o;
	uint64_t total = 0;
	int r = check_sizes(cv, err);

	if (r < 0)
		return r;
	if (!o->target_is_zero)
		o->target_is_zero = reads_as_zero(cv->dst);
	if (o->compress && !o->target_is_zero)
		return err_set(err, EINVAL, "'%s' is not empty: compression wants a new image",
			       blk_path(cv->dst));
	set_cursor(cv);
	disk_team_init(&cv->team, &o->job, 0);
	r = resume(cv, err);
	if (!r && o->job.progress && (r = disk_cursor_count(&cv->cursor, &total)) < 0)
		fail_at(err, r, "map", cv->src, 0);
	cv->team.total = total;
	cv->saved_ns = clock_mono_ns();
	for (unsigned i = 0; i < MAX_WORKERS; i++)
		cv->at[i] = IDLE;
	if (!r && o->compress)
		r = pack_create(&cv->pack, cv->dst, cv->cursor.chunk, disk_team_size(&o->job),
				o->sparse != 0, err);
	return r;
}

static int finish(struct convert *cv, struct error *err)
{
	uint64_t end = cv->o->dst_off + cv->o->len, size = blk_size(cv->dst);
	int r = 0;

	if (!cv->o->target_is_zero && !cv->o->dst_off && end < size)
		r = write_zeroes(cv, end, size - end, err);
	if (!r && cv->o->journal) {
		r = blk_flush(cv->dst);
		if (r < 0)
			return err_errno(err, -r, "cannot flush '%s'", blk_path(cv->dst));
		disk_journal_remove(cv->o->journal);
	}
	return r;
}

int disk_convert(struct blk *src, struct blk *dst, struct disk_convert *o, struct error *err)
{
	struct convert *cv = calloc(1, sizeof(*cv));
	int r;

	if (!cv)
		return err_errno(err, ENOMEM, "convert");
	cv->o = o;
	cv->src = src;
	cv->dst = dst;
	pthread_mutex_init(&cv->lock, NULL);
	r = prepare(cv, err);
	if (!r)
		r = disk_team_run(&cv->team, work, cv, err);
	if (!r)
		r = finish(cv, err);
	pack_destroy(cv->pack);
	pthread_mutex_destroy(&cv->lock);
	free(cv);
	return r;
}
