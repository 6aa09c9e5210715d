/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segments of a model: sealed memory with stored forms. Owns their slots; frees the memory of one that
 * was retired only when nobody else maps it. Loop thread. Invariant: the generation of a slot never
 * comes twice, so that a client knows a mapping of something older by its number.
 */
#include <assert.h>

#include "placement.h"
#include "store-impl.h"

int segment_add(struct model *model, struct region *region, uint32_t *ret_slot)
{
	struct loaded_model *loaded = &model->loaded;
	uint32_t slot = 0;

	while (slot < loaded->n_segments && loaded->segments[slot].region.fd >= 0)
		slot++;
	if (slot == SHM_MAX_SEGMENTS)
		return STORE_E_BUDGET;
	if (slot == loaded->n_segments) {
		loaded->segments[slot] = (struct segment){.region = REGION_NONE};
		loaded->n_segments++;
	}
	loaded->segments[slot] = (struct segment){
		.region = *region,
		.generation = loaded->segments[slot].generation + 1,
	};
	*region = REGION_NONE;
	placement_set_segment(&loaded->placement, slot, loaded->segments[slot].generation);
	*ret_slot = slot;
	return 0;
}

void segment_retire(struct model *model, uint32_t slot)
{
	struct segment *segment = &model->loaded.segments[slot];

	segment->retired = true;
	charge_move(&segment->region.charge, BUDGET_RETIRED);
	placement_set_segment(&model->loaded.placement, slot, 0);
	(void)segment_settle(model, slot);
}

bool segment_settle(struct model *model, uint32_t slot)
{
	struct segment *segment = &model->loaded.segments[slot];

	if (segment->region.fd < 0)
		return true;
	if (!segment->retired || segment->n_users ||
	    !arena_is_exclusive(model->store, &segment->region, model, UINT32_MAX))
		return false;
	region_close(&segment->region);
	segment->region = REGION_NONE;
	segment->retired = false;
	return true;
}

struct segment *segment_use(struct model *model, uint32_t slot)
{
	struct segment *segment = &model->loaded.segments[slot];

	segment->n_users++;
	return segment;
}

void segment_leave(struct model *model, uint32_t slot)
{
	struct segment *segment = &model->loaded.segments[slot];

	assert(segment->n_users);
	if (--segment->n_users == 0 && segment->retired)
		(void)segment_settle(model, slot);
}
