/* Unit tests of src/boot: small kernels made here, and where they end up. */
#include "boot/boot.h"

#include "base/bytes.h"
#include "base/error.h"
#include "boot/load.h"
#include "engine/x86_state.h"
#include "mem/mem.h"
#include "test.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>

/* 640 KiB, then 1 MiB to 64 MiB, with tables at the very top. */
static const struct boot_range map[] = {
	{0, 640 * KiB, BOOT_RAM},
	{0xf0000, 0x10000, BOOT_RESERVED},
	{MiB, 62 * MiB, BOOT_RAM},
	{63 * MiB, MiB, BOOT_ACPI},
};

static uint8_t image[256 * 1024];
static size_t image_size;
static struct boot_config cfg;
static struct boot_job job;
static struct mem *mem;
static struct x86_state state;
static struct error err;

static void setup(void)
{
	cfg = (struct boot_config){.kernel = "k",
				   .cmdline = "console=ttyS0",
				   .map = map,
				   .nr_map = ARRAY_SIZE(map),
				   .rsdp = 0xf1230};
	CHECK_EQ(0, mem_create(&mem, NULL));
	CHECK_EQ(0, mem_add_ram(mem, 0, 64 * MiB, NULL));
	memset(&state, 0xcc, sizeof(state)); /* whatever is not set shows */
	state.mtrr_def_type = 0;
}

static int load(void)
{
	boot_job_init(&job, &cfg, mem, &state);
	job.kernel = (struct boot_file){.name = "k", .fd = -1, .data = image, .size = image_size};
	err.msg[0] = '\0';
	return boot_load_job(&job, &err);
}

static uint8_t guest8(gpa_t gpa)
{
	uint8_t v;

	CHECK_EQ(0, mem_read(mem, gpa, &v, 1));
	return v;
}

static uint32_t guest32(gpa_t gpa)
{
	uint8_t v[4];

	CHECK_EQ(0, mem_read(mem, gpa, v, 4));
	return le32_load(v);
}

static uint64_t guest64(gpa_t gpa)
{
	return guest32(gpa) | (uint64_t)guest32(gpa + 4) << 32;
}

static const char *guest_string(gpa_t gpa)
{
	static char s[128];

	CHECK_EQ(0, mem_read(mem, gpa, s, sizeof(s)));
	s[127] = '\0';
	return s;
}

/* A file with `text`, gone at exit. */
static char side_path[] = "test-boot-XXXXXX";

static void side_cleanup(void)
{
	unlink(side_path);
}

static const char *side_file(const char *text)
{
	int fd = mkstemp(side_path);

	CHECK(fd >= 0);
	atexit(side_cleanup);
	CHECK_EQ(strlen(text), write(fd, text, strlen(text)));
	close(fd);
	return side_path;
}

static void check_flat_32(void)
{
	CHECK_EQ(0x11, state.cr0); /* PE, ET */
	CHECK_EQ(0, state.cr4);
	CHECK_EQ(0, state.efer);
	CHECK_EQ(0, state.idtr.base); /* the vectors of real mode */
	CHECK_EQ(0x3ff, state.idtr.limit);
	CHECK_EQ(2, state.rflags);
	CHECK_EQ(0xffffffff, state.seg[X86_CS].limit);
	CHECK_EQ(0xc09b, state.seg[X86_CS].attr); /* G D, P S code read accessed */
	CHECK_EQ(0xc093, state.seg[X86_DS].attr);
	CHECK_EQ(0xc093, state.seg[X86_SS].attr);
	CHECK_EQ(0, state.seg[X86_CS].base);
	CHECK_EQ(0x67, state.tr.limit);
	CHECK_EQ(0x806, state.mtrr_def_type);
}

/* ---- Linux ---- */

enum { BZ_SETUP = 5 * 512, BZ_KERNEL = 8192 };

static void make_bzimage(void)
{
	memset(image, 0, sizeof(image));
	image[0x1f1] = 4;
	le16_store(image + 0x1fe, 0xaa55);
	image[0x200] = 0xeb;
	image[0x201] = 0x6a; /* header to 0x26c */
	memcpy(image + 0x202, "HdrS", 4);
	le16_store(image + 0x206, 0x20f);
	image[0x211] = 1;
	le32_store(image + 0x22c, 0x7fffffff);
	le32_store(image + 0x230, 0x200000);
	image[0x234] = 1;
	le16_store(image + 0x236, 3);
	le32_store(image + 0x238, 255);
	le64_store(image + 0x258, 0x1000000);
	le32_store(image + 0x260, 0x800000);
	memset(image + BZ_SETUP, 0x90, BZ_KERNEL);
	image[BZ_SETUP + 0x200] = 0xf4;
	image_size = BZ_SETUP + BZ_KERNEL;
}

TEST(a_bzimage_starts_in_64_bit_mode)
{
	setup();
	make_bzimage();
	CHECK_EQ(0, load());
	CHECK_EQ(0x1000200, state.rip);
	CHECK_EQ(0xf4, guest8(state.rip));
	CHECK_EQ(0x80000011, state.cr0);
	CHECK_EQ(0x20, state.cr4);
	CHECK_EQ(0x500, state.efer);
	CHECK_EQ(0x10, state.seg[X86_CS].selector);
	CHECK_EQ(0xa09b, state.seg[X86_CS].attr); /* G L */
	CHECK_EQ(0x18, state.seg[X86_DS].selector);
	CHECK_EQ(0x00af9b000000ffff, guest64(state.gdtr.base + 0x10));
	CHECK_EQ(0x00cf93000000ffff, guest64(state.gdtr.base + 0x18));
	CHECK_EQ(2, state.rflags);
	mem_destroy(mem);
}

/* Walk the tables by hand: SDM 3A "4-Level Paging". */
static uint64_t translate(uint64_t va)
{
	uint64_t e = guest64((state.cr3 & ~0xfffull) + (va >> 39 & 511) * 8);

	e = guest64((e & ~0xfffull) + (va >> 30 & 511) * 8);
	CHECK(e & 1);
	e = guest64((e & ~0xfffull) + (va >> 21 & 511) * 8);
	CHECK_EQ(0x83, e & 0xfff);
	return (e & ~0x1fffffull) | (va & 0x1fffff);
}

TEST(four_gigabytes_are_mapped_one_to_one)
{
	setup();
	make_bzimage();
	CHECK_EQ(0, load());
	CHECK_EQ(0, translate(0));
	CHECK_EQ(0x1000200, translate(0x1000200));
	CHECK_EQ(0xffffffff, translate(0xffffffff));
	mem_destroy(mem);
}

TEST(the_zero_page_says_what_the_kernel_needs)
{
	gpa_t zp;

	setup();
	make_bzimage();
	cfg.initrd = side_file("initrd contents");
	CHECK_EQ(0, load());
	zp = state.gpr[X86_RSI];
	CHECK_EQ(0, zp & 0xfff);
	CHECK_EQ(0xf1230, guest64(zp + 0x70));
	CHECK_EQ(4, guest8(zp + 0x1e8));
	CHECK_EQ(MiB, guest64(zp + 0x2d0 + 40));
	CHECK_EQ(62 * MiB, guest64(zp + 0x2d0 + 48));
	CHECK_EQ(BOOT_ACPI, guest32(zp + 0x2d0 + 60 + 16));
	CHECK_EQ(0x53726448, guest32(zp + 0x202));
	CHECK_EQ(0xff, guest8(zp + 0x210));
	CHECK_EQ(0, guest8(zp + 0x1ef)); /* the sentinel */
	CHECK_STR("console=ttyS0", guest_string(guest32(zp + 0x228)));
	CHECK_EQ(15, guest32(zp + 0x21c));
	CHECK_EQ(63 * MiB - 4096, guest32(zp + 0x218)); /* as high as RAM goes */
	CHECK_STR("initrd contents", guest_string(guest32(zp + 0x218)));
	mem_destroy(mem);
}

TEST(a_relocatable_kernel_goes_where_it_fits)
{
	setup();
	make_bzimage();
	le64_store(image + 0x258, 60 * MiB);
	CHECK_EQ(0, load());
	CHECK_EQ(2 * MiB + 0x200, state.rip);
	mem_destroy(mem);
}

TEST(a_kernel_that_does_not_fit_is_refused)
{
	setup();
	make_bzimage();
	le32_store(image + 0x260, 0x7fffffff);
	CHECK_EQ(-ENOSPC, load());
	CHECK_STR("'k': needs 2048 MiB of guest memory to start", err.msg);
	le32_store(image + 0x260, 0x100000);
	le64_store(image + 0x258, 62 * MiB + 4096);
	image[0x234] = 0;
	CHECK_EQ(-ENOSPC, load());
	mem_destroy(mem);
}

TEST(the_initrd_stays_below_its_limit)
{
	setup();
	make_bzimage();
	le32_store(image + 0x22c, 0x1ffffff);
	cfg.initrd = side_file("x");
	CHECK_EQ(0, load());
	CHECK_EQ(0x1fff000, guest32(state.gpr[X86_RSI] + 0x218));
	mem_destroy(mem);
}

TEST(a_32_bit_kernel_is_entered_at_its_start)
{
	setup();
	make_bzimage();
	le16_store(image + 0x236, 0);
	CHECK_EQ(0, load());
	CHECK_EQ(0x1000000, state.rip);
	check_flat_32();
	CHECK_EQ(0x00cf9b000000ffff, guest64(state.gdtr.base + 0x10));
	CHECK_EQ(0, state.gpr[X86_RBX]);
	CHECK(state.gpr[X86_RSI]);
	mem_destroy(mem);
}

TEST(an_old_protocol_is_refused_with_its_number)
{
	setup();
	make_bzimage();
	le16_store(image + 0x206, 0x209);
	CHECK_EQ(-ENOTSUP, load());
	CHECK(strstr(err.msg, "protocol 2.09"));
	mem_destroy(mem);
}

TEST(a_command_line_that_is_too_long_is_refused)
{
	setup();
	make_bzimage();
	le32_store(image + 0x238, 12);
	CHECK_EQ(-E2BIG, load());
	CHECK_STR("'k': the command line has 13 characters, it takes 12", err.msg);
	mem_destroy(mem);
}

TEST(a_cut_bzimage_is_refused)
{
	setup();
	make_bzimage();
	image_size = BZ_SETUP + 0x200;
	CHECK_EQ(-EINVAL, load());
	CHECK(strstr(err.msg, "cut short"));
	mem_destroy(mem);
}

/* ---- ELF and PVH ---- */

static const struct {
	uint32_t namesz, descsz, type;
	char name[4];
	uint32_t entry;
} pvh_note = {4, 4, 18, "Xen", 0x200040};

/* Linked at 0xffffffff80000000, loaded at 2 MiB: 4 KiB of file, 8 KiB of memory. */
static Elf64_Phdr *make_elf64(bool note)
{
	Elf64_Ehdr *h = (Elf64_Ehdr *)image;
	Elf64_Phdr *p = (Elf64_Phdr *)(image + 64);

	memset(image, 0, sizeof(image));
	memcpy(h->e_ident, ELFMAG "\2\1\1", 7);
	h->e_type = ET_EXEC;
	h->e_machine = EM_X86_64;
	h->e_entry = 0xffffffff80000010;
	h->e_phoff = 64;
	h->e_phentsize = sizeof(*p);
	h->e_phnum = note ? 2 : 1;
	p[0] = (Elf64_Phdr){.p_type = PT_LOAD,
			    .p_offset = 0x1000,
			    .p_vaddr = 0xffffffff80000000,
			    .p_paddr = 0x200000,
			    .p_filesz = 0x1000,
			    .p_memsz = 0x2000};
	if (note) {
		p[1] = (Elf64_Phdr){
			.p_type = PT_NOTE, .p_offset = 0x200, .p_filesz = sizeof(pvh_note)};
		memcpy(image + 0x200, &pvh_note, sizeof(pvh_note));
	}
	memset(image + 0x1000, 0x90, 0x1000);
	image[0x1040] = 0xf4;
	image_size = 0x2000;
	return p;
}

TEST(a_pvh_kernel_starts_at_its_note)
{
	uint8_t junk[16];
	gpa_t info;

	setup();
	make_elf64(true);
	memset(junk, 0xee, sizeof(junk));
	CHECK_EQ(0, mem_write(mem, 0x201ff8, junk, 16));
	cfg.initrd = side_file("module");
	CHECK_EQ(0, load());
	CHECK_EQ(0x200040, state.rip);
	CHECK_EQ(0xf4, guest8(state.rip));
	CHECK_EQ(0, guest8(0x201fff)); /* the end of its bss */
	CHECK_EQ(0xee, guest8(0x202000));
	check_flat_32();
	info = state.gpr[X86_RBX];
	CHECK_EQ(0x336ec578, guest32(info));
	CHECK_EQ(1, guest32(info + 4));
	CHECK_EQ(1, guest32(info + 12));
	CHECK_STR("module", guest_string(guest64(guest64(info + 16))));
	CHECK_EQ(6, guest64(guest64(info + 16) + 8));
	CHECK_STR("console=ttyS0", guest_string(guest64(info + 24)));
	CHECK_EQ(0xf1230, guest64(info + 32));
	CHECK_EQ(4, guest32(info + 48));
	CHECK_EQ(62 * MiB, guest64(guest64(info + 40) + 2 * 24 + 8));
	CHECK_EQ(BOOT_ACPI, guest32(guest64(info + 40) + 3 * 24 + 16));
	mem_destroy(mem);
}

TEST(an_elf_without_a_note_is_refused)
{
	setup();
	make_elf64(false);
	CHECK_EQ(-ENOTSUP, load());
	CHECK(strstr(err.msg, "neither a PVH entry note"));
	mem_destroy(mem);
}

TEST(elf_segments_must_lie_in_free_ram)
{
	Elf64_Phdr *p;

	setup();
	p = make_elf64(true);
	p->p_paddr = 63 * MiB; /* the ACPI tables */
	CHECK_EQ(-EEXIST, load());
	CHECK_STR("'k': wants 0x2000 bytes at 0x3f00000, where there is no free memory", err.msg);
	p->p_paddr = UINT64_MAX - 0xfff;
	CHECK_EQ(-EEXIST, load());
	p->p_paddr = 0x200000;
	p->p_memsz = UINT64_MAX;
	CHECK_EQ(-EEXIST, load());
	mem_destroy(mem);
}

TEST(elf_lies_are_refused)
{
	Elf64_Phdr *p;
	Elf64_Ehdr *h = (Elf64_Ehdr *)image;

	setup();
	p = make_elf64(true);
	p->p_filesz = 0x1001;
	CHECK_EQ(-EINVAL, load());
	p->p_filesz = 0x3000;
	CHECK_EQ(-EINVAL, load());
	p = make_elf64(true);
	p->p_offset = UINT64_MAX - 8;
	CHECK_EQ(-EINVAL, load());
	p = make_elf64(true);
	h->e_phoff = UINT64_MAX - 16;
	CHECK_EQ(-EINVAL, load());
	p = make_elf64(true);
	h->e_phnum = 0xffff;
	CHECK_EQ(-EINVAL, load());
	p = make_elf64(true);
	h->e_machine = EM_AARCH64;
	CHECK_EQ(-EINVAL, load());
	CHECK(strstr(err.msg, "another kind of CPU"));
	p = make_elf64(true);
	p[1].p_filesz = UINT64_MAX;
	CHECK_EQ(-ENOTSUP, load());
	le32_store(image + 0x200, 0xfffffff0);
	CHECK_EQ(-ENOTSUP, load());
	mem_destroy(mem);
}

TEST(a_kernel_in_low_memory_pushes_the_tables_aside)
{
	Elf64_Phdr *p;

	setup();
	p = make_elf64(true);
	p->p_paddr = 0x1000;
	CHECK_EQ(0, load());
	CHECK_EQ(0x90, guest8(0x1000));
	CHECK(state.gpr[X86_RBX] >= 0x3000);
	mem_destroy(mem);
}

/* ---- multiboot ---- */

static uint8_t *put_header(size_t off, uint32_t flags)
{
	uint8_t *h = image + off;

	le32_store(h, 0x1badb002);
	le32_store(h + 4, flags);
	le32_store(h + 8, -(0x1badb002u + flags));
	return h;
}

/* The file from 0x40 on, header at 0x100, goes to 1 MiB. */
static uint8_t *make_flat(void)
{
	uint8_t *h;

	memset(image, 0x90, sizeof(image));
	h = put_header(0x100, 0x10003);
	le32_store(h + 12, 0x1000c0);
	le32_store(h + 16, 0x100000);
	le32_store(h + 20, 0x101000);
	le32_store(h + 24, 0x103000);
	le32_store(h + 28, 0x100020);
	image[0x60] = 0xf4;
	image_size = 0x2000;
	return h;
}

TEST(a_flat_multiboot_kernel_goes_to_its_addresses)
{
	uint8_t junk = 0xee;

	setup();
	make_flat();
	CHECK_EQ(0, mem_write(mem, 0x102fff, &junk, 1));
	CHECK_EQ(0, load());
	CHECK_EQ(0x100020, state.rip);
	CHECK_EQ(0xf4, guest8(0x100020));
	CHECK_EQ(0x90, guest8(0x100fff));
	CHECK_EQ(0, guest8(0x101000));
	CHECK_EQ(0, guest8(0x102fff));
	check_flat_32();
	CHECK_EQ(0x2badb002, state.gpr[X86_RAX]);
	mem_destroy(mem);
}

TEST(a_flat_kernel_may_leave_out_its_ends)
{
	uint8_t *h;

	setup();
	h = make_flat();
	le32_store(h + 20, 0);
	le32_store(h + 24, 0);
	CHECK_EQ(0, load());
	CHECK_EQ(0x90, guest8(0x100000 + 0x2000 - 0x40 - 1));
	CHECK_EQ(0, guest8(0x100000 + 0x2000 - 0x40));
	mem_destroy(mem);
}

TEST(multiboot_addresses_that_lie_are_refused)
{
	uint8_t *h;

	setup();
	h = make_flat();
	le32_store(h + 12, 0xfffff); /* before the start */
	CHECK_EQ(-EINVAL, load());
	le32_store(h + 12, 0x100200); /* the start would be before the file's */
	CHECK_EQ(-EINVAL, load());
	h = make_flat();
	le32_store(h + 20, 0x200000); /* more than there is */
	CHECK_EQ(-EINVAL, load());
	h = make_flat();
	le32_store(h + 24, 0x100800); /* ends before the file's part */
	CHECK_EQ(-EINVAL, load());
	h = make_flat();
	le32_store(h + 24, 0xffffffff);
	CHECK_EQ(-EEXIST, load());
	mem_destroy(mem);
}

TEST(multiboot_demands_we_do_not_know_are_refused)
{
	setup();
	make_flat();
	put_header(0x100, 0x10008);
	CHECK_EQ(-ENOTSUP, load());
	mem_destroy(mem);
}

TEST(the_multiboot_info_is_complete)
{
	char mods[96];
	gpa_t info, list;

	setup();
	make_flat();
	side_file("first module");
	snprintf(mods, sizeof(mods), "%s one two,%s", side_path, side_path);
	cfg.initrd = mods;
	CHECK_EQ(0, load());
	info = state.gpr[X86_RBX];
	CHECK_EQ(0x24d, guest32(info));
	CHECK_EQ(640, guest32(info + 4));
	CHECK_EQ(62 * 1024, guest32(info + 8));
	CHECK_STR("k console=ttyS0", guest_string(guest32(info + 16)));
	CHECK_EQ(2, guest32(info + 20));
	list = guest32(info + 24);
	CHECK_EQ(0x103000, guest32(list)); /* page-aligned, right behind the kernel */
	CHECK_EQ(12, guest32(list + 4) - guest32(list));
	CHECK_STR("first module", guest_string(guest32(list)));
	CHECK_STR(" one two", guest_string(guest32(list + 8)) + strlen(side_path));
	CHECK_EQ(0x104000, guest32(list + 16));
	CHECK_STR(side_path, guest_string(guest32(list + 24)));
	CHECK_EQ(4 * 24, guest32(info + 44));
	CHECK_EQ(20, guest32(guest32(info + 48)));
	CHECK_EQ(62 * MiB, guest64(guest32(info + 48) + 2 * 24 + 12));
	CHECK_STR("Trivisor", guest_string(guest32(info + 64)));
	mem_destroy(mem);
}

TEST(a_missing_module_is_named)
{
	setup();
	make_flat();
	cfg.initrd = "no-such-module arg";
	CHECK_EQ(-ENOENT, load());
	CHECK_STR("cannot open 'no-such-module': No such file or directory", err.msg);
	cfg.initrd = ",";
	CHECK_EQ(-EINVAL, load());
	mem_destroy(mem);
}

TEST(an_elf_multiboot_kernel_starts_at_its_physical_entry)
{
	Elf64_Phdr *p;

	setup();
	p = make_elf64(false);
	put_header(0x1000, 3);
	CHECK_EQ(0, load());
	CHECK_EQ(0x200010, state.rip);
	check_flat_32();
	p->p_paddr = 0;
	CHECK_EQ(0, load());
	CHECK_EQ(0x10, state.rip);
	mem_destroy(mem);
}

TEST(what_is_no_kernel_is_refused)
{
	setup();
	memset(image, 0, sizeof(image));
	image_size = sizeof(image);
	CHECK_EQ(-ENOTSUP, load());
	CHECK(strstr(err.msg, "not a kernel that can be booted"));
	image_size = 0;
	CHECK_EQ(-ENOTSUP, load());
	put_header(0, 3); /* a header, but neither addresses nor ELF */
	image_size = 64;
	CHECK_EQ(-EINVAL, load());
	mem_destroy(mem);
}

TEST(files_are_opened_with_words)
{
	setup();
	cfg.kernel = "no-such-kernel";
	CHECK_EQ(-ENOENT, boot_load(&cfg, mem, &state, &err));
	CHECK_STR("kernel: cannot open 'no-such-kernel': No such file or directory", err.msg);
	cfg.kernel = "/";
	CHECK_EQ(-EINVAL, boot_load(&cfg, mem, &state, &err));
	cfg.kernel = side_file("nonsense");
	CHECK_EQ(-ENOTSUP, boot_load(&cfg, mem, &state, &err));
	mem_destroy(mem);
}

TEST(memory_runs_out_politely)
{
	static const struct boot_range tiny[] = {{0x1000, 0x3000, BOOT_RAM},
						 {MiB, 32 * MiB, BOOT_RAM}};

	setup();
	make_bzimage();
	cfg.map = tiny;
	cfg.nr_map = 1;
	CHECK_EQ(-ENOSPC, load());
	cfg.nr_map = 0;
	CHECK_EQ(-ENOSPC, load());
	mem_destroy(mem);
}
