/* SPDX-License-Identifier: Apache-2.0 */
/* `dcmem generate`: a model of random weights, for measuring. Owns the options; bench/ does the work. */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/message.h"
#include "base/parallel.h"
#include "generate.h"
#include "json-out.h"
#include "progress.h"
#include "table.h"
#include "verb.h"

#define DEFAULT_BITS 6.5 /* of INT8 rounded by rows of trained models */

static atomic_bool stopped;

static void stop(int signal_number)
{
	atomic_store(&stopped, true);
}

static int help(void)
{
	printf("Usage: dcmem generate SHAPE -o OUT [--dtype TYPE] [--bits B] [--layers N]\n"
	       "                [--tensors N] [--shards N] [--seed S] [--jobs N] [--json] [--quiet]\n\n"
	       "Makes a model of random weights that compress as trained ones do, for measuring with\n"
	       "models of any size. OUT is a directory of safetensors in the layout of Hugging Face,\n"
	       "or a container if its name ends in .dcmem. The same options give the same bytes on\n"
	       "every machine. SHAPE is llama-1b, llama-7b, llama-70b or tiny.\n\n"
	       "  -o, --output OUT  what to make; it must not exist, or be an empty directory\n"
	       "  --dtype TYPE      int8 (default; matrices with a scale a row) or bf16\n"
	       "  --bits B          entropy of an INT8 weight, 1 to 7.5 (default: 6.5, as rounding\n"
	       "                    leaves it; 3.64 compresses 2.2 times)\n"
	       "  --layers N        so many layers instead of the shape's\n"
	       "  --tensors N       N more tensors, of 1024 weights each\n"
	       "  --shards N        so many safetensors files (default: 1)\n"
	       "  --seed S          another model of the same statistics (default: 1)\n"
	       "  --jobs N          threads (default: one a CPU)\n"
	       "  --json            one JSON document instead of a line\n"
	       "  --quiet           no line, no progress bar\n\n"
	       "Example: a layer of a 1 B model at ratio 2.2, then 100,000 tensors:\n\n"
	       "  dcmem generate llama-1b --layers 1 --bits 3.64 -o shaped.dcmem\n"
	       "  dcmem generate tiny --tensors 100000 -o many.dcmem\n\n"
	       "Exit codes: 0 done, 1 failed, 2 wrong usage.\n");
	return verb_flush("generate");
}

struct arguments {
	struct generate_options options;
	const char *output;
	unsigned n_jobs;
	bool json, quiet, bits_given;
};

static bool parse_u64(const char *text, uint64_t least, uint64_t most, uint64_t *ret_value)
{
	unsigned long long value;
	char *end;

	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno || *end || end == text || *text < '0' || *text > '9' || value < least ||
	    value > most)
		return false;
	*ret_value = value;
	return true;
}

/* 0, or what verb_usage() returned. */
static int take(struct arguments *arguments, int c)
{
	struct generate_options *options = &arguments->options;
	uint64_t n;
	char *end;

	switch (c) {
	case 'o':
		arguments->output = optarg;
		return 0;
	case 'd':
		options->bf16 = strcmp(optarg, "bf16") == 0;
		if (!options->bf16 && strcmp(optarg, "int8") != 0)
			return verb_usage("generate", "--dtype takes int8 or bf16");
		return 0;
	case 'b':
		options->bits = strtod(optarg, &end);
		arguments->bits_given = true;
		if (*end || end == optarg ||
		    !(options->bits >= WEIGHTS_MIN_BITS && options->bits <= WEIGHTS_MAX_BITS))
			return verb_usage("generate", "--bits takes a number from 1 to 7.5");
		return 0;
	case 'l':
		if (!parse_u64(optarg, 1, 1000, &options->n_layers))
			return verb_usage("generate", "--layers takes a number from 1 to 1000");
		return 0;
	case 't':
		if (!parse_u64(optarg, 0, GENERATE_MAX_TENSORS, &options->n_tensors))
			return verb_usage("generate", "--tensors takes a number to 2000000");
		return 0;
	case 's':
		if (!parse_u64(optarg, 1, GENERATE_MAX_SHARDS, &n))
			return verb_usage("generate", "--shards takes a number from 1 to 1000");
		options->n_shards = (unsigned)n;
		return 0;
	case 'S':
		if (!parse_u64(optarg, 0, UINT64_MAX, &options->seed))
			return verb_usage("generate", "--seed takes a whole number");
		return 0;
	case 'j':
		if (!parse_u64(optarg, 1, 512, &n))
			return verb_usage("generate", "--jobs takes a number from 1 to 512");
		arguments->n_jobs = (unsigned)n;
		return 0;
	case 'J':
		arguments->json = true;
		return 0;
	default: /* 'q' */
		arguments->quiet = true;
		return 0;
	}
}

static void show(void *data, uint64_t done, uint64_t total)
{
	progress_update(data, done, total);
}

static int report(const struct arguments *arguments, const struct generate_model *model,
		  double seconds)
{
	char text[24];

	if (arguments->json) {
		struct json_out out;

		json_out_init(&out, stdout);
		json_out_object(&out, NULL);
		json_out_string(&out, "output", arguments->output);
		json_out_string(&out, "shape", arguments->options.shape);
		json_out_u64(&out, "seed", arguments->options.seed);
		json_out_u64(&out, "tensors", model->n_tensors);
		json_out_u64(&out, "shards", model->options.n_shards);
		json_out_u64(&out, "bytes", model->n_bytes);
		json_out_double(&out, "seconds", seconds);
		json_out_end(&out, '}');
	} else if (!arguments->quiet) {
		printf("%s: %llu tensors, %s, in %.1f s\n", arguments->output,
		       (unsigned long long)model->n_tensors, table_bytes(model->n_bytes, text),
		       seconds);
	}
	return verb_flush("generate");
}

static bool is_container(const char *path)
{
	size_t n = strlen(path);

	return n > 6 && strcmp(path + n - 6, ".dcmem") == 0;
}

static int run(const struct arguments *arguments)
{
	struct progress progress;
	struct generate_run run = { .n_jobs = arguments->n_jobs, .cancel = &stopped,
				    .progress = show, .data = &progress };
	struct generate_model model;
	uint64_t start = clock_now_ns();
	int r = generate_model_init(&model, &arguments->options);

	if (r)
		return verb_failure("generate", r, message_get());
	progress_init(&progress, "generating", !arguments->quiet);
	r = is_container(arguments->output) ?
		    generate_container(&model, arguments->output, &run) :
		    generate_directory(&model, arguments->output, &run);
	progress_end(&progress);
	r = r ? verb_failure("generate", r, message_get()) :
		report(arguments, &model, (double)(clock_now_ns() - start) / NS_PER_S);
	generate_model_deinit(&model);
	return r;
}

int verb_generate(int argc, char **argv)
{
	static const struct option long_options[] = {
		{ "output", required_argument, NULL, 'o' },  { "dtype", required_argument, NULL, 'd' },
		{ "bits", required_argument, NULL, 'b' },    { "layers", required_argument, NULL, 'l' },
		{ "tensors", required_argument, NULL, 't' }, { "shards", required_argument, NULL, 's' },
		{ "seed", required_argument, NULL, 'S' },    { "jobs", required_argument, NULL, 'j' },
		{ "json", no_argument, NULL, 'J' },	     { "quiet", no_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' },	     { 0 },
	};
	struct arguments arguments = {
		.options = { .bits = DEFAULT_BITS, .n_shards = 1, .seed = 1 },
		.n_jobs = parallel_cpu_count(),
	};
	struct sigaction action = { .sa_handler = stop };
	bool known = false;
	int c, r;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "o:h", long_options, NULL)) != -1) {
		if (c == 'h')
			return help();
		if (c == '?')
			return verb_usage("generate", "unknown option, or one without its value: %s",
					  argv[optind - 1]);
		r = take(&arguments, c);
		if (r)
			return r;
	}
	if (argc - optind != 1 || !arguments.output)
		return verb_usage("generate", "needs one SHAPE and -o OUT");
	arguments.options.shape = argv[optind];
	for (unsigned i = 0; generate_shape_name(i); i++)
		known |= strcmp(generate_shape_name(i), argv[optind]) == 0;
	if (!known)
		return verb_usage("generate", "SHAPE is llama-1b, llama-7b, llama-70b or tiny");
	if (arguments.bits_given && arguments.options.bf16)
		return verb_usage("generate", "--bits is of INT8: leave out --dtype bf16");
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	return run(&arguments);
}
