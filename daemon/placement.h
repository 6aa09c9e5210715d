/* SPDX-License-Identifier: Apache-2.0 */
/* The placement table of a model (include/dcmem/shm.h): the daemon's, the writer's, half. */
#ifndef DCMEM_PLACEMENT_H
#define DCMEM_PLACEMENT_H

#include "model/index.h"
#include "region.h"

/* How the daemon holds a tensor: the stored form that the record tells of. */
struct held {
	const struct container_page *pages; /* in the index, or in the segment */
	uint64_t page_record, pages_from;
	uint64_t offset, stored_bytes; /* in the segment */
	uint32_t segment;	       /* slot; UINT32_MAX: no bytes are stored */
	uint32_t segment_generation;
	uint32_t generation; /* grows with every change */
	bool raw, own_pages;
};

uint64_t placement_bytes(uint64_t n_tensors);
/* The form that serves a tensor: the one of lowest rank that covers all its pages. */
int placement_form(const struct index *index, const struct container_tensor *tensor,
		   const struct container_form **ret_form);
/* Creates and seals the table. The caller charges it, and writes every record. */
int placement_create(uint64_t n_tensors, struct region *ret_region);
void placement_write(struct region *region, uint64_t tensor, const struct held *held);
/* The generation of what lies in the slot; 0 retires it and moves the epoch on. */
void placement_set_segment(struct region *region, uint32_t segment, uint32_t generation);
void placement_heartbeat(struct region *region, uint64_t now_ns);
void placement_retire(struct region *region);
/* SHM_CHUNK_...; RETIRED moves the epoch on. */
void placement_set_chunk(struct region *region, uint32_t chunk, uint32_t state);

#endif
