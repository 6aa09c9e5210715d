/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Measures coders on one set of data: encodes, verifies, then times rounds in which each coder
 * decodes all pages once. The protocol is in docs/codecs.md.
 */
#ifndef BENCH_RUN_H
#define BENCH_RUN_H

#include <stdatomic.h>

#include "base/cpu.h"
#include "bench-coder.h"
#include "bench-data.h"
#include "bench-machine.h"
#include "bench-stats.h"

enum bench_kind {
	BENCH_DRAM,    /* one core, into memory */
	BENCH_SCRATCH, /* one core, each page into the same 256 KiB, which are then summed */
	BENCH_CORES,   /* all cores, into memory */
	BENCH_N_KINDS,
};
const char *bench_kind_name(enum bench_kind kind);

struct bench_options {
	const struct bench_machine *machine;
	uint64_t region_bytes; /* decoded at a time, at least */
	unsigned rounds;
	bool kinds[BENCH_N_KINDS];
	bool cpu_time; /* of one core: count the time on the CPU instead of all that passes */
	const atomic_bool *cancel; /* then -ECANCELED; may be NULL */
	/* Steps of this set that are done, of all; may be NULL. */
	void (*progress)(void *user, uint64_t done, uint64_t total);
	void *user;
};

/* A coder to measure: on one path if it has several. */
struct bench_variant {
	struct bench_coder coder;
	enum cpu_path path;
};

struct bench_row {
	const struct bench_variant *variant;
	enum bench_kind kind;
	uint64_t decoded_bytes; /* timed, in all rounds */
	uint64_t stored_bytes;	/* of the distinct pages, each with its record of the page table */
	uint64_t raw_pages;	/* of the distinct ones: what the coder did not make smaller */
	double ratio, share;	/* 0 for copies */
	struct bench_stats decode, encode; /* GB/s (10^9); encode.n is 0 for copies */
	double on_cpu; /* least share of a run that its thread had the CPU; 0: all cores */
	/* Medians of the rounds' ratios; 0 if it was not there to compare with. */
	double to_zstd1, to_memcpy;
};

struct bench_result {
	struct bench_row *rows; /* owned */
	unsigned n_rows, n_repeats;
	uint64_t region_bytes;		   /* decoded in one run */
	uint64_t held_bytes, huge_bytes;   /* of all regions; of these on huge pages */
	uint64_t least_stored_bytes;	   /* the smallest of the sources */
};

int bench_run(const struct bench_options *options, const struct bench_data *data,
	      const struct bench_variant *variants, unsigned n_variants,
	      struct bench_result *ret_result);
void bench_result_deinit(struct bench_result *result);

#endif
