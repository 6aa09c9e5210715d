/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `dcmem bench codec`, and where the other benchmarks begin. Owns the options, which data and coders there are, and how much is decoded;
 * the measurement is in bench/, the protocol in docs/codecs.md.
 */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "bench-model.h"
#include "bench-report.h"
#include "bench-run.h"
#include "bench-tune.h"
#include "dcmem/dcmem.h"
#include "progress.h"
#include "verb.h"

#define MIB	      (1ULL << 20)
#define DECODED_BYTES (1024 * MIB) /* each row, in all rounds */
#define MAX_VARIANTS  (3 * BENCH_CODER_MAX)
#define MAX_NAMED     16

static atomic_bool stopped;

static void stop(int signal_number)
{
	atomic_store(&stopped, true);
}

static int help(void)
{
	printf("Usage: dcmem bench codec [MODEL_OR_FILE...] [OPTIONS]\n"
	       "       dcmem bench load [MODEL] [--json FILE] [--quick] [--quiet] [--dcmemd PATH]\n"
	       "                 [--dir DIR]\n"
	       "       dcmem bench memory [MODEL] [--json FILE] [--quick] [--quiet] [--dcmemd PATH]\n"
	       "                 [--dir DIR] [--budget P%%] [--processes N]\n"
	       "       dcmem bench serve [MODEL] [--json FILE] [--quick] [--quiet] [--dcmemd PATH]\n"
	       "                 [--dir DIR]\n"
	       "       dcmem bench tune [CONTAINER] [--json FILE] [--quick] [--quiet] [--dcmemd PATH]\n"
	       "                 [--seconds S] [--mib N]\n\n"
	       "`dcmem bench WHAT --help` explains load, memory, serve and tune. The first\n"
	       "measures the page codecs on this machine, beside zstd, LZ4 and rANS of htscodecs\n"
	       "where this build has them: ratio, decode and encode speed, on synthetic INT8 data\n"
	       "and on the tensors of the models named (safetensors files, directories,\n"
	       "containers), as they are and quantized to INT8. Each row decodes at least 1 GiB\n"
	       "beyond the caches on a pinned core; runs of the codecs take turns. Wants an idle\n"
	       "machine, and a quarter of an hour.\n\n"
	       "  --json FILE   also write one JSON document\n"
	       "  --quick       far less of everything; marked so in the output\n"
	       "  --codec NAME  only this one beside zstd-1 and memcpy; may be repeated\n"
	       "  --data TEXT   only data whose name has TEXT in it; may be repeated\n"
	       "  --kind KIND   only dram (one core into memory), scratch (one core into a\n"
	       "                256 KiB buffer, then summed) or cores (all); may be repeated\n"
	       "  --mib N       decode this many MiB at a time (default: four times the caches)\n"
	       "  --effort N    effort of our encoders (default: 1)\n"
	       "  --cpu-time    count the time on the CPU alone: for a machine that is not idle\n"
	       "  --quiet       no progress bar\n"
	       "  --dcmemd PATH, --dir DIR, --budget P%%, --processes N, --seconds S: of the others\n\n"
	       "DCMEM_CPU=portable or avx2 in the environment leaves out the faster paths.\n\n"
	       "Example:\n\n"
	       "  dcmem bench codec ./my-model --json bench.json\n"
	       "  dcmem bench codec --quick --codec pair8 --kind dram\n\n"
	       "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 a model is damaged.\n");
	return verb_flush("bench");
}

struct words {
	const char *word[MAX_NAMED];
	unsigned n;
};

struct bench {
	struct words codecs, data, kinds;
	const char *json_path;
	bool quick, quiet;
	unsigned long mib, effort;
	struct bench_machine machine;
	struct bench_options options;
	struct bench_variant variants[MAX_VARIANTS];
	unsigned n_variants;
	uint64_t synthetic_bytes, model_bytes; /* distinct bytes of a set, at most */
	struct bench_report report;
	struct progress progress;
	unsigned n_measured;
};

static int add_word(struct words *words, const char *word)
{
	if (words->n == MAX_NAMED)
		return -1;
	words->word[words->n++] = word;
	return 0;
}

static bool has_word(const struct words *words, const char *word)
{
	for (unsigned i = 0; i < words->n; i++)
		if (strcmp(words->word[i], word) == 0)
			return true;
	return words->n == 0;
}

static bool has_part(const struct words *words, const char *text)
{
	for (unsigned i = 0; i < words->n; i++)
		if (strstr(text, words->word[i]))
			return true;
	return words->n == 0;
}

/* --- coders --- */

static int choose_coders(struct bench *bench)
{
	struct bench_coder coders[BENCH_CODER_MAX];
	unsigned n = bench_coders(coders, (int)bench->effort);
	enum cpu_path best = cpu_path();

	for (unsigned i = 0; i < bench->codecs.n; i++) {
		bool known = false;

		for (unsigned k = 0; k < n; k++)
			known |= strcmp(coders[k].name, bench->codecs.word[i]) == 0;
		if (known)
			continue;
		fprintf(stderr, "dcmem bench: codecs:");
		for (unsigned k = 0; k < n; k++)
			fprintf(stderr, " %s", coders[k].name);
		fputc('\n', stderr);
		return verb_usage("bench", "no codec '%s'", bench->codecs.word[i]);
	}
	for (unsigned k = 0; k < n; k++) {
		const struct bench_coder *coder = &coders[k];

		if (!coder->is_copy && strcmp(coder->name, "zstd-1") != 0 &&
		    !has_word(&bench->codecs, coder->name))
			continue;
		for (int path = (int)best; path >= 0; path--) {
			bench->variants[bench->n_variants++] = (struct bench_variant){
				.coder = *coder, .path = (enum cpu_path)path
			};
			if (!coder->has_paths)
				break;
		}
	}
	return VERB_OK;
}

/* --- how much --- */

static void choose_sizes(struct bench *bench)
{
	struct bench_options *options = &bench->options;
	const struct bench_machine *machine = &bench->machine;
	uint64_t caches = options->kinds[BENCH_CORES] ? machine->all_last_level_bytes :
							machine->last_level_bytes;
	uint64_t region = max_u64(128 * MIB, 4 * caches);

	if (bench->quick)
		region = 16 * MIB;
	if (bench->mib)
		region = bench->mib * MIB;
	else if (machine->available_bytes)
		/* A source for each coder, and a destination; leave a third. */
		region = min_u64(region,
				 machine->available_bytes / 3 * 2 / (bench->n_variants + 2));
	options->region_bytes = max_u64(region, MIB);
	options->rounds = bench->quick ? 3 :
			  (unsigned)max_u64(7, div_up(DECODED_BYTES, options->region_bytes));
	bench->synthetic_bytes = min_u64(bench->quick ? 4 * MIB : 32 * MIB, options->region_bytes);
	bench->model_bytes = min_u64(bench->quick ? 4 * MIB : 64 * MIB, options->region_bytes);
}

/* --- data --- */

static void show_progress(void *user, uint64_t done, uint64_t total)
{
	progress_steps(user, done, total);
}

static int measure(struct bench *bench, const struct bench_data *data)
{
	struct bench_variant *variants = memory_array(bench->n_variants, sizeof(*variants));
	struct bench_result result = { 0 };
	unsigned n = 0;
	int r;

	if (!variants)
		return -ENOMEM;
	for (unsigned i = 0; i < bench->n_variants; i++)
		if (bench_coder_takes(&bench->variants[i].coder, data->dtype))
			variants[n++] = bench->variants[i];
	progress_init(&bench->progress, data->name, !bench->quiet);
	r = bench_run(&bench->options, data, variants, n, &result);
	progress_end(&bench->progress);
	if (!r)
		r = bench_report_add(&bench->report, data, &result);
	bench_result_deinit(&result);
	memory_free(variants);
	bench->n_measured += !r;
	return r;
}

static int measure_synthetic(struct bench *bench)
{
	int r = 0;

	for (unsigned i = 0; i < bench_n_synthetics && !r; i++) {
		struct bench_data data;

		if (!has_part(&bench->data, bench_synthetics[i].name))
			continue;
		r = bench_data_synthetic(&data, &bench_synthetics[i], bench->synthetic_bytes);
		if (r)
			break;
		r = measure(bench, &data);
		bench_data_deinit(&data);
	}
	return r;
}

/* One set of a model; nothing if it has no such tensors. */
static int measure_cast(struct bench *bench, struct bench_model *model, uint32_t dtype,
			enum bench_cast cast)
{
	char name[sizeof(((struct bench_data *)NULL)->name)];
	struct bench_data data;
	int r;

	bench_model_data_name(model, dtype, cast, name, sizeof(name));
	if (!has_part(&bench->data, name))
		return 0;
	r = bench_model_data(model, dtype, cast, bench->model_bytes, &data);
	if (!r && data.n_pages)
		r = measure(bench, &data);
	if (!r)
		bench_data_deinit(&data);
	return r;
}

static int measure_model(struct bench *bench, struct bench_model *model)
{
	static const uint32_t dtypes[] = { DCMEM_BF16,	  DCMEM_F16,	 DCMEM_F32,
					   DCMEM_F8_E4M3, DCMEM_F8_E5M2, DCMEM_I8 };
	int r = 0;

	for (unsigned i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]) && !r; i++)
		r = measure_cast(bench, model, dtypes[i], BENCH_AS_IS);
	if (!r)
		r = measure_cast(bench, model, DCMEM_I8, BENCH_PER_TENSOR);
	if (!r)
		r = measure_cast(bench, model, DCMEM_I8, BENCH_PER_CHANNEL);
	return r;
}

static int measure_all(struct bench *bench, struct bench_model *const *models, unsigned n_models,
		       FILE *json)
{
	int r, ended;

	bench_report_begin(&bench->report, &bench->options, bench->variants, bench->n_variants,
			   bench->quick, json);
	r = measure_synthetic(bench);
	for (unsigned i = 0; i < n_models && !r; i++)
		r = measure_model(bench, models[i]);
	if (!r && bench->n_measured == 0)
		r = message_set(-ENOENT, "no data is named so");
	/* What was measured before a failure, or before Ctrl-C, is worth having. */
	ended = bench_report_end(&bench->report, r == 0);
	bench_report_deinit(&bench->report);
	return r ? r : ended;
}

/* Opens what can fail first: not after a quarter of an hour. */
static int open_and_measure(struct bench *bench, char **paths, unsigned n_paths)
{
	struct bench_model **models = memory_zalloc((n_paths + 1) * sizeof(struct bench_model *));
	FILE *json = NULL;
	int r = models ? 0 : -ENOMEM;

	for (unsigned i = 0; i < n_paths && !r; i++)
		r = bench_model_open(&models[i], paths[i]);
	if (!r && bench->json_path) {
		json = fopen(bench->json_path, "we");
		if (!json)
			r = message_set(-errno, "cannot write %s: %s", bench->json_path,
					strerror(errno));
	}
	if (!r)
		r = measure_all(bench, models, n_paths, json);
	if (json && (ferror(json) | fclose(json)) && !r)
		r = message_set(-EIO, "cannot write %s", bench->json_path);
	for (unsigned i = 0; models && i < n_paths; i++)
		bench_model_free(models[i]);
	memory_free(models);
	return r;
}

static int parse_number(const char *text, unsigned long max, unsigned long *ret_number)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (*end || end == text || *text == '-' || n < 1 || n > max)
		return -1;
	*ret_number = n;
	return 0;
}

static int parse(struct bench *bench, int argc, char **argv)
{
	static const struct option long_options[] = {
		{ "json", required_argument, NULL, 'J' }, { "quick", no_argument, NULL, 'Q' },
		{ "codec", required_argument, NULL, 'c' }, { "data", required_argument, NULL, 'd' },
		{ "kind", required_argument, NULL, 'k' }, { "mib", required_argument, NULL, 'm' },
		{ "effort", required_argument, NULL, 'e' }, { "quiet", no_argument, NULL, 'q' },
		{ "cpu-time", no_argument, NULL, 't' },
		{ "help", no_argument, NULL, 'h' },	   { 0 },
	};
	int c, r = 0;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "h", long_options, NULL)) != -1 && !r) {
		switch (c) {
		case 'J':
			bench->json_path = optarg;
			break;
		case 'Q':
			bench->quick = true;
			break;
		case 'c':
			r = add_word(&bench->codecs, optarg);
			break;
		case 'd':
			r = add_word(&bench->data, optarg);
			break;
		case 'k':
			r = add_word(&bench->kinds, optarg);
			break;
		case 'm':
			r = parse_number(optarg, 1UL << 20, &bench->mib);
			break;
		case 'e':
			r = parse_number(optarg, 9, &bench->effort);
			break;
		case 't':
			bench->options.cpu_time = true;
			break;
		case 'q':
			bench->quiet = true;
			break;
		case 'h':
			return -1;
		default:
			return verb_usage("bench", "unknown option, or one without its value: %s",
					  argv[optind - 1]);
		}
	}
	if (r)
		return verb_usage("bench", "not a value for this option: %s", argv[optind - 1]);
	if (optind >= argc || strcmp(argv[optind], "codec") != 0)
		return verb_usage("bench", "what shall be measured? there are codec, load, memory and tune");
	for (unsigned i = 0; i < bench->kinds.n; i++)
		if (strcmp(bench->kinds.word[i], "dram") != 0 &&
		    strcmp(bench->kinds.word[i], "scratch") != 0 &&
		    strcmp(bench->kinds.word[i], "cores") != 0)
			return verb_usage("bench", "--kind takes dram, scratch or cores");
	return VERB_OK;
}

static int verb_bench_codec(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = stop };
	struct bench *bench = memory_zalloc(sizeof(*bench));
	int r;

	if (!bench)
		return verb_failure("bench", -ENOMEM, NULL);
	bench->effort = 1;
	r = parse(bench, argc, argv);
	if (r == VERB_OK)
		r = choose_coders(bench);
	if (r) {
		memory_free(bench);
		return r < 0 ? help() : r;
	}
	bench_machine_init(&bench->machine);
	bench->options.machine = &bench->machine;
	bench->options.cancel = &stopped;
	bench->options.progress = show_progress;
	bench->options.user = &bench->progress;
	for (unsigned k = 0; k < BENCH_N_KINDS; k++)
		bench->options.kinds[k] =
			has_word(&bench->kinds, bench_kind_name((enum bench_kind)k));
	choose_sizes(bench);
	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	r = open_and_measure(bench, argv + optind + 1, (unsigned)(argc - optind - 1));
	memory_free(bench);
	if (r)
		return verb_failure("bench", r, message_get());
	return verb_flush("bench");
}

int verb_bench(int argc, char **argv)
{
	if (argc > 1 && strcmp(argv[1], "tune") == 0)
		return bench_tune(argc - 1, argv + 1);
	if (argc > 1 && strcmp(argv[1], "load") == 0)
		return verb_bench_load(argc - 1, argv + 1);
	if (argc > 1 && strcmp(argv[1], "memory") == 0)
		return verb_bench_memory(argc - 1, argv + 1);
	if (argc > 1 && strcmp(argv[1], "serve") == 0)
		return verb_bench_serve(argc - 1, argv + 1);
	return verb_bench_codec(argc, argv);
}
