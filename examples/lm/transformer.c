/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The forward pass of both architectures:
 *
 *   x = embedding                              (OPT: plus a learned position)
 *   for each layer:  x += attention(norm(x));  x += mlp(norm(x))
 *   logits = output matrix * norm(x)           (OPT after-norm: norms follow the sums instead)
 *
 * Weights are acquired matrix by matrix, in this order, and given back (matrix.c); norms and biases
 * are copied once. Tokens and positions are checked here, since they come from files and users.
 */
#include "transformer.h"

#include <math.h>
#include <stdio.h>

#include "util.h"

struct norm {
	float *weight, *bias; /* bias NULL: RMSNorm */
};

struct layer {
	struct norm attention_norm, mlp_norm;
	struct matrix q, k, v, o, gate, up, down; /* gate: Llama alone */
	float *keys, *values; /* [sequence][position][kv head][head_dim] */
};

struct transformer {
	struct engine *engine;
	struct config config;
	uint32_t n_sequences, n_positions, n_q, n_kv; /* n_q, n_kv: columns of q and of k, v */
	struct matrix embedding, positions, output;
	struct norm final_norm;
	struct layer *layers;
	/* activations of a batch */
	float *x, *normed, *q, *k, *v, *attended, *gate, *up, *logits, *scores;
	const struct token_at *tokens;
	struct layer *layer; /* that attend_job() works for */
};

static int norm_open(struct transformer *t, const char *prefix, const char *name, struct norm *norm)
{
	char text[512];
	int r;

	(void)snprintf(text, sizeof(text), "%s%s.weight", prefix, name);
	r = vector_read(t->engine, text, t->config.n_hidden, &norm->weight);
	if (r == 0 && t->config.arch == CONFIG_OPT) {
		(void)snprintf(text, sizeof(text), "%s%s.bias", prefix, name);
		r = vector_read(t->engine, text, t->config.n_hidden, &norm->bias);
	}
	return r;
}

static int open_at(struct transformer *t, const char *prefix, const char *name, uint64_t n_rows,
		   uint64_t n_cols, bool bias, struct matrix *matrix)
{
	char text[480];

	(void)snprintf(text, sizeof(text), "%s%s", prefix, name);
	return matrix_open(t->engine, text, n_rows, n_cols, bias, matrix);
}

static int layer_open(struct transformer *t, const char *prefix, struct layer *layer)
{
	bool opt = t->config.arch == CONFIG_OPT;
	uint64_t hidden = t->config.n_hidden, inner = t->config.n_inner;
	size_t cache;
	int r;

	if ((r = norm_open(t, prefix, opt ? "self_attn_layer_norm" : "input_layernorm",
			   &layer->attention_norm)) ||
	    (r = norm_open(t, prefix, opt ? "final_layer_norm" : "post_attention_layernorm",
			   &layer->mlp_norm)) ||
	    (r = open_at(t, prefix, "self_attn.q_proj", t->n_q, hidden, opt, &layer->q)) ||
	    (r = open_at(t, prefix, "self_attn.k_proj", t->n_kv, hidden, opt, &layer->k)) ||
	    (r = open_at(t, prefix, "self_attn.v_proj", t->n_kv, hidden, opt, &layer->v)) ||
	    (r = open_at(t, prefix, opt ? "self_attn.out_proj" : "self_attn.o_proj", hidden, t->n_q,
			 opt, &layer->o)) ||
	    (r = opt ? 0
		     : open_at(t, prefix, "mlp.gate_proj", inner, hidden, false, &layer->gate)) ||
	    (r = open_at(t, prefix, opt ? "fc1" : "mlp.up_proj", inner, hidden, opt, &layer->up)) ||
	    (r = open_at(t, prefix, opt ? "fc2" : "mlp.down_proj", hidden, inner, opt,
			 &layer->down)))
		return r;
	layer->k.shares_input = layer->v.shares_input = layer->gate.shares_input = true;
	if (__builtin_mul_overflow((size_t)t->n_sequences * t->n_positions, t->n_kv, &cache))
		return error_set(-ENOMEM, "the key-value cache does not fit memory");
	layer->keys = array_new(cache, sizeof(float));
	layer->values = array_new(cache, sizeof(float));
	if (!layer->keys || !layer->values)
		return error_set(-ENOMEM, "no memory for a key-value cache of %u x %u positions",
				 t->n_sequences, t->n_positions);
	return 0;
}

static int open_weights(struct transformer *t)
{
	const struct config *config = &t->config;
	bool opt = config->arch == CONFIG_OPT;
	const char *prefix = opt ? "model.decoder." : "model.";
	int r;

	r = open_at(t, prefix, "embed_tokens", config->n_vocab, config->n_hidden, false,
		    &t->embedding);
	if (r == 0 && opt) /* two rows of padding come before position 0 */
		r = open_at(t, prefix, "embed_positions", (uint64_t)config->n_positions + 2,
			    config->n_hidden, false, &t->positions);
	for (uint32_t i = 0; r == 0 && i < config->n_layers; i++) {
		char text[64];

		(void)snprintf(text, sizeof(text), "%slayers.%u.", prefix, i);
		r = layer_open(t, text, &t->layers[i]);
	}
	if (r == 0 && config->norm_before)
		r = norm_open(t, prefix, opt ? "final_layer_norm" : "norm", &t->final_norm);
	if (r == 0 && !config->tied)
		r = matrix_open(t->engine, "lm_head", config->n_vocab, config->n_hidden, false,
				&t->output);
	return r;
}

int transformer_new(struct engine *engine, const struct config *config, uint32_t n_sequences,
		    uint32_t n_positions, struct transformer **ret_transformer)
{
	struct transformer *t;
	size_t n = MATRIX_MAX_BATCH;
	int r;

	if (n_positions == 0 || n_positions > config->n_positions)
		return error_set(-EINVAL, "%u positions are wanted; the model has %u", n_positions,
				 config->n_positions);
	if (n_sequences == 0)
		return error_set(-EINVAL, "no sequence to run");
	t = array_new(1, sizeof(*t));
	if (!t)
		return error_set(-ENOMEM, "no memory");
	t->engine = engine;
	t->config = *config;
	t->n_sequences = n_sequences;
	t->n_positions = n_positions;
	t->n_q = config->n_heads * config->n_head_dim;
	t->n_kv = config->n_kv_heads * config->n_head_dim;
	t->layers = array_new(config->n_layers, sizeof(*t->layers));
	t->x = array_new(n * config->n_hidden, sizeof(float));
	t->normed = array_new(n * config->n_hidden, sizeof(float));
	t->q = array_new(n * t->n_q, sizeof(float));
	t->k = array_new(n * t->n_kv, sizeof(float));
	t->v = array_new(n * t->n_kv, sizeof(float));
	t->attended = array_new(n * t->n_q, sizeof(float));
	t->gate = array_new(n * config->n_inner, sizeof(float));
	t->up = array_new(n * config->n_inner, sizeof(float));
	t->logits = array_new(n * config->n_vocab, sizeof(float));
	t->scores = array_new(n * config->n_heads * (size_t)n_positions, sizeof(float));
	r = t->layers && t->x && t->normed && t->q && t->k && t->v && t->attended && t->gate &&
			    t->up && t->logits && t->scores
		    ? open_weights(t)
		    : error_set(-ENOMEM, "no memory for activations");
	if (r != 0) {
		transformer_free(t);
		return r;
	}
	*ret_transformer = t;
	return 0;
}

static void norm_close(struct norm *norm)
{
	array_free(norm->weight);
	array_free(norm->bias);
}

struct transformer *transformer_free(struct transformer *t)
{
	if (!t)
		return NULL;
	for (uint32_t i = 0; t->layers && i < t->config.n_layers; i++) {
		struct layer *layer = &t->layers[i];
		struct matrix *all[] = {&layer->q,    &layer->k,  &layer->v,   &layer->o,
					&layer->gate, &layer->up, &layer->down};

		for (size_t j = 0; j < sizeof(all) / sizeof(all[0]); j++)
			matrix_close(t->engine, all[j]);
		norm_close(&layer->attention_norm);
		norm_close(&layer->mlp_norm);
		array_free(layer->keys);
		array_free(layer->values);
	}
	array_free(t->layers);
	matrix_close(t->engine, &t->embedding);
	matrix_close(t->engine, &t->positions);
	matrix_close(t->engine, &t->output);
	norm_close(&t->final_norm);
	array_free(t->x);
	array_free(t->normed);
	array_free(t->q);
	array_free(t->k);
	array_free(t->v);
	array_free(t->attended);
	array_free(t->gate);
	array_free(t->up);
	array_free(t->logits);
	array_free(t->scores);
	return array_free(t);
}

static void norm_apply(const struct transformer *t, const struct norm *norm, const float *x,
		       size_t n, float *out)
{
	size_t width = t->config.n_hidden;

	for (size_t b = 0; b < n; b++, x += width, out += width) {
		double sum = 0, squares = 0, mean, factor;

		for (size_t i = 0; i < width; i++)
			sum += x[i];
		mean = norm->bias ? sum / (double)width : 0;
		for (size_t i = 0; i < width; i++)
			squares += (x[i] - mean) * (x[i] - mean);
		factor = 1 / sqrt(squares / (double)width + t->config.norm_eps);
		for (size_t i = 0; i < width; i++)
			out[i] = (float)((x[i] - mean) * factor) * norm->weight[i] +
				 (norm->bias ? norm->bias[i] : 0);
	}
}

/* Rotates pairs (i, i + head_dim / 2), as Hugging Face lays them out. */
static void rotate(const struct transformer *t, float *x, uint32_t n_heads, uint32_t position)
{
	uint32_t half = t->config.n_head_dim / 2;

	for (uint32_t i = 0; i < half; i++) {
		double angle = position * pow(t->config.rope_theta, -(double)i / half);
		float c = (float)cos(angle), s = (float)sin(angle);

		for (uint32_t head = 0; head < n_heads; head++) {
			float *pair = x + (size_t)head * t->config.n_head_dim + i;
			float a = pair[0], b = pair[half];

			pair[0] = a * c - b * s;
			pair[half] = b * c + a * s;
		}
	}
}

static size_t cache_at(const struct transformer *t, uint32_t sequence, uint32_t position)
{
	return ((size_t)sequence * t->n_positions + position) * t->n_kv;
}

/* One head of one token: softmax(q k / sqrt(head_dim)) v over the positions up to its own. */
static void attend_job(void *data, size_t i)
{
	const struct transformer *t = data;
	const struct kernel *kernel = t->engine->kernel;
	const struct config *config = &t->config;
	size_t b = i / config->n_heads, head = i % config->n_heads, width = config->n_head_dim;
	size_t kv_head = head / (config->n_heads / config->n_kv_heads);
	const struct token_at *token = &t->tokens[b];
	size_t start = cache_at(t, token->sequence, 0) + kv_head * width;
	const float *q = t->q + b * t->n_q + head * width;
	float *out = t->attended + b * t->n_q + head * width;
	float *scores = t->scores + i * t->n_positions;
	float scale = 1 / sqrtf((float)width), most = -INFINITY, sum = 0;

	for (uint32_t p = 0; p <= token->position; p++) {
		scores[p] = kernel->dot(DCMEM_F32, t->layer->keys + start + (size_t)p * t->n_kv, q,
					width) * scale;
		most = fmaxf(most, scores[p]);
	}
	memset(out, 0, width * sizeof(float));
	for (uint32_t p = 0; p <= token->position; p++) {
		float share = expf(scores[p] - most);

		sum += share;
		kernel->axpy(share, t->layer->values + start + (size_t)p * t->n_kv, width, out);
	}
	for (size_t j = 0; j < width; j++)
		out[j] /= sum;
}

static int attention(struct transformer *t, struct layer *layer, size_t n, const float *in,
		     float *out)
{
	int r;

	if ((r = matrix_apply(t->engine, &layer->q, in, n, t->q)) ||
	    (r = matrix_apply(t->engine, &layer->k, in, n, t->k)) ||
	    (r = matrix_apply(t->engine, &layer->v, in, n, t->v)))
		return r;
	for (size_t b = 0; b < n; b++) {
		size_t at = cache_at(t, t->tokens[b].sequence, t->tokens[b].position);

		if (t->config.arch == CONFIG_LLAMA) {
			rotate(t, t->q + b * t->n_q, t->config.n_heads, t->tokens[b].position);
			rotate(t, t->k + b * t->n_kv, t->config.n_kv_heads, t->tokens[b].position);
		}
		memcpy(layer->keys + at, t->k + b * t->n_kv, t->n_kv * sizeof(float));
		memcpy(layer->values + at, t->v + b * t->n_kv, t->n_kv * sizeof(float));
	}
	t->layer = layer;
	threads_run(t->engine->threads, n * t->config.n_heads, attend_job, t);
	return matrix_apply(t->engine, &layer->o, t->attended, n, out);
}

static int mlp(struct transformer *t, struct layer *layer, size_t n, const float *in, float *out)
{
	size_t n_inner = n * t->config.n_inner;
	int r = matrix_apply(t->engine, &layer->up, in, n, t->up);

	if (r != 0)
		return r;
	if (t->config.arch == CONFIG_OPT) {
		for (size_t i = 0; i < n_inner; i++)
			t->up[i] = fmaxf(t->up[i], 0);
	} else {
		r = matrix_apply(t->engine, &layer->gate, in, n, t->gate);
		if (r != 0)
			return r;
		for (size_t i = 0; i < n_inner; i++)
			t->up[i] *= t->gate[i] / (1 + expf(-t->gate[i]));
	}
	return matrix_apply(t->engine, &layer->down, t->up, n, out);
}

/* x += part(norm(x)), or x = norm(x + part(x)) where the norm comes after. */
static int residual(struct transformer *t, struct layer *layer, const struct norm *norm, size_t n,
		    int (*part)(struct transformer *t, struct layer *layer, size_t n,
				const float *in, float *out))
{
	bool before = t->config.norm_before;
	size_t n_values = n * t->config.n_hidden;
	int r;

	if (before)
		norm_apply(t, norm, t->x, n, t->normed);
	else
		memcpy(t->normed, t->x, n_values * sizeof(float));
	r = part(t, layer, n, t->normed, t->normed);
	if (r != 0)
		return r;
	for (size_t i = 0; i < n_values; i++)
		t->x[i] += t->normed[i];
	if (!before)
		norm_apply(t, norm, t->x, n, t->x);
	return 0;
}

static int embed(struct transformer *t, size_t n)
{
	size_t width = t->config.n_hidden;

	for (size_t b = 0; b < n; b++) {
		const struct token_at *token = &t->tokens[b];
		int r;

		if (token->token >= t->config.n_vocab)
			return error_set(-EINVAL, "token %u; the vocabulary has %u", token->token,
					 t->config.n_vocab);
		if (token->sequence >= t->n_sequences || token->position >= t->n_positions)
			return error_set(-EINVAL, "position %u of sequence %u; there is room for "
					 "%u of %u", token->position, token->sequence,
					 t->n_positions, t->n_sequences);
		r = matrix_row(t->engine, &t->embedding, token->token, t->x + b * width);
		if (r != 0)
			return r;
		if (t->config.arch != CONFIG_OPT)
			continue;
		r = matrix_row(t->engine, &t->positions, (uint64_t)token->position + 2, t->normed);
		if (r != 0)
			return r;
		for (size_t i = 0; i < width; i++)
			t->x[b * width + i] += t->normed[i];
	}
	return 0;
}

int transformer_feed(struct transformer *t, const struct token_at *tokens, size_t n,
		     size_t n_logits, const float **ret_logits)
{
	const float *last;
	int r;

	if (n == 0 || n > MATRIX_MAX_BATCH || n_logits > n)
		return error_set(-EINVAL, "%zu tokens at once; 1 to %d are possible", n,
				 MATRIX_MAX_BATCH);
	t->tokens = tokens;
	r = embed(t, n);
	for (uint32_t i = 0; r == 0 && i < t->config.n_layers; i++) {
		r = residual(t, &t->layers[i], &t->layers[i].attention_norm, n, attention);
		if (r == 0)
			r = residual(t, &t->layers[i], &t->layers[i].mlp_norm, n, mlp);
	}
	if (r != 0)
		return r;
	if (n_logits > 0) {
		last = t->x + (n - n_logits) * t->config.n_hidden;
		if (t->config.norm_before) {
			norm_apply(t, &t->final_norm, last, n_logits, t->normed);
			last = t->normed;
		}
		r = matrix_apply(t->engine, t->config.tied ? &t->embedding : &t->output, last,
				 n_logits, t->logits);
		if (r != 0)
			return r;
	}
	*ret_logits = n_logits > 0 ? t->logits : NULL;
	return 0;
}
