/* The text that drives the writer; `mkvmfs --help` (mkvmfs.c) explains its lines. */
#include "internal.h"

#include <ctype.h>
#include <errno.h>
#include <sys/stat.h>

enum { WORDS_MAX = 512, PIECES_MAX = 256 };

struct line {
	char *word[WORDS_MAX];
	unsigned int words, number;
	bool known[WORDS_MAX];
};

static char unescape(char c)
{
	return c == 'n' ? '\n' : c == 't' ? '\t' : c;
}

/* One word, quotes and backslashes taken out in place; returns where the next begins. */
static char *word_end(char *at)
{
	char *out = at;
	bool quoted = false;

	for (; *at && (quoted || !isspace((unsigned char)*at)); at++) {
		if (*at == '"')
			quoted = !quoted;
		else if (*at == '\\' && at[1])
			*out++ = unescape(*++at);
		else
			*out++ = *at;
	}
	if (quoted)
		mkfs_die("a quote is not closed");
	if (*at)
		at++;
	*out = 0;
	return at;
}

static void split(struct line *l, char *at)
{
	l->words = 0;
	memset(l->known, 0, sizeof(l->known));
	for (;;) {
		while (isspace((unsigned char)*at))
			at++;
		if (!*at || *at == '#')
			return;
		if (l->words == WORDS_MAX)
			mkfs_die("line %u: too long", l->number);
		l->word[l->words++] = at;
		at = word_end(at);
	}
}

/* The value of the next key=value after *i, or NULL. */
static const char *next_value(struct line *l, const char *key, unsigned int *i)
{
	uint64_t len = strlen(key);

	for (++*i; *i < l->words; ++*i) {
		if (strncmp(l->word[*i], key, len) || l->word[*i][len] != '=')
			continue;
		l->known[*i] = true;
		return l->word[*i] + len + 1;
	}
	return NULL;
}

static const char *value(struct line *l, const char *key)
{
	unsigned int i = 0;

	return next_value(l, key, &i);
}

static bool flag(struct line *l, const char *name)
{
	for (unsigned int i = 1; i < l->words; i++)
		if (!strcmp(l->word[i], name))
			return l->known[i] = true;
	return false;
}

static uint64_t size_of(const struct line *l, const char *s, char **end)
{
	static const char units[] = "KMGT";
	uint64_t v;
	const char *u;

	errno = 0;
	v = strtoull(s, end, 0);
	if (*end == s || errno)
		mkfs_die("line %u: '%s' is not a number", l->number, s);
	u = **end ? strchr(units, **end) : NULL;
	if (u) {
		v <<= 10 * (u - units + 1);
		++*end;
	}
	return v;
}

static uint64_t num_of(const struct line *l, const char *s)
{
	char *end;
	uint64_t v = size_of(l, s, &end);

	if (*end)
		mkfs_die("line %u: '%s' is not a number with K, M, G or T", l->number, s);
	return v;
}

static uint64_t num(struct line *l, const char *key, uint64_t otherwise)
{
	const char *s = value(l, key);

	return s ? num_of(l, s) : otherwise;
}

static unsigned int choice(struct line *l, const char *key, const char *const *names)
{
	const char *s = value(l, key);

	if (!s)
		return 0;
	for (unsigned int i = 0; names[i]; i++)
		if (!strcmp(s, names[i]))
			return i;
	mkfs_die("line %u: %s=%s is not known", l->number, key, s);
}

static const char *arg(struct line *l, unsigned int i)
{
	if (i >= l->words)
		mkfs_die("line %u: %s needs %u words", l->number, l->word[0], i);
	l->known[i] = true;
	return l->word[i];
}

static void do_format(struct mkfs **m, struct line *l)
{
	static const char *const disks[] = {"none", "gpt", "mbr", NULL};
	struct mkfs_format f = {.version = (int)num(l, "version", 5),
				.block = num(l, "block", MIB),
				.dense = !flag(l, "sparse-clusters"),
				.upgraded = flag(l, "upgraded"),
				.local = flag(l, "local"),
				.live = flag(l, "live"),
				.keep = flag(l, "keep"),
				.disk = (enum mkfs_disk)choice(l, "disk", disks),
				.seed = num(l, "seed", 1),
				.label = value(l, "label")};
	const char *file, *size;

	for (unsigned int i = 0, j = 0; (file = next_value(l, "file", &i)); f.extents++) {
		if (f.extents == MKFS_EXTENTS_MAX)
			mkfs_die("line %u: too many files", l->number);
		f.file[f.extents] = file;
		size = next_value(l, "size", &j);
		f.size[f.extents] = size ? num_of(l, size) : 512 * MIB;
	}
	*m = *m ? mkfs_format_over(*m, &f) : mkfs_create(&f);
}

static const struct mkfs_piece *flags_piece(struct line *l)
{
	static struct mkfs_piece p;

	p = (struct mkfs_piece){.tbz = flag(l, "tbz"),
				.cow = flag(l, "cow"),
				.lfb = flag(l, "lfb"),
				.thin = flag(l, "thin")};
	return &p;
}

/* OFFSET:LENGTH:SEED */
static struct mkfs_piece piece_of(const struct line *l, const char *s)
{
	struct mkfs_piece p = {0};
	uint64_t *field[] = {&p.off, &p.len, &p.seed};
	char *end = (char *)(uintptr_t)s;

	for (int i = 0; i < 3; i++) {
		*field[i] = size_of(l, end, &end);
		if (i < 2 && *end != ':')
			mkfs_die("line %u: '%s' is not OFFSET:LENGTH:SEED", l->number, s);
		end += i < 2;
	}
	for (; *end; end++) {
		p.tbz |= *end == 't';
		p.cow |= *end == 'c';
		p.lfb |= *end == 'l';
	}
	return p;
}

static uint64_t host_size(const char *path)
{
	struct stat st;

	if (stat(path, &st))
		mkfs_die("%s: %s", path, strerror(errno));
	return (uint64_t)st.st_size;
}

/* The whole content in one: text=, host= or pattern=. */
static bool whole_piece(struct line *l, struct mkfs_piece *p, uint64_t size)
{
	const char *text = value(l, "text"), *host = value(l, "host"), *seed = value(l, "pattern");

	*p = *flags_piece(l);
	if (text) {
		p->text = text;
		p->len = strlen(text);
	} else if (host) {
		p->host = host;
		p->len = host_size(host);
	} else if (seed) {
		p->seed = num_of(l, seed);
		p->len = size;
	}
	return p->len > 0;
}

static void do_file(struct mkfs **m, struct line *l)
{
	static const char *const layouts[] = {"auto",   "resident", "sub", "direct",
					      "single", "double",   NULL};
	static struct mkfs_piece piece[PIECES_MAX];
	bool blocks = flag(l, "reuse-blocks");
	struct mkfs_file f = {.size = num(l, "size", 0),
			      .layout = (enum mkfs_layout)choice(l, "layout", layouts),
			      .pb2 = flag(l, "pb2"),
			      .reuse = flag(l, "reuse") || blocks,
			      .new_fd = blocks,
			      .scatter = flag(l, "scatter"),
			      .mode = (uint32_t)num(l, "mode", 0),
			      .piece = piece};
	const char *path = arg(l, 1), *s;

	f.pieces = whole_piece(l, &piece[0], f.size);
	for (unsigned int i = 0; (s = next_value(l, "piece", &i)); f.pieces++) {
		const struct mkfs_piece *all = flags_piece(l);

		if (f.pieces == PIECES_MAX)
			mkfs_die("line %u: too many pieces", l->number);
		piece[f.pieces] = piece_of(l, s);
		piece[f.pieces].tbz |= all->tbz;
		piece[f.pieces].cow |= all->cow;
		piece[f.pieces].lfb |= all->lfb;
	}
	mkfs_add(*m, path, &f);
}

static void do_rdm(struct mkfs **m, struct line *l)
{
	const char *id = value(l, "id");
	struct mkfs_file f = {.size = num(l, "size", GIB), .mode = 0600, .rdm = id ? id : "naa.0"};

	mkfs_add(*m, arg(l, 1), &f);
}

static void do_mkdir(struct mkfs **m, struct line *l)
{
	mkfs_mkdir(*m, arg(l, 1));
}

static void do_symlink(struct mkfs **m, struct line *l)
{
	mkfs_symlink(*m, arg(l, 1), arg(l, 2));
}

static const char *prefix(struct line *l)
{
	const char *s = value(l, "prefix");

	return s ? s : "f";
}

static void do_fill(struct mkfs **m, struct line *l)
{
	mkfs_fill(*m, arg(l, 1), prefix(l), num(l, "count", 100), num(l, "size", 0));
}

static void do_collide(struct mkfs **m, struct line *l)
{
	mkfs_collide(*m, arg(l, 1), prefix(l), num(l, "count", 30));
}

static void do_delete(struct mkfs **m, struct line *l)
{
	static const char *const dirents[] = {"default", "address", "zero", "compact", NULL};
	struct mkfs_delete d = {.grade = (int)num(l, "grade", 1),
				.unmap = flag(l, "unmap"),
				.dirent = (enum mkfs_dirent)choice(l, "dirent", dirents)};

	mkfs_delete(*m, arg(l, 1), &d);
}

static void do_stale(struct mkfs **m, struct line *l)
{
	mkfs_stale(*m, arg(l, 1));
}

static void do_journal(struct mkfs **m, struct line *l)
{
	mkfs_journal(*m, arg(l, 1));
}

static void do_flush(struct mkfs **m, struct line *l)
{
	mkfs_flush(*m);
}

static const struct {
	const char *name;
	void (*run)(struct mkfs **m, struct line *l);
} commands[] = {
	{"format", do_format},   {"mkdir", do_mkdir},   {"file", do_file},
	{"symlink", do_symlink}, {"rdm", do_rdm},       {"fill", do_fill},
	{"collide", do_collide}, {"delete", do_delete}, {"stale", do_stale},
	{"journal", do_journal}, {"flush", do_flush},
};

static void run_line(struct mkfs **m, struct line *l)
{
	unsigned int i = 0;

	while (i < sizeof(commands) / sizeof(commands[0]) && strcmp(l->word[0], commands[i].name))
		i++;
	if (i == sizeof(commands) / sizeof(commands[0]))
		mkfs_die("line %u: '%s' is not a command", l->number, l->word[0]);
	if (i && !*m)
		mkfs_die("line %u: 'format' comes first", l->number);
	commands[i].run(m, l);
	for (i = 1; i < l->words; i++)
		if (!l->known[i])
			mkfs_die("line %u: '%s' is not known here", l->number, l->word[i]);
}

void mkfs_script(const char *text, FILE *out)
{
	char *copy = xdup(text), *at = copy, *end;
	struct mkfs *m = NULL;
	struct line *l = xalloc(sizeof(*l));

	for (; at; at = end) {
		end = strchr(at, '\n');
		if (end)
			*end++ = 0;
		l->number++;
		split(l, at);
		if (l->words)
			run_line(&m, l);
	}
	if (!m)
		mkfs_die("the script has no 'format' line");
	mkfs_finish(m, out);
	free(l);
	free(copy);
}
