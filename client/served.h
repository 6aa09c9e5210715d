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
	const uint32_t *chunks, *segments;
	uint32_t n_chunks;
	uint64_t session; /* the connection that its numbers belong to */
};

/* One that is mapped: what lay in a slot when it had this generation. */
struct served_segment {
	struct served_segment *next;
	uint64_t session;
	uint32_t slot, generation;
	uint64_t n_users; /* reads under way and zero-copy views */
	struct served_map map;
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

/* A lease that the daemon lets us keep: in use by n_views views, or by none. */
struct served_kept {
	bool known; /* in the table: a view may use it */
	uint32_t next; /* of the same bucket: slot + 1 */
	uint64_t tensor, first_page, n_pages; /* as asked for */
	uint64_t got_first_page, remote;
	struct served_chunk *chunk;
	const uint8_t *data;
	uint64_t n_views;
};

/* The words shared with the daemon, of one connection. Under model->lock, but for their making. */
struct served_share {
	struct served_share *next; /* older ones stay: views may be counted there */
	uint64_t session;
	struct served_map map;
	struct fork_hole hole;
	uint64_t *words;
	uint64_t *counters, n_counters;
	uint32_t n; /* of words, kept and buckets */
	struct served_kept *kept;
	uint32_t *buckets; /* slot + 1 */
};

/* One ACQUIRE on its way through the ring; its place there is its number. */
struct served_slot {
	enum { SLOT_FREE, SLOT_ASKED, SLOT_DROPPED, SLOT_ANSWERED } state;
	uint32_t next;	/* free ones: slot + 1 */
	uint64_t turn;	/* high part of the tag: an answer to an earlier ask is noticed */
	struct shm_answer answer;
};

/* The ring of one connection. Under its lock, but for the words in shared memory. */
struct served_ring {
	struct served_ring *next; /* older ones stay: somebody may wait in one */
	uint64_t session, model;
	pthread_mutex_t lock;
	struct served_map map;
	struct fork_hole hole;
	struct shm_ring_header *header;
	struct shm_ask *asks;
	const struct shm_answer *answers;
	uint32_t n; /* entries and slots */
	int bell_fd, note_fd;
	bool broken;   /* what came back made no sense */
	uint32_t asked, answered; /* ours; answers before the latter were taken out */
	uint32_t free_slot;	  /* slot + 1, 0 none */
	struct served_slot *slots;
};

struct served {
	struct transport transport;
	char name[WIRE_MAX_NAME + 1];
	struct served_map index;
	/* under transport->lock */
	uint64_t model; /* the daemon's number, of the present connection; atomic */
	bool attached;
	/* atomics, stored under transport->lock */
	struct served_placement *placement;
	uint64_t attached_session; /* after `model` */
	/* under model->lock */
	struct served_segment *segments;
	struct served_segment **slots; /* SHM_MAX_SEGMENTS: the newest of each, or NULL */
	struct served_chunk *chunks;
	struct served_share *share; /* also read without it, by kept_count() */
	struct served_ring *ring; /* atomic, stored under transport->lock */
	uint64_t checked_ns; /* the connection, by kept_take() */
	uint64_t seen_session;
	uint32_t seen_epoch, seen_segment_epoch;
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

/* segment.c */
/*
 * The mapped segment, asked for at its first use; segment_leave() it. -ESTALE: something else lies in
 * the slot by now, or the connection is another one.
 */
int segment_use(struct dcmem *model, uint64_t session, uint32_t slot, uint32_t generation,
		struct served_segment **ret_segment);
/* Unmaps what was retired or belongs to lost connections, and is not in use. */
void segment_obey(struct dcmem *model);
void segment_free_all(struct served *served);

/* kept.c. The first three with model->lock held. */
/* Takes up a kept lease on exactly these pages. */
bool kept_take(struct dcmem *model, const struct wire_acquire *asked, struct client_lease *ret_lease,
	       const uint8_t **ret_data, uint64_t *ret_first_page);
/* One view less: true if the daemon must be told. */
bool kept_drop(const struct client_lease *lease);
/* The chunk is about to be unmapped. */
void kept_forget_chunk(struct served *served, const struct served_chunk *chunk);
/* A lease just granted becomes one that is kept, where the daemon offers that. */
void kept_add(struct dcmem *model, const struct wire_acquire *asked,
	      const struct wire_acquire_reply *got, const uint8_t *data, struct client_lease *lease);
/* Asks for the table of a new connection, with transport->lock held; without it all goes as before. */
void kept_open(struct dcmem *model);
void kept_close(struct served *served);
/* Time spent waiting for the daemon. */
void kept_waited(const struct served *served, uint64_t ns);

/* ring.c */
/* Asks for the ring of a new connection, with transport->lock held; without it the socket serves. */
void ring_open(struct dcmem *model);
void ring_close(struct served *served);
/* The ring of the present connection, or NULL. */
struct served_ring *ring_now(const struct served *served);
/* 0: *ret_slot is on its way. -EBUSY: the ring is full. -ENOTCONN: it serves no more. */
int ring_submit(struct served_ring *ring, const struct wire_acquire *asked, uint32_t *ret_slot);
/*
 * The answer: 0 or the daemon's result, with its sentence, and the slot is free again. -EINPROGRESS:
 * not yet. -ENOTCONN: never.
 */
int ring_take(struct dcmem *model, struct served_ring *ring, uint32_t slot,
	      struct wire_acquire_reply *ret_reply);
/* How many answers came: to be asked before ring_take(), for ring_wait() after it. */
uint32_t ring_seen(const struct served_ring *ring);
/* Until another answer came, or the time has passed. False: the daemon is gone. */
bool ring_wait(struct dcmem *model, struct served_ring *ring, uint32_t seen, uint64_t deadline_ns);
/* Nobody waits for it any more: what it gives is given back. */
void ring_drop(struct served_ring *ring, uint32_t slot);
/* A whole round trip. -ENOTCONN: ask over the socket. */
int ring_call(struct dcmem *model, const struct wire_acquire *asked,
	      struct wire_acquire_reply *ret_reply, uint64_t *ret_session);
/* RELEASE or PREFETCH; false: it did not fit, say it over the socket. */
bool ring_tell(struct served *served, uint64_t session, const struct shm_ask *ask);
/* Asks for a socket, ring->note_fd, that becomes readable with the next answer after each want. */
int ring_open_notes(struct dcmem *model, struct served_ring *ring);
void ring_want_note(struct served_ring *ring);
/* Ends the connection of a ring whose daemon is gone, so that the next request connects again. */
void ring_lose(struct dcmem *model, const struct served_ring *ring);

/* chunk.c: of a window that was asked for by the ring */
/* -ESTALE, DCMEM_E_NOT_FOUND: it was retired meanwhile, ask again. */
int window_take(struct dcmem *model, const struct client_tensor *tensor, uint64_t row,
		uint64_t n_rows, const struct wire_acquire *asked,
		const struct wire_acquire_reply *got, uint64_t session,
		struct dcmem_view *ret_view);
/* Takes up a kept lease, if there is one. */
int window_take_kept(struct dcmem *model, const struct client_tensor *tensor, uint64_t row,
		     uint64_t n_rows, const struct wire_acquire *asked,
		     struct dcmem_view *ret_view, bool *ret_taken);
void window_pages(const struct client_tensor *tensor, uint64_t row, uint64_t n_rows,
		  struct wire_acquire *ret_pages);

/* chunk.c: unmaps chunks that were retired or belong to lost connections, and says so. */
void chunk_obey(struct dcmem *model);
void chunk_free_all(struct served *served);

#endif
