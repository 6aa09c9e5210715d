/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `dcmem pack`. Owns the options, the signals (which only set a flag: the packer removes what it
 * began) and the closing table.
 */
#include <getopt.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/message.h"
#include "model/pack.h"
#include "progress.h"
#include "summary.h"
#include "table.h"
#include "verb.h"

/* Any thread may run the handler; lock-free atomics are safe in it. */
static atomic_bool stopped;

static void stop(int signal_number)
{
	atomic_store(&stopped, true);
}

static int help(void)
{
	printf("Usage: dcmem pack SRC -o OUT [OPTIONS]\n\n"
	       "Compresses a model without loss into one container. SRC is a directory with\n"
	       "safetensors files (one, or sharded with its index), or a single .safetensors file.\n"
	       "All other files of the directory are kept as they are, so that `dcmem unpack`\n"
	       "restores every byte. The same model gives the same container on every machine.\n"
	       "Where two files hold a tensor of the same name, the one of model.safetensors or of\n"
	       "the index keeps it and the other becomes FILE:NAME.\n\n"
	       "  -o, --output OUT  the container; appears when it is complete and on disk\n"
	       "  --jobs N          encoding threads (default: one for each CPU)\n"
	       "  --codec CODEC     auto (default): measured on samples of each tensor, as --effort\n"
	       "                    says; pair, pack: that codec in the width of the tensor's type;\n"
	       "                    zstd: zstd alone; raw: none, every tensor readable in place\n"
	       "  --effort EFFORT   what auto looks for. normal (default): the fastest to decode within\n"
	       "                    0.4 %% of the smallest; fast: the fastest that saves 1 %% or more,\n"
	       "                    near the speed of memory; dense: the smallest, slow to pack\n"
	       "  --json            one JSON document instead of the table\n"
	       "  --quiet           no table, no progress bar\n\n"
	       "Example: pack a model, look at it, serve it:\n\n"
	       "  dcmem pack ./my-model -o my-model.dcmem\n"
	       "  dcmem ls my-model.dcmem\n"
	       "  dcmem load my-model.dcmem\n\n"
	       "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the source is damaged.\n");
	return verb_flush("pack");
}

static void show_progress(void *data, uint64_t done_bytes, uint64_t total_bytes)
{
	progress_update(data, done_bytes, total_bytes);
}

static unsigned cpu_count(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof(set), &set) == 0 ? (unsigned)CPU_COUNT(&set) : 1;
}

/* The index of a text in a list of names that ends with NULL, or -1. */
static int parse_name(const char *text, const char *(*name_of)(unsigned index))
{
	for (unsigned i = 0; name_of(i); i++)
		if (strcmp(text, name_of(i)) == 0)
			return (int)i;
	return -1;
}

static int report(const char *path, bool json, double seconds)
{
	struct container container;
	struct summary_totals totals;
	struct json_out out;
	char raw[24], stored[24], rate[24];
	int r = container_open(&container, path);

	if (r)
		return r;
	r = summary_totals(&container, &totals);
	if (!r && json) {
		json_out_init(&out, stdout);
		json_out_object(&out, NULL);
		json_out_string(&out, "path", path);
		json_out_double(&out, "seconds", seconds);
		r = summary_json(&container, &out);
		json_out_end(&out, '}');
	} else if (!r) {
		r = summary_print_groups(&container);
		printf("\n%s: %s of files in %s, %.1f s, %s/s\n", path,
		       table_bytes(totals.file_bytes, raw),
		       table_bytes(totals.container_bytes, stored), seconds,
		       table_bytes((uint64_t)((double)totals.file_bytes / (seconds + 1e-9)), rate));
	}
	container_close(&container);
	return r;
}

int verb_pack(int argc, char **argv)
{
	static const struct option long_options[] = {
		{ "output", required_argument, NULL, 'o' }, { "jobs", required_argument, NULL, 'j' },
		{ "codec", required_argument, NULL, 'c' },  { "effort", required_argument, NULL, 'e' },
		{ "json", no_argument, NULL, 'J' },	    { "quiet", no_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct pack_options options = { .n_jobs = cpu_count(), .cancel = &stopped,
					.progress = show_progress };
	struct sigaction action = { .sa_handler = stop };
	const char *output = NULL;
	struct progress progress;
	bool json = false, quiet = false;
	uint64_t start;
	char *end;
	int c, i, r;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "o:h", long_options, NULL)) != -1) {
		switch (c) {
		case 'o':
			output = optarg;
			break;
		case 'j':
			options.n_jobs = (unsigned)strtoul(optarg, &end, 10);
			if (*end || end == optarg || *optarg == '-' || options.n_jobs < 1 ||
			    options.n_jobs > 512)
				return verb_usage("pack", "--jobs takes a number from 1 to 512");
			break;
		case 'c':
			i = parse_name(optarg, pack_codec_name);
			if (i < 0)
				return verb_usage("pack", "--codec takes auto, pack, pair, raw or zstd");
			options.codec = (enum pack_codec)i;
			break;
		case 'e':
			i = parse_name(optarg, pack_effort_name);
			if (i < 0)
				return verb_usage("pack", "--effort takes fast, normal or dense");
			options.effort = (enum pack_effort)i;
			break;
		case 'J':
			json = true;
			break;
		case 'q':
			quiet = true;
			break;
		case 'h':
			return help();
		default:
			return verb_usage("pack", "unknown option, or one without its value: %s",
					  argv[optind - 1]);
		}
	}
	if (argc - optind != 1 || !output)
		return verb_usage("pack", "needs one SRC and -o OUT");
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	progress_init(&progress, "packing", !quiet);
	options.data = &progress;
	start = clock_now_ns();
	r = pack(argv[optind], output, &options);
	progress_end(&progress);
	if (!r && (json || !quiet))
		r = report(output, json, (double)(clock_now_ns() - start) / NS_PER_S);
	if (r)
		return verb_failure("pack", r, message_get());
	return verb_flush("pack");
}
