/* Small things: memory that does not fail, UUIDs, the pattern, the hash of names. */
#include "internal.h"

#include <stdarg.h>

void mkfs_die(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fputs("mkvmfs: ", stderr);
	vfprintf(stderr, fmt, ap);
	fputc('\n', stderr);
	va_end(ap);
	exit(1);
}

void *xalloc(uint64_t n)
{
	void *p = calloc(1, n ? n : 1);

	if (!p)
		mkfs_die("out of memory");
	return p;
}

/* Room for n things of a size where there were old; the new ones are zero. */
void *xgrow(void *p, uint64_t n, uint64_t old, uint64_t size)
{
	p = realloc(p, n * size);
	if (!p)
		mkfs_die("out of memory");
	memset((char *)p + old * size, 0, (n - old) * size);
	return p;
}

char *xdup(const char *s)
{
	return strcpy(xalloc(strlen(s) + 1), s);
}

/* splitmix64's output function: every bit of x moves every bit of the result. */
uint64_t mix64(uint64_t x)
{
	x += 0x9E3779B97F4A7C15;
	x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
	x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
	return x ^ (x >> 31);
}

void make_uuid(uint8_t uuid[16], uint64_t seed, uint32_t time)
{
	static const uint8_t mac[6] = {0x00, 0x0c, 0x29, 0x80, 0x16, 0x86};

	put32(uuid, 0, time);
	put32(uuid, 4, (uint32_t)mix64(seed));
	put16(uuid, 8, (uint16_t)(mix64(seed) >> 32));
	memcpy(uuid + 10, mac, sizeof(mac));
}

void print_uuid(char out[36], const uint8_t u[16])
{
	snprintf(out, 36, "%08x-%08x-%04x-%02x%02x%02x%02x%02x%02x", get32(u, 0), get32(u, 4),
		 u[8] | u[9] << 8, u[10], u[11], u[12], u[13], u[14], u[15]);
}

void mkfs_pattern(uint64_t seed, uint64_t off, void *buf, uint64_t len)
{
	uint8_t *at = buf;

	while (len) {
		uint64_t word = mix64(seed * 0x100000001B3 ^ off / 8), n = 8 - off % 8;

		if (n > len)
			n = len;
		memcpy(at, (uint8_t *)&word + off % 8, n);
		at += n;
		off += n;
		len -= n;
	}
}

/* Bob Jenkins, lookup8.c (public domain, 1997): mixing of three 64-bit values. */
static void lookup8_mix(uint64_t v[3])
{
	static const struct {
		uint8_t right, shift;
	} step[] = {{1, 43}, {0, 9},  {1, 8},  {1, 38}, {0, 23}, {1, 5},
		    {1, 35}, {0, 49}, {1, 11}, {1, 12}, {0, 18}, {1, 22}};

	for (unsigned int i = 0; i < 12; i++) {
		uint64_t *x = &v[i % 3], y = v[(i + 1) % 3], z = v[(i + 2) % 3];

		*x = *x - y - z;
		*x ^= step[i].right ? z >> step[i].shift : z << step[i].shift;
	}
}

uint64_t mkfs_name_hash(const char *name)
{
	uint8_t key[256] = {0};
	uint64_t len = strlen(name), v[3] = {42, 42, 0x9E3779B97F4A7C13};
	unsigned int i;

	if (len > 127)
		mkfs_die("name '%s' is longer than 127 bytes", name);
	memcpy(key, name, len);
	for (i = (unsigned int)(len + 8) & ~7u; i < 127; i += 8)
		put64(key, i, 0x739A75C28E61B017);
	for (i = 0; i + 3 <= 32; i += 3) {
		for (unsigned int j = 0; j < 3; j++)
			v[j] += get64(key, (i + j) * 8ull);
		lookup8_mix(v);
	}
	v[0] += get64(key, 30 * 8);
	v[1] += get64(key, 31 * 8);
	v[2] += 32; /* the length, in words */
	lookup8_mix(v);
	return v[2];
}
