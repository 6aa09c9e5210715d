/* SPDX-License-Identifier: Apache-2.0 */
/* Pages of models, as they are or quantized to INT8: safetensors (file or directory) or .dcmem. */
#ifndef BENCH_MODEL_H
#define BENCH_MODEL_H

#include "bench-data.h"

enum bench_cast {
	BENCH_AS_IS,
	BENCH_PER_TENSOR,  /* INT8, rounded to nearest, scaled by the absolute maximum */
	BENCH_PER_CHANNEL, /* of each row */
};

struct bench_model;
/* 0, -errno or DCMEM_E_..., with a message naming the file. */
int bench_model_open(struct bench_model **ret_model, const char *path);
struct bench_model *bench_model_free(struct bench_model *model);

/*
 * With BENCH_AS_IS all tensors of `dtype`; else the linear weights: floating, two dimensions, no
 * embedding. Pages are cut as the packer cuts them. A model that has more than max_bytes gives
 * pages spread evenly over all of it; one that has none leaves data->n_pages 0.
 */
int bench_model_data(struct bench_model *model, uint32_t dtype, enum bench_cast cast,
		     uint64_t max_bytes, struct bench_data *data);

/* The name that such data would have. */
void bench_model_data_name(const struct bench_model *model, uint32_t dtype, enum bench_cast cast,
			   char *ret_name, size_t n_bytes);

/* n values of a floating dtype to float; false if it is none. */
bool bench_floats(uint32_t dtype, const uint8_t *src, size_t n, float *dst);
/* Absolute maximum to 127, round to nearest even. What is not finite gives 0. */
void bench_quantize(const float *src, size_t n, int8_t *dst);

#endif
