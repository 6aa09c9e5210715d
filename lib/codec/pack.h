/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The fast level: fields of one width, as near to the speed of memory as decoding comes. Format
 * and reasons: docs/codecs.md.
 *
 * A byte is its distance from the page's base in `width` bits. The field of ones says that the byte
 * stands in a list at the page's end. Wider elements are rotated left by one bit; their high byte
 * is coded so, the rest stays raw.
 */
#ifndef CODEC_PACK_H
#define CODEC_PACK_H

#include <stddef.h>
#include <stdint.h>

#include "base/cpu.h"
#include "codec/rows.h"
#include "dcmem/container.h"

#define PACK_MAX_WIDTH	 7U
#define PACK_HEAD_BYTES	 6U
#define PACK_MAX_SYMBOLS (CONTAINER_MAX_PAGE_BYTES + ROW_SYMBOLS)

/* Scratch of one decoding thread. */
struct pack_decoder {
	const uint8_t *rows, *low; /* fields; raw bytes of wider elements, plane by plane */
	uint32_t n_rows;
	uint8_t width, base;
	/*
	 * Damaged rows may ask for more than there is, never for more than fits here: that is
	 * noticed at the end.
	 */
	uint32_t n_escapes, next_escape;
	uint8_t escapes[PACK_MAX_SYMBOLS];
};

/*
 * Decodes a page of elements of `element_bytes` (1, 2 or 4) into exactly dst_bytes. 0 or
 * CODEC_E_CORRUPT, and the same for every path. Every access lies in the buffers, the work is
 * bounded by dst_bytes, whatever src holds; dst may be anything after an error.
 */
int pack_decode(struct pack_decoder *decoder, enum cpu_path path, unsigned element_bytes,
		const uint8_t *src, size_t src_bytes, uint8_t *dst, size_t dst_bytes);

/*
 * 0 or CODEC_E_INCOMPRESSIBLE. The same bytes on every CPU. `scratch` has
 * CONTAINER_MAX_PAGE_BYTES.
 */
int pack_encode(uint8_t *scratch, unsigned element_bytes, const uint8_t *src, size_t src_bytes,
		uint8_t *dst, size_t dst_capacity, size_t *ret_bytes);

/* The forms of the inner loop; each decodes all rows of a prepared page. */
void pack_rows_portable(struct pack_decoder *decoder, unsigned element_bytes, uint8_t *dst);
void pack_rows_avx2(struct pack_decoder *decoder, unsigned element_bytes, uint8_t *dst);
void pack_rows_avx512(struct pack_decoder *decoder, unsigned element_bytes, uint8_t *dst);

#endif
