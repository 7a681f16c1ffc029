/* block/qcow2/bitmap.c - persistent dirty bitmaps ("Bitmaps extension", "Bitmaps").
 *
 * While an image is open the bits live in memory.  Before the first write each bitmap that records
 * is marked "in use" in the file; storing writes bits, tables and directory to new places, points
 * the header at them and thereby takes the mark off.  After a crash the mark is still there and
 * the bitmap cannot be trusted: it can only be removed. */
#include "block/qcow2/qcow2.h"

#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>

static struct log_component log_qcow2 = LOG_COMPONENT("qcow2");

enum {
	DIR_FIXED = 24,
	NAME_MAX_LEN = 1023,
	GRANULARITY_MIN = 9,
	GRANULARITY_MAX = 31,
	FLAG_IN_USE = 1,
	FLAG_AUTO = 2,
	FLAG_EXTRA_OK = 4,
	TABLE_MAX = 64 << 20, /* bytes */
};

struct q_bitmap {
	char *name;
	uint64_t table_host;
	uint32_t table_nr, flags;
	uint8_t type, granularity;
	uint16_t name_len;
	uint32_t extra_len;
	uint8_t *extra;
	uint8_t *bits; /* NULL: not loaded */
	uint64_t nr_bits;
	bool changed;  /* bits differ from the file */
	bool unusable; /* was in use, or is of a kind we do not know: kept as it is */
	struct q_bitmap *next;
};

static uint64_t bits_for(uint64_t size, unsigned granularity)
{
	return (size >> granularity) + ((size & ((1ull << granularity) - 1)) != 0);
}

static uint64_t bytes_of(uint64_t nr_bits)
{
	return (nr_bits + 7) / 8;
}

static void bitmap_free(struct q_bitmap *m)
{
	free(m->name);
	free(m->extra);
	free(m->bits);
	free(m);
}

void q_bitmaps_fini(struct qcow2 *q)
{
	while (q->bitmaps) {
		struct q_bitmap *next = q->bitmaps->next;

		bitmap_free(q->bitmaps);
		q->bitmaps = next;
	}
}

static bool records(const struct q_bitmap *m)
{
	return !m->unusable && (m->flags & FLAG_AUTO);
}

/* ---- the directory ---- */

static int parse_entry(struct q_bitmap *m, const uint8_t *p, uint64_t len, uint64_t *used)
{
	if (len < DIR_FIXED)
		return -EINVAL;
	m->table_host = be64_load(p);
	m->table_nr = be32_load(p + 8);
	m->flags = be32_load(p + 12);
	m->type = p[16];
	m->granularity = p[17];
	m->name_len = be16_load(p + 18);
	m->extra_len = be32_load(p + 20);
	*used = ALIGN_UP(DIR_FIXED + (uint64_t)m->extra_len + m->name_len, 8);
	if (*used > len || !m->name_len || m->name_len > NAME_MAX_LEN ||
	    8ull * m->table_nr > TABLE_MAX || m->table_host > INT64_MAX - TABLE_MAX)
		return -EINVAL;
	m->extra = malloc(m->extra_len + 1ull);
	m->name = malloc(m->name_len + 1u);
	if (!m->extra || !m->name)
		return -ENOMEM;
	memcpy(m->extra, p + DIR_FIXED, m->extra_len);
	memcpy(m->name, p + DIR_FIXED + m->extra_len, m->name_len);
	m->name[m->name_len] = 0;
	m->unusable = m->type != 1 || m->granularity < GRANULARITY_MIN ||
		      m->granularity > GRANULARITY_MAX || (m->flags & ~7u) ||
		      (m->flags & FLAG_IN_USE) || (m->extra_len && !(m->flags & FLAG_EXTRA_OK));
	return 0;
}

static int parse_directory(struct qcow2 *q, const uint8_t *p, uint64_t len)
{
	struct q_bitmap **tail = &q->bitmaps;
	int r = 0;

	for (uint32_t i = 0; i < q->h.nr_bitmaps && !r; i++) {
		struct q_bitmap *m = calloc(1, sizeof(*m));
		uint64_t used = 0;

		if (!m)
			return -ENOMEM;
		*tail = m;
		tail = &m->next;
		r = parse_entry(m, p, len, &used);
		p += used;
		len -= r ? 0 : used;
		if (!r && !m->unusable)
			m->nr_bits = bits_for(q->h.size, m->granularity);
	}
	return r;
}

static int read_directory(struct qcow2 *q)
{
	uint8_t *p = malloc(q->h.bitmap_dir_len + 1);
	int r = p ? q_file_read(q->file, p, q->h.bitmap_dir_len, q->h.bitmap_dir_host) : -ENOMEM;

	if (!r)
		r = parse_directory(q, p, q->h.bitmap_dir_len);
	free(p);
	return r;
}

/* ---- bits ---- */

static uint64_t memory_used(const struct qcow2 *q)
{
	uint64_t sum = 0;

	for (const struct q_bitmap *m = q->bitmaps; m; m = m->next)
		sum += m->bits ? bytes_of(m->nr_bits) : 0;
	return sum;
}

static int alloc_bits(struct qcow2 *q, struct q_bitmap *m)
{
	uint64_t bytes = bytes_of(m->nr_bits);

	if (bytes > Q_BITMAP_MEM_MAX - MIN(memory_used(q), (uint64_t)Q_BITMAP_MEM_MAX))
		return -EFBIG;
	m->bits = calloc(1, bytes + 1);
	return m->bits ? 0 : -ENOMEM;
}

static int read_bits(struct qcow2 *q, struct q_bitmap *m, const uint64_t *table)
{
	uint64_t bytes = bytes_of(m->nr_bits);
	int r = 0;

	for (uint64_t i = 0; i < m->table_nr && !r; i++) {
		uint64_t at = i * q->cluster, len = MIN(bytes - at, q->cluster);
		uint64_t host = table[i] & Q_OFFSET_MASK;

		if (host & (q->cluster - 1))
			return -EINVAL;
		if (host)
			r = q_file_read(q->file, m->bits + at, len, host);
		else
			memset(m->bits + at, table[i] & 1 ? 0xff : 0, len);
	}
	return r;
}

static void clear_tail(struct q_bitmap *m)
{
	if (m->nr_bits % 8)
		m->bits[m->nr_bits / 8] &= (uint8_t)((1u << (m->nr_bits % 8)) - 1);
}

static int load_bits(struct qcow2 *q, struct q_bitmap *m)
{
	uint64_t *table;
	int r;

	if (m->bits)
		return 0;
	if (m->unusable || m->table_nr != q_clusters(q, bytes_of(m->nr_bits)))
		return -EINVAL;
	r = alloc_bits(q, m);
	if (r < 0)
		return r;
	r = q_table_read(q->file, m->table_host, m->table_nr, &table);
	if (!r) {
		r = read_bits(q, m, table);
		free(table);
	}
	if (r < 0) {
		free(m->bits);
		m->bits = NULL;
		return r;
	}
	clear_tail(m);
	return 0;
}

static bool bit_get(const struct q_bitmap *m, uint64_t i)
{
	return m->bits[i / 8] >> (i % 8) & 1;
}

static void bits_set(struct q_bitmap *m, uint64_t off, uint64_t len)
{
	uint64_t i = off >> m->granularity, last = (off + len - 1) >> m->granularity;

	for (; i <= last && i % 8; i++)
		m->bits[i / 8] |= (uint8_t)(1u << (i % 8));
	for (; i + 8 <= last + 1 && i <= last; i += 8)
		m->bits[i / 8] = 0xff;
	for (; i <= last; i++)
		m->bits[i / 8] |= (uint8_t)(1u << (i % 8));
	m->changed = true;
}

static uint64_t count_bits(const struct q_bitmap *m)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < bytes_of(m->nr_bits); i++)
		n += (uint64_t)__builtin_popcount(m->bits[i]);
	return n;
}

/* ---- the mark ---- */

static uint64_t entry_len(const struct q_bitmap *m)
{
	return ALIGN_UP(DIR_FIXED + (uint64_t)m->extra_len + m->name_len, 8);
}

/* The flags of an entry lie inside one sector, so they change at once or not at all. */
static int mark_in_use(struct qcow2 *q, bool all)
{
	uint64_t at = q->h.bitmap_dir_host;
	int r = 0;

	for (struct q_bitmap *m = q->bitmaps; m && !r; at += entry_len(m), m = m->next) {
		uint8_t flags[4];

		if (m->unusable || !m->table_host || (!all && !records(m)))
			continue;
		be32_store(flags, m->flags | FLAG_IN_USE);
		r = blk_write(q->file, flags, sizeof(flags), at + 12);
	}
	return r < 0 ? r : blk_flush(q->file);
}

int q_bitmaps_note(struct qcow2 *q, uint64_t off, uint64_t len)
{
	int r = 0;

	if (!q->bitmaps_recording || !len)
		return 0;
	pthread_mutex_lock(&q->bitmap_lock);
	if (!q->bitmaps_marked) {
		r = mark_in_use(q, false);
		q->bitmaps_marked = !r;
	}
	for (struct q_bitmap *m = q->bitmaps; m && !r; m = m->next)
		if (records(m))
			bits_set(m, off, len);
	pthread_mutex_unlock(&q->bitmap_lock);
	return r;
}

static void see_who_records(struct qcow2 *q)
{
	bool any = false;

	for (const struct q_bitmap *m = q->bitmaps; m; m = m->next)
		any |= records(m);
	q->bitmaps_recording = any;
}

/* ---- opening ---- */

/* Somebody who does not know of bitmaps wrote to the image, or so it says. */
static void disown(struct qcow2 *q)
{
	log_warn(&log_qcow2,
		 "%s: its dirty bitmaps were not kept up by the last program that wrote to it, and "
		 "are ignored",
		 q->b->path);
	q->h.nr_bitmaps = 0;
	q->h.bitmap_dir_host = q->h.bitmap_dir_len = 0;
}

int q_bitmaps_open(struct qcow2 *q, struct error *err)
{
	int r;

	if (!(q->h.autoclear & Q_AUTO_BITMAPS)) {
		if (q->h.nr_bitmaps)
			disown(q);
		return 0;
	}
	if (!q->h.nr_bitmaps) {
		q->h.autoclear &= ~Q_AUTO_BITMAPS;
		return 0;
	}
	r = read_directory(q);
	for (struct q_bitmap *m = q->bitmaps; m && !r && !q->readonly; m = m->next)
		if (records(m) && !(q->b->flags & BLK_CHECKING))
			r = load_bits(q, m);
	if (r == -EINVAL && (q->b->flags & (BLK_CHECKING | BLK_RECOVER))) {
		q->bitmaps_damaged = true;
		q_bitmaps_fini(q);
		return 0;
	}
	if (r == -EFBIG)
		return err_set(err, EFBIG, "'%s': its dirty bitmaps take more than 256 MiB",
			       q->b->path);
	if (r == -EINVAL)
		return err_set(err, EINVAL,
			       "'%s': its dirty bitmaps are damaged (try hv disk check -r all)",
			       q->b->path);
	if (r < 0)
		return err_errno(err, -r, "cannot read the dirty bitmaps of '%s'", q->b->path);
	if (!q->readonly && !(q->b->flags & BLK_CHECKING))
		see_who_records(q);
	return 0;
}

/* ---- storing ---- */

static bool all_bytes(const uint8_t *p, uint64_t len, uint8_t value)
{
	return !len || (p[0] == value && !memcmp(p, p + 1, len - 1));
}

static int alloc_clusters(struct qcow2 *q, uint64_t len, uint64_t *host)
{
	int r;

	pthread_mutex_lock(&q->lock);
	r = q_alloc_all(q, MAX(1, q_clusters(q, len)), host);
	pthread_mutex_unlock(&q->lock);
	return r;
}

static int write_padded(struct qcow2 *q, const uint8_t *p, uint64_t len, uint64_t host)
{
	uint8_t *cluster = calloc(1, q->cluster);
	int r;

	if (!cluster)
		return -ENOMEM;
	memcpy(cluster, p, len);
	r = blk_write(q->file, cluster, q->cluster, host);
	free(cluster);
	return r;
}

static int write_bits(struct qcow2 *q, const struct q_bitmap *m, uint64_t *table)
{
	uint64_t bytes = bytes_of(m->nr_bits);
	int r = 0;

	for (uint64_t i = 0; i * q->cluster < bytes && !r; i++) {
		const uint8_t *p = m->bits + i * q->cluster;
		uint64_t len = MIN(bytes - i * q->cluster, q->cluster);

		if (all_bytes(p, len, 0))
			continue;
		if (len == q->cluster && all_bytes(p, len, 0xff)) {
			table[i] = 1;
			continue;
		}
		r = alloc_clusters(q, q->cluster, &table[i]);
		if (!r)
			r = write_padded(q, p, len, table[i]);
	}
	return r;
}

struct stored {
	uint64_t table_host;
	uint32_t table_nr;
};

static int store_one(struct qcow2 *q, const struct q_bitmap *m, struct stored *s)
{
	uint64_t *table;
	int r;

	*s = (struct stored){m->table_host, m->table_nr};
	if (!m->changed && m->table_host)
		return 0;
	s->table_nr = (uint32_t)q_clusters(q, bytes_of(m->nr_bits));
	table = calloc(s->table_nr + 1u, 8);
	if (!table)
		return -ENOMEM;
	r = write_bits(q, m, table);
	if (!r)
		r = alloc_clusters(q, 8ull * s->table_nr, &s->table_host);
	if (!r)
		r = q_table_write(q->file, s->table_host, s->table_nr, table);
	free(table);
	return r;
}

static int free_host(struct qcow2 *q, uint64_t host, uint64_t len)
{
	int r;

	pthread_mutex_lock(&q->lock);
	r = host ? q_free(q, host, len, true) : 0;
	pthread_mutex_unlock(&q->lock);
	return r;
}

/* The old table of a bitmap and what it names. */
static int free_stored(struct qcow2 *q, uint64_t host, uint32_t nr)
{
	uint64_t *table;
	int r = 0;

	if (!host)
		return 0;
	r = q_table_read(q->file, host, nr, &table);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < nr && !r; i++)
		r = free_host(q, table[i] & Q_OFFSET_MASK, q->cluster);
	free(table);
	return r < 0 ? r : free_host(q, host, MAX(8ull * nr, 1));
}

static void put_entry(const struct q_bitmap *m, const struct stored *s, uint8_t *p)
{
	be64_store(p, s->table_host);
	be32_store(p + 8, s->table_nr);
	be32_store(p + 12, m->flags);
	p[16] = m->type;
	p[17] = m->granularity;
	be16_store(p + 18, m->name_len);
	be32_store(p + 20, m->extra_len);
	memcpy(p + DIR_FIXED, m->extra, m->extra_len);
	memcpy(p + DIR_FIXED + m->extra_len, m->name, m->name_len);
}

static uint32_t count_bitmaps(const struct qcow2 *q, uint64_t *dir_len)
{
	uint32_t n = 0;

	*dir_len = 0;
	for (const struct q_bitmap *m = q->bitmaps; m; m = m->next, n++)
		*dir_len += entry_len(m);
	return n;
}

static int write_directory(struct qcow2 *q, const struct stored *s, uint64_t len, uint64_t *host)
{
	uint8_t *dir = calloc(1, len + 1), *p = dir;
	int r;

	*host = 0;
	if (!dir)
		return -ENOMEM;
	for (const struct q_bitmap *m = q->bitmaps; m; p += entry_len(m), m = m->next)
		put_entry(m, s++, p);
	r = len ? alloc_clusters(q, len, host) : 0;
	if (!r && len)
		r = blk_write(q->file, dir, len, *host);
	free(dir);
	return r;
}

static int point_at(struct qcow2 *q, uint32_t n, uint64_t host, uint64_t len)
{
	struct q_header was = q->h;
	int r = q_settle(q);

	if (r < 0)
		return r;
	q->h.nr_bitmaps = n;
	q->h.bitmap_dir_host = host;
	q->h.bitmap_dir_len = len;
	q->h.autoclear = (q->h.autoclear & ~Q_AUTO_BITMAPS) | (n ? Q_AUTO_BITMAPS : 0);
	r = q_header_update(q);
	if (r < 0)
		q->h = was;
	return r;
}

static int adopt(struct qcow2 *q, const struct stored *s)
{
	int r = 0;

	for (struct q_bitmap *m = q->bitmaps; m; m = m->next, s++) {
		if (s->table_host != m->table_host && !r)
			r = free_stored(q, m->table_host, m->table_nr);
		m->table_host = s->table_host;
		m->table_nr = s->table_nr;
		m->changed = false;
	}
	return r;
}

/* Everything as it is in memory; the caller has taken care that nobody writes meanwhile. */
static int store_all(struct qcow2 *q)
{
	uint64_t old_host = q->h.bitmap_dir_host, old_len = q->h.bitmap_dir_len, len, host;
	uint32_t n = count_bitmaps(q, &len), i = 0;
	struct stored *s = calloc(n + 1u, sizeof(*s));
	int r = s ? 0 : -ENOMEM;

	for (struct q_bitmap *m = q->bitmaps; m && !r; m = m->next)
		r = store_one(q, m, &s[i++]);
	if (!r)
		r = write_directory(q, s, len, &host);
	if (!r)
		r = point_at(q, n, host, len);
	if (!r)
		r = adopt(q, s);
	if (!r)
		r = free_host(q, old_host, old_len);
	free(s);
	q->bitmaps_marked = q->bitmaps_marked && r < 0;
	q->bitmaps_edited = q->bitmaps_edited && r < 0;
	return r < 0 ? r : q_settle(q);
}

int q_bitmaps_store(struct qcow2 *q)
{
	bool changed = q->bitmaps_marked || q->bitmaps_edited;

	for (const struct q_bitmap *m = q->bitmaps; m; m = m->next)
		changed |= m->changed;
	return changed ? store_all(q) : 0;
}

static int resize_bits(struct q_bitmap *m, uint64_t nr)
{
	uint64_t old = bytes_of(m->nr_bits), new = bytes_of(nr);
	uint8_t *bits = realloc(m->bits, new + 1);

	if (!bits)
		return -ENOMEM;
	if (new > old)
		memset(bits + old, 0, new - old);
	m->bits = bits;
	m->nr_bits = nr;
	m->changed = true;
	clear_tail(m);
	return 0;
}

/* Tables in the file have the old length, so all are marked until they are stored. */
int q_bitmaps_resize(struct qcow2 *q, uint64_t size)
{
	int r = 0;

	if (!q->bitmaps || size == q->h.size)
		return 0;
	for (struct q_bitmap *m = q->bitmaps; m && !r; m = m->next)
		if (!m->unusable)
			r = load_bits(q, m);
	if (!r)
		r = mark_in_use(q, true);
	for (struct q_bitmap *m = q->bitmaps; m && !r; m = m->next)
		if (!m->unusable)
			r = resize_bits(m, bits_for(size, m->granularity));
	q->bitmaps_edited = true;
	return r;
}

/* ---- for the check ---- */

static int visit_table(struct qcow2 *q, const struct q_bitmap *m,
		       bool (*use)(void *opaque, uint64_t host, uint64_t len), void *opaque)
{
	uint64_t *table;
	int r;

	if (!m->table_host || !use(opaque, m->table_host, MAX(8ull * m->table_nr, 1)))
		return 0;
	r = q_table_read(q->file, m->table_host, m->table_nr, &table);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < m->table_nr; i++)
		if (table[i] & Q_OFFSET_MASK)
			use(opaque, table[i] & Q_OFFSET_MASK, q->cluster);
	free(table);
	return 0;
}

int q_bitmaps_visit(struct qcow2 *q, bool (*use)(void *opaque, uint64_t host, uint64_t len),
		    void *opaque)
{
	int r = 0;

	if (q->h.bitmap_dir_len && !use(opaque, q->h.bitmap_dir_host, q->h.bitmap_dir_len))
		return 0;
	for (const struct q_bitmap *m = q->bitmaps; m && !r; m = m->next)
		r = visit_table(q, m, use, opaque);
	return r;
}

/* A directory that makes no sense goes; what it named becomes a leak. */
int q_bitmaps_mend(struct qcow2 *q)
{
	if (!q->bitmaps_damaged)
		return 0;
	q->bitmaps_damaged = false;
	return store_all(q);
}

/* ---- what users ask for ---- */

static struct q_bitmap *find(struct qcow2 *q, const char *name)
{
	struct q_bitmap *m = q->bitmaps;

	while (m && strcmp(m->name, name))
		m = m->next;
	return m;
}

static int find_usable(struct qcow2 *q, const char *name, struct q_bitmap **m, struct error *err)
{
	int r;

	*m = find(q, name);
	if (!*m)
		return err_set(err, ENOENT, "'%s' has no dirty bitmap '%s'", q->b->path, name);
	if ((*m)->unusable)
		return err_set(
			err, EINVAL,
			"dirty bitmap '%s' was in use when the image was last left, or is of "
			"an unknown kind: it can only be removed",
			name);
	r = load_bits(q, *m);
	return r < 0 ? err_errno(err, -r, "dirty bitmap '%s' cannot be loaded", name) : 0;
}

static int edit_begin(struct qcow2 *q, struct error *err)
{
	if (q->readonly || q->corrupt)
		return err_set(err, EROFS, "'%s' cannot be written to", q->b->path);
	pthread_rwlock_wrlock(&q->io);
	return 0;
}

static int edit_end(struct qcow2 *q, int r, struct error *err)
{
	if (!r) {
		q->bitmaps_edited = true;
		see_who_records(q);
		r = q_bitmaps_store(q);
		if (r < 0)
			err_errno(err, -r, "cannot store the dirty bitmaps of '%s'", q->b->path);
	}
	pthread_rwlock_unlock(&q->io);
	return r;
}

static int list(struct blk *b, struct blk_bitmap **out, unsigned *n, struct error *err)
{
	struct qcow2 *q = q_of(b);
	struct blk_bitmap *v;
	uint64_t len;

	pthread_rwlock_wrlock(&q->io);
	*n = 0;
	v = calloc(count_bitmaps(q, &len) + 1u, sizeof(*v));
	for (struct q_bitmap *m = q->bitmaps; v && m; m = m->next, ++*n) {
		snprintf(v[*n].name, sizeof(v[*n].name), "%s", m->name);
		v[*n].granularity = 1ull << (m->granularity & 63);
		v[*n].recording = m->flags & FLAG_AUTO;
		v[*n].in_use = m->unusable;
		if (!m->unusable && !load_bits(q, m))
			v[*n].dirty_bytes = count_bits(m) << m->granularity;
	}
	pthread_rwlock_unlock(&q->io);
	*out = v;
	return v ? 0 : err_errno(err, ENOMEM, "'%s'", b->path);
}

static int new_bitmap(struct qcow2 *q, const char *name, unsigned granularity)
{
	struct q_bitmap *m = calloc(1, sizeof(*m)), **tail = &q->bitmaps;
	int r;

	if (!m)
		return -ENOMEM;
	m->name = strdup(name);
	m->name_len = (uint16_t)strlen(name);
	m->type = 1;
	m->granularity = (uint8_t)granularity;
	m->flags = FLAG_AUTO;
	m->nr_bits = bits_for(q->h.size, granularity);
	m->extra = malloc(1);
	r = m->name && m->extra ? alloc_bits(q, m) : -ENOMEM;
	if (r < 0) {
		bitmap_free(m);
		return r;
	}
	while (*tail)
		tail = &(*tail)->next;
	*tail = m;
	return 0;
}

static int add_locked(struct qcow2 *q, const char *name, uint64_t granularity, struct error *err)
{
	uint64_t len;
	int r;

	if (!granularity)
		granularity = MIN(MAX(q->cluster, 4096u), 65536u);
	if (q->h.version < 3)
		return err_set(err, ENOTSUP,
			       "'%s': dirty bitmaps need version 3 (amend compat=1.1)", q->b->path);
	if ((granularity & (granularity - 1)) || granularity < 512 || granularity > BIT(31))
		return err_set(err, EINVAL, "a granularity is a power of two from 512 to 2G");
	if (!*name || strlen(name) > NAME_MAX_LEN)
		return err_set(err, EINVAL, "the name of a bitmap has 1 to %u bytes", NAME_MAX_LEN);
	if (find(q, name))
		return err_set(err, EEXIST, "'%s' has a dirty bitmap '%s' already", q->b->path,
			       name);
	if (count_bitmaps(q, &len) >= Q_BITMAPS_MAX)
		return err_set(err, EFBIG, "'%s' has %u dirty bitmaps already", q->b->path,
			       Q_BITMAPS_MAX);
	r = new_bitmap(q, name, (unsigned)__builtin_ctzll(granularity));
	return r < 0 ? err_errno(err, -r, "dirty bitmap '%s' (try a coarser granularity)", name)
		     : 0;
}

static int add(struct blk *b, const char *name, uint64_t granularity, struct error *err)
{
	struct qcow2 *q = q_of(b);
	int r = edit_begin(q, err);

	return r < 0 ? r : edit_end(q, add_locked(q, name, granularity, err), err);
}

static int remove_locked(struct qcow2 *q, const char *name, struct error *err)
{
	struct q_bitmap *m = find(q, name), **p = &q->bitmaps;
	uint64_t host;
	uint32_t nr;
	int r;

	if (!m)
		return err_set(err, ENOENT, "'%s' has no dirty bitmap '%s'", q->b->path, name);
	while (*p != m)
		p = &(*p)->next;
	*p = m->next;
	host = m->table_host;
	nr = m->table_nr;
	bitmap_free(m);
	r = store_all(q); /* only then may its clusters go */
	if (!r)
		r = free_stored(q, host, nr);
	if (!r)
		r = q_settle(q);
	return r < 0 ? err_errno(err, -r, "cannot remove the bitmap from '%s'", q->b->path) : 0;
}

static int remove_bitmap(struct blk *b, const char *name, struct error *err)
{
	struct qcow2 *q = q_of(b);
	int r = edit_begin(q, err);

	if (r < 0)
		return r;
	r = remove_locked(q, name, err);
	see_who_records(q);
	pthread_rwlock_unlock(&q->io);
	return r;
}

static int clear(struct blk *b, const char *name, struct error *err)
{
	struct qcow2 *q = q_of(b);
	struct q_bitmap *m;
	int r = edit_begin(q, err);

	if (r < 0)
		return r;
	r = find_usable(q, name, &m, err);
	if (!r) {
		memset(m->bits, 0, bytes_of(m->nr_bits));
		m->changed = true;
	}
	return edit_end(q, r, err);
}

static int record(struct blk *b, const char *name, bool on, struct error *err)
{
	struct qcow2 *q = q_of(b);
	struct q_bitmap *m;
	int r = edit_begin(q, err);

	if (r < 0)
		return r;
	r = find_usable(q, name, &m, err);
	if (!r)
		m->flags = on ? m->flags | FLAG_AUTO : m->flags & ~(uint32_t)FLAG_AUTO;
	return edit_end(q, r, err);
}

static int merge(struct blk *b, const char *into, const char *from, struct error *err)
{
	struct qcow2 *q = q_of(b);
	struct q_bitmap *to, *src;
	int r = edit_begin(q, err);

	if (r < 0)
		return r;
	r = find_usable(q, into, &to, err);
	if (!r)
		r = find_usable(q, from, &src, err);
	for (uint64_t i = 0; !r && i < src->nr_bits; i++) {
		uint64_t off = i << src->granularity;

		if (bit_get(src, i))
			bits_set(to, off, MIN(1ull << src->granularity, q->h.size - off));
	}
	return edit_end(q, r, err);
}

static int query(struct blk *b, const char *name, uint64_t off, uint64_t *len, bool *dirty,
		 struct error *err)
{
	struct qcow2 *q = q_of(b);
	struct q_bitmap *m;
	uint64_t i, last;
	int r;

	if (!*len || !range_inside(off, *len, blk_size(b)))
		return err_set(err, EINVAL, "the range is not inside the disk");
	pthread_rwlock_wrlock(&q->io);
	r = find_usable(q, name, &m, err);
	if (!r) {
		i = off >> m->granularity;
		last = (off + *len - 1) >> m->granularity;
		*dirty = bit_get(m, i);
		while (i < last && bit_get(m, i + 1) == *dirty)
			i++;
		*len = MIN(*len, ((i + 1) << m->granularity) - off);
	}
	pthread_rwlock_unlock(&q->io);
	return r;
}

void q_bitmaps_details(struct qcow2 *q, struct blk_sink *s)
{
	if (!q->bitmaps)
		return;
	s->begin(s, "bitmaps", true);
	for (const struct q_bitmap *m = q->bitmaps; m; m = m->next) {
		s->begin(s, NULL, false);
		s->text(s, "name", m->name);
		s->number(s, "granularity", 1ull << (m->granularity & 63));
		s->begin(s, "flags", true);
		if (m->flags & FLAG_IN_USE)
			s->text(s, NULL, "in-use");
		if (m->flags & FLAG_AUTO)
			s->text(s, NULL, "auto");
		s->end(s);
		s->end(s);
	}
	s->end(s);
}

const struct blk_bitmap_ops q_bitmap_ops = {
	.list = list,
	.add = add,
	.remove = remove_bitmap,
	.clear = clear,
	.record = record,
	.merge = merge,
	.query = query,
};
