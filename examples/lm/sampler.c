/* SPDX-License-Identifier: Apache-2.0 */
/* Greedy choice and sampling by temperature; the same seed gives the same text. */
#include "sampler.h"

#include <math.h>

static uint32_t likeliest(const float *logits, uint32_t n)
{
	uint32_t best = 0;

	for (uint32_t i = 1; i < n; i++)
		if (logits[i] > logits[best])
			best = i;
	return best;
}

/* splitmix64 (Steele, Lea, Flood 2014), to a double in [0, 1). */
static double random_unit(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15ULL;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

uint32_t sampler_pick(struct sampler *sampler, const float *logits, uint32_t n)
{
	uint32_t best = likeliest(logits, n);
	double sum = 0, left;

	if (sampler->temperature <= 0)
		return best;
	for (uint32_t i = 0; i < n; i++)
		sum += exp(((double)logits[i] - logits[best]) / sampler->temperature);
	left = random_unit(&sampler->state) * sum;
	for (uint32_t i = 0; i < n; i++) {
		left -= exp(((double)logits[i] - logits[best]) / sampler->temperature);
		if (left < 0)
			return i;
	}
	return best;
}

double sampler_loss(const float *logits, uint32_t n, uint32_t token)
{
	float most = logits[likeliest(logits, n)];
	double sum = 0;

	for (uint32_t i = 0; i < n; i++)
		sum += expf(logits[i] - most);
	return log(sum) + most - logits[token];
}
