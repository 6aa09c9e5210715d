/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Quantizes a model: linear layers (and embeddings, if wanted) become INT8 codes with scales, in the
 * naming of compressed-tensors, in a directory that pack() then packs like any other.
 */
#ifndef DCMEM_QUANT_H
#define DCMEM_QUANT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum quant_embeddings {
	QUANT_EMBEDDINGS_AUTO,	   /* codes with a step of a tenth of each row's rms: about 5.4 bits */
	QUANT_EMBEDDINGS_INT8,	   /* as fine as INT8 allows */
	QUANT_EMBEDDINGS_LOSSLESS, /* left alone */
	QUANT_N_EMBEDDINGS,
};
const char *quant_embeddings_name(unsigned embeddings); /* "auto", ..., NULL where there is none */

struct quant_options {
	unsigned n_jobs;
	double bits;	 /* of a linear weight, all counted; 0: see max_loss */
	double max_loss; /* of the perplexity on text held back: 0.01 is 1 %; 0: none */
	const char *calibration_ids, *calibration_stats; /* at most one; both NULL: data-free */
	size_t n_windows, window; /* of calibration text, and tokens of each */
	enum quant_embeddings embeddings;
	const atomic_bool *cancel; /* may be NULL */
	/* A pass over the model is `pass` (from 1); weights done of all. */
	void (*progress)(void *data, unsigned pass, uint64_t done, uint64_t total);
	void *data;
};

struct quant_tensor {
	char *name;
	uint64_t n_rows, n_cols;
	bool embedding;
	uint64_t stored_bytes; /* codes and scales, with their page records, as pack() will store them */
	double error;	       /* of the outputs, relative to their energy, as the metric sees it */
	double entropy;	       /* bits a code */
	double near_zero;      /* share of codes -1, 0, 1 */
	uint64_t nearest[256], chosen[256]; /* codes by how often, as round.h has them; 0 of embeddings */
};

struct quant_pass {
	double step; /* in units of each tensor's rms */
	double bits; /* of a linear weight */
	double loss; /* perplexity on the text held back, over that of the original; 0: not measured */
};
#define QUANT_MAX_PASSES 8

struct quant_report {
	struct quant_tensor *tensors;
	size_t n_tensors;
	const char *calibration; /* "text", "statistics", "none" */
	struct quant_pass passes[QUANT_MAX_PASSES];
	unsigned n_passes; /* the last one is the result */
	uint64_t n_linear_weights;
	double bits;	   /* of a linear weight */
	/* On the text held back; windows 0: not measured. */
	size_t n_windows;
	double perplexity, original_perplexity, loss_error; /* standard error of log(loss), paired */
	double kl, agreement, accuracy, original_accuracy;
	double seconds;
	char note[256]; /* why something was done otherwise than asked for; "" */
};

/*
 * Quantizes the model at `source` into `directory`, which must exist and be empty. Files that stay as
 * they are become links. 0, -errno or DCMEM_E_... with a message; then the directory holds rubbish.
 */
int quant_run(const char *source, const char *directory, const struct quant_options *options,
	      struct quant_report *ret_report);
void quant_report_deinit(struct quant_report *report);

#endif
