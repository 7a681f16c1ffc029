/* mem/hold.c - which host pages stand behind guest memory, and when: NUMA nodes, preallocation,
 * locking.  See struct mem_hold. */
#include "base/error.h"
#include "mem/mem.h"

#include <errno.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

/* One system call is all we need of libnuma, so we call it ourselves (mbind(2)).  The memory is a
 * shared file, so the policy is the file's and holds for whoever maps it. */
static int bind_range(const struct mem_range *r, const struct mem_hold *h, struct error *err)
{
	static const int modes[] = {
		[MEM_NUMA_BIND] = MPOL_BIND,
		[MEM_NUMA_PREFER] = MPOL_PREFERRED,
		[MEM_NUMA_INTERLEAVE] = MPOL_INTERLEAVE,
	};
	unsigned long nodes = h->nodes;

	/* maxnode counts one more than there are bits, as the kernel takes one off. */
	if (syscall(SYS_mbind, r->hva, r->size, modes[h->numa], &nodes, 65ul, 0u) == 0)
		return 0;
	if (errno == ENOSYS)
		return err_set(err, ENOSYS, "this kernel knows no NUMA nodes: leave numa= out");
	if (errno == EINVAL)
		return err_set(err, EINVAL,
			       "this host has no memory on the NUMA nodes that numa= "
			       "names (see /sys/devices/system/node)");
	return err_errno(err, errno, "cannot bind guest memory to NUMA nodes");
}

/* --- preallocation: by as many threads as help, each taking the next piece ---------------------
 */

enum { MAX_POPULATORS = 16 };
#define POPULATE_PIECE (64 * MiB)

struct populate {
	const struct mem_range *range;
	_Atomic uint64_t next; /* bytes of the range that have been taken */
	_Atomic int error;
};

/* Before Linux 5.14: a write to each page that changes nothing. */
static void touch(uint8_t *p, uint64_t len)
{
	for (uint64_t i = 0; i < len; i += PAGE_SIZE)
		__atomic_fetch_or(p + i, 0, __ATOMIC_RELAXED);
}

static void *populate_pieces(void *arg)
{
	struct populate *p = arg;
	uint64_t at;

	while (!atomic_load(&p->error) &&
	       (at = atomic_fetch_add(&p->next, POPULATE_PIECE)) < p->range->size) {
		uint8_t *hva = p->range->hva + at;
		uint64_t len = MIN(POPULATE_PIECE, p->range->size - at);

		if (madvise(hva, len, MADV_POPULATE_WRITE) == 0)
			continue;
		if (errno == EINVAL)
			touch(hva, len);
		else
			atomic_store(&p->error, errno);
	}
	return NULL;
}

static int populate_range(const struct mem_range *r, struct error *err)
{
	struct populate p = {.range = r};
	uint64_t pieces = (r->size + POPULATE_PIECE - 1) / POPULATE_PIECE;
	unsigned n = MIN(MIN(pieces, MAX_POPULATORS), (uint64_t)sysconf(_SC_NPROCESSORS_ONLN));
	pthread_t threads[MAX_POPULATORS];
	unsigned made = 0;

	while (made + 1 < n && !pthread_create(&threads[made], NULL, populate_pieces, &p))
		made++;
	populate_pieces(&p); /* we are one of them, so it goes on without any thread, too */
	for (unsigned i = 0; i < made; i++)
		pthread_join(threads[i], NULL);
	if (!p.error)
		return 0;
	return err_errno(err, p.error, "cannot allocate %llu MiB of guest memory",
			 (unsigned long long)(r->size / MiB));
}

static int lock_range(const struct mem_range *r, struct error *err)
{
	if (mlock(r->hva, r->size) == 0)
		return 0;
	if (errno == ENOMEM || errno == EPERM)
		return err_set(err, errno,
			       "may not lock %llu MiB of guest memory: raise memlock (ulimit -l)",
			       (unsigned long long)(r->size / MiB));
	return err_errno(err, errno, "cannot lock guest memory");
}

int mem_hold(struct mem *m, const struct mem_hold *h, struct error *err)
{
	const struct mem_range *ranges;
	unsigned n = mem_ram_ranges(m, &ranges);
	int r = 0;

	/* The nodes first: they count where a page is allocated. */
	for (unsigned i = 0; r == 0 && h->numa != MEM_NUMA_NONE && i < n; i++)
		r = bind_range(&ranges[i], h, err);
	for (unsigned i = 0; r == 0 && h->prealloc && i < n; i++)
		r = populate_range(&ranges[i], err);
	for (unsigned i = 0; r == 0 && h->lock && i < n; i++)
		r = lock_range(&ranges[i], err);
	return r;
}
