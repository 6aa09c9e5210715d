/* SPDX-License-Identifier: Apache-2.0 */
/* Where the memory of a mapping shall lie. Only numa.c has <numa.h>; numa-none.c is without. */
#ifndef DCMEM_NUMA_H
#define DCMEM_NUMA_H

#include <stddef.h>
#include <stdint.h>

#include "store.h"

uint32_t numa_n_nodes(void); /* 1 where there is no NUMA */
/* Can this policy be had on this host? 0 or STORE_E_UNSUPPORTED, with a message. */
int numa_check(enum store_numa policy, uint32_t node);
/* Before the pages are touched. A host of one node has nothing to do. */
int numa_place(void *data, size_t n_bytes, enum store_numa policy, uint32_t node);

#endif
