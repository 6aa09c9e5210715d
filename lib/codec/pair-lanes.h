/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every form of the inner loop shares: the step of the lanes, and the patches of the few rows
 * that need them. Included by pair.c and, under their own targets, pair-avx2.c and pair-avx512.c.
 */
#ifndef CODEC_PAIR_LANES_H
#define CODEC_PAIR_LANES_H

#include <stdbool.h>
#include <string.h>

#include "codec/pair.h"

static inline uint64_t pair_load64(const uint8_t *p)
{
	uint64_t word;

	memcpy(&word, p, sizeof(word));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	word = __builtin_bswap64(word);
#endif
	return word;
}

/* The eight bytes at `at`, zeros past the end: for the last bytes of a page and for hostile ones. */
static inline uint64_t pair_load64_near_end(const uint8_t *src, size_t src_bytes, size_t at)
{
	uint8_t bytes[8] = {0};

	if (at < src_bytes)
		memcpy(bytes, src + at, src_bytes - at < 8 ? src_bytes - at : 8);
	return pair_load64(bytes);
}

/*
 * Keeps a value in its register and the stores before it apart: without it the compiler moves the
 * marks below across the loop, spills half of the lanes, and gathers entries into vectors first.
 */
#define PAIR_OPAQUE(value) __asm__ volatile("" : "+r"(value) : : "memory")

/* Lanes that step together: as many as have registers, since a lane alone is all latency. */
#define PAIR_GROUP 8U

/*
 * Four codewords of a group of lanes: at most 52 bits of the 57 that a load at any bit gives. A
 * mark in the top bit tells at the end how many were used.
 */
static inline __attribute__((always_inline)) void
pair_group_step(struct pair_decoder *d, unsigned lane, uint16_t *entries)
{
	const uint8_t *bytes = d->lanes + (size_t)lane * PAIR_LANE_STRIDE;
	uint32_t *position = d->position + lane;
	const uint16_t *table = d->table;
	uint64_t bits[PAIR_GROUP], mark = 1ULL << 63;

	PAIR_OPAQUE(mark);
#pragma GCC unroll 8
	for (unsigned i = 0; i < PAIR_GROUP; i++) {
		uint32_t at = position[i];

		bits[i] = pair_load64(bytes + (size_t)i * PAIR_LANE_STRIDE + (at >> 3));
		bits[i] = bits[i] >> (at & 7) | mark;
		PAIR_OPAQUE(bits[i]);
	}
#pragma GCC unroll 4
	for (unsigned step = 0; step < PAIR_BLOCK_STEPS; step++) {
#pragma GCC unroll 8
		for (unsigned i = 0; i < PAIR_GROUP; i++) {
			uint32_t entry = table[bits[i] & (PAIR_TABLE - 1)];

			entries[step * PAIR_LANES + lane + i] = (uint16_t)entry;
			bits[i] >>= entry & 63;
			PAIR_OPAQUE(bits[i]);
		}
	}
#pragma GCC unroll 8
	for (unsigned i = 0; i < PAIR_GROUP; i++) {
		uint32_t n_used = (uint32_t)__builtin_clzll(bits[i]);

		PAIR_OPAQUE(n_used);
		position[i] += n_used;
	}
}

/* The entries of the next block. */
static inline __attribute__((always_inline)) void pair_lanes_step(struct pair_decoder *d,
								  uint16_t *entries)
{
	for (unsigned lane = 0; lane < PAIR_LANES; lane += PAIR_GROUP)
		pair_group_step(d, lane, entries);
}

/* The next digit of the escapes, 0 past their end. */
static inline uint32_t pair_escape_digit(struct pair_decoder *d)
{
	uint32_t at = d->next_escape++;

	return at < d->n_escapes ? d->escapes[at >> 1] >> (4 * (at & 1)) & 15 : 0;
}

static inline void pair_patch_value(struct pair_decoder *d, uint32_t class, uint8_t *value)
{
	uint32_t digit;

	if (class != PAIR_ESCAPE) {
		*value = (uint8_t)(*value + d->base[class]);
		return;
	}
	digit = pair_escape_digit(d);
	if (digit < PAIR_COMMON_ESCAPES) {
		*value = d->common[digit];
	} else {
		digit = pair_escape_digit(d);
		*value = (uint8_t)(digit | pair_escape_digit(d) << 4);
	}
}

/*
 * Mends the values of those pairs of a row whose bits are set in `mask`, bit 2 i for pair i. The
 * values of a rare pair are its offsets so far, since its classes have base 0.
 */
static inline void pair_patch(struct pair_decoder *d, const uint16_t *entries, uint64_t mask,
			      uint8_t *values)
{
	for (; mask; mask &= mask - 1) {
		unsigned i = (unsigned)__builtin_ctzll(mask);
		uint32_t entry = entries[i / 2], first = entry >> 6 & 31, second = entry >> 11;

		if (first == PAIR_RARE) {
			size_t bit = (size_t)d->next_rare * 10;
			uint32_t pair = 0;

			if (d->next_rare < d->n_rare)
				pair = (uint32_t)(d->rare[bit >> 3] | d->rare[(bit >> 3) + 1] << 8) >>
				       (bit & 7);
			d->next_rare++;
			pair_patch_value(d, pair & 31, values + i);
			pair_patch_value(d, pair >> 5 & 31, values + i + 1);
			continue;
		}
		if (first == PAIR_ESCAPE)
			pair_patch_value(d, first, values + i);
		if (second == PAIR_ESCAPE)
			pair_patch_value(d, second, values + i + 1);
	}
}

#endif
