/* SPDX-License-Identifier: Apache-2.0 */
/* The table of lib/codec as it is, so that codecs added to it are measured too; and copies. */
#include "bench-coder.h"

#include <stdio.h>
#include <string.h>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "codec/codec.h"
#include "dcmem/dcmem.h"

static void *ours_open(const struct bench_coder *coder, bool encodes)
{
	return encodes ? codec_context_new_encoder() : codec_context_new();
}

static void ours_close(void *state)
{
	codec_context_free(state);
}

static int ours_decode(const struct bench_coder *coder, void *state, const uint8_t *src,
		       size_t src_bytes, uint8_t *dst, size_t dst_bytes)
{
	return codec_decode(state, coder->id, src, src_bytes, dst, dst_bytes);
}

static int64_t ours_encode(const struct bench_coder *coder, void *state, const uint8_t *src,
			   size_t src_bytes, uint8_t *dst)
{
	size_t n;
	int r = codec_encode(state, coder->id, coder->level, src, src_bytes, dst, src_bytes, &n);

	return r < 0 ? r : r ? 0 : (int64_t)n;
}

static void *copy_open(const struct bench_coder *coder, bool encodes)
{
	static char none;

	return &none;
}

static void copy_close(void *state)
{
}

static int copy_plain(const struct bench_coder *coder, void *state, const uint8_t *src,
		      size_t src_bytes, uint8_t *dst, size_t dst_bytes)
{
	memcpy(dst, src, dst_bytes);
	return 0;
}

#if defined(__x86_64__)
/* dst is aligned to 16 at least. */
static int copy_streaming(const struct bench_coder *coder, void *state, const uint8_t *src,
			  size_t src_bytes, uint8_t *dst, size_t dst_bytes)
{
	size_t at = 0;

	for (; at + 64 <= dst_bytes; at += 64) {
		__m128i a = _mm_loadu_si128((const __m128i *)(src + at));
		__m128i b = _mm_loadu_si128((const __m128i *)(src + at + 16));
		__m128i c = _mm_loadu_si128((const __m128i *)(src + at + 32));
		__m128i d = _mm_loadu_si128((const __m128i *)(src + at + 48));

		_mm_stream_si128((__m128i *)(dst + at), a);
		_mm_stream_si128((__m128i *)(dst + at + 16), b);
		_mm_stream_si128((__m128i *)(dst + at + 32), c);
		_mm_stream_si128((__m128i *)(dst + at + 48), d);
	}
	_mm_sfence();
	memcpy(dst + at, src + at, dst_bytes - at);
	return 0;
}
#endif

static const struct bench_coder copies[] = {
	{ .name = "memcpy", .decode = copy_plain },
#if defined(__x86_64__)
	{ .name = "memcpy-nt", .decode = copy_streaming },
#endif
};

unsigned bench_coders(struct bench_coder ret_coders[BENCH_CODER_MAX], int effort)
{
	unsigned n = 0;

	for (; n < sizeof(copies) / sizeof(copies[0]); n++) {
		ret_coders[n] = copies[n];
		ret_coders[n].is_copy = true;
		ret_coders[n].open = copy_open;
		ret_coders[n].close = copy_close;
	}
	n += bench_peers(ret_coders + n);
	/* Ids are a byte; those that exist need not be neighbours. */
	for (uint32_t id = 0; id < 256 && n < BENCH_CODER_MAX; id++) {
		if (!codec_is_valid(id))
			continue;
		ret_coders[n] = (struct bench_coder){
			.id = id,
			.level = effort,
			.has_paths = codec_has_paths(id),
			.open = ours_open,
			.close = ours_close,
			.decode = ours_decode,
			.encode = ours_encode,
		};
		snprintf(ret_coders[n].name, sizeof(ret_coders[n].name), "%s", codec_name(id));
		n++;
	}
	return n;
}

static bool is_candidate(uint32_t id, uint32_t dtype)
{
	uint8_t ids[CODEC_MAX_CANDIDATES];
	unsigned n = codec_candidates(dtype, ids);

	for (unsigned i = 0; i < n; i++)
		if (ids[i] == id)
			return true;
	return false;
}

bool bench_coder_takes(const struct bench_coder *coder, uint32_t dtype)
{
	if (coder->library || coder->is_copy || is_candidate(coder->id, dtype))
		return true;
	/* Tried for no dtype by the packer: then it may be meant for all. */
	for (uint32_t other = DCMEM_BOOL; other <= DCMEM_F64; other++)
		if (is_candidate(coder->id, other))
			return false;
	return true;
}
