/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What every form of the inner loop shares: the step of the lanes, and the patches of the few rows
 * that need them. Included by pair.c and, under their own targets, pair-avx2.c and pair-avx512.c.
 */
#ifndef CODEC_PAIR_LANES_H
#define CODEC_PAIR_LANES_H

#include <string.h>

#include "codec/bytes.h"
#include "codec/pair.h"

/* How a row becomes values, chosen for a page. */
enum row_kind {
	ROW_BRANCH, /* patches, where there are any, one by one */
	ROW_LIST,   /* bytes alone: listed, and mended later, since a branch would be guessed wrong */
	ROW_EXPAND, /* as vectors */
	ROW_SPIKED, /* rare pairs as vectors; the offsets are those of the other classes alone */
};

/*
 * Keeps a value in its register and the stores before it apart: without it the compiler moves the
 * marks below across the loop, spills half of the lanes, and gathers entries into vectors first.
 */
#define PAIR_OPAQUE(value) __asm__ volatile("" : "+r"(value) : : "memory")

/* Lanes that step together: as many as have registers, since a lane alone is all latency. */
#define PAIR_GROUP 8U

/* Four codewords of a group of lanes: at most 52 bits of the 57 that a load at any bit gives. */
static inline __attribute__((always_inline)) void
pair_group_step(struct pair_decoder *d, unsigned lane, uint16_t *entries)
{
	const uint8_t *bytes = d->lanes + (size_t)lane * PAIR_LANE_STRIDE;
	const uint32_t *position = d->position + lane;
	const uint16_t *table = d->table;
	uint64_t bits[PAIR_GROUP];

	PAIR_OPAQUE(bytes);
#pragma GCC unroll 8
	for (unsigned i = 0; i < PAIR_GROUP; i++) {
		const uint8_t *next = bytes + (position[i] >> 3);

		bits[i] = bytes_load64(next + (size_t)i * PAIR_LANE_STRIDE) >> (position[i] & 7);
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
}

/* The entries of the next block. */
static inline __attribute__((always_inline)) void pair_lanes_step(struct pair_decoder *d,
								  uint16_t *entries)
{
	for (unsigned lane = 0; lane < PAIR_LANES; lane += PAIR_GROUP)
		pair_group_step(d, lane, entries);
	/* The lowest six bits of the sum are the sum of the lengths: below 64, so nothing is lost. */
	for (unsigned lane = 0; lane < PAIR_LANES; lane++) {
		const uint16_t *e = entries + lane;

		d->position[lane] += (e[0] + e[PAIR_LANES] + e[2 * PAIR_LANES] + e[3 * PAIR_LANES]) & 63U;
	}
}

/*
 * Mends the values of a row whose bits are set in `mask`: of escapes, and of both symbols of rare
 * pairs, whose values so far are those of their mark.
 */
static inline void pair_patch(struct pair_decoder *d, uint64_t mask, uint8_t *values)
{
	/* No codeword is a pair of escapes, so two bits are a rare pair. */
	uint64_t rare = mask & mask >> 1 & 0x5555555555555555ULL;
	uint32_t mark = d->base[PAIR_RARE];

	mask &= ~(rare | rare << 1);
	for (; rare; rare &= rare - 1) {
		unsigned i = (unsigned)__builtin_ctzll(rare);
		uint32_t entry = d->rare[d->next_rare++], first = entry >> 6 & 31;
		uint32_t second = entry >> 11;

		values[i] = (uint8_t)(values[i] - mark + d->base[first]);
		values[i + 1] = (uint8_t)(values[i + 1] - mark + d->base[second]);
		mask |= (uint64_t)(first == PAIR_ESCAPE) << i;
		mask |= (uint64_t)(second == PAIR_ESCAPE) << i << 1;
	}
	for (; mask; mask &= mask - 1)
		values[__builtin_ctzll(mask)] = d->escapes[d->next_escape++];
}

#endif
