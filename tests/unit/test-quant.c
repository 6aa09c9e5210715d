/* SPDX-License-Identifier: Apache-2.0 */
/* Dense algebra against plain loops in double, and rounding against what the method must hold. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/cpu.h"
#include "base/memory.h"
#include "quant/dense.h"
#include "quant/round.h"

#define N_ROWS 37
#define N_COLS 53
#define N_TOKENS 211

static uint64_t state;

static void seed(uint64_t value)
{
	state = value * 2654435761U + 1;
}

/* Sum of uniforms: a bell of about spread 1. */
static float bell(void)
{
	double sum = -6;

	for (int i = 0; i < 12; i++) {
		state = state * 6364136223846793005U + 1442695040888963407U;
		sum += (double)(state >> 33) / 0x1p31;
	}
	return (float)sum;
}

static float *bells(size_t n)
{
	float *values = memory_array(n, sizeof(float));

	assert_non_null(values);
	for (size_t i = 0; i < n; i++)
		values[i] = bell();
	return values;
}

static void on_every_path(void (*check)(void))
{
	enum cpu_path best = cpu_path();

	for (int path = CPU_PORTABLE; path < CPU_N_PATHS; path++)
		if (cpu_path_force((enum cpu_path)path))
			check();
	assert_true(cpu_path_force(best));
}

static void check_products(void)
{
	float *x = bells(N_TOKENS * N_COLS), *w = bells(N_ROWS * N_COLS);
	float *out = bells(N_TOKENS * N_ROWS), *gram = memory_array(N_COLS * N_COLS, sizeof(float));
	float before = out[5 * N_ROWS + 7];

	dense_linear(2, x, N_TOKENS, w, N_ROWS, N_COLS, out, true);
	dense_gram(2, x, N_TOKENS, N_COLS, gram);
	for (size_t t = 0; t < N_TOKENS; t++)
		for (size_t r = 0; r < N_ROWS; r++) {
			double sum = t == 5 && r == 7 ? before : 0;

			for (size_t c = 0; c < N_COLS; c++)
				sum += (double)x[t * N_COLS + c] * w[r * N_COLS + c];
			if (t == 5 && r == 7)
				assert_true(fabs(sum - out[t * N_ROWS + r]) < 1e-4);
		}
	dense_linear(1, x, N_TOKENS, w, N_ROWS, N_COLS, out, false);
	for (size_t t = 0; t < N_TOKENS; t++)
		for (size_t r = 0; r < N_ROWS; r++) {
			double sum = 0;

			for (size_t c = 0; c < N_COLS; c++)
				sum += (double)x[t * N_COLS + c] * w[r * N_COLS + c];
			assert_true(fabs(sum - out[t * N_ROWS + r]) < 1e-4);
		}
	for (size_t i = 0; i < N_COLS; i++)
		for (size_t j = 0; j <= i; j++) {
			double sum = 0;

			for (size_t t = 0; t < N_TOKENS; t++)
				sum += (double)x[t * N_COLS + i] * x[t * N_COLS + j];
			assert_true(fabs(sum - gram[i * N_COLS + j]) < 1e-3);
		}
	memory_free(x);
	memory_free(w);
	memory_free(out);
	memory_free(gram);
}

static void test_products(void **unused)
{
	seed(1);
	on_every_path(check_products);
}

static void check_cholesky(void)
{
	const size_t n = 131; /* several steps, and a part of one */
	double *a = memory_array(n * n, sizeof(double)), *l = memory_array(n * n, sizeof(double));

	for (size_t i = 0; i < n; i++)
		for (size_t j = 0; j <= i; j++)
			l[i * n + j] = i == j ? 2 + fabs(bell()) : bell() / 8;
	for (size_t i = 0; i < n; i++)
		for (size_t j = 0; j <= i; j++)
			for (size_t k = 0; k <= j; k++)
				a[i * n + j] += l[i * n + k] * l[j * n + k];
	assert_true(dense_cholesky(2, a, n));
	for (size_t i = 0; i < n; i++)
		for (size_t j = 0; j <= i; j++)
			assert_true(fabs(a[i * n + j] - l[i * n + j]) < 1e-9);
	a[0] = -1;
	assert_false(dense_cholesky(1, a, n));
	memory_free(a);
	memory_free(l);
}

static void test_cholesky(void **unused)
{
	seed(2);
	on_every_path(check_cholesky);
}

/* Inputs that go together: a few sources mixed. */
static float *covariance(size_t n)
{
	float *mix = bells(n * 8), *gram = memory_array(n * n, sizeof(float));

	for (size_t i = 0; i < n; i++)
		for (size_t j = 0; j <= i; j++) {
			for (size_t k = 0; k < 8; k++)
				gram[i * n + j] += mix[i * 8 + k] * mix[j * 8 + k];
			gram[i * n + j] += i == j ? 0.5F : 0;
		}
	memory_free(mix);
	return gram;
}

static double cost(const float *w, const float *rounded, const float *gram, size_t n_rows, size_t n)
{
	double sum = 0;

	for (size_t r = 0; r < n_rows; r++)
		for (size_t i = 0; i < n; i++)
			for (size_t j = 0; j < n; j++)
				sum += (double)(w[r * n + i] - rounded[r * n + i]) *
				       (w[r * n + j] - rounded[r * n + j]) *
				       gram[(i > j ? i : j) * n + (i > j ? j : i)];
	return sum;
}

static double round_with(const struct metric *metric, const float *w, double step, double rate,
			 const float *gram, struct round_result *ret_result)
{
	struct round_options options = { .n_threads = 2, .step = step, .rate = rate };
	float *rounded = memory_array(N_ROWS * N_COLS, sizeof(float)), scales[N_ROWS];
	int8_t codes[N_ROWS * N_COLS];
	double sum;

	memcpy(rounded, w, N_ROWS * N_COLS * sizeof(float));
	assert_int_equal(round_matrix(rounded, N_ROWS, metric, &options, codes, scales, ret_result), 0);
	for (size_t i = 0; i < N_ROWS * N_COLS; i++)
		assert_true(rounded[i] == (float)codes[i] * scales[i / N_COLS]);
	for (size_t r = 0; r < N_ROWS; r++)
		assert_true(round_to_bf16(scales[r]) == scales[r] && scales[r] > 0);
	sum = cost(w, rounded, gram, N_ROWS, N_COLS);
	memory_free(rounded);
	return sum;
}

/* Feedback makes the outputs' error far smaller than rounding to the nearest; the reported error is
 * the one that plain loops find; a price on code lengths buys fewer bits for more error. */
static void test_feedback(void **unused)
{
	struct metric plain, fed;
	struct round_result result, cheap;
	float *w, *gram, *kept;
	double nearest, with_feedback;

	seed(3);
	w = bells(N_ROWS * N_COLS);
	gram = covariance(N_COLS);
	kept = memory_array(N_COLS * N_COLS, sizeof(float));
	memcpy(kept, gram, N_COLS * N_COLS * sizeof(float));
	assert_int_equal(metric_init_plain(&plain, N_COLS), 0);
	assert_int_equal(metric_init_gram(&fed, gram, N_COLS, 2), 0);
	nearest = round_with(&plain, w, 0.4, 0, kept, &result);
	with_feedback = round_with(&fed, w, 0.4, 0, kept, &result);
	assert_true(with_feedback < nearest / 2);
	assert_true(fabs(result.error / with_feedback - 1) < 1e-3);
	(void)round_with(&fed, w, 0.4, 3, kept, &cheap);
	assert_true(cheap.entropy < result.entropy - 0.02 && cheap.error > result.error);
	metric_deinit(&plain);
	metric_deinit(&fed);
	memory_free(w);
	memory_free(kept);
}

/* Each code is the best one when all before it are fixed: found here by trying all, on a small one. */
static void test_last_code_is_best(void **unused)
{
	enum { N = 5 };
	float gram[N * N] = { 4, 0, 0, 0, 0, 1, 3, 0, 0, 0, 1, 1, 2.5F, 0, 0, 0.5F, 0.2F, 0.7F, 2, 0,
			      0.3F, 0.6F, 0.1F, 0.4F, 1 };
	float *taken = memory_array(N * N, sizeof(float)), w[N] = { 0.9F, -1.3F, 0.4F, 2.1F, -0.6F };
	float rounded[N], scale;
	struct round_options options = { .n_threads = 1, .step = 0.5, .rate = 0 };
	struct round_result result;
	struct metric metric;
	int8_t codes[N];

	memcpy(taken, gram, sizeof(gram));
	assert_int_equal(metric_init_gram(&metric, taken, N, 1), 0);
	memcpy(rounded, w, sizeof(w));
	assert_int_equal(round_matrix(rounded, 1, &metric, &options, codes, &scale, &result), 0);
	for (int other = -8; other <= 8; other++) {
		float tried[N];
		double damped = 0.0125 * 2.5; /* of the metric's diagonal, which the tried sum lacks */

		memcpy(tried, rounded, sizeof(tried));
		tried[N - 1] = (float)other * scale; /* the cheapest input comes last */
		assert_true(cost(w, rounded, gram, 1, N) <= cost(w, tried, gram, 1, N) + damped);
	}
	metric_deinit(&metric);
}

static void test_edges(void **unused)
{
	struct round_options options = { .n_threads = 1, .step = 0.33, .rate = 3 };
	struct round_result result;
	struct metric metric;
	float w[4 * 8] = { 0 }, scales[4], diagonal[8] = { 1, 2, 0, 4, 5, 6, 7, 8 };
	int8_t codes[4 * 8];

	assert_int_equal(metric_init_diagonal(&metric, diagonal, 8), 0);
	assert_int_equal(round_matrix(w, 4, &metric, &options, codes, scales, &result), 0);
	for (int i = 0; i < 32; i++)
		assert_true(codes[i] == 0 && w[i] == 0);
	w[9] = 1000; /* one that INT8 with the tensor's step would cut off */
	w[3] = 0.5F;
	assert_int_equal(round_matrix(w, 4, &metric, &options, codes, scales, &result), 0);
	assert_true(fabsf(w[9] - 1000) < 10);
	w[17] = NAN;
	assert_int_equal(round_matrix(w, 4, &metric, &options, codes, scales, &result), -EDOM);
	metric_deinit(&metric);
	diagonal[5] = INFINITY;
	assert_int_equal(metric_init_diagonal(&metric, diagonal, 8), -EDOM);
	diagonal[5] = -1;
	assert_int_equal(metric_init_diagonal(&metric, diagonal, 8), -EDOM);
	memset(diagonal, 0, sizeof(diagonal)); /* nothing known: as if nothing was given */
	assert_int_equal(metric_init_diagonal(&metric, diagonal, 8), 0);
	assert_null(metric.diagonal);
	metric_deinit(&metric);
}

/* Values from numpy: np.float32 viewed as uint32, rounded half to even to 16 bits. */
static void test_bf16(void **unused)
{
	assert_true(round_to_bf16(1.0F) == 1.0F);
	assert_true(round_to_bf16(1.00390625F) == 1.0F);	/* half way: to even */
	assert_true(round_to_bf16(1.01171875F) == 1.015625F);	/* half way: to even */
	assert_true(round_to_bf16(3.14159265F) == 3.140625F);
	assert_true(round_to_bf16(-0.1F) == -0.10009765625F);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_products),	  cmocka_unit_test(test_cholesky),
		cmocka_unit_test(test_feedback),	  cmocka_unit_test(test_last_code_is_best),
		cmocka_unit_test(test_edges),		  cmocka_unit_test(test_bf16),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
