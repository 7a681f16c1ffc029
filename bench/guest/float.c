/* float.c - rows of floating point and SIMD.  Only operations whose result is exactly defined. */
#include "workload.h"

#include <math.h>
#include <string.h>

static uint64_t bits(double d)
{
	uint64_t u;

	memcpy(&u, &d, sizeof(u));
	return u;
}

/* Points of the Mandelbrot set, and a sum with division and root. */
static uint64_t run_double(uint64_t ops)
{
	double total = 0;
	uint64_t inside = 0;

	for (uint64_t i = 0; i < ops; i++) {
		double cx = (double)(i % 64) / 24.0 - 2.0, cy = (double)(i / 64 % 64) / 32.0 - 1.0;
		double x = 0, y = 0;
		int n = 0;

		while (n < 64 && x * x + y * y < 4.0) {
			double t = x * x - y * y + cx;

			y = 2 * x * y + cy;
			x = t;
			n++;
		}
		inside += n;
		total += sqrt(x * x + y * y + 1.0) / (n + 0.5);
	}
	return mix(bits(total), inside);
}

typedef int32_t v4i __attribute__((vector_size(16)));
typedef int16_t v8s __attribute__((vector_size(16)));
typedef float v4f __attribute__((vector_size(16)));

enum { VECTORS = 256 };

static uint64_t run_packed_int(uint64_t ops)
{
	static v4i a[VECTORS], b[VECTORS];
	v4i sum = {0};

	for (int i = 0; i < VECTORS; i++) {
		a[i] = (v4i){i, i * 3, -i, i ^ 5};
		b[i] = (v4i){7 * i, 1, i + 2, -3 * i};
	}
	for (uint64_t done = 0; done < ops; done += VECTORS) {
		for (int i = 0; i < VECTORS; i++) {
			v4i t = a[i] + (b[i] << 3), more = t > b[i];
			v8s h = (v8s)t * (v8s)b[i] - (v8s)sum;

			sum += (t & more) | ((v4i)h & ~more);
			a[i] = __builtin_shuffle(t, (v4i){2, 0, 3, 1}) ^ (v4i)h;
		}
	}
	return mix_bytes(0, &sum, sizeof(sum));
}

static uint64_t run_packed_float(uint64_t ops)
{
	static v4f a[VECTORS], b[VECTORS];
	v4f sum = {0};

	for (int i = 0; i < VECTORS; i++) {
		a[i] = (v4f){i, i + 0.5f, 1.0f / (i + 1), -i};
		b[i] = (v4f){0.25f, 0.5f, 0.125f, 0.75f};
	}
	for (uint64_t done = 0; done < ops; done += VECTORS) {
		for (int i = 0; i < VECTORS; i++) {
			v4f t = a[i] * b[i] + b[VECTORS - 1 - i];

			a[i] = t - a[i] * (v4f){0.5f, 0.25f, 0.5f, 0.25f};
			sum += t / (a[i] * a[i] + 1.0f);
		}
	}
	return mix_bytes(0, &sum, sizeof(sum));
}

/* Horner's rule and a recurrence in the x87's own precision. */
static uint64_t run_x87(uint64_t ops)
{
	static const long double c[] = {0.1L, -0.7L, 0.33L, 1.25L, -0.5L, 0.75L};
	long double x = 0.3L, sum = 0;
	unsigned char raw[16] = {0};

	for (uint64_t i = 0; i < ops; i++) {
		long double y = c[0];

		for (int k = 1; k < 6; k++)
			y = y * x + c[k];
		sum += sqrtl(y * y + 1.0L) - y / (x + 3.0L);
		x = x * 3.9L * (1.0L - x);
	}
	memcpy(raw, &sum, 10); /* what is behind the tenth byte is nobody's */
	return mix_bytes(0, raw, sizeof(raw));
}

const struct row float_rows[] = {
	{"double", "point of the Mandelbrot set", 8192, NULL, run_double, NULL},
	{"packed-int", "16 bytes of packed integers", 400 * VECTORS * 4, NULL, run_packed_int,
	 NULL},
	{"packed-float", "four packed floats", 1000 * VECTORS * 4, NULL, run_packed_float, NULL},
	{"x87", "polynomial, root and division", 100000, NULL, run_x87, NULL},
	{0},
};
