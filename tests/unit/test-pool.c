/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The order in which a pool of one thread runs what is queued while that thread is kept busy: turns of
 * flows by bytes, priorities, jobs whose flow has ended.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <pthread.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "daemon/pool.h"

#define MAX_JOBS 64

static char order[MAX_JOBS + 1];
static unsigned n_ran;
static pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;

struct job {
	struct pool_job job;
	char name;
};
static struct job jobs[MAX_JOBS];
static unsigned n_jobs;

static bool run_named(struct pool_job *base, struct codec_context *codec)
{
	order[n_ran++] = ((struct job *)base)->name; /* one thread runs them */
	return false;
}

static bool wait_at_gate(struct pool_job *base, struct codec_context *codec)
{
	pthread_mutex_lock(&gate);
	pthread_mutex_unlock(&gate);
	return false;
}

static struct pool_job *job(char name, uint64_t cost)
{
	jobs[n_jobs] = (struct job){.job = {.run = run_named, .cost = cost}, .name = name};
	return &jobs[n_jobs++].job;
}

static struct pool *begin(int *fd)
{
	static struct pool_job keeper = {.run = wait_at_gate};
	struct pool *pool;

	n_jobs = n_ran = 0;
	memset(order, 0, sizeof(order));
	*fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	assert_int_equal(pool_new(1, *fd, &pool), 0);
	pthread_mutex_lock(&gate);
	pool_submit(pool, &keeper, POOL_DEMAND);
	while (pool_is_idle(pool))
		(void)usleep(100);
	return pool;
}

static void end(struct pool *pool, int fd)
{
	pthread_mutex_unlock(&gate);
	pool_free(pool); /* runs what is queued */
	close(fd);
}

static void test_flows_take_turns(void **state)
{
	struct pool_flow a, b, c;
	struct pool *pool;
	int fd;

	pool = begin(&fd);
	pool_flow_init(&a);
	pool_flow_init(&b);
	pool_flow_init(&c);
	pool_flow_set(pool, &a, 100);
	pool_flow_set(pool, &b, 100);
	pool_flow_set(pool, &c, 200);
	for (unsigned i = 0; i < 6; i++) /* the flood was first */
		pool_submit_flow(pool, job('a', 100), &a);
	for (unsigned i = 0; i < 2; i++)
		pool_submit_flow(pool, job('b', 100), &b);
	for (unsigned i = 0; i < 4; i++)
		pool_submit_flow(pool, job('c', 100), &c);
	end(pool, fd);
	assert_string_equal(order, "abccabccaaaa");
}

/* Large jobs cost their flow turns: bytes are shared, not jobs. */
static void test_bytes_count(void **state)
{
	struct pool_flow big, small;
	struct pool *pool;
	int fd;

	pool = begin(&fd);
	pool_flow_init(&big);
	pool_flow_init(&small);
	pool_flow_set(pool, &big, 100);
	pool_flow_set(pool, &small, 100);
	for (unsigned i = 0; i < 3; i++)
		pool_submit_flow(pool, job('B', 300), &big);
	for (unsigned i = 0; i < 9; i++)
		pool_submit_flow(pool, job('s', 100), &small);
	end(pool, fd);
	assert_string_equal(order, "ssBsssBsssBs");
}

static void test_priorities(void **state)
{
	struct pool_flow flow;
	struct pool *pool;
	int fd;

	pool = begin(&fd);
	pool_flow_init(&flow);
	pool_submit(pool, job('p', 0), POOL_AHEAD);
	pool_submit_flow(pool, job('f', 1), &flow);
	pool_submit(pool, job('d', 0), POOL_DEMAND);
	pool_submit(pool, job('q', 0), POOL_AHEAD);
	end(pool, fd);
	assert_string_equal(order, "dfpq");
}

static void test_flow_ends(void **state)
{
	struct pool_flow *flow = test_malloc(sizeof(*flow)), other;
	struct pool *pool;
	int fd;

	pool = begin(&fd);
	pool_flow_init(flow);
	pool_flow_init(&other);
	pool_submit_flow(pool, job('x', 1), flow);
	pool_submit_flow(pool, job('o', 1), &other);
	pool_submit_flow(pool, job('y', 1), flow);
	pool_flow_end(pool, flow);
	test_free(flow);
	end(pool, fd);
	assert_string_equal(order, "oxy");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_flows_take_turns),
		cmocka_unit_test(test_bytes_count),
		cmocka_unit_test(test_priorities),
		cmocka_unit_test(test_flow_ends),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
