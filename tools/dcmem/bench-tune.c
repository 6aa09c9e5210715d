/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `dcmem bench tune`: the same phases of load under the tuner and under plans that never change. A
 * static plan must fit the smallest budget of the phases, as it would have to in life. Throughput is
 * what readers summed, each byte of it. Owns the daemon and the readers of the run.
 */
#include "bench-tune.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/message.h"
#include "base/parallel.h"
#include "base/range.h"
#include "bench-modes.h"
#include "generate.h"
#include "json-out.h"
#include "progress.h"
#include "table.h"
#include "verb.h"

#define MIB (1ULL << 20)
#define N_READERS 4

struct phase {
	const char *name;
	unsigned n_readers;
	enum reader_mode mode;
	bool neighbour;
	double budget; /* of the decoded model */
};

static const struct phase phases[] = {
	{"idle", 0, READER_IDLE, false, 1.25},
	{"one sweeps", 1, READER_SWEEP, false, 1.25},
	{"four sweep", 4, READER_SWEEP, false, 1.25},
	{"random tenth", 1, READER_RANDOM, false, 1.25},
	{"beside memcpy", 1, READER_SWEEP, true, 1.25},
	{"budget halved", 1, READER_SWEEP, false, 0.625},
	{"budget restored", 1, READER_SWEEP, false, 1.25},
};
#define N_PHASES (sizeof(phases) / sizeof(phases[0]))

struct plan {
	const char *name, *pin; /* NULL: as the tuner finds it */
	bool frozen;		/* ... at the smallest budget, and then for good */
};

static const struct plan plans[] = {
	{"tuned", NULL, false},	   {"all raw", "raw", true},	 {"all fast", "fast", true},
	{"all work", "work", true}, {"all dense", "dense", true}, {"best mixed", NULL, true},
};
#define N_PLANS (sizeof(plans) / sizeof(plans[0]))

struct result {
	bool fits;
	double gbs[N_PHASES];
	uint64_t changes[N_PHASES], held[N_PHASES];
	double waited[N_PHASES], settled_s[N_PHASES]; /* from the phase's start to its last change */
};

struct tune_bench {
	const char *container, *daemon_path, *json_path;
	char model[1100];
	double seconds;
	uint64_t mib, raw_bytes;
	bool quick, quiet;
	struct bench_host host;
	struct reader readers[N_READERS], neighbour;
	struct progress progress;
	unsigned n_done;
	struct result results[N_PLANS];
};

static const char help[] =
	"Usage: dcmem bench tune [CONTAINER] [OPTIONS]\n\n"
	"Puts the same phases of load on a daemon that tunes and on plans that never change: idle,\n"
	"one and four sweeping readers, random access to a tenth, a neighbour that copies memory, half\n"
	"the budget, and all of it again. Readers sum every byte. Without CONTAINER, a model of 1 GiB\n"
	"INT8 at a ratio of 2.2 is made up.\n\n"
	"  --json FILE      also write one JSON document\n"
	"  --seconds S      each phase (default 15)\n"
	"  --mib N          size of the model that is made up (1024)\n"
	"  --quick          phases of 3 seconds, a model of 96 MiB; marked so in the output\n"
	"  --dcmemd PATH    the daemon to measure\n"
	"  --quiet          no progress bar\n\n"
	"SCORE is the geometric mean over phases of throughput against the best static plan of each.\n\n"
	"Exit codes: 0 done, 1 failed, 2 wrong usage.\n";

static int parse(struct tune_bench *bench, int argc, char **argv)
{
	static const struct option long_options[] = {
		{"json", required_argument, NULL, 'J'},	  {"seconds", required_argument, NULL, 's'},
		{"mib", required_argument, NULL, 'm'},	  {"quick", no_argument, NULL, 'Q'},
		{"dcmemd", required_argument, NULL, 'd'}, {"quiet", no_argument, NULL, 'q'},
		{"help", no_argument, NULL, 'h'},	  {0},
	};
	char *end;
	int c;

	*bench = (struct tune_bench){.seconds = 15, .mib = 1024};
	opterr = 0;
	optind = 1;
	while ((c = getopt_long(argc, argv, "h", long_options, NULL)) != -1) {
		switch (c) {
		case 'J':
			bench->json_path = optarg;
			break;
		case 's':
			bench->seconds = strtod(optarg, &end);
			if (*end || !(bench->seconds >= 1 && bench->seconds <= 3600))
				return verb_usage("bench", "--seconds takes 1 to 3600");
			break;
		case 'm':
			bench->mib = strtoul(optarg, &end, 10);
			if (*end || bench->mib < 64 || bench->mib > 1U << 20)
				return verb_usage("bench", "--mib takes 64 to 1048576");
			break;
		case 'Q':
			bench->quick = true;
			bench->seconds = 3;
			bench->mib = 96;
			break;
		case 'd':
			bench->daemon_path = optarg;
			break;
		case 'q':
			bench->quiet = true;
			break;
		case 'h':
			printf("%s", help);
			return verb_flush("bench");
		default:
			return verb_usage("bench", "unknown option, or one without its value: %s",
					  argv[optind - 1]);
		}
	}
	if (argc - optind > 1)
		return verb_usage("bench", "one container, please");
	bench->container = optind < argc ? argv[optind] : NULL;
	return -1;
}

static void draw(void *data, uint64_t done, uint64_t total)
{
	progress_update(data, done, total);
}

/* Matrices of a 1 B model, and no more embedding than that: every tensor can be tuned. */
static int make_model(struct tune_bench *bench)
{
	struct generate_options options = {.shape = "llama-1b", .bits = 3.5, .n_shards = 1, .seed = 1,
					   .n_vocab = 2048};
	struct generate_run run = {.n_jobs = parallel_cpu_count(), .cancel = &bench_host_stopped,
				   .progress = draw, .data = &bench->progress};
	struct generate_model model;
	int r;

	for (;;) {
		options.n_layers++;
		r = generate_model_init(&model, &options);
		if (r)
			return r;
		if (model.n_bytes >= bench->mib * MIB)
			break;
		generate_model_deinit(&model);
	}
	progress_init(&bench->progress, "making a model up", !bench->quiet);
	r = generate_container(&model, bench->model, &run);
	progress_end(&bench->progress);
	generate_model_deinit(&model);
	return r;
}

static int find_model(struct tune_bench *bench)
{
	char *full;

	if (!bench->container) {
		bench_host_path(&bench->host, "m.dcmem", bench->model);
		return make_model(bench);
	}
	full = realpath(bench->container, NULL);
	if (!full || strlen(full) >= sizeof(bench->model)) {
		free(full);
		return message_set(-ENOENT, "%s: no container", bench->container);
	}
	(void)snprintf(bench->model, sizeof(bench->model), "%s", full);
	free(full);
	bench->mib = bench_file_bytes(bench->model) * 4 / MIB; /* the first budget; more than raw */
	return 0;
}

/* One command in JSON; *ret_reply may be NULL. */
static int command(const struct tune_bench *bench, const char *text, json_t **ret_reply)
{
	return bench_host_request(&bench->host, json_loads(text, 0, NULL), ret_reply);
}

static void sleep_seconds(double seconds)
{
	(void)usleep((useconds_t)(seconds * 1e6));
}

static int set_budget(struct tune_bench *bench, double share)
{
	char text[120];

	(void)snprintf(text, sizeof(text), "{\"cmd\":\"tune\",\"budget\":%llu}",
		       (unsigned long long)(share * (double)bench->raw_bytes));
	return command(bench, text, NULL);
}

static uint64_t bytes_read(const struct tune_bench *bench)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < N_READERS; i++)
		sum += reader_bytes(&bench->readers[i]);
	return sum;
}

static void set_readers(const struct tune_bench *bench, const struct phase *phase)
{
	for (unsigned i = 0; i < N_READERS; i++) {
		bench->readers[i].control->part = 0.1;
		reader_set(&bench->readers[i], i < phase->n_readers ? phase->mode : READER_IDLE);
	}
	reader_set(&bench->neighbour, phase->neighbour ? READER_NEIGHBOUR : READER_IDLE);
}

/* Changes so far, and how long ago the last of them was. */
static int look(const struct tune_bench *bench, uint64_t *ret_changes, double *ret_last,
		double *ret_waited)
{
	json_t *reply, *history;
	int r = command(bench, "{\"cmd\":\"tune\"}", &reply);

	if (r)
		return r;
	history = json_object_get(reply, "history");
	*ret_changes = (uint64_t)json_integer_value(json_object_get(reply, "changes"));
	*ret_waited = json_number_value(json_object_get(reply, "waited"));
	*ret_last = json_array_size(history) ? json_number_value(json_object_get(
						       json_array_get(history, 0), "seconds_ago"))
					     : 1e9;
	json_decref(reply);
	return 0;
}

static int held_bytes(const struct tune_bench *bench, uint64_t *ret_bytes)
{
	json_t *reply;
	int r = command(bench, "{\"cmd\":\"stats\"}", &reply);

	if (r)
		return r;
	*ret_bytes = 0;
	*ret_bytes += (uint64_t)json_integer_value(json_object_get(reply, "compressed_bytes"));
	*ret_bytes += (uint64_t)json_integer_value(json_object_get(reply, "decoded_bytes"));
	json_decref(reply);
	return 0;
}

static int run_phase(struct tune_bench *bench, unsigned p, struct result *result)
{
	uint64_t before, changes = 0, after = 0, start;
	double last, waited, seconds;
	int r = set_budget(bench, phases[p].budget);

	if (!r)
		r = look(bench, &before, &last, &waited);
	if (r)
		return r;
	changes = before;
	start = clock_now_ns();
	after = bytes_read(bench);
	set_readers(bench, &phases[p]);
	sleep_seconds(bench->seconds);
	seconds = (double)(clock_now_ns() - start) * 1e-9;
	result->gbs[p] = (double)(bytes_read(bench) - after) / seconds * 1e-9;
	r = look(bench, &changes, &last, &result->waited[p]);
	result->changes[p] = changes - before;
	result->settled_s[p] = changes > before ? fmax(0, seconds - last) : 0;
	if (!r)
		r = held_bytes(bench, &result->held[p]);
	for (unsigned i = 0; i < N_READERS; i++)
		if (__atomic_load_n(&bench->readers[i].control->failed, __ATOMIC_RELAXED))
			return message_set(-EIO, "a reader failed in phase \"%s\"", phases[p].name);
	progress_steps(&bench->progress, ++bench->n_done, N_PHASES * N_PLANS);
	return r;
}

/* Until nothing changes any more, or it takes too long. */
static int settle(struct tune_bench *bench)
{
	uint64_t end = clock_now_ns() + 120 * NS_PER_S, changes, quiet_since = clock_now_ns(), seen = 0;
	double last, waited;
	int r = 0;

	while (!r && clock_now_ns() < end) {
		r = look(bench, &changes, &last, &waited);
		if (changes != seen)
			quiet_since = clock_now_ns();
		seen = changes;
		if (clock_now_ns() - quiet_since > 3 * NS_PER_S)
			break;
		sleep_seconds(0.1);
	}
	return r;
}

/* What the daemon would need for it in the smallest budget is there, or the plan does not fit. */
static int prepare(struct tune_bench *bench, const struct plan *plan, bool *ret_fits)
{
	const struct phase smallest = {"", 1, READER_SWEEP, false, 0.625};
	uint64_t held = 0;
	char text[120];
	int r = 0;

	*ret_fits = true;
	if (!plan->frozen)
		return command(bench, "{\"cmd\":\"tune\",\"objective\":\"latency\"}", NULL);
	if (plan->pin) {
		(void)snprintf(text, sizeof(text),
			       "{\"cmd\":\"tune\",\"model\":\"m\",\"pin\":\"%s\"}", plan->pin);
		r = command(bench, text, NULL);
	} else {
		r = set_budget(bench, smallest.budget);
		set_readers(bench, &smallest);
	}
	if (!r)
		r = settle(bench);
	if (!r)
		r = command(bench, "{\"cmd\":\"tune\",\"frozen\":true}", NULL);
	set_readers(bench, &phases[0]);
	if (!r)
		r = held_bytes(bench, &held);
	if (!r && plan->pin) {
		json_t *reply;

		r = command(bench, "{\"cmd\":\"stats\"}", &reply);
		if (!r) {
			uint64_t stored = (uint64_t)json_integer_value(
				json_object_get(reply, "compressed_bytes"));

			/* Besides, a window must fit. */
			*ret_fits = (double)stored + 0.02 * (double)bench->raw_bytes <
				    smallest.budget * (double)bench->raw_bytes;
			json_decref(reply);
		}
	}
	return r;
}

static int run_plan(struct tune_bench *bench, unsigned p)
{
	struct result *result = &bench->results[p];
	json_t *reply;
	int r;

	r = bench_host_start(&bench->host, 2 * bench->mib * MIB, "latency", bench->model);
	if (!r)
		r = command(bench, "{\"cmd\":\"stats\"}", &reply);
	if (r)
		return r;
	bench->raw_bytes = (uint64_t)json_integer_value(json_object_get(
		json_array_get(json_object_get(reply, "models"), 0), "decoded_model_bytes"));
	json_decref(reply);
	for (unsigned i = 0; i < N_READERS && !r; i++)
		r = reader_start(&bench->readers[i], &bench->host, (double)i / N_READERS / 2);
	if (!r)
		r = reader_start(&bench->neighbour, &bench->host, 0);
	if (!r)
		r = prepare(bench, &plans[p], &result->fits);
	for (unsigned i = 0; i < N_PHASES && !r && result->fits; i++)
		r = run_phase(bench, i, result);
	if (!result->fits)
		bench->n_done += N_PHASES;
	for (unsigned i = 0; i < N_READERS; i++)
		reader_stop(&bench->readers[i]);
	reader_stop(&bench->neighbour);
	bench_host_stop(&bench->host);
	return r;
}

static double best_static(const struct tune_bench *bench, unsigned phase, unsigned *ret_plan)
{
	double best = 0;

	for (unsigned p = 1; p < N_PLANS; p++) {
		if (!bench->results[p].fits || bench->results[p].gbs[phase] <= best)
			continue;
		best = bench->results[p].gbs[phase];
		*ret_plan = p;
	}
	return best;
}

/* Against the best static plan of each phase; *ret_worst: the least of these ratios. */
static double score(const struct tune_bench *bench, unsigned plan, double *ret_worst)
{
	double sum = 0, worst = INFINITY;
	unsigned n = 0, unused = 0;

	for (unsigned i = 0; i < N_PHASES; i++) {
		double ratio;

		if (!phases[i].n_readers)
			continue;
		ratio = bench->results[plan].gbs[i] / best_static(bench, i, &unused);
		sum += log(ratio);
		worst = fmin(worst, ratio);
		n++;
	}
	*ret_worst = worst;
	return exp(sum / n);
}

static int print_results(const struct tune_bench *bench)
{
	const char *heading[] = {"PHASE", "TUNED", "SETTLED", "CHANGES", "HELD",
				 "RAW", "FAST", "WORK", "DENSE", "MIXED", "RATIO"};
	const char *scores[11] = {"score", "", "", "", "", "", "", "", "", "", ""};
	struct table table;
	char text[N_PLANS][16];
	double worst;
	int r;

	if (bench->quick)
		printf("quick: short phases, a small model; no result to quote\n");
	table_init(&table, 11, "lrrrrrrrrrr");
	r = table_row(&table, heading);
	for (unsigned i = 0; i < N_PHASES && !r; i++) {
		char cells[6][24];
		const char *row[11] = {phases[i].name};
		unsigned best = 0;
		double most = best_static(bench, i, &best);

		for (unsigned p = 0; p < N_PLANS; p++)
			(void)snprintf(text[p], sizeof(text[p]), bench->results[p].fits ? "%.2f" : "-",
				       bench->results[p].gbs[i]);
		(void)snprintf(cells[0], 24, "%.1f s", bench->results[0].settled_s[i]);
		(void)snprintf(cells[1], 24, "%llu", (unsigned long long)bench->results[0].changes[i]);
		(void)snprintf(cells[3], 24, most > 0 ? "%.2f" : "-",
			       bench->results[0].gbs[i] / (most > 0 ? most : 1));
		row[1] = text[0];
		row[2] = cells[0];
		row[3] = cells[1];
		row[4] = table_bytes(bench->results[0].held[i], cells[2]);
		for (unsigned p = 1; p < N_PLANS; p++)
			row[4 + p] = text[p];
		row[10] = cells[3];
		r = table_row(&table, row);
	}
	for (unsigned p = 0; p < N_PLANS; p++) {
		(void)snprintf(text[p], sizeof(text[p]), bench->results[p].fits ? "%.2f" : "-",
			       bench->results[p].fits ? score(bench, p, &worst) : 0.0);
		scores[p ? 4 + p : 1] = text[p];
	}
	if (!r)
		r = table_row(&table, scores);
	if (!r) {
		printf("GB/s that readers summed; model %.0f MiB raw; budget 1.25 of that, 0.62 halved\n",
		       (double)bench->raw_bytes / (double)MIB);
		table_print(&table, stdout);
		(void)score(bench, 0, &worst);
		printf("worst phase: %.2f of the best static plan there\n", worst);
	}
	table_deinit(&table);
	return r;
}

static int write_json(const struct tune_bench *bench)
{
	struct json_out out;
	double worst;
	FILE *file = fopen(bench->json_path, "we");

	if (!file)
		return message_set(-errno, "cannot write %s: %s", bench->json_path, strerror(errno));
	json_out_init(&out, file);
	json_out_object(&out, NULL);
	json_out_bool(&out, "quick", bench->quick);
	json_out_double(&out, "seconds", bench->seconds);
	json_out_u64(&out, "raw_bytes", bench->raw_bytes);
	json_out_array(&out, "plans");
	for (unsigned p = 0; p < N_PLANS; p++) {
		const struct result *result = &bench->results[p];

		json_out_object(&out, NULL);
		json_out_string(&out, "plan", plans[p].name);
		json_out_bool(&out, "fits", result->fits);
		if (result->fits) {
			json_out_double(&out, "score", score(bench, p, &worst));
			json_out_double(&out, "worst", worst);
		}
		json_out_array(&out, "phases");
		for (unsigned i = 0; i < N_PHASES && result->fits; i++) {
			json_out_object(&out, NULL);
			json_out_string(&out, "phase", phases[i].name);
			json_out_double(&out, "gbs", result->gbs[i]);
			json_out_u64(&out, "changes", result->changes[i]);
			json_out_double(&out, "settled_s", result->settled_s[i]);
			json_out_u64(&out, "held_bytes", result->held[i]);
			json_out_double(&out, "waited", result->waited[i]);
			json_out_end(&out, '}');
		}
		json_out_end(&out, ']');
		json_out_end(&out, '}');
	}
	json_out_end(&out, ']');
	json_out_end(&out, '}');
	if (ferror(file) | fclose(file))
		return message_set(-EIO, "cannot write %s", bench->json_path);
	return 0;
}

int bench_tune(int argc, char **argv)
{
	static struct tune_bench bench;
	int r = parse(&bench, argc, argv);

	if (r >= 0)
		return r;
	r = bench_host_init(&bench.host, NULL, bench.daemon_path);
	if (!r)
		r = find_model(&bench);
	progress_init(&bench.progress, "phases", !bench.quiet);
	for (unsigned p = 0; p < N_PLANS && !r; p++)
		r = atomic_load(&bench_host_stopped) ? message_set(-EINTR, "stopped by a signal")
						     : run_plan(&bench, p);
	progress_end(&bench.progress);
	bench_host_deinit(&bench.host);
	if (!r)
		r = print_results(&bench);
	if (!r && bench.json_path)
		r = write_json(&bench);
	return r ? verb_failure("bench", r, message_get()) : verb_flush("bench");
}
