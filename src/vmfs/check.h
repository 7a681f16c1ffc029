/* vmfs/check.h - what the parts of vmfs_check() share.  Only check*.c include it.  One thread. */
#pragma once

#include "vmfs/internal.h"

enum {
	CHECK_SAMPLES = 20,   /* findings of a kind that are told one by one */
	CHECK_MAX_CODES = 48, /* kinds */
	CHECK_MAX_CLUSTERS = 1 << 24,
};

/* What of a kind of resource is used, by its bitmap and by what was found to use it. */
struct use {
	uint64_t nr;         /* resources; 0: none, or not to be had */
	uint64_t *allocated; /* by the bitmap; bits, as the next ones */
	uint64_t *used;      /* something points there */
	uint64_t *unknown;   /* of the clusters: their bitmap is not readable */
};

struct check {
	struct vmfs *v;
	void (*finding)(void *opaque, enum vmfs_severity severity, const char *what,
			const char *sentence);
	void *opaque;
	bool (*stop)(void *opaque);
	struct use use[VMFS_NR_RES];
	uint32_t *links;  /* of descriptors: entries that name them */
	uint64_t *walked; /* directories that were walked */
	struct {
		const char *what;
		enum vmfs_severity severity;
		uint64_t nr;
	} told[CHECK_MAX_CODES];
	unsigned nr_told;
};

void check_tell(struct check *c, enum vmfs_severity severity, const char *what, const char *fmt,
		...) PRINTF_LIKE(4, 5);
bool check_stopped(struct check *c); /* the caller wants no more: -ECANCELED */

static inline bool bit_get(const uint64_t *map, uint64_t i)
{
	return map[i / 64] >> i % 64 & 1;
}

static inline void bit_set(uint64_t *map, uint64_t i)
{
	map[i / 64] |= BIT(i % 64);
}

/* The resource an address names, as kind and number; false: there is none such. */
bool check_index(const struct check *c, const struct vmfs_addr *a, enum vmfs_resource_kind *kind,
		 uint64_t *index);
/* Descriptor number i has this address, and back. */
uint32_t check_fd_addr(const struct check *c, uint64_t i);
extern const char *const check_kind_name[VMFS_NR_RES];

/* --- the parts: 0 or -errno --------------------------------------------------------------------
 */
int check_heartbeats(struct check *c);
int check_clusters(struct check *c);    /* check_meta.c: fills .allocated */
int check_files(struct check *c);       /* check_files.c: fills .used */
int check_directories(struct check *c); /* check_dirs.c: fills .links */
