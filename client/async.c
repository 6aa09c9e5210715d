/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asks that nobody waits for in a call: a table of them, and the descriptor that says when to look.
 * Any thread; the table is under asks->lock, which is not held while waiting for answers.
 *
 *   DEFERRED   to be answered by the next look, as dcmem_acquire() would: without a ring, and where
 *              the daemon went away, moved the tensor or wants memory back first
 *   RINGING    on its way through a slot of a ring
 *   DONE       answered, not handed out
 */
#include <errno.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/range.h"
#include "served.h"

enum ask_state { ASK_FREE, ASK_DEFERRED, ASK_RINGING, ASK_DONE };

struct client_ask {
	enum ask_state state;
	void *data;
	struct client_tensor tensor;
	uint64_t row, n_rows;
	struct wire_acquire pages; /* RINGING */
	struct served_ring *ring;
	uint32_t slot;
	int result; /* DONE */
	struct dcmem_view view;
};

struct client_asks {
	pthread_mutex_t lock;
	unsigned n_used, first_free, n_ringing;
	int event_fd; /* an epoll set of the two below; -1: nobody wanted it yet */
	int ready_fd; /* an eventfd of ours: something to do without the daemon */
	const struct served_ring *noting; /* whose socket of notes is in the set */
	struct client_ask asks[DCMEM_MAX_ASKS];
};

static struct client_asks *asks_of(struct dcmem *model)
{
	struct client_asks *asks = __atomic_load_n(&model->asks, __ATOMIC_ACQUIRE), *none = NULL;

	if (asks)
		return asks;
	asks = memory_zalloc(sizeof(*asks));
	if (!asks)
		return NULL;
	(void)pthread_mutex_init(&asks->lock, NULL);
	asks->event_fd = asks->ready_fd = -1;
	if (__atomic_compare_exchange_n(&model->asks, &none, asks, false, __ATOMIC_ACQ_REL,
					__ATOMIC_ACQUIRE))
		return asks;
	(void)pthread_mutex_destroy(&asks->lock);
	memory_free(asks);
	return none;
}

void asks_forget(struct dcmem *model)
{
	struct client_asks *asks = __atomic_load_n(&model->asks, __ATOMIC_ACQUIRE);

	if (!asks)
		return;
	asks->event_fd = close_fd(asks->event_fd);
	asks->ready_fd = close_fd(asks->ready_fd);
}

void asks_free(struct dcmem *model)
{
	struct client_asks *asks = __atomic_load_n(&model->asks, __ATOMIC_ACQUIRE);

	if (!asks)
		return;
	for (unsigned i = 0; i < DCMEM_MAX_ASKS; i++) {
		struct client_ask *ask = &asks->asks[i];

		if (ask->state == ASK_RINGING)
			ring_drop(ask->ring, ask->slot);
		else if (ask->state == ASK_DONE && ask->result == 0)
			dcmem_release(model, &ask->view);
	}
	asks_forget(model);
	(void)pthread_mutex_destroy(&asks->lock);
	model->asks = memory_free(asks);
}

/* --- one ask ---------------------------------------------------------------------------------- */

static void ask_done(struct client_asks *asks, struct client_ask *ask, int result)
{
	asks->n_ringing -= ask->state == ASK_RINGING;
	ask->state = ASK_DONE;
	ask->result = result;
}

static void ask_defer(struct client_asks *asks, struct client_ask *ask)
{
	asks->n_ringing -= ask->state == ASK_RINGING;
	ask->state = ASK_DEFERRED;
}

/* Into the ring, or answered at once, or put off. */
static void ask_start(struct dcmem *model, struct client_asks *asks, struct client_ask *ask,
		      uint64_t id)
{
	struct served_ring *ring = model->served ? ring_now(model->served) : NULL;
	bool raw = false, kept = false;
	int r;

	ask->state = ASK_DEFERRED;
	r = client_tensor(model, id, &ask->tensor);
	if (r == 0)
		r = client_check_rows(&ask->tensor, ask->row, &ask->n_rows);
	if (r != 0) {
		ask_done(asks, ask, r);
		return;
	}
	if (!ring || ask->n_rows == 0 || ask->tensor.shape.row_bytes == 0)
		return;
	r = served_is_raw(model, &ask->tensor, &raw);
	if (r != 0 || raw)
		return;
	window_pages(&ask->tensor, ask->row, ask->n_rows, &ask->pages);
	r = window_take_kept(model, &ask->tensor, ask->row, ask->n_rows, &ask->pages, &ask->view,
			     &kept);
	if (kept) {
		ask_done(asks, ask, r);
		return;
	}
	if (ring_submit(ring, &ask->pages, &ask->slot) != 0)
		return;
	client_count(&model->counts.requests, 1);
	ask->ring = ring;
	ask->state = ASK_RINGING;
	asks->n_ringing++;
}

/* Goes on with one as far as it goes without waiting for the daemon, where it has a ring. */
static void ask_look(struct dcmem *model, struct client_asks *asks, struct client_ask *ask)
{
	struct wire_acquire_reply got;
	int r;

	if (ask->state == ASK_RINGING) {
		r = ring_take(model, ask->ring, ask->slot, &got);
		if (r == -EINPROGRESS)
			return;
		if (r == -ENOTCONN)
			ring_drop(ask->ring, ask->slot);
		if (r == 0)
			r = window_take(model, &ask->tensor, ask->row, ask->n_rows, &ask->pages,
					&got, ask->ring->session, &ask->view);
		if (r == -ENOTCONN || r == -EAGAIN || r == -ESTALE || r == DCMEM_E_NOT_FOUND)
			ask_defer(asks, ask);
		else
			ask_done(asks, ask, r);
	}
	if (ask->state == ASK_DEFERRED)
		ask_done(asks, ask,
			 api_acquire(model, &ask->tensor, ask->row, ask->n_rows, &ask->view));
}

/* --- all of them ------------------------------------------------------------------------------ */

/* With asks->lock held. */
static size_t asks_collect(struct dcmem *model, struct client_asks *asks,
			   struct dcmem_answer *answers, size_t capacity)
{
	size_t n = 0;

	for (unsigned i = 0, left = asks->n_used; left && n < capacity; i++) {
		struct client_ask *ask = &asks->asks[i];

		if (ask->state == ASK_FREE)
			continue;
		left--;
		ask_look(model, asks, ask);
		if (ask->state != ASK_DONE)
			continue;
		answers[n++] = (struct dcmem_answer){.data = ask->data,
						     .result = ask->result,
						     .view = ask->view};
		*ask = (struct client_ask){.state = ASK_FREE};
		asks->n_used--;
		asks->first_free = i < asks->first_free ? i : asks->first_free;
	}
	return n;
}

/* With asks->lock held: the descriptor becomes readable if there may be something to do now. */
static void asks_signal(struct client_asks *asks, bool more)
{
	const uint64_t one = 1;

	if (asks->ready_fd >= 0 && (more || asks->n_used > asks->n_ringing))
		(void)!write(asks->ready_fd, &one, sizeof(one));
}

/* Forgets the notes that came. At their end the daemon is gone, and so is the connection. */
static void asks_drain(struct dcmem *model, struct client_asks *asks)
{
	uint64_t count;
	ssize_t n;
	char byte;

	(void)!read(asks->ready_fd, &count, sizeof(count));
	if (!asks->noting)
		return;
	do {
		n = recv(asks->noting->note_fd, &byte, 1, MSG_DONTWAIT);
	} while (n > 0);
	if (n < 0)
		return;
	(void)epoll_ctl(asks->event_fd, EPOLL_CTL_DEL, asks->noting->note_fd, NULL);
	ring_lose(model, asks->noting);
	asks->noting = NULL;
}

/* With asks->lock held, before looking: what comes from now on makes the descriptor readable. */
static void asks_listen(struct dcmem *model, struct client_asks *asks)
{
	struct served_ring *ring = model->served ? ring_now(model->served) : NULL;
	struct epoll_event event = {.events = EPOLLIN};

	if (!ring || asks->event_fd < 0)
		return;
	if (ring != asks->noting && ring_open_notes(model, ring) == 0 &&
	    epoll_ctl(asks->event_fd, EPOLL_CTL_ADD, ring->note_fd, &event) == 0) {
		if (asks->noting)
			(void)epoll_ctl(asks->event_fd, EPOLL_CTL_DEL, asks->noting->note_fd, NULL);
		asks->noting = ring;
	}
	if (ring == asks->noting)
		ring_want_note(ring);
}

static int asks_enter(struct dcmem *model, const struct dcmem_answer *answers, size_t capacity,
		      const size_t *ret_n, struct client_asks **ret_asks)
{
	int r = api_enter(model);

	if (r != 0 && r != DCMEM_E_RETIRED) /* answers that are due are handed out all the same */
		return r;
	if (!ret_n || (capacity && !answers))
		return message_set(DCMEM_E_INVALID, "nowhere to put answers");
	*ret_asks = asks_of(model);
	return *ret_asks ? 0 : message_set(-ENOMEM, "no memory for asks");
}

DCMEM_API int dcmem_submit(struct dcmem *model, const struct dcmem_ask *wanted, size_t n,
			   size_t *ret_n)
{
	struct client_asks *asks;
	size_t taken = 0;
	int r = api_enter(model);

	if (r != 0)
		return r;
	if (!ret_n || (n && !wanted))
		return message_set(DCMEM_E_INVALID, "no asks, or nowhere to count them");
	asks = asks_of(model);
	if (!asks)
		return message_set(-ENOMEM, "no memory for asks");
	pthread_mutex_lock(&asks->lock);
	for (; taken < n && asks->n_used < DCMEM_MAX_ASKS; taken++) {
		struct client_ask *ask;

		while (asks->asks[asks->first_free].state != ASK_FREE)
			asks->first_free++;
		ask = &asks->asks[asks->first_free];
		*ask = (struct client_ask){.data = wanted[taken].data,
					   .row = wanted[taken].row,
					   .n_rows = wanted[taken].n_rows};
		asks->n_used++;
		ask_start(model, asks, ask, wanted[taken].tensor);
	}
	asks_signal(asks, false);
	pthread_mutex_unlock(&asks->lock);
	message_clear();
	*ret_n = taken;
	return 0;
}

DCMEM_API int dcmem_poll(struct dcmem *model, struct dcmem_answer *answers, size_t capacity,
			 size_t *ret_n)
{
	struct client_asks *asks;
	int r = asks_enter(model, answers, capacity, ret_n, &asks);

	if (r != 0)
		return r;
	pthread_mutex_lock(&asks->lock);
	if (asks->event_fd >= 0)
		asks_drain(model, asks);
	asks_listen(model, asks);
	*ret_n = asks_collect(model, asks, answers, capacity);
	asks_listen(model, asks); /* looking may have connected again */
	asks_signal(asks, *ret_n == capacity && asks->n_used);
	pthread_mutex_unlock(&asks->lock);
	return 0;
}

/* A ring that somebody's answer will come through; NULL: none is on its way. */
static struct served_ring *asks_ringing(struct client_asks *asks)
{
	struct served_ring *ring = NULL;

	pthread_mutex_lock(&asks->lock);
	for (unsigned i = 0; i < DCMEM_MAX_ASKS && !ring && asks->n_ringing; i++)
		if (asks->asks[i].state == ASK_RINGING)
			ring = asks->asks[i].ring;
	pthread_mutex_unlock(&asks->lock);
	return ring;
}

DCMEM_API int dcmem_wait(struct dcmem *model, struct dcmem_answer *answers, size_t capacity,
			 uint32_t timeout_ms, size_t *ret_n)
{
	uint64_t deadline = clock_now_ns() + timeout_ms * NS_PER_MS;
	struct client_asks *asks;
	int r = asks_enter(model, answers, capacity, ret_n, &asks);

	for (size_t n = 0; r == 0; ) {
		struct served_ring *ring = asks_ringing(asks);
		uint32_t seen = ring ? ring_seen(ring) : 0;

		r = dcmem_poll(model, answers, capacity, &n);
		if (r != 0)
			break;
		if (n > 0 || capacity == 0 || !asks_ringing(asks) || clock_now_ns() >= deadline) {
			*ret_n = n;
			break;
		}
		/* Gone: the connection is closed, so that the next look puts the asks off. */
		if (ring && !ring_wait(model, ring, seen, deadline))
			ring_lose(model, ring);
	}
	return r;
}

DCMEM_API int dcmem_event_fd(struct dcmem *model, int *ret_fd)
{
	struct epoll_event event = {.events = EPOLLIN};
	struct client_asks *asks;
	size_t unused;
	int r = asks_enter(model, NULL, 0, &unused, &asks);

	if (r == 0 && !ret_fd)
		r = message_set(DCMEM_E_INVALID, "nowhere to put the descriptor");
	if (r != 0)
		return r;
	pthread_mutex_lock(&asks->lock);
	if (asks->event_fd < 0) {
		asks->event_fd = epoll_create1(EPOLL_CLOEXEC);
		asks->ready_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		if (asks->event_fd < 0 || asks->ready_fd < 0 ||
		    epoll_ctl(asks->event_fd, EPOLL_CTL_ADD, asks->ready_fd, &event) < 0) {
			r = message_set(-errno, "cannot make a descriptor for events");
			asks_forget(model);
		} else {
			asks_listen(model, asks);
			asks_signal(asks, true);
		}
	}
	if (r == 0)
		*ret_fd = asks->event_fd;
	pthread_mutex_unlock(&asks->lock);
	return r;
}
