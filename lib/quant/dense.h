/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The dense algebra that quantization needs, row-major: products in float, a Cholesky factor in
 * double. Paths by cpu_path(); each gives the same result on every run, whatever the threads.
 */
#ifndef DCMEM_DENSE_H
#define DCMEM_DENSE_H

#include <stdbool.h>
#include <stddef.h>

/* Element (i, j) stands at data[i * row + j * col]: a matrix, or the transpose of one. */
struct dense {
	const float *data;
	size_t row, col;
};

/* c[i * c_row + j] = (add ? itself : 0) + sum over k of a(i, k) b(k, j), i < m, j < n, k < n_k. */
void dense_multiply(unsigned n_threads, size_t m, size_t n, size_t n_k, struct dense a,
		    struct dense b, float *c, size_t c_row, bool add);

/* out[t][r] = sum over c of x[t][c] w[r][c]: a linear layer on n_tokens inputs. */
void dense_linear(unsigned n_threads, const float *x, size_t n_tokens, const float *w, size_t n_rows,
		  size_t n_cols, float *out, bool add);

/* gram[i][j] += sum over t of x[t][i] x[t][j], of the lower triangle alone. */
void dense_gram(unsigned n_threads, const float *x, size_t n_tokens, size_t n_cols, float *gram);

/*
 * The lower L with L L' = a, in place of a's lower triangle ([n][n]; the upper one is not read).
 * false: a is not positive definite; it is destroyed.
 */
bool dense_cholesky(unsigned n_threads, double *a, size_t n);

#define DENSE_ROWS 16 /* rows of weights that dense_feedback() works on at once */

/* w[k][r] += sum over j < n_errors of errors[j][r] * factors[j * stride + k], k < n_cols; both
 * inner dimensions are DENSE_ROWS, 64-byte aligned. */
void dense_feedback(const float *errors, size_t n_errors, const float *factors, size_t stride,
		    float *w, size_t n_cols);

#endif
