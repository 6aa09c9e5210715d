/* SPDX-License-Identifier: Apache-2.0 */
/* What the bench ran on. */
#ifndef BENCH_MACHINE_H
#define BENCH_MACHINE_H

#include <stdint.h>

#define BENCH_MAX_CACHES 8
#define BENCH_MAX_CPUS	 1024

struct bench_cache {
	unsigned level;
	char type[16]; /* Data, Instruction, Unified */
	uint64_t n_bytes;
};

struct bench_machine {
	char cpu[96], kernel[128], huge_pages[96], compiler[64];
	struct bench_cache caches[BENCH_MAX_CACHES]; /* of the pinned CPU */
	unsigned n_caches;
	uint64_t last_level_bytes;     /* one instance; 0 unknown */
	uint64_t all_last_level_bytes; /* of all CPUs allowed */
	uint64_t available_bytes;      /* of memory */
	unsigned cpus[BENCH_MAX_CPUS]; /* allowed */
	unsigned n_cpus;
	unsigned pinned; /* the CPU of the one-core rows */
};

/* What cannot be found out reads "unknown" or 0. */
void bench_machine_init(struct bench_machine *machine);
/* The calling thread to one CPU; to all that were allowed. 0 or -errno. */
int bench_machine_pin(unsigned cpu);
int bench_machine_unpin(const struct bench_machine *machine);

#endif
