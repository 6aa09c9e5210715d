/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Windows: page ranges decoded once into an arena, and leases on them. Owns windows and the decodes
 * in flight; a page that fails its hashes takes its window with it. Loop thread; pages are decoded
 * by the decode threads, which see only the decode's own copies of what they need.
 * Invariant: a window being decoded is never dropped, and nobody is granted it before it is whole.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "model/container.h"
#include "placement.h"
#include "proto/shared.h"
#include "store-impl.h"

struct page_job {
	struct pool_job job;
	struct decode *decode;
	uint64_t page; /* of the window */
};

struct decode {
	struct window *window; /* the loop thread's */
	struct chunk *chunk;
	bool huge_pages;
	const char *name;
	const struct container_page *pages;
	const uint8_t *form;
	uint64_t form_bytes, pages_from, first_page, n_bytes, page_bytes;
	uint32_t segment; /* the form's, kept while this runs */
	uint8_t *data;
	pthread_mutex_t mutex; /* of what follows */
	uint64_t n_left;
	int result;
	char message[512];
	struct page_job jobs[];
};

struct window *window_find(struct model *model, uint64_t tensor, uint64_t first_page,
			   uint64_t n_pages, bool also_retired)
{
	struct window *window;

	TAILQ_FOREACH(window, &model->windows[tensor], link)
		if (first_page >= window->first_page &&
		    first_page + n_pages <= window->first_page + window->n_pages &&
		    (also_retired || !window->block->chunk->retired))
			return window;
	return NULL;
}

/* Nobody finds it any more, and its bytes are others'. */
static void window_forget(struct window *window)
{
	struct model *model = window->model;

	TAILQ_REMOVE(&model->windows[window->tensor], window, link);
	model->streamed_bytes -= window->streamed ? window->n_bytes : 0;
	arena_release_block(window->block);
	model->store->stats.n_windows--;
}

void window_drop(struct window *window)
{
	assert(!window->n_leases && !window->decoding && !window->orphaned);
	window_forget(window);
	memory_free(window);
}

static int decode_page(const struct decode *decode, uint64_t page, struct codec_context *codec)
{
	const struct container_page *record = &decode->pages[page];
	uint64_t at = page * decode->page_bytes, stored;
	int r;

	if (!index_page_place(record, decode->pages_from, decode->form_bytes, &stored))
		r = message_set(STORE_E_CORRUPT, "it lies outside its form");
	else
		r = container_decode_page(codec, record, decode->form + stored,
					  decode->data + at,
					  min_u64(decode->page_bytes, decode->n_bytes - at));
	if (r)
		message_prefix(r, "tensor '%s' page %llu", decode->name,
			       (unsigned long long)(decode->first_page + page));
	return r;
}

/* The job that finishes last carries the news to the loop thread. */
static bool page_run(struct pool_job *base, struct codec_context *codec)
{
	struct page_job *job = (struct page_job *)base;
	struct decode *decode = job->decode;
	bool last;
	int r;

	arena_prepare_chunk(decode->chunk, decode->huge_pages);
	r = decode_page(decode, job->page, codec);
	pthread_mutex_lock(&decode->mutex);
	if (r && !decode->result) {
		decode->result = r;
		(void)snprintf(decode->message, sizeof(decode->message), "%s", message_get());
	}
	last = --decode->n_left == 0;
	pthread_mutex_unlock(&decode->mutex);
	return last;
}

static void page_done(struct pool_job *base)
{
	struct decode *decode = ((struct page_job *)base)->decode;
	struct window *window = decode->window;
	struct model *model = window->model;
	struct store *store = model->store;
	struct request *request;

	window->decoding = false;
	window->pinned = true; /* callbacks may ask for other windows meanwhile */
	if (!decode->result) {
		store->stats.decodes++;
		model->decodes++;
		model->decoded_bytes += window->n_bytes;
		store->stats.decoded_total_bytes += window->n_bytes;
	} else if (decode->result == STORE_E_CORRUPT) {
		store->stats.corrupt_pages++;
	}
	if (decode->result) {
		/* Nobody may find it from now on, though it lives until all are told. */
		window_forget(window);
	}
	while ((request = TAILQ_FIRST(&window->joined))) {
		if (decode->result)
			request_fail(request, decode->result, decode->message);
		else
			request_grant(request, window);
	}
	window->pinned = false;
	if (decode->result)
		memory_free(window);
	segment_leave(model, decode->segment);
	decode->chunk->n_decoding--; /* last: these keep the chunk and the model */
	model->n_decoding--;
	(void)pthread_mutex_destroy(&decode->mutex);
	memory_free(decode);
	store_retry_waiting(store);
}

static int decode_new(struct model *model, const struct container_tensor *tensor,
		      struct window *window, struct decode **ret_decode)
{
	const struct held *held = &model->loaded.held[window->tensor];
	const struct segment *segment;
	struct decode *decode;
	uint64_t n_bytes;
	int r;

	if (!range_mul(window->n_pages, sizeof(decode->jobs[0]), &n_bytes) ||
	    !range_add(n_bytes, sizeof(*decode), &n_bytes))
		return -EOVERFLOW;
	decode = memory_zalloc(n_bytes);
	if (!decode)
		return message_set(-ENOMEM, "no memory for a decode");
	r = index_tensor_name(&model->loaded.catalog, tensor, &decode->name);
	if (r) {
		memory_free(decode);
		return r;
	}
	decode->window = window;
	decode->huge_pages = model->store->config.huge_pages;
	segment = segment_use(model, held->segment);
	decode->segment = held->segment;
	decode->form = (const uint8_t *)segment->region.data + held->offset;
	decode->form_bytes = held->stored_bytes;
	decode->pages = held->pages + window->first_page;
	decode->pages_from = held->pages_from;
	decode->first_page = window->first_page;
	decode->n_bytes = window->n_bytes;
	decode->page_bytes = tensor->page_bytes;
	decode->n_left = window->n_pages;
	(void)pthread_mutex_init(&decode->mutex, NULL);
	*ret_decode = decode;
	return 0;
}

static void submit_page(struct store_client *client, struct page_job *job, uint64_t n_bytes)
{
	struct pool *pool = job->decode->window->model->store->decoders;

	job->job.cost = n_bytes;
	if (client)
		pool_submit_flow(pool, &job->job, &client->flow);
	else
		pool_submit(pool, &job->job, POOL_AHEAD);
}

int window_start(struct model *model, uint64_t tensor_id, uint64_t first_page, uint64_t n_pages,
		 struct store_client *client, struct window **ret_window)
{
	bool prefetch = !client;
	const struct container_tensor *tensor;
	struct window *window;
	struct decode *decode = NULL;
	int r = index_tensor(&model->loaded.catalog, tensor_id, &tensor);

	if (r)
		return r;
	window = memory_zalloc(sizeof(*window));
	if (!window)
		return message_set(-ENOMEM, "no memory for a window");
	window->model = model;
	window->tensor = tensor_id;
	window->first_page = first_page;
	window->n_pages = n_pages;
	window->n_bytes = min_u64(n_pages * tensor->page_bytes,
				  tensor->n_bytes - first_page * tensor->page_bytes);
	model->largest_window = max_u64(model->largest_window, window->n_bytes);
	window->fresh = prefetch;
	window->stamp = ++model->store->stamp;
	TAILQ_INIT(&window->joined);
	TAILQ_INIT(&window->leases);
	r = decode_new(model, tensor, window, &decode);
	if (r) {
		memory_free(window);
		return r;
	}
	r = arena_place(model, align_up(window->n_bytes, WINDOW_ALIGN), prefetch, &window->block,
			&window->streamed);
	if (r) {
		segment_leave(model, decode->segment);
		(void)pthread_mutex_destroy(&decode->mutex);
		memory_free(decode);
		memory_free(window);
		return r;
	}
	window->block->window = window;
	model->streamed_bytes += window->streamed ? window->n_bytes : 0;
	window->touched_ns = clock_now_ns();
	window->decoding = true;
	decode->chunk = window->block->chunk;
	decode->data = (uint8_t *)decode->chunk->region.data + window->block->offset;
	decode->chunk->n_decoding++;
	model->n_decoding++;
	model->store->stats.n_windows++;
	TAILQ_INSERT_HEAD(&model->windows[tensor_id], window, link);
	for (uint64_t i = 0; i < n_pages; i++)
		decode->jobs[i] = (struct page_job){
			.job = {.run = page_run, .done = page_done}, .decode = decode, .page = i};
	for (uint64_t i = 0; i < n_pages; i++)
		submit_page(client, &decode->jobs[i], decode->page_bytes);
	*ret_window = window;
	return 0;
}

static struct lease *lease_new(struct store_client *client)
{
	struct lease *lease = TAILQ_FIRST(&client->free);

	if (lease) {
		TAILQ_REMOVE(&client->free, lease, link);
		return lease;
	}
	if (memory_grow((void **)&client->slots, &client->slots_capacity, client->n_slots,
			client->n_slots + 1, sizeof(struct lease *)))
		return NULL;
	lease = memory_zalloc(sizeof(*lease));
	if (!lease)
		return NULL;
	lease->slot = client->n_slots;
	client->slots[client->n_slots++] = lease;
	return lease;
}

int window_grant(struct store_client *client, struct window *window,
		 struct store_window *ret_window)
{
	struct store *store = client->store;
	struct chunk *chunk = window->block->chunk;
	struct lease *lease = lease_new(client);

	if (!lease)
		return message_set(-ENOMEM, "no memory for a lease");
	lease->window = window;
	lease->client = client;
	lease->word = lease->slot < client->n_words ? &client->words[lease->slot] : NULL;
	if (lease->word) {
		/* Where others wait for room, they hear of its end by RELEASE. */
		shared_lease_offer(lease->word, lease->generation, !TAILQ_EMPTY(&store->waiting));
		lease->seen = __atomic_load_n(lease->word, __ATOMIC_RELAXED);
	}
	TAILQ_INSERT_TAIL(&window->leases, lease, in_window);
	lease->granted_ns = clock_now_ns();
	TAILQ_INSERT_TAIL(&client->held, lease, link);
	client->n_held++;
	client->user->n_held++;
	window->n_leases++;
	window->fresh = false;
	window->stamp = ++store->stamp;
	window->touched_ns = lease->granted_ns;
	chunk->n_leases++;
	window->model->n_leases++;
	store->stats.n_leases++;
	*ret_window = (struct store_window){
		.lease = (uint64_t)lease->generation << 32 | (lease->slot + 1),
		.offset = window->block->offset,
		.n_bytes = window->n_bytes,
		.first_page = window->first_page,
		.n_pages = window->n_pages,
		.chunk = chunk->id,
		.data = (const uint8_t *)chunk->region.data + window->block->offset,
	};
	return 0;
}

void window_release(struct store_client *client, struct lease *lease, bool orphan)
{
	struct window *window = lease->window;
	struct chunk *chunk = window->block->chunk;

	window->n_leases--;
	chunk->n_leases--;
	window->model->n_leases--;
	client->store->stats.n_leases--;
	window->stamp = ++client->store->stamp;
	if (orphan) {
		window->orphaned = true;
		chunk->has_orphans = true;
	}
	TAILQ_REMOVE(&window->leases, lease, in_window);
	lease->window = NULL;
	lease->generation++;
	TAILQ_REMOVE(&client->held, lease, link);
	TAILQ_INSERT_HEAD(&client->free, lease, link);
	client->n_held--;
	client->user->n_held--;
}

bool lease_is_used(const struct lease *lease)
{
	return !lease->word ||
	       shared_lease_in_use(__atomic_load_n(lease->word, __ATOMIC_ACQUIRE), lease->generation);
}

bool lease_revoke(struct lease *lease)
{
	uint64_t stamp = lease->window->stamp;
	struct window *window = lease->window;

	if (!lease->word || !shared_lease_revoke(lease->word, lease->generation))
		return false;
	window_release(lease->client, lease, false);
	window->stamp = stamp; /* to be taken back is no use */
	return true;
}

bool window_is_used(const struct window *window)
{
	const struct lease *lease;

	TAILQ_FOREACH(lease, &window->leases, in_window)
		if (lease_is_used(lease))
			return true;
	return false;
}

bool window_reclaim(struct window *window)
{
	struct lease *lease, *next;

	for (lease = TAILQ_FIRST(&window->leases); lease; lease = next) {
		next = TAILQ_NEXT(lease, in_window);
		(void)lease_revoke(lease);
	}
	return !window->n_leases;
}

void window_look(struct window *window)
{
	struct lease *lease;

	TAILQ_FOREACH(lease, &window->leases, in_window) {
		uint64_t value = lease->word ? __atomic_load_n(lease->word, __ATOMIC_RELAXED) : 0;

		if (value == lease->seen)
			continue;
		lease->seen = value;
		lease->granted_ns = window->touched_ns = clock_now_ns();
		window->stamp = ++window->model->store->stamp;
		TAILQ_REMOVE(&lease->client->held, lease, link);
		TAILQ_INSERT_TAIL(&lease->client->held, lease, link);
	}
}

void client_reclaim(struct store_client *client, uint32_t n_wanted)
{
	struct lease *lease, *next;

	for (lease = TAILQ_FIRST(&client->held); lease && n_wanted; lease = next) {
		next = TAILQ_NEXT(lease, link);
		n_wanted -= lease_revoke(lease);
	}
}

void store_reclaim(struct store *store)
{
	struct store_client *client;

	TAILQ_FOREACH(client, &store->clients, link)
		client_reclaim(client, UINT32_MAX);
}
