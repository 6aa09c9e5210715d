/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The io_uring back end: the only file that includes <liburing.h>. Accept and poll are multishot and
 * armed again whenever the kernel ends one by itself; receiving and sending are one request each.
 * Refuses kernels that lack an opcode used here. One thread makes and drives the ring.
 */
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <poll.h>
#include <stdio.h>

#include "base/memory.h"
#include "daemon/loop.h"

#define URING_ENTRIES 256 /* submitted when full, so this bounds nothing; untuned */

struct loop_uring {
	struct io_uring ring;
	bool one_shot; /* the kernel has no multishot accept */
};

static bool uring_has_opcodes(struct io_uring *ring)
{
	static const int needed[] = {IORING_OP_ACCEPT, IORING_OP_RECVMSG, IORING_OP_SENDMSG,
				     IORING_OP_POLL_ADD, IORING_OP_ASYNC_CANCEL};
	struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
	bool ok = probe;

	for (unsigned i = 0; ok && i < sizeof(needed) / sizeof(needed[0]); i++)
		ok = io_uring_opcode_supported(probe, needed[i]);
	if (probe)
		io_uring_free_probe(probe);
	return ok && ring->features & IORING_FEAT_EXT_ARG && ring->features & IORING_FEAT_NODROP;
}

static int uring_open(struct loop *loop)
{
	static const struct {
		unsigned flags;
		const char *text;
	} modes[] = {
		{IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN, "deferred task work"},
		{IORING_SETUP_COOP_TASKRUN, "cooperative task work"},
		{0, "no setup flags"},
	};
	struct loop_uring *uring = memory_zalloc(sizeof(*uring));
	int r = -EINVAL;

	if (!uring)
		return -ENOMEM;
	for (unsigned i = 0; i < 3 && r < 0; i++) {
		r = io_uring_queue_init(URING_ENTRIES, &uring->ring, modes[i].flags);
		if (!r)
			snprintf(loop->detail, sizeof(loop->detail), "%s", modes[i].text);
	}
	if (!r && !uring_has_opcodes(&uring->ring)) {
		io_uring_queue_exit(&uring->ring);
		r = -EOPNOTSUPP;
	}
	if (r < 0) {
		memory_free(uring);
		return r;
	}
	loop->backend = uring;
	return 0;
}

static void uring_close(struct loop *loop)
{
	struct loop_uring *uring = loop->backend;

	io_uring_queue_exit(&uring->ring);
	memory_free(uring);
}

static struct io_uring_sqe *uring_sqe(struct loop_uring *uring)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&uring->ring);

	if (!sqe) {
		(void)io_uring_submit(&uring->ring);
		sqe = io_uring_get_sqe(&uring->ring);
	}
	return sqe;
}

static int uring_start(struct loop *loop, struct loop_op *op)
{
	struct loop_uring *uring = loop->backend;
	struct io_uring_sqe *sqe = uring_sqe(uring);
	int flags;

	if (!sqe)
		return -EBUSY;
	switch (op->kind) {
	case LOOP_ACCEPT:
		/* O_NONBLOCK would turn "nobody there" into a completion */
		flags = fcntl(op->fd, F_GETFL);
		if (flags >= 0 && flags & O_NONBLOCK)
			(void)fcntl(op->fd, F_SETFL, flags & ~O_NONBLOCK);
		if (uring->one_shot)
			io_uring_prep_accept(sqe, op->fd, NULL, NULL, SOCK_CLOEXEC);
		else
			io_uring_prep_multishot_accept(sqe, op->fd, NULL, NULL, SOCK_CLOEXEC);
		break;
	case LOOP_RECV:
		io_uring_prep_recvmsg(sqe, op->fd, op->message, MSG_CMSG_CLOEXEC);
		break;
	case LOOP_SEND:
		io_uring_prep_sendmsg(sqe, op->fd, op->message, MSG_NOSIGNAL);
		break;
	default:
		io_uring_prep_poll_multishot(sqe, op->fd, op->events);
		break;
	}
	io_uring_sqe_set_data(sqe, op);
	return 0;
}

static void uring_cancel(struct loop *loop, struct loop_op *op)
{
	struct io_uring_sqe *sqe = uring_sqe(loop->backend);

	if (!sqe) {
		op->cancelled = false; /* so that asking again is possible */
		return;
	}
	io_uring_prep_cancel(sqe, op, 0);
	io_uring_sqe_set_data(sqe, NULL);
}

static void uring_forget(struct loop *loop, int fd)
{
}

static void uring_deliver(struct loop *loop, struct loop_op *op, int result, unsigned flags)
{
	struct loop_uring *uring = loop->backend;
	bool repeats = op->kind == LOOP_ACCEPT || op->kind == LOOP_POLL;

	if (flags & IORING_CQE_F_MORE) {
		loop_complete(loop, op, result, false);
		return;
	}
	if (op->kind == LOOP_ACCEPT && result == -EINVAL && !uring->one_shot && !op->cancelled) {
		uring->one_shot = true;
		if (!uring_start(loop, op))
			return;
	}
	if (repeats && result >= 0 && !op->cancelled) {
		if (!uring_start(loop, op)) {
			loop_complete(loop, op, result, false);
			return;
		}
	}
	if (repeats && result >= 0) {
		/* the kernel ended it with a result: tell that, then the end */
		op->done(op, result);
		result = -ECANCELED;
	}
	loop_complete(loop, op, result, true);
}

static int uring_wait(struct loop *loop, uint64_t timeout_ns)
{
	struct loop_uring *uring = loop->backend;
	struct __kernel_timespec ts = {.tv_sec = (long long)(timeout_ns / 1000000000),
				       .tv_nsec = (long long)(timeout_ns % 1000000000)};
	struct io_uring_cqe *cqe;
	int r;

	/* A timeout of 0 would sleep for as long as the timers of this thread are slack. */
	if (timeout_ns == 0)
		r = io_uring_submit_and_get_events(&uring->ring);
	else
		r = io_uring_submit_and_wait_timeout(&uring->ring, &cqe, 1,
						     timeout_ns == UINT64_MAX ? NULL : &ts, NULL);

	if (r < 0 && r != -ETIME && r != -EINTR && r != -EBUSY && r != -EAGAIN)
		return r;
	/* Only what is there now: callbacks may start operations that complete at once. */
	for (unsigned n = io_uring_cq_ready(&uring->ring); n; n--) {
		struct loop_op *op;
		unsigned flags;
		int result;

		if (io_uring_peek_cqe(&uring->ring, &cqe))
			break;
		op = io_uring_cqe_get_data(cqe);
		flags = cqe->flags;
		result = cqe->res;
		io_uring_cqe_seen(&uring->ring, cqe);
		if (op)
			uring_deliver(loop, op, result, flags);
	}
	return 0;
}

const struct loop_ops loop_uring_ops = {
	.name = "io_uring",
	.open = uring_open,
	.close = uring_close,
	.start = uring_start,
	.cancel = uring_cancel,
	.forget = uring_forget,
	.wait = uring_wait,
};
