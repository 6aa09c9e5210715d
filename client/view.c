/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Views: the table of lease numbers, and blocks decoded into this process. A number is a slot and
 * the slot's generation, so that a view released twice is noticed and harmless. Tables are under
 * model->lock; blocks are decoded outside it.
 */
#include "client.h"

#include <string.h>

#include "base/range.h"

int lease_new(struct dcmem *model, uint64_t *ret_number, struct client_lease **ret_lease)
{
	struct client_lease *lease;
	uint32_t slot;

	if (model->free_lease == 0) {
		void *leases = model->leases;
		int r = memory_grow(&leases, &model->leases_capacity, model->n_leases,
				    model->n_leases + 1, sizeof(*model->leases));

		if (r < 0 || model->n_leases >= UINT32_MAX - 1)
			return message_set(-ENOMEM, "no memory for another view");
		model->leases = leases;
		slot = (uint32_t)model->n_leases++;
		memset(&model->leases[slot], 0, sizeof(*model->leases));
	} else {
		slot = model->free_lease - 1;
		model->free_lease = model->leases[slot].next_free;
	}
	lease = &model->leases[slot];
	*lease = (struct client_lease){.generation = lease->generation + 1, .used = true};
	*ret_number = ((uint64_t)lease->generation << 32) | (slot + 1);
	*ret_lease = lease;
	return 0;
}

struct client_lease *lease_find(struct dcmem *model, uint64_t number)
{
	uint64_t slot = (number & UINT32_MAX) - 1;
	struct client_lease *lease;

	if (slot >= model->n_leases)
		return NULL;
	lease = &model->leases[slot];
	return lease->used && lease->generation == number >> 32 ? lease : NULL;
}

void lease_free(struct dcmem *model, uint64_t number)
{
	struct client_lease *lease = lease_find(model, number);

	if (!lease)
		return;
	lease->used = false;
	lease->next_free = model->free_lease;
	model->free_lease = (uint32_t)(number & UINT32_MAX);
}

static void block_free(struct client_block *block)
{
	memory_free(block->bytes);
	memory_free(block);
}

static struct client_block *block_find(const struct dcmem *model, uint64_t tensor, uint64_t row,
				       uint64_t n_rows)
{
	struct client_block *b = model->blocks;

	while (b && !(b->tensor == tensor && b->row == row && b->n_rows == n_rows))
		b = b->next;
	return b;
}

static void block_unref(struct dcmem *model, struct client_block *block)
{
	struct client_block **link = &model->blocks;

	if (--block->n_views > 0)
		return;
	while (*link != block)
		link = &(*link)->next;
	*link = block->next;
	block_free(block);
}

static int block_new(struct dcmem *model, const struct client_tensor *tensor, uint64_t row,
		     uint64_t n_rows, struct client_block **ret_block)
{
	struct client_block *block = memory_zalloc(sizeof(*block));
	uint64_t row_bytes = tensor->shape.row_bytes;
	int r = -ENOMEM;

	if (block)
		block->bytes = memory_alloc(n_rows * row_bytes);
	if (!block || !block->bytes) {
		message_set(r, "no memory for %llu decoded bytes",
			    (unsigned long long)(n_rows * row_bytes));
		goto error;
	}
	r = read_bytes(model, tensor, row * row_bytes, n_rows * row_bytes, block->bytes);
	if (r != 0)
		goto error;
	block->tensor = tensor->id;
	block->row = row;
	block->n_rows = n_rows;
	*ret_block = block;
	return 0;
error:
	if (block)
		block_free(block);
	return r;
}

int view_acquire_private(struct dcmem *model, const struct client_tensor *tensor, uint64_t row,
			 uint64_t n_rows, struct dcmem_view *ret_view)
{
	struct client_block *block, *fresh = NULL;
	struct client_lease *lease;
	uint64_t number;
	int r;

	pthread_mutex_lock(&model->lock);
	block = block_find(model, tensor->id, row, n_rows);
	if (!block) {
		pthread_mutex_unlock(&model->lock);
		r = block_new(model, tensor, row, n_rows, &fresh);
		if (r != 0)
			return r;
		pthread_mutex_lock(&model->lock);
		block = block_find(model, tensor->id, row, n_rows);
	}
	r = lease_new(model, &number, &lease);
	if (r == 0) {
		if (!block) {
			block = TAKE(fresh);
			block->next = model->blocks;
			model->blocks = block;
		}
		block->n_views++;
		lease->block = block;
	}
	pthread_mutex_unlock(&model->lock);
	if (fresh)
		block_free(fresh);
	if (r != 0)
		return r;
	*ret_view = (struct dcmem_view){.data = block->bytes,
					.n_bytes = n_rows * tensor->shape.row_bytes,
					.row = row,
					.n_rows = n_rows,
					.lease = number,
					.kind = DCMEM_VIEW_PRIVATE};
	return 0;
}

/* Gives a private view back, with model->lock held. */
void view_release(struct dcmem *model, uint64_t number)
{
	struct client_lease *lease = lease_find(model, number);

	if (lease && lease->block) {
		block_unref(model, lease->block);
		lease_free(model, number);
	}
}

void view_free_all(struct dcmem *model)
{
	while (model->blocks) {
		struct client_block *block = model->blocks;

		model->blocks = block->next;
		block_free(block);
	}
	model->leases = memory_free(model->leases);
}
