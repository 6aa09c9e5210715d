/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a model is: its architecture from config.json, and the part of a tensor by its name. A key
 * that this pass cannot honour makes the architecture unknown, never a wrong result.
 */
#include "quant/network.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/message.h"
#include "quant/json-file.h"

#define MAX_SIZE	 (1U << 24)
#define LEAST_SIDE	 16 /* a smaller matrix is no layer worth quantizing */

static void cleanup_json(json_t **json)
{
	json_decref(*json);
}

static int read_config(const struct source *source, json_t **ret_root)
{
	const struct source_file *file = NULL;
	int r;

	for (size_t f = 0; f < source->n_files; f++)
		if (strcmp(source->files[f].name, "config.json") == 0)
			file = &source->files[f];
	if (!file)
		return message_set(NETWORK_UNKNOWN, "the model has no config.json");
	r = json_file_read(file, ret_root);
	return r == -EINVAL ? NETWORK_UNKNOWN : r;
}

/* A whole number from 1 to MAX_SIZE; `otherwise` 0: it must be there. */
static bool get_size(const json_t *root, const char *key, size_t otherwise, size_t *ret_value)
{
	const json_t *item = json_object_get(root, key);

	*ret_value = otherwise;
	if (item && !json_is_null(item))
		*ret_value = json_is_integer(item) && json_integer_value(item) > 0 &&
				     json_integer_value(item) <= MAX_SIZE ?
				     (size_t)json_integer_value(item) : 0;
	if (*ret_value == 0)
		(void)message_set(0, "config.json: \"%s\" is not a usable number", key);
	return *ret_value > 0;
}

static bool get_number(const json_t *root, const char *key, double otherwise, double *ret_value)
{
	const json_t *item = json_object_get(root, key);

	*ret_value = json_is_number(item) ? json_number_value(item) : otherwise;
	if (isfinite(*ret_value) && *ret_value > 0)
		return true;
	(void)message_set(0, "config.json: \"%s\" is not a usable number", key);
	return false;
}

static bool get_bool(const json_t *root, const char *key, bool otherwise)
{
	const json_t *item = json_object_get(root, key);

	return json_is_boolean(item) ? json_is_true(item) : otherwise;
}

/* Is it as it must be, or not there? */
static bool expect_text(const json_t *root, const char *key, const char *wanted)
{
	const json_t *item = json_object_get(root, key);
	const char *text = json_string_value(item);

	if (!item || json_is_null(item) || (text && strcmp(text, wanted) == 0))
		return true;
	(void)message_set(0, "config.json: \"%s\" is not \"%s\"", key, wanted);
	return false;
}

static bool expect_bool(const json_t *root, const char *key, bool wanted, bool otherwise)
{
	if (get_bool(root, key, otherwise) == wanted)
		return true;
	(void)message_set(0, "config.json: \"%s\" is not %s", key, wanted ? "true" : "false");
	return false;
}

static bool parse_llama(const json_t *root, struct network *network)
{
	const json_t *rope = json_object_get(root, "rope_parameters");
	const json_t *scaling = json_object_get(root, "rope_scaling");

	network->norm_before = true;
	network->tied = get_bool(root, "tie_word_embeddings", false);
	if (json_is_object(scaling) && !expect_text(scaling, "rope_type", "default"))
		return false;
	return get_size(root, "intermediate_size", 0, &network->n_inner) &&
	       get_size(root, "num_key_value_heads", network->n_heads, &network->n_kv_heads) &&
	       get_number(root, "rms_norm_eps", 1e-6, &network->norm_eps) &&
	       get_number(root, "rope_theta", 10000, &network->rope_theta) &&
	       expect_text(root, "hidden_act", "silu") &&
	       expect_bool(root, "attention_bias", false, false) &&
	       expect_bool(root, "mlp_bias", false, false) &&
	       (!json_is_object(rope) ||
		(expect_text(rope, "rope_type", "default") &&
		 get_number(rope, "rope_theta", network->rope_theta, &network->rope_theta)));
}

static bool parse_opt(const json_t *root, struct network *network)
{
	size_t projected;

	network->opt = true;
	network->n_kv_heads = network->n_heads;
	network->norm_eps = 1e-5;
	network->tied = get_bool(root, "tie_word_embeddings", true);
	network->norm_before = get_bool(root, "do_layer_norm_before", true);
	if (!get_size(root, "ffn_dim", 0, &network->n_inner) ||
	    !get_size(root, "word_embed_proj_dim", network->n_hidden, &projected) ||
	    !expect_text(root, "activation_function", "relu") ||
	    !expect_bool(root, "enable_bias", true, true) ||
	    !expect_bool(root, "layer_norm_elementwise_affine", true, true) ||
	    !expect_bool(root, "_remove_final_layer_norm", false, false))
		return false;
	if (projected != network->n_hidden)
		(void)message_set(0, "config.json: projected embeddings are not known");
	return projected == network->n_hidden;
}

static bool parse(const json_t *root, struct network *network)
{
	const char *arch = json_string_value(
		json_array_get(json_object_get(root, "architectures"), 0));
	bool llama = arch && strcmp(arch, "LlamaForCausalLM") == 0;

	if (!llama && (!arch || strcmp(arch, "OPTForCausalLM") != 0)) {
		(void)message_set(0, "config.json: architecture %.64s; LlamaForCausalLM and "
				  "OPTForCausalLM are known", arch ? arch : "missing");
		return false;
	}
	if (!get_size(root, "vocab_size", 0, &network->n_vocab) ||
	    !get_size(root, "hidden_size", 0, &network->n_hidden) ||
	    !get_size(root, "num_hidden_layers", 0, &network->n_layers) ||
	    !get_size(root, "num_attention_heads", 0, &network->n_heads) ||
	    !get_size(root, "max_position_embeddings", 2048, &network->n_positions) ||
	    !get_size(root, "head_dim", network->n_hidden / network->n_heads, &network->n_head_dim) ||
	    !(llama ? parse_llama(root, network) : parse_opt(root, network)))
		return false;
	if (network->n_heads % network->n_kv_heads || (llama && network->n_head_dim % 2)) {
		(void)message_set(0, "config.json: its counts of heads do not fit each other");
		return false;
	}
	return true;
}

int network_init(struct network *ret_network, const struct tensors *tensors)
{
	struct network network = { .tensors = tensors, .n_threads = 1 };
	_cleanup_(cleanup_json) json_t *root = NULL;
	int r = read_config(tensors->source, &root);

	if (r)
		return r;
	if (!parse(root, &network))
		return NETWORK_UNKNOWN;
	*ret_network = network;
	return 0;
}

static bool contains_any(const char *name, const char *const *parts)
{
	for (; *parts; parts++)
		if (strstr(name, *parts))
			return true;
	return false;
}

static bool is_matrix(const struct tensors_entry *entry)
{
	const struct safetensors_tensor *tensor = entry->tensor;
	size_t n = strlen(tensor->name);

	return tensors_is_float(entry) && tensor->n_dims == 2 && tensor->dims[0] >= LEAST_SIDE &&
	       tensor->dims[1] >= LEAST_SIDE && n > 7 &&
	       strcmp(tensor->name + n - 7, ".weight") == 0;
}

bool network_is_embedding(const struct tensors_entry *entry)
{
	static const char *const parts[] = { "embed_tokens.", "lm_head.", "wte.", "word_embeddings.",
					     "embed_out.", "tok_embeddings.", "embed_in.", NULL };

	return is_matrix(entry) && contains_any(entry->tensor->name, parts);
}

bool network_is_linear(const struct tensors_entry *entry)
{
	/* Positions and norms, and routers, whose few weights decide much. */
	static const char *const others[] = { "embed", "wpe.", "norm", "router.", "mlp.gate.weight",
					      NULL };

	return is_matrix(entry) && !network_is_embedding(entry) &&
	       !contains_any(entry->tensor->name, others);
}
