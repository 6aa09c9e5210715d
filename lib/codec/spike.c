/* SPDX-License-Identifier: Apache-2.0 */
/* The permutation of spike.h: whole vectors by spike-vectors.h, what is left one by one. */
#include "codec/spike.h"

#include <string.h>

#include "base/cpu.h"

#define FAR (-128) /* where the spike goes, from the spike */

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

/* Vectors of gcc, of the width that the machine has: of any other it makes them element by element. */
#define VECTOR 16
#define SPIKE_NAME(name) name
#include "codec/spike-vectors.h"
#if defined(__x86_64__)
#define VECTOR 32
#define SPIKE_NAME(name) name##_avx2
#define SPIKE_TARGET __attribute__((target("avx2")))
#include "codec/spike-vectors.h"
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
