/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Round trips over the control socket. Owns the socket and every descriptor of a reply until the
 * caller takes it. Refuses what the gate refuses, and then ends the connection. Any thread, under
 * transport->lock. A reply that nobody waits for any more (its request timed out) is undone: its
 * descriptors are closed, its lease is given back.
 */
#include "transport.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/message.h"

#define FEATURES (WIRE_FEATURE_SHARE | WIRE_FEATURE_AGAIN | WIRE_FEATURE_RING)

#define TIMEOUT_DEFAULT_MS 30000
#define SYSTEM_SOCKET "/run/dcmem/socket"

static int transport_default_path(char *path, size_t capacity)
{
	const char *runtime = getenv("XDG_RUNTIME_DIR"), *chosen = getenv("DCMEM_SOCKET");
	int n;

	if (chosen && *chosen) {
		n = snprintf(path, capacity, "%s", chosen);
	} else {
		n = runtime && *runtime ? snprintf(path, capacity, "%s/dcmem/socket", runtime) : -1;
		if (n < 0 || (size_t)n >= capacity || access(path, F_OK) < 0)
			n = snprintf(path, capacity, SYSTEM_SOCKET);
	}
	return (size_t)n < capacity ? 0 : -ENAMETOOLONG;
}

int transport_options_init(struct transport_options *options, const struct dcmem_options *from)
{
	int r = 0;

	memset(options, 0, sizeof(*options));
	options->timeout_ms = TIMEOUT_DEFAULT_MS;
	if (from && from->timeout_ms)
		options->timeout_ms = from->timeout_ms;
	if (from && from->socket_path) {
		int n = snprintf(options->path, sizeof(options->path), "%s", from->socket_path);

		r = (size_t)n < sizeof(options->path) ? 0 : -ENAMETOOLONG;
	} else {
		r = transport_default_path(options->path, sizeof(options->path));
	}
	if (r < 0)
		return message_set(r, "the socket path is longer than %zu bytes",
				   sizeof(options->path) - 1);
	return 0;
}

void transport_init(struct transport *transport, const struct transport_options *options)
{
	memset(transport, 0, sizeof(*transport));
	(void)pthread_mutex_init(&transport->lock, NULL);
	(void)pthread_mutex_init(&transport->send_lock, NULL);
	transport->options = *options;
	transport->fd = -1;
	transport->session = 1;
}

void transport_deinit(struct transport *transport)
{
	transport_close(transport);
	(void)pthread_mutex_destroy(&transport->send_lock);
	(void)pthread_mutex_destroy(&transport->lock);
}

void transport_close(struct transport *transport)
{
	pthread_mutex_lock(&transport->send_lock);
	transport->fd = close_fd(transport->fd);
	__atomic_fetch_add(&transport->session, 1, __ATOMIC_RELEASE);
	pthread_mutex_unlock(&transport->send_lock);
}

static uint64_t transport_tag(struct transport *transport)
{
	return __atomic_add_fetch(&transport->next_tag, 1, __ATOMIC_RELAXED);
}

void transport_reply_close(struct transport_reply *reply)
{
	while (reply->n_fds > 0)
		(void)close_fd(reply->fds[--reply->n_fds]);
}

static int transport_lost(struct transport *transport)
{
	transport_close(transport);
	return message_set(-ENOTCONN, "the connection to the daemon at %s was lost",
			   transport->options.path);
}

static int transport_broken(struct transport *transport)
{
	transport_close(transport);
	return message_prefix(DCMEM_E_PROTOCOL, "the daemon at %s", transport->options.path);
}

int transport_tell(struct transport *transport, uint64_t session, uint16_t type, const void *body,
		   size_t body_bytes, bool hint)
{
	struct wire_header header = {.type = type, .tag = transport_tag(transport)};
	struct wire_packet packet;
	int r;

	r = wire_build(&packet, &header, body, body_bytes, NULL, 0);
	if (r < 0)
		return r;
	pthread_mutex_lock(&transport->send_lock);
	if (transport->fd < 0 || transport->session != session) {
		r = -ENOTCONN;
	} else {
		struct pollfd ready = {.fd = transport->fd, .events = POLLOUT};

		if (!hint || poll(&ready, 1, 0) > 0)
			r = fdpass_send(transport->fd, packet.bytes, packet.n_bytes, NULL, 0);
	}
	pthread_mutex_unlock(&transport->send_lock);
	return r;
}

/* Takes back what a reply gave that came after its request had timed out. */
static void transport_undo(struct transport *transport, const struct wire_message *message)
{
	if (message->header.type == WIRE_ACQUIRE && message->header.status == 0) {
		struct wire_release release = {.lease = message->acquire_reply.lease};

		(void)transport_tell(transport, transport_session(transport), WIRE_RELEASE,
				     &release, sizeof(release), false);
	}
}

static int transport_wait(struct transport *transport, uint64_t deadline)
{
	struct pollfd ready = {.fd = transport->fd, .events = POLLIN};

	for (;;) {
		uint64_t now = clock_now_ns();
		int timeout = now >= deadline ? 0 : (int)((deadline - now) / NS_PER_MS + 1);
		int n = poll(&ready, 1, timeout);

		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n == 0 && clock_now_ns() >= deadline)
			return message_set(-ETIMEDOUT, "the daemon at %s did not answer in %u ms",
					   transport->options.path, transport->options.timeout_ms);
	}
}

static int transport_receive(struct transport *transport, uint16_t type, uint64_t tag,
			     struct transport_reply *reply)
{
	uint64_t deadline = clock_now_ns() + transport->options.timeout_ms * NS_PER_MS;

	for (;;) {
		size_t n_bytes;
		int r;

		r = transport_wait(transport, deadline);
		if (r < 0)
			return r;
		r = fdpass_recv(transport->fd, reply->packet, sizeof(reply->packet), reply->fds,
				&n_bytes, &reply->n_fds);
		if (r == -EAGAIN)
			continue;
		if (r == -EPROTO) {
			message_set(0, "a packet larger than the protocol allows");
			return transport_broken(transport);
		}
		if (r < 0)
			return transport_lost(transport);
		r = wire_check(WIRE_REPLY, reply->packet, n_bytes, reply->n_fds, &reply->message);
		if (r == 0 && reply->message.header.tag == tag && reply->message.header.type == type)
			return 0;
		transport_reply_close(reply);
		if (r == 0 && reply->message.header.tag >= tag)
			r = message_set(DCMEM_E_PROTOCOL, "a reply to nothing");
		if (r != 0)
			return transport_broken(transport);
		transport_undo(transport, &reply->message);
	}
}

int transport_request(struct transport *transport, uint16_t type, const void *body,
		      size_t body_bytes, const char *text, size_t text_bytes,
		      struct transport_reply *ret_reply)
{
	struct wire_header header = {.type = type, .tag = transport_tag(transport)};
	struct wire_packet packet;
	int r;

	ret_reply->n_fds = 0;
	if (transport->fd < 0)
		return message_set(-ENOTCONN, "not connected to a daemon");
	r = wire_build(&packet, &header, body, body_bytes, text, text_bytes);
	if (r < 0)
		return message_set(r, "a request of more than %d bytes", WIRE_MAX_PAYLOAD);
	pthread_mutex_lock(&transport->send_lock);
	r = fdpass_send(transport->fd, packet.bytes, packet.n_bytes, NULL, 0);
	pthread_mutex_unlock(&transport->send_lock);
	if (r < 0)
		return transport_lost(transport);
	r = transport_receive(transport, type, header.tag, ret_reply);
	if (r != 0)
		return r;
	if (ret_reply->message.header.status != 0)
		return message_set(wire_result_of(ret_reply->message.header.status), "%.*s",
				   (int)ret_reply->message.text_bytes, ret_reply->message.text);
	return 0;
}

static int transport_hello(struct transport *transport)
{
	struct wire_hello hello = {.protocol = WIRE_PROTOCOL, .features = FEATURES};
	struct transport_reply reply;
	int r;

	r = transport_request(transport, WIRE_HELLO, &hello, sizeof(hello), NULL, 0, &reply);
	if (r != 0)
		return r;
	if (reply.message.hello.protocol != WIRE_PROTOCOL || reply.message.hello.features & ~FEATURES)
		return message_set(DCMEM_E_PROTOCOL,
				   "the daemon at %s speaks protocol %u, this library %u",
				   transport->options.path, reply.message.hello.protocol,
				   WIRE_PROTOCOL);
	transport->features = reply.message.hello.features;
	transport->instance = reply.message.hello.instance;
	return 0;
}

int transport_connect(struct transport *transport)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	uint32_t ms = transport->options.timeout_ms;
	struct timeval timeout = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
	_cleanup_(cleanup_fd) int fd = -1;
	int r;

	transport_close(transport);
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return message_set(-errno, "cannot make a socket: %s", strerror(errno));
	/* Sending and connecting block at most this long; receiving polls. */
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)) < 0)
		return -errno;
	memcpy(address.sun_path, transport->options.path, sizeof(address.sun_path));
	do {
		r = connect(fd, (struct sockaddr *)&address, sizeof(address));
	} while (r < 0 && errno == EINTR);
	if (r < 0 && (errno == ENOENT || errno == ECONNREFUSED || errno == ENOTDIR))
		return message_set(DCMEM_E_NO_DAEMON, "no daemon listens on %s; start dcmemd",
				   address.sun_path);
	if (r < 0 && (errno == EACCES || errno == EPERM))
		return message_set(DCMEM_E_DENIED, "this user may not connect to %s",
				   address.sun_path);
	if (r < 0 && errno == EPROTOTYPE)
		return message_set(DCMEM_E_PROTOCOL, "%s is not the control socket of dcmemd",
				   address.sun_path);
	if (r < 0)
		return message_set(-errno, "cannot connect to %s: %s", address.sun_path,
				   strerror(errno));
	pthread_mutex_lock(&transport->send_lock);
	transport->fd = take_fd(&fd);
	pthread_mutex_unlock(&transport->send_lock);
	r = transport_hello(transport);
	if (r != 0)
		transport_close(transport);
	return r;
}
