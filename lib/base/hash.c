/* SPDX-License-Identifier: Apache-2.0 */
/* XXH3 by way of xxHash; the only file that includes it. */
#include "base/hash.h"

#define XXH_STATIC_LINKING_ONLY /* XXH3_state_t as a member */
#include <xxhash.h>

#include "base/memory.h"

struct hash_stream {
	XXH3_state_t state; /* needs 64-byte alignment, which memory_alloc gives */
};

uint64_t hash_64(const void *data, size_t n_bytes)
{
	return XXH3_64bits(data, n_bytes);
}

uint64_t hash_64_seeded(const void *data, size_t n_bytes, uint64_t seed)
{
	return XXH3_64bits_withSeed(data, n_bytes, seed);
}

static void store_128(XXH128_hash_t hash, uint8_t ret_hash[16])
{
	XXH128_canonicalFromHash((XXH128_canonical_t *)ret_hash, hash);
}

void hash_128(const void *data, size_t n_bytes, uint8_t ret_hash[16])
{
	store_128(XXH3_128bits(data, n_bytes), ret_hash);
}

struct hash_stream *hash_stream_new(void)
{
	struct hash_stream *stream = memory_alloc(sizeof(*stream));

	if (stream) {
		XXH3_INITSTATE(&stream->state);
		(void)XXH3_128bits_reset(&stream->state);
	}
	return stream;
}

struct hash_stream *hash_stream_free(struct hash_stream *stream)
{
	return memory_free(stream);
}

void hash_stream_update(struct hash_stream *stream, const void *data, size_t n_bytes)
{
	(void)XXH3_128bits_update(&stream->state, data, n_bytes);
}

void hash_stream_128(const struct hash_stream *stream, uint8_t ret_hash[16])
{
	store_128(XXH3_128bits_digest(&stream->state), ret_hash);
}

/* XXH3 feeds both lengths the same way; they differ in the digest alone. */
uint64_t hash_stream_64(const struct hash_stream *stream)
{
	return XXH3_64bits_digest(&stream->state);
}

void hash_stream_reset(struct hash_stream *stream)
{
	(void)XXH3_128bits_reset(&stream->state);
}
