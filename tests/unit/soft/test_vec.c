/* test_vec.c - x87, MMX, SSE, AVX and AVX-512 on the soft engine against this CPU. */
#include "vec_random.h"

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

static bool agree(struct guest *g)
{
	native_run(&in, &host);
	guest_run(g, &in, &soft);
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

/* VEX instructions on general registers only, which have tests of their own, and those whose
 * result says more about the machine than about the instruction are left out. */
static bool left_out(const struct setup *s)
{
	const uint8_t *c = s->code;

	if (c[0] == 0xc4 && (c[1] & 31) == 1 && c[3] == 0xae)
		return true; /* VLDMXCSR and VSTMXCSR have samples */
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
