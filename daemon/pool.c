/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Worker threads. Owns the threads, a codec context for each and a queue a priority; jobs are their
 * submitter's. Submitting is for any thread, dispatch and free for the loop thread. Invariant: a
 * job is in one queue at most, and the mutex orders everything that it carries between threads.
 */
#include "pool.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/message.h"
#include "codec/codec.h"

#define FLOW_QUANTUM (256U << 10) /* a page; untuned */
#define FLOOR 20 /* of the background: one part of the time in so many */

TAILQ_HEAD(flow_list, pool_flow);

struct worker {
	pthread_t thread;
	struct pool *pool;
	struct codec_context *codec;
};

struct pool {
	pthread_mutex_t mutex;
	pthread_cond_t wake;
	struct job_list queues[POOL_N_PRIORITIES], finished;
	struct flow_list flows; /* with jobs: the next turn is the first one's */
	struct pool_flow nobody; /* of clients that have gone */
	bool stopping;
	uint32_t n_running[POOL_N_PRIORITIES], n_background; /* the most of the latter at a time */
	uint64_t busy_ns[POOL_N_PRIORITIES];
	uint64_t due_ns; /* when the background has a right to a thread */
	int event_fd;
	uint32_t n_workers; /* started */
	struct worker *workers;
};

static bool background_is_due(const struct pool *pool)
{
	return !TAILQ_EMPTY(&pool->queues[POOL_BACKGROUND]) &&
	       pool->n_running[POOL_BACKGROUND] == 0 && clock_now_ns() >= pool->due_ns;
}

/* Deficit round robin: a flow goes on while its credit lasts, then the next one has its turn. */
static struct pool_job *next_of_flows(struct pool *pool)
{
	struct pool_flow *flow;
	struct pool_job *job;

	while ((flow = TAILQ_FIRST(&pool->flows))) {
		job = TAILQ_FIRST(&flow->jobs);
		if (job && flow->credit >= job->cost) {
			flow->credit -= job->cost;
			TAILQ_REMOVE(&flow->jobs, job, link);
			return job;
		}
		TAILQ_REMOVE(&pool->flows, flow, link);
		flow->queued = job != NULL;
		flow->credit = job ? flow->credit + flow->quantum : 0;
		if (job)
			TAILQ_INSERT_TAIL(&pool->flows, flow, link);
	}
	return NULL;
}

static struct pool_job *next_job(struct pool *pool, enum pool_priority *ret_priority)
{
	enum pool_priority priority = background_is_due(pool) ? POOL_BACKGROUND : POOL_DEMAND;
	struct pool_job *job = NULL;

	for (; priority < POOL_N_PRIORITIES && !job; priority++) {
		if (priority == POOL_BACKGROUND &&
		    pool->n_running[POOL_BACKGROUND] >= pool->n_background)
			break;
		*ret_priority = priority;
		job = TAILQ_FIRST(&pool->queues[priority]);
		if (job)
			TAILQ_REMOVE(&pool->queues[priority], job, link);
		else if (priority == POOL_DEMAND)
			job = next_of_flows(pool);
	}
	return job;
}

/* The mutex is held before and after, not while it runs. */
static void run_job(struct worker *worker, struct pool_job *job, enum pool_priority priority)
{
	struct pool *pool = worker->pool;
	uint64_t start, spent, one = 1;
	bool finished;

	pool->n_running[priority]++;
	pthread_mutex_unlock(&pool->mutex);
	start = clock_now_ns();
	finished = job->run(job, worker->codec);
	spent = clock_now_ns() - start;
	pthread_mutex_lock(&pool->mutex);
	pool->n_running[priority]--;
	pool->busy_ns[priority] += spent;
	if (priority == POOL_BACKGROUND)
		pool->due_ns = start + FLOOR * spent;
	if (!finished)
		return; /* the job may be gone */
	TAILQ_INSERT_TAIL(&pool->finished, job, link);
	/* Non-blocking; a full counter is readable, which is all that is wanted. */
	(void)!write(pool->event_fd, &one, sizeof(one));
}

static void *worker_main(void *data)
{
	struct worker *worker = data;
	struct pool *pool = worker->pool;
	enum pool_priority priority;
	struct pool_job *job;

	pthread_mutex_lock(&pool->mutex);
	for (;;) {
		job = next_job(pool, &priority);
		if (job)
			run_job(worker, job, priority);
		else if (pool->stopping && TAILQ_EMPTY(&pool->queues[POOL_BACKGROUND]))
			break;
		else
			pthread_cond_wait(&pool->wake, &pool->mutex);
	}
	pthread_cond_broadcast(&pool->wake); /* others may wait for the background to end */
	pthread_mutex_unlock(&pool->mutex);
	return NULL;
}

static int start_worker(struct pool *pool, struct worker *worker)
{
	sigset_t all, old;
	int r;

	worker->pool = pool;
	worker->codec = codec_context_new();
	if (!worker->codec)
		return message_set(-ENOMEM, "no memory for a decoder");
	/* Signals are the loop's. */
	(void)sigfillset(&all);
	(void)pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&worker->thread, NULL, worker_main, worker);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r) {
		worker->codec = codec_context_free(worker->codec);
		return message_set(-r, "cannot start a worker thread");
	}
	pool->n_workers++;
	return 0;
}

int pool_new(uint32_t n_threads, int event_fd, struct pool **ret_pool)
{
	struct pool *pool = memory_zalloc(sizeof(*pool));
	int r = 0;

	if (!pool)
		return -ENOMEM;
	(void)pthread_mutex_init(&pool->mutex, NULL);
	(void)pthread_cond_init(&pool->wake, NULL);
	for (unsigned i = 0; i < POOL_N_PRIORITIES; i++)
		TAILQ_INIT(&pool->queues[i]);
	pool->n_background = n_threads > 1 ? n_threads - 1 : 1;
	TAILQ_INIT(&pool->finished);
	TAILQ_INIT(&pool->flows);
	pool_flow_init(&pool->nobody);
	pool->event_fd = event_fd;
	pool->workers = memory_array(n_threads, sizeof(*pool->workers));
	if (!pool->workers)
		r = -ENOMEM;
	for (uint32_t i = 0; i < n_threads && !r; i++)
		r = start_worker(pool, &pool->workers[i]);
	if (r) {
		pool_free(pool);
		return r;
	}
	*ret_pool = pool;
	return 0;
}

struct pool *pool_free(struct pool *pool)
{
	if (!pool)
		return NULL;
	pthread_mutex_lock(&pool->mutex);
	pool->stopping = true;
	pthread_cond_broadcast(&pool->wake);
	pthread_mutex_unlock(&pool->mutex);
	for (uint32_t i = 0; i < pool->n_workers; i++) {
		(void)pthread_join(pool->workers[i].thread, NULL);
		codec_context_free(pool->workers[i].codec);
	}
	pool_dispatch(pool);
	memory_free(pool->workers);
	(void)pthread_cond_destroy(&pool->wake);
	(void)pthread_mutex_destroy(&pool->mutex);
	return memory_free(pool);
}

void pool_submit(struct pool *pool, struct pool_job *job, enum pool_priority priority)
{
	pthread_mutex_lock(&pool->mutex);
	TAILQ_INSERT_TAIL(&pool->queues[priority], job, link);
	pthread_cond_signal(&pool->wake);
	pthread_mutex_unlock(&pool->mutex);
}

void pool_flow_init(struct pool_flow *flow)
{
	*flow = (struct pool_flow){.quantum = FLOW_QUANTUM};
	TAILQ_INIT(&flow->jobs);
}

void pool_flow_set(struct pool *pool, struct pool_flow *flow, uint64_t quantum)
{
	pthread_mutex_lock(&pool->mutex);
	flow->quantum = quantum ? quantum : 1;
	pthread_mutex_unlock(&pool->mutex);
}

static void flow_queue(struct pool *pool, struct pool_flow *flow)
{
	if (flow->queued)
		return;
	flow->queued = true;
	flow->credit = flow->quantum;
	TAILQ_INSERT_TAIL(&pool->flows, flow, link);
}

void pool_submit_flow(struct pool *pool, struct pool_job *job, struct pool_flow *flow)
{
	pthread_mutex_lock(&pool->mutex);
	TAILQ_INSERT_TAIL(&flow->jobs, job, link);
	flow_queue(pool, flow);
	pthread_cond_signal(&pool->wake);
	pthread_mutex_unlock(&pool->mutex);
}

void pool_flow_end(struct pool *pool, struct pool_flow *flow)
{
	pthread_mutex_lock(&pool->mutex);
	if (flow->queued)
		TAILQ_REMOVE(&pool->flows, flow, link);
	flow->queued = false;
	if (!TAILQ_EMPTY(&flow->jobs)) {
		TAILQ_CONCAT(&pool->nobody.jobs, &flow->jobs, link);
		flow_queue(pool, &pool->nobody);
	}
	pthread_mutex_unlock(&pool->mutex);
}

void pool_set_background(struct pool *pool, uint32_t n_threads)
{
	pthread_mutex_lock(&pool->mutex);
	pool->n_background = n_threads;
	pthread_cond_broadcast(&pool->wake);
	pthread_mutex_unlock(&pool->mutex);
}

bool pool_is_idle(struct pool *pool)
{
	bool idle;

	pthread_mutex_lock(&pool->mutex);
	idle = TAILQ_EMPTY(&pool->flows) && TAILQ_EMPTY(&pool->queues[POOL_DEMAND]) &&
	       TAILQ_EMPTY(&pool->queues[POOL_AHEAD]) &&
	       !pool->n_running[POOL_DEMAND] && !pool->n_running[POOL_AHEAD];
	pthread_mutex_unlock(&pool->mutex);
	return idle;
}

uint64_t pool_busy_ns(struct pool *pool, enum pool_priority priority)
{
	uint64_t busy;

	pthread_mutex_lock(&pool->mutex);
	busy = pool->busy_ns[priority];
	pthread_mutex_unlock(&pool->mutex);
	return busy;
}

void pool_dispatch(struct pool *pool)
{
	for (;;) {
		struct pool_job *job;

		pthread_mutex_lock(&pool->mutex);
		job = TAILQ_FIRST(&pool->finished);
		if (job)
			TAILQ_REMOVE(&pool->finished, job, link);
		pthread_mutex_unlock(&pool->mutex);
		if (!job)
			return;
		job->done(job);
	}
}
