/* SPDX-License-Identifier: Apache-2.0 */
/* Which tensors share a segment in memory: large ones have one alone, so that it can be replaced. */
#ifndef DCMEM_LAYOUT_H
#define DCMEM_LAYOUT_H

#include "dcmem/shm.h"
#include "placement.h"

#define LAYOUT_BLOCK 4096 /* as the container aligns its segments; enough for direct reads */

/*
 * Bytes of the file that lie together in a segment; every member is a multiple of LAYOUT_BLOCK. The
 * last may end behind the segment, in its last page.
 */
struct layout_extent {
	uint64_t file_offset, offset, n_bytes;
};

struct layout_segment {
	uint64_t n_bytes;
	uint64_t first, count; /* in layout.order, as they lie in it */
	uint64_t first_extent, n_extents;
	bool alone;	       /* one stored form, of one tensor and those that share its bytes */
};

struct layout {
	struct layout_segment *segments;
	uint32_t n_segments;
	uint64_t *order; /* tensors that own stored bytes */
	uint64_t n_order;
	struct layout_extent *extents;
	uint64_t n_extents;
	uint64_t *owners; /* of each tensor: the one whose bytes it has; itself mostly */
};

/*
 * Lays out the forms that will be held, and says in `held` (one a tensor) where each goes. Free the
 * layout with layout_deinit() after any outcome.
 */
int layout_init(struct layout *layout, const struct index *index, struct held *held);
void layout_deinit(struct layout *layout);

#endif
