/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The epoll back end: readiness turned into completions. Each descriptor has at most one operation
 * that reads (accept, receive, poll) and one that writes (send). Interest is changed lazily, before
 * waiting, so that an operation armed again from its own callback costs no system call.
 */
#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>

#include "base/memory.h"
#include "base/range.h"
#include "daemon/loop.h"

#define EPOLL_BATCH 64	      /* events a turn; untuned */
#define EPOLL_ACCEPT_BATCH 16 /* connections a turn of one listener; untuned */

struct epoll_fd {
	struct loop_op *in, *out;
	uint32_t registered;
	bool dirty;
};

struct loop_epoll {
	int fd;
	struct epoll_fd *fds;
	size_t n_fds;
	int *dirty;
	size_t n_dirty, dirty_capacity;
	struct loop_op *cancelled;
};

static int epoll_open(struct loop *loop)
{
	struct loop_epoll *epoll = memory_zalloc(sizeof(*epoll));

	if (!epoll)
		return -ENOMEM;
	epoll->fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll->fd < 0) {
		int r = -errno;

		memory_free(epoll);
		return r;
	}
	loop->backend = epoll;
	return 0;
}

static void epoll_close(struct loop *loop)
{
	struct loop_epoll *epoll = loop->backend;

	close_fd(epoll->fd);
	memory_free(epoll->fds);
	memory_free(epoll->dirty);
	memory_free(epoll);
}

static int epoll_mark(struct loop_epoll *epoll, int fd)
{
	int r;

	if (epoll->fds[fd].dirty)
		return 0;
	r = memory_grow((void **)&epoll->dirty, &epoll->dirty_capacity, epoll->n_dirty,
			epoll->n_dirty + 1, sizeof(*epoll->dirty));
	if (r < 0)
		return r;
	epoll->fds[fd].dirty = true;
	epoll->dirty[epoll->n_dirty++] = fd;
	return 0;
}

static struct loop_op **epoll_slot(struct loop_epoll *epoll, const struct loop_op *op)
{
	struct epoll_fd *state = &epoll->fds[op->fd];

	return op->kind == LOOP_SEND ? &state->out : &state->in;
}

static int epoll_start(struct loop *loop, struct loop_op *op)
{
	struct loop_epoll *epoll = loop->backend;
	size_t need = (size_t)op->fd + 1;
	struct loop_op **slot;
	int r;

	if (op->fd < 0)
		return -EBADF;
	if (need > epoll->n_fds) {
		size_t n = max_u64(need, epoll->n_fds * 2);
		struct epoll_fd *fds = memory_array(n, sizeof(*fds));

		if (!fds)
			return -ENOMEM;
		for (size_t i = 0; i < epoll->n_fds; i++)
			fds[i] = epoll->fds[i];
		memory_free(epoll->fds);
		epoll->fds = fds;
		epoll->n_fds = n;
	}
	slot = epoll_slot(epoll, op);
	if (*slot)
		return -EBUSY;
	r = epoll_mark(epoll, op->fd);
	if (r < 0)
		return r;
	*slot = op;
	return 0;
}

static void epoll_cancel(struct loop *loop, struct loop_op *op)
{
	struct loop_epoll *epoll = loop->backend;

	*epoll_slot(epoll, op) = NULL;
	(void)epoll_mark(epoll, op->fd);
	op->next = epoll->cancelled;
	epoll->cancelled = op;
}

static void epoll_forget(struct loop *loop, int fd)
{
	struct loop_epoll *epoll = loop->backend;

	if ((size_t)fd >= epoll->n_fds)
		return;
	if (epoll->fds[fd].registered)
		(void)epoll_ctl(epoll->fd, EPOLL_CTL_DEL, fd, NULL);
	epoll->fds[fd].registered = 0;
}

static void epoll_finish(struct loop *loop, struct loop_op *op, int result)
{
	struct loop_epoll *epoll = loop->backend;

	*epoll_slot(epoll, op) = NULL;
	if (epoll_mark(epoll, op->fd) < 0)
		epoll_forget(loop, op->fd);
	loop_complete(loop, op, result, true);
}

static void epoll_sync(struct loop *loop)
{
	struct loop_epoll *epoll = loop->backend;

	for (size_t i = 0; i < epoll->n_dirty; i++) {
		int fd = epoll->dirty[i], r = 0;
		struct epoll_fd *state = &epoll->fds[fd];
		struct epoll_event event = {.data.fd = fd};

		state->dirty = false;
		if (state->in)
			event.events |= state->in->kind == LOOP_POLL ? state->in->events : EPOLLIN;
		if (state->out)
			event.events |= EPOLLOUT;
		if (event.events == state->registered)
			continue;
		if (!event.events)
			(void)epoll_ctl(epoll->fd, EPOLL_CTL_DEL, fd, NULL);
		else
			r = epoll_ctl(epoll->fd, state->registered ? EPOLL_CTL_MOD : EPOLL_CTL_ADD,
				      fd, &event);
		if (r < 0) {
			struct loop_op *ops[] = {state->in, state->out};

			state->in = state->out = NULL;
			state->registered = 0;
			for (int j = 0; j < 2; j++) {
				if (!ops[j])
					continue;
				ops[j]->next = epoll->cancelled;
				ops[j]->cancelled = true;
				epoll->cancelled = ops[j];
			}
			continue;
		}
		state->registered = event.events;
	}
	epoll->n_dirty = 0;
}

static void epoll_accept_ready(struct loop *loop, struct loop_op *op)
{
	for (int i = 0; i < EPOLL_ACCEPT_BATCH && op->active && !op->cancelled; i++) {
		struct pollfd ready = {.fd = op->fd, .events = POLLIN};
		int r;

		/* The listener may block, and is shared with a service manager: ask first. */
		if (poll(&ready, 1, 0) <= 0)
			return;
		r = accept4(op->fd, NULL, NULL, SOCK_CLOEXEC);
		if (r >= 0) {
			loop_complete(loop, op, r, false);
			continue;
		}
		if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED)
			return;
		epoll_finish(loop, op, -errno);
		return;
	}
}

static void epoll_in_ready(struct loop *loop, struct loop_op *op, uint32_t events)
{
	ssize_t n;

	if (op->kind == LOOP_POLL) {
		if (events & (op->events | EPOLLERR | EPOLLHUP))
			loop_complete(loop, op, (int)events, false);
		return;
	}
	if (op->kind == LOOP_ACCEPT) {
		epoll_accept_ready(loop, op);
		return;
	}
	n = recvmsg(op->fd, op->message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	epoll_finish(loop, op, n < 0 ? -errno : (int)n);
}

static void epoll_out_ready(struct loop *loop, struct loop_op *op)
{
	ssize_t n = sendmsg(op->fd, op->message, MSG_NOSIGNAL | MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	epoll_finish(loop, op, n < 0 ? -errno : (int)n);
}

static int epoll_wait_turn(struct loop *loop, uint64_t timeout_ns)
{
	struct loop_epoll *epoll = loop->backend;
	struct epoll_event events[EPOLL_BATCH];
	struct loop_op *op;
	int n, timeout_ms;

	epoll_sync(loop);
	timeout_ms = timeout_ns == UINT64_MAX ?
			     -1 :
			     (int)min_u64(div_up(timeout_ns, 1000000), 1000000);
	n = epoll_wait(epoll->fd, events, EPOLL_BATCH, epoll->cancelled ? 0 : timeout_ms);
	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	for (int i = 0; i < n; i++) {
		int fd = events[i].data.fd;
		uint32_t bad = events[i].events & (EPOLLERR | EPOLLHUP);

		/* A callback may have closed the descriptor, moved the table, or cancelled. */
		op = epoll->fds[fd].in;
		if (op && (events[i].events & op->events || bad || events[i].events & EPOLLIN))
			epoll_in_ready(loop, op, events[i].events);
		op = epoll->fds[fd].out;
		if (op && (events[i].events & EPOLLOUT || bad))
			epoll_out_ready(loop, op);
	}
	for (op = epoll->cancelled, epoll->cancelled = NULL; op;) {
		struct loop_op *next = op->next;

		loop_complete(loop, op, -ECANCELED, true);
		op = next;
	}
	return 0;
}

const struct loop_ops loop_epoll_ops = {
	.name = "epoll",
	.open = epoll_open,
	.close = epoll_close,
	.start = epoll_start,
	.cancel = epoll_cancel,
	.forget = epoll_forget,
	.wait = epoll_wait_turn,
};
