/* SPDX-License-Identifier: Apache-2.0 */
/* rows.h with AVX2, for files that are compiled for it. */
#ifndef CODEC_ROWS_AVX2_H
#define CODEC_ROWS_AVX2_H

#include <immintrin.h>

#include "codec/rows.h"
#include "codec/rows-sse.h"

/* The 64 fields of a row, from its parts of 4, 2 and 1 bits. */
static inline void row_unpack(const uint8_t *row, unsigned width, __m256i ret_fields[2])
{
	__m256i low = _mm256_setzero_si256(), high = low, part, mask;
	int at = 0;

	if (width & 4) {
		mask = _mm256_set1_epi8(0x0f);
		part = _mm256_loadu_si256((const __m256i *)row);
		low = _mm256_and_si256(part, mask);
		high = _mm256_and_si256(_mm256_srli_epi16(part, 4), mask);
		row += 32;
		at = 4;
	}
	if (width & 2) {
		__m256i a, b;

		mask = _mm256_set1_epi8(0x03);
		part = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)row));
		a = _mm256_srlv_epi64(part, _mm256_setr_epi64x(0, 0, 2, 2));
		b = _mm256_srlv_epi64(part, _mm256_setr_epi64x(4, 4, 6, 6));
		a = _mm256_slli_epi16(_mm256_and_si256(a, mask), at);
		b = _mm256_slli_epi16(_mm256_and_si256(b, mask), at);
		low = _mm256_or_si256(low, a);
		high = _mm256_or_si256(high, b);
		row += 16;
		at += 2;
	}
	if (width & 1) {
		__m256i a, b;

		mask = _mm256_set1_epi8(0x01);
		part = _mm256_set1_epi64x((long long)bytes_load64(row));
		a = _mm256_srlv_epi64(part, _mm256_setr_epi64x(0, 1, 2, 3));
		b = _mm256_srlv_epi64(part, _mm256_setr_epi64x(4, 5, 6, 7));
		a = _mm256_slli_epi16(_mm256_and_si256(a, mask), at);
		b = _mm256_slli_epi16(_mm256_and_si256(b, mask), at);
		low = _mm256_or_si256(low, a);
		high = _mm256_or_si256(high, b);
	}
	ret_fields[0] = low;
	ret_fields[1] = high;
}

/* 64 elements of 16 bits: high byte over low byte, rotated right by one bit. */
static inline void store_16(const uint8_t *high_row, const uint8_t *low_plane, uint8_t *dst)
{
	for (unsigned i = 0; i < 2; i++) {
		__m256i low = _mm256_loadu_si256((const __m256i *)(low_plane + 32 * i)), a, b;
		__m256i high = _mm256_load_si256((const __m256i *)(high_row + 32 * i));

		a = _mm256_unpacklo_epi8(low, high);
		b = _mm256_unpackhi_epi8(low, high);
		a = _mm256_or_si256(_mm256_srli_epi16(a, 1), _mm256_slli_epi16(a, 15));
		b = _mm256_or_si256(_mm256_srli_epi16(b, 1), _mm256_slli_epi16(b, 15));
		_mm256_storeu_si256((__m256i *)(dst + 64 * i), _mm256_permute2x128_si256(a, b, 0x20));
		_mm256_storeu_si256((__m256i *)(dst + 64 * i + 32),
				    _mm256_permute2x128_si256(a, b, 0x31));
	}
}

#endif
