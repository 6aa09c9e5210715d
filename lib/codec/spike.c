/* SPDX-License-Identifier: Apache-2.0 */
/* The permutation of spike.h, as vectors of gcc, so that every machine's compiler takes what it has. */
#include "codec/spike.h"

#include <string.h>

#include "base/cpu.h"

#define VECTOR 16
#define FAR    (-128) /* where the spike goes, from the spike */
typedef int8_t signed_vector __attribute__((vector_size(VECTOR)));
typedef uint8_t bytes_vector __attribute__((vector_size(VECTOR)));

uint8_t spike_find(const uint8_t *bytes, size_t n)
{
	uint32_t count[4][256] = {0}, best = 0;

	for (size_t i = 0; i < n; i++)
		count[i & 3][bytes[i]]++;
	for (uint32_t value = 0; value < 256; value++) {
		count[0][value] += count[1][value] + count[2][value] + count[3][value];
		best = count[0][value] > count[0][best] ? value : best;
	}
	return (uint8_t)best;
}

static inline uint8_t close_one(uint8_t value, uint8_t spike)
{
	int8_t d = (int8_t)(value - spike);

	return (uint8_t)(spike + (d == 0 ? FAR : d < 0 ? d + 1 : d));
}

static inline uint8_t open_one(uint8_t value, uint8_t spike)
{
	int8_t d = (int8_t)(value - spike);

	return (uint8_t)(spike + (d == FAR ? 0 : d <= 0 ? d - 1 : d));
}

static inline __attribute__((always_inline)) void close_all(const uint8_t *bytes, size_t n,
							    uint8_t spike, uint8_t *ret_bytes)
{
	size_t i = 0;

	for (; i + VECTOR <= n; i += VECTOR) {
		bytes_vector value;
		signed_vector d, is_spike;

		memcpy(&value, bytes + i, VECTOR);
		d = (signed_vector)(value - spike);
		is_spike = d == 0;
		d -= d < 0; /* what is true is -1 */
		d = (d & ~is_spike) | (FAR & is_spike);
		value = (bytes_vector)d + spike;
		memcpy(ret_bytes + i, &value, VECTOR);
	}
	for (; i < n; i++)
		ret_bytes[i] = close_one(bytes[i], spike);
}

static inline __attribute__((always_inline)) void open_all(uint8_t *bytes, size_t n, uint8_t spike)
{
	size_t i = 0;

	for (; i + VECTOR <= n; i += VECTOR) {
		bytes_vector value;
		signed_vector d, is_spike;

		memcpy(&value, bytes + i, VECTOR);
		d = (signed_vector)(value - spike);
		is_spike = d == FAR;
		d += d <= 0;
		d &= ~is_spike;
		value = (bytes_vector)d + spike;
		memcpy(bytes + i, &value, VECTOR);
	}
	for (; i < n; i++)
		bytes[i] = open_one(bytes[i], spike);
}

#if defined(__x86_64__)
static __attribute__((target("avx2"))) void close_all_avx2(const uint8_t *bytes, size_t n,
							   uint8_t spike, uint8_t *ret_bytes)
{
	close_all(bytes, n, spike, ret_bytes);
}

static __attribute__((target("avx2"))) void open_all_avx2(uint8_t *bytes, size_t n, uint8_t spike)
{
	open_all(bytes, n, spike);
}
#endif

void spike_close(const uint8_t *bytes, size_t n, uint8_t spike, uint8_t *ret_bytes)
{
#if defined(__x86_64__)
	if (cpu_path() >= CPU_AVX2) {
		close_all_avx2(bytes, n, spike, ret_bytes);
		return;
	}
#endif
	close_all(bytes, n, spike, ret_bytes);
}

void spike_open(uint8_t *bytes, size_t n, uint8_t spike)
{
#if defined(__x86_64__)
	if (cpu_path() >= CPU_AVX2) {
		open_all_avx2(bytes, n, spike);
		return;
	}
#endif
	open_all(bytes, n, spike);
}
