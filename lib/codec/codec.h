/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Page codecs: decoded bytes in, stored bytes out, and back. One table of codecs; the id is the
 * byte in container_page.codec. A codec decodes a page on its own, from any bytes whatever: the
 * result is the exact count of decoded bytes or an error, never an access outside the buffers.
 */
#ifndef DCMEM_CODEC_H
#define DCMEM_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum codec_id {
	CODEC_RAW = 0,
	CODEC_ZSTD = 1,	       /* one zstd frame of the page as it is */
	CODEC_ZSTD_PLANES_16 = 2, /* BF16, F16: split into planes, each raw or zstd */
	CODEC_ZSTD_PLANES_32 = 3, /* F32 */
	CODEC_ZSTD_PLANES_8 = 4,  /* FP8: exponent nibbles, sign-and-mantissa nibbles */
	CODEC_PAIR_8 = 5,	  /* bytes, two by two under a prefix code */
	CODEC_PAIR_16 = 6,	  /* BF16, F16: the exponents so, the rest raw */
	CODEC_PAIR_32 = 7,	  /* F32 */
	CODEC_PACK_8 = 8,	  /* bytes, as fields of one width and a list of exceptions */
	CODEC_PACK_16 = 9,	  /* BF16, F16: the exponents so, the rest raw */
	CODEC_PACK_32 = 10,	  /* F32 */
	CODEC_PAIR_8_SPIKE = 11,  /* bytes of which one value is as common as many together */
};

enum codec_error {
	CODEC_E_CORRUPT = 1,	 /* the stored bytes are not a page of that size */
	CODEC_E_INCOMPRESSIBLE = 2, /* does not fit dst: store it raw */
	CODEC_E_UNKNOWN = 3,	 /* no codec has this id */
};

/* Scratch and library contexts of one thread; all allocation happens in _new. */
struct codec_context;
struct codec_context *codec_context_new(void); /* decodes pages up to CONTAINER_MAX_PAGE_BYTES */
struct codec_context *codec_context_new_encoder(void); /* encodes as well */
struct codec_context *codec_context_free(struct codec_context *context);

const char *codec_name(uint32_t id); /* NULL if unknown */
bool codec_is_valid(uint32_t id);
bool codec_has_paths(uint32_t id); /* does its decoding differ by cpu_path()? */

/*
 * Decodes one page into exactly dst_bytes of dst. `dtype` (enum dcmem_dtype) is a property of the
 * tensor, not needed by codecs that carry all they need. 0, -errno or CODEC_E_...
 */
int codec_decode(struct codec_context *context, uint32_t id, const void *src, size_t src_bytes,
		 void *dst, size_t dst_bytes);

/* Encodes one page into at most dst_capacity bytes. 0 or CODEC_E_INCOMPRESSIBLE, -errno. */
int codec_encode(struct codec_context *context, uint32_t id, int effort, const void *src,
		 size_t src_bytes, void *dst, size_t dst_capacity, size_t *ret_bytes);

/*
 * The codecs worth trying for a dtype, the fastest to decode first but for CODEC_RAW, which is
 * last: how many. The packer measures them on sample pages of the tensor.
 */
#define CODEC_MAX_CANDIDATES 5
unsigned codec_candidates(uint32_t dtype, uint8_t ret_ids[CODEC_MAX_CANDIDATES]);

#endif
