/* Fuzz target: what a client of the control socket types.
 *
 * Input: bytes as they come from the socket; 0xfe begins a new piece, and 0xff has the VM end a
 * save or tell an event, which one being said by the next byte. */
#include "control/core.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_LEN = 256 * 1024, NEW_PIECE = 0xfe, EVENT = 0xff };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct control_core core;
static struct control_session session;
static bool saving;

/* Each line sent is one JSON object, and ASCII. */
static void sent(void *opaque, const char *text, size_t len)
{
	json_t *v = json_loadb(text, len, 0, NULL);

	assert(len && text[len - 1] == '\n' && json_is_object(v));
	for (size_t i = 0; i < len; i++)
		assert((unsigned char)text[i] < 0x80);
	json_decref(v);
}

static void get_status(void *opaque, struct control_status *st)
{
	*st = (struct control_status){true, "running"};
}

static unsigned get_nr_cpus(void *opaque)
{
	return 3;
}

static int get_cpu_thread(void *opaque, unsigned cpu)
{
	return (int)cpu;
}

static int do_it(void *opaque, struct error *err)
{
	return 0;
}

static void do_quit(void *opaque)
{
}

static int do_save(void *opaque, const char *file, enum control_save_then then, struct error *err)
{
	assert(file && *file && then <= CONTROL_SAVE_QUIT && !saving);
	saving = true;
	return 0;
}

static const struct control_vm vm = {get_status, get_nr_cpus, get_cpu_thread, do_it,  do_it,
				     do_it,      do_it,       do_quit,        do_save};

static void tell(uint8_t what)
{
	struct control_event ev = {
		.kind = (enum control_event_kind)(what % (CONTROL_SAVE_FAILED + 1)),
		.reason = "guest-reset",
		.file = "/x",
		.error = "none",
	};

	if (ev.kind == CONTROL_SAVE_COMPLETED || ev.kind == CONTROL_SAVE_FAILED)
		saving = false;
	control_core_tell(&core, &ev);
}

static void type(const uint8_t *data, size_t len)
{
	while (len) {
		size_t n = MIN(len, control_session_room(&session));

		if (!n)
			break; /* it waits, or is broken: what a server does not read */
		control_session_input(&session, data, n);
		data += n;
		len -= n;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	size_t from = 0;

	if (size > MAX_LEN)
		return 0;
	core = (struct control_core){.vm = vm};
	saving = false;
	control_session_init(&session, &core, sent, NULL);
	for (size_t i = 0; i < size; i++) {
		if (data[i] < NEW_PIECE)
			continue;
		type(data + from, i - from);
		if (data[i] == EVENT && i + 1 < size)
			tell(data[++i]);
		from = i + 1;
	}
	type(data + from, size - from);
	control_session_fini(&session);
	if (saving)
		tell(CONTROL_SAVE_FAILED);
	assert(!core.saving && !core.sessions);
	return 0;
}
