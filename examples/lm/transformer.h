/* SPDX-License-Identifier: Apache-2.0 */
/* Llama and OPT: tokens in, logits out, with a key-value cache of float32 for each sequence. */
#ifndef LM_TRANSFORMER_H
#define LM_TRANSFORMER_H

#include "config.h"
#include "matrix.h"

struct transformer;

/* One input token: which sequence, where in it. */
struct token_at {
	uint32_t token, sequence, position;
};

/* Room for `n_sequences` of up to `n_positions` tokens each. */
int transformer_new(struct engine *engine, const struct config *config, uint32_t n_sequences,
		    uint32_t n_positions, struct transformer **ret_transformer);
struct transformer *transformer_free(struct transformer *transformer);
static inline void cleanup_transformer(struct transformer **transformer)
{
	*transformer = transformer_free(*transformer);
}

/*
 * Feeds 1 to MATRIX_MAX_BATCH tokens. Positions of a sequence come in order, without a gap. Logits
 * of the last `n_logits` of them: [n_logits][n_vocab], valid until the next call; NULL if 0.
 */
int transformer_feed(struct transformer *transformer, const struct token_at *tokens, size_t n,
		     size_t n_logits, const float **ret_logits);

#endif
