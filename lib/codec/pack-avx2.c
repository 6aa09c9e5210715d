/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inner loop of pack.c with AVX2 and BMI2. Runs only where cpu_path() says so; bounds are
 * pack.c's.
 */
#if defined(__x86_64__)
#pragma GCC target("avx2,bmi,bmi2,popcnt")

#include "codec/pack.h"

#include <stdbool.h>

#include "codec/rows-avx2.h"

/* The next escapes in the places of eight symbols whose bytes are ones in `mask`, else zeros. */
static inline long long expand_8(const uint8_t **next, long long mask)
{
	uint64_t bytes = _pdep_u64(bytes_load64(*next), (uint64_t)mask);

	*next += __builtin_popcountll((uint64_t)mask) / 8;
	return (long long)bytes;
}

static inline __m256i expand_32(const uint8_t **next, __m256i mask)
{
	long long a = expand_8(next, _mm256_extract_epi64(mask, 0));
	long long b = expand_8(next, _mm256_extract_epi64(mask, 1));
	long long c = expand_8(next, _mm256_extract_epi64(mask, 2));
	long long e = expand_8(next, _mm256_extract_epi64(mask, 3));

	return _mm256_setr_epi64x(a, b, c, e);
}

static inline __attribute__((always_inline)) void row_values(struct pack_decoder *d,
							     const uint8_t *row, unsigned width,
							     bool many_escapes, uint8_t *ret_values)
{
	const __m256i base = _mm256_set1_epi8((char)d->base);
	const __m256i ones = _mm256_set1_epi8((char)((1U << width) - 1));
	__m256i field[2], escaped[2], value[2];

	row_unpack(row, width, field);
	for (unsigned i = 0; i < 2; i++) {
		escaped[i] = _mm256_cmpeq_epi8(field[i], ones);
		value[i] = _mm256_add_epi8(field[i], base);
	}
	if (many_escapes) {
		const uint8_t *next = d->escapes + d->next_escape;

		for (unsigned i = 0; i < 2; i++)
			value[i] = _mm256_or_si256(_mm256_andnot_si256(escaped[i], value[i]),
						   expand_32(&next, escaped[i]));
		d->next_escape = (uint32_t)(next - d->escapes);
	}
	_mm256_storeu_si256((__m256i *)ret_values, value[0]);
	_mm256_storeu_si256((__m256i *)(ret_values + 32), value[1]);
	if (!many_escapes) {
		uint64_t mask = (uint32_t)_mm256_movemask_epi8(escaped[0]) |
				(uint64_t)(uint32_t)_mm256_movemask_epi8(escaped[1]) << 32;

		for (; mask; mask &= mask - 1)
			ret_values[__builtin_ctzll(mask)] = d->escapes[d->next_escape++];
	}
}

#include "codec/pack-rows.h"

ROWS_OF_WIDTHS(rows_of_few, false)
ROWS_OF_WIDTHS(rows_of_many, true)

/* So many rows for an escape: a loop over them is faster than their places for every eight. */
#define ROWS_PER_ESCAPE 2U

void pack_rows_avx2(struct pack_decoder *d, unsigned element_bytes, uint8_t *dst)
{
	bool many = d->n_escapes > d->n_rows / ROWS_PER_ESCAPE;

	(many ? rows_of_many : rows_of_few)[d->width](d, element_bytes, dst);
}
#endif
