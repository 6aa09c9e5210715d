/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Windows: ranges of arena chunks that the daemon decoded. Owns the mappings of chunks, which are
 * not inherited across fork: a child would read whatever is decoded there later. A chunk stays
 * mapped while it has leases, whatever happens to the daemon; one that was retired, or whose
 * connection is gone, is unmapped once its last lease is given back.
 */
#include "served.h"

#include <errno.h>

#include "base/clock.h"
#include "base/range.h"
#include "proto/shared.h"

#define ROOM_NS (5 * NS_PER_S) /* that the daemon may take to make room; untuned */
#define ACQUIRE_TRIES 3 /* a restart of the daemon in the middle is one more try */

/* With model->lock held. */
static bool chunk_is_over(struct served *served, const struct served_chunk *chunk)
{
	const struct served_placement *p = served_placement(served);

	if (chunk->n_leases > 0)
		return false;
	if (served->retired || chunk->session != transport_session(&served->transport))
		return true;
	return chunk->id >= p->n_chunks ||
	       shared_load_acquire(&p->chunks[chunk->id]) == SHM_CHUNK_RETIRED;
}

static void chunk_unmap(struct served_chunk *chunk)
{
	fork_hole_remove(&chunk->hole);
	served_unmap(&chunk->map);
}

/* Takes one chunk that is over out of the list; NULL if there is none. */
static struct served_chunk *chunk_take_over(struct dcmem *model)
{
	struct served_chunk **link, *chunk = NULL;

	pthread_mutex_lock(&model->lock);
	for (link = &model->served->chunks; *link; link = &(*link)->next) {
		if (!chunk_is_over(model->served, *link))
			continue;
		chunk = *link;
		*link = chunk->next;
		kept_forget_chunk(model->served, chunk);
		break;
	}
	pthread_mutex_unlock(&model->lock);
	return chunk;
}

void chunk_obey(struct dcmem *model)
{
	struct served *served = model->served;
	struct served_chunk *chunk;
	/* Read before the words: a retirement in between is seen again at the next call. */
	uint32_t epoch = shared_load_acquire(&served_placement(served)->header->chunk_epoch);
	uint64_t session = transport_session(&served->transport);

	while ((chunk = chunk_take_over(model))) {
		struct wire_segment ack = {.model = chunk->model, .id = chunk->id};
		uint64_t of = chunk->session;

		chunk_unmap(chunk);
		memory_free(chunk);
		(void)transport_tell(&served->transport, of, WIRE_CHUNK_ACK, &ack, sizeof(ack), false);
	}
	pthread_mutex_lock(&model->lock);
	served->seen_epoch = epoch;
	served->seen_session = session;
	pthread_mutex_unlock(&model->lock);
}

void chunk_free_all(struct served *served)
{
	while (served->chunks) {
		struct served_chunk *chunk = served->chunks;

		served->chunks = chunk->next;
		chunk_unmap(chunk);
		memory_free(chunk);
	}
}

static void chunk_give_back(struct served *served, uint64_t session, uint64_t lease)
{
	struct wire_release release = {.lease = lease};

	if (!ring_tell(served, session, &(struct shm_ask){.type = SHM_ASK_RELEASE, .tag = lease}))
		(void)transport_tell(&served->transport, session, WIRE_RELEASE, &release,
				     sizeof(release), false);
}

void chunk_release(struct dcmem *model, struct client_lease *lease)
{
	bool over, tell;

	pthread_mutex_lock(&model->lock);
	tell = kept_drop(lease);
	lease->chunk->n_leases--;
	over = chunk_is_over(model->served, lease->chunk);
	pthread_mutex_unlock(&model->lock);
	if (tell)
		chunk_give_back(model->served, lease->session, lease->remote);
	if (over)
		chunk_obey(model);
}

/* Finds a chunk and counts a lease in it. */
static struct served_chunk *chunk_find(struct dcmem *model, uint64_t session, uint32_t id)
{
	struct served_chunk *chunk;

	pthread_mutex_lock(&model->lock);
	chunk = model->served->chunks;
	while (chunk && !(chunk->session == session && chunk->id == id))
		chunk = chunk->next;
	if (chunk)
		chunk->n_leases++;
	pthread_mutex_unlock(&model->lock);
	return chunk;
}

/* Asks for a chunk, maps it, and counts a lease in it. */
static int chunk_map(struct dcmem *model, uint64_t session, uint32_t id,
		     struct served_chunk **ret_chunk)
{
	struct wire_segment body = {.id = id};
	struct served_chunk *fresh, *chunk;
	struct transport_reply reply;
	uint64_t unused, model_id;
	int r;

	r = served_call(model, session, WIRE_CHUNK, &body, sizeof(body), &reply, &unused, &model_id);
	if (r != 0)
		return r;
	fresh = memory_zalloc(sizeof(*fresh));
	if (!fresh)
		r = -ENOMEM;
	else if (reply.message.segment_reply.id != id)
		r = message_set(DCMEM_E_PROTOCOL, "the daemon sent another chunk");
	else
		r = served_map_fd(reply.fds[0], reply.message.segment_reply.n_bytes, &fresh->map);
	transport_reply_close(&reply);
	if (r == 0) {
		r = fork_hole_add(&fresh->hole, fresh->map.base, fresh->map.n_bytes);
		if (r != 0)
			r = message_set(r, "cannot keep a chunk from being inherited");
	}
	if (r != 0) {
		if (fresh)
			chunk_unmap(fresh);
		memory_free(fresh);
		return r;
	}
	fresh->session = session;
	fresh->model = model_id;
	fresh->id = id;
	pthread_mutex_lock(&model->lock);
	chunk = model->served->chunks;
	while (chunk && !(chunk->session == session && chunk->id == id))
		chunk = chunk->next;
	if (!chunk) {
		chunk = TAKE(fresh);
		chunk->next = model->served->chunks;
		model->served->chunks = chunk;
	}
	chunk->n_leases++;
	pthread_mutex_unlock(&model->lock);
	if (fresh) {
		chunk_unmap(fresh);
		memory_free(fresh);
	}
	*ret_chunk = chunk;
	return 0;
}

/* Decoded bytes of pages [first, first + n). */
static uint64_t pages_bytes(const struct client_tensor *tensor, uint64_t first, uint64_t n)
{
	uint64_t page_bytes = tensor->record->page_bytes;

	return (n - 1) * page_bytes + index_page_bytes(tensor->record, first + n - 1);
}

static int window_check(const struct client_tensor *tensor, const struct wire_acquire *asked,
			const struct wire_acquire_reply *got)
{
	if (got->first_page > asked->first_page ||
	    !range_fits(got->first_page, got->n_pages, tensor->shape.n_pages) ||
	    got->first_page + got->n_pages < asked->first_page + asked->n_pages ||
	    got->n_bytes < pages_bytes(tensor, got->first_page, got->n_pages))
		return message_set(DCMEM_E_PROTOCOL, "the daemon sent a window of other pages");
	return 0;
}

/* Turns a granted lease into a view; gives it back where that fails. */
static int window_view(struct dcmem *model, const struct client_tensor *tensor,
		       const struct wire_acquire *asked, const struct wire_acquire_reply *got,
		       uint64_t session, struct client_lease *ret_lease, const uint8_t **ret_data)
{
	struct served_chunk *chunk;
	int r;

	r = window_check(tensor, asked, got);
	if (r == 0) {
		chunk = chunk_find(model, session, got->chunk);
		if (!chunk)
			r = chunk_map(model, session, got->chunk, &chunk);
	}
	if (r != 0) {
		chunk_give_back(model->served, session, got->lease);
		return r;
	}
	*ret_lease = (struct client_lease){.chunk = chunk, .remote = got->lease, .session = session};
	if (!range_fits(got->offset, got->n_bytes, chunk->map.n_bytes)) {
		chunk_release(model, ret_lease);
		return message_set(DCMEM_E_PROTOCOL, "the daemon sent a window outside its chunk");
	}
	*ret_data = (const uint8_t *)chunk->map.base + got->offset;
	return 0;
}

void window_pages(const struct client_tensor *tensor, uint64_t row, uint64_t n_rows,
		  struct wire_acquire *ret_pages)
{
	uint64_t start = row * tensor->shape.row_bytes, n_bytes = n_rows * tensor->shape.row_bytes;
	uint64_t page_bytes = tensor->record->page_bytes;

	*ret_pages = (struct wire_acquire){
		.tensor = tensor->id,
		.first_page = start / page_bytes,
		.n_pages = div_up(start + n_bytes, page_bytes) - start / page_bytes,
	};
}

/* Enters a granted lease as a view; `data` is the first of its rows. */
static int window_hand_out(struct dcmem *model, const struct client_tensor *tensor, uint64_t row,
			   uint64_t n_rows, const struct client_lease *granted, const uint8_t *data,
			   struct dcmem_view *ret_view)
{
	struct client_lease *lease, held = *granted;
	uint64_t number;
	int r;

	pthread_mutex_lock(&model->lock);
	r = lease_new(model, &number, &lease);
	if (r == 0) {
		held.generation = lease->generation;
		held.used = true;
		*lease = held;
	}
	pthread_mutex_unlock(&model->lock);
	if (r != 0) {
		chunk_release(model, &held);
		return r;
	}
	*ret_view = (struct dcmem_view){.data = data,
					.n_bytes = n_rows * tensor->shape.row_bytes,
					.row = row,
					.n_rows = n_rows,
					.lease = number,
					.kind = DCMEM_VIEW_WINDOW};
	client_count(&model->counts.window_bytes, ret_view->n_bytes);
	kept_count(model, tensor->id, ret_view->n_bytes, false);
	return 0;
}

int window_take_kept(struct dcmem *model, const struct client_tensor *tensor, uint64_t row,
		     uint64_t n_rows, const struct wire_acquire *asked,
		     struct dcmem_view *ret_view, bool *ret_taken)
{
	struct client_lease granted;
	const uint8_t *data = NULL;
	uint64_t first_page = 0;
	bool kept;

	pthread_mutex_lock(&model->lock);
	kept = kept_take(model, asked, &granted, &data, &first_page);
	pthread_mutex_unlock(&model->lock);
	*ret_taken = kept;
	if (!kept)
		return 0;
	data += row * tensor->shape.row_bytes - first_page * tensor->record->page_bytes;
	return window_hand_out(model, tensor, row, n_rows, &granted, data, ret_view);
}

int window_take(struct dcmem *model, const struct client_tensor *tensor, uint64_t row,
		uint64_t n_rows, const struct wire_acquire *asked,
		const struct wire_acquire_reply *got, uint64_t session,
		struct dcmem_view *ret_view)
{
	struct client_lease granted;
	const uint8_t *data = NULL;
	int r;

	r = window_view(model, tensor, asked, got, session, &granted, &data);
	if (r != 0)
		return r;
	if (!(model->flags & DCMEM_OPEN_NO_KEEP))
		kept_add(model, asked, got, data, &granted);
	data += row * tensor->shape.row_bytes - got->first_page * tensor->record->page_bytes;
	return window_hand_out(model, tensor, row, n_rows, &granted, data, ret_view);
}

/* Through the ring, or where that cannot be over the socket, which also connects again. */
static int window_ask(struct dcmem *model, const struct wire_acquire *asked,
		      struct wire_acquire_reply *ret_got, uint64_t *ret_session)
{
	struct wire_acquire body = *asked;
	struct transport_reply reply;
	uint64_t id;
	int r = ring_call(model, asked, ret_got, ret_session);

	if (r != -ENOTCONN)
		return r;
	r = served_call(model, 0, WIRE_ACQUIRE, &body, sizeof(body), &reply, ret_session, &id);
	if (r == 0)
		*ret_got = reply.message.acquire_reply;
	return r;
}

int served_acquire_window(struct dcmem *model, const struct client_tensor *tensor, uint64_t row,
			  uint64_t n_rows, struct dcmem_view *ret_view)
{
	struct wire_acquire asked;
	uint64_t began;
	bool kept;
	int r;

	window_pages(tensor, row, n_rows, &asked);
	r = window_take_kept(model, tensor, row, n_rows, &asked, ret_view, &kept);
	if (kept)
		return r;
	began = clock_now_ns();
	for (unsigned try = 0; try < ACQUIRE_TRIES;) {
		struct wire_acquire_reply got;
		uint64_t session;

		r = window_ask(model, &asked, &got, &session);
		if (r == -EAGAIN && clock_now_ns() - began < ROOM_NS) {
			segment_obey(model);
			chunk_obey(model);
			continue;
		}
		if (r == -EAGAIN)
			r = message_set(DCMEM_E_BUDGET, "no room for a window after %llu s",
					(unsigned long long)(ROOM_NS / NS_PER_S));
		if (r != 0)
			return r;
		r = window_take(model, tensor, row, n_rows, &asked, &got, session, ret_view);
		/* The daemon was restarted, or the chunk retired before it was mapped. */
		if (r != -ESTALE && r != DCMEM_E_NOT_FOUND)
			break;
		try++;
	}
	kept_waited(model->served, clock_now_ns() - began);
	if (r == -ESTALE)
		return message_set(DCMEM_E_DISCONNECTED, "the daemon went away again and again");
	return r;
}

int served_prefetch(struct dcmem *model, const struct client_tensor *tensor, uint64_t row,
		    uint64_t n_rows)
{
	struct served *served = model->served;
	struct wire_acquire body;
	/* The connection first: a number of a later one is then refused by transport_tell(). */
	uint64_t session = __atomic_load_n(&served->attached_session, __ATOMIC_ACQUIRE);

	window_pages(tensor, row, n_rows, &body);
	body.model = __atomic_load_n(&served->model, __ATOMIC_RELAXED);
	if (ring_tell(served, session,
		      &(struct shm_ask){.type = SHM_ASK_PREFETCH,
					.model = body.model,
					.tensor = body.tensor,
					.first_page = body.first_page,
					.n_pages = body.n_pages}))
		return 0;
	(void)transport_tell(&served->transport, session, WIRE_PREFETCH, &body, sizeof(body), true);
	return 0;
}
