/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The head of a safetensors file, checked: 8 bytes of little-endian length, then JSON. What passes
 * here has tensors that cover the data section exactly, without holes or overlap.
 */
#ifndef DCMEM_SAFETENSORS_H
#define DCMEM_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "dcmem/container.h"

#define SAFETENSORS_MAX_HEADER 100000000ULL /* bytes of JSON; the limit of the format */

enum safetensors_error {
	SAFETENSORS_E_CORRUPT = 2,     /* as DCMEM_E_CORRUPT, so that it travels unchanged */
	SAFETENSORS_E_UNSUPPORTED = 3, /* a dtype, or more dimensions, than this build knows */
};

struct safetensors_tensor {
	char *name;	     /* owned by the struct safetensors */
	uint32_t name_bytes; /* at most CONTAINER_MAX_NAME */
	uint32_t dtype;	     /* enum dcmem_dtype */
	uint32_t n_dims;
	uint64_t dims[CONTAINER_MAX_DIMS];
	uint64_t offset; /* in the data section */
	uint64_t n_bytes;
};

struct safetensors {
	char *head; /* the 8 bytes and the JSON, verbatim */
	uint64_t head_bytes;
	uint64_t file_bytes;
	struct safetensors_tensor *tensors; /* by offset, the empty ones first, then by name */
	uint64_t n_tensors;
};

/* Reads from an open regular file of file_bytes. 0, -errno or SAFETENSORS_E_..., with a message
 * that does not name the file. */
int safetensors_init(struct safetensors *st, int fd, uint64_t file_bytes);
void safetensors_deinit(struct safetensors *st);

/* For each tensor that model.safetensors.index.json (n_bytes of text) puts in a file, the callback;
 * stops at the first result that is not 0. */
int safetensors_index_each(const char *text, size_t n_bytes,
			   int (*each)(void *data, const char *tensor, const char *file),
			   void *data);

#endif
