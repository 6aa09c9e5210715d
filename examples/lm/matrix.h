/* SPDX-License-Identifier: Apache-2.0 */
/* A weight matrix and its product with one or many vectors. */
#ifndef LM_MATRIX_H
#define LM_MATRIX_H

#include "kernels.h"
#include "threads.h"
#include "weights.h"

#define MATRIX_MAX_BATCH 64

struct matrix;

/* Sees what a matrix is about to be multiplied with: x [n][columns]. 0 or a negative errno. */
struct observer {
	int (*observe)(struct observer *observer, const struct matrix *matrix, const float *x,
		       size_t n);
};

/* What a product runs on. */
struct engine {
	struct weights *weights;
	struct threads *threads;
	const struct kernel *kernel;
	bool hold;	       /* keep every view, even those that cost memory */
	float *packed;	       /* the batch, packed for kernel->block */
	size_t n_packed;
	uint64_t n_weight_bytes; /* read by products so far */
	double wait_seconds;	 /* spent acquiring views */
	struct observer *observer; /* NULL: none */
};

struct matrix {
	char *name;
	struct weight weight;
	float *scales; /* of quantized weights: one, or one a row */
	uint64_t n_scales;
	float *bias; /* NULL: none */
	bool shares_input; /* multiplies what the matrix applied before it multiplied */
	uint64_t block_rows; /* rows acquired at once */
	uint64_t n_blocks;
	struct weight_view *views; /* those kept */
};

/* The matrix `name`.weight of this shape, with its scale; `bias`: also `name`.bias. */
int matrix_open(struct engine *engine, const char *name, uint64_t n_rows, uint64_t n_cols,
		bool bias, struct matrix *ret_matrix);
void matrix_close(struct engine *engine, struct matrix *matrix);
/* out[b][row] = bias[row] + sum over c of w[row][c] * x[b][c], b < n */
int matrix_apply(struct engine *engine, struct matrix *matrix, const float *x, size_t n, float *out);
/* One row as floats. */
int matrix_row(struct engine *engine, struct matrix *matrix, uint64_t row, float *out);
/* A whole small tensor (norm, bias, scale) as n floats, copied; free with array_free(). */
int vector_read(struct engine *engine, const char *name, uint64_t n, float **ret_values);

#endif
