/* SPDX-License-Identifier: Apache-2.0 */
/* Order statistics of samples, and the entropy of histograms. */
#ifndef BENCH_STATS_H
#define BENCH_STATS_H

#include <stddef.h>
#include <stdint.h>

/* Of n samples; quartiles are interpolated linearly between neighbours, as numpy does. */
struct bench_stats {
	double min, q1, median, q3, max;
	unsigned n; /* 0: nothing was measured, the rest is 0 */
};

/* Sorts `samples`. */
struct bench_stats bench_stats_of(double *samples, unsigned n);

/* Shannon entropy in bits a symbol; 0 for an empty histogram. */
double bench_entropy(const uint64_t *histogram, unsigned n_symbols);
/* The same of bytes. */
double bench_entropy_bytes(const uint8_t *bytes, size_t n_bytes);

#endif
