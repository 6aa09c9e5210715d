/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Speed, next to the two ceilings of the machine measured in the same run: how fast all threads
 * read memory beyond the caches, and how fast they multiply and add in registers. Every sequence of
 * the batch decodes a token a step; tokens are arbitrary, since no product depends on them.
 */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "transformer.h"

#define SWEEP_BYTES  (512ULL << 20) /* beyond the caches */
#define SWEEP_PIECE  (1ULL << 20)
#define SWEEP_ROUNDS 3
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

/* Bytes a second (the best of some sweeps) and floating point operations a second. */
static int measure_ceilings(const struct engine *engine, double *ret_bandwidth, double *ret_flops)
{
	_cleanup_(cleanup_array) struct ceiling *ceiling = array_new(1, sizeof(*ceiling));
	_cleanup_(cleanup_array) uint8_t *data = array_new(SWEEP_BYTES, 1);
	unsigned int n_threads = threads_count(engine->threads);
	double best = 0, start, operations = 0;

	if (!ceiling || !data)
		return error_set(-ENOMEM, "no memory to measure bandwidth");
	memset(data, 1, SWEEP_BYTES);
	ceiling->kernel = engine->kernel;
	ceiling->data = data;
	for (int i = 0; i < SWEEP_ROUNDS; i++) {
		double rate;

		start = seconds_now();
		threads_run(engine->threads, SWEEP_BYTES / SWEEP_PIECE, sweep_job, ceiling);
		rate = (double)SWEEP_BYTES / (seconds_now() - start);
		best = rate > best ? rate : best;
	}
	start = seconds_now();
	threads_run(engine->threads, n_threads, peak_job, ceiling);
	for (unsigned int i = 0; i < n_threads; i++)
		operations += ceiling->operations[i];
	*ret_flops = operations / (seconds_now() - start);
	*ret_bandwidth = best;
	return 0;
}

static int steps(struct session *session, struct transformer *transformer,
		 const struct options *options, double *ret_seconds)
{
	struct token_at tokens[MATRIX_MAX_BATCH];
	const float *logits;
	double start = 0;

	for (uint32_t i = 0; i <= options->tokens; i++) {
		int r;

		if (i == 1) { /* the first step touched everything */
			start = seconds_now();
			session->engine.n_weight_bytes = 0;
			session->engine.wait_seconds = 0;
		}
		for (uint32_t s = 0; s < options->batch; s++)
			tokens[s] = (struct token_at){
				(s * 7919U + i * 104729U) % session->config.n_vocab, s, i};
		r = transformer_feed(transformer, tokens, options->batch, options->batch, &logits);
		if (r != 0)
			return r;
	}
	*ret_seconds = seconds_now() - start;
	return 0;
}

/* Parameters of all products of one step, from the bytes and types that were read. */
static int report(const struct session *session, const struct options *options, double seconds,
		  double bandwidth, double flops, double parameters)
{
	double n_steps = options->tokens, rate = n_steps * options->batch / seconds;
	double step_bytes = (double)session->engine.n_weight_bytes / n_steps;
	double effective = (double)session->engine.n_weight_bytes / seconds;
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
	       100 * session->engine.wait_seconds / seconds);
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
	struct transformer *transformer = NULL;
	double bandwidth = 0, flops = 0, seconds = 0;
	struct session session;
	int r;

	if (options->batch == 0 || options->batch > MATRIX_MAX_BATCH || options->tokens == 0)
		return error_set(-EINVAL, "--tokens must be at least 1, --batch 1 to %d",
				 MATRIX_MAX_BATCH);
	r = session_open(options, &session);
	if (r != 0)
		return r;
	r = measure_ceilings(&session.engine, &bandwidth, &flops);
	if (r == 0)
		r = transformer_new(&session.engine, &session.config, options->batch,
				    options->tokens + 1, &transformer);
	if (r == 0)
		r = steps(&session, transformer, options, &seconds);
	if (r == 0)
		r = report(&session, options, seconds, bandwidth, flops,
			   count_parameters(&session.config));
	transformer_free(transformer);
	session_close(&session);
	return r;
}
