/* SPDX-License-Identifier: Apache-2.0 */
/* Little-endian words at any address. */
#ifndef CODEC_BYTES_H
#define CODEC_BYTES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t bytes_load16(const uint8_t *p)
{
	return (uint32_t)(p[0] | p[1] << 8);
}

static inline uint32_t bytes_load32(const uint8_t *p)
{
	return bytes_load16(p) | bytes_load16(p + 2) << 16;
}

static inline void bytes_store32(uint8_t *p, uint32_t value)
{
	for (unsigned i = 0; i < 4; i++)
		p[i] = (uint8_t)(value >> (8 * i));
}

static inline uint64_t bytes_load64(const uint8_t *p)
{
	uint64_t word;

	memcpy(&word, p, sizeof(word));
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	word = __builtin_bswap64(word);
#endif
	return word;
}

static inline void bytes_store64(uint8_t *p, uint64_t value)
{
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
	value = __builtin_bswap64(value);
#endif
	memcpy(p, &value, sizeof(value));
}

/* The eight bytes at `at`, zeros past the end: for the last bytes of a page and for hostile ones. */
static inline uint64_t bytes_load64_near_end(const uint8_t *src, size_t src_bytes, size_t at)
{
	uint8_t bytes[8] = {0};

	if (at < src_bytes)
		memcpy(bytes, src + at, src_bytes - at < 8 ? src_bytes - at : 8);
	return bytes_load64(bytes);
}

#endif
