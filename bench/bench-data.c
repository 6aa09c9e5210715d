/* SPDX-License-Identifier: Apache-2.0 */
/* Owns the bytes of a set and what is known of them beforehand. One thread a set. */
#include "bench-data.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/hash.h"
#include "base/memory.h"
#include "base/range.h"
#include "bench-stats.h"
#include "dcmem/dcmem.h"

#define N_COLS 4096U /* of synthetic data that have rows */

#define SHAPE(name, shape, bits) { name " " #bits " bits", shape, bits, 0, 0, 0 }
const struct bench_synthetic bench_synthetics[] = {
	SHAPE("gauss", BENCH_GAUSS, 3),	      SHAPE("gauss", BENCH_GAUSS, 4),
	SHAPE("gauss", BENCH_GAUSS, 5),	      SHAPE("gauss", BENCH_GAUSS, 6),
	SHAPE("gauss", BENCH_GAUSS, 7),	      SHAPE("laplace", BENCH_LAPLACE, 3),
	SHAPE("laplace", BENCH_LAPLACE, 4),   SHAPE("laplace", BENCH_LAPLACE, 5),
	SHAPE("laplace", BENCH_LAPLACE, 6),   SHAPE("laplace", BENCH_LAPLACE, 7),
	SHAPE("student4", BENCH_STUDENT4, 3), SHAPE("student4", BENCH_STUDENT4, 4),
	SHAPE("student4", BENCH_STUDENT4, 5), SHAPE("student4", BENCH_STUDENT4, 6),
	SHAPE("student4", BENCH_STUDENT4, 7),
	{ "gauss 5 bits, half zeros", BENCH_GAUSS, 5, 0.5, 0, 0 },
	{ "rows: AR(1) 0.9 down columns, 5 bits", BENCH_GAUSS, 5, 0, 0.9, 0 },
	{ "rows: log-normal scales, about 5 bits", BENCH_GAUSS, 5, 0, 0, 0.7 },
};
const unsigned bench_n_synthetics = sizeof(bench_synthetics) / sizeof(bench_synthetics[0]);

void bench_data_deinit(struct bench_data *data)
{
	memory_free(data->bytes);
	memory_free(data->pages);
	*data = (struct bench_data){ 0 };
}

int bench_data_add(struct bench_data *data, uint32_t n_bytes, uint8_t **ret_bytes)
{
	size_t room = align_up(n_bytes, BENCH_PAGE_ALIGN);
	void *bytes = data->bytes, *pages = data->pages;
	int r = memory_grow(&bytes, &data->capacity, data->n_bytes, data->n_bytes + room, 1);

	data->bytes = bytes;
	if (r)
		return r;
	r = memory_grow(&pages, &data->pages_capacity, data->n_pages, data->n_pages + 1,
			sizeof(*data->pages));
	data->pages = pages;
	if (r)
		return r;
	memset(data->bytes + data->n_bytes, 0, room);
	*ret_bytes = data->bytes + data->n_bytes;
	data->pages[data->n_pages++] = (struct bench_page){ .offset = data->n_bytes,
							    .n_bytes = n_bytes };
	data->n_bytes += room;
	data->page_bytes += n_bytes;
	return 0;
}

unsigned bench_exponent_bits(uint32_t dtype)
{
	return dtype == DCMEM_BF16 || dtype == DCMEM_F32 ? 8 : dtype == DCMEM_F16 ? 5 : 0;
}

static double page_entropy(const uint8_t *bytes, size_t n_bytes, uint32_t dtype)
{
	uint64_t histogram[256] = { 0 };
	size_t step = dtype == DCMEM_F32 ? 4 : 2;

	if (!bench_exponent_bits(dtype))
		return bench_entropy_bytes(bytes, n_bytes);
	for (size_t i = step; i <= n_bytes; i += step) {
		unsigned top = bytes[i - 1], next = bytes[i - 2];

		histogram[dtype == DCMEM_F16 ? top >> 2 & 31 : (top << 1 | next >> 7) & 255]++;
	}
	return bench_entropy(histogram, 256);
}

void bench_data_finish(struct bench_data *data)
{
	unsigned exponent = bench_exponent_bits(data->dtype);
	double wide = data->dtype == DCMEM_F32 ? 32 : 16, bits = 0;

	for (size_t i = 0; i < data->n_pages; i++) {
		struct bench_page *page = &data->pages[i];

		page->hash = hash_64(data->bytes + page->offset, page->n_bytes);
		bits += page->n_bytes *
			page_entropy(data->bytes + page->offset, page->n_bytes, data->dtype);
	}
	data->order0_bits = bits / (double)data->page_bytes;
	if (exponent)
		data->bound = wide / (wide - exponent + data->order0_bits);
	else
		data->bound = 8 / fmax(data->order0_bits, 1e-3);
}

/* A row whose values keep `correlation` of the row above. */
static void row_correlated(struct bench_random *random, const struct bench_synthetic *what,
			   double scale, double *above, int8_t *row)
{
	double keep = what->correlation, fresh = sqrt(1 - keep * keep);

	for (unsigned i = 0; i < N_COLS; i++) {
		double value = keep * above[i] + fresh * bench_random_shape(random, what->shape);

		above[i] = value;
		row[i] = (int8_t)fmax(-127, fmin(127, rint(value * scale)));
	}
}

static void row_plain(struct bench_random *random, const struct bench_synthetic *what, double scale,
		      int8_t *row)
{
	if (what->row_spread > 0) {
		scale *= exp(what->row_spread * bench_random_shape(random, BENCH_GAUSS));
		scale = fmin(scale, 60);
	}
	for (unsigned i = 0; i < N_COLS; i++) {
		bool zero = what->zeros > 0 && bench_random_unit(random) < what->zeros;

		row[i] = zero ? 0 : bench_random_int8(random, what->shape, scale);
	}
}

int bench_data_synthetic(struct bench_data *data, const struct bench_synthetic *what,
			 uint64_t n_bytes)
{
	struct bench_data made = { .dtype = DCMEM_I8 };
	double scale = bench_random_scale(what->shape, what->bits), above[N_COLS] = { 0 };
	struct bench_random random;

	snprintf(made.name, sizeof(made.name), "%s", what->name);
	bench_random_init(&random, 1 + (uint64_t)(what - bench_synthetics));
	for (unsigned i = 0; i < N_COLS && what->correlation > 0; i++)
		above[i] = bench_random_shape(&random, what->shape);
	while (made.page_bytes < n_bytes) {
		uint8_t *page;
		int r = bench_data_add(&made, BENCH_PAGE_BYTES, &page);

		if (r) {
			bench_data_deinit(&made);
			return r;
		}
		for (unsigned at = 0; at < BENCH_PAGE_BYTES; at += N_COLS) {
			if (what->correlation > 0)
				row_correlated(&random, what, scale, above, (int8_t *)page + at);
			else
				row_plain(&random, what, scale, (int8_t *)page + at);
		}
	}
	made.source_bytes = made.page_bytes;
	bench_data_finish(&made);
	*data = made;
	return 0;
}
