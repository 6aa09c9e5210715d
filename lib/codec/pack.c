/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads and checks a page's head, unpacks rows in portable C, and writes pages. Owns nothing but
 * the caller's scratch; one thread a scratch; refuses pages whose parts do not add up.
 */
#include "codec/pack.h"

#include <stdbool.h>
#include <string.h>

#include "codec/bytes.h"
#include "codec/codec.h"
#include "codec/planes.h"

/* Rows whose escapes are put in place together: their places fit a byte. */
#define GROUP_ROWS 4U
#define GROUP	   (GROUP_ROWS * ROW_SYMBOLS)

/* For each set of eight: its members in order, a byte each; how many in the topmost four bits. */
struct places {
	uint64_t of_set[256];
};

static void places_fill(struct places *ret_places)
{
	for (unsigned set = 0; set < 256; set++) {
		uint64_t word = 0;
		unsigned n = 0;

		for (unsigned i = 0; i < 8; i++) {
			if (set >> i & 1)
				word |= (uint64_t)i << (8 * n++);
		}
		ret_places->of_set[set] = word | (uint64_t)n << 60;
	}
}

/* A row's bytes but for its escapes, whose places are appended. Returns how many there are then. */
static inline __attribute__((always_inline)) unsigned
row_values(const struct pack_decoder *d, const struct places *places, const uint8_t *row,
	   unsigned width, unsigned row_place, uint8_t *ret_values, uint8_t *ret_place,
	   unsigned n_escaped)
{
	const uint64_t base = EIGHT_TIMES(d->base), ones = EIGHT_TIMES((1U << width) - 1);

	for (unsigned i = 0; i < ROW_SYMBOLS / 8; i++) {
		uint64_t word = row_word(row, width, i), escaped;

		bytes_store64(ret_values + 8 * i, swar_add(word, base));
		/* A field is at most 127, so a sum has no top bit where the field is all ones. */
		escaped = ~((word ^ ones) + EIGHT_TIMES(0x7f)) >> 7 & EIGHT_TIMES(1);
		/* The product brings bit 8 j to bit 56 + j. */
		escaped = places->of_set[escaped * 0x0102040810204080ULL >> 56];
		bytes_store64(ret_place + n_escaped,
			      (escaped & EIGHT_TIMES(7)) + EIGHT_TIMES(row_place + 8 * i));
		n_escaped += (unsigned)(escaped >> 60);
	}
	return n_escaped;
}

/* Branches that depend on where escapes are would be guessed wrong: there is one for a group. */
static inline __attribute__((always_inline)) void
rows_of_width(struct pack_decoder *d, unsigned width, unsigned element_bytes, uint8_t *dst)
{
	size_t plane_bytes = (size_t)d->n_rows * ROW_SYMBOLS;
	struct places places;

	places_fill(&places);
	for (uint32_t first = 0; first < d->n_rows; first += GROUP_ROWS) {
		uint32_t n_rows = d->n_rows - first < GROUP_ROWS ? d->n_rows - first : GROUP_ROWS;
		size_t at = (size_t)first * ROW_SYMBOLS;
		uint8_t high[GROUP], place[GROUP + 8];
		uint8_t *values = element_bytes == 1 ? dst + at : high;
		const uint8_t *next = d->escapes + d->next_escape;
		unsigned n_escaped = 0;

		for (unsigned row = 0; row < n_rows; row++)
			n_escaped = row_values(d, &places,
					       d->rows + (at / 8 + 8 * (size_t)row) * width, width,
					       row * ROW_SYMBOLS, values + row * ROW_SYMBOLS, place,
					       n_escaped);
		for (unsigned i = 0; i < n_escaped; i++)
			values[place[i]] = next[i];
		d->next_escape += n_escaped;
		if (element_bytes > 1)
			row_merge(high, d->low + at, n_rows * ROW_SYMBOLS, plane_bytes,
				  element_bytes, dst + at * element_bytes);
	}
}

void pack_rows_portable(struct pack_decoder *d, unsigned element_bytes, uint8_t *dst)
{
	switch (d->width) {
	case 1:
		rows_of_width(d, 1, element_bytes, dst);
		break;
	case 2:
		rows_of_width(d, 2, element_bytes, dst);
		break;
	case 3:
		rows_of_width(d, 3, element_bytes, dst);
		break;
	case 4:
		rows_of_width(d, 4, element_bytes, dst);
		break;
	case 5:
		rows_of_width(d, 5, element_bytes, dst);
		break;
	case 6:
		rows_of_width(d, 6, element_bytes, dst);
		break;
	default:
		rows_of_width(d, 7, element_bytes, dst);
		break;
	}
}

int pack_decode(struct pack_decoder *d, enum cpu_path path, unsigned element_bytes,
		const uint8_t *src, size_t src_bytes, uint8_t *dst, size_t dst_bytes)
{
	size_t n_rows = dst_bytes / element_bytes / ROW_SYMBOLS, n = n_rows * ROW_SYMBOLS;
	size_t tail = dst_bytes - n * element_bytes, rows, escapes;

	if (dst_bytes > CONTAINER_MAX_PAGE_BYTES || src_bytes < PACK_HEAD_BYTES)
		return CODEC_E_CORRUPT;
	d->width = src[0];
	d->base = src[1];
	d->n_escapes = bytes_load32(src + 2);
	if (d->width == 0 || d->width > PACK_MAX_WIDTH || d->n_escapes > n)
		return CODEC_E_CORRUPT;
	rows = PACK_HEAD_BYTES + n * (element_bytes - 1);
	escapes = rows + n / 8 * d->width;
	/* Each part is far below 2^32. */
	if (src_bytes != escapes + d->n_escapes + tail)
		return CODEC_E_CORRUPT;
	d->n_rows = (uint32_t)n_rows;
	d->low = src + PACK_HEAD_BYTES;
	d->rows = src + rows;
	d->next_escape = 0;
	memcpy(d->escapes, src + escapes, d->n_escapes);
	switch (path) {
#if defined(__x86_64__)
	case CPU_AVX512:
		pack_rows_avx512(d, element_bytes, dst);
		break;
	case CPU_AVX2:
		pack_rows_avx2(d, element_bytes, dst);
		break;
#endif
	default:
		pack_rows_portable(d, element_bytes, dst);
		break;
	}
	if (d->next_escape != d->n_escapes)
		return CODEC_E_CORRUPT;
	memcpy(dst + (dst_bytes - tail), src + (src_bytes - tail), tail);
	return 0;
}

static void count_values(const uint8_t *bytes, size_t n, uint32_t ret_count[256])
{
	uint32_t count[8][256] = {0};

	for (size_t i = 0; i < n; i += 8) {
		uint64_t word = bytes_load64(bytes + i);

		for (unsigned j = 0; j < 8; j++)
			count[j][word >> (8 * j) & 0xff]++;
	}
	memset(ret_count, 0, 256 * sizeof(*ret_count));
	for (unsigned i = 0; i < 8 * 256; i++)
		ret_count[i & 255] += count[i >> 8][i & 255];
}

struct fields {
	uint8_t width, base;
	uint32_t n_escapes;
};

/* The width and the base that take the fewest bits; of equals the narrower, then the lower. */
static struct fields fields_choose(const uint32_t count[256], size_t n)
{
	struct fields best = {0};
	uint64_t least = UINT64_MAX;

	for (uint32_t width = 1; width <= PACK_MAX_WIDTH; width++) {
		uint32_t n_values = (1U << width) - 1, n_inside = 0;

		for (uint32_t value = 0; value < n_values; value++)
			n_inside += count[value];
		for (uint32_t base = 0; base < 256; base++) {
			uint32_t n_escapes = (uint32_t)n - n_inside;
			uint64_t n_bits = (uint64_t)n * width + 8ULL * n_escapes;

			if (n_bits < least) {
				least = n_bits;
				best = (struct fields){(uint8_t)width, (uint8_t)base, n_escapes};
			}
			n_inside += count[(base + n_values) & 255] - count[base];
		}
	}
	return best;
}

int pack_encode(uint8_t *scratch, unsigned element_bytes, const uint8_t *src, size_t src_bytes,
		uint8_t *dst, size_t dst_capacity, size_t *ret_bytes)
{
	size_t n = src_bytes / element_bytes / ROW_SYMBOLS * ROW_SYMBOLS, row_at, escape_at, bytes;
	size_t tail = src_bytes - n * element_bytes;
	const uint8_t *symbols = src;
	struct fields fields;
	size_t n_escaped = 0;
	uint32_t count[256];
	uint8_t ones;

	if (n == 0 || src_bytes > CONTAINER_MAX_PAGE_BYTES)
		return CODEC_E_INCOMPRESSIBLE;
	if (element_bytes > 1) {
		planes_of(element_bytes == 2 ? CODEC_ZSTD_PLANES_16 : CODEC_ZSTD_PLANES_32)
			->split(src, n, scratch);
		symbols = scratch;
	}
	count_values(symbols, n, count);
	fields = fields_choose(count, n);
	row_at = PACK_HEAD_BYTES + n * (element_bytes - 1);
	escape_at = row_at + n / 8 * fields.width;
	bytes = escape_at + fields.n_escapes + tail;
	if (bytes > dst_capacity || bytes >= src_bytes)
		return CODEC_E_INCOMPRESSIBLE;

	ones = (uint8_t)((1U << fields.width) - 1);
	dst[0] = fields.width;
	dst[1] = fields.base;
	bytes_store32(dst + 2, fields.n_escapes);
	if (element_bytes > 1)
		memcpy(dst + PACK_HEAD_BYTES, scratch + n, n * (element_bytes - 1));
	for (size_t i = 0; i < n; i += ROW_SYMBOLS, row_at += 8U * fields.width) {
		uint8_t field[ROW_SYMBOLS];

		for (unsigned j = 0; j < ROW_SYMBOLS; j++) {
			uint8_t distance = (uint8_t)(symbols[i + j] - fields.base);

			field[j] = distance < ones ? distance : ones;
		}
		row_pack(field, 0, fields.width, dst + row_at);
		/* Never ahead of the symbols, which may stand there. */
		for (unsigned j = 0; j < ROW_SYMBOLS; j++) {
			scratch[n_escaped] = symbols[i + j];
			n_escaped += field[j] == ones;
		}
	}
	memcpy(dst + escape_at, scratch, n_escaped);
	memcpy(dst + bytes - tail, src + src_bytes - tail, tail);
	*ret_bytes = bytes;
	return 0;
}
