/* SPDX-License-Identifier: Apache-2.0 */
/* What a store counts, and whether it is sound. Owns nothing, changes nothing. Loop thread. */
#include <string.h>

#include "base/memory.h"
#include "store-impl.h"

/* Kept ones that nobody uses are the daemon's to take back: they do not count. */
static uint64_t count_leases(const struct window *window)
{
	const struct lease *lease;
	uint64_t n = 0;

	TAILQ_FOREACH(lease, &window->leases, in_window)
		n += lease_is_used(lease);
	return n;
}

static uint64_t count_model_leases(const struct model *model)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < model->n_chunk_slots; i++) {
		const struct block *block;

		if (!model->chunks[i])
			continue;
		TAILQ_FOREACH(block, &model->chunks[i]->blocks, link)
			n += block->window ? count_leases(block->window) : 0;
	}
	return n;
}

static void count_windows(const struct model *model, struct store_stats *stats)
{
	for (uint32_t i = 0; i < model->n_chunk_slots; i++) {
		const struct block *block;

		if (!model->chunks[i])
			continue;
		TAILQ_FOREACH(block, &model->chunks[i]->blocks, link) {
			if (block->window && window_is_used(block->window))
				stats->leased_bytes += block->window->n_bytes;
			if (block->window && block->window->orphaned)
				stats->orphaned_bytes += block->window->n_bytes;
		}
	}
}

void store_get_stats(const struct store *store, struct store_stats *ret_stats)
{
	struct store_stats stats = store->stats;
	const struct store_client *client;
	const struct model *model;
	struct budget budget;

	/* The mutex of a const store is still a mutex. */
	budget_get((struct budget *)(uintptr_t)&store->budget, &budget);
	stats.n_leases = 0;
	stats.budget_bytes = budget.limit;
	stats.peak_bytes = budget.peak;
	stats.compressed_bytes = budget.used[BUDGET_COMPRESSED];
	stats.index_bytes = budget.used[BUDGET_INDEX];
	stats.decoded_bytes = budget.used[BUDGET_DECODED];
	stats.inflight_bytes = budget.used[BUDGET_INFLIGHT];
	stats.retired_bytes = budget.used[BUDGET_RETIRED];
	TAILQ_FOREACH(model, &store->models, link) {
		stats.n_models += !model->loading && !model->retired;
		count_windows(model, &stats);
		stats.n_leases += count_model_leases(model);
	}
	TAILQ_FOREACH(client, &store->clients, link)
		stats.n_clients++;
	*ret_stats = stats;
}

void store_visit_models(const struct store *store,
			void (*visit)(void *data, const struct store_model_stats *model), void *data)
{
	const struct model *model;

	TAILQ_FOREACH(model, &store->models, link) {
		struct store_model_stats stats = {
			.name = model->name,
			.path = model->path,
			.decodes = model->decodes,
			.n_clients = model->n_attachments,
			.n_leases = count_model_leases(model),
			.loading = model->loading,
			.retired = model->retired,
		};

		if (!model->loading) {
			memcpy(stats.fingerprint, model->loaded.fingerprint,
			       sizeof(stats.fingerprint));
			stats.n_tensors = model->loaded.catalog.n_tensors;
			stats.decoded_model_bytes = model->loaded.decoded_bytes;
		}
		for (uint32_t i = 0; !model->loading && i < model->loaded.n_segments; i++)
			stats.compressed_bytes += model->loaded.segments[i].region.charge.n_bytes;
		for (uint32_t i = 0; i < model->n_chunk_slots; i++)
			if (model->chunks[i])
				stats.arena_bytes += model->chunks[i]->region.n_bytes;
		visit(data, &stats);
	}
}

bool store_is_valid(const struct store *store)
{
	uint64_t sum = 0, charged = 0, n_chunks = 0, n_leases = 0, n_held = 0;
	const struct store_client *client;
	const struct model *model;
	struct budget budget;
	bool loading = false;

	budget_get((struct budget *)(uintptr_t)&store->budget, &budget);
	for (unsigned i = 0; i < BUDGET_N_KINDS; i++)
		sum += budget.used[i];
	if (sum != budget.total || budget.total > budget.limit || budget.peak > budget.limit)
		return false;
	TAILQ_FOREACH(model, &store->models, link) {
		loading = loading || model->loading;
		if (!arena_is_valid(model))
			return false;
		n_leases += model->n_leases;
		for (uint32_t i = 0; i < model->n_chunk_slots; i++) {
			n_chunks += model->chunks[i] != NULL;
			charged += model->chunks[i] ? model->chunks[i]->region.charge.n_bytes : 0;
		}
		for (uint32_t i = 0; !model->loading && i < model->loaded.n_segments; i++)
			charged += model->loaded.segments[i].region.charge.n_bytes;
		for (uint32_t i = 0; !model->loading && i < model->loaded.n_files; i++)
			charged += model->loaded.files[i].charge.n_bytes;
		charged += model->loaded.index.charge.n_bytes +
			   model->loaded.placement.charge.n_bytes;
	}
	TAILQ_FOREACH(client, &store->clients, link) {
		n_held += client->n_held;
		charged += client->shared.charge.n_bytes;
	}
	return n_chunks == store->stats.n_chunks && n_leases == store->stats.n_leases &&
	       n_held == n_leases && (loading || charged == budget.total);
}
