/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Filling the segments of a model from its file, for model-load.c: pieces are read, many at a time,
 * and what was read is verified while later ones are under way.
 */
#ifndef DCMEM_LOAD_FILL_H
#define DCMEM_LOAD_FILL_H

#include <pthread.h>

#include "model-load.h"
#include "read-ring.h"

struct fill_segment;

struct fill_piece {
	struct pool_job job; /* where a thread reads it */
	struct fill_segment *segment;
	uint64_t file_offset, offset; /* the latter: in the segment */
	uint32_t n_bytes;
	bool direct; /* past the page cache */
	bool drop;   /* it was not in the page cache, and shall not be there afterwards */
	bool is_read;
};

/* A stretch of a segment that gets huge pages before anything is read into it. */
struct fill_stretch {
	struct pool_job job;
	struct fill_segment *segment;
	uint64_t offset, n_bytes;
	bool is_ready; /* it has them, or will not get any */
};

struct fill_segment {
	struct fill *fill;
	const struct layout_segment *layout;
	struct region *region;
	struct fill_stretch *stretches; /* none: pages come as they are touched */
	uint64_t n_stretches;
	struct fill_piece *pieces; /* as they lie in it */
	uint64_t n_pieces, n_read; /* all before are read */
	uint64_t tensor, page;	   /* the next to verify; tensor: its place in layout.order */
	uint64_t n_verifying;
	bool finishing;
};

struct fill {
	struct model_load *load;
	int fd, direct_fd;	/* the latter -1: the file system cannot */
	bool direct_refused;	/* atomic: by the file system, as soon as it was asked */
	struct read_ring *ring; /* NULL: threads read */
	struct fill_segment *segments;
	pthread_mutex_t mutex;	/* of all that follows, and of segments and pieces */
	pthread_cond_t changed; /* a job or a segment is done */
	uint64_t n_open;	/* segments that are not sealed yet */
	uint64_t n_jobs, n_reading; /* on the pool; n_reading of these read a file */
	int result;		/* of the first that failed */
	char message[512];
};

/* Charges, creates, fills, verifies and seals all segments of the layout. */
int load_fill(struct model_load *load, const struct container *container);

/* load-fill.c, for load-verify.c */
void fill_fail(struct fill *fill, int result); /* with the thread's message */
bool fill_is_over(struct fill *fill);	       /* it failed, or nobody wants it any more */
void fill_job_done(struct fill *fill);
/* Seals it if that was the last that it waited for. */
void fill_settle(struct fill_segment *segment);

/* load-verify.c: hands what is complete to the threads. The mutex is held. */
int verify_advance(struct fill_segment *segment);
bool verify_is_complete(const struct fill_segment *segment);

#endif
