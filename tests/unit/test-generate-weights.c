/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench/generate-weights.c and the sum of bench-convert.c: any stretch is a part of the whole, shares
 * are those of Student's t with 8 degrees of freedom (quantiles of any table), sums are sums.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "bench-convert.h"
#include "generate-weights.h"

#define ROWS 512
#define COLS 1000

static void test_stretches(void **state)
{
	static uint8_t whole[ROWS * COLS * 2], part[7 * COLS * 2];

	for (double bits = 0; bits < 8; bits += 3.5) { /* BF16, then INT8 */
		size_t element = bits > 0 ? 1 : 2;
		struct weights *weights;

		assert_int_equal(weights_new(&weights, bits), 0);
		weights_rows(weights, 77, 0, ROWS, COLS, whole);
		for (unsigned row = 0; row < ROWS; row += 50) {
			weights_rows(weights, 77, row, 7, COLS, part);
			assert_memory_equal(part, whole + row * COLS * element, 7 * COLS * element);
		}
		weights_rows(weights, 78, 0, 7, COLS, part);
		assert_memory_not_equal(part, whole, 7 * COLS * element);
		weights_free(weights);
	}
	weights_norm(5, 0, 100, whole);
	weights_norm(5, 60, 40, part);
	assert_memory_equal(part, whole + 120, 80);
	weights_scales(5, 0, 100, whole);
	weights_scales(5, 60, 40, part);
	assert_memory_equal(part, whole + 240, 160);
}

/* Keys of neighbours, and of seeds whose sum with a tensor's number is the same, differ. */
static void test_keys(void **state)
{
	assert_int_not_equal(weights_key(1, 0), weights_key(0, 1));
	assert_int_not_equal(weights_key(1, 2), weights_key(2, 1));
	assert_int_not_equal(weights_key(1, 0), weights_key(1, 1));
	assert_int_equal(weights_key(3, 4), weights_key(3, 4));
}

/* Two-sided quantiles of Student's t with 8 degrees of freedom, from printed tables. */
static void test_shape(void **state)
{
	static const struct {
		double t, beyond;
	} table[] = { { 0.706, 0.5 }, { 1.397, 0.2 }, { 1.860, 0.1 }, { 2.306, 0.05 }, { 3.355, 0.01 } };
	static uint8_t row[2 * 65536];
	struct weights *weights;

	assert_int_equal(weights_new(&weights, 0), 0);
	for (unsigned k = 0; k < sizeof(table) / sizeof(table[0]); k++) {
		double beyond = 0, negative = 0;
		unsigned n = 0;

		for (unsigned r = 0; r < 8; r++) {
			static float values[65536];
			float scale;

			weights_rows(weights, 1, r, 1, 65536, row);
			/* The row's own scale: its median magnitude is the table's first line. */
			for (unsigned i = 0; i < 65536; i++) {
				uint32_t bits = (uint32_t)row[2 * i] << 16 |
						(uint32_t)row[2 * i + 1] << 24;

				memcpy(&values[i], &bits, sizeof(bits));
			}
			scale = 0;
			for (float low = 0, high = 1; high - low > 1e-6f;) {
				unsigned below = 0;

				scale = (low + high) / 2;
				for (unsigned i = 0; i < 65536; i++)
					below += values[i] < scale && values[i] > -scale;
				if (below < 32768)
					low = scale;
				else
					high = scale;
			}
			for (unsigned i = 0; i < 65536; i++, n++) {
				double t = (double)values[i] / scale * 0.706;

				beyond += t > table[k].t || t < -table[k].t;
				negative += values[i] < 0;
			}
		}
		assert_true(beyond / n > table[k].beyond * 0.95 - 0.003);
		assert_true(beyond / n < table[k].beyond * 1.05 + 0.003);
		assert_true(negative / n > 0.495 && negative / n < 0.505);
	}
	weights_free(weights);
}

static void test_sum(void **state)
{
	static uint8_t bytes[5000];
	uint64_t expected = 0;

	memset(bytes, 0xff, sizeof(bytes)); /* the most that lanes have to hold */
	assert_int_equal(bench_sum_bytes(bytes, sizeof(bytes)), 5000 * 255);
	for (unsigned i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)(i * i * 7 + i / 3);
	for (unsigned n = 0; n < sizeof(bytes); n++) {
		assert_int_equal(bench_sum_bytes(bytes, n), expected);
		expected += bytes[n];
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_stretches),
		cmocka_unit_test(test_keys),
		cmocka_unit_test(test_shape),
		cmocka_unit_test(test_sum),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
