/* SPDX-License-Identifier: Apache-2.0 */
/* What the bench found: tables for people, one JSON document, and the worst row of each codec. */
#ifndef DCMEM_BENCH_REPORT_H
#define DCMEM_BENCH_REPORT_H

#include <stdio.h>

#include "bench-run.h"
#include "json-out.h"

/* The worst of one codec on one path, kind and dtype, over all data, with the data's number. */
struct bench_worst {
	char codec[32];
	const char *path;
	enum bench_kind kind;
	uint32_t dtype;
	double share, decode, to_zstd1, to_memcpy;
	unsigned share_data, decode_data, zstd1_data, memcpy_data;
};

/* One set of data, kept for the closing list. */
struct bench_report_data {
	char name[128];
	uint32_t dtype;
	uint64_t n_pages, page_bytes, source_bytes, region_bytes;
	unsigned n_repeats;
	double order0_bits, bound, huge_share;
	bool beyond_caches;
};

struct bench_report {
	const struct bench_options *options;
	bool quick;
	FILE *json_file; /* NULL: no JSON */
	struct json_out json;
	struct bench_report_data *data; /* owned */
	size_t n_data, data_capacity;
	struct bench_worst *worst; /* owned */
	size_t n_worst, worst_capacity;
	bool rule_kept; /* by every row so far */
	double on_cpu;	/* the least of all rows */
};

/* Prints the machine. The options must outlive the report. */
void bench_report_begin(struct bench_report *report, const struct bench_options *options,
			const struct bench_variant *variants, unsigned n_variants, bool quick,
			FILE *json_file);
/* One set of data: its table, its rows. 0 or -ENOMEM. */
int bench_report_add(struct bench_report *report, const struct bench_data *data,
		     const struct bench_result *result);
/* The worst rows; ends the JSON, `complete` or not. 0 or -ENOMEM. */
int bench_report_end(struct bench_report *report, bool complete);
void bench_report_deinit(struct bench_report *report);

#endif
