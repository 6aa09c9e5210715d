/* SPDX-License-Identifier: Apache-2.0 */
/* What dense.c and its kernels share. */
#ifndef DCMEM_DENSE_IMPL_H
#define DCMEM_DENSE_IMPL_H

#include <stddef.h>

#define DENSE_TILE_ROWS 6
#define DENSE_TILE_COLS 16

struct dense_kernels {
	/* c[6][16] += a[n_k][6]' b[n_k][16] */
	void (*tile)(const float *a, const float *b, size_t n_k, float *c, size_t c_row);
	double (*dot)(const double *a, const double *b, size_t n);
	void (*feedback)(const float *errors, size_t n_errors, const float *factors, size_t stride,
			 float *w, size_t n_cols);
};

extern const struct dense_kernels dense_portable, dense_avx2, dense_avx512;

#endif
