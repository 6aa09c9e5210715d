/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store: its life, its models and its clockwork. Owns everything that store.h speaks of;
 * refuses what the budget cannot carry. Loop thread. Invariants: store_is_valid().
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "exclusive.h"
#include "hugepage.h"
#include "numa.h"
#include "placement.h"
#include "read-ring.h"
#include "store-impl.h"
#include "tuner.h"

#define TICK_NS (NS_PER_S)
#define CHUNKS_LEAST 32 /* of a model whose windows all fit: small ones can be given back; untuned */
#define TICK_RETIRED_NS (20 * NS_PER_MS) /* between exclusivity tests; untuned */

static int check_config(struct store_config *config)
{
	int r = numa_check(config->numa, config->numa_node);

	if (r)
		return r;
	if (!config->chunk_bytes)
		config->chunk_bytes = 64ULL << 20;
	if (config->chunk_bytes > 1ULL << 40)
		return message_set(STORE_E_INVALID, "chunks of more than 1 TiB");
	config->chunk_bytes = align_up(config->chunk_bytes, HUGEPAGE_BYTES);
	if (!config->n_workers)
		config->n_workers = (uint32_t)sysconf(_SC_NPROCESSORS_ONLN);
	if (!config->max_leases)
		config->max_leases = 1024;
	if (!config->max_user_leases)
		config->max_user_leases = UINT32_MAX;
	config->budget_bytes = budget_effective(config->budget_bytes, budget_cgroup_limit());
	if (!config->budget_bytes)
		return message_set(STORE_E_BUDGET, "the memory limit leaves nothing to hold");
	return 0;
}

int store_new(const struct store_config *config, struct store **ret_store)
{
	struct store_config checked = *config;
	struct store *store;
	int r = check_config(&checked);

	if (r)
		return r;
	store = memory_zalloc(sizeof(*store));
	if (!store)
		return -ENOMEM;
	store->config = checked;
	budget_init(&store->budget, checked.budget_bytes);
	TAILQ_INIT(&store->models);
	TAILQ_INIT(&store->clients);
	TAILQ_INIT(&store->users);
	TAILQ_INIT(&store->waiting);
	store->stats.collapse_works = checked.huge_pages && hugepage_probe();
	store->stats.huge_pages =
		checked.huge_pages && (store->stats.collapse_works || hugepage_is_advised());
	store->stats.exclusivity_works = exclusive_probe();
	store->stats.seals_work = region_seals_work();
	store->stats.load_ring = checked.no_uring ? 1 : read_ring_probe();
	store->stats.n_numa_nodes = numa_n_nodes();
	store->stats.n_workers = checked.n_workers;
	store->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = store->event_fd < 0 ? message_set(-errno, "eventfd: %s", strerror(errno)) : 0;
	if (!r)
		r = pool_new(checked.n_workers, store->event_fd, &store->decoders);
	if (!r)
		r = pool_new(1, store->event_fd, &store->loader);
	if (!r)
		r = tuner_new(store, &store->tuner);
	if (!r && checked.background)
		pool_set_background(store->decoders,
				    (uint32_t)div_up(checked.n_workers * checked.background, 100));
	if (r) {
		store_free(store);
		return r;
	}
	*ret_store = store;
	return 0;
}

static void model_free(struct model *model)
{
	struct store *store = model->store;

	for (uint32_t i = 0; i < model->n_chunk_slots; i++)
		if (model->chunks[i])
			arena_free_chunk(model->chunks[i]);
	loaded_model_close(&model->loaded);
	TAILQ_REMOVE(&store->models, model, link);
	if (model->tuned) {
		memory_free(model->tuned->tensors);
		memory_free(model->tuned->of);
	}
	memory_free(model->tuned);
	memory_free(model->steps);
	memory_free(model->windows);
	memory_free(model->name);
	memory_free(model->path);
	memory_free(model);
}

struct store *store_free(struct store *store)
{
	struct store_client *client;
	struct model *model;

	if (!store)
		return NULL;
	__atomic_store_n(&store->cancelled, true, __ATOMIC_RELAXED);
	tuner_cancel(store->tuner);
	while ((client = TAILQ_FIRST(&store->clients)))
		store_client_free(client, true);
	store->loader = pool_free(store->loader);
	store->decoders = pool_free(store->decoders);
	store->tuner = tuner_free(store->tuner);
	while ((model = TAILQ_FIRST(&store->models)))
		model_free(model);
	close_fd(store->event_fd);
	budget_destroy(&store->budget);
	return memory_free(store);
}

int store_event_fd(const struct store *store)
{
	return store->event_fd;
}

void store_dispatch(struct store *store)
{
	uint64_t count;

	(void)!read(store->event_fd, &count, sizeof(count));
	pool_dispatch(store->loader);
	pool_dispatch(store->decoders);
}

static void set_charges(struct model *model, enum budget_kind segments, enum budget_kind tables)
{
	for (uint32_t i = 0; i < model->loaded.n_segments; i++)
		if (model->loaded.segments[i].region.fd >= 0)
			charge_move(&model->loaded.segments[i].region.charge, segments);
	for (uint32_t i = 0; i < model->loaded.n_files; i++)
		charge_move(&model->loaded.files[i].charge, tables);
	charge_move(&model->loaded.index.charge, tables);
	charge_move(&model->loaded.placement.charge, tables);
}

static int model_publish(struct model *model)
{
	struct store *store = model->store;
	uint64_t n_tensors = model->load.loaded.catalog.n_tensors;
	uint64_t arena = model->load.loaded.coded_bytes + n_tensors * WINDOW_ALIGN;

	model->windows = memory_array(n_tensors ? n_tensors : 1, sizeof(*model->windows));
	model->steps = memory_array(n_tensors ? n_tensors : 1, sizeof(*model->steps));
	if (!model->windows || !model->steps)
		return message_set(-ENOMEM, "no memory for %llu tensors",
				   (unsigned long long)n_tensors);
	for (uint64_t i = 0; i < n_tensors; i++)
		TAILQ_INIT(&model->windows[i]);
	model->loaded = model->load.loaded;
	model->load.loaded = (struct loaded_model){.index = REGION_NONE, .placement = REGION_NONE};
	model->chunk_bytes =
		min_u64(store->config.chunk_bytes, align_up(arena / CHUNKS_LEAST, HUGEPAGE_BYTES));
	set_charges(model, BUDGET_COMPRESSED, BUDGET_INDEX);
	placement_heartbeat(&model->loaded.placement, clock_now_ns());
	model->loading = false;
	return tuner_add_model(store->tuner, model);
}

static void load_done(struct pool_job *job)
{
	struct model_load *load = (struct model_load *)job;
	struct model *model = (struct model *)((char *)load - offsetof(struct model, load));
	const char *message = load->message;
	store_done done = model->done;
	void *data = model->done_data;
	int r = load->result;
	char kept[sizeof(load->message)];

	model->store->stats.loaded_direct_bytes += load->reads.direct_bytes;
	model->store->stats.loaded_cached_bytes += load->reads.cached_bytes;
	model->store->stats.loaded_dropped_bytes += load->reads.dropped_bytes;
	if (!r && model_load_is_over(load)) {
		r = message_set(-ECANCELED, "loading was given up");
		message = message_get();
		loaded_model_close(&load->loaded);
	}
	if (!r) {
		r = model_publish(model);
		if (r) {
			message = message_get();
			loaded_model_close(&load->loaded); /* or the model's, by model_free() */
		}
	}
	memcpy(kept, message, strnlen(message, sizeof(kept) - 1));
	kept[strnlen(message, sizeof(kept) - 1)] = '\0';
	if (r)
		model_free(model);
	done(data, r, kept);
}

static struct model *find_named(const struct store *store, const char *name)
{
	struct model *model;

	TAILQ_FOREACH(model, &store->models, link)
		if (!model->retired && strcmp(model->name, name) == 0)
			return model;
	return NULL;
}

static char *name_of_path(const char *path)
{
	const char *base = strrchr(path, '/');
	size_t n;

	base = base ? base + 1 : path;
	n = strlen(base);
	if (n > 6 && strcmp(base + n - 6, ".dcmem") == 0)
		n -= 6;
	return memory_strndup(base, n);
}

int store_load(struct store *store, const char *path, const char *name, store_done done, void *data)
{
	struct model *model = memory_zalloc(sizeof(*model));

	if (!model)
		return -ENOMEM;
	model->name = name ? memory_strdup(name) : name_of_path(path);
	model->path = memory_strdup(path);
	if (!model->name || !model->path || !*model->name || find_named(store, model->name)) {
		int r = !model->name || !model->path ? -ENOMEM :
			!*model->name ? message_set(STORE_E_INVALID, "a model needs a name") :
					message_set(STORE_E_EXISTS, "model '%s' is there already",
						    model->name);

		memory_free(model->name);
		memory_free(model->path);
		memory_free(model);
		return r;
	}
	model->store = store;
	model->id = ++store->next_model;
	model->loading = true;
	model->done = done;
	model->done_data = data;
	model->loaded = (struct loaded_model){.index = REGION_NONE, .placement = REGION_NONE};
	TAILQ_INIT(&model->attachments);
	model_load_init(&model->load);
	model->load.job.done = load_done;
	model->load.path = model->path;
	model->load.config = &store->config;
	model->load.budget = &store->budget;
	model->load.verifiers = store->decoders;
	model->load.cancelled = &store->cancelled;
	TAILQ_INSERT_TAIL(&store->models, model, link);
	pool_submit(store->loader, &model->load.job, POOL_AHEAD);
	return STORE_PENDING;
}

int store_unload(struct store *store, const char *name)
{
	struct model *model = find_named(store, name);
	struct request *request, *next;

	if (!model)
		return message_set(STORE_E_NOT_FOUND, "no model '%s'", name);
	if (model->loading) {
		__atomic_store_n(&model->load.given_up, true, __ATOMIC_RELAXED);
		return 0;
	}
	model->retired = true;
	tuner_remove_model(store->tuner, model);
	placement_retire(&model->loaded.placement);
	set_charges(model, BUDGET_RETIRED, BUDGET_RETIRED);
	for (uint32_t i = 0; i < model->n_chunk_slots; i++)
		if (model->chunks[i])
			charge_move(&model->chunks[i]->region.charge, BUDGET_RETIRED);
	model->n_decoding++; /* the callbacks may detach: keep the model */
	for (request = TAILQ_FIRST(&store->waiting); request; request = next) {
		next = TAILQ_NEXT(request, link);
		if (request->model != model)
			continue;
		request_fail(request, STORE_E_RETIRED, "the model was unloaded");
		next = TAILQ_FIRST(&store->waiting); /* the callback may have changed the list */
	}
	model->n_decoding--;
	store_settle_model(model);
	return 0;
}

static bool region_retire(struct model *model, struct region *region)
{
	if (region->fd < 0)
		return true;
	if (!arena_is_exclusive(model->store, region, model, UINT32_MAX))
		return false;
	region_close(region);
	return true;
}

/* Frees what of an unloaded model nobody maps any more, and retired chunks of others. */
void store_settle_model(struct model *model)
{
	bool gone = true;

	if (model->loading)
		return;
	for (uint32_t i = 0; i < model->n_chunk_slots; i++) {
		struct chunk *chunk = model->chunks[i];

		if (!chunk)
			continue;
		if (!model->retired || model->n_attachments || model->n_decoding)
			arena_settle(chunk);
		else if (arena_is_exclusive(model->store, &chunk->region, model, i))
			arena_free_chunk(chunk);
		gone = gone && !model->chunks[i];
	}
	for (uint32_t i = 0; i < model->loaded.n_segments; i++)
		if (model->loaded.segments[i].retired)
			(void)segment_settle(model, i);
	if (!model->retired || model->n_attachments || model->n_decoding)
		return;
	/* The table goes after the chunks: freeing one writes its word. */
	if (gone)
		gone = region_retire(model, &model->loaded.placement);
	for (uint32_t i = 0; i < model->loaded.n_segments; i++) {
		model->loaded.segments[i].retired = true;
		gone = segment_settle(model, i) && gone;
	}
	for (uint32_t i = 0; i < model->loaded.n_files; i++)
		gone = region_retire(model, &model->loaded.files[i]) && gone;
	gone = region_retire(model, &model->loaded.index) && gone;
	if (gone)
		model_free(model);
}

static bool has_retired(const struct model *model)
{
	if (model->retired)
		return true;
	for (uint32_t i = 0; i < model->n_chunk_slots; i++)
		if (model->chunks[i] && (model->chunks[i]->retired || model->chunks[i]->has_orphans))
			return true;
	for (uint32_t i = 0; i < model->loaded.n_segments; i++)
		if (model->loaded.segments[i].retired)
			return true;
	return false;
}

bool store_make_room(struct store *store, const struct model *needy, uint64_t n_bytes)
{
	struct model *model;

	for (unsigned mapped_too = 0; mapped_too < 2; mapped_too++) {
		TAILQ_FOREACH(model, &store->models, link)
			if (model != needy && !model->loading && !model->retired)
				arena_yield(model, n_bytes, mapped_too);
	}
	return budget_has_room(&store->budget, n_bytes);
}

static struct request *find_overdue(const struct store *store, uint64_t now)
{
	struct request *request;

	TAILQ_FOREACH(request, &store->waiting, link)
		if (request->deadline_ns <= now)
			return request;
	return NULL;
}

uint64_t store_tick(struct store *store)
{
	uint64_t now = clock_now_ns(), next = now + TICK_NS, wanted;
	bool beat = now - store->heartbeat_ns >= TICK_NS / 2, freed = false;
	struct model *model, *after;
	struct request *request;

	for (model = TAILQ_FIRST(&store->models); model; model = after) {
		after = TAILQ_NEXT(model, link);
		if (model->loading) {
			next = min_u64(next, now + TICK_RETIRED_NS);
			wanted = __atomic_load_n(&model->load.wanted, __ATOMIC_ACQUIRE);
			if (wanted)
				(void)store_make_room(store, model, wanted);
			continue;
		}
		if (beat && model->loaded.placement.data)
			placement_heartbeat(&model->loaded.placement, now);
		if (has_retired(model)) {
			next = min_u64(next, now + TICK_RETIRED_NS);
			store_settle_model(model);
			freed = true;
		}
	}
	if (beat) {
		store->heartbeat_ns = now;
		tuner_tick(store->tuner, now);
	}
	if (freed) {
		tuner_continue(store->tuner);
		store_retry_waiting(store);
		store_send_back(store, now);
	}
	while ((request = find_overdue(store, now))) {
		store->stats.refused_budget++;
		request_fail(request, STORE_E_BUDGET,
			     "no room for the window: the arena is pinned by leases");
	}
	TAILQ_FOREACH(request, &store->waiting, link)
		next = min_u64(next, request->deadline_ns);
	return next;
}

int store_find_tensor(struct store *store, const char *model_name, const char *name,
		      struct store_tensor *ret_tensor)
{
	const struct model *model = find_named(store, model_name);
	const struct container_tensor *tensor;
	struct index_shape shape;
	uint64_t id;
	int r;

	if (!model || model->loading)
		return message_set(STORE_E_NOT_FOUND, "no model '%s'", model_name);
	r = index_find(&model->loaded.catalog, name, &id);
	if (r == INDEX_E_NOT_FOUND)
		return message_set(STORE_E_NOT_FOUND, "model '%s' has no tensor '%s'", model_name,
				   name);
	if (!r)
		r = index_tensor(&model->loaded.catalog, id, &tensor);
	if (!r)
		r = index_shape(tensor, &shape);
	if (r)
		return r;
	*ret_tensor = (struct store_tensor){
		.id = id,
		.n_bytes = tensor->n_bytes,
		.n_pages = shape.n_pages,
		.page_bytes = tensor->page_bytes,
		.dtype = tensor->dtype,
	};
	return 0;
}
