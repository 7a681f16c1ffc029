/* block/rescue_map.c - see rescue_map.h: runs of one status, in order, as an array. */
#include "block/rescue_map.h"

#include "base/bytes.h"
#include "base/error.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
	MAX_RUNS = 1 << 22,
	MAX_TEXT = 192 * MiB, /* what MAX_RUNS lines take at most */
	MAX_LINE = 128,
	SOURCE_CAP = 512,
};

/* [start, the next one's start) */
struct run {
	uint64_t start;
	uint8_t status;
};

struct rescue_map {
	uint64_t size;
	struct run *run; /* run[0].start == 0; neighbours differ */
	size_t n, cap;
};

int rescue_map_new(struct rescue_map **out, uint64_t size, struct error *err)
{
	struct rescue_map *m = calloc(1, sizeof(*m));

	if (m)
		m->run = calloc(16, sizeof(*m->run));
	if (!m || !m->run) {
		free(m);
		return err_errno(err, ENOMEM, "map of unreadable sectors");
	}
	m->size = size;
	m->cap = 16;
	m->n = 1;
	m->run[0].status = RESCUE_NON_TRIED;
	*out = m;
	return 0;
}

void rescue_map_free(struct rescue_map *m)
{
	if (m)
		free(m->run);
	free(m);
}

int rescue_map_copy(const struct rescue_map *m, struct rescue_map **out)
{
	struct rescue_map *c = calloc(1, sizeof(*c));

	if (c)
		c->run = malloc(m->n * sizeof(*c->run));
	if (!c || !c->run) {
		free(c);
		return -ENOMEM;
	}
	memcpy(c->run, m->run, m->n * sizeof(*c->run));
	c->size = m->size;
	c->n = c->cap = m->n;
	*out = c;
	return 0;
}

uint64_t rescue_map_size(const struct rescue_map *m)
{
	return m->size;
}

size_t rescue_map_runs(const struct rescue_map *m)
{
	return m->n;
}

static size_t find(const struct rescue_map *m, uint64_t off)
{
	size_t lo = 0, hi = m->n;

	while (hi - lo > 1) {
		size_t mid = lo + (hi - lo) / 2;

		if (m->run[mid].start <= off)
			lo = mid;
		else
			hi = mid;
	}
	return lo;
}

static uint64_t end_of(const struct rescue_map *m, size_t i)
{
	return i + 1 < m->n ? m->run[i + 1].start : m->size;
}

enum rescue_status rescue_map_around(const struct rescue_map *m, uint64_t off, uint64_t *start,
				     uint64_t *end)
{
	size_t i = find(m, off);

	*start = m->run[i].start;
	*end = end_of(m, i);
	return m->run[i].status;
}

enum rescue_status rescue_map_get(const struct rescue_map *m, uint64_t off, uint64_t *len)
{
	uint64_t start, end;
	enum rescue_status status = rescue_map_around(m, off, &start, &end);

	*len = MIN(*len, end - off);
	return status;
}

uint64_t rescue_map_count(const struct rescue_map *m, enum rescue_status status)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < m->n; i++)
		if (m->run[i].status == status)
			sum += end_of(m, i) - m->run[i].start;
	return sum;
}

/* Entries [from, to) give way to n others. */
static int replace(struct rescue_map *m, size_t from, size_t to, const struct run *with, size_t n)
{
	size_t count = m->n - (to - from) + n;

	if (count > m->cap) {
		size_t cap = m->cap * 2 + 2;
		struct run *run = realloc(m->run, cap * sizeof(*run));

		if (!run)
			return -ENOMEM;
		m->run = run;
		m->cap = cap;
	}
	memmove(m->run + from + n, m->run + to, (m->n - to) * sizeof(*m->run));
	memcpy(m->run + from, with, n * sizeof(*with));
	m->n = count;
	return 0;
}

int rescue_map_set(struct rescue_map *m, uint64_t off, uint64_t len, enum rescue_status status)
{
	size_t first, last, from, to, n = 0;
	struct run with[2];

	assert(range_inside(off, len, m->size));
	if (!len)
		return 0;
	first = find(m, off);
	last = find(m, off + len - 1);
	from = m->run[first].start < off ? first + 1 : first;
	to = last + 1;
	if (!from || m->run[from - 1].status != status)
		with[n++] = (struct run){off, (uint8_t)status};
	if (off + len < end_of(m, last)) {
		if (m->run[last].status != status)
			with[n++] = (struct run){off + len, m->run[last].status};
	} else if (to < m->n && m->run[to].status == status) {
		to++;
	}
	return replace(m, from, to, with, n);
}

/* --- text ---------------------------------------------------------------------------------------
 */

/* One line, whatever the name holds. */
static void source_line(const char *source, char *line)
{
	snprintf(line, SOURCE_CAP, "%s", source);
	for (char *p = line; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			*p = '?';
}

struct parse {
	struct rescue_map *map;
	const char *source, *name;
	unsigned line;
	bool seen_status;
	uint64_t next; /* where the next run has to begin, UINT64_MAX: anywhere */
	size_t runs;
	struct error *err;
};

static int bad_line(const struct parse *p, const char *what)
{
	return err_set(p->err, EINVAL, "'%s', line %u: %s; this is no map file of ddrescue's",
		       p->name, p->line, what);
}

/* Decimal, 0x hexadecimal or 0 octal, as ddrescue takes them. */
static bool number(char **from, uint64_t *v)
{
	char *end;

	if (!isdigit((unsigned char)**from))
		return false;
	errno = 0;
	*v = strtoull(*from, &end, 0);
	if (errno || (*end && !isblank((unsigned char)*end)))
		return false;
	*from = end + strspn(end, " \t");
	return true;
}

/* The position, the phase, and (since ddrescue 1.20) the pass: nothing of it is for us. */
static int status_line(struct parse *p, char *line)
{
	uint64_t v;

	if (!number(&line, &v) || !*line || !strchr("?*/-FG+", *line))
		return bad_line(p, "the status line is damaged");
	line += 1 + strspn(line + 1, " \t");
	if (*line && (!number(&line, &v) || *line))
		return bad_line(p, "the status line is damaged");
	p->seen_status = true;
	return 0;
}

static int block_line(struct parse *p, char *line)
{
	uint64_t pos, size;
	char status;

	if (!number(&line, &pos) || !number(&line, &size) || !*line || !strchr("?*/-+", *line) ||
	    line[1])
		return bad_line(p, "not a position, a size and a status");
	status = *line;
	if (size > INT64_MAX || pos > INT64_MAX - size || !size)
		return bad_line(p, "position and size are not possible");
	if (p->next != UINT64_MAX && pos != p->next)
		return bad_line(p, "the blocks have a gap or overlap");
	if (++p->runs > MAX_RUNS)
		return bad_line(p, "there are too many blocks");
	p->next = pos + size;
	if (pos >= p->map->size)
		return 0;
	if (rescue_map_set(p->map, pos, MIN(size, p->map->size - pos), status) < 0)
		return err_errno(p->err, ENOMEM, "'%s'", p->name);
	return 0;
}

static int check_source(const struct parse *p, const char *text, size_t len)
{
	static const char label[] = "# Source: ";
	char ours[SOURCE_CAP];

	if (!p->source || len < sizeof(label) - 1 || memcmp(text, label, sizeof(label) - 1))
		return 0;
	text += sizeof(label) - 1;
	len -= sizeof(label) - 1;
	source_line(p->source, ours);
	if (len == strlen(ours) && !memcmp(text, ours, len))
		return 0;
	return err_set(p->err, EINVAL,
		       "'%s' is the map of '%.*s', not of '%s'; give another name for this one",
		       p->name, (int)MIN(len, 200u), text, ours);
}

static int one_line(struct parse *p, const char *text, size_t len)
{
	char line[MAX_LINE], *from;
	const char *hash;
	int r = check_source(p, text, len);

	if (r < 0)
		return r;
	hash = memchr(text, '#', len);
	if (hash)
		len = (size_t)(hash - text);
	if (len >= sizeof(line) || memchr(text, 0, len))
		return bad_line(p, "it is too long");
	memcpy(line, text, len);
	while (len && isspace((unsigned char)line[len - 1]))
		len--;
	line[len] = 0;
	from = line + strspn(line, " \t");
	if (!*from)
		return 0;
	return p->seen_status ? block_line(p, from) : status_line(p, from);
}

int rescue_map_parse(struct rescue_map **out, const char *text, size_t len, uint64_t size,
		     const char *source, const char *name, struct error *err)
{
	struct parse p = {.source = source, .name = name, .next = UINT64_MAX, .err = err};
	int r = rescue_map_new(&p.map, size, err);

	for (size_t at = 0; at < len && !r; at++) {
		const char *eol = memchr(text + at, '\n', len - at);
		size_t n = eol ? (size_t)(eol - text) - at : len - at;

		p.line++;
		r = one_line(&p, text + at, n);
		at += n;
	}
	if (!r && !p.seen_status)
		r = err_set(err, EINVAL, "'%s' is no map file of ddrescue's: it has no status line",
			    name);
	if (r < 0)
		rescue_map_free(p.map);
	else
		*out = p.map;
	return r;
}

uint64_t rescue_map_last(const struct rescue_map *m, enum rescue_status status)
{
	for (size_t i = m->n; i > 0; i--)
		if (m->run[i - 1].status == status)
			return end_of(m, i - 1);
	return 0;
}

/* Phase and place, for ddrescue to go on from. */
static char phase(const struct rescue_map *m, uint64_t *pos)
{
	static const char unfinished[] = "?*/";

	*pos = 0;
	for (const char *c = unfinished; *c; c++) {
		for (size_t i = 0; i < m->n; i++) {
			if (m->run[i].status == *c) {
				*pos = m->run[i].start;
				return *c;
			}
		}
	}
	return '+';
}

int rescue_map_print(const struct rescue_map *m, const char *source, char **text, size_t *len)
{
	char line[SOURCE_CAP];
	uint64_t pos;
	char status = phase(m, &pos);
	FILE *f = open_memstream(text, len);

	if (!f)
		return -ENOMEM;
	fprintf(f, "# Mapfile. Created by Trivisor's hv, as GNU ddrescue writes it\n");
	if (source) {
		source_line(source, line);
		fprintf(f, "# Source: %s\n", line);
	}
	fprintf(f,
		"# current_pos  current_status  current_pass\n0x%08" PRIX64 "     %c"
		"               1\n#      pos        size  status\n",
		pos, status);
	for (size_t i = 0; i < m->n && m->size; i++)
		fprintf(f, "0x%08" PRIX64 "  0x%08" PRIX64 "  %c\n", m->run[i].start,
			end_of(m, i) - m->run[i].start, m->run[i].status);
	if (ferror(f)) {
		fclose(f);
		free(*text);
		return -ENOMEM;
	}
	return fclose(f) ? -ENOMEM : 0;
}

/* --- files --------------------------------------------------------------------------------------
 */

static int read_text(int fd, char **text, size_t *len)
{
	struct stat st;
	size_t done = 0;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode))
		return -EINVAL;
	if (st.st_size > MAX_TEXT)
		return -EFBIG;
	*text = malloc((size_t)st.st_size + 1);
	if (!*text)
		return -ENOMEM;
	while (done < (size_t)st.st_size) {
		ssize_t n = read(fd, *text + done, (size_t)st.st_size - done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		done += (size_t)n;
	}
	*len = done;
	return 0;
}

int rescue_map_load(struct rescue_map **out, const char *path, uint64_t size, const char *source,
		    struct error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), r;
	char *text = NULL;
	size_t len = 0;

	r = fd < 0 ? -errno : read_text(fd, &text, &len);
	if (fd >= 0)
		close(fd);
	if (r < 0)
		err_errno(err, -r, "cannot read the map '%s'", path);
	else
		r = rescue_map_parse(out, text, len, size, source, path, err);
	free(text);
	return r;
}

static int write_text(const char *path, const char *text, size_t len)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644), r = 0;

	if (fd < 0)
		return -errno;
	for (size_t done = 0; done < len && !r;) {
		ssize_t n = write(fd, text + done, len - done);

		if (n < 0 && errno != EINTR)
			r = -errno;
		else if (n > 0)
			done += (size_t)n;
	}
	if (!r && fsync(fd) < 0)
		r = -errno;
	if (close(fd) < 0 && !r)
		r = -errno;
	return r;
}

int rescue_sync_directory(const char *path)
{
	char *copy = strdup(path);
	int fd = copy ? open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1, r = 0;

	if (fd < 0 || (fsync(fd) < 0 && errno != EINVAL))
		r = copy ? -errno : -ENOMEM;
	if (fd >= 0)
		close(fd);
	free(copy);
	return r;
}

int rescue_map_save(const struct rescue_map *m, const char *path, const char *source,
		    struct error *err)
{
	char *text = NULL, *fresh = NULL;
	size_t len = 0;
	int r = rescue_map_print(m, source, &text, &len);

	if (!r && asprintf(&fresh, "%s.new", path) < 0) {
		fresh = NULL;
		r = -ENOMEM;
	}
	if (!r)
		r = write_text(fresh, text, len);
	if (!r && rename(fresh, path) < 0)
		r = -errno;
	if (!r)
		r = rescue_sync_directory(path);
	else if (fresh)
		unlink(fresh);
	free(fresh);
	if (len)
		free(text);
	return r < 0 ? err_errno(err, -r, "cannot write the map '%s'", path) : 0;
}
