/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The passes over a model. Each pass rounds every linear layer with one step and counts the bits that
 * come out; steps are tried until the target is met. With calibration text a pass moves the text
 * through the layers as it rounds them, so that each layer is fitted to what the rounded ones before
 * it give; the last windows of the text are not fitted to, and measure the loss.
 */
#include "quant/quant.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/message.h"
#include "codec/codec.h"
#include "model/pack.h"
#include "quant/calibration.h"
#include "quant/network.h"
#include "quant/output.h"
#include "quant/round.h"

/* Weight of the code length in each choice (docs/quantization.md, what was tried). */
#define RATE_FED    3.0 /* where errors are fed forward */
#define RATE_ALONE  1.0
#define EMBEDDING_STEP 0.1
#define EMBEDDING_ROWS 4096 /* at once */
#define FIRST_STEP  0.33
#define LEAST_STEP  0.02
#define DRAFT_WINDOWS 12
#define MOST_STEP   4.0
#define BITS_BELOW  0.01 /* of the target is near enough */
#define LOSS_BELOW  0.8	 /* of the target is near enough */

struct run {
	const struct quant_options *options;
	struct quant_report *report;
	struct source source;
	struct tensors tensors;
	struct network network;
	bool has_network;
	bool some_model; /* some files are the model's own: only those are quantized */
	struct output output;
	struct calibration_text text;
	struct calibration_stats stats;
	struct codec_context *codec;
	double step;
	bool draft; /* a pass over a few windows, to find the step */
	uint64_t done, total; /* weights of this pass */
	float *reference; /* hidden states of the original on the windows held back */
};

const char *quant_embeddings_name(unsigned embeddings)
{
	static const char *const names[QUANT_N_EMBEDDINGS] = { "auto", "int8", "lossless" };

	return embeddings < QUANT_N_EMBEDDINGS ? names[embeddings] : NULL;
}

static int check_cancel(const struct run *run)
{
	return run->options->cancel && atomic_load(run->options->cancel) ?
		       message_set(-EINTR, "stopped by a signal") : 0;
}

static void advance(struct run *run, uint64_t n_weights)
{
	run->done += n_weights;
	if (run->options->progress)
		run->options->progress(run->options->data, run->report->n_passes + 1, run->done,
				       run->total);
}

/* --- what becomes of a tensor --- */

static enum output_kind kind_of(void *data, const struct tensors_entry *entry)
{
	const struct run *run = data;

	if (run->some_model && !run->source.files[entry->file].is_model)
		return OUTPUT_COPY;
	if (network_is_linear(entry))
		return OUTPUT_LINEAR;
	return run->options->embeddings != QUANT_EMBEDDINGS_LOSSLESS && network_is_embedding(entry) ?
		       OUTPUT_EMBEDDING : OUTPUT_COPY;
}

static double embedding_step(const struct run *run)
{
	return run->options->embeddings == QUANT_EMBEDDINGS_AUTO ? EMBEDDING_STEP : 0;
}

static void change_row(void *data, float *row, size_t n)
{
	const struct run *run = data;
	int8_t codes[4096], *all = n <= sizeof(codes) ? codes : memory_alloc(n);
	float scale;

	if (all)
		round_row(row, n, embedding_step(run), all, &scale);
	if (all != codes)
		memory_free(all);
}

/* --- counting --- */

/* Bytes that pack() makes of n values of this codec's type in pages, with their records. */
static int count_stored(struct run *run, uint8_t codec, const uint8_t *data, uint64_t n_bytes,
			uint64_t page_bytes, uint64_t *sum)
{
	_cleanup_(cleanup_memory) uint8_t *stored = memory_alloc(page_bytes);

	if (!stored)
		return message_set(-ENOMEM, "not enough memory to quantize");
	for (uint64_t at = 0; at < n_bytes; at += page_bytes) {
		size_t n = n_bytes - at < page_bytes ? n_bytes - at : page_bytes, coded = n;
		int r = codec_encode(run->codec, codec, 1, data + at, n, stored, n - 1, &coded);

		if (r < 0)
			return message_set(r, "cannot encode: %s", strerror(-r));
		*sum += sizeof(struct container_page) + (r ? n : coded);
	}
	return 0;
}

static int count_tensor(struct run *run, const int8_t *codes, const float *scales, size_t n_rows,
			size_t n_cols, struct quant_tensor *tensor)
{
	_cleanup_(cleanup_memory) uint16_t *halves = memory_array(n_rows, sizeof(*halves));
	uint64_t page = PACK_PAGE_BYTES;
	int r;

	if (!halves)
		return message_set(-ENOMEM, "not enough memory to quantize");
	for (size_t i = 0; i < n_rows; i++) {
		uint32_t bits;

		memcpy(&bits, &scales[i], sizeof(bits));
		halves[i] = (uint16_t)(bits >> 16);
	}
	if (n_cols <= page)
		page -= page % n_cols;
	r = count_stored(run, CODEC_PAIR_8, (const uint8_t *)codes, n_rows * n_cols, page,
			 &tensor->stored_bytes);
	return r ? r : count_stored(run, CODEC_ZSTD_PLANES_16, (const uint8_t *)halves, n_rows * 2,
				    PACK_PAGE_BYTES, &tensor->stored_bytes);
}

static struct quant_tensor *report_of(const struct run *run, const struct tensors_entry *entry)
{
	for (size_t i = 0; i < run->report->n_tensors; i++)
		if (strcmp(run->report->tensors[i].name, entry->tensor->name) == 0)
			return &run->report->tensors[i];
	return NULL;
}

/* --- rounding --- */

/* Rounds weights (overwritten) and puts codes and scales where they belong. */
static int round_linear(struct run *run, const struct tensors_entry *entry, float *weights,
			size_t n_rows, const struct metric *metric)
{
	size_t n_cols = metric->n;
	_cleanup_(cleanup_memory) int8_t *codes = memory_array(n_rows, n_cols);
	_cleanup_(cleanup_memory) float *scales = memory_array(n_rows, sizeof(*scales));
	struct round_options options = { .n_threads = run->options->n_jobs, .step = run->step,
					 .rate = metric->factors ? RATE_FED : RATE_ALONE };
	struct quant_tensor *tensor = report_of(run, entry);
	struct round_result result;
	int r = check_cancel(run);

	if (r)
		return r;
	if (!codes || !scales || !tensor)
		return message_set(-ENOMEM, "not enough memory to quantize");
	r = round_matrix(weights, n_rows, metric, &options, codes, scales, &result);
	if (r)
		return message_prefix(r, "tensor %.200s", entry->tensor->name);
	tensor->error = result.energy > 0 ? result.error / result.energy : 0;
	tensor->entropy = result.entropy;
	tensor->near_zero = result.near_zero;
	memcpy(tensor->nearest, result.nearest, sizeof(tensor->nearest));
	memcpy(tensor->chosen, result.chosen, sizeof(tensor->chosen));
	r = count_tensor(run, codes, scales, n_rows, n_cols, tensor);
	if (!r)
		r = output_write(&run->output, entry, 0, n_rows, codes, scales);
	if (!r)
		advance(run, n_rows * n_cols);
	return r;
}

static int visit(void *data, struct network_group *group)
{
	struct run *run = data;
	struct metric metric;
	int r = metric_init_gram(&metric, group->gram, group->n_cols, run->options->n_jobs);

	if (r)
		return message_prefix(r, "tensor %.200s", group->entries[0]->tensor->name);
	for (unsigned i = 0; !r && i < group->n; i++)
		if (output_item(&run->output, group->entries[i])->kind == OUTPUT_LINEAR)
			r = round_linear(run, group->entries[i], group->weights[i], group->n_rows[i],
					 &metric);
	metric_deinit(&metric);
	return r;
}

/* What is known about the inputs of a layer that no text went through. */
static int metric_of(const struct run *run, const struct tensors_entry *entry, struct metric *metric)
{
	size_t n = entry->tensor->dims[1];
	enum calibration_kind kind = CALIBRATION_NONE;
	float *values = NULL;
	int r = run->stats.path ? calibration_stats_get(&run->stats, entry->tensor->name, n, &kind,
							 &values) : 0;

	if (r)
		return r;
	if (kind == CALIBRATION_GRAM)
		return metric_init_gram(metric, values, n, run->options->n_jobs);
	/* The greatest value of a bell is about as many times its spread everywhere. */
	for (size_t i = 0; kind == CALIBRATION_ABSMAX && i < n; i++)
		values[i] *= values[i];
	r = kind == CALIBRATION_NONE ? metric_init_plain(metric, n) :
				       metric_init_diagonal(metric, values, n);
	memory_free(values);
	return r;
}

static int round_without_text(struct run *run, const struct tensors_entry *entry)
{
	size_t n_rows = entry->tensor->dims[0], n_cols = entry->tensor->dims[1];
	_cleanup_(cleanup_memory) float *weights = memory_array(n_rows * n_cols, sizeof(float));
	struct metric metric;
	int r = weights ? tensors_read(&run->tensors, entry, 0, n_rows * n_cols, weights) :
			  message_set(-ENOMEM, "not enough memory to quantize");

	if (!r) {
		r = metric_of(run, entry, &metric);
		if (r)
			return message_prefix(r, "tensor %.200s", entry->tensor->name);
		r = round_linear(run, entry, weights, n_rows, &metric);
		metric_deinit(&metric);
	}
	return r;
}

static int round_embedding(struct run *run, const struct tensors_entry *entry)
{
	size_t n_rows = entry->tensor->dims[0], n_cols = entry->tensor->dims[1];
	_cleanup_(cleanup_memory) float *weights = memory_array(EMBEDDING_ROWS * n_cols, sizeof(float));
	_cleanup_(cleanup_memory) int8_t *codes = memory_array(EMBEDDING_ROWS, n_cols);
	_cleanup_(cleanup_memory) float *scales = memory_array(EMBEDDING_ROWS, sizeof(float));
	struct quant_tensor *tensor = report_of(run, entry);
	double error = 0, energy = 0;
	int r = weights && codes && scales && tensor ? 0 :
						       message_set(-ENOMEM, "not enough memory to quantize");

	for (size_t first = 0; !r && first < n_rows; first += EMBEDDING_ROWS) {
		size_t n = n_rows - first < EMBEDDING_ROWS ? n_rows - first : EMBEDDING_ROWS;

		r = tensors_read(&run->tensors, entry, first * n_cols, n * n_cols, weights);
		for (size_t i = 0; !r && i < n * n_cols; i++) {
			if (!isfinite(weights[i]))
				r = message_set(-EDOM, "tensor %.200s: the weight at row %zu, column %zu is "
						"not a finite number", entry->tensor->name,
						first + i / n_cols, i % n_cols);
			energy += (double)weights[i] * weights[i];
		}
		for (size_t i = 0; !r && i < n; i++) {
			float scale;

			round_row(weights + i * n_cols, n_cols, embedding_step(run), codes + i * n_cols,
				  &scale);
			scales[i] = scale;
			error += (double)scale * scale / 12 * (double)n_cols;
		}
		if (!r)
			r = count_tensor(run, codes, scales, n, n_cols, tensor);
		if (!r)
			r = output_write(&run->output, entry, first, n, codes, scales);
	}
	if (!r)
		tensor->error = energy > 0 ? error / energy : 0;
	return r;
}

/* --- a pass --- */

static int for_each(struct run *run, enum output_kind kind,
		    int (*each)(struct run *run, const struct tensors_entry *entry))
{
	int r = 0;

	for (size_t f = 0; !r && f < run->source.n_files; f++)
		for (uint64_t i = 0; !r && i < run->source.files[f].st.n_tensors; i++) {
			struct tensors_entry entry = { &run->source.files[f].st.tensors[i], f, i };

			if (output_item(&run->output, &entry)->kind == kind)
				r = each(run, &entry);
		}
	return r;
}

static int measure_loss(struct run *run, const float *changed, struct quant_pass *pass)
{
	struct quant_report *report = run->report;
	const struct calibration_text *text = &run->text;
	size_t n = text->length * run->network.n_hidden, first = text->n_windows - text->n_held;
	_cleanup_(cleanup_memory) float *x = memory_array(2 * n, sizeof(float));
	double nll = 0, sum = 0, squares = 0, mean, count = (double)text->n_held;

	if (!x)
		return message_set(-ENOMEM, "not enough memory to calibrate");
	report->kl = report->agreement = report->accuracy = report->original_accuracy = 0;
	for (size_t w = 0; w < text->n_held; w++) {
		struct network_loss loss;
		int r;

		memcpy(x, run->reference + w * n, n * sizeof(float));
		memcpy(x + n, changed + (first + w) * n, n * sizeof(float));
		r = network_compare(&run->network, text->ids + (first + w) * (text->length + 1),
				    text->length, x, x + n, &loss);
		if (r)
			return r;
		nll += loss.nll / count;
		sum += loss.other_nll - loss.nll;
		squares += (loss.other_nll - loss.nll) * (loss.other_nll - loss.nll);
		report->kl += loss.kl / count;
		report->agreement += loss.agreement / count;
		report->accuracy += loss.other_accuracy / count;
		report->original_accuracy += loss.accuracy / count;
	}
	mean = sum / count;
	report->n_windows = text->n_held;
	report->original_perplexity = exp(nll);
	report->perplexity = exp(nll + mean);
	report->loss_error = text->n_held > 1 ?
				     sqrt(fmax(squares - count * mean * mean, 0) / (count - 1) / count) : 0;
	pass->loss = exp(mean);
	return isfinite(pass->loss) ? 0 :
		message_set(-EDOM, "the perplexity is not a finite number: the model or the text is damaged");
}

static int pass_with_text(struct run *run, struct quant_pass *pass)
{
	struct stream stream = { .n_windows = run->text.n_windows, .length = run->text.length,
				 .n_gram = run->text.n_windows - run->text.n_held,
				 .ids = run->text.ids };
	int r;

	if (run->draft && stream.n_gram > DRAFT_WINDOWS)
		stream.n_windows = stream.n_gram = DRAFT_WINDOWS;
	r = network_embed(&run->network, &stream);
	if (!r)
		r = network_run(&run->network, &stream, visit, run);
	if (!r && !run->draft)
		r = measure_loss(run, stream.x, pass);
	memory_free(stream.x);
	return r;
}

/* The original on the windows held back. */
static int run_reference(struct run *run)
{
	const struct calibration_text *text = &run->text;
	struct stream stream = { .n_windows = text->n_held, .length = text->length,
				 .ids = text->ids + (text->n_windows - text->n_held) *
							    (text->length + 1) };
	struct network network = run->network;
	int r;

	network.change_row = NULL;
	r = network_embed(&network, &stream);
	if (!r)
		r = network_run(&network, &stream, NULL, NULL);
	if (r)
		memory_free(stream.x);
	else
		run->reference = stream.x;
	return r;
}

static int run_pass(struct run *run, double step, struct quant_pass *ret_pass)
{
	struct quant_report *report = run->report;
	struct quant_pass pass = { .step = step };
	uint64_t stored = 0;
	int r;

	run->step = step;
	run->done = 0;
	for (size_t i = 0; i < report->n_tensors; i++)
		if (!report->tensors[i].embedding)
			report->tensors[i].stored_bytes = 0;
	r = run->text.ids ? pass_with_text(run, &pass) : for_each(run, OUTPUT_LINEAR, round_without_text);
	if (r)
		return r;
	for (size_t i = 0; i < report->n_tensors; i++)
		stored += report->tensors[i].embedding ? 0 : report->tensors[i].stored_bytes;
	pass.bits = 8 * (double)stored / (double)report->n_linear_weights;
	report->passes[report->n_passes++] = pass;
	report->bits = pass.bits;
	*ret_pass = pass;
	return 0;
}

static int search_bits(struct run *run)
{
	double target = run->options->bits, step = exp2(2.05 - target);
	struct quant_pass pass = { 0 };

	run->draft = run->text.ids != NULL;
	for (unsigned i = 0; i < QUANT_MAX_PASSES; i++) {
		int r = run_pass(run, fmin(fmax(step, LEAST_STEP), MOST_STEP), &pass);
		bool near = pass.bits <= target && pass.bits > target - BITS_BELOW;

		if (r || (near && !run->draft))
			return r;
		if (run->draft && (near || i == QUANT_MAX_PASSES / 2)) {
			run->draft = false;
			continue;
		}
		if ((pass.bits < target && step <= LEAST_STEP) || (pass.bits > target && step >= MOST_STEP))
			break;
		step = pass.step * exp2(pass.bits - target + BITS_BELOW / 3);
	}
	if (pass.bits <= target) /* INT8 has no more to give, or steps jump */
		return 0;
	return message_set(-ERANGE, "%.2f bits a weight cannot be reached: %.2f are the least here, with "
			   "scales and tables; ask for more bits", target, pass.bits);
}

static int search_loss(struct run *run)
{
	double target = run->options->max_loss, step = FIRST_STEP, good = 0, bad = INFINITY;
	struct quant_pass pass = { 0 };
	int r;

	for (unsigned i = 0; i + 1 < QUANT_MAX_PASSES; i++) {
		double loss;

		r = run_pass(run, step, &pass);
		if (r)
			return r;
		loss = pass.loss - 1;
		if (loss <= target && (loss > target * LOSS_BELOW || step >= MOST_STEP))
			return 0;
		if (loss <= target)
			good = fmax(good, step);
		else
			bad = fmin(bad, step);
		if (bad <= LEAST_STEP || (good > 0 && bad / good < 1.03))
			break;
		/* The loss goes about with the square of the step. */
		step *= fmin(fmax(sqrt(target / fmax(loss, target / 8)), 0.4), 2.5);
		if (step <= good || step >= bad)
			step = good > 0 && isfinite(bad) ? sqrt(good * bad) : step;
		step = fmin(fmax(step, LEAST_STEP), MOST_STEP);
	}
	if (good == 0)
		return message_set(-ERANGE, "a loss of %.4g cannot be reached: %.4g is what %.2f bits a weight "
				   "give; allow more", target, pass.loss - 1, pass.bits);
	return pass.step == good ? 0 : run_pass(run, good, &pass);
}

/* --- all of it --- */

static int add_report(struct run *run, const struct tensors_entry *entry)
{
	struct quant_tensor *tensor = &run->report->tensors[run->report->n_tensors];

	tensor->name = memory_strdup(entry->tensor->name);
	if (!tensor->name)
		return message_set(-ENOMEM, "not enough memory for the tensor table");
	run->report->n_tensors++;
	tensor->n_rows = entry->tensor->dims[0];
	tensor->n_cols = entry->tensor->dims[1];
	tensor->embedding = output_item(&run->output, entry)->kind == OUTPUT_EMBEDDING;
	if (!tensor->embedding)
		run->report->n_linear_weights += tensor->n_rows * tensor->n_cols;
	return 0;
}

static int open_calibration(struct run *run)
{
	const struct quant_options *options = run->options;
	size_t length = options->window;
	int r;

	run->report->calibration = options->calibration_ids ? "text" :
				   options->calibration_stats ? "statistics" : "none";
	if (options->calibration_stats)
		return calibration_stats_open(options->calibration_stats, &run->stats);
	r = options->calibration_ids ? network_init(&run->network, &run->tensors) : NETWORK_UNKNOWN;
	if (options->calibration_ids && r == NETWORK_UNKNOWN && options->max_loss > 0)
		return message_prefix(-EINVAL, "a loss cannot be measured");
	if (options->calibration_ids && r == NETWORK_UNKNOWN) {
		run->report->calibration = "none";
		snprintf(run->report->note, sizeof(run->report->note), "not calibrated: %s", message_get());
	}
	if (r)
		return r == NETWORK_UNKNOWN ? 0 : r;
	run->has_network = true;
	run->network.n_threads = options->n_jobs;
	run->network.cancel = options->cancel;
	run->network.data = run;
	if (options->embeddings != QUANT_EMBEDDINGS_LOSSLESS)
		run->network.change_row = change_row;
	if (length > run->network.n_positions)
		length = run->network.n_positions;
	r = calibration_text_read(options->calibration_ids, run->network.n_vocab, options->n_windows,
				  length, &run->text);
	return r ? r : run_reference(run);
}

static int open_run(struct run *run, const char *source, const char *directory)
{
	int r = source_init(&run->source, source);

	if (r)
		return r;
	for (size_t f = 0; f < run->source.n_files; f++)
		run->some_model |= run->source.files[f].is_model;
	run->codec = codec_context_new_encoder();
	run->report->tensors = memory_array(run->source.n_tensors + 1, sizeof(struct quant_tensor));
	r = run->codec && run->report->tensors ? tensors_open(&run->tensors, &run->source) :
						 message_set(-ENOMEM, "not enough memory to quantize");
	if (!r)
		r = output_open(&run->output, &run->tensors, directory, kind_of, run);
	if (!r)
		r = for_each(run, OUTPUT_LINEAR, add_report);
	if (!r && run->report->n_tensors == 0)
		r = message_set(-EINVAL, "%s: no linear layer in BF16, F16 or F32 to quantize: pack it "
				"without --quantize", source);
	if (!r)
		r = for_each(run, OUTPUT_EMBEDDING, add_report);
	run->total = run->report->n_linear_weights;
	return r ? r : open_calibration(run);
}

static void close_run(struct run *run)
{
	memory_free(run->reference);
	calibration_text_deinit(&run->text);
	if (run->stats.path)
		calibration_stats_close(&run->stats);
	if (run->output.directory)
		output_close(&run->output);
	if (run->tensors.fds)
		tensors_close(&run->tensors);
	run->codec = codec_context_free(run->codec);
	if (run->source.files)
		source_deinit(&run->source);
}

int quant_run(const char *source, const char *directory, const struct quant_options *options,
	      struct quant_report *ret_report)
{
	struct quant_report report = { 0 };
	struct run run = { .options = options, .report = &report, .stats.fd = -1 };
	uint64_t start = clock_now_ns();
	int r = open_run(&run, source, directory);

	if (!r)
		r = for_each(&run, OUTPUT_EMBEDDING, round_embedding);
	if (!r)
		r = options->max_loss > 0 ? search_loss(&run) : search_bits(&run);
	close_run(&run);
	if (r) {
		quant_report_deinit(&report);
		return r;
	}
	report.seconds = (double)(clock_now_ns() - start) / NS_PER_S;
	*ret_report = report;
	return 0;
}

void quant_report_deinit(struct quant_report *report)
{
	for (size_t i = 0; i < report->n_tensors; i++)
		memory_free(report->tensors[i].name);
	report->tensors = memory_free(report->tensors);
	report->n_tensors = 0;
}
