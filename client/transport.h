/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection to the daemon: one round trip at a time, under the transport's own lock. It knows
 * packets, not models.
 */
#ifndef DCMEM_TRANSPORT_H
#define DCMEM_TRANSPORT_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "dcmem/dcmem.h"
#include "proto/fdpass.h"
#include "proto/wire.h"

struct transport_options {
	char path[108]; /* of sockaddr_un */
	uint32_t timeout_ms;
};

struct transport {
	pthread_mutex_t lock;	   /* one round trip, or reconnecting; fd changes under both locks */
	pthread_mutex_t send_lock; /* one packet out: giving back never waits for a round trip */
	struct transport_options options;
	int fd; /* -1: not connected */
	uint64_t session;  /* number of the connection; atomic, grows when one ends */
	uint64_t next_tag; /* atomic */
	uint64_t instance; /* of the daemon */
	uint64_t features; /* that both sides have; under lock */
};

struct transport_reply {
	uint8_t packet[WIRE_MAX_PACKET] __attribute__((aligned(8)));
	struct wire_message message; /* checked */
	int fds[FDPASS_MAX];	     /* the caller's */
	unsigned n_fds;
};

/* Takes defaults, environment and struct versions into account. */
int transport_options_init(struct transport_options *options, const struct dcmem_options *from);

void transport_init(struct transport *transport, const struct transport_options *options);
void transport_deinit(struct transport *transport);

static inline uint64_t transport_session(const struct transport *transport)
{
	return __atomic_load_n(&transport->session, __ATOMIC_ACQUIRE);
}

/*
 * A packet without a reply, without transport->lock: -ENOTCONN if the connection `session` is not the
 * present one any more. `hint` ones are dropped where the socket is full.
 */
int transport_tell(struct transport *transport, uint64_t session, uint16_t type, const void *body,
		   size_t body_bytes, bool hint);

/* The rest with transport->lock held. */
int transport_connect(struct transport *transport);
void transport_close(struct transport *transport);
/*
 * 0: the reply has status 0. Positive: the daemon's answer, its sentence in message_get().
 * -ENOTCONN: the connection is lost (and closed). -ETIMEDOUT: no answer in time.
 */
int transport_request(struct transport *transport, uint16_t type, const void *body,
		      size_t body_bytes, const char *text, size_t text_bytes,
		      struct transport_reply *ret_reply);
void transport_reply_close(struct transport_reply *reply);

#endif
