/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the hidden states of a stream while they move through one layer, in batches of some windows:
 *
 *   for each layer:
 *     h = norm(x);                gram(h)   -> q, k, v
 *     a = attention(q, k, v)      gram(a)   -> o          a is kept for all windows
 *     x += o a;  h = norm(x);     gram(h)   -> gate, up   (OPT: fc1)
 *     i = activation(h);          gram(i)   -> down       (OPT: fc2)    i is kept if it fits
 *     x += down i
 *
 * Each arrow is a visit, which may change the weights; what comes after uses the changed ones. Where
 * norms come after (OPT of 350 M), h is x, and x is normed after each sum. One thread calls; products
 * and attention use several.
 */
#include "quant/network.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/message.h"
#include "base/parallel.h"
#include "quant/dense.h"

#define BATCH_TOKENS 2048 /* at least one window */
#define VOCAB_ROWS   2048 /* rows of the output matrix at once */
#define KEPT_BYTES   (1ULL << 30) /* of activations that save computing them twice: untuned */

enum { Q, K, V, O, GATE, UP, DOWN, N_PARTS };

struct norm {
	float *weight, *bias; /* bias NULL: RMSNorm */
};

struct layer {
	const struct network *network;
	struct stream *stream;
	int (*visit)(void *data, struct network_group *group);
	void *data;
	char prefix[64];
	struct norm attention_norm, mlp_norm;
	const struct tensors_entry *entries[N_PARTS];
	float *weights[N_PARTS], *biases[N_PARTS];
	float *attended; /* [windows][length][n_q] */
	float *kept;	 /* [windows][length][n_inner], or NULL: too large, computed twice */
	/* of a batch */
	float *h, *q, *k, *v, *inner, *gate;
	size_t first_window, n_tokens;
};

static int check_cancel(const struct network *network)
{
	return network->cancel && atomic_load(network->cancel) ?
		       message_set(-EINTR, "stopped by a signal") : 0;
}

static float *floats(size_t a, size_t b)
{
	size_t n;

	return __builtin_mul_overflow(a, b, &n) ? NULL : memory_array(n, sizeof(float));
}

static int no_memory(void)
{
	return message_set(-ENOMEM, "not enough memory to calibrate: use fewer windows");
}

/* A tensor of n_rows x n_cols (or n_cols alone if n_rows is 0). */
static int find(const struct network *network, const char *name, size_t n_rows, size_t n_cols,
		const struct tensors_entry **ret_entry)
{
	const struct tensors_entry *entry = tensors_find(network->tensors, name);
	const struct safetensors_tensor *tensor = entry ? entry->tensor : NULL;
	bool fits;

	if (!tensor)
		return message_set(-EINVAL, "the model lacks the tensor %s", name);
	fits = n_rows ? tensor->n_dims == 2 && tensor->dims[0] == n_rows && tensor->dims[1] == n_cols :
			tensor->n_dims == 1 && tensor->dims[0] == n_cols;
	if (!tensors_is_float(entry) || !fits)
		return message_set(-EINVAL, "tensor %s is not BF16, F16 or F32 of the shape that config.json "
				   "gives it", name);
	*ret_entry = entry;
	return 0;
}

static int read_vector(const struct network *network, const char *name, size_t n, float **ret_values)
{
	const struct tensors_entry *entry = NULL;
	int r = find(network, name, 0, n, &entry);

	if (r)
		return r;
	*ret_values = floats(n, 1);
	if (!*ret_values)
		return no_memory();
	r = tensors_read(network->tensors, entry, 0, n, *ret_values);
	for (size_t i = 0; !r && i < n; i++)
		if (!isfinite((*ret_values)[i]))
			r = message_set(-EDOM, "tensor %s: element %zu is not a finite number", name, i);
	return r;
}

static int read_norm(const struct network *network, const char *prefix, const char *name,
		     struct norm *norm)
{
	char text[160];
	int r;

	snprintf(text, sizeof(text), "%s%s.weight", prefix, name);
	r = read_vector(network, text, network->n_hidden, &norm->weight);
	if (r || !network->opt)
		return r;
	snprintf(text, sizeof(text), "%s%s.bias", prefix, name);
	return read_vector(network, text, network->n_hidden, &norm->bias);
}

static void free_norm(struct norm *norm)
{
	norm->weight = memory_free(norm->weight);
	norm->bias = memory_free(norm->bias);
}

static void apply_norm(const struct network *network, const struct norm *norm, const float *x,
		       size_t n_tokens, float *out)
{
	size_t width = network->n_hidden;

	for (size_t t = 0; t < n_tokens; t++, x += width, out += width) {
		double sum = 0, squares = 0, mean, factor;

		for (size_t i = 0; norm->bias && i < width; i++)
			sum += x[i];
		mean = sum / (double)width;
		for (size_t i = 0; i < width; i++)
			squares += (x[i] - mean) * (x[i] - mean);
		factor = 1 / sqrt(squares / (double)width + network->norm_eps);
		for (size_t i = 0; i < width; i++)
			out[i] = (float)((x[i] - mean) * factor) * norm->weight[i] +
				 (norm->bias ? norm->bias[i] : 0);
	}
}

/* --- weights --- */

static const char *const part_names[2][N_PARTS] = {
	{ "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
	  "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj" },
	{ "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", NULL, "fc1",
	  "fc2" },
};

static void part_shape(const struct network *network, unsigned part, size_t *ret_rows,
		       size_t *ret_cols)
{
	size_t n_q = network->n_heads * network->n_head_dim;
	size_t n_kv = network->n_kv_heads * network->n_head_dim;

	*ret_rows = part == Q ? n_q : part == K || part == V ? n_kv :
		    part == GATE || part == UP ? network->n_inner : network->n_hidden;
	*ret_cols = part == O ? n_q : part == DOWN ? network->n_inner : network->n_hidden;
}

static int read_part(struct layer *layer, unsigned part)
{
	const struct network *network = layer->network;
	const char *name = part_names[network->opt][part];
	size_t n_rows, n_cols;
	char text[160];
	int r;

	if (!name)
		return 0;
	part_shape(network, part, &n_rows, &n_cols);
	snprintf(text, sizeof(text), "%s%s.weight", layer->prefix, name);
	r = find(network, text, n_rows, n_cols, &layer->entries[part]);
	if (r)
		return r;
	layer->weights[part] = floats(n_rows, n_cols);
	if (!layer->weights[part])
		return no_memory();
	r = tensors_read(network->tensors, layer->entries[part], 0, n_rows * n_cols,
			 layer->weights[part]);
	if (r || !network->opt)
		return r;
	snprintf(text, sizeof(text), "%s%s.bias", layer->prefix, name);
	return read_vector(network, text, n_rows, &layer->biases[part]);
}

/* Lets the visitor see parts [first, last], whose input has the statistics `gram` (taken over). */
static int visit_parts(struct layer *layer, unsigned first, unsigned last, float *gram)
{
	struct network_group group = { .gram = gram };
	int r = check_cancel(layer->network);

	if (r || !layer->visit) {
		memory_free(gram);
		return r;
	}
	for (unsigned part = first; part <= last; part++) {
		if (!layer->weights[part])
			continue;
		group.entries[group.n] = layer->entries[part];
		group.weights[group.n] = layer->weights[part];
		part_shape(layer->network, part, &group.n_rows[group.n], &group.n_cols);
		group.n++;
	}
	return layer->visit(layer->data, &group);
}

static void apply_part(const struct layer *layer, unsigned part, const float *x, float *out, bool add)
{
	size_t n_rows, n_cols;
	const float *bias = layer->biases[part];

	part_shape(layer->network, part, &n_rows, &n_cols);
	dense_linear(layer->network->n_threads, x, layer->n_tokens, layer->weights[part], n_rows, n_cols,
		     out, add);
	for (size_t t = 0; bias && t < layer->n_tokens; t++)
		for (size_t i = 0; i < n_rows; i++)
			out[t * n_rows + i] += bias[i];
}

/* --- a batch --- */

static float *batch_x(const struct layer *layer)
{
	return layer->stream->x +
	       layer->first_window * layer->stream->length * layer->network->n_hidden;
}

static float *batch_attended(const struct layer *layer)
{
	return layer->attended + layer->first_window * layer->stream->length *
					 layer->network->n_heads * layer->network->n_head_dim;
}

static size_t batch_windows(const struct stream *stream)
{
	return stream->length < BATCH_TOKENS ? BATCH_TOKENS / stream->length : 1;
}

/* The next batch, the first one after `first` was set to it; false after the last. */
static bool batch_at(struct layer *layer, size_t window)
{
	const struct stream *stream = layer->stream;
	size_t n = batch_windows(stream);

	if (window >= stream->n_windows)
		return false;
	/* One side of the border alone. */
	if (window < stream->n_gram && window + n > stream->n_gram)
		n = stream->n_gram - window;
	if (window + n > stream->n_windows)
		n = stream->n_windows - window;
	layer->first_window = window;
	layer->n_tokens = n * stream->length;
	return true;
}

static size_t next_batch(const struct layer *layer)
{
	return layer->first_window + layer->n_tokens / layer->stream->length;
}

static void add_gram(const struct layer *layer, const float *x, size_t n_cols, float *gram)
{
	if (gram && layer->first_window < layer->stream->n_gram)
		dense_gram(layer->network->n_threads, x, layer->n_tokens, n_cols, gram);
}

/* What attention or the MLP reads. */
static void part_input(const struct layer *layer, const struct norm *norm)
{
	const struct network *network = layer->network;

	if (network->norm_before)
		apply_norm(network, norm, batch_x(layer), layer->n_tokens, layer->h);
	else
		memcpy(layer->h, batch_x(layer), layer->n_tokens * network->n_hidden * sizeof(float));
}

static void after_sum(const struct layer *layer, const struct norm *norm)
{
	if (!layer->network->norm_before)
		apply_norm(layer->network, norm, batch_x(layer), layer->n_tokens, batch_x(layer));
}

/* Rotates pairs (i, i + head_dim / 2), as Hugging Face lays them out. */
static void rotate(const struct layer *layer, float *x, size_t n_heads)
{
	const struct network *network = layer->network;
	size_t half = network->n_head_dim / 2, length = layer->stream->length;

	for (size_t i = 0; i < half; i++) {
		double turn = pow(network->rope_theta, -(double)i / (double)half);

		for (size_t t = 0; t < layer->n_tokens; t++) {
			double angle = (double)(t % length) * turn;
			float c = (float)cos(angle), s = (float)sin(angle);

			for (size_t head = 0; head < n_heads; head++) {
				float *pair = x + (t * n_heads + head) * network->n_head_dim + i;
				float a = pair[0], b = pair[half];

				pair[0] = a * c - b * s;
				pair[half] = b * c + a * s;
			}
		}
	}
}

static void softmax(float *scores, size_t n)
{
	float most = scores[0], sum = 0;

	for (size_t i = 1; i < n; i++)
		most = scores[i] > most ? scores[i] : most;
	for (size_t i = 0; i < n; i++)
		sum += scores[i] = expf(scores[i] - most);
	for (size_t i = 0; i < n; i++)
		scores[i] /= sum;
}

/* One head of one window. */
static void attend(void *data, size_t item)
{
	const struct layer *layer = data;
	const struct network *network = layer->network;
	size_t length = layer->stream->length, width = network->n_head_dim;
	size_t window = item / network->n_heads, head = item % network->n_heads;
	size_t kv_head = head / (network->n_heads / network->n_kv_heads);
	size_t n_q = network->n_heads * width, n_kv = network->n_kv_heads * width;
	float *scores = memory_array(length * length, sizeof(float));
	struct dense q = { layer->q + window * length * n_q + head * width, n_q, 1 };
	struct dense k = { layer->k + window * length * n_kv + kv_head * width, 1, n_kv };
	struct dense v = { layer->v + window * length * n_kv + kv_head * width, n_kv, 1 };
	float *out = batch_attended(layer) + window * length * n_q + head * width;

	if (!scores) /* seen by the caller: the sums are not finite */
		out[0] = NAN;
	if (!scores)
		return;
	dense_multiply(1, length, length, width, q, k, scores, length, false);
	for (size_t t = 0; t < length; t++) {
		float *row = scores + t * length;

		for (size_t i = 0; i <= t; i++)
			row[i] /= sqrtf((float)width);
		softmax(row, t + 1);
		memset(row + t + 1, 0, (length - t - 1) * sizeof(float));
	}
	dense_multiply(1, length, width, length, (struct dense){ scores, length, 1 }, v, out, n_q, false);
	memory_free(scores);
}

static void attention(struct layer *layer)
{
	const struct network *network = layer->network;

	part_input(layer, &layer->attention_norm);
	apply_part(layer, Q, layer->h, layer->q, false);
	apply_part(layer, K, layer->h, layer->k, false);
	apply_part(layer, V, layer->h, layer->v, false);
	if (!network->opt) {
		rotate(layer, layer->q, network->n_heads);
		rotate(layer, layer->k, network->n_kv_heads);
	}
	parallel_for(network->n_threads, layer->n_tokens / layer->stream->length * network->n_heads,
		     attend, layer);
}

/* `again`: it was computed before with the same weights. */
static void activation(struct layer *layer, bool again)
{
	size_t n = layer->n_tokens * layer->network->n_inner;

	if (layer->kept)
		layer->inner = layer->kept + layer->first_window * layer->stream->length *
						    layer->network->n_inner;
	if (again && layer->kept)
		return;
	part_input(layer, &layer->mlp_norm);
	apply_part(layer, UP, layer->h, layer->inner, false);
	if (layer->network->opt) {
		for (size_t i = 0; i < n; i++)
			layer->inner[i] = layer->inner[i] > 0 ? layer->inner[i] : 0;
		return;
	}
	apply_part(layer, GATE, layer->h, layer->gate, false);
	for (size_t i = 0; i < n; i++)
		layer->inner[i] *= layer->gate[i] / (1 + expf(-layer->gate[i]));
}

/* --- a layer --- */

static int new_gram(const struct layer *layer, size_t n, float **ret_gram)
{
	*ret_gram = layer->visit ? floats(n, n) : NULL;
	return layer->visit && !*ret_gram ? no_memory() : 0;
}

static int run_attention(struct layer *layer)
{
	const struct network *network = layer->network;
	size_t n_q = network->n_heads * network->n_head_dim;
	float *gram;
	int r = new_gram(layer, network->n_hidden, &gram);

	for (size_t w = 0; !r && layer->visit && batch_at(layer, w); w = next_batch(layer)) {
		part_input(layer, &layer->attention_norm);
		add_gram(layer, layer->h, network->n_hidden, gram);
	}
	if (!r)
		r = visit_parts(layer, Q, V, gram);
	if (!r)
		r = new_gram(layer, n_q, &gram);
	for (size_t w = 0; !r && batch_at(layer, w); w = next_batch(layer)) {
		attention(layer);
		add_gram(layer, batch_attended(layer), n_q, gram);
		r = check_cancel(network);
		if (r)
			memory_free(gram);
	}
	return r ? r : visit_parts(layer, O, O, gram);
}

static int run_mlp(struct layer *layer)
{
	const struct network *network = layer->network;
	float *gram;
	int r = new_gram(layer, network->n_hidden, &gram);

	for (size_t w = 0; !r && batch_at(layer, w); w = next_batch(layer)) {
		apply_part(layer, O, batch_attended(layer), batch_x(layer), true);
		after_sum(layer, &layer->attention_norm);
		if (!layer->visit)
			continue;
		part_input(layer, &layer->mlp_norm);
		add_gram(layer, layer->h, network->n_hidden, gram);
	}
	if (!r)
		r = visit_parts(layer, GATE, UP, gram);
	if (!r)
		r = new_gram(layer, network->n_inner, &gram);
	for (size_t w = 0; !r && layer->visit && batch_at(layer, w); w = next_batch(layer)) {
		activation(layer, false);
		add_gram(layer, layer->inner, network->n_inner, gram);
	}
	if (!r)
		r = visit_parts(layer, DOWN, DOWN, gram);
	for (size_t w = 0; !r && batch_at(layer, w); w = next_batch(layer)) {
		activation(layer, layer->visit);
		apply_part(layer, DOWN, layer->inner, batch_x(layer), true);
		after_sum(layer, &layer->mlp_norm);
	}
	return r;
}

static void free_layer_weights(struct layer *layer)
{
	free_norm(&layer->attention_norm);
	free_norm(&layer->mlp_norm);
	for (unsigned part = 0; part < N_PARTS; part++) {
		layer->weights[part] = memory_free(layer->weights[part]);
		layer->biases[part] = memory_free(layer->biases[part]);
	}
}

static int run_layer(struct layer *layer, size_t i)
{
	const struct network *network = layer->network;
	int r;

	snprintf(layer->prefix, sizeof(layer->prefix), "model.%slayers.%zu.",
		 network->opt ? "decoder." : "", i);
	r = read_norm(network, layer->prefix,
		      network->opt ? "self_attn_layer_norm" : "input_layernorm",
		      &layer->attention_norm);
	if (!r)
		r = read_norm(network, layer->prefix,
			      network->opt ? "final_layer_norm" : "post_attention_layernorm",
			      &layer->mlp_norm);
	for (unsigned part = 0; !r && part < N_PARTS; part++)
		r = read_part(layer, part);
	if (!r)
		r = run_attention(layer);
	if (!r)
		r = run_mlp(layer);
	free_layer_weights(layer);
	return r;
}

int network_run(const struct network *network, struct stream *stream,
		int (*visit)(void *data, struct network_group *group), void *data)
{
	struct layer layer = { .network = network, .stream = stream, .visit = visit, .data = data };
	size_t n = batch_windows(stream) * stream->length;
	size_t n_q = network->n_heads * network->n_head_dim;
	size_t n_kv = network->n_kv_heads * network->n_head_dim;
	float *inner;
	int r = 0;

	layer.attended = floats(stream->n_windows * stream->length, n_q);
	layer.h = floats(n, network->n_hidden);
	layer.q = floats(n, n_q);
	layer.k = floats(n, n_kv);
	layer.v = floats(n, n_kv);
	if (stream->n_windows * stream->length * (uint64_t)network->n_inner * sizeof(float) <= KEPT_BYTES)
		layer.kept = floats(stream->n_windows * stream->length, network->n_inner);
	inner = layer.kept ? NULL : floats(n, network->n_inner);
	layer.inner = inner;
	layer.gate = network->opt ? NULL : floats(n, network->n_inner);
	if (!layer.attended || !layer.h || !layer.q || !layer.k || !layer.v || (!layer.kept && !inner) ||
	    (!network->opt && !layer.gate))
		r = no_memory();
	for (size_t i = 0; !r && i < network->n_layers; i++)
		r = run_layer(&layer, i);
	memory_free(layer.attended);
	memory_free(layer.h);
	memory_free(layer.q);
	memory_free(layer.k);
	memory_free(layer.v);
	memory_free(layer.kept);
	memory_free(inner);
	memory_free(layer.gate);
	return r;
}

/* --- both ends --- */

int network_embed(const struct network *network, struct stream *stream)
{
	const struct tensors_entry *tokens = NULL, *positions = NULL;
	_cleanup_(cleanup_memory) float *position = floats(network->n_hidden, 1);
	size_t width = network->n_hidden;
	int r = find(network, network->opt ? "model.decoder.embed_tokens.weight" :
					     "model.embed_tokens.weight",
		     network->n_vocab, width, &tokens);

	if (!r && network->opt) /* two rows of padding come before position 0 */
		r = find(network, "model.decoder.embed_positions.weight", network->n_positions + 2,
			 width, &positions);
	if (!r) {
		stream->x = floats(stream->n_windows * stream->length, width);
		r = stream->x && position ? 0 : no_memory();
	}
	for (size_t t = 0; !r && t < stream->n_windows * stream->length; t++) {
		size_t place = t % stream->length;
		uint32_t id = stream->ids[t / stream->length * (stream->length + 1) + place];
		float *x = stream->x + t * width;

		r = tensors_read(network->tensors, tokens, (uint64_t)id * width, width, x);
		if (!r && network->change_row)
			network->change_row(network->data, x, width);
		if (!r && positions)
			r = tensors_read(network->tensors, positions, (uint64_t)(place + 2) * width,
					 width, position);
		for (size_t i = 0; !r && positions && i < width; i++)
			x[i] += position[i];
	}
	return r;
}

/* Logits of a window for both models: the output matrix is read in slices. */
static int both_logits(const struct network *network, size_t length, const float *x,
		       const float *other_x, float *logits, float *other_logits)
{
	const char *name = !network->tied ? "lm_head.weight" :
			   network->opt	  ? "model.decoder.embed_tokens.weight" :
					    "model.embed_tokens.weight";
	_cleanup_(cleanup_memory) float *rows = floats(VOCAB_ROWS, network->n_hidden);
	size_t width = network->n_hidden, n_vocab = network->n_vocab;
	const struct tensors_entry *entry = NULL;
	int r = find(network, name, n_vocab, width, &entry);

	if (!r && !rows)
		r = no_memory();
	for (size_t first = 0; !r && first < n_vocab; first += VOCAB_ROWS) {
		size_t n = n_vocab - first < VOCAB_ROWS ? n_vocab - first : VOCAB_ROWS;
		struct dense columns = { rows, 1, width };

		r = tensors_read(network->tensors, entry, (uint64_t)first * width, n * width, rows);
		if (r)
			break;
		dense_multiply(network->n_threads, length, n, width, (struct dense){ x, width, 1 }, columns,
			       logits + first, n_vocab, false);
		for (size_t i = 0; network->change_row && i < n; i++)
			network->change_row(network->data, rows + i * width, width);
		dense_multiply(network->n_threads, length, n, width, (struct dense){ other_x, width, 1 },
			       columns, other_logits + first, n_vocab, false);
	}
	return r;
}

/* log of the sum of exponentials, and the likeliest. */
static double log_sum(const float *logits, size_t n, size_t *ret_likeliest)
{
	size_t best = 0;
	double sum = 0;

	for (size_t i = 1; i < n; i++)
		if (logits[i] > logits[best])
			best = i;
	for (size_t i = 0; i < n; i++)
		sum += expf(logits[i] - logits[best]);
	*ret_likeliest = best;
	return logits[best] + log(sum);
}

static void add_loss(const float *logits, const float *other, size_t n, uint32_t next,
		     struct network_loss *loss)
{
	size_t best, other_best;
	double sum = log_sum(logits, n, &best), other_sum = log_sum(other, n, &other_best), kl = 0;

	for (size_t i = 0; i < n; i++) {
		double p = logits[i] - sum, q = other[i] - other_sum;

		kl += p > -30 ? exp(p) * (p - q) : 0;
	}
	loss->nll += sum - logits[next];
	loss->other_nll += other_sum - other[next];
	loss->kl += kl;
	loss->agreement += best == other_best;
	loss->accuracy += best == next;
	loss->other_accuracy += other_best == next;
}

int network_compare(const struct network *network, const uint32_t *ids, size_t length, float *x,
		    float *other_x, struct network_loss *ret_loss)
{
	_cleanup_(cleanup_memory) float *logits = floats(length, network->n_vocab);
	_cleanup_(cleanup_memory) float *other = floats(length, network->n_vocab);
	struct network_loss loss = { 0 };
	struct norm norm = { 0 };
	int r = logits && other ? 0 : no_memory();

	if (!r && network->norm_before)
		r = read_norm(network, network->opt ? "model.decoder." : "model.",
			      network->opt ? "final_layer_norm" : "norm", &norm);
	if (!r && network->norm_before) {
		apply_norm(network, &norm, x, length, x);
		apply_norm(network, &norm, other_x, length, other_x);
	}
	if (!r)
		r = both_logits(network, length, x, other_x, logits, other);
	for (size_t t = 0; !r && t < length; t++)
		add_loss(logits + t * network->n_vocab, other + t * network->n_vocab, network->n_vocab,
			 ids[t + 1], &loss);
	free_norm(&norm);
	if (r)
		return r;
	loss.nll /= (double)length;
	loss.other_nll /= (double)length;
	loss.kl /= (double)length;
	loss.agreement /= (double)length;
	loss.accuracy /= (double)length;
	loss.other_accuracy /= (double)length;
	*ret_loss = loss;
	return 0;
}
