/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The pool. Work is taken an index at a time from one counter, so a thread that loses its CPU holds
 * up one index and no more. Waiting is spinning for some microseconds, then sleeping: the gaps
 * between two matrices are shorter than a wake-up, and nobody spins while the program waits for
 * a user. One thread, the owner, submits jobs.
 */
#include "threads.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "util.h"

#define THREADS_MAX 256
#define SPIN_ROUNDS 4000 /* about 50 us; untuned */

struct threads {
	unsigned int n; /* the owner included */
	pthread_t *ids;
	pthread_mutex_t lock;
	pthread_cond_t wake, done;
	void (*job)(void *data, size_t i);
	void *data;
	size_t n_work;
	_Alignas(64) atomic_size_t next;
	_Alignas(64) atomic_uint epoch; /* grows with every job; pairs with the workers' wait */
	_Alignas(64) atomic_uint n_busy;
	atomic_bool stop;
};

static inline void relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#endif
}

static void work(struct threads *threads)
{
	size_t i;

	while ((i = atomic_fetch_add_explicit(&threads->next, 1, memory_order_relaxed)) <
	       threads->n_work)
		threads->job(threads->data, i);
}

static void *worker_main(void *data)
{
	struct threads *threads = data;
	unsigned int seen = 0;

	for (;;) {
		for (int i = 0; i < SPIN_ROUNDS; i++) {
			if (atomic_load_explicit(&threads->epoch, memory_order_acquire) != seen)
				break;
			relax();
		}
		if (atomic_load_explicit(&threads->epoch, memory_order_acquire) == seen) {
			(void)pthread_mutex_lock(&threads->lock);
			while (atomic_load(&threads->epoch) == seen)
				(void)pthread_cond_wait(&threads->wake, &threads->lock);
			(void)pthread_mutex_unlock(&threads->lock);
		}
		if (atomic_load(&threads->stop))
			return NULL;
		seen++;
		work(threads);
		if (atomic_fetch_sub(&threads->n_busy, 1) == 1) {
			(void)pthread_mutex_lock(&threads->lock);
			(void)pthread_cond_signal(&threads->done);
			(void)pthread_mutex_unlock(&threads->lock);
		}
	}
}

static void next_epoch(struct threads *threads)
{
	(void)pthread_mutex_lock(&threads->lock);
	atomic_fetch_add(&threads->epoch, 1);
	(void)pthread_cond_broadcast(&threads->wake);
	(void)pthread_mutex_unlock(&threads->lock);
}

void threads_run(struct threads *threads, size_t n, void (*job)(void *data, size_t i), void *data)
{
	if (n == 0)
		return;
	if (threads->n == 1 || n == 1) {
		for (size_t i = 0; i < n; i++)
			job(data, i);
		return;
	}
	threads->job = job;
	threads->data = data;
	threads->n_work = n;
	atomic_store(&threads->next, 0);
	atomic_store(&threads->n_busy, threads->n - 1);
	next_epoch(threads);
	work(threads);
	for (int i = 0; i < SPIN_ROUNDS && atomic_load(&threads->n_busy) > 0; i++)
		relax();
	if (atomic_load(&threads->n_busy) > 0) {
		(void)pthread_mutex_lock(&threads->lock);
		while (atomic_load(&threads->n_busy) > 0)
			(void)pthread_cond_wait(&threads->done, &threads->lock);
		(void)pthread_mutex_unlock(&threads->lock);
	}
}

int threads_new(unsigned int n, struct threads **ret_threads)
{
	struct threads *threads;
	cpu_set_t cpus;
	unsigned int wanted;

	if (n == 0)
		n = sched_getaffinity(0, sizeof(cpus), &cpus) == 0 ? (unsigned int)CPU_COUNT(&cpus)
								   : 1;
	wanted = n > THREADS_MAX ? THREADS_MAX : n;
	threads = array_new(1, sizeof(*threads));
	if (!threads)
		return -ENOMEM;
	threads->ids = array_new(wanted, sizeof(*threads->ids));
	(void)pthread_mutex_init(&threads->lock, NULL);
	(void)pthread_cond_init(&threads->wake, NULL);
	(void)pthread_cond_init(&threads->done, NULL);
	threads->n = 1;
	if (!threads->ids) {
		threads_free(threads);
		return -ENOMEM;
	}
	for (; threads->n < wanted; threads->n++) {
		int r = pthread_create(&threads->ids[threads->n], NULL, worker_main, threads);

		if (r != 0) {
			threads_free(threads);
			return error_set(-r, "cannot start %u threads", wanted);
		}
	}
	*ret_threads = threads;
	return 0;
}

struct threads *threads_free(struct threads *threads)
{
	if (!threads)
		return NULL;
	atomic_store(&threads->stop, true);
	next_epoch(threads);
	for (unsigned int i = 1; i < threads->n; i++)
		(void)pthread_join(threads->ids[i], NULL);
	(void)pthread_cond_destroy(&threads->done);
	(void)pthread_cond_destroy(&threads->wake);
	(void)pthread_mutex_destroy(&threads->lock);
	array_free(threads->ids);
	return array_free(threads);
}

unsigned int threads_count(const struct threads *threads)
{
	return threads->n;
}
