/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The one pair of accessors for words in shared memory (include/dcmem/shm.h). Nothing else touches
 * them. A reader copies a word or a record once and then uses the copy.
 *
 * No fences: ThreadSanitizer does not know them. The seqlock orders itself by acquire loads and
 * release stores of every word of a record, which are plain moves on x86.
 */
#ifndef DCMEM_SHARED_H
#define DCMEM_SHARED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dcmem/shm.h"

#define SHARED_READ_TRIES 10000 /* a writer holds a record for nanoseconds; untuned */
#define SHARED_PLACEMENT_WORDS (sizeof(struct shm_placement) / sizeof(uint64_t))

/* Counters and the heartbeat: no other memory hangs on their value. */
static inline uint32_t shared_load_relaxed(const uint32_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static inline void shared_store_relaxed(uint32_t *word, uint32_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELAXED);
}

static inline uint64_t shared_load_relaxed_64(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static inline void shared_store_relaxed_64(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELAXED);
}

/*
 * `retired`, `chunk_epoch` and chunk words. shared_load_acquire() pairs with shared_store_release():
 * who sees the new epoch sees the chunk words stored before it.
 */
static inline uint32_t shared_load_acquire(const uint32_t *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline void shared_store_release(uint32_t *word, uint32_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
}

/*
 * Writes a record; the sequence of `value` is ignored. One writer at a time. The odd sequence is
 * ordered before the words by their release stores (pairs with the acquire loads of
 * shared_placement_read()), and the words before the even one by its release store.
 */
static inline void shared_placement_write(struct shm_placement *record,
					  const struct shm_placement *value)
{
	uint64_t *to = (uint64_t *)record;
	const uint64_t *from = (const uint64_t *)value;
	uint32_t sequence = shared_load_relaxed(&record->sequence);

	shared_store_relaxed(&record->sequence, sequence + 1);
	__atomic_store_n(&record->generation, value->generation, __ATOMIC_RELEASE);
	for (size_t i = 1; i < SHARED_PLACEMENT_WORDS; i++)
		__atomic_store_n(&to[i], from[i], __ATOMIC_RELEASE);
	shared_store_release(&record->sequence, sequence + 2);
}

/*
 * Copies a record that no writer was changing; false if one was all the time, or died in the act.
 * The copy is from the daemon but still unchecked: ranges are the caller's to check. Pairs with
 * shared_placement_write().
 */
static inline bool shared_placement_read(const struct shm_placement *record,
					 struct shm_placement *ret_value)
{
	const uint64_t *from = (const uint64_t *)record;
	struct shm_placement value;

	for (unsigned try = 0; try < SHARED_READ_TRIES; try++) {
		uint32_t before = shared_load_acquire(&record->sequence);

		if (before & 1)
			continue;
		value.sequence = before;
		value.generation = shared_load_acquire(&record->generation);
		for (size_t i = 1; i < SHARED_PLACEMENT_WORDS; i++)
			((uint64_t *)&value)[i] = __atomic_load_n(&from[i], __ATOMIC_ACQUIRE);
		if (shared_load_relaxed(&record->sequence) != before)
			continue;
		*ret_value = value;
		return true;
	}
	return false;
}

/*
 * Words of kept leases (shm.h): one word decides between a client that takes a lease up and a daemon
 * that takes it back, so neither needs a fence. The daemon's three functions believe nothing.
 */
static inline void shared_lease_offer(uint64_t *word, uint32_t generation, bool wanted)
{
	__atomic_store_n(word,
			 (uint64_t)generation << 32 | SHM_LEASE_IN_USE |
				 (wanted ? SHM_LEASE_WANTED : 0),
			 __ATOMIC_RELEASE);
}

/* Is it in use now? What the client says: another generation is no use of this lease. */
static inline bool shared_lease_in_use(uint64_t value, uint32_t generation)
{
	return value >> 32 == generation && value & SHM_LEASE_IN_USE;
}

/*
 * True: nobody reads under this lease any more and nobody can take it up. False: it is in use, and
 * its holder is told to give it back. Pairs with shared_lease_take() and shared_lease_drop().
 */
static inline bool shared_lease_revoke(uint64_t *word, uint32_t generation)
{
	return !shared_lease_in_use(
		__atomic_fetch_or(word, SHM_LEASE_WANTED, __ATOMIC_ACQ_REL), generation);
}

/* The client's: false where the daemon took it back. One taker at a time. */
static inline bool shared_lease_take(uint64_t *word, uint32_t generation)
{
	uint64_t value = __atomic_load_n(word, __ATOMIC_RELAXED);
	uint64_t taken = (uint64_t)generation << 32 |
			 ((value + SHM_LEASE_USE) & UINT32_MAX) | SHM_LEASE_IN_USE;

	return value >> 32 == generation && !(value & (SHM_LEASE_IN_USE | SHM_LEASE_WANTED)) &&
	       __atomic_compare_exchange_n(word, &value, taken, false, __ATOMIC_ACQ_REL,
					   __ATOMIC_RELAXED);
}

/* The client's, of a lease in use: false where the daemon wants it, which RELEASE then gives. */
static inline bool shared_lease_drop(uint64_t *word, uint32_t generation)
{
	uint64_t value = __atomic_fetch_and(word, ~SHM_LEASE_IN_USE, __ATOMIC_ACQ_REL);

	return value >> 32 == generation && !(value & SHM_LEASE_WANTED);
}

_Static_assert(offsetof(struct shm_placement, segment) == sizeof(uint64_t), "word 0 is the lock");

#endif
