/* Block addresses: the low three bits say what kind, the rest where. */
#include "internal.h"

uint32_t addr_fd(const struct mkfs *m, uint64_t index)
{
	uint32_t rpc = m->res[RES_FDC].rpc;

	return (uint32_t)(index / rpc << 6 | index % rpc << 22 | ADDR_FD);
}

uint64_t addr_fd_index(const struct mkfs *m, uint32_t addr)
{
	return (uint64_t)(addr >> 6 & 0xFFFF) * m->res[RES_FDC].rpc + (addr >> 22);
}

uint64_t addr_fb(const struct mkfs *m, uint64_t block)
{
	uint64_t rpc = m->res[RES_FBB].rpc;

	if (m->six)
		return block / rpc << 15 | block % rpc << 51 | ADDR_FB;
	return block << 6 | ADDR_FB;
}

uint64_t addr_lfb(uint64_t lfb)
{
	return lfb << 15 | ADDR_LFB;
}

uint64_t addr_res(const struct mkfs *m, enum res_kind k, uint64_t index)
{
	static const uint8_t type[] = {
		[RES_PBC] = ADDR_PB, [RES_SBC] = ADDR_SB, [RES_PB2] = ADDR_PB2};
	uint64_t c = index / m->res[k].rpc, r = index % m->res[k].rpc;

	if (m->six)
		return c << 6 | r << 56 | type[k];
	return c << 6 | (r & 15) << 28 | (r >> 4 & 3) << 3 | type[k];
}

static enum res_kind kind_of(uint64_t addr)
{
	switch (addr & 7) {
	case ADDR_SB:
		return RES_SBC;
	case ADDR_PB:
		return RES_PBC;
	case ADDR_PB2:
		return RES_PB2;
	default:
		return RES_FBB;
	}
}

static uint64_t res_index(const struct mkfs *m, uint64_t addr)
{
	uint64_t rpc = m->res[kind_of(addr)].rpc;

	if (m->six)
		return (addr >> 6 & 0xFFFFFFFFF) * rpc + (addr >> 56);
	return (addr >> 6 & 0x3FFFFF) * rpc + (addr >> 28 & 15) + ((addr & 0x18) << 1);
}

static uint64_t fb_index(const struct mkfs *m, uint64_t addr)
{
	if (m->six)
		return (addr >> 15 & 0x7FFFFFFF) * m->res[RES_FBB].rpc + (addr >> 51);
	return addr >> 6 & 0x3FFFFFF;
}

static uint64_t lfb_size(const struct mkfs *m)
{
	return m->block * m->res[RES_FBB].rpc;
}

uint64_t addr_vol(const struct mkfs *m, uint64_t addr)
{
	if ((addr & 7) == ADDR_FB)
		return fb_index(m, addr) * m->block;
	if ((addr & 7) == ADDR_LFB)
		return (addr >> 15 & 0x7FFFFFFF) * lfb_size(m);
	return res_vol(m, kind_of(addr), res_index(m, addr));
}

/* How far an address goes. */
uint64_t addr_size(const struct mkfs *m, uint64_t addr)
{
	switch (addr & 7) {
	case ADDR_FB:
		return m->block;
	case ADDR_LFB:
		return lfb_size(m);
	default:
		return m->res[kind_of(addr)].rsize;
	}
}

void addr_free(struct mkfs *m, uint64_t addr)
{
	if ((addr & 7) == ADDR_FB)
		res_free(m, RES_FBB, fb_index(m, addr));
	else if ((addr & 7) == ADDR_LFB)
		m->lfb[addr >> 15 & 0x7FFFFFFF] = LFB_FREE;
	else
		res_free(m, kind_of(addr), res_index(m, addr));
}
