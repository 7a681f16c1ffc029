/* mem/mem.c - see mem.h.
 *
 * One memfd holds all RAM; ranges are slices of it, in the order they were added, each at an offset
 * that equals its gpa modulo a huge page: a hypervisor can map huge pages only where guest-physical
 * and host addresses agree like that.  The holes between cost nothing.  The whole file is mapped
 * once, between two guards that nobody may touch: an engine that miscounted at either end would
 * fault there and not reach other memory of ours.  The page records are a second, anonymous mapping
 * with one struct mem_page per memfd page; untouched parts cost the host nothing.
 *
 * Writer and decoder (struct mem_page in mem.h) agree without a lock, like this:
 *
 *   writer                              decoder
 *   W1 store the bytes                  D1 code_lines |= lines      (locked RMW)
 *   W2 full fence                       D2 g = gen
 *   W3 read code_lines                  D3 read the bytes, decode
 *   W4 line set: gen++                  D4 before running it: gen == g?
 *
 * W1-W3 and D1-D3 each are "store mine, fence, load yours": at least one side sees the other.
 * If W3 sees the bit, gen moves after the bytes did: a decoder with older bytes read gen before
 * (D2 precedes D3) and fails D4.  If W3 misses the bit, D1 came after the fence, so D3 reads the
 * new bytes.  Incrementing before the store instead would let a decoder read the new gen with the
 * old bytes and keep them for ever.
 *
 * Dirty marks follow the same rule: bytes first, mark after.  mem_dirty_fetch clears the mark and
 * only then does its caller copy the page, so a write is in the copy or its mark survives. */
#include "mem/mem.h"

#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MEM_MAX_RANGES = 16 };

#define MEM_GUARD (2 * MiB) /* also what RAM is aligned to, for the host's huge pages */

#define MEM_LINE_SHIFT 6 /* code_lines: one bit per 64 bytes */

struct mem {
	int fd;
	uint64_t align; /* of the mapping and of offsets: a huge page */
	uint64_t huge;  /* the file's page size when it is of huge pages, else 0 */
	uint64_t size;  /* of the memfd and both mappings, in bytes, holes included */
	uint64_t ram;   /* all ranges together */
	uint8_t *base;
	struct mem_page *pages;
	_Atomic bool tracking;
	void (*code_written)(void *opaque, struct mem_page *page);
	void *code_opaque;
	unsigned nr_ranges;
	struct mem_range ranges[MEM_MAX_RANGES]; /* sorted by gpa */
	uint64_t offset[MEM_MAX_RANGES];         /* of ranges[i] in the memfd */
};

static int open_memfd(uint64_t huge_page, struct error *err)
{
	unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
	int fd;

	if (huge_page) /* its size is told as a power of two */
		flags |= MFD_HUGETLB | (unsigned)__builtin_ctzll(huge_page) << MFD_HUGE_SHIFT;
	fd = memfd_create("guest-ram", flags);
	if (fd < 0 && huge_page)
		return err_errno(err, errno, "this host has no huge pages of %llu MiB",
				 (unsigned long long)(huge_page / MiB));
	return fd < 0 ? err_errno(err, errno, "cannot make a memfd for guest memory") : fd;
}

int mem_create(struct mem **out, struct error *err)
{
	return mem_create_huge(out, 0, err);
}

int mem_create_huge(struct mem **out, uint64_t huge_page, struct error *err)
{
	struct mem *m = calloc(1, sizeof(*m));
	int r;

	if (!m)
		return err_errno(err, ENOMEM, "guest memory");
	m->huge = huge_page;
	m->align = MAX(huge_page, MEM_GUARD);
	r = m->fd = open_memfd(huge_page, err);
	if (r < 0)
		goto free_mem;
	/* Whoever the descriptor is shared with later must not be able to turn our accesses into
	 * SIGBUS by cutting the file short.  Growing stays allowed for mem_add_ram. */
	if (fcntl(m->fd, F_ADD_SEALS, F_SEAL_SHRINK) < 0) {
		r = err_errno(err, errno, "cannot seal the guest memory file");
		goto close_fd;
	}
	*out = m;
	return 0;

close_fd:
	close(m->fd);
free_mem:
	free(m);
	return r;
}

static size_t page_records_len(uint64_t ram)
{
	return ALIGN_UP(ram / PAGE_SIZE * sizeof(struct mem_page), PAGE_SIZE);
}

static int check_new_range(const struct mem *m, gpa_t gpa, uint64_t size, struct error *err)
{
	if ((gpa | size) & ~PAGE_MASK || !size || gpa + size < gpa ||
	    size > (uint64_t)INT64_MAX - m->size - 2 * m->align)
		return err_set(err, EINVAL, "guest memory at %#llx, %#llx bytes: not whole pages",
			       (unsigned long long)gpa, (unsigned long long)size);
	if (m->nr_ranges == MEM_MAX_RANGES)
		return err_set(err, E2BIG, "more than %d ranges of guest memory", MEM_MAX_RANGES);
	for (unsigned i = 0; i < m->nr_ranges; i++) {
		const struct mem_range *o = &m->ranges[i];

		if (gpa < o->gpa + o->size && o->gpa < gpa + size)
			return err_set(err, EEXIST, "guest memory at %#llx overlaps that at %#llx",
				       (unsigned long long)gpa, (unsigned long long)o->gpa);
	}
	return 0;
}

/* The page records; a grown mapping that moved keeps its contents. */
static int grow_records(struct mem *m, uint64_t new_size, struct error *err)
{
	size_t old_len = page_records_len(m->size), len = page_records_len(new_size);
	void *p;

	if (m->size)
		p = mremap(m->pages, old_len, len, MREMAP_MAYMOVE);
	else
		p = mmap(NULL, len, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return err_errno(err, errno, "cannot map the guest memory page records");
	m->pages = p;
	return 0;
}

static void shrink_records(struct mem *m, uint64_t new_size)
{
	if (m->size)
		m->pages =
			mremap(m->pages, page_records_len(new_size), page_records_len(m->size), 0);
	else
		munmap(m->pages, page_records_len(new_size));
}

/* The file between its guards.  NULL and errno when there is no room; huge pages are reserved now,
 * so that none is missing later. */
static uint8_t *map_guarded(const struct mem *m, uint64_t size)
{
	uint64_t len = size + 2 * MEM_GUARD + m->align;
	uint8_t *all =
		mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint8_t *base = (uint8_t *)ALIGN_UP((uintptr_t)all + MEM_GUARD, m->align);
	uint64_t before = (uint64_t)(base - all) - MEM_GUARD;
	int flags = MAP_SHARED | MAP_FIXED | (m->huge ? 0 : MAP_NORESERVE), e;

	if (all == MAP_FAILED)
		return NULL;
	if (before)
		munmap(all, before);
	munmap(base + size + MEM_GUARD, m->align - before);
	if (mmap(base, size, PROT_READ | PROT_WRITE, flags, m->fd, 0) != MAP_FAILED)
		return base;
	e = errno;
	munmap(base - MEM_GUARD, size + 2 * MEM_GUARD);
	errno = e;
	return NULL;
}

static void unmap_guarded(uint8_t *base, uint64_t size)
{
	munmap(base - MEM_GUARD, size + 2 * MEM_GUARD);
}

static int grow(struct mem *m, uint64_t new_size, struct error *err)
{
	uint8_t *base;
	int r;

	if (ftruncate(m->fd, (off_t)new_size) < 0)
		return err_errno(err, errno, "cannot reserve %llu MiB of guest memory",
				 (unsigned long long)(new_size / MiB));
	r = grow_records(m, new_size, err);
	if (r < 0)
		return r;
	base = map_guarded(m, new_size);
	if (!base) {
		r = err_errno(err, errno, "cannot map %llu MiB of guest memory%s",
			      (unsigned long long)(new_size / MiB),
			      m->huge ? ": there are not as many free huge pages (sysctl "
					"vm.nr_hugepages, or hugepages-*/nr_hugepages in sysfs)"
				      : "");
		shrink_records(m, new_size);
		return r;
	}
	if (m->size)
		unmap_guarded(m->base, m->size);
	m->base = base;
	m->size = new_size;
	/* Hints: fewer host TLB misses; a core dump of ours is not a dump of the guest. */
	madvise(m->base, m->size, MADV_HUGEPAGE);
	madvise(m->base, m->size, MADV_DONTDUMP);
	return 0;
}

void mem_destroy(struct mem *m)
{
	if (!m)
		return;
	if (m->size) {
		unmap_guarded(m->base, m->size);
		munmap(m->pages, page_records_len(m->size));
	}
	close(m->fd);
	free(m);
}

int mem_add_ram(struct mem *m, gpa_t gpa, uint64_t size, struct error *err)
{
	uint64_t offset;
	unsigned i;
	int r;

	r = check_new_range(m, gpa, size, err);
	if (r < 0)
		return r;
	offset = m->size + ((gpa - m->size) & (m->align - 1));
	r = grow(m, m->huge ? ALIGN_UP(offset + size, m->huge) : offset + size, err);
	if (r < 0)
		return r;
	m->ram += size;
	for (i = m->nr_ranges; i && m->ranges[i - 1].gpa > gpa; i--) {
		m->ranges[i] = m->ranges[i - 1];
		m->offset[i] = m->offset[i - 1];
	}
	m->ranges[i] = (struct mem_range){.gpa = gpa, .size = size};
	m->offset[i] = offset;
	m->nr_ranges++;
	for (i = 0; i < m->nr_ranges; i++) /* the mapping may have moved */
		m->ranges[i].hva = m->base + m->offset[i];
	return 0;
}

unsigned mem_ram_ranges(const struct mem *m, const struct mem_range **out)
{
	*out = m->ranges;
	return m->nr_ranges;
}

uint64_t mem_ram_size(const struct mem *m)
{
	return m->ram;
}

int mem_fd(const struct mem *m)
{
	return m->fd;
}

uint64_t mem_fd_offset(const struct mem *m, const struct mem_range *r)
{
	return (uint64_t)(r->hva - m->base);
}

/* Where gpa is in the memfd, and how many bytes follow it in its range; false when not RAM. */
static inline bool ram_find(const struct mem *m, gpa_t gpa, uint64_t *offset, uint64_t *left)
{
	for (unsigned i = 0; i < m->nr_ranges; i++) {
		uint64_t in = gpa - m->ranges[i].gpa; /* wraps to huge when below */

		if (in < m->ranges[i].size) {
			*offset = m->offset[i] + in;
			*left = m->ranges[i].size - in;
			return true;
		}
	}
	return false;
}

/* Is all of [gpa, gpa+len) RAM?  It may span ranges that touch. */
static bool ram_covers(const struct mem *m, gpa_t gpa, uint64_t len)
{
	uint64_t offset, left;

	while (len) {
		if (!ram_find(m, gpa, &offset, &left))
			return false;
		if (len <= left)
			return true;
		gpa += left;
		len -= left;
		if (!gpa) /* wrapped at 2^64 */
			return false;
	}
	return true;
}

int mem_read(struct mem *m, gpa_t gpa, void *buf, uint64_t len)
{
	uint64_t offset = 0, left = 0;
	uint8_t *p = buf;

	if (!ram_covers(m, gpa, len))
		return -EFAULT;
	for (; len; gpa += left, p += left, len -= left) {
		ram_find(m, gpa, &offset, &left);
		left = MIN(left, len);
		memcpy(p, m->base + offset, left);
	}
	return 0;
}

/* The 64-byte lines of a page that [start, end) within it touches; 0 <= start < end <= 4096. */
static uint64_t line_mask(uint64_t start, uint64_t end)
{
	unsigned first = start >> MEM_LINE_SHIFT, last = (end - 1) >> MEM_LINE_SHIFT;

	return (~0ull >> (63 - (last - first))) << first;
}

void mem_watch_code(struct mem *m, void (*written)(void *opaque, struct mem_page *page),
		    void *opaque)
{
	m->code_written = written;
	m->code_opaque = opaque;
}

/* W3 and W4 above, and the dirty mark, for bytes of one page; the fence is behind us. */
static inline void page_wrote(struct mem *m, struct mem_page *p, uint64_t start, uint64_t end)
{
	uint64_t lines = atomic_load_explicit(&p->code_lines, memory_order_relaxed);

	if (unlikely(lines) && (lines & line_mask(start, end))) {
		atomic_fetch_add_explicit(&p->gen, 1, memory_order_release);
		if (m->code_written)
			m->code_written(m->code_opaque, p);
	}
	if (unlikely(atomic_load_explicit(&m->tracking, memory_order_relaxed)))
		atomic_fetch_or_explicit(&p->flags, MEM_PAGE_DIRTY, memory_order_release);
}

/* [offset, offset+len) of the memfd was just written. */
static void offset_wrote(struct mem *m, uint64_t offset, uint64_t len)
{
	uint64_t end = offset + len;

	atomic_thread_fence(memory_order_seq_cst); /* W2 */
	while (offset < end) {
		uint64_t page = offset & PAGE_MASK, stop = MIN(page + PAGE_SIZE, end);

		page_wrote(m, &m->pages[page >> PAGE_SHIFT], offset - page, stop - page);
		offset = stop;
	}
}

int mem_write(struct mem *m, gpa_t gpa, const void *buf, uint64_t len)
{
	uint64_t offset = 0, left = 0;
	const uint8_t *p = buf;

	if (!ram_covers(m, gpa, len))
		return -EFAULT;
	for (; len; gpa += left, p += left, len -= left) {
		ram_find(m, gpa, &offset, &left);
		left = MIN(left, len);
		memcpy(m->base + offset, p, left);
		offset_wrote(m, offset, left);
	}
	return 0;
}

int mem_zero(struct mem *m, gpa_t gpa, uint64_t len)
{
	uint64_t offset = 0, left = 0;

	if (!ram_covers(m, gpa, len))
		return -EFAULT;
	for (; len; gpa += left, len -= left) {
		ram_find(m, gpa, &offset, &left);
		left = MIN(left, len);
		memset(m->base + offset, 0, left);
		offset_wrote(m, offset, left);
	}
	return 0;
}

/* Ranges are whole pages, so an aligned access of up to 8 bytes that starts in RAM ends in it. */
#define MEM_SINGLE_ACCESS(bits)                                                                    \
	int mem_load##bits(struct mem *m, gpa_t gpa, uint##bits##_t *v)                            \
	{                                                                                          \
		uint64_t offset, left;                                                             \
                                                                                                   \
		if (gpa % sizeof(*v) || !ram_find(m, gpa, &offset, &left))                         \
			return -EFAULT;                                                            \
		*v = __atomic_load_n((uint##bits##_t *)(m->base + offset), __ATOMIC_ACQUIRE);      \
		return 0;                                                                          \
	}                                                                                          \
	int mem_store##bits(struct mem *m, gpa_t gpa, uint##bits##_t v)                            \
	{                                                                                          \
		uint64_t offset, left;                                                             \
                                                                                                   \
		if (gpa % sizeof(v) || !ram_find(m, gpa, &offset, &left))                          \
			return -EFAULT;                                                            \
		__atomic_store_n((uint##bits##_t *)(m->base + offset), v, __ATOMIC_RELEASE);       \
		offset_wrote(m, offset, sizeof(v));                                                \
		return 0;                                                                          \
	}

MEM_SINGLE_ACCESS(16)
MEM_SINGLE_ACCESS(32)
MEM_SINGLE_ACCESS(64)

uint64_t mem_borrow(struct mem *m, gpa_t gpa, uint64_t len, uint8_t **hva)
{
	uint64_t offset, left;

	if (!ram_find(m, gpa, &offset, &left))
		return 0;
	*hva = m->base + offset;
	return MIN(left, len);
}

void mem_wrote(struct mem *m, gpa_t gpa, uint64_t len)
{
	uint64_t offset, left;

	for (; len && ram_find(m, gpa, &offset, &left); gpa += left, len -= left) {
		left = MIN(left, len);
		offset_wrote(m, offset, left);
	}
}

/* A host file system that does not know of holes (hugetlbfs) says EINVAL. */
uint64_t mem_hole(struct mem *m, gpa_t gpa, uint64_t len)
{
	uint64_t offset, left;
	off_t data;

	if (!ram_find(m, gpa, &offset, &left))
		return 0;
	data = lseek(m->fd, (off_t)offset, SEEK_DATA);
	if (data < 0)
		return errno == ENXIO ? MIN(len, left) : 0;
	return MIN((uint64_t)data - offset, MIN(len, left)) & PAGE_MASK;
}

struct mem_page *mem_page(struct mem *m, gpa_t gpa)
{
	uint64_t offset, left;

	if (!ram_find(m, gpa, &offset, &left))
		return NULL;
	return &m->pages[offset >> PAGE_SHIFT];
}

void mem_dirty_track(struct mem *m, bool on)
{
	/* Marks of an earlier round mean nothing now.  Only looked at unless set: the records of
	 * pages nobody touched stay unallocated. */
	for (uint64_t i = 0; on && !m->tracking && i < m->size >> PAGE_SHIFT; i++)
		if (atomic_load_explicit(&m->pages[i].flags, memory_order_relaxed))
			atomic_fetch_and(&m->pages[i].flags, ~(uint32_t)MEM_PAGE_DIRTY);
	atomic_store(&m->tracking, on);
	/* Pairs with W2: a writer that still saw tracking off has its bytes in place by now. */
	atomic_thread_fence(memory_order_seq_cst);
}

bool mem_dirty_tracking(const struct mem *m)
{
	return atomic_load_explicit(&m->tracking, memory_order_relaxed);
}

int mem_dirty_fetch(struct mem *m, gpa_t gpa, uint64_t size, uint64_t *bitmap)
{
	uint64_t offset, left, nr = size >> PAGE_SHIFT;
	struct mem_page *p;

	if ((gpa | size) & ~PAGE_MASK || !ram_find(m, gpa, &offset, &left) || size > left)
		return -EFAULT;
	p = &m->pages[offset >> PAGE_SHIFT];
	memset(bitmap, 0, (nr + 63) / 64 * sizeof(*bitmap));
	for (uint64_t i = 0; i < nr; i++) {
		if (!(atomic_load_explicit(&p[i].flags, memory_order_relaxed) & MEM_PAGE_DIRTY))
			continue;
		atomic_fetch_and(&p[i].flags, ~(uint32_t)MEM_PAGE_DIRTY);
		bitmap[i / 64] |= BIT(i % 64);
	}
	return 0;
}
