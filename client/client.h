/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The inside of libdcmem. One `struct dcmem` is a model, embedded (a container file read by pread)
 * or served (mappings that a daemon handed out). Above the two lies the same reading code, which
 * asks them for one thing: where the stored bytes of a page are.
 *
 * Locks, in order: asks->lock (async.c), transport->lock (one round trip at a time), model->lock (tables: views, segments,
 * chunks, kept leases, scratch; never held over a round trip or a decode), ring->lock,
 * transport->send_lock.
 */
#ifndef DCMEM_CLIENT_H
#define DCMEM_CLIENT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/memory.h"
#include "base/message.h"
#include "codec/codec.h"
#include "dcmem/dcmem.h"
#include "dcmem/shm.h"
#include "model/container.h"
#include "model/index.h"
#include "transport.h"

struct served;
struct served_segment;

/* What one thread needs to decode: lent from the model's free list, so that reads allocate nothing. */
struct client_scratch {
	struct client_scratch *next;
	struct codec_context *codec;
	uint8_t *stored; /* embedded: stored bytes of a page */
	size_t stored_capacity;
	uint8_t *page; /* a decoded page, CONTAINER_MAX_PAGE_BYTES */
};

/* A decoded block of this process, shared by the views of the same rows. */
struct client_block {
	struct client_block *next;
	uint64_t tensor, row, n_rows;
	uint64_t n_views;
	uint8_t *bytes;
};

/* What a lease number of a dcmem_view stands for. */
struct client_lease {
	uint32_t generation; /* of the slot: a stale number is noticed */
	uint32_t next_free;
	bool used;
	struct client_block *block; /* PRIVATE */
	struct served_segment *segment; /* RAW */
	struct served_chunk *chunk; /* WINDOW */
	struct served_share *share; /* WINDOW that may be kept; else NULL */
	uint32_t kept;		    /* its slot there */
	uint64_t remote;	    /* the daemon's number, of session `session` */
	uint64_t session;
};

struct client_counts { /* relaxed atomics */
	uint64_t decoded_bytes, copied_bytes, window_bytes, raw_bytes, requests, reconnects;
};

struct dcmem {
	pid_t pid;
	uint32_t flags; /* DCMEM_OPEN_... */
	struct index index;
	uint8_t fingerprint[16];
	struct container container; /* embedded */
	struct served *served;	    /* NULL: embedded */
	struct client_counts counts;

	struct client_asks *asks; /* atomic; NULL: dcmem_submit() was not called yet */

	pthread_mutex_t lock;
	struct client_scratch *scratches;
	struct client_block *blocks;
	struct client_lease *leases;
	size_t n_leases, leases_capacity;
	uint32_t free_lease; /* slot + 1, 0 none */
};

/* A tensor with everything about it checked. */
struct client_tensor {
	uint64_t id;
	const struct container_tensor *record;
	struct index_shape shape;
};
int client_tensor(const struct dcmem *model, uint64_t id, struct client_tensor *ret_tensor);
/* Checks rows against the tensor; *n_rows of 0 becomes "to the end". */
int client_check_rows(const struct client_tensor *tensor, uint64_t row, uint64_t *n_rows);

/* Where pages [first_page, first_page + n_pages) of a tensor are stored. client_form_close() it. */
struct client_form {
	const struct container_page *pages;
	uint64_t first_page, n_pages;
	bool raw;
	uint64_t pages_from, stored_bytes; /* offsets of pages count from the former (index.h) */
	const uint8_t *base;		   /* stored_bytes of them; NULL: read from the container */
	uint32_t segment;		   /* of the container */
	struct served_segment *mapped;	   /* kept by this form */
};

/* embedded.c */
int embedded_open(struct dcmem *model, const char *path);
void embedded_close(struct dcmem *model);
int embedded_form(struct dcmem *model, const struct client_tensor *tensor, uint64_t page,
		  struct client_form *ret_form);
int embedded_stored(struct dcmem *model, const struct client_form *form,
		    const struct container_page *page, struct client_scratch *scratch,
		    const void **ret_stored);

/* read.c */
int client_form(struct dcmem *model, const struct client_tensor *tensor, uint64_t page,
		struct client_form *ret_form);
void client_form_close(struct dcmem *model, struct client_form *form);
struct client_scratch *scratch_acquire(struct dcmem *model);
void scratch_release(struct dcmem *model, struct client_scratch *scratch);
void scratch_free_all(struct dcmem *model);
/* Decoded bytes [offset, offset + n_bytes) of a tensor into dst. */
int read_bytes(struct dcmem *model, const struct client_tensor *tensor, uint64_t offset,
	       uint64_t n_bytes, void *dst);
int read_block(struct dcmem *model, const struct dcmem_read *request);

/* view.c */
int view_acquire_private(struct dcmem *model, const struct client_tensor *tensor, uint64_t row,
			 uint64_t n_rows, struct dcmem_view *ret_view);
/* With model->lock held. */
int lease_new(struct dcmem *model, uint64_t *ret_number, struct client_lease **ret_lease);
struct client_lease *lease_find(struct dcmem *model, uint64_t number);
void lease_free(struct dcmem *model, uint64_t number);
void view_release(struct dcmem *model, uint64_t number);
void view_free_all(struct dcmem *model);

/* served.c, chunk.c */
int served_open(struct dcmem *model, const char *name, const struct transport_options *options);
void served_close(struct dcmem *model);
void served_forget(struct dcmem *model); /* in a forked child: closes the socket, nothing else */
int served_enter(struct dcmem *model);	 /* obeys retirements; DCMEM_E_RETIRED */
int served_form(struct dcmem *model, const struct client_tensor *tensor,
		struct client_form *ret_form);
int served_is_raw(struct dcmem *model, const struct client_tensor *tensor, bool *ret_raw);
/* -ESTALE: it is not raw any more. */
int served_acquire_raw(struct dcmem *model, const struct client_tensor *tensor, uint64_t row,
		       uint64_t n_rows, struct dcmem_view *ret_view);
int served_acquire_window(struct dcmem *model, const struct client_tensor *tensor, uint64_t row,
			  uint64_t n_rows, struct dcmem_view *ret_view);
/* Sidecar `file` (a record number of the index), verified, NUL-terminated. */
int served_file(struct dcmem *model, uint64_t file, const struct container_file *record,
		char **ret_text);
int served_prefetch(struct dcmem *model, const struct client_tensor *tensor, uint64_t row,
		    uint64_t n_rows);

/* Tells the daemon, without a word, what was taken: bytes of a tensor; `local`: decoded here. */
void kept_count(const struct dcmem *model, uint64_t tensor, uint64_t n_bytes, bool local);

void chunk_release(struct dcmem *model, struct client_lease *lease);
void segment_leave(struct dcmem *model, struct served_segment *segment);

/* api.c */
/* Is the handle this process's, and its model still there? */
int api_enter(struct dcmem *model);
int api_acquire(struct dcmem *model, const struct client_tensor *tensor, uint64_t row,
		uint64_t n_rows, struct dcmem_view *ret_view);

/* async.c; in a forked child only the descriptors are closed */
void asks_free(struct dcmem *model);
void asks_forget(struct dcmem *model);

/* fork.c: getpid(), at the price of a load */
pid_t fork_pid(void);

/* hooks.c */
void client_log(int level, const char *format, ...) __attribute__((format(printf, 2, 3)));

static inline void client_count(uint64_t *counter, uint64_t n)
{
	__atomic_fetch_add(counter, n, __ATOMIC_RELAXED);
}

#endif
