/* Rings and descriptors are the input: whatever they say, the queue takes bounded chains, never
 * touches memory outside the guest's, and goes on after a reset.
 *
 * Input: 24 bytes of addresses and sizes, then the contents of guest memory. */
#include "base/bytes.h"
#include "devices/virtio/queue.h"
#include "mem/mem.h"

#include <assert.h>
#include <stdlib.h>

enum { RAM = 64 << 10, HEADER = 24, SIZE_MAX_LOG2 = 5, MAX_POPS = 200 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static struct mem *guest_ram(void)
{
	static struct mem *m;

	if (!m && (mem_create(&m, NULL) < 0 || mem_add_ram(m, 0, RAM, NULL) < 0))
		abort();
	return m;
}

static void serve(struct vq *q, const struct vq_chain *c, uint8_t how)
{
	uint8_t buf[64] = {0};
	struct iovec iov[8];
	uint64_t at = how % 16, in = MIN(c->in_len, sizeof(buf)),
		 out = MIN(c->out_len, sizeof(buf));

	assert(c->nr_in + c->nr_out <= q->size_max);
	assert(c->in_len <= UINT32_MAX && c->out_len <= UINT32_MAX);
	vq_chain_read(q, c, at, buf, out);
	vq_chain_write(q, c, at, buf, in);
	for (int i = 0; i < vq_chain_borrow(q, c, how & 1, at, in, iov, 8); i++)
		((volatile uint8_t *)iov[i].iov_base)[iov[i].iov_len - 1];
	vq_chain_wrote(q, c, in);
	vq_put(q, c, in);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct mem *m = guest_ram();
	struct vq q;
	struct vq_chain c;
	bool irq;

	if (len < HEADER)
		return 0;
	mem_zero(m, 0, RAM);
	mem_write(m, 0, data + HEADER, MIN(len - HEADER, (size_t)RAM));
	if (vq_init(&q, m, 0, 1 << SIZE_MAX_LOG2) < 0)
		abort();
	q.size = 1 << (data[0] % (SIZE_MAX_LOG2 + 1));
	q.event_idx = data[1] & 1;
	q.indirect = data[1] & 2;
	q.desc = data[1] & 4 ? le64_load(data + 4) : le16_load(data + 4) & ~15u;
	q.driver = data[1] & 8 ? le64_load(data + 12) : le16_load(data + 12) & ~1u;
	q.device = data[1] & 16 ? le32_load(data + 20) * 4ull : le16_load(data + 20) & ~3u;
	q.ready = true;
	for (int i = 0; i < MAX_POPS && vq_pop(&q, &c) == 1; i++) {
		serve(&q, &c, data[2] + i);
		if (vq_publish(&q, &irq) < 0 || vq_rearm(&q) < 0)
			break;
		if (i % 16 == 15)
			vq_unpop(&q, 1);
	}
	vq_reset(&q);
	assert(vq_pop(&q, &c) == 0);
	vq_fini(&q);
	return 0;
}
