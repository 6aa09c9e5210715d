/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A model that a daemon serves. Owns the mappings of index, placement tables and segments;
 * descriptors are closed as soon as their object is mapped. Attaching takes the same time for 10
 * tensors and 10^5: nothing is parsed, records are checked when they are used.
 *
 * When the daemon is gone, what is mapped stays readable. The next request connects again and
 * attaches to the model of the same name, whose fingerprint and index must be the same bytes. Then
 * segments mapped from the old daemon serve on, since their layout is part of the index.
 */
#include "served.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/hash.h"
#include "base/io.h"
#include "base/range.h"
#include "proto/shared.h"

#define FORM_TRIES 1000 /* each takes a change of the tensor in between */

int served_map_fd(int fd, uint64_t n_bytes, struct served_map *ret_map)
{
	struct stat st;
	int seals = fcntl(fd, F_GET_SEALS);
	void *base;

	if (fstat(fd, &st) < 0)
		return -errno;
	/* Unsealed, it could shrink under the mapping and raise SIGBUS here. */
	if (seals < 0 || !(seals & F_SEAL_SHRINK) || n_bytes == 0 || (uint64_t)st.st_size < n_bytes)
		return message_set(DCMEM_E_PROTOCOL, "the daemon sent an object that is not sealed or "
						     "is smaller than it says");
	base = mmap(NULL, n_bytes, PROT_READ, MAP_SHARED, fd, 0);
	if (base == MAP_FAILED)
		return message_set(-errno, "cannot map %llu shared bytes: %s",
				   (unsigned long long)n_bytes, strerror(errno));
	*ret_map = (struct served_map){base, n_bytes};
	return 0;
}

void served_unmap(struct served_map *map)
{
	if (map->base)
		(void)munmap(map->base, map->n_bytes);
	*map = (struct served_map){0};
}

static int placement_map(const struct wire_attach_reply *reply, int fd,
			 struct served_placement **ret_placement)
{
	struct served_placement *p = memory_zalloc(sizeof(*p));
	struct shm_placement_header h;
	int r;

	if (!p)
		return -ENOMEM;
	r = served_map_fd(fd, reply->placement_bytes, &p->map);
	if (r != 0)
		goto error;
	r = DCMEM_E_PROTOCOL;
	if (p->map.n_bytes < sizeof(h))
		goto refuse;
	p->header = p->map.base;
	h.magic = shared_load_relaxed_64(&p->header->magic);
	h.version = shared_load_relaxed(&p->header->version);
	h.n_tensors = shared_load_relaxed_64(&p->header->n_tensors);
	h.n_chunks = shared_load_relaxed(&p->header->n_chunks);
	h.records_offset = shared_load_relaxed_64(&p->header->records_offset);
	h.chunks_offset = shared_load_relaxed_64(&p->header->chunks_offset);
	h.n_segments = shared_load_relaxed(&p->header->n_segments);
	if (h.magic != SHM_PLACEMENT_MAGIC || h.version != 2 || h.n_tensors != reply->n_tensors ||
	    h.n_segments != SHM_MAX_SEGMENTS ||
	    h.records_offset % sizeof(struct shm_placement) != 0 || h.chunks_offset % 4 != 0 ||
	    !range_fits_records(h.records_offset, h.n_tensors, sizeof(struct shm_placement),
				p->map.n_bytes) ||
	    !range_fits_records(h.chunks_offset, (uint64_t)h.n_chunks + h.n_segments,
				sizeof(uint32_t), p->map.n_bytes))
		goto refuse;
	p->records = (const void *)((const uint8_t *)p->map.base + h.records_offset);
	p->chunks = (const void *)((const uint8_t *)p->map.base + h.chunks_offset);
	p->n_chunks = h.n_chunks;
	p->segments = p->chunks + h.n_chunks;
	*ret_placement = p;
	return 0;
refuse:
	message_set(r, "the daemon sent a damaged placement table");
error:
	served_unmap(&p->map);
	memory_free(p);
	return r;
}

/* The first attachment: takes index and sizes as they come. */
static int served_adopt(struct dcmem *model, const struct wire_attach_reply *reply,
			struct served_map *index)
{
	struct served *served = model->served;
	int r = index_init(&model->index, index->base, index->n_bytes);

	if (r != 0)
		return r;
	if (model->index.n_tensors != reply->n_tensors ||
	    memcmp(index_head(&model->index)->fingerprint, reply->fingerprint, 16) != 0)
		return message_set(DCMEM_E_PROTOCOL, "the daemon's answer does not fit its index");
	served->slots = memory_array(SHM_MAX_SEGMENTS, sizeof(*served->slots));
	if (!served->slots)
		return -ENOMEM;
	memcpy(model->fingerprint, reply->fingerprint, sizeof(model->fingerprint));
	served->index = *index;
	*index = (struct served_map){0};
	return 0;
}

/* A later one: must be the same model. */
static int served_compare(struct dcmem *model, const struct wire_attach_reply *reply,
			  const struct served_map *index)
{
	struct served *served = model->served;

	if (memcmp(model->fingerprint, reply->fingerprint, 16) != 0 ||
	    index->n_bytes != served->index.n_bytes ||
	    memcmp(index->base, served->index.base, index->n_bytes) != 0)
		return message_set(DCMEM_E_CHANGED,
				   "the daemon was restarted and its model '%s' is another one now: "
				   "open it again",
				   served->name);
	return 0;
}

/* With transport->lock held. */
static int served_attach(struct dcmem *model)
{
	struct served *served = model->served;
	size_t name_bytes = strlen(served->name);
	struct wire_attach body = {.name_bytes = (uint32_t)name_bytes};
	struct served_placement *placement = NULL;
	struct wire_attach_reply *attach;
	struct transport_reply reply;
	struct served_map index = {0};
	int r;

	r = transport_request(&served->transport, WIRE_ATTACH, &body, sizeof(body), served->name,
			      name_bytes, &reply);
	if (r != 0)
		return r;
	attach = &reply.message.attach_reply;
	r = served_map_fd(reply.fds[0], attach->index_bytes, &index);
	if (r == 0)
		r = placement_map(attach, reply.fds[1], &placement);
	transport_reply_close(&reply);
	if (r == 0)
		r = served->index.base ? served_compare(model, attach, &index)
				       : served_adopt(model, attach, &index);
	served_unmap(&index);
	if (r != 0) {
		if (placement) {
			served_unmap(&placement->map);
			memory_free(placement);
		}
		return r;
	}
	__atomic_store_n(&served->model, attach->model, __ATOMIC_RELAXED);
	served->attached = true;
	__atomic_store_n(&served->attached_session, transport_session(&served->transport),
			 __ATOMIC_RELEASE);
	placement->session = transport_session(&served->transport);
	placement->next = served->placement;
	__atomic_store_n(&served->placement, placement, __ATOMIC_RELEASE);
	kept_open(model);
	ring_open(model);
	return 0;
}

/* With transport->lock held. */
static int served_reconnect(struct dcmem *model)
{
	struct served *served = model->served;
	int r;

	if (model->flags & DCMEM_OPEN_NO_RECONNECT)
		return message_set(DCMEM_E_DISCONNECTED, "the daemon at %s went away",
				   served->transport.options.path);
	r = transport_connect(&served->transport);
	if (r == 0)
		r = served_attach(model);
	if (r != 0)
		transport_close(&served->transport);
	if (r == DCMEM_E_NO_DAEMON || r == -ENOTCONN)
		return message_set(DCMEM_E_DISCONNECTED,
				   "the daemon at %s went away and nobody listens there now",
				   served->transport.options.path);
	if (r != 0)
		return message_prefix(r, "reconnecting");
	client_count(&model->counts.reconnects, 1);
	client_log(5, "dcmem: reconnected to the daemon at %s", served->transport.options.path);
	return 0;
}

int served_call(struct dcmem *model, uint64_t pinned, uint16_t type, void *body, size_t body_bytes,
		struct transport_reply *ret_reply, uint64_t *ret_session, uint64_t *ret_model)
{
	struct served *served = model->served;
	struct transport *t = &served->transport;
	int r;

	pthread_mutex_lock(&t->lock);
	for (unsigned try = 0;; try++) {
		r = t->fd < 0 ? -ENOTCONN : 0;
		if (r == 0 && pinned && pinned != transport_session(t)) {
			r = -ESTALE;
			break;
		}
		if (r == 0) {
			memcpy(body, &served->model, sizeof(served->model));
			r = transport_request(t, type, body, body_bytes, NULL, 0, ret_reply);
		}
		if (r != -ENOTCONN)
			break;
		if (pinned) {
			r = -ESTALE;
			break;
		}
		r = try > 0 ? message_set(DCMEM_E_DISCONNECTED, "the daemon at %s went away twice",
					  t->options.path)
			    : served_reconnect(model);
		if (r != 0)
			break;
	}
	*ret_session = transport_session(t);
	*ret_model = served->model;
	pthread_mutex_unlock(&t->lock);
	client_count(&model->counts.requests, 1);
	return r;
}

int served_open(struct dcmem *model, const char *name, const struct transport_options *options)
{
	struct served *served;
	int r;

	if (!wire_name_is_valid(name, strlen(name)))
		return message_set(DCMEM_E_INVALID, "'%s' is neither a path nor a model name", name);
	served = memory_zalloc(sizeof(*served));
	if (!served)
		return -ENOMEM;
	transport_init(&served->transport, options);
	memcpy(served->name, name, strlen(name));
	model->served = served;
	pthread_mutex_lock(&served->transport.lock);
	r = transport_connect(&served->transport);
	if (r == 0)
		r = served_attach(model);
	served->seen_session = transport_session(&served->transport);
	pthread_mutex_unlock(&served->transport.lock);
	if (r == -ENOTCONN)
		r = message_set(DCMEM_E_DISCONNECTED, "the daemon at %s hung up",
				served->transport.options.path);
	return r;
}

void served_forget(struct dcmem *model)
{
	struct served *served = model->served;

	served->transport.fd = close_fd(served->transport.fd);
	for (struct served_ring *ring = served->ring; ring; ring = ring->next) {
		ring->bell_fd = close_fd(ring->bell_fd);
		ring->note_fd = close_fd(ring->note_fd);
	}
}

void served_close(struct dcmem *model)
{
	struct served *served = model->served;
	struct served_placement *p;

	if (!served)
		return;
	chunk_free_all(served);
	kept_close(served);
	ring_close(served);
	segment_free_all(served);
	while ((p = served->placement)) {
		served->placement = p->next;
		served_unmap(&p->map);
		memory_free(p);
	}
	served_unmap(&served->index);
	if (served->attached) {
		struct wire_detach detach = {.model = served->model};

		(void)transport_tell(&served->transport, transport_session(&served->transport),
				     WIRE_DETACH, &detach, sizeof(detach), false);
	}
	transport_deinit(&served->transport);
	model->served = memory_free(served);
}

int served_enter(struct dcmem *model)
{
	struct served *served = model->served;
	struct served_placement *p = served_placement(served);
	uint32_t epoch = shared_load_acquire(&p->header->chunk_epoch);
	uint32_t segment_epoch = shared_load_acquire(&p->header->segment_epoch);
	bool obey, obey_segments, retired = shared_load_acquire(&p->header->retired) != 0;

	pthread_mutex_lock(&model->lock);
	obey = retired || served->seen_session != transport_session(&served->transport);
	obey_segments = obey || segment_epoch != served->seen_segment_epoch;
	obey |= epoch != served->seen_epoch;
	served->retired |= retired;
	pthread_mutex_unlock(&model->lock);
	if (obey_segments)
		segment_obey(model);
	if (obey)
		chunk_obey(model);
	if (retired)
		return message_set(DCMEM_E_RETIRED, "the model '%s' was unloaded", served->name);
	return 0;
}

static int served_record(const struct served_placement *placement,
			 const struct client_tensor *tensor, struct shm_placement *ret_record)
{
	if (!shared_placement_read(&placement->records[tensor->id], ret_record))
		return message_set(DCMEM_E_DISCONNECTED,
				   "the daemon died while it was changing tensor %llu",
				   (unsigned long long)tensor->id);
	if (ret_record->segment >= SHM_MAX_SEGMENTS ||
	    (ret_record->pages_segment != SHM_PAGES_IN_INDEX &&
	     ret_record->pages_segment != ret_record->segment))
		return message_set(DCMEM_E_CORRUPT, "tensor %llu is placed outside every segment",
				   (unsigned long long)tensor->id);
	return 0;
}

int served_is_raw(struct dcmem *model, const struct client_tensor *tensor, bool *ret_raw)
{
	struct shm_placement record;
	int r = tensor->shape.n_pages == 0
			? 0
			: served_record(served_placement(model->served), tensor, &record);

	if (r == 0)
		*ret_raw = tensor->shape.n_pages == 0 || record.flags & SHM_PLACEMENT_RAW;
	return r;
}

static int served_pages(struct dcmem *model, const struct client_tensor *tensor,
			const struct shm_placement *record, const struct served_segment *segment,
			const struct container_page **ret_pages)
{
	if (record->pages_segment == SHM_PAGES_IN_INDEX)
		return index_pages(&model->index, record->page_record, tensor->shape.n_pages,
				   ret_pages);
	if (record->page_record % _Alignof(struct container_page) != 0 ||
	    !range_fits_records(record->page_record, tensor->shape.n_pages,
				sizeof(struct container_page), segment->map.n_bytes))
		return message_set(DCMEM_E_CORRUPT, "the pages of tensor %llu are outside its segment",
				   (unsigned long long)tensor->id);
	*ret_pages = (const void *)((const uint8_t *)segment->map.base + record->page_record);
	return 0;
}

static int served_form_once(struct dcmem *model, const struct client_tensor *tensor,
			    struct client_form *ret_form)
{
	const struct served_placement *placement = served_placement(model->served);
	const struct container_page *pages = NULL;
	struct served_segment *segment;
	struct shm_placement record;
	int r;

	r = served_record(placement, tensor, &record);
	if (r == 0)
		r = segment_use(model, placement->session, record.segment,
				record.segment_generation, &segment);
	if (r != 0)
		return r;
	r = served_pages(model, tensor, &record, segment, &pages);
	if (r == 0 && !range_fits(record.offset, record.stored_bytes, segment->map.n_bytes))
		r = message_set(DCMEM_E_CORRUPT, "tensor %llu is placed outside its segment",
				(unsigned long long)tensor->id);
	if (r != 0) {
		segment_leave(model, segment);
		return r;
	}
	*ret_form = (struct client_form){.pages = pages,
					 .n_pages = tensor->shape.n_pages,
					 .raw = record.flags & SHM_PLACEMENT_RAW,
					 .pages_from = record.pages_from,
					 .stored_bytes = record.stored_bytes,
					 .base = (const uint8_t *)segment->map.base + record.offset,
					 .mapped = segment};
	return 0;
}

int served_form(struct dcmem *model, const struct client_tensor *tensor,
		struct client_form *ret_form)
{
	int r = -ESTALE;

	for (unsigned try = 0; try < FORM_TRIES && r == -ESTALE; try++)
		r = served_form_once(model, tensor, ret_form);
	if (r == -ESTALE)
		return message_set(DCMEM_E_DISCONNECTED,
				   "tensor %llu was moved again and again while it was looked for",
				   (unsigned long long)tensor->id);
	return r;
}

int served_acquire_raw(struct dcmem *model, const struct client_tensor *tensor, uint64_t row,
		       uint64_t n_rows, struct dcmem_view *ret_view)
{
	struct client_lease *lease;
	struct client_form form;
	uint64_t number;
	int r;

	r = served_form(model, tensor, &form);
	if (r != 0)
		return r;
	if (!form.raw || form.stored_bytes != tensor->record->n_bytes) {
		r = form.raw ? message_set(DCMEM_E_CORRUPT, "tensor %llu is raw but of another size",
					   (unsigned long long)tensor->id)
			     : -ESTALE; /* changed in this moment */
		segment_leave(model, form.mapped);
		return r;
	}
	pthread_mutex_lock(&model->lock);
	r = lease_new(model, &number, &lease);
	if (r == 0)
		lease->segment = form.mapped;
	pthread_mutex_unlock(&model->lock);
	if (r != 0) {
		segment_leave(model, form.mapped);
		return r;
	}
	*ret_view = (struct dcmem_view){.data = form.base + row * tensor->shape.row_bytes,
					.n_bytes = n_rows * tensor->shape.row_bytes,
					.row = row,
					.n_rows = n_rows,
					.lease = number,
					.kind = DCMEM_VIEW_RAW};
	client_count(&model->counts.raw_bytes, ret_view->n_bytes);
	kept_count(model, tensor->id, ret_view->n_bytes, false);
	return 0;
}

int served_file(struct dcmem *model, uint64_t file, const struct container_file *record,
		char **ret_text)
{
	_cleanup_(cleanup_memory) char *text = NULL;
	struct wire_segment body = {.id = (uint32_t)file};
	struct transport_reply reply;
	uint64_t session, id;
	int r;

	r = served_call(model, 0, WIRE_FILE, &body, sizeof(body), &reply, &session, &id);
	if (r != 0)
		return r;
	text = record->blob_bytes < SIZE_MAX ? memory_alloc(record->blob_bytes + 1) : NULL;
	if (!text)
		r = message_set(-ENOMEM, "no memory for %llu bytes",
				(unsigned long long)record->blob_bytes);
	else if (reply.message.segment_reply.n_bytes != record->blob_bytes)
		r = message_set(DCMEM_E_PROTOCOL, "the daemon sent another file");
	else
		r = io_read_at(reply.fds[0], text, record->blob_bytes, 0);
	transport_reply_close(&reply);
	if (r != 0)
		return r;
	if (hash_64(text, record->blob_bytes) != record->blob_hash)
		return message_set(DCMEM_E_CORRUPT, "its bytes do not match their hash");
	text[record->blob_bytes] = '\0';
	*ret_text = TAKE(text);
	return 0;
}
