/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The index of a container (include/dcmem/container.h), searched in place. The bytes may be
 * hostile: index_init() checks the tables' bounds in constant time, each getter checks the record
 * that it returns, and index_check() checks everything once (what loading and verify do).
 * Immutable, any thread.
 */
#ifndef DCMEM_INDEX_H
#define DCMEM_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#include "dcmem/container.h"

enum index_error {
	INDEX_E_NOT_FOUND = 1,	 /* values as DCMEM_E_... so that they travel unchanged */
	INDEX_E_CORRUPT = 2,
	INDEX_E_UNSUPPORTED = 3,
};

struct index {
	const uint8_t *base; /* not owned */
	uint64_t n_bytes;
	uint64_t n_tensors, n_forms, n_pages, n_companions, n_files, n_segments, n_hints;
};

/* The bytes must outlive the index and be 8-byte aligned. INDEX_E_..., with a message. */
int index_init(struct index *index, const void *bytes, uint64_t n_bytes);
/* Everything: names unique and NUL-terminated, extents inside segments, no overlap, sums right. */
int index_check(const struct index *index);

const struct container_index *index_head(const struct index *index);
int index_tensor(const struct index *index, uint64_t id, const struct container_tensor **ret);
int index_tensor_name(const struct index *index, const struct container_tensor *tensor,
		      const char **ret_name);
int index_find(const struct index *index, const char *name, uint64_t *ret_id);
/* The name table: tensor numbers, UINT32_MAX where empty; a power of two, more than tensors. */
int index_name_slots(const struct index *index, const uint32_t **ret_slots, uint64_t *ret_n);
int index_form(const struct index *index, uint64_t form, const struct container_form **ret);
int index_page(const struct index *index, uint64_t page, const struct container_page **ret);
/* Records [first, first + count) of the page table, checked as a range. */
int index_pages(const struct index *index, uint64_t first, uint64_t count,
		const struct container_page **ret);
int index_companion(const struct index *index, uint64_t companion,
		    const struct container_companion **ret);
int index_file(const struct index *index, uint64_t file, const struct container_file **ret);
int index_file_name(const struct index *index, const struct container_file *file,
		    const char **ret_name);
int index_segment(const struct index *index, uint64_t segment,
		  const struct container_segment **ret);

/*
 * The hints of a tensor, the fastest to decode first; none, and 0 records, where the container has
 * none. Hints are advice: of a codec that codec_is_valid() does not know, pass over it.
 */
int index_hints(const struct index *index, uint64_t tensor, const struct container_hint **ret_hints,
		unsigned *ret_n);
/* Record i of all; *ret is checked on its own. */
int index_hint(const struct index *index, uint64_t hint, const struct container_hint **ret);

/* The 2-D view and the pages of a tensor. */
struct index_shape {
	uint64_t n_rows, n_cols, row_bytes;
	uint32_t element_bytes;
	uint64_t n_pages;
	uint32_t rows_per_page; /* 0: a row is longer than a page */
};
int index_shape(const struct container_tensor *tensor, struct index_shape *ret_shape);
/*
 * Where a page lies in a form's extent of `stored_bytes`, whose pages count their offsets from
 * `pages_from`. False: outside of it.
 */
bool index_page_place(const struct container_page *page, uint64_t pages_from,
		      uint64_t stored_bytes, uint64_t *ret_offset);
/* Decoded bytes of page i of the tensor. */
uint64_t index_page_bytes(const struct container_tensor *tensor, uint64_t page);
/* Element size of a dtype (0 unknown) and its safetensors name (NULL unknown), and back. */
uint32_t dtype_bytes(uint32_t dtype);
const char *dtype_name(uint32_t dtype);
uint32_t dtype_from_name(const char *name);

#endif
