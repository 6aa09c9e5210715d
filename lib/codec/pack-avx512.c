/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inner loop of pack.c with AVX-512 (VBMI2): escapes expand to their places. Runs only where
 * cpu_path() says so; bounds are pack.c's.
 */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,avx2,bmi,popcnt")

#include "codec/pack.h"

#include <stdbool.h>

#include "codec/rows-avx512.h"

static inline __attribute__((always_inline)) void row_values(struct pack_decoder *d,
							     const uint8_t *row, unsigned width,
							     bool many_escapes, uint8_t *ret_values)
{
	__m512i field = row_unpack(row, width);
	__m512i value = _mm512_add_epi8(field, _mm512_set1_epi8((char)d->base));
	__mmask64 escaped = _mm512_cmpeq_epi8_mask(field,
						   _mm512_set1_epi8((char)((1U << width) - 1)));

	(void)many_escapes;
	value = _mm512_mask_expand_epi8(value, escaped,
					_mm512_loadu_si512(d->escapes + d->next_escape));
	d->next_escape += (uint32_t)__builtin_popcountll(escaped);
	_mm512_storeu_si512(ret_values, value);
}

#include "codec/pack-rows.h"

ROWS_OF_WIDTHS(rows_of, true)

void pack_rows_avx512(struct pack_decoder *d, unsigned element_bytes, uint8_t *dst)
{
	rows_of[d->width](d, element_bytes, dst);
}
#endif
