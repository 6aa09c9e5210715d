/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the bench codes: pages, each a unit of its own as in a container. Synthetic bytes here,
 * those of models in bench-model.c.
 */
#ifndef BENCH_DATA_H
#define BENCH_DATA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "bench-random.h"

#define BENCH_PAGE_BYTES (256U << 10) /* as the packer's */
#define BENCH_PAGE_ALIGN 64

struct bench_page {
	size_t offset; /* in the data, a multiple of BENCH_PAGE_ALIGN */
	uint32_t n_bytes;
	uint64_t hash; /* XXH3-64 */
};

struct bench_data {
	char name[128];
	uint32_t dtype; /* enum dcmem_dtype */
	uint8_t *bytes; /* owned; all pages, zeros between them */
	size_t n_bytes, capacity; /* of `bytes`, gaps included */
	struct bench_page *pages;
	size_t n_pages, pages_capacity;
	uint64_t page_bytes;   /* of all pages */
	uint64_t source_bytes; /* of the tensors that the pages are a sample of; else equal */
	/* Mean over pages, weighted by size, of the entropy of the bytes; of wide floats, of the
	 * exponents. */
	double order0_bits;
	double bound; /* the ratio that order 0 allows: 8 / bits; BF16: 16 / (8 + bits) */
};

void bench_data_deinit(struct bench_data *data);
/* Room for one more page at the end. 0 or -ENOMEM. */
int bench_data_add(struct bench_data *data, uint32_t n_bytes, uint8_t **ret_bytes);
/* After the last page: hashes, entropy, bound. */
void bench_data_finish(struct bench_data *data);

/* One set of synthetic INT8 bytes. */
struct bench_synthetic {
	const char *name;
	enum bench_shape shape;
	double bits;	    /* of the shape, at order 0 */
	double zeros;	    /* this share of the values is zero instead */
	double correlation; /* of a value with the one above it */
	double row_spread;  /* standard deviation of the log of a row's scale */
};
extern const struct bench_synthetic bench_synthetics[];
extern const unsigned bench_n_synthetics;

/* At least n_bytes, whole pages. 0 or -ENOMEM. */
int bench_data_synthetic(struct bench_data *data, const struct bench_synthetic *what,
			 uint64_t n_bytes);

/* The exponent's bits of a dtype's element: 0 where bytes are counted instead. */
unsigned bench_exponent_bits(uint32_t dtype);

#endif
