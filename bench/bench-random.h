/* SPDX-License-Identifier: Apache-2.0 */
/* Seeded random numbers of the bench: the same in every run, but for the last bits of libm. */
#ifndef BENCH_RANDOM_H
#define BENCH_RANDOM_H

#include <stdint.h>

struct bench_random {
	uint64_t state;
	double spare; /* the second of a pair of Gaussian numbers */
	int has_spare;
};

enum bench_shape {
	BENCH_GAUSS,
	BENCH_LAPLACE,
	BENCH_STUDENT4, /* Student's t with 4 degrees of freedom */
};

void bench_random_init(struct bench_random *random, uint64_t seed);
uint64_t bench_random_u64(struct bench_random *random); /* SplitMix64 */
double bench_random_unit(struct bench_random *random);	/* in (0, 1) */
double bench_random_shape(struct bench_random *random, enum bench_shape shape);

/*
 * A value of the shape times `scale`, rounded to nearest; values beyond 127 are drawn again, as
 * quantization by the absolute maximum has none.
 */
int8_t bench_random_int8(struct bench_random *random, enum bench_shape shape, double scale);
/* The scale that gives such values `bits` of order-0 entropy, 1 to 7.5. */
double bench_random_scale(enum bench_shape shape, double bits);

#endif
