/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Kept leases: a window that was given back stays ours, as long as the daemon does not want it, and is
 * taken up again by one atomic step on a word that both share (shm.h), without a request. Owns the
 * mapping of the words and the table of what is kept. A word is touched when the first view of a
 * window comes and when the last one goes. Tables are under model->lock.
 */
#include "served.h"

#include <poll.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/range.h"
#include "proto/shared.h"

#define CHECK_NS (1 * NS_PER_MS) /* a dead daemon is noticed this late; untuned */

static uint32_t *kept_bucket(const struct served_share *share, uint64_t tensor, uint64_t first_page)
{
	uint64_t hash = (tensor * 0x9e3779b97f4a7c15ULL + first_page) * 0xff51afd7ed558ccdULL;

	return &share->buckets[(hash >> 32) % share->n];
}

static void kept_forget(struct served_share *share, uint32_t slot)
{
	struct served_kept *kept = &share->kept[slot];
	uint32_t *link = kept_bucket(share, kept->tensor, kept->first_page);

	if (!kept->known)
		return;
	while (*link != slot + 1)
		link = &share->kept[*link - 1].next;
	*link = kept->next;
	kept->known = false;
}

/* Reading goes on without a daemon, but its memory is charged to nobody then: look now and then. */
static bool kept_is_connected(struct served *served)
{
	struct transport *t = &served->transport;
	uint64_t now = clock_now_ns();
	struct pollfd hung = {.events = 0};
	bool connected;

	if (now - served->checked_ns < CHECK_NS)
		return true;
	pthread_mutex_lock(&t->send_lock);
	hung.fd = t->fd;
	connected = t->fd >= 0 && poll(&hung, 1, 0) == 0;
	pthread_mutex_unlock(&t->send_lock);
	if (connected)
		served->checked_ns = now;
	return connected;
}

bool kept_take(struct dcmem *model, const struct wire_acquire *asked, struct client_lease *ret_lease,
	       const uint8_t **ret_data, uint64_t *ret_first_page)
{
	struct served_share *share = model->served->share;
	uint32_t slot;

	if (!share || share->session != transport_session(&model->served->transport) ||
	    !kept_is_connected(model->served))
		return false;
	slot = *kept_bucket(share, asked->tensor, asked->first_page);
	for (; slot; slot = share->kept[slot - 1].next) {
		struct served_kept *kept = &share->kept[slot - 1];

		if (kept->tensor != asked->tensor || kept->first_page != asked->first_page ||
		    kept->n_pages != asked->n_pages)
			continue;
		if (kept->n_views == 0 &&
		    !shared_lease_take(&share->words[slot - 1], (uint32_t)(kept->remote >> 32))) {
			kept_forget(share, slot - 1); /* the daemon needed the room */
			return false;
		}
		kept->n_views++;
		kept->chunk->n_leases++;
		*ret_lease = (struct client_lease){.chunk = kept->chunk,
						   .share = share,
						   .kept = slot - 1,
						   .remote = kept->remote,
						   .session = share->session};
		*ret_data = kept->data;
		*ret_first_page = kept->got_first_page;
		return true;
	}
	return false;
}

bool kept_drop(const struct client_lease *lease)
{
	struct served_share *share = lease->share;
	struct served_kept *kept;

	if (!share)
		return true;
	kept = &share->kept[lease->kept];
	if (--kept->n_views > 0)
		return false;
	if (shared_lease_drop(&share->words[lease->kept], (uint32_t)(kept->remote >> 32)))
		return false;
	kept_forget(share, lease->kept);
	return true;
}

void kept_forget_chunk(struct served *served, const struct served_chunk *chunk)
{
	for (struct served_share *share = served->share; share; share = share->next)
		for (uint32_t slot = 0; slot < share->n; slot++)
			if (share->kept[slot].known && share->kept[slot].chunk == chunk)
				kept_forget(share, slot);
}

void kept_add(struct dcmem *model, const struct wire_acquire *asked,
	      const struct wire_acquire_reply *got, const uint8_t *data, struct client_lease *lease)
{
	uint32_t slot = (uint32_t)got->lease - 1, *bucket;
	struct served_share *share;

	pthread_mutex_lock(&model->lock);
	share = model->served->share;
	if (share && share->session == lease->session && slot < share->n) {
		/* What was kept in this slot before, the daemon has taken back. */
		kept_forget(share, slot);
		bucket = kept_bucket(share, asked->tensor, asked->first_page);
		share->kept[slot] = (struct served_kept){.known = true,
							 .next = *bucket,
							 .tensor = asked->tensor,
							 .first_page = asked->first_page,
							 .n_pages = asked->n_pages,
							 .got_first_page = got->first_page,
							 .remote = got->lease,
							 .chunk = lease->chunk,
							 .data = data,
							 .n_views = 1};
		*bucket = slot + 1;
		lease->share = share;
		lease->kept = slot;
	}
	pthread_mutex_unlock(&model->lock);
}

static void share_free(struct served_share *share)
{
	fork_hole_remove(&share->hole);
	served_unmap(&share->map);
	memory_free(share->kept);
	memory_free(share->buckets);
	memory_free(share);
}

static int share_map(struct served_share *share, const struct transport_reply *reply)
{
	uint64_t n_bytes = reply->message.segment_reply.n_bytes;
	uint32_t n = reply->message.segment_reply.id;
	struct shm_leases_header *header;
	int r;

	if (n == 0 || n > SHM_MAX_KEPT ||
	    n_bytes < sizeof(struct shm_leases_header) + n * sizeof(uint64_t))
		return message_set(DCMEM_E_PROTOCOL, "the daemon sent a damaged table of leases");
	r = served_map_fd(reply->fds[0], n_bytes, &share->map);
	if (r != 0)
		return r;
	(void)served_unmap(&share->map);
	share->map.base = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, reply->fds[0], 0);
	if (share->map.base == MAP_FAILED) {
		share->map.base = NULL;
		return -ENOMEM;
	}
	share->map.n_bytes = n_bytes;
	share->n = n;
	header = share->map.base;
	share->words = (uint64_t *)(header + 1);
	if (header->counters_offset % sizeof(uint64_t) == 0 && header->n_counters > 0 &&
	    range_fits_records(header->counters_offset, header->n_counters, sizeof(uint64_t),
			       n_bytes)) {
		share->n_counters = header->n_counters;
		share->counters = (uint64_t *)((uint8_t *)share->map.base + header->counters_offset);
	}
	share->kept = memory_array(n, sizeof(*share->kept));
	share->buckets = memory_array(n, sizeof(*share->buckets));
	if (!share->kept || !share->buckets)
		return -ENOMEM;
	return fork_hole_add(&share->hole, share->map.base, share->map.n_bytes);
}

void kept_open(struct dcmem *model)
{
	struct served *served = model->served;
	struct wire_segment body = {0};
	struct transport_reply reply;
	struct served_share *share;
	int r;

	if (!(served->transport.features & WIRE_FEATURE_SHARE))
		return;
	r = transport_request(&served->transport, WIRE_SHARE, &body, sizeof(body), NULL, 0, &reply);
	if (r != 0)
		return;
	share = memory_zalloc(sizeof(*share));
	r = share ? share_map(share, &reply) : -ENOMEM;
	transport_reply_close(&reply);
	if (r != 0) {
		if (share)
			share_free(share);
		return;
	}
	share->session = transport_session(&served->transport);
	pthread_mutex_lock(&model->lock);
	share->next = served->share;
	__atomic_store_n(&served->share, share, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&model->lock);
}

void kept_close(struct served *served)
{
	while (served->share) {
		struct served_share *share = served->share;

		served->share = share->next;
		share_free(share);
	}
}

void kept_count(const struct dcmem *model, uint64_t tensor, uint64_t n_bytes, bool local)
{
	const struct served_share *share =
		model->served ? __atomic_load_n(&model->served->share, __ATOMIC_ACQUIRE) : NULL;

	if (!share || !share->counters)
		return;
	client_count(&share->counters[tensor % share->n_counters], n_bytes);
	if (local)
		client_count(&((struct shm_leases_header *)share->map.base)->local_bytes, n_bytes);
}

void kept_waited(const struct served *served, uint64_t ns)
{
	const struct served_share *share = __atomic_load_n(&served->share, __ATOMIC_ACQUIRE);

	if (share)
		client_count(&((struct shm_leases_header *)share->map.base)->waited_ns, ns);
}
