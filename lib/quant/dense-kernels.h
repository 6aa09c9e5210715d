/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inner loops of dense.c, in vectors of the compiler: included once for each instruction set,
 * which the including file chooses: DENSE_LANES floats a vector, and DENSE_KERNELS, the table's name.
 */
#include <string.h>

#include "quant/dense-impl.h"

#define VECTORS (16 / DENSE_LANES) /* that hold sixteen floats */

typedef float lanes __attribute__((vector_size(4 * DENSE_LANES)));
typedef double half_lanes __attribute__((vector_size(4 * DENSE_LANES)));

static inline lanes load(const float *from)
{
	lanes value;

	memcpy(&value, from, sizeof(value));
	return value;
}

/* Six rows of a times sixteen columns of b: twelve registers of AVX2, six of AVX-512. */
static void tile(const float *a, const float *b, size_t n_k, float *c, size_t c_row)
{
	lanes sums[DENSE_TILE_ROWS][VECTORS];

	for (unsigned i = 0; i < DENSE_TILE_ROWS; i++)
		for (unsigned v = 0; v < VECTORS; v++)
			sums[i][v] = load(c + i * c_row + v * DENSE_LANES);
	for (size_t k = 0; k < n_k; k++, a += DENSE_TILE_ROWS, b += DENSE_TILE_COLS) {
#pragma GCC unroll 4
		for (unsigned v = 0; v < VECTORS; v++) {
			lanes columns = load(b + v * DENSE_LANES);

#pragma GCC unroll 6
			for (unsigned i = 0; i < DENSE_TILE_ROWS; i++)
				sums[i][v] += columns * a[i];
		}
	}
	for (unsigned i = 0; i < DENSE_TILE_ROWS; i++)
		for (unsigned v = 0; v < VECTORS; v++)
			memcpy(c + i * c_row + v * DENSE_LANES, &sums[i][v], sizeof(lanes));
}

static double dot(const double *a, const double *b, size_t n)
{
	half_lanes sums[4] = { { 0 } }, x, y;
	size_t width = DENSE_LANES / 2, i = 0;
	double rest = 0;

	for (; i + 4 * width <= n; i += 4 * width) {
#pragma GCC unroll 4
		for (unsigned v = 0; v < 4; v++) {
			memcpy(&x, a + i + v * width, sizeof(x));
			memcpy(&y, b + i + v * width, sizeof(y));
			sums[v] += x * y;
		}
	}
	for (; i < n; i++)
		rest += a[i] * b[i];
	sums[0] += sums[1] + (sums[2] + sums[3]);
	for (unsigned j = 0; j < DENSE_LANES / 2; j++)
		rest += sums[0][j];
	return rest;
}

/* Column k of w is sixteen rows: VECTORS vectors; four columns at a time. */
static void feedback(const float *errors, size_t n_errors, const float *factors, size_t stride,
		     float *w, size_t n_cols)
{
	for (size_t k = 0; k < n_cols; k += 4) {
		size_t n = n_cols - k < 4 ? n_cols - k : 4;

		for (unsigned v = 0; v < VECTORS; v++) {
			const float *e = errors + v * DENSE_LANES;
			float *out = w + k * 16 + v * DENSE_LANES;
			lanes sums[4] = { { 0 } };

			for (size_t i = 0; i < n; i++)
				sums[i] = load(out + i * 16);
			if (n == 4) {
				for (size_t j = 0; j < n_errors; j++) {
					const float *f = factors + j * stride + k;
					lanes error = load(e + j * 16);

#pragma GCC unroll 4
					for (unsigned i = 0; i < 4; i++)
						sums[i] += error * f[i];
				}
			} else {
				for (size_t j = 0; j < n_errors; j++)
					for (size_t i = 0; i < n; i++)
						sums[i] += load(e + j * 16) * factors[j * stride + k + i];
			}
			for (size_t i = 0; i < n; i++)
				memcpy(out + i * 16, &sums[i], sizeof(lanes));
		}
	}
}

const struct dense_kernels DENSE_KERNELS = { tile, dot, feedback };
