/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The event loop: operations are started, complete later, and tell their result to a callback. Two
 * back ends do the same thing: io_uring, and epoll where the kernel lacks or forbids it.
 *
 * An operation is storage of the caller that must live, with the buffers it names, until its last
 * callback. loop_cancel() only asks: the last callback still comes, with -ECANCELED or with the
 * result that was quicker. Callbacks run from loop_run() alone, never inside a starting call, on the
 * one thread that made the loop.
 */
#ifndef DCMEM_LOOP_H
#define DCMEM_LOOP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

enum loop_io { LOOP_IO_AUTO, LOOP_IO_URING, LOOP_IO_EPOLL };

enum loop_kind { LOOP_ACCEPT, LOOP_RECV, LOOP_SEND, LOOP_POLL, LOOP_TIMER };

struct loop;
struct loop_op;

/* result: >= 0 as the system call's, or negative errno */
typedef void (*loop_done)(struct loop_op *op, int result);

struct loop_op {
	void *data; /* the caller's */
	/* the loop's own; active until the last callback begins */
	bool active, cancelled, expired;
	enum loop_kind kind;
	int fd;
	uint32_t events;
	struct msghdr *message;
	uint64_t deadline_ns;
	loop_done done;
	struct loop_op *next, **link; /* in the list of timers, or of cancelled operations */
};

/* A back end. wait() delivers what completes within timeout_ns (UINT64_MAX: no limit). */
struct loop_ops {
	const char *name;
	int (*open)(struct loop *loop);
	void (*close)(struct loop *loop);
	int (*start)(struct loop *loop, struct loop_op *op);
	void (*cancel)(struct loop *loop, struct loop_op *op);
	void (*forget)(struct loop *loop, int fd);
	int (*wait)(struct loop *loop, uint64_t timeout_ns);
};

struct loop {
	const struct loop_ops *ops;
	void *backend;
	struct loop_op *timers; /* active ones, unordered: there are few */
	uint64_t n_completions;
	bool (*poller)(void *data); /* NULL: none */
	void *poller_data;
	bool stopping;
	char detail[160]; /* how the back end was chosen */
};

extern const struct loop_ops loop_uring_ops, loop_epoll_ops;

int loop_new(enum loop_io io, struct loop **ret_loop);
/* No operation may be active. NULL is fine. Returns NULL. */
struct loop *loop_free(struct loop *loop);
const char *loop_name(const struct loop *loop);

/*
 * Accepting and polling repeat until cancelled or until a negative result; the others complete once.
 * Each returns 0, or negative errno and then nothing was started.
 */
int loop_accept(struct loop *loop, struct loop_op *op, int fd, loop_done done);
int loop_recv(struct loop *loop, struct loop_op *op, int fd, struct msghdr *message, loop_done done);
int loop_send(struct loop *loop, struct loop_op *op, int fd, struct msghdr *message, loop_done done);
int loop_poll(struct loop *loop, struct loop_op *op, int fd, uint32_t events, loop_done done);
int loop_timer(struct loop *loop, struct loop_op *op, uint64_t deadline_ns, loop_done done);
void loop_cancel(struct loop *loop, struct loop_op *op);
/* Closes a descriptor that operations used; none may be active on it. */
int loop_close(struct loop *loop, int fd);

/* Called before each wait; while it says true, the loop looks for completions without waiting. */
void loop_set_poller(struct loop *loop, bool (*poller)(void *data), void *data);
/* Until loop_stop(); negative errno when the back end broke. */
int loop_run(struct loop *loop);
/* One wait of at most timeout_ns. */
int loop_turn(struct loop *loop, uint64_t timeout_ns);
void loop_stop(struct loop *loop);

/* For back ends: a completion; `last` ends the operation. */
void loop_complete(struct loop *loop, struct loop_op *op, int result, bool last);

#endif
