/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The layout of a model in memory. A segment is sealed as a whole and freed as a whole, so a tensor
 * that is to be held another way some day must not lie in one with others: large tensors get a
 * segment each, small ones, which are not worth changing, share. What lies side by side in the file stays so,
 * and has the same place in its 4 KiB block, so that it can be read past the page cache in large
 * pieces: the bytes before and after it in its first and last block come along. Loader thread.
 */
#include "layout.h"

#include <errno.h>
#include <stdlib.h>

#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"

#define ALONE_BYTES (256ULL << 10) /* stored, from which on changing one may pay; untuned */
#define ALONE_MOST 1024		   /* segments of one tensor: descriptors and mappings are finite */
#define SHARED_BYTES (64ULL << 20)

struct placed {
	const struct container_form *form;
	uint64_t tensor;
	uint64_t file_offset; /* its first byte */
};

static int compare_places(const void *a, const void *b)
{
	const struct placed *x = a, *y = b;

	return x->file_offset < y->file_offset ? -1 : x->file_offset > y->file_offset;
}

static int add_segment(struct layout *layout, bool alone, uint64_t first)
{
	if (layout->n_segments == SHM_MAX_SEGMENTS)
		return message_set(STORE_E_UNSUPPORTED, "a model of more than %u segments",
				   SHM_MAX_SEGMENTS);
	layout->segments[layout->n_segments++] =
		(struct layout_segment){.first = first, .first_extent = layout->n_extents,
					.alone = alone};
	return 0;
}

/* Behind what is there: in its last extent, if the file has it there too. */
static int append(struct layout *layout, struct layout_segment *segment,
		  const struct placed *placed, uint64_t *ret_offset)
{
	uint64_t in_block = placed->file_offset % LAYOUT_BLOCK, offset, end, bytes;
	struct layout_extent *extent = NULL;

	if (segment->n_extents) {
		extent = &layout->extents[layout->n_extents - 1];
		offset = placed->file_offset - extent->file_offset + extent->offset;
		if (placed->file_offset < extent->file_offset || offset < segment->n_bytes ||
		    offset - segment->n_bytes >= LAYOUT_BLOCK)
			extent = NULL;
	}
	if (!extent) {
		extent = &layout->extents[layout->n_extents];
		*extent = (struct layout_extent){
			.file_offset = placed->file_offset - in_block,
			.offset = align_up(segment->n_bytes, LAYOUT_BLOCK),
		};
		if (!range_add(extent->offset, in_block, &offset))
			return message_set(STORE_E_CORRUPT, "segments of more than 2^64 bytes");
		layout->n_extents++;
		segment->n_extents++;
	}
	if (!range_add(offset, placed->form->stored_bytes, &end) ||
	    !range_add(end, LAYOUT_BLOCK, &bytes))
		return message_set(STORE_E_CORRUPT, "segments of more than 2^64 bytes");
	segment->n_bytes = end;
	extent->n_bytes = align_up(end, LAYOUT_BLOCK) - extent->offset;
	*ret_offset = offset;
	return 0;
}

static int place(struct layout *layout, struct held *held, const struct placed *placed, uint64_t n,
		 uint64_t alone_bytes)
{
	struct layout_segment *shared = NULL;
	uint64_t next = 0;
	int r;

	/* Two rounds, so that the tensors of a segment lie side by side in the order. */
	for (unsigned alone = 0; alone < 2; alone++) {
		for (uint64_t i = 0; i < n; i++) {
			const struct container_form *form = placed[i].form;
			struct held *h = &held[placed[i].tensor];
			struct layout_segment *segment;

			if ((form->stored_bytes >= alone_bytes) != alone)
				continue;
			if (alone || !shared || shared->n_bytes >= SHARED_BYTES) {
				r = add_segment(layout, alone, next);
				if (r)
					return r;
				shared = &layout->segments[layout->n_segments - 1];
			}
			segment = shared;
			h->segment = (uint32_t)(segment - layout->segments);
			r = append(layout, segment, &placed[i], &h->offset);
			if (r)
				return r;
			segment->count++;
			layout->order[next++] = placed[i].tensor;
		}
	}
	layout->n_order = next;
	return 0;
}

/* The form of every tensor, and which tensors have the bytes of an earlier one. */
static int collect(struct layout *layout, const struct index *index, struct held *held,
		   uint64_t *form_owners, struct placed *placed, uint64_t *ret_n, uint64_t *ret_bytes)
{
	uint64_t n = 0, n_bytes = 0;

	for (uint64_t id = 0; id < index->n_tensors; id++) {
		const struct container_tensor *tensor;
		const struct container_segment *segment = NULL;
		const struct container_form *form;
		const char *name = "?";
		int r = index_tensor(index, id, &tensor);

		if (r)
			return r;
		held[id] = (struct held){.segment = UINT32_MAX, .generation = 1, .raw = true};
		layout->owners[id] = id;
		if (!tensor->n_bytes)
			continue;
		r = placement_form(index, tensor, &form);
		if (!r)
			r = index_pages(index, form->page_record, form->n_pages, &held[id].pages);
		if (!r)
			r = index_segment(index, form->segment, &segment);
		if (r) {
			(void)index_tensor_name(index, tensor, &name);
			return message_prefix(r, "tensor '%s'", name);
		}
		held[id].page_record = form->page_record;
		held[id].pages_from = form->offset;
		held[id].stored_bytes = form->stored_bytes;
		held[id].raw = form->flags & CONTAINER_FORM_RAW;
		held[id].segment_generation = 1;
		if (form_owners[tensor->first_form]) { /* checked: placement_form() has read it */
			layout->owners[id] = form_owners[tensor->first_form] - 1;
			continue;
		}
		form_owners[tensor->first_form] = id + 1;
		placed[n++] = (struct placed){form, id, segment->offset + form->offset};
		if (!range_add(n_bytes, form->stored_bytes, &n_bytes))
			return message_set(STORE_E_CORRUPT, "forms of more than 2^64 bytes");
	}
	*ret_n = n;
	*ret_bytes = n_bytes;
	return 0;
}

int layout_init(struct layout *layout, const struct index *index, struct held *held)
{
	_cleanup_(cleanup_memory) uint64_t *form_owners = NULL;
	_cleanup_(cleanup_memory) struct placed *placed = NULL;
	uint64_t n_tensors = index->n_tensors ? index->n_tensors : 1, n = 0, n_bytes = 0;
	int r;

	*layout = (struct layout){0};
	layout->segments = memory_array(SHM_MAX_SEGMENTS, sizeof(*layout->segments));
	layout->order = memory_array(n_tensors, sizeof(*layout->order));
	layout->extents = memory_array(n_tensors, sizeof(*layout->extents));
	layout->owners = memory_array(n_tensors, sizeof(*layout->owners));
	placed = memory_array(n_tensors, sizeof(*placed));
	form_owners = memory_array(index->n_forms ? index->n_forms : 1, sizeof(*form_owners));
	if (!layout->segments || !layout->order || !layout->extents || !layout->owners || !placed || !form_owners)
		return message_set(-ENOMEM, "no memory to lay out %llu tensors",
				   (unsigned long long)index->n_tensors);
	r = collect(layout, index, held, form_owners, placed, &n, &n_bytes);
	if (r)
		return r;
	qsort(placed, n, sizeof(*placed), compare_places);
	r = place(layout, held, placed, n, max_u64(ALONE_BYTES, n_bytes / ALONE_MOST));
	if (r)
		return r;
	for (uint64_t id = 0; id < index->n_tensors; id++) {
		const struct held *owner = &held[layout->owners[id]];

		held[id].segment = owner->segment;
		held[id].offset = owner->offset;
	}
	return 0;
}

void layout_deinit(struct layout *layout)
{
	layout->segments = memory_free(layout->segments);
	layout->order = memory_free(layout->order);
	layout->extents = memory_free(layout->extents);
	layout->owners = memory_free(layout->owners);
}
