/* SPDX-License-Identifier: Apache-2.0 */
/* The same scenario on both back ends of the loop. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/memory.h"
#include "daemon/loop.h"

#define PATIENCE_NS (20 * NS_PER_S)
#define LARGE_BYTES (8U << 20) /* far more than a socket holds */

struct seen {
	unsigned n;
	int last;
};

static void note(struct loop_op *op, int result)
{
	struct seen *seen = op->data;

	seen->n++;
	seen->last = result;
}

static void turn_until(struct loop *loop, const struct seen *seen, unsigned n)
{
	uint64_t end = clock_now_ns() + PATIENCE_NS;

	while (seen->n < n) {
		assert_true(clock_now_ns() < end);
		assert_int_equal(loop_turn(loop, NS_PER_S), 0);
	}
	assert_int_equal(seen->n, n);
}

static struct loop *open_loop(void **state)
{
	struct loop *loop;
	int r = loop_new(*(enum loop_io *)*state, &loop);

	if (r < 0) {
		print_message("skipped: this back end cannot be used here: %s\n", strerror(-r));
		skip();
	}
	return loop;
}

static void test_timers(void **state)
{
	struct loop *loop = open_loop(state);
	struct seen first = {0}, second = {0}, never = {0};
	struct loop_op a = {.data = &first}, b = {.data = &second}, c = {.data = &never};
	uint64_t now = clock_now_ns();

	loop_timer(loop, &b, now + 20 * NS_PER_MS, note);
	loop_timer(loop, &a, now + 2 * NS_PER_MS, note);
	loop_timer(loop, &c, now + 3600 * NS_PER_S, note);
	turn_until(loop, &first, 1);
	assert_int_equal(first.last, 0);
	assert_int_equal(never.n, 0);
	loop_cancel(loop, &c);
	loop_cancel(loop, &c);
	turn_until(loop, &never, 1);
	assert_int_equal(never.last, -ECANCELED);
	turn_until(loop, &second, 1);
	assert_true(clock_now_ns() >= now + 20 * NS_PER_MS);
	assert_false(a.active || b.active || c.active);
	loop_free(loop);
}

static void test_packets(void **state)
{
	struct loop *loop = open_loop(state);
	struct seen received = {0}, sent = {0};
	struct loop_op in = {.data = &received}, out = {.data = &sent};
	char buffer[16] = "";
	struct iovec to = {buffer, sizeof(buffer)}, from = {(void *)(uintptr_t)"hello", 5};
	struct msghdr in_message = {.msg_iov = &to, .msg_iovlen = 1};
	struct msghdr out_message = {.msg_iov = &from, .msg_iovlen = 1};
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(loop_recv(loop, &in, pair[0], &in_message, note), 0);
	assert_int_equal(received.n, 0);
	assert_int_equal(loop_send(loop, &out, pair[0], &out_message, note), 0);
	turn_until(loop, &sent, 1);
	assert_int_equal(sent.last, 5);
	assert_int_equal(recv(pair[1], buffer, 16, 0), 5);
	assert_memory_equal(buffer, "hello", 5);
	/* a packet cut short says so */
	assert_int_equal(send(pair[1], "0123456789abcdefXYZ", 19, 0), 19);
	turn_until(loop, &received, 1);
	assert_int_equal(received.last, 16);
	assert_true(in_message.msg_flags & MSG_TRUNC);
	/* cancelled: the callback comes, once, later */
	assert_int_equal(loop_recv(loop, &in, pair[0], &in_message, note), 0);
	assert_int_equal(loop_turn(loop, 0), 0);
	loop_cancel(loop, &in);
	turn_until(loop, &received, 2);
	assert_int_equal(received.last, -ECANCELED);
	/* the end of the peer */
	assert_int_equal(loop_recv(loop, &in, pair[0], &in_message, note), 0);
	close(pair[1]);
	turn_until(loop, &received, 3);
	assert_true(received.last == 0 || received.last == -ECONNRESET);
	assert_int_equal(loop_send(loop, &out, pair[0], &out_message, note), 0);
	turn_until(loop, &sent, 2);
	assert_int_equal(sent.last, -EPIPE);
	loop_close(loop, pair[0]);
	loop_free(loop);
}

static void test_large_send(void **state)
{
	struct loop *loop = open_loop(state);
	struct seen sent = {0};
	struct loop_op out = {.data = &sent};
	uint8_t *data = memory_zalloc(LARGE_BYTES), part[65536];
	struct iovec from = {data, LARGE_BYTES};
	struct msghdr message = {.msg_iov = &from, .msg_iovlen = 1};
	uint64_t end = clock_now_ns() + PATIENCE_NS;
	size_t got = 0, done = 0;
	int pair[2];

	for (size_t i = 0; i < LARGE_BYTES; i++)
		data[i] = (uint8_t)(i * 31 + i / 65536);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	assert_int_equal(loop_send(loop, &out, pair[0], &message, note), 0);
	while (got < LARGE_BYTES) {
		ssize_t n;

		assert_true(clock_now_ns() < end);
		assert_int_equal(loop_turn(loop, NS_PER_MS), 0);
		if (!out.active) {
			assert_true(sent.last > 0);
			done += (size_t)sent.last;
			from = (struct iovec){data + done, LARGE_BYTES - done};
			if (done < LARGE_BYTES)
				assert_int_equal(loop_send(loop, &out, pair[0], &message, note), 0);
		}
		while ((n = recv(pair[1], part, sizeof(part), MSG_DONTWAIT)) > 0) {
			assert_memory_equal(part, data + got, (size_t)n);
			got += (size_t)n;
		}
		if (done == LARGE_BYTES)
			break;
	}
	while (got < LARGE_BYTES) {
		ssize_t n = recv(pair[1], part, sizeof(part), 0);

		assert_true(n > 0);
		assert_memory_equal(part, data + got, (size_t)n);
		got += (size_t)n;
	}
	assert_int_equal(done, LARGE_BYTES);
	assert_false(out.active);
	loop_close(loop, pair[0]);
	close(pair[1]);
	memory_free(data);
	loop_free(loop);
}

static void test_poll_repeats(void **state)
{
	struct loop *loop = open_loop(state);
	struct seen seen = {0};
	struct loop_op op = {.data = &seen};
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	uint64_t one = 1;

	assert_int_equal(loop_poll(loop, &op, fd, POLLIN, note), 0);
	for (unsigned i = 1; i <= 50; i++) {
		assert_int_equal(write(fd, &one, 8), 8);
		turn_until(loop, &seen, i);
		assert_true(seen.last & POLLIN);
		assert_int_equal(read(fd, &one, 8), 8);
	}
	loop_cancel(loop, &op);
	turn_until(loop, &seen, 51);
	assert_int_equal(seen.last, -ECANCELED);
	loop_close(loop, fd);
	loop_free(loop);
}

static void test_accept_and_reuse(void **state)
{
	struct loop *loop = open_loop(state);
	struct seen accepted = {0}, received = {0};
	struct loop_op op = {.data = &accepted}, in = {.data = &received};
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	socklen_t n_bytes = sizeof(address);
	char buffer[8];
	struct iovec to = {buffer, sizeof(buffer)};
	struct msghdr message = {.msg_iov = &to, .msg_iovlen = 1};
	int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	/* an abstract address of the kernel's choice: nothing to remove */
	assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof(sa_family_t)), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &n_bytes), 0);
	assert_int_equal(listen(listener, 100), 0);
	assert_int_equal(loop_accept(loop, &op, listener, note), 0);
	for (unsigned i = 1; i <= 20; i++) {
		int client = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), server;

		assert_int_equal(connect(client, (struct sockaddr *)&address, n_bytes), 0);
		turn_until(loop, &accepted, i);
		server = accepted.last;
		assert_true(server >= 0);
		/* the same number again and again: nothing of the last one may be left */
		message = (struct msghdr){.msg_iov = &to, .msg_iovlen = 1};
		assert_int_equal(loop_recv(loop, &in, server, &message, note), 0);
		assert_int_equal(send(client, "x", 1, 0), 1);
		turn_until(loop, &received, i);
		assert_int_equal(received.last, 1);
		loop_close(loop, server);
		close(client);
	}
	loop_cancel(loop, &op);
	turn_until(loop, &accepted, 21);
	loop_close(loop, listener);
	loop_free(loop);
}

int main(void)
{
	static enum loop_io uring = LOOP_IO_URING, epoll = LOOP_IO_EPOLL;
#define BOTH(function)                                                                             \
	{#function " (io_uring)", function, NULL, NULL, &uring},                                   \
	{                                                                                          \
		#function " (epoll)", function, NULL, NULL, &epoll                                 \
	}
	const struct CMUnitTest tests[] = {
		BOTH(test_timers),	 BOTH(test_packets),	      BOTH(test_large_send),
		BOTH(test_poll_repeats), BOTH(test_accept_and_reuse),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
