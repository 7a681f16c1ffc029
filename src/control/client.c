/* control/client.c - see client.h. */
#include "control/client.h"

#include "base/error.h"
#include "control/core.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 1 << 20 };

struct control_client {
	int fd;
	bool ended; /* SHUTDOWN was seen */
	size_t used;
	char in[LINE_MAX_BYTES];
};

/* ---- lines ---- */

/* One message; NULL with err->msg empty: the other end hung up. */
static json_t *take_line(struct control_client *c, struct error *err)
{
	json_error_t why;
	json_t *msg;
	char *end;
	ssize_t n;

	while (!(end = memchr(c->in, '\n', c->used))) {
		if (c->used == sizeof(c->in)) {
			err_set(err, EPROTO, "this is no control socket: a line without an end");
			return NULL;
		}
		n = recv(c->fd, c->in + c->used, sizeof(c->in) - c->used, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			err_errno(err, errno, "cannot read from the control socket");
		if (n <= 0)
			return NULL;
		c->used += (size_t)n;
	}
	msg = json_loadb(c->in, (size_t)(end - c->in), 0, &why);
	c->used -= (size_t)(end + 1 - c->in);
	memmove(c->in, end + 1, c->used);
	if (!msg)
		err_set(err, EPROTO, "this is no control socket: %s", why.text);
	return msg;
}

static int send_all(struct control_client *c, const char *p, size_t len, struct error *err)
{
	while (len) {
		ssize_t n = send(c->fd, p, len, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return err_errno(err, errno, "cannot write to the control socket");
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

static int send_json(struct control_client *c, json_t *msg, struct error *err)
{
	char *text = msg ? json_dumps(msg, JSON_COMPACT | JSON_ENSURE_ASCII) : NULL;
	size_t len = text ? strlen(text) : 0;
	int r;

	json_decref(msg);
	if (!text)
		return err_set(err, EINVAL, "the arguments are not text (UTF-8)");
	/* In one piece: the message counts before its newline, and after a quit nobody reads on. */
	text[len] = '\n';
	r = send_all(c, text, len + 1, err);
	free(text);
	return r;
}

/* ---- printing ---- */

static void print_plain(FILE *out, const json_t *v, unsigned depth);

static void print_scalar(FILE *out, const json_t *v)
{
	char *text;

	if (json_is_string(v)) {
		fprintf(out, "%s\n", json_string_value(v));
		return;
	}
	text = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);
	fprintf(out, "%s\n", text ? text : "");
	free(text);
}

static bool is_scalar(const json_t *v)
{
	return !json_is_object(v) && !json_is_array(v);
}

static void print_member(FILE *out, const char *key, const json_t *v, unsigned depth)
{
	fprintf(out, "%s:", key);
	if (is_scalar(v)) {
		fputc(' ', out);
		print_scalar(out, v);
	} else {
		fputc('\n', out);
		print_plain(out, v, depth + 1);
	}
}

/* Indented, a list's elements behind a dash: for people. */
static void print_plain(FILE *out, const json_t *v, unsigned depth)
{
	const char *key;
	json_t *each;
	size_t i;

	if (depth > CONTROL_DEPTH_MAX)
		return;
	if (is_scalar(v)) {
		fprintf(out, "%*s", 2 * (int)depth, "");
		print_scalar(out, v);
	}
	json_object_foreach((json_t *)(uintptr_t)v, key, each)
	{
		fprintf(out, "%*s", 2 * (int)depth, "");
		print_member(out, key, each, depth);
	}
	json_array_foreach(v, i, each)
	{
		bool first = true;

		if (!json_is_object(each)) {
			fprintf(out, "%*s- ", 2 * (int)depth, "");
			print_plain(out, each, 0);
			continue;
		}
		const char *name;
		json_t *member;

		json_object_foreach(each, name, member)
		{
			fprintf(out, "%*s%s", 2 * (int)depth, "", first ? "- " : "  ");
			print_member(out, name, member, depth + 1);
			first = false;
		}
	}
}

static void print_json(FILE *out, const json_t *v)
{
	char *text = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY);

	if (text)
		fprintf(out, "%s\n", text);
	free(text);
	fflush(out);
}

/* "12:03:11 SAVE status=active done=1 total=2" */
static void print_event(FILE *out, const json_t *msg, enum control_print how)
{
	json_t *data = json_object_get(msg, "data"), *v;
	const char *name = json_string_value(json_object_get(msg, "event")), *key;

	if (how == CONTROL_JSON)
		return print_json(out, msg);
	fprintf(out, "%s", name ? name : "?");
	json_object_foreach(data, key, v)
	{
		char *text =
			json_is_string(v) ? NULL : json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT);

		fprintf(out, " %s=%s", key,
			text                ? text
			: json_is_string(v) ? json_string_value(v)
					    : "");
		free(text);
	}
	fputc('\n', out);
	fflush(out);
}

static void saw_event(struct control_client *c, const json_t *msg, FILE *out,
		      enum control_print how)
{
	const char *name = json_string_value(json_object_get(msg, "event"));

	if (name && !strcmp(name, "SHUTDOWN"))
		c->ended = true;
	if (out)
		print_event(out, msg, how);
}

/* ---- talking ---- */

/* The answer to what was sent last; events on the way are told. */
static json_t *take_answer(struct control_client *c, FILE *events, enum control_print how,
			   struct error *err)
{
	json_t *msg;

	err->msg[0] = '\0';
	while ((msg = take_line(c, err)) && json_object_get(msg, "event")) {
		saw_event(c, msg, events, how);
		json_decref(msg);
	}
	if (!msg && !err->msg[0])
		err_set(err, EPIPE, "the VM has ended");
	return msg;
}

static int check_answer(const json_t *msg, struct error *err)
{
	const json_t *error = json_object_get(msg, "error");
	const char *desc = json_string_value(json_object_get(error, "desc"));

	if (json_object_get(msg, "return"))
		return 0;
	return err_set(err, EREMOTEIO, "%s", desc ? desc : "an answer that is none");
}

static int call(struct control_client *c, json_t *msg, FILE *events, enum control_print how,
		json_t **answer, struct error *err)
{
	int r = send_json(c, msg, err);

	if (r < 0)
		return r;
	*answer = take_answer(c, events, how, err);
	if (!*answer)
		return -EPIPE;
	r = check_answer(*answer, err);
	if (r < 0)
		json_decref(*answer);
	return r;
}

static int greet(struct control_client *c, struct error *err)
{
	json_t *msg = take_answer(c, NULL, CONTROL_PLAIN, err), *answer;
	bool good = json_object_get(msg, "QMP") != NULL;
	int r;

	if (!msg)
		return -EPIPE;
	if (!good)
		r = check_answer(msg, err) < 0 ? -EREMOTEIO : -EPROTO;
	json_decref(msg);
	if (!good)
		return r;
	r = call(c, json_pack("{s:s}", "execute", "qmp_capabilities"), NULL, CONTROL_PLAIN, &answer,
		 err);
	if (r == 0)
		json_decref(answer);
	return r;
}

int control_client_open(struct control_client **out, const char *path, struct error *err)
{
	struct control_client *c = calloc(1, sizeof(*c));
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int r;

	if (!c)
		return err_errno(err, ENOMEM, "control socket");
	c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (strlen(path) >= sizeof(addr.sun_path)) {
		r = err_set(err, ENAMETOOLONG, "'%s': the path is too long for a socket", path);
		goto fail;
	}
	memcpy(addr.sun_path, path, strlen(path));
	if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		if (errno == ECONNREFUSED)
			r = err_set(err, ECONNREFUSED, "nobody answers at '%s': the VM has ended",
				    path);
		else
			r = err_errno(err, errno, "cannot connect to '%s'", path);
		goto fail;
	}
	r = greet(c, err);
	if (r < 0)
		goto fail;
	*out = c;
	return 0;

fail:
	control_client_close(c);
	return r;
}

void control_client_close(struct control_client *c)
{
	if (!c)
		return;
	if (c->fd >= 0)
		close(c->fd);
	free(c);
}

/* ---- arguments ---- */

static const struct control_arg *arg_find(const struct control_command *c, const char *key)
{
	for (unsigned i = 0; c && i < CONTROL_ARGS_MAX && c->args[i].name; i++)
		if (!strcmp(c->args[i].name, key))
			return &c->args[i];
	return NULL;
}

/* The VM has another working directory than the person who types. */
static json_t *path_value(const char *path)
{
	char cwd[PATH_MAX], full[2 * PATH_MAX];

	if (*path == '/' || !*path || !getcwd(cwd, sizeof(cwd)))
		return json_string(path);
	snprintf(full, sizeof(full), "%s/%s", cwd, path);
	return json_string(full);
}

static json_t *list_value(const char *text)
{
	json_t *list = json_array();

	while (*text) {
		size_t n = strcspn(text, ",");

		json_array_append_new(list, json_stringn(text, n));
		text += n + (text[n] == ',');
	}
	return list;
}

static int add_arg(json_t *args, const struct control_command *c, const char *text,
		   struct error *err)
{
	const char *equals = strchr(text, '=');
	const struct control_arg *a;
	char key[64];

	if (!equals || equals == text || (size_t)(equals - text) >= sizeof(key))
		return err_set(err, EINVAL, "'%s' is not key=value", text);
	memcpy(key, text, (size_t)(equals - text));
	key[equals - text] = '\0';
	a = arg_find(c, key);
	if (json_object_set_new(args, key,
				a && a->type == CONTROL_PATH   ? path_value(equals + 1)
				: a && a->type == CONTROL_LIST ? list_value(equals + 1)
							       : json_string(equals + 1)) < 0)
		return err_set(err, EINVAL, "'%s' is not text (UTF-8)", text);
	return 0;
}

int control_client_run(struct control_client *c, const char *command, char *const *args,
		       unsigned nr_args, enum control_print how, FILE *out, FILE *events,
		       struct error *err)
{
	const struct control_command *known = control_command_find(command);
	json_t *object = json_object(), *answer, *result;
	int r = 0;

	for (unsigned i = 0; i < nr_args && r == 0; i++)
		r = add_arg(object, known, args[i], err);
	if (r < 0) {
		json_decref(object);
		return r;
	}
	r = call(c, json_pack("{s:s,s:o}", "execute", command, "arguments", object), events, how,
		 &answer, err);
	if (r < 0)
		return r;
	result = json_object_get(answer, "return");
	if (how == CONTROL_JSON)
		print_json(out, result);
	else
		print_plain(out, result, 0);
	fflush(out);
	json_decref(answer);
	return 0;
}

int control_client_follow(struct control_client *c, enum control_print how, FILE *out,
			  struct error *err)
{
	json_t *msg;

	err->msg[0] = '\0';
	while (!c->ended && (msg = take_line(c, err))) {
		if (json_object_get(msg, "event"))
			saw_event(c, msg, out, how);
		json_decref(msg);
	}
	return err->msg[0] ? -EPROTO : 0;
}
