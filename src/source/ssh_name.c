/* source/ssh_name.c - see ssh_conn.h: names of files on other hosts, and how ssh is called.
 *
 * Nothing of a name may be taken for something else: by ssh for an option, by ssh's configuration
 * for more than a host or a user (%h and %r end up in commands), by the shell there for more than
 * one word. */
#include "source/ssh_conn.h"

#include "base/error.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LETTERS "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

static const char usage[] = "ssh://[USER@]HOST[:PORT]/PATH";

static int hex(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c = (char)tolower((unsigned char)c);
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* RFC 3986 section 2.1.  False: no control characters in a name. */
static bool decode(char *s)
{
	char *out = s;

	for (; *s; s++) {
		if (*s == '%' && hex(s[1]) >= 0 && hex(s[2]) >= 0) {
			*out = (char)(hex(s[1]) << 4 | hex(s[2]));
			s += 2;
		} else {
			*out = *s;
		}
		if ((unsigned char)*out < ' ' || *out == 0x7f)
			return false;
		out++;
	}
	*out = 0;
	return true;
}

static bool only(const char *s, const char *allowed)
{
	return *s && *s != '-' && !s[strspn(s, allowed)];
}

static int split_host(struct ssh_where *w, const char *from, size_t len)
{
	const char *colon;

	if (len && *from == '[') { /* RFC 3986 section 3.2.2: an IPv6 address */
		const char *close = memchr(from, ']', len);

		if (!close)
			return -EINVAL;
		w->host = strndup(from + 1, (size_t)(close - from) - 1);
		len -= (size_t)(close + 1 - from);
		from = close + 1;
		if (len && *from != ':')
			return -EINVAL;
		colon = len ? from : NULL;
	} else {
		colon = memchr(from, ':', len);
		w->host = strndup(from, colon ? (size_t)(colon - from) : len);
	}
	if (colon)
		w->port = strndup(colon + 1, (size_t)(from + len - colon) - 1);
	return w->host && (!colon || w->port) ? 0 : -ENOMEM;
}

static int split(struct ssh_where *w, const char *name)
{
	const char *from = name + strlen("ssh://"), *slash, *at;
	int r;

	if (strncmp(name, "ssh://", 6))
		return -EINVAL;
	slash = strchr(from, '/');
	if (!slash || !slash[1])
		return -EINVAL;
	at = memrchr(from, '@', (size_t)(slash - from));
	if (at) {
		w->user = strndup(from, (size_t)(at - from));
		if (!w->user)
			return -ENOMEM;
		from = at + 1;
	}
	r = split_host(w, from, (size_t)(slash - from));
	w->path = strdup(slash);
	return !r && !w->path ? -ENOMEM : r;
}

static bool good_port(const char *port)
{
	char *end;
	long v = strtol(port, &end, 10);

	return isdigit((unsigned char)*port) && !*end && v > 0 && v < 65536;
}

static int check(const struct ssh_where *w, const char *name, struct error *err)
{
	if (w->user && strchr(w->user, ':'))
		return err_set(err, EINVAL,
			       "%s: no passwords in names, which others can see; ssh takes keys",
			       usage);
	if (w->user && !only(w->user, LETTERS "._+@\\-"))
		return err_set(err, EINVAL, "'%s': this is no name of a user (%s)", name, usage);
	if (!only(w->host, LETTERS "._:%-"))
		return err_set(err, EINVAL, "'%s': this is no name of a host (%s)", name, usage);
	if (w->port && !good_port(w->port))
		return err_set(err, EINVAL, "'%s': the port is a number to 65535", name);
	if (!decode(w->path))
		return err_set(err, EINVAL, "'%s': there are control characters in the path", name);
	return 0;
}

int ssh_where_parse(struct ssh_where *w, const char *name, struct error *err)
{
	int r;

	*w = (struct ssh_where){0};
	r = split(w, name);
	if (r == -ENOMEM)
		err_errno(err, ENOMEM, "'%s'", name);
	else if (r < 0)
		err_set(err, EINVAL, "'%s' is not of the form %s", name, usage);
	else
		r = check(w, name, err);
	if (r < 0)
		ssh_where_fini(w);
	else
		snprintf(w->shown, sizeof(w->shown), "%s%s%s", w->user ? w->user : "",
			 w->user ? "@" : "", w->host);
	return r;
}

void ssh_where_fini(struct ssh_where *w)
{
	free(w->user);
	free(w->host);
	free(w->port);
	free(w->path);
	*w = (struct ssh_where){0};
}

/* --- how ssh is called --------------------------------------------------------------------------
 */

int ssh_how_init(struct ssh_how *h, const struct blk_remote_opts *remote, struct error *err)
{
	const char *from = remote && remote->ssh ? remote->ssh : getenv("TRIVISOR_SSH");
	char *save = NULL;

	*h = (struct ssh_how){.timeout_ms = 30000};
	if (remote && remote->timeout_s)
		h->timeout_ms = (int)MIN(remote->timeout_s, 86400u) * 1000;
	h->program = strdup(from && *from ? from : "ssh");
	if (!h->program)
		return err_errno(err, ENOMEM, "ssh");
	for (char *word = strtok_r(h->program, " ", &save); word;
	     word = strtok_r(NULL, " ", &save)) {
		if (h->nr_args == SSH_ARGS) {
			ssh_how_fini(h);
			return err_set(err, EINVAL, "TRIVISOR_SSH: more than %d words", SSH_ARGS);
		}
		h->args[h->nr_args++] = word;
	}
	if (h->nr_args)
		return 0;
	ssh_how_fini(h);
	return err_set(err, EINVAL, "TRIVISOR_SSH holds no program");
}

void ssh_how_fini(struct ssh_how *h)
{
	free(h->program);
	h->program = NULL;
}
