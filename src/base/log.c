/* base/log.c - see log.h.
 *
 * A component remembers the level it resolved to and the generation of the settings it did so
 * under; log_configure starts a new generation.  The usual log_enabled() is two loads. */
#include "base/log.h"

#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MAX_RULES = 64, MAX_NAME = 32, GUEST_LINES_PER_S = 10 };

struct rule {
	char name[MAX_NAME];
	int level;
};

static pthread_mutex_t settings_lock = PTHREAD_MUTEX_INITIALIZER; /* guards the next three */
static struct rule rules[MAX_RULES];
static unsigned nr_rules;
static int default_level = LOG_WARN;

static uint32_t settings_gen = 1; /* written under the lock, read anywhere */

static const char *const level_names[] = {
	[LOG_ERROR] = "error", [LOG_WARN] = "warn",   [LOG_INFO] = "info",
	[LOG_DEBUG] = "debug", [LOG_TRACE] = "trace",
};

static int level_parse(const char *s, size_t len)
{
	for (unsigned i = 0; i < ARRAY_SIZE(level_names); i++)
		if (strlen(level_names[i]) == len && !memcmp(level_names[i], s, len))
			return (int)i;
	return -1;
}

static int level_of(const char *name)
{
	for (unsigned i = 0; i < nr_rules; i++)
		if (!strcmp(rules[i].name, name))
			return rules[i].level;
	return default_level;
}

static int resolve(struct log_component *c)
{
	int level;

	pthread_mutex_lock(&settings_lock);
	level = level_of(c->name);
	/* The level before its generation: who sees the generation may use the level. */
	__atomic_store_n(&c->level, level, __ATOMIC_RELAXED);
	__atomic_store_n(&c->gen, settings_gen, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&settings_lock);
	return level;
}

bool log_enabled(struct log_component *c, enum log_level level)
{
	uint32_t now = __atomic_load_n(&settings_gen, __ATOMIC_RELAXED);

	if (__atomic_load_n(&c->gen, __ATOMIC_ACQUIRE) != now)
		return (int)level <= resolve(c);
	return (int)level <= __atomic_load_n(&c->level, __ATOMIC_RELAXED);
}

void log_write(struct log_component *c, enum log_level level, const char *fmt, ...)
{
	char line[1024];
	size_t used;
	va_list ap;
	int n;

	n = snprintf(line, sizeof(line), "%s: %s: ", level_names[level], c->name);
	used = (size_t)n;
	va_start(ap, fmt);
	n = vsnprintf(line + used, sizeof(line) - used, fmt, ap);
	va_end(ap);
	if (n > 0)
		used = MIN(used + (size_t)n, sizeof(line) - 1);
	/* A guest chose some of these bytes: keep it from driving the operator's terminal. */
	for (size_t i = 0; i < used; i++)
		if ((unsigned char)line[i] < ' ' || line[i] == 0x7f)
			line[i] = '?';
	line[MIN(used, sizeof(line) - 1)] = '\n';
	/* One write, so lines of several threads do not mix.  Nobody to tell if it fails. */
	if (write(STDERR_FILENO, line, MIN(used, sizeof(line) - 1) + 1) < 0)
		return;
}

bool log_limit_ok(struct log_limit *l)
{
	uint64_t now = clock_mono_ns();
	uint64_t start = __atomic_load_n(&l->window_ns, __ATOMIC_RELAXED);

	if (!start || now - start >= NSEC_PER_SEC) {
		/* Two threads may both open the window: a few lines more, no harm. */
		__atomic_store_n(&l->window_ns, now, __ATOMIC_RELAXED);
		__atomic_store_n(&l->said, 0, __ATOMIC_RELAXED);
	}
	if (__atomic_fetch_add(&l->said, 1, __ATOMIC_RELAXED) < GUEST_LINES_PER_S)
		return true;
	__atomic_fetch_add(&l->lost, 1, __ATOMIC_RELAXED);
	return false;
}

/* One "component=level" or "level" of len bytes, added to the settings passed in. */
static int parse_word(const char *word, size_t len, struct rule *r, unsigned *nr, int *dflt,
		      struct error *err)
{
	const char *eq = memchr(word, '=', len);
	size_t name_len = eq ? (size_t)(eq - word) : 0;
	const char *lvl = eq ? eq + 1 : word;
	int level = level_parse(lvl, len - (size_t)(lvl - word));

	if (level < 0)
		return err_set(err, EINVAL,
			       "log setting '%.*s': the level is one of error, warn, info, debug, "
			       "trace",
			       (int)len, word);
	if (!eq) {
		*dflt = level;
		return 0;
	}
	if (!name_len || name_len >= MAX_NAME || *nr == MAX_RULES)
		return err_set(err, EINVAL, "log setting '%.*s': bad component name", (int)len,
			       word);
	memcpy(r[*nr].name, word, name_len);
	r[*nr].name[name_len] = '\0';
	r[(*nr)++].level = level;
	return 0;
}

int log_configure(const char *spec, struct error *err)
{
	struct rule new_rules[MAX_RULES];
	int dflt = LOG_WARN, r;
	unsigned nr = 0;

	for (const char *p = spec;; p++) {
		size_t len = strcspn(p, ",");

		r = parse_word(p, len, new_rules, &nr, &dflt, err);
		if (r < 0)
			return r;
		p += len;
		if (!*p)
			break;
	}
	pthread_mutex_lock(&settings_lock);
	memcpy(rules, new_rules, nr * sizeof(rules[0]));
	nr_rules = nr;
	default_level = dflt;
	__atomic_fetch_add(&settings_gen, 1, __ATOMIC_RELAXED);
	pthread_mutex_unlock(&settings_lock);
	return 0;
}
