/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `dcmem pack`. Owns the options, the signals (which only set a flag: the packer removes what it
 * began) and the closing table.
 */
#include <getopt.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/message.h"
#include "base/parallel.h"
#include "model/pack.h"
#include "quant/quant-pack.h"
#include "progress.h"
#include "quant-table.h"
#include "summary.h"
#include "table.h"
#include "verb.h"

#define DEFAULT_RATIO	2.2 /* to INT8 */
#define DEFAULT_WINDOWS 72 /* of them a ninth is held back */
#define DEFAULT_WINDOW	512

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
	       "  --hints           also keep what each codec would make of each tensor, in bytes and in\n"
	       "                    time on this machine (`dcmem ls --hints`); with it no two packs are\n"
	       "                    the same bytes\n"
	       "  --quantize        with loss: linear layers become INT8 codes that compress well; see\n"
	       "                    below\n"
	       "  --json            one JSON document instead of the table\n"
	       "  --quiet           no table, no progress bar\n\n"
	       "Quantizing (docs/quantization.md). The container keeps codes and scales; `dcmem export`\n"
	       "writes them for other programs, `dcmem unpack` cannot give back what is lost.\n\n"
	       "  --ratio R         as many times smaller than INT8 (default: 2.2)\n"
	       "  --bits B          bits of a linear weight, with its scales, tables and hashes\n"
	       "  --max-loss P      the most that perplexity may grow on text held back: 0.01 is 1 %%;\n"
	       "                    needs --calibration-ids\n"
	       "  --calibration-ids FILE\n"
	       "                    token ids of text like that of the model's later use (16 bits each,\n"
	       "                    little-endian; 32 if FILE ends in .u32): the strongest help there is\n"
	       "  --calibration-stats FILE\n"
	       "                    statistics of inputs instead: `lm calibrate`, act_absmax.safetensors\n"
	       "  --calibration-windows N\n"
	       "                    windows of 512 tokens to take from the text (default: 72)\n"
	       "  --embeddings E    auto (default): about 5.4 bits; int8: as fine as INT8 allows;\n"
	       "                    lossless: left alone\n"
	       "  --report FILE     a page of HTML with bits, errors and codes of each layer as plots\n\n"
	       "Example: pack a model, look at it, serve it:\n\n"
	       "  dcmem pack ./my-model -o my-model.dcmem\n"
	       "  dcmem ls my-model.dcmem\n"
	       "  dcmem load my-model.dcmem\n\n"
	       "Example: the same model, quantized:\n\n"
	       "  dcmem pack ./my-model -o small.dcmem --quantize --calibration-ids text.u16\n\n"
	       "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the source is damaged.\n");
	return verb_flush("pack");
}

/* The index of a text in a list of names that ends with NULL, or -1. */
static int parse_name(const char *text, const char *(*name_of)(unsigned index))
{
	for (unsigned i = 0; name_of(i); i++)
		if (strcmp(text, name_of(i)) == 0)
			return (int)i;
	return -1;
}

static int report(const char *path, const struct quant_report *quant, bool json, double seconds)
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
		if (!r && quant)
			quant_table_json(quant, &container, &out);
		json_out_end(&out, '}');
	} else if (!r) {
		r = summary_print_groups(&container);
		if (!r && quant)
			quant_table_print(quant, &container);
		printf("\n%s: %s of files in %s, %.1f s, %s/s\n", path,
		       table_bytes(totals.file_bytes, raw),
		       table_bytes(totals.container_bytes, stored), seconds,
		       table_bytes((uint64_t)((double)totals.file_bytes / (seconds + 1e-9)), rate));
	}
	container_close(&container);
	return r;
}

struct pack_arguments {
	struct pack_options options;
	struct quant_options quant;
	const char *output, *page;
	bool json, quiet, quantize, any_quant;
};

/* A finite number within bounds. */
static bool parse_number(const char *text, double least, double most, double *ret_value)
{
	char *end;
	double value = strtod(text, &end);

	if (end == text || *end || !(value >= least && value <= most))
		return false;
	*ret_value = value;
	return true;
}

enum { OPT_QUANTIZE = 256, OPT_RATIO, OPT_BITS, OPT_MAX_LOSS, OPT_IDS, OPT_STATS, OPT_WINDOWS,
       OPT_EMBEDDINGS, OPT_REPORT };

/* 0, or what verb_usage() returns. */
static int take_quant_option(int c, const char *text, struct pack_arguments *arguments)
{
	struct quant_options *quant = &arguments->quant;
	double value;
	int i;

	arguments->any_quant |= c != OPT_QUANTIZE;
	switch (c) {
	case OPT_QUANTIZE:
		arguments->quantize = true;
		return 0;
	case OPT_RATIO:
		if (!parse_number(text, 1, 8, &value))
			return verb_usage("pack", "--ratio takes a number from 1 to 8");
		quant->bits = 8 / value;
		return 0;
	case OPT_BITS:
		if (!parse_number(text, 1, 8, &quant->bits))
			return verb_usage("pack", "--bits takes a number from 1 to 8");
		return 0;
	case OPT_MAX_LOSS:
		if (!parse_number(text, 1e-6, 10, &quant->max_loss))
			return verb_usage("pack", "--max-loss takes a share, such as 0.01 for 1 %%");
		return 0;
	case OPT_REPORT:
		arguments->page = text;
		return 0;
	case OPT_IDS:
		quant->calibration_ids = text;
		return 0;
	case OPT_STATS:
		quant->calibration_stats = text;
		return 0;
	case OPT_WINDOWS:
		if (!parse_number(text, 2, 1e6, &value))
			return verb_usage("pack", "--calibration-windows takes a number from 2");
		quant->n_windows = (size_t)value;
		return 0;
	default:
		i = parse_name(text, quant_embeddings_name);
		if (i < 0)
			return verb_usage("pack", "--embeddings takes auto, int8 or lossless");
		quant->embeddings = (enum quant_embeddings)i;
		return 0;
	}
}

/* The targets exclude each other; what is left out is filled in. */
static int check_quant(struct pack_arguments *arguments)
{
	struct quant_options *quant = &arguments->quant;

	if (arguments->any_quant && !arguments->quantize)
		return verb_usage("pack", "options of quantizing need --quantize");
	if (quant->bits > 0 && quant->max_loss > 0)
		return verb_usage("pack", "one target, please: --ratio, --bits or --max-loss");
	if (quant->calibration_ids && quant->calibration_stats)
		return verb_usage("pack", "--calibration-ids or --calibration-stats, not both");
	if (quant->max_loss > 0 && !quant->calibration_ids)
		return verb_usage("pack", "--max-loss is measured on text: it needs --calibration-ids");
	if (quant->bits == 0)
		quant->bits = quant->max_loss > 0 ? 0 : 8 / DEFAULT_RATIO;
	return 0;
}

struct quant_progress {
	struct progress progress;
	unsigned pass;
	bool show;
};

static void show_quant_progress(void *data, unsigned pass, uint64_t done, uint64_t total)
{
	struct quant_progress *state = data;

	if (pass != state->pass) {
		if (state->pass)
			progress_end(&state->progress);
		progress_init(&state->progress, pass > 1 ? "quantizing again" : "quantizing", state->show);
		state->pass = pass;
	}
	progress_update(&state->progress, done, total);
}

/* The packer's bar follows the last of the passes. */
static void show_pack_progress(void *data, uint64_t done_bytes, uint64_t total_bytes)
{
	struct quant_progress *state = data;

	if (state->pass) {
		progress_end(&state->progress);
		progress_init(&state->progress, "packing", state->show);
		state->pass = 0;
	}
	progress_update(&state->progress, done_bytes, total_bytes);
}

static int run(const char *source, struct pack_arguments *arguments)
{
	struct quant_progress state = { .show = !arguments->quiet };
	struct quant_report quant;
	uint64_t start = clock_now_ns();
	bool made;
	int r;

	progress_init(&state.progress, "packing", state.show);
	arguments->options.progress = show_pack_progress;
	arguments->options.data = &state;
	arguments->quant.progress = show_quant_progress;
	arguments->quant.data = &state;
	arguments->quant.n_jobs = arguments->options.n_jobs;
	arguments->quant.cancel = arguments->options.cancel;
	r = arguments->quantize ? quant_pack(source, arguments->output, &arguments->quant,
					     &arguments->options, &quant) :
				  pack(source, arguments->output, &arguments->options);
	progress_end(&state.progress);
	made = !r && arguments->quantize;
	if (!r && (arguments->json || !arguments->quiet))
		r = report(arguments->output, arguments->quantize ? &quant : NULL, arguments->json,
			   (double)(clock_now_ns() - start) / NS_PER_S);
	if (!r && arguments->page)
		r = quant_page_write(&quant, arguments->output, arguments->page);
	if (made)
		quant_report_deinit(&quant);
	return r;
}

int verb_pack(int argc, char **argv)
{
	static const struct option long_options[] = {
		{ "output", required_argument, NULL, 'o' }, { "jobs", required_argument, NULL, 'j' },
		{ "codec", required_argument, NULL, 'c' },  { "effort", required_argument, NULL, 'e' },
		{ "json", no_argument, NULL, 'J' },	    { "quiet", no_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' }, { "hints", no_argument, NULL, 'H' },
		{ "quantize", no_argument, NULL, OPT_QUANTIZE },
		{ "ratio", required_argument, NULL, OPT_RATIO },
		{ "bits", required_argument, NULL, OPT_BITS },
		{ "max-loss", required_argument, NULL, OPT_MAX_LOSS },
		{ "calibration-ids", required_argument, NULL, OPT_IDS },
		{ "calibration-stats", required_argument, NULL, OPT_STATS },
		{ "calibration-windows", required_argument, NULL, OPT_WINDOWS },
		{ "embeddings", required_argument, NULL, OPT_EMBEDDINGS },
		{ "report", required_argument, NULL, OPT_REPORT },
		{ 0 },
	};
	struct pack_arguments arguments = {
		.options = { .n_jobs = parallel_cpu_count(), .cancel = &stopped },
		.quant = { .n_windows = DEFAULT_WINDOWS, .window = DEFAULT_WINDOW },
	};
	struct pack_options *options = &arguments.options;
	struct sigaction action = { .sa_handler = stop };
	char *end;
	int c, i, r;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "o:h", long_options, NULL)) != -1) {
		switch (c) {
		case 'o':
			arguments.output = optarg;
			break;
		case 'j':
			options->n_jobs = (unsigned)strtoul(optarg, &end, 10);
			if (*end || end == optarg || *optarg == '-' || options->n_jobs < 1 ||
			    options->n_jobs > 512)
				return verb_usage("pack", "--jobs takes a number from 1 to 512");
			break;
		case 'c':
			i = parse_name(optarg, pack_codec_name);
			if (i < 0)
				return verb_usage("pack", "--codec takes auto, pack, pair, raw or zstd");
			options->codec = (enum pack_codec)i;
			break;
		case 'e':
			i = parse_name(optarg, pack_effort_name);
			if (i < 0)
				return verb_usage("pack", "--effort takes fast, normal or dense");
			options->effort = (enum pack_effort)i;
			break;
		case 'H':
			options->hints = true;
			break;
		case 'J':
			arguments.json = true;
			break;
		case 'q':
			arguments.quiet = true;
			break;
		case 'h':
			return help();
		case '?':
			return verb_usage("pack", "unknown option, or one without its value: %s",
					  argv[optind - 1]);
		default:
			r = take_quant_option(c, optarg, &arguments);
			if (r)
				return r;
		}
	}
	if (argc - optind != 1 || !arguments.output)
		return verb_usage("pack", "needs one SRC and -o OUT");
	r = check_quant(&arguments);
	if (r)
		return r;
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	r = run(argv[optind], &arguments);
	if (r)
		return verb_failure("pack", r, message_get());
	return verb_flush("pack");
}
