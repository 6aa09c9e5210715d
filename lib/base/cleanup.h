/* SPDX-License-Identifier: Apache-2.0 */
/* Scope cleanup, and TAKE() to hand a value on. Cleanup functions keep errno. */
#ifndef DCMEM_CLEANUP_H
#define DCMEM_CLEANUP_H

#include <errno.h>
#include <unistd.h>

#define _cleanup_(function) __attribute__((cleanup(function)))

/* The pointer's value, leaving NULL behind. */
#define TAKE(pointer)                                                                              \
	({                                                                                         \
		__typeof__(pointer) *p_ = &(pointer);                                              \
		__typeof__(pointer) v_ = *p_;                                                      \
		*p_ = NULL;                                                                        \
		v_;                                                                                \
	})

/* The descriptor's value, leaving -1 behind. */
static inline int take_fd(int *fd)
{
	int v = *fd;
	*fd = -1;
	return v;
}

static inline int close_fd(int fd)
{
	if (fd >= 0) {
		int saved = errno;
		(void)close(fd);
		errno = saved;
	}
	return -1;
}

static inline void cleanup_fd(int *fd)
{
	*fd = close_fd(*fd);
}

#endif
