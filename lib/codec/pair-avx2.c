/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inner loop of pair.c with AVX2 and BMI2: the lanes step as in portable C (a gather of 16-bit
 * entries is no faster than the loads it is made of), and a row's 32 entries become 64 values in
 * two vectors. Runs only where cpu_path() says so; bounds are pair.c's.
 */
#if defined(__x86_64__)
#pragma GCC target("avx2,bmi,bmi2,lzcnt")

#include <immintrin.h>

#include "codec/pair.h"
#include "codec/pair-lanes.h"
#include "codec/rows-avx2.h"

/* Bytes of 16 entries' classes, in order. */
static inline __m256i classes_of(__m256i entries)
{
	__m256i first = _mm256_and_si256(_mm256_srli_epi16(entries, 6), _mm256_set1_epi16(0x001f));
	__m256i second = _mm256_and_si256(_mm256_srli_epi16(entries, 3), _mm256_set1_epi16(0x1f00));

	return _mm256_or_si256(first, second);
}

struct bases {
	__m256i low, high; /* of classes below 16, and of the others */
};

/* A shuffle gives zero where the index's top bit is set: so one table answers, the other is zero. */
static inline __m256i base_of(__m256i classes, const struct bases *bases)
{
	__m256i low = _mm256_shuffle_epi8(bases->low, _mm256_add_epi8(classes,
								     _mm256_set1_epi8(0x70)));
	__m256i high = _mm256_shuffle_epi8(bases->high, _mm256_sub_epi8(classes,
								       _mm256_set1_epi8(16)));

	return _mm256_or_si256(low, high);
}

static inline struct bases bases_of(const struct pair_decoder *d)
{
	return (struct bases){
		.low = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)d->base)),
		.high = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)(d->base + 16))),
	};
}

static inline void lanes_step(struct pair_decoder *d, uint16_t *entries)
{
	pair_lanes_step(d, entries);
}

/* The next rare pairs in the places of eight entries whose bits are set in `mask`, lowest first. */
static inline __m128i expand_8(struct pair_decoder *d, uint32_t mask)
{
	__m128i next = _mm_loadu_si128((const __m128i *)(d->rare + d->next_rare));
	uint64_t places = _pdep_u64(mask, 0x0101010101010101ULL) * 0xff;
	/* Pair r of the list is bytes 2 r and 2 r + 1 of `next`. */
	__m128i from = _mm_cvtsi64_si128((long long)_pdep_u64(0x0e0c0a0806040200ULL, places));

	from = _mm_or_si128(_mm_unpacklo_epi8(from, from), _mm_set1_epi16(0x0100));
	d->next_rare += (uint32_t)__builtin_popcount(mask);
	return _mm_shuffle_epi8(next, from);
}

/* 16 entries with rare pairs in the places of their marks; the mask is of 16 bits. */
static inline __m256i expand_16(struct pair_decoder *d, __m256i entries, __m256i marks,
				uint32_t mask)
{
	__m128i low = expand_8(d, mask & 0xff), high = expand_8(d, mask >> 8);

	return _mm256_blendv_epi8(entries, _mm256_set_m128i(high, low), marks);
}

static inline void rare_expand(struct pair_decoder *d, __m256i *a, __m256i *b)
{
	const __m256i second = _mm256_set1_epi16((short)(PAIR_RARE << 11));
	__m256i marks_a = _mm256_cmpeq_epi16(_mm256_and_si256(*a, second), second);
	__m256i marks_b = _mm256_cmpeq_epi16(_mm256_and_si256(*b, second), second);
	/* Bytes of a's first half, b's first half, then their second halves. */
	uint32_t mask = (uint32_t)_mm256_movemask_epi8(_mm256_packs_epi16(marks_a, marks_b));

	*a = expand_16(d, *a, marks_a, (mask & 0xff) | (mask >> 8 & 0xff00));
	*b = expand_16(d, *b, marks_b, (mask >> 8 & 0xff) | (mask >> 16 & 0xff00));
}

/* The offsets of eight symbols: `mask` has ones in the low k bits of those bytes that have one. */
static inline uint64_t spiked_offsets_8(struct pair_decoder *d, uint64_t mask)
{
	uint32_t at = d->next_offset_bit;
	uint64_t bits = bytes_load64(d->spiked_offsets + (at >> 3)) >> (at & 7);

	d->next_offset_bit = at + (uint32_t)__builtin_popcountll(mask);
	return _pdep_u64(bits, mask);
}

static inline __m256i spiked_offsets_32(struct pair_decoder *d, __m256i classes,
					unsigned offset_bits)
{
	__m256i is_spike = _mm256_cmpeq_epi8(classes, _mm256_set1_epi8((char)d->spike));
	__m256i mask = _mm256_andnot_si256(is_spike, _mm256_set1_epi8((char)((1U << offset_bits) - 1)));
	uint64_t word[4];

	word[0] = spiked_offsets_8(d, (uint64_t)_mm256_extract_epi64(mask, 0));
	word[1] = spiked_offsets_8(d, (uint64_t)_mm256_extract_epi64(mask, 1));
	word[2] = spiked_offsets_8(d, (uint64_t)_mm256_extract_epi64(mask, 2));
	word[3] = spiked_offsets_8(d, (uint64_t)_mm256_extract_epi64(mask, 3));
	return _mm256_setr_epi64x((long long)word[0], (long long)word[1], (long long)word[2],
				  (long long)word[3]);
}

static inline uint64_t bytes_mask(__m256i low, __m256i high)
{
	return (uint32_t)_mm256_movemask_epi8(low) |
	       (uint64_t)(uint32_t)_mm256_movemask_epi8(high) << 32;
}

/* Escapes of a row whose rare pairs are in place already. */
static inline void escapes_patch(struct pair_decoder *d, uint64_t mask, uint8_t *high)
{
	for (; mask; mask &= mask - 1)
		high[__builtin_ctzll(mask)] = d->escapes[d->next_escape++];
}

/* The 64 high bytes of a row; which of them pair_patch() has to mend. */
static inline __attribute__((always_inline)) uint64_t
row_values(struct pair_decoder *d, const struct bases *bases, const uint16_t *entries,
	   const uint8_t *offset_row, enum row_kind kind, unsigned offset_bits, uint8_t *high)
{
	const __m256i escape = _mm256_set1_epi8(PAIR_ESCAPE);
	const __m256i last = _mm256_set1_epi8(PAIR_ESCAPE - 1);
	__m256i a, b, values_a, values_b, offsets[2];

	a = _mm256_load_si256((const __m256i *)entries);
	b = _mm256_load_si256((const __m256i *)(entries + 16));
	if (kind == ROW_SPIKED)
		rare_expand(d, &a, &b);
	a = classes_of(a);
	b = classes_of(b);
	values_a = base_of(a, bases);
	values_b = base_of(b, bases);
	if (kind == ROW_SPIKED) {
		offsets[0] = spiked_offsets_32(d, a, offset_bits);
		offsets[1] = spiked_offsets_32(d, b, offset_bits);
	} else if (offset_bits) {
		row_unpack(offset_row, offset_bits, offsets);
	}
	if (offset_bits) {
		values_a = _mm256_add_epi8(values_a, offsets[0]);
		values_b = _mm256_add_epi8(values_b, offsets[1]);
	}
	_mm256_storeu_si256((__m256i *)high, values_a);
	_mm256_storeu_si256((__m256i *)(high + 32), values_b);
	if (kind == ROW_SPIKED) {
		escapes_patch(d, bytes_mask(_mm256_cmpeq_epi8(a, escape),
					    _mm256_cmpeq_epi8(b, escape)), high);
		return 0;
	}
	/* The mark of a rare pair is above the escape. */
	return bytes_mask(_mm256_cmpgt_epi8(a, last), _mm256_cmpgt_epi8(b, last));
}

#include "codec/pair-blocks.h"

/* Patches in one row of so many or more are listed. */
#define ROWS_PER_PATCH 16U

void pair_blocks_avx2(struct pair_decoder *d, unsigned element_bytes, uint8_t *dst)
{
	uint32_t n_rows = d->n_blocks * PAIR_BLOCK_STEPS;

	if (d->spike != PAIR_RARE)
		blocks_decode(d, ROW_SPIKED, element_bytes, dst);
	else if (element_bytes == 1 && d->n_rare + d->n_escapes >= n_rows / ROWS_PER_PATCH)
		blocks_decode(d, ROW_LIST, element_bytes, dst);
	else
		blocks_decode(d, ROW_BRANCH, element_bytes, dst);
}
#endif
