/* The save file: what is written comes back, and no other file does. */
#include "vm/savefile.h"

#include "base/bytes.h"
#include "base/error.h"
#include "mem/mem.h"
#include "state/stream.h"
#include "test.h"
#include "vm/save_config.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

enum { RAM = 8 << 20, HEADER = 32 };

struct fixture {
	char dir[64], path[96];
	struct mem *mem;
	struct error err;
};

static struct fixture f;

static struct mem *make_mem(void)
{
	struct mem *m;

	CHECK_EQ(0, mem_create(&m, NULL));
	CHECK_EQ(0, mem_add_ram(m, 0, 0xa0000, NULL));
	CHECK_EQ(0, mem_add_ram(m, 0x100000, RAM - 0x100000, NULL));
	return m;
}

/* Pages with something, pages of zeroes that were touched, and holes. */
static void fill(struct mem *m)
{
	uint8_t page[4096];

	for (unsigned i = 0; i < sizeof(page); i++)
		page[i] = (uint8_t)(i * 7);
	CHECK_EQ(0, mem_write(m, 0x5000, page, sizeof(page)));
	CHECK_EQ(0, mem_write(m, 0x9f000, page, 100));
	CHECK_EQ(0, mem_write(m, 0x100000, page, sizeof(page)));
	CHECK_EQ(0, mem_zero(m, 0x200000, 0x10000));
	for (unsigned i = 0; i < 300; i++)
		CHECK_EQ(0, mem_write(m, 0x300000 + i * 0x1000, page + i, 64));
	CHECK_EQ(0, mem_write(m, RAM - 1, "z", 1));
}

static void set_up(void)
{
	strcpy(f.dir, "/tmp/save-test.XXXXXX");
	CHECK(mkdtemp(f.dir));
	snprintf(f.path, sizeof(f.path), "%s/saved", f.dir);
	f.mem = make_mem();
	fill(f.mem);
}

static void tear_down(void)
{
	mem_destroy(f.mem);
	unlink(f.path);
	CHECK_EQ(0, rmdir(f.dir)); /* no temporary file is left */
}

static void save(void)
{
	struct save_writer *w;

	CHECK_EQ(0, save_writer_open(&w, f.path, &f.err));
	CHECK_EQ(0, save_writer_put(w, SAVE_CONFIG, "config", 6, &f.err));
	CHECK_EQ(0, save_writer_ram(w, f.mem, NULL, &f.err));
	CHECK_EQ(0, save_writer_put(w, SAVE_STATE, "state!", 6, &f.err));
	CHECK_EQ(0, save_writer_commit(w, NULL, &f.err));
}

/* All of it, into memory that is new. */
static int load(struct mem **out)
{
	struct mem *m = make_mem();
	struct save_reader *r;
	uint8_t *buf;
	size_t len;
	int e = save_reader_open(&r, f.path, &f.err);

	*out = m;
	if (e < 0)
		return e;
	e = save_reader_get(r, SAVE_CONFIG, &buf, &len, &f.err);
	if (e == 0) {
		CHECK_EQ(6, len);
		free(buf);
		e = save_reader_ram(r, m, NULL, &f.err);
	}
	if (e == 0)
		e = save_reader_get(r, SAVE_STATE, &buf, &len, &f.err);
	if (e == 0) {
		free(buf);
		e = save_reader_end(r, &f.err);
	}
	save_reader_close(r);
	return e;
}

static uint8_t *slurp(size_t *len)
{
	uint8_t *buf = malloc(1 << 20);
	int fd = open(f.path, O_RDONLY);
	ssize_t n = read(fd, buf, 1 << 20);

	CHECK(n > 0);
	close(fd);
	*len = (size_t)n;
	return buf;
}

static void spit(const uint8_t *buf, size_t len)
{
	int fd = open(f.path, O_WRONLY | O_TRUNC);

	CHECK_EQ(len, write(fd, buf, len));
	close(fd);
}

static int load_and_forget(void)
{
	struct mem *m;
	int e = load(&m);

	mem_destroy(m);
	return e;
}

TEST(memory_comes_back_as_it_was)
{
	uint8_t a[4096], b[4096];
	struct mem *m;

	set_up();
	save();
	CHECK_EQ(0, load(&m));
	for (gpa_t gpa = 0; gpa < RAM; gpa += sizeof(a)) {
		if (gpa >= 0xa0000 && gpa < 0x100000)
			continue;
		CHECK_EQ(0, mem_read(f.mem, gpa, a, sizeof(a)));
		CHECK_EQ(0, mem_read(m, gpa, b, sizeof(b)));
		CHECK_EQ(0, memcmp(a, b, sizeof(a)));
	}
	mem_destroy(m);
	tear_down();
}

TEST(memory_nobody_touched_takes_no_host_memory)
{
	struct mem *m;
	struct stat st;

	set_up();
	save();
	CHECK_EQ(0, load(&m));
	CHECK_EQ(0, fstat(mem_fd(m), &st));
	CHECK(st.st_blocks * 512 < RAM / 2);
	mem_destroy(m);
	tear_down();
}

TEST(the_file_is_for_its_owner_only)
{
	struct stat st;

	set_up();
	save();
	CHECK_EQ(0, stat(f.path, &st));
	CHECK_EQ(0600, st.st_mode & 07777);
	tear_down();
}

TEST(a_save_given_up_leaves_the_old_file_and_no_other)
{
	struct save_writer *w;
	struct stat before, after;

	set_up();
	save();
	CHECK_EQ(0, stat(f.path, &before));
	CHECK_EQ(0, save_writer_open(&w, f.path, &f.err));
	CHECK_EQ(0, save_writer_put(w, SAVE_CONFIG, "other", 5, &f.err));
	save_writer_abort(w);
	CHECK_EQ(0, stat(f.path, &after));
	CHECK_EQ(before.st_ino, after.st_ino);
	tear_down();
}

static bool give_up(void *opaque, uint64_t done, uint64_t total)
{
	CHECK(done <= total);
	return false;
}

TEST(progress_can_give_up)
{
	struct save_progress p = {give_up, NULL};
	struct save_writer *w;

	set_up();
	CHECK_EQ(0, save_writer_open(&w, f.path, &f.err));
	CHECK_EQ(-ECANCELED, save_writer_ram(w, f.mem, &p, &f.err));
	save_writer_abort(w);
	tear_down();
}

TEST(what_is_no_saved_vm_is_not_written_over)
{
	struct save_writer *w;
	int fd;

	set_up();
	fd = open(f.path, O_WRONLY | O_CREAT, 0600);
	CHECK_EQ(12, write(fd, "a disk image", 12));
	close(fd);
	CHECK_EQ(-EEXIST, save_writer_open(&w, f.path, &f.err));
	CHECK(strstr(f.err.msg, "not a saved VM"));
	unlink(f.path);
	CHECK_EQ(0, mkdir(f.path, 0700));
	CHECK_EQ(-EEXIST, save_writer_open(&w, f.path, &f.err));
	rmdir(f.path);
	tear_down();
}

TEST(a_file_cut_anywhere_is_refused)
{
	size_t len, steps;
	uint8_t *buf;

	set_up();
	save();
	buf = slurp(&len);
	steps = len / 97 + 1;
	for (size_t cut = 0; cut < len; cut += steps) {
		spit(buf, cut);
		CHECK_EQ(-EINVAL, load_and_forget());
		CHECK(strstr(f.err.msg, f.path));
	}
	free(buf);
	tear_down();
}

TEST(a_byte_changed_anywhere_is_noticed)
{
	size_t len, steps;
	uint8_t *buf;

	set_up();
	save();
	buf = slurp(&len);
	steps = len / 211 + 1;
	for (size_t at = 0; at < len; at += steps) {
		buf[at] ^= 0x10;
		spit(buf, len);
		CHECK(load_and_forget() < 0);
		buf[at] ^= 0x10;
	}
	free(buf);
	tear_down();
}

TEST(bytes_behind_the_end_are_noticed)
{
	size_t len;
	uint8_t *buf;

	set_up();
	save();
	buf = slurp(&len);
	buf[len] = 0;
	spit(buf, len + 1);
	CHECK_EQ(-EINVAL, load_and_forget());
	CHECK(strstr(f.err.msg, "follows its end"));
	free(buf);
	tear_down();
}

TEST(a_newer_format_is_named)
{
	size_t len;
	uint8_t *buf;

	set_up();
	save();
	buf = slurp(&len);
	le32_store(buf + 8, 2);
	spit(buf, len);
	CHECK_EQ(-ENOTSUP, load_and_forget());
	CHECK(strstr(f.err.msg, "format 2, this build reads 1"));
	free(buf);
	tear_down();
}

/* A record taken out, its checksums being good. */
TEST(a_missing_record_is_noticed)
{
	size_t len, at = HEADER, next;
	uint8_t *buf;

	set_up();
	save();
	buf = slurp(&len);
	at += HEADER + le32_load(buf + at + 20); /* behind CONFIG: the first RAM record */
	next = at + HEADER + le32_load(buf + at + 20);
	memmove(buf + at, buf + next, len - next);
	spit(buf, len - (next - at));
	CHECK_EQ(-EINVAL, load_and_forget());
	CHECK(strstr(f.err.msg, "record 2 where 1 belongs"));
	free(buf);
	tear_down();
}

/* What an attacker writes has good checksums. */
static void reseal(uint8_t *rec)
{
	le32_store(rec + 24, state_crc32c(rec + HEADER, le32_load(rec + 20)));
	le32_store(rec + 28, state_crc32c(rec, 28));
}

static void attack(size_t field, uint64_t value, unsigned bytes)
{
	size_t len, at = HEADER;
	uint8_t *buf = slurp(&len);

	at += HEADER + le32_load(buf + at + 20);
	if (bytes == 8)
		le64_store(buf + at + field, value);
	else
		le32_store(buf + at + field, (uint32_t)value);
	le32_store(buf + at + 28, state_crc32c(buf + at, 28));
	spit(buf, len);
	CHECK_EQ(-EINVAL, load_and_forget());
	free(buf);
}

TEST(hostile_memory_records_are_refused)
{
	static const struct {
		size_t field;
		uint64_t value;
		unsigned bytes;
	} rows[] = {
		{8, 0x4000, 8},             /* more pages in the bitmap than belong there */
		{8, 1, 8},                  /* not a page */
		{8, 0x4000000000, 8},       /* no memory there */
		{8, 0xfffffffffffff000, 8}, /* wraps */
		{16, 0, 4},
		{16, 257, 4},
		{16, 0xffffffff, 4}, /* pages */
		{20, 0, 4},
		{20, 31, 4},
		{20, 0xffffffff, 4}, /* length */
		{0, 0x12345678, 4},  /* kind */
	};
	uint8_t *buf;
	size_t len;

	set_up();
	save();
	buf = slurp(&len);
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		/* The first row moves the record to where a hole of the board begins. */
		attack(rows[i].field, i ? rows[i].value : 0xa0000, rows[i].bytes);
		spit(buf, len);
	}
	free(buf);
	tear_down();
}

TEST(a_bitmap_that_promises_more_than_is_there_is_refused)
{
	size_t len, at = HEADER;
	uint8_t *buf;

	set_up();
	save();
	buf = slurp(&len);
	at += HEADER + le32_load(buf + at + 20);
	memset(buf + at + HEADER, 0xff, 8);
	reseal(buf + at);
	spit(buf, len);
	CHECK_EQ(-EINVAL, load_and_forget());
	CHECK(strstr(f.err.msg, "memory record"));
	free(buf);
	tear_down();
}

/* ---- the configuration ---- */

static void good_config(struct saved_config *c)
{
	memset(c, 0, sizeof(*c));
	strcpy(c->version, "0.1.0");
	strcpy(c->engine, "soft");
	c->cpus = 2;
	c->memory = 64 * MiB;
	c->tsc_khz = 2000000;
	c->nr_disks = 1;
	strcpy(c->disk[0].file, "disk.img");
	strcpy(c->disk[0].format, "raw");
	CHECK_EQ(0, cpu_model_resolve(&c->model, "base", &f.err));
}

/* Saved and loaded again. */
static int pass(struct saved_config *in, struct saved_config *out)
{
	struct state_writer w;
	struct state_reader r;
	uint8_t *buf;
	size_t len;
	int e;

	state_writer_init(&w, NULL);
	saved_config_state(&w.state, in);
	CHECK_EQ(0, state_writer_finish(&w, &buf, &len));
	memset(out, 0, sizeof(*out));
	state_reader_init(&r, buf, len, &f.err);
	saved_config_state(&r.state, out);
	e = state_reader_finish(&r);
	free(buf);
	return e;
}

TEST(a_configuration_comes_back)
{
	static struct saved_config in, out;

	good_config(&in);
	CHECK_EQ(0, pass(&in, &out));
	CHECK_EQ(0, memcmp(&in.model, &out.model, sizeof(in.model)));
	CHECK_STR("disk.img", out.disk[0].file);
	CHECK_EQ(0, cpu_model_check(&out.model, &f.err));
}

static void refused(struct saved_config *c, const char *words)
{
	static struct saved_config out;

	CHECK(pass(c, &out) < 0);
	if (!strstr(f.err.msg, words))
		printf("# %s\n", f.err.msg);
	CHECK(strstr(f.err.msg, words));
	good_config(c);
}

TEST(a_hostile_configuration_is_refused)
{
	static struct saved_config c;

	good_config(&c);
	c.cpus = 0;
	refused(&c, "number of CPUs");
	c.cpus = 65;
	refused(&c, "number of CPUs");
	c.memory = 1ull << 60;
	refused(&c, "size of memory");
	c.memory = 3 * MiB + 1;
	refused(&c, "size of memory");
	c.tsc_khz = 0;
	refused(&c, "TSC");
	c.nr_nets = 5;
	refused(&c, "number of devices");
	strcpy(c.disk[0].file, "/etc/shadow");
	refused(&c, "directory");
	strcpy(c.disk[0].file, "..");
	refused(&c, "directory");
	strcpy(c.disk[0].file, "a\033[2Jb");
	refused(&c, "cannot be printed");
	memset(c.disk[0].format, 'x', sizeof(c.disk[0].format));
	refused(&c, "without an end");
	c.model.phys_bits = 70;
	refused(&c, "address bits");
}

TEST(features_that_need_others_are_refused_alone)
{
	static struct saved_config c;

	good_config(&c);
	c.model.features[CPU_FEAT_SSE2 / 64] &= ~BIT(CPU_FEAT_SSE2 % 64);
	refused(&c, "features that need others");
}

TEST(features_this_host_lacks_are_named)
{
	struct cpu_model m;
	unsigned missing = CPU_NR_FEATURES;

	CHECK_EQ(0, cpu_model_resolve(&m, "max", &f.err));
	for (unsigned i = 0; i < CPU_NR_FEATURES; i++)
		if (!cpu_has(&m, i) && !cpu_feature_on_host(i))
			missing = i;
	if (missing == CPU_NR_FEATURES)
		SKIP("this host has every feature there is");
	m.features[missing / 64] |= BIT(missing % 64);
	CHECK_EQ(-ENOTSUP, cpu_model_check(&m, &f.err));
	CHECK(strstr(f.err.msg, cpu_feature_name(missing)));
}
