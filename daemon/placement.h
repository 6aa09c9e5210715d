/* SPDX-License-Identifier: Apache-2.0 */
/* The placement table of a model (include/dcmem/shm.h): the daemon's, the writer's, half. */
#ifndef DCMEM_PLACEMENT_H
#define DCMEM_PLACEMENT_H

#include "model/index.h"
#include "region.h"

uint64_t placement_bytes(uint64_t n_tensors);
/* The form that serves a tensor: the one of lowest rank that covers all its pages. */
int placement_form(const struct index *index, const struct container_tensor *tensor,
		   const struct container_form **ret_form);
/* Creates, fills and seals the table of every tensor. The caller charges it. */
int placement_create(const struct index *index, struct region *ret_region);
void placement_heartbeat(struct region *region, uint64_t now_ns);
void placement_retire(struct region *region);
/* SHM_CHUNK_...; RETIRED moves the epoch on. */
void placement_set_chunk(struct region *region, uint32_t chunk, uint32_t state);

#endif
