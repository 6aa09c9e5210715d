/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Random weights, the same bytes on every machine: Student's t with 8 degrees of freedom, rows of
 * different scales. Any stretch of a tensor can be made on its own.
 */
#ifndef GENERATE_WEIGHTS_H
#define GENERATE_WEIGHTS_H

#include <stddef.h>
#include <stdint.h>

#define WEIGHTS_MIN_BITS 1.0
#define WEIGHTS_MAX_BITS 7.5

struct weights;
/*
 * Tables for INT8 of `bits` order-0 entropy over all of a tensor (WEIGHTS_MIN_BITS to
 * WEIGHTS_MAX_BITS), or for BF16 if `bits` is 0. 0 or -ENOMEM.
 */
int weights_new(struct weights **ret_weights, double bits);
struct weights *weights_free(struct weights *weights);

/* The key of tensor `tensor` under a seed. */
uint64_t weights_key(uint64_t seed, uint64_t tensor);

/* n_rows rows of a matrix from `row` on: n_cols bytes each, or n_cols BF16 values. */
void weights_rows(const struct weights *weights, uint64_t key, uint64_t row, uint64_t n_rows,
		  uint64_t n_cols, uint8_t *dst);
/* n BF16 values about 1 from number `at` on: weights of norms. */
void weights_norm(uint64_t key, uint64_t at, uint64_t n, uint8_t *dst);
/* n F32 scales of rows from `at` on. */
void weights_scales(uint64_t key, uint64_t at, uint64_t n, uint8_t *dst);

#endif
