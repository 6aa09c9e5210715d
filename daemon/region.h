/* SPDX-License-Identifier: Apache-2.0 */
/* A memfd of the daemon, its mapping and its charge: a segment, an index, a table or a chunk. */
#ifndef DCMEM_REGION_H
#define DCMEM_REGION_H

#include <stdbool.h>
#include <stdint.h>

#include "budget.h"
#include "store.h"

struct region {
	int fd;	     /* the memfd itself; -1: no region */
	int test_fd; /* a private O_RDONLY reopen, for the exclusivity test alone */
	void *data;  /* the daemon's mapping, 2 MiB-aligned */
	uint64_t n_bytes;
	struct charge charge;
};

#define REGION_NONE ((struct region){.fd = -1, .test_fd = -1})

/* Creates and maps read-write, touching nothing. `config` places it on NUMA nodes; may be NULL. */
int region_create(const char *name, uint64_t n_bytes, const struct store_config *config,
		  struct region *ret_region);
/* Gives back what lies beyond n_bytes, of the memory and of the charge; before any seal. */
int region_shrink(struct region *region, uint64_t n_bytes);
/* Seals for good and maps read-only again: nobody can write any more. */
int region_seal_immutable(struct region *region);
/* Seals for good against everybody but the daemon's own mapping. */
int region_seal_written(struct region *region);
/* Seals the size alone: for words that the daemon and one client write. */
int region_seal_shared(struct region *region);
/* Whether both kinds of seal can be set here, and keep a second mapping from writing. */
bool region_seals_work(void);
/* An O_RDONLY descriptor to hand out. */
int region_reopen(const struct region *region, int *ret_fd);
/* A descriptor for reading and writing, of a region sealed by region_seal_shared(). */
int region_reopen_writable(const struct region *region, int *ret_fd);
/* Unmaps, closes, releases the charge. Fine on REGION_NONE. */
void region_close(struct region *region);

#endif
