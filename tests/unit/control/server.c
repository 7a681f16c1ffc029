/* The control socket itself: its file, many clients, clients that do not read. */
#include "base/evloop.h"
#include "fake_vm.h"
#include "test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

struct fixture {
	struct fake_vm vm;
	struct evloop *loop;
	struct control_server *server;
	pthread_t thread;
	char dir[64], path[96];
	struct error err;
};

static struct fixture f;

static void *run_loop(void *arg)
{
	evloop_run(f.loop);
	return NULL;
}

static int create(void)
{
	return control_server_create(&f.server, f.path, f.loop, &fake_vm_ops, &f.vm, &f.err);
}

static void set_up(void)
{
	strcpy(f.dir, "/tmp/control-test.XXXXXX");
	CHECK(mkdtemp(f.dir));
	snprintf(f.path, sizeof(f.path), "%s/sock", f.dir);
	CHECK_EQ(0, evloop_create(&f.loop, NULL));
}

static void start(void)
{
	set_up();
	CHECK_EQ(0, create());
	CHECK_EQ(0, pthread_create(&f.thread, NULL, run_loop, NULL));
}

static void stop(void)
{
	if (f.thread) {
		evloop_stop(f.loop);
		pthread_join(f.thread, NULL);
	}
	control_server_destroy(f.server);
	evloop_destroy(f.loop);
	unlink(f.path);
	rmdir(f.dir);
}

static int dial(void)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strcpy(addr.sun_path, f.path);
	CHECK_EQ(0, connect(fd, (struct sockaddr *)&addr, sizeof(addr)));
	return fd;
}

/* One line into buf, without its end; false: the other end hung up. */
static bool get_line(int fd, char *buf, size_t size)
{
	size_t n = 0;

	while (n < size - 1 && recv(fd, buf + n, 1, 0) == 1 && buf[n] != '\n')
		n++;
	buf[n] = '\0';
	return n > 0;
}

static void put(int fd, const char *text)
{
	CHECK_EQ(strlen(text), send(fd, text, strlen(text), MSG_NOSIGNAL));
}

static void expect(int fd, const char *words)
{
	char buf[4096];

	CHECK(get_line(fd, buf, sizeof(buf)));
	if (!strstr(buf, words))
		printf("# '%s' is not in: %s\n", words, buf);
	CHECK(strstr(buf, words));
}

static int talk(void)
{
	int fd = dial();

	expect(fd, "\"QMP\"");
	put(fd, "{\"execute\":\"qmp_capabilities\"}\n");
	expect(fd, "return");
	return fd;
}

static void tell_stop(void *arg)
{
	control_server_tell(f.server, &(struct control_event){.kind = CONTROL_STOP});
}

TEST(the_socket_is_for_its_owner_only_and_goes_with_the_server)
{
	struct stat st;

	start();
	CHECK_EQ(0, lstat(f.path, &st));
	CHECK(S_ISSOCK(st.st_mode));
	CHECK_EQ(0600, st.st_mode & 07777);
	stop();
	CHECK_EQ(-1, lstat(f.path, &st));
}

TEST(a_socket_nobody_serves_is_replaced)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	set_up();
	strcpy(addr.sun_path, f.path);
	CHECK_EQ(0, bind(fd, (struct sockaddr *)&addr, sizeof(addr)));
	close(fd);
	CHECK_EQ(0, create());
	stop();
}

TEST(a_socket_in_use_and_a_file_are_left_alone)
{
	struct control_server *second = NULL;
	struct stat st;
	FILE *file;

	start();
	CHECK_EQ(-EADDRINUSE,
		 control_server_create(&second, f.path, f.loop, &fake_vm_ops, &f.vm, &f.err));
	CHECK(strstr(f.err.msg, "in use"));
	close(talk()); /* the first one still serves */
	stop();

	set_up();
	f.thread = 0;
	file = fopen(f.path, "w");
	CHECK(file);
	fclose(file);
	f.server = NULL;
	CHECK_EQ(-EADDRINUSE, create());
	CHECK_EQ(0, lstat(f.path, &st));
	CHECK(S_ISREG(st.st_mode));
	stop();
}

TEST(a_path_too_long_is_refused)
{
	char path[300];

	set_up();
	memset(path, 'x', sizeof(path) - 1);
	path[sizeof(path) - 1] = '\0';
	CHECK_EQ(-ENAMETOOLONG,
		 control_server_create(&f.server, path, f.loop, &fake_vm_ops, &f.vm, &f.err));
	f.server = NULL;
	stop();
}

TEST(several_clients_are_served_and_all_hear_events)
{
	int a, b;

	start();
	a = talk();
	b = talk();
	put(a, "{\"execute\":\"stop\",\"id\":\"a\"}\n");
	put(b, "{\"execute\":\"cont\",\"id\":\"b\"}\n");
	expect(a, "\"id\":\"a\"");
	expect(b, "\"id\":\"b\"");
	evloop_post(f.loop, tell_stop, NULL);
	expect(a, "STOP");
	expect(b, "STOP");
	close(a);
	close(b);
	stop();
}

TEST(a_client_too_many_is_told_so)
{
	int fd[17];

	start();
	for (unsigned i = 0; i < 16; i++)
		fd[i] = talk();
	fd[16] = dial();
	expect(fd[16], "too many clients");
	put(fd[0], "{\"execute\":\"stop\"}\n");
	expect(fd[0], "return");
	for (unsigned i = 0; i < 17; i++)
		close(fd[i]);
	stop();
}

/* One asks and asks and never reads: it is not read from either, so the socket fills up, and the
 * others do not notice. */
TEST(a_client_that_does_not_read_stalls_nobody)
{
	static const char ask[] = "{\"execute\":\"query-commands\"}\n";
	int deaf, good;
	size_t sent = 0;

	start();
	deaf = talk();
	good = talk();
	while (send(deaf, ask, sizeof(ask) - 1, MSG_DONTWAIT | MSG_NOSIGNAL) > 0 && sent < 1 << 26)
		sent += sizeof(ask) - 1;
	CHECK(sent < 1 << 26);
	put(good, "{\"execute\":\"stop\"}\n");
	expect(good, "return");
	close(deaf);
	close(good);
	stop();
}

static atomic_bool told;

static void tell_much(void *arg)
{
	static char text[4000];
	struct control_event ev = {.kind = CONTROL_SAVE_FAILED, .file = "/x", .error = text};

	memset(text, 'e', sizeof(text) - 1);
	for (unsigned i = 0; i < 1000; i++)
		control_server_tell(f.server, &ev);
	atomic_store(&told, true);
}

TEST(events_nobody_reads_cost_the_connection)
{
	char buf[8192];
	unsigned lines = 0;
	int deaf;

	start();
	deaf = talk();
	evloop_post(f.loop, tell_much, NULL);
	while (!atomic_load(&told))
		usleep(1000);
	while (get_line(deaf, buf, sizeof(buf)))
		lines++;
	CHECK(lines > 10 && lines < 1000);
	close(deaf);
	stop();
}

TEST(the_last_event_reaches_those_who_read)
{
	int fd;

	start();
	fd = talk();
	evloop_stop(f.loop);
	pthread_join(f.thread, NULL);
	f.thread = 0;
	control_server_tell(f.server, &(struct control_event){.kind = CONTROL_SHUTDOWN,
							      .reason = "host-qmp-quit"});
	stop();
	expect(fd, "SHUTDOWN");
	close(fd);
}

TEST(a_client_that_leaves_in_the_middle_is_forgotten)
{
	int fd;

	start();
	for (unsigned i = 0; i < 100; i++) {
		fd = dial();
		if (i % 2)
			put(fd, "{\"execute\":");
		close(fd);
	}
	fd = talk();
	close(fd);
	stop();
}
