/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Descriptor passing. Owns no descriptor itself: what it takes out of a message belongs to the
 * caller or is closed before it returns. Any thread.
 */
#include "proto/fdpass.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>

#include "base/cleanup.h"

void fdpass_put(struct msghdr *message, void *control, const int *fds, unsigned n_fds)
{
	struct cmsghdr *c;

	if (n_fds == 0) {
		message->msg_control = NULL;
		message->msg_controllen = 0;
		return;
	}
	memset(control, 0, FDPASS_CONTROL_BYTES);
	message->msg_control = control;
	message->msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
	c = CMSG_FIRSTHDR(message);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
	memcpy(CMSG_DATA(c), fds, n_fds * sizeof(int));
}

int fdpass_take(struct msghdr *message, int fds[FDPASS_MAX], unsigned *ret_n_fds)
{
	struct cmsghdr *c;
	unsigned n_fds = 0;
	int r = message->msg_flags & MSG_CTRUNC ? -EPROTO : 0;

	for (c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		size_t n;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(fd));
			if (n_fds < FDPASS_MAX) {
				fds[n_fds++] = fd;
				continue;
			}
			(void)close_fd(fd);
			r = -EPROTO;
		}
	}
	if (r < 0) {
		while (n_fds > 0)
			(void)close_fd(fds[--n_fds]);
		return r;
	}
	*ret_n_fds = n_fds;
	return 0;
}

int fdpass_send(int socket, const void *packet, size_t n_bytes, const int *fds, unsigned n_fds)
{
	union {
		struct cmsghdr align;
		char bytes[FDPASS_CONTROL_BYTES];
	} control;
	struct iovec iov = {.iov_base = (void *)(uintptr_t)packet, .iov_len = n_bytes};
	struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
	ssize_t n;

	fdpass_put(&message, &control, fds, n_fds);
	do {
		n = sendmsg(socket, &message, MSG_NOSIGNAL);
	} while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : 0; /* a packet is sent whole or not at all */
}

int fdpass_recv(int socket, void *packet, size_t capacity, int fds[FDPASS_MAX], size_t *ret_bytes,
		unsigned *ret_n_fds)
{
	union {
		struct cmsghdr align;
		char bytes[FDPASS_CONTROL_BYTES];
	} control;
	struct iovec iov = {.iov_base = packet, .iov_len = capacity};
	struct msghdr message = {.msg_iov = &iov,
				 .msg_iovlen = 1,
				 .msg_control = &control,
				 .msg_controllen = sizeof(control)};
	unsigned n_fds;
	ssize_t n;
	int r;

	do {
		n = recvmsg(socket, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return -errno;
	r = fdpass_take(&message, fds, &n_fds);
	if (r < 0)
		return r;
	if (n == 0 || message.msg_flags & MSG_TRUNC) {
		while (n_fds > 0)
			(void)close_fd(fds[--n_fds]);
		return n == 0 ? -ECONNRESET : -EPROTO;
	}
	*ret_bytes = (size_t)n;
	*ret_n_fds = n_fds;
	return 0;
}
