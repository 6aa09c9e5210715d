/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Text from a prompt: the prompt goes in as large batches, then a token at a time. With --batch B
 * the same prompt is continued B times side by side (each with its own random numbers); the first
 * one is printed.
 */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "sampler.h"
#include "transformer.h"

struct run {
	struct session session;
	struct tokenizer *tokenizer;
	struct transformer *transformer;
	uint32_t *prompt;
	size_t n_prompt;
	uint32_t n_generated; /* of each sequence */
	double prompt_seconds, token_seconds;
};

/* Feeds the prompt to every sequence and picks the first token of each. */
static int feed_prompt(struct run *run, const struct options *options, struct sampler *samplers,
		       uint32_t *next)
{
	double start = seconds_now();

	for (uint32_t s = 0; s < options->batch; s++) {
		const float *logits = NULL;

		for (size_t at = 0; at < run->n_prompt; at += MATRIX_MAX_BATCH) {
			struct token_at tokens[MATRIX_MAX_BATCH];
			size_t n = run->n_prompt - at;
			int r;

			n = n < MATRIX_MAX_BATCH ? n : MATRIX_MAX_BATCH;
			for (size_t i = 0; i < n; i++)
				tokens[i] = (struct token_at){run->prompt[at + i], s,
							      (uint32_t)(at + i)};
			r = transformer_feed(run->transformer, tokens, n,
					     at + n == run->n_prompt ? 1 : 0, &logits);
			if (r != 0)
				return r;
		}
		next[s] = sampler_pick(&samplers[s], logits, run->session.config.n_vocab);
	}
	run->prompt_seconds = seconds_now() - start;
	return 0;
}

static void print_token(const struct run *run, uint32_t token)
{
	size_t n;
	const char *bytes = tokenizer_bytes(run->tokenizer, token, &n);

	(void)fwrite(bytes, 1, n, stdout);
	(void)fflush(stdout);
}

static int generate(struct run *run, const struct options *options)
{
	struct sampler samplers[MATRIX_MAX_BATCH];
	uint32_t next[MATRIX_MAX_BATCH], n_vocab = run->session.config.n_vocab;
	double start;
	int r;

	for (uint32_t s = 0; s < options->batch; s++)
		samplers[s] = (struct sampler){options->temperature, options->seed + s};
	r = feed_prompt(run, options, samplers, next);
	start = seconds_now();
	for (; r == 0 && run->n_generated < options->tokens; run->n_generated++) {
		struct token_at tokens[MATRIX_MAX_BATCH];
		const float *logits;

		if ((int64_t)next[0] == run->session.config.eos)
			break;
		print_token(run, next[0]);
		if (run->n_generated + 1 == options->tokens)
			continue;
		for (uint32_t s = 0; s < options->batch; s++)
			tokens[s] = (struct token_at){
				next[s], s, (uint32_t)run->n_prompt + run->n_generated};
		r = transformer_feed(run->transformer, tokens, options->batch, options->batch,
				     &logits);
		for (uint32_t s = 0; r == 0 && s < options->batch; s++)
			next[s] = sampler_pick(&samplers[s], logits + (size_t)s * n_vocab, n_vocab);
	}
	run->token_seconds = seconds_now() - start;
	(void)putchar('\n');
	return r;
}

static int report(const struct run *run, const struct options *options)
{
	/* The first token comes out of the prompt, so one step fewer was timed. */
	double n_steps = run->n_generated > 1 ? run->n_generated - 1 : 0;
	double rate = run->token_seconds > 0 ? n_steps * options->batch / run->token_seconds : 0;
	double prompt_rate = (double)run->n_prompt * options->batch / run->prompt_seconds;
	struct memory_use use;
	json_t *root;
	int r = 0;

	memory_use_read(&use);
	(void)fprintf(stderr,
		      "%u tokens, %.1f tokens/s (prompt of %zu: %.1f tokens/s), %s kernel, "
		      "%u threads, memory %.1f MiB resident, %.1f MiB of it private\n",
		      run->n_generated * options->batch, rate, run->n_prompt, prompt_rate,
		      run->session.engine.kernel->name, threads_count(run->session.engine.threads),
		      (double)use.rss / 0x1p20, (double)use.anonymous / 0x1p20);
	if (!options->stats_json)
		return 0;
	root = json_pack("{sI sf sI sf ss si sI sI sI sf}", "tokens",
			 (json_int_t)run->n_generated * options->batch, "tokens_per_second", rate,
			 "prompt_tokens", (json_int_t)run->n_prompt, "prompt_tokens_per_second",
			 prompt_rate, "kernel", run->session.engine.kernel->name, "threads",
			 (int)threads_count(run->session.engine.threads), "rss_bytes",
			 (json_int_t)use.rss, "pss_bytes", (json_int_t)use.pss, "anonymous_bytes",
			 (json_int_t)use.anonymous, "acquire_seconds",
			 run->session.engine.wait_seconds);
	if (!root || json_dump_file(root, options->stats_json, JSON_INDENT(2)) != 0)
		r = error_set(-EIO, "cannot write %s", options->stats_json);
	json_decref(root);
	return r;
}

int verb_generate(const struct options *options)
{
	struct run run = {0};
	uint64_t n_positions;
	int r;

	if (!options->prompt)
		return error_set(-EINVAL, "generate needs --prompt TEXT");
	if (options->batch == 0 || options->batch > MATRIX_MAX_BATCH || options->tokens == 0)
		return error_set(-EINVAL, "--tokens must be at least 1, --batch 1 to %d",
				 MATRIX_MAX_BATCH);
	r = session_open(options, &run.session);
	if (r != 0)
		return r;
	r = session_tokenizer(&run.session, &run.tokenizer);
	if (r == 0)
		r = tokenizer_encode(run.tokenizer, options->prompt, strlen(options->prompt),
				     &run.prompt, &run.n_prompt);
	if (r == 0 && run.n_prompt == 0)
		r = error_set(-EINVAL, "the prompt is empty");
	n_positions = (uint64_t)run.n_prompt + options->tokens;
	if (r == 0 && n_positions > run.session.config.n_positions)
		r = error_set(-EINVAL, "%zu tokens of prompt and %u more; the model has %u "
			      "positions", run.n_prompt, options->tokens,
			      run.session.config.n_positions);
	if (r == 0)
		r = transformer_new(&run.session.engine, &run.session.config, options->batch,
				    (uint32_t)n_positions, &run.transformer);
	if (r == 0) {
		(void)fputs(options->prompt, stdout);
		r = generate(&run, options);
	}
	if (r == 0)
		r = report(&run, options);
	transformer_free(run.transformer);
	array_free(run.prompt);
	tokenizer_free(run.tokenizer);
	session_close(&run.session);
	return r;
}
