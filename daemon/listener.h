/* SPDX-License-Identifier: Apache-2.0 */
/* A listening socket: made without a moment in which a stranger could connect, and accepting. */
#ifndef DCMEM_LISTENER_H
#define DCMEM_LISTENER_H

#include "daemon/loop.h"

struct listener {
	struct loop *loop;
	int fd, reserve_fd; /* the reserve is spent to turn a caller away when descriptors run out */
	char *path;	    /* to unlink; NULL when the service manager owns the socket */
	struct loop_op accept, retry;
	bool stopping;
	void (*accepted)(void *data, int fd);
	void *data;
};

/*
 * Binds and listens at `path` (type SOCK_SEQPACKET or SOCK_STREAM), removing a socket that nobody
 * listens on; -EADDRINUSE with a message when somebody does. `fd` >= 0 is used instead. group -1:
 * leave it.
 */
int listener_init(struct listener *listener, struct loop *loop, const char *path, int fd, int type,
		  mode_t mode, gid_t group);
int listener_start(struct listener *listener, void (*accepted)(void *data, int fd), void *data);
/* Takes the path away and stops accepting; the loop must then run until listener_is_idle(). */
void listener_stop(struct listener *listener);
bool listener_is_idle(const struct listener *listener);
void listener_deinit(struct listener *listener);

#endif
