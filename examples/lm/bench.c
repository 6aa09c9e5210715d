/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Speed, next to the two ceilings of the machine measured in the same run: how fast all threads
 * read memory beyond the caches (between the steps, since a shared machine changes by the second),
 * and how fast they multiply and add in registers. Every sequence of the batch decodes a token a
 * step; tokens are arbitrary, since no product depends on them. Medians of steps and of sweeps.
 */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "transformer.h"

#define SWEEP_BYTES  (512ULL << 20) /* beyond the caches */
#define SWEEP_PIECE  (1ULL << 20)
#define SWEEP_ROUNDS 9
#define PEAK_ROUNDS  20000000ULL

struct ceiling {
	const struct kernel *kernel;
	const uint8_t *data;
	double operations[256];
	uint64_t sums[SWEEP_BYTES / SWEEP_PIECE];
	float values[256];
};

static void sweep_job(void *data, size_t i)
{
	struct ceiling *ceiling = data;

	ceiling->sums[i] = ceiling->kernel->sweep(ceiling->data + i * SWEEP_PIECE, SWEEP_PIECE);
}

static void peak_job(void *data, size_t i)
{
	struct ceiling *ceiling = data;

	ceiling->operations[i] = ceiling->kernel->peak(PEAK_ROUNDS, &ceiling->values[i]);
}

struct figures {
	double step_seconds;   /* median */
	double total_seconds;  /* of all steps */
	double bandwidth;      /* bytes a second, median */
	double flops;	       /* floating point operations a second */
};

static int compare_doubles(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double median(double *values, size_t n)
{
	qsort(values, n, sizeof(*values), compare_doubles);
	return values[n / 2];
}

static double sweep_rate(const struct engine *engine, struct ceiling *ceiling)
{
	double start = seconds_now();

	threads_run(engine->threads, SWEEP_BYTES / SWEEP_PIECE, sweep_job, ceiling);
	return (double)SWEEP_BYTES / (seconds_now() - start);
}

static double peak_rate(const struct engine *engine, struct ceiling *ceiling)
{
	unsigned int n_threads = threads_count(engine->threads);
	double operations = 0, start = seconds_now();

	threads_run(engine->threads, n_threads, peak_job, ceiling);
	for (unsigned int i = 0; i < n_threads; i++)
		operations += ceiling->operations[i];
	return operations / (seconds_now() - start);
}

/* The steps, with a sweep after every so many of them. */
static int steps(struct session *session, struct transformer *transformer,
		 const struct options *options, struct ceiling *ceiling, struct figures *figures)
{
	_cleanup_(cleanup_array) double *seconds = array_new(options->tokens, sizeof(double));
	struct token_at tokens[MATRIX_MAX_BATCH];
	double rates[SWEEP_ROUNDS];
	size_t n_rates = 0;
	const float *logits;

	if (!seconds)
		return error_set(-ENOMEM, "no memory for %u steps", options->tokens);
	figures->total_seconds = 0;
	for (uint32_t i = 0; i <= options->tokens; i++) {
		double start = seconds_now();
		int r;

		for (uint32_t s = 0; s < options->batch; s++)
			tokens[s] = (struct token_at){
				(s * 7919U + i * 104729U) % session->config.n_vocab, s, i};
		r = transformer_feed(transformer, tokens, options->batch, options->batch, &logits);
		if (r != 0)
			return r;
		if (i == 0) { /* the first step touched everything */
			session->engine.n_weight_bytes = 0;
			session->engine.wait_seconds = 0;
		} else {
			seconds[i - 1] = seconds_now() - start;
			figures->total_seconds += seconds[i - 1];
		}
		while (n_rates < SWEEP_ROUNDS && n_rates * options->tokens <= i * (SWEEP_ROUNDS - 1U))
			rates[n_rates++] = sweep_rate(&session->engine, ceiling);
	}
	figures->step_seconds = median(seconds, options->tokens);
	figures->bandwidth = median(rates, n_rates);
	return 0;
}

static int measure(struct session *session, const struct options *options, struct figures *figures)
{
	_cleanup_(cleanup_array) struct ceiling *ceiling = array_new(1, sizeof(*ceiling));
	_cleanup_(cleanup_array) uint8_t *data = array_new(SWEEP_BYTES, 1);
	struct transformer *transformer = NULL;
	int r;

	if (!ceiling || !data)
		return error_set(-ENOMEM, "no memory to measure bandwidth");
	memset(data, 1, SWEEP_BYTES);
	ceiling->kernel = session->engine.kernel;
	ceiling->data = data;
	figures->flops = peak_rate(&session->engine, ceiling);
	r = transformer_new(&session->engine, &session->config, options->batch, options->tokens + 1,
			    &transformer);
	if (r == 0)
		r = steps(session, transformer, options, ceiling, figures);
	transformer_free(transformer);
	return r;
}

/* Parameters of all products of one step, from the bytes and types that were read. */
static int report(const struct session *session, const struct options *options,
		  const struct figures *figures, double parameters)
{
	double rate = options->batch / figures->step_seconds;
	double step_bytes = (double)session->engine.n_weight_bytes / options->tokens;
	double effective = step_bytes / figures->step_seconds;
	double bandwidth = figures->bandwidth, flops = figures->flops;
	double done = 2 * parameters * rate;
	struct memory_use use;
	json_t *root;
	int r = 0;

	memory_use_read(&use);
	printf("source %s, kernel %s, %u threads, batch %u\n", session->engine.weights->source->name,
	       session->engine.kernel->name, threads_count(session->engine.threads),
	       options->batch);
	printf("tokens/s            %12.1f\n", rate);
	printf("weight bytes/step   %12.0f\n", step_bytes);
	printf("weights read        %12.2f GB/s, %.2f of the %.2f GB/s that this machine reads\n",
	       effective * 1e-9, effective / bandwidth, bandwidth * 1e-9);
	printf("multiply-adds       %12.2f GFLOP/s, %.2f of the %.2f of its registers\n",
	       done * 1e-9, done / flops, flops * 1e-9);
	printf("waiting for weights %12.2f %% of the time\n",
	       100 * session->engine.wait_seconds / figures->total_seconds);
	if (!options->json)
		return 0;
	root = json_pack("{ss ss si si si sf sf sf sf sf sf sf sI sI sI}", "source",
			 session->engine.weights->source->name, "kernel",
			 session->engine.kernel->name, "threads",
			 (int)threads_count(session->engine.threads), "batch", (int)options->batch,
			 "steps", (int)options->tokens, "tokens_per_second", rate,
			 "weight_bytes_per_step", step_bytes, "weight_bytes_per_second", effective,
			 "read_bandwidth_bytes_per_second", bandwidth, "flops_per_second", done,
			 "peak_flops_per_second", flops, "acquire_seconds",
			 session->engine.wait_seconds, "rss_bytes", (json_int_t)use.rss,
			 "pss_bytes", (json_int_t)use.pss, "anonymous_bytes",
			 (json_int_t)use.anonymous);
	if (!root || json_dump_file(root, options->json, JSON_INDENT(2)) != 0)
		r = error_set(-EIO, "cannot write %s", options->json);
	json_decref(root);
	return r;
}

static double count_parameters(const struct config *config)
{
	double hidden = config->n_hidden, inner = config->n_inner;
	double attention = hidden * config->n_head_dim * 2.0 * (config->n_heads + config->n_kv_heads);
	double mlp = hidden * inner * (config->arch == CONFIG_LLAMA ? 3 : 2);

	return config->n_layers * (attention + mlp) + hidden * config->n_vocab;
}

int verb_bench(const struct options *options)
{
	struct figures figures = {0};
	struct session session;
	int r;

	if (options->batch == 0 || options->batch > MATRIX_MAX_BATCH || options->tokens == 0)
		return error_set(-EINVAL, "--tokens must be at least 1, --batch 1 to %d",
				 MATRIX_MAX_BATCH);
	r = session_open(options, &session);
	if (r != 0)
		return r;
	r = measure(&session, options, &figures);
	if (r == 0)
		r = report(&session, options, &figures, count_parameters(&session.config));
	session_close(&session);
	return r;
}
