/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table of codecs and the contexts of a thread. Owns the zstd contexts and the scratch that
 * planes are decoded through; refuses any stored page that does not give exactly the bytes asked
 * for. A context belongs to one thread at a time; nothing here allocates after _new.
 */
#include "codec/codec.h"

#include <errno.h>
#include <string.h>

#include <zstd.h>
#include <zstd_errors.h>

#include "base/cpu.h"
#include "base/memory.h"
#include "codec/bytes.h"
#include "codec/pack.h"
#include "codec/pair.h"
#include "codec/planes.h"
#include "codec/spike.h"
#include "dcmem/container.h"
#include "dcmem/dcmem.h"

#define CODEC_LEVEL_DEFAULT 1  /* the best ratio and the fastest decode on weights */
#define CODEC_LEVEL_DENSE   19 /* the next level that is not worse in both */

struct codec_context {
	ZSTD_DCtx *decoder;
	ZSTD_CCtx *encoder;
	uint8_t *planes; /* CONTAINER_MAX_PAGE_BYTES */
	struct pack_decoder *pack_decoder;
	struct pair_decoder *pair_decoder;
	struct pair_encoder *pair_encoder;
};

static const char *const codec_names[] = {
	[CODEC_RAW] = "raw",
	[CODEC_ZSTD] = "zstd",
	[CODEC_ZSTD_PLANES_16] = "zstd-planes16",
	[CODEC_ZSTD_PLANES_32] = "zstd-planes32",
	[CODEC_ZSTD_PLANES_8] = "zstd-planes8",
	[CODEC_PAIR_8] = "pair8",
	[CODEC_PAIR_16] = "pair16",
	[CODEC_PAIR_32] = "pair32",
	[CODEC_PACK_8] = "pack8",
	[CODEC_PACK_16] = "pack16",
	[CODEC_PACK_32] = "pack32",
	[CODEC_PAIR_8_SPIKE] = "pair8-spike",
};
#define N_CODECS (sizeof(codec_names) / sizeof(codec_names[0]))

const char *codec_name(uint32_t id)
{
	return id < N_CODECS ? codec_names[id] : NULL;
}

bool codec_is_valid(uint32_t id)
{
	return id < N_CODECS;
}

bool codec_has_paths(uint32_t id)
{
	switch (id) {
	case CODEC_RAW:
	case CODEC_ZSTD:
	case CODEC_ZSTD_PLANES_16:
	case CODEC_ZSTD_PLANES_32:
	case CODEC_ZSTD_PLANES_8:
		return false;
	default:
		return codec_is_valid(id);
	}
}

struct codec_context *codec_context_free(struct codec_context *context)
{
	if (!context)
		return NULL;
	(void)ZSTD_freeDCtx(context->decoder);
	(void)ZSTD_freeCCtx(context->encoder);
	memory_free(context->planes);
	memory_free(context->pack_decoder);
	memory_free(context->pair_decoder);
	pair_encoder_free(context->pair_encoder);
	return memory_free(context);
}

static void cleanup_context(struct codec_context **context)
{
	*context = codec_context_free(*context);
}

struct codec_context *codec_context_new(void)
{
	_cleanup_(cleanup_context) struct codec_context *context = memory_zalloc(sizeof(*context));

	if (!context)
		return NULL;
	context->decoder = ZSTD_createDCtx();
	context->planes = memory_alloc(CONTAINER_MAX_PAGE_BYTES);
	context->pack_decoder = memory_alloc(sizeof(*context->pack_decoder));
	context->pair_decoder = memory_alloc(sizeof(*context->pair_decoder));
	if (!context->decoder || !context->planes || !context->pack_decoder ||
	    !context->pair_decoder)
		return NULL;
	return TAKE(context);
}

struct codec_context *codec_context_new_encoder(void)
{
	_cleanup_(cleanup_context) struct codec_context *context = codec_context_new();

	if (!context)
		return NULL;
	context->encoder = ZSTD_createCCtx();
	context->pair_encoder = pair_encoder_new();
	if (!context->encoder || !context->pair_encoder)
		return NULL;
	return TAKE(context);
}

static int zstd_decode(ZSTD_DCtx *decoder, const void *src, size_t src_bytes, void *dst,
		       size_t dst_bytes)
{
	size_t n = ZSTD_decompressDCtx(decoder, dst, dst_bytes, src, src_bytes);

	return ZSTD_isError(n) || n != dst_bytes ? CODEC_E_CORRUPT : 0;
}

static int zstd_encode(ZSTD_CCtx *encoder, int level, const void *src, size_t src_bytes, void *dst,
		       size_t dst_capacity, size_t *ret_bytes)
{
	size_t n;

	(void)ZSTD_CCtx_reset(encoder, ZSTD_reset_session_and_parameters);
	(void)ZSTD_CCtx_setParameter(encoder, ZSTD_c_compressionLevel, level);
	(void)ZSTD_CCtx_setParameter(encoder, ZSTD_c_contentSizeFlag, 0);
	(void)ZSTD_CCtx_setParameter(encoder, ZSTD_c_checksumFlag, 0);
	n = ZSTD_compress2(encoder, dst, dst_capacity, src, src_bytes);
	if (ZSTD_isError(n))
		return ZSTD_getErrorCode(n) == ZSTD_error_memory_allocation ? -ENOMEM :
									      CODEC_E_INCOMPRESSIBLE;
	*ret_bytes = n;
	return 0;
}

/*
 * A page of planes: for each plane a little-endian u32, its stored bytes, with bit 31 set if the
 * plane is raw; then the planes. A tail that no whole element fills follows raw.
 */
#define PLANE_RAW 0x80000000U

static int planes_decode(struct codec_context *context, const struct planes *planes,
			 const uint8_t *src, size_t src_bytes, uint8_t *dst, size_t dst_bytes)
{
	size_t head = 4U * planes->n_planes, n_elements = dst_bytes / planes->element_bytes;
	size_t plane_bytes = n_elements * planes->element_bytes / planes->n_planes;
	size_t tail = dst_bytes - n_elements * planes->element_bytes, at = head;

	if (dst_bytes > CONTAINER_MAX_PAGE_BYTES || src_bytes < head)
		return CODEC_E_CORRUPT;
	for (unsigned i = 0; i < planes->n_planes; i++) {
		uint32_t word = bytes_load32(src + 4U * i), n = word & ~PLANE_RAW;
		uint8_t *plane = context->planes + i * plane_bytes;

		if (n > src_bytes - at)
			return CODEC_E_CORRUPT;
		if (word & PLANE_RAW) {
			if (n != plane_bytes)
				return CODEC_E_CORRUPT;
			memcpy(plane, src + at, n);
		} else {
			int r = zstd_decode(context->decoder, src + at, n, plane, plane_bytes);

			if (r)
				return r;
		}
		at += n;
	}
	if (src_bytes - at != tail)
		return CODEC_E_CORRUPT;
	planes->merge(context->planes, n_elements, dst);
	memcpy(dst + dst_bytes - tail, src + at, tail);
	return 0;
}

static int planes_encode(struct codec_context *context, const struct planes *planes, int level,
			 const uint8_t *src, size_t src_bytes, uint8_t *dst, size_t dst_capacity,
			 size_t *ret_bytes)
{
	size_t head = 4U * planes->n_planes, n_elements = src_bytes / planes->element_bytes;
	size_t tail = src_bytes - n_elements * planes->element_bytes, at = head;
	size_t plane_bytes = n_elements * planes->element_bytes / planes->n_planes;

	if (src_bytes > CONTAINER_MAX_PAGE_BYTES)
		return -EINVAL;
	if (dst_capacity < head)
		return CODEC_E_INCOMPRESSIBLE;
	planes->split(src, n_elements, context->planes);
	for (unsigned i = 0; i < planes->n_planes; i++) {
		const uint8_t *plane = context->planes + i * plane_bytes;
		size_t n, room = dst_capacity - at;
		int r = zstd_encode(context->encoder, level, plane, plane_bytes, dst + at, room, &n);

		if (r < 0)
			return r;
		/* Under a hundredth saved is not worth a decode. */
		if (r || n > plane_bytes - plane_bytes / 100) {
			if (room < plane_bytes)
				return CODEC_E_INCOMPRESSIBLE;
			memcpy(dst + at, plane, plane_bytes);
			n = plane_bytes;
			bytes_store32(dst + 4U * i, (uint32_t)n | PLANE_RAW);
		} else {
			bytes_store32(dst + 4U * i, (uint32_t)n);
		}
		at += n;
	}
	if (dst_capacity - at < tail)
		return CODEC_E_INCOMPRESSIBLE;
	memcpy(dst + at, src + src_bytes - tail, tail);
	*ret_bytes = at + tail;
	return 0;
}

/* A page under pair8 whose values a spike's gap was closed in; the spike stands before it. */
static int spike_decode(struct codec_context *context, const uint8_t *src, size_t src_bytes,
			uint8_t *dst, size_t dst_bytes)
{
	int r;

	if (src_bytes < 1)
		return CODEC_E_CORRUPT;
	r = pair_decode(context->pair_decoder, cpu_path(), 1, src + 1, src_bytes - 1, dst, dst_bytes);
	if (!r)
		spike_open(dst, dst_bytes, src[0]);
	return r;
}

static int spike_encode(struct codec_context *context, const uint8_t *src, size_t src_bytes,
			uint8_t *dst, size_t dst_capacity, size_t *ret_bytes)
{
	uint8_t spike;
	size_t n;
	int r;

	if (src_bytes > CONTAINER_MAX_PAGE_BYTES || dst_capacity < 1)
		return CODEC_E_INCOMPRESSIBLE;
	spike = spike_find(src, src_bytes);
	spike_close(src, src_bytes, spike, context->planes);
	r = pair_encode(context->pair_encoder, 1, context->planes, src_bytes, dst + 1,
			dst_capacity - 1, &n);
	if (r)
		return r;
	dst[0] = spike;
	*ret_bytes = n + 1;
	return 0;
}

/* Of the codecs that have an id for each size. */
static unsigned element_bytes(uint32_t id)
{
	switch (id) {
	case CODEC_PAIR_8:
	case CODEC_PACK_8:
		return 1;
	case CODEC_PAIR_16:
	case CODEC_PACK_16:
		return 2;
	default:
		return 4;
	}
}

int codec_decode(struct codec_context *context, uint32_t id, const void *src, size_t src_bytes,
		 void *dst, size_t dst_bytes)
{
	const struct planes *planes = planes_of(id);

	if (planes)
		return planes_decode(context, planes, src, src_bytes, dst, dst_bytes);
	switch (id) {
	case CODEC_RAW:
		if (src_bytes != dst_bytes)
			return CODEC_E_CORRUPT;
		memcpy(dst, src, dst_bytes);
		return 0;
	case CODEC_ZSTD:
		return zstd_decode(context->decoder, src, src_bytes, dst, dst_bytes);
	case CODEC_PAIR_8:
	case CODEC_PAIR_16:
	case CODEC_PAIR_32:
		return pair_decode(context->pair_decoder, cpu_path(), element_bytes(id), src,
				   src_bytes, dst, dst_bytes);
	case CODEC_PACK_8:
	case CODEC_PACK_16:
	case CODEC_PACK_32:
		return pack_decode(context->pack_decoder, cpu_path(), element_bytes(id), src,
				   src_bytes, dst, dst_bytes);
	case CODEC_PAIR_8_SPIKE:
		return spike_decode(context, src, src_bytes, dst, dst_bytes);
	default:
		return CODEC_E_UNKNOWN;
	}
}

int codec_encode(struct codec_context *context, uint32_t id, int effort, const void *src,
		 size_t src_bytes, void *dst, size_t dst_capacity, size_t *ret_bytes)
{
	const struct planes *planes = planes_of(id);
	int level = effort >= 2 ? CODEC_LEVEL_DENSE : CODEC_LEVEL_DEFAULT;

	if (planes)
		return planes_encode(context, planes, level, src, src_bytes, dst, dst_capacity,
				     ret_bytes);
	switch (id) {
	case CODEC_RAW:
		if (src_bytes > dst_capacity)
			return CODEC_E_INCOMPRESSIBLE;
		memcpy(dst, src, src_bytes);
		*ret_bytes = src_bytes;
		return 0;
	case CODEC_ZSTD:
		return zstd_encode(context->encoder, level, src, src_bytes, dst, dst_capacity,
				   ret_bytes);
	case CODEC_PAIR_8:
	case CODEC_PAIR_16:
	case CODEC_PAIR_32:
		return pair_encode(context->pair_encoder, element_bytes(id), src, src_bytes,
				   dst, dst_capacity, ret_bytes);
	case CODEC_PACK_8:
	case CODEC_PACK_16:
	case CODEC_PACK_32:
		return pack_encode(context->planes, element_bytes(id), src, src_bytes, dst,
				   dst_capacity, ret_bytes);
	case CODEC_PAIR_8_SPIKE:
		return spike_encode(context, src, src_bytes, dst, dst_capacity, ret_bytes);
	default:
		return CODEC_E_UNKNOWN;
	}
}

unsigned codec_candidates(uint32_t dtype, uint8_t ret_ids[CODEC_MAX_CANDIDATES])
{
	unsigned n = 0;

	switch (dtype) {
	case DCMEM_BF16:
	case DCMEM_F16:
		ret_ids[n++] = CODEC_PACK_16;
		ret_ids[n++] = CODEC_PAIR_16;
		ret_ids[n++] = CODEC_ZSTD_PLANES_16;
		break;
	case DCMEM_F32:
		ret_ids[n++] = CODEC_PACK_32;
		ret_ids[n++] = CODEC_PAIR_32;
		ret_ids[n++] = CODEC_ZSTD_PLANES_32;
		break;
	case DCMEM_F8_E4M3:
	case DCMEM_F8_E5M2:
		ret_ids[n++] = CODEC_PACK_8;
		ret_ids[n++] = CODEC_PAIR_8;
		ret_ids[n++] = CODEC_ZSTD_PLANES_8;
		break;
	default:
		ret_ids[n++] = CODEC_PACK_8;
		ret_ids[n++] = CODEC_PAIR_8;
		ret_ids[n++] = CODEC_PAIR_8_SPIKE;
		break;
	}
	ret_ids[n++] = CODEC_ZSTD;
	ret_ids[n++] = CODEC_RAW;
	return n;
}
