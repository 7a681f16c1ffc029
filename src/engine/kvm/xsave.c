/* engine/kvm/xsave.c - x87, SSE, AVX and AVX-512 state, and protection keys.
 *
 * KVM speaks the standard (not compacted) layout of the host's XSAVE area, as x86_state does, but
 * with PKRU among the components, and with whatever was in the bytes of a component that is in its
 * initial state.  Those are made zero, so that equal states are equal bytes. */
#include "engine/kvm/kvm.h"

#include "base/bytes.h"
#include "engine/cpu_model.h"
#include "engine/x86_defs.h"

#include <errno.h>
#include <string.h>

/* SDM 1 "Legacy Region of an XSAVE Area", "XSAVE Header". */
enum {
	XS_FCW = 0,
	XS_MXCSR = 24,
	XS_ST0 = 32,
	XS_XMM0 = 160,
	XS_FREE = 416,
	XS_BV = 512,
	XS_END = 576
};
enum { PKRU_COMPONENT = 9, FCW_INIT = 0x37f };

static uint64_t known_components(const struct engine_cpu *cpu)
{
	return (cpu->vm->model->xcr0_supported | XCR0_X87 | XCR0_SSE) & ~XCR0_PKRU;
}

/* What belongs to no component in use becomes zero; x87 has a control word even then. */
static void normalize(uint8_t *area, uint64_t bv)
{
	uint32_t offset, size;
	uint8_t clean[X86_XSAVE_MAX] = {0};

	memcpy(clean + XS_MXCSR, area + XS_MXCSR, 8);
	le16_store(clean + XS_FCW, FCW_INIT);
	if (bv & XCR0_X87) {
		memcpy(clean, area, XS_MXCSR);
		memcpy(clean + XS_ST0, area + XS_ST0, XS_XMM0 - XS_ST0);
	}
	if (bv & XCR0_SSE)
		memcpy(clean + XS_XMM0, area + XS_XMM0, XS_FREE - XS_XMM0);
	le64_store(clean + XS_BV, bv);
	for (unsigned i = 2; i < 63; i++)
		if (bv >> i & 1 && cpu_xsave_component(i, &offset, &size))
			memcpy(clean + offset, area + offset, size);
	memcpy(area, clean, sizeof(clean));
}

static void pkru_out(uint8_t *area, uint32_t *pkru)
{
	uint32_t offset, size;

	*pkru = 0;
	if (le64_load(area + XS_BV) & XCR0_PKRU &&
	    cpu_xsave_component(PKRU_COMPONENT, &offset, &size))
		*pkru = le32_load(area + offset);
}

static void pkru_in(uint8_t *area, uint32_t pkru)
{
	uint64_t bv = le64_load(area + XS_BV);
	uint32_t offset, size;

	if (!cpu_xsave_component(PKRU_COMPONENT, &offset, &size))
		return;
	le32_store(area + offset, pkru);
	le64_store(area + XS_BV, bv | XCR0_PKRU);
}

int kvm_xsave_get(struct engine_cpu *cpu, struct x86_state *s)
{
	int r = kvm_ioctl(cpu->fd, KVM_GET_XSAVE, s->xsave);

	if (r < 0)
		return r;
	pkru_out(s->xsave, &s->pkru);
	normalize(s->xsave, le64_load(s->xsave + XS_BV) & known_components(cpu));
	return 0;
}

int kvm_xsave_set(struct engine_cpu *cpu, const struct x86_state *s)
{
	_Alignas(64) uint8_t area[X86_XSAVE_MAX];

	memcpy(area, s->xsave, sizeof(area));
	if (le64_load(area + XS_BV) & ~(known_components(cpu) | XCR0_PKRU))
		return -EINVAL;
	normalize(area, le64_load(area + XS_BV) & known_components(cpu));
	if (cpu->vm->model->xcr0_supported & XCR0_PKRU)
		pkru_in(area, s->pkru);
	return kvm_ioctl(cpu->fd, KVM_SET_XSAVE, area);
}
