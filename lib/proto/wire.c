/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The gate of the control socket. Pure functions of bytes, any thread. Refuses everything that the
 * protocol does not name: a table says for each type and direction how long the fixed part is,
 * whether a text follows, and how many descriptors come along.
 */
#include "proto/wire.h"

#include <errno.h>
#include <string.h>

#include "base/message.h"

#define STATUS_ERRNO (1U << 16) /* a negative errno, negated, is added to it */
#define STATUS_MAX_ERRNO 4095	/* as the kernel's MAX_ERRNO */
#define STATUS_MAX_OUTCOME 255	/* room for outcomes of later daemons; 14 is the last one now */

struct wire_rule {
	bool known;
	uint8_t body_bytes;
	bool has_text;
	uint8_t n_fds;
};

static const struct wire_rule wire_requests[] = {
	[WIRE_HELLO] = {true, sizeof(struct wire_hello)},
	[WIRE_ATTACH] = {true, sizeof(struct wire_attach), .has_text = true},
	[WIRE_SEGMENT] = {true, sizeof(struct wire_segment)},
	[WIRE_CHUNK] = {true, sizeof(struct wire_segment)},
	[WIRE_ACQUIRE] = {true, sizeof(struct wire_acquire)},
	[WIRE_RELEASE] = {true, sizeof(struct wire_release)},
	[WIRE_PREFETCH] = {true, sizeof(struct wire_acquire)},
	[WIRE_CHUNK_ACK] = {true, sizeof(struct wire_segment)},
	[WIRE_DETACH] = {true, sizeof(struct wire_detach)},
	[WIRE_JSON] = {true, 0, .has_text = true},
	[WIRE_FILE] = {true, sizeof(struct wire_segment)},
	[WIRE_SHARE] = {true, sizeof(struct wire_segment)},
	[WIRE_RING] = {true, sizeof(struct wire_segment)},
	[WIRE_NOTES] = {true, sizeof(struct wire_segment)},
};

static const struct wire_rule wire_replies[] = {
	[WIRE_HELLO] = {true, sizeof(struct wire_hello)},
	[WIRE_ATTACH] = {true, sizeof(struct wire_attach_reply), .n_fds = 2},
	[WIRE_SEGMENT] = {true, sizeof(struct wire_segment_reply), .n_fds = 1},
	[WIRE_CHUNK] = {true, sizeof(struct wire_segment_reply), .n_fds = 1},
	[WIRE_ACQUIRE] = {true, sizeof(struct wire_acquire_reply)},
	[WIRE_JSON] = {true, 0, .has_text = true},
	[WIRE_FILE] = {true, sizeof(struct wire_segment_reply), .n_fds = 1},
	[WIRE_SHARE] = {true, sizeof(struct wire_segment_reply), .n_fds = 1},
	[WIRE_RING] = {true, sizeof(struct wire_segment_reply), .n_fds = 2},
	[WIRE_NOTES] = {true, sizeof(struct wire_segment_reply), .n_fds = 1},
};

static const struct wire_rule *wire_rule_of(enum wire_direction direction, uint16_t type)
{
	const struct wire_rule *rules = direction == WIRE_REQUEST ? wire_requests : wire_replies;
	size_t n_rules = direction == WIRE_REQUEST ? sizeof(wire_requests) / sizeof(*rules)
						   : sizeof(wire_replies) / sizeof(*rules);

	return type < n_rules && rules[type].known ? &rules[type] : NULL;
}

bool wire_name_is_valid(const char *name, size_t n_bytes)
{
	if (n_bytes == 0 || n_bytes > WIRE_MAX_NAME || name[0] == '.' || name[0] == '-')
		return false;
	for (size_t i = 0; i < n_bytes; i++) {
		char c = name[i];

		if (!((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
		      c == '.' || c == '_' || c == '-'))
			return false;
	}
	return true;
}

static bool wire_status_is_valid(uint32_t status)
{
	return status <= STATUS_MAX_OUTCOME ||
	       (status > STATUS_ERRNO && status <= STATUS_ERRNO + STATUS_MAX_ERRNO);
}

/* Fields that a fixed part leaves no choice about. */
static const char *wire_check_body(enum wire_direction direction, const struct wire_message *m)
{
	bool request = direction == WIRE_REQUEST;

	switch (m->header.type) {
	case WIRE_HELLO:
		if (m->hello.reserved != 0 || (request && m->hello.instance != 0))
			return "a reserved field of HELLO is not 0";
		break;
	case WIRE_ATTACH:
		if (request ? m->attach.reserved != 0 : m->attach_reply.reserved != 0)
			return "a reserved field of ATTACH is not 0";
		if (request && m->attach.name_bytes != m->text_bytes)
			return "the name of ATTACH is not as long as it says";
		if (request && !wire_name_is_valid(m->text, m->text_bytes))
			return "not a valid model name";
		break;
	case WIRE_SEGMENT:
	case WIRE_CHUNK:
	case WIRE_CHUNK_ACK:
	case WIRE_FILE:
	case WIRE_SHARE:
	case WIRE_RING:
	case WIRE_NOTES:
		if (m->header.type >= WIRE_SHARE && request && (m->segment.model || m->segment.id))
			return "a SHARE, RING or NOTES that names something";
		if (request && m->segment.reserved != 0)
			return "a reserved field of SEGMENT, CHUNK or FILE is not 0";
		if (!request && m->header.type != WIRE_SEGMENT && m->segment_reply.generation != 0)
			return "a generation that is not a SEGMENT's";
		break;
	case WIRE_ACQUIRE:
	case WIRE_PREFETCH:
		if (request && m->acquire.n_pages == 0)
			return "an empty page range";
		if (!request && m->acquire_reply.reserved != 0)
			return "a reserved field of ACQUIRE is not 0";
		if (!request && (m->acquire_reply.lease == 0 || m->acquire_reply.n_pages == 0 ||
				 m->acquire_reply.offset % 64 != 0))
			return "an ACQUIRE reply without a lease, empty or unaligned";
		break;
	case WIRE_JSON:
		if (m->text_bytes == 0 && !(m->header.flags & WIRE_FLAG_IN_MEMFD))
			return "an empty JSON text";
		if (m->text_bytes != 0 && (m->header.flags & WIRE_FLAG_IN_MEMFD))
			return "a JSON text both in the packet and in a memfd";
		if (m->text_bytes != 0 && memchr(m->text, '\0', m->text_bytes))
			return "a zero byte in a JSON text";
		break;
	}
	return NULL;
}

static const char *wire_check_header(enum wire_direction direction, const struct wire_header *h,
				     size_t n_bytes)
{
	uint32_t flags = h->flags;

	if (h->magic != WIRE_MAGIC)
		return "wrong magic";
	if (h->payload_bytes > WIRE_MAX_PAYLOAD || sizeof(*h) + h->payload_bytes != n_bytes)
		return "the packet is not as long as it says";
	if (direction == WIRE_REQUEST)
		return flags != 0 || h->status != 0 ? "a request with flags or a status" : NULL;
	if (!(flags & WIRE_FLAG_REPLY))
		return "a reply without its flag";
	flags &= ~WIRE_FLAG_REPLY;
	if (h->type == WIRE_JSON && h->status == 0)
		flags &= ~WIRE_FLAG_IN_MEMFD;
	if (flags != 0)
		return "an unknown flag";
	return wire_status_is_valid(h->status) ? NULL : "an impossible status";
}

int wire_check(enum wire_direction direction, const void *packet, size_t n_bytes, unsigned n_fds,
	       struct wire_message *ret_message)
{
	struct wire_message m;
	const struct wire_rule *rule;
	const char *wrong;
	size_t body_bytes;
	unsigned want_fds;

	memset(&m, 0, sizeof(m));
	if (n_bytes < sizeof(m.header))
		return message_set(WIRE_E_PROTOCOL, "packet of %zu bytes, shorter than its header",
				   n_bytes);
	memcpy(&m.header, packet, sizeof(m.header));
	wrong = wire_check_header(direction, &m.header, n_bytes);
	if (wrong)
		return message_set(WIRE_E_PROTOCOL, "packet refused: %s", wrong);
	rule = wire_rule_of(direction, m.header.type);
	if (!rule)
		return message_set(WIRE_E_PROTOCOL, "packet of unknown type %u", m.header.type);

	/* A failure carries its message instead of body and descriptors. */
	body_bytes = m.header.status ? 0 : rule->body_bytes;
	want_fds = m.header.status ? 0 : rule->n_fds;
	if (m.header.flags & WIRE_FLAG_IN_MEMFD)
		want_fds = 1;
	if (m.header.payload_bytes < body_bytes ||
	    (m.header.status == 0 && !rule->has_text && m.header.payload_bytes != body_bytes))
		return message_set(WIRE_E_PROTOCOL, "packet of type %u with %u bytes of payload",
				   m.header.type, m.header.payload_bytes);
	if (n_fds != want_fds)
		return message_set(WIRE_E_PROTOCOL, "packet of type %u with %u descriptors, not %u",
				   m.header.type, n_fds, want_fds);
	memcpy(&m.hello, (const char *)packet + sizeof(m.header), body_bytes);
	m.text = (const char *)packet + sizeof(m.header) + body_bytes;
	m.text_bytes = m.header.payload_bytes - (uint32_t)body_bytes;
	if (m.header.status == 0) {
		wrong = wire_check_body(direction, &m);
		if (wrong)
			return message_set(WIRE_E_PROTOCOL, "packet refused: %s", wrong);
	}
	*ret_message = m;
	return 0;
}

int wire_build(struct wire_packet *packet, const struct wire_header *header, const void *body,
	       size_t body_bytes, const void *text, size_t text_bytes)
{
	struct wire_header h = *header;
	uint8_t *p = packet->bytes;

	if (body_bytes > WIRE_MAX_PAYLOAD || text_bytes > WIRE_MAX_PAYLOAD - body_bytes)
		return -EMSGSIZE;
	h.magic = WIRE_MAGIC;
	h.payload_bytes = (uint32_t)(body_bytes + text_bytes);
	memcpy(p, &h, sizeof(h));
	if (body_bytes)
		memcpy(p + sizeof(h), body, body_bytes);
	if (text_bytes)
		memcpy(p + sizeof(h) + body_bytes, text, text_bytes);
	packet->n_bytes = sizeof(h) + body_bytes + text_bytes;
	return 0;
}

uint32_t wire_status_of(int result)
{
	if (result >= 0)
		return result <= STATUS_MAX_OUTCOME ? (uint32_t)result : WIRE_E_PROTOCOL;
	return result >= -STATUS_MAX_ERRNO ? STATUS_ERRNO + (uint32_t)-result
					   : STATUS_ERRNO + EIO;
}

int wire_result_of(uint32_t status)
{
	return status > STATUS_ERRNO ? -(int)(status - STATUS_ERRNO) : (int)status;
}
