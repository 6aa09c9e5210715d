/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Words of a ring of requests (include/dcmem/shm.h): how the two sides publish, fall asleep and wake
 * each other. Who falls asleep says so and then looks once more, who publishes does so and then looks
 * whether the other sleeps; all four steps are sequentially consistent, so one of the two always sees.
 */
#ifndef DCMEM_RING_H
#define DCMEM_RING_H

#include <errno.h>
#include <linux/futex.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "dcmem/shm.h"

static inline void ring_publish(uint32_t *index, uint32_t value)
{
	__atomic_store_n(index, value, __ATOMIC_SEQ_CST);
}

static inline uint32_t ring_look(const uint32_t *word)
{
	return __atomic_load_n(word, __ATOMIC_SEQ_CST);
}

/* Takes an entry out of memory that the other side may be changing: each word is read once. */
static inline void ring_copy(void *to, const void *from, size_t n_bytes)
{
	for (size_t i = 0; i < n_bytes / sizeof(uint64_t); i++)
		((uint64_t *)to)[i] = __atomic_load_n(&((const uint64_t *)from)[i], __ATOMIC_RELAXED);
}

/* Sleeps while *word is `value`, for at most timeout_ns. Wakes for no reason too. */
static inline void ring_sleep(const uint32_t *word, uint32_t value, uint64_t timeout_ns)
{
	struct timespec timeout = {.tv_sec = (time_t)(timeout_ns / 1000000000),
				   .tv_nsec = (long)(timeout_ns % 1000000000)};

	(void)syscall(SYS_futex, word, FUTEX_WAIT, value, &timeout, NULL, 0);
}

static inline void ring_wake(const uint32_t *word)
{
	(void)syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

static inline void ring_pause(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

#endif
