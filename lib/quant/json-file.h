/* SPDX-License-Identifier: Apache-2.0 */
/* JSON in the files of a model: read whole, written whole; heads of safetensors files. */
#ifndef DCMEM_QUANT_JSON_FILE_H
#define DCMEM_QUANT_JSON_FILE_H

#include <jansson.h>
#include <stdint.h>

#include "model/source.h"

/* The object in it; json_decref() is the caller's. -EINVAL with file and line, -errno. */
int json_file_read(const struct source_file *file, json_t **ret_root);
/* Indented, to the start of an empty file. 0 or -errno, without a message. */
int json_file_write(const json_t *root, int fd);

/* What a head says about one tensor. NULL without memory. */
json_t *json_file_describe(uint32_t dtype, unsigned n_dims, const uint64_t *dims, uint64_t offset,
			   uint64_t n_bytes);
/* Length and text, padded to 8 bytes, at the start of the file; where the data begins. */
int json_file_write_head(const json_t *root, int fd, uint64_t *ret_data);

#endif
