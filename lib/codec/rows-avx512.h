/* SPDX-License-Identifier: Apache-2.0 */
/* rows.h with AVX-512, for files that are compiled for it. */
#ifndef CODEC_ROWS_AVX512_H
#define CODEC_ROWS_AVX512_H

#include <immintrin.h>

#include "codec/rows.h"
#include "codec/rows-sse.h"

/* The 64 fields of a row, from its parts of 4, 2 and 1 bits. */
static inline __m512i row_unpack(const uint8_t *row, unsigned width)
{
	__m512i fields = _mm512_setzero_si512(), part;
	unsigned at = 0;

	if (width & 4) {
		__m256i both = _mm256_loadu_si256((const __m256i *)row);

		part = _mm512_inserti64x4(_mm512_castsi256_si512(both), _mm256_srli_epi16(both, 4), 1);
		fields = _mm512_and_si512(part, _mm512_set1_epi8(0x0f));
		row += 32;
		at = 4;
	}
	if (width & 2) {
		part = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)row));
		part = _mm512_srlv_epi64(part, _mm512_setr_epi64(0, 0, 2, 2, 4, 4, 6, 6));
		part = _mm512_and_si512(part, _mm512_set1_epi8(0x03));
		fields = _mm512_or_si512(fields, _mm512_slli_epi16(part, at));
		row += 16;
		at += 2;
	}
	if (width & 1) {
		part = _mm512_set1_epi64((long long)bytes_load64(row));
		part = _mm512_srlv_epi64(part, _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
		part = _mm512_and_si512(part, _mm512_set1_epi8(0x01));
		fields = _mm512_or_si512(fields, _mm512_slli_epi16(part, at));
	}
	return fields;
}

/* 64 elements of 16 bits: high byte over low byte, rotated right by one bit. */
static inline void store_16(const uint8_t *high_row, const uint8_t *low_plane, uint8_t *dst)
{
	const __m512i order = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
	const __m512i order_high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
	__m512i low = _mm512_loadu_si512(low_plane), high = _mm512_load_si512(high_row);
	__m512i a = _mm512_unpacklo_epi8(low, high), b = _mm512_unpackhi_epi8(low, high);

	a = _mm512_or_si512(_mm512_srli_epi16(a, 1), _mm512_slli_epi16(a, 15));
	b = _mm512_or_si512(_mm512_srli_epi16(b, 1), _mm512_slli_epi16(b, 15));
	_mm512_storeu_si512(dst, _mm512_permutex2var_epi64(a, order, b));
	_mm512_storeu_si512(dst + 64, _mm512_permutex2var_epi64(a, order_high, b));
}

#endif
