/* The protocol of one client, without sockets: bytes in, lines out. */
#include "fake_vm.h"
#include "test.h"

struct talk {
	struct fake_vm vm;
	struct control_core core;
	struct control_session s;
	char out[1 << 18]; /* everything sent */
	size_t used, read;
	json_t *lines; /* keeps what was parsed */
};

static struct talk chat;

static void sent(void *opaque, const char *text, size_t len)
{
	CHECK(chat.used + len < sizeof(chat.out));
	memcpy(chat.out + chat.used, text, len);
	chat.used += len;
}

static void forget_lines(void)
{
	json_decref(chat.lines);
}

/* The next line, parsed and borrowed; NULL: there is none. */
static json_t *line(void)
{
	char *from = chat.out + chat.read, *end = memchr(from, '\n', chat.used - chat.read);
	json_t *v;

	if (!end)
		return NULL;
	v = json_loadb(from, (size_t)(end - from), 0, NULL);
	CHECK(v != NULL);
	json_array_append_new(chat.lines, v);
	chat.read = (size_t)(end - chat.out) + 1;
	return v;
}

static void type(const char *text)
{
	size_t len = strlen(text), n;

	while (len) {
		n = MIN(control_session_room(&chat.s), len);
		CHECK(n > 0);
		control_session_input(&chat.s, text, n);
		text += n;
		len -= n;
	}
}

static void greeted(void)
{
	chat.lines = json_array();
	atexit(forget_lines);
	chat.vm.running = true;
	chat.core = (struct control_core){.vm = fake_vm_ops, .opaque = &chat.vm};
	control_session_init(&chat.s, &chat.core, sent, NULL);
}

static void begin(void)
{
	greeted();
	line();
}

static void negotiated(void)
{
	begin();
	type("{\"execute\":\"qmp_capabilities\"}\n");
	line();
}

static const char *text_of(const json_t *v, const char *a, const char *b)
{
	const char *s = json_string_value(json_object_get(json_object_get(v, a), b));

	return s ? s : "";
}

static void expect_return(void)
{
	json_t *v = line();

	CHECK(json_object_get(v, "return"));
}

static void expect_error(const char *class, const char *words)
{
	json_t *v = line();

	CHECK(v != NULL);
	CHECK_STR(class, text_of(v, "error", "class"));
	if (!strstr(text_of(v, "error", "desc"), words))
		printf("# %s\n", text_of(v, "error", "desc"));
	CHECK(strstr(text_of(v, "error", "desc"), words));
}

TEST(the_greeting_has_a_version_and_no_capabilities)
{
	json_t *v;

	greeted();
	v = json_object_get(line(), "QMP");
	CHECK_EQ(7, json_integer_value(json_object_get(
			    json_object_get(json_object_get(v, "version"), "qemu"), "major")));
	CHECK_EQ(0, json_array_size(json_object_get(v, "capabilities")));
	CHECK(json_is_array(json_object_get(v, "capabilities")));
}

TEST(nothing_is_answered_before_the_negotiation)
{
	begin();
	type("{\"execute\":\"stop\"}");
	expect_error("CommandNotFound", "Expecting capabilities negotiation");
	CHECK_STR("", chat.vm.asked);
}

TEST(the_negotiation_happens_once)
{
	negotiated();
	type("{\"execute\":\"qmp_capabilities\"}");
	expect_error("CommandNotFound", "already complete");
}

TEST(a_capability_that_is_not_offered_is_refused)
{
	begin();
	type("{\"execute\":\"qmp_capabilities\",\"arguments\":{\"enable\":[\"oob\"]}}");
	expect_error("GenericError", "'oob' is not offered");
	CHECK(!chat.s.negotiated);
}

TEST(ids_of_any_type_come_back)
{
	json_t *v;

	negotiated();
	type("{\"execute\":\"stop\",\"id\":{\"a\":[1]}}{\"execute\":\"nonsense\",\"id\":7}");
	v = json_object_get(line(), "id");
	CHECK_EQ(1, json_integer_value(json_array_get(json_object_get(v, "a"), 0)));
	CHECK_EQ(7, json_integer_value(json_object_get(line(), "id")));
}

TEST(messages_need_no_newline_and_may_come_byte_by_byte)
{
	const char *text = " {\"execute\":\n \"cont\"}\r\n{\"execute\":\"stop\"}";

	negotiated();
	for (; *text; text++)
		control_session_input(&chat.s, text, 1);
	expect_return();
	expect_return();
	CHECK_STR("cont stop ", chat.vm.asked);
}

TEST(brackets_in_strings_do_not_count)
{
	negotiated();
	type("{\"execute\":\"stop\",\"id\":\"}{]\\\"}\"}");
	expect_return();
}

TEST(each_command_reaches_the_vm)
{
	negotiated();
	type("{\"execute\":\"stop\"}{\"execute\":\"cont\"}{\"execute\":\"system_reset\"}"
	     "{\"execute\":\"system_powerdown\"}{\"execute\":\"quit\"}");
	CHECK_STR("stop cont reset power quit ", chat.vm.asked);
}

TEST(what_the_vm_refuses_is_an_error_with_its_words)
{
	negotiated();
	chat.vm.refuse = true;
	type("{\"execute\":\"cont\"}");
	expect_error("GenericError", "not now");
}

TEST(the_status_and_the_cpus_are_told)
{
	json_t *v;

	negotiated();
	type("{\"execute\":\"query-status\"}{\"execute\":\"query-cpus-fast\"}");
	v = line();
	CHECK_STR("running", text_of(v, "return", "status"));
	v = json_object_get(line(), "return");
	CHECK_EQ(2, json_array_size(v));
	CHECK_EQ(1001, json_integer_value(json_object_get(json_array_get(v, 1), "thread-id")));
}

TEST(query_commands_names_every_row_of_the_table)
{
	json_t *v;
	size_t n = 0;

	negotiated();
	type("{\"execute\":\"query-commands\"}");
	v = json_object_get(line(), "return");
	for (const struct control_command *c = control_commands; c->name; c++, n++)
		CHECK_STR(c->name,
			  json_string_value(json_object_get(json_array_get(v, n), "name")));
	CHECK_EQ(n, json_array_size(v));
}

TEST(wrong_messages_are_answered_and_the_next_one_works)
{
	negotiated();
	type("[1]\n{\"arguments\":{}}\n{\"execute\":\"stop\",\"more\":1}\n"
	     "{\"execute\":\"stop\",\"arguments\":3}\n{\"execute\" \"stop\"}\nhello\n}\n"
	     "{\"execute\":\"st\nop\"}\n{\"execute\":\"stop\",\"execute\":\"cont\"}\n");
	expect_error("GenericError", "JSON object");
	expect_error("GenericError", "lacks 'execute'");
	expect_error("GenericError", "not execute, arguments or id");
	expect_error("GenericError", "not an object");
	expect_error("GenericError", "JSON parse error");
	expect_error("GenericError", "begins with");
	expect_error("GenericError", "begins with");
	expect_error("GenericError", "control character");
	expect_error("GenericError", "begins with"); /* the rest of the broken line */
	expect_error("GenericError", "duplicate");
	CHECK_STR("", chat.vm.asked);
	type("{\"execute\":\"stop\"}");
	expect_return();
}

TEST(arguments_are_held_to_the_table)
{
	negotiated();
	type("{\"execute\":\"save\"}{\"execute\":\"save\",\"arguments\":{\"file\":1}}"
	     "{\"execute\":\"save\",\"arguments\":{\"file\":\"\"}}"
	     "{\"execute\":\"save\",\"arguments\":{\"file\":\"x\",\"then\":\"dance\"}}"
	     "{\"execute\":\"stop\",\"arguments\":{\"now\":true}}");
	expect_error("GenericError", "'file' is missing");
	expect_error("GenericError", "'file' expects a string");
	expect_error("GenericError", "'file' is empty");
	expect_error("GenericError", "'then' does not accept value 'dance'");
	expect_error("GenericError", "'now' is unexpected");
	CHECK_STR("", chat.vm.asked);
}

TEST(a_save_is_answered_when_it_has_ended_and_what_follows_waits)
{
	json_t *v;

	negotiated();
	type("{\"execute\":\"save\",\"arguments\":{\"file\":\"/x\",\"then\":\"quit\"},\"id\":5}"
	     "{\"execute\":\"stop\"}");
	CHECK_STR("save ", chat.vm.asked);
	CHECK_STR("/x", chat.vm.file);
	CHECK_EQ(CONTROL_SAVE_QUIT, chat.vm.then);
	CHECK(!line());
	CHECK_EQ(0, control_session_room(&chat.s));
	control_core_tell(&chat.core, &(struct control_event){.kind = CONTROL_SAVE_COMPLETED,
							      .file = "/x",
							      .done = 4711});
	v = line();
	CHECK_STR("SAVE", json_string_value(json_object_get(v, "event")));
	CHECK_STR("completed", text_of(v, "data", "status"));
	v = line();
	CHECK_EQ(5, json_integer_value(json_object_get(v, "id")));
	CHECK_EQ(4711, json_integer_value(json_object_get(json_object_get(v, "return"), "bytes")));
	expect_return();
	CHECK_STR("save stop ", chat.vm.asked);
}

TEST(a_save_that_fails_is_an_error)
{
	negotiated();
	type("{\"execute\":\"save\",\"arguments\":{\"file\":\"/x\"}}");
	CHECK_EQ(CONTROL_SAVE_STOP, chat.vm.then);
	control_core_tell(&chat.core, &(struct control_event){.kind = CONTROL_SAVE_FAILED,
							      .file = "/x",
							      .error = "no room"});
	line();
	expect_error("GenericError", "no room");
}

TEST(a_client_that_leaves_does_not_end_its_save)
{
	negotiated();
	type("{\"execute\":\"save\",\"arguments\":{\"file\":\"/x\"}}");
	control_session_fini(&chat.s);
	control_core_tell(&chat.core,
			  &(struct control_event){.kind = CONTROL_SAVE_COMPLETED, .file = "/x"});
	CHECK(chat.core.saving == NULL);
}

TEST(events_have_a_time_and_go_to_those_who_negotiated)
{
	json_t *v;

	begin();
	control_core_tell(&chat.core, &(struct control_event){.kind = CONTROL_STOP});
	CHECK(!line());
	type("{\"execute\":\"qmp_capabilities\"}");
	line();
	control_core_tell(&chat.core, &(struct control_event){.kind = CONTROL_SHUTDOWN,
							      .guest = true,
							      .reason = "guest-shutdown"});
	v = line();
	CHECK_STR("SHUTDOWN", json_string_value(json_object_get(v, "event")));
	CHECK_STR("guest-shutdown", text_of(v, "data", "reason"));
	CHECK(json_is_true(json_object_get(json_object_get(v, "data"), "guest")));
	CHECK(json_integer_value(json_object_get(json_object_get(v, "timestamp"), "seconds")) > 0);
}

TEST(names_that_are_no_text_do_not_break_the_connection)
{
	negotiated();
	control_core_tell(&chat.core, &(struct control_event){.kind = CONTROL_SAVE_FAILED,
							      .file = "/\xff",
							      .error = "cut in \xc3"});
	CHECK_STR("cut in ?", text_of(line(), "data", "error"));
	CHECK(!chat.s.broken);
}

TEST(a_message_that_is_too_long_ends_the_connection)
{
	static char much[CONTROL_MESSAGE_MAX];

	negotiated();
	memset(much, ' ', sizeof(much));
	memcpy(much, "{\"execute\":", 11);
	type("{");
	memset(much, 'x', sizeof(much));
	much[0] = '"';
	control_session_input(&chat.s, much, sizeof(much) - 1);
	expect_error("GenericError", "too long");
	CHECK(chat.s.broken);
	CHECK_EQ(0, control_session_room(&chat.s));
}

TEST(blanks_without_end_are_not_kept)
{
	static char much[CONTROL_MESSAGE_MAX];

	negotiated();
	memset(much, ' ', sizeof(much));
	for (unsigned i = 0; i < 10; i++)
		control_session_input(&chat.s, much, sizeof(much));
	CHECK_EQ(sizeof(much), control_session_room(&chat.s));
	type("{\"execute\":\"stop\"}");
	expect_return();
}

TEST(depth_is_bounded)
{
	negotiated();
	type("{\"execute\":\"stop\",\"id\":");
	for (unsigned i = 0; i < CONTROL_DEPTH_MAX; i++)
		type("[");
	expect_error("GenericError", "too deeply");
	type("]]]]\n{\"execute\":\"stop\"}");
	expect_return();
}
