/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bench must not fool anybody: statistics and generators against values that numpy gave, and
 * runs that have to be refused.
 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "bench-model.h"
#include "bench-pool.h"
#include "bench-run.h"
#include "dcmem/container.h"
#include "dcmem/dcmem.h"

#define assert_near(a, b, e) assert_true(fabs((a) - (b)) <= (e))

/* --- statistics --- */

static void test_stats(void **state)
{
	double six[] = { 3.5, 1.25, 9.0, -2.0, 7.75, 4.0 }, three[] = { 5, 1, 4 }, one[] = { 2.5 };
	struct bench_stats stats = bench_stats_of(six, 6);

	(void)state;
	/* numpy.percentile(x, [0, 25, 50, 75, 100]) */
	assert_near(stats.min, -2.0, 0);
	assert_near(stats.q1, 1.8125, 1e-12);
	assert_near(stats.median, 3.75, 1e-12);
	assert_near(stats.q3, 6.8125, 1e-12);
	assert_near(stats.max, 9.0, 0);
	assert_int_equal(stats.n, 6);
	stats = bench_stats_of(three, 3);
	assert_near(stats.q1, 2.5, 1e-12);
	assert_near(stats.median, 4.0, 0);
	assert_near(stats.q3, 4.5, 1e-12);
	stats = bench_stats_of(one, 1);
	assert_near(stats.q3, 2.5, 0);
	assert_int_equal(bench_stats_of(NULL, 0).n, 0);
}

/* Bytes that a line of numpy makes too. */
static void fill_pattern(uint8_t *bytes, size_t n_bytes)
{
	for (uint64_t i = 0; i < n_bytes; i++) {
		bytes[i] = (uint8_t)((i * i * 31 + i * 7) >> 4);
		if (i % 3 == 0)
			bytes[i] &= 15;
	}
}

static void test_entropy(void **state)
{
	static uint8_t bytes[10000];
	uint64_t even[4] = { 7, 7, 7, 7 }, none[4] = { 0 }, only[4] = { 0, 9, 0, 0 };

	(void)state;
	fill_pattern(bytes, sizeof(bytes));
	assert_near(bench_entropy_bytes(bytes, sizeof(bytes)), 7.396127370, 1e-8);
	assert_near(bench_entropy(even, 4), 2, 1e-12);
	assert_near(bench_entropy(only, 4), 0, 1e-12);
	assert_near(bench_entropy(none, 4), 0, 0);
}

/* Bits and bound of one page of the pattern as `dtype`. */
static struct bench_data pattern_data(uint32_t dtype)
{
	struct bench_data data = { .dtype = dtype };
	uint8_t *page;

	assert_int_equal(bench_data_add(&data, 10000, &page), 0);
	fill_pattern(page, 10000);
	bench_data_finish(&data);
	return data;
}

static void test_bounds(void **state)
{
	static const struct {
		uint32_t dtype;
		double bits, wide, rest; /* of `wide` bits, `rest` are not coded */
	} cases[] = {
		{ DCMEM_I8, 7.396127370, 8, 0 },     { DCMEM_F8_E4M3, 7.396127370, 8, 0 },
		{ DCMEM_BF16, 7.501457466, 16, 8 },  { DCMEM_F16, 4.619209962, 16, 11 },
		{ DCMEM_F32, 7.491538255, 32, 24 },
	};

	(void)state;
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct bench_data data = pattern_data(cases[i].dtype);

		assert_near(data.order0_bits, cases[i].bits, 1e-8);
		assert_near(data.bound, cases[i].wide / (cases[i].rest + cases[i].bits), 1e-8);
		bench_data_deinit(&data);
	}
}

/* --- random numbers --- */

static void test_random(void **state)
{
	/* SplitMix64 from 1234567, as published with the generator. */
	static const uint64_t expected[] = { 6457827717110365317ULL, 3203168211198807973ULL,
					     9817491932198370423ULL, 4593380528125082431ULL,
					     16408922859458223821ULL };
	struct bench_random random;

	(void)state;
	bench_random_init(&random, 1234567);
	for (unsigned i = 0; i < 5; i++)
		assert_true(bench_random_u64(&random) == expected[i]);
}

/* Entropies and scales of the exact distributions, rounded and cut beyond 127. */
static void test_shapes(void **state)
{
	static const struct {
		enum bench_shape shape;
		double bits_at_10, scale_3, scale_5, scale_7;
	} cases[] = {
		{ BENCH_GAUSS, 5.36962, 1.914120, 7.737680, 30.982799 },
		{ BENCH_LAPLACE, 5.76514, 1.449132, 5.879419, 24.339328 },
		{ BENCH_STUDENT4, 5.74520, 1.468309, 5.950725, 24.927975 },
	};

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		uint64_t histogram[256] = { 0 };
		struct bench_random random;

		bench_random_init(&random, 99);
		for (int k = 0; k < 400000; k++)
			histogram[(uint8_t)bench_random_int8(&random, cases[i].shape, 10)]++;
		assert_int_equal(histogram[128], 0);
		assert_near(bench_entropy(histogram, 256), cases[i].bits_at_10, 0.01);
		assert_near(bench_random_scale(cases[i].shape, 3) / cases[i].scale_3, 1, 2e-6);
		assert_near(bench_random_scale(cases[i].shape, 5) / cases[i].scale_5, 1, 2e-6);
		assert_near(bench_random_scale(cases[i].shape, 7) / cases[i].scale_7, 1, 2e-6);
	}
}

static void test_synthetic(void **state)
{
	(void)state;
	for (unsigned i = 0; i < bench_n_synthetics; i++) {
		const struct bench_synthetic *what = &bench_synthetics[i];
		uint64_t zeros = 0, same = 0;
		struct bench_data data;

		assert_int_equal(bench_data_synthetic(&data, what, 2 * BENCH_PAGE_BYTES), 0);
		assert_int_equal(data.n_pages, 2);
		assert_int_equal(data.page_bytes, 2 * BENCH_PAGE_BYTES);
		if (what->zeros == 0 && what->row_spread == 0)
			assert_near(data.order0_bits, what->bits, 0.03);
		for (size_t k = 0; k < data.page_bytes; k++)
			zeros += data.bytes[k] == 0;
		if (what->zeros > 0)
			assert_in_range(zeros, data.page_bytes * what->zeros,
					data.page_bytes * 0.6);
		/* Of neighbours in a column of 5 bits about a tenth agree by chance, or none. */
		for (size_t k = 4096; k < data.page_bytes; k++)
			same += abs((int8_t)data.bytes[k] - (int8_t)data.bytes[k - 4096]) < 3;
		if (what->correlation > 0)
			assert_true(same > data.page_bytes / 2);
		else if (what->bits >= 5 && what->zeros == 0 && what->row_spread == 0)
			assert_true(same < data.page_bytes / 3);
		bench_data_deinit(&data);
	}
}

/* --- models --- */

static void test_casts(void **state)
{
	static const float values[] = { 0.5F, -1.27F, 0.01F, 0.015F, 1.0F, -0.004F, 0.635F };
	static const int8_t codes[] = { 50, -127, 1, 2, 100, 0, 64 };
	static const float odd[] = { NAN, INFINITY, 2.0F, -1.0F };
	static const int8_t odd_codes[] = { 0, 0, 127, -64 };
	static const uint16_t halves[] = { 0x3c00, 0xc000, 0x0001, 0x03ff, 0x7bff, 0x3555 };
	static const float of_halves[] = { 1.0F, -2.0F, 0x1p-24F, 0x1.ff8p-15F, 0x1.ffcp+15F,
					   0x1.554p-2F };
	static const uint16_t brain[] = { 0x3f80, 0xc040, 0x0000 };
	float floats[6];
	int8_t got[7];

	(void)state;
	bench_quantize(values, 7, got);
	assert_memory_equal(got, codes, 7);
	bench_quantize(odd, 4, got);
	assert_memory_equal(got, odd_codes, 4);
	assert_true(bench_floats(DCMEM_F16, (const uint8_t *)halves, 6, floats));
	assert_memory_equal(floats, of_halves, sizeof(of_halves));
	assert_true(bench_floats(DCMEM_BF16, (const uint8_t *)brain, 3, floats));
	assert_true(floats[0] == 1.0F && floats[1] == -3.0F && floats[2] == 0.0F);
	assert_false(bench_floats(DCMEM_I8, (const uint8_t *)brain, 1, floats));
}

/* --- runs --- */

enum lie { LIE_NONE, LIE_WRONG, LIE_SHORT, LIE_PATHS };

/* A coder that drops the last byte of a page whose bytes are all the same, and may lie. */
static void *fake_open(const struct bench_coder *coder, bool encodes)
{
	static int none;

	return &none;
}

static void fake_close(void *state)
{
}

static int64_t fake_encode(const struct bench_coder *coder, void *state, const uint8_t *src,
			   size_t src_bytes, uint8_t *dst)
{
	memcpy(dst, src, src_bytes - 1);
	if (coder->level == LIE_PATHS && cpu_path() != CPU_PORTABLE)
		dst[1] ^= 1;
	return (int64_t)src_bytes - 1;
}

static int fake_decode(const struct bench_coder *coder, void *state, const uint8_t *src,
		       size_t src_bytes, uint8_t *dst, size_t dst_bytes)
{
	if (src_bytes != dst_bytes - 1)
		return 1;
	memcpy(dst, src, src_bytes);
	if (coder->level != LIE_SHORT)
		dst[dst_bytes - 1] = src[0];
	if (coder->level == LIE_WRONG)
		dst[dst_bytes / 2] ^= 4;
	return 0;
}

static struct bench_variant fake(enum lie lie, enum cpu_path path)
{
	return (struct bench_variant){
		.coder = { .name = "fake",
			   .level = lie,
			   .has_paths = true,
			   .open = fake_open,
			   .close = fake_close,
			   .encode = fake_encode,
			   .decode = fake_decode },
		.path = path,
	};
}

static struct bench_data flat_data(void)
{
	struct bench_data data = { .dtype = DCMEM_I8 };

	for (unsigned i = 0; i < 20; i++) {
		uint8_t *page;

		/* Odd sizes, as at the end of a tensor. */
		assert_int_equal(bench_data_add(&data, 5000 + i, &page), 0);
		memset(page, (int)i + 1, 5000 + i);
	}
	bench_data_finish(&data);
	return data;
}

static int run_fake(const struct bench_data *data, const struct bench_variant *variants, unsigned n,
		    struct bench_result *ret_result)
{
	static struct bench_machine machine;
	struct bench_options options = { .machine = &machine,
					 .region_bytes = 1 << 20,
					 .rounds = 3,
					 .kinds = { true, true, true } };

	bench_machine_init(&machine);
	return bench_run(&options, data, variants, n, ret_result);
}

static void test_run(void **state)
{
	struct bench_variant variants[2 + BENCH_CODER_MAX];
	struct bench_coder coders[BENCH_CODER_MAX];
	struct bench_data data = flat_data();
	struct bench_result result;
	unsigned n = bench_coders(coders, 1), n_variants = 0;

	(void)state;
	for (unsigned i = 0; i < n; i++)
		variants[n_variants++] = (struct bench_variant){ .coder = coders[i] };
	variants[n_variants++] = fake(LIE_NONE, CPU_PORTABLE);
	assert_int_equal(run_fake(&data, variants, n_variants, &result), 0);
	assert_int_equal(result.n_rows, BENCH_N_KINDS * n_variants);
	/* 100,190 bytes: eleven times reach a MiB. */
	assert_int_equal(data.page_bytes, 100190);
	assert_int_equal(result.n_repeats, 11);
	for (unsigned i = 0; i < result.n_rows; i++) {
		const struct bench_row *row = &result.rows[i];

		assert_int_equal(row->decoded_bytes, 3 * 11 * 100190);
		assert_int_equal(row->decode.n, 3);
		assert_true(row->decode.min > 0 && row->decode.min <= row->decode.median &&
			    row->decode.median <= row->decode.max);
		assert_true(row->to_memcpy > 0 && row->to_zstd1 > 0);
		if (strcmp(row->variant->coder.name, "memcpy") == 0)
			assert_true(row->to_memcpy == 1 && row->ratio == 0 && row->encode.n == 0);
		if (strcmp(row->variant->coder.name, "zstd-1") == 0)
			assert_true(row->to_zstd1 == 1 && row->ratio > 10);
		if (strcmp(row->variant->coder.name, "fake") == 0) {
			/* A byte less a page, and 32 of the page table. */
			assert_int_equal(row->stored_bytes, 100190 + 20 * 31);
			assert_int_equal(row->raw_pages, 0);
			assert_true(row->encode.n > 0);
		}
		if (strcmp(row->variant->coder.name, "raw") == 0)
			assert_int_equal(row->stored_bytes, 100190 + 20 * 32);
	}
	bench_result_deinit(&result);
	bench_data_deinit(&data);
}

static void test_run_refuses(void **state)
{
	struct bench_data data = flat_data();
	struct bench_result result;
	struct bench_variant two[2] = { fake(LIE_PATHS, CPU_AVX2), fake(LIE_PATHS, CPU_PORTABLE) };
	struct bench_variant one;
	enum cpu_path before = cpu_path();

	(void)state;
	one = fake(LIE_WRONG, CPU_PORTABLE);
	assert_int_equal(run_fake(&data, &one, 1, &result), -EBADMSG);
	/* What it leaves out must not be there from before. */
	one = fake(LIE_SHORT, CPU_PORTABLE);
	assert_int_equal(run_fake(&data, &one, 1, &result), -EBADMSG);
	if (before >= CPU_AVX2)
		assert_int_equal(run_fake(&data, two, 2, &result), -EBADMSG);
	assert_int_equal(cpu_path(), before);
	bench_data_deinit(&data);
}

static void count(void *user, unsigned thread)
{
	atomic_fetch_add((atomic_uint *)user, 1U << (4 * (thread < 7 ? thread : 7)));
}

static void test_pool(void **state)
{
	struct bench_machine machine = { .n_cpus = 3 };
	struct bench_pool *pool;
	atomic_uint ran = 0;

	(void)state;
	assert_int_equal(bench_pool_new(&pool, &machine), 0);
	assert_int_equal(bench_pool_threads(pool), 3);
	for (unsigned i = 1; i <= 4; i++) {
		bench_pool_run(pool, count, &ran);
		assert_int_equal(atomic_load(&ran), i * 0x111);
	}
	assert_null(bench_pool_free(pool));
}

static void test_takes(void **state)
{
	struct bench_coder coders[BENCH_CODER_MAX];
	unsigned n = bench_coders(coders, 1), n_ours = 0, n_bytes = 0;

	(void)state;
	for (unsigned i = 0; i < n; i++) {
		bool ours = !coders[i].is_copy && !coders[i].library;

		n_ours += ours;
		n_bytes += ours && bench_coder_takes(&coders[i], DCMEM_I8);
		if (strcmp(coders[i].name, "zstd-planes16") == 0) {
			assert_false(bench_coder_takes(&coders[i], DCMEM_I8));
			assert_true(bench_coder_takes(&coders[i], DCMEM_BF16));
		}
		if (strcmp(coders[i].name, "raw") == 0 || coders[i].library)
			assert_true(bench_coder_takes(&coders[i], DCMEM_I8));
	}
	assert_true(n_bytes >= 2 && n_bytes < n_ours);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_stats),	 cmocka_unit_test(test_entropy),
		cmocka_unit_test(test_bounds),	 cmocka_unit_test(test_random),
		cmocka_unit_test(test_shapes),	 cmocka_unit_test(test_synthetic),
		cmocka_unit_test(test_casts),	 cmocka_unit_test(test_pool),
		cmocka_unit_test(test_run),	 cmocka_unit_test(test_run_refuses),
		cmocka_unit_test(test_takes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
