/* SPDX-License-Identifier: Apache-2.0 */
/* Threads that run one function together, one pinned to each CPU, and are timed as one. */
#ifndef BENCH_POOL_H
#define BENCH_POOL_H

#include "bench-machine.h"

struct bench_pool;
/* A thread for each CPU allowed. 0 or -errno. */
int bench_pool_new(struct bench_pool **ret_pool, const struct bench_machine *machine);
struct bench_pool *bench_pool_free(struct bench_pool *pool);
unsigned bench_pool_threads(const struct bench_pool *pool);

/* Runs run(user, thread) in all; returns ns from the first one's start to the last one's end. */
uint64_t bench_pool_run(struct bench_pool *pool, void (*run)(void *user, unsigned thread),
			void *user);

#endif
