/* SPDX-License-Identifier: Apache-2.0 */
/* config.json of Hugging Face, checked: what the transformer needs and nothing else. */
#ifndef LM_CONFIG_H
#define LM_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum config_arch { CONFIG_LLAMA, CONFIG_OPT };

struct config {
	enum config_arch arch;
	uint32_t n_vocab, n_hidden, n_inner, n_layers, n_heads, n_kv_heads, n_head_dim;
	uint32_t n_positions;
	double rope_theta;
	float norm_eps;
	bool tied;	  /* the output matrix is the embedding */
	bool norm_before; /* OPT: LayerNorm before attention and MLP */
	int64_t eos;	  /* -1: none */
};

/* 0, or -EINVAL with a sentence about the first key that this program cannot honour. */
int config_parse(const char *text, size_t n_bytes, struct config *ret_config);

#endif
