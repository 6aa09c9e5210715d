/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A row: 64 symbols' fields of `width` bits (1 to 7), in 8 * width bytes, as parts of 4, 2 and 1
 * bits (docs/codecs.md); and elements put together from their planes. In portable C;
 * rows-avx2.h and rows-avx512.h do the same a row at a time.
 */
#ifndef CODEC_ROWS_H
#define CODEC_ROWS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "codec/bytes.h"

#define ROW_SYMBOLS 64U

#define EIGHT_TIMES(byte) (0x0101010101010101ULL * (byte))

static inline uint64_t swar_add(uint64_t a, uint64_t b)
{
	const uint64_t low = 0x7f7f7f7f7f7f7f7fULL;

	return ((a & low) + (b & low)) ^ ((a ^ b) & ~low);
}

/* Eight fields: word `w` (0..7) of a row. Parts of 4, 2 and 1 bits, see docs/codecs.md. */
static inline uint64_t row_word(const uint8_t *row, unsigned width, unsigned w)
{
	uint64_t word = 0;
	unsigned at = 0;

	if (width & 4) {
		word = bytes_load64(row + 8 * (w & 3)) >> (4 * (w >> 2)) & 0x0f0f0f0f0f0f0f0fULL;
		at = 4;
		row += 32;
	}
	if (width & 2) {
		word |= (bytes_load64(row + 8 * (w & 1)) >> (2 * (w >> 1)) & 0x0303030303030303ULL)
			<< at;
		at += 2;
		row += 16;
	}
	if (width & 1)
		word |= (bytes_load64(row) >> w & 0x0101010101010101ULL) << at;
	return word;
}

/* Sixteen bytes, as vectors of gcc: every machine's compiler takes what it has. */
typedef uint8_t row_vector __attribute__((vector_size(16)));
typedef uint64_t row_words __attribute__((vector_size(16)));

/* The row of the low `width` bits of 64 symbols, each less `base`: exactly 8 * width bytes. */
static inline __attribute__((always_inline)) void row_pack(const uint8_t *symbols, uint8_t base,
							   unsigned width, uint8_t *ret_row)
{
	row_words v[4], half[2], quarter;
	uint64_t part[2];

	for (unsigned i = 0; i < 4; i++) {
		row_vector bytes;

		memcpy(&bytes, symbols + 16 * (size_t)i, sizeof(bytes));
		v[i] = (row_words)(bytes - base);
	}
	if (width & 4) {
		for (unsigned i = 0; i < 2; i++) {
			half[i] = (v[i] & EIGHT_TIMES(0x0f)) | (v[i + 2] & EIGHT_TIMES(0x0f)) << 4;
			memcpy(ret_row + 16 * (size_t)i, &half[i], sizeof(half[i]));
		}
		for (unsigned i = 0; i < 4; i++)
			v[i] >>= 4; /* what comes from the neighbour byte is masked away */
		ret_row += 32;
	}
	if (width & 2) {
		for (unsigned i = 0; i < 2; i++)
			half[i] = (v[i] & EIGHT_TIMES(0x03)) | (v[i + 2] & EIGHT_TIMES(0x03)) << 4;
		quarter = half[0] | half[1] << 2;
		memcpy(ret_row, &quarter, sizeof(quarter));
		for (unsigned i = 0; i < 4; i++)
			v[i] >>= 2;
		ret_row += 16;
	}
	if (width & 1) {
		for (unsigned i = 0; i < 2; i++)
			half[i] = (v[i] & EIGHT_TIMES(0x01)) | (v[i + 2] & EIGHT_TIMES(0x01)) << 4;
		quarter = half[0] | half[1] << 2;
		memcpy(part, &quarter, sizeof(part));
		part[0] |= part[1] << 1;
		memcpy(ret_row, part, sizeof(part[0]));
	}
}

/* An element is its planes, high byte first, rotated right by one bit. */
static inline void row_merge(const uint8_t *high, const uint8_t *low, unsigned n,
			     size_t plane_bytes, unsigned element_bytes, uint8_t *dst)
{
	for (unsigned i = 0; i < n; i++) {
		if (element_bytes == 2) {
			uint32_t v = (uint32_t)(high[i] << 8 | low[i]);

			v = v >> 1 | v << 15;
			dst[2 * i] = (uint8_t)v;
			dst[2 * i + 1] = (uint8_t)(v >> 8);
		} else {
			uint32_t v = (uint32_t)high[i] << 24 | (uint32_t)low[i] << 16 |
				     (uint32_t)low[plane_bytes + i] << 8 | low[2 * plane_bytes + i];

			v = v >> 1 | v << 31;
			for (unsigned b = 0; b < 4; b++)
				dst[4 * i + b] = (uint8_t)(v >> 8 * b);
		}
	}
}

#endif
