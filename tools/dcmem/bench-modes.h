/* SPDX-License-Identifier: Apache-2.0 */
/* Processes that read from a daemon in the mode that they are told, until they are told otherwise. */
#ifndef DCMEM_BENCH_MODES_H
#define DCMEM_BENCH_MODES_H

#include "bench-host.h"

enum reader_mode { READER_IDLE, READER_SWEEP, READER_RANDOM, READER_NEIGHBOUR, READER_EXIT };

/* Shared with the reader; one line of the cache each. */
struct reader_control {
	uint32_t mode;	 /* atomic, the parent's */
	uint32_t failed; /* atomic: a result of the library, or an errno */
	uint64_t n_bytes; /* atomic: read since it was started */
	uint64_t sum;
	double part;	 /* RANDOM: of the tensors, the first part */
	uint64_t passes; /* over each byte: work of a batch */
	uint64_t reserved[2];
};

struct reader {
	pid_t pid;
	struct reader_control *control;
};

/* `delay`: part of the model that a sweep begins at. 0 or -errno, with a message. */
int reader_start(struct reader *reader, const struct bench_host *host, double delay);
void reader_stop(struct reader *reader);
void reader_set(const struct reader *reader, enum reader_mode mode);
uint64_t reader_bytes(const struct reader *reader);

#endif
