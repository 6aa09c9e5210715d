/* SPDX-License-Identifier: Apache-2.0 */
/* Large regions on huge pages, all touched before anything is timed. */
#ifndef BENCH_MEMORY_H
#define BENCH_MEMORY_H

#include <stddef.h>
#include <stdint.h>

struct bench_region {
	uint8_t *base;	   /* aligned to 2 MiB; owned */
	size_t n_bytes;	   /* a multiple of 2 MiB */
	size_t huge_bytes; /* on huge pages, as the kernel says */
	void *map;
	size_t map_bytes;
};

/* Zeroed. 0 or -errno. */
int bench_region_init(struct bench_region *region, size_t n_bytes);
void bench_region_deinit(struct bench_region *region);

#endif
