/* SPDX-License-Identifier: Apache-2.0 */
/* Every codec gives back every page, and survives every damaged one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/memory.h"
#include "codec/codec.h"
#include "codec/planes.h"
#include "dcmem/container.h"

static uint32_t random_state = 1;

static uint32_t random_u32(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 17;
	random_state ^= random_state << 5;
	return random_state;
}

/* Bytes with few values, as exponents are, in every second place. */
static void fill(uint8_t *page, size_t n)
{
	for (size_t i = 0; i < n; i++)
		page[i] = i & 1 ? (uint8_t)(0x3c + (random_u32() % 100 == 0)) : (uint8_t)random_u32();
}

static void round_trip(struct codec_context *context, uint32_t id, const uint8_t *page, size_t n)
{
	uint8_t *stored = memory_alloc(2 * n + 1024), *back = memory_alloc(n + 1);
	size_t stored_bytes = 0;
	int r;

	assert_non_null(stored);
	assert_non_null(back);
	r = codec_encode(context, id, 1, page, n, stored, 2 * n + 1024, &stored_bytes);
	if (r == CODEC_E_INCOMPRESSIBLE) {
		/* Those with forms leave pages below one block of elements to others. */
		assert_true(codec_has_paths(id));
		assert_true(n < 1024);
		memory_free(stored);
		memory_free(back);
		return;
	}
	assert_int_equal(r, 0);
	back[n] = 0xa5;
	assert_int_equal(codec_decode(context, id, stored, stored_bytes, back, n), 0);
	assert_memory_equal(page, back, n);
	assert_int_equal(back[n], 0xa5);
	memory_free(stored);
	memory_free(back);
}

static void test_round_trip(void **state)
{
	struct codec_context *context = codec_context_new_encoder();
	uint8_t *page = memory_alloc(CONTAINER_MAX_PAGE_BYTES);

	(void)state;
	assert_non_null(context);
	for (uint32_t id = 0; codec_is_valid(id); id++) {
		for (size_t n = 0; n <= 300; n++) {
			fill(page, n);
			round_trip(context, id, page, n);
		}
		fill(page, CONTAINER_MAX_PAGE_BYTES);
		round_trip(context, id, page, CONTAINER_MAX_PAGE_BYTES);
		round_trip(context, id, page, CONTAINER_MAX_PAGE_BYTES - 3);
	}
	memory_free(page);
	codec_context_free(context);
}

/* Damaged pages: an error or that many bytes, and (under ASan) no access outside. */
static void test_damage(void **state)
{
	struct codec_context *context = codec_context_new_encoder();
	static uint8_t page[2048], stored[4096], back[2048];

	(void)state;
	for (uint32_t id = 1; codec_is_valid(id); id++) {
		size_t n;

		fill(page, sizeof(page));
		assert_int_equal(codec_encode(context, id, 1, page, sizeof(page), stored,
					      sizeof(stored), &n), 0);
		for (size_t cut = 0; cut < n; cut++) {
			uint8_t *exact = memory_alloc(cut);

			memcpy(exact, stored, cut);
			assert_int_not_equal(codec_decode(context, id, exact, cut, back,
							  sizeof(back)), 0);
			memory_free(exact);
		}
		for (size_t bit = 0; bit < 8 * n; bit++) {
			int r;

			stored[bit / 8] ^= (uint8_t)(1U << bit % 8);
			r = codec_decode(context, id, stored, n, back, sizeof(back));
			assert_true(r == 0 || r == CODEC_E_CORRUPT);
			stored[bit / 8] ^= (uint8_t)(1U << bit % 8);
		}
	}
	codec_context_free(context);
}

/* Worked by hand from the bit layouts of the formats. */
static void test_planes(void **state)
{
	const uint8_t bf16[] = {0x80, 0x3f, 0x00, 0xc0}; /* 1.0, -2.0 */
	const uint8_t want16[] = {0x7f, 0x80, 0x00, 0x01}; /* exponents; mantissa and sign */
	const uint8_t f32[] = {0x00, 0x00, 0x20, 0xc1};	   /* -10.0: exponent 130, mantissa 0x200000 */
	const uint8_t want32[] = {0x82, 0x40, 0x00, 0x01};
	const uint8_t e4m3[] = {0x38, 0xc5};		   /* 1.0: exponent 7; -3.25: 8, mantissa 5 */
	const uint8_t want8[] = {0x87, 0xd0};
	uint8_t got[4];

	(void)state;
	planes_of(CODEC_ZSTD_PLANES_16)->split(bf16, 2, got);
	assert_memory_equal(got, want16, 4);
	planes_of(CODEC_ZSTD_PLANES_32)->split(f32, 1, got);
	assert_memory_equal(got, want32, 4);
	planes_of(CODEC_ZSTD_PLANES_8)->split(e4m3, 1, got);
	assert_memory_equal(got, want8, 2);
}

/* Unknown ids and wrong lengths are refused. */
static void test_refusals(void **state)
{
	struct codec_context *context = codec_context_new();
	uint8_t page[8] = {0}, back[8];

	(void)state;
	assert_int_equal(codec_decode(context, 200, page, 8, back, 8), CODEC_E_UNKNOWN);
	assert_int_equal(codec_decode(context, CODEC_RAW, page, 7, back, 8), CODEC_E_CORRUPT);
	assert_null(codec_name(200));
	codec_context_free(context);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_damage),
		cmocka_unit_test(test_planes),
		cmocka_unit_test(test_refusals),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
