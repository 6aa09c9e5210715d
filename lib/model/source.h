/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is to be packed: one safetensors file, or every regular file of a directory and those below
 * it. Files are sorted by name, bytewise; safetensors ones are parsed, the rest are kept verbatim.
 */
#ifndef DCMEM_SOURCE_H
#define DCMEM_SOURCE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>

#include "model/safetensors.h"

struct source_file {
	char *name;    /* relative to the source, with '/' */
	char *path;    /* to open it by */
	uint32_t kind; /* CONTAINER_FILE_... */
	bool is_model; /* model.safetensors or a shard of the index: its tensors keep their names */
	uint64_t n_bytes;
	dev_t device; /* with the rest: is it still the same file, unchanged? */
	ino_t inode;
	struct timespec mtime;
	struct safetensors st; /* CONTAINER_FILE_SAFETENSORS */
};

struct source {
	struct source_file *files;
	size_t n_files, capacity;
	uint64_t n_tensors;
	uint64_t n_bytes; /* of all files */
};

/* Scans and parses everything. 0, -errno or SAFETENSORS_E_..., with a message naming the file. */
int source_init(struct source *source, const char *path);
void source_deinit(struct source *source);

/* Opens a file again; -ESTALE when it is no longer the one that was scanned. */
int source_open(const struct source_file *file, int *ret_fd);
/* The same check on a descriptor, after reading: 0 or -ESTALE. */
int source_check(const struct source_file *file, int fd);

#endif
