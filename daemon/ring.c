/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rings: asks copied out of shared memory once, checked, and passed to the store; its answers put
 * back. Owns the memory, the bell and the answers that are due. Refuses asks of no known kind, more
 * of them than the ring has entries, and more answers due than that: each ends the session. Loop
 * thread. Nothing that a client writes is believed, and no call here waits for one: memory is written
 * through the daemon's own mapping, sleepers are woken by a futex, notes go to a socket of our own.
 */
#include "daemon/ring.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/message.h"
#include "proto/ring.h"
#include "proto/shared.h"
#include "proto/wire.h"
#include "region.h"

#define RING_ENTRIES 128   /* 25 KiB a client; untuned */
#define RING_BATCH 32	   /* asks of one ring before the next one's turn; untuned */
#define RING_TURN_NS 5000  /* of looking at rings, before the loop looks at sockets */
#define CPUS_NS NS_PER_S   /* how long a count of CPUs is believed; untuned */
#define RING_SPIN_NS 50000 /* after the last ask: about what waking a CPU that halted takes */

struct ring_wait {
	struct ring *ring;
	struct ring_wait *next; /* free ones */
	uint64_t tag;
};

struct ring {
	struct rings *rings;
	struct ring *next, **link; /* of the hot ones */
	bool hot, stopped;
	bool serving;	 /* those who wait are told once, at the end */
	bool unannounced; /* there are answers that nobody was told of */
	struct store_client *client;
	struct region region;
	struct shm_ring_header *header;
	const struct shm_ask *asks;
	struct shm_answer *answers;
	int bell_fd, note_fd; /* note_fd -1: nobody wants notes */
	struct loop_op bell;
	uint32_t taken, answered; /* ours: what lies in shared memory is for the client */
	uint64_t asked_ns;	  /* when it was last asked something */
	pid_t pid;
	unsigned n_cpus;    /* that its client or we may run on */
	uint64_t n_cpus_ns; /* when that was so */
	struct ring_owner owner;
	struct ring_wait *free_waits;
	struct ring_wait waits[RING_ENTRIES];
};

void rings_init(struct rings *rings, struct loop *loop)
{
	*rings = (struct rings){.loop = loop};
	loop_set_poller(loop, rings_poll, rings);
}

/* --- hot and cold ----------------------------------------------------------------------------- */

static void ring_count_cpus(struct ring *ring)
{
	cpu_set_t ours, theirs, both;

	if (ring->n_cpus && ring->asked_ns - ring->n_cpus_ns < CPUS_NS)
		return;
	CPU_ZERO(&both);
	if (sched_getaffinity(0, sizeof(ours), &ours) == 0 &&
	    sched_getaffinity(ring->pid, sizeof(theirs), &theirs) == 0)
		CPU_OR(&both, &ours, &theirs);
	ring->n_cpus = CPU_COUNT(&both) ? (unsigned)CPU_COUNT(&both) : 1;
	ring->n_cpus_ns = ring->asked_ns;
}

/* Everybody at work may spin, and so may we. */
static bool ring_may_spin(const struct ring *ring)
{
	return ring->rings->n_hot < ring->n_cpus;
}

static void ring_heat(struct ring *ring)
{
	struct rings *rings = ring->rings;

	ring->asked_ns = clock_now_ns();
	if (ring->hot || ring->stopped)
		return;
	ring_count_cpus(ring);
	ring->hot = true;
	ring->next = rings->hot;
	ring->link = &rings->hot;
	if (ring->next)
		ring->next->link = &ring->next;
	rings->hot = ring;
	rings->n_hot++;
	shared_store_relaxed(&ring->header->daemon_sleeps, 0);
}

static void ring_leave(struct ring *ring)
{
	if (!ring->hot)
		return;
	ring->hot = false;
	*ring->link = ring->next;
	if (ring->next)
		ring->next->link = ring->link;
	ring->rings->n_hot--;
}

/* From now on its client rings; unless it asked something in this moment. */
static void ring_cool(struct ring *ring)
{
	ring_publish(&ring->header->daemon_sleeps, 1);
	if (ring_look(&ring->header->asked) != ring->taken) {
		shared_store_relaxed(&ring->header->daemon_sleeps, 0);
		ring->asked_ns = clock_now_ns();
		return;
	}
	ring_leave(ring);
}

/* --- answers ---------------------------------------------------------------------------------- */

/* Tells those who sleep of the answers that were published. */
static void ring_announce(struct ring *ring)
{
	struct shm_ring_header *header = ring->header;

	ring->unannounced = false;
	if (ring_look(&header->sleepers)) {
		ring->rings->n_wakes++;
		ring_wake(&header->answered);
	}
	if (ring->note_fd >= 0 && __atomic_exchange_n(&header->wants_note, 0, __ATOMIC_SEQ_CST))
		(void)send(ring->note_fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void ring_answer(struct ring *ring, const struct shm_answer *answer)
{
	ring->answers[ring->answered % RING_ENTRIES] = *answer;
	ring_publish(&ring->header->answered, ++ring->answered);
	ring->unannounced = true;
	if (!ring->serving)
		ring_announce(ring);
}

static void ring_give(struct ring *ring, uint64_t tag, int result,
		      const struct store_window *window, const char *message)
{
	struct shm_answer answer = {.tag = tag, .status = wire_status_of(result)};

	if (result) {
		snprintf(answer.text, sizeof(answer.text), "%s", message ? message : "");
	} else {
		answer.chunk = window->chunk;
		answer.lease = window->lease;
		answer.offset = window->offset;
		answer.n_bytes = window->n_bytes;
		answer.first_page = window->first_page;
		answer.n_pages = window->n_pages;
	}
	ring_answer(ring, &answer);
}

static void ring_acquired(void *data, int result, const struct store_window *window,
			  const char *message)
{
	struct ring_wait *wait = data;
	struct ring *ring = wait->ring;

	wait->next = ring->free_waits;
	ring->free_waits = wait;
	ring_give(ring, wait->tag, result, window, message);
	if (!ring->stopped)
		ring_heat(ring);
}

/* --- asks ------------------------------------------------------------------------------------- */

static void ring_acquire(struct ring *ring, const struct shm_ask *ask)
{
	struct ring_wait *wait = ring->free_waits;
	struct store_window window;
	int r;

	ring->free_waits = wait->next;
	wait->tag = ask->tag;
	message_clear();
	r = store_acquire(ring->client, ask->model, ask->tensor, ask->first_page, ask->n_pages,
			  ring_acquired, wait, &window);
	if (r == STORE_PENDING)
		return;
	wait->next = ring->free_waits;
	ring->free_waits = wait;
	ring_give(ring, ask->tag, r, &window, message_get());
}

static const char *ring_ask(struct ring *ring, const struct shm_ask *ask)
{
	if (ask->reserved || ask->reserved_2[0] || ask->reserved_2[1])
		return "an ask with reserved bits";
	switch (ask->type) {
	case SHM_ASK_ACQUIRE:
		ring_acquire(ring, ask);
		return NULL;
	case SHM_ASK_RELEASE:
		return store_release(ring->client, ask->tag) ? "it released what it lacks" : NULL;
	case SHM_ASK_PREFETCH:
		/* a hint: what is wrong with it, nobody waits to hear */
		(void)store_prefetch(ring->client, ask->model, ask->tensor, ask->first_page,
				     ask->n_pages);
		return NULL;
	default:
		return "an ask without meaning";
	}
}

/* What was asked since the last time. True: there was something. */
static bool ring_serve(struct ring *ring)
{
	struct rings *rings = ring->rings;
	uint32_t asked = ring_look(&ring->header->asked), n = asked - ring->taken;
	const char *wrong = NULL;

	if (!n)
		return false;
	ring->serving = true;
	if (n > RING_ENTRIES)
		wrong = "more asks than its ring has room for";
	for (n = n < RING_BATCH ? n : RING_BATCH; n && !wrong && !ring->stopped; n--) {
		const struct shm_ask *from = &ring->asks[ring->taken % RING_ENTRIES];
		struct shm_ask ask;

		ring_copy(&ask, from, sizeof(ask));
		if (ask.type == SHM_ASK_ACQUIRE && !ring->free_waits) {
			wrong = "more answers due than its ring has room for";
			break;
		}
		shared_store_release(&ring->header->taken, ++ring->taken);
		rings->n_asks++;
		wrong = ring_ask(ring, &ask);
	}
	ring->serving = false;
	if (ring->unannounced)
		ring_announce(ring);
	if (wrong && !ring->stopped)
		ring->owner.failed(ring->owner.data, wrong);
	ring->asked_ns = clock_now_ns();
	if (shared_load_relaxed(&ring->header->may_spin) != ring_may_spin(ring))
		shared_store_relaxed(&ring->header->may_spin, ring_may_spin(ring));
	return true;
}

static void rings_cool(struct rings *rings)
{
	uint64_t now = clock_now_ns();
	struct ring *ring, *next;

	for (ring = rings->hot; ring; ring = next) {
		next = ring->next;
		if (ring->stopped)
			ring_leave(ring);
		else if (!ring_may_spin(ring) || now - ring->asked_ns > RING_SPIN_NS)
			ring_cool(ring);
	}
}

bool rings_poll(void *data)
{
	struct rings *rings = data;
	uint64_t began;
	bool again;

	if (!rings->hot)
		return false;
	began = clock_now_ns();
	do {
		again = false;
		/* Serving one may stop others; none leaves the list before the walk is over. */
		rings->walking = true;
		for (struct ring *ring = rings->hot; ring; ring = ring->next)
			again |= !ring->stopped && (ring_serve(ring) || ring_may_spin(ring));
		rings->walking = false;
	} while (again && clock_now_ns() - began < RING_TURN_NS);
	rings_cool(rings);
	return rings->hot;
}

/* --- life ------------------------------------------------------------------------------------- */

static void ring_rung(struct loop_op *op, int result)
{
	struct ring *ring = op->data;

	if (ring->stopped) {
		if (!op->active)
			ring->owner.ended(ring->owner.data); /* may free it */
		return;
	}
	if (result < 0) {
		ring->owner.failed(ring->owner.data, "its bell is broken");
		return;
	}
	ring->rings->n_bells++;
	ring_heat(ring);
}

static int ring_map(struct ring *ring)
{
	uint64_t asks = sizeof(struct shm_ring_header);
	uint64_t answers = asks + RING_ENTRIES * sizeof(struct shm_ask);
	uint64_t n_bytes = answers + RING_ENTRIES * sizeof(struct shm_answer);
	int r = store_shared_region(ring->client, "dcmem-ring", n_bytes, &ring->region);

	if (r)
		return r;
	ring->header = ring->region.data;
	ring->asks = (const void *)((const uint8_t *)ring->region.data + asks);
	ring->answers = (void *)((uint8_t *)ring->region.data + answers);
	*ring->header = (struct shm_ring_header){
		.magic = SHM_RING_MAGIC,
		.version = 1,
		.n_entries = RING_ENTRIES,
		.asks_offset = asks,
		.answers_offset = answers,
		.daemon_sleeps = 1,
	};
	return 0;
}

int ring_new(struct rings *rings, struct store_client *client, pid_t pid,
	     const struct ring_owner *owner, struct ring **ret_ring,
	     struct ring_gift *ret_gift)
{
	struct ring *ring = memory_zalloc(sizeof(*ring));
	_cleanup_(cleanup_fd) int memory_fd = -1;
	_cleanup_(cleanup_fd) int bell_fd = -1;
	int r;

	if (!ring)
		return message_set(-ENOMEM, "no memory for a ring");
	*ring = (struct ring){.rings = rings,
			      .client = client,
			      .pid = pid,
			      .owner = *owner,
			      .region = REGION_NONE,
			      .bell_fd = -1,
			      .note_fd = -1,
			      .bell.data = ring};
	for (unsigned i = 0; i < RING_ENTRIES; i++) {
		ring->waits[i] = (struct ring_wait){.ring = ring, .next = ring->free_waits};
		ring->free_waits = &ring->waits[i];
	}
	r = ring_map(ring);
	if (!r)
		r = region_reopen_writable(&ring->region, &memory_fd);
	if (!r) {
		ring->bell_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
		bell_fd = ring->bell_fd < 0 ? -1 : fcntl(ring->bell_fd, F_DUPFD_CLOEXEC, 3);
		if (bell_fd < 0)
			r = message_set(-errno, "cannot make a bell: %s", strerror(errno));
	}
	/* Edges alone: the count is never read, so that nobody's flags on it matter. */
	if (!r)
		r = loop_poll(rings->loop, &ring->bell, ring->bell_fd, POLLIN | EPOLLET, ring_rung);
	if (r) {
		region_close(&ring->region);
		close_fd(ring->bell_fd);
		memory_free(ring);
		return r;
	}
	rings->n_rings++;
	*ret_gift = (struct ring_gift){.memory_fd = take_fd(&memory_fd),
				       .bell_fd = take_fd(&bell_fd),
				       .n_bytes = ring->region.n_bytes,
				       .n_entries = RING_ENTRIES};
	*ret_ring = ring;
	return 0;
}

int ring_notes(struct ring *ring, int *ret_fd)
{
	int fds[2];

	if (ring->note_fd >= 0)
		return message_set(STORE_E_INVALID, "the ring has its socket for notes already");
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) < 0)
		return message_set(-errno, "cannot make a socket for notes: %s", strerror(errno));
	ring->note_fd = fds[0];
	*ret_fd = fds[1];
	return 0;
}

void ring_stop(struct ring *ring)
{
	if (!ring || ring->stopped)
		return;
	ring->stopped = true;
	ring->note_fd = close_fd(ring->note_fd);
	if (!ring->rings->walking)
		ring_leave(ring);
	loop_cancel(ring->rings->loop, &ring->bell);
}

bool ring_is_idle(const struct ring *ring)
{
	return !ring || !ring->bell.active;
}

struct ring *ring_free(struct ring *ring)
{
	if (!ring)
		return NULL;
	ring_leave(ring);
	ring->rings->n_rings--;
	loop_close(ring->rings->loop, ring->bell_fd);
	region_close(&ring->region);
	return memory_free(ring);
}
