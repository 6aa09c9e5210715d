/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packets of the control socket (include/dcmem/wire.h): the one gate that turns untrusted bytes into
 * a checked message, and the builder of packets. Both ends of the socket use the same gate.
 */
#ifndef DCMEM_PROTO_WIRE_H
#define DCMEM_PROTO_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dcmem/wire.h"

#define WIRE_MAX_PACKET (sizeof(struct wire_header) + WIRE_MAX_PAYLOAD)
#define WIRE_MAX_FDS 2 /* of one packet: an ATTACH reply */

enum wire_direction { WIRE_REQUEST, WIRE_REPLY };

enum wire_error {
	WIRE_E_PROTOCOL = 14, /* the value of DCMEM_E_PROTOCOL: a rule is broken, end the session */
};

/* A packet, copied once and checked. The member of the union is told by type and direction. */
struct wire_message {
	struct wire_header header;
	union {
		struct wire_hello hello;
		struct wire_attach attach;	/* text: the name, valid as wire_name_is_valid() */
		struct wire_attach_reply attach_reply;
		struct wire_segment segment;	/* SEGMENT, CHUNK, CHUNK_ACK, FILE, SHARE */
		struct wire_segment_reply segment_reply;
		struct wire_acquire acquire;	/* ACQUIRE, PREFETCH */
		struct wire_acquire_reply acquire_reply;
		struct wire_release release;
		struct wire_detach detach;
	};
	const char *text; /* inside the packet, not NUL-terminated: name, JSON or failure message */
	uint32_t text_bytes;
};

/*
 * Checks a received packet: magic, type, direction, flags, status, exact sizes, reserved fields,
 * names, number of descriptors. 0, or WIRE_E_PROTOCOL with a message. The packet must outlive
 * ret_message->text and must not be shared with its sender.
 */
int wire_check(enum wire_direction direction, const void *packet, size_t n_bytes, unsigned n_fds,
	       struct wire_message *ret_message);

/* [A-Za-z0-9._-], 1 to WIRE_MAX_NAME bytes, not starting with '.' or '-'. */
bool wire_name_is_valid(const char *name, size_t n_bytes);

/* A packet to send. */
struct wire_packet {
	uint8_t bytes[WIRE_MAX_PACKET] __attribute__((aligned(8)));
	size_t n_bytes;
};

/* Payload is `body` and then `text`; either may be NULL with 0 bytes. -EMSGSIZE if too large. */
int wire_build(struct wire_packet *packet, const struct wire_header *header, const void *body,
	       size_t body_bytes, const void *text, size_t text_bytes);

/* A function's result as the status of a reply and back: errno values travel above 0xffff. */
uint32_t wire_status_of(int result);
int wire_result_of(uint32_t status);

#endif
