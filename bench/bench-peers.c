/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Coders of others, called as their manuals say is fastest for many small inputs: a context made
 * once, the decoded size known, no checksum of their own.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include <zstd.h>

#include "base/memory.h"
#include "bench-coder.h"

#if HAVE_LZ4
#include <lz4.h>
#endif
#if HAVE_HTSCODECS
#include <htscodecs/htscodecs.h>
#include <htscodecs/rANS_static4x16.h>
#endif

struct zstd_state {
	ZSTD_DCtx *decoder;
	ZSTD_CCtx *encoder;
};

static void zstd_close(void *memory)
{
	struct zstd_state *state = memory;

	(void)ZSTD_freeDCtx(state->decoder);
	(void)ZSTD_freeCCtx(state->encoder);
	memory_free(state);
}

static void *zstd_open(const struct bench_coder *coder, bool encodes)
{
	struct zstd_state *state = memory_zalloc(sizeof(*state));

	if (!state)
		return NULL;
	state->decoder = ZSTD_createDCtx();
	if (encodes) {
		state->encoder = ZSTD_createCCtx();
		if (state->encoder) {
			(void)ZSTD_CCtx_setParameter(state->encoder, ZSTD_c_compressionLevel,
						     coder->level);
			(void)ZSTD_CCtx_setParameter(state->encoder, ZSTD_c_contentSizeFlag, 0);
			(void)ZSTD_CCtx_setParameter(state->encoder, ZSTD_c_checksumFlag, 0);
		}
	}
	if (!state->decoder || (encodes && !state->encoder)) {
		zstd_close(state);
		return NULL;
	}
	return state;
}

static int zstd_decode(const struct bench_coder *coder, void *memory, const uint8_t *src,
		       size_t src_bytes, uint8_t *dst, size_t dst_bytes)
{
	struct zstd_state *state = memory;

	size_t n = ZSTD_decompressDCtx(state->decoder, dst, dst_bytes, src, src_bytes);

	return n == dst_bytes ? 0 : 1;
}

static int64_t zstd_encode(const struct bench_coder *coder, void *memory, const uint8_t *src,
			   size_t src_bytes, uint8_t *dst)
{
	struct zstd_state *state = memory;
	size_t n = ZSTD_compress2(state->encoder, dst, src_bytes, src, src_bytes);

	return ZSTD_isError(n) ? 0 : (int64_t)n;
}

static unsigned add_zstd(struct bench_coder *ret_coders)
{
	static const int levels[] = { 1, 3, 19 };
	static char library[32];
	unsigned n = 0;

	snprintf(library, sizeof(library), "zstd %s", ZSTD_versionString());
	for (; n < sizeof(levels) / sizeof(levels[0]); n++) {
		ret_coders[n] = (struct bench_coder){ .library = library,
						      .level = levels[n],
						      .open = zstd_open,
						      .close = zstd_close,
						      .decode = zstd_decode,
						      .encode = zstd_encode };
		snprintf(ret_coders[n].name, sizeof(ret_coders[n].name), "zstd-%d", levels[n]);
	}
	return n;
}

#if HAVE_LZ4
static void *lz4_open(const struct bench_coder *coder, bool encodes)
{
	return memory_alloc((size_t)LZ4_sizeofState());
}

static void lz4_close(void *memory)
{
	memory_free(memory);
}

static int lz4_decode(const struct bench_coder *coder, void *state, const uint8_t *src,
		      size_t src_bytes, uint8_t *dst, size_t dst_bytes)
{
	int n = LZ4_decompress_safe((const char *)src, (char *)dst, (int)src_bytes, (int)dst_bytes);

	return n == (int)dst_bytes ? 0 : 1;
}

static int64_t lz4_encode(const struct bench_coder *coder, void *state, const uint8_t *src,
			  size_t src_bytes, uint8_t *dst)
{
	return LZ4_compress_fast_extState(state, (const char *)src, (char *)dst, (int)src_bytes,
					  (int)src_bytes, 1);
}

static unsigned add_lz4(struct bench_coder *ret_coder)
{
	static char library[32];

	snprintf(library, sizeof(library), "lz4 %s", LZ4_versionString());
	*ret_coder = (struct bench_coder){ .name = "lz4",
					   .library = library,
					   .open = lz4_open,
					   .close = lz4_close,
					   .decode = lz4_decode,
					   .encode = lz4_encode };
	return 1;
}
#else
static unsigned add_lz4(struct bench_coder *ret_coder)
{
	return 0;
}
#endif

#if HAVE_HTSCODECS
/* The library keeps its scratch in thread-local storage by itself. */
static void *rans_open(const struct bench_coder *coder, bool encodes)
{
	static char none;

	return &none;
}

static void rans_close(void *state)
{
}

/* Its inputs are not const, though it only reads them. */
static unsigned char *mutable_of(const uint8_t *bytes)
{
	return (unsigned char *)(uintptr_t)bytes;
}

static int rans_decode(const struct bench_coder *coder, void *state, const uint8_t *src,
		       size_t src_bytes, uint8_t *dst, size_t dst_bytes)
{
	unsigned n = (unsigned)dst_bytes;

	return rans_uncompress_to_4x16(mutable_of(src), (unsigned)src_bytes, dst, &n) &&
			       n == dst_bytes ? 0 : 1;
}

static int64_t rans_encode(const struct bench_coder *coder, void *state, const uint8_t *src,
			   size_t src_bytes, uint8_t *dst)
{
	unsigned n = rans_compress_bound_4x16((unsigned)src_bytes, RANS_ORDER_X32);

	if (n > src_bytes + BENCH_CODER_SLACK)
		return -EINVAL;
	if (!rans_compress_to_4x16(mutable_of(src), (unsigned)src_bytes, dst, &n, RANS_ORDER_X32))
		return -ENOMEM;
	return n;
}

static unsigned add_rans(struct bench_coder *ret_coder)
{
	static char library[32];

	snprintf(library, sizeof(library), "htscodecs %s", htscodecs_version());
	*ret_coder = (struct bench_coder){ .name = "rans32x16",
					   .library = library,
					   .open = rans_open,
					   .close = rans_close,
					   .decode = rans_decode,
					   .encode = rans_encode };
	return 1;
}
#else
static unsigned add_rans(struct bench_coder *ret_coder)
{
	return 0;
}
#endif

unsigned bench_peers(struct bench_coder *ret_coders)
{
	unsigned n = add_zstd(ret_coders);

	n += add_lz4(ret_coders + n);
	n += add_rans(ret_coders + n);
	return n;
}
