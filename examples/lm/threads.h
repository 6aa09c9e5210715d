/* SPDX-License-Identifier: Apache-2.0 */
/* A fixed pool: one job at a time, run by every thread, the caller among them. */
#ifndef LM_THREADS_H
#define LM_THREADS_H

#include <stddef.h>

struct threads;

/* `n` of 0: one a usable CPU. 0 or negative errno. */
int threads_new(unsigned int n, struct threads **ret_threads);
struct threads *threads_free(struct threads *threads);
static inline void cleanup_threads(struct threads **threads)
{
	*threads = threads_free(*threads);
}
unsigned int threads_count(const struct threads *threads);
/* Runs job(data, i) for every i in [0, n), on whichever thread comes first, and waits for all. */
void threads_run(struct threads *threads, size_t n, void (*job)(void *data, size_t i), void *data);

#endif
