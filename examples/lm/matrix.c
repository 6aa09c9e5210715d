/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products with weight matrices. A matrix is acquired in blocks of rows, used, and given back, so
 * that a small window budget recycles; views that cost nothing are kept. Rows are cut among the
 * threads. A batch is packed once into tiles [k][tile]; each thread expands a panel of weights to
 * float32 in its L1/L2 cache and multiplies it with every tile:
 *
 *   for 24 rows:  for 256 columns:  expand 24 x 256;  for each tile:  4 register blocks of 6 rows
 */
#include "matrix.h"

#include <stdio.h>
#include <stdlib.h>

#include "util.h"

#define BLOCK_BYTES  (32ULL << 20) /* acquired at once; a window chunk holds 64 MiB. Untuned */
#define PANEL_ROWS   (4 * KERNEL_ROWS)
#define PANEL_COLS   256
#define JOB_MIN_BYTES (64U << 10) /* of weights, a job of one thread */
#define JOB_MAX_BYTES (1U << 20)  /* long runs: at the start of each, prefetching starts anew */
#define JOBS_A_THREAD 4U	       /* at least, so that none waits long for the last */
#define DOT_MAX_BATCH 3 /* below, a row is read once from memory and again from L1 */

struct product {
	const struct kernel *kernel;
	const struct matrix *matrix;
	const uint8_t *rows; /* of this block */
	uint64_t first_row, n_rows, job_rows;
	const float *x; /* [n][cols], or packed */
	size_t n, n_padded;
	float *out; /* [n][matrix rows] */
};

static float scale_of(const struct matrix *matrix, uint64_t row)
{
	if (matrix->n_scales == 0)
		return 1;
	return matrix->scales[matrix->n_scales == 1 ? 0 : row];
}

static void put(const struct product *product, uint64_t row, size_t b, float sum)
{
	const struct matrix *matrix = product->matrix;
	float bias = matrix->bias ? matrix->bias[row] : 0;

	product->out[b * matrix->weight.n_rows + row] = sum * scale_of(matrix, row) + bias;
}

static void dot_job(void *data, size_t i)
{
	const struct product *product = data;
	const struct weight *weight = &product->matrix->weight;
	uint64_t end = (i + 1) * product->job_rows;

	if (end > product->n_rows)
		end = product->n_rows;
	for (uint64_t row = i * product->job_rows; row < end; row++)
		for (size_t b = 0; b < product->n; b++)
			put(product, product->first_row + row, b,
			    product->kernel->dot(weight->dtype,
						 product->rows + row * weight->row_bytes,
						 product->x + b * weight->n_cols, weight->n_cols));
}

/* Up to PANEL_ROWS rows times the whole packed batch. */
static void multiply_panel(const struct product *product, uint64_t row, unsigned int n_rows)
{
	const struct kernel *kernel = product->kernel;
	const struct weight *weight = &product->matrix->weight;
	_Alignas(64) float panel[PANEL_ROWS * PANEL_COLS];
	_Alignas(64) float sums[PANEL_ROWS * MATRIX_MAX_BATCH];
	size_t bytes = weight->row_bytes / weight->n_cols, tile = kernel->tile;

	memset(sums, 0, sizeof(sums));
	for (uint64_t col = 0; col < weight->n_cols; col += PANEL_COLS) {
		size_t n_cols = weight->n_cols - col < PANEL_COLS ? weight->n_cols - col
								  : PANEL_COLS;

		for (unsigned int r = 0; r < n_rows; r++)
			kernel->expand(weight->dtype,
				       product->rows + (row + r) * weight->row_bytes + col * bytes,
				       n_cols, panel + r * PANEL_COLS);
		for (size_t b = 0; b < product->n_padded; b += tile)
			for (unsigned int r = 0; r < n_rows; r += KERNEL_ROWS)
				kernel->block(panel + r * PANEL_COLS, PANEL_COLS,
					      product->x + b * weight->n_cols + col * tile, n_cols,
					      sums + r * MATRIX_MAX_BATCH + b, MATRIX_MAX_BATCH,
					      n_rows - r < KERNEL_ROWS ? n_rows - r : KERNEL_ROWS);
	}
	for (size_t b = 0; b < product->n; b++)
		for (unsigned int r = 0; r < n_rows; r++)
			put(product, product->first_row + row + r, b,
			    sums[r * MATRIX_MAX_BATCH + b]);
}

static void panel_job(void *data, size_t i)
{
	const struct product *product = data;
	uint64_t row = i * product->job_rows, end = row + product->job_rows;

	if (end > product->n_rows)
		end = product->n_rows;
	for (; row < end; row += PANEL_ROWS)
		multiply_panel(product, row,
			       (unsigned int)(end - row < PANEL_ROWS ? end - row : PANEL_ROWS));
}

static int reserve_packed(struct engine *engine, size_t n, size_t n_cols)
{
	size_t need;

	if (__builtin_mul_overflow(n, n_cols, &need))
		return error_set(-ENOMEM, "no memory for a batch");
	if (need <= engine->n_packed)
		return 0;
	array_free(engine->packed);
	engine->n_packed = 0;
	engine->packed = array_new(need, sizeof(float));
	if (!engine->packed)
		return error_set(-ENOMEM, "no memory for a batch of %zu", n);
	engine->n_packed = need;
	return 0;
}

/* [n][cols] in the order in which the kernel multiplies rows of that type: itself, or a copy. */
static int arrange(struct engine *engine, const struct weight *weight, const float *x, size_t n,
		   const float **ret_x)
{
	int r;

	*ret_x = x;
	if (!engine->kernel->arrange)
		return 0;
	r = reserve_packed(engine, n, weight->n_cols);
	if (r != 0)
		return r;
	for (size_t b = 0; b < n; b++) {
		if (!engine->kernel->arrange(weight->dtype, x + b * weight->n_cols, weight->n_cols,
					     engine->packed + b * weight->n_cols))
			return 0;
	}
	*ret_x = engine->packed;
	return 0;
}

/* [n][cols] to tiles: packed[b / tile][k][b % tile], missing columns 0. */
static int pack(struct engine *engine, const float *x, size_t n, size_t n_cols, size_t n_padded)
{
	size_t tile = engine->kernel->tile;
	int r = reserve_packed(engine, n_padded, n_cols);

	if (r != 0)
		return r;
	for (size_t b = 0; b < n_padded; b++) {
		float *out = engine->packed + b / tile * tile * n_cols + b % tile;

		for (size_t k = 0; k < n_cols; k++)
			out[k * tile] = b < n ? x[b * n_cols + k] : 0;
	}
	return 0;
}

/* The view of a block: the kept one, or a new one. */
static int get_view(struct engine *engine, struct matrix *matrix, uint64_t block,
		    struct weight_view *ret_view)
{
	uint64_t row = block * matrix->block_rows, n_rows = matrix->weight.n_rows - row;
	double start;
	int r;

	if (matrix->views[block].data) {
		*ret_view = matrix->views[block];
		return 0;
	}
	start = seconds_now();
	r = engine->weights->source->acquire(
		engine->weights, &matrix->weight, row,
		n_rows < matrix->block_rows ? n_rows : matrix->block_rows, ret_view);
	engine->wait_seconds += seconds_now() - start;
	if (r == 0 && (ret_view->keep || engine->hold))
		matrix->views[block] = *ret_view;
	return r;
}

static void put_view(struct engine *engine, struct matrix *matrix, uint64_t block,
		     struct weight_view *view)
{
	if (!matrix->views[block].data)
		engine->weights->source->release(engine->weights, view);
}

static uint64_t job_bytes(const struct engine *engine, const struct weight *weight)
{
	uint64_t n_jobs = (uint64_t)JOBS_A_THREAD * threads_count(engine->threads);
	uint64_t share = weight->n_rows * weight->row_bytes / n_jobs;

	return share < JOB_MIN_BYTES ? JOB_MIN_BYTES : share < JOB_MAX_BYTES ? share : JOB_MAX_BYTES;
}

int matrix_apply(struct engine *engine, struct matrix *matrix, const float *x, size_t n, float *out)
{
	const struct weight *weight = &matrix->weight;
	struct product product = {.kernel = engine->kernel, .matrix = matrix, .x = x, .n = n,
				  .out = out};
	bool dots = n <= DOT_MAX_BATCH;
	int r;

	if (n == 0 || n > MATRIX_MAX_BATCH)
		return error_set(-EINVAL, "a batch of %zu; 1 to %d are possible", n,
				 MATRIX_MAX_BATCH);
	if (engine->observer) {
		r = engine->observer->observe(engine->observer, matrix, x, n);
		if (r != 0)
			return r;
	}
	if (dots) {
		r = arrange(engine, weight, x, n, &product.x);
		if (r != 0)
			return r;
	} else {
		product.n_padded = (n + engine->kernel->tile - 1) / engine->kernel->tile *
				   engine->kernel->tile;
		r = pack(engine, x, n, weight->n_cols, product.n_padded);
		if (r != 0)
			return r;
		product.x = engine->packed;
	}
	product.job_rows = job_bytes(engine, weight) / weight->row_bytes;
	if (!dots)
		product.job_rows = product.job_rows / PANEL_ROWS * PANEL_ROWS;
	if (product.job_rows == 0)
		product.job_rows = dots ? 1 : PANEL_ROWS;
	for (uint64_t block = 0; block < matrix->n_blocks; block++) {
		struct weight_view view = {0};

		r = get_view(engine, matrix, block, &view);
		if (r != 0)
			return r;
		product.rows = view.data;
		product.first_row = block * matrix->block_rows;
		product.n_rows = weight->n_rows - product.first_row;
		if (product.n_rows > matrix->block_rows)
			product.n_rows = matrix->block_rows;
		threads_run(engine->threads,
			    (product.n_rows + product.job_rows - 1) / product.job_rows,
			    dots ? dot_job : panel_job, &product);
		put_view(engine, matrix, block, &view);
	}
	engine->n_weight_bytes += weight->n_rows * weight->row_bytes;
	return 0;
}

int matrix_row(struct engine *engine, struct matrix *matrix, uint64_t row, float *out)
{
	const struct weight *weight = &matrix->weight;
	struct weight_view view = {0};
	uint64_t block;
	const uint8_t *data;
	bool kept;
	int r;

	if (row >= weight->n_rows)
		return error_set(-EINVAL, "%s has no row %llu", matrix->name,
				 (unsigned long long)row);
	block = row / matrix->block_rows;
	kept = matrix->views[block].data != NULL;
	if (kept) {
		data = (const uint8_t *)matrix->views[block].data +
		       row % matrix->block_rows * weight->row_bytes;
	} else {
		r = engine->weights->source->acquire(engine->weights, weight, row, 1, &view);
		if (r != 0)
			return r;
		data = view.data;
	}
	engine->kernel->expand(weight->dtype, data, weight->n_cols, out);
	for (uint64_t i = 0; matrix->n_scales && i < weight->n_cols; i++)
		out[i] *= scale_of(matrix, row);
	if (!kept)
		engine->weights->source->release(engine->weights, &view);
	return 0;
}

static int vector_load(struct engine *engine, const char *name, const struct weight *weight,
		       float **ret_values)
{
	struct weight_view view = {0};
	float *values;
	int r;

	if (!kernel_has_dtype(weight->dtype) || weight->dtype == DCMEM_I8)
		return error_set(-EINVAL, "%s: expected BF16, F16 or F32", name);
	values = array_new(weight->n_rows * weight->n_cols, sizeof(float));
	if (!values)
		return error_set(-ENOMEM, "no memory for %s", name);
	r = engine->weights->source->acquire(engine->weights, weight, 0, weight->n_rows, &view);
	if (r != 0) {
		array_free(values);
		return r;
	}
	engine->kernel->expand(weight->dtype, view.data, weight->n_rows * weight->n_cols, values);
	engine->weights->source->release(engine->weights, &view);
	*ret_values = values;
	return 0;
}

int vector_read(struct engine *engine, const char *name, uint64_t n, float **ret_values)
{
	struct weight weight;
	int r = engine->weights->source->find(engine->weights, name, &weight);

	if (r == ENOENT)
		return error_set(-EINVAL, "the model lacks the tensor %s", name);
	if (r != 0)
		return r;
	if (weight.n_rows != 1 || weight.n_cols != n)
		return error_set(-EINVAL, "%s is not a vector of %llu", name,
				 (unsigned long long)n);
	return vector_load(engine, name, &weight, ret_values);
}

/* NAME.weight_scale: one value, or one a row, in whatever shape. */
static int scales_read(struct engine *engine, const char *name, struct matrix *matrix)
{
	struct weight weight;
	int r = engine->weights->source->find(engine->weights, name, &weight);

	if (r == ENOENT)
		return error_set(-EINVAL, "%s is INT8, and %s is not there", matrix->name, name);
	if (r != 0)
		return r;
	if (weight.n_rows > matrix->weight.n_rows || weight.n_cols > matrix->weight.n_rows ||
	    (weight.n_rows * weight.n_cols != 1 &&
	     weight.n_rows * weight.n_cols != matrix->weight.n_rows))
		return error_set(-EINVAL, "%s: neither one scale nor one a row", name);
	r = vector_load(engine, name, &weight, &matrix->scales);
	if (r == 0)
		matrix->n_scales = weight.n_rows * weight.n_cols;
	return r;
}

int matrix_open(struct engine *engine, const char *name, uint64_t n_rows, uint64_t n_cols,
		bool bias, struct matrix *ret_matrix)
{
	struct matrix matrix = {0};
	char text[512];
	int r;

	(void)snprintf(text, sizeof(text), "%s.weight", name);
	r = engine->weights->source->find(engine->weights, text, &matrix.weight);
	if (r == ENOENT)
		return error_set(-EINVAL, "the model lacks the tensor %s", text);
	if (r != 0)
		return r;
	if (matrix.weight.n_dims != 2 || matrix.weight.n_rows != n_rows ||
	    matrix.weight.n_cols != n_cols)
		return error_set(-EINVAL, "%s is not %llu x %llu", text, (unsigned long long)n_rows,
				 (unsigned long long)n_cols);
	if (!kernel_has_dtype(matrix.weight.dtype))
		return error_set(-EINVAL, "%s: expected BF16, F16, F32 or I8", text);
	matrix.name = strdup(text);
	matrix.block_rows = BLOCK_BYTES / matrix.weight.row_bytes;
	if (matrix.block_rows == 0)
		matrix.block_rows = 1;
	matrix.n_blocks = (n_rows + matrix.block_rows - 1) / matrix.block_rows;
	matrix.views = array_new(matrix.n_blocks, sizeof(*matrix.views));
	r = matrix.name && matrix.views ? 0 : error_set(-ENOMEM, "no memory for %s", text);
	if (r == 0 && matrix.weight.dtype == DCMEM_I8) {
		(void)snprintf(text, sizeof(text), "%s.weight_scale", name);
		r = scales_read(engine, text, &matrix);
	}
	if (r == 0 && bias) {
		(void)snprintf(text, sizeof(text), "%s.bias", name);
		r = vector_read(engine, text, n_rows, &matrix.bias);
	}
	for (uint64_t block = 0; r == 0 && engine->hold && block < matrix.n_blocks; block++) {
		struct weight_view view = {0};

		r = get_view(engine, &matrix, block, &view);
	}
	if (r != 0) {
		matrix_close(engine, &matrix);
		return r;
	}
	*ret_matrix = matrix;
	return 0;
}

void matrix_close(struct engine *engine, struct matrix *matrix)
{
	for (uint64_t block = 0; matrix->views && block < matrix->n_blocks; block++)
		if (matrix->views[block].data)
			engine->weights->source->release(engine->weights, &matrix->views[block]);
	array_free(matrix->views);
	array_free(matrix->bias);
	array_free(matrix->scales);
	free(matrix->name);
	memset(matrix, 0, sizeof(*matrix));
}
