/* The split virtqueue on rings that a careful, and then a hostile, driver wrote. */
#include "devices/virtio/queue.h"

#include "base/bytes.h"
#include "mem/mem.h"
#include "test.h"

#include <errno.h>

enum { DESC = 0x1000, AVAIL = 0x2000, USED = 0x3000, TABLE = 0x4000, DATA = 0x10000, SIZE = 8 };
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

struct ring {
	struct mem *mem;
	struct vq q;
	uint16_t avail;
};

static void ring_init(struct ring *r)
{
	memset(r, 0, sizeof(*r));
	CHECK_EQ(0, mem_create(&r->mem, NULL));
	CHECK_EQ(0, mem_add_ram(r->mem, 0, 1 * MiB, NULL));
	CHECK_EQ(0, vq_init(&r->q, r->mem, 0, 16));
	r->q.size = SIZE;
	r->q.desc = DESC;
	r->q.driver = AVAIL;
	r->q.device = USED;
	r->q.indirect = true;
	r->q.ready = true;
}

static void ring_fini(struct ring *r)
{
	vq_fini(&r->q);
	mem_destroy(r->mem);
}

static void desc(struct ring *r, gpa_t table, unsigned i, gpa_t gpa, uint32_t len, uint16_t flags,
		 uint16_t next)
{
	uint8_t raw[16];

	le64_store(raw, gpa);
	le32_store(raw + 8, len);
	le16_store(raw + 12, flags);
	le16_store(raw + 14, next);
	CHECK_EQ(0, mem_write(r->mem, table + 16 * i, raw, 16));
}

static void offer(struct ring *r, uint16_t head)
{
	mem_store16(r->mem, AVAIL + 4 + 2 * (r->avail++ % SIZE), head);
	mem_store16(r->mem, AVAIL + 2, r->avail);
}

static int pop(struct ring *r, struct vq_chain *c)
{
	return vq_pop(&r->q, c);
}

/* ---- honest drivers ---- */

TEST(an_empty_ring_gives_nothing)
{
	struct ring r;
	struct vq_chain c;

	ring_init(&r);
	CHECK_EQ(0, pop(&r, &c));
	r.q.ready = false;
	offer(&r, 0);
	CHECK_EQ(0, pop(&r, &c));
	ring_fini(&r);
}

TEST(a_chain_is_split_into_what_is_read_and_what_is_written)
{
	struct ring r;
	struct vq_chain c;

	ring_init(&r);
	desc(&r, DESC, 3, DATA, 16, NEXT, 5);
	desc(&r, DESC, 5, DATA + 0x100, 512, NEXT | WRITE, 1);
	desc(&r, DESC, 1, DATA + 0x400, 1, WRITE, 0);
	offer(&r, 3);
	CHECK_EQ(1, pop(&r, &c));
	CHECK_EQ(3, c.head);
	CHECK_EQ(1, c.nr_out);
	CHECK_EQ(2, c.nr_in);
	CHECK_EQ(16, c.out_len);
	CHECK_EQ(513, c.in_len);
	CHECK_EQ(DATA + 0x400, c.seg[2].gpa);
	CHECK_EQ(0, pop(&r, &c));
	ring_fini(&r);
}

TEST(an_indirect_table_may_follow_direct_descriptors)
{
	struct ring r;
	struct vq_chain c;

	ring_init(&r);
	desc(&r, DESC, 0, DATA, 8, NEXT, 1);
	desc(&r, DESC, 1, TABLE, 32, INDIRECT, 0);
	desc(&r, TABLE, 0, DATA + 8, 8, NEXT, 1);
	desc(&r, TABLE, 1, DATA + 16, 8, WRITE, 0);
	offer(&r, 0);
	CHECK_EQ(1, pop(&r, &c));
	CHECK_EQ(2, c.nr_out);
	CHECK_EQ(1, c.nr_in);
	ring_fini(&r);
}

TEST(bytes_cross_segment_borders_in_both_directions)
{
	struct ring r;
	struct vq_chain c;
	char buf[8] = {0};

	ring_init(&r);
	desc(&r, DESC, 0, DATA, 3, NEXT, 1);
	desc(&r, DESC, 1, DATA + 0x100, 5, NEXT, 2);
	desc(&r, DESC, 2, DATA + 0x200, 2, NEXT | WRITE, 3);
	desc(&r, DESC, 3, DATA + 0x300, 6, WRITE, 0);
	mem_write(r.mem, DATA, "abc", 3);
	mem_write(r.mem, DATA + 0x100, "defgh", 5);
	offer(&r, 0);
	CHECK_EQ(1, pop(&r, &c));
	CHECK_EQ(0, vq_chain_read(&r.q, &c, 2, buf, 4));
	CHECK(!memcmp(buf, "cdef", 4));
	CHECK_EQ(0, vq_chain_write(&r.q, &c, 1, "XYZ", 3));
	mem_read(r.mem, DATA + 0x201, buf, 1);
	mem_read(r.mem, DATA + 0x300, buf + 1, 2);
	CHECK(!memcmp(buf, "XYZ", 3));
	CHECK_EQ(-EINVAL, vq_chain_read(&r.q, &c, 5, buf, 4));
	CHECK_EQ(-EINVAL, vq_chain_write(&r.q, &c, UINT64_MAX, buf, 2));
	ring_fini(&r);
}

TEST(borrowed_iovecs_name_the_same_bytes)
{
	struct ring r;
	struct vq_chain c;
	struct iovec iov[4];

	ring_init(&r);
	desc(&r, DESC, 0, DATA, 16, NEXT, 1);
	desc(&r, DESC, 1, DATA + 0x1000, 16, 0, 0);
	mem_write(r.mem, DATA + 8, "one", 3);
	mem_write(r.mem, DATA + 0x1000, "two", 3);
	offer(&r, 0);
	CHECK_EQ(1, pop(&r, &c));
	CHECK_EQ(2, vq_chain_borrow(&r.q, &c, false, 8, 20, iov, 4));
	CHECK_EQ(8, iov[0].iov_len);
	CHECK_EQ(12, iov[1].iov_len);
	CHECK(!memcmp(iov[0].iov_base, "one", 3));
	CHECK(!memcmp(iov[1].iov_base, "two", 3));
	CHECK_EQ(-EFAULT, vq_chain_borrow(&r.q, &c, false, 8, 20, iov, 1));
	ring_fini(&r);
}

TEST(completions_appear_in_the_used_ring_when_published)
{
	struct ring r;
	struct vq_chain c;
	bool irq;
	uint16_t idx;
	uint32_t v;

	ring_init(&r);
	desc(&r, DESC, 2, DATA, 4, WRITE, 0);
	offer(&r, 2);
	CHECK_EQ(1, pop(&r, &c));
	CHECK_EQ(0, vq_put(&r.q, &c, 4));
	mem_load16(r.mem, USED + 2, &idx);
	CHECK_EQ(0, idx);
	CHECK_EQ(0, vq_publish(&r.q, &irq));
	CHECK(irq);
	mem_load16(r.mem, USED + 2, &idx);
	CHECK_EQ(1, idx);
	mem_load32(r.mem, USED + 4, &v);
	CHECK_EQ(2, v);
	mem_load32(r.mem, USED + 8, &v);
	CHECK_EQ(4, v);
	CHECK_EQ(0, vq_publish(&r.q, &irq)); /* nothing new */
	CHECK(!irq);
	ring_fini(&r);
}

static bool complete_one(struct ring *r)
{
	struct vq_chain c;
	bool irq;

	offer(r, 0);
	CHECK_EQ(1, pop(r, &c));
	CHECK_EQ(0, vq_put(&r->q, &c, 0));
	CHECK_EQ(0, vq_publish(&r->q, &irq));
	return irq;
}

TEST(the_drivers_flag_suppresses_interrupts)
{
	struct ring r;

	ring_init(&r);
	desc(&r, DESC, 0, DATA, 4, WRITE, 0);
	mem_store16(r.mem, AVAIL, 1);
	CHECK(!complete_one(&r));
	mem_store16(r.mem, AVAIL, 0);
	CHECK(complete_one(&r));
	ring_fini(&r);
}

TEST(used_event_chooses_the_entry_that_interrupts)
{
	struct ring r;

	ring_init(&r);
	r.q.event_idx = true;
	desc(&r, DESC, 0, DATA, 4, WRITE, 0);
	mem_store16(r.mem, AVAIL + 4 + 2 * SIZE, 2); /* after the third */
	CHECK(!complete_one(&r));
	CHECK(!complete_one(&r));
	CHECK(complete_one(&r));
	CHECK(!complete_one(&r));
	ring_fini(&r);
}

TEST(indices_wrap_around_16_bits)
{
	struct ring r;

	ring_init(&r);
	r.q.last_avail = r.q.used = r.q.used_shown = r.avail = 0xfffe;
	desc(&r, DESC, 0, DATA, 4, WRITE, 0);
	for (int i = 0; i < 4; i++)
		CHECK(complete_one(&r));
	CHECK_EQ(2, r.q.used);
	ring_fini(&r);
}

TEST(rearm_writes_avail_event_and_sees_a_late_buffer)
{
	struct ring r;
	uint16_t event;

	ring_init(&r);
	r.q.event_idx = true;
	desc(&r, DESC, 0, DATA, 4, WRITE, 0);
	complete_one(&r);
	CHECK_EQ(0, vq_rearm(&r.q));
	mem_load16(r.mem, USED + 4 + 8 * SIZE, &event);
	CHECK_EQ(1, event);
	offer(&r, 0);
	CHECK_EQ(1, vq_rearm(&r.q));
	ring_fini(&r);
}

TEST(a_chain_put_back_comes_again)
{
	struct ring r;
	struct vq_chain c;

	ring_init(&r);
	desc(&r, DESC, 0, DATA, 4, WRITE, 0);
	offer(&r, 0);
	CHECK_EQ(1, pop(&r, &c));
	vq_unpop(&r.q, 1);
	CHECK_EQ(1, pop(&r, &c));
	CHECK_EQ(0, pop(&r, &c));
	ring_fini(&r);
}

TEST(a_completion_from_before_a_reset_is_dropped)
{
	struct ring r;
	struct vq_chain c;
	bool irq;
	uint16_t idx;

	ring_init(&r);
	desc(&r, DESC, 0, DATA, 4, WRITE, 0);
	offer(&r, 0);
	CHECK_EQ(1, pop(&r, &c));
	vq_reset(&r.q);
	r.q.desc = DESC;
	r.q.driver = AVAIL;
	r.q.device = USED;
	r.q.ready = true;
	CHECK(!vq_is_current(&r.q, &c));
	CHECK_EQ(0, vq_put(&r.q, &c, 4));
	CHECK_EQ(0, vq_publish(&r.q, &irq));
	CHECK(!irq);
	mem_load16(r.mem, USED + 2, &idx);
	CHECK_EQ(0, idx);
	ring_fini(&r);
}

TEST(the_legacy_layout_follows_from_one_address)
{
	struct ring r;

	ring_init(&r);
	r.q.size = 256;
	vq_set_legacy_address(&r.q, 0x5000);
	CHECK_EQ(0x5000, r.q.desc);
	CHECK_EQ(0x6000, r.q.driver);
	CHECK_EQ(0x7000, r.q.device);
	ring_fini(&r);
}

/* ---- hostile ones ---- */

static void check_refused(struct ring *r, int want, const char *why)
{
	struct vq_chain c;

	CHECK_EQ(want, pop(r, &c));
	CHECK_STR(why, r->q.error);
	ring_fini(r);
}

TEST(a_loop_is_found)
{
	struct ring r;

	ring_init(&r);
	desc(&r, DESC, 0, DATA, 4, NEXT, 1);
	desc(&r, DESC, 1, DATA, 4, NEXT, 0);
	offer(&r, 0);
	check_refused(&r, -EINVAL, "descriptor loop");
}

TEST(a_loop_of_empty_descriptors_is_found)
{
	struct ring r;

	ring_init(&r);
	desc(&r, DESC, 0, DATA, 0, NEXT, 0);
	offer(&r, 0);
	check_refused(&r, -EINVAL, "descriptor loop");
}

TEST(a_head_past_the_table_is_refused)
{
	struct ring r;

	ring_init(&r);
	offer(&r, SIZE);
	check_refused(&r, -EINVAL, "descriptor index past the table");
}

TEST(a_next_past_the_table_is_refused)
{
	struct ring r;

	ring_init(&r);
	desc(&r, DESC, 0, DATA, 4, NEXT, 0xffff);
	offer(&r, 0);
	check_refused(&r, -EINVAL, "descriptor index past the table");
}

TEST(an_index_that_jumps_further_than_the_ring_is_refused)
{
	struct ring r;

	ring_init(&r);
	mem_store16(r.mem, AVAIL + 2, SIZE + 1);
	check_refused(&r, -EINVAL, "more buffers offered than the queue holds");
}

TEST(reading_after_writing_is_refused)
{
	struct ring r;

	ring_init(&r);
	desc(&r, DESC, 0, DATA, 4, WRITE | NEXT, 1);
	desc(&r, DESC, 1, DATA, 4, 0, 0);
	offer(&r, 0);
	check_refused(&r, -EINVAL, "readable descriptor after a writable one");
}

TEST(a_buffer_that_wraps_is_refused)
{
	struct ring r;

	ring_init(&r);
	desc(&r, DESC, 0, 0xfffffffffffffff0, 0x20, 0, 0);
	offer(&r, 0);
	check_refused(&r, -EINVAL, "buffer wraps around the address space");
}

TEST(lengths_that_add_up_past_4_gib_are_refused)
{
	struct ring r;

	ring_init(&r);
	desc(&r, DESC, 0, DATA, 0xffffffff, NEXT, 1);
	desc(&r, DESC, 1, DATA, 0xffffffff, 0, 0);
	offer(&r, 0);
	check_refused(&r, -EINVAL, "chain holds more than 4 GiB");
}

TEST(a_table_outside_ram_is_refused)
{
	struct ring r;

	ring_init(&r);
	r.q.desc = 0xfee00000;
	offer(&r, 0);
	check_refused(&r, -EFAULT, "descriptor table is not in RAM");
}

TEST(a_table_at_the_end_of_the_address_space_is_refused)
{
	struct ring r;

	ring_init(&r);
	r.q.desc = 0xfffffffffffffff0;
	offer(&r, 1);
	check_refused(&r, -EFAULT, "descriptor table wraps around");
}

TEST(a_driver_area_outside_ram_is_refused)
{
	struct ring r;

	ring_init(&r);
	r.q.driver = 0xfee00000;
	check_refused(&r, -EFAULT, "driver area is not in RAM");
}

TEST(a_misaligned_driver_area_is_refused)
{
	struct ring r;

	ring_init(&r);
	r.q.driver = AVAIL + 1;
	check_refused(&r, -EFAULT, "driver area is not in RAM");
}

TEST(an_indirect_table_inside_another_is_refused)
{
	struct ring r;

	ring_init(&r);
	desc(&r, DESC, 0, TABLE, 16, INDIRECT, 0);
	desc(&r, TABLE, 0, TABLE, 16, INDIRECT, 0);
	offer(&r, 0);
	check_refused(&r, -EINVAL, "indirect descriptor where none may be");
}

TEST(an_indirect_table_that_was_not_negotiated_is_refused)
{
	struct ring r;

	ring_init(&r);
	r.q.indirect = false;
	desc(&r, DESC, 0, TABLE, 16, INDIRECT, 0);
	offer(&r, 0);
	check_refused(&r, -EINVAL, "indirect descriptor where none may be");
}

TEST(an_indirect_table_of_odd_size_is_refused)
{
	struct ring r;

	ring_init(&r);
	desc(&r, DESC, 0, TABLE, 24, INDIRECT, 0);
	offer(&r, 0);
	check_refused(&r, -EINVAL, "indirect table of a bad size");
}

TEST(a_huge_indirect_table_is_refused)
{
	struct ring r;

	ring_init(&r);
	desc(&r, DESC, 0, TABLE, 0xfffffff0, INDIRECT, 0);
	offer(&r, 0);
	check_refused(&r, -EINVAL, "indirect table of a bad size");
}

TEST(a_chain_longer_than_the_queue_is_refused)
{
	struct ring r;

	ring_init(&r);
	desc(&r, DESC, 0, DATA, 4, NEXT, 1);
	desc(&r, DESC, 1, TABLE, 16 * 16, INDIRECT, 0);
	for (unsigned i = 0; i < 16; i++)
		desc(&r, TABLE, i, DATA, 4, NEXT, i + 1);
	offer(&r, 0);
	check_refused(&r, -EINVAL, "chain is longer than the queue");
}

TEST(data_outside_ram_fails_when_it_is_touched)
{
	struct ring r;
	struct vq_chain c;
	struct iovec iov[2];
	char b = 0;

	ring_init(&r);
	desc(&r, DESC, 0, 0xfee00000, 4, NEXT, 1);
	desc(&r, DESC, 1, 1 * MiB - 2, 4, WRITE, 0); /* half of it past the end */
	offer(&r, 0);
	CHECK_EQ(1, pop(&r, &c));
	CHECK_EQ(-EFAULT, vq_chain_read(&r.q, &c, 0, &b, 1));
	CHECK_EQ(-EFAULT, vq_chain_borrow(&r.q, &c, false, 0, 4, iov, 2));
	CHECK_EQ(-EFAULT, vq_chain_write(&r.q, &c, 0, "abcd", 4));
	CHECK_EQ(-EFAULT, vq_chain_borrow(&r.q, &c, true, 0, 4, iov, 2));
	ring_fini(&r);
}

TEST(a_used_ring_outside_ram_is_reported)
{
	struct ring r;
	struct vq_chain c;

	ring_init(&r);
	desc(&r, DESC, 0, DATA, 4, WRITE, 0);
	offer(&r, 0);
	CHECK_EQ(1, pop(&r, &c));
	r.q.device = 0xfee00000;
	CHECK_EQ(-EFAULT, vq_put(&r.q, &c, 0));
	CHECK_STR("device area is not in RAM", r.q.error);
	ring_fini(&r);
}
