/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds a weight matrix to INT8 codes that an entropy coder makes small: one step for the tensor,
 * errors fed forward under the inputs' covariance, each code chosen by error and code length, scales
 * fitted again a row at a time (docs/quantization.md has the method and its sources).
 */
#ifndef DCMEM_ROUND_H
#define DCMEM_ROUND_H

#include <stddef.h>
#include <stdint.h>

/* What an error of a weight costs: e H e' for each row e of errors. */
struct metric {
	size_t n;
	float *gram;	  /* [n][n], symmetric; NULL: diagonal, or the identity if `diagonal` is too */
	float *diagonal;  /* [n] */
	uint32_t *order;  /* columns, the costliest first; NULL: as they are */
	float *factors;	  /* [j][k > j], in that order: what an error at j moves at k; NULL: nothing */
	float *weights;	  /* [n], in that order: cost of the error that is left; mean of logarithms 0 */
	double level;	  /* the geometric mean that they were divided by */
};

/* Each owns what it makes; metric_deinit() after success. -ENOMEM, or -EDOM for a NaN, infinite or
 * negative entry, with a message that does not name the tensor. */
int metric_init_plain(struct metric *metric, size_t n);
/* diagonal: [n], copied. Entries below a 10^-4 part of the mean are raised to it. */
int metric_init_diagonal(struct metric *metric, const float *diagonal, size_t n);
/* gram: [n][n], the lower triangle; taken over (memory_free) and made symmetric, even on failure. */
int metric_init_gram(struct metric *metric, float *gram, size_t n, unsigned n_threads);
void metric_deinit(struct metric *metric);

struct round_options {
	unsigned n_threads;
	double step; /* in units of the tensor's rms */
	double rate; /* weight of the code length in each choice; 0: to the nearest */
};

struct round_result {
	double error;	    /* sum over rows of e H e' */
	double energy;	    /* the same of the weights themselves */
	double entropy;	    /* bits a code, order 0 */
	double near_zero;   /* share of codes -1, 0, 1 */
	/* How often each code - 128 would be the nearest, and was chosen. */
	uint64_t nearest[256], chosen[256];
};

/*
 * w: [n_rows][metric->n], finite; overwritten with codes * scales. codes: [n_rows][metric->n],
 * scales: [n_rows], each exact in BF16. 0, -ENOMEM, or -EDOM if a weight is not finite.
 */
int round_matrix(float *w, size_t n_rows, const struct metric *metric,
		 const struct round_options *options, int8_t *codes, float *scales,
		 struct round_result *ret_result);

/* One row with its own scale: step times its rms, or as fine as INT8 allows if step is 0. Overwrites
 * it as above. */
void round_row(float *w, size_t n, double step, int8_t *codes, float *ret_scale);

/* The nearest value that BF16 has. */
float round_to_bf16(float value);

#endif
