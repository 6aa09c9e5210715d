/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Arenas: the chunks of a model's decoded bytes. Owns chunks and blocks; recycles only blocks that
 * nobody leases, decodes into or may still look at. Loop thread, but for preparing a chunk.
 * Invariant: the blocks of a chunk tile it, and no two free ones touch.
 */
#include <assert.h>
#include <errno.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "exclusive.h"
#include "hugepage.h"
#include "placement.h"
#include "store-impl.h"
#include "tuner.h"

#define SWEPT 0.5		 /* order from which on a model counts as swept; untuned */
#define DEAD_NS (10 * NS_PER_S) /* untuned: longer than most sweeps take */

void arena_prepare_chunk(struct chunk *chunk, bool huge_pages)
{
	pthread_mutex_lock(&chunk->prepare_mutex);
	if (!chunk->prepared && huge_pages)
		(void)hugepage_populate(chunk->region.data, chunk->region.n_bytes);
	chunk->prepared = true;
	pthread_mutex_unlock(&chunk->prepare_mutex);
}

static struct block *block_new(struct chunk *chunk, uint64_t offset, uint64_t size)
{
	struct block *block = memory_zalloc(sizeof(*block));

	if (block) {
		block->chunk = chunk;
		block->offset = offset;
		block->size = size;
	}
	return block;
}

/* Takes the front of a free block. NULL: no memory. */
static struct block *take(struct block *block, uint64_t size)
{
	struct block *rest;

	if (block->size == size)
		return block;
	rest = block_new(block->chunk, block->offset + size, block->size - size);
	if (!rest)
		return NULL;
	block->size = size;
	TAILQ_INSERT_AFTER(&block->chunk->blocks, block, rest, link);
	return block;
}

static void merge_next(struct block *block)
{
	struct block *next = TAILQ_NEXT(block, link);

	if (!next || next->window)
		return;
	block->size += next->size;
	TAILQ_REMOVE(&block->chunk->blocks, next, link);
	memory_free(next);
}

void arena_release_block(struct block *block)
{
	struct block *previous = TAILQ_PREV(block, block_list, link);

	block->window = NULL;
	merge_next(block);
	if (previous && !previous->window)
		merge_next(previous);
}

static int chunk_new(struct model *model, uint64_t n_bytes, struct chunk **ret_chunk)
{
	struct store *store = model->store;
	struct chunk *chunk;
	struct charge charge;
	struct block *all = NULL;
	uint32_t id = 0;
	int r;

	while (id < SHM_MAX_CHUNKS && model->chunks[id])
		id++;
	if (id == SHM_MAX_CHUNKS)
		return message_set(STORE_E_BUDGET, "the arena has %u chunks, the most it can have",
				   SHM_MAX_CHUNKS);
	/* A model's first chunk may take what is reserved: without it nothing could be read. */
	if (model->n_chunks && !budget_has_room(&store->budget, n_bytes + store->reserve_bytes))
		return message_set(STORE_E_BUDGET, "the rest of the budget is reserved");
	r = budget_charge(&store->budget, BUDGET_DECODED, n_bytes, &charge);
	if (r)
		return r;
	chunk = memory_zalloc(sizeof(*chunk));
	if (chunk)
		all = block_new(chunk, 0, n_bytes);
	if (!all) {
		memory_free(chunk);
		charge_release(&charge);
		return message_set(-ENOMEM, "no memory for a chunk");
	}
	r = region_create("dcmem-arena", n_bytes, &store->config, &chunk->region);
	if (r) {
		memory_free(all);
		memory_free(chunk);
		charge_release(&charge);
		return r;
	}
	chunk->region.charge = charge;
	r = region_seal_written(&chunk->region);
	if (r) {
		region_close(&chunk->region);
		memory_free(all);
		memory_free(chunk);
		return r;
	}
	chunk->model = model;
	chunk->id = id;
	TAILQ_INIT(&chunk->blocks);
	TAILQ_INSERT_HEAD(&chunk->blocks, all, link);
	(void)pthread_mutex_init(&chunk->prepare_mutex, NULL);
	model->chunks[id] = chunk;
	model->n_chunks++;
	model->n_chunk_slots = (uint32_t)max_u64(model->n_chunk_slots, id + 1);
	placement_set_chunk(&model->loaded.placement, id, SHM_CHUNK_LIVE);
	store->stats.n_chunks++;
	*ret_chunk = chunk;
	return 0;
}

void arena_free_chunk(struct chunk *chunk)
{
	struct model *model = chunk->model;
	struct attachment *attachment;
	struct block *block;

	assert(!chunk->n_leases && !chunk->n_decoding);
	TAILQ_FOREACH(block, &chunk->blocks, link)
		if (block->window)
			block->window->orphaned = false;
	for (;;) {
		TAILQ_FOREACH(block, &chunk->blocks, link)
			if (block->window)
				break;
		if (!block)
			break;
		window_drop(block->window);
	}
	while ((block = TAILQ_FIRST(&chunk->blocks))) {
		TAILQ_REMOVE(&chunk->blocks, block, link);
		memory_free(block);
	}
	placement_set_chunk(&model->loaded.placement, chunk->id, SHM_CHUNK_UNUSED);
	TAILQ_FOREACH(attachment, &model->attachments, in_model)
		attachment->told[chunk->id] = TOLD_NOT;
	region_close(&chunk->region);
	model->chunks[chunk->id] = NULL;
	model->n_chunks--;
	model->store->stats.n_chunks--;
	(void)pthread_mutex_destroy(&chunk->prepare_mutex);
	memory_free(chunk);
}

bool arena_is_exclusive(const struct store *store, const struct region *region,
			const struct model *model, uint32_t chunk)
{
	const struct attachment *attachment;

	if (store->stats.exclusivity_works)
		return exclusive_test(region);
	TAILQ_FOREACH(attachment, &model->attachments, in_model)
		if (chunk == UINT32_MAX || attachment->told[chunk] == TOLD)
			return false;
	return true;
}

static void chunk_adopt_orphans(struct chunk *chunk)
{
	struct block *block;

	TAILQ_FOREACH(block, &chunk->blocks, link) {
		if (!block->window || !block->window->orphaned)
			continue;
		block->window->orphaned = false;
		chunk->model->store->stats.orphans_freed++;
	}
	chunk->has_orphans = false;
}

/* Takes back what clients keep there; true if no lease is left. */
static bool chunk_reclaim(struct chunk *chunk)
{
	struct block *block;

	TAILQ_FOREACH(block, &chunk->blocks, link)
		if (block->window)
			(void)window_reclaim(block->window);
	return !chunk->n_leases;
}

static bool chunk_is_used(const struct chunk *chunk)
{
	const struct block *block;

	TAILQ_FOREACH(block, &chunk->blocks, link)
		if (block->window && window_is_used(block->window))
			return true;
	return false;
}

static void chunk_retire(struct chunk *chunk)
{
	chunk->retired = true;
	charge_move(&chunk->region.charge, BUDGET_RETIRED);
	placement_set_chunk(&chunk->model->loaded.placement, chunk->id, SHM_CHUNK_RETIRED);
	(void)chunk_reclaim(chunk);
}

void arena_settle(struct chunk *chunk)
{
	struct model *model = chunk->model;

	if (!chunk->has_orphans && !chunk->retired)
		return;
	if (!arena_is_exclusive(model->store, &chunk->region, model, chunk->id)) {
		if (!chunk->retired)
			chunk_retire(chunk);
		return;
	}
	chunk_adopt_orphans(chunk);
	if (chunk->retired && chunk_reclaim(chunk) && !chunk->n_decoding)
		arena_free_chunk(chunk);
}

/* Room that there is, or will be once clients have unmapped what was retired. */
static bool room_is_coming(struct store *store, uint64_t n_bytes)
{
	struct budget now;

	budget_get(&store->budget, &now);
	return n_bytes + now.total <= now.limit + now.used[BUDGET_RETIRED];
}

void arena_yield(struct model *model, uint64_t n_bytes, bool mapped_too)
{
	struct store *store = model->store;

	for (uint32_t i = 0; i < model->n_chunk_slots; i++) {
		struct chunk *chunk = model->chunks[i];

		if (!chunk || chunk->retired || chunk->has_orphans || chunk->n_decoding ||
		    chunk_is_used(chunk))
			continue;
		if (mapped_too ? room_is_coming(store, n_bytes)
			       : budget_has_room(&store->budget, n_bytes))
			return;
		if (arena_is_exclusive(store, &chunk->region, model, i)) {
			if (chunk_reclaim(chunk))
				arena_free_chunk(chunk);
		} else if (mapped_too && chunk_reclaim(chunk)) {
			chunk_retire(chunk);
		}
	}
}

static struct block *find_free(struct model *model, uint64_t size)
{
	for (uint32_t i = 0; i < model->n_chunk_slots; i++) {
		struct chunk *chunk = model->chunks[i];
		struct block *block;

		if (!chunk || chunk->retired)
			continue;
		TAILQ_FOREACH(block, &chunk->blocks, link)
			if (!block->window && block->size >= size)
				return block;
	}
	return NULL;
}

static bool can_recycle(const struct block *block, bool gentle)
{
	const struct window *window = block->window;

	return !window || (!window_is_used(window) && !window->decoding && !window->orphaned &&
			   !window->pinned && !(gentle && window->fresh));
}

double arena_streams(const struct model *model)
{
	const struct tuned_model *tuned = model->tuned;
	double share = tuned && tuned->share > 1 ? tuned->share : 1;

	return tuned && tuned->readers > share ? tuned->readers / share : 1;
}

/*
 * Which windows go first. Where a model is swept and does not fit, the last to be read again is what
 * was read just now: most windows stay, and the rest of the sweep streams through as few others as
 * its readers need. Where access is random, it is the longest unused.
 */
enum recycle_rank {
	RANK_DEAD,     /* of a tensor that is raw now, or not looked at for long */
	RANK_STREAMED,
	RANK_RESIDENT,
};

static bool is_swept(const struct model *model)
{
	return model->tuned && model->tuned->order > SWEPT;
}

static enum recycle_rank rank_of(const struct window *window, uint64_t now, bool ring_is_full)
{
	const struct model *model = window->model;

	if (model->loaded.held[window->tensor].raw || now - window->touched_ns > DEAD_NS)
		return RANK_DEAD;
	if (!is_swept(model))
		return RANK_RESIDENT;
	return window->streamed == ring_is_full ? RANK_STREAMED : RANK_RESIDENT;
}

struct run {
	struct block *first, *last;
	enum recycle_rank rank; /* the highest in it */
	uint64_t stamp;		/* the latest use in it */
};

/* From `first` on, recyclable neighbours that hold `size`. False: there are none. */
static bool measure_run(struct block *first, uint64_t size, bool gentle, uint64_t now, bool ring_is_full,
			struct run *ret_run)
{
	struct run run = {.first = first};
	uint64_t sum = 0;

	for (struct block *block = first; block && can_recycle(block, gentle);
	     block = TAILQ_NEXT(block, link)) {
		sum += block->size;
		if (block->window) {
			run.rank = max_u64(run.rank, rank_of(block->window, now, ring_is_full));
			run.stamp = max_u64(run.stamp, block->window->stamp);
		}
		if (sum >= size) {
			run.last = block;
			*ret_run = run;
			return true;
		}
	}
	return false;
}

static bool goes_before(const struct run *a, const struct run *b)
{
	return a->rank != b->rank ? a->rank < b->rank : a->stamp < b->stamp;
}

/* The ring holds what every stream needs: a window in use, those ahead, and one for who lags. */
static bool ring_is_full(const struct model *model)
{
	return (double)model->streamed_bytes >=
	       arena_streams(model) * (double)model->largest_window * (2 + ACQUIRE_AHEAD);
}

/* Evicts the run of neighbours that is needed again the latest. NULL: none is large enough. */
static struct block *recycle(struct model *model, uint64_t size, bool gentle)
{
	struct run best = {0}, run;
	uint64_t now = clock_now_ns();
	bool full = ring_is_full(model);

	for (uint32_t i = 0; i < model->n_chunk_slots; i++) {
		struct chunk *chunk = model->chunks[i];
		struct block *block;

		if (!chunk || chunk->retired)
			continue;
		TAILQ_FOREACH(block, &chunk->blocks, link)
			if (block->window)
				window_look(block->window);
		TAILQ_FOREACH(block, &chunk->blocks, link)
			if (measure_run(block, size, gentle, now, full, &run) &&
			    (!best.first || goes_before(&run, &best)))
				best = run;
	}
	if (!best.first)
		return NULL;
	/* From the end, so that the first is never merged into a block before it goes itself. */
	for (struct block *block = best.last;; ) {
		struct block *previous = TAILQ_PREV(block, block_list, link);

		if (block->window) {
			if (!window_reclaim(block->window))
				break; /* taken up again in this moment */
			window_drop(block->window);
			model->store->stats.evictions++;
		}
		if (block == best.first)
			break;
		block = previous;
	}
	return find_free(model, size);
}

int arena_place(struct model *model, uint64_t size, bool gentle, struct block **ret_block,
		bool *ret_recycled)
{
	struct block *block = find_free(model, size);
	uint64_t least = align_up(size, HUGEPAGE_BYTES);
	struct chunk *chunk;
	bool recycled = false;
	int r = 0;

	if (!block) {
		r = chunk_new(model, max_u64(model->chunk_bytes, least), &chunk);
		if (!r)
			block = TAILQ_FIRST(&chunk->blocks);
		else if (r == STORE_E_BUDGET)
			block = recycle(model, size, gentle);
		else
			return r;
		recycled = r && block;
	}
	if (!block && least < model->chunk_bytes) {
		r = chunk_new(model, least, &chunk);
		if (!r)
			block = TAILQ_FIRST(&chunk->blocks);
	}
	if (!block)
		return r;
	block = take(block, size);
	if (!block)
		return message_set(-ENOMEM, "no memory for a window");
	*ret_block = block;
	*ret_recycled = recycled;
	return 0;
}

bool arena_is_valid(const struct model *model)
{
	for (uint32_t i = 0; i < SHM_MAX_CHUNKS; i++) {
		const struct chunk *chunk = model->chunks[i];
		const struct block *block, *previous = NULL;
		uint64_t at = 0, n_leases = 0;

		if (!chunk)
			continue;
		if (i >= model->n_chunk_slots || chunk->id != i)
			return false;
		TAILQ_FOREACH(block, &chunk->blocks, link) {
			if (block->offset != at || block->offset % WINDOW_ALIGN || !block->size)
				return false;
			if (previous && !previous->window && !block->window)
				return false;
			if (block->window) {
				if (block->window->block != block)
					return false;
				n_leases += block->window->n_leases;
			}
			at += block->size;
			previous = block;
		}
		if (at != chunk->region.n_bytes || n_leases != chunk->n_leases)
			return false;
	}
	return true;
}
