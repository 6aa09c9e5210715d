/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The work-horse: pairs of bytes under one prefix code. Format and reasons: docs/codecs.md.
 *
 * A byte is a class (one of up to 30 blocks of 2^k neighbouring values) and k raw bits. Two
 * neighbouring classes have one codeword of at most 13 bits, so a lookup gives two bytes and the
 * loss of a prefix code is shared by both. 32 lanes, each its own bit stream, hide the latency.
 * Wider elements are rotated left by one bit; their high byte is coded so, the rest stays raw.
 */
#ifndef CODEC_PAIR_H
#define CODEC_PAIR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/cpu.h"
#include "dcmem/container.h"

#define PAIR_LANES	   32U
#define PAIR_CODE_BITS	   13U
#define PAIR_TABLE	   (1U << PAIR_CODE_BITS)
#define PAIR_MAX_CLASSES   30U
#define PAIR_ESCAPE	   30U /* the class of a byte whose value stands in the escapes */
#define PAIR_COMMON_ESCAPES 15U /* values of one digit; 15 and two digits say any other */
#define PAIR_RARE	   31U /* as first class: both classes stand in the rare pairs */
#define PAIR_MAX_OFFSET    5U  /* k */
#define PAIR_SPIKED	   0x80U /* with k: one more class, of one value and without offsets */
#define PAIR_BLOCK	   256U /* symbols: 4 steps of 32 lanes */
#define PAIR_BLOCK_STEPS   4U
#define PAIR_ROW	   64U /* symbols of one step of all lanes */
#define PAIR_MAX_CODES	   (31U * 31U + 1U)

/*
 * An entry of the table is an entry of a row: bits 0..5 the codeword's length (so that a shift by
 * the entry is a shift by its length), 6..10 the first class, 11..15 the second.
 */
#define PAIR_ENTRY(length, first, second) \
	((uint16_t)((length) | (first) << 6 | (second) << 11))

/*
 * Lanes are decoded from copies of their own: an odd count of 128 bytes apart, so that the lines
 * which 32 lanes read at a time fall into different sets of the first cache, and with room for the
 * bits that any stored bytes at all could ask for, so that no load needs a check.
 */
#define PAIR_LANE_BYTES	 (CONTAINER_MAX_PAGE_BYTES / PAIR_LANES / 2 * PAIR_CODE_BITS / 8 + 8)
#define PAIR_LANE_STRIDE ((PAIR_LANE_BYTES + 4095) / 4096 * 4096 + 128)

/* Symbols of the largest page, and room for a vector that starts at the last. */
#define PAIR_MAX_SYMBOLS (CONTAINER_MAX_PAGE_BYTES + 64)

/* Rows between two visits to the list of patches: what they wrote is still in the first cache. */
#define PAIR_LIST_ROWS 64U

/* Scratch of one decoding thread: 16 KiB of table must stay in the first cache. */
struct pair_decoder {
	_Alignas(64) uint16_t table[PAIR_TABLE + 4]; /* + 4: a gather reads 8 bytes */
	_Alignas(64) uint16_t entries[2][PAIR_BLOCK_STEPS * PAIR_LANES];
	_Alignas(64) uint32_t position[PAIR_LANES]; /* bits from the lane's start */
	_Alignas(64) uint8_t lanes[PAIR_LANES * PAIR_LANE_STRIDE];
	_Alignas(64) uint8_t base[32];		    /* class to the block's first value */
	bool has_runs;	       /* classes are neighbours: from 0 on, and from second_run on */
	uint8_t second_run, gap; /* class; what it leaves out */
	uint16_t values[1024]; /* portable: two classes to two bytes */
	uint8_t width[32];     /* portable: raw bits of a class's symbols */
	uint16_t sorted[PAIR_MAX_CODES];
	uint32_t lane_bytes[PAIR_LANES];
	uint32_t n_blocks;
	struct {
		uint8_t *values;
		uint64_t mask;		      /* AVX2 */
		uint16_t entries[PAIR_LANES]; /* portable */
	} patched[PAIR_LIST_ROWS]; /* rows to be mended */
	uint32_t n_patched;
	const uint8_t *low; /* raw bytes of wider elements, plane by plane */

	const uint8_t *offsets; /* 8 k bytes a row; with a spike only what its symbols leave over */
	uint32_t offset_bits;	/* k */
	uint32_t spike;		/* the class without offsets, PAIR_RARE if there is none */
	uint32_t n_offset_bits, next_offset_bit; /* of a page with a spike */

	/*
	 * What stands in lists, in the order in which it is needed. Damaged lanes may ask for more
	 * than there is, never for more than fits here: that is noticed at the end.
	 */
	uint32_t n_rare, n_escapes, next_rare, next_escape;
	uint16_t rare[PAIR_MAX_SYMBOLS / 2]; /* entries without a length */
	uint8_t escapes[PAIR_MAX_SYMBOLS];   /* values */
	uint8_t spiked_offsets[PAIR_MAX_SYMBOLS / 8 * PAIR_MAX_OFFSET];
};

/*
 * Decodes a page of elements of `element_bytes` (1, 2 or 4) into exactly dst_bytes. 0 or
 * CODEC_E_CORRUPT, and the same for every path. Every access lies in the buffers, the work is
 * bounded by dst_bytes, whatever src holds; dst may be anything after an error.
 */
int pair_decode(struct pair_decoder *decoder, enum cpu_path path, unsigned element_bytes,
		const uint8_t *src, size_t src_bytes, uint8_t *dst, size_t dst_bytes);

struct pair_encoder;
struct pair_encoder *pair_encoder_new(void);
struct pair_encoder *pair_encoder_free(struct pair_encoder *encoder);

/* 0 or CODEC_E_INCOMPRESSIBLE. The same bytes on every CPU. */
int pair_encode(struct pair_encoder *encoder, unsigned element_bytes, const uint8_t *src,
		size_t src_bytes, uint8_t *dst, size_t dst_capacity, size_t *ret_bytes);

/* The forms of the inner loop; each decodes all blocks of a prepared page. */
void pair_blocks_portable(struct pair_decoder *decoder, unsigned element_bytes, uint8_t *dst);
void pair_blocks_avx2(struct pair_decoder *decoder, unsigned element_bytes, uint8_t *dst);
void pair_blocks_avx512(struct pair_decoder *decoder, unsigned element_bytes, uint8_t *dst);

#endif
