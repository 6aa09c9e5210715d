/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every kernel that this CPU runs against sums in double, at every short length and at lengths
 * around the vector widths, on buffers of exactly the size that is named.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "matrix.h"
#include "util.h"

static const struct kernel *const all[] = {
	&kernel_portable,
#if defined(__x86_64__)
	&kernel_avx2,
	&kernel_avx512,
#endif
};
static const uint32_t dtypes[] = {DCMEM_F32, DCMEM_BF16, DCMEM_F16, DCMEM_I8};
static uint64_t seed = 7;

static double uniform(void) /* in [-1, 1) */
{
	seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
	return (double)(int64_t)seed * 0x1p-63;
}

static size_t size_of(uint32_t dtype)
{
	return dtype == DCMEM_F32 ? 4 : dtype == DCMEM_I8 ? 1 : 2;
}

/* IEEE 754 binary16 by its definition. */
static double half_value(uint16_t bits)
{
	int exponent = bits >> 10 & 31, fraction = bits & 1023;
	double sign = bits >> 15 ? -1 : 1;

	if (exponent == 31)
		return fraction ? NAN : sign * INFINITY;
	if (exponent == 0)
		return sign * ldexp(fraction, -24);
	return sign * ldexp(1024 + fraction, exponent - 25);
}

/* n random elements and their exact values. */
static uint8_t *make(uint32_t dtype, size_t n, double *ret_values)
{
	uint8_t *data = malloc(n * size_of(dtype) + 1);

	assert_non_null(data);
	data = realloc(data, n ? n * size_of(dtype) : 1);
	assert_non_null(data);
	for (size_t i = 0; i < n; i++) {
		double value = uniform();
		float single = (float)value;
		uint32_t word;
		uint16_t half;

		memcpy(&word, &single, 4);
		if (dtype == DCMEM_F32) {
			memcpy(data + 4 * i, &single, 4);
			ret_values[i] = single;
		} else if (dtype == DCMEM_BF16) {
			half = (uint16_t)(word >> 16);
			word &= 0xffff0000U;
			memcpy(data + 2 * i, &half, 2);
			memcpy(&single, &word, 4);
			ret_values[i] = single;
		} else if (dtype == DCMEM_F16) {
			half = (uint16_t)((word >> 16 & 0x8000) | (seed >> 40) % 0x7c00);
			memcpy(data + 2 * i, &half, 2);
			ret_values[i] = half_value(half);
		} else {
			data[i] = (uint8_t)(int8_t)(value * 128);
			ret_values[i] = (int8_t)data[i];
		}
	}
	return data;
}

static void check_dot(const struct kernel *kernel, uint32_t dtype, size_t n)
{
	double *values = calloc(n + 1, sizeof(*values)), sum = 0, size = 0;
	uint8_t *row = make(dtype, n, values);
	float *x = malloc(n ? n * sizeof(*x) : 1), *out = malloc(n ? n * sizeof(*out) : 1);

	assert_true(values && x && out);
	for (size_t i = 0; i < n; i++) {
		x[i] = (float)uniform();
		sum += values[i] * x[i];
		size += fabs(values[i] * x[i]);
	}
	if (kernel->arrange && kernel->arrange(dtype, x, n, out))
		assert_true(fabs((double)kernel->dot(dtype, row, out, n) - sum) <= 1e-6 * size);
	else
		assert_true(fabs((double)kernel->dot(dtype, row, x, n) - sum) <= 1e-6 * size);
	kernel->expand(dtype, row, n, out);
	for (size_t i = 0; i < n; i++)
		assert_true((double)out[i] == values[i]);
	kernel->axpy(0.5F, x, n, out);
	for (size_t i = 0; i < n; i++)
		assert_true(fabs((double)out[i] - (values[i] + 0.5 * x[i])) <=
			    1e-6 * (fabs(values[i]) + 1));
	free(values);
	free(row);
	free(x);
	free(out);
}

static void test_dots(void **state)
{
	static const size_t more[] = {127, 128, 129, 192, 255, 511, 1000, 2048, 4099};

	for (size_t k = 0; k < sizeof(all) / sizeof(all[0]); k++) {
		if (!kernel_is_supported(all[k]))
			continue;
		for (size_t d = 0; d < 4; d++) {
			for (size_t n = 0; n < 100; n++)
				check_dot(all[k], dtypes[d], n);
			for (size_t i = 0; i < sizeof(more) / sizeof(more[0]); i++)
				check_dot(all[k], dtypes[d], more[i]);
		}
	}
}

static void test_every_half(void **state)
{
	for (size_t k = 0; k < sizeof(all) / sizeof(all[0]); k++) {
		if (!kernel_is_supported(all[k]))
			continue;
		for (uint32_t bits = 0; bits < 65536; bits += 8) {
			uint16_t halves[8];
			float out[8];

			for (uint32_t i = 0; i < 8; i++)
				halves[i] = (uint16_t)(bits + i);
			all[k]->expand(DCMEM_F16, halves, 8, out);
			for (uint32_t i = 0; i < 8; i++) {
				double wanted = half_value(halves[i]);

				assert_true(isnan(wanted) ? isnan(out[i])
							  : (double)out[i] == wanted);
			}
		}
	}
}

/* A source of one matrix in memory. */
struct one_matrix {
	struct weights head;
	const uint8_t *data;
	int n_acquired;
};

static int one_acquire(struct weights *weights, const struct weight *weight, uint64_t row,
		       uint64_t n_rows, struct weight_view *ret_view)
{
	struct one_matrix *one = (struct one_matrix *)weights;

	one->n_acquired++;
	ret_view->data = one->data + row * weight->row_bytes;
	return 0;
}

static void one_release(struct weights *weights, struct weight_view *view)
{
	((struct one_matrix *)weights)->n_acquired--;
	memset(view, 0, sizeof(*view));
}

static const struct weights_source one_source = {.acquire = one_acquire, .release = one_release};

static void check_product(const struct kernel *kernel, struct threads *threads, uint32_t dtype,
			  size_t n_rows, size_t n_cols, size_t n, size_t block_rows)
{
	double *values = calloc(n_rows * n_cols, sizeof(*values));
	uint8_t *data = make(dtype, n_rows * n_cols, values);
	float *x = malloc(n * n_cols * sizeof(*x)), *out = malloc(n * n_rows * sizeof(*out));
	float *bias = malloc(n_rows * sizeof(*bias)), *scales = malloc(n_rows * sizeof(*scales));
	struct one_matrix one = {.head = {&one_source}, .data = data};
	struct engine engine = {.weights = &one.head, .threads = threads, .kernel = kernel};
	struct matrix matrix = {
		.weight = {.dtype = dtype, .n_dims = 2, .n_rows = n_rows, .n_cols = n_cols,
			   .row_bytes = n_cols * size_of(dtype)},
		.scales = scales, .n_scales = n_rows, .bias = bias, .block_rows = block_rows,
		.n_blocks = (n_rows + block_rows - 1) / block_rows,
	};

	assert_true(values && x && out && bias && scales);
	matrix.views = array_new(matrix.n_blocks, sizeof(*matrix.views));
	for (size_t i = 0; i < n * n_cols; i++)
		x[i] = (float)uniform();
	for (size_t i = 0; i < n_rows; i++) {
		bias[i] = (float)uniform();
		scales[i] = (float)(uniform() + 2);
	}
	assert_int_equal(matrix_apply(&engine, &matrix, x, n, out), 0);
	assert_int_equal(one.n_acquired, 0);
	for (size_t b = 0; b < n; b++)
		for (size_t r = 0; r < n_rows; r++) {
			double sum = 0, size = 1;

			for (size_t c = 0; c < n_cols; c++) {
				double part = values[r * n_cols + c] * x[b * n_cols + c] * scales[r];

				sum += part;
				size += fabs(part);
			}
			assert_true(fabs((double)out[b * n_rows + r] - sum - bias[r]) <=
				    2e-6 * size);
		}
	array_free(matrix.views);
	array_free(engine.packed);
	free(values);
	free(data);
	free(x);
	free(out);
	free(bias);
	free(scales);
}

static void test_products(void **state)
{
	static const size_t shapes[][3] = {
		{1, 1, 1}, {5, 7, 2}, {6, 16, 6}, {25, 257, 25}, {49, 300, 10}, {64, 513, 64}};
	static const size_t batches[] = {1, 3, 4, 16, 17, 32, 33, 64};
	struct threads *threads;

	assert_int_equal(threads_new(3, &threads), 0);
	for (size_t k = 0; k < sizeof(all) / sizeof(all[0]); k++) {
		if (!kernel_is_supported(all[k]))
			continue;
		for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
			for (size_t b = 0; b < sizeof(batches) / sizeof(batches[0]); b++)
				check_product(all[k], threads, dtypes[(s + b) % 4], shapes[s][0],
					      shapes[s][1], batches[b], shapes[s][2]);
	}
	threads_free(threads);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_dots),
		cmocka_unit_test(test_every_half),
		cmocka_unit_test(test_products),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
