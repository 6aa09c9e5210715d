/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rings of requests in shared memory (include/dcmem/shm.h). A ring that was asked something is hot:
 * it is looked at before each wait of the loop, without a system call, until it has been idle for a
 * while; then its client must ring the bell, an eventfd that the loop polls and never reads or writes.
 */
#ifndef DCMEM_DAEMON_RING_H
#define DCMEM_DAEMON_RING_H

#include "daemon/loop.h"
#include "store.h"

struct ring;

/* All of a daemon. */
struct rings {
	struct loop *loop;
	struct ring *hot;
	bool walking;
	unsigned n_hot;
	uint64_t n_rings, n_asks, n_bells, n_wakes;
};

void rings_init(struct rings *rings, struct loop *loop);
/* Before each wait of the loop. True: do not wait, only look. */
bool rings_poll(void *rings);

struct ring_owner {
	void *data;
	/* The client broke the rules: its session shall end. */
	void (*failed)(void *data, const char *why);
	/* After ring_stop(): ring_free() is allowed from now on, also in here. */
	void (*ended)(void *data);
};

struct ring_gift { /* descriptors for the client: the caller closes them after sending */
	int memory_fd, bell_fd;
	uint64_t n_bytes;
	uint32_t n_entries;
};
/* `pid` tells which CPUs the client may run on. */
int ring_new(struct rings *rings, struct store_client *client, pid_t pid,
	     const struct ring_owner *owner, struct ring **ret_ring,
	     struct ring_gift *ret_gift);
/* A socket that becomes readable when answers come; once a ring. */
int ring_notes(struct ring *ring, int *ret_fd);
/* Serves no more; before the client of the store is freed. NULL is fine. */
void ring_stop(struct ring *ring);
/* ring_free() is allowed. True of NULL. */
bool ring_is_idle(const struct ring *ring);
/* NULL is fine. Returns NULL. */
struct ring *ring_free(struct ring *ring);

#endif
