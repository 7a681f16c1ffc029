/* engine/soft/block.c - see block.h.
 *
 * When is a decoded block the truth?  While the bytes it was decoded from have not changed.  Stores
 * reach a page in two ways: quietly, through a write entry of some vCPU's TLB, or loudly, through
 * access.c, mem.c or a string instruction's slow path, which bump the page's gen when they touch a
 * line marked in code_lines.  So a block may be trusted by comparing gen alone once
 *   (1) its lines are marked,
 *   (2) no vCPU has a write entry for the page (none is made while code_lines != 0; those from
 *       before are dropped on CPU_EV_PURGE), and
 *   (3) its bytes were compared after (1) and (2).
 * Until (2) holds for every running vCPU the block is BLOCK_UNTRUSTED: compared at each entry.
 *
 * purge_lock orders marking lines, unmarking them and reading gen for a block:
 *   mark:   lines |= mask; seq = purge_seq (one more if the page had none); g = gen
 *   unmark: gen++; lines = 0
 * A block marked before an unmark has the gen of before and is stale by it; one marked after has
 * its lines set.  A vCPU reads purge_seq before it drops entries, so purge_ack >= seq means that
 * it saw the lines marked under seq. */
#include "engine/soft/block.h"

#include "base/error.h"
#include "engine/soft/insn_rows.h"
#include "engine/soft/vec.h"
#include "engine/soft/xlat.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum {
	BLOCK_WINDOW = 192, /* bytes looked at for one block */
	INSN_MAX_LEN = 15,
	PAGE_LOOKS_LIKE_DATA = 64, /* writes to code lines with no code run from the page */
};

#define BLOCK_COLD offsetof(struct block, hva)
static const size_t block_max_size =
	sizeof(struct block) + BLOCK_MAX_INSNS * sizeof(struct insn) + BLOCK_WINDOW + 128;

/* Matches no address: what empty jump entries point to. */
static struct block block_none;

static uint8_t *block_bytes(struct block *b)
{
	return (uint8_t *)&b->insns[b->nr];
}

/* --- creation ----------------------------------------------------------------------------------
 */

static void links_clear(struct block *b)
{
	b->link[0] = b->link[1] = &block_none;
}

int block_cache_create(struct cpu *cpu, struct error *err)
{
	/* Shared out so that big guests stay within one budget.  A compiler is 150 thousand blocks
	 * of 600 bytes: with less room than that it is decoded again and again. */
	size_t size = MAX(256 * MiB / cpu->vm->nr_cpus, 32 * MiB);
	struct block_cache *c = calloc(1, sizeof(*c));

	if (!c)
		return err_errno(err, ENOMEM, "decoded code of vCPU %u", cpu->index);
	c->once = calloc(1, block_max_size);
	c->entry = calloc(1, sizeof(*c->entry));
	c->arena = mmap(NULL, size, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (!c->once || !c->entry || c->arena == MAP_FAILED) {
		if (c->arena != MAP_FAILED)
			munmap(c->arena, size);
		free(c->once);
		free(c->entry);
		free(c);
		return err_errno(err, ENOMEM, "decoded code of vCPU %u", cpu->index);
	}
	(void)madvise(c->arena, size, MADV_HUGEPAGE); /* it is filled from one end to the other */
	c->arena_size = size;
	cpu->blocks = c;
	block_cache_flush(cpu);
	return 0;
}

void block_cache_destroy(struct cpu *cpu)
{
	struct block_cache *c = cpu->blocks;

	if (!c)
		return;
	munmap(c->arena, c->arena_size);
	free(c->once);
	free(c->entry);
	free(c);
	cpu->blocks = NULL;
}

void block_cache_flush(struct cpu *cpu)
{
	struct block_cache *c = cpu->blocks;

	xlat_flush(cpu);
	for (unsigned i = 0; i < BLOCK_JUMP_ENTRIES; i++)
		c->jump[i] = &block_none;
	for (unsigned i = 0; i < BLOCK_HASH_HEADS; i++)
		c->hash[i] = NULL;
	links_clear(c->once);
	links_clear(c->entry);
	c->arena_used = 64 - BLOCK_COLD;
	c->flushes++;
}

/* --- bytes: no libc here, guest vector state may be live ----------------------------------------
 */

static void bytes_copy(uint8_t *to, const uint8_t *from, unsigned len)
{
	asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(len) : : "memory");
}

static bool bytes_equal(const uint8_t *a, const uint8_t *b, unsigned len)
{
	typedef uint64_t u64_any __attribute__((aligned(1), may_alias));

	for (; len >= 8; len -= 8, a += 8, b += 8)
		if (*(const volatile u64_any *)a != *(const u64_any *)b)
			return false;
	for (; len; len--)
		if (*(const volatile uint8_t *)a++ != *b++)
			return false;
	return true;
}

/* --- page records ------------------------------------------------------------------------------
 */

static void purge_lock(struct soft_vm *vm)
{
	for (unsigned n = 0; atomic_exchange_explicit(&vm->purge_lock, true, memory_order_acquire);
	     n++) {
		if (n % 256 == 255)
			sched_yield();
		else
			__builtin_ia32_pause();
	}
}

static void purge_unlock(struct soft_vm *vm)
{
	atomic_store_explicit(&vm->purge_lock, false, memory_order_release);
}

/* The page record of an address in guest RAM. */
static struct mem_page *page_of(const struct soft_vm *vm, const uint8_t *hva)
{
	for (unsigned i = 0; i < vm->nr_ram; i++) {
		uint64_t in = (uint64_t)((uintptr_t)hva - (uintptr_t)vm->ram[i].hva);

		if (in < vm->ram[i].size)
			return mem_page(vm->mem, vm->ram[i].gpa + in);
	}
	return NULL;
}

static uint64_t lines_of(unsigned offset, unsigned len)
{
	unsigned first = offset / 64, last = (offset + len - 1) / 64;

	return (~0ull >> (63 - (last - first))) << first;
}

void block_purge(struct cpu *cpu)
{
	uint64_t seq;

	atomic_fetch_and(&cpu->events, ~(uint32_t)CPU_EV_PURGE);
	seq = atomic_load(&cpu->vm->purge_seq);
	if (atomic_load(&cpu->vm->write_seq) > atomic_load(&cpu->purge_ack))
		tlb_flush_writes(cpu);
	else
		tlb_purge_code_writes(cpu);
	atomic_store(&cpu->purge_ack, seq);
}

void block_drop_writes(struct soft_vm *vm)
{
	const struct timespec pause = {.tv_nsec = 50 * 1000};
	uint64_t seq;

	purge_lock(vm);
	seq = atomic_load(&vm->purge_seq) + 1;
	atomic_store(&vm->write_seq, seq);
	atomic_store(&vm->purge_seq, seq);
	purge_unlock(vm);
	for (unsigned i = 0; i < vm->nr_cpus; i++)
		if (vm->cpus[i])
			atomic_fetch_or(&vm->cpus[i]->events, CPU_EV_PURGE);
	for (unsigned i = 0; i < vm->nr_cpus; i++)
		while (vm->cpus[i] && atomic_load(&vm->cpus[i]->running) &&
		       atomic_load(&vm->cpus[i]->purge_ack) < seq)
			nanosleep(&pause, NULL);
}

/* The page at hva is the first to become a code page under number `seq`. */
static void purge_everybody(struct cpu *cpu, uint64_t seq, const uint8_t *hva)
{
	struct soft_vm *vm = cpu->vm;

	if (likely(atomic_load(&cpu->purge_ack) == seq - 1)) {
		tlb_purge_page_writes(cpu, hva);
		atomic_store(&cpu->purge_ack, seq);
	} else {
		block_purge(cpu);
	}
	for (unsigned i = 0; i < vm->nr_cpus; i++)
		if (vm->cpus[i] && vm->cpus[i] != cpu)
			atomic_fetch_or(&vm->cpus[i]->events, CPU_EV_PURGE);
}

/* Mark lines of the page at hva as code; gen and the purge number that the block being made depends
 * on. */
static uint64_t page_mark(struct cpu *cpu, struct mem_page *page, const uint8_t *hva,
			  uint64_t lines, uint32_t *gen)
{
	struct soft_vm *vm = cpu->vm;
	uint64_t before, seq;

	purge_lock(vm);
	before = atomic_fetch_or(&page->code_lines, lines);
	seq = atomic_load(&vm->purge_seq);
	if (!before)
		atomic_store(&vm->purge_seq, ++seq);
	*gen = atomic_load(&page->gen);
	purge_unlock(vm);
	if (!before)
		purge_everybody(cpu, seq, hva);
	return seq;
}

/* Data was written where code used to be: forget that, so that stores are quick again. */
static void page_unmark(struct cpu *cpu, struct mem_page *page)
{
	purge_lock(cpu->vm);
	atomic_fetch_add(&page->gen, 1);
	atomic_store(&page->code_lines, 0);
	purge_unlock(cpu->vm);
	xlat_forget_page(cpu, page);
	xlat_tell_written(cpu->vm, cpu, page);
}

static bool purge_done(struct cpu *cpu, uint64_t seq)
{
	struct soft_vm *vm = cpu->vm;

	for (unsigned i = 0; i < vm->nr_cpus; i++) {
		struct cpu *c = vm->cpus[i];

		if (c && c != cpu && atomic_load(&c->running) && atomic_load(&c->purge_ack) < seq)
			return false;
	}
	return true;
}

static unsigned *written_hits(struct cpu *cpu, struct mem_page *page)
{
	unsigned i = ((uintptr_t)page / sizeof(*page)) % ARRAY_SIZE(cpu->blocks->written);

	if (cpu->blocks->written[i].page != page) {
		cpu->blocks->written[i].page = page;
		cpu->blocks->written[i].hits = 0;
	}
	return &cpu->blocks->written[i].hits;
}

void block_ram_written(struct cpu *cpu, gpa_t gpa, unsigned len)
{
	struct mem_page *page = mem_page(cpu->vm->mem, gpa);
	uint64_t lines;
	unsigned *hits;

	atomic_thread_fence(memory_order_seq_cst); /* mem.c, W2 */
	lines = page ? atomic_load_explicit(&page->code_lines, memory_order_relaxed) : 0;
	if (likely(!lines))
		return;
	hits = written_hits(cpu, page);
	if (lines & lines_of(gpa % PAGE_SIZE, len)) {
		atomic_fetch_add_explicit(&page->gen, 1, memory_order_release);
		xlat_written(cpu, page, gpa % PAGE_SIZE, len);
		xlat_tell_written(cpu->vm, cpu, page);
		cpu->stats.smc_hits++;
		cpu_stop_block(cpu);
		*hits += len >= PAGE_SIZE / 2 ? PAGE_LOOKS_LIKE_DATA : 12;
	}
	if (++*hits >= 4 * PAGE_LOOKS_LIKE_DATA) {
		page_unmark(cpu, page);
		cpu_stop_block(cpu);
		*hits = 0;
	}
}

/* --- the fetch ---------------------------------------------------------------------------------
 */

static bool canonical(const struct cpu *cpu, gva_t lin)
{
	unsigned unused = cpu->cr4 & CR4_LA57 ? 64 - 57 : 64 - 48;

	return (gva_t)((int64_t)(lin << unused) >> unused) == lin;
}

/* RIP itself: canonical in 64-bit mode (SDM 3A "Canonical Addressing"), within CS elsewhere.
 * Returns how many bytes the segment still has. */
static uint64_t check_rip(struct cpu *cpu)
{
	const struct cpu_seg *cs = &cpu->seg[X86_CS];

	if (cpu->mode == INSN_MODE_64) {
		if (unlikely(!canonical(cpu, cpu->rip)))
			fault_gp(cpu, 0);
		return ~0ull;
	}
	cpu->rip = (uint32_t)cpu->rip;
	if (unlikely(cpu->rip > cs->limit))
		fault_gp(cpu, 0);
	return (uint64_t)cs->limit - cpu->rip + 1;
}

static gpa_t fetch_translate(struct cpu *cpu, gva_t lin)
{
	const struct mmu_access a = {.lin = lin, .exec = true, .user = cpu->cpl == 3};

	return mmu_translate(cpu, &a);
}

/* Where the bytes at lin are in RAM, NULL when they are not.  Usually the TLB knows. */
static const uint8_t *code_hva(struct cpu *cpu, gva_t lin)
{
	const struct tlb_entry *e = tlb_slot(cpu->tlb->ex, lin);

	if (likely(tlb_hit(e, lin, 1)))
		return (const uint8_t *)(lin + e->addend);
	return vm_hva(cpu->vm, fetch_translate(cpu, lin));
}

/* Code outside RAM (a flash device): read it as the bus would show it. */
static void fetch_mmio(struct cpu *cpu, gpa_t gpa, uint8_t *buf, unsigned len)
{
	vec_release(cpu);
	for (unsigned i = 0; i < len; i++)
		buf[i] = (uint8_t)cpu->ops->mmio_read(cpu->opaque, gpa + i, 1);
}

static void fetch_part(struct cpu *cpu, gva_t lin, uint8_t *buf, unsigned len)
{
	gpa_t gpa = fetch_translate(cpu, lin);
	const uint8_t *hva = vm_hva(cpu->vm, gpa);

	if (hva)
		bytes_copy(buf, hva, len);
	else
		fetch_mmio(cpu, gpa, buf, len);
}

static enum insn_result decode(struct cpu *cpu, struct insn *in, const uint8_t *p, size_t avail)
{
	return insn_decode(in, p, avail, cpu->mode, cpu->vm->model);
}

/* The one instruction at RIP, wherever its bytes are, into b->insns[0].  Pages are touched only as
 * far as the instruction's length needs them: the second page's fault is at its first byte. */
static void fetch_one(struct cpu *cpu, struct block *b, gva_t lin, uint8_t buf[INSN_MAX_LEN])
{
	uint64_t seg_left = check_rip(cpu);
	unsigned page_left = (unsigned)(PAGE_SIZE - lin % PAGE_SIZE);
	unsigned avail = (unsigned)MIN(MIN(seg_left, page_left), INSN_MAX_LEN);
	enum insn_result r;
	gva_t next = lin + avail;

	fetch_part(cpu, lin, buf, avail);
	r = decode(cpu, &b->insns[0], buf, avail);
	if (r == INSN_SHORT && avail < seg_left) {
		unsigned more = (unsigned)MIN(seg_left, INSN_MAX_LEN) - avail;

		if (cpu->mode != INSN_MODE_64)
			next = (uint32_t)next;
		else if (!canonical(cpu, next))
			fault_gp(cpu, 0);
		fetch_part(cpu, next, buf + avail, more);
		r = decode(cpu, &b->insns[0], buf, avail + more);
	}
	if (r != INSN_OK) /* over 15 bytes, or over the end of the segment */
		fault_gp(cpu, 0);
	b->nr = 1;
	b->len = b->insns[0].len;
	b->mode_key = cpu->mode_key;
}

/* Decoded afresh each time: code in MMIO, and at the very end of a code segment. */
static struct block *block_once(struct cpu *cpu, gva_t lin)
{
	struct block *b = cpu->blocks->once;
	uint8_t buf[INSN_MAX_LEN];

	fetch_one(cpu, b, lin, buf);
	return b;
}

/* --- the cache ---------------------------------------------------------------------------------
 */

static struct block **hash_head(struct cpu *cpu, const uint8_t *hva)
{
	uintptr_t h = (uintptr_t)hva ^ (uintptr_t)hva >> 15 ^ cpu->mode_key * 0x9e5u;

	return &cpu->blocks->hash[h % BLOCK_HASH_HEADS];
}

static void block_forget(struct cpu *cpu, struct block *b)
{
	struct block **p = hash_head(cpu, b->hva);

	xlat_forget_block(cpu, b);
	while (*p && *p != b)
		p = &(*p)->hash_next;
	if (*p)
		*p = b->hash_next;
	b->hva = NULL; /* jump entries still point here */
}

/* Marks the block's lines, then sees whether its bytes are still those in memory. */
static bool block_validate(struct cpu *cpu, struct block *b)
{
	unsigned first = b->len, second = 0;
	uint64_t seq;
	bool done;

	if (b->flags & BLOCK_CROSS) {
		first = (unsigned)(PAGE_SIZE - (uintptr_t)b->hva % PAGE_SIZE);
		second = b->len - first;
	}
	seq = page_mark(cpu, b->page, b->hva, lines_of((uintptr_t)b->hva % PAGE_SIZE, first),
			&b->gen);
	if (second)
		seq = page_mark(cpu, b->page2, b->hva2, lines_of(0, second), &b->gen2);
	done = purge_done(cpu, seq);
	if (!bytes_equal(b->hva, block_bytes(b), first) ||
	    (second && !bytes_equal(b->hva2, block_bytes(b) + first, second)))
		return false;
	b->flags = (b->flags & ~BLOCK_UNTRUSTED) | (done ? 0 : BLOCK_UNTRUSTED);
	*written_hits(cpu, b->page) = 0;
	return true;
}

static bool block_fresh(const struct block *b)
{
	return !(b->flags & BLOCK_UNTRUSTED) && b->gen == atomic_load(&b->page->gen) &&
	       (!(b->flags & BLOCK_CROSS) || b->gen2 == atomic_load(&b->page2->gen));
}

static struct block *block_alloc(struct cpu *cpu)
{
	struct block_cache *c = cpu->blocks;

	if (c->arena_size - c->arena_used < block_max_size) {
		vec_release(cpu); /* memset */
		block_cache_flush(cpu);
	}
	return (struct block *)(c->arena + c->arena_used);
}

/* Keep the block: takes its room for good and makes it findable. */
static void block_commit(struct cpu *cpu, struct block *b, const uint8_t *bytes)
{
	struct block **head = hash_head(cpu, b->hva);

	bytes_copy(block_bytes(b), bytes, b->len);
	cpu->blocks->arena_used += ALIGN_UP((uint64_t)(block_bytes(b) + b->len - (uint8_t *)b), 64);
	b->hash_next = *head;
	*head = b;
	cpu->stats.blocks_decoded++;
}

/* Decode as many instructions from buf as belong to one block. */
static void decode_run(struct cpu *cpu, struct block *b, const uint8_t *buf, unsigned avail)
{
	b->nr = 0;
	b->len = 0;
	while (b->nr < BLOCK_MAX_INSNS) {
		struct insn *in = &b->insns[b->nr];

		if (decode(cpu, in, buf + b->len, avail - b->len) != INSN_OK)
			break; /* fetch_one finds out what it is when it is reached */
		b->nr++;
		b->len += in->len;
		if (in->flags & INSN_END)
			break;
	}
}

static void block_place(struct cpu *cpu, struct block *b, const uint8_t *hva)
{
	b->hva = hva;
	b->mode_key = cpu->mode_key;
	b->page = page_of(cpu->vm, hva);
	b->flags = 0;
	b->page2 = NULL;
	b->hva2 = NULL;
	b->xlat = NULL;
	b->heat = 0;
	links_clear(b);
}

/* An instruction whose bytes go on in the next page; NULL when that page is MMIO. */
static struct block *block_decode_cross(struct cpu *cpu, gva_t lin, const uint8_t *hva)
{
	struct block *b = block_alloc(cpu);
	uint8_t buf[INSN_MAX_LEN];
	gva_t lin2 = (lin & PAGE_MASK) + PAGE_SIZE;

	fetch_one(cpu, b, lin, buf);
	block_place(cpu, b, hva);
	if (b->len <= PAGE_SIZE - lin % PAGE_SIZE) {
		block_commit(cpu, b, buf); /* the guest changed it meanwhile */
		return b;
	}
	b->hva2 = code_hva(cpu, cpu->mode == INSN_MODE_64 ? lin2 : (uint32_t)lin2);
	if (!b->hva2)
		return NULL;
	b->page2 = page_of(cpu->vm, b->hva2);
	b->flags = BLOCK_CROSS;
	block_commit(cpu, b, buf);
	return b;
}

static struct block *block_decode(struct cpu *cpu, gva_t lin, const uint8_t *hva)
{
	uint64_t seg_left = check_rip(cpu);
	uint64_t avail = MIN(PAGE_SIZE - lin % PAGE_SIZE, (uint64_t)BLOCK_WINDOW);
	struct block *b = block_alloc(cpu);
	uint8_t buf[BLOCK_WINDOW];

	avail = MIN(avail, seg_left);
	bytes_copy(buf, hva, (unsigned)avail);
	decode_run(cpu, b, buf, (unsigned)avail);
	if (!b->nr)
		return seg_left < INSN_MAX_LEN ? NULL : block_decode_cross(cpu, lin, hva);
	block_place(cpu, b, hva);
	block_commit(cpu, b, buf);
	return b;
}

/* Does the second page of a crossing block lie where it did?  May fault: the instruction cannot be
 * executed without it. */
static bool cross_matches(struct cpu *cpu, const struct block *b, gva_t lin)
{
	gva_t lin2 = (lin & PAGE_MASK) + PAGE_SIZE;

	if (cpu->mode == INSN_MODE_64 && !canonical(cpu, lin2))
		fault_gp(cpu, 0);
	if (cpu->mode != INSN_MODE_64)
		lin2 = (uint32_t)lin2;
	return code_hva(cpu, lin2) == b->hva2;
}

/* Is a crossing block's part in the first page as it was?  This is asked before cross_matches, for
 * what is there now may be an instruction that does not reach the second page at all. */
static bool cross_begins(struct block *b)
{
	bool trusted = !(b->flags & BLOCK_UNTRUSTED);
	unsigned first = (unsigned)(PAGE_SIZE - (uintptr_t)b->hva % PAGE_SIZE);

	return (trusted && b->gen == atomic_load(&b->page->gen)) ||
	       bytes_equal(b->hva, block_bytes(b), first);
}

static struct block *block_find(struct cpu *cpu, gva_t lin, const uint8_t *hva)
{
	struct block *b, *next;

	for (b = *hash_head(cpu, hva); b; b = next) {
		next = b->hash_next;
		if (b->hva != hva || b->mode_key != cpu->mode_key)
			continue;
		if ((b->flags & BLOCK_CROSS) && !cross_begins(b)) {
			block_forget(cpu, b);
			continue;
		}
		if ((b->flags & BLOCK_CROSS) && !cross_matches(cpu, b, lin))
			continue;
		if (block_fresh(b) || block_validate(cpu, b))
			return b;
		block_forget(cpu, b);
	}
	return NULL;
}

struct block *block_lookup_slow(struct cpu *cpu, gva_t lin)
{
	uint64_t seg_left = check_rip(cpu);
	const uint8_t *hva;
	struct block *b;

	if (cpu->mode != INSN_MODE_64)
		lin = block_code_linear(cpu); /* check_rip has cut EIP */
	hva = code_hva(cpu, lin);
	if (!hva)
		return block_once(cpu, lin);
	b = block_find(cpu, lin, hva);
	while (!b) {
		cpu->doing = CPU_DOING_TRANSLATION;
		b = block_decode(cpu, lin, hva);
		cpu->doing = CPU_DOING_REST;
		if (!b)
			return block_once(cpu, lin);
		if (block_validate(cpu, b))
			break;
		block_forget(cpu, b); /* written while it was decoded: the arena keeps the hole */
		b = NULL;
	}
	if (unlikely(b->len > seg_left))
		return block_once(cpu, lin);
	cpu->blocks->jump[block_jump_index(lin)] = b;
	return b;
}

/* --- longer blocks -------------------------------------------------------------------------------
 */

/* One that leads somewhere else: whether it was taken is to be seen from RIP. */
static bool is_jcc(const struct insn *in)
{
	return insn_rows[in->id].xlat == XLAT_JCC && in->opsize == 8 && in->imm;
}

/* b: the instructions so far; where they are. */
static bool may_go_on(const struct block *b, const uint8_t *hva)
{
	return is_jcc(&b->insns[b->nr - 1]) && b->nr < BLOCK_MAX_INSNS &&
	       (uintptr_t)hva % PAGE_SIZE + b->len < PAGE_SIZE;
}

/* What has been decoded there and is true still. */
static struct block *block_known(struct cpu *cpu, const uint8_t *hva, const struct block *like)
{
	struct block *b = *hash_head(cpu, hva);

	while (b &&
	       (b->hva != hva || b->mode_key != like->mode_key || b->flags || b->gen != like->gen))
		b = b->hash_next;
	return b;
}

/* How much of b fits behind `to`: all, or up to a conditional jump. */
static unsigned fitting(const struct block *to, const struct block *b)
{
	unsigned n = 0, len = to->len, best = 0;

	while (n < b->nr && to->nr + n < BLOCK_MAX_INSNS && len + b->insns[n].len <= BLOCK_WINDOW) {
		len += b->insns[n++].len;
		if (n == b->nr || is_jcc(&b->insns[n - 1]))
			best = n;
	}
	return best;
}

/* bytes: all of to's.  False: nothing more is to follow. */
static bool append(struct block *to, struct block *b, uint8_t *bytes)
{
	unsigned n = fitting(to, b), len = 0;

	for (unsigned i = 0; i < n; i++)
		len += b->insns[i].len;
	bytes_copy((uint8_t *)&to->insns[to->nr], (uint8_t *)b->insns,
		   n * (unsigned)sizeof(*b->insns));
	bytes_copy(bytes + to->len, block_bytes(b), len);
	to->nr = (uint8_t)(to->nr + n);
	to->len = (uint16_t)(to->len + len);
	return n == b->nr;
}

struct block *block_extend(struct cpu *cpu, struct block *b)
{
	struct block_cache *c = cpu->blocks;
	struct block *longer, *next = b;
	uint8_t bytes[BLOCK_WINDOW];

	if (b->flags || !may_go_on(b, b->hva) || b->gen != atomic_load(&b->page->gen) ||
	    c->arena_size - c->arena_used < block_max_size)
		return b;
	longer = block_alloc(cpu);
	longer->nr = 0;
	longer->len = 0;
	while (next && append(longer, next, bytes) && may_go_on(longer, b->hva))
		next = block_known(cpu, b->hva + longer->len, b);
	if (longer->nr <= b->nr)
		return b;
	block_place(cpu, longer, b->hva);
	longer->gen = b->gen;
	longer->heat = b->heat;
	block_commit(cpu, longer, bytes);
	c->jump[block_jump_index(block_code_linear(cpu))] = longer;
	block_forget(cpu, b);
	return longer;
}

struct block *block_follow_slow(struct cpu *cpu, struct block **link)
{
	uint64_t flushes = cpu->blocks->flushes;
	struct block *b = block_lookup(cpu);

	/* After a flush the block that holds link is gone. */
	if (flushes == cpu->blocks->flushes && b != cpu->blocks->once)
		*link = b;
	return b;
}
