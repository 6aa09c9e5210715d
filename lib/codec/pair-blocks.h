/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the vector forms of the inner loop share. Included by pair-avx2.c and pair-avx512.c, under
 * their own targets, after they have defined:
 *   struct bases, bases_of()  the classes' first values, in registers
 *   row_values()		 the 64 high bytes of a row, and which are left to be mended
 *   lanes_step()		 the entries of the next block
 *   store_16(), store_32()	 64 elements from their planes
 */
#ifndef CODEC_PAIR_BLOCKS_H
#define CODEC_PAIR_BLOCKS_H

/* One block into dst, which is the page; the constants make a function of each way to do it. */
static inline __attribute__((always_inline)) void
block_decode(struct pair_decoder *d, uint32_t block, enum row_kind kind, unsigned offset_bits,
	     unsigned element_bytes, uint8_t *dst)
{
	const uint16_t *entries = d->entries[block & 1];
	const uint8_t *offsets = d->offsets + (size_t)block * PAIR_BLOCK / 8 * offset_bits;
	const uint8_t *low = d->low + (size_t)block * PAIR_BLOCK;
	size_t plane_bytes = (size_t)d->n_blocks * PAIR_BLOCK;
	const struct bases bases = bases_of(d);
	uint32_t n_patched = kind == ROW_LIST ? d->n_patched : 0;

	dst += (size_t)block * PAIR_BLOCK * element_bytes;
	for (unsigned row = 0; row < PAIR_BLOCK_STEPS; row++) {
		_Alignas(64) uint8_t high[PAIR_ROW];

		uint8_t *values = element_bytes == 1 ? dst : high;
		uint64_t mask = row_values(d, &bases, entries + row * PAIR_LANES,
					   offsets + row * 8 * offset_bits, kind, offset_bits,
					   values);

		if (kind == ROW_LIST) {
			d->patched[n_patched].mask = mask;
			d->patched[n_patched].values = values;
			n_patched += mask != 0;
		} else if (__builtin_expect(mask != 0, 0)) {
			pair_patch(d, mask, values);
		}
		if (element_bytes == 2)
			store_16(high, low, dst);
		else if (element_bytes == 4)
			store_32(high, low, plane_bytes, dst);
		low += PAIR_ROW;
		dst += PAIR_ROW * element_bytes;
	}
	if (kind == ROW_LIST)
		d->n_patched = n_patched;
}

static void patch_listed(struct pair_decoder *d)
{
	for (uint32_t i = 0; i < d->n_patched; i++)
		pair_patch(d, d->patched[i].mask, d->patched[i].values);
	d->n_patched = 0;
}

#define BLOCK_8(kind, k)                                                                       \
	static __attribute__((noinline)) void block_8_##kind##_##k(struct pair_decoder *d,     \
								   uint32_t block, uint8_t *dst) \
	{                                                                                      \
		block_decode(d, block, kind, k, 1, dst);                                       \
	}
#define BLOCK_WIDE(kind, bits)                                                                 \
	static __attribute__((noinline)) void block_##bits##_##kind(struct pair_decoder *d,    \
								    uint32_t block, uint8_t *dst) \
	{                                                                                      \
		block_decode(d, block, kind, d->offset_bits, (bits) / 8, dst);                 \
	}
#define BLOCKS(kind)                                                                           \
	BLOCK_8(kind, 0)                                                                       \
	BLOCK_8(kind, 1)                                                                       \
	BLOCK_8(kind, 2)                                                                       \
	BLOCK_8(kind, 3)                                                                       \
	BLOCK_8(kind, 4)                                                                       \
	BLOCK_8(kind, 5)                                                                       \
	BLOCK_WIDE(kind, 16)                                                                   \
	BLOCK_WIDE(kind, 32)                                                                   \
	static block_function *const blocks_##kind[] = {                                       \
		block_8_##kind##_0, block_8_##kind##_1, block_8_##kind##_2,                    \
		block_8_##kind##_3, block_8_##kind##_4, block_8_##kind##_5,                    \
		block_16_##kind,    block_32_##kind,                                           \
	};

typedef void block_function(struct pair_decoder *d, uint32_t block, uint8_t *dst);

BLOCKS(ROW_BRANCH)
BLOCKS(ROW_LIST)
BLOCKS(ROW_EXPAND)
BLOCKS(ROW_SPIKED)

static inline __attribute__((always_inline)) void
blocks_decode(struct pair_decoder *d, enum row_kind kind, unsigned element_bytes, uint8_t *dst)
{
	static block_function *const *const blocks[] = {
		[ROW_BRANCH] = blocks_ROW_BRANCH,
		[ROW_LIST] = blocks_ROW_LIST,
		[ROW_EXPAND] = blocks_ROW_EXPAND,
		[ROW_SPIKED] = blocks_ROW_SPIKED,
	};
	block_function *block_of = blocks[kind][element_bytes == 1   ? d->offset_bits
						: element_bytes == 2 ? 6
								     : 7];

	/* A block behind the lanes: loads that span fresh narrow stores would wait for them. */
	for (uint32_t block = 0; block <= d->n_blocks; block++) {
		if (block < d->n_blocks)
			lanes_step(d, d->entries[block & 1]);
		if (block)
			block_of(d, block - 1, dst);
		if (kind == ROW_LIST && d->n_patched > PAIR_LIST_ROWS - PAIR_BLOCK_STEPS - 1)
			patch_listed(d);
	}
	if (kind == ROW_LIST)
		patch_listed(d);
}

#endif
