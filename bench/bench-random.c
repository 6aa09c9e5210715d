/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random numbers and the shapes of weights. The scale for an entropy is searched on numbers drawn
 * from a seed of its own, so that data do not depend on how long the search took. One thread a
 * state.
 */
#include "bench-random.h"

#include <math.h>
#include <stdbool.h>

#include "bench-stats.h"

#define N_SEARCH (1 << 20)

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

double bench_random_scale(enum bench_shape shape, double bits)
{
	double low = 0.05, high = 200;

	/* The same numbers at each step: then entropy grows with the scale, without noise. */
	for (int i = 0; i < 30 && high - low > 1e-4 * low; i++) {
		double scale = sqrt(low * high), got;
		uint64_t histogram[256] = { 0 };
		struct bench_random random;

		bench_random_init(&random, 0x5eed);
		for (int k = 0; k < N_SEARCH; k++)
			histogram[(uint8_t)bench_random_int8(&random, shape, scale)]++;
		got = bench_entropy(histogram, 256);
		if (fabs(got - bits) < 0.0005)
			return scale;
		if (got < bits)
			low = scale;
		else
			high = scale;
	}
	return sqrt(low * high);
}
