/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The quantized model as a directory: safetensors files of the same names, in which some tensors are
 * codes followed by their scales, config.json and the shard index with what that adds, and links to
 * all other files.
 */
#ifndef DCMEM_QUANT_OUTPUT_H
#define DCMEM_QUANT_OUTPUT_H

#include "quant/tensors.h"

enum output_kind { OUTPUT_COPY, OUTPUT_LINEAR, OUTPUT_EMBEDDING };

struct output_item {
	enum output_kind kind;
	uint64_t codes_offset, scales_offset; /* in the file */
};

struct output_file {
	int fd; /* -1: no safetensors file */
	struct output_item *items; /* as the tensors of the source's file */
};

struct output {
	const struct tensors *tensors;
	char *directory;
	struct output_file *files;
};

/* Makes the files and copies what stays. 0 or -errno with a message. */
int output_open(struct output *output, const struct tensors *tensors, const char *directory,
		enum output_kind (*kind_of)(void *data, const struct tensors_entry *entry), void *data);
void output_close(struct output *output);
const struct output_item *output_item(const struct output *output, const struct tensors_entry *entry);
/* Rows [first_row, first_row + n_rows) of codes and their scales, which BF16 holds exactly. */
int output_write(const struct output *output, const struct tensors_entry *entry, uint64_t first_row,
		 size_t n_rows, const int8_t *codes, const float *scales);

#endif
