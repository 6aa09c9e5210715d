/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store: models, their sealed segments, arenas, windows, leases and the budget. A store never
 * sees a session or a socket; a session never touches memory of a model.
 *
 * The loop thread owns it: every function here is called on it and none blocks. Loading and
 * decoding run on the store's own threads; their results come back when the loop, woken by
 * store_event_fd(), calls store_dispatch(), which runs the callbacks below.
 */
#ifndef DCMEM_STORE_H
#define DCMEM_STORE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "planner/planner.h"

/* Documented outcomes: values of DCMEM_E_..., so that they become a wire status unchanged. */
enum store_error {
	STORE_E_NOT_FOUND = 1,
	STORE_E_CORRUPT = 2,
	STORE_E_UNSUPPORTED = 3,
	STORE_E_INVALID = 4,
	STORE_E_BUDGET = 7,
	STORE_E_OVERDUE = 8,
	STORE_E_RETIRED = 10,
	STORE_E_EXISTS = 12,
	STORE_PENDING = 100, /* the callback will run later, exactly once */
};

enum store_numa { STORE_NUMA_LOCAL, STORE_NUMA_INTERLEAVE, STORE_NUMA_BIND, STORE_NUMA_REPLICATE };

struct store_config {
	uint64_t budget_bytes;	 /* everything the store holds */
	uint64_t chunk_bytes;	 /* of an arena; 64 MiB, shrunk for small models */
	uint32_t n_workers;	 /* decode threads; 0: one a CPU */
	uint32_t lease_deadline_ms; /* after it a holder gets no new leases; 0: none */
	uint32_t max_leases;	 /* of one client */
	uint32_t max_user_leases; /* of all clients of one user; 0: any number */
	bool huge_pages;
	bool no_uring;		 /* files are read by threads alone */
	enum store_numa numa;
	uint32_t numa_node;	 /* for STORE_NUMA_BIND */
	bool tune;		 /* change how tensors are held, as they are read */
	enum planner_objective objective;
	uint32_t background;	 /* share of the decode threads that changes may take, in percent */
};

struct store;
struct store_client; /* one connected client: its attachments, leases and charges */

int store_new(const struct store_config *config, struct store **ret_store);
struct store *store_free(struct store *store);
int store_event_fd(const struct store *store); /* readable: call store_dispatch() */
void store_dispatch(struct store *store);
/* Call when the time comes (ns of clock_now_ns): heartbeat, deadlines, exclusivity tests, retries. */
uint64_t store_tick(struct store *store);

/* result 0, -errno or STORE_E_..., with message (valid during the call) */
typedef void (*store_done)(void *data, int result, const char *message);
/* Opens and loads a container into sealed segments; name NULL: the file's name without .dcmem. */
int store_load(struct store *store, const char *path, const char *name, store_done done, void *data);
/*
 * Retires: attached clients are told by the placement table; bytes stay charged until exclusive. Of a
 * model that is still being loaded: who loads it gets -ECANCELED, soon.
 */
int store_unload(struct store *store, const char *name);

int store_client_new(struct store *store, uid_t uid, pid_t pid, struct store_client **ret_client);
/* orderly: it detached from everything by itself. Otherwise held windows become orphans. */
struct store_client *store_client_free(struct store_client *client, bool orderly);

struct store_attachment {
	uint64_t model; /* id, for later calls of this client */
	uint64_t n_tensors, index_bytes, placement_bytes;
	uint32_t n_segments;
	uint8_t fingerprint[16];
	int index_fd, placement_fd; /* O_RDONLY reopens made for this client: the caller closes them */
};
int store_attach(struct store_client *client, const char *name, struct store_attachment *ret);
int store_detach(struct store_client *client, uint64_t model);
/* O_RDONLY reopen for this client; the caller closes it after sending. */
int store_segment_fd(struct store_client *client, uint64_t model, uint32_t segment, int *ret_fd,
		     uint64_t *ret_bytes, uint32_t *ret_generation);
int store_chunk_fd(struct store_client *client, uint64_t model, uint32_t chunk, int *ret_fd,
		   uint64_t *ret_bytes);
/* A sidecar file's blob (record of the index's file table) in a sealed memfd, O_RDONLY. */
int store_file_fd(struct store_client *client, uint64_t model, uint32_t file, int *ret_fd,
		  uint64_t *ret_bytes);
/*
 * A table of words through which this client keeps leases (shm.h); once a client. The descriptor is
 * for reading and writing: the caller closes it after sending.
 */
int store_share(struct store_client *client, int *ret_fd, uint64_t *ret_bytes, uint32_t *ret_leases);
struct region;
/* Memory that this client may write too, sealed in size, in the budget; region_close() it. */
int store_shared_region(struct store_client *client, const char *what, uint64_t n_bytes,
			struct region *ret_region);
/* Its acquires may fail with -EAGAIN: it shall unmap what was retired, and ask again. */
void store_client_ask_again(struct store_client *client, bool may);
int store_chunk_ack(struct store_client *client, uint64_t model, uint32_t chunk);

struct store_window {
	uint64_t lease, offset, n_bytes, first_page, n_pages;
	uint32_t chunk;
	const void *data; /* the daemon's own view of the bytes: for the text socket's read */
};
typedef void (*store_acquired)(void *data, int result, const struct store_window *window,
			       const char *message);
/* 0: *ret_window is filled now. STORE_PENDING: acquired() later, unless the client is freed. */
int store_acquire(struct store_client *client, uint64_t model, uint64_t tensor, uint64_t first_page,
		  uint64_t n_pages, store_acquired acquired, void *data,
		  struct store_window *ret_window);
int store_release(struct store_client *client, uint64_t lease);
int store_prefetch(struct store_client *client, uint64_t model, uint64_t tensor,
		   uint64_t first_page, uint64_t n_pages);

/* For the text socket: tensor by name, and its geometry. */
struct store_tensor {
	uint64_t id, n_bytes, n_pages;
	uint32_t page_bytes, dtype;
};
int store_find_tensor(struct store *store, const char *model, const char *tensor,
		      struct store_tensor *ret_tensor);

/* How the tuner is set: for all, and a model (planner.h has the members). */
struct store_tuning {
	bool tune, frozen;
	enum planner_objective objective;
	uint64_t budget_bytes; /* of everything, from now on */
	uint32_t background;   /* percent of the decode threads */
};
void store_get_tuning(const struct store *store, struct store_tuning *ret_tuning);
int store_set_tuning(struct store *store, const struct store_tuning *tuning);
int store_get_model_policy(const struct store *store, const char *name,
			   struct planner_model *ret_policy);
int store_set_model_policy(struct store *store, const char *name,
			   const struct planner_model *policy);
/*
 * Pins the tensors whose name matches the pattern (of fnmatch) to a class, or with PLANNER_NO_CLASS
 * leaves them to their model again. STORE_E_NOT_FOUND: no such model, or no name matches.
 */
int store_pin_tensors(struct store *store, const char *name, const char *pattern, unsigned class,
		      uint64_t *ret_n);
/* Of the model that was loaded last. */
int store_set_newest_policy(struct store *store, const struct planner_model *policy);
/* tuner.h */
struct tuner_state;
const struct tuner_state *store_tuner_state(const struct store *store);

/* Why a tensor is held as it is. */
struct store_explained {
	uint64_t tensor, n_bytes, stored_bytes;
	const char *name, *text; /* the latter: a phrase that says why */
	double rate;		 /* decoded bytes a second that readers take */
	uint32_t n_changes;
	uint8_t codec; /* of its first page */
	bool changing;
	bool is_planned; /* the rest is there */
	uint8_t now, chosen, next; /* enum planner_class */
	struct planner_reasons reasons;
};
int store_explain(struct store *store, const char *name, uint64_t first, uint64_t count,
		  void (*visit)(void *data, const struct store_explained *explained), void *data,
		  uint64_t *ret_n_tensors);

/* Everything countable. */
struct store_stats {
	uint64_t budget_bytes, compressed_bytes, index_bytes, decoded_bytes, inflight_bytes,
		retired_bytes, leased_bytes, orphaned_bytes, peak_bytes;
	uint64_t n_models, n_clients, n_leases, n_windows, n_chunks;
	uint64_t decodes, decoded_total_bytes, window_hits, window_joins, window_misses, evictions,
		prefetches, refused_budget, refused_overdue, corrupt_pages, orphans_freed;
	bool huge_pages, collapse_works, exclusivity_works, seals_work;
	int load_ring; /* 0: files are read by io_uring; 1: threads were chosen; negative errno: why not */
	uint64_t loaded_direct_bytes, loaded_cached_bytes, loaded_dropped_bytes; /* load_reads */
	uint32_t n_numa_nodes, n_workers;
};
void store_get_stats(const struct store *store, struct store_stats *ret_stats);
struct store_model_stats {
	const char *name, *path;
	uint8_t fingerprint[16];
	uint64_t n_tensors, decoded_model_bytes, compressed_bytes, arena_bytes, decodes, n_clients,
		n_leases;
	bool loading, retired;
};
void store_visit_models(const struct store *store,
			void (*visit)(void *data, const struct store_model_stats *model), void *data);

#endif
