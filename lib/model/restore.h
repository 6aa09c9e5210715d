/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The source files of a container, as streams of bytes: blobs and decoded tensors in order, decoded
 * on all cores, every hash checked. What unpack writes and verify compares.
 */
#ifndef DCMEM_RESTORE_H
#define DCMEM_RESTORE_H

#include <stddef.h>
#include <stdint.h>

#include "model/container.h"

/* The next bytes of a file. Not 0 stops. */
struct restore_sink {
	int (*write)(void *data, const void *bytes, size_t n_bytes, uint64_t offset);
	void *data;
};

struct restore;
int restore_new(struct restore **ret_restore, const struct container *container, unsigned n_jobs);
struct restore *restore_free(struct restore *restore);

/* File 0, then 1, and so on: each call goes on where the last one ended. */
int restore_file(struct restore *restore, uint64_t file, const struct restore_sink *sink);
/* After the last file: stored forms beside the first, which no file needs. */
int restore_check_rest(struct restore *restore);

/* CPUs this process may use. */
unsigned restore_cpu_count(void);

#endif
