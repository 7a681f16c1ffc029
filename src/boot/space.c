/* boot/space.c - who gets which guest memory; see load.h. */
#include "boot/load.h"

#include <errno.h>

void boot_space_init(struct boot_space *s, const struct boot_range *map, unsigned nr_map)
{
	*s = (struct boot_space){.map = map, .nr_map = nr_map};
}

static bool inside(const struct boot_range *r, gpa_t gpa, uint64_t size)
{
	return gpa >= r->gpa && gpa - r->gpa <= r->size && size <= r->size - (gpa - r->gpa);
}

/* The first claim that shares a byte with [gpa, gpa+size), which does not wrap. */
static const struct boot_range *find_claim(const struct boot_space *s, gpa_t gpa, uint64_t size)
{
	for (unsigned i = 0; i < s->nr_claims; i++)
		if (gpa < s->claims[i].gpa + s->claims[i].size && s->claims[i].gpa < gpa + size)
			return &s->claims[i];
	return NULL;
}

bool boot_space_is_free(const struct boot_space *s, gpa_t gpa, uint64_t size)
{
	for (unsigned i = 0; i < s->nr_map; i++)
		if (s->map[i].type == BOOT_RAM && inside(&s->map[i], gpa, size))
			return !find_claim(s, gpa, size);
	return false;
}

int boot_space_claim(struct boot_space *s, gpa_t gpa, uint64_t size)
{
	if (!boot_space_is_free(s, gpa, size))
		return -EEXIST;
	if (s->nr_claims == BOOT_MAX_CLAIMS)
		return -E2BIG;
	s->claims[s->nr_claims++] = (struct boot_range){gpa, size, BOOT_RAM};
	return 0;
}

/* The lowest place in one RAM range cut down to [low, end); 0 = none.  Each step goes past one
 * claim, so it ends. */
static gpa_t low_in(const struct boot_space *s, gpa_t low, gpa_t end, uint64_t size, uint64_t align)
{
	const struct boot_range *c;
	gpa_t at = ALIGN_UP(low, align);

	while (at >= low && at < end && size <= end - at) {
		c = find_claim(s, at, size);
		if (!c)
			return at;
		at = ALIGN_UP(c->gpa + c->size, align);
	}
	return 0;
}

static gpa_t high_in(const struct boot_space *s, gpa_t low, gpa_t end, uint64_t size,
		     uint64_t align)
{
	const struct boot_range *c;
	gpa_t at;

	while (end > low && size <= end - low) {
		at = ALIGN_DOWN(end - size, align);
		if (at < low)
			break;
		c = find_claim(s, at, size);
		if (!c)
			return at;
		end = c->gpa;
	}
	return 0;
}

gpa_t boot_space_low(struct boot_space *s, uint64_t size, uint64_t align, gpa_t low, gpa_t limit)
{
	for (unsigned i = 0; i < s->nr_map; i++) {
		const struct boot_range *r = &s->map[i];
		gpa_t at;

		if (r->type != BOOT_RAM)
			continue;
		at = low_in(s, MAX(low, r->gpa), MIN(limit, r->gpa + r->size), size, align);
		if (at)
			return boot_space_claim(s, at, size) ? 0 : at;
	}
	return 0;
}

gpa_t boot_space_high(struct boot_space *s, uint64_t size, uint64_t align, gpa_t low, gpa_t limit)
{
	for (unsigned i = s->nr_map; i-- > 0;) {
		const struct boot_range *r = &s->map[i];
		gpa_t at;

		if (r->type != BOOT_RAM)
			continue;
		at = high_in(s, MAX(low, r->gpa), MIN(limit, r->gpa + r->size), size, align);
		if (at)
			return boot_space_claim(s, at, size) ? 0 : at;
	}
	return 0;
}
