/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sessions: one packet in, at most one packet out. Owns the client's descriptor, its store_client and
 * the replies that wait. Refuses anything the packet gate refuses, descriptors from the client, and
 * requests before HELLO: each ends that session and nothing else. While too many requests or replies
 * wait, it stops reading, so that a slow client costs a bounded amount of memory. Loop thread.
 */
#include "daemon/session.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/message.h"
#include "daemon/admin.h"
#include "proto/fdpass.h"
#include "proto/wire.h"

#define SESSION_MAX_WAITING 64 /* requests and replies of one client; untuned */

struct session_reply {
	struct session_reply *next;
	struct wire_packet packet;
	int fds[WIRE_MAX_FDS];
	unsigned n_fds;
};

/* A request whose answer the store or a load gives later. */
struct session_wait {
	struct session *session; /* NULL: it ended */
	struct session_wait *next, **link;
	uint64_t tag;
	struct admin_call *call;
};

struct session {
	struct server *server;
	struct session *next, **link;
	struct peer peer;
	int fd;
	struct store_client *client;
	struct ring *ring; /* NULL: none was asked for */
	struct loop_op recv, send, handshake, reap;
	bool ready, ending, reaping;
	uint64_t n_attached;
	struct session_wait *waits;
	struct session_reply *replies, **replies_end;
	unsigned n_waiting; /* waits and replies */
	struct msghdr in, out;
	struct iovec in_vector, out_vector;
	/* One byte more than a packet may have, to notice longer ones. */
	uint8_t packet[WIRE_MAX_PACKET + 1] __attribute__((aligned(8)));
	uint8_t in_control[FDPASS_CONTROL_BYTES] __attribute__((aligned(8)));
	uint8_t out_control[FDPASS_CONTROL_BYTES] __attribute__((aligned(8)));
};

static void session_received(struct loop_op *op, int result);
static void session_sent(struct loop_op *op, int result);

struct session *session_next(const struct session *session)
{
	return session->next;
}

static struct session_reply *session_reply_free(struct session_reply *reply)
{
	if (reply)
		for (unsigned i = 0; i < reply->n_fds; i++)
			close_fd(reply->fds[i]);
	return memory_free(reply);
}

/* The last step: nothing of the kernel's points here any more. */
static void session_try_free(struct session *session)
{
	struct session_wait *wait, *next;

	if (!session->reaping || session->recv.active || session->send.active ||
	    session->handshake.active || !ring_is_idle(session->ring))
		return;
	session->ring = ring_free(session->ring);
	while (session->replies) {
		struct session_reply *reply = session->replies;

		session->replies = reply->next;
		session_reply_free(reply);
	}
	for (wait = session->waits; wait; wait = next) {
		next = wait->next;
		if (wait->call)
			admin_abandon(wait->call);
		memory_free(wait);
	}
	loop_close(session->server->loop, session->fd);
	*session->link = session->next;
	if (session->next)
		session->next->link = session->link;
	session->server->n_connections--;
	memory_free(session);
}

/* Never inside a call of the store: the client may be freed here. */
static void session_reap(struct loop_op *op, int result)
{
	struct session *session = op->data;
	struct session_wait *wait;

	session->reaping = true;
	ring_stop(session->ring);
	session->client = store_client_free(session->client, session->n_attached == 0);
	/* The store forgets acquisitions of a freed client; loads are told to forget us. */
	for (wait = session->waits; wait; wait = wait->next) {
		admin_abandon(wait->call);
		wait->call = NULL;
	}
	session_try_free(session);
}

void session_end(struct session *session)
{
	if (session->ending)
		return;
	session->ending = true;
	ring_stop(session->ring);
	loop_cancel(session->server->loop, &session->recv);
	loop_cancel(session->server->loop, &session->send);
	loop_cancel(session->server->loop, &session->handshake);
	(void)loop_timer(session->server->loop, &session->reap, 0, session_reap);
}

static void session_fail(struct session *session, const char *why)
{
	session->server->n_protocol_errors++;
	if (!session->ending && log_limit_allows(&session->server->session_limit, 10))
		log_line(LOG_LEVEL_INFO, "client pid %d uid %u: session ended: %s",
			 (int)session->peer.pid, (unsigned)session->peer.uid, why);
	session_end(session);
}

/* --- sending ---------------------------------------------------------------------------------- */

static void session_receive(struct session *session)
{
	int r;

	if (session->ending || session->recv.active || session->n_waiting >= SESSION_MAX_WAITING)
		return;
	session->in_vector = (struct iovec){session->packet, sizeof(session->packet)};
	session->in = (struct msghdr){.msg_iov = &session->in_vector,
				      .msg_iovlen = 1,
				      .msg_control = session->in_control,
				      .msg_controllen = sizeof(session->in_control)};
	r = loop_recv(session->server->loop, &session->recv, session->fd, &session->in,
		      session_received);
	if (r < 0)
		session_fail(session, strerror(-r));
}

static void session_send_next(struct session *session)
{
	struct session_reply *reply = session->replies;
	int r;

	if (!reply || session->ending || session->send.active)
		return;
	session->out_vector = (struct iovec){reply->packet.bytes, reply->packet.n_bytes};
	session->out = (struct msghdr){.msg_iov = &session->out_vector, .msg_iovlen = 1};
	if (reply->n_fds)
		fdpass_put(&session->out, session->out_control, reply->fds, reply->n_fds);
	r = loop_send(session->server->loop, &session->send, session->fd, &session->out,
		      session_sent);
	if (r < 0)
		session_fail(session, strerror(-r));
}

static void session_sent(struct loop_op *op, int result)
{
	struct session *session = op->data;
	struct session_reply *reply = session->replies;

	if (session->ending) {
		session_try_free(session);
		return;
	}
	if (result < 0) {
		session_end(session); /* it hung up */
		return;
	}
	session->replies = reply->next;
	if (!session->replies)
		session->replies_end = &session->replies;
	session_reply_free(reply);
	session->n_waiting--;
	session_send_next(session);
	session_receive(session);
}

/* Queues a reply; the descriptors are taken over in any case. */
static void session_reply(struct session *session, const struct wire_header *header,
			  const void *body, size_t body_bytes, const void *text, size_t text_bytes,
			  const int *fds, unsigned n_fds)
{
	struct session_reply *reply = session->ending ? NULL : memory_alloc(sizeof(*reply));
	int r = -ENOMEM;

	if (reply) {
		reply->next = NULL;
		reply->n_fds = 0;
		r = wire_build(&reply->packet, header, body, body_bytes, text, text_bytes);
	}
	if (r < 0) {
		for (unsigned i = 0; i < n_fds; i++)
			close_fd(fds[i]);
		session_reply_free(reply);
		if (!session->ending)
			session_fail(session, strerror(-r));
		return;
	}
	for (unsigned i = 0; i < n_fds; i++)
		reply->fds[reply->n_fds++] = fds[i];
	*session->replies_end = reply;
	session->replies_end = &reply->next;
	session->n_waiting++;
	session_send_next(session);
}

static void session_answer(struct session *session, const struct wire_message *request,
			   const void *body, size_t body_bytes, const int *fds, unsigned n_fds)
{
	struct wire_header header = {.type = request->header.type,
				     .flags = WIRE_FLAG_REPLY,
				     .tag = request->header.tag};

	session_reply(session, &header, body, body_bytes, NULL, 0, fds, n_fds);
}

static void session_refuse(struct session *session, uint16_t type, uint64_t tag, int result,
			   const char *message)
{
	struct wire_header header = {.type = type,
				     .flags = WIRE_FLAG_REPLY,
				     .status = wire_status_of(result),
				     .tag = tag};
	size_t n_bytes = message ? strlen(message) : 0;

	session_reply(session, &header, NULL, 0, message,
		      n_bytes < WIRE_MAX_PAYLOAD ? n_bytes : WIRE_MAX_PAYLOAD, NULL, 0);
}

/* --- waiting ---------------------------------------------------------------------------------- */

static struct session_wait *session_wait_new(struct session *session, uint64_t tag)
{
	struct session_wait *wait = memory_zalloc(sizeof(*wait));

	if (!wait)
		return NULL;
	wait->session = session;
	wait->tag = tag;
	wait->next = session->waits;
	wait->link = &session->waits;
	if (wait->next)
		wait->next->link = &wait->next;
	session->waits = wait;
	session->n_waiting++;
	return wait;
}

static void session_wait_free(struct session_wait *wait)
{
	wait->session->n_waiting--;
	*wait->link = wait->next;
	if (wait->next)
		wait->next->link = wait->link;
	memory_free(wait);
}

/* --- requests --------------------------------------------------------------------------------- */

static void session_hello(struct session *session, const struct wire_message *request)
{
	struct wire_hello hello = {.protocol = WIRE_PROTOCOL,
				   .features = request->hello.features &
					       (WIRE_FEATURE_SHARE | WIRE_FEATURE_AGAIN |
						WIRE_FEATURE_RING),
				   .instance = session->server->instance};
	char text[80];

	if (request->hello.protocol != WIRE_PROTOCOL) {
		snprintf(text, sizeof(text), "protocol %u is not spoken here, only %u",
			 request->hello.protocol, WIRE_PROTOCOL);
		session_refuse(session, WIRE_HELLO, request->header.tag, WIRE_E_PROTOCOL, text);
		return; /* the deadline ends it */
	}
	session->ready = true;
	store_client_ask_again(session->client, hello.features & WIRE_FEATURE_AGAIN);
	loop_cancel(session->server->loop, &session->handshake);
	session_answer(session, request, &hello, sizeof(hello), NULL, 0);
}

static void session_attach(struct session *session, const struct wire_message *request)
{
	struct store_attachment attachment;
	struct wire_attach_reply reply;
	char name[WIRE_MAX_NAME + 1];
	int r;

	memcpy(name, request->text, request->text_bytes);
	name[request->text_bytes] = '\0';
	r = store_attach(session->client, name, &attachment);
	if (r) {
		session_refuse(session, WIRE_ATTACH, request->header.tag, r, message_get());
		return;
	}
	session->n_attached++;
	reply = (struct wire_attach_reply){
		.model = attachment.model,
		.n_tensors = attachment.n_tensors,
		.index_bytes = attachment.index_bytes,
		.placement_bytes = attachment.placement_bytes,
		.n_segments = attachment.n_segments,
	};
	memcpy(reply.fingerprint, attachment.fingerprint, sizeof(reply.fingerprint));
	session_answer(session, request, &reply, sizeof(reply),
		       (int[]){attachment.index_fd, attachment.placement_fd}, 2);
}

static void session_object(struct session *session, const struct wire_message *request)
{
	struct wire_segment_reply reply = {.id = request->segment.id};
	int fd = -1, r;

	if (request->header.type == WIRE_SEGMENT)
		r = store_segment_fd(session->client, request->segment.model, request->segment.id,
				     &fd, &reply.n_bytes, &reply.generation);
	else
		r = (request->header.type == WIRE_CHUNK ? store_chunk_fd : store_file_fd)(
			session->client, request->segment.model, request->segment.id, &fd,
			&reply.n_bytes);
	if (r)
		session_refuse(session, request->header.type, request->header.tag, r, message_get());
	else
		session_answer(session, request, &reply, sizeof(reply), &fd, 1);
}

static void session_share(struct session *session, const struct wire_message *request)
{
	struct wire_segment_reply reply = {0};
	int fd = -1, r;

	r = store_share(session->client, &fd, &reply.n_bytes, &reply.id);
	if (r)
		session_refuse(session, WIRE_SHARE, request->header.tag, r, message_get());
	else
		session_answer(session, request, &reply, sizeof(reply), &fd, 1);
}

static void session_ring_failed(void *data, const char *why)
{
	session_fail(data, why);
}

static void session_ring_ended(void *data)
{
	session_try_free(data);
}

static void session_ring(struct session *session, const struct wire_message *request)
{
	const struct ring_owner owner = {session, session_ring_failed, session_ring_ended};
	struct wire_segment_reply reply = {0};
	struct ring_gift gift;
	int r;

	if (session->ring)
		r = message_set(STORE_E_INVALID, "there is a ring already");
	else
		r = ring_new(&session->server->rings, session->client, session->peer.pid, &owner,
			     &session->ring, &gift);
	if (r) {
		session_refuse(session, WIRE_RING, request->header.tag, r, message_get());
		return;
	}
	reply.id = gift.n_entries;
	reply.n_bytes = gift.n_bytes;
	session_answer(session, request, &reply, sizeof(reply),
		       (int[]){gift.memory_fd, gift.bell_fd}, 2);
}

static void session_notes(struct session *session, const struct wire_message *request)
{
	struct wire_segment_reply reply = {0};
	int fd = -1, r;

	if (session->ring)
		r = ring_notes(session->ring, &fd);
	else
		r = message_set(STORE_E_INVALID, "notes need a ring");
	if (r)
		session_refuse(session, WIRE_NOTES, request->header.tag, r, message_get());
	else
		session_answer(session, request, &reply, sizeof(reply), &fd, 1);
}

static void session_give_window(struct session *session, uint64_t tag,
				const struct store_window *window)
{
	struct wire_header header = {.type = WIRE_ACQUIRE, .flags = WIRE_FLAG_REPLY, .tag = tag};
	struct wire_acquire_reply reply = {
		.lease = window->lease,
		.offset = window->offset,
		.n_bytes = window->n_bytes,
		.first_page = window->first_page,
		.n_pages = window->n_pages,
		.chunk = window->chunk,
	};

	session_reply(session, &header, &reply, sizeof(reply), NULL, 0, NULL, 0);
}

static void session_acquired(void *data, int result, const struct store_window *window,
			     const char *message)
{
	struct session_wait *wait = data;
	struct session *session = wait->session;
	uint64_t tag = wait->tag;

	session_wait_free(wait);
	if (result)
		session_refuse(session, WIRE_ACQUIRE, tag, result, message);
	else
		session_give_window(session, tag, window);
	session_receive(session);
}

static void session_acquire(struct session *session, const struct wire_message *request)
{
	const struct wire_acquire *a = &request->acquire;
	struct session_wait *wait = session_wait_new(session, request->header.tag);
	struct store_window window;
	int r = -ENOMEM;

	if (wait)
		r = store_acquire(session->client, a->model, a->tensor, a->first_page, a->n_pages,
				  session_acquired, wait, &window);
	if (r == STORE_PENDING)
		return;
	if (wait)
		session_wait_free(wait);
	if (r)
		session_refuse(session, WIRE_ACQUIRE, request->header.tag, r, message_get());
	else
		session_give_window(session, request->header.tag, &window);
}

/* A large text goes in a sealed memfd of its own. */
static int session_make_memfd(const char *text, size_t n_bytes, int *ret_fd)
{
	_cleanup_(cleanup_fd) int fd = memfd_create("dcmem-json", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	char path[64];
	int read_only;

	if (fd < 0)
		return -errno;
	for (size_t done = 0; done < n_bytes;) {
		ssize_t n = write(fd, text + done, n_bytes - done);

		if (n < 0)
			return -errno;
		done += (size_t)n;
	}
	if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL) < 0)
		return -errno;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	read_only = open(path, O_RDONLY | O_CLOEXEC);
	if (read_only < 0)
		return -errno;
	*ret_fd = read_only;
	return 0;
}

static void session_give_json(struct session *session, uint64_t tag, char *text)
{
	struct wire_header header = {.type = WIRE_JSON, .flags = WIRE_FLAG_REPLY, .tag = tag};
	size_t n_bytes = text ? strlen(text) : 0;
	int fd = -1, r;

	if (!text) {
		session_refuse(session, WIRE_JSON, tag, -ENOMEM, "out of memory");
	} else if (n_bytes <= WIRE_MAX_PAYLOAD) {
		session_reply(session, &header, NULL, 0, text, n_bytes, NULL, 0);
	} else {
		r = session_make_memfd(text, n_bytes, &fd);
		header.flags |= WIRE_FLAG_IN_MEMFD;
		if (r < 0)
			session_refuse(session, WIRE_JSON, tag, r, strerror(-r));
		else
			session_reply(session, &header, NULL, 0, NULL, 0, &fd, 1);
	}
	memory_free(text);
}

static void session_administered(void *data, char *reply)
{
	struct session_wait *wait = data;
	struct session *session = wait->session;
	uint64_t tag = wait->tag;

	session_wait_free(wait);
	session_give_json(session, tag, reply);
	session_receive(session);
}

static void session_json(struct session *session, const struct wire_message *request)
{
	struct session_wait *wait = session_wait_new(session, request->header.tag);
	struct admin_request admin = {.server = session->server,
				      .peer = &session->peer,
				      .done = session_administered,
				      .data = wait};

	if (!wait) {
		session_refuse(session, WIRE_JSON, request->header.tag, -ENOMEM, "out of memory");
		return;
	}
	switch (admin_run(&admin, request->text, request->text_bytes)) {
	case ADMIN_PENDING:
		wait->call = admin.call;
		return;
	case ADMIN_READ:
		memory_free(admin.read.tensor);
		admin.reply = admin_failure(STORE_E_UNSUPPORTED,
					    "\"read\" works on the text socket only");
		break;
	case ADMIN_REPLY:
		break;
	}
	session_wait_free(wait);
	session_give_json(session, request->header.tag, admin.reply);
}

static void session_handle(struct session *session, const struct wire_message *request)
{
	const struct wire_acquire *a = &request->acquire;
	int r = 0;

	if (session->ready != (request->header.type != WIRE_HELLO)) {
		session_fail(session, session->ready ? "a second HELLO" : "no HELLO first");
		return;
	}
	message_clear();
	switch (request->header.type) {
	case WIRE_HELLO:
		session_hello(session, request);
		break;
	case WIRE_ATTACH:
		session_attach(session, request);
		break;
	case WIRE_SEGMENT:
	case WIRE_CHUNK:
	case WIRE_FILE:
		session_object(session, request);
		break;
	case WIRE_SHARE:
		session_share(session, request);
		break;
	case WIRE_RING:
		session_ring(session, request);
		break;
	case WIRE_NOTES:
		session_notes(session, request);
		break;
	case WIRE_ACQUIRE:
		session_acquire(session, request);
		break;
	case WIRE_RELEASE:
		r = store_release(session->client, request->release.lease);
		break;
	case WIRE_PREFETCH:
		/* a hint: what is wrong with it, nobody waits to hear */
		(void)store_prefetch(session->client, a->model, a->tensor, a->first_page,
				     a->n_pages);
		break;
	case WIRE_CHUNK_ACK:
		r = store_chunk_ack(session->client, request->segment.model, request->segment.id);
		break;
	case WIRE_DETACH:
		r = store_detach(session->client, request->detach.model);
		if (!r && session->n_attached)
			session->n_attached--;
		break;
	case WIRE_JSON:
		session_json(session, request);
		break;
	default:
		session_fail(session, "a packet without meaning");
	}
	/* These have no reply: a client that is wrong about what it holds cannot be trusted on. */
	if (r)
		session_fail(session, message_get()[0] ? message_get() : "released what it lacks");
}

static void session_received(struct loop_op *op, int result)
{
	struct session *session = op->data;
	struct wire_message message;
	int fds[FDPASS_MAX];
	unsigned n_fds = 0;
	int r;

	if (result >= 0) {
		r = fdpass_take(&session->in, fds, &n_fds);
		for (unsigned i = 0; i < n_fds && r == 0; i++)
			close_fd(fds[i]);
	}
	if (session->ending) {
		session_try_free(session);
		return;
	}
	if (result <= 0) {
		session_end(session);
		return;
	}
	session->server->n_packets++;
	if (r < 0 || n_fds) {
		session_fail(session, "it sent descriptors");
		return;
	}
	if (session->in.msg_flags & (MSG_TRUNC | MSG_CTRUNC) || result > (int)WIRE_MAX_PACKET) {
		session_fail(session, "a packet too long");
		return;
	}
	r = wire_check(WIRE_REQUEST, session->packet, (size_t)result, 0, &message);
	if (r) {
		session_fail(session, message_get());
		return;
	}
	session_handle(session, &message);
	session_receive(session);
}

static void session_late(struct loop_op *op, int result)
{
	struct session *session = op->data;

	if (session->ending)
		session_try_free(session);
	else if (result == 0 && !session->ready)
		session_fail(session, "no HELLO within a second");
}

void session_start(struct server *server, int fd)
{
	struct session *session = memory_zalloc(sizeof(*session));
	int r = session ? server_identify(server, fd, &session->peer) : -ENOMEM;

	if (!r)
		r = store_client_new(server->store, session->peer.uid, session->peer.pid,
				     &session->client);
	if (r) {
		if (log_limit_allows(&server->session_limit, 10))
			log_line(LOG_LEVEL_WARNING, "cannot serve a client: %s",
				 r < 0 ? strerror(-r) : message_get());
		memory_free(session);
		loop_close(server->loop, fd);
		return;
	}
	session->server = server;
	session->fd = fd;
	session->replies_end = &session->replies;
	session->recv.data = session->send.data = session;
	session->handshake.data = session->reap.data = session;
	session->next = server->sessions;
	session->link = &server->sessions;
	if (session->next)
		session->next->link = &session->next;
	server->sessions = session;
	server->n_connections++;
	(void)loop_timer(server->loop, &session->handshake, clock_now_ns() + SERVER_PATIENCE_NS,
			 session_late);
	session_receive(session);
}
