/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Element conversion: anything to float, float to F32, F16, BF16 with round to nearest even.
 * Numbers too large become infinities, NaNs stay NaNs.
 */
#ifndef DCMEM_CONVERT_H
#define DCMEM_CONVERT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Can dcmem_read() give this dtype in this one? */
bool convert_is_possible(uint32_t from, uint32_t to);
/* `src` need not be aligned. */
void convert_to_float(uint32_t dtype, const void *src, float *dst, size_t n);
/* F32, F16 or BF16; `dst` need not be aligned. */
void convert_from_float(uint32_t dtype, const float *src, void *dst, size_t n);

#endif
