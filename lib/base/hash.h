/* SPDX-License-Identifier: Apache-2.0 */
/* XXH3, the hash of pages, tables and sources. Not cryptographic: it finds damage, not malice. */
#ifndef DCMEM_HASH_H
#define DCMEM_HASH_H

#include <stddef.h>
#include <stdint.h>

uint64_t hash_64(const void *data, size_t n_bytes);
uint64_t hash_64_seeded(const void *data, size_t n_bytes, uint64_t seed);
/* Canonical (big-endian) XXH3-128. */
void hash_128(const void *data, size_t n_bytes, uint8_t ret_hash[16]);

/* The same over a stream. */
struct hash_stream;
struct hash_stream *hash_stream_new(void);
struct hash_stream *hash_stream_free(struct hash_stream *stream);
void hash_stream_update(struct hash_stream *stream, const void *data, size_t n_bytes);
void hash_stream_128(const struct hash_stream *stream, uint8_t ret_hash[16]);
/* What hash_64() gives for the same bytes. */
uint64_t hash_stream_64(const struct hash_stream *stream);
/* Starts anew. */
void hash_stream_reset(struct hash_stream *stream);

#endif
