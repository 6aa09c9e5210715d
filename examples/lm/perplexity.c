/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Perplexity over windows of a file of token ids (little-endian 16 bit): window i feeds ids
 * [length i, length (i + 1)) and predicts the ones that follow each. Windows share nothing.
 */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"
#include "sampler.h"
#include "transformer.h"

struct losses {
	const float *logits;
	const uint16_t *targets;
	uint32_t n_vocab;
	double values[MATRIX_MAX_BATCH];
};

static void loss_job(void *data, size_t i)
{
	struct losses *losses = data;

	losses->values[i] = sampler_loss(losses->logits + i * losses->n_vocab, losses->n_vocab,
					 losses->targets[i]);
}

int ids_read(const char *path, size_t n, uint32_t n_vocab, uint16_t **ret_ids)
{
	FILE *file = fopen(path, "rbe");
	uint16_t *ids;
	size_t got;

	if (!file)
		return error_set(-errno, "%s: %s", path, strerror(errno));
	ids = array_new(n, sizeof(*ids));
	got = ids ? fread(ids, sizeof(*ids), n, file) : 0;
	(void)fclose(file);
	if (!ids)
		return error_set(-ENOMEM, "no memory for %zu ids", n);
	for (size_t i = 0; i < got; i++) {
		if (ids[i] < n_vocab)
			continue;
		(void)error_set(-EINVAL, "%s: id %u at %zu; the vocabulary has %u", path, ids[i], i,
				n_vocab);
		array_free(ids);
		return -EINVAL;
	}
	if (got < n) {
		array_free(ids);
		return error_set(-ENODATA, "%s has %zu ids; the windows need %zu", path, got, n);
	}
	*ret_ids = ids;
	return 0;
}

static int window_loss(struct session *session, struct transformer *transformer,
		       const uint16_t *ids, uint32_t length, double *ret_mean)
{
	struct losses losses = {.n_vocab = session->config.n_vocab};
	double sum = 0;

	for (uint32_t start = 0; start < length; start += MATRIX_MAX_BATCH) {
		uint32_t n = length - start < MATRIX_MAX_BATCH ? length - start : MATRIX_MAX_BATCH;
		struct token_at tokens[MATRIX_MAX_BATCH];
		int r;

		for (uint32_t i = 0; i < n; i++)
			tokens[i] = (struct token_at){ids[start + i], 0, start + i};
		r = transformer_feed(transformer, tokens, n, n, &losses.logits);
		if (r != 0)
			return r;
		losses.targets = ids + start + 1;
		threads_run(session->engine.threads, n, loss_job, &losses);
		for (uint32_t i = 0; i < n; i++)
			sum += losses.values[i];
	}
	*ret_mean = sum / length;
	return 0;
}

static int run(struct session *session, struct transformer *transformer, const uint16_t *ids,
	       const struct options *options)
{
	double sum = 0, squares = 0, mean, error = 0, start = seconds_now(), loss, n;

	for (uint32_t i = 0; i < options->windows; i++) {
		int r = window_loss(session, transformer, ids + (size_t)i * options->length,
				    options->length, &loss);

		if (r != 0)
			return r;
		sum += loss;
		squares += loss * loss;
	}
	n = options->windows;
	mean = sum / n;
	if (options->windows > 1)
		error = sqrt(fmax(squares - n * mean * mean, 0) / (n - 1) / n);
	printf("windows %u\nlength %u\nnll %.6f\nstandard-error %.6f\ntokens-per-second %.1f\n",
	       options->windows, options->length, mean, error,
	       n * options->length / (seconds_now() - start));
	printf("perplexity %.4f\n", exp(mean));
	return 0;
}

int verb_perplexity(const struct options *options)
{
	_cleanup_(cleanup_transformer) struct transformer *transformer = NULL;
	_cleanup_(cleanup_array) uint16_t *ids = NULL;
	struct session session;
	int r;

	if (!options->ids)
		return error_set(-EINVAL, "perplexity needs --ids FILE.u16");
	if (options->windows == 0 || options->length == 0)
		return error_set(-EINVAL, "--windows and --length must be at least 1");
	r = session_open(options, &session);
	if (r != 0)
		return r;
	r = ids_read(options->ids, (size_t)options->windows * options->length + 1,
		     session.config.n_vocab, &ids);
	if (r == 0)
		r = transformer_new(&session.engine, &session.config, 1, options->length,
				    &transformer);
	if (r == 0)
		r = run(&session, transformer, ids, options);
	transformer = transformer_free(transformer);
	session_close(&session);
	return r;
}
