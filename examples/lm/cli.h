/* SPDX-License-Identifier: Apache-2.0 */
/* What the verbs share: options, and a model opened for use. */
#ifndef LM_CLI_H
#define LM_CLI_H

#include "config.h"
#include "matrix.h"
#include "tokenizer.h"
#include "util.h"

struct options {
	const char *model, *source, *prompt, *ids, *stats_json, *json, *output;
	uint32_t tokens, windows, length, threads, batch;
	uint64_t seed;
	double temperature;
	bool hold, covariance;
};

/* A model, its weights and the threads that work on it. */
struct session {
	struct engine engine;
	struct config config;
};

int session_open(const struct options *options, struct session *ret_session);
void session_close(struct session *session);
int session_tokenizer(struct session *session, struct tokenizer **ret_tokenizer);

/* The first `n` ids of a file, each below `n_vocab`. */
int ids_read(const char *path, size_t n, uint32_t n_vocab, uint16_t **ret_ids);

/* Verbs: 0, or a negative errno with its sentence set. */
int verb_generate(const struct options *options);
int verb_perplexity(const struct options *options);
int verb_calibrate(const struct options *options);
int verb_bench(const struct options *options);

#endif
