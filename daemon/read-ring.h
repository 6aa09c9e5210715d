/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many reads of files at once, by io_uring. One thread makes and drives a ring. The memory that a
 * read fills must stay until read_ring_wait() has returned its tag, or the ring is freed.
 */
#ifndef DCMEM_READ_RING_H
#define DCMEM_READ_RING_H

#include <stddef.h>
#include <stdint.h>

struct read_ring;

/* depth: reads at a time. Negative errno where io_uring is missing or forbidden. */
int read_ring_new(uint32_t depth, struct read_ring **ret_ring);
/* 0 where that works, or its error. */
int read_ring_probe(void);
/* Waits for what is in flight. NULL is fine. Returns NULL. */
struct read_ring *read_ring_free(struct read_ring *ring);
uint32_t read_ring_n_started(const struct read_ring *ring);
/* -EAGAIN: as many are under way as fit. */
int read_ring_start(struct read_ring *ring, int fd, void *data, uint32_t n_bytes, uint64_t offset,
		    void *tag);
/* Until one is done; *ret_result is as of read(2), or negative errno. -ENOENT: none is under way. */
int read_ring_wait(struct read_ring *ring, void **ret_tag, int *ret_result);

#endif
