/* SPDX-License-Identifier: Apache-2.0 */
/* Overflow-safe arithmetic on untrusted numbers: the one range gate. */
#ifndef DCMEM_RANGE_H
#define DCMEM_RANGE_H

#include <stdbool.h>
#include <stdint.h>

/* Is [offset, offset + n_bytes) inside [0, total)? Empty ranges may start at the end. */
static inline bool range_fits(uint64_t offset, uint64_t n_bytes, uint64_t total)
{
	return offset <= total && n_bytes <= total - offset;
}

/* Are `count` records of `record_bytes` at `offset` inside [0, total)? */
static inline bool range_fits_records(uint64_t offset, uint64_t count, uint64_t record_bytes,
				      uint64_t total)
{
	uint64_t n_bytes;
	return !__builtin_mul_overflow(count, record_bytes, &n_bytes) &&
	       range_fits(offset, n_bytes, total);
}

static inline bool range_add(uint64_t a, uint64_t b, uint64_t *ret_sum)
{
	return !__builtin_add_overflow(a, b, ret_sum);
}

static inline bool range_mul(uint64_t a, uint64_t b, uint64_t *ret_product)
{
	return !__builtin_mul_overflow(a, b, ret_product);
}

/* Rounds up to a power of two; the caller knows that it cannot wrap. */
static inline uint64_t align_up(uint64_t value, uint64_t alignment)
{
	return (value + alignment - 1) & ~(alignment - 1);
}

static inline uint64_t div_up(uint64_t value, uint64_t divisor)
{
	return value / divisor + (value % divisor != 0);
}

static inline uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static inline uint64_t max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

#endif
