/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads the head of a page, builds the table of the pair code and runs the inner loop in the form
 * that suits the CPU. Refuses a code that is not complete (so that any bits at all find an entry),
 * parts that do not add up to the page, lanes that do not end where they should. Portable form of
 * the inner loop included. No allocation, no state beyond the decoder's scratch.
 */
#include "codec/pair.h"

#include <stdbool.h>

#include "codec/bytes.h"
#include "codec/codec.h"
#include "codec/pair-lanes.h"
#include "codec/rows.h"

#define HEAD_BYTES  10U
#define SPIKE_BYTES 5U /* the value, and how many symbols have it */

/* Reads fields, lowest bit first: 57 bits at a time. Zeros follow the end. */
struct bits {
	const uint8_t *src;
	size_t bytes;
	size_t at; /* bit */
};

static inline uint64_t bits_peek(const struct bits *bits)
{
	size_t at = bits->at >> 3;
	uint64_t word;

	if (__builtin_expect(at + 8 <= bits->bytes, 1))
		word = bytes_load64(bits->src + at);
	else
		word = bytes_load64_near_end(bits->src, bits->bytes, at);
	return word >> (bits->at & 7);
}

static inline uint32_t bits_take(struct bits *bits, unsigned n)
{
	uint32_t word = (uint32_t)bits_peek(bits);

	bits->at += n;
	return word & ((1U << n) - 1);
}

/* A cell of the matrix of pairs that has a codeword: its entry, the length among its bits. */
struct cells {
	uint16_t entry[PAIR_MAX_CODES];
	uint32_t n;
	uint32_t of_length[PAIR_CODE_BITS + 1];
};

static int cells_add(struct cells *cells, uint32_t length, uint32_t first, uint32_t second)
{
	if (length > PAIR_CODE_BITS || (length && first == PAIR_ESCAPE && second == PAIR_ESCAPE))
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
		what = (uint32_t)bits_peek(bits) & 15;
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

/* A page's fixed fields. */
struct head {
	uint32_t shift, n_rare, n_digits, n_spikes;
	uint8_t spike;
	bool is_spiked;
	size_t bytes;
};

static int read_fields(const uint8_t *src, size_t src_bytes, size_t n_symbols, uint32_t *ret_k,
		       struct head *ret_head)
{
	struct head h = {.bytes = HEAD_BYTES};
	uint32_t k;

	if (src_bytes < HEAD_BYTES)
		return CODEC_E_CORRUPT;
	h.is_spiked = src[0] & PAIR_SPIKED;
	k = src[0] & ~PAIR_SPIKED;
	h.shift = src[1];
	h.n_rare = bytes_load32(src + 2);
	h.n_digits = bytes_load32(src + 6);
	if (k > PAIR_MAX_OFFSET || h.shift >> k || h.n_rare > n_symbols / 2 ||
	    h.n_digits > 3 * n_symbols)
		return CODEC_E_CORRUPT;
	if (h.is_spiked) {
		if (src_bytes < HEAD_BYTES + SPIKE_BYTES)
			return CODEC_E_CORRUPT;
		h.spike = src[HEAD_BYTES];
		h.n_spikes = bytes_load32(src + HEAD_BYTES + 1);
		h.bytes += SPIKE_BYTES;
		if (k == 0 || h.n_spikes > n_symbols)
			return CODEC_E_CORRUPT;
	}
	*ret_k = k;
	*ret_head = h;
	return 0;
}

/*
 * Most pages have one run of neighbouring blocks, or two since the values go round at 0: then a
 * class's first value can be computed. What a mark's value begins with is taken off again when its
 * pair is known, so it may as well be what is computed for it.
 */
static void find_runs(struct pair_decoder *d, uint32_t n)
{
	uint32_t k = d->offset_bits, i = 1;

	while (i < n && d->base[i] == (uint8_t)(d->base[0] + (i << k)))
		i++;
	d->second_run = i;
	d->gap = i < n ? (uint8_t)(d->base[i] - d->base[0] - (i << k)) : 0;
	while (i < n && d->base[i] == (uint8_t)(d->base[0] + d->gap + (i << k)))
		i++;
	d->has_runs = i >= n;
	if (d->has_runs)
		d->base[PAIR_RARE] = (uint8_t)(d->base[0] + d->gap + (PAIR_RARE << k));
}

static int read_classes(struct pair_decoder *d, const uint8_t *bitmap, size_t n_blocks,
			const struct head *head, uint32_t *ret_n)
{
	uint32_t n = 0, most = PAIR_MAX_CLASSES - head->is_spiked;

	memset(d->base, 0, sizeof(d->base));
	for (size_t block = 0; block < n_blocks; block++) {
		if (!(bitmap[block >> 3] >> (block & 7) & 1))
			continue;
		if (n == most)
			return CODEC_E_CORRUPT;
		d->base[n++] = (uint8_t)((block << d->offset_bits) + head->shift);
	}
	find_runs(d, n);
	d->spike = PAIR_RARE;
	if (head->is_spiked) {
		d->spike = n;
		d->base[n++] = head->spike;
	}
	*ret_n = n;
	return 0;
}

static int read_code(struct pair_decoder *d, struct bits *bits, uint32_t n_classes,
		     bool has_escapes)
{
	struct cells cells;
	uint32_t n_rows = n_classes + has_escapes, sum = 0;
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

/* The lanes' sizes, and their copies: 0, and where they end, or CODEC_E_CORRUPT. */
static int read_lanes(struct pair_decoder *d, const uint8_t *src, size_t src_bytes, size_t *ret_at)
{
	size_t at = *ret_at;
	const uint8_t *sizes = src + at;

	if (src_bytes - at < 2U * PAIR_LANES)
		return CODEC_E_CORRUPT;
	at += 2U * PAIR_LANES;
	for (unsigned lane = 0; lane < PAIR_LANES; lane++) {
		uint8_t *copy = d->lanes + (size_t)lane * PAIR_LANE_STRIDE;
		uint32_t n = bytes_load16(sizes + (size_t)2 * lane);

		if (n > src_bytes - at || n > PAIR_LANE_BYTES - 8)
			return CODEC_E_CORRUPT;
		memcpy(copy, src + at, n);
		memset(copy + n, 0, 8);
		d->position[lane] = 0;
		d->lane_bytes[lane] = n;
		at += n;
	}
	*ret_at = at;
	return 0;
}

/* The rare pairs, as entries; a mark is none. */
static int unpack_rare(struct pair_decoder *d, const uint8_t *src, size_t src_bytes)
{
	struct bits bits = {.src = src, .bytes = src_bytes};
	uint32_t marks = 0;

	for (uint32_t i = 0; i < d->n_rare; i++) {
		uint32_t pair = bits_take(&bits, 10);

		marks |= ((pair & 31) + 1) | ((pair >> 5) + 1);
		d->rare[i] = (uint16_t)(pair << 6);
	}
	d->next_rare = 0;
	return marks & 32 ? CODEC_E_CORRUPT : 0;
}

/* The escapes' values from n_digits digits, which the last value must end. */
static int unpack_escapes(struct pair_decoder *d, const uint8_t *src, size_t src_bytes,
			  uint32_t n_digits, const uint8_t *common)
{
	struct bits bits = {.src = src, .bytes = src_bytes};
	uint8_t value_of[PAIR_COMMON_ESCAPES + 1] = {0};
	size_t end = 4 * (size_t)n_digits;
	uint32_t n = 0;

	if (n_digits)
		memcpy(value_of, common, PAIR_COMMON_ESCAPES);
	while (bits.at < end && n < PAIR_MAX_SYMBOLS - 4) {
		uint64_t digits = bits_peek(&bits);

		/* Four at most in the 57 bits of a load. */
		for (unsigned i = 0; i < 4 && bits.at < end; i++) {
			uint32_t first = digits & 15, is_long = first == PAIR_COMMON_ESCAPES;
			uint32_t n_bits = 4 + (8 & -is_long);

			/* Not a branch: it would be taken by chance. */
			d->escapes[n++] = (uint8_t)(value_of[first] | (digits >> 4 & -is_long));
			digits >>= n_bits;
			bits.at += n_bits;
		}
	}
	d->n_escapes = n;
	d->next_escape = 0;
	return bits.at == end ? 0 : CODEC_E_CORRUPT;
}

/* Everything but the inner loop: 0, and the place of the tail, or CODEC_E_CORRUPT. */
static int read_head(struct pair_decoder *d, unsigned element_bytes, const uint8_t *src,
		     size_t src_bytes, size_t dst_bytes, size_t *ret_tail)
{
	size_t n_symbols = dst_bytes / element_bytes / PAIR_BLOCK * PAIR_BLOCK, n_bitmap;
	size_t at, offsets, rare, escapes;
	const uint8_t *common = NULL;
	uint32_t n_classes;
	struct bits bits;
	struct head h;
	int r;

	if (dst_bytes > CONTAINER_MAX_PAGE_BYTES)
		return CODEC_E_CORRUPT;
	r = read_fields(src, src_bytes, n_symbols, &d->offset_bits, &h);
	if (r)
		return r;
	d->n_blocks = (uint32_t)(n_symbols / PAIR_BLOCK);
	d->n_rare = h.n_rare;
	n_bitmap = 32U >> d->offset_bits;
	at = h.bytes + n_bitmap;
	if (src_bytes < at)
		return CODEC_E_CORRUPT;
	r = read_classes(d, src + h.bytes, n_bitmap * 8, &h, &n_classes);
	if (r)
		return r;
	bits = (struct bits){.src = src + at, .bytes = src_bytes - at};
	r = read_code(d, &bits, n_classes, h.n_digits > 0);
	if (r)
		return r;
	at += (bits.at + 7) / 8;
	if (h.n_digits) {
		if (src_bytes - at < PAIR_COMMON_ESCAPES)
			return CODEC_E_CORRUPT;
		common = src + at;
		at += PAIR_COMMON_ESCAPES;
	}
	r = read_lanes(d, src, src_bytes, &at);
	if (r)
		return r;
	offsets = at + n_symbols * (element_bytes - 1);
	d->n_offset_bits = (uint32_t)(n_symbols - h.n_spikes) * d->offset_bits;
	rare = offsets + (d->n_offset_bits + 7) / 8;
	escapes = rare + ((size_t)d->n_rare * 10 + 7) / 8;
	/* Each part is far below 2^32. */
	*ret_tail = escapes + (h.n_digits + 1) / 2;
	if (*ret_tail > src_bytes || src_bytes - *ret_tail != dst_bytes - n_symbols * element_bytes)
		return CODEC_E_CORRUPT;
	d->low = src + at;
	d->offsets = src + offsets;
	d->next_offset_bit = 0;
	d->n_patched = 0;
	if (h.is_spiked)
		memcpy(d->spiked_offsets, d->offsets, rare - offsets);
	r = unpack_rare(d, src + rare, escapes - rare);
	if (r)
		return r;
	return unpack_escapes(d, src + escapes, *ret_tail - escapes, h.n_digits, common);
}

/* The classes of four pairs, in order. */
static inline uint64_t classes_word(const uint16_t *entries)
{
	uint64_t word;

	memcpy(&word, entries, sizeof(word));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	word = word << 48 | (word & 0xffff0000) << 16 | (word >> 16 & 0xffff0000) | word >> 48;
#endif
	return (word >> 6 & 0x001f001f001f001fULL) | (word >> 3 & 0x1f001f001f001f00ULL);
}

/* Bytes with bit 5 set for those classes that are escapes or marks: 30 and 31. */
static inline uint64_t patched_word(uint64_t classes)
{
	return (classes + EIGHT_TIMES(2)) & EIGHT_TIMES(0x20);
}

static void patch_listed(struct pair_decoder *d)
{
	for (uint32_t i = 0; i < d->n_patched; i++) {
		uint64_t mask = 0;

		for (unsigned w = 0; w < PAIR_ROW / 8; w++) {
			const uint16_t *entries = d->patched[i].entries + 4 * w;
			uint64_t ones = patched_word(classes_word(entries)) >> 5;

			/* The product brings bit 8 j to bit 56 + j. */
			mask |= (ones * 0x0102040810204080ULL >> 56) << (8 * w);
		}
		pair_patch(d, mask, d->patched[i].values);
	}
	d->n_patched = 0;
}

/* The 64 high bytes of a row. With `runs` a class's first value is computed, else looked up. */
static inline __attribute__((always_inline)) void
row_values(struct pair_decoder *d, const uint16_t *entries, const uint8_t *offsets,
	   unsigned offset_bits, bool runs, uint8_t *high)
{
	const uint64_t low = EIGHT_TIMES(0x1fU >> (offset_bits > 3 ? offset_bits - 3 : 0));
	const uint64_t base = EIGHT_TIMES(d->base[0]), gap = d->gap;
	const uint64_t to_second = EIGHT_TIMES(32 - d->second_run);
	uint64_t patched = 0;

	for (unsigned w = 0; w < PAIR_ROW / 8; w++, entries += 4) {
		uint64_t classes = classes_word(entries), word;

		patched |= patched_word(classes);
		if (runs) {
			/* Bit 5 says that a class is of the second run. */
			word = (classes + to_second) >> 5 & EIGHT_TIMES(1);
			word = swar_add(word * gap, base);
			word = swar_add(word, (classes & low) << offset_bits);
		} else {
			word = 0;
			for (unsigned i = 0; i < 4; i++)
				word |= (uint64_t)d->values[entries[i] >> 6] << (16 * i);
		}
		if (offset_bits)
			word = swar_add(word, row_word(offsets, offset_bits, w));
		bytes_store64(high + 8 * w, word);
	}
	/* Listed, since a branch would be guessed wrong. */
	d->patched[d->n_patched].values = high;
	memcpy(d->patched[d->n_patched].entries, entries - PAIR_LANES, 2 * PAIR_LANES);
	d->n_patched += patched != 0;
}

/* The high bytes of a block of a page with a spike: the classes first, since they say who has an offset. */
static void block_spiked(struct pair_decoder *d, uint16_t *entries, uint8_t *high)
{
	uint32_t at = d->next_offset_bit;

	for (unsigned i = 0; i < PAIR_BLOCK / 2; i += 4) {
		uint64_t bits = bytes_load64(d->spiked_offsets + (at >> 3)) >> (at & 7);

		/* Eight symbols take 40 of the 57 bits at most. */
		for (unsigned j = 0; j < 8; j++) {
			uint32_t entry = entries[i + j / 2], class, n;

			if (__builtin_expect(entry >> 11 == PAIR_RARE, 0))
				entry = entries[i + j / 2] = d->rare[d->next_rare++];
			class = entry >> (6 + 5 * (j & 1)) & 31;
			n = d->width[class];
			high[2 * i + j] = (uint8_t)(d->base[class] + (bits & ((1U << n) - 1)));
			bits >>= n;
			at += n;
			if (__builtin_expect(class == PAIR_ESCAPE, 0))
				high[2 * i + j] = d->escapes[d->next_escape++];
		}
	}
	d->next_offset_bit = at;
}

static void values_fill(struct pair_decoder *d)
{
	for (unsigned pair = 0; pair < 1024; pair++)
		d->values[pair] = (uint16_t)(d->base[pair & 31] | d->base[pair >> 5] << 8);
	memset(d->width, (int)d->offset_bits, sizeof(d->width));
	if (d->spike != PAIR_RARE)
		d->width[d->spike] = 0;
}
/* A function of each k for the usual runs, one for whatever else there is. */
static inline __attribute__((always_inline)) void
block_values(struct pair_decoder *d, const uint16_t *entries, const uint8_t *offsets,
	     unsigned offset_bits, bool runs, uint8_t *high)
{
	for (unsigned row = 0; row < PAIR_BLOCK_STEPS; row++)
		row_values(d, entries + row * PAIR_LANES, offsets + row * 8 * offset_bits,
			   offset_bits, runs, high + row * PAIR_ROW);
}

static void block_high(struct pair_decoder *d, uint16_t *entries, const uint8_t *offsets,
		       uint8_t *high)
{
	if (d->spike != PAIR_RARE) {
		block_spiked(d, entries, high);
		return;
	}
	switch (d->has_runs ? d->offset_bits : PAIR_MAX_OFFSET) {
	case 0:
		block_values(d, entries, offsets, 0, true, high);
		break;
	case 1:
		block_values(d, entries, offsets, 1, true, high);
		break;
	case 2:
		block_values(d, entries, offsets, 2, true, high);
		break;
	case 3:
		block_values(d, entries, offsets, 3, true, high);
		break;
	case 4:
		block_values(d, entries, offsets, 4, true, high);
		break;
	default:
		block_values(d, entries, offsets, d->offset_bits, false, high);
		break;
	}
}

void pair_blocks_portable(struct pair_decoder *d, unsigned element_bytes, uint8_t *dst)
{
	size_t plane_bytes = (size_t)d->n_blocks * PAIR_BLOCK;

	values_fill(d);
	/* A block behind the lanes: loads that span fresh narrow stores would wait for them. */
	for (uint32_t block = 0; block <= d->n_blocks; block++) {
		uint16_t *entries = d->entries[(block + 1) & 1];
		uint8_t high[PAIR_BLOCK];
		const uint8_t *offsets;
		size_t at;

		if (block < d->n_blocks)
			pair_lanes_step(d, d->entries[block & 1]);
		if (block == 0)
			continue;
		at = (size_t)(block - 1) * PAIR_BLOCK;
		offsets = d->offsets + at / 8 * d->offset_bits;
		if (element_bytes == 1) {
			block_high(d, entries, offsets, dst + at);
			if (d->n_patched > PAIR_LIST_ROWS - PAIR_BLOCK_STEPS - 1)
				patch_listed(d);
		} else {
			block_high(d, entries, offsets, high);
			patch_listed(d);
			row_merge(high, d->low + at, PAIR_BLOCK, plane_bytes, element_bytes,
				  dst + at * element_bytes);
		}
	}
	patch_listed(d);
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
	if (decoder->spike != PAIR_RARE && decoder->next_offset_bit != decoder->n_offset_bits)
		return CODEC_E_CORRUPT;
	memcpy(dst + (dst_bytes - (src_bytes - tail)), src + tail, src_bytes - tail);
	return 0;
}
