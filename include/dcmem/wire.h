/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wire.h - packets of the control socket (AF_UNIX, SOCK_SEQPACKET). docs/protocol.md has the prose.
 *
 *   client                                   daemon
 *     HELLO  {protocol, features}    ---->
 *                                    <----   HELLO  {protocol, features, instance}
 *     ATTACH {name}                  ---->
 *                                    <----   ATTACH {model, fingerprint, sizes} + index, placement fd
 *     SEGMENT {model, segment}       ---->
 *                                    <----   SEGMENT {segment, n_bytes} + fd
 *     ACQUIRE {model, tensor, pages} ---->
 *                                    <----   ACQUIRE {lease, chunk, offset, n_bytes}
 *     CHUNK  {model, chunk}          ---->
 *                                    <----   CHUNK  {chunk, n_bytes} + fd
 *     RELEASE {lease}                ---->   (no reply)
 *     CHUNK_ACK {model, chunk}       ---->   (no reply: unmapped it, see shm.h)
 *     DETACH {model}                 ---->   (no reply: unmapped everything of it)
 *     PREFETCH {model, tensor,pages} ---->   (no reply)
 *     FILE   {model, file}           ---->   (record number in the index's file table)
 *                                    <----   FILE   {file, n_bytes} + fd of a sealed memfd: the blob
 *     SHARE  {}                      ---->   (once, where HELLO's features have WIRE_FEATURE_SHARE)
 *                                    <----   SHARE  {n_leases, n_bytes} + fd: struct shm_leases_header
 *     RING   {}                      ---->   (once, with WIRE_FEATURE_RING)
 *                                    <----   RING   {n_entries, n_bytes} + fd: struct shm_ring_header,
 *                                            + an eventfd: the daemon's bell
 *     NOTES  {}                      ---->   (once, after RING)
 *                                    <----   NOTES  {} + fd: readable when answers came (shm.h)
 *     JSON   {text}                  ---->
 *                                    <----   JSON   {text}, or + a sealed memfd holding it
 *
 * A packet is one struct wire_header and a payload. Replies repeat the request's `tag`; they may
 * come in another order. A packet that breaks a rule ends the session. Descriptors travel only from
 * the daemon to the client.
 */
#ifndef DCMEM_WIRE_H
#define DCMEM_WIRE_H

#include <stddef.h>
#include <stdint.h>

#define WIRE_PROTOCOL 1
#define WIRE_MAGIC 0x6d63U /* "cm" */
#define WIRE_MAX_PAYLOAD 4096
#define WIRE_MAX_NAME 255 /* bytes of a model name: [A-Za-z0-9._-], not starting with '.' or '-' */

enum wire_type {
	WIRE_HELLO = 1,
	WIRE_ATTACH = 2,
	WIRE_SEGMENT = 3,
	WIRE_CHUNK = 4,
	WIRE_ACQUIRE = 5,
	WIRE_RELEASE = 6,
	WIRE_PREFETCH = 7,
	WIRE_CHUNK_ACK = 8,
	WIRE_DETACH = 9,
	WIRE_JSON = 10,
	WIRE_FILE = 11,
	WIRE_SHARE = 12,
	WIRE_RING = 13,
	WIRE_NOTES = 14,
};

/* status of a reply: 0, a positive DCMEM_E_... of dcmem.h, or 65536 plus an errno */
struct wire_header {
	uint16_t magic;
	uint16_t type;
	uint32_t payload_bytes; /* exactly what follows */
	uint32_t status;	/* requests: 0. When not 0 the payload is a message text */
	uint32_t flags;		/* WIRE_FLAG_... */
	uint64_t tag;
};
#define WIRE_FLAG_REPLY (1U << 0)
#define WIRE_FLAG_IN_MEMFD (1U << 1) /* JSON: the text is in the sealed memfd that came along */

struct wire_hello {
	uint32_t protocol;
	uint32_t reserved;
	uint64_t features; /* WIRE_FEATURE_...: the daemon answers with the common ones */
	uint64_t instance; /* random per start of the daemon; 0 in the request */
};

#define WIRE_FEATURE_SHARE (1ULL << 0) /* leases may be kept (shm.h) */
/*
 * ACQUIRE may be answered by EAGAIN (status 65536 + 11) while memory that this client still maps was
 * retired: it unmaps that and asks again. Without it, who waits for room would stand in its own way.
 */
#define WIRE_FEATURE_AGAIN (1ULL << 1)
#define WIRE_FEATURE_RING (1ULL << 2) /* requests for windows may come through shared memory (shm.h) */

struct wire_attach { /* followed by name_bytes of name */
	uint32_t name_bytes;
	uint32_t reserved;
};

struct wire_attach_reply { /* + fds: index, placement */
	uint64_t model;	   /* for later requests of this session */
	uint64_t n_tensors;
	uint64_t index_bytes;
	uint64_t placement_bytes;
	uint32_t n_segments; /* that exist now: those of the placement table count */
	uint32_t reserved;
	uint8_t fingerprint[16];
};

struct wire_segment { /* SEGMENT, CHUNK, FILE requests, CHUNK_ACK; SHARE, RING, NOTES: all 0 */
	uint64_t model;
	uint32_t id;
	uint32_t reserved;
};

struct wire_segment_reply { /* + fd, read-only; SHARE, RING: read-write, id counts words or entries */
	uint32_t id;
	uint32_t generation; /* SEGMENT: of what lies there now; others: 0 */
	uint64_t n_bytes;
};

struct wire_acquire { /* ACQUIRE and PREFETCH */
	uint64_t model;
	uint64_t tensor;
	uint64_t first_page;
	uint64_t n_pages; /* at least 1 */
};

struct wire_acquire_reply { /* the bytes of pages [first_page, first_page + n_pages) */
	uint64_t lease;	    /* never 0 */
	uint64_t offset;    /* in the chunk, 64-byte aligned */
	uint64_t n_bytes;
	uint64_t first_page;
	uint64_t n_pages;   /* may be more than was asked for */
	uint32_t chunk;
	uint32_t reserved;
};

struct wire_release {
	uint64_t lease;
};

struct wire_detach {
	uint64_t model;
};

_Static_assert(sizeof(struct wire_header) == 24, "ABI");
_Static_assert(sizeof(struct wire_hello) == 24, "ABI");
_Static_assert(sizeof(struct wire_attach) == 8, "ABI");
_Static_assert(sizeof(struct wire_attach_reply) == 56, "ABI");
_Static_assert(sizeof(struct wire_segment) == 16, "ABI");
_Static_assert(sizeof(struct wire_segment_reply) == 16, "ABI");
_Static_assert(sizeof(struct wire_acquire) == 32, "ABI");
_Static_assert(sizeof(struct wire_acquire_reply) == 48, "ABI");
_Static_assert(sizeof(struct wire_release) == 8, "ABI");
_Static_assert(sizeof(struct wire_detach) == 8, "ABI");

#endif
