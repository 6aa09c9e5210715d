/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Threads live for one loop and take items by a shared counter; nothing survives the call. All
 * that the rounds write is seen by the caller afterwards, since the threads are joined.
 */
#include "base/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#define MAX_THREADS 512

struct loop {
	void (*run)(void *data, size_t item);
	void *data;
	size_t n_items;
	atomic_size_t next;
};

static void *loop_run(void *data)
{
	struct loop *loop = data;
	size_t item;

	while ((item = atomic_fetch_add(&loop->next, 1)) < loop->n_items)
		loop->run(loop->data, item);
	return NULL;
}

void parallel_for(unsigned n_threads, size_t n_items, void (*run)(void *data, size_t item),
		  void *data)
{
	struct loop loop = { .run = run, .data = data, .n_items = n_items };
	pthread_t threads[MAX_THREADS];
	unsigned n = 0;

	while (n + 1 < n_threads && n + 1 < n_items && n < MAX_THREADS &&
	       pthread_create(&threads[n], NULL, loop_run, &loop) == 0)
		n++;
	loop_run(&loop);
	for (unsigned i = 0; i < n; i++)
		pthread_join(threads[i], NULL);
}

unsigned parallel_cpu_count(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof(set), &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
}
