/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The client's side of a ring of requests (shm.h). Owns the mapping, the bell and the slots of what is
 * on its way. Any thread: slots and indices are under ring->lock, which is never held while waiting.
 * Whoever looks takes all answers that are there, also those that other threads wait for. A waiter
 * spins only while the daemon says that it does too, as there are CPUs for both; then it sleeps, in
 * slices, so that a daemon that died is noticed.
 */
#include "served.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/range.h"
#include "proto/ring.h"
#include "proto/shared.h"

#define SPIN_NS 20000 /* a window that is decoded already takes a tenth of it; untuned */
#define SLICE_NS (100 * NS_PER_MS)
#define MAX_ENTRIES 65536

/* --- asking ----------------------------------------------------------------------------------- */

struct served_ring *ring_now(const struct served *served)
{
	struct served_ring *ring = __atomic_load_n(&served->ring, __ATOMIC_ACQUIRE);

	return ring && ring->session == transport_session(&served->transport) ? ring : NULL;
}

/* With ring->lock held: false where the daemon has not taken enough yet. */
static bool ring_put(struct served_ring *ring, const struct shm_ask *ask)
{
	if (ring->broken ||
	    ring->asked - shared_load_acquire(&ring->header->taken) >= ring->n)
		return false;
	ring->asks[ring->asked % ring->n] = *ask;
	ring_publish(&ring->header->asked, ++ring->asked);
	return true;
}

/* After ring_put(). True if the bell was rung. */
static bool ring_ring(const struct served_ring *ring)
{
	const uint64_t one = 1;

	/* A bell that is full has been heard. */
	return ring_look(&ring->header->daemon_sleeps) &&
	       write(ring->bell_fd, &one, sizeof(one)) > 0;
}

int ring_submit(struct served_ring *ring, const struct wire_acquire *asked, uint32_t *ret_slot)
{
	struct shm_ask ask = {.type = SHM_ASK_ACQUIRE,
			      .model = ring->model,
			      .tensor = asked->tensor,
			      .first_page = asked->first_page,
			      .n_pages = asked->n_pages};
	struct served_slot *slot;
	uint32_t i;

	pthread_mutex_lock(&ring->lock);
	i = ring->free_slot - 1;
	if (ring->free_slot) {
		ask.tag = (ring->slots[i].turn + 1) * ring->n + i;
		if (!ring_put(ring, &ask))
			i = UINT32_MAX;
	}
	if (i == UINT32_MAX) {
		bool broken = ring->broken;

		pthread_mutex_unlock(&ring->lock);
		return broken ? -ENOTCONN : -EBUSY;
	}
	slot = &ring->slots[i];
	ring->free_slot = slot->next;
	slot->turn++;
	slot->state = SLOT_ASKED;
	pthread_mutex_unlock(&ring->lock);
	(void)ring_ring(ring);
	*ret_slot = i;
	return 0;
}

bool ring_tell(struct served *served, uint64_t session, const struct shm_ask *ask)
{
	struct served_ring *ring = ring_now(served);
	bool put;

	if (!ring || ring->session != session)
		return false;
	pthread_mutex_lock(&ring->lock);
	put = ring_put(ring, ask);
	pthread_mutex_unlock(&ring->lock);
	if (put)
		(void)ring_ring(ring);
	return put;
}

/* --- answers ---------------------------------------------------------------------------------- */

/* With ring->lock held. */
static void ring_free_slot(struct served_ring *ring, uint32_t i)
{
	ring->slots[i].state = SLOT_FREE;
	ring->slots[i].next = ring->free_slot;
	ring->free_slot = i + 1;
}

static void ring_reap_one(struct served_ring *ring, const struct shm_answer *answer)
{
	uint32_t i = (uint32_t)(answer->tag % ring->n);
	struct served_slot *slot = &ring->slots[i];

	if (answer->tag / ring->n != slot->turn ||
	    (slot->state != SLOT_ASKED && slot->state != SLOT_DROPPED)) {
		ring->broken = true;
		return;
	}
	if (slot->state == SLOT_ASKED) {
		slot->answer = *answer;
		slot->state = SLOT_ANSWERED;
		return;
	}
	if (answer->status == 0) {
		const struct shm_ask release = {.type = SHM_ASK_RELEASE, .tag = answer->lease};

		/* A ring that is full of asks keeps the lease until the connection ends. */
		(void)ring_put(ring, &release);
	}
	ring_free_slot(ring, i);
}

/* With ring->lock held. */
static void ring_reap(struct served_ring *ring)
{
	uint32_t answered = shared_load_acquire(&ring->header->answered);

	if (answered - ring->answered > ring->n)
		ring->broken = true;
	while (ring->answered != answered && !ring->broken) {
		struct shm_answer answer;

		ring_copy(&answer, &ring->answers[ring->answered % ring->n], sizeof(answer));
		answer.text[sizeof(answer.text) - 1] = answer.status ? '\0' : answer.text[111];
		ring->answered++;
		ring_reap_one(ring, &answer);
	}
}

static int ring_check(const struct shm_answer *a, struct wire_acquire_reply *ret_reply)
{
	if (a->status)
		return message_set(wire_result_of(a->status), "%s", a->text);
	if (a->lease == 0 || a->n_pages == 0 || a->offset % 64 != 0)
		return message_set(DCMEM_E_PROTOCOL, "the daemon answered without a lease, with "
						     "nothing, or unaligned");
	*ret_reply = (struct wire_acquire_reply){.lease = a->lease,
						 .offset = a->offset,
						 .n_bytes = a->n_bytes,
						 .first_page = a->first_page,
						 .n_pages = a->n_pages,
						 .chunk = a->chunk};
	return 0;
}

int ring_take(struct dcmem *model, struct served_ring *ring, uint32_t slot,
	      struct wire_acquire_reply *ret_reply)
{
	struct shm_answer answer;
	bool lost = ring->session != transport_session(&model->served->transport);

	pthread_mutex_lock(&ring->lock);
	ring_reap(ring);
	if (ring->slots[slot].state != SLOT_ANSWERED) {
		lost |= ring->broken;
		pthread_mutex_unlock(&ring->lock);
		return lost ? -ENOTCONN : -EINPROGRESS;
	}
	answer = ring->slots[slot].answer;
	ring_free_slot(ring, slot);
	pthread_mutex_unlock(&ring->lock);
	return ring_check(&answer, ret_reply);
}

void ring_drop(struct served_ring *ring, uint32_t slot)
{
	pthread_mutex_lock(&ring->lock);
	ring_reap(ring);
	if (ring->slots[slot].state == SLOT_ASKED) {
		ring->slots[slot].state = SLOT_DROPPED;
	} else if (ring->slots[slot].state == SLOT_ANSWERED) {
		/* As if it came only now. */
		struct shm_answer answer = ring->slots[slot].answer;

		ring->slots[slot].state = SLOT_DROPPED;
		ring_reap_one(ring, &answer);
	}
	pthread_mutex_unlock(&ring->lock);
	(void)ring_ring(ring);
}

/* --- waiting ---------------------------------------------------------------------------------- */

uint32_t ring_seen(const struct served_ring *ring)
{
	return ring_look(&ring->header->answered);
}

static bool ring_is_connected(const struct dcmem *model, const struct served_ring *ring)
{
	struct transport *t = &model->served->transport;
	struct pollfd hung = {.events = 0};
	bool connected;

	pthread_mutex_lock(&t->send_lock);
	hung.fd = t->fd;
	connected = t->fd >= 0 && t->session == ring->session && poll(&hung, 1, 0) == 0;
	pthread_mutex_unlock(&t->send_lock);
	return connected;
}

static void ring_spin(const struct served_ring *ring, uint32_t seen)
{
	uint64_t began;

	if (!shared_load_relaxed(&ring->header->may_spin))
		return;
	began = clock_now_ns();
	while (ring_seen(ring) == seen && shared_load_relaxed(&ring->header->may_spin) &&
	       !shared_load_relaxed(&ring->header->daemon_sleeps) &&
	       clock_now_ns() - began < SPIN_NS)
		for (unsigned i = 0; i < 16 && ring_seen(ring) == seen; i++)
			ring_pause();
}

bool ring_wait(struct dcmem *model, struct served_ring *ring, uint32_t seen, uint64_t deadline_ns)
{
	bool connected = true;

	ring_spin(ring, seen);
	while (ring_seen(ring) == seen && connected) {
		uint64_t now = clock_now_ns();

		if (now >= deadline_ns)
			break;
		__atomic_fetch_add(&ring->header->sleepers, 1, __ATOMIC_SEQ_CST);
		ring_sleep(&ring->header->answered, seen, min_u64(deadline_ns - now, SLICE_NS));
		__atomic_fetch_sub(&ring->header->sleepers, 1, __ATOMIC_SEQ_CST);
		connected = ring_seen(ring) != seen || clock_now_ns() - now < SLICE_NS / 2 ||
			    ring_is_connected(model, ring);
	}
	return connected;
}

int ring_call(struct dcmem *model, const struct wire_acquire *asked,
	      struct wire_acquire_reply *ret_reply, uint64_t *ret_session)
{
	struct transport *t = &model->served->transport;
	struct served_ring *ring = ring_now(model->served);
	uint64_t deadline = 0;
	uint32_t slot;
	int r;

	if (!ring || ring_submit(ring, asked, &slot) != 0)
		return -ENOTCONN;
	client_count(&model->counts.requests, 1);
	for (;;) {
		uint32_t seen = ring_seen(ring);

		r = ring_take(model, ring, slot, ret_reply);
		if (r != -EINPROGRESS)
			break;
		deadline = deadline ? deadline
				    : clock_now_ns() + t->options.timeout_ms * NS_PER_MS;
		if (!ring_wait(model, ring, seen, deadline)) {
			r = -ENOTCONN;
		} else if (clock_now_ns() >= deadline && ring_seen(ring) == seen) {
			r = message_set(-ETIMEDOUT, "the daemon at %s did not answer in %u ms",
					t->options.path, t->options.timeout_ms);
		} else {
			continue;
		}
		ring_drop(ring, slot);
		break;
	}
	*ret_session = ring->session;
	return r;
}

void ring_want_note(struct served_ring *ring)
{
	ring_publish(&ring->header->wants_note, 1);
}

int ring_open_notes(struct dcmem *model, struct served_ring *ring)
{
	struct transport *t = &model->served->transport;
	struct wire_segment body = {0};
	struct transport_reply reply;
	int r = 0;

	pthread_mutex_lock(&t->lock);
	if (ring->session != t->session)
		r = -ENOTCONN;
	else if (ring->note_fd < 0)
		r = transport_request(t, WIRE_NOTES, &body, sizeof(body), NULL, 0, &reply);
	if (r == 0 && ring->note_fd < 0)
		ring->note_fd = reply.fds[0];
	pthread_mutex_unlock(&t->lock);
	return r;
}

void ring_lose(struct dcmem *model, const struct served_ring *ring)
{
	struct transport *t = &model->served->transport;

	pthread_mutex_lock(&t->lock);
	if (t->session == ring->session)
		transport_close(t);
	pthread_mutex_unlock(&t->lock);
}

/* --- life ------------------------------------------------------------------------------------- */

static void ring_free(struct served_ring *ring)
{
	fork_hole_remove(&ring->hole);
	served_unmap(&ring->map);
	(void)close_fd(ring->bell_fd);
	(void)close_fd(ring->note_fd);
	(void)pthread_mutex_destroy(&ring->lock);
	memory_free(ring->slots);
	memory_free(ring);
}

static bool ring_fits(const struct served_ring *ring, uint64_t asks, uint64_t answers)
{
	uint64_t n_bytes = ring->map.n_bytes;

	return ring->header->magic == SHM_RING_MAGIC && ring->header->version == 1 &&
	       ring->header->n_entries == ring->n && asks % 64 == 0 && answers % 64 == 0 &&
	       range_fits_records(asks, ring->n, sizeof(struct shm_ask), n_bytes) &&
	       range_fits_records(answers, ring->n, sizeof(struct shm_answer), n_bytes);
}

static int ring_map(struct served_ring *ring, struct transport_reply *reply)
{
	uint64_t n_bytes = reply->message.segment_reply.n_bytes, asks, answers;
	int r;

	ring->n = reply->message.segment_reply.id;
	if (ring->n == 0 || ring->n & (ring->n - 1) || ring->n > MAX_ENTRIES ||
	    n_bytes < sizeof(struct shm_ring_header))
		return DCMEM_E_PROTOCOL;
	r = served_map_fd(reply->fds[0], n_bytes, &ring->map); /* for its checks */
	if (r != 0)
		return r;
	served_unmap(&ring->map);
	ring->map.base = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, reply->fds[0], 0);
	if (ring->map.base == MAP_FAILED) {
		ring->map.base = NULL;
		return -ENOMEM;
	}
	ring->map.n_bytes = n_bytes;
	ring->header = ring->map.base;
	asks = ring->header->asks_offset;
	answers = ring->header->answers_offset;
	if (!ring_fits(ring, asks, answers))
		return DCMEM_E_PROTOCOL;
	ring->asks = (void *)((uint8_t *)ring->map.base + asks);
	ring->answers = (const void *)((const uint8_t *)ring->map.base + answers);
	ring->slots = memory_array(ring->n, sizeof(*ring->slots));
	if (!ring->slots)
		return -ENOMEM;
	for (uint32_t i = ring->n; i > 0; i--)
		ring_free_slot(ring, i - 1);
	ring->bell_fd = reply->fds[1];
	reply->fds[1] = -1;
	return fork_hole_add(&ring->hole, ring->map.base, ring->map.n_bytes);
}

void ring_open(struct dcmem *model)
{
	struct served *served = model->served;
	struct transport *t = &served->transport;
	struct wire_segment body = {0};
	struct transport_reply reply;
	struct served_ring *ring;

	if (!(t->features & WIRE_FEATURE_RING) || model->flags & DCMEM_OPEN_LOCAL)
		return;
	if (transport_request(t, WIRE_RING, &body, sizeof(body), NULL, 0, &reply) != 0)
		return;
	ring = memory_zalloc(sizeof(*ring));
	if (!ring) {
		transport_reply_close(&reply);
		return;
	}
	(void)pthread_mutex_init(&ring->lock, NULL);
	ring->bell_fd = ring->note_fd = -1;
	if (ring_map(ring, &reply) != 0) {
		ring_free(ring);
		ring = NULL;
	}
	transport_reply_close(&reply);
	if (!ring)
		return;
	ring->session = transport_session(t);
	ring->model = served->model;
	ring->next = served->ring;
	__atomic_store_n(&served->ring, ring, __ATOMIC_RELEASE);
}

void ring_close(struct served *served)
{
	while (served->ring) {
		struct served_ring *ring = served->ring;

		served->ring = ring->next;
		ring_free(ring);
	}
}
