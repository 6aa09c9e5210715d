/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the choice of every code. Rows are independent once the metric is factored, so threads take
 * DENSE_ROWS of them at a time, transposed: a column of sixteen rows is one vector.
 *
 * With H = R R' (R upper triangular, in the metric's order), the cost of a row's error e is the sum
 * over k of (e R)_k squared, and (e R)_k = R_kk (e_k + sum over j < k of e_j R_jk / R_kk). So the
 * codes are chosen one by one; at k the sum is known, and the best value for the code is w_k plus
 * the sum: error feedback as in GPTQ (Frantar et al. 2023), equal to Babai's nearest plane.
 */
#include "quant/round.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/message.h"
#include "base/parallel.h"
#include "quant/dense.h"

#define DAMPING	     0.01 /* of the mean of the diagonal, added to each entry: as GPTQ has it */
#define LEAST	     1e-4 /* of the mean: the least that an input counts */
#define BLOCK	     32	  /* columns whose errors are carried on together: untuned */
#define N_CODES	     256
#define MAX_CODE     127

float round_to_bf16(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	bits += 0x7fff + (bits >> 16 & 1);
	bits &= 0xffff0000;
	memcpy(&value, &bits, sizeof(bits));
	return value;
}

/* --- the metric --- */

static int metric_weigh(struct metric *metric)
{
	double sum = 0;

	for (size_t k = 0; k < metric->n; k++)
		sum += log(metric->weights[k]);
	metric->level = exp(sum / (double)metric->n);
	for (size_t k = 0; k < metric->n; k++)
		metric->weights[k] = (float)(metric->weights[k] / metric->level);
	return 0;
}

int metric_init_plain(struct metric *ret_metric, size_t n)
{
	struct metric metric = { .n = n, .level = 1 };

	metric.weights = memory_array(n, sizeof(float));
	if (!metric.weights)
		return message_set(-ENOMEM, "not enough memory to quantize");
	for (size_t k = 0; k < n; k++)
		metric.weights[k] = 1;
	*ret_metric = metric;
	return 0;
}

/* The mean of what must be finite and not negative; 0 if all are 0. */
static int check_diagonal(const float *diagonal, size_t n, size_t stride, double *ret_mean)
{
	double sum = 0;

	*ret_mean = 0;
	for (size_t i = 0; i < n; i++) {
		if (!isfinite(diagonal[i * stride]) || diagonal[i * stride] < 0)
			return message_set(-EDOM, "the statistics of its input %zu are not finite "
					   "numbers; calibrate again", i);
		sum += diagonal[i * stride];
	}
	*ret_mean = sum / (double)n;
	return 0;
}

int metric_init_diagonal(struct metric *ret_metric, const float *diagonal, size_t n)
{
	double mean;
	int r = check_diagonal(diagonal, n, 1, &mean);

	if (r)
		return r;
	r = metric_init_plain(ret_metric, n);
	if (r || mean == 0)
		return r;
	ret_metric->diagonal = memory_array(n, sizeof(float));
	if (!ret_metric->diagonal) {
		metric_deinit(ret_metric);
		return message_set(-ENOMEM, "not enough memory to quantize");
	}
	for (size_t k = 0; k < n; k++)
		ret_metric->diagonal[k] = ret_metric->weights[k] =
			(float)fmax(diagonal[k], LEAST * mean);
	return metric_weigh(ret_metric);
}

struct by_cost {
	float cost;
	uint32_t column;
};

static int compare_costs(const void *a, const void *b)
{
	const struct by_cost *x = a, *y = b;

	if (x->cost != y->cost)
		return x->cost > y->cost ? -1 : 1;
	return x->column < y->column ? -1 : 1;
}

static int metric_order(struct metric *metric)
{
	struct by_cost *costs = memory_array(metric->n, sizeof(*costs));

	metric->order = memory_array(metric->n, sizeof(*metric->order));
	if (!costs || !metric->order) {
		memory_free(costs);
		return -ENOMEM;
	}
	for (size_t i = 0; i < metric->n; i++)
		costs[i] = (struct by_cost){ metric->gram[i * metric->n + i], (uint32_t)i };
	qsort(costs, metric->n, sizeof(*costs), compare_costs);
	for (size_t i = 0; i < metric->n; i++)
		metric->order[i] = costs[i].column;
	memory_free(costs);
	return 0;
}

/*
 * R as the Cholesky factor of H with its order turned round: R(j, k) is L(n-1-j, n-1-k).
 * More damping where the inputs are so alike that the factor does not exist.
 */
static int metric_factor(struct metric *metric, double mean, unsigned n_threads)
{
	size_t n = metric->n;
	double *a = memory_array(n * n, sizeof(*a));
	double damping = DAMPING * mean;

	if (!a)
		return -ENOMEM;
	for (;; damping *= 4) {
		for (size_t i = 0; i < n; i++) {
			const float *row = metric->gram + metric->order[n - 1 - i] * n;

			for (size_t j = 0; j <= i; j++)
				a[i * n + j] = row[metric->order[n - 1 - j]];
			a[i * n + i] += damping;
		}
		if (dense_cholesky(n_threads, a, n))
			break;
		if (damping > 1e3 * mean) {
			memory_free(a);
			return message_set(-EDOM, "the statistics of its inputs are no covariance; "
					   "calibrate again");
		}
	}
	for (size_t j = 0; j < n; j++) {
		for (size_t k = j; k < n; k++) {
			double pivot = a[(n - 1 - k) * n + n - 1 - k];

			metric->factors[j * n + k] =
				(float)(a[(n - 1 - j) * n + n - 1 - k] / pivot);
			if (k == j)
				metric->weights[k] = (float)(pivot * pivot);
		}
	}
	memory_free(a);
	return 0;
}

int metric_init_gram(struct metric *ret_metric, float *gram, size_t n, unsigned n_threads)
{
	struct metric metric = { .n = n, .level = 1, .gram = gram };
	double mean;
	int r = check_diagonal(gram, n, n + 1, &mean);

	if (!r && mean == 0) {
		memory_free(gram);
		return metric_init_plain(ret_metric, n);
	}
	for (size_t i = 0; i < n; i++)
		for (size_t j = 0; j < i; j++)
			gram[j * n + i] = gram[i * n + j];
	metric.weights = memory_array(n, sizeof(float));
	metric.factors = memory_array(n * n, sizeof(float));
	if (!r)
		r = metric.weights && metric.factors ? metric_order(&metric) : -ENOMEM;
	if (!r)
		r = metric_factor(&metric, mean, n_threads);
	if (!r)
		r = metric_weigh(&metric);
	if (r) {
		metric_deinit(&metric);
		return r == -ENOMEM ? message_set(r, "not enough memory for the statistics of %zu inputs",
						  n) : r;
	}
	*ret_metric = metric;
	return 0;
}

void metric_deinit(struct metric *metric)
{
	metric->gram = memory_free(metric->gram);
	metric->diagonal = memory_free(metric->diagonal);
	metric->order = memory_free(metric->order);
	metric->factors = memory_free(metric->factors);
	metric->weights = memory_free(metric->weights);
}

/* --- code lengths --- */

static void count_codes(const int8_t *codes, size_t n, uint64_t counts[N_CODES])
{
	for (size_t i = 0; i < n; i++)
		counts[codes[i] + 128]++;
}

/* Bits a code will take, from how often each is the nearest; rare ones are smoothed. */
static void code_lengths(const uint64_t counts[N_CODES], float ret_bits[N_CODES])
{
	static const double kernel[5] = { 1 / 9.0, 2 / 9.0, 3 / 9.0, 2 / 9.0, 1 / 9.0 };
	double smooth[N_CODES], sum = 0;

	for (int i = 0; i < N_CODES; i++) {
		smooth[i] = (double)counts[i];
		for (int j = -2; counts[i] < 32 && j <= 2; j++)
			smooth[i] += i + j >= 0 && i + j < N_CODES ?
					     kernel[j + 2] * (double)counts[i + j] : 0;
		if (counts[i] < 32)
			smooth[i] -= (double)counts[i];
		smooth[i] += 0.02;
		sum += smooth[i];
	}
	for (int i = 0; i < N_CODES; i++)
		ret_bits[i] = (float)-log2(smooth[i] / sum);
}

static double entropy(const uint64_t counts[N_CODES])
{
	double sum = 0, bits = 0;

	for (int i = 0; i < N_CODES; i++)
		sum += (double)counts[i];
	for (int i = 0; i < N_CODES; i++)
		if (counts[i])
			bits -= (double)counts[i] / sum * log2((double)counts[i] / sum);
	return bits;
}

/* --- rows --- */

struct rounding {
	const struct metric *metric;
	float *w;
	size_t n_rows;
	int8_t *codes;
	float *scales;	    /* the steps at first */
	float *fitted;	    /* scales that make the error least */
	double *terms;	    /* [n_rows][3]: w H w', q H w', q H q' */
	float lengths[N_CODES];
	float rate;
	pthread_mutex_t lock; /* counts, failed */
	uint64_t counts[N_CODES];
	bool failed;
};

static int nearest(float z)
{
	float q = rintf(z);

	return q > MAX_CODE ? MAX_CODE : q < -MAX_CODE ? -MAX_CODE : (int)q;
}

/* The nearest code, or the next one towards 0 where that costs less. */
static int choose(const struct rounding *rounding, float z, float weight)
{
	int q = nearest(z), nearer = q - (q > 0) + (q < 0);
	float loss, other;

	if (q == nearer)
		return q;
	loss = (z - (float)q) * (z - (float)q) * weight + rounding->rate * rounding->lengths[q + 128];
	other = (z - (float)nearer) * (z - (float)nearer) * weight +
		rounding->rate * rounding->lengths[nearer + 128];
	return other < loss ? nearer : q;
}

/* Codes of one column in sixteen rows; their errors. */
static void choose_column(const struct rounding *rounding, size_t column, size_t place,
			  size_t first, size_t n, const float *w, const float *sums, float *errors)
{
	for (size_t r = 0; r < DENSE_ROWS; r++)
		errors[r] = 0;
	for (size_t r = 0; r < n; r++) {
		float step = rounding->scales[first + r];
		int q = choose(rounding, (w[r] + sums[r]) / step, rounding->metric->weights[place]);

		rounding->codes[(first + r) * rounding->metric->n + column] = (int8_t)q;
		errors[r] = w[r] - (float)q * step;
	}
}

static void round_with_feedback(const struct rounding *rounding, size_t first, size_t n,
				float *w, float *sums)
{
	const struct metric *metric = rounding->metric;
	_Alignas(64) float errors[BLOCK * DENSE_ROWS];
	size_t n_cols = metric->n;

	memset(w, 0, n_cols * DENSE_ROWS * sizeof(float));
	memset(sums, 0, n_cols * DENSE_ROWS * sizeof(float));
	for (size_t k = 0; k < n_cols; k++)
		for (size_t r = 0; r < n; r++)
			w[k * DENSE_ROWS + r] = rounding->w[(first + r) * n_cols + metric->order[k]];
	for (size_t block = 0; block < n_cols; block += BLOCK) {
		size_t end = block + BLOCK < n_cols ? block + BLOCK : n_cols;

		for (size_t k = block; k < end; k++) {
			float *error = errors + (k - block) * DENSE_ROWS;

			choose_column(rounding, metric->order[k], k, first, n, w + k * DENSE_ROWS,
				      sums + k * DENSE_ROWS, error);
			dense_feedback(error, 1, metric->factors + k * n_cols + k + 1, n_cols,
				       sums + (k + 1) * DENSE_ROWS, end - k - 1);
		}
		dense_feedback(errors, end - block, metric->factors + block * n_cols + end, n_cols,
			       sums + end * DENSE_ROWS, n_cols - end);
	}
}

static void round_alone(const struct rounding *rounding, size_t first, size_t n)
{
	const struct metric *metric = rounding->metric;

	for (size_t row = first; row < first + n; row++) {
		const float *w = rounding->w + row * metric->n;
		int8_t *codes = rounding->codes + row * metric->n;
		float inverse = 1 / rounding->scales[row];

		for (size_t k = 0; k < metric->n; k++)
			codes[k] = (int8_t)choose(rounding, w[k] * inverse, metric->weights[k]);
	}
}

/* out[r] = (x H) of each row: with a gram matrix, a diagonal, or as it is. */
static void apply_metric(const struct metric *metric, const float *x, size_t n, float *out)
{
	size_t n_cols = metric->n;

	if (metric->gram) {
		dense_linear(1, x, n, metric->gram, n_cols, n_cols, out, false);
		return;
	}
	for (size_t i = 0; i < n * n_cols; i++)
		out[i] = metric->diagonal ? x[i] * metric->diagonal[i % n_cols] : x[i];
}

static void fit_rows(const struct rounding *rounding, size_t first, size_t n, float *q, float *applied)
{
	size_t n_cols = rounding->metric->n;
	const float *w = rounding->w + first * n_cols;

	apply_metric(rounding->metric, w, n, applied);
	for (size_t i = 0; i < n; i++) {
		double *terms = rounding->terms + (first + i) * 3;

		for (size_t k = 0; k < n_cols; k++)
			terms[0] += (double)applied[i * n_cols + k] * w[i * n_cols + k];
	}
	for (size_t i = 0; i < n * n_cols; i++)
		q[i] = rounding->codes[first * n_cols + i];
	apply_metric(rounding->metric, q, n, applied);
	for (size_t i = 0; i < n; i++) {
		double *terms = rounding->terms + (first + i) * 3;
		float step = rounding->scales[first + i], fitted;

		for (size_t k = 0; k < n_cols; k++) {
			terms[1] += (double)applied[i * n_cols + k] * w[i * n_cols + k];
			terms[2] += (double)applied[i * n_cols + k] * q[i * n_cols + k];
		}
		fitted = terms[2] > 0 ? round_to_bf16((float)(terms[1] / terms[2])) : step;
		rounding->fitted[first + i] = fitted > step / 2 && fitted < step * 2 ? fitted : step;
	}
}

static void round_rows(void *data, size_t item)
{
	struct rounding *rounding = data;
	size_t n_cols = rounding->metric->n, first = item * DENSE_ROWS;
	size_t n = rounding->n_rows - first < DENSE_ROWS ? rounding->n_rows - first : DENSE_ROWS;
	_cleanup_(cleanup_memory) float *a = memory_alloc(n_cols * DENSE_ROWS * sizeof(float));
	_cleanup_(cleanup_memory) float *b = memory_alloc(n_cols * DENSE_ROWS * sizeof(float));
	uint64_t counts[N_CODES] = { 0 };

	if (a && b) {
		if (rounding->metric->factors)
			round_with_feedback(rounding, first, n, a, b);
		else
			round_alone(rounding, first, n);
		fit_rows(rounding, first, n, a, b);
		count_codes(rounding->codes + first * n_cols, n * n_cols, counts);
	}
	pthread_mutex_lock(&rounding->lock);
	rounding->failed |= !a || !b;
	for (int i = 0; i < N_CODES; i++)
		rounding->counts[i] += counts[i];
	pthread_mutex_unlock(&rounding->lock);
}

/* --- a matrix --- */

/* The step of each row: that of the tensor, or what INT8 needs to reach the row's largest. */
static int choose_steps(struct rounding *rounding, double step)
{
	size_t n_cols = rounding->metric->n;
	double squares = 0;
	float common;

	for (size_t i = 0; i < rounding->n_rows * n_cols; i++) {
		if (!isfinite(rounding->w[i]))
			return message_set(-EDOM, "the weight at row %zu, column %zu is not a finite number",
					   i / n_cols, i % n_cols);
		squares += (double)rounding->w[i] * rounding->w[i];
	}
	common = round_to_bf16((float)(step * sqrt(squares / (double)(rounding->n_rows * n_cols))));
	if (!(common >= 1e-30F)) /* all zero, or nearly: any step does */
		common = 1e-30F;
	common = round_to_bf16(common);
	for (size_t row = 0; row < rounding->n_rows; row++) {
		float most = 0;

		for (size_t k = 0; k < n_cols; k++)
			most = fmaxf(most, fabsf(rounding->w[row * n_cols + k]));
		rounding->scales[row] = most <= common * MAX_CODE ?
						common : round_to_bf16(most / MAX_CODE);
	}
	return 0;
}

static void first_lengths(struct rounding *rounding, uint64_t counts[N_CODES])
{
	for (size_t row = 0; row < rounding->n_rows; row++) {
		const float *w = rounding->w + row * rounding->metric->n;
		float inverse = 1 / rounding->scales[row];

		for (size_t k = 0; k < rounding->metric->n; k++)
			counts[nearest(w[k] * inverse) + 128]++;
	}
	code_lengths(counts, rounding->lengths);
}

/* Fitted scales, if they are worth the bits that a scale of its own costs each row. */
static void settle_scales(struct rounding *rounding, struct round_result *result)
{
	double plain = 0, fitted = 0, worth, step = rounding->scales[0];

	for (size_t row = 0; row < rounding->n_rows; row++) {
		const double *t = rounding->terms + row * 3;
		double s = rounding->scales[row], f = rounding->fitted[row];

		result->energy += t[0];
		plain += t[0] - 2 * s * t[1] + s * s * t[2];
		fitted += t[0] - 2 * f * t[1] + f * f * t[2];
	}
	/* At high rate a bit takes (ln 2 / 6) step^2 off the mean error of a weight. */
	worth = log(2) / 6 * step * step * rounding->metric->level * 10 * (double)rounding->n_rows;
	result->error = plain;
	if (plain - fitted > worth) {
		result->error = fitted;
		memcpy(rounding->scales, rounding->fitted, rounding->n_rows * sizeof(float));
	}
}

int round_matrix(float *w, size_t n_rows, const struct metric *metric,
		 const struct round_options *options, int8_t *codes, float *scales,
		 struct round_result *ret_result)
{
	struct rounding rounding = { .metric = metric, .w = w, .n_rows = n_rows, .codes = codes,
				     .scales = scales,
				     .rate = (float)(options->rate * log(2) / 6) };
	struct round_result result = { 0 };
	int r;

	rounding.fitted = memory_array(n_rows, sizeof(float));
	rounding.terms = memory_array(n_rows * 3, sizeof(double));
	r = rounding.fitted && rounding.terms ? choose_steps(&rounding, options->step) : -ENOMEM;
	if (!r) {
		first_lengths(&rounding, result.nearest);
		pthread_mutex_init(&rounding.lock, NULL);
		parallel_for(options->n_threads, (n_rows + DENSE_ROWS - 1) / DENSE_ROWS, round_rows,
			     &rounding);
		pthread_mutex_destroy(&rounding.lock);
		r = rounding.failed ? -ENOMEM : 0;
	}
	if (!r) {
		settle_scales(&rounding, &result);
		for (size_t i = 0; i < n_rows * metric->n; i++)
			w[i] = (float)codes[i] * scales[i / metric->n];
		memcpy(result.chosen, rounding.counts, sizeof(result.chosen));
		result.entropy = entropy(rounding.counts);
		result.near_zero = (double)(rounding.counts[127] + rounding.counts[128] +
					    rounding.counts[129]) / (double)(n_rows * metric->n);
		*ret_result = result;
	}
	memory_free(rounding.fitted);
	memory_free(rounding.terms);
	return r == -ENOMEM ? message_set(r, "not enough memory to quantize") : r;
}

void round_row(float *w, size_t n, double step, int8_t *codes, float *ret_scale)
{
	double squares = 0;
	float most = 0, scale;

	for (size_t k = 0; k < n; k++) {
		squares += (double)w[k] * w[k];
		most = fmaxf(most, fabsf(w[k]));
	}
	scale = fmaxf((float)(step * sqrt(squares / (double)n)), most / MAX_CODE);
	scale = round_to_bf16(scale >= 1e-30F ? scale : 1e-30F);
	for (size_t k = 0; k < n; k++) {
		codes[k] = (int8_t)nearest(w[k] / scale);
		w[k] = (float)codes[k] * scale;
	}
	*ret_scale = scale;
}
