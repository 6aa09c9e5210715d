/* SPDX-License-Identifier: Apache-2.0 */
/* Pure functions, any thread. */
#include "bench-stats.h"

#include <math.h>
#include <stdlib.h>

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double quantile(const double *sorted, unsigned n, double share)
{
	double at = share * (n - 1), low = floor(at);
	unsigned i = (unsigned)low;

	return i + 1 < n ? sorted[i] + (at - low) * (sorted[i + 1] - sorted[i]) : sorted[i];
}

struct bench_stats bench_stats_of(double *samples, unsigned n)
{
	if (n == 0)
		return (struct bench_stats){ 0 };
	qsort(samples, n, sizeof(*samples), compare);
	return (struct bench_stats){
		.min = samples[0],
		.q1 = quantile(samples, n, 0.25),
		.median = quantile(samples, n, 0.5),
		.q3 = quantile(samples, n, 0.75),
		.max = samples[n - 1],
		.n = n,
	};
}

double bench_entropy(const uint64_t *histogram, unsigned n_symbols)
{
	double bits = 0;
	uint64_t total = 0;

	for (unsigned i = 0; i < n_symbols; i++)
		total += histogram[i];
	for (unsigned i = 0; i < n_symbols; i++) {
		double p = (double)histogram[i] / (double)total;

		if (histogram[i])
			bits -= p * log2(p);
	}
	return bits;
}

double bench_entropy_bytes(const uint8_t *bytes, size_t n_bytes)
{
	uint64_t histogram[256] = { 0 };

	for (size_t i = 0; i < n_bytes; i++)
		histogram[bytes[i]]++;
	return bench_entropy(histogram, 256);
}
