/* SPDX-License-Identifier: Apache-2.0 */
/* The state of a model that a daemon serves: served.c attaches and reads, chunk.c has the windows. */
#ifndef DCMEM_SERVED_H
#define DCMEM_SERVED_H

#include "client.h"

struct served_map {
	void *base;
	uint64_t n_bytes;
};

/* A placement table, its header copied and checked when it was mapped. */
struct served_placement {
	struct served_placement *next; /* older ones stay mapped: a reader may be in one */
	struct served_map map;
	const struct shm_placement_header *header;
	const struct shm_placement *records;
	const uint32_t *chunks;
	uint32_t n_chunks;
};

struct served_segment {
	const uint8_t *base; /* NULL: not mapped yet */
	uint64_t n_bytes;
	bool viewed; /* a zero-copy view was handed out: stays until the model is closed */
};

/* A mapping that a forked child does not get: fork.c puts unreadable pages in its place there. */
struct fork_hole {
	struct fork_hole *previous, *next;
	void *base;
	uint64_t n_bytes;
};

/* 0 or -errno. The mapping must stay until fork_hole_remove(), which an unused hole may meet too. */
int fork_hole_add(struct fork_hole *hole, void *base, uint64_t n_bytes);
void fork_hole_remove(struct fork_hole *hole);

struct served_chunk {
	struct served_chunk *next;
	uint64_t session; /* the connection that its number belongs to */
	uint64_t model;	  /* the daemon's number of the model there */
	uint64_t n_leases;
	struct served_map map;
	struct fork_hole hole;
	uint32_t id;
};

struct served {
	struct transport transport;
	char name[WIRE_MAX_NAME + 1];
	struct served_map index;
	uint32_t n_segments;
	/* under transport->lock */
	uint64_t model; /* the daemon's number, of the present connection; atomic */
	bool attached;
	/* atomics, stored under transport->lock */
	struct served_placement *placement;
	uint64_t attached_session; /* after `model` */
	/* under model->lock */
	struct served_segment *segments;
	struct served_chunk *chunks;
	uint64_t n_readers; /* calls between served_enter() and served_leave() */
	uint64_t seen_session;
	uint32_t seen_epoch;
	bool retired;
};

static inline struct served_placement *served_placement(const struct served *served)
{
	return __atomic_load_n(&served->placement, __ATOMIC_ACQUIRE);
}

/*
 * One round trip about the model, reconnecting once where the connection is lost. `body` starts with
 * the daemon's model number, filled in here. `pinned` not 0: -ESTALE unless the connection is that
 * one. *ret_session, *ret_model: the connection that answered and the model's number there.
 */
int served_call(struct dcmem *model, uint64_t pinned, uint16_t type, void *body, size_t body_bytes,
		struct transport_reply *ret_reply, uint64_t *ret_session, uint64_t *ret_model);
/* Maps the first n_bytes of a sealed object read-only. */
int served_map_fd(int fd, uint64_t n_bytes, struct served_map *ret_map);
void served_unmap(struct served_map *map);

/* chunk.c: unmaps chunks that were retired or belong to lost connections, and says so. */
void chunk_obey(struct dcmem *model);
void chunk_free_all(struct served *served);

#endif
