/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Regions of anonymous memory. Asks for huge pages twice, by advice before the first touch and by
 * collapsing after it, and then reads from smaps what there is: advice is only advice. One thread.
 */
#include "bench-memory.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/range.h"

#define HUGE_BYTES (2UL << 20)
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

/* Huge bytes of the mappings inside [begin, end). The kernel may have merged neighbours: then the
 * whole is counted as far as it fits. */
static size_t huge_bytes_of(uintptr_t begin, uintptr_t end)
{
	FILE *file = fopen("/proc/self/smaps", "re");
	size_t total = 0;
	bool inside = false;
	char line[512];

	if (!file)
		return 0;
	while (fgets(line, sizeof(line), file)) {
		unsigned long from, to, kib;

		/* "Key:   123 kB" has its colon first, a range has its dash. */
		if (strcspn(line, "-") < strcspn(line, ":") &&
		    sscanf(line, "%lx-%lx ", &from, &to) == 2)
			inside = from < end && to > begin;
		else if (inside && sscanf(line, "AnonHugePages: %lu kB", &kib) == 1)
			total += kib << 10;
	}
	fclose(file);
	return min_u64(total, end - begin);
}

int bench_region_init(struct bench_region *region, size_t n_bytes)
{
	struct bench_region r = { .n_bytes = align_up(n_bytes, HUGE_BYTES) };

	r.map_bytes = r.n_bytes + HUGE_BYTES;
	r.map = mmap(NULL, r.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (r.map == MAP_FAILED)
		return -errno;
	r.base = (uint8_t *)align_up((uintptr_t)r.map, HUGE_BYTES);
	(void)madvise(r.base, r.n_bytes, MADV_HUGEPAGE);
	for (size_t at = 0; at < r.n_bytes; at += 4096)
		*(volatile uint8_t *)(r.base + at) = 0;
	(void)madvise(r.base, r.n_bytes, MADV_COLLAPSE);
	r.huge_bytes = huge_bytes_of((uintptr_t)r.base, (uintptr_t)r.base + r.n_bytes);
	*region = r;
	return 0;
}

void bench_region_deinit(struct bench_region *region)
{
	if (region->map)
		(void)munmap(region->map, region->map_bytes);
	*region = (struct bench_region){ 0 };
}
