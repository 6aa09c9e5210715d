/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocked products and a blocked Cholesky factor. A block of the result belongs to one thread, which
 * packs what it needs of both factors into panels on its stack:
 *
 *   for blocks of 96 x 128 of c, shared among threads:  for 256 of k:  pack a, pack b;
 *     for tiles of 6 x 16:  c += a b
 *
 * Sums over k are thus always in the same order.
 */
#include "quant/dense.h"

#include <string.h>

#include "base/cpu.h"
#include "base/parallel.h"
#define DENSE_LANES 4
#define DENSE_KERNELS dense_portable
#include "quant/dense-kernels.h"

#define BLOCK_ROWS  (16 * DENSE_TILE_ROWS)
#define BLOCK_COLS  (8 * DENSE_TILE_COLS)
#define BLOCK_K	    256
#define FACTOR_COLS 48 /* columns of a Cholesky step */
#define FACTOR_ROWS 32 /* rows that a thread takes at once */

static const struct dense_kernels *kernels(void)
{
#if defined(__x86_64__)
	if (cpu_path() == CPU_AVX512)
		return &dense_avx512;
	if (cpu_path() == CPU_AVX2)
		return &dense_avx2;
#endif
	return &dense_portable;
}

struct product {
	size_t m, n, n_k, n_col_blocks;
	struct dense a, b;
	float *c;
	size_t c_row;
	bool add, lower;
	const struct dense_kernels *kernels;
};

static size_t smaller(size_t a, size_t b)
{
	return a < b ? a : b;
}

/* [n][n_k] in slices of `width`: out[slice][k][width], missing ones 0. */
static void pack_panel(struct dense x, size_t first, size_t n, size_t k, size_t n_k, size_t width,
		       float *out)
{
	for (size_t slice = 0; slice < n; slice += width)
		for (size_t i = 0; i < n_k; i++, out += width) {
			size_t have = smaller(width, n - slice);
			const float *from = x.data + (first + slice) * x.row + (k + i) * x.col;

			for (size_t j = 0; j < have; j++)
				out[j] = from[j * x.row];
			for (size_t j = have; j < width; j++)
				out[j] = 0;
		}
}

/* Tiles that leave the block are added up beside it. */
static void multiply_tile(const struct product *p, const float *a, const float *b, size_t n_k,
			  float *c, size_t n_rows, size_t n_cols)
{
	_Alignas(64) float sums[DENSE_TILE_ROWS * DENSE_TILE_COLS] = { 0 };

	if (n_rows >= DENSE_TILE_ROWS && n_cols >= DENSE_TILE_COLS) {
		p->kernels->tile(a, b, n_k, c, p->c_row);
		return;
	}
	p->kernels->tile(a, b, n_k, sums, DENSE_TILE_COLS);
	for (size_t i = 0; i < smaller(n_rows, DENSE_TILE_ROWS); i++)
		for (size_t j = 0; j < smaller(n_cols, DENSE_TILE_COLS); j++)
			c[i * p->c_row + j] += sums[i * DENSE_TILE_COLS + j];
}

static void multiply_block(void *data, size_t item)
{
	const struct product *p = data;
	_Alignas(64) float a[BLOCK_ROWS * BLOCK_K], b[BLOCK_COLS * BLOCK_K];
	size_t row = item / p->n_col_blocks * BLOCK_ROWS, col = item % p->n_col_blocks * BLOCK_COLS;
	size_t n_rows = smaller(BLOCK_ROWS, p->m - row), n_cols = smaller(BLOCK_COLS, p->n - col);
	struct dense columns = { p->b.data, p->b.col, p->b.row };

	if (p->lower && col > row + n_rows - 1)
		return;
	for (size_t i = 0; !p->add && i < n_rows; i++)
		memset(p->c + (row + i) * p->c_row + col, 0, n_cols * sizeof(float));
	for (size_t k = 0; k < p->n_k; k += BLOCK_K) {
		size_t n_k = smaller(BLOCK_K, p->n_k - k);

		pack_panel(p->a, row, n_rows, k, n_k, DENSE_TILE_ROWS, a);
		pack_panel(columns, col, n_cols, k, n_k, DENSE_TILE_COLS, b);
		for (size_t j = 0; j < n_cols; j += DENSE_TILE_COLS)
			for (size_t i = 0; i < n_rows; i += DENSE_TILE_ROWS)
				multiply_tile(p, a + i * n_k, b + j * n_k, n_k,
					      p->c + (row + i) * p->c_row + col + j, n_rows - i,
					      n_cols - j);
	}
}

static void multiply(unsigned n_threads, struct product *p)
{
	size_t n_row_blocks = (p->m + BLOCK_ROWS - 1) / BLOCK_ROWS;

	p->n_col_blocks = (p->n + BLOCK_COLS - 1) / BLOCK_COLS;
	p->kernels = kernels();
	parallel_for(n_threads, n_row_blocks * p->n_col_blocks, multiply_block, p);
}

void dense_multiply(unsigned n_threads, size_t m, size_t n, size_t n_k, struct dense a,
		    struct dense b, float *c, size_t c_row, bool add)
{
	struct product p = { .m = m, .n = n, .n_k = n_k, .a = a, .b = b, .c = c, .c_row = c_row,
			     .add = add };

	multiply(n_threads, &p);
}

void dense_linear(unsigned n_threads, const float *x, size_t n_tokens, const float *w, size_t n_rows,
		  size_t n_cols, float *out, bool add)
{
	dense_multiply(n_threads, n_tokens, n_rows, n_cols, (struct dense){ x, n_cols, 1 },
		       (struct dense){ w, 1, n_cols }, out, n_rows, add);
}

void dense_gram(unsigned n_threads, const float *x, size_t n_tokens, size_t n_cols, float *gram)
{
	struct product p = { .m = n_cols, .n = n_cols, .n_k = n_tokens, .a = { x, 1, n_cols },
			     .b = { x, n_cols, 1 }, .c = gram, .c_row = n_cols, .add = true,
			     .lower = true };

	multiply(n_threads, &p);
}

void dense_feedback(const float *errors, size_t n_errors, const float *factors, size_t stride,
		    float *w, size_t n_cols)
{
	kernels()->feedback(errors, n_errors, factors, stride, w, n_cols);
}

/* --- Cholesky --- */

struct factor {
	double *a;
	size_t n, first, n_cols; /* columns of this step */
	const struct dense_kernels *kernels;
};

/* a(i, j) less what the columns before the step take from it. */
static void factor_row(const struct factor *f, size_t i)
{
	double *row = f->a + i * f->n;

	for (size_t j = f->first; j < f->first + f->n_cols && j <= i; j++)
		row[j] -= f->kernels->dot(row, f->a + j * f->n, f->first);
}

static void factor_rows(void *data, size_t item)
{
	const struct factor *f = data;
	size_t first = f->first + f->n_cols + item * FACTOR_ROWS;

	for (size_t i = first; i < first + FACTOR_ROWS && i < f->n; i++) {
		double *row = f->a + i * f->n;

		factor_row(f, i);
		for (size_t j = f->first; j < f->first + f->n_cols; j++) {
			const double *other = f->a + j * f->n;

			row[j] = (row[j] - f->kernels->dot(row + f->first, other + f->first,
							   j - f->first)) / other[j];
		}
	}
}

/* The square on the diagonal. */
static bool factor_corner(const struct factor *f)
{
	for (size_t i = f->first; i < f->first + f->n_cols; i++) {
		double *row = f->a + i * f->n;

		factor_row(f, i);
		for (size_t j = f->first; j <= i; j++) {
			const double *other = f->a + j * f->n;
			double rest = row[j] - f->kernels->dot(row + f->first, other + f->first,
							       j - f->first);

			if (j < i)
				row[j] = rest / other[j];
			else if (rest > 0) /* false for NaN as well */
				row[j] = __builtin_sqrt(rest);
			else
				return false;
		}
	}
	return true;
}

bool dense_cholesky(unsigned n_threads, double *a, size_t n)
{
	struct factor f = { .a = a, .n = n, .kernels = kernels() };

	for (; f.first < n; f.first += FACTOR_COLS) {
		f.n_cols = smaller(FACTOR_COLS, n - f.first);
		if (!factor_corner(&f))
			return false;
		parallel_for(n_threads, (n - f.first - f.n_cols + FACTOR_ROWS - 1) / FACTOR_ROWS,
			     factor_rows, &f);
	}
	return true;
}
