/* SPDX-License-Identifier: Apache-2.0 */
/* The one clock: CLOCK_MONOTONIC, replaceable by tests. Wall time appears in log lines alone. */
#ifndef DCMEM_CLOCK_H
#define DCMEM_CLOCK_H

#include <stdint.h>

#define NS_PER_S  1000000000ULL
#define NS_PER_MS 1000000ULL

uint64_t clock_now_ns(void);
/* NULL restores the real clock. */
void clock_set_source(uint64_t (*source)(void));

#endif
