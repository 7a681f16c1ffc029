/* Unit tests of src/base/log.c, bytes.h and error.c. */
#include "base/log.h"

#include "base/bytes.h"
#include "base/clock.h"
#include "base/error.h"
#include "test.h"

#include <errno.h>

static struct log_component log_one = LOG_COMPONENT("one");
static struct log_component log_two = LOG_COMPONENT("two");

TEST(warnings_are_on_by_default_and_info_is_not)
{
	CHECK(log_enabled(&log_one, LOG_WARN));
	CHECK(!log_enabled(&log_one, LOG_INFO));
}

TEST(a_component_gets_its_own_level)
{
	CHECK(!log_enabled(&log_one, LOG_INFO));
	CHECK_EQ(0, log_configure("one=trace,error", NULL));
	CHECK(log_enabled(&log_one, LOG_TRACE));
	CHECK(!log_enabled(&log_two, LOG_WARN));
	CHECK(log_enabled(&log_two, LOG_ERROR));
}

TEST(settings_can_change_again)
{
	CHECK_EQ(0, log_configure("one=trace", NULL));
	CHECK(log_enabled(&log_one, LOG_TRACE));
	CHECK_EQ(0, log_configure("debug", NULL));
	CHECK(!log_enabled(&log_one, LOG_TRACE));
	CHECK(log_enabled(&log_one, LOG_DEBUG));
}

TEST(nonsense_settings_are_refused)
{
	struct error err = {""};

	CHECK_EQ(-EINVAL, log_configure("loud", &err));
	CHECK(strstr(err.msg, "'loud'"));
	CHECK_EQ(-EINVAL, log_configure("", &err));
	CHECK_EQ(-EINVAL, log_configure("=warn", &err));
	CHECK_EQ(-EINVAL, log_configure("one=warn,", &err));
}

/* Run fn with standard error in a pipe; returns what was written. */
static const char *captured(void (*fn)(void))
{
	static char text[8192];
	int fds[2], saved = dup(2);
	ssize_t n;

	CHECK_EQ(0, pipe(fds));
	dup2(fds[1], 2);
	fn();
	dup2(saved, 2);
	close(fds[1]);
	n = read(fds[0], text, sizeof(text) - 1);
	text[n > 0 ? n : 0] = '\0';
	close(fds[0]);
	close(saved);
	return text;
}

static void say_escape(void)
{
	log_warn(&log_one, "disk '%s'", "a\033[2Jb\nc");
}

TEST(control_characters_do_not_reach_the_terminal)
{
	CHECK_STR("warn: one: disk 'a?[2Jb?c'\n", captured(say_escape));
}

static void say_long(void)
{
	static char big[5000];

	memset(big, 'x', sizeof(big) - 1);
	log_error(&log_one, "%s", big);
}

TEST(a_long_line_is_cut_and_ended)
{
	const char *text = captured(say_long);

	CHECK_EQ(1024, strlen(text));
	CHECK_EQ('\n', text[1023]);
}

static void say_a_thousand(void)
{
	for (int i = 0; i < 1000; i++)
		log_guest(&log_one, "%d", i);
}

TEST(a_guest_cannot_flood_the_log)
{
	const char *text = captured(say_a_thousand);
	int lines = 0;

	for (; *text; text++)
		lines += *text == '\n';
	CHECK(lines >= 10 && lines <= 20);
}

TEST(wrapped_errors_read_from_outside_in)
{
	struct error err;

	CHECK_EQ(-ENOENT, err_errno(&err, ENOENT, "cannot open '%s'", "x"));
	CHECK_EQ(-5, err_wrap(&err, -5, "disk '%s'", "root"));
	CHECK_STR("disk 'root': cannot open 'x': No such file or directory", err.msg);
	CHECK_EQ(-EINVAL, err_set(NULL, EINVAL, "nobody listens"));
}

TEST(ranges_do_not_overflow)
{
	CHECK(range_inside(0, 10, 10));
	CHECK(range_inside(10, 0, 10));
	CHECK(!range_inside(11, 0, 10));
	CHECK(!range_inside(5, UINT64_MAX, 10));
	CHECK(!range_inside(UINT64_MAX, 1, 10));
}

TEST(bytes_have_the_order_their_name_says)
{
	uint8_t b[8];

	be32_store(b, 0x11223344);
	CHECK_EQ(0x11, b[0]);
	CHECK_EQ(0x44332211, le32_load(b));
	le64_store(b, 0x0102030405060708);
	CHECK_EQ(0x0807, be16_load(b));
}

TEST(the_clocks_move_forward)
{
	uint64_t a = clock_mono_ns();

	usleep(2000);
	CHECK(clock_mono_ns() - a >= 2000000);
	CHECK(clock_real_ns() > 1600000000 * NSEC_PER_SEC);
}
