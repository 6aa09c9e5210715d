/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random numbers and the shapes of weights. The scale for an entropy comes from the distribution
 * itself, so that it does not depend on a sample. One thread a state.
 */
#include "bench-random.h"

#include <math.h>
#include <stdbool.h>

void bench_random_init(struct bench_random *random, uint64_t seed)
{
	*random = (struct bench_random){ .state = seed };
}

uint64_t bench_random_u64(struct bench_random *random)
{
	uint64_t z = random->state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

double bench_random_unit(struct bench_random *random)
{
	return ((double)(bench_random_u64(random) >> 12) + 0.5) * 0x1p-52;
}

static double gauss(struct bench_random *random)
{
	double radius, angle;

	if (random->has_spare) {
		random->has_spare = false;
		return random->spare;
	}
	radius = sqrt(-2 * log(bench_random_unit(random)));
	angle = 2 * M_PI * bench_random_unit(random);
	random->spare = radius * sin(angle);
	random->has_spare = true;
	return radius * cos(angle);
}

double bench_random_shape(struct bench_random *random, enum bench_shape shape)
{
	double u;

	switch (shape) {
	case BENCH_LAPLACE:
		u = bench_random_unit(random);
		return u < 0.5 ? log(2 * u) : -log(2 * (1 - u));
	case BENCH_STUDENT4:
		/* Chi squared with 4 degrees of freedom is minus twice the log of two uniforms. */
		u = -2 * log(bench_random_unit(random) * bench_random_unit(random));
		return gauss(random) / sqrt(u / 4);
	default:
		return gauss(random);
	}
}

int8_t bench_random_int8(struct bench_random *random, enum bench_shape shape, double scale)
{
	double value;

	do {
		value = rint(bench_random_shape(random, shape) * scale);
	} while (fabs(value) > 127);
	return (int8_t)value;
}

/* The share of values below x. */
static double below(enum bench_shape shape, double x)
{
	double w;

	switch (shape) {
	case BENCH_LAPLACE:
		return x < 0 ? exp(x) / 2 : 1 - exp(-x) / 2;
	case BENCH_STUDENT4:
		w = 1 + x * x / 4;
		return 0.5 + 0.375 * x / sqrt(w) * (1 - x * x / (12 * w));
	default:
		return erfc(-x * M_SQRT1_2) / 2;
	}
}

/* Of the shape times `scale`, rounded, without what is beyond 127. */
static double entropy_of_scale(enum bench_shape shape, double scale)
{
	double total = below(shape, 127.5 / scale) - below(shape, -127.5 / scale), bits = 0;

	for (int i = -127; i <= 127; i++) {
		double low = below(shape, (i - 0.5) / scale);
		double high = below(shape, (i + 0.5) / scale);
		double p = (high - low) / total;

		if (p > 0)
			bits -= p * log2(p);
	}
	return bits;
}

double bench_random_scale(enum bench_shape shape, double bits)
{
	double low = 0.05, high = 200;

	while (high - low > 1e-7 * low) {
		double scale = sqrt(low * high);

		if (entropy_of_scale(shape, scale) < bits)
			low = scale;
		else
			high = scale;
	}
	return sqrt(low * high);
}
