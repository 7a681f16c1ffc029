/* Unit tests of src/state. */
#include "state/stream.h"

#include "base/bytes.h"
#include "base/error.h"
#include "test.h"

#include <errno.h>

struct part {
	uint8_t ier;
	uint16_t div;
	uint32_t count;
	uint64_t deadline;
	bool on;
	uint8_t fifo[5];
	uint8_t late; /* since version 2 */
};

static unsigned build_version;

static void part_state(struct state *s, void *self)
{
	struct part *p = self;

	state_enter(s, "part", build_version);
	state_u8(s, "ier", &p->ier);
	state_u16(s, "div", &p->div);
	state_u32(s, "count", &p->count);
	state_check(s, p->count <= 1000, "count is at most 1000");
	state_u64(s, "deadline", &p->deadline);
	state_bool(s, "on", &p->on);
	state_enter(s, "fifo", 1);
	state_bytes(s, "bytes", p->fifo, sizeof(p->fifo));
	state_leave(s);
	if (state_since(s, 2))
		state_u8(s, "late", &p->late);
	state_leave(s);
}

static const struct part sample = {1, 0x203, 4, 0x1122334455667788, true, "fifo", 9};

static uint8_t *saved(unsigned version, size_t *len)
{
	struct part p = sample;
	struct state_writer w;
	uint8_t *buf;

	build_version = version;
	state_writer_init(&w, NULL);
	part_state(&w.state, &p);
	CHECK_EQ(0, state_writer_finish(&w, &buf, len));
	return buf;
}

static int load(struct part *p, const void *buf, size_t len, struct error *err)
{
	struct state_reader r;

	if (state_reader_init(&r, buf, len, err) == 0)
		part_state(&r.state, p);
	return state_reader_finish(&r);
}

TEST(what_was_saved_is_loaded)
{
	struct part p = {0};
	size_t len;
	uint8_t *buf = saved(2, &len);

	CHECK_EQ(0, load(&p, buf, len, NULL));
	CHECK_EQ(sample.ier, p.ier);
	CHECK_EQ(sample.div, p.div);
	CHECK_EQ(sample.count, p.count);
	CHECK_EQ(sample.deadline, p.deadline);
	CHECK_EQ(sample.on, p.on);
	CHECK_EQ(0, memcmp(sample.fifo, p.fifo, 5));
	CHECK_EQ(9, p.late);
	free(buf);
}

TEST(an_older_version_loads_without_its_later_fields)
{
	struct part p = {.late = 77};
	size_t len;
	uint8_t *buf = saved(1, &len);

	build_version = 2;
	CHECK_EQ(0, load(&p, buf, len, NULL));
	CHECK_EQ(sample.count, p.count);
	CHECK_EQ(77, p.late);
	free(buf);
}

TEST(a_newer_version_is_refused_with_both_numbers)
{
	struct part p = {0};
	struct error err;
	size_t len;
	uint8_t *buf = saved(3, &len);

	build_version = 2;
	CHECK_EQ(-ENOTSUP, load(&p, buf, len, &err));
	CHECK_STR("saved state of 'part': version 3, this build reads up to 2", err.msg);
	free(buf);
}

TEST(any_changed_byte_is_noticed)
{
	struct part p;
	size_t len;
	uint8_t *buf = saved(2, &len);
	unsigned accepted = 0;

	for (size_t i = 0; i < len; i++) {
		buf[i] ^= 0x10;
		accepted += load(&p, buf, len, NULL) == 0;
		buf[i] ^= 0x10;
	}
	CHECK_EQ(0, accepted);
	free(buf);
}

TEST(any_cut_is_noticed)
{
	struct part p;
	size_t len;
	uint8_t *buf = saved(2, &len);
	unsigned accepted = 0;

	for (size_t i = 0; i < len; i++) {
		uint8_t *exact = malloc(i + !i);

		memcpy(exact, buf, i);
		accepted += load(&p, exact, i, NULL) == 0;
		free(exact);
	}
	CHECK_EQ(0, accepted);
	free(buf);
}

/* Make a changed stream's checksum right again, as an attacker would. */
static void reseal(uint8_t *buf, size_t len)
{
	le64_store(buf + 16, len);
	le32_store(buf + len - 4, state_crc32c(buf, len - 4));
}

TEST(a_well_sealed_lie_is_still_checked)
{
	struct part p;
	size_t len;
	uint8_t *buf = saved(2, &len), *at = memmem(buf, len, "count", 5);
	struct error err;

	le32_store(at + 9, 1001); /* the value: after name and length */
	reseal(buf, len);
	CHECK_EQ(-EINVAL, load(&p, buf, len, &err));
	CHECK_STR("saved state: count is at most 1000", err.msg);
	le32_store(at + 5, 0xfffffff0); /* its length */
	reseal(buf, len);
	CHECK_EQ(-EINVAL, load(&p, buf, len, &err));
	CHECK_STR("saved state of 'part': field 'count' has another size", err.msg);
	free(buf);
}

TEST(a_bool_is_zero_or_one)
{
	struct part p;
	size_t len;
	uint8_t *buf = saved(2, &len), *at = memmem(buf, len, "\2on", 3);
	struct error err;

	at[3 + 4] = 2;
	reseal(buf, len);
	CHECK_EQ(-EINVAL, load(&p, buf, len, &err));
	CHECK_STR("field 'on': 2 is neither 0 nor 1", err.msg);
	free(buf);
}

TEST(resealed_noise_never_reads_out_of_bounds)
{
	size_t len, size;
	uint8_t *buf = saved(2, &len);
	unsigned seed = 1, accepted = 0;

	for (int round = 0; round < 20000; round++) {
		uint8_t *copy;
		struct part p;

		seed = seed * 1103515245 + 12345;
		size = 29 + (seed >> 8) % (len - 28);
		copy = malloc(size);
		memcpy(copy, buf, size);
		copy[24 + (seed >> 4) % (size - 24)] = (uint8_t)(seed >> 16);
		copy[size - 5] = 0xff;
		reseal(copy, size);
		accepted += load(&p, copy, size, NULL) == 0;
		free(copy);
	}
	CHECK(accepted < 20000);
	free(buf);
}

TEST(nothing_changes_after_the_first_failure)
{
	struct part p = {.deadline = 5, .count = 6};
	size_t len;
	uint8_t *buf = saved(2, &len), *at = memmem(buf, len, "count", 5);

	at[0] = 'k';
	reseal(buf, len);
	CHECK_EQ(-EINVAL, load(&p, buf, len, NULL));
	CHECK_EQ(sample.div, p.div);
	CHECK_EQ(6, p.count);
	CHECK_EQ(5, p.deadline);
	free(buf);
}

TEST(leftovers_are_refused)
{
	struct state_reader r;
	struct error err;
	size_t len;
	uint8_t *buf = saved(2, &len);

	CHECK_EQ(0, state_reader_init(&r, buf, len, &err));
	CHECK_EQ(-EINVAL, state_reader_finish(&r));
	CHECK_STR("saved state: more parts than are known", err.msg);
	free(buf);
}

TEST(the_checksum_is_crc32c)
{
	CHECK_EQ(0xe3069283, state_crc32c("123456789", 9)); /* RFC 3720 B.4's polynomial */
}

TEST(a_dump_reads_well)
{
	struct part p = sample;
	struct state_dump d;
	char *text;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	build_version = 2;
	state_dump_init(&d, f);
	part_state(&d.state, &p);
	fclose(f);
	CHECK_STR("[part 2]\n"
		  "  ier = 0x01\n"
		  "  div = 0x0203\n"
		  "  count = 0x00000004\n"
		  "  deadline = 0x1122334455667788\n"
		  "  on = 0x01\n"
		  "  [fifo 1]\n"
		  "    bytes = 66 69 66 6f 00\n"
		  "  late = 0x09\n",
		  text);
	free(text);
}
