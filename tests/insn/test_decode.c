/* What the decoder promises beyond what every x86 decoder agrees on: lengths, short input,
 * features, vendors, LOCK, binding, text. */
#include "engine/cpu_model.h"
#include "engine/soft/cpu.h"
#include "engine/soft/insn_exec.gen.h"
#include "engine/soft/insn_rows.h"
#include "test.h"

static struct cpu_model model_with_everything(void)
{
	struct cpu_model m = {.vendor = "AuthenticAMD"};

	memset(m.features, 0xff, sizeof(m.features));
	return m;
}

static struct cpu_model model_without(enum cpu_feature f)
{
	struct cpu_model m = model_with_everything();

	m.features[f / 64] &= ~(1ull << f % 64);
	return m;
}

#define BYTES(...) ((const uint8_t[32]){__VA_ARGS__})

static struct insn decode_for(const struct cpu_model *m, enum insn_mode mode, const uint8_t *bytes)
{
	struct insn in;

	CHECK_EQ(INSN_OK, insn_decode(&in, bytes, 32, mode, m));
	return in;
}

static struct insn decode(enum insn_mode mode, const uint8_t *bytes)
{
	struct cpu_model m = model_with_everything();

	return decode_for(&m, mode, bytes);
}

static struct insn decode64(const uint8_t *bytes)
{
	return decode(INSN_MODE_64, bytes);
}

static const char *text_at(enum insn_mode mode, uint64_t rip, const uint8_t *bytes)
{
	static char buf[128];
	struct insn in = decode(mode, bytes);

	insn_print(&in, rip, buf, sizeof(buf));
	return buf;
}

static const char *text(const uint8_t *bytes)
{
	return text_at(INSN_MODE_64, 0x1000, bytes);
}

/* --- length ------------------------------------------------------------------------------------
 */

TEST(fifteen_bytes_are_an_instruction)
{
	struct insn in = decode64(BYTES(0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66,
					0x66, 0x66, 0x66, 0x66, 0x90));

	CHECK_EQ(15, in.len);
	CHECK(in.exec == exec_nop);
}

TEST(sixteen_bytes_are_too_long)
{
	struct cpu_model m = model_with_everything();
	uint8_t bytes[32];
	struct insn in;

	memset(bytes, 0x66, sizeof(bytes));
	CHECK_EQ(INSN_TOO_LONG, insn_decode(&in, bytes, 32, INSN_MODE_64, &m));
	CHECK_EQ(INSN_TOO_LONG, insn_decode(&in, bytes, 15, INSN_MODE_64, &m));
	bytes[10] = 0x81; /* add dword ptr [rax], imm32: 10 + 1 + 1 + 4 */
	bytes[11] = 0x00;
	memset(bytes, 0x2e, 10); /* not 66h: the immediate has four bytes */
	CHECK_EQ(INSN_TOO_LONG, insn_decode(&in, bytes, 32, INSN_MODE_64, &m));
	CHECK_EQ(INSN_TOO_LONG, insn_decode(&in, bytes, 15, INSN_MODE_64, &m));
	CHECK_EQ(INSN_SHORT, insn_decode(&in, bytes, 14, INSN_MODE_64, &m));
}

TEST(a_cut_instruction_asks_for_more_bytes)
{
	static const uint8_t bytes[] = {0x48, 0x81, 0x84, 0x88, 1, 2, 3, 4, 5, 6, 7, 8};
	struct cpu_model m = model_with_everything();
	struct insn in;

	CHECK_EQ(INSN_SHORT, insn_decode(&in, bytes, 0, INSN_MODE_64, &m));
	CHECK_EQ(INSN_SHORT, insn_decode(&in, bytes, 1, INSN_MODE_64, &m));
	CHECK_EQ(INSN_SHORT, insn_decode(&in, bytes, 4, INSN_MODE_64, &m));
	CHECK_EQ(INSN_SHORT, insn_decode(&in, bytes, 11, INSN_MODE_64, &m));
	CHECK_EQ(INSN_OK, insn_decode(&in, bytes, 12, INSN_MODE_64, &m));
	CHECK_EQ(12, in.len);
	CHECK_EQ(0x08070605, in.imm);
}

TEST(prefixes_alone_ask_for_more_bytes)
{
	struct cpu_model m = model_with_everything();
	struct insn in;

	CHECK_EQ(INSN_SHORT, insn_decode(&in, BYTES(0x66, 0xf3, 0x48), 3, INSN_MODE_64, &m));
}

TEST(an_invalid_opcode_is_as_long_as_its_operand)
{
	struct insn in = decode64(BYTES(0x0f, 0xc7, 0x84, 0x88, 1, 2, 3, 4)); /* 0F C7 /0 */

	CHECK(in.exec == exec_ud);
	CHECK_EQ(8, in.len);
}

/* --- prefixes ----------------------------------------------------------------------------------
 */

TEST(rex_counts_only_directly_before_the_opcode)
{
	struct insn in = decode64(BYTES(0x48, 0x66, 0x89, 0xc8));

	CHECK_EQ(2, in.opsize);
	CHECK_EQ(0, in.flags & (INSN_REX | INSN_REXW));
}

TEST(the_last_of_repeated_segment_prefixes_counts)
{
	struct insn in = decode(INSN_MODE_32, BYTES(0x64, 0x65, 0x26, 0x8b, 0x00));

	CHECK_EQ(X86_ES, in.seg);
	CHECK_EQ(CPU_OFF(seg[X86_ES].base), in.segbase);
}

TEST(es_cs_ss_ds_prefixes_mean_nothing_in_64_bit_mode)
{
	struct insn in = decode64(BYTES(0x64, 0x2e, 0x8b, 0x00));

	CHECK_EQ(X86_FS, in.seg);
	in = decode64(BYTES(0x36, 0x8b, 0x00));
	CHECK_EQ(X86_DS, in.seg);
	CHECK_EQ(CPU_OFF(zero), in.segbase);
}

TEST(stack_addresses_are_marked_for_their_fault)
{
	CHECK(decode64(BYTES(0x8b, 0x45, 0x08)).flags & INSN_STACK);          /* [rbp+8] */
	CHECK(decode64(BYTES(0x8b, 0x04, 0x24)).flags & INSN_STACK);          /* [rsp] */
	CHECK(!(decode64(BYTES(0x41, 0x8b, 0x45, 0x08)).flags & INSN_STACK)); /* [r13+8] */
	CHECK(!(decode64(BYTES(0x65, 0x8b, 0x45, 0x08)).flags & INSN_STACK)); /* gs:[rbp+8] */
}

TEST(lock_needs_a_row_that_allows_it_and_a_memory_operand)
{
	CHECK(decode64(BYTES(0xf0, 0x01, 0x08)).exec == exec_add_EG_32_l);
	CHECK(decode64(BYTES(0xf0, 0x01, 0xc8)).exec == exec_ud); /* register */
	CHECK(decode64(BYTES(0xf0, 0x03, 0x08)).exec == exec_ud); /* add r, m */
	CHECK(decode64(BYTES(0xf0, 0x39, 0x08)).exec == exec_ud); /* cmp */
	CHECK(decode64(BYTES(0xf0, 0x0f, 0xc7, 0x08)).exec == exec_cmpxchg8b_l);
	CHECK(decode64(BYTES(0xf0, 0x90)).exec == exec_ud);
}

TEST(vex_after_rex_66_f2_f3_or_lock_is_invalid)
{
	CHECK(decode64(BYTES(0xc5, 0xf8, 0x58, 0xc0)).exec != exec_ud);
	CHECK(decode64(BYTES(0x66, 0xc5, 0xf8, 0x58, 0xc0)).exec == exec_ud);
	CHECK(decode64(BYTES(0xf3, 0xc5, 0xf8, 0x58, 0xc0)).exec == exec_ud);
	CHECK(decode64(BYTES(0xf2, 0xc5, 0xf8, 0x58, 0xc0)).exec == exec_ud);
	CHECK(decode64(BYTES(0xf0, 0xc5, 0xf8, 0x58, 0x00)).exec == exec_ud);
	CHECK(decode64(BYTES(0x40, 0xc5, 0xf8, 0x58, 0xc0)).exec == exec_ud);
	CHECK(decode64(BYTES(0x67, 0x64, 0xc5, 0xf8, 0x58, 0x00)).exec != exec_ud);
}

/* --- operand and address sizes -----------------------------------------------------------------
 */

TEST(operand_size_chooses_the_handler)
{
	CHECK(decode64(BYTES(0x01, 0xc8)).exec == exec_add_EG_32_r);
	CHECK(decode64(BYTES(0x66, 0x01, 0xc8)).exec == exec_add_EG_16_r);
	CHECK(decode64(BYTES(0x48, 0x01, 0x08)).exec == exec_add_EG_64_m);
	CHECK(decode64(BYTES(0x66, 0x48, 0x01, 0x08)).exec == exec_add_EG_64_m);
	CHECK(decode64(BYTES(0x00, 0x08)).exec == exec_add_EG_8_m);
	CHECK(decode(INSN_MODE_16, BYTES(0x01, 0xc8)).exec == exec_add_EG_16_r);
	CHECK(decode(INSN_MODE_16, BYTES(0x66, 0x01, 0xc8)).exec == exec_add_EG_32_r);
}

TEST(pushes_are_64_bits_wide_in_64_bit_mode)
{
	CHECK(decode64(BYTES(0x50)).exec == exec_push_R_64);
	CHECK(decode64(BYTES(0x66, 0x50)).exec == exec_push_R_16);
	CHECK(decode(INSN_MODE_32, BYTES(0x50)).exec == exec_push_R_32);
}

TEST(operand_size_prefix_on_near_branches_is_a_matter_of_vendor)
{
	const uint8_t *call = BYTES(0x66, 0xe8, 1, 2, 3, 4);
	struct cpu_model amd = model_with_everything(), intel = amd;
	struct insn in;

	strcpy(intel.vendor, "GenuineIntel");
	in = decode_for(&amd, INSN_MODE_64, call);
	CHECK_EQ(4, in.len);
	CHECK(in.exec == exec_call_J_16);
	in = decode_for(&intel, INSN_MODE_64, call);
	CHECK_EQ(6, in.len);
	CHECK(in.exec == exec_call_J_64);
}

TEST(byte_registers_4_to_7_are_high_bytes_without_rex)
{
	CHECK_EQ(CPU_GPR_OFF(X86_RAX) + 1, decode64(BYTES(0x88, 0xe1)).reg); /* mov cl, ah */
	CHECK_EQ(CPU_GPR_OFF(X86_RSP), decode64(BYTES(0x40, 0x88, 0xe1)).reg);
	CHECK_EQ(CPU_GPR_OFF(X86_RBX) + 1, decode64(BYTES(0xb7, 1)).reg); /* mov bh, 1 */
}

TEST(rip_relative_counts_from_the_next_instruction)
{
	struct insn in = decode64(BYTES(0x8b, 0x05, 0xfc, 0xff, 0xff, 0xff));

	CHECK_EQ(CPU_OFF(rip), in.base);
	CHECK_EQ((uint32_t)-4, (uint32_t)in.disp);
	CHECK(in.flags & INSN_FLAT);
	in = decode64(BYTES(0x67, 0x8b, 0x05, 0, 0, 0, 0));
	CHECK_EQ(CPU_OFF(rip), in.base);
	CHECK_EQ(4, in.adsize);
	CHECK(!(in.flags & INSN_FLAT));
	CHECK_EQ(CPU_OFF(zero), decode(INSN_MODE_32, BYTES(0x8b, 0x05, 0, 0, 0, 0)).base);
}

TEST(evex_disp8_is_scaled_by_the_operand)
{
	/* vaddps zmm0, zmm0, [rax+disp8]; the same with {1to16} */
	CHECK_EQ(128, decode64(BYTES(0x62, 0xf1, 0x7c, 0x48, 0x58, 0x40, 2)).disp);
	CHECK_EQ(8, decode64(BYTES(0x62, 0xf1, 0x7c, 0x58, 0x58, 0x40, 2)).disp);
	CHECK_EQ(4, decode64(BYTES(0x62, 0xf1, 0x7c, 0x58, 0x58, 0x40, 2)).msize);
}

/* --- features ----------------------------------------------------------------------------------
 */

TEST(an_instruction_of_a_missing_feature_is_invalid)
{
	const uint8_t *popcnt = BYTES(0xf3, 0x0f, 0xb8, 0xc1);
	struct cpu_model m = model_without(CPU_FEAT_POPCNT);

	CHECK(decode64(popcnt).exec == exec_popcnt_GE_32_r);
	CHECK(decode_for(&m, INSN_MODE_64, popcnt).exec == exec_ud);
}

TEST(tzcnt_and_lzcnt_are_bsf_and_bsr_where_they_do_not_exist)
{
	struct cpu_model m = model_without(CPU_FEAT_BMI1);

	CHECK(decode64(BYTES(0xf3, 0x0f, 0xbc, 0xc1)).exec == exec_tzcnt_GE_32_r);
	CHECK(decode_for(&m, INSN_MODE_64, BYTES(0xf3, 0x0f, 0xbc, 0xc1)).exec == exec_bsf_GE_32_r);
	m = model_without(CPU_FEAT_ABM);
	CHECK(decode_for(&m, INSN_MODE_64, BYTES(0xf3, 0x0f, 0xbd, 0xc1)).exec == exec_bsr_GE_32_r);
}

TEST(short_evex_vectors_need_avx512vl)
{
	struct cpu_model m = model_without(CPU_FEAT_AVX512VL);

	CHECK(decode_for(&m, INSN_MODE_64, BYTES(0x62, 0xf1, 0x7c, 0x28, 0x58, 0xc0)).exec ==
	      exec_ud);
	CHECK(decode_for(&m, INSN_MODE_64, BYTES(0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc0)).exec !=
	      exec_ud);
	CHECK(decode_for(&m, INSN_MODE_64, BYTES(0x62, 0xf1, 0x7e, 0x08, 0x58, 0xc0)).exec !=
	      exec_ud); /* vaddss */
}

TEST(every_vex_instruction_needs_avx)
{
	struct cpu_model m = model_without(CPU_FEAT_AVX);

	CHECK(decode_for(&m, INSN_MODE_64, BYTES(0xc5, 0xf8, 0x58, 0xc0)).exec == exec_ud);
	CHECK(decode_for(&m, INSN_MODE_64, BYTES(0xc4, 0xe2, 0x78, 0xf2, 0xc1)).exec ==
	      exec_andn_GBE_32_r); /* but BMI1 does not */
}

TEST(endbr_is_a_nop)
{
	CHECK(decode64(BYTES(0xf3, 0x0f, 0x1e, 0xfa)).exec == exec_nop);
}

/* --- blocks ------------------------------------------------------------------------------------
 */

TEST(what_changes_the_flow_or_the_mode_ends_a_block)
{
	CHECK(decode64(BYTES(0x74, 0)).flags & INSN_END);          /* jz */
	CHECK(decode64(BYTES(0x0f, 0x22, 0xc0)).flags & INSN_END); /* mov cr0, rax */
	CHECK(decode64(BYTES(0xfb)).flags & INSN_END);             /* sti */
	CHECK(decode64(BYTES(0x8e, 0xd0)).flags & INSN_END);       /* mov ss, eax */
	CHECK(decode64(BYTES(0x0f, 0x0b)).flags & INSN_END);       /* ud2 */
	CHECK(decode64(BYTES(0x06)).flags & INSN_END);             /* invalid */
	CHECK(!(decode64(BYTES(0x01, 0xc8)).flags & INSN_END));
	CHECK(!(decode64(BYTES(0xf3, 0xa4)).flags & INSN_END)); /* rep movsb */
}

/* --- text --------------------------------------------------------------------------------------
 */

TEST(text_of_integer_instructions)
{
	CHECK_STR("lock add dword ptr [rax+rcx*4+0x10], edx",
		  text(BYTES(0xf0, 0x01, 0x54, 0x88, 0x10)));
	CHECK_STR("mov rax, qword ptr [rip-0x4] # 0x1003",
		  text(BYTES(0x48, 0x8b, 0x05, 0xfc, 0xff, 0xff, 0xff)));
	CHECK_STR("rep movsq qword ptr es:[rdi], qword ptr [rsi]", text(BYTES(0xf3, 0x48, 0xa5)));
	CHECK_STR("jz 0x1000", text(BYTES(0x74, 0xfe)));
	CHECK_STR("mov ah, 0x7f", text(BYTES(0xb4, 0x7f)));
	CHECK_STR("add eax, 0xffffffff", text(BYTES(0x83, 0xc0, 0xff)));
	CHECK_STR("mov al, byte ptr fs:[bx+si]", text_at(INSN_MODE_16, 0, BYTES(0x64, 0x8a, 0x00)));
	CHECK_STR("jmpf 0x8:0x10", text_at(INSN_MODE_16, 0, BYTES(0xea, 0x10, 0, 0x08, 0)));
	CHECK_STR("(bad)", text(BYTES(0x06)));
}

TEST(text_of_vector_instructions)
{
	CHECK_STR("vaddps zmm16{k1}{z}, zmm1, dword ptr [rax+0x8]{1to16}",
		  text(BYTES(0x62, 0xe1, 0x74, 0xd9, 0x58, 0x40, 2)));
	CHECK_STR("vaddps zmm0, zmm0, zmm1, {ru-sae}",
		  text(BYTES(0x62, 0xf1, 0x7c, 0x58, 0x58, 0xc1)));
	CHECK_STR("vpgatherdd zmm0{k1}, [rax+zmm1*4]",
		  text(BYTES(0x62, 0xf2, 0x7d, 0x49, 0x90, 0x04, 0x88)));
	CHECK_STR("movq xmm0, rax", text(BYTES(0x66, 0x48, 0x0f, 0x6e, 0xc0)));
	CHECK_STR("fadd st0, st3", text(BYTES(0xd8, 0xc3)));
}

TEST(text_is_cut_to_the_buffer_and_its_length_told)
{
	struct insn in = decode64(BYTES(0x48, 0x01, 0xc8));
	char buf[8];

	CHECK_EQ(12, insn_print(&in, 0, buf, sizeof(buf)));
	CHECK_STR("add rax", buf);
}
