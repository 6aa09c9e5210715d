/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests for windows and leases on them. Owns requests; refuses ranges that a tensor does not
 * have, and new grants to those who hold too many or too long. Loop thread. Invariant: a request
 * is in one list, of a window's joiners or of those who wait for room, and is answered once unless
 * its client goes.
 */
#include <errno.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "store-impl.h"
#include "tuner.h"

#define SEND_BACK_NS (20 * NS_PER_MS) /* untuned */
#define WAIT_NS (5 * NS_PER_S) /* for room: longer than any sweep holds a window; untuned */

void request_free(struct request *request)
{
	struct store_client *client = request->client;

	if (request->window)
		TAILQ_REMOVE(&request->window->joined, request, link);
	else
		TAILQ_REMOVE(&client->store->waiting, request, link);
	TAILQ_REMOVE(&client->requests, request, in_client);
	client->n_requests--;
	client->user->n_held--;
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

/* The one held longest without having been given back; kept ones that are not in use do not count. */
static const struct lease *find_oldest(struct store_client *client, uint64_t before_ns)
{
	struct lease *lease = TAILQ_FIRST(&client->held), *next;

	for (; lease && lease->granted_ns < before_ns; lease = next) {
		next = TAILQ_NEXT(lease, link);
		if (!lease->word)
			return lease;
		if (lease_is_used(lease) &&
		    __atomic_load_n(lease->word, __ATOMIC_RELAXED) == lease->seen)
			return lease;
		/* Looked at again a deadline later at the earliest. */
		lease->seen = __atomic_load_n(lease->word, __ATOMIC_RELAXED);
		lease->granted_ns = clock_now_ns();
		TAILQ_REMOVE(&client->held, lease, link);
		TAILQ_INSERT_TAIL(&client->held, lease, link);
	}
	return NULL;
}

static int check_client(struct store_client *client)
{
	struct store *store = client->store;
	uint64_t deadline = store->config.lease_deadline_ms * NS_PER_MS, now = clock_now_ns();
	const struct lease *oldest = deadline < now ? find_oldest(client, now - deadline) : NULL;

	if (oldest && deadline && clock_now_ns() - oldest->granted_ns > deadline) {
		store->stats.refused_overdue++;
		return message_set(STORE_E_OVERDUE,
				   "a lease is held for more than %u ms: release it first",
				   store->config.lease_deadline_ms);
	}
	if (client->user->n_held >= store->config.max_user_leases)
		client_reclaim(client, 1);
	if (client->user->n_held >= store->config.max_user_leases) {
		store->stats.refused_budget++;
		return message_set(STORE_E_BUDGET, "%u leases are held by user %u, the most one may have",
				   client->user->n_held, (unsigned)client->user->uid);
	}
	if (client->n_held + client->n_requests >= store->config.max_leases)
		client_reclaim(client, 1);
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
	if (store->stats.n_leases || budget.used[BUDGET_RETIRED] || budget.used[BUDGET_INFLIGHT] ||
	    tuner_may_shrink(store->tuner))
		return true;
	TAILQ_FOREACH(model, &store->models, link)
		if (model->n_decoding)
			return true;
	return false;
}

/*
 * Notes in which order a client reads: on within a tensor, or from the end of one to the tensor that
 * came after it the last time.
 */
static void note_order(struct attachment *attachment, uint64_t tensor, uint64_t first_page,
		       uint64_t n_pages)
{
	struct model *model = attachment->model;
	uint64_t last = attachment->last_tensor;
	bool in_order = tensor == last ? first_page == attachment->last_end && first_page
				       : model->steps[last].next == tensor + 1;

	model->n_acquired++;
	model->n_in_order += in_order;
	attachment->n_in_order = in_order ? attachment->n_in_order + 1 : 0;
	if (tensor != last)
		model->steps[last].next = (uint32_t)tensor + 1;
	if (first_page == 0)
		model->steps[tensor].n_pages = (uint32_t)min_u64(n_pages, UINT32_MAX);
	attachment->last_tensor = tensor;
	attachment->last_end = first_page + n_pages;
}

static uint64_t n_pages_of(const struct model *model, uint64_t id)
{
	const struct container_tensor *tensor;
	struct index_shape shape;

	if (index_tensor(&model->loaded.catalog, id, &tensor) || index_shape(tensor, &shape))
		return 0;
	return shape.n_pages;
}

/*
 * Begins the windows that a sweep will ask for next. Who goes another way costs others at most the
 * decodes that nobody waits for, and only where there is room that nobody waits for either.
 */
static void read_ahead(struct attachment *attachment, uint64_t n_pages)
{
	struct model *model = attachment->model;
	uint64_t tensor = attachment->last_tensor, at = attachment->last_end;

	if (attachment->n_in_order < ACQUIRE_AHEAD || !TAILQ_EMPTY(&model->store->waiting))
		return;
	for (unsigned i = 0; i < ACQUIRE_AHEAD; i++) {
		uint64_t end = n_pages_of(model, tensor);
		struct window *window;

		for (unsigned skipped = 0; at >= end; skipped++) {
			if (!model->steps[tensor].next || skipped == 64)
				return;
			tensor = model->steps[tensor].next - 1;
			at = 0;
			end = model->loaded.held[tensor].raw ? 0 : n_pages_of(model, tensor);
			n_pages = model->steps[tensor].n_pages;
		}
		n_pages = min_u64(n_pages, end - at);
		if (!n_pages)
			return;
		if (!window_find(model, tensor, at, n_pages, false)) {
			if (window_start(model, tensor, at, n_pages, NULL, &window))
				return;
			model->store->stats.prefetches++;
		}
		at += n_pages;
	}
}

/* The window that serves a range: there already, or its decode begun. */
static int find_or_start(struct store_client *client, struct model *model, uint64_t tensor,
			 uint64_t first_page, uint64_t n_pages, struct window **ret_window)
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
	r = window_start(model, tensor, first_page, n_pages, client, ret_window);
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

/*
 * Who waits for room stands in turns: a client's next request comes after what it was served last, by
 * its bytes, and users of many clients have no more turns than others. FIFO among equals.
 */
static void queue_up(struct store_client *client, struct request *request)
{
	struct store *store = client->store;
	struct request *before = TAILQ_LAST(&store->waiting, request_list);

	request->tag = max_u64(client->tag, store->turn);
	client->tag = request->tag + request->n_pages * client->user->n_clients;
	while (before && before->tag > request->tag)
		before = TAILQ_PREV(before, request_list, link);
	if (before)
		TAILQ_INSERT_AFTER(&store->waiting, before, request, link);
	else
		TAILQ_INSERT_HEAD(&store->waiting, request, link);
}

int store_acquire(struct store_client *client, uint64_t model_id, uint64_t tensor,
		  uint64_t first_page, uint64_t n_pages, store_acquired acquired, void *data,
		  struct store_window *ret_window)
{
	struct attachment *attachment = client_find_attachment(client, model_id);
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
	note_order(attachment, tensor, first_page, n_pages);
	r = find_or_start(client, model, tensor, first_page, n_pages, &window);
	if (r == STORE_E_BUDGET && store_make_room(store, model, model->chunk_bytes))
		r = find_or_start(client, model, tensor, first_page, n_pages, &window);
	if (r == STORE_E_BUDGET && TAILQ_EMPTY(&store->waiting)) {
		store_reclaim(store); /* from now on, whoever uses one tells when he gives it back */
		r = find_or_start(client, model, tensor, first_page, n_pages, &window);
	}
	if (!r && !window->decoding) {
		r = window_grant(client, window, ret_window);
		if (!r)
			read_ahead(attachment, n_pages);
		return r;
	}
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
		.began_ns = clock_now_ns(),
		.deadline_ns = clock_now_ns() + WAIT_NS,
		.acquired = acquired,
		.data = data,
	};
	if (window)
		TAILQ_INSERT_TAIL(&window->joined, request, link);
	else
		queue_up(client, request);
	TAILQ_INSERT_TAIL(&client->requests, request, in_client);
	client->n_requests++;
	client->user->n_held++;
	if (window)
		read_ahead(attachment, n_pages);
	return STORE_PENDING;
}

void store_send_back(struct store *store, uint64_t now)
{
	struct request *request, *next;

	for (request = TAILQ_FIRST(&store->waiting); request; request = next) {
		next = TAILQ_NEXT(request, link);
		if (!request->client->asks_again || now - request->began_ns < SEND_BACK_NS)
			continue;
		request_fail(request, -EAGAIN, "memory that was retired must be unmapped first");
		next = TAILQ_FIRST(&store->waiting); /* the callback may change the list */
	}
}

void store_retry_waiting(struct store *store)
{
	struct request *request, *next;

	for (request = TAILQ_FIRST(&store->waiting); request; request = next) {
		struct window *window;
		int r = find_or_start(request->client, request->model, request->tensor,
				      request->first_page, request->n_pages, &window);

		next = TAILQ_NEXT(request, link);
		if (r != STORE_E_BUDGET)
			store->turn = max_u64(store->turn, request->tag);
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

	/* Of a lease that was kept and taken back in the meantime: both were right. */
	if (lease && slot < client->n_words && lease->generation != id >> 32)
		return 0;
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
	struct attachment *attachment = client_find_attachment(client, model_id);
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
	if (window_start(attachment->model, tensor, first_page, n_pages, NULL, &window) == 0)
		client->store->stats.prefetches++;
	return 0;
}
