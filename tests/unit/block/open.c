/* Unit tests of opening, making and chaining images (open.c, image.c, refs.c, kv.c), with a toy. */
#include "toy_format.h"

#include "block/source.h"
#include "test.h"

#include <fcntl.h>
#include <sys/stat.h>

static char dir[] = "test-open-XXXXXX";
static struct error err;

static void cleanup(void)
{
	char cmd[64];

	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	if (system(cmd))
		perror(cmd);
}

static void new_dir(void)
{
	CHECK(mkdtemp(dir));
	atexit(cleanup);
}

static char *in_dir(const char *name)
{
	static char path[8][4096];
	static unsigned i;

	i = (i + 1) % ARRAY_SIZE(path);
	snprintf(path[i], sizeof(path[i]), "%s/%s", dir, name);
	return path[i];
}

static int make_toy(const char *name, uint64_t size, const char *backing)
{
	struct blk_create c = {.path = in_dir(name),
			       .size = size,
			       .size_from_backing = backing && !size,
			       .backing = backing,
			       .backing_format = "toy"};

	return blk_create("toy", &c, &err);
}

static struct blk *must_open(const char *name, const char *format, unsigned flags)
{
	struct blk *b = NULL;

	if (blk_open(&b, in_dir(name), format, flags | BLK_NO_POOL, &err) < 0)
		printf("# %s\n", err.msg);
	CHECK(b);
	return b;
}

static int try_open(const char *name, const struct blk_open_opts *opts)
{
	struct blk *b = NULL;
	int r = blk_open_with(&b, in_dir(name), "toy", BLK_READONLY | BLK_NO_POOL, opts, &err);

	blk_close(b);
	return r;
}

TEST(a_format_lives_in_its_file)
{
	struct blk *b;
	char got[6];

	new_dir();
	CHECK_EQ(0, make_toy("a", 1 * MiB, NULL));
	b = must_open("a", "toy", 0);
	CHECK_EQ(MiB, blk_info(b)->size);
	CHECK_EQ(0, blk_write(b, "hello", 6, 5000));
	blk_close(b);
	b = must_open("a", NULL, BLK_READONLY);
	CHECK_STR("toy", blk_info(b)->format);
	CHECK_EQ(0, blk_read(b, got, 6, 5000));
	CHECK_STR("hello", got);
	blk_close(b);
}

TEST(a_file_below_a_format_grows)
{
	struct blk *b;
	struct stat st;
	char byte = 1;

	new_dir();
	close(open(in_dir("f"), O_CREAT | O_RDWR, 0600));
	b = must_open("f", "raw", BLK_FILE);
	CHECK_EQ(0, blk_size(b));
	CHECK_EQ(-EINVAL, blk_read(b, &byte, 1, 0));
	CHECK_EQ(0, blk_write(b, "abc", 3, 10));
	CHECK_EQ(13, blk_size(b));
	CHECK_EQ(0, blk_write_zeroes(b, 12, 5, true));
	CHECK_EQ(17, blk_size(b));
	CHECK_EQ(0, blk_write_zeroes(b, 17, 5, false));
	CHECK_EQ(22, blk_size(b));
	CHECK_EQ(0, blk_read(b, &byte, 1, 12));
	CHECK_EQ(0, byte);
	CHECK_EQ(0, blk_read(b, &byte, 1, 11));
	CHECK_EQ('b', byte);
	CHECK_EQ(0, blk_resize(b, 7));
	CHECK_EQ(7, blk_size(b));
	blk_close(b);
	CHECK_EQ(0, stat(in_dir("f"), &st));
	CHECK_EQ(7, st.st_size);
}

TEST(a_chain_reads_through)
{
	struct blk *b;
	struct blk_map m = {.len = MiB};
	char got[4];

	new_dir();
	CHECK_EQ(0, make_toy("base", 64 * KiB, NULL));
	b = must_open("base", "toy", 0);
	CHECK_EQ(0, blk_write(b, "one", 4, 0));
	CHECK_EQ(0, blk_write(b, "two", 4, 8192));
	blk_close(b);
	CHECK_EQ(0, make_toy("top", 1 * MiB, "base"));
	b = must_open("top", "toy", 0);
	CHECK_EQ(0, blk_write(b, "TWO", 4, 8192));
	CHECK_EQ(0, blk_read(b, got, 4, 0));
	CHECK_STR("one", got);
	CHECK_EQ(0, blk_read(b, got, 4, 8192));
	CHECK_STR("TWO", got);
	CHECK_EQ(0, blk_read(b, got, 4, 64 * KiB - 2)); /* over the end of the shorter one */
	CHECK_EQ(0, got[3]);

	CHECK_EQ(0, blk_map(b, 0, &m));
	CHECK_EQ(1, m.depth);
	CHECK_EQ(BLK_EXT_DATA, m.what);
	CHECK_EQ(TOY_DATA, m.host_off);
	m.len = MiB - 8192;
	CHECK_EQ(0, blk_map(b, 8192, &m));
	CHECK_EQ(0, m.depth);
	m.len = MiB - 4096;
	CHECK_EQ(0, blk_map(b, 4096, &m));
	CHECK_EQ(BLK_EXT_HOLE, m.what);
	CHECK(!m.host);
	CHECK(blk_backing(b) && !blk_backing(blk_backing(b)));
	blk_close(b);
	b = must_open("top", "toy", BLK_READONLY | BLK_NO_BACKING);
	CHECK_EQ(0, blk_read(b, got, 4, 0));
	CHECK_EQ(0, got[0]);
	blk_close(b);
}

TEST(the_size_comes_from_the_backing_file)
{
	struct blk *b;

	new_dir();
	CHECK_EQ(0, make_toy("base", 64 * KiB, NULL));
	CHECK_EQ(0, make_toy("top", 0, "base"));
	b = must_open("top", "toy", BLK_READONLY);
	CHECK_EQ(64 * KiB, blk_size(b));
	blk_close(b);
}

/* A toy at `name` whose backing name is `backing`, whatever that is. */
static void forge(const char *name, const char *backing)
{
	struct toy t = {.head = "TOYDISK"};
	int fd = open(in_dir(name), O_CREAT | O_TRUNC | O_RDWR, 0600);

	le64_store(t.head + 8, 4096);
	snprintf((char *)t.head + 16, 128, "%s", backing);
	CHECK_EQ(sizeof(t), write(fd, &t, sizeof(t)));
	close(fd);
}

TEST(names_in_an_image_do_not_lead_out)
{
	char cwd[2048], line[2200];

	new_dir();
	CHECK_EQ(0, mkdir(in_dir("in"), 0700));
	CHECK_EQ(0, mkdir(in_dir("out"), 0700));
	CHECK_EQ(0, mkdir(in_dir("in/sub"), 0700));
	forge("out/base", "");
	forge("in/sub/base", "");
	CHECK_EQ(0, symlink("../out/base", in_dir("in/link")));
	CHECK_EQ(0, symlink("../out", in_dir("in/dirlink")));
	CHECK_EQ(0, mkfifo(in_dir("in/fifo"), 0600));

	forge("in/top", "sub/base");
	CHECK_EQ(0, try_open("in/top", NULL));
	forge("in/top", "./sub/../sub//base");
	CHECK_EQ(0, try_open("in/top", NULL));
	CHECK(getcwd(cwd, sizeof(cwd)));
	snprintf(line, sizeof(line), "%.60s/%s/in/sub/base", cwd, dir);
	if (strlen(cwd) < 60) {
		forge("in/top", line); /* absolute, and beside it */
		CHECK_EQ(0, try_open("in/top", NULL));
	}
	forge("in/top", "../out/base");
	CHECK_EQ(-EACCES, try_open("in/top", NULL));
	CHECK(strstr(err.msg, "in/top' names '../out/base', which is not beside it"));
	CHECK(strstr(err.msg, "--allow-ref"));
	forge("in/top", "/etc/passwd");
	CHECK_EQ(-EACCES, try_open("in/top", NULL));
	forge("in/top", "link");
	CHECK_EQ(-EACCES, try_open("in/top", NULL));
	CHECK(strstr(err.msg, "symbolic link"));
	forge("in/top", "dirlink/base");
	CHECK_EQ(-EACCES, try_open("in/top", NULL));
	forge("in/top", "fifo");
	CHECK_EQ(-EACCES, try_open("in/top", NULL));
	CHECK(strstr(err.msg, "not a regular file"));
	forge("in/top", "sub");
	CHECK_EQ(-EACCES, try_open("in/top", NULL));
	forge("in/top", "nbd://localhost/");
	CHECK_EQ(-EACCES, try_open("in/top", NULL));
	forge("in/top", "json:{\"driver\":\"raw\"}");
	CHECK_EQ(-EACCES, try_open("in/top", NULL));
	forge("in/top", "gone");
	CHECK_EQ(-ENOENT, try_open("in/top", NULL));
}

TEST(an_allowed_directory_is_allowed)
{
	const char *out = in_dir("out"), *all = "/", *none = "no-such-directory";
	struct blk_open_opts opts = {.allow_ref = &out, .nr_allow_ref = 1};

	new_dir();
	out = in_dir("out");
	CHECK_EQ(0, mkdir(in_dir("in"), 0700));
	CHECK_EQ(0, mkdir(out, 0700));
	forge("out/base", "");
	CHECK_EQ(0, symlink("base", in_dir("out/link")));
	forge("in/top", "../out/base");
	CHECK_EQ(0, try_open("in/top", &opts));
	opts.allow_ref = &none;
	CHECK_EQ(-EACCES, try_open("in/top", &opts));
	opts.allow_ref = &all;
	CHECK_EQ(0, try_open("in/top", &opts));
	forge("in/top", "../out/link");
	CHECK_EQ(0, try_open("in/top", &opts));
	opts.allow_ref = &out;
	CHECK_EQ(-EACCES, try_open("in/top", &opts));
}

TEST(a_chain_that_bites_its_tail_is_refused)
{
	new_dir();
	forge("a", "b");
	forge("b", "c");
	forge("c", "a");
	CHECK_EQ(-ELOOP, try_open("a", NULL));
	CHECK(strstr(err.msg, "leads back to itself"));
	forge("self", "self");
	CHECK_EQ(-ELOOP, try_open("self", NULL));
}

TEST(a_chain_has_an_end)
{
	char name[16], next[16];

	new_dir();
	for (int i = 0; i < 300; i++) {
		snprintf(name, sizeof(name), "n%d", i);
		snprintf(next, sizeof(next), "n%d", i + 1);
		forge(name, next);
	}
	forge("n300", "");
	CHECK_EQ(-ELOOP, try_open("n0", NULL));
	CHECK_EQ(0, try_open("n100", NULL));
}

TEST(raw_is_never_guessed_for_a_named_file)
{
	new_dir();
	CHECK_EQ(0, close(open(in_dir("raw"), O_CREAT | O_RDWR, 0600)));
	forge("top", "raw");
	CHECK_EQ(-EINVAL, try_open("top", NULL));
	CHECK(strstr(err.msg, "is not recognised"));
}

TEST(a_failed_making_leaves_nothing)
{
	struct blk_kv fail = {"fail", "on"};
	struct blk_create c = {.path = NULL, .size = 4096, .opt = &fail, .nr_opts = 1};

	new_dir();
	c.path = in_dir("x");
	CHECK_EQ(-EIO, blk_create("toy", &c, &err));
	CHECK(access(c.path, F_OK));
	fail.key = "fali";
	CHECK_EQ(-EINVAL, blk_create("toy", &c, &err));
	CHECK_STR("format toy has no option 'fali' ('-o help' lists them)", err.msg);
	CHECK_EQ(0, make_toy("x", 4096, NULL));
	CHECK_EQ(-EEXIST, make_toy("x", 4096, NULL));
	CHECK_EQ(-EINVAL, blk_create("nix", &c, &err));
	CHECK_STR("disk format 'nix' is not known", err.msg);
}

TEST(what_is_in_use_is_not_made_anew)
{
	struct blk *b;
	struct blk_create c = {.size = 4096, .overwrite = true};

	new_dir();
	CHECK_EQ(0, make_toy("x", 4096, NULL));
	b = must_open("x", "toy", BLK_READONLY);
	c.path = in_dir("x");
	CHECK_EQ(-EBUSY, blk_create("toy", &c, &err));
	blk_close(b);
	CHECK_EQ(0, try_open("x", NULL));
	CHECK_EQ(0, blk_create("toy", &c, &err));
}

TEST(a_backing_file_is_shared_and_a_disk_is_not)
{
	struct blk *a, *b;

	new_dir();
	CHECK_EQ(0, make_toy("base", 4096, NULL));
	CHECK_EQ(0, make_toy("a", 4096, "base"));
	CHECK_EQ(0, make_toy("b", 4096, "base"));
	a = must_open("a", "toy", 0);
	b = must_open("b", "toy", 0);
	CHECK_EQ(-EBUSY, try_open("a", NULL));
	CHECK_EQ(0, try_open("base", NULL));
	blk_close(a);
	CHECK_EQ(0, try_open("a", NULL));
	blk_close(b);
}

TEST(packing)
{
	struct blk *b;
	uint8_t buf[TOY_CLUSTER], out[8];
	size_t len;

	new_dir();
	CHECK_EQ(0, make_toy("p", 64 * KiB, NULL));
	b = must_open("p", "toy", 0);
	CHECK(blk_can_pack(b));
	memset(buf, 7, sizeof(buf));
	CHECK_EQ(0, blk_pack(b, buf, sizeof(buf), out, sizeof(out), &len));
	CHECK_EQ(0, blk_write_packed(b, out, len, sizeof(buf), 4096));
	buf[1] = 8;
	CHECK_EQ(-E2BIG, blk_pack(b, buf, sizeof(buf), out, sizeof(out), &len));
	CHECK_EQ(-EINVAL, blk_write_packed(b, out, 1, 4096, 64 * KiB));
	CHECK_EQ(0, blk_read(b, buf, sizeof(buf), 4096));
	CHECK_EQ(7, buf[4095]);
	blk_close(b);
}

TEST(sizes_are_read_as_people_write_them)
{
	uint64_t v;

	CHECK_EQ(0, blk_parse_size("512", &v));
	CHECK_EQ(512, v);
	CHECK_EQ(0, blk_parse_size("64k", &v));
	CHECK_EQ(64 * KiB, v);
	CHECK_EQ(0, blk_parse_size("1.5G", &v));
	CHECK_EQ(3 * GiB / 2, v);
	CHECK_EQ(0, blk_parse_size("7E", &v));
	CHECK_EQ(7ull << 60, v);
	CHECK_EQ(0, blk_parse_size("0x200", &v));
	CHECK_EQ(512, v);
	CHECK_EQ(-EINVAL, blk_parse_size("8E", &v));
	CHECK_EQ(-EINVAL, blk_parse_size("99999999999999999999", &v));
	CHECK_EQ(-EINVAL, blk_parse_size("", &v));
	CHECK_EQ(-EINVAL, blk_parse_size("-1", &v));
	CHECK_EQ(-EINVAL, blk_parse_size("1.5.5G", &v));
	CHECK_EQ(-EINVAL, blk_parse_size("12kk", &v));
	CHECK_EQ(-EINVAL, blk_parse_size("12 k", &v));
}

TEST(options_are_read_with_the_last_one_winning)
{
	struct blk_kv kv[] = {{"a", "on"}, {"s", "2M"}, {"a", "off"}, {"bad", "perhaps"}};
	uint64_t size;
	bool on = true;

	CHECK_EQ(0, blk_kv_bool(kv, 4, "a", true, &on, &err));
	CHECK(!on);
	CHECK_EQ(0, blk_kv_size(kv, 4, "s", 0, &size, &err));
	CHECK_EQ(2 * MiB, size);
	CHECK_EQ(0, blk_kv_size(kv, 4, "none", 77, &size, &err));
	CHECK_EQ(77, size);
	CHECK_EQ(-EINVAL, blk_kv_bool(kv, 4, "bad", true, &on, &err));
	CHECK_STR("bad=perhaps: use on or off", err.msg);
}

TEST(names_with_a_scheme)
{
	const struct blk_source *source;
	const char *path;

	CHECK_EQ(0, blk_source_find("file:a:b", &source, &path, &err));
	CHECK(!source);
	CHECK_STR("a:b", path);
	CHECK_EQ(0, blk_source_find("a:b", &source, &path, &err));
	CHECK_STR("a:b", path);
	CHECK_EQ(-EINVAL, blk_source_find("gopher://x", &source, &path, &err));
	CHECK(strstr(err.msg, "there is no source 'gopher'"));
}

static bool stop_at_base(void *opaque, const char *path)
{
	++*(int *)opaque;
	return path[0] == '/' && strstr(path, "/base");
}

TEST(searching_finds_files_beside_the_image)
{
	struct blk *b;
	int seen = 0;

	new_dir();
	CHECK_EQ(0, make_toy("top", 4096, NULL));
	b = must_open("top", "toy", BLK_READONLY);
	CHECK_EQ(-ENOENT, blk_ref_search(b, stop_at_base, &seen, &err));
	CHECK_EQ(1, seen);
	CHECK_EQ(0, make_toy("base", 4096, NULL));
	CHECK_EQ(0, blk_ref_search(b, stop_at_base, &seen, &err));
	blk_close(b);
}
