/* control/session.c - the messages of one client; see core.h.
 *
 * A message ends where its brackets close, newline or not, as clients of QMP write both.  What
 * begins otherwise, or is broken inside a string, is answered with an error and skipped up to the
 * end of its line. */
#include "base/error.h"
#include "control/core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- out ---- */

void control_session_send(struct control_session *s, json_t *msg)
{
	char *text = msg ? json_dumps(msg, JSON_COMPACT | JSON_ENSURE_ASCII) : NULL;
	size_t len = text ? strlen(text) : 0;

	json_decref(msg);
	if (!text) { /* out of memory: the client must not take silence for an answer */
		s->broken = true;
		return;
	}
	text[len] = '\n'; /* over the end: the length goes with it */
	s->send(s->opaque, text, len + 1);
	free(text);
}

json_t *control_text(const char *text)
{
	char plain[1024];
	json_t *v = json_string(text ? text : "");

	if (v)
		return v;
	snprintf(plain, sizeof(plain), "%s", text);
	for (char *p = plain; *p; p++)
		if ((unsigned char)*p >= 0x80)
			*p = '?';
	return json_string(plain);
}

static void send_error(struct control_session *s, const char *class, const char *what, json_t *id)
{
	json_t *msg =
		json_pack("{s:{s:s,s:o}}", "error", "class", class, "desc", control_text(what));

	if (msg && id)
		json_object_set(msg, "id", id);
	control_session_send(s, msg);
}

static void send_result(struct control_session *s, json_t *result, json_t *id)
{
	json_t *msg = json_pack("{s:o}", "return", result ? result : json_object());

	if (msg && id)
		json_object_set(msg, "id", id);
	control_session_send(s, msg);
}

static void greet(struct control_session *s)
{
	control_session_send(s, json_pack("{s:{s:{s:{s:i,s:i,s:i},s:s},s:[]}}", "QMP", "version",
					  "qemu", "micro", 0, "minor", 2, "major", 7, "package",
					  "trivisor-0.1.0", "capabilities"));
}

/* ---- calls ---- */

static void call_free(struct control_call *call)
{
	if (call->session)
		call->session->waiting = NULL;
	json_decref(call->id);
	json_decref(call->args);
	json_decref(call->result);
	free(call);
}

static void call_answer(struct control_call *call, bool failed)
{
	if (!call->session)
		return;
	if (failed)
		send_error(call->session, call->class ? call->class : "GenericError", call->err,
			   call->id);
	else
		send_result(call->session, json_incref(call->result), call->id);
}

static void pump(struct control_session *s);

void control_call_finish(struct control_call *call, json_t *result, const char *error)
{
	struct control_session *s = call->session;

	call->result = result;
	if (error)
		snprintf(call->err, sizeof(call->err), "%s", error);
	call_answer(call, error != NULL);
	call_free(call);
	if (s)
		pump(s);
}

static void call_run(struct control_call *call)
{
	struct control_session *s = call->session;
	enum control_answer a;

	s->waiting = call;
	a = call->command->run(call);
	if (a == CONTROL_LATER)
		return;
	call_answer(call, a == CONTROL_FAILED);
	call_free(call);
}

/* ---- one message ---- */

static const char *check_members(const json_t *msg)
{
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)(uintptr_t)msg, key, value)
	{
		if (strcmp(key, "execute") && strcmp(key, "arguments") && strcmp(key, "id"))
			return "the message has a member that is not execute, arguments or id";
	}
	if (!json_is_string(json_object_get(msg, "execute")))
		return "the message lacks 'execute' with the name of a command";
	value = json_object_get(msg, "arguments");
	if (value && !json_is_object(value))
		return "'arguments' is not an object";
	return NULL;
}

/* QMP: nothing but the negotiation before the negotiation, and that only once. */
static const char *check_order(const struct control_session *s, const char *name)
{
	bool negotiation = !strcmp(name, "qmp_capabilities");

	if (!s->negotiated && !negotiation)
		return "Expecting capabilities negotiation with 'qmp_capabilities'";
	if (s->negotiated && negotiation)
		return "Capabilities negotiation is already complete, command ignored";
	return NULL;
}

static void execute(struct control_session *s, const json_t *msg)
{
	const char *name = json_string_value(json_object_get(msg, "execute"));
	json_t *id = json_object_get(msg, "id"), *args = json_object_get(msg, "arguments");
	const struct control_command *c = control_command_find(name);
	const char *wrong = check_order(s, name);
	struct control_call *call;
	struct error err;

	if (!wrong && !c) {
		err_set(&err, ENOENT, "The command %.64s has not been found", name);
		wrong = err.msg;
	}
	if (wrong)
		return send_error(s, "CommandNotFound", wrong, id);
	if (control_args_check(c, args, &err) < 0)
		return send_error(s, "GenericError", err.msg, id);
	call = calloc(1, sizeof(*call));
	if (!call)
		return send_error(s, "GenericError", "out of memory", id);
	*call = (struct control_call){.core = s->core,
				      .session = s,
				      .command = c,
				      .id = json_incref(id),
				      .args = json_incref(args)};
	call_run(call);
}

static void take_message(struct control_session *s, const char *text, size_t len)
{
	json_error_t why;
	json_t *msg = json_loadb(text, len, JSON_REJECT_DUPLICATES, &why);
	const char *wrong;
	struct error err;

	if (!msg) {
		err_set(&err, EINVAL, "JSON parse error: %s", why.text);
		return send_error(s, "GenericError", err.msg, NULL);
	}
	wrong = json_is_object(msg) ? check_members(msg) : "a message is a JSON object";
	if (wrong)
		send_error(s, "GenericError", wrong, json_object_get(msg, "id"));
	else
		execute(s, msg);
	json_decref(msg);
}

/* ---- framing ---- */

static void drop(struct control_session *s, size_t n)
{
	s->used -= n;
	memmove(s->in, s->in + n, s->used);
	s->frame = (struct control_frame){0};
}

/* What is in the buffer, and on to the end of the line, is no message. */
static void reject(struct control_session *s, const char *why)
{
	send_error(s, "GenericError", why, NULL);
	s->frame.skipping = true;
}

/* One byte of a message: the end of it? */
static bool frame_step(struct control_frame *f, char c)
{
	if (f->in_string) {
		if (f->escaped)
			f->escaped = false;
		else if (c == '\\')
			f->escaped = true;
		else if (c == '"')
			f->in_string = false;
		return false;
	}
	if (c == '"')
		f->in_string = true;
	else if (c == '{' || c == '[')
		f->depth++;
	else if (c == '}' || c == ']')
		return --f->depth == 0;
	return false;
}

static bool is_space(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

/* Drops up to and with the next newline; false: it is not there yet. */
static bool skip_line(struct control_session *s)
{
	char *end = memchr(s->in, '\n', s->used);

	if (end) {
		drop(s, (size_t)(end - s->in) + 1);
		return true;
	}
	s->used = 0;
	return false;
}

/* False: nothing more can be done with what is there. */
static bool pump_one(struct control_session *s)
{
	struct control_frame *f = &s->frame;
	size_t lead = 0, len;
	char c;

	if (f->skipping)
		return skip_line(s);
	while (!f->seen && lead < s->used && is_space(s->in[lead]))
		lead++;
	if (lead)
		drop(s, lead);
	for (; f->seen < s->used; f->seen++) {
		c = s->in[f->seen];
		if (!f->seen && c != '{' && c != '[')
			return reject(s, "JSON parse error: a message begins with '{'"), true;
		if (f->in_string && (unsigned char)c < 0x20)
			return reject(s, "JSON parse error: control character in a string"), true;
		if (frame_step(f, c)) {
			len = f->seen + 1;
			take_message(s, s->in, len);
			drop(s, len);
			return true;
		}
		if (f->depth > CONTROL_DEPTH_MAX)
			return reject(s, "JSON parse error: nested too deeply"), true;
	}
	return false;
}

static void pump(struct control_session *s)
{
	while (!s->waiting && !s->broken && pump_one(s))
		;
	if (!s->waiting && s->used == sizeof(s->in)) {
		send_error(s, "GenericError", "the message is too long", NULL);
		s->broken = true;
	}
}

size_t control_session_room(const struct control_session *s)
{
	return s->waiting || s->broken ? 0 : sizeof(s->in) - s->used;
}

void control_session_input(struct control_session *s, const void *buf, size_t len)
{
	memcpy(s->in + s->used, buf, len);
	s->used += len;
	pump(s);
}

/* ---- life ---- */

void control_session_init(struct control_session *s, struct control_core *core,
			  void (*send)(void *opaque, const char *text, size_t len), void *opaque)
{
	s->core = core;
	s->send = send;
	s->opaque = opaque;
	s->negotiated = s->broken = false;
	s->waiting = NULL;
	s->frame = (struct control_frame){0};
	s->used = 0;
	s->next = core->sessions;
	core->sessions = s;
	greet(s);
}

void control_session_fini(struct control_session *s)
{
	struct control_session **p = &s->core->sessions;

	while (*p != s)
		p = &(*p)->next;
	*p = s->next;
	if (s->waiting) /* goes on without a reader */
		s->waiting->session = NULL;
}
