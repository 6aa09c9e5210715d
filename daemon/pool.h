/* SPDX-License-Identifier: Apache-2.0 */
/* Worker threads: jobs in, finished jobs back to the loop thread through an eventfd. */
#ifndef DCMEM_POOL_H
#define DCMEM_POOL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/queue.h>

struct codec_context;

TAILQ_HEAD(job_list, pool_job);

/* Jobs of one client. Under the pool's mutex while any of them is queued. */
struct pool_flow {
	TAILQ_ENTRY(pool_flow) link;
	struct job_list jobs;
	uint64_t quantum, credit; /* bytes a round, and what is left of them */
	bool queued;
};

struct pool_job {
	TAILQ_ENTRY(pool_job) link;
	uint64_t cost; /* bytes, of a job in a flow */
	/* On a worker. True: done() shall run on the loop; false: the job may be gone already. */
	bool (*run)(struct pool_job *job, struct codec_context *codec);
	void (*done)(struct pool_job *job);
};

/* First come what somebody waits for, then what somebody is expected to ask for. */
enum pool_priority {
	POOL_DEMAND,
	POOL_AHEAD,
	POOL_BACKGROUND, /* when nothing else is to do, but a twentieth of one thread's time at least */
	POOL_N_PRIORITIES,
};

struct pool;

/* event_fd is written when a finished job waits; it stays the caller's. */
int pool_new(uint32_t n_threads, int event_fd, struct pool **ret_pool);
/* Runs what is queued, ends the threads, then runs done() of the finished. Returns NULL. */
struct pool *pool_free(struct pool *pool);
/* Any thread. */
void pool_submit(struct pool *pool, struct pool_job *job, enum pool_priority priority);
/*
 * The same on demand, taking turns with other flows: deficit round robin in bytes. Who asks for much
 * makes himself wait, not others.
 */
void pool_submit_flow(struct pool *pool, struct pool_job *job, struct pool_flow *flow);
void pool_flow_init(struct pool_flow *flow);
/* Bytes a round, relative to other flows. */
void pool_flow_set(struct pool *pool, struct pool_flow *flow, uint64_t quantum);
/* Its jobs go on as nobody's. */
void pool_flow_end(struct pool *pool, struct pool_flow *flow);
/* Background jobs at a time, from 1 to all threads. */
void pool_set_background(struct pool *pool, uint32_t n_threads);
/* Jobs that wait or run now, but for the background's; any thread. */
bool pool_is_idle(struct pool *pool);
/* Time that threads spent on jobs of this priority, in ns. */
uint64_t pool_busy_ns(struct pool *pool, enum pool_priority priority);
/* The loop thread: done() of every finished job. */
void pool_dispatch(struct pool *pool);

#endif
