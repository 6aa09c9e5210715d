/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What both back ends of the loop share: choosing one, timers, and the rule that an operation ends
 * exactly once. Owned by the thread that made it.
 */
#include "daemon/loop.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/message.h"

int loop_new(enum loop_io io, struct loop **ret_loop)
{
	struct loop *loop = memory_zalloc(sizeof(*loop));
	int r;

	if (!loop)
		return -ENOMEM;
	loop->ops = io == LOOP_IO_EPOLL ? &loop_epoll_ops : &loop_uring_ops;
	snprintf(loop->detail, sizeof(loop->detail), "chosen by --io");
	r = loop->ops->open(loop);
	if (r < 0 && io == LOOP_IO_AUTO) {
		snprintf(loop->detail, sizeof(loop->detail), "io_uring cannot be used here: %s",
			 strerror(-r));
		loop->ops = &loop_epoll_ops;
		r = loop->ops->open(loop);
	}
	if (r < 0) {
		message_set(r, "cannot set up %s: %s", loop->ops->name, strerror(-r));
		memory_free(loop);
		return r;
	}
	*ret_loop = loop;
	return 0;
}

struct loop *loop_free(struct loop *loop)
{
	if (loop) {
		loop->ops->close(loop);
		memory_free(loop);
	}
	return NULL;
}

const char *loop_name(const struct loop *loop)
{
	return loop->ops->name;
}

static int loop_start(struct loop *loop, struct loop_op *op, enum loop_kind kind, int fd,
		      loop_done done)
{
	int r;

	op->kind = kind;
	op->fd = fd;
	op->done = done;
	op->cancelled = false;
	op->active = true;
	r = loop->ops->start(loop, op);
	if (r < 0)
		op->active = false;
	return r;
}

int loop_accept(struct loop *loop, struct loop_op *op, int fd, loop_done done)
{
	return loop_start(loop, op, LOOP_ACCEPT, fd, done);
}

int loop_recv(struct loop *loop, struct loop_op *op, int fd, struct msghdr *message, loop_done done)
{
	op->message = message;
	return loop_start(loop, op, LOOP_RECV, fd, done);
}

int loop_send(struct loop *loop, struct loop_op *op, int fd, struct msghdr *message, loop_done done)
{
	op->message = message;
	return loop_start(loop, op, LOOP_SEND, fd, done);
}

int loop_poll(struct loop *loop, struct loop_op *op, int fd, uint32_t events, loop_done done)
{
	op->events = events;
	return loop_start(loop, op, LOOP_POLL, fd, done);
}

int loop_timer(struct loop *loop, struct loop_op *op, uint64_t deadline_ns, loop_done done)
{
	op->kind = LOOP_TIMER;
	op->fd = -1;
	op->done = done;
	op->cancelled = op->expired = false;
	op->active = true;
	op->deadline_ns = deadline_ns;
	op->next = loop->timers;
	op->link = &loop->timers;
	if (op->next)
		op->next->link = &op->next;
	loop->timers = op;
	return 0;
}

void loop_cancel(struct loop *loop, struct loop_op *op)
{
	if (!op->active || op->cancelled)
		return;
	op->cancelled = true;
	if (op->kind == LOOP_TIMER)
		op->deadline_ns = 0;
	else
		loop->ops->cancel(loop, op);
}

int loop_close(struct loop *loop, int fd)
{
	if (fd >= 0) {
		loop->ops->forget(loop, fd);
		close_fd(fd);
	}
	return -1;
}

void loop_complete(struct loop *loop, struct loop_op *op, int result, bool last)
{
	loop->n_completions++;
	if (last) {
		if (op->cancelled && result < 0)
			result = -ECANCELED;
		op->active = false;
	}
	op->done(op, result);
}

/* A callback may start and cancel timers, also ones found expired here: search afresh each time. */
static void loop_expire_timers(struct loop *loop)
{
	uint64_t now = clock_now_ns();
	struct loop_op *op;

	for (op = loop->timers; op; op = op->next)
		op->expired = op->deadline_ns <= now;
	for (;;) {
		for (op = loop->timers; op && !op->expired; op = op->next)
			;
		if (!op)
			return;
		*op->link = op->next;
		if (op->next)
			op->next->link = op->link;
		loop_complete(loop, op, op->cancelled ? -ECANCELED : 0, true);
	}
}

void loop_set_poller(struct loop *loop, bool (*poller)(void *data), void *data)
{
	loop->poller = poller;
	loop->poller_data = data;
}

int loop_turn(struct loop *loop, uint64_t timeout_ns)
{
	uint64_t now;
	int r;

	if (loop->poller && loop->poller(loop->poller_data))
		timeout_ns = 0;
	now = clock_now_ns();
	for (struct loop_op *op = loop->timers; op; op = op->next) {
		uint64_t left = op->deadline_ns > now ? op->deadline_ns - now : 0;

		if (left < timeout_ns)
			timeout_ns = left;
	}
	r = loop->ops->wait(loop, timeout_ns);
	if (r < 0)
		return r;
	loop_expire_timers(loop);
	return 0;
}

int loop_run(struct loop *loop)
{
	loop->stopping = false;
	while (!loop->stopping) {
		int r = loop_turn(loop, UINT64_MAX);

		if (r < 0)
			return r;
	}
	return 0;
}

void loop_stop(struct loop *loop)
{
	loop->stopping = true;
}
