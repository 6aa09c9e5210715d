/* SPDX-License-Identifier: Apache-2.0 */
/* A loop whose rounds run on several threads, for work that is large beside starting a thread. */
#ifndef DCMEM_PARALLEL_H
#define DCMEM_PARALLEL_H

#include <stddef.h>

/*
 * Runs run(data, i) for every i in [0, n_items), each once, on up to n_threads threads, the caller's
 * among them, and waits for all. Threads that cannot be started make it slower, nothing else.
 */
void parallel_for(unsigned n_threads, size_t n_items, void (*run)(void *data, size_t item),
		  void *data);
/* CPUs that this thread may use, at least 1. */
unsigned parallel_cpu_count(void);

#endif
