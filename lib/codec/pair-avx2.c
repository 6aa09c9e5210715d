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

/* The 64 raw offsets of a row, from its parts of 4, 2 and 1 bits. */
static inline void offsets_of(const uint8_t *row, unsigned offset_bits, __m256i ret_offsets[2])
{
	__m256i low = _mm256_setzero_si256(), high = low, part, mask;
	int at = 0;

	if (offset_bits & 4) {
		mask = _mm256_set1_epi8(0x0f);
		part = _mm256_loadu_si256((const __m256i *)row);
		low = _mm256_and_si256(part, mask);
		high = _mm256_and_si256(_mm256_srli_epi16(part, 4), mask);
		row += 32;
		at = 4;
	}
	if (offset_bits & 2) {
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
	if (offset_bits & 1) {
		__m256i a, b;

		mask = _mm256_set1_epi8(0x01);
		part = _mm256_set1_epi64x((long long)pair_load64(row));
		a = _mm256_srlv_epi64(part, _mm256_setr_epi64x(0, 1, 2, 3));
		b = _mm256_srlv_epi64(part, _mm256_setr_epi64x(4, 5, 6, 7));
		a = _mm256_slli_epi16(_mm256_and_si256(a, mask), at);
		b = _mm256_slli_epi16(_mm256_and_si256(b, mask), at);
		low = _mm256_or_si256(low, a);
		high = _mm256_or_si256(high, b);
	}
	ret_offsets[0] = low;
	ret_offsets[1] = high;
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

/* 64 elements of 32 bits: three raw planes below the high byte. */
static inline void store_32(const uint8_t *high_row, const uint8_t *low_plane, size_t plane_bytes,
			    uint8_t *dst)
{
	for (unsigned i = 0; i < PAIR_ROW; i += 16) {
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

static inline struct bases bases_of(const struct pair_decoder *d)
{
	return (struct bases){
		.low = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)d->base)),
		.high = _mm256_broadcastsi128_si256(_mm_load_si128((const __m128i *)(d->base + 16))),
	};
}

/* The 64 high bytes of a row. */
static inline __attribute__((always_inline)) void row_values(struct pair_decoder *d,
							     const struct bases *bases,
							     const uint16_t *entries,
							     const uint8_t *offset_row,
							     unsigned offset_bits, uint8_t *high)
{
	__m256i last = _mm256_set1_epi8(PAIR_ESCAPE - 1), a, b, values_a, values_b;
	uint64_t mask;

	a = classes_of(_mm256_load_si256((const __m256i *)entries));
	b = classes_of(_mm256_load_si256((const __m256i *)(entries + 16)));
	values_a = base_of(a, bases);
	values_b = base_of(b, bases);
	if (offset_bits) {
		__m256i offsets[2];

		offsets_of(offset_row, offset_bits, offsets);
		values_a = _mm256_add_epi8(values_a, offsets[0]);
		values_b = _mm256_add_epi8(values_b, offsets[1]);
	}
	_mm256_storeu_si256((__m256i *)high, values_a);
	_mm256_storeu_si256((__m256i *)(high + 32), values_b);
	mask = (uint32_t)_mm256_movemask_epi8(_mm256_cmpgt_epi8(a, last)) |
	       (uint64_t)(uint32_t)_mm256_movemask_epi8(_mm256_cmpgt_epi8(b, last)) << 32;
	if (__builtin_expect(mask != 0, 0))
		pair_patch(d, entries, (mask | mask >> 1) & 0x5555555555555555ULL, high);
}

/* A block of bytes, for a constant count of offset bits. */
static inline __attribute__((always_inline)) void block_8(struct pair_decoder *d, uint32_t block,
							  unsigned offset_bits, uint8_t *dst)
{
	const uint16_t *entries = d->entries[block & 1];
	const uint8_t *offsets = d->offsets + (size_t)block * PAIR_BLOCK / 8 * offset_bits;
	const struct bases bases = bases_of(d);

	dst += (size_t)block * PAIR_BLOCK;
	for (unsigned row = 0; row < PAIR_BLOCK_STEPS; row++)
		row_values(d, &bases, entries + row * PAIR_LANES, offsets + row * 8 * offset_bits,
			   offset_bits, dst + row * PAIR_ROW);
}

#define BLOCK_8(n)                                                                             \
	static __attribute__((noinline)) void block_8_##n(struct pair_decoder *d,              \
							  uint32_t block, uint8_t *dst)        \
	{                                                                                      \
		block_8(d, block, n, dst);                                                     \
	}
BLOCK_8(0)
BLOCK_8(1)
BLOCK_8(2)
BLOCK_8(3)
BLOCK_8(4)
BLOCK_8(5)

/* A block of wider elements: their high bytes by way of a row in the first cache. */
static inline __attribute__((always_inline)) void
block_wide(struct pair_decoder *d, uint32_t block, unsigned element_bytes, uint8_t *dst)
{
	const uint16_t *entries = d->entries[block & 1];
	const uint8_t *offsets = d->offsets + (size_t)block * PAIR_BLOCK / 8 * d->offset_bits;
	const uint8_t *low = d->low + (size_t)block * PAIR_BLOCK;
	const struct bases bases = bases_of(d);
	size_t plane_bytes = (size_t)d->n_blocks * PAIR_BLOCK;

	dst += (size_t)block * PAIR_BLOCK * element_bytes;
	for (unsigned row = 0; row < PAIR_BLOCK_STEPS; row++) {
		_Alignas(32) uint8_t high[PAIR_ROW];

		row_values(d, &bases, entries + row * PAIR_LANES,
			   offsets + row * 8 * d->offset_bits, d->offset_bits, high);
		if (element_bytes == 2)
			store_16(high, low, dst);
		else
			store_32(high, low, plane_bytes, dst);
		low += PAIR_ROW;
		dst += PAIR_ROW * element_bytes;
	}
}

static __attribute__((noinline)) void block_16(struct pair_decoder *d, uint32_t block, uint8_t *dst)
{
	block_wide(d, block, 2, dst);
}

static __attribute__((noinline)) void block_32(struct pair_decoder *d, uint32_t block, uint8_t *dst)
{
	block_wide(d, block, 4, dst);
}

void pair_blocks_avx2(struct pair_decoder *d, unsigned element_bytes, uint8_t *dst)
{
	static void (*const blocks_8[])(struct pair_decoder *, uint32_t, uint8_t *) = {
		block_8_0, block_8_1, block_8_2, block_8_3, block_8_4, block_8_5,
	};
	void (*block_of)(struct pair_decoder *, uint32_t, uint8_t *) =
		element_bytes == 1   ? blocks_8[d->offset_bits]
		: element_bytes == 2 ? block_16
				     : block_32;

	/* A block behind the lanes: loads that span fresh narrow stores would wait for them. */
	for (uint32_t block = 0; block <= d->n_blocks; block++) {
		if (block < d->n_blocks)
			pair_lanes_step(d, d->entries[block & 1]);
		if (block)
			block_of(d, block - 1, dst);
	}
}
#endif
