/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets with descriptors over a SEQPACKET socket. Received descriptors are close-on-exec, and every
 * one that the caller does not get is closed. Never raises SIGPIPE.
 */
#ifndef DCMEM_FDPASS_H
#define DCMEM_FDPASS_H

#include <stddef.h>
#include <sys/socket.h>

#define FDPASS_MAX 4 /* descriptors of one packet; the protocol has 2 at most */
/* Room for FDPASS_MAX descriptors; more than that is cut by the kernel and refused. */
#define FDPASS_CONTROL_BYTES CMSG_SPACE(FDPASS_MAX * sizeof(int))

/* 0, or negative errno: -EAGAIN where the socket is full and does not block. */
int fdpass_send(int socket, const void *packet, size_t n_bytes, const int *fds, unsigned n_fds);
/*
 * One packet, never blocking: -EAGAIN when there is none, -ECONNRESET at the end of the stream,
 * -EPROTO for a packet or descriptors that do not fit.
 */
int fdpass_recv(int socket, void *packet, size_t capacity, int fds[FDPASS_MAX], size_t *ret_bytes,
		unsigned *ret_n_fds);

/* The halves, for a loop that sends and receives by itself: puts descriptors into a message ... */
void fdpass_put(struct msghdr *message, void *control, const int *fds, unsigned n_fds);
/* ... and takes them out. -EPROTO, everything closed, when they were cut or are too many. */
int fdpass_take(struct msghdr *message, int fds[FDPASS_MAX], unsigned *ret_n_fds);

#endif
