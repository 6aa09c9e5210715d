/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every codec's decoder: byte 0 is the id, bytes 1 to 3 the decoded size, the rest the page. All
 * paths of this CPU must agree about the outcome and, where it is good, about every byte.
 */
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/memory.h"
#include "codec/codec.h"
#include "dcmem/container.h"
#include "fuzz/fuzz.h"

#define HEAD 4U

static struct codec_context *context;

static int decode(uint32_t id, const uint8_t *page, size_t n_page, uint8_t *dst, size_t n)
{
	int r;

	memset(dst, 0xa5, n);
	r = codec_decode(context, id, page, n_page, dst, n);
	if (r != 0 && r != CODEC_E_CORRUPT && r != CODEC_E_UNKNOWN)
		abort();
	return r;
}

void fuzz_one(const uint8_t *data, size_t n_bytes)
{
	enum cpu_path best = cpu_path();
	uint8_t *first, *other;
	size_t n;
	int r;

	if (!context)
		context = codec_context_new_encoder();
	if (n_bytes < HEAD || !context)
		return;
	n = ((size_t)data[1] | (size_t)data[2] << 8 | (size_t)data[3] << 16) %
	    (CONTAINER_MAX_PAGE_BYTES + 1);
	first = memory_alloc(n);
	other = memory_alloc(n);
	if (!first || !other)
		abort();
	(void)cpu_path_force(CPU_PORTABLE);
	r = decode(data[0], data + HEAD, n_bytes - HEAD, first, n);
	for (int path = CPU_PORTABLE + 1; path <= (int)best; path++) {
		if (!cpu_path_force((enum cpu_path)path))
			abort();
		if (decode(data[0], data + HEAD, n_bytes - HEAD, other, n) != r ||
		    (r == 0 && memcmp(first, other, n) != 0))
			abort();
	}
	(void)cpu_path_force(best);
	memory_free(first);
	memory_free(other);
}

/* Each codec with pages of several kinds and sizes. */
size_t fuzz_seed(unsigned i, uint8_t *buffer, size_t capacity)
{
	static const size_t sizes[] = {1024, 5000, 32768};
	uint32_t id = i / 6, x = i + 1;
	size_t n = sizes[i % 3], stored;
	static uint8_t page[32768];

	if (!context)
		context = codec_context_new_encoder();
	if (!codec_is_valid(id) || !context)
		return 0;
	for (size_t k = 0; k < n; k++) {
		uint32_t sum = 0;

		for (int j = 0; j < 4; j++) {
			x = x * 1664525 + 1013904223;
			sum += x >> 24;
		}
		page[k] = (uint8_t)(i / 3 & 1 ? sum / 8 : sum / 64);
	}
	buffer[0] = (uint8_t)id;
	for (unsigned b = 0; b < 3; b++)
		buffer[1 + b] = (uint8_t)(n >> (8 * b));
	if (codec_encode(context, id, 1, page, n, buffer + HEAD, capacity - HEAD, &stored) != 0)
		return HEAD; /* nothing to decode: an input all the same */
	return HEAD + stored;
}

void fuzz_mend(uint8_t *data, size_t n_bytes)
{
}
