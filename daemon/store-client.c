/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients of a store: attachments, requests and leases. Owns them; refuses models that a client has
 * not attached, ranges that a tensor does not have, and new grants to those who hold too many or
 * too long. Loop thread. Invariant: a request is in one list of windows or waiters, and is answered
 * once unless its client goes.
 */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "placement.h"
#include "store-impl.h"

#define WAIT_NS (5 * NS_PER_S) /* for room: longer than any sweep holds a window; untuned */

int store_client_new(struct store *store, uid_t uid, pid_t pid, struct store_client **ret_client)
{
	struct store_client *client = memory_zalloc(sizeof(*client));

	if (!client)
		return message_set(-ENOMEM, "no memory for a client");
	client->store = store;
	client->uid = uid;
	client->pid = pid;
	TAILQ_INIT(&client->attachments);
	TAILQ_INIT(&client->held);
	TAILQ_INIT(&client->free);
	TAILQ_INIT(&client->requests);
	TAILQ_INSERT_TAIL(&store->clients, client, link);
	*ret_client = client;
	return 0;
}

static void request_free(struct request *request)
{
	struct store_client *client = request->client;

	if (request->window)
		TAILQ_REMOVE(&request->window->joined, request, link);
	else
		TAILQ_REMOVE(&client->store->waiting, request, link);
	TAILQ_REMOVE(&client->requests, request, in_client);
	client->n_requests--;
	memory_free(request);
}

void request_fail(struct request *request, int result, const char *message)
{
	store_acquired acquired = request->acquired;
	void *data = request->data;

	request_free(request);
	acquired(data, result, NULL, message);
}

void request_grant(struct request *request, struct window *window)
{
	store_acquired acquired = request->acquired;
	void *data = request->data;
	struct store_window granted;
	int r = window_grant(request->client, window, &granted);

	request_free(request);
	acquired(data, r, r ? NULL : &granted, r ? message_get() : "");
}

static struct attachment *find_attachment(const struct store_client *client, uint64_t model)
{
	struct attachment *attachment;

	TAILQ_FOREACH(attachment, &client->attachments, in_client)
		if (attachment->model->id == model)
			return attachment;
	message_set(STORE_E_NOT_FOUND, "model %llu is not attached", (unsigned long long)model);
	return NULL;
}

static void attachment_free(struct attachment *attachment, bool orderly)
{
	struct store_client *client = attachment->client;
	struct model *model = attachment->model;
	struct request *request, *next_request;
	struct lease *lease, *next_lease;

	for (request = TAILQ_FIRST(&client->requests); request; request = next_request) {
		next_request = TAILQ_NEXT(request, in_client);
		if (request->model == model)
			request_free(request);
	}
	for (lease = TAILQ_FIRST(&client->held); lease; lease = next_lease) {
		next_lease = TAILQ_NEXT(lease, link);
		if (lease->window->model == model)
			window_release(client, lease, !orderly);
	}
	TAILQ_REMOVE(&client->attachments, attachment, in_client);
	TAILQ_REMOVE(&model->attachments, attachment, in_model);
	model->n_attachments--;
	memory_free(attachment);
	store_settle_model(model);
}

struct store_client *store_client_free(struct store_client *client, bool orderly)
{
	struct attachment *attachment;
	struct store *store;

	if (!client)
		return NULL;
	store = client->store;
	while ((attachment = TAILQ_FIRST(&client->attachments)))
		attachment_free(attachment, orderly);
	for (uint32_t i = 0; i < client->n_slots; i++)
		memory_free(client->slots[i]);
	memory_free(client->slots);
	TAILQ_REMOVE(&store->clients, client, link);
	memory_free(client);
	store_retry_waiting(store);
	return NULL;
}

static struct model *find_ready(const struct store *store, const char *name)
{
	struct model *model;

	TAILQ_FOREACH(model, &store->models, link)
		if (!model->retired && !model->loading && strcmp(model->name, name) == 0)
			return model;
	return NULL;
}

int store_attach(struct store_client *client, const char *name, struct store_attachment *ret)
{
	struct model *model = find_ready(client->store, name);
	struct attachment *attachment;
	_cleanup_(cleanup_fd) int index_fd = -1;
	_cleanup_(cleanup_fd) int placement_fd = -1;
	int r;

	if (!model)
		return message_set(STORE_E_NOT_FOUND, "no model '%s'", name);
	r = region_reopen(&model->loaded.index, &index_fd);
	if (!r)
		r = region_reopen(&model->loaded.placement, &placement_fd);
	if (r)
		return r;
	attachment = find_attachment(client, model->id);
	if (!attachment) {
		attachment = memory_zalloc(sizeof(*attachment));
		if (!attachment)
			return message_set(-ENOMEM, "no memory for an attachment");
		attachment->client = client;
		attachment->model = model;
		TAILQ_INSERT_TAIL(&client->attachments, attachment, in_client);
		TAILQ_INSERT_TAIL(&model->attachments, attachment, in_model);
		model->n_attachments++;
	}
	attachment->count++;
	*ret = (struct store_attachment){
		.model = model->id,
		.n_tensors = model->loaded.catalog.n_tensors,
		.index_bytes = model->loaded.index.n_bytes,
		.placement_bytes = model->loaded.placement.n_bytes,
		.n_segments = model->loaded.n_segments,
		.index_fd = take_fd(&index_fd),
		.placement_fd = take_fd(&placement_fd),
	};
	memcpy(ret->fingerprint, model->loaded.fingerprint, sizeof(ret->fingerprint));
	return 0;
}

int store_detach(struct store_client *client, uint64_t model)
{
	struct attachment *attachment = find_attachment(client, model);

	if (!attachment)
		return STORE_E_NOT_FOUND;
	if (--attachment->count)
		return 0;
	attachment_free(attachment, true);
	store_retry_waiting(client->store);
	return 0;
}

int store_segment_fd(struct store_client *client, uint64_t model, uint32_t segment, int *ret_fd,
		     uint64_t *ret_bytes)
{
	struct attachment *attachment = find_attachment(client, model);
	int r;

	if (!attachment)
		return STORE_E_NOT_FOUND;
	if (segment >= attachment->model->loaded.n_segments)
		return message_set(STORE_E_INVALID, "the model has no segment %u", segment);
	r = region_reopen(&attachment->model->loaded.segments[segment], ret_fd);
	if (!r)
		*ret_bytes = attachment->model->loaded.segments[segment].n_bytes;
	return r;
}

int store_file_fd(struct store_client *client, uint64_t model, uint32_t file, int *ret_fd,
		  uint64_t *ret_bytes)
{
	struct attachment *attachment = find_attachment(client, model);
	const struct container_file *record;
	int r;

	if (!attachment)
		return STORE_E_NOT_FOUND;
	if (file >= attachment->model->loaded.n_files)
		return message_set(STORE_E_INVALID, "the model has no file %u", file);
	r = index_file(&attachment->model->loaded.catalog, file, &record);
	if (!r)
		r = region_reopen(&attachment->model->loaded.files[file], ret_fd);
	if (!r)
		*ret_bytes = record->blob_bytes;
	return r;
}

int store_chunk_fd(struct store_client *client, uint64_t model, uint32_t chunk, int *ret_fd,
		   uint64_t *ret_bytes)
{
	struct attachment *attachment = find_attachment(client, model);
	const struct chunk *found;
	int r;

	if (!attachment)
		return STORE_E_NOT_FOUND;
	found = chunk < SHM_MAX_CHUNKS ? attachment->model->chunks[chunk] : NULL;
	if (!found)
		return message_set(STORE_E_INVALID, "the arena has no chunk %u", chunk);
	r = region_reopen(&found->region, ret_fd);
	if (r)
		return r;
	attachment->told[chunk] = TOLD;
	*ret_bytes = found->region.n_bytes;
	return 0;
}

int store_chunk_ack(struct store_client *client, uint64_t model, uint32_t chunk)
{
	struct attachment *attachment = find_attachment(client, model);

	if (!attachment)
		return STORE_E_NOT_FOUND;
	if (chunk >= SHM_MAX_CHUNKS)
		return message_set(STORE_E_INVALID, "no arena has a chunk %u", chunk);
	/* Of a chunk that is gone, or twice: harmless. */
	if (attachment->told[chunk] == TOLD)
		attachment->told[chunk] = TOLD_ACKED;
	if (attachment->model->chunks[chunk])
		arena_settle(attachment->model->chunks[chunk]);
	store_retry_waiting(client->store);
	return 0;
}

static int check_range(const struct model *model, uint64_t tensor_id, uint64_t first_page,
		       uint64_t n_pages)
{
	const struct container_tensor *tensor;
	struct index_shape shape;
	int r;

	if (tensor_id >= model->loaded.catalog.n_tensors)
		return message_set(STORE_E_INVALID, "the model has no tensor %llu",
				   (unsigned long long)tensor_id);
	r = index_tensor(&model->loaded.catalog, tensor_id, &tensor);
	if (!r)
		r = index_shape(tensor, &shape);
	if (r)
		return r;
	if (!n_pages || !range_fits(first_page, n_pages, shape.n_pages))
		return message_set(STORE_E_INVALID,
				   "pages %llu and %llu more are not of a tensor of %llu",
				   (unsigned long long)first_page, (unsigned long long)n_pages,
				   (unsigned long long)shape.n_pages);
	return 0;
}

static int check_client(const struct store_client *client)
{
	struct store *store = client->store;
	const struct lease *oldest = TAILQ_FIRST(&client->held);
	uint64_t deadline = store->config.lease_deadline_ms * NS_PER_MS;

	if (oldest && deadline && clock_now_ns() - oldest->granted_ns > deadline) {
		store->stats.refused_overdue++;
		return message_set(STORE_E_OVERDUE,
				   "a lease is held for more than %u ms: release it first",
				   store->config.lease_deadline_ms);
	}
	if (client->n_held + client->n_requests >= store->config.max_leases) {
		store->stats.refused_budget++;
		return message_set(STORE_E_BUDGET, "%u leases are held, the most a client may have",
				   client->n_held + client->n_requests);
	}
	return 0;
}

/* Will anything ever make room? Leases, decodes, or memory that waits for its last reader. */
static bool may_get_room(const struct store *store)
{
	const struct model *model;
	struct budget budget;

	budget_get((struct budget *)(uintptr_t)&store->budget, &budget);
	if (store->stats.n_leases || budget.used[BUDGET_RETIRED] || budget.used[BUDGET_INFLIGHT])
		return true;
	TAILQ_FOREACH(model, &store->models, link)
		if (model->n_decoding)
			return true;
	return false;
}

/* The window that serves a range: there already, or its decode begun. */
static int find_or_start(struct model *model, uint64_t tensor, uint64_t first_page,
			 uint64_t n_pages, struct window **ret_window)
{
	struct store_stats *stats = &model->store->stats;
	struct window *window = window_find(model, tensor, first_page, n_pages, false);
	int r;

	if (window) {
		stats->window_joins += window->decoding;
		stats->window_hits += !window->decoding;
		*ret_window = window;
		return 0;
	}
	r = window_start(model, tensor, first_page, n_pages, false, ret_window);
	if (!r)
		stats->window_misses++;
	if (r != STORE_E_BUDGET)
		return r;
	/* A retired chunk should empty; but its bytes are good, and there is no room for others. */
	window = window_find(model, tensor, first_page, n_pages, true);
	if (!window)
		return r;
	stats->window_hits++;
	*ret_window = window;
	return 0;
}

int store_acquire(struct store_client *client, uint64_t model_id, uint64_t tensor,
		  uint64_t first_page, uint64_t n_pages, store_acquired acquired, void *data,
		  struct store_window *ret_window)
{
	struct attachment *attachment = find_attachment(client, model_id);
	struct store *store = client->store;
	struct window *window = NULL;
	struct request *request;
	struct model *model;
	int r;

	if (!attachment)
		return STORE_E_NOT_FOUND;
	model = attachment->model;
	if (model->retired)
		return message_set(STORE_E_RETIRED, "model '%s' was unloaded", model->name);
	r = check_range(model, tensor, first_page, n_pages);
	if (!r)
		r = check_client(client);
	if (r)
		return r;
	r = find_or_start(model, tensor, first_page, n_pages, &window);
	if (!r && !window->decoding)
		return window_grant(client, window, ret_window);
	if (r == STORE_E_BUDGET && !may_get_room(store)) {
		store->stats.refused_budget++;
		return message_set(r, "no room for a window of %llu pages: raise the budget",
				   (unsigned long long)n_pages);
	}
	if (r && r != STORE_E_BUDGET)
		return r;
	request = memory_zalloc(sizeof(*request));
	if (!request)
		return message_set(-ENOMEM, "no memory for a request");
	*request = (struct request){
		.client = client,
		.model = model,
		.window = window,
		.tensor = tensor,
		.first_page = first_page,
		.n_pages = n_pages,
		.deadline_ns = clock_now_ns() + WAIT_NS,
		.acquired = acquired,
		.data = data,
	};
	if (window)
		TAILQ_INSERT_TAIL(&window->joined, request, link);
	else
		TAILQ_INSERT_TAIL(&store->waiting, request, link);
	TAILQ_INSERT_TAIL(&client->requests, request, in_client);
	client->n_requests++;
	return STORE_PENDING;
}

void store_retry_waiting(struct store *store)
{
	struct request *request, *next;

	for (request = TAILQ_FIRST(&store->waiting); request; request = next) {
		struct window *window;
		int r = find_or_start(request->model, request->tensor, request->first_page,
				      request->n_pages, &window);

		next = TAILQ_NEXT(request, link);
		if (r == STORE_E_BUDGET)
			return; /* those behind it shall not overtake it for ever */
		if (r) {
			request_fail(request, r, message_get());
			next = TAILQ_FIRST(&store->waiting); /* the callback may change the list */
		} else if (window->decoding) {
			TAILQ_REMOVE(&store->waiting, request, link);
			request->window = window;
			TAILQ_INSERT_TAIL(&window->joined, request, link);
		} else {
			request_grant(request, window);
			next = TAILQ_FIRST(&store->waiting);
		}
	}
}

int store_release(struct store_client *client, uint64_t id)
{
	uint32_t slot = (uint32_t)id - 1; /* 0 wraps to a slot that nobody has */
	struct lease *lease = slot < client->n_slots ? client->slots[slot] : NULL;
	struct model *model;

	if (!lease || !lease->window || lease->generation != id >> 32)
		return message_set(STORE_E_INVALID, "no lease %llu", (unsigned long long)id);
	model = lease->window->model;
	window_release(client, lease, false);
	store_settle_model(model);
	store_retry_waiting(client->store);
	return 0;
}

int store_prefetch(struct store_client *client, uint64_t model_id, uint64_t tensor,
		   uint64_t first_page, uint64_t n_pages)
{
	struct attachment *attachment = find_attachment(client, model_id);
	struct window *window;
	int r;

	if (!attachment)
		return STORE_E_NOT_FOUND;
	if (attachment->model->retired || !TAILQ_EMPTY(&client->store->waiting))
		return 0; /* it is a hint, and others want the room now */
	r = check_range(attachment->model, tensor, first_page, n_pages);
	if (r)
		return r;
	if (window_find(attachment->model, tensor, first_page, n_pages, false))
		return 0;
	if (window_start(attachment->model, tensor, first_page, n_pages, true, &window) == 0)
		client->store->stats.prefetches++;
	return 0;
}
