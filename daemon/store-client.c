/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients of a store: attachments and the descriptors handed out. Owns them; refuses models that a
 * client has not attached and objects that a model does not have. Loop thread. Invariant: who was
 * told of a chunk stays on record until he acknowledges or leaves.
 */
#include <errno.h>
#include <string.h>

#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "store-impl.h"

#define USER_QUANTUM (1U << 20) /* bytes that a user's clients decode before others' turn; untuned */

/* Each user has the same part of the decode threads, and each client the same part of that. */
static void share_turns(struct store *store, const struct user *user)
{
	struct store_client *client;

	TAILQ_FOREACH(client, &store->clients, link)
		if (client->user == user)
			pool_flow_set(store->decoders, &client->flow, USER_QUANTUM / user->n_clients);
}

static struct user *user_join(struct store *store, uid_t uid)
{
	struct user *user;

	TAILQ_FOREACH(user, &store->users, link)
		if (user->uid == uid)
			break;
	if (!user) {
		user = memory_zalloc(sizeof(*user));
		if (!user)
			return NULL;
		user->uid = uid;
		TAILQ_INSERT_TAIL(&store->users, user, link);
	}
	user->n_clients++;
	return user;
}

static void user_leave(struct store *store, struct user *user)
{
	if (--user->n_clients) {
		share_turns(store, user);
		return;
	}
	TAILQ_REMOVE(&store->users, user, link);
	memory_free(user);
}

int store_client_new(struct store *store, uid_t uid, pid_t pid, struct store_client **ret_client)
{
	struct store_client *client = memory_zalloc(sizeof(*client));

	if (!client)
		return message_set(-ENOMEM, "no memory for a client");
	client->user = user_join(store, uid);
	if (!client->user) {
		memory_free(client);
		return message_set(-ENOMEM, "no memory for a client");
	}
	client->store = store;
	client->uid = uid;
	pool_flow_init(&client->flow);
	client->pid = pid;
	client->shared = REGION_NONE;
	TAILQ_INIT(&client->attachments);
	TAILQ_INIT(&client->held);
	TAILQ_INIT(&client->free);
	TAILQ_INIT(&client->requests);
	TAILQ_INSERT_TAIL(&store->clients, client, link);
	share_turns(store, client->user);
	*ret_client = client;
	return 0;
}

void store_client_ask_again(struct store_client *client, bool may)
{
	client->asks_again = may;
}

struct attachment *client_find_attachment(const struct store_client *client, uint64_t model)
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
		if (lease->window->model == model && !lease_revoke(lease))
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
	memory_free(client->seen);
	region_close(&client->shared);
	TAILQ_REMOVE(&store->clients, client, link);
	pool_flow_end(store->decoders, &client->flow);
	user_leave(store, client->user);
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
	attachment = client_find_attachment(client, model->id);
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
	struct attachment *attachment = client_find_attachment(client, model);

	if (!attachment)
		return STORE_E_NOT_FOUND;
	if (--attachment->count)
		return 0;
	attachment_free(attachment, true);
	store_retry_waiting(client->store);
	return 0;
}

int store_shared_region(struct store_client *client, const char *what, uint64_t n_bytes,
			struct region *ret_region)
{
	struct region region = REGION_NONE;
	struct charge charge;
	int r;

	r = budget_charge(&client->store->budget, BUDGET_INDEX, n_bytes, &charge);
	if (r)
		return r;
	r = region_create(what, n_bytes, NULL, &region);
	if (r) {
		charge_release(&charge);
		return r;
	}
	region.charge = charge;
	r = region_seal_shared(&region);
	if (r) {
		region_close(&region);
		return r;
	}
	*ret_region = region;
	return 0;
}

int store_share(struct store_client *client, int *ret_fd, uint64_t *ret_bytes, uint32_t *ret_leases)
{
	struct store *store = client->store;
	uint32_t n = (uint32_t)min_u64(store->config.max_leases, SHM_MAX_KEPT);
	const struct attachment *last = TAILQ_LAST(&client->attachments, attachment_list);
	uint64_t n_tensors = last ? last->model->loaded.catalog.n_tensors : 0;
	uint64_t n_counters = max_u64(1, min_u64(n_tensors, SHM_MAX_COUNTERS));
	uint64_t counters_offset = sizeof(struct shm_leases_header) + n * sizeof(uint64_t);
	uint64_t n_bytes = counters_offset + n_counters * sizeof(uint64_t);
	struct region region = REGION_NONE;
	struct shm_leases_header *header;
	int r;

	if (client->words)
		return message_set(STORE_E_INVALID, "the words are shared already");
	r = store_shared_region(client, "dcmem-leases", n_bytes, &region);
	if (!r)
		r = region_reopen_writable(&region, ret_fd);
	if (r) {
		region_close(&region);
		return r;
	}
	header = region.data;
	*header = (struct shm_leases_header){
		.magic = SHM_LEASES_MAGIC,
		.version = 1,
		.n_leases = n,
		.counters_offset = counters_offset,
		.n_counters = n_counters,
	};
	client->counted = last ? last->model->id : 0;
	client->counters = (uint64_t *)((uint8_t *)region.data + counters_offset);
	client->n_counters = n_counters;
	client->shared = region;
	client->words = (uint64_t *)(header + 1);
	client->n_words = n;
	*ret_bytes = n_bytes;
	*ret_leases = n;
	return 0;
}

int store_segment_fd(struct store_client *client, uint64_t model, uint32_t segment, int *ret_fd,
		     uint64_t *ret_bytes, uint32_t *ret_generation)
{
	struct attachment *attachment = client_find_attachment(client, model);
	const struct segment *found;
	int r;

	if (!attachment)
		return STORE_E_NOT_FOUND;
	found = segment < attachment->model->loaded.n_segments
			? &attachment->model->loaded.segments[segment]
			: NULL;
	if (!found || found->region.fd < 0 || found->retired)
		return message_set(STORE_E_INVALID, "the model has no segment %u (now)", segment);
	r = region_reopen(&found->region, ret_fd);
	if (r)
		return r;
	*ret_bytes = found->region.n_bytes;
	*ret_generation = found->generation;
	return 0;
}

int store_file_fd(struct store_client *client, uint64_t model, uint32_t file, int *ret_fd,
		  uint64_t *ret_bytes)
{
	struct attachment *attachment = client_find_attachment(client, model);
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
	struct attachment *attachment = client_find_attachment(client, model);
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
	struct attachment *attachment = client_find_attachment(client, model);

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
