/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads the head of a page, builds the table of the pair code and runs the inner loop in the form
 * that suits the CPU. Refuses a code that is not complete (so that any bits at all find an entry),
 * parts that do not add up to the page, lanes that do not end where they should. Portable form of
 * the inner loop included. No allocation, no state beyond the decoder's scratch.
 */
#include "codec/pair.h"

#include "codec/codec.h"
#include "codec/pair-lanes.h"

#define HEAD_BYTES 10U

/* Reads fields of up to 16 bits, lowest bit first; past the end it reads zeros and says so. */
struct bits {
	const uint8_t *src;
	size_t bytes;
	size_t at; /* bit */
};

static inline uint32_t bits_peek(const struct bits *bits)
{
	size_t at = bits->at >> 3;
	uint64_t word;

	if (__builtin_expect(at + 8 <= bits->bytes, 1))
		word = pair_load64(bits->src + at);
	else
		word = pair_load64_near_end(bits->src, bits->bytes, at);
	return (uint32_t)(word >> (bits->at & 7));
}

static inline uint32_t bits_take(struct bits *bits, unsigned n)
{
	uint32_t word = bits_peek(bits);

	bits->at += n;
	return word & ((1U << n) - 1);
}

static uint32_t load_u16(const uint8_t *p)
{
	return (uint32_t)(p[0] | p[1] << 8);
}

static uint32_t load_u32(const uint8_t *p)
{
	return load_u16(p) | load_u16(p + 2) << 16;
}

/* A cell of the matrix of pairs that has a codeword: its entry, the length among its bits. */
struct cells {
	uint16_t entry[PAIR_MAX_CODES];
	uint32_t n;
	uint32_t of_length[PAIR_CODE_BITS + 1];
};

static int cells_add(struct cells *cells, uint32_t length, uint32_t first, uint32_t second)
{
	if (length > PAIR_CODE_BITS)
		return CODEC_E_CORRUPT;
	if (length == 0)
		return 0;
	cells->entry[cells->n++] = PAIR_ENTRY(length, first, second);
	cells->of_length[length]++;
	return 0;
}

/*
 * What a cell's code says, by the next four bits: how many of them it takes, and the length's
 * distance from the one expected, or that there is no codeword, or that the length follows.
 */
#define CELL_NONE  2
#define CELL_GIVEN 3
static const struct {
	uint8_t n_bits;
	int8_t step;
} cell_codes[16] = {
	{1, 0}, {2, 1}, {1, 0}, {3, -1}, {1, 0}, {2, 1}, {1, 0}, {4, CELL_NONE},
	{1, 0}, {2, 1}, {1, 0}, {3, -1}, {1, 0}, {2, 1}, {1, 0}, {4, CELL_GIVEN},
};

/* One row of the matrix. `weight`: of each class, in half bits; the expected length is the sum. */
static int cells_read_row(struct cells *cells, struct bits *bits, const uint8_t *weight,
			  uint32_t row, uint32_t n_rows, uint32_t n_classes)
{
	uint32_t row_class = row < n_classes ? row : PAIR_ESCAPE;

	for (uint32_t i = 0; i < n_rows; i++) {
		uint32_t expected = (weight[row] + weight[i] + 1U) / 2, what, length;
		int r;

		if (expected > PAIR_CODE_BITS + 1)
			continue;
		expected = expected == 0 ? 1 : expected;
		expected = expected < PAIR_CODE_BITS ? expected : PAIR_CODE_BITS;
		what = bits_peek(bits) & 15;
		bits->at += cell_codes[what].n_bits;
		length = expected + (uint32_t)(int32_t)cell_codes[what].step;
		if (__builtin_expect(cell_codes[what].step >= CELL_NONE, 0))
			length = cell_codes[what].step == CELL_NONE ? 0 : bits_take(bits, 4);
		r = cells_add(cells, length, row_class, i < n_classes ? i : PAIR_ESCAPE);
		if (r)
			return r;
	}
	return 0;
}

/* Entry i of the table is the codeword that the bits of i begin with, lowest first. */
static void table_fill(uint16_t *table, uint16_t *sorted, const struct cells *cells)
{
	uint32_t at[PAIR_CODE_BITS + 2] = {0}, code = 0, next = 0;

	for (unsigned length = 1; length <= PAIR_CODE_BITS; length++)
		at[length + 1] = at[length] + cells->of_length[length];
	for (uint32_t i = 0; i < cells->n; i++)
		sorted[at[cells->entry[i] & 63]++] = cells->entry[i];
	/* The table for codewords of up to n bits, twice, is the one for n + 1 but for their own. */
	for (unsigned length = 1; length <= PAIR_CODE_BITS; length++) {
		uint32_t size = 1U << (length - 1);

		memcpy(table + size, table, size * sizeof(*table));
		for (uint32_t i = 0; i < cells->of_length[length]; i++) {
			uint32_t bit = size;

			table[code] = sorted[next++];
			/* The next codeword, counted in bits that are stored the other way round. */
			while (code & bit) {
				code ^= bit;
				bit >>= 1;
			}
			code |= bit;
		}
	}
}

static int read_classes(struct pair_decoder *d, const uint8_t *bitmap, size_t n_blocks,
			uint32_t shift, uint32_t *ret_n)
{
	uint32_t n = 0;

	memset(d->base, 0, sizeof(d->base));
	for (size_t block = 0; block < n_blocks; block++) {
		if (!(bitmap[block >> 3] >> (block & 7) & 1))
			continue;
		if (n == PAIR_MAX_CLASSES)
			return CODEC_E_CORRUPT;
		d->base[n++] = (uint8_t)((block << d->offset_bits) + shift);
	}
	*ret_n = n;
	return 0;
}

static int read_code(struct pair_decoder *d, struct bits *bits, uint32_t n_classes)
{
	struct cells cells;
	uint32_t n_rows = n_classes + (d->n_escapes > 0), sum = 0;
	uint8_t weight[PAIR_MAX_CLASSES + 1];
	int r;

	cells.n = 0;
	memset(cells.of_length, 0, sizeof(cells.of_length));
	for (uint32_t row = 0; row < n_rows; row++)
		weight[row] = (uint8_t)bits_take(bits, 5);
	for (uint32_t row = 0; row < n_rows; row++) {
		r = cells_read_row(&cells, bits, weight, row, n_rows, n_classes);
		if (r)
			return r;
	}
	r = cells_add(&cells, bits_take(bits, 4), PAIR_RARE, PAIR_RARE);
	if (r)
		return r;
	for (unsigned length = 1; length <= PAIR_CODE_BITS; length++)
		sum += cells.of_length[length] << (PAIR_CODE_BITS - length);
	if (sum != PAIR_TABLE || bits->at > 8 * bits->bytes)
		return CODEC_E_CORRUPT;
	table_fill(d->table, d->sorted, &cells);
	return 0;
}

/* Everything but the inner loop: 0, and the place of the tail, or CODEC_E_CORRUPT. */
static int read_head(struct pair_decoder *d, unsigned element_bytes, const uint8_t *src,
		     size_t src_bytes, size_t dst_bytes, size_t *ret_tail)
{
	size_t n_symbols = dst_bytes / element_bytes / PAIR_BLOCK * PAIR_BLOCK, n_bitmap;
	size_t at, low, offsets, rare, escapes;
	struct bits bits;
	uint32_t shift, n_classes;
	int r;

	if (src_bytes < HEAD_BYTES || dst_bytes > CONTAINER_MAX_PAGE_BYTES)
		return CODEC_E_CORRUPT;
	d->n_blocks = (uint32_t)(n_symbols / PAIR_BLOCK);
	d->offset_bits = src[0];
	shift = src[1];
	d->n_rare = load_u32(src + 2);
	d->n_escapes = load_u32(src + 6);
	d->next_rare = d->next_escape = 0;
	if (d->offset_bits > PAIR_MAX_OFFSET || shift >> d->offset_bits || d->n_rare > n_symbols ||
	    d->n_escapes > 3 * n_symbols)
		return CODEC_E_CORRUPT;
	n_bitmap = 32U >> d->offset_bits;
	at = HEAD_BYTES + n_bitmap;
	if (src_bytes < at)
		return CODEC_E_CORRUPT;
	r = read_classes(d, src + HEAD_BYTES, n_bitmap * 8, shift, &n_classes);
	if (r)
		return r;
	bits = (struct bits){.src = src + at, .bytes = src_bytes - at};
	r = read_code(d, &bits, n_classes);
	if (r)
		return r;
	at += (bits.at + 7) / 8;
	if (d->n_escapes) {
		if (src_bytes - at < PAIR_COMMON_ESCAPES)
			return CODEC_E_CORRUPT;
		memcpy(d->common, src + at, PAIR_COMMON_ESCAPES);
		at += PAIR_COMMON_ESCAPES;
	}
	if (src_bytes - at < 2U * PAIR_LANES)
		return CODEC_E_CORRUPT;
	bits.src = src + at; /* now the lanes' sizes */
	at += 2U * PAIR_LANES;
	for (unsigned lane = 0; lane < PAIR_LANES; lane++) {
		uint8_t *copy = d->lanes + (size_t)lane * PAIR_LANE_STRIDE;
		uint32_t n = load_u16(bits.src + (size_t)2 * lane);

		if (n > src_bytes - at || n > PAIR_LANE_BYTES - 8)
			return CODEC_E_CORRUPT;
		memcpy(copy, src + at, n);
		memset(copy + n, 0, 8);
		d->position[lane] = 0;
		d->lane_bytes[lane] = n;
		at += n;
	}
	low = at;
	offsets = low + n_symbols * (element_bytes - 1);
	rare = offsets + n_symbols / 8 * d->offset_bits;
	escapes = rare + ((size_t)d->n_rare * 10 + 7) / 8;
	at = escapes + (d->n_escapes + 1) / 2; /* each part is far below 2^32 */
	if (at > src_bytes || src_bytes - at != dst_bytes - n_symbols * element_bytes)
		return CODEC_E_CORRUPT;
	d->low = src + low;
	d->offsets = src + offsets;
	d->rare = src + rare;
	d->escapes = src + escapes;
	*ret_tail = at;
	return 0;
}

static inline uint64_t swar_add(uint64_t a, uint64_t b)
{
	const uint64_t low = 0x7f7f7f7f7f7f7f7fULL;

	return ((a & low) + (b & low)) ^ ((a ^ b) & ~low);
}

/* Eight values' raw bits: word `w` (0..7) of a row. Parts of 4, 2 and 1 bits, see docs/codecs.md. */
static inline uint64_t offsets_word(const uint8_t *row, unsigned offset_bits, unsigned w)
{
	uint64_t word = 0;
	unsigned at = 0;

	if (offset_bits & 4) {
		word = pair_load64(row + 8 * (w & 3)) >> (4 * (w >> 2)) & 0x0f0f0f0f0f0f0f0fULL;
		at = 4;
		row += 32;
	}
	if (offset_bits & 2) {
		word |= (pair_load64(row + 8 * (w & 1)) >> (2 * (w >> 1)) & 0x0303030303030303ULL)
			<< at;
		at += 2;
		row += 16;
	}
	if (offset_bits & 1)
		word |= (pair_load64(row) >> w & 0x0101010101010101ULL) << at;
	return word;
}

/* The 64 high bytes of one row. */
static inline void row_values(struct pair_decoder *d, const uint16_t *entries,
			      const uint8_t *offsets, uint8_t *high)
{
	uint64_t patched = 0;

	for (unsigned w = 0; w < PAIR_ROW / 8; w++) {
		uint64_t word = 0;

		for (unsigned i = 0; i < 4; i++) {
			uint32_t value = d->values[entries[4 * w + i] >> 6];

			patched |= (uint64_t)(value >> 16) << (8 * w + 2 * i);
			word |= (uint64_t)(value & 0xffff) << (16 * i);
		}
		if (d->offset_bits)
			word = swar_add(word, offsets_word(offsets, d->offset_bits, w));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
		word = __builtin_bswap64(word);
#endif
		memcpy(high + 8 * w, &word, 8);
	}
	pair_patch(d, entries, patched, high);
}

/* An element is its planes, high byte first, rotated right by one bit. */
static inline void row_merge(const uint8_t *high, const uint8_t *low, size_t plane_bytes,
			     unsigned element_bytes, uint8_t *dst)
{
	for (unsigned i = 0; i < PAIR_ROW; i++) {
		if (element_bytes == 2) {
			uint32_t v = (uint32_t)(high[i] << 8 | low[i]);

			v = v >> 1 | v << 15;
			dst[2 * i] = (uint8_t)v;
			dst[2 * i + 1] = (uint8_t)(v >> 8);
		} else {
			uint32_t v = (uint32_t)high[i] << 24 | (uint32_t)low[i] << 16 |
				     (uint32_t)low[plane_bytes + i] << 8 | low[2 * plane_bytes + i];

			v = v >> 1 | v << 31;
			for (unsigned b = 0; b < 4; b++)
				dst[4 * i + b] = (uint8_t)(v >> 8 * b);
		}
	}
}

void pair_blocks_portable(struct pair_decoder *d, unsigned element_bytes, uint8_t *dst)
{
	const uint8_t *offsets = d->offsets, *low = d->low;
	size_t plane_bytes = (size_t)d->n_blocks * PAIR_BLOCK;

	for (unsigned pair = 0; pair < 1024; pair++) {
		unsigned first = pair & 31, second = pair >> 5;

		d->values[pair] = (uint32_t)(d->base[first] | d->base[second] << 8) |
				  (uint32_t)(first >= PAIR_ESCAPE || second >= PAIR_ESCAPE) << 16;
	}
	/* A block behind the lanes: loads that span fresh narrow stores would wait for them. */
	for (uint32_t block = 0; block <= d->n_blocks; block++) {
		const uint16_t *entries = d->entries[(block + 1) & 1];

		if (block < d->n_blocks)
			pair_lanes_step(d, d->entries[block & 1]);
		if (block == 0)
			continue;
		for (unsigned row = 0; row < PAIR_BLOCK_STEPS; row++) {
			uint8_t high[PAIR_ROW];

			if (element_bytes == 1) {
				row_values(d, entries + row * PAIR_LANES, offsets, dst);
			} else {
				row_values(d, entries + row * PAIR_LANES, offsets, high);
				row_merge(high, low, plane_bytes, element_bytes, dst);
				low += PAIR_ROW;
			}
			offsets += (size_t)8 * d->offset_bits;
			dst += PAIR_ROW * element_bytes;
		}
	}
}

int pair_decode(struct pair_decoder *decoder, enum cpu_path path, unsigned element_bytes,
		const uint8_t *src, size_t src_bytes, uint8_t *dst, size_t dst_bytes)
{
	size_t tail;
	int r = read_head(decoder, element_bytes, src, src_bytes, dst_bytes, &tail);

	if (r)
		return r;
	switch (path) {
#if defined(__x86_64__)
	case CPU_AVX512:
		pair_blocks_avx512(decoder, element_bytes, dst);
		break;
	case CPU_AVX2:
		pair_blocks_avx2(decoder, element_bytes, dst);
		break;
#endif
	default:
		pair_blocks_portable(decoder, element_bytes, dst);
		break;
	}
	for (unsigned lane = 0; lane < PAIR_LANES; lane++) {
		if ((decoder->position[lane] + 7) / 8 != decoder->lane_bytes[lane])
			return CODEC_E_CORRUPT;
	}
	if (decoder->next_rare != decoder->n_rare || decoder->next_escape != decoder->n_escapes)
		return CODEC_E_CORRUPT;
	memcpy(dst + (dst_bytes - (src_bytes - tail)), src + tail, src_bytes - tail);
	return 0;
}
