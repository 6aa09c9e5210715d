/* SPDX-License-Identifier: Apache-2.0 */
/* What `dcmem bench load`, `memory` and `serve` share: options, the model, parts of the document. */
#ifndef DCMEM_BENCH_SETUP_H
#define DCMEM_BENCH_SETUP_H

#include <stdio.h>

#include "bench-host.h"
#include "bench-stats.h"
#include "generate-model.h"
#include "json-out.h"
#include "progress.h"

struct bench_setup {
	const char *what; /* "load" */
	const char *json_path, *dcmemd, *directory;
	const char *model; /* a container; NULL: one is generated */
	unsigned percent;  /* --budget, of the decoded model */
	unsigned n_processes; /* --processes */
	bool quick, quiet;
	FILE *json_file;
	struct json_out json;
	struct progress progress;
	struct bench_host host;
};

/* -1 to go on, or an exit code. argv[0] is `what`. */
int bench_setup_parse(struct bench_setup *setup, int argc, char **argv, const char *help);
/* Opens the JSON file, begins its document, makes the directory. 0 or an error with a message. */
int bench_setup_begin(struct bench_setup *setup);
/* The document ends; "complete" says how. */
int bench_setup_end(struct bench_setup *setup, int result);

/* Generates into the directory. 0 or an error with a message. */
int bench_setup_generate(struct bench_setup *setup, const struct generate_options *options,
			 const char *name, char ret_path[1100]);
/* The model to measure: the one named, else of the shape of Llama 1 B, or tiny if --quick. */
int bench_setup_model(struct bench_setup *setup, char ret_path[1100]);
/* "stopped by a signal", or 0. */
int bench_setup_check(void);
void bench_setup_stats(struct json_out *json, const char *key, const struct bench_stats *stats);

#endif
