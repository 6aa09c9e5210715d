/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Plane splits, as loops that compilers turn into vectors. Owns nothing; any thread.
 *
 *   16 bits  s eeeeeeee mmmmmmm  rotated left by one: the high byte of BF16 is its exponent, the
 *            low byte mantissa and sign; of F16 it is the exponent and three bits of mantissa
 *   32 bits  rotated left by one: four byte planes, exponent first
 *   8 bits   two elements: their middle nibbles (E4M3 exponents; E5M2 but for its lowest bit
 *            position shifted) in one byte, sign and low bits in the other
 */
#include "codec/planes.h"

#include <string.h>

#include "codec/codec.h"

static void split_16(const uint8_t *src, size_t n_elements, uint8_t *planes)
{
	uint8_t *high = planes, *low = planes + n_elements;

	for (size_t i = 0; i < n_elements; i++) {
		uint16_t v = (uint16_t)(src[2 * i] | src[2 * i + 1] << 8);

		v = (uint16_t)(v << 1 | v >> 15);
		high[i] = (uint8_t)(v >> 8);
		low[i] = (uint8_t)v;
	}
}

static void merge_16(const uint8_t *planes, size_t n_elements, uint8_t *dst)
{
	const uint8_t *high = planes, *low = planes + n_elements;

	for (size_t i = 0; i < n_elements; i++) {
		uint16_t v = (uint16_t)(high[i] << 8 | low[i]);

		v = (uint16_t)(v >> 1 | v << 15);
		dst[2 * i] = (uint8_t)v;
		dst[2 * i + 1] = (uint8_t)(v >> 8);
	}
}

static void split_32(const uint8_t *src, size_t n_elements, uint8_t *planes)
{
	for (size_t i = 0; i < n_elements; i++) {
		const uint8_t *p = src + 4 * i;
		uint32_t v = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 |
			     (uint32_t)p[3] << 24;

		v = v << 1 | v >> 31;
		planes[i] = (uint8_t)(v >> 24);
		planes[i + n_elements] = (uint8_t)(v >> 16);
		planes[i + 2 * n_elements] = (uint8_t)(v >> 8);
		planes[i + 3 * n_elements] = (uint8_t)v;
	}
}

static void merge_32(const uint8_t *planes, size_t n_elements, uint8_t *dst)
{
	for (size_t i = 0; i < n_elements; i++) {
		uint32_t v = (uint32_t)planes[i] << 24 | (uint32_t)planes[i + n_elements] << 16 |
			     (uint32_t)planes[i + 2 * n_elements] << 8 | planes[i + 3 * n_elements];

		v = v >> 1 | v << 31;
		dst[4 * i] = (uint8_t)v;
		dst[4 * i + 1] = (uint8_t)(v >> 8);
		dst[4 * i + 2] = (uint8_t)(v >> 16);
		dst[4 * i + 3] = (uint8_t)(v >> 24);
	}
}

/* s eeee mmm: the exponent is bits 6..3, what is left is s and mmm. */
static void split_8(const uint8_t *src, size_t n_elements, uint8_t *planes)
{
	for (size_t i = 0; i < n_elements; i++) {
		uint8_t a = src[2 * i], b = src[2 * i + 1];

		planes[i] = (uint8_t)((a >> 3 & 15) | (b >> 3 & 15) << 4);
		planes[i + n_elements] = (uint8_t)((a & 7) | (a >> 4 & 8) | (b & 7) << 4 | (b & 128));
	}
}

static void merge_8(const uint8_t *planes, size_t n_elements, uint8_t *dst)
{
	for (size_t i = 0; i < n_elements; i++) {
		uint8_t e = planes[i], r = planes[i + n_elements];

		dst[2 * i] = (uint8_t)((e & 15) << 3 | (r & 7) | (r & 8) << 4);
		dst[2 * i + 1] = (uint8_t)((e >> 4) << 3 | (r >> 4 & 7) | (r & 128));
	}
}

static const struct planes planes_16 = {2, 2, split_16, merge_16};
static const struct planes planes_32 = {4, 4, split_32, merge_32};
static const struct planes planes_8 = {2, 2, split_8, merge_8};

const struct planes *planes_of(uint32_t codec)
{
	switch (codec) {
	case CODEC_ZSTD_PLANES_16:
		return &planes_16;
	case CODEC_ZSTD_PLANES_32:
		return &planes_32;
	case CODEC_ZSTD_PLANES_8:
		return &planes_8;
	default:
		return NULL;
	}
}
