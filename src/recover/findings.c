/* recover/findings.c - what a scan found, kept in a file for the next command.
 *
 * SQLite.  Table meta: what the file is and what is done; source: whose findings they are; segment:
 * a row for each 64 MiB looked at, with its hits (struct hit, little-endian, as detect.c made them)
 * in one blob: a million of them are written and read in no time.  All files are opened by
 * findings_open, so that the process can lock itself in afterwards: the rollback journal is kept
 * open.  A row is saved within COMMIT_NS, or when somebody asks.  A findings file is not trusted
 * either: lengths and numbers are checked. */
#include "base/bytes.h"
#include "base/clock.h"
#include "recover/internal.h"

#include <errno.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

enum { SCHEMA = 1 };
#define COMMIT_NS (3 * NSEC_PER_SEC)

struct findings {
	sqlite3 *db;
	sqlite3_stmt *put;
	bool read_only, in_transaction;
	uint64_t last_commit_ns;
	unsigned nr_sources;
};

static const char schema[] =
	"CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value INTEGER);"
	"CREATE TABLE IF NOT EXISTS source(n INTEGER PRIMARY KEY, name TEXT, identity TEXT);"
	"CREATE TABLE IF NOT EXISTS segment(source INTEGER, start INTEGER, len INTEGER,"
	" zero INTEGER, hits BLOB, bad BLOB, PRIMARY KEY(source, start));";

static int sql_error(struct findings *f, struct error *err)
{
	int code = sqlite3_errcode(f->db) & 0xff;
	int e = code == SQLITE_BUSY || code == SQLITE_LOCKED      ? EBUSY
		: code == SQLITE_READONLY                         ? EROFS
		: code == SQLITE_FULL                             ? ENOSPC
		: code == SQLITE_NOTADB || code == SQLITE_CORRUPT ? EUCLEAN
								  : EIO;

	if (e == EBUSY)
		return err_set(err, e, "the findings file is in use by another command");
	if (e == EUCLEAN)
		return err_set(err, e,
			       "the findings file is none, or damaged: remove it, or name another");
	return err_set(err, e, "the findings file: %s", sqlite3_errmsg(f->db));
}

static int sql_do(struct findings *f, const char *sql, struct error *err)
{
	return sqlite3_exec(f->db, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : sql_error(f, err);
}

static int begin(struct findings *f, struct error *err)
{
	int r;

	if (f->in_transaction)
		return 0;
	r = sql_do(f, "BEGIN IMMEDIATE", err);
	f->in_transaction = !r;
	return r;
}

int findings_flush(struct findings *f, struct error *err)
{
	int r;

	if (!f || !f->in_transaction)
		return 0;
	r = sql_do(f, "COMMIT", err);
	f->in_transaction = r != 0;
	f->last_commit_ns = clock_mono_ns();
	return r;
}

int64_t findings_get(struct findings *f, const char *key)
{
	sqlite3_stmt *s = NULL;
	int64_t value = 0;

	if (!f || sqlite3_prepare_v2(f->db, "SELECT value FROM meta WHERE key=?", -1, &s, NULL))
		return 0;
	sqlite3_bind_text(s, 1, key, -1, SQLITE_STATIC);
	if (sqlite3_step(s) == SQLITE_ROW)
		value = sqlite3_column_int64(s, 0);
	sqlite3_finalize(s);
	return value;
}

int findings_set(struct findings *f, const char *key, int64_t value, struct error *err)
{
	sqlite3_stmt *s = NULL;
	int r;

	if (!f || f->read_only)
		return 0;
	r = begin(f, err);
	if (r < 0)
		return r;
	if (sqlite3_prepare_v2(f->db, "INSERT OR REPLACE INTO meta VALUES(?,?)", -1, &s, NULL))
		return sql_error(f, err);
	sqlite3_bind_text(s, 1, key, -1, SQLITE_STATIC);
	sqlite3_bind_int64(s, 2, value);
	if (sqlite3_step(s) != SQLITE_DONE)
		r = sql_error(f, err);
	sqlite3_finalize(s);
	return r;
}

/* ---- whose they are ---- */

static int write_sources(struct findings *f, struct rec *r, struct error *err)
{
	sqlite3_stmt *s = NULL;
	int e = 0;

	if (sqlite3_prepare_v2(f->db, "INSERT INTO source VALUES(?,?,?)", -1, &s, NULL))
		return sql_error(f, err);
	for (unsigned i = 0; i < r->nr_sources && !e; i++) {
		sqlite3_bind_int(s, 1, (int)i);
		sqlite3_bind_text(s, 2, r->source[i].name, -1, SQLITE_STATIC);
		sqlite3_bind_text(s, 3, r->source[i].identity, -1, SQLITE_STATIC);
		if (sqlite3_step(s) != SQLITE_DONE)
			e = sql_error(f, err);
		sqlite3_reset(s);
	}
	sqlite3_finalize(s);
	return e;
}

static int check_sources(struct findings *f, struct rec *r, struct error *err)
{
	sqlite3_stmt *s = NULL;
	unsigned n = 0;
	bool same = true;

	if (sqlite3_prepare_v2(f->db, "SELECT identity FROM source ORDER BY n", -1, &s, NULL))
		return sql_error(f, err);
	while (sqlite3_step(s) == SQLITE_ROW) {
		const char *id = (const char *)sqlite3_column_text(s, 0);

		same = same && n < r->nr_sources && id && !strcmp(id, r->source[n].identity);
		n++;
	}
	sqlite3_finalize(s);
	if (!n && !f->read_only)
		return write_sources(f, r, err);
	if (same && n == r->nr_sources)
		return 0;
	return err_set(err, ESTALE,
		       "the findings file is of other sources, or they have changed since: name "
		       "another file, or remove it");
}

static int check_schema(struct findings *f, struct error *err)
{
	int64_t have = findings_get(f, "schema");

	if (have == SCHEMA)
		return 0;
	if (!have && !f->read_only)
		return findings_set(f, "schema", SCHEMA, err);
	return err_set(err, EINVAL,
		       "the findings file is of version %lld, this program knows %d: scan again",
		       (long long)have, SCHEMA);
}

static int set_up(struct findings *f, struct rec *r, struct error *err)
{
	int e = sql_do(f, "PRAGMA temp_store=MEMORY; PRAGMA cache_size=-4096;", err);

	if (!e && !f->read_only)
		e = sql_do(f,
			   "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=PERSIST;"
			   "PRAGMA synchronous=NORMAL;",
			   err);
	if (!e && !f->read_only)
		e = begin(f, err);
	if (!e && !f->read_only)
		e = sql_do(f, schema, err);
	if (!e)
		e = check_schema(f, err);
	if (!e)
		e = check_sources(f, r, err);
	/* The first real write opens the journal, which stays open. */
	if (!e)
		e = findings_set(f, "opened", (int64_t)(clock_real_ns() / NSEC_PER_SEC), err);
	return e ? e : findings_flush(f, err);
}

int findings_open(struct findings **out, struct rec *r, struct error *err)
{
	struct findings *f = calloc(1, sizeof(*f));
	int flags, e = 0;

	if (!f)
		return err_errno(err, ENOMEM, "findings");
	f->read_only = r->cfg.read_only;
	f->nr_sources = r->nr_sources;
	flags = f->read_only ? SQLITE_OPEN_READONLY : SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE;
	if (sqlite3_open_v2(r->cfg.findings, &f->db, flags | SQLITE_OPEN_NOMUTEX, NULL))
		e = err_set(err, ENOENT, "findings file '%s': %s", r->cfg.findings,
			    f->db ? sqlite3_errmsg(f->db) : "no memory");
	if (!e)
		e = set_up(f, r, err);
	if (e < 0) {
		findings_close(f);
		return err_wrap(err, e, "'%s'", r->cfg.findings);
	}
	*out = f;
	return 0;
}

void findings_close(struct findings *f)
{
	if (!f)
		return;
	(void)findings_flush(f, NULL);
	sqlite3_finalize(f->put);
	sqlite3_close(f->db);
	free(f);
}

int findings_clear(struct findings *f, struct error *err)
{
	int r = f && !f->read_only ? begin(f, err) : 0;

	if (!f || r < 0)
		return r;
	if (f->read_only)
		return err_set(err, EROFS, "the findings file is not to be changed");
	return sql_do(f, "DELETE FROM segment; DELETE FROM meta WHERE key LIKE 'done%';", err);
}

/* ---- segments ---- */

static int bind_segment(struct findings *f, const struct segment *s)
{
	sqlite3_stmt *q = f->put;

	sqlite3_bind_int(q, 1, (int)s->source);
	sqlite3_bind_int64(q, 2, (int64_t)s->start);
	sqlite3_bind_int64(q, 3, (int64_t)s->len);
	sqlite3_bind_int64(q, 4, (int64_t)s->zero);
	sqlite3_bind_blob64(q, 5, s->hits.v, s->hits.n * sizeof(struct hit), SQLITE_STATIC);
	sqlite3_bind_blob64(q, 6, s->bad.v, s->bad.n * sizeof(struct span), SQLITE_STATIC);
	return sqlite3_step(q) == SQLITE_DONE ? 0 : -1;
}

int findings_put(struct findings *f, const struct segment *s, struct error *err)
{
	int r;

	if (!f || f->read_only)
		return 0;
	r = begin(f, err);
	if (r < 0)
		return r;
	if (!f->put &&
	    sqlite3_prepare_v2(f->db, "INSERT OR REPLACE INTO segment VALUES(?,?,?,?,?,?)", -1,
			       &f->put, NULL))
		return sql_error(f, err);
	if (bind_segment(f, s) < 0)
		r = sql_error(f, err);
	sqlite3_reset(f->put);
	sqlite3_clear_bindings(f->put);
	if (!r && clock_mono_ns() - f->last_commit_ns > COMMIT_NS)
		r = findings_flush(f, err);
	return r;
}

static void *copy_blob(sqlite3_stmt *q, int column, size_t unit, size_t *n)
{
	const void *data = sqlite3_column_blob(q, column);
	size_t len = (size_t)sqlite3_column_bytes(q, column);
	void *copy;

	*n = 0;
	if (!data || len < unit)
		return NULL;
	len -= len % unit;
	copy = malloc(len);
	if (copy) {
		memcpy(copy, data, len);
		*n = len / unit;
	}
	return copy;
}

static bool good_hits(const struct segment *s)
{
	for (size_t i = 0; i < s->hits.n; i++) {
		const struct hit *h = &s->hits.v[i];

		if (h->source != s->source || !h->kind || h->kind >= HIT_NR || h->pos < s->start ||
		    h->pos - s->start >= s->len)
			return false;
	}
	return true;
}

static bool good_bad(const struct segment *s)
{
	for (size_t i = 0; i < s->bad.n; i++)
		if (s->bad.v[i].start >= s->bad.v[i].end)
			return false;
	return true;
}

static bool good_segment(const struct findings *f, const struct segment *s)
{
	return s->source < f->nr_sources && s->start % REC_SEGMENT == 0 && s->len <= REC_SEGMENT &&
	       s->start <= INT64_MAX - REC_SEGMENT && good_hits(s) && good_bad(s);
}

static int load_row(struct findings *f, sqlite3_stmt *q, struct segments *into)
{
	struct segment s = {.source = (unsigned)sqlite3_column_int(q, 0),
			    .start = (uint64_t)sqlite3_column_int64(q, 1),
			    .len = (uint64_t)sqlite3_column_int64(q, 2),
			    .zero = (uint64_t)sqlite3_column_int64(q, 3)};

	s.hits.v = copy_blob(q, 4, sizeof(struct hit), &s.hits.n);
	s.hits.cap = s.hits.n;
	s.bad.v = copy_blob(q, 5, sizeof(struct span), &s.bad.n);
	s.bad.cap = s.bad.n;
	if (good_segment(f, &s) && array_room(&into->v, into->n, &into->cap, sizeof(s))) {
		into->v[into->n++] = s;
		return 0;
	}
	free(s.hits.v);
	spans_fini(&s.bad);
	return -EUCLEAN;
}

int findings_load(struct findings *f, struct segments *into, struct error *err)
{
	sqlite3_stmt *q = NULL;
	int r = 0, step;

	if (!f)
		return 0;
	if (sqlite3_prepare_v2(f->db,
			       "SELECT source, start, len, zero, hits, bad FROM segment"
			       " ORDER BY source, start",
			       -1, &q, NULL))
		return sql_error(f, err);
	while (!r && (step = sqlite3_step(q)) == SQLITE_ROW)
		r = load_row(f, q, into);
	if (r < 0)
		err_set(err, EUCLEAN, "the findings file is damaged: remove it, or name another");
	else if (step != SQLITE_DONE)
		r = sql_error(f, err);
	sqlite3_finalize(q);
	return r;
}
