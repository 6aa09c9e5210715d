/* SPDX-License-Identifier: Apache-2.0 */
/* The tensors of a source by name, read as float. One thread. */
#ifndef DCMEM_TENSORS_H
#define DCMEM_TENSORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/source.h"

struct tensors_entry {
	const struct safetensors_tensor *tensor;
	size_t file;   /* of the source */
	uint64_t place; /* among the tensors of that file */
};

struct tensors {
	const struct source *source;
	int *fds; /* one a file, -1 where it is no safetensors file */
	struct tensors_entry *entries; /* by name; those of the model's own files come first of equals */
	uint64_t n;
};

/* 0 or -errno with a message. The source must outlive it. */
int tensors_open(struct tensors *tensors, const struct source *source);
void tensors_close(struct tensors *tensors);

/* NULL if there is none. */
const struct tensors_entry *tensors_find(const struct tensors *tensors, const char *name);

/* BF16, F16 or F32? */
bool tensors_is_float(const struct tensors_entry *entry);
/* Elements [first, first + n) of such a one. 0 or -errno with a message that names the tensor. */
int tensors_read(const struct tensors *tensors, const struct tensors_entry *entry, uint64_t first,
		 size_t n, float *values);
/* Its stored bytes [offset, offset + n_bytes). */
int tensors_read_bytes(const struct tensors *tensors, const struct tensors_entry *entry,
		       uint64_t offset, size_t n_bytes, void *data);

#endif
