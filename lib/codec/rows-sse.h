/* SPDX-License-Identifier: Apache-2.0 */
/* The part of rows.h that the vector forms share. */
#ifndef CODEC_ROWS_SSE_H
#define CODEC_ROWS_SSE_H

#include <immintrin.h>

#include "codec/rows.h"

/* 64 elements of 32 bits: three raw planes below the high byte, rotated right by one bit. */
static inline void store_32(const uint8_t *high_row, const uint8_t *low_plane, size_t plane_bytes,
			    uint8_t *dst)
{
	for (unsigned i = 0; i < ROW_SYMBOLS; i += 16) {
		const uint8_t *low = low_plane + i;
		__m128i p0 = _mm_loadu_si128((const __m128i *)(low + 2 * plane_bytes));
		__m128i p1 = _mm_loadu_si128((const __m128i *)(low + plane_bytes));
		__m128i p2 = _mm_loadu_si128((const __m128i *)low);
		__m128i p3 = _mm_load_si128((const __m128i *)(high_row + i));
		__m128i a = _mm_unpacklo_epi8(p0, p1), b = _mm_unpackhi_epi8(p0, p1);
		__m128i c = _mm_unpacklo_epi8(p2, p3), e = _mm_unpackhi_epi8(p2, p3);
		__m128i out[4] = {_mm_unpacklo_epi16(a, c), _mm_unpackhi_epi16(a, c),
				  _mm_unpacklo_epi16(b, e), _mm_unpackhi_epi16(b, e)};

		for (unsigned j = 0; j < 4; j++) {
			out[j] = _mm_or_si128(_mm_srli_epi32(out[j], 1), _mm_slli_epi32(out[j], 31));
			_mm_storeu_si128((__m128i *)(dst + 4 * i + 16 * j), out[j]);
		}
	}
}

#endif
