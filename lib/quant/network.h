/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The forward pass of Llama and OPT, a layer at a time over all windows of text at once: what
 * calibration needs. Weights are read when their layer comes, so memory is bounded by the hidden
 * states and a few tensors.
 */
#ifndef DCMEM_NETWORK_H
#define DCMEM_NETWORK_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "quant/tensors.h"

#define NETWORK_UNKNOWN 1 /* no config.json, or an architecture that is not known here */

struct network {
	const struct tensors *tensors;
	unsigned n_threads;
	const atomic_bool *cancel; /* may be NULL */
	bool opt;		   /* else Llama */
	bool tied, norm_before;
	size_t n_vocab, n_hidden, n_inner, n_layers, n_heads, n_kv_heads, n_head_dim, n_positions;
	double rope_theta, norm_eps;
	/* Changes a row of the embedding or the output matrix as the quantized model has it; or NULL. */
	void (*change_row)(void *data, float *row, size_t n);
	void *data;
};

/* From config.json of the source. 0, NETWORK_UNKNOWN with a message why, or -errno. */
int network_init(struct network *ret_network, const struct tensors *tensors);

/* Windows of text on their way through the layers. */
struct stream {
	size_t n_windows, length; /* tokens a window */
	size_t n_gram;		  /* the first so many windows count in the statistics */
	const uint32_t *ids;	  /* [n_windows][length + 1], not owned; the last one is predicted only */
	float *x;		  /* [n_windows][length][n_hidden] */
};
/* Takes the embeddings of ids. x is the caller's to free (memory_free), also after a failure. */
int network_embed(const struct network *network, struct stream *stream);

/* Linear layers that read the same input. */
struct network_group {
	unsigned n;
	const struct tensors_entry *entries[3];
	float *weights[3]; /* [n_rows][n_cols]; the visitor may change them, the layers after see that */
	size_t n_rows[3], n_cols;
	float *gram; /* [n_cols][n_cols], lower triangle: sum of x x' over the tokens that count; the
			visitor's to free */
};

/* Moves the stream through all layers; visit (or NULL) sees each group when its inputs are known.
 * Stops at the first result of it that is not 0. */
int network_run(const struct network *network, struct stream *stream,
		int (*visit)(void *data, struct network_group *group), void *data);

/* Beside each other: what the original and the changed model predict in window `window`. */
struct network_loss {
	double nll, other_nll; /* mean over the tokens, in nats */
	double kl;	       /* mean of KL(original || changed) */
	double agreement;      /* share of tokens whose likeliest successor is the same */
	double accuracy, other_accuracy;
};
/* x, other_x: hidden states after the last layer, [length][n_hidden]; overwritten. The changed model
 * has its rows changed by change_row. */
int network_compare(const struct network *network, const uint32_t *ids, size_t length, float *x,
		    float *other_x, struct network_loss *ret_loss);

/* A linear layer of an unknown architecture? By its name and shape. */
bool network_is_linear(const struct tensors_entry *entry);
/* An embedding or an output matrix? */
bool network_is_embedding(const struct tensors_entry *entry);

#endif
