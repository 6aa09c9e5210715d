/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writes a container front to back: segments, blobs, index, and the header last. Everything goes to
 * PATH.tmp-PID, which writer_commit() renames to PATH and writer_free() removes. One thread.
 *
 *   writer_new
 *     writer_tensor_begin  writer_page ...  writer_tensor_end    or  writer_tensor_shared
 *     writer_companion ...  writer_hint ...
 *     writer_file_begin  writer_file_data ...  writer_file_end
 *   writer_commit
 *   writer_free
 */
#ifndef DCMEM_WRITER_H
#define DCMEM_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dcmem/container.h"

struct writer;

/* total_bytes: of all tensors, each rounded up to CONTAINER_ALIGN; the size of segments follows. */
int writer_new(struct writer **ret_writer, const char *path, uint64_t total_bytes);
struct writer *writer_free(struct writer *writer);

/*
 * Of `record` the caller fills dtype, n_dims, dims, n_bytes, page_bytes, file, file_offset. A raw
 * tensor is aligned, and every page of it must be raw. A tensor without bytes has no pages.
 */
int writer_tensor_begin(struct writer *writer, const char *name, uint32_t name_bytes,
			const struct container_tensor *record, bool raw);
/* The next page; `page` has stored_bytes, codec and both hashes. */
int writer_page(struct writer *writer, const struct container_page *page, const void *stored);
int writer_tensor_end(struct writer *writer);
/* A tensor whose bytes are those of tensor `original`. */
int writer_tensor_shared(struct writer *writer, const char *name, uint32_t name_bytes,
			 const struct container_tensor *record, uint64_t original);
/* In the order of companion->tensor. */
int writer_companion(struct writer *writer, const struct container_companion *companion);

/* In the order of the container (container.h). */
int writer_hint(struct writer *writer, const struct container_hint *hint);

/* After the last tensor, in bytewise order of names. */
int writer_file_begin(struct writer *writer, const char *name, uint32_t kind);
int writer_file_data(struct writer *writer, const void *data, size_t n_bytes);
int writer_file_end(struct writer *writer, uint64_t file_bytes, const uint8_t file_hash[16]);

/* Durable and visible under its name when 0 is returned. */
int writer_commit(struct writer *writer, const char *options);

#endif
