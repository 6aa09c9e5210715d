/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Element conversion, portable C that compilers vectorize where it matters (BF16). Pure functions,
 * any thread. IEEE 754 binary16; FP8 as in OCP 8-bit Floating Point 1.0: E4M3 has no infinities and
 * one NaN a sign, E5M2 is the upper byte of a binary16.
 */
#include "convert.h"

#include <string.h>

#include "dcmem/dcmem.h"

static float float_of_bits(uint32_t bits)
{
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

static uint32_t bits_of_float(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return bits;
}

static float float_of_half(uint16_t h)
{
	uint32_t sign = (uint32_t)(h & 0x8000) << 16, magnitude = h & 0x7fff;

	if (magnitude >= 0x7c00)
		return float_of_bits(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
	if (magnitude < 0x0400) {
		float value = (float)magnitude * 0x1p-24F; /* subnormal: exact in float */

		return sign ? -value : value;
	}
	return float_of_bits(sign | ((magnitude << 13) + (112U << 23)));
}

static float float_of_e4m3(uint8_t b)
{
	uint32_t sign = (uint32_t)(b & 0x80) << 24, magnitude = b & 0x7f;

	if (magnitude == 0x7f)
		return float_of_bits(sign | 0x7fc00000);
	if (magnitude < 0x08) {
		float value = (float)magnitude * 0x1p-9F;

		return sign ? -value : value;
	}
	return float_of_bits(sign | ((magnitude << 20) + (120U << 23)));
}

static uint16_t half_of_float(float value)
{
	uint32_t bits = bits_of_float(value), magnitude = bits & 0x7fffffff;
	uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
	uint32_t h;

	if (magnitude > 0x7f800000)
		return sign | 0x7e00 | (uint16_t)(magnitude >> 13 & 0x3ff);
	if (magnitude >= 0x47800000) /* 65536 */
		return sign | 0x7c00;
	if (magnitude < 0x38800000) {
		/* Below 2^-14: adding 0.5 lets the hardware round at 2^-24. */
		h = bits_of_float(float_of_bits(magnitude) + 0.5F) - 0x3f000000;
		return sign | (uint16_t)h;
	}
	h = magnitude - (112U << 23);
	h += 0xfff + (h >> 13 & 1);
	return sign | (uint16_t)(h >> 13); /* carries into infinity where it should */
}

static uint16_t bf16_of_float(float value)
{
	uint32_t bits = bits_of_float(value);

	if ((bits & 0x7fffffff) > 0x7f800000)
		return (uint16_t)(bits >> 16 | 0x40);
	return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

bool convert_is_possible(uint32_t from, uint32_t to)
{
	return from >= DCMEM_BOOL && from <= DCMEM_F64 &&
	       (to == DCMEM_F32 || to == DCMEM_F16 || to == DCMEM_BF16);
}

#define CONVERT_FROM(type, expression)                                                             \
	for (size_t i = 0; i < n; i++) {                                                           \
		type x;                                                                            \
		memcpy(&x, (const uint8_t *)src + i * sizeof(x), sizeof(x));                       \
		dst[i] = expression;                                                               \
	}                                                                                          \
	break

void convert_to_float(uint32_t dtype, const void *src, float *dst, size_t n)
{
	switch (dtype) {
	case DCMEM_BOOL:
	case DCMEM_U8:
		CONVERT_FROM(uint8_t, (float)x);
	case DCMEM_I8:
		CONVERT_FROM(int8_t, (float)x);
	case DCMEM_F8_E4M3:
		CONVERT_FROM(uint8_t, float_of_e4m3(x));
	case DCMEM_F8_E5M2:
		CONVERT_FROM(uint8_t, float_of_half((uint16_t)(x << 8)));
	case DCMEM_I16:
		CONVERT_FROM(int16_t, (float)x);
	case DCMEM_U16:
		CONVERT_FROM(uint16_t, (float)x);
	case DCMEM_F16:
		CONVERT_FROM(uint16_t, float_of_half(x));
	case DCMEM_BF16:
		CONVERT_FROM(uint16_t, float_of_bits((uint32_t)x << 16));
	case DCMEM_I32:
		CONVERT_FROM(int32_t, (float)x);
	case DCMEM_U32:
		CONVERT_FROM(uint32_t, (float)x);
	case DCMEM_I64:
		CONVERT_FROM(int64_t, (float)x);
	case DCMEM_U64:
		CONVERT_FROM(uint64_t, (float)x);
	case DCMEM_F64:
		CONVERT_FROM(double, (float)x);
	case DCMEM_F32:
		memcpy(dst, src, n * sizeof(*dst));
		break;
	}
}

void convert_from_float(uint32_t dtype, const float *src, void *dst, size_t n)
{
	uint8_t *to = dst;

	if (dtype == DCMEM_F32) {
		memcpy(dst, src, n * sizeof(*src));
		return;
	}
	for (size_t i = 0; i < n; i++) {
		uint16_t x = dtype == DCMEM_F16 ? half_of_float(src[i]) : bf16_of_float(src[i]);

		memcpy(to + i * sizeof(x), &x, sizeof(x));
	}
}
