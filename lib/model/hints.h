/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the packer writes down of the ways to store a tensor: each codec and effort tried on sample
 * pages, timed on one core, and those kept that no other beats in both bytes and time to decode.
 */
#ifndef DCMEM_HINTS_H
#define DCMEM_HINTS_H

#include <stdint.h>

#include "dcmem/container.h"

struct plan;
struct hints;

struct hints *hints_new(void);
struct hints *hints_free(struct hints *hints);

/* The hints of a tensor, in the order of the container; none of shared and empty ones. */
int hints_measure(struct hints *hints, const struct plan *plan, uint64_t tensor,
		  struct container_hint ret_hints[CONTAINER_MAX_HINTS], unsigned *ret_n);

/*
 * Sorts `n` ways by time to decode and keeps those that are smaller than every faster one; of equals
 * the one that is faster to encode. Returns how many are left, at the front.
 */
unsigned hints_keep_best(struct container_hint *ways, unsigned n);

#endif
