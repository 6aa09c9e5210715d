/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Placement tables. Writes every shared word through lib/proto/shared.h and reads none back but the
 * epoch, which clients cannot write. Created by the loader thread, then the loop thread's.
 */
#include "placement.h"

#include <string.h>

#include "base/message.h"
#include "base/range.h"
#include "proto/shared.h"

static uint64_t chunks_offset(uint64_t n_tensors)
{
	return sizeof(struct shm_placement_header) + n_tensors * sizeof(struct shm_placement);
}

uint64_t placement_bytes(uint64_t n_tensors)
{
	return align_up(chunks_offset(n_tensors) +
				(SHM_MAX_CHUNKS + SHM_MAX_SEGMENTS) * sizeof(uint32_t),
			4096);
}

int placement_form(const struct index *index, const struct container_tensor *tensor,
		   const struct container_form **ret_form)
{
	const struct container_form *best = NULL;
	struct index_shape shape;
	int r = index_shape(tensor, &shape);

	for (uint32_t i = 0; i < tensor->n_forms && !r; i++) {
		const struct container_form *form;

		r = index_form(index, tensor->first_form + i, &form);
		if (!r && form->first_page == 0 && form->n_pages == shape.n_pages &&
		    (!best || form->rank < best->rank))
			best = form;
	}
	if (r)
		return r;
	if (!best)
		return message_set(STORE_E_UNSUPPORTED, "no form covers the whole tensor");
	*ret_form = best;
	return 0;
}

int placement_create(uint64_t n_tensors, struct region *ret_region)
{
	struct shm_placement_header *header;
	struct region region;
	int r = region_create("dcmem-placement", placement_bytes(n_tensors), NULL, &region);

	if (r)
		return r;
	header = region.data;
	*header = (struct shm_placement_header){
		.magic = SHM_PLACEMENT_MAGIC,
		.version = 2,
		.n_tensors = n_tensors,
		.n_chunks = SHM_MAX_CHUNKS,
		.records_offset = sizeof(*header),
		.chunks_offset = chunks_offset(n_tensors),
		.n_segments = SHM_MAX_SEGMENTS,
	};
	r = region_seal_written(&region);
	if (r) {
		region_close(&region);
		return r;
	}
	*ret_region = region;
	return 0;
}

void placement_write(struct region *region, uint64_t tensor, const struct held *held)
{
	struct shm_placement_header *header = region->data;
	struct shm_placement *records = (struct shm_placement *)(header + 1);
	struct shm_placement value = {
		.generation = held->generation,
		.flags = held->raw ? SHM_PLACEMENT_RAW : 0,
		.pages_segment = SHM_PAGES_IN_INDEX,
	};

	if (held->segment != UINT32_MAX) { /* else nothing is stored */
		value.segment = held->segment;
		value.segment_generation = held->segment_generation;
		value.offset = held->offset;
		value.stored_bytes = held->stored_bytes;
		value.page_record = held->page_record;
		value.pages_from = held->pages_from;
		if (held->own_pages)
			value.pages_segment = held->segment;
	}
	shared_placement_write(&records[tensor], &value);
}

void placement_heartbeat(struct region *region, uint64_t now_ns)
{
	struct shm_placement_header *header = region->data;

	shared_store_relaxed_64(&header->heartbeat_ns, now_ns);
}

void placement_retire(struct region *region)
{
	struct shm_placement_header *header = region->data;

	shared_store_release(&header->retired, 1);
}

void placement_set_chunk(struct region *region, uint32_t chunk, uint32_t state)
{
	struct shm_placement_header *header = region->data;
	uint32_t *words = (uint32_t *)((uint8_t *)region->data + header->chunks_offset);

	shared_store_release(&words[chunk], state);
	if (state == SHM_CHUNK_RETIRED)
		shared_store_release(&header->chunk_epoch,
				     shared_load_relaxed(&header->chunk_epoch) + 1);
}

void placement_set_segment(struct region *region, uint32_t segment, uint32_t generation)
{
	struct shm_placement_header *header = region->data;
	uint32_t *words = (uint32_t *)((uint8_t *)region->data + header->chunks_offset);

	shared_store_release(&words[SHM_MAX_CHUNKS + segment], generation);
	if (!generation)
		shared_store_release(&header->segment_epoch,
				     shared_load_relaxed(&header->segment_epoch) + 1);
}
