/* boot/elf.c - ELF executables, 32 and 64 bits, into guest memory (System V ABI, "Object Files").
 * Every number in the file is checked against the file and against the guest's memory. */
#include "base/bytes.h"
#include "base/error.h"
#include "boot/load.h"
#include "mem/mem.h"

#include <elf.h>
#include <errno.h>
#include <string.h>

enum { MAX_PHDRS = 64 };

struct segment {
	uint32_t type;
	uint64_t off, vaddr, paddr, filesz, memsz;
};

static int read_segment(const struct boot_file *f, const struct elf_image *elf, unsigned i,
			struct segment *s, struct error *err)
{
	union {
		Elf32_Phdr e32;
		Elf64_Phdr e64;
	} p;
	size_t len = elf->is_64 ? sizeof(p.e64) : sizeof(p.e32);
	int r = boot_file_read(f, elf->phdr_off + i * len, &p, len, err);

	if (r < 0)
		return r;
	if (elf->is_64)
		*s = (struct segment){p.e64.p_type,  p.e64.p_offset, p.e64.p_vaddr,
				      p.e64.p_paddr, p.e64.p_filesz, p.e64.p_memsz};
	else
		*s = (struct segment){p.e32.p_type,  p.e32.p_offset, p.e32.p_vaddr,
				      p.e32.p_paddr, p.e32.p_filesz, p.e32.p_memsz};
	return 0;
}

/* Linkers give the entry as a virtual address; we start without paging. */
static int find_entry(const struct boot_file *f, struct elf_image *elf, struct error *err)
{
	struct segment s;
	int r;

	for (unsigned i = 0; i < elf->nr_phdrs; i++) {
		r = read_segment(f, elf, i, &s, err);
		if (r < 0)
			return r;
		if (s.type == PT_LOAD && elf->entry >= s.vaddr && elf->entry - s.vaddr < s.memsz) {
			elf->entry = s.paddr + (elf->entry - s.vaddr);
			break;
		}
	}
	return 0;
}

static int parse(const struct boot_file *f, struct elf_image *elf, struct error *err)
{
	union {
		Elf32_Ehdr e32;
		Elf64_Ehdr e64;
	} h;
	unsigned type, machine, phentsize;
	int r;

	r = boot_file_read(f, 0, &h, elf->is_64 ? sizeof(h.e64) : sizeof(h.e32), err);
	if (r < 0)
		return r;
	type = h.e32.e_type; /* these two lie at the same place in both */
	machine = h.e32.e_machine;
	elf->entry = elf->is_64 ? h.e64.e_entry : h.e32.e_entry;
	elf->phdr_off = elf->is_64 ? h.e64.e_phoff : h.e32.e_phoff;
	elf->nr_phdrs = elf->is_64 ? h.e64.e_phnum : h.e32.e_phnum;
	phentsize = elf->is_64 ? h.e64.e_phentsize : h.e32.e_phentsize;
	if (type != ET_EXEC && type != ET_DYN)
		return err_set(err, EINVAL, "'%s': an ELF file, but not an executable one",
			       f->name);
	if (machine != EM_X86_64 && machine != EM_386)
		return err_set(err, EINVAL, "'%s': an ELF file for another kind of CPU", f->name);
	if (!elf->nr_phdrs || elf->nr_phdrs > MAX_PHDRS || elf->phdr_off > f->size ||
	    phentsize != (elf->is_64 ? sizeof(Elf64_Phdr) : sizeof(Elf32_Phdr)))
		return err_set(err, EINVAL, "'%s': an ELF file with unusable program headers",
			       f->name);
	return find_entry(f, elf, err);
}

int elf_recognise(const struct boot_file *f, struct elf_image *elf, struct error *err)
{
	uint8_t ident[EI_NIDENT];
	int r;

	*elf = (struct elf_image){0};
	if (f->size < sizeof(ident))
		return 0;
	r = boot_file_read(f, 0, ident, sizeof(ident), err);
	if (r < 0)
		return r;
	if (memcmp(ident, ELFMAG, SELFMAG))
		return 0;
	if (ident[EI_DATA] != ELFDATA2LSB ||
	    (ident[EI_CLASS] != ELFCLASS32 && ident[EI_CLASS] != ELFCLASS64))
		return err_set(err, EINVAL, "'%s': an ELF file for another kind of CPU", f->name);
	elf->is_64 = ident[EI_CLASS] == ELFCLASS64;
	r = parse(f, elf, err);
	return r < 0 ? r : 1;
}

static int load_segment(struct boot_job *j, const struct segment *s, struct error *err)
{
	const char *name = j->kernel.name;
	int r;

	if (s->filesz > s->memsz || (s->filesz && !range_inside(s->off, s->filesz, j->kernel.size)))
		return err_set(err, EINVAL, "'%s': cut short, or its headers lie", name);
	r = boot_space_claim(&j->space, s->paddr, s->memsz);
	if (r < 0)
		return err_set(err, -r,
			       "'%s': wants %#llx bytes at %#llx, where there is no free memory",
			       name, (unsigned long long)s->memsz, (unsigned long long)s->paddr);
	r = boot_file_to_mem(&j->kernel, s->off, j->mem, s->paddr, s->filesz, err);
	if (!r && mem_zero(j->mem, s->paddr + s->filesz, s->memsz - s->filesz) < 0)
		r = err_set(err, EFAULT, "'%s': no guest memory at %#llx", name,
			    (unsigned long long)s->paddr);
	return r;
}

int elf_load(struct boot_job *j, const struct elf_image *elf, struct error *err)
{
	unsigned loaded = 0;
	struct segment s;
	int r;

	for (unsigned i = 0; i < elf->nr_phdrs; i++) {
		r = read_segment(&j->kernel, elf, i, &s, err);
		if (r < 0)
			return r;
		if (s.type != PT_LOAD || !s.memsz)
			continue;
		r = load_segment(j, &s, err);
		if (r < 0)
			return r;
		loaded++;
	}
	if (!loaded)
		return err_set(err, EINVAL, "'%s': an ELF file with nothing to load",
			       j->kernel.name);
	return 0;
}

/* ---- the PVH note; here because it is found through the program headers ---- */

enum { NOTE_MAX = 65536, NOTE_PHYS32_ENTRY = 18 }; /* xen/include/public/elfnote.h */

/* Notes are {namesz, descsz, type}, name, desc, both padded to 4 bytes. */
static bool scan_notes(const uint8_t *p, size_t len, uint32_t *entry)
{
	while (len >= 12) {
		uint64_t name = ALIGN_UP(le32_load(p), 4), desc = le32_load(p + 4);
		uint64_t all = 12 + name + ALIGN_UP(desc, 4);

		if (12 + name + desc > len)
			return false;
		if (le32_load(p + 8) == NOTE_PHYS32_ENTRY && le32_load(p) == 4 &&
		    !memcmp(p + 12, "Xen", 4) && desc >= 4) {
			*entry = le32_load(p + 12 + name);
			return true;
		}
		if (all > len)
			return false;
		p += all;
		len -= all;
	}
	return false;
}

int pvh_find_entry(const struct boot_file *f, const struct elf_image *elf, uint32_t *entry,
		   struct error *err)
{
	static _Thread_local uint8_t notes[NOTE_MAX];
	struct segment s;
	int r;

	for (unsigned i = 0; i < elf->nr_phdrs; i++) {
		r = read_segment(f, elf, i, &s, err);
		if (r < 0)
			return r;
		if (s.type != PT_NOTE || s.filesz > NOTE_MAX)
			continue;
		r = boot_file_read(f, s.off, notes, s.filesz, err);
		if (r < 0)
			return r;
		if (scan_notes(notes, s.filesz, entry))
			return 1;
	}
	return 0;
}
