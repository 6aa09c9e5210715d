/* SPDX-License-Identifier: Apache-2.0 */
/* The command line of lm: a table of verbs, one table of options. Exit 0, 1 (failed), 2 (usage). */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const char help[] =
	"usage: lm VERB --model MODEL [OPTION]...\n"
	"\n"
	"Runs Llama and OPT models whose weights are read through libdcmem.\n"
	"MODEL is the name of a model that dcmemd holds, or a file ending in .dcmem.\n"
	"\n"
	"  lm generate --model M --prompt TEXT      continue a text\n"
	"      --tokens N        how many tokens (64)\n"
	"      --temperature T   0 takes the likeliest token each time (0)\n"
	"      --seed N          of the random numbers, when T is not 0 (0)\n"
	"      --batch B         continue it B times side by side, print the first (1)\n"
	"      --stats-json FILE write speed and memory there\n"
	"  lm perplexity --model M --ids FILE.u16   how well a model predicts a text\n"
	"      --windows N       windows of the file, from its start (40)\n"
	"      --length N        tokens a window (512)\n"
	"  lm calibrate --model M --ids FILE.u16 -o STATS.safetensors\n"
	"                                           what the inputs of linear layers are like\n"
	"      -o FILE           for each layer and input channel: max |x| as NAME, the mean\n"
	"                        of x^2 as NAME.mean_square, in float32\n"
	"      --covariance      the mean of x x^T too, as NAME.covariance\n"
	"      --windows N       windows, evenly spread over the file (40)\n"
	"      --length N        tokens a window (512)\n"
	"  lm bench --model M                       speed, beside the machine's own limits\n"
	"      --batch B         sequences at once, up to 64 (1)\n"
	"      --tokens N        steps (64)\n"
	"      --json FILE       write the figures there\n"
	"\n"
	"For every verb:\n"
	"      --threads N       0 takes every CPU (0)\n"
	"      --hold            keep decoded weights instead of giving them back after use\n"
	"      --source WHERE    dcmem; or, with a Hugging Face directory as MODEL,\n"
	"                        copy (private memory) or mmap (shared mapping) (dcmem)\n"
	"\n"
	"LM_KERNEL=portable, avx2 or avx512 forces a kernel.\n"
	"\n"
	"  dcmem pack ./tiny-llama -o tiny.dcmem\n"
	"  lm generate --model ./tiny.dcmem --prompt 'It was a dark night'\n";

static const struct {
	const char *name;
	int (*run)(const struct options *options);
} verbs[] = {
	{"generate", verb_generate},
	{"perplexity", verb_perplexity},
	{"calibrate", verb_calibrate},
	{"bench", verb_bench},
};

enum { OPT_MODEL = 256, OPT_SOURCE, OPT_PROMPT, OPT_IDS, OPT_STATS, OPT_JSON, OPT_TOKENS,
       OPT_WINDOWS, OPT_LENGTH, OPT_THREADS, OPT_BATCH, OPT_SEED, OPT_TEMPERATURE, OPT_HOLD,
       OPT_COVARIANCE, OPT_HELP };

static const struct option long_options[] = {
	{"model", required_argument, NULL, OPT_MODEL},
	{"source", required_argument, NULL, OPT_SOURCE},
	{"prompt", required_argument, NULL, OPT_PROMPT},
	{"ids", required_argument, NULL, OPT_IDS},
	{"stats-json", required_argument, NULL, OPT_STATS},
	{"json", required_argument, NULL, OPT_JSON},
	{"tokens", required_argument, NULL, OPT_TOKENS},
	{"windows", required_argument, NULL, OPT_WINDOWS},
	{"length", required_argument, NULL, OPT_LENGTH},
	{"threads", required_argument, NULL, OPT_THREADS},
	{"batch", required_argument, NULL, OPT_BATCH},
	{"seed", required_argument, NULL, OPT_SEED},
	{"temperature", required_argument, NULL, OPT_TEMPERATURE},
	{"hold", no_argument, NULL, OPT_HOLD},
	{"output", required_argument, NULL, 'o'},
	{"covariance", no_argument, NULL, OPT_COVARIANCE},
	{"help", no_argument, NULL, OPT_HELP},
	{NULL, 0, NULL, 0},
};

static int bad_number(void)
{
	(void)fprintf(stderr, "lm: '%s' is not a number that fits here\n", optarg);
	return 2;
}

static int take_u32(uint32_t *ret_value)
{
	unsigned long value;
	char *end;

	errno = 0;
	value = strtoul(optarg, &end, 10);
	if (errno || end == optarg || *end || *optarg == '-' || value > 1U << 30)
		return bad_number();
	*ret_value = (uint32_t)value;
	return 0;
}

static int take_u64(uint64_t *ret_value)
{
	unsigned long long value;
	char *end;

	errno = 0;
	value = strtoull(optarg, &end, 10);
	if (errno || end == optarg || *end || *optarg == '-')
		return bad_number();
	*ret_value = value;
	return 0;
}

static int take_temperature(double *ret_value)
{
	char *end;
	double value = strtod(optarg, &end);

	if (end == optarg || *end || !isfinite(value) || value < 0)
		return bad_number();
	*ret_value = value;
	return 0;
}

/* 0, 2 for bad usage, -1 after help. */
static int take_option(int option, struct options *options)
{
	switch (option) {
	case OPT_MODEL:
		options->model = optarg;
		return 0;
	case OPT_SOURCE:
		options->source = optarg;
		return 0;
	case OPT_PROMPT:
		options->prompt = optarg;
		return 0;
	case OPT_IDS:
		options->ids = optarg;
		return 0;
	case OPT_STATS:
		options->stats_json = optarg;
		return 0;
	case OPT_JSON:
		options->json = optarg;
		return 0;
	case OPT_TOKENS:
		return take_u32(&options->tokens);
	case OPT_WINDOWS:
		return take_u32(&options->windows);
	case OPT_LENGTH:
		return take_u32(&options->length);
	case OPT_THREADS:
		return take_u32(&options->threads);
	case OPT_BATCH:
		return take_u32(&options->batch);
	case OPT_SEED:
		return take_u64(&options->seed);
	case OPT_TEMPERATURE:
		return take_temperature(&options->temperature);
	case OPT_HOLD:
		options->hold = true;
		return 0;
	case OPT_COVARIANCE:
		options->covariance = true;
		return 0;
	case 'o':
		options->output = optarg;
		return 0;
	case OPT_HELP:
		(void)fputs(help, stdout);
		return -1;
	default:
		(void)fputs("lm: try 'lm --help'\n", stderr);
		return 2;
	}
}

int main(int argc, char **argv)
{
	struct options options = {.source = "dcmem", .tokens = 64, .windows = 40, .length = 512,
				  .batch = 1};
	int option, r;

	while ((option = getopt_long(argc, argv, "ho:", long_options, NULL)) != -1) {
		r = take_option(option == 'h' ? OPT_HELP : option, &options);
		if (r != 0)
			return r < 0 ? 0 : r;
	}
	if (optind + 1 != argc) {
		(void)fputs(help, stderr);
		return 2;
	}
	for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++) {
		if (strcmp(argv[optind], verbs[i].name) != 0)
			continue;
		if (!options.model) {
			(void)fprintf(stderr, "lm: %s needs --model\n", verbs[i].name);
			return 2;
		}
		r = verbs[i].run(&options);
		if (r == 0 && (fflush(stdout) != 0 || ferror(stdout)))
			r = error_set(-EIO, "cannot write the output");
		if (r != 0)
			(void)fprintf(stderr, "lm: %s\n", error_get());
		return r == 0 ? 0 : 1;
	}
	(void)fprintf(stderr, "lm: no verb is called '%s'; try 'lm --help'\n", argv[optind]);
	return 2;
}
