/* SPDX-License-Identifier: Apache-2.0 */
/* Huge pages under shared memory: by the kernel's advice, else by MADV_COLLAPSE, else none. */
#ifndef DCMEM_HUGEPAGE_H
#define DCMEM_HUGEPAGE_H

#include <stdbool.h>
#include <stddef.h>

#define HUGEPAGE_BYTES (2UL << 20)

/* Does a fresh memfd collapse here? Tried once on 2 MiB. */
bool hugepage_probe(void);
/* Does shmem_enabled let MADV_HUGEPAGE work? */
bool hugepage_is_advised(void);
/* Before the mapping is filled. Touches whole huge pages. True: they are huge. */
bool hugepage_populate(void *data, size_t n_bytes);

/* The same in two steps, for memory that is filled piece by piece: of all of it, the kernel's advice; */
bool hugepage_advise(void *data, size_t n_bytes);
/* or of the next whole huge pages, which must be untouched. */
bool hugepage_collapse(void *data, size_t n_bytes);

#endif
