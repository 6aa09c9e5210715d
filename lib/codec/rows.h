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

/* The row of the low `width` bits of 64 symbols, each less `base`. */
static inline void row_pack(const uint8_t *symbols, uint8_t base, unsigned width, uint8_t *ret_row)
{
	const uint64_t high = EIGHT_TIMES(0x80), mask = EIGHT_TIMES((1U << width) - 1);
	const uint64_t bases = EIGHT_TIMES(base);
	uint64_t part4[4] = {0}, part2[2] = {0}, part1 = 0;

	for (unsigned i = 0; i < ROW_SYMBOLS / 8; i++) {
		uint64_t v = bytes_load64(symbols + 8 * (size_t)i);

		/* Eight subtractions that do not borrow from each other. */
		v = (((v | high) - (bases & ~high)) ^ ((v ^ ~bases) & high)) & mask;
		if (width & 4) {
			part4[i & 3] |= (v & EIGHT_TIMES(0x0f)) << (4 * (i >> 2));
			v = v >> 4 & EIGHT_TIMES(0x0f);
		}
		if (width & 2) {
			part2[i & 1] |= (v & EIGHT_TIMES(0x03)) << (2 * (i >> 1));
			v = v >> 2 & EIGHT_TIMES(0x3f);
		}
		part1 |= (v & EIGHT_TIMES(1)) << i;
	}
	for (unsigned i = 0; width & 4 && i < 4; i++, ret_row += 8)
		bytes_store64(ret_row, part4[i]);
	for (unsigned i = 0; width & 2 && i < 2; i++, ret_row += 8)
		bytes_store64(ret_row, part2[i]);
	if (width & 1)
		bytes_store64(ret_row, part1);
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
