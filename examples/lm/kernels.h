/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inner loops: weights in their stored type, activations and sums in float32. Weights need no
 * alignment; nothing is read beyond the elements named.
 */
#ifndef LM_KERNELS_H
#define LM_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "dcmem/dcmem.h"

#define KERNEL_ROWS 6	  /* most weight rows of one register block */
#define KERNEL_MAX_TILE 32 /* most activations (batch columns) of one register block */

struct kernel {
	const char *name;
	unsigned int tile; /* batch columns of a register block */
	/* x as dot() wants it for rows of that dtype; NULL, or false returned: as it is */
	bool (*arrange)(uint32_t dtype, const float *x, size_t n, float *out);
	/* sum of row[i] * x[i], x arranged; dtype is one that kernel_has_dtype() accepts */
	float (*dot)(uint32_t dtype, const void *row, const float *x, size_t n);
	/* out[i] = row[i] */
	void (*expand)(uint32_t dtype, const void *row, size_t n, float *out);
	/* y[i] += a * x[i] */
	void (*axpy)(float a, const float *x, size_t n, float *y);
	/* c[r][j] += sum over k of w[r][k] * x[k][j]; j < tile, r < n_rows <= KERNEL_ROWS */
	void (*block)(const float *w, size_t w_stride, const float *x, size_t n, float *c,
		      size_t c_stride, unsigned int n_rows);
	/* Reads every byte once: the bandwidth that dot() could reach. */
	uint64_t (*sweep)(const void *data, size_t n_bytes);
	/* Multiply-adds in registers alone; returns the floating point operations done. */
	double (*peak)(uint64_t n_rounds, float *ret_sum);
};

extern const struct kernel kernel_portable;
extern const struct kernel kernel_avx2;
extern const struct kernel kernel_avx512;

bool kernel_has_dtype(uint32_t dtype);
/* Can this CPU run it? */
bool kernel_is_supported(const struct kernel *kernel);
/* By name ("portable", "avx2", "avx512"), or the best for NULL. 0 or -EINVAL. */
int kernel_choose(const char *name, const struct kernel **ret_kernel);

/* One element of any accepted dtype: the definition that every kernel agrees with. */
static inline float kernel_element(uint32_t dtype, const void *row, size_t i)
{
	const uint8_t *bytes = row;
	uint32_t word;
	uint16_t half;
	float value;

	switch (dtype) {
	case DCMEM_F32:
		memcpy(&value, bytes + 4 * i, 4);
		return value;
	case DCMEM_BF16:
		memcpy(&half, bytes + 2 * i, 2);
		word = (uint32_t)half << 16;
		memcpy(&value, &word, 4);
		return value;
	case DCMEM_F16: {
		uint32_t exponent, fraction;

		memcpy(&half, bytes + 2 * i, 2);
		exponent = (half >> 10) & 31;
		fraction = half & 1023;
		if (exponent == 0) { /* zero and subnormal: fraction * 2^-24 */
			value = (float)fraction * 0x1p-24F;
			return half >> 15 ? -value : value;
		}
		word = exponent == 31 ? 0x7f800000U : (exponent + 112) << 23;
		word |= (uint32_t)(half >> 15) << 31 | fraction << 13;
		memcpy(&value, &word, 4);
		return value;
	}
	default:
		return (float)(int8_t)bytes[i];
	}
}

#endif
