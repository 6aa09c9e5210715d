/* SPDX-License-Identifier: Apache-2.0 */
/* From logits to a token. */
#ifndef LM_SAMPLER_H
#define LM_SAMPLER_H

#include <stddef.h>
#include <stdint.h>

struct sampler {
	double temperature; /* 0: the likeliest token, the lowest of equals */
	uint64_t state;	    /* of splitmix64: the seed */
};

uint32_t sampler_pick(struct sampler *sampler, const float *logits, uint32_t n);
/* -log of the softmax of logits at `token`, in nats; summed in double. */
double sampler_loss(const float *logits, uint32_t n, uint32_t token);

#endif
