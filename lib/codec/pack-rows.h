/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the vector forms of pack.c share. Included by pack-avx2.c and pack-avx512.c, under their own
 * targets, after they have defined row_values(), which unpacks the 64 high bytes of a row.
 */
#ifndef CODEC_PACK_ROWS_H
#define CODEC_PACK_ROWS_H

/* All rows; the constants make a function of each way to do it. */
static inline __attribute__((always_inline)) void
rows_decode(struct pack_decoder *d, unsigned width, bool many_escapes, unsigned element_bytes,
	    uint8_t *dst)
{
	const uint8_t *rows = d->rows, *low = d->low;
	size_t plane_bytes = (size_t)d->n_rows * ROW_SYMBOLS;

	for (uint32_t row = 0; row < d->n_rows; row++) {
		_Alignas(64) uint8_t high[ROW_SYMBOLS];

		row_values(d, rows, width, many_escapes, element_bytes == 1 ? dst : high);
		if (element_bytes == 2)
			store_16(high, low, dst);
		else if (element_bytes == 4)
			store_32(high, low, plane_bytes, dst);
		rows += 8U * width;
		low += ROW_SYMBOLS;
		dst += ROW_SYMBOLS * element_bytes;
	}
}

typedef void rows_function(struct pack_decoder *d, unsigned element_bytes, uint8_t *dst);

#define ROWS_OF_WIDTH(name, width, many)						\
	static __attribute__((noinline)) void name##_##width(struct pack_decoder *d,	\
							     unsigned element_bytes, uint8_t *dst) \
	{										\
		if (element_bytes == 1)							\
			rows_decode(d, width, many, 1, dst);				\
		else if (element_bytes == 2)						\
			rows_decode(d, width, many, 2, dst);				\
		else									\
			rows_decode(d, width, many, 4, dst);				\
	}

/* `name`: the functions of each width. */
#define ROWS_OF_WIDTHS(name, many)							\
	ROWS_OF_WIDTH(name, 1, many)							\
	ROWS_OF_WIDTH(name, 2, many)							\
	ROWS_OF_WIDTH(name, 3, many)							\
	ROWS_OF_WIDTH(name, 4, many)							\
	ROWS_OF_WIDTH(name, 5, many)							\
	ROWS_OF_WIDTH(name, 6, many)							\
	ROWS_OF_WIDTH(name, 7, many)							\
	static rows_function *const name[PACK_MAX_WIDTH + 1] = {			\
		NULL, name##_1, name##_2, name##_3, name##_4, name##_5, name##_6, name##_7, \
	};

#endif
