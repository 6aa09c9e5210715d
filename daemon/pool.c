/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Worker threads. Owns the threads, a codec context for each and two queues; jobs are their
 * submitter's. Submitting is for any thread, dispatch and free for the loop thread. Invariant: a
 * job is in one queue at most, and the mutex orders everything that it carries between threads.
 */
#include "pool.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/message.h"
#include "codec/codec.h"

TAILQ_HEAD(job_list, pool_job);

struct worker {
	pthread_t thread;
	struct pool *pool;
	struct codec_context *codec;
};

struct pool {
	pthread_mutex_t mutex;
	pthread_cond_t wake;
	struct job_list urgent, normal, finished;
	bool stopping;
	int event_fd;
	uint32_t n_workers; /* started */
	struct worker *workers;
};

static struct pool_job *next_job(struct pool *pool)
{
	struct job_list *list = TAILQ_EMPTY(&pool->urgent) ? &pool->normal : &pool->urgent;
	struct pool_job *job = TAILQ_FIRST(list);

	if (job)
		TAILQ_REMOVE(list, job, link);
	return job;
}

static void *worker_main(void *data)
{
	struct worker *worker = data;
	struct pool *pool = worker->pool;

	pthread_mutex_lock(&pool->mutex);
	for (;;) {
		struct pool_job *job = next_job(pool);
		uint64_t one = 1;

		if (!job) {
			if (pool->stopping)
				break;
			pthread_cond_wait(&pool->wake, &pool->mutex);
			continue;
		}
		pthread_mutex_unlock(&pool->mutex);
		if (!job->run(job, worker->codec)) {
			pthread_mutex_lock(&pool->mutex);
			continue;
		}
		pthread_mutex_lock(&pool->mutex);
		TAILQ_INSERT_TAIL(&pool->finished, job, link);
		/* Non-blocking; a full counter is readable, which is all that is wanted. */
		(void)!write(pool->event_fd, &one, sizeof(one));
	}
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
	TAILQ_INIT(&pool->urgent);
	TAILQ_INIT(&pool->normal);
	TAILQ_INIT(&pool->finished);
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

void pool_submit(struct pool *pool, struct pool_job *job, bool urgent)
{
	pthread_mutex_lock(&pool->mutex);
	if (urgent)
		TAILQ_INSERT_TAIL(&pool->urgent, job, link);
	else
		TAILQ_INSERT_TAIL(&pool->normal, job, link);
	pthread_cond_signal(&pool->wake);
	pthread_mutex_unlock(&pool->mutex);
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
