/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Listening sockets. A socket is bound and given mode and group under a temporary name, listens, and
 * is then renamed into place: nobody can connect before its permissions are right. Refuses to push
 * a living daemon aside. Loop thread.
 */
#include "daemon/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/message.h"
#include "daemon/log.h"

#define LISTENER_BACKLOG 1024
#define LISTENER_RETRY_NS (50 * NS_PER_MS) /* after running out of descriptors; untuned */

static int listener_address(const char *path, struct sockaddr_un *ret_address)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	if (strlen(path) >= sizeof(address.sun_path))
		return message_set(-ENAMETOOLONG, "%s: too long for a socket path", path);
	memcpy(address.sun_path, path, strlen(path) + 1);
	*ret_address = address;
	return 0;
}

/* A path that exists is fine to replace if it is a socket and nobody answers there. */
static int listener_check_free(const char *path, int type)
{
	_cleanup_(cleanup_fd) int fd = -1;
	struct sockaddr_un address;
	struct stat st;
	int r;

	if (lstat(path, &st) < 0)
		return errno == ENOENT ? 0
				       : message_set(-errno, "%s: %s", path, strerror(errno));
	if (!S_ISSOCK(st.st_mode))
		return message_set(-EEXIST, "%s exists and is not a socket; not touching it", path);
	r = listener_address(path, &address);
	if (r < 0)
		return r;
	fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 && errno == ECONNREFUSED)
		return 0;
	return message_set(-EADDRINUSE,
			   "%s: another dcmemd listens there; stop it, or choose another --socket",
			   path);
}

static int listener_bind(int fd, const char *path, const char *temporary, mode_t mode, gid_t group)
{
	struct sockaddr_un address;
	mode_t mask;
	int r = listener_address(temporary, &address);

	if (r < 0)
		return r;
	(void)unlink(temporary);
	mask = umask(0777);
	r = bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
	umask(mask);
	if (r < 0)
		return message_set(r, "%s: cannot bind: %s", path, strerror(-r));
	if ((group != (gid_t)-1 && chown(temporary, (uid_t)-1, group) < 0) ||
	    chmod(temporary, mode) < 0 || listen(fd, LISTENER_BACKLOG) < 0 ||
	    rename(temporary, path) < 0) {
		r = message_set(-errno, "%s: cannot set up the socket: %s", path, strerror(errno));
		(void)unlink(temporary);
	}
	return r;
}

int listener_init(struct listener *listener, struct loop *loop, const char *path, int fd, int type,
		  mode_t mode, gid_t group)
{
	_cleanup_(cleanup_fd) int made = -1, reserve = open("/dev/null", O_RDONLY | O_CLOEXEC);
	_cleanup_(cleanup_memory) char *copy = NULL;
	char temporary[sizeof(((struct sockaddr_un *)0)->sun_path)];
	int r;

	if (reserve < 0)
		return message_set(-errno, "/dev/null: %s", strerror(errno));
	if (fd < 0) {
		const char *slash = strrchr(path, '/');
		int head = slash ? (int)(slash - path) + 1 : 0;

		r = listener_check_free(path, type);
		if (r < 0)
			return r;
		copy = memory_strdup(path);
		if (!copy)
			return -ENOMEM;
		if (snprintf(temporary, sizeof(temporary), "%.*s.%d.%d", head, path, (int)getpid(),
			     type) >= (int)sizeof(temporary))
			return message_set(-ENAMETOOLONG, "%s: too long for a socket path", path);
		made = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
		if (made < 0)
			return message_set(-errno, "cannot make a socket: %s", strerror(errno));
		r = listener_bind(made, path, temporary, mode, group);
		if (r < 0)
			return r;
	}
	*listener = (struct listener){.loop = loop,
				      .fd = fd < 0 ? take_fd(&made) : fd,
				      .reserve_fd = take_fd(&reserve),
				      .path = TAKE(copy)};
	return 0;
}

static void listener_accepted(struct loop_op *op, int result);

static void listener_retry(struct loop_op *op, int result)
{
	struct listener *listener = op->data;

	if (!listener->stopping &&
	    loop_accept(listener->loop, &listener->accept, listener->fd, listener_accepted) < 0)
		(void)loop_timer(listener->loop, op, clock_now_ns() + LISTENER_RETRY_NS,
				 listener_retry);
}

/* Out of descriptors: spend the reserve on the caller at the head of the queue, to hang up. */
static void listener_turn_away(struct listener *listener)
{
	struct pollfd ready = {.fd = listener->fd, .events = POLLIN};

	listener->reserve_fd = close_fd(listener->reserve_fd);
	if (poll(&ready, 1, 0) > 0)
		close_fd(accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC));
	listener->reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static void listener_accepted(struct loop_op *op, int result)
{
	static struct log_limit limit;
	struct listener *listener = op->data;

	if (result >= 0) {
		if (listener->stopping)
			close_fd(result);
		else
			listener->accepted(listener->data, result);
		return;
	}
	if (listener->stopping)
		return;
	if (log_limit_allows(&limit, 1))
		log_line(LOG_LEVEL_WARNING, "cannot accept a connection: %s", strerror(-result));
	if (result == -EMFILE || result == -ENFILE)
		listener_turn_away(listener);
	(void)loop_timer(listener->loop, &listener->retry, clock_now_ns() + LISTENER_RETRY_NS,
			 listener_retry);
}

int listener_start(struct listener *listener, void (*accepted)(void *data, int fd), void *data)
{
	listener->accepted = accepted;
	listener->data = data;
	listener->accept.data = listener->retry.data = listener;
	return loop_accept(listener->loop, &listener->accept, listener->fd, listener_accepted);
}

void listener_stop(struct listener *listener)
{
	listener->stopping = true;
	if (listener->path)
		(void)unlink(listener->path);
	loop_cancel(listener->loop, &listener->accept);
	loop_cancel(listener->loop, &listener->retry);
}

bool listener_is_idle(const struct listener *listener)
{
	return !listener->accept.active && !listener->retry.active;
}

void listener_deinit(struct listener *listener)
{
	if (!listener->loop)
		return;
	listener->fd = loop_close(listener->loop, listener->fd);
	listener->reserve_fd = close_fd(listener->reserve_fd);
	listener->path = memory_free(listener->path);
}
