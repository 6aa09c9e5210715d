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
	return align_up(chunks_offset(n_tensors) + SHM_MAX_CHUNKS * sizeof(uint32_t), 4096);
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

static int fill_record(const struct index *index, uint64_t id, struct shm_placement *record)
{
	const struct container_tensor *tensor;
	const struct container_form *form;
	struct shm_placement value = {.generation = 1, .pages_segment = SHM_PAGES_IN_INDEX};
	int r = index_tensor(index, id, &tensor);

	if (r)
		return r;
	if (tensor->n_bytes == 0) { /* nothing is stored */
		value.flags = SHM_PLACEMENT_RAW;
		shared_placement_write(record, &value);
		return 0;
	}
	r = placement_form(index, tensor, &form);
	if (r) {
		const char *name = "?";

		(void)index_tensor_name(index, tensor, &name);
		return message_prefix(r, "tensor '%s'", name);
	}
	value.segment = form->segment;
	value.flags = form->flags & CONTAINER_FORM_RAW ? SHM_PLACEMENT_RAW : 0;
	value.offset = form->offset;
	value.stored_bytes = form->stored_bytes;
	value.page_record = form->page_record;
	shared_placement_write(record, &value);
	return 0;
}

int placement_create(const struct index *index, struct region *ret_region)
{
	struct shm_placement_header *header;
	struct shm_placement *records;
	struct region region;
	int r = region_create("dcmem-placement", placement_bytes(index->n_tensors), NULL, &region);

	if (r)
		return r;
	header = region.data;
	records = (struct shm_placement *)(header + 1);
	*header = (struct shm_placement_header){
		.magic = SHM_PLACEMENT_MAGIC,
		.version = 1,
		.n_tensors = index->n_tensors,
		.n_chunks = SHM_MAX_CHUNKS,
		.records_offset = sizeof(*header),
		.chunks_offset = chunks_offset(index->n_tensors),
	};
	for (uint64_t i = 0; i < index->n_tensors && !r; i++)
		r = fill_record(index, i, &records[i]);
	if (!r)
		r = region_seal_written(&region);
	if (r) {
		region_close(&region);
		return r;
	}
	*ret_region = region;
	return 0;
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
