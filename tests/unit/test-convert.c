/* SPDX-License-Identifier: Apache-2.0 */
/* Element conversion against numpy and exact arithmetic (gen-convert.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "convert-reference.h"
#include "convert.h"
#include "dcmem/dcmem.h"

#define COUNT(array) (sizeof(array) / sizeof(*(array)))

static uint32_t float_bits(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return bits;
}

static void check_from_float(uint32_t dtype, const uint16_t *expected)
{
	float values[COUNT(reference_f32)];
	uint16_t got[COUNT(reference_f32)];

	memcpy(values, reference_f32, sizeof(values));
	convert_from_float(dtype, values, got, COUNT(values));
	for (size_t i = 0; i < COUNT(values); i++) {
		if (got[i] != expected[i])
			fail_msg("%#x became %#x, not %#x", reference_f32[i], got[i], expected[i]);
	}
}

static void test_from_float(void **state)
{
	check_from_float(DCMEM_F16, reference_f32_as_f16);
	check_from_float(DCMEM_BF16, reference_f32_as_bf16);
}

static void test_nan(void **state)
{
	uint32_t nan_bits[] = {0x7f800001, 0x7fc00000, 0xffffffff, 0xff800001};
	float values[4], back[4];
	uint16_t narrow[4];

	memcpy(values, nan_bits, sizeof(values));
	for (unsigned i = 0; i < 2; i++) {
		uint32_t dtype = i ? DCMEM_F16 : DCMEM_BF16;

		convert_from_float(dtype, values, narrow, 4);
		convert_to_float(dtype, narrow, back, 4);
		for (unsigned k = 0; k < 4; k++)
			assert_true(back[k] != back[k]);
	}
}

static void test_f16(void **state)
{
	float got[COUNT(reference_f16)];

	convert_to_float(DCMEM_F16, reference_f16, got, COUNT(got));
	for (size_t i = 0; i < COUNT(got); i++)
		assert_int_equal(float_bits(got[i]), reference_f16_as_f32[i]);
}

static void check_f8(uint32_t dtype, const uint32_t *expected)
{
	uint8_t bytes[256];
	float got[256];

	for (unsigned i = 0; i < 256; i++)
		bytes[i] = (uint8_t)i;
	convert_to_float(dtype, bytes, got, 256);
	for (unsigned i = 0; i < 256; i++) {
		if (expected[i] == UINT32_MAX)
			assert_true(got[i] != got[i]);
		else
			assert_int_equal(float_bits(got[i]), expected[i]);
	}
}

static void test_f8(void **state)
{
	check_f8(DCMEM_F8_E4M3, reference_e4m3_as_f32);
	check_f8(DCMEM_F8_E5M2, reference_e5m2_as_f32);
}

static void test_integers(void **state)
{
	const int8_t i8[] = {-128, -1, 0, 127};
	const int32_t i32[] = {-16777216, 3};
	const uint8_t unaligned[] = {9, 0xff, 0xff, 0x02, 0x00};
	float got[4];

	convert_to_float(DCMEM_I8, i8, got, 4);
	assert_true(got[0] == -128 && got[1] == -1 && got[2] == 0 && got[3] == 127);
	convert_to_float(DCMEM_I32, i32, got, 2);
	assert_true(got[0] == -16777216 && got[1] == 3);
	convert_to_float(DCMEM_I16, unaligned + 1, got, 2);
	assert_true(got[0] == -1 && got[1] == 2);
	assert_false(convert_is_possible(DCMEM_F32, DCMEM_I8));
	assert_false(convert_is_possible(99, DCMEM_F32));
	assert_true(convert_is_possible(DCMEM_F8_E4M3, DCMEM_BF16));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_from_float), cmocka_unit_test(test_nan),
		cmocka_unit_test(test_f16),	   cmocka_unit_test(test_f8),
		cmocka_unit_test(test_integers),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
