/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads live as long as the pool, since libraries keep scratch in thread-local storage. The
 * caller and the threads meet at one barrier before and after each run; what lies between is the
 * threads' alone.
 */
#include "bench-pool.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/range.h"

struct worker {
	struct bench_pool *pool;
	pthread_t thread;
	unsigned number, cpu;
	uint64_t begin_ns, end_ns;
};

struct bench_pool {
	pthread_mutex_t gate; /* held while threads are being started */
	bool whole;
	pthread_barrier_t outer; /* the threads and the caller */
	pthread_barrier_t inner; /* the threads, so that they start at once */
	void (*run)(void *user, unsigned thread); /* NULL: end */
	void *user;
	unsigned n_workers;
	struct worker workers[];
};

static void *worker_main(void *data)
{
	struct worker *worker = data;
	struct bench_pool *pool = worker->pool;

	bool whole;

	pthread_mutex_lock(&pool->gate);
	whole = pool->whole;
	pthread_mutex_unlock(&pool->gate);
	(void)bench_machine_pin(worker->cpu);
	while (whole) {
		pthread_barrier_wait(&pool->outer);
		if (!pool->run)
			break;
		pthread_barrier_wait(&pool->inner);
		worker->begin_ns = clock_now_ns();
		pool->run(pool->user, worker->number);
		worker->end_ns = clock_now_ns();
		pthread_barrier_wait(&pool->outer);
	}
	return NULL;
}

static struct bench_pool *pool_destroy(struct bench_pool *pool)
{
	pthread_barrier_destroy(&pool->outer);
	pthread_barrier_destroy(&pool->inner);
	pthread_mutex_destroy(&pool->gate);
	return memory_free(pool);
}

int bench_pool_new(struct bench_pool **ret_pool, const struct bench_machine *machine)
{
	unsigned n = machine->n_cpus;
	struct bench_pool *pool = memory_zalloc(sizeof(*pool) + n * sizeof(pool->workers[0]));
	int r = 0;

	if (!pool)
		return -ENOMEM;
	/* Held until all are there, since those of a pool that is not whole must end at once. */
	pthread_mutex_init(&pool->gate, NULL);
	pthread_mutex_lock(&pool->gate);
	pthread_barrier_init(&pool->outer, NULL, n + 1);
	pthread_barrier_init(&pool->inner, NULL, n);
	for (; pool->n_workers < n && r == 0; pool->n_workers += r == 0) {
		struct worker *worker = &pool->workers[pool->n_workers];

		*worker = (struct worker){ .pool = pool,
					   .number = pool->n_workers,
					   .cpu = machine->cpus[pool->n_workers] };
		r = pthread_create(&worker->thread, NULL, worker_main, worker);
	}
	pool->whole = r == 0;
	pthread_mutex_unlock(&pool->gate);
	if (r) {
		for (unsigned i = 0; i < pool->n_workers; i++)
			pthread_join(pool->workers[i].thread, NULL);
		pool_destroy(pool);
		return -r;
	}
	*ret_pool = pool;
	return 0;
}

struct bench_pool *bench_pool_free(struct bench_pool *pool)
{
	if (!pool)
		return NULL;
	pool->run = NULL;
	pthread_barrier_wait(&pool->outer);
	for (unsigned i = 0; i < pool->n_workers; i++)
		pthread_join(pool->workers[i].thread, NULL);
	return pool_destroy(pool);
}

unsigned bench_pool_threads(const struct bench_pool *pool)
{
	return pool->n_workers;
}

uint64_t bench_pool_run(struct bench_pool *pool, void (*run)(void *user, unsigned thread),
			void *user)
{
	uint64_t begin = UINT64_MAX, end = 0;

	pool->run = run;
	pool->user = user;
	pthread_barrier_wait(&pool->outer);
	pthread_barrier_wait(&pool->outer);
	for (unsigned i = 0; i < pool->n_workers; i++) {
		begin = min_u64(begin, pool->workers[i].begin_ns);
		end = max_u64(end, pool->workers[i].end_ns);
	}
	return end - begin;
}
