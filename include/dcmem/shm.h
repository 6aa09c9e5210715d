/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shm.h - what lies in shared memory. Three kinds of mapping and nothing else:
 *
 *   immutable       segments and the index (container.h); sealed SHRINK GROW WRITE SEAL
 *   daemon-written  the placement table (here) and arena chunks (plain bytes);
 *                   sealed FUTURE_WRITE SHRINK GROW SEAL once the daemon has mapped them
 *   shared words    a table of leases and a ring of requests a client (here), written by both;
 *                   sealed SHRINK GROW SEAL. The daemon believes nothing in them: a client that
 *                   scribbles deceives itself
 *
 * A client gets an O_RDONLY reopen of its own of every object but the last, and maps it read-only.
 *
 * Placement table: one header, one record a tensor, one word a chunk, one word a segment. A record is
 * a seqlock: odd while the daemon writes. lib/proto/shared.h has the accessors; nothing else touches
 * these words.
 */
#ifndef DCMEM_SHM_H
#define DCMEM_SHM_H

#include <stddef.h>
#include <stdint.h>

#define SHM_PLACEMENT_MAGIC 0x4543414c504d4344ULL /* "DCMPLACE" */
#define SHM_MAX_CHUNKS 4096 /* of one arena: 256 GiB of windows at 64 MiB; untuned */
#define SHM_MAX_SEGMENTS 4096 /* of one model at a time; untuned */
#define SHM_PAGES_IN_INDEX UINT32_MAX

struct shm_placement_header {
	uint64_t magic;
	uint32_t version; /* 2 */
	uint32_t retired; /* not 0: the model was unloaded; unmap, then DETACH */
	uint64_t n_tensors;
	uint32_t n_chunks; /* words in the chunk table; the words of the segments follow */
	uint32_t chunk_epoch; /* grows whenever a chunk word changes to RETIRED */
	uint64_t records_offset; /* from the start of the table, 64-byte aligned */
	uint64_t chunks_offset;
	uint64_t heartbeat_ns; /* CLOCK_MONOTONIC, about once a second */
	uint32_t n_segments; /* words in the segment table */
	uint32_t segment_epoch; /* grows whenever a segment was retired */
};

/*
 * Where a tensor is held now: one stored form that covers all its pages. Where its bytes lie may change
 * at any time; a reader maps the segment that the record names, in the generation that it names, and
 * what was read from there is checked by its hash. Page p lies at
 * offset + (pages[p].offset - pages_from) of the segment.
 */
struct shm_placement {
	uint32_t sequence; /* odd: being written */
	uint32_t generation; /* grows with every change */
	uint32_t segment;    /* that holds the stored bytes */
	uint32_t flags;	     /* SHM_PLACEMENT_RAW */
	uint64_t offset;     /* of the form in the segment */
	uint64_t stored_bytes;
	uint64_t page_record; /* first container_page: a record number of the index's page table,
				 or a byte offset in segment pages_segment */
	uint32_t pages_segment; /* SHM_PAGES_IN_INDEX, or `segment` */
	uint32_t segment_generation; /* of `segment`: its word, while it lives */
	uint64_t pages_from;
	uint64_t reserved;
};
#define SHM_PLACEMENT_RAW (1U << 0)
/*
 * A segment word: the generation of what lies in this slot, or 0. A client that maps another
 * generation unmaps it as soon as nobody reads or views it.
 */

/* A chunk word. RETIRED: when it holds no lease there, a client unmaps it and sends CHUNK_ACK. */
#define SHM_CHUNK_UNUSED 0
#define SHM_CHUNK_LIVE 1
#define SHM_CHUNK_RETIRED 2

/*
 * Table of a client's leases: this header, then one 64-bit word for each of the first n_leases lease
 * slots (slot: the low half of a lease's number, less 1). With it a client keeps a lease that it does
 * not use, and takes it up again, without a request; the daemon takes back what is not in use.
 *
 *   63            32 31        2    1        0
 *   +---------------+-----------+--------+--------+
 *   |  generation   |   uses    | wanted | in use |      generation: high half of the number
 *   +---------------+-----------+--------+--------+
 *
 *   daemon: grants                 word = generation, in use (and wanted, if others wait for room)
 *   client: gives back             clears in use; sends RELEASE if wanted was set
 *   client: takes up again         neither wanted nor in use: sets in use, counts a use, in one step
 *   daemon: takes back             sets wanted; the lease is over if it was not in use
 *
 * Behind the words lie counters that the client alone writes: decoded bytes that it took of each
 * tensor of the model that it attached last, in any way; of tensor t in counter t modulo n_counters.
 * By them the daemon knows what is read in place.
 */
#define SHM_LEASES_MAGIC 0x5341454c4d4344ULL /* "DCMLEAS" */
#define SHM_MAX_KEPT 2048 /* leases of one client; untuned */
struct shm_leases_header {
	uint64_t magic;
	uint32_t version; /* 1 */
	uint32_t n_leases;
	uint64_t counters_offset; /* from the start of the table */
	uint64_t n_counters;
	uint64_t local_bytes; /* the client's: of those, decoded by itself */
	uint64_t waited_ns;   /* the client's: for the daemon, of all its threads */
	uint64_t reserved[2];
};
#define SHM_MAX_COUNTERS 65536
#define SHM_LEASE_IN_USE 1ULL
#define SHM_LEASE_WANTED 2ULL
#define SHM_LEASE_USE 4ULL /* added by each taking up */

/*
 * Ring of a client: this header, n_entries asks that the client writes, n_entries answers that the
 * daemon writes. Indices count for ever; entry i lies at i modulo n_entries. A client has at most
 * n_entries ACQUIREs without an answer that it has read: more would overwrite its own answers.
 *
 *   client: asks          entry, then `asked`; rings the bell (8 bytes to the eventfd) if `daemon_sleeps`
 *   daemon: takes         copies entries, then `taken`
 *   daemon: answers       entry, then `answered`; wakes the futex `answered` if `sleepers` is not 0;
 *                         sends a byte to the socket of NOTES if `wants_note`, which it clears
 *   either: falls asleep  says so, and looks once more before it sleeps
 *
 * While few enough clients are at work, `may_spin` tells them that the daemon spins too.
 */
#define SHM_RING_MAGIC 0x474e49524d4344ULL /* "DCMRING" */
struct shm_ring_header {
	uint64_t magic;
	uint32_t version; /* 1 */
	uint32_t n_entries; /* a power of 2 */
	uint64_t asks_offset; /* from the start of the ring, 64-byte aligned */
	uint64_t answers_offset;
	uint8_t reserved_0[32];
	/* the client's */
	uint32_t asked;
	uint32_t sleepers; /* threads */
	uint32_t wants_note;
	uint8_t reserved_1[52];
	/* the daemon's */
	uint32_t taken;
	uint32_t answered;
	uint32_t daemon_sleeps;
	uint32_t may_spin;
	uint8_t reserved_2[48];
};

enum shm_ask_type {
	SHM_ASK_ACQUIRE = 1,
	SHM_ASK_RELEASE = 2,  /* no answer; tag is the lease */
	SHM_ASK_PREFETCH = 3, /* no answer */
};

struct shm_ask {
	uint32_t type;
	uint32_t reserved;
	uint64_t tag; /* ACQUIRE: comes back with the answer; PREFETCH: 0 */
	uint64_t model, tensor, first_page, n_pages; /* RELEASE: 0 */
	uint64_t reserved_2[2];
};

struct shm_answer {
	uint64_t tag;
	uint32_t status; /* as in struct wire_header */
	uint32_t chunk;
	union {
		struct {
			uint64_t lease, offset, n_bytes, first_page, n_pages; /* as wire_acquire_reply */
		};
		char text[112]; /* status not 0: a sentence, ended by a NUL, cut if long */
	};
};

_Static_assert(sizeof(struct shm_ring_header) == 192, "ABI");
_Static_assert(sizeof(struct shm_ask) == 64, "ABI");
_Static_assert(sizeof(struct shm_answer) == 128, "ABI");
_Static_assert(sizeof(struct shm_leases_header) == 64, "ABI");
_Static_assert(sizeof(struct shm_placement_header) == 64, "ABI");
_Static_assert(sizeof(struct shm_placement) == 64, "ABI");

#endif
