/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bytes of a container that nothing refers to: zeros, or somebody put something there. Reads
 * the gaps alone, so it costs little beside the hashes.
 */
#include "model/padding.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"

#define PIECE 65536U

struct extent {
	uint64_t start, end;
};

struct extents {
	struct extent *extents;
	uint64_t n, capacity;
};

static void add(struct extents *all, uint64_t start, uint64_t n_bytes)
{
	if (n_bytes && all->n < all->capacity)
		all->extents[all->n++] = (struct extent){start, start + n_bytes};
}

/* The index was checked: every number here is in range, and pages lie in their forms. */
static int add_forms(struct extents *all, const struct index *index)
{
	for (uint64_t i = 0; i < index->n_forms; i++) {
		const struct container_segment *segment;
		const struct container_form *form;
		const struct container_page *pages;
		int r = index_form(index, i, &form);

		if (!r)
			r = index_segment(index, form->segment, &segment);
		if (!r)
			r = index_pages(index, form->page_record, form->n_pages, &pages);
		if (r)
			return r;
		for (uint64_t p = 0; p < form->n_pages; p++)
			add(all, segment->offset + pages[p].offset, pages[p].stored_bytes);
	}
	return 0;
}

static int compare(const void *a, const void *b)
{
	const struct extent *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

static int check_gap(const struct container *container, uint64_t start, uint64_t end)
{
	uint8_t bytes[PIECE];

	for (uint64_t at = start; at < end; at += PIECE) {
		size_t n = (size_t)min_u64(PIECE, end - at);
		int r = io_read_at(container->fd, bytes, n, at);

		if (r)
			return message_set(r < 0 ? r : -EIO, "cannot read the padding at %llu",
					   (unsigned long long)at);
		for (size_t i = 0; i < n; i++) {
			if (bytes[i])
				return message_set(INDEX_E_CORRUPT, "the padding at %llu is not zero",
						   (unsigned long long)(at + i));
		}
	}
	return 0;
}

int padding_check(const struct container *container)
{
	const struct index *index = &container->index;
	const struct container_header *header = &container->header;
	_cleanup_(cleanup_memory) struct extent *extents =
		memory_array(index->n_pages + index->n_files + 2, sizeof(*extents));
	struct extents all = {extents, 0, index->n_pages + index->n_files + 2};
	uint64_t at = 0;
	int r;

	if (!extents)
		return message_set(-ENOMEM, "no memory to check the padding");
	add(&all, 0, header->header_bytes);
	add(&all, header->index_offset, header->index_bytes);
	r = add_forms(&all, index);
	for (uint64_t i = 0; r == 0 && i < index->n_files; i++) {
		const struct container_file *file;

		r = index_file(index, i, &file);
		if (r == 0)
			add(&all, file->blob_offset, file->blob_bytes);
	}
	if (r)
		return r;
	qsort(extents, all.n, sizeof(*extents), compare);
	for (uint64_t i = 0; i < all.n; i++) {
		r = check_gap(container, at, extents[i].start);
		if (r)
			return r;
		at = max_u64(at, extents[i].end);
	}
	return check_gap(container, at, header->file_bytes);
}
