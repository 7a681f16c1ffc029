/* control/core.h - inside the control socket, for this folder's files and its tests.
 *
 *   server.c    sockets, queues           one struct control_client per connection
 *   session.c   messages of one client    bytes in, lines out; no sockets
 *   args.c      arguments against the table
 *   commands.c  the table and what each command does
 *   events.c    events as JSON
 *
 * One core per VM; sessions and calls belong to it.  The event loop's thread only. */
#pragma once

#include "control/control.h"

#include <jansson.h>

struct control_call;
struct control_core;
struct control_session;

enum {
	CONTROL_MESSAGE_MAX = 64 * 1024,
	CONTROL_DEPTH_MAX = 32,
	CONTROL_ARGS_MAX = 4,
};

struct control_core {
	struct control_vm vm;
	void *opaque;
	struct control_session *sessions;
	struct control_call *saving; /* to be answered when the save ends; NULL: nobody waits */
};

/* ---- the table ---- */

enum control_type {
	CONTROL_NO_ARG,
	CONTROL_STRING,
	CONTROL_PATH, /* a string; the client makes it absolute */
	CONTROL_CHOICE,
	CONTROL_LIST, /* of strings */
};

struct control_arg {
	const char *name;
	enum control_type type;
	bool optional;
	const char *const *choices; /* CHOICE: ended by NULL */
	const char *help;
};

/* What a handler answers. */
enum control_answer {
	CONTROL_DONE,   /* call->result is it; NULL: an empty object */
	CONTROL_FAILED, /* call->err has the sentence */
	CONTROL_LATER,  /* by control_call_finish */
};

struct control_command {
	const char *name;
	enum control_answer (*run)(struct control_call *call);
	struct control_arg args[CONTROL_ARGS_MAX];
	const char *help, *returns;
};

extern const struct control_command control_commands[]; /* ended by a NULL name */
const struct control_command *control_command_find(const char *name);

/* args (NULL: none) against the command's table. */
int control_args_check(const struct control_command *c, const json_t *args, struct error *err);
/* Of a checked call: the value, or NULL. */
const char *control_arg_text(const struct control_call *call, const char *name);

/* ---- sessions ---- */

struct control_frame {
	size_t seen;    /* bytes of the buffer that have been looked at */
	unsigned depth; /* of brackets */
	bool in_string, escaped;
	bool skipping; /* up to the end of the line: what began was no message */
};

struct control_session {
	struct control_core *core;
	struct control_session *next;
	void (*send)(void *opaque, const char *text, size_t len); /* one line with its end */
	void *opaque;
	bool negotiated;
	bool broken;                  /* the connection should be closed once everything is sent */
	struct control_call *waiting; /* a command that has not been answered */
	struct control_frame frame;
	size_t used;
	char in[CONTROL_MESSAGE_MAX];
};

struct control_call {
	struct control_core *core;
	struct control_session *session; /* NULL: the client has gone */
	const struct control_command *command;
	json_t *id, *args; /* may be NULL */
	json_t *result;
	const char *class; /* of the error; NULL: GenericError */
	char err[512];
};

/* Sends the greeting. */
void control_session_init(struct control_session *s, struct control_core *core,
			  void (*send)(void *opaque, const char *text, size_t len), void *opaque);
void control_session_fini(struct control_session *s);
/* Bytes it takes now; 0 while a command is being worked on. */
size_t control_session_room(const struct control_session *s);
void control_session_input(struct control_session *s, const void *buf, size_t len);
void control_session_send(struct control_session *s, json_t *msg); /* takes msg */
/* A string that may be cut in the middle of a character, or be no UTF-8 at all; "" for NULL. */
json_t *control_text(const char *text);

/* Answers a CONTROL_LATER call and goes on with the client's next message.  result is taken, NULL
 * with an error sentence. */
void control_call_finish(struct control_call *call, json_t *result, const char *error);

/* To all sessions that have negotiated; and whoever waits for it is answered. */
void control_core_tell(struct control_core *core, const struct control_event *ev);
