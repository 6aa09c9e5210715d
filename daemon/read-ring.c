/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading by io_uring. Owns the ring; refuses kernels that lack it or its read. The thread that made
 * it drives it. Invariant: no more reads are under way than the ring has completions for.
 */
#include "read-ring.h"

#include <errno.h>
#include <liburing.h>

#include "base/memory.h"

struct read_ring {
	struct io_uring ring;
	uint32_t depth, n_started;
};

int read_ring_new(uint32_t depth, struct read_ring **ret_ring)
{
	static const unsigned modes[] = {IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, 0};
	struct read_ring *ring = memory_zalloc(sizeof(*ring));
	struct io_uring_probe *probe;
	int r = -EINVAL;

	if (!ring)
		return -ENOMEM;
	for (unsigned i = 0; i < 2 && r < 0; i++)
		r = io_uring_queue_init(depth, &ring->ring, modes[i]);
	if (r < 0) {
		memory_free(ring);
		return r;
	}
	ring->depth = depth;
	probe = io_uring_get_probe_ring(&ring->ring);
	if (!probe || !io_uring_opcode_supported(probe, IORING_OP_READ))
		r = -EOPNOTSUPP;
	if (probe)
		io_uring_free_probe(probe);
	if (r < 0) {
		read_ring_free(ring);
		return r;
	}
	*ret_ring = ring;
	return 0;
}

int read_ring_probe(void)
{
	struct read_ring *ring = NULL;
	int r = read_ring_new(1, &ring);

	read_ring_free(ring);
	return r;
}

struct read_ring *read_ring_free(struct read_ring *ring)
{
	void *tag;
	int result;

	if (!ring)
		return NULL;
	while (read_ring_wait(ring, &tag, &result) == 0)
		;
	io_uring_queue_exit(&ring->ring);
	return memory_free(ring);
}

uint32_t read_ring_n_started(const struct read_ring *ring)
{
	return ring->n_started;
}

int read_ring_start(struct read_ring *ring, int fd, void *data, uint32_t n_bytes, uint64_t offset,
		    void *tag)
{
	struct io_uring_sqe *sqe;
	int r;

	if (ring->n_started == ring->depth)
		return -EAGAIN;
	sqe = io_uring_get_sqe(&ring->ring);
	if (!sqe)
		return -EAGAIN;
	io_uring_prep_read(sqe, fd, data, n_bytes, offset);
	io_uring_sqe_set_data(sqe, tag);
	ring->n_started++;
	do
		r = io_uring_submit(&ring->ring);
	while (r == -EINTR);
	/* What could not be submitted now stays queued, and goes with the wait. */
	return 0;
}

int read_ring_wait(struct read_ring *ring, void **ret_tag, int *ret_result)
{
	struct io_uring_cqe *cqe = NULL;
	int r;

	if (!ring->n_started)
		return -ENOENT;
	if (io_uring_peek_cqe(&ring->ring, &cqe) || !cqe) {
		do
			r = io_uring_submit_and_wait(&ring->ring, 1);
		while (r == -EINTR || r == -EAGAIN || r == -EBUSY);
		if (r < 0)
			return r;
		r = io_uring_wait_cqe(&ring->ring, &cqe);
		if (r < 0)
			return r;
	}
	*ret_tag = io_uring_cqe_get_data(cqe);
	*ret_result = cqe->res;
	io_uring_cqe_seen(&ring->ring, cqe);
	ring->n_started--;
	return 0;
}
