/* SPDX-License-Identifier: Apache-2.0 */
/* The insides of a store, for store*.c, arena.c and window.c. All of it is the loop thread's. */
#ifndef DCMEM_STORE_IMPL_H
#define DCMEM_STORE_IMPL_H

#include <pthread.h>
#include <sys/queue.h>

#include "dcmem/shm.h"
#include "model-load.h"
#include "pool.h"
#include "region.h"
#include "store.h"

#define WINDOW_ALIGN 64

TAILQ_HEAD(block_list, block);
TAILQ_HEAD(window_list, window);
TAILQ_HEAD(request_list, request);
TAILQ_HEAD(lease_list, lease);
TAILQ_HEAD(attachment_list, attachment);
TAILQ_HEAD(client_list, store_client);
TAILQ_HEAD(user_list, user);
TAILQ_HEAD(model_list, model);

/* A piece of a chunk; blocks of a chunk lie end to end, and two free ones never meet. */
struct block {
	TAILQ_ENTRY(block) link;
	struct chunk *chunk;
	uint64_t offset, size;
	struct window *window; /* NULL: free */
};

struct chunk {
	struct model *model;
	uint32_t id;
	struct region region;
	struct block_list blocks;
	bool retired, has_orphans;
	uint32_t n_leases, n_decoding;
	pthread_mutex_t prepare_mutex; /* of decode threads: huge pages once, before filling */
	bool prepared;
};

struct window {
	struct model *model;
	struct block *block;
	TAILQ_ENTRY(window) link; /* of the tensor's */
	uint64_t tensor, first_page, n_pages, n_bytes, stamp;
	uint32_t n_leases;
	bool decoding, orphaned, pinned;
	bool fresh; /* prefetched and not asked for yet */
	bool streamed; /* of the part of the arena that sweeps pass through */
	uint64_t touched_ns; /* as far as was looked */
	struct lease_list leases;
	struct request_list joined;
};

/* Of a tensor: the pages of the first window that was asked for, and the tensor that came next. */
struct step {
	uint32_t n_pages;
	uint32_t next; /* its number, plus 1; 0: none yet */
};

struct model {
	TAILQ_ENTRY(model) link;
	struct store *store;
	uint64_t id;
	char *name, *path;
	bool loading, retired;
	struct model_load load;
	store_done done;
	void *done_data;
	struct loaded_model loaded;
	struct window_list *windows; /* of each tensor */
	struct chunk *chunks[SHM_MAX_CHUNKS];
	uint32_t n_chunk_slots; /* all used ones are below */
	uint32_t n_chunks;
	uint64_t chunk_bytes, decodes, n_leases, n_decoding, n_attachments;
	uint64_t decoded_bytes, n_acquired, n_in_order; /* since it was loaded */
	uint64_t largest_window;
	struct step *steps; /* of each tensor, as it was read the last time */
	uint64_t streamed_bytes;
	struct tuned_model *tuned;
	struct attachment_list attachments;
};

enum told { TOLD_NOT, TOLD, TOLD_ACKED };

struct attachment {
	TAILQ_ENTRY(attachment) in_client, in_model;
	struct store_client *client;
	struct model *model;
	uint64_t count;
	uint64_t last_tensor, last_end; /* of its last window, for the order of reading */
	uint32_t n_in_order;		/* windows in a row that came as expected */
	uint8_t told[SHM_MAX_CHUNKS];
};

struct lease {
	TAILQ_ENTRY(lease) link; /* of the client's held ones, oldest first, or of its free ones */
	TAILQ_ENTRY(lease) in_window;
	struct store_client *client;
	struct window *window;	 /* NULL: free */
	uint32_t slot, generation;
	uint64_t granted_ns;
	uint64_t *word; /* shared with the client, who may keep it; NULL: held until RELEASE */
	uint64_t seen;	/* the word, when it was last looked at */
};

/* An acquire that waits: on a window that is being decoded, or for room. */
struct request {
	TAILQ_ENTRY(request) link, in_client;
	struct store_client *client;
	struct model *model;
	struct window *window; /* NULL: in the store's queue */
	uint64_t tensor, first_page, n_pages, began_ns, deadline_ns;
	uint64_t tag; /* the waiting stand in the order of these */
	store_acquired acquired;
	void *data;
};

/* Everybody of one uid: they share turns and quotas. */
struct user {
	TAILQ_ENTRY(user) link;
	uid_t uid;
	uint32_t n_clients, n_held; /* the latter: leases and requests of all */
};

struct store_client {
	TAILQ_ENTRY(store_client) link;
	struct user *user;
	struct pool_flow flow; /* decodes that it waits for */
	uint64_t tag;	       /* of its next request for room, in turns of all */
	struct store *store;
	uid_t uid;
	pid_t pid;
	bool asks_again;
	struct attachment_list attachments;
	struct lease_list held, free;
	struct lease **slots;
	size_t slots_capacity;
	uint32_t n_slots, n_held, n_requests;
	struct request_list requests;
	struct region shared; /* the table of kept leases, if it asked for one */
	uint64_t *words;
	uint32_t n_words;
	uint64_t counted; /* id of the model that its counters are of */
	const uint64_t *counters;
	uint64_t n_counters;
	uint64_t *seen; /* the counters, when they were last read; NULL: never */
	uint64_t seen_local, seen_waited;
};

struct store {
	struct store_config config;
	struct budget budget;
	int event_fd;
	struct pool *loader, *decoders;
	struct tuner *tuner;
	uint64_t reserve_bytes; /* that windows leave free, for changes of forms */
	struct { /* of /proc/stat and the decoders, as rates_cores() saw them last */
		uint64_t busy, all, decoding_ns;
	} seen_cores;
	bool cancelled; /* atomic, read by the loader */
	struct model_list models;
	struct client_list clients;
	struct user_list users;
	struct request_list waiting; /* for room, in order of their tags */
	uint64_t turn;		     /* the tag that was served last */
	uint64_t next_model, stamp, heartbeat_ns;
	struct store_stats stats; /* counters, and what was probed */
};

/* arena.c: chunks and the placing of blocks */
/*
 * STORE_E_BUDGET: no room now. `gentle`: evict nothing that was prefetched and not used yet.
 * *ret_recycled: others had to go.
 */
int arena_place(struct model *model, uint64_t size, bool gentle, struct block **ret_block,
		bool *ret_recycled);
void arena_release_block(struct block *block);
/* Acts on orphans and retirement where exclusivity allows; may free the chunk. */
void arena_settle(struct chunk *chunk);
/*
 * Frees idle chunks that nobody maps until the budget has room for n_bytes; or also retires those
 * that clients map, until there will be room once they have unmapped them.
 */
void arena_yield(struct model *model, uint64_t n_bytes, bool mapped_too);
/* The same of all models but the one in need, if any. True if there is room now, not only soon. */
bool store_make_room(struct store *store, const struct model *needy, uint64_t n_bytes);
/* Frees it now: nobody else may map it. */
void arena_free_chunk(struct chunk *chunk);
/* On a decode thread, before the chunk's bytes are written. */
void arena_prepare_chunk(struct chunk *chunk, bool huge_pages);
bool arena_is_exclusive(const struct store *store, const struct region *region,
			const struct model *model, uint32_t chunk);
/* Sweeps at positions of their own, as far as is known; at least 1. */
double arena_streams(const struct model *model);
/* Every invariant of the chunks of a model, for tests. */
bool arena_is_valid(const struct model *model);

/* window.c: decoded page ranges and the leases on them */
struct window *window_find(struct model *model, uint64_t tensor, uint64_t first_page,
			   uint64_t n_pages, bool also_retired);
/* `client` NULL: ahead of anybody's asking. */
int window_start(struct model *model, uint64_t tensor, uint64_t first_page, uint64_t n_pages,
		 struct store_client *client, struct window **ret_window);
/* Out of the cache; no lease, no decode. */
void window_drop(struct window *window);
/* 0: granted. -ENOMEM. */
int window_grant(struct store_client *client, struct window *window,
		 struct store_window *ret_window);
void window_release(struct store_client *client, struct lease *lease, bool orphan);
/*
 * Leases that clients keep. lease_revoke() ends one that is not in use; from one that is in use, its
 * client will send RELEASE. window_reclaim() does it to all of a window: true if none is left.
 */
bool lease_is_used(const struct lease *lease);
bool lease_revoke(struct lease *lease);
bool window_is_used(const struct window *window);
bool window_reclaim(struct window *window);
/* Notes which kept leases were used since the last look, for the order of eviction. */
void window_look(struct window *window);
/* Of one client, oldest first, or of all clients. */
void client_reclaim(struct store_client *client, uint32_t n_wanted);
void store_reclaim(struct store *store);

/* segment.c: the slots of a model's table of segments */
/* Takes a sealed, charged region over. STORE_E_BUDGET: every slot is in use. */
int segment_add(struct model *model, struct region *region, uint32_t *ret_slot);
/* Nothing is placed there any more. Its memory goes when nobody reads or maps it. */
void segment_retire(struct model *model, uint32_t slot);
/* True: nothing lies in the slot (now). */
bool segment_settle(struct model *model, uint32_t slot);
/* Keeps its bytes for a reader on another thread. */
struct segment *segment_use(struct model *model, uint32_t slot);
void segment_leave(struct model *model, uint32_t slot);

/* store-client.c */
/* NULL, with a message: it has not attached that model. */
struct attachment *client_find_attachment(const struct store_client *client, uint64_t model);

#define ACQUIRE_AHEAD 2 /* windows that are decoded before a sweep asks for them; untuned */
/* store-acquire.c: asks again for everything that waits for room */
void store_retry_waiting(struct store *store);
/* Has those who wait while they map retired memory let go of it first. */
void store_send_back(struct store *store, uint64_t now_ns);
void request_free(struct request *request); /* unanswered */
void request_fail(struct request *request, int result, const char *message);
void request_grant(struct request *request, struct window *window);

/* store.c */
void store_settle_model(struct model *model);
/* Invariants of the whole store, for tests: sums, lists, blocks. */
bool store_is_valid(const struct store *store);

#endif
