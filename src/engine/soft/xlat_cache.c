/* engine/soft/xlat_cache.c - memory for translated code, pages of it, links, and letting go.
 *
 * One region of address space per vCPU:
 *
 *     struct cpu ... | meta: xblocks, pages, jump table | code (rx): thunks, hot ->   cold ->  |
 *
 * Code is a memfd mapped twice, so nothing is ever writable and executable at one address.  All of
 * it is given up at once when one part is full.
 *
 * When is a translation the truth?  It is entered through the run loop, which has compared the
 * decoded block with memory; through `guarded`, where tlb.exid says that its page is mapped where
 * it was; or over links inside its page.  Writes to its bytes drop it: this vCPU's own at once
 * (xlat_written), others' when CPU_EV_CODE is seen, which is on the way back of any loop, at any
 * indirect branch and between pages.  That is as soon as cross-modifying code may expect without a
 * serializing instruction, and those all pass through the run loop. */
#include "engine/soft/xlat_int.h"

#include "base/error.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { CPU_ROOM = 64 * KiB };

struct region {
	size_t total, meta, code;
};

/* Shared out so that big guests stay within one budget. */
static void region_sizes(struct region *r, unsigned nr_cpus)
{
	r->code = MAX(ALIGN_UP(256 * MiB / nr_cpus, MiB), 48 * MiB);
	r->meta = r->code;
	r->total = CPU_ROOM + r->meta + r->code;
}

/* Before struct cpu: how much there is to unmap. */
struct region_head {
	struct region r;
};
#define HEAD_ROOM 4096u

int xlat_region_create(void **cpu, size_t size, unsigned nr_cpus, struct error *err)
{
	struct region r;
	uint8_t *p;

	region_sizes(&r, nr_cpus);
	if (HEAD_ROOM + size > CPU_ROOM)
		return err_set(err, ENOMEM, "translator: %zu bytes for a vCPU", size);
	p = mmap(NULL, r.total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return err_errno(err, errno, "address space for translated code");
	if (mprotect(p, CPU_ROOM + r.meta, PROT_READ | PROT_WRITE) < 0) {
		munmap(p, r.total);
		return err_errno(err, errno, "memory for translated code");
	}
	(void)madvise(p + CPU_ROOM, r.meta, MADV_HUGEPAGE);
	((struct region_head *)p)->r = r;
	*cpu = p + HEAD_ROOM;
	return 0;
}

static struct region_head *region_of(void *cpu)
{
	return (struct region_head *)((uint8_t *)cpu - HEAD_ROOM);
}

void xlat_region_destroy(void *cpu)
{
	struct region_head *h;

	if (!cpu)
		return;
	h = region_of(cpu);
	munmap(h, h->r.total);
}

static int map_code(struct xlat *x, int fd, struct error *err)
{
	if (ftruncate(fd, (off_t)x->size) < 0)
		return err_errno(err, errno, "memory for translated code");
	if (mmap(x->rx, x->size, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, fd, 0) ==
	    MAP_FAILED)
		return err_errno(err, errno, "executable memory for translated code");
	x->rw = mmap(NULL, x->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (x->rw == MAP_FAILED)
		return err_errno(err, errno, "memory for translated code");
	return 0;
}

static int code_create(struct xlat *x, struct error *err)
{
	int r, fd = memfd_create("hv-translated-code", MFD_CLOEXEC);

	if (fd < 0)
		return err_errno(err, errno, "memory for translated code");
	r = map_code(x, fd, err);
	close(fd);
	return r;
}

int xlat_create(struct cpu *cpu, const struct xlat_config *cfg, struct error *err)
{
	struct region *r = &region_of(cpu)->r;
	struct xlat *x = calloc(1, sizeof(*x));
	int e;

	if (x)
		x->gen = calloc(1, sizeof(*x->gen));
	if (!x || !x->gen) {
		free(x);
		return err_errno(err, ENOMEM, "translator of vCPU %u", cpu->index);
	}
	x->cpu = cpu;
	x->cfg = *cfg;
	x->size = r->code;
	x->meta = (uint8_t *)cpu - HEAD_ROOM + CPU_ROOM;
	x->meta_size = r->meta;
	x->rx = x->meta + r->meta;
	x->dump_fd = x->perf_fd = -1;
	e = code_create(x, err);
	if (!e && (e = xlat_dump_open(x, err)) < 0)
		munmap(x->rw, x->size);
	if (!e && cfg->lockstep && !(x->lockstep = calloc(1, xlat_lockstep_size)))
		e = err_errno(err, ENOMEM, "translator of vCPU %u", cpu->index);
	if (e < 0) {
		free(x->gen);
		free(x);
		return e;
	}
	x->cold_start = ALIGN_UP(x->size / 8 * 5, 4096);
	x->jump = x->jumps = (struct xlat_jump *)x->meta;
	x->order = (struct xblock **)(x->meta + x->meta_size) - 1;
	cpu->xl_jump = x->jump;
	cpu->xlat = x;
	xlat_flush(cpu);
	return 0;
}

void xlat_destroy(struct cpu *cpu)
{
	struct xlat *x = cpu->xlat;

	if (!x)
		return;
	xlat_signal_detach(cpu);
	xlat_dump_close(x);
	munmap(x->rw, x->size);
	free(x->lockstep);
	free(x->gen);
	free(x);
	cpu->xlat = NULL;
}

/* --- room --------------------------------------------------------------------------------------
 */

static void jump_clear(struct xlat_jump *jump)
{
	for (unsigned i = 0; i < XLAT_JUMP_ENTRIES; i++)
		jump[i].lin = 1; /* no target: its index is another one's */
	jump[1].lin = 0;
}

static struct xlat_jump *jump_table(const struct xlat *x, uint32_t key)
{
	for (unsigned i = 0; i < XLAT_JUMP_TABLES; i++)
		if (x->jump_key[i] == key)
			return x->jumps + i * XLAT_JUMP_ENTRIES;
	return NULL;
}

void xlat_jump_choose(struct xlat *x)
{
	struct xlat_jump *t = jump_table(x, x->key);

	if (!t) {
		unsigned i = x->next_table++ % XLAT_JUMP_TABLES;

		t = x->jumps + i * XLAT_JUMP_ENTRIES;
		x->jump_key[i] = x->key;
		jump_clear(t);
	} else if (x->cfg.lockstep) {
		jump_clear(t); /* of what was expected when it was in use */
	}
	x->jump = t;
	x->cpu->xl_jump = t;
}

static void jump_clear_all(struct xlat *x)
{
	for (unsigned i = 0; i < XLAT_JUMP_TABLES; i++)
		x->jump_key[i] = ~0u; /* nobody's */
	xlat_jump_choose(x);
}

void xlat_flush(struct cpu *cpu)
{
	struct xlat *x = cpu->xlat;

	if (!x)
		return;
	x->flushes++;
	x->nr_order = 0;
	x->from = NULL;
	x->hot_used = XLAT_THUNKS;
	x->cold_used = x->cold_start;
	x->meta_used =
		ALIGN_UP(XLAT_JUMP_TABLES * XLAT_JUMP_ENTRIES * sizeof(struct xlat_jump), 64);
	for (unsigned i = 0; i < XLAT_PAGE_HEADS; i++)
		x->pages[i] = NULL;
	jump_clear_all(x);
	xlat_thunks(x);
	cpu->stats.evictions++;
}

static size_t xblock_size(unsigned nr)
{
	return ALIGN_UP(sizeof(struct xblock) + nr * (sizeof(struct xsite) + sizeof(struct xexit)),
			16);
}

void xlat_room(struct xlat *x)
{
	if (x->hot_used + XLAT_MAX_HOT > x->cold_start || x->cold_used + XLAT_MAX_COLD > x->size ||
	    x->meta_used + xblock_size(BLOCK_MAX_INSNS) + 2 * sizeof(struct xpage) + 64 +
			    (x->nr_order + 1) * sizeof(struct xblock *) >
		    x->meta_size)
		xlat_flush(x->cpu);
}

/* --- pages -------------------------------------------------------------------------------------
 */

static struct xpage **page_head(struct xlat *x, const struct mem_page *page)
{
	uintptr_t n = (uintptr_t)page / sizeof(*page);

	return &x->pages[(n ^ n >> 12) % XLAT_PAGE_HEADS];
}

/* --- links -------------------------------------------------------------------------------------
 */

static bool same_page(const struct xexit *from, const struct xblock *to)
{
	return from->from->page == to->page && !to->page2;
}

/* Where a jump with flags in `flags` may enter; 0: not without saving them first. */
static uint32_t entry_for(const struct xexit *from, const struct xblock *to, uint8_t flags)
{
	if (!same_page(from, to))
		return flags & FL_MEM ? to->guarded : 0;
	if (!to->flags_in || flags & to->flags_in)
		return !from->back ? to->plain : flags & FL_MEM ? to->mem : to->checked;
	if (!(flags & FL_MEM))
		return 0;
	return to->mem; /* wanted in the host's: loaded there */
}

void xlat_link(struct xlat *x, struct xexit *from, struct xblock *to)
{
	uint32_t entry;

	if (from->entry || from->target != to->lin || from->link || from->from->dead ||
	    from->from->key != to->key)
		return;
	entry = entry_for(from, to, from->flags);
	if (entry) {
		x_patch(x, from->jump, entry);
		from->link = LINK_JUMP;
	} else {
		x->rw[from->tail] = 0xe9;
		x_patch(x, from->tail + 1, entry_for(from, to, FL_HOST | FL_MEM));
		from->link = LINK_STUB;
	}
	from->to = to;
	from->next_in = to->in;
	to->in = from;
	x->cpu->stats.links++;
}

/* The stub's tail begins with LEA T0, [RIP + disp32]: 4C 8D 2D disp32. */
static void stub_restore(struct xlat *x, const struct xexit *e)
{
	int32_t rel = (int32_t)((const uint8_t *)e - (x->rx + e->tail + 7));

	x->rw[e->tail] = 0x4c;
	x->rw[e->tail + 1] = 0x8d;
	x->rw[e->tail + 2] = 0x2d;
	__builtin_memcpy(x->rw + e->tail + 3, &rel, 4);
}

static void unlink_exit(struct xlat *x, struct xexit *e)
{
	if (e->link == LINK_JUMP)
		x_patch(x, e->jump, e->stub);
	else if (e->link == LINK_STUB)
		stub_restore(x, e);
	e->link = LINK_NONE;
	e->to = NULL;
}

static void forget_incoming(struct xlat *x, struct xblock *xb)
{
	struct xexit *e, *next;

	for (e = xb->in; e; e = next) {
		next = e->next_in;
		unlink_exit(x, e);
	}
	xb->in = NULL;
}

/* Take e off the list of what it leads to. */
static void forget_outgoing(struct xexit *e)
{
	struct xexit **p;

	if (!e->link)
		return;
	for (p = &e->to->in; *p != e; p = &(*p)->next_in)
		;
	*p = e->next_in;
	e->link = LINK_NONE;
}

/* --- dropping ----------------------------------------------------------------------------------
 */

static unsigned jump_index(uint64_t lin)
{
	uint32_t l = (uint32_t)lin;

	return (l ^ l >> 6) % XLAT_JUMP_ENTRIES;
}

const struct xlat_jump *xlat_jump_at(const struct xlat *x, uint64_t lin)
{
	return &x->jump[jump_index(lin)];
}

void xlat_jump_set(struct xlat *x, struct xblock *xb)
{
	x->jump[jump_index(xb->lin)] = (struct xlat_jump){xb->lin, x_rx(x, xb->guarded)};
}

void xlat_jump_expect(struct xlat *x, uint64_t lin)
{
	if (x->expected != lin)
		x->jump[jump_index(x->expected)].lin = 1;
	x->expected = lin;
	x->jump[jump_index(lin)] =
		(struct xlat_jump){lin, x_rx(x, xlat_thunks_of(x, x->key)->leave_found)};
}

static void jump_drop(struct xlat *x, const struct xblock *xb)
{
	struct xlat_jump *t = jump_table(x, xb->key);
	unsigned i = jump_index(xb->lin);

	if (t && t[i].lin == xb->lin)
		t[i].lin = i == 1 ? 0 : 1;
}

static void xblock_kill(struct xlat *x, struct xblock *xb)
{
	struct xblock **p;

	if (xb->dead)
		return;
	xb->dead = true;
	forget_incoming(x, xb);
	forget_outgoing(&xb->exit[0]);
	forget_outgoing(&xb->exit[1]);
	for (unsigned i = 0; i < xb->nr_mid; i++)
		forget_outgoing(&xb->mid[i]);
	jump_drop(x, xb);
	for (p = &xb->b->xlat; *p && *p != xb; p = &(*p)->b_next)
		;
	if (*p)
		*p = xb->b_next;
	x->cpu->stats.xblocks_dropped++;
}

/* Nothing made of the page so far is to be run. */
static void page_renew(struct xlat *x, struct xpage *p)
{
	p->gen = atomic_load(&p->page->gen);
	for (struct xblock *xb = p->blocks; xb; xb = xb->page_next)
		xblock_kill(x, xb);
	for (struct xblock *xb = p->ending; xb; xb = xb->page2_next)
		xblock_kill(x, xb);
	p->blocks = p->ending = NULL;
}

/* A page of a library is mapped at another address in each process, and processes end.  What is
 * mapped at most places keeps those used last. */
enum { PAGE_PLACES = 12 };

static void page_to_front(struct xpage **head, struct xpage **at)
{
	struct xpage *p = *at;

	*at = p->next;
	p->next = *head;
	*head = p;
}

/* The page at lin, if known; forgets it where it was longest unused. */
static struct xpage *page_find(struct xlat *x, struct mem_page *page, uint64_t lin, uint32_t gen)
{
	struct xpage **head = page_head(x, page), **at = head, *p;
	unsigned places = 0;

	while ((p = *at)) {
		if (p->page == page && p->lin == (lin & PAGE_MASK) && p->gen == gen) {
			page_to_front(head, at);
			return p;
		}
		if (p->page == page && ++places >= PAGE_PLACES) {
			page_renew(x, p);
			*at = p->next;
		} else {
			at = &p->next;
		}
	}
	return NULL;
}

struct xpage *xlat_page(struct xlat *x, struct mem_page *page, uint64_t lin, uint32_t gen)
{
	struct xpage **head = page_head(x, page), *p = page_find(x, page, lin, gen);

	if (p)
		return p;
	p = (struct xpage *)(x->meta + x->meta_used);
	x->meta_used += ALIGN_UP(sizeof(*p), 16);
	*p = (struct xpage){.next = *head,
			    .page = page,
			    .lin = lin & PAGE_MASK,
			    .id = ++x->last_page,
			    .gen = gen};
	*head = p;
	return p;
}

static void page_kill_range(struct xlat *x, struct xpage *p, unsigned offset, unsigned len)
{
	struct xblock **at = &p->blocks, *xb;

	while ((xb = *at)) {
		unsigned start = (unsigned)(xb->lin % PAGE_SIZE);

		if (start < offset + len && offset < start + xb->b->len) {
			xblock_kill(x, xb);
			*at = xb->page_next;
		} else {
			at = &xb->page_next;
		}
	}
	for (xb = p->ending; xb; xb = xb->page2_next)
		if (offset < (xb->lin + xb->b->len) % PAGE_SIZE)
			xblock_kill(x, xb);
}

void xlat_written(struct cpu *cpu, struct mem_page *page, unsigned offset, unsigned len)
{
	struct xlat *x = cpu->xlat;

	if (!x)
		return;
	for (struct xpage *p = *page_head(x, page); p; p = p->next)
		if (p->page == page) {
			page_kill_range(x, p, offset, len);
			p->gen++;
		}
}

void xlat_forget_page(struct cpu *cpu, struct mem_page *page)
{
	struct xlat *x = cpu->xlat;

	if (!x)
		return;
	for (struct xpage *p = *page_head(x, page); p; p = p->next)
		if (p->page == page)
			page_renew(x, p);
}

void xlat_forget_block(struct cpu *cpu, struct block *b)
{
	struct xlat *x = cpu->xlat;

	if (!x || b->xlat_flush != x->flushes)
		return;
	while (b->xlat)
		xblock_kill(x, b->xlat);
}

/* --- what others have written ------------------------------------------------------------------
 */

static void news_lock(struct code_news *n)
{
	for (unsigned i = 1; atomic_exchange_explicit(&n->lock, true, memory_order_acquire); i++) {
		if (i % 256)
			__builtin_ia32_pause();
		else
			sched_yield();
	}
}

static void news_unlock(struct code_news *n)
{
	atomic_store_explicit(&n->lock, false, memory_order_release);
}

static void news_add(struct code_news *n, struct mem_page *page)
{
	unsigned i = 0;

	news_lock(n);
	while (i < n->nr && n->page[i] != page)
		i++;
	if (i == CODE_NEWS)
		n->all = true;
	else if (i == n->nr)
		n->page[n->nr++] = page;
	news_unlock(n);
}

void xlat_tell_written(struct soft_vm *vm, const struct cpu *but, struct mem_page *page)
{
	for (unsigned i = 0; i < vm->nr_cpus; i++) {
		struct cpu *cpu = vm->cpus[i];

		if (!cpu || cpu == but || !cpu->xlat)
			continue;
		news_add(&cpu->news, page);
		atomic_fetch_or(&cpu->events, CPU_EV_CODE);
	}
}

static void chain_check(struct xpage *p, struct xlat *x, const struct mem_page *page)
{
	for (; p; p = p->next)
		if ((!page || p->page == page) && p->gen != atomic_load(&p->page->gen))
			page_renew(x, p);
}

void xlat_check_pages(struct cpu *cpu)
{
	struct xlat *x = cpu->xlat;
	struct code_news *n = &cpu->news;
	bool all;

	if (!x)
		return;
	news_lock(n);
	all = n->all;
	for (unsigned i = 0; i < n->nr && !all; i++)
		chain_check(*page_head(x, n->page[i]), x, n->page[i]);
	n->all = false;
	n->nr = 0;
	news_unlock(n);
	for (unsigned i = 0; i < XLAT_PAGE_HEADS && all; i++)
		chain_check(x->pages[i], x, NULL);
}
