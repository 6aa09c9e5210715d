/* SPDX-License-Identifier: Apache-2.0 */
/* Processes that sweep a model together, each summing every byte, and the memory that they take. */
#ifndef DCMEM_BENCH_READERS_H
#define DCMEM_BENCH_READERS_H

#include "bench-host.h"

#define BENCH_MAX_READERS 64

enum bench_way {
	BENCH_WAY_SERVED,  /* windows of the daemon, or its raw tensors in place */
	BENCH_WAY_PRIVATE, /* a container opened by each process, decoded page by page */
	BENCH_WAY_MMAP,	   /* a file of decoded bytes, mapped */
	BENCH_WAY_DECODE,  /* as PRIVATE, into 64 MiB of memory, without reading it */
};

struct bench_sweep {
	enum bench_way way;
	const struct bench_host *host;
	const char *path; /* the file; not of SERVED */
	unsigned n_processes, n_sweeps;
	uint64_t window_bytes; /* of SERVED: a request */
	uint64_t n_bytes, sum; /* of the decoded model: what each sweep must find */
};

struct bench_sweep_result {
	double seconds; /* from the first reader's start to the last one's end */
	uint64_t decoded_bytes; /* by the daemon in that time */
	struct bench_memory_use peak; /* of a further sweep: the sample with the most anon + shmem */
	uint64_t daemon_bytes;	 /* in that sample: shmem, and what is private to the daemon */
	uint64_t daemon_says_bytes; /* what it counts itself, at most, since it started */
};

/* 0, -errno or DCMEM_E_..., with a message. A wrong sum is DCMEM_E_CORRUPT. */
int bench_sweep_run(const struct bench_sweep *sweep, struct bench_sweep_result *ret_result);

#endif
