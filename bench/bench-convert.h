/* SPDX-License-Identifier: Apache-2.0 */
/* Other forms of a container, to compare with: its pages under another codec, its bytes in one file. */
#ifndef BENCH_CONVERT_H
#define BENCH_CONVERT_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/*
 * A container of the same tensors and files, every page under the codec `id` (or raw, where it does
 * not get smaller); without companions. 0, -errno or DCMEM_E_..., with a message.
 */
int bench_convert(const char *from, const char *to, uint32_t id, unsigned n_jobs,
		  const atomic_bool *cancel);
/* A file of all decoded bytes, tensor after tensor, and their sum. */
int bench_flatten(const char *from, const char *to, unsigned n_jobs, const atomic_bool *cancel,
		  uint64_t *ret_bytes, uint64_t *ret_sum);

/* The sum of all bytes, however they are cut. Near the speed of memory. */
uint64_t bench_sum_bytes(const void *data, size_t n_bytes);

#endif
