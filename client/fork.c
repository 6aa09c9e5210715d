/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a forked child finds where its parent has a chunk of an arena. The chunk is not inherited
 * (its windows are recycled without the child's knowledge), and the hole must not be filled by
 * whatever the child maps next, or a stale view would read that: the child gets pages there that
 * nobody may read, before fork() returns. Any thread; the list is the process's. And the number of the
 * process without a system call, which was half the cost of taking up a kept window.
 */
#include <errno.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "served.h"

#define PID_PAGE_BYTES 65536 /* the largest page there is */

static pthread_mutex_t fork_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;
static struct fork_hole *fork_holes;
static int fork_failed;

static pthread_once_t pid_once = PTHREAD_ONCE_INIT;
static pid_t *pid_page; /* wiped in a child; NULL: the kernel cannot do that */

static void pid_make_page(void)
{
	void *page = mmap(NULL, PID_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);

	if (page == MAP_FAILED)
		return;
	if (madvise(page, PID_PAGE_BYTES, MADV_WIPEONFORK) < 0)
		(void)munmap(page, PID_PAGE_BYTES);
	else
		pid_page = page;
}

pid_t fork_pid(void)
{
	pid_t pid;

	(void)pthread_once(&pid_once, pid_make_page);
	if (!pid_page)
		return getpid();
	pid = __atomic_load_n(pid_page, __ATOMIC_RELAXED);
	if (pid == 0) {
		pid = getpid();
		__atomic_store_n(pid_page, pid, __ATOMIC_RELAXED);
	}
	return pid;
}

static void fork_prepare(void)
{
	pthread_mutex_lock(&fork_lock);
}

static void fork_parent(void)
{
	pthread_mutex_unlock(&fork_lock);
}

static void fork_child(void)
{
	/* Nothing to be done about a failure here: the hole stays a hole. */
	for (const struct fork_hole *hole = fork_holes; hole; hole = hole->next)
		(void)mmap(hole->base, hole->n_bytes, PROT_NONE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
	pthread_mutex_unlock(&fork_lock);
}

static void fork_register(void)
{
	fork_failed = pthread_atfork(fork_prepare, fork_parent, fork_child);
}

int fork_hole_add(struct fork_hole *hole, void *base, uint64_t n_bytes)
{
	(void)pthread_once(&fork_once, fork_register);
	if (fork_failed)
		return -fork_failed;
	if (madvise(base, n_bytes, MADV_DONTFORK) < 0)
		return -errno;
	*hole = (struct fork_hole){.base = base, .n_bytes = n_bytes};
	pthread_mutex_lock(&fork_lock);
	hole->next = fork_holes;
	if (fork_holes)
		fork_holes->previous = hole;
	fork_holes = hole;
	pthread_mutex_unlock(&fork_lock);
	return 0;
}

void fork_hole_remove(struct fork_hole *hole)
{
	if (!hole->base)
		return;
	pthread_mutex_lock(&fork_lock);
	if (hole->next)
		hole->next->previous = hole->previous;
	if (hole->previous)
		hole->previous->next = hole->next;
	else
		fork_holes = hole->next;
	pthread_mutex_unlock(&fork_lock);
	*hole = (struct fork_hole){0};
}
