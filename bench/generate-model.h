/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A model that is generated: its tensors, named and shaped as Hugging Face names those of Llama, its
 * files, and the bytes of both.
 */
#ifndef GENERATE_MODEL_H
#define GENERATE_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "generate-weights.h"

#define GENERATE_MAX_SHARDS  1000
#define GENERATE_MAX_TENSORS 2000000

struct generate_options {
	const char *shape;  /* generate_shape_name() */
	bool bf16;	    /* else INT8 with a scale a row */
	double bits;	    /* of INT8 */
	uint64_t n_layers;  /* 0: as many as the shape has */
	uint64_t n_vocab;   /* the same */
	uint64_t n_tensors; /* so many small ones beside */
	unsigned n_shards;  /* at least 1 */
	uint64_t seed;
};

enum generate_kind { GENERATE_MATRIX, GENERATE_NORM, GENERATE_SCALES };

#define GENERATE_NAME_BYTES 80
struct generate_tensor {
	char name[GENERATE_NAME_BYTES];
	enum generate_kind kind;
	uint32_t dtype; /* enum dcmem_dtype */
	uint32_t n_dims;
	uint64_t dims[2];
	uint64_t n_bytes;
	uint64_t offset; /* in the data of its shard */
	unsigned shard;
};

struct generate_model {
	struct generate_tensor *tensors; /* owned; a matrix's scales follow it; shards in order */
	uint64_t n_tensors, capacity;
	uint64_t n_bytes; /* of all tensors */
	struct generate_options options;
	struct weights *weights; /* owned */
	char *config, *index;	 /* owned; index is NULL with one shard */
};

const char *generate_shape_name(unsigned shape); /* NULL where there is none */
/* 0, -ENOMEM, or -EINVAL with a message. */
int generate_model_init(struct generate_model *model, const struct generate_options *options);
void generate_model_deinit(struct generate_model *model);

/* The name of a shard's file. */
void generate_shard_name(const struct generate_model *model, unsigned shard, char ret_name[64]);
/* The first tensor of a shard; that of shard n_shards is n_tensors. */
uint64_t generate_shard_first(const struct generate_model *model, unsigned shard);
/* Head of the shard's file: length and JSON. The caller frees it. 0 or -ENOMEM. */
int generate_shard_head(const struct generate_model *model, unsigned shard, char **ret_head,
			uint64_t *ret_bytes);

/* Decoded bytes of a page, as `dcmem pack` cuts them. */
uint32_t generate_page_bytes(const struct generate_tensor *tensor);
uint64_t generate_n_pages(const struct generate_tensor *tensor);
/* Bytes of one page, by any thread. Returns how many. */
uint32_t generate_page(const struct generate_model *model, uint64_t tensor, uint64_t page,
		       uint8_t *dst);

#endif
