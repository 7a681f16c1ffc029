/* test_vec.c - x87, MMX, SSE, AVX and AVX-512 on the soft engine against this CPU. */
#include "vec_random.h"

#include <errno.h>

/* Instructions as the assembler encodes them, each after its length. */
#define I(text) ".byte 2f - 1f\n1:\t" text "\n2:\n"
#define LIST(name, body)                                                                           \
	extern const uint8_t name[];                                                               \
	__asm__(".pushsection .rodata\n.globl " #name "\n" #name ":\n" body ".byte "               \
		"0\n.popsection")

/* --- states to start from -----------------------------------------------------------------------
 */

static uint64_t rng = 0x9e3779b97f4a7c15;

static uint64_t random64(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng;
}

/* Numbers that make arithmetic interesting: as double, float, or integers. */
static uint64_t special_number(void)
{
	static const uint64_t list[] = {
		0,
		0x3ff0000000000000, /* 1.0 */
		0xbff8000000000000, /* -1.5 */
		0x7ff0000000000000, /* infinity */
		0x7ff0000000000001, /* signalling NaN */
		0xfff8000000000000, /* quiet NaN */
		0x0000000000000001, /* denormal */
		0x8000000000000000, /* -0 */
		0x7fefffffffffffff, /* largest */
		0x0010000000000000, /* smallest normal */
		0x3f8000003f800000, /* 1.0f twice */
		0x7f8000017f7fffff, /* float signalling NaN, largest float */
		0x0000000180000000,
		0xffffffffffffffff,
		0x4059000000000000,
	};

	return list[random64() % ARRAY_SIZE(list)];
}

static void random_numbers(void *p, unsigned n)
{
	for (unsigned i = 0; i < n; i += 8) {
		uint64_t v = random64() & 1 ? special_number() : random64();

		memcpy((uint8_t *)p + i, &v, 8);
	}
}

static void put16(uint8_t *p, uint16_t v)
{
	memcpy(p, &v, 2);
}

static void put32(uint8_t *p, uint32_t v)
{
	memcpy(p, &v, 4);
}

static void put64(uint8_t *p, uint64_t v)
{
	memcpy(p, &v, 8);
}

static void random_x87(uint8_t *image)
{
	put16(image, (uint16_t)(0x40 | 0x3f | (random64() & 0xf00)));
	put16(image + 2, (uint16_t)(random64() & 0x7f00 & ~0x80));
	image[4] = (uint8_t)(random64() | random64());
	for (int i = 0; i < 8; i++) {
		random_numbers(image + 32 + 16 * i, 8);
		image[32 + 16 * i + 7] |= 0x80;
		put16(image + 32 + 16 * i + 8, (uint16_t)(0x3fff + (random64() & 63)));
		if (random64() % 8 == 0)
			put16(image + 32 + 16 * i + 8, (uint16_t)random64());
		memset(image + 32 + 16 * i + 10, 0, 6);
	}
}

static uint64_t state_components(void)
{
	uint32_t lo, hi;

	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	return lo & (XCR0_X87 | XCR0_SSE | XCR0_AVX | XCR0_AVX512);
}

/* Everything masked, random numbers everywhere, RSI and RDI in the data pages. */
static void setup_random(struct setup *in)
{
	uint64_t bv = state_components();
	uint32_t offset, size;

	memset(in, 0, offsetof(struct setup, code));
	in->len = 0;
	random_numbers(in->data, DATA_SIZE);
	for (int i = 0; i < X86_NR_GPR; i++)
		in->gpr[i] = random64() & 1 ? random64() & 0xffff : random64();
	in->gpr[X86_RSI] = DATA_AT + 0x400;
	in->gpr[X86_RDI] = DATA_AT + 0x800;
	in->gpr[X86_RBX] = 0x10;
	in->flags = random64() & RFLAGS_ARITH;
	random_x87(in->xsave);
	random_numbers(in->xsave + 160, 256);
	put32(in->xsave + 24, 0x1f80 | (random64() & 0xe07f));
	for (unsigned i = 2; i < 8; i++)
		if (bv >> i & 1 && cpu_xsave_component(i, &offset, &size))
			random_numbers(in->xsave + offset, size);
	put64(in->xsave + XS_BV_AT, bv);
}

static void setup_code(struct setup *in, const void *code, unsigned len)
{
	memcpy(in->code + in->len, code, len);
	in->len += len;
}

static struct setup in;
static struct outcome host, soft;

/* When the host's kernel takes the CPU away in the middle, components of XSAVE's image that hold
 * their initial values are no longer in use when it gives it back, and AMD's x87 pointers are gone.
 * A difference that is ours comes every time. */
static bool agree(struct guest *g)
{
	enum { ATTEMPTS = 4 };

	for (int i = 0; i < ATTEMPTS; i++) {
		native_run(&in, &host);
		guest_run(g, &in, &soft);
		if (outcomes_same(&host, &soft))
			return true;
	}
	return outcomes_agree(&in, &host, &soft);
}

/* Each instruction of the list alone, on `times` random states. */
static unsigned disagreements(struct guest *g, const uint8_t *list, int times,
			      void (*change)(struct setup *in))
{
	unsigned bad = 0;

	for (const uint8_t *p = list; *p; p += 1 + *p) {
		for (int i = 0; i < times; i++) {
			setup_random(&in);
			if (change)
				change(&in);
			setup_code(&in, p + 1, *p);
			if (!agree(g)) {
				bad++;
				break;
			}
		}
	}
	return bad;
}

static const struct engine_cpu_ops no_ops;

static void need(enum cpu_feature f)
{
	if (!cpu_feature_on_host(f))
		SKIP("this CPU lacks the instructions");
}

/* --- samples of every class ---------------------------------------------------------------------
 */

// clang-format off
LIST(x87_list,
	I("fld1") I("fldpi") I("fldz") I("flds (%rsi)") I("fldl (%rsi)") I("fldt (%rsi)")
	I("filds (%rsi)") I("fildl (%rsi)") I("fildll (%rsi)") I("fbld (%rsi)") I("fbstp (%rsi)")
	I("fsts (%rsi)") I("fstl (%rsi)") I("fstps (%rsi)") I("fstpl (%rsi)") I("fstpt (%rsi)")
	I("fists (%rsi)") I("fistl (%rsi)") I("fistpll (%rsi)") I("fisttpll (%rsi)") I("fisttps (%rsi)")
	I("fadd %st(3)") I("faddp %st(1)") I("fmuls (%rsi)") I("fmull (%rsi)") I("fiaddl (%rsi)")
	I("fsub %st, %st(2)") I("fsubr %st(2)") I("fdivp %st(4)") I("fdivrl 8(%rsi)") I("fidivs (%rsi)")
	I("fsqrt") I("fsin") I("fcos") I("fsincos") I("fptan") I("fpatan") I("f2xm1") I("fyl2x")
	I("fyl2xp1") I("fprem") I("fprem1") I("frndint") I("fscale") I("fxtract") I("fabs") I("fchs")
	I("fxam") I("ftst") I("fcom %st(1)") I("fcomp %st(2)") I("fcompp") I("fucompp") I("fucom %st(5)")
	I("fcomi %st(1)") I("fcomip %st(2)") I("fucomi %st(3)") I("fucomip %st(4)") I("ficoml (%rsi)")
	I("fcmovb %st(1), %st") I("fcmovne %st(2), %st") I("fcmovu %st(3), %st") I("fcmovbe %st(6), %st")
	I("fxch %st(3)") I("fincstp") I("fdecstp") I("ffree %st(2)") I("ffreep %st(3)") I("fnop")
	I("fnstcw (%rsi)") I("fnstsw (%rsi)") I("fnstsw %ax") I("movw $0x27f, (%rsi)\nfldcw (%rsi)")
	I("fninit") I("fnclex") I("fwait") I(".byte 0xdb, 0xe0") I(".byte 0xdb, 0xe1") I(".byte 0xdb, 0xe4")
	I("fnstenv (%rsi)") I("fnsave (%rsi)") I("data16 fnstenv (%rsi)") I("data16 fnsave (%rsi)")
	I("fld1\nfstl 16(%rsi)\nfnstenv (%rsi)") I("fldl (%rsi)\nfnsave 8(%rsi)")
	I("fldl (%rsi)\nfld1\ndata16 fnstenv (%rsi)") I("fld1\nmovd %eax, %mm0\nfnstenv (%rsi)")
	I("fldl (%rsi)\nfnstenv 64(%rsi)\nfninit\nfnstenv (%rsi)\nfldenv 64(%rsi)\nfnstenv 128(%rsi)")
	I("fldl (%rsi)\nfnsave 64(%rsi)\nfnstenv (%rsi)\nfrstor 64(%rsi)\nfnstenv 256(%rsi)")
	I("fldl (%rsi)\ndata16 fnsave 64(%rsi)\ndata16 frstor 64(%rsi)\nfnstenv 256(%rsi)")
	I("fldl (%rsi)\nfxsave64 (%rsi)\nfxsave 512(%rsi)\nfxrstor64 (%rsi)\nfnstenv (%rsi)"));

LIST(mmx_list,
	I("movd %eax, %mm1") I("movd %mm1, %r9d") I("movq %r10, %mm3") I("movq %mm3, %rax")
	I("movq (%rsi), %mm4") I("movq %mm4, 3(%rsi)") I("movd (%rsi), %mm1") I("movd %mm6, (%rsi)")
	I("paddb %mm1, %mm2") I("paddusw (%rsi), %mm2") I("pmaddwd %mm3, %mm4") I("psllq $3, %mm1")
	I("punpcklbw (%rsi), %mm0") I("packssdw %mm1, %mm2") I("pshufw $0x1b, (%rsi), %mm5")
	I("pmovmskb %mm3, %ebx") I("pinsrw $2, %ecx, %mm1") I("pinsrw $1, (%rsi), %mm1")
	I("pextrw $3, %mm2, %r8d") I("pavgb %mm1, %mm1") I("psadbw (%rsi), %mm6") I("emms")
	I("movntq %mm1, (%rsi)") I("maskmovq %mm1, %mm2") I("pshufb %mm1, %mm2") I("phaddw (%rsi), %mm2")
	I("cvtpi2ps (%rsi), %xmm1") I("cvtps2pi %xmm2, %mm1") I("cvttpd2pi %xmm3, %mm4")
	I("movq2dq %mm1, %xmm9") I("movdq2q %xmm9, %mm2") I("cvtpi2pd %mm2, %xmm3")
	I("maskmovq %mm3, %mm5\nfnstenv (%rsi)") I("palignr $3, (%rsi), %mm1"));

LIST(sse_list,
	I("addps %xmm1, %xmm2") I("addpd (%rsi), %xmm9") I("addss 4(%rsi), %xmm3") I("mulsd %xmm15, %xmm8")
	I("divps %xmm3, %xmm3") I("sqrtpd (%rsi), %xmm1") I("rsqrtps %xmm4, %xmm5") I("rcpss (%rsi), %xmm1")
	I("maxps %xmm1, %xmm2") I("minsd 8(%rsi), %xmm2") I("cmpps $3, %xmm1, %xmm2") I("cmpsd $5, (%rsi), %xmm7")
	I("andnps (%rsi), %xmm1") I("xorpd %xmm1, %xmm1") I("shufps $0x2d, %xmm1, %xmm12")
	I("movaps %xmm1, %xmm9") I("movaps (%rsi), %xmm1") I("movaps %xmm13, 32(%rsi)")
	I("movups 1(%rsi), %xmm1") I("movups %xmm1, 5(%rsi)") I("movdqu 4091(%rsi,%rbx), %xmm7")
	I("movss (%rsi), %xmm1") I("movss %xmm1, 3(%rsi)") I("movsd %xmm2, %xmm11") I("movsd (%rsi), %xmm2")
	I("movlps (%rsi), %xmm1") I("movhpd %xmm3, (%rsi)") I("movhlps %xmm1, %xmm2") I("movlhps %xmm1, %xmm2")
	I("movd %r11d, %xmm3") I("movq %r12, %xmm3") I("movd %xmm3, %ebp") I("movq %xmm3, %r13")
	I("movq (%rsi), %xmm3") I("movq %xmm10, (%rsi)") I("movntps %xmm1, (%rsi)") I("movntdq %xmm1, 16(%rsi)")
	I("movmskps %xmm1, %eax") I("movmskpd %xmm12, %r9") I("pmovmskb %xmm1, %r8d")
	I("cvtsi2ss %eax, %xmm1") I("cvtsi2sdq %r9, %xmm2") I("cvtsi2sdl (%rsi), %xmm2") I("cvtsi2ssq (%rsi), %xmm2")
	I("cvttsd2si %xmm1, %rax") I("cvtss2si (%rsi), %r14d") I("cvtsd2ss %xmm1, %xmm2") I("cvtdq2pd (%rsi), %xmm3")
	I("cvtps2dq %xmm1, %xmm2") I("cvttpd2dq (%rsi), %xmm2") I("comiss %xmm1, %xmm2") I("ucomisd (%rsi), %xmm2")
	I("paddq %xmm1, %xmm2") I("pmuludq (%rsi), %xmm11") I("psrldq $5, %xmm1") I("psraw %xmm1, %xmm2")
	I("pshufd $0x4e, (%rsi), %xmm1") I("pextrw $5, %xmm9, %edx") I("pinsrw $7, 6(%rsi), %xmm1")
	I("maskmovdqu %xmm1, %xmm2") I("lddqu 3(%rsi), %xmm2") I("haddps (%rsi), %xmm2") I("movddup (%rsi), %xmm1")
	I("pabsd %xmm1, %xmm2") I("palignr $9, (%rsi), %xmm1") I("pshufb %xmm8, %xmm9")
	I("pblendvb %xmm0, (%rsi), %xmm2") I("blendvps %xmm0, %xmm1, %xmm3") I("blendpd $1, %xmm1, %xmm2")
	I("ptest %xmm1, %xmm2") I("ptest (%rsi), %xmm2") I("roundsd $4, (%rsi), %xmm1") I("dpps $0xf1, %xmm1, %xmm2")
	I("pextrb $9, %xmm1, %ecx") I("pextrb $9, %xmm1, (%rsi)") I("pextrq $1, %xmm1, %rdx") I("pextrd $2, %xmm1, (%rsi)")
	I("pinsrq $1, %rcx, %xmm1") I("pinsrb $3, (%rsi), %xmm1") I("extractps $3, %xmm1, %r8d") I("insertps $0x5a, 4(%rsi), %xmm1")
	I("pmovsxbq (%rsi), %xmm1") I("pmovzxwd %xmm1, %xmm2") I("movntdqa (%rsi), %xmm1") I("mpsadbw $5, (%rsi), %xmm1")
	I("phminposuw %xmm1, %xmm2") I("pcmpgtq %xmm1, %xmm2") I("pcmpistri $0x18, (%rsi), %xmm2")
	I("pcmpistrm $0x40, %xmm1, %xmm2") I("pcmpestri $0xc, %xmm1, %xmm2") I("pcmpestrm $0x46, 1(%rsi), %xmm2")
	I("stmxcsr (%rsi)") I("movl $0x3f80, (%rsi)\nldmxcsr (%rsi)") I("movl $0x1ff80, (%rsi)\nldmxcsr (%rsi)"));

LIST(crypto_list,
	I("aesenc %xmm1, %xmm2") I("aesdeclast (%rsi), %xmm2") I("aesimc %xmm1, %xmm2") I("aeskeygenassist $3, (%rsi), %xmm2")
	I("pclmulqdq $0x11, %xmm1, %xmm2") I("vaesenc %xmm1, %xmm2, %xmm3") I("vpclmulqdq $1, (%rsi), %xmm2, %xmm3"));

LIST(sha_list, I("sha1msg1 %xmm1, %xmm2") I("sha1rnds4 $2, (%rsi), %xmm3") I("sha256rnds2 %xmm0, %xmm1, %xmm2"));
LIST(sse4a_list,
	I("extrq $4, $8, %xmm1") I("extrq %xmm1, %xmm2") I("insertq $8, $16, %xmm1, %xmm2") I("insertq %xmm1, %xmm2")
	I("movntss %xmm1, (%rsi)") I("movntsd %xmm1, (%rsi)"));

LIST(avx_list,
	I("vaddps %ymm1, %ymm2, %ymm3") I("vaddpd (%rsi), %ymm12, %ymm3") I("vaddsd %xmm1, %xmm2, %xmm13") I("vmulss 4(%rsi), %xmm2, %xmm3")
	I("vmovaps (%rsi), %ymm9") I("vmovaps %ymm9, 32(%rsi)") I("vmovups 5(%rsi), %ymm9") I("vmovdqu %ymm9, 7(%rsi)")
	I("vmovdqu (%rsi,%rbx,2), %xmm9") I("vmovd %r9d, %xmm14") I("vmovq %xmm14, %r10") I("vmovq %rax, %xmm1")
	I("vmovss %xmm1, %xmm2, %xmm3") I("vmovsd (%rsi), %xmm3") I("vmovlhps %xmm1, %xmm2, %xmm3") I("vmovmskps %ymm1, %eax")
	I("vcvtsi2sdq %r11, %xmm1, %xmm2") I("vcvttss2si (%rsi), %rdx") I("vcvtpd2psy (%rsi), %xmm1") I("vcvtps2pd %xmm1, %ymm2")
	I("vcomisd %xmm1, %xmm2") I("vptest (%rsi), %ymm1") I("vtestps %ymm1, %ymm2") I("vblendvps %ymm4, (%rsi), %ymm2, %ymm3")
	I("vblendvpd %ymm14, %ymm1, %ymm2, %ymm3") I("vperm2f128 $0x21, (%rsi), %ymm2, %ymm3") I("vinsertf128 $1, (%rsi), %ymm2, %ymm3")
	I("vextractf128 $1, %ymm1, (%rsi)") I("vbroadcastss (%rsi), %ymm1") I("vbroadcastf128 (%rsi), %ymm1")
	I("vmaskmovps (%rsi), %ymm1, %ymm2") I("vmaskmovpd %ymm1, %ymm2, (%rsi)") I("vpinsrd $1, %r8d, %xmm1, %xmm2")
	I("vpextrb $3, %xmm1, %r8d") I("vpcmpestri $0xc, (%rsi), %xmm2") I("vpcmpistrm $0, %xmm1, %xmm2") I("vzeroupper") I("vzeroall")
	I("vstmxcsr (%rsi)") I("vcmppd $0x1f, (%rsi), %ymm1, %ymm2") I("vroundps $3, %ymm1, %ymm2") I("vpsllq $3, %xmm1, %xmm2")
	I("vmaskmovdqu %xmm1, %xmm2") I("vmovntps %ymm1, (%rsi)") I("vlddqu 1(%rsi), %ymm1"));

LIST(avx2_list,
	I("vpaddd (%rsi), %ymm11, %ymm3") I("vpermd (%rsi), %ymm1, %ymm2") I("vpbroadcastb %xmm1, %ymm2") I("vpbroadcastq (%rsi), %ymm2")
	I("vpmaskmovd (%rsi), %ymm1, %ymm2") I("vpmaskmovq %ymm1, %ymm2, (%rsi)") I("vpsllvd %ymm1, %ymm2, %ymm3") I("vpmovmskb %ymm3, %r9d")
	I("vextracti128 $1, %ymm1, (%rsi)") I("vpblendvb %ymm1, %ymm2, %ymm3, %ymm4") I("vpmovzxbd (%rsi), %ymm1") I("vpalignr $3, (%rsi), %ymm1, %ymm2")
	I("vfmadd213ps (%rsi), %ymm1, %ymm2") I("vfnmsub231sd %xmm1, %xmm2, %xmm3") I("vcvtph2ps (%rsi), %ymm1") I("vcvtps2ph $2, %ymm1, (%rsi)"));

LIST(avx512_list,
	I("vaddps %zmm1, %zmm22, %zmm13") I("vaddps (%rsi), %zmm2, %zmm3{%k1}") I("vaddpd (%rsi){1to8}, %zmm2, %zmm3{%k2}{z}")
	I("vaddps {rz-sae}, %zmm1, %zmm2, %zmm31") I("vdivsd {ru-sae}, %xmm1, %xmm2, %xmm3{%k3}") I("vmovdqu64 7(%rsi), %zmm30") I("vmovdqu8 %zmm30, 9(%rsi){%k5}")
	I("vmovdqa32 (%rsi), %zmm9{%k1}{z}") I("vmovaps %zmm9, 64(%rsi){%k7}") I("vmovss (%rsi), %xmm1{%k1}{z}") I("vmovsd %xmm1, 64(%rsi){%k2}")
	I("vpaddb %xmm17, %xmm18, %xmm19{%k3}") I("vpternlogd $0x96, (%rsi){1to16}, %zmm2, %zmm3") I("vpermi2d (%rsi), %zmm1, %zmm2{%k1}") I("vpermb %zmm1, %zmm2, %zmm3")
	I("vpcmpeqb (%rsi), %zmm1, %k2{%k3}") I("vcmpps $1, %zmm1, %zmm2, %k3") I("vptestmd (%rsi){1to8}, %ymm2, %k1") I("vfpclassps $0x7f, %zmm1, %k1{%k2}")
	I("vpcompressd %zmm1, (%rsi){%k1}") I("vpcompressq %zmm1, %zmm2{%k1}{z}") I("vpexpandd (%rsi), %zmm1{%k1}") I("vcompresspd %ymm1, (%rsi){%k2}") I("vexpandps (%rsi), %ymm1{%k2}{z}")
	I("vpcompressb %zmm1, (%rsi){%k3}") I("vpexpandw (%rsi), %zmm1{%k3}{z}")
	I("vpmovqb %zmm1, (%rsi){%k1}") I("vpmovdw %zmm1, %ymm2{%k1}") I("vpmovsxbq (%rsi), %zmm1{%k1}") I("vcvtps2ph $0, %zmm1, (%rsi){%k1}")
	I("vcvtusi2sd %eax, %xmm1, %xmm2") I("vcvtusi2ssq %r9, %xmm21, %xmm22") I("vcvttsd2usi %xmm21, %r9") I("vcvtss2usi (%rsi), %eax")
	I("vpbroadcastd %r9d, %zmm21{%k1}") I("vpbroadcastb %eax, %xmm1") I("vpbroadcastmb2q %k1, %zmm1") I("vbroadcasti32x4 (%rsi), %zmm1{%k1}{z}") I("vbroadcastsd (%rsi), %zmm1{%k1}")
	I("vinserti64x4 $1, (%rsi), %zmm1, %zmm2{%k1}") I("vextractf32x4 $3, %zmm1, (%rsi){%k1}") I("vscalefps %zmm1, %zmm2, %zmm3{%k1}{z}") I("vgetmantpd $3, (%rsi), %zmm1") I("vrndscaleps $0x18, {sae}, %zmm1, %zmm2")
	I("vfixupimmps $1, (%rsi), %zmm1, %zmm2{%k1}") I("vpconflictd (%rsi), %zmm1{%k1}") I("vplzcntq %zmm1, %zmm2") I("vpmadd52luq (%rsi), %zmm1, %zmm2") I("vpopcntb %zmm1, %zmm2{%k1}") I("vpshufbitqmb %zmm1, %zmm2, %k1{%k2}")
	I("vpdpbusd (%rsi), %zmm1, %zmm2{%k1}") I("vdpbf16ps %zmm1, %zmm2, %zmm3") I("vgf2p8affineqb $3, (%rsi){1to8}, %zmm1, %zmm2{%k1}") I("vaesenc (%rsi), %zmm1, %zmm2") I("vpclmulqdq $0, %zmm1, %zmm2, %zmm3")
	I("vcomisd {sae}, %xmm21, %xmm2") I("vpsrldq $3, (%rsi), %zmm1") I("vprolq $5, (%rsi){1to8}, %zmm2{%k1}") I("vpslld %xmm1, %zmm2, %zmm3{%k1}") I("vpsraq (%rsi), %zmm2, %zmm3{%k1}")
	I("vreduceps $3, %zmm1, %zmm2") I("vrangesd $2, (%rsi), %xmm1, %xmm2{%k1}") I("vpmovm2b %k1, %zmm1") I("vpmovb2m %zmm1, %k1") I("vcvtpd2qq (%rsi){1to8}, %zmm1{%k3}") I("vcvtps2qq (%rsi), %zmm1{%k1}") I("vcvtps2pd (%rsi){1to8}, %zmm1{%k1}"));

LIST(mask_list,
	I("kmovb %eax, %k1") I("kmovw %k1, %r9d") I("kmovd %r9d, %k2") I("kmovq %k3, %r10") I("kmovq %rbx, %k4") I("kmovq (%rsi), %k1") I("kmovw %k1, (%rsi)") I("kmovq %k1, %k2")
	I("kandq %k1, %k2, %k3") I("kortestw %k1, %k2") I("kortestq %k1, %k1") I("ktestb %k1, %k2") I("kshiftlq $3, %k1, %k2") I("kunpckbw %k1, %k2, %k3") I("kxnord %k1, %k2, %k3") I("knotb %k1, %k2") I("kaddq %k1, %k2, %k3"));
// clang-format on

static void check_list(const uint8_t *list)
{
	struct guest g;

	guest_create(&g, "max", &no_ops);
	CHECK_EQ(0, disagreements(&g, list, 12, NULL));
	guest_destroy(&g);
}

TEST(x87_agrees_with_this_cpu)
{
	check_list(x87_list);
}

TEST(mmx_agrees_with_this_cpu)
{
	check_list(mmx_list);
}

TEST(sse_agrees_with_this_cpu)
{
	need(CPU_FEAT_SSE4_2);
	check_list(sse_list);
}

TEST(aes_and_pclmul_agree_with_this_cpu)
{
	need(CPU_FEAT_AES);
	need(CPU_FEAT_PCLMULQDQ);
	need(CPU_FEAT_AVX);
	check_list(crypto_list);
}

TEST(sha_agrees_with_this_cpu)
{
	need(CPU_FEAT_SHA_NI);
	check_list(sha_list);
}

TEST(sse4a_agrees_with_this_cpu)
{
	need(CPU_FEAT_SSE4A);
	check_list(sse4a_list);
}

TEST(avx_agrees_with_this_cpu)
{
	need(CPU_FEAT_AVX);
	check_list(avx_list);
}

TEST(avx2_fma_f16c_agree_with_this_cpu)
{
	need(CPU_FEAT_AVX2);
	need(CPU_FEAT_FMA);
	need(CPU_FEAT_F16C);
	check_list(avx2_list);
}

TEST(avx512_agrees_with_this_cpu)
{
	need(CPU_FEAT_AVX512_BF16);
	need(CPU_FEAT_AVX512_VBMI2);
	need(CPU_FEAT_VAES);
	need(CPU_FEAT_GFNI);
	check_list(avx512_list);
}

TEST(opmask_instructions_agree_with_this_cpu)
{
	need(CPU_FEAT_AVX512BW);
	need(CPU_FEAT_AVX512DQ);
	check_list(mask_list);
}

/* --- random encodings ---------------------------------------------------------------------------
 */

/* What would make both sides run something else than the instruction, or differ for a known
 * reason. */
static bool left_out(const struct setup *s)
{
	const uint8_t *c = s->code;

	if (c[0] == 0xc4 && (c[1] & 31) == 1 && (c[3] == 0xae || c[3] == 0x77))
		return true; /* VLDMXCSR has samples; after VZEROUPPER the ModRM would be run */
	if (c[0] == 0xc4 && (c[1] & 31) == 3 && c[3] <= 1 && !(c[2] & 0x80))
		return true; /* VPERMQ, VPERMPD with W0: #UD by the manuals, AMD's run it */
	return false;
}

static unsigned random_disagreements(struct guest *g, enum random_kind kind, unsigned times,
				     uint16_t fcw, uint32_t mxcsr)
{
	unsigned bad = 0;

	for (unsigned i = 0; i < times && bad < 10; i++) {
		setup_random(&in);
		put16(in.xsave, fcw ? fcw : 0x37f);
		put32(in.xsave + 24, mxcsr | (random64() & 0x6000));
		random_insn(&in, kind, random64() >> 3, random64() >> 5);
		if (!left_out(&in))
			bad += !agree(g);
	}
	return bad;
}

static void check_random(enum random_kind kind, uint16_t fcw, uint32_t mxcsr)
{
	unsigned times = getenv("VEC_RANDOM") ? (unsigned)atoi(getenv("VEC_RANDOM")) : 4000;
	struct guest g;

	if (getenv("VEC_SEED"))
		rng += strtoull(getenv("VEC_SEED"), NULL, 0) * 0x2545f4914f6cdd1d;
	guest_create(&g, "max", &no_ops);
	CHECK_EQ(0, random_disagreements(&g, kind, times, fcw, mxcsr));
	guest_destroy(&g);
}

TEST(random_x87_encodings_agree_with_this_cpu)
{
	check_random(RANDOM_X87, 0x37f, 0x1f80);
}

TEST(random_sse_encodings_agree_with_this_cpu)
{
	check_random(RANDOM_LEGACY, 0, 0x1f80);
}

TEST(random_vex_encodings_agree_with_this_cpu)
{
	need(CPU_FEAT_AVX);
	check_random(RANDOM_VEX, 0, 0x1f80);
}

TEST(random_evex_encodings_agree_with_this_cpu)
{
	need(CPU_FEAT_AVX512F);
	check_random(RANDOM_EVEX, 0, 0x1f80);
}

TEST(unmasked_exceptions_of_random_sse_encodings_agree_with_this_cpu)
{
	check_random(RANDOM_LEGACY, 0, 0);
}

TEST(unmasked_exceptions_of_random_evex_encodings_agree_with_this_cpu)
{
	need(CPU_FEAT_AVX512F);
	check_random(RANDOM_EVEX, 0, 0);
}

/* --- unmasked exceptions ------------------------------------------------------------------------
 */

/* Any x87 exceptions pending, any of them unmasked, last pointers anywhere in user space. */
static void unmask_x87(struct setup *s)
{
	put16(s->xsave, (uint16_t)(0x40 | (random64() & 0xf3f)));
	put16(s->xsave + 2, (uint16_t)(random64() & 0x7f3f));
	put16(s->xsave + 6, random64() & 0x7ff);
	put64(s->xsave + 8, random64() & 0x7fffffffffff);
	put64(s->xsave + 16, random64() & 0x7fffffffffff);
}

static void unmask_sse(struct setup *s)
{
	put32(s->xsave + 24, random64() & 0xe07f);
}

TEST(pending_and_unmasked_x87_exceptions_agree_with_this_cpu)
{
	struct guest g;

	guest_create(&g, "max", &no_ops);
	CHECK_EQ(0, disagreements(&g, x87_list, 40, unmask_x87));
	CHECK_EQ(0, disagreements(&g, mmx_list, 10, unmask_x87));
	guest_destroy(&g);
}

TEST(unmasked_sse_exceptions_agree_with_this_cpu)
{
	struct guest g;

	need(CPU_FEAT_SSE4_2);
	guest_create(&g, "max", &no_ops);
	CHECK_EQ(0, disagreements(&g, sse_list, 40, unmask_sse));
	guest_destroy(&g);
}

/* divss %xmm0, %xmm0 with 0/0 and everything unmasked. */
static void setup_invalid_sse(struct setup *s)
{
	static const uint8_t divss[] = {0xf3, 0x0f, 0x5e, 0xc0};

	setup_random(s);
	put32(s->xsave + 160, 0);
	put32(s->xsave + 24, 0);
	setup_code(s, divss, sizeof(divss));
}

TEST(sse_exception_without_osxmmexcpt_is_ud)
{
	struct guest g;

	guest_create(&g, "max", &no_ops);
	setup_invalid_sse(&in);
	guest_run(&g, &in, &soft);
	CHECK_EQ(X86_EXC_XM, soft.vector);
	g.base.cr4 &= ~CR4_OSXMMEXCPT;
	guest_run(&g, &in, &soft);
	CHECK_EQ(X86_EXC_UD, soft.vector);
	CHECK_EQ(CODE_AT, soft.rip);
	guest_destroy(&g);
}

/* --- what may run -------------------------------------------------------------------------------
 */

static const struct {
	const char *what;
	uint8_t code[8];
	uint64_t cr0_set, cr0_clear, cr4_clear, xcr0_clear;
	uint8_t vector; /* 0: runs */
} availability[] = {
	// clang-format off
	{"fld1",         "\xd9\xe8",                 0, 0, 0, 0, 0},
	{"fld1 EM",      "\xd9\xe8",                 CR0_EM, 0, 0, 0, X86_EXC_NM},
	{"fld1 TS",      "\xd9\xe8",                 CR0_TS, 0, 0, 0, X86_EXC_NM},
	{"fwait TS",     "\x9b",                     CR0_TS, 0, 0, 0, X86_EXC_NM},
	{"fwait TS !MP", "\x9b",                     CR0_TS, CR0_MP, 0, 0, 0},
	{"fwait EM",     "\x9b",                     CR0_EM, 0, 0, 0, 0},
	{"fnstenv EM",   "\xd9\x36",                 CR0_EM, 0, 0, 0, X86_EXC_NM},
	{"paddb mm EM",  "\x0f\xfc\xc1",             CR0_EM, 0, 0, 0, X86_EXC_UD},
	{"paddb mm TS",  "\x0f\xfc\xc1",             CR0_TS, 0, 0, 0, X86_EXC_NM},
	{"paddb mm !FX", "\x0f\xfc\xc1",             0, 0, CR4_OSFXSR, 0, 0},
	{"emms EM",      "\x0f\x77",                 CR0_EM, 0, 0, 0, X86_EXC_UD},
	{"addps EM",     "\x0f\x58\xc1",             CR0_EM, 0, 0, 0, X86_EXC_UD},
	{"addps EM TS",  "\x0f\x58\xc1",             CR0_EM | CR0_TS, 0, 0, 0, X86_EXC_UD},
	{"addps TS",     "\x0f\x58\xc1",             CR0_TS, 0, 0, 0, X86_EXC_NM},
	{"addps !FX",    "\x0f\x58\xc1",             0, 0, CR4_OSFXSR, 0, X86_EXC_UD},
	{"addps !FX TS", "\x0f\x58\xc1",             CR0_TS, 0, CR4_OSFXSR, 0, X86_EXC_UD},
	{"ldmxcsr !FX",  "\x0f\xae\x16",             0, 0, CR4_OSFXSR, 0, X86_EXC_UD},
	{"vaddps EM",    "\xc5\xf0\x58\xc1",         CR0_EM, 0, 0, 0, 0},
	{"vaddps !FX",   "\xc5\xf0\x58\xc1",         0, 0, CR4_OSFXSR, 0, 0},
	{"vaddps TS",    "\xc5\xf0\x58\xc1",         CR0_TS, 0, 0, 0, X86_EXC_NM},
	{"vaddps !OSX",  "\xc5\xf0\x58\xc1",         0, 0, CR4_OSXSAVE, 0, X86_EXC_UD},
	{"vaddps !XCR0", "\xc5\xf0\x58\xc1",         0, 0, 0, XCR0_AVX | XCR0_AVX512, X86_EXC_UD},
	{"vaddps zmm",   "\x62\xf1\x74\x48\x58\xc1", CR0_EM, 0, 0, 0, 0},
	{"zmm !XCR0",    "\x62\xf1\x74\x48\x58\xc1", 0, 0, 0, XCR0_AVX512, X86_EXC_UD},
	{"kmov !XCR0",   "\xc5\xf8\x90\xc8",         0, 0, 0, XCR0_AVX512, X86_EXC_UD},
	{"kmov TS",      "\xc5\xf8\x90\xc8",         CR0_TS, 0, 0, 0, X86_EXC_NM},
	{"fxsave TS",    "\x0f\xae\x06",             CR0_TS, 0, 0, 0, X86_EXC_NM},
	{"fxsave EM",    "\x0f\xae\x06",             CR0_EM, 0, 0, 0, X86_EXC_NM},
	{"xsave TS",     "\x0f\xae\x26",             CR0_TS, 0, 0, 0, X86_EXC_NM},
	{"xsave EM",     "\x0f\xae\x26",             CR0_EM, 0, 0, 0, 0},
	{"xsave !OSX",   "\x0f\xae\x26",             CR0_TS, 0, CR4_OSXSAVE, 0, X86_EXC_UD},
	{"xgetbv !OSX",  "\x0f\x01\xd0",             0, 0, CR4_OSXSAVE, 0, X86_EXC_UD},
	{"xgetbv TS",    "\x0f\x01\xd0",             CR0_TS, 0, 0, 0, 0},
	{"xsetbv user",  "\x0f\x01\xd1",             0, 0, 0, 0, X86_EXC_GP},
	{"xsaves user",  "\x0f\xc7\x2e",             0, 0, 0, 0, X86_EXC_GP},
	// clang-format on
};

static bool available_as_told(struct guest *g, unsigned i)
{
	struct x86_state keep = g->base;
	unsigned len = sizeof(availability[i].code);

	while (len && !availability[i].code[len - 1])
		len--;
	setup_random(&in);
	in.gpr[X86_RCX] = 0;
	put32(in.data + 0x400, 0x1f80);
	setup_code(&in, availability[i].code, len);
	g->base.cr0 = (keep.cr0 | availability[i].cr0_set) & ~availability[i].cr0_clear;
	g->base.cr4 &= ~availability[i].cr4_clear;
	g->base.xcr0 &= ~availability[i].xcr0_clear;
	guest_run(g, &in, &soft);
	g->base = keep;
	if (!availability[i].vector)
		return soft.vector == X86_EXC_UD && soft.rip == CODE_AT + len;
	return soft.vector == availability[i].vector && soft.rip == CODE_AT;
}

TEST(control_registers_decide_what_may_run)
{
	struct guest g;
	unsigned bad = 0;

	need(CPU_FEAT_AVX512F);
	need(CPU_FEAT_XSAVES);
	guest_create(&g, "max", &no_ops);
	for (unsigned i = 0; i < ARRAY_SIZE(availability); i++)
		if (!available_as_told(&g, i)) {
			printf("# %s: exception %u at %#" PRIx64 "\n", availability[i].what,
			       soft.vector, soft.rip);
			bad++;
		}
	CHECK_EQ(0, bad);
	guest_destroy(&g);
}

/* --- FXSAVE, XSAVE ------------------------------------------------------------------------------
 */

// clang-format off
LIST(xsave_list,
	I("fxsave (%rsi)") I("fxsave64 (%rsi)") I("fxsave 8(%rsi)") I("xsave (%rsi)") I("xsave64 (%rsi)")
	I("xsaveopt (%rsi)") I("xsaveopt64 (%rsi)") I("xsavec (%rsi)") I("xsavec64 (%rsi)") I("xsave 32(%rsi)")
	I("xor %ecx, %ecx\nxgetbv") I("mov $1, %ecx\nxgetbv") I("mov $2, %ecx\nxgetbv")
	I("vzeroupper\nmov $1, %ecx\nxgetbv") I("fninit\nxsavec (%rsi)") I("vzeroall\nxsaveopt (%rsi)")
	I("fxsave64 (%rsi)\nfninit\nvzeroall\nfxrstor64 (%rsi)\nfxsave64 512(%rsi)")
	I("fxsave (%rsi)\nfninit\nfxrstor (%rsi)\nfxsave 512(%rsi)\nfnstenv (%rsi)")
	I("xsave64 (%rsi)\nvzeroall\nfninit\nmov %ebx, %eax\nxrstor64 (%rsi)")
	I("xsave (%rsi)\nvzeroall\nfninit\nmov %ebx, %eax\nxrstor (%rsi)\nfxsave (%rsi)")
	I("xsavec64 (%rsi)\nvzeroall\nfninit\nmov %ebx, %eax\nxrstor64 (%rsi)\nxsave64 2048(%rsi)")
	I("xrstor64 (%rsi)") I("xrstor (%rsi)") I("fxrstor (%rsi)") I("fxrstor64 (%rsi)"));
// clang-format on

/* Any components in use, any asked for; an image at RSI of which anything may be wrong. */
static void any_components(struct setup *s)
{
	static struct setup other;
	uint64_t bv = state_components();

	unmask_x87(s);
	put64(s->xsave + XS_BV_AT, bv & (random64() | XCR0_X87));
	s->gpr[X86_RAX] = random64() & 1 ? random64() : ~0ull;
	s->gpr[X86_RBX] = random64() & 1 ? random64() : ~0ull;
	s->gpr[X86_RDX] = 0;
	setup_random(&other);
	memcpy(s->data + 0x400, other.xsave, 2560);
	put64(s->data + 0x400 + XS_BV_AT, bv & random64());
	memset(s->data + 0x400 + XS_BV_AT + 8, 0, 56);
	if (random64() % 4 == 0)
		s->data[0x400 + XS_BV_AT + random64() % 64] = (uint8_t)random64();
	if (random64() % 4 == 0)
		put32(s->data + 0x400 + 24, (uint32_t)random64());
}

TEST(fxsave_and_xsave_agree_with_this_cpu)
{
	struct guest g;

	need(CPU_FEAT_XSAVEC);
	guest_create(&g, "max", &no_ops);
	CHECK_EQ(0, disagreements(&g, xsave_list, 100, any_components));
	guest_destroy(&g);
}

/* The image reaches past the end of the data pages, or does not. */
static void near_the_end(struct setup *s)
{
	uint64_t at = DATA_SIZE - 64 * (random64() % 48);

	any_components(s);
	s->gpr[X86_RSI] = DATA_AT + at;
	memset(s->data + 0x1000, 0, DATA_SIZE - 0x1000);
	if (at + 576 <= DATA_SIZE)
		put64(s->data + at + XS_BV_AT, random64() & state_components());
}

// clang-format off
LIST(image_list,
	I("fxsave (%rsi)") I("fxrstor (%rsi)") I("xsave (%rsi)") I("xsaveopt (%rsi)") I("xsavec (%rsi)") I("xrstor64 (%rsi)"));
// clang-format on

TEST(page_faults_of_images_agree_with_this_cpu)
{
	struct guest g;

	need(CPU_FEAT_XSAVEC);
	guest_create(&g, "max", &no_ops);
	if (!cpu_model_is_amd(&g.model))
		SKIP("the order of page faults is the maker's");
	CHECK_EQ(0, disagreements(&g, image_list, 200, near_the_end));
	guest_destroy(&g);
}

/* As a kernel runs: CPL 0, so that XSETBV and XSAVES are allowed. */
static void guest_supervisor(struct guest *g)
{
	struct x86_state *s = &g->base;

	for (int i = 0; i < X86_NR_SEG; i++)
		s->seg[i].attr &= ~(3u << 5);
	s->seg[X86_CS].selector = 0x10;
	s->seg[X86_SS].selector = 0x18;
}

TEST(xsaves_and_xrstors_keep_everything_compacted)
{
	static const uint8_t code[] = {
		0x48, 0x0f, 0xc7, 0x2e,       /* xsaves64 (%rsi) */
		0xc5, 0xfc, 0x77, 0xdb, 0xe3, /* vzeroall; fninit */
		0x48, 0x0f, 0xc7, 0x1e,       /* xrstors64 (%rsi) */
	};
	struct guest g;
	uint64_t xcomp;

	need(CPU_FEAT_XSAVES);
	guest_create(&g, "max", &no_ops);
	guest_supervisor(&g);
	setup_random(&in);
	in.gpr[X86_RAX] = in.gpr[X86_RDX] = ~0ull;
	memset(in.data + 0x400 + XS_BV_AT, 0, 64); /* XSAVES writes 16 bytes of the header */
	setup_code(&in, code, sizeof(code));
	guest_run(&g, &in, &soft);
	CHECK_EQ(CODE_AT + sizeof(code), soft.rip);
	memcpy(&xcomp, soft.data + 0x400 + 520, 8);
	CHECK_EQ(g.base.xcr0 | BIT(63), xcomp);
	memcpy(host.xsave, in.xsave, sizeof(host.xsave));
	outcome_normalize(&host);
	CHECK_EQ(X86_XSAVE_MAX, differ_at(host.xsave, soft.xsave, X86_XSAVE_MAX));
	guest_destroy(&g);
}

TEST(xsetbv_takes_only_sensible_xcr0)
{
	static const uint8_t xsetbv[] = {0x0f, 0x01, 0xd1};
	static const struct {
		uint64_t v;
		bool good;
	} values[] = {{1, true},     {3, true},     {7, true},           {0xe7, true},
		      {0, false},    {2, false},    {5, false},          {0x27, false},
		      {0xe3, false}, {0xf7, false}, {BIT(63) | 7, false}};
	struct guest g;

	need(CPU_FEAT_AVX512F);
	guest_create(&g, "max", &no_ops);
	guest_supervisor(&g);
	for (unsigned i = 0; i < ARRAY_SIZE(values); i++) {
		setup_random(&in);
		in.gpr[X86_RCX] = 0;
		in.gpr[X86_RAX] = (uint32_t)values[i].v;
		in.gpr[X86_RDX] = values[i].v >> 32;
		setup_code(&in, xsetbv, sizeof(xsetbv));
		guest_run(&g, &in, &soft);
		CHECK_EQ(values[i].good ? X86_EXC_UD : X86_EXC_GP, soft.vector);
	}
	guest_destroy(&g);
}

TEST(without_xsave_only_legacy_state_exists)
{
	static const uint8_t vaddps[] = {0xc5, 0xf0, 0x58, 0xc1};
	struct guest g;

	guest_create(&g, "base,-xsave", &no_ops);
	setup_random(&in);
	put64(in.xsave + XS_BV_AT, XCR0_X87 | XCR0_SSE);
	setup_code(&in, vaddps, sizeof(vaddps));
	guest_run(&g, &in, &soft);
	CHECK_EQ(X86_EXC_UD, soft.vector);
	CHECK_EQ(CODE_AT, soft.rip);
	guest_destroy(&g);
}

TEST(state_with_unknown_components_or_bad_mxcsr_is_refused)
{
	struct guest g;
	struct error err;

	guest_create(&g, "max", &no_ops);
	put64(g.base.xsave + XS_BV_AT, BIT(18));
	CHECK_EQ(-EINVAL, engine_soft.cpu_set(g.cpu, &g.base, &err));
	put64(g.base.xsave + XS_BV_AT, XCR0_X87 | XCR0_SSE);
	put32(g.base.xsave + 24, 0x80000000);
	CHECK_EQ(-EINVAL, engine_soft.cpu_set(g.cpu, &g.base, &err));
	guest_destroy(&g);
}

/* --- gathers, scatters --------------------------------------------------------------------------
 */

// clang-format off
LIST(gather_d_list,
	I("vpgatherdd %ymm1, (%rsi,%ymm2), %ymm3") I("vpgatherdq %ymm1, (%rsi,%xmm2,2), %ymm3") I("vgatherdps %xmm1, (%rsi,%xmm2,4), %xmm13"));
LIST(gather_q_list,
	I("vpgatherqd %xmm1, (%rsi,%ymm2), %xmm3") I("vpgatherqq %xmm1, 8(%rsi,%xmm2), %xmm3") I("vgatherqpd %ymm1, (%rsi,%ymm2), %ymm9"));
LIST(gather512_d_list,
	I("vpgatherdd (%rsi,%zmm2), %zmm3{%k1}") I("vgatherdpd (%rsi,%ymm2,2), %zmm20{%k2}") I("vpscatterdd %zmm3, (%rsi,%zmm2){%k1}") I("vscatterdpd %zmm20, (%rsi,%ymm2){%k2}"));
LIST(gather512_q_list,
	I("vpgatherqd (%rsi,%zmm2), %ymm3{%k3}") I("vpgatherqq (%rsi,%xmm2), %xmm3{%k4}") I("vpscatterqd %ymm3, (%rsi,%zmm2){%k3}") I("vpscatterqq %xmm3, (%rsi,%xmm2){%k4}"));
// clang-format on

/* Register 2 holds indices of 32 or 64 bits, most of them good, some off the end of the data. */
static void some_indices(struct setup *s, bool wide)
{
	uint32_t ymm = 0, zmm = 0, size;
	bool bad = random64() & 1;
	uint8_t index[64];

	for (int i = 0; i < 64; i += wide ? 8 : 4) {
		uint32_t v = random64() % (bad && random64() % 8 == 0 ? 0x3000 : 0x700);

		put32(index + i, v & ~3u);
		if (wide)
			put32(index + i + 4, 0);
	}
	cpu_xsave_component(2, &ymm, &size);
	cpu_xsave_component(6, &zmm, &size);
	memcpy(s->xsave + 160 + 32, index, 16);
	memcpy(s->xsave + ymm + 32, index + 16, 16);
	memcpy(s->xsave + zmm + 64, index + 32, 32);
}

static void indices_of_4_bytes(struct setup *s)
{
	some_indices(s, false);
}

static void indices_of_8_bytes(struct setup *s)
{
	some_indices(s, true);
}

TEST(gathers_agree_with_this_cpu)
{
	struct guest g;

	need(CPU_FEAT_AVX2);
	guest_create(&g, "max", &no_ops);
	CHECK_EQ(0, disagreements(&g, gather_d_list, 200, indices_of_4_bytes));
	CHECK_EQ(0, disagreements(&g, gather_q_list, 200, indices_of_8_bytes));
	guest_destroy(&g);
}

TEST(avx512_gathers_and_scatters_agree_with_this_cpu)
{
	struct guest g;

	need(CPU_FEAT_AVX512VL);
	guest_create(&g, "max", &no_ops);
	CHECK_EQ(0, disagreements(&g, gather512_d_list, 200, indices_of_4_bytes));
	CHECK_EQ(0, disagreements(&g, gather512_q_list, 200, indices_of_8_bytes));
	guest_destroy(&g);
}

/* --- 32-bit code --------------------------------------------------------------------------------
 */

static void guest_32bit(struct guest *g)
{
	g->base.seg[X86_CS].attr &= ~X86_SEG_L;
	g->base.seg[X86_CS].attr |= X86_SEG_DB;
}

/* Opcodes where VEX.W or EVEX.W chooses between general registers of 32 and 64 bits. */
static bool w_matters(uint8_t opcode)
{
	switch (opcode) {
	case 0x16:
	case 0x22:
	case 0x2a:
	case 0x2c:
	case 0x2d:
	case 0x6e:
	case 0x78 ... 0x7e:
	case 0x92:
	case 0x93:
	case 0xf0: /* BMI1, BMI2 */
	case 0xf2 ... 0xf7:
		return true;
	default:
		return false;
	}
}

/* Gathers and scatters: addresses are cut to 32 bits there. */
static bool is_vsib(uint8_t map, uint8_t opcode)
{
	return map == 2 && ((opcode & 0xfc) == 0x90 || (opcode & 0xfc) == 0xa0);
}

/* The same bytes mean the same in 64-bit and in 32-bit code. */
static bool same_in_32bit(const struct setup *s)
{
	const uint8_t *c = s->code;

	switch (c[0]) {
	case 0xc4:
		if (((c[1] & 31) == 3 && c[3] >= 0x4a && c[3] <= 0x4c) || !(c[2] & 0x40))
			return false;
		if (is_vsib(c[1] & 31, c[3]))
			return false;
		return (c[1] & 0xe0) == 0xe0 && !(c[2] & 0x80 && w_matters(c[3]));
	case 0xc5:
		return (c[1] & 0xc0) == 0xc0;
	case 0x62:
		if (is_vsib(c[1] & 7, c[4]))
			return false;
		return (c[1] & 0xf0) == 0xf0 && c[2] & 0x40 && c[3] & 8 &&
		       !(c[2] & 0x80 && w_matters(c[4]));
	default:
		c += c[0] == 0x66 || c[0] == 0xf2 || c[0] == 0xf3;
		return (c[0] & 0xf0) != 0x40;
	}
}

/* Registers 8 and up cannot be named; general registers have 32 bits. */
static void setup_32bit(struct setup *s)
{
	for (int i = 0; i < X86_NR_GPR; i++)
		s->gpr[i] = i < 8 ? (uint32_t)s->gpr[i] : 0;
}

static unsigned random_disagreements_32(struct guest *g, enum random_kind kind, unsigned times)
{
	unsigned bad = 0;

	while (times && bad < 10) {
		setup_random(&in);
		setup_32bit(&in);
		put32(in.xsave + 24, random64() & 1 ? 0x1f80 : 0);
		random_insn(&in, kind, random64() >> 3, random64() >> 5);
		/* What follows an instruction without immediate may be a REX prefix there. */
		if (left_out(&in) || !same_in_32bit(&in) || (in.code[in.len - 1] & 0xf0) == 0x40)
			continue;
		times--;
		bad += !agree(g);
	}
	return bad;
}

static void check_random_32(enum random_kind kind)
{
	struct guest g;

	guest_create(&g, "max", &no_ops);
	guest_32bit(&g);
	CHECK_EQ(0, random_disagreements_32(&g, kind, 2000));
	guest_destroy(&g);
}

TEST(random_x87_in_32bit_code_agrees_with_this_cpu)
{
	check_random_32(RANDOM_X87);
}

TEST(random_sse_in_32bit_code_agrees_with_this_cpu)
{
	check_random_32(RANDOM_LEGACY);
}

TEST(random_vex_in_32bit_code_agrees_with_this_cpu)
{
	need(CPU_FEAT_AVX);
	check_random_32(RANDOM_VEX);
}

TEST(random_evex_in_32bit_code_agrees_with_this_cpu)
{
	need(CPU_FEAT_AVX512F);
	check_random_32(RANDOM_EVEX);
}

/* vmovd %eax, %xmm1 with W set is VMOVQ in 64-bit code only. */
TEST(w_is_ignored_for_general_registers_in_32bit_code)
{
	static const uint8_t vmov[] = {0xc4, 0xe1, 0xf9, 0x6e, 0xc8};
	struct guest g;
	uint64_t low;

	need(CPU_FEAT_AVX);
	guest_create(&g, "max", &no_ops);
	guest_32bit(&g);
	setup_random(&in);
	setup_32bit(&in);
	in.gpr[X86_RAX] = 0x89abcdef;
	setup_code(&in, vmov, sizeof(vmov));
	guest_run(&g, &in, &soft);
	CHECK_EQ(CODE_AT + sizeof(vmov), soft.rip);
	memcpy(&low, soft.xsave + 160 + 16, 8);
	CHECK_EQ(0x89abcdef, low);
	guest_destroy(&g);
}

enum { REAL_BASE = 0x10000 };

static void guest_real(struct guest *g)
{
	x86_state_reset(&g->base);
	g->base.cr4 = CR4_OSFXSR | CR4_OSXSAVE;
	g->base.xcr0 = g->model.xcr0_supported;
	for (int i = 0; i < X86_NR_SEG; i++) {
		g->base.seg[i].selector = REAL_BASE >> 4;
		g->base.seg[i].base = REAL_BASE;
		g->base.seg[i].limit = 0xffff;
	}
	g->base.rip = 0;
}

/* Real mode: addresses in an environment are linear, and VEX is not known. */
TEST(real_mode_has_linear_environments_and_no_vex)
{
	static const uint8_t code[] = {
		0xdb, 0xe3,             /* fninit */
		0xd9, 0xe8,             /* fld1 */
		0xdd, 0x1c,             /* fstp qword [si] */
		0xd9, 0x74, 0x20,       /* fnstenv [si + 32], 16-bit */
		0x66, 0xd9, 0x74, 0x40, /* fnstenv [si + 64], 32-bit */
		0xc5, 0xf0, 0x58, 0xc1, /* vaddps %xmm1, %xmm0, %xmm1 */
	};
	enum { FSTP_AT = REAL_BASE + 4, SI = 0x400 };
	uint16_t env16[7];
	uint32_t env32[7];
	struct engine_exit_info info;
	struct error err;
	struct guest g;

	guest_create(&g, "max", &no_ops);
	guest_real(&g);
	g.base.gpr[X86_RSI] = SI;
	CHECK_EQ(0, mem_write(g.mem, REAL_BASE, code, sizeof(code)));
	CHECK_EQ(0, engine_soft.cpu_set(g.cpu, &g.base, &err));
	CHECK_EQ(ENGINE_EXIT_DEBUG, engine_soft.cpu_run(g.cpu, &info));
	CHECK_EQ(X86_EXC_UD, info.vector);
	CHECK_EQ(0, mem_read(g.mem, REAL_BASE + SI + 32, env16, sizeof(env16)));
	CHECK_EQ(0, mem_read(g.mem, REAL_BASE + SI + 64, env32, sizeof(env32)));
	CHECK_EQ(FSTP_AT & 0xffff, env16[3]);
	CHECK_EQ(FSTP_AT >> 16 << 12 | 0x51c, env16[4]); /* DD 1C */
	CHECK_EQ((REAL_BASE + SI) & 0xffff, env16[5]);
	CHECK_EQ((REAL_BASE + SI) >> 16 << 12, env16[6]);
	CHECK_EQ(FSTP_AT & 0xffff, env32[3]);
	CHECK_EQ(FSTP_AT >> 16 << 12 | 0x51c, env32[4]);
	CHECK_EQ((REAL_BASE + SI) & 0xffff, env32[5]);
	CHECK_EQ((REAL_BASE + SI) >> 16 << 12, env32[6]);
	guest_destroy(&g);
}

/* --- memory that needs care ---------------------------------------------------------------------
 */

enum { MMIO_GPA = 0xe0000000 };
static uint8_t mmio[64];

/* The machine's code may use any register: so it does. */
static void clobber(void)
{
	__asm__ volatile("pcmpeqd %%xmm0, %%xmm0\n\tmovdqa %%xmm0, %%xmm1\n\tmovdqa %%xmm0, %%xmm2"
			 :
			 :
			 : "xmm0", "xmm1", "xmm2");
}

static uint64_t mmio_read(void *opaque, gpa_t gpa, unsigned size)
{
	uint64_t v = 0;

	memcpy(&v, mmio + (gpa - MMIO_GPA) % sizeof(mmio), size);
	clobber();
	return v;
}

static void mmio_write(void *opaque, gpa_t gpa, uint64_t v, unsigned size)
{
	memcpy(mmio + (gpa - MMIO_GPA) % sizeof(mmio), &v, size);
	clobber();
}

static const struct engine_cpu_ops mmio_ops = {.mmio_read = mmio_read, .mmio_write = mmio_write};

TEST(vectors_reach_mmio_and_survive_the_machine)
{
	static const uint8_t code[] = {
		0x0f, 0x10, 0x0e,       /* movups (%rsi), %xmm1 */
		0x0f, 0x58, 0xc1,       /* addps %xmm1, %xmm0 */
		0x0f, 0x11, 0x56, 0x10, /* movups %xmm2, 16(%rsi) */
		0xdd, 0x46, 0x20,       /* fldl 32(%rsi) */
		0xdd, 0x5e, 0x28,       /* fstpl 40(%rsi) */
	};
	struct guest g;

	guest_create(&g, "max", &mmio_ops);
	guest_put64(&g, 0x4000 + (DATA_AT >> 12 & 511) * 8, MMIO_GPA | PTE_P | PTE_W | PTE_U);
	setup_random(&in);
	in.gpr[X86_RSI] = DATA_AT;
	memcpy(mmio, "0123456789abcdef", 16);
	put64(mmio + 32, 0x4000000000000000);
	setup_code(&in, code, sizeof(code));
	put16(in.xsave + 2, 0);
	in.xsave[4] = 0;
	guest_run(&g, &in, &soft);
	CHECK_EQ(CODE_AT + sizeof(code), soft.rip);
	CHECK_EQ(16, differ_at(soft.xsave + 160 + 16, "0123456789abcdef", 16));
	CHECK_EQ(16, differ_at(soft.xsave + 160 + 32, in.xsave + 160 + 32, 16));
	CHECK_EQ(16, differ_at(mmio + 16, in.xsave + 160 + 32, 16));
	CHECK_EQ(8, differ_at(mmio + 40, mmio + 32, 8));
	guest_destroy(&g);
}

/* Alignment checking: what this kind of CPU was seen to do. */
TEST(alignment_check_looks_at_vector_operands)
{
	static const struct {
		const char *what;
		uint8_t code[8], len, offset, vector;
	} cases[] = {
		{"movups", "\x0f\x10\x06", 3, 8, X86_EXC_AC},
		{"movups", "\x0f\x10\x06", 3, 16, X86_EXC_UD},
		{"vmovups ymm", "\xc5\xfc\x10\x06", 4, 16, X86_EXC_UD},
		{"vmovups ymm", "\xc5\xfc\x10\x06", 4, 8, X86_EXC_AC},
		{"movsd", "\xf2\x0f\x10\x06", 4, 4, X86_EXC_AC},
		{"movss", "\xf3\x0f\x10\x06", 4, 4, X86_EXC_UD},
		{"movaps", "\x0f\x28\x06", 3, 8, X86_EXC_GP},
		{"fldt", "\xdb\x2e", 2, 8, X86_EXC_UD},
		{"fldt", "\xdb\x2e", 2, 4, X86_EXC_AC},
		{"fnstenv", "\xd9\x36", 2, 4, X86_EXC_UD},
		{"fnstenv", "\xd9\x36", 2, 2, X86_EXC_AC},
		{"data16 fnstenv", "\x66\xd9\x36", 3, 2, X86_EXC_UD},
		{"vmaskmovps", "\xc4\xe2\x7d\x2c\x06", 5, 2, X86_EXC_UD},
		{"movq store", "\x66\x0f\xd6\x06", 4, 4, X86_EXC_AC},
	};
	struct guest g;

	need(CPU_FEAT_AVX);
	guest_create(&g, "max", &no_ops);
	g.base.cr0 |= CR0_AM;
	g.base.rflags |= RFLAGS_AC;
	for (unsigned i = 0; i < ARRAY_SIZE(cases); i++) {
		setup_random(&in);
		in.gpr[X86_RSI] = DATA_AT + cases[i].offset;
		setup_code(&in, cases[i].code, cases[i].len);
		guest_run(&g, &in, &soft);
		if (soft.vector != cases[i].vector)
			printf("# %s at +%u: exception %u\n", cases[i].what, cases[i].offset,
			       soft.vector);
		CHECK_EQ(cases[i].vector, soft.vector);
	}
	guest_destroy(&g);
}

/* --- the thunk cache ----------------------------------------------------------------------------
 */

/* vpaddd zmmA, zmmB, zmmC {kD}: more different instructions than there can be thunks at once. */
static void put_vpaddd(struct setup *s, unsigned n)
{
	unsigned a = n & 31, b = n >> 5 & 31, c = n >> 10 & 31, k = n >> 15 & 7;
	const uint8_t code[6] = {
		0x62,
		(uint8_t)(0x01 | (a & 8 ? 0 : 0x80) | (c & 16 ? 0 : 0x40) | (c & 8 ? 0 : 0x20) |
			  (a & 16 ? 0 : 0x10)),
		(uint8_t)(0x05 | (~b & 15) << 3),
		(uint8_t)(0x40 | (b & 16 ? 0 : 8) | k),
		0xfe,
		(uint8_t)(0xc0 | (a & 7) << 3 | (c & 7)),
	};

	setup_code(s, code, sizeof(code));
}

TEST(more_instructions_than_thunks_fit)
{
	enum { PER_RUN = 600, ALL = 80000 };
	struct guest g;

	need(CPU_FEAT_AVX512F);
	guest_create(&g, "max", &no_ops);
	for (unsigned n = 0; n < ALL; n += PER_RUN) {
		setup_random(&in);
		for (unsigned i = 0; i < PER_RUN; i++)
			put_vpaddd(&in, n + i);
		CHECK(agree(&g));
	}
	guest_destroy(&g);
}
