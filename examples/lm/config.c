/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads config.json. Refuses what would be computed wrongly: unknown architectures and activations,
 * biases that Llama does not have here, scaled RoPE, projected embeddings. Every size is bounded, so
 * that products of two of them fit 64 bits with room.
 */
#include "config.h"

#include <jansson.h>
#include <math.h>
#include <string.h>

#include "util.h"

#define MAX_WIDTH     (1U << 20)
#define MAX_LAYERS    4096
#define MAX_POSITIONS (1U << 24)

static void cleanup_json(json_t **json)
{
	json_decref(*json);
}

/* A whole number in [1, most]; `otherwise` of 0 makes the key obligatory. */
static int get_size(const json_t *root, const char *key, uint32_t most, uint32_t otherwise,
		    uint32_t *ret_value)
{
	const json_t *item = json_object_get(root, key);
	json_int_t value;

	if (!item || json_is_null(item)) {
		if (otherwise == 0)
			return error_set(-EINVAL, "config.json lacks \"%s\"", key);
		*ret_value = otherwise;
		return 0;
	}
	if (!json_is_integer(item))
		return error_set(-EINVAL, "config.json: \"%s\" is not a whole number", key);
	value = json_integer_value(item);
	if (value < 1 || value > (json_int_t)most)
		return error_set(-EINVAL, "config.json: \"%s\" is %lld, outside 1..%u", key,
				 (long long)value, most);
	*ret_value = (uint32_t)value;
	return 0;
}

static bool get_bool(const json_t *root, const char *key, bool otherwise)
{
	const json_t *item = json_object_get(root, key);

	return json_is_boolean(item) ? json_is_true(item) : otherwise;
}

/* A positive finite number. */
static int get_number(const json_t *root, const char *key, double otherwise, double *ret_value)
{
	const json_t *item = json_object_get(root, key);
	double value = otherwise;

	if (item && !json_is_null(item)) {
		if (!json_is_number(item))
			return error_set(-EINVAL, "config.json: \"%s\" is not a number", key);
		value = json_number_value(item);
	}
	if (!isfinite(value) || value <= 0)
		return error_set(-EINVAL, "config.json: \"%s\" is not positive", key);
	*ret_value = value;
	return 0;
}

static int expect_text(const json_t *root, const char *key, const char *wanted)
{
	const char *text = json_string_value(json_object_get(root, key));

	if (text && strcmp(text, wanted) != 0)
		return error_set(-EINVAL, "config.json: \"%s\" is \"%s\"; only \"%s\" is known", key,
				 text, wanted);
	return 0;
}

static int expect_bool(const json_t *root, const char *key, bool wanted, bool otherwise)
{
	if (get_bool(root, key, otherwise) != wanted)
		return error_set(-EINVAL, "config.json: \"%s\" must be %s", key,
				 wanted ? "true" : "false");
	return 0;
}

static int parse_rope(const json_t *root, struct config *config)
{
	const json_t *rope = json_object_get(root, "rope_parameters");
	const json_t *scaling = json_object_get(root, "rope_scaling");
	double theta;
	int r;

	r = get_number(root, "rope_theta", 10000.0, &theta);
	if (r == 0 && json_is_object(rope)) {
		r = expect_text(rope, "rope_type", "default");
		if (r == 0)
			r = get_number(rope, "rope_theta", theta, &theta);
	}
	if (r == 0 && scaling && !json_is_null(scaling)) {
		const char *type = json_string_value(json_object_get(scaling, "rope_type"));

		if (!type || strcmp(type, "default") != 0)
			r = error_set(-EINVAL, "config.json: scaled RoPE is not supported");
	}
	config->rope_theta = theta;
	return r;
}

static int parse_llama(const json_t *root, struct config *config)
{
	double eps;
	int r;

	config->arch = CONFIG_LLAMA;
	config->norm_before = true;
	if ((r = get_size(root, "intermediate_size", MAX_WIDTH, 0, &config->n_inner)) ||
	    (r = get_size(root, "num_key_value_heads", config->n_heads, config->n_heads,
			  &config->n_kv_heads)) ||
	    (r = get_number(root, "rms_norm_eps", 1e-6, &eps)) ||
	    (r = expect_text(root, "hidden_act", "silu")) ||
	    (r = expect_bool(root, "attention_bias", false, false)) ||
	    (r = expect_bool(root, "mlp_bias", false, false)) || (r = parse_rope(root, config)))
		return r;
	config->norm_eps = (float)eps;
	config->tied = get_bool(root, "tie_word_embeddings", false);
	if (config->n_heads % config->n_kv_heads != 0)
		return error_set(-EINVAL, "config.json: %u heads cannot share %u key-value heads",
				 config->n_heads, config->n_kv_heads);
	return 0;
}

static int parse_opt(const json_t *root, struct config *config)
{
	uint32_t projected;
	int r;

	config->arch = CONFIG_OPT;
	config->n_kv_heads = config->n_heads;
	config->norm_eps = 1e-5F;
	config->tied = get_bool(root, "tie_word_embeddings", true);
	config->norm_before = get_bool(root, "do_layer_norm_before", true);
	if ((r = get_size(root, "ffn_dim", MAX_WIDTH, 0, &config->n_inner)) ||
	    (r = get_size(root, "word_embed_proj_dim", MAX_WIDTH, config->n_hidden, &projected)) ||
	    (r = expect_text(root, "activation_function", "relu")) ||
	    (r = expect_bool(root, "enable_bias", true, true)) ||
	    (r = expect_bool(root, "layer_norm_elementwise_affine", true, true)) ||
	    (r = expect_bool(root, "_remove_final_layer_norm", false, false)))
		return r;
	if (projected != config->n_hidden)
		return error_set(-EINVAL, "config.json: projected embeddings are not supported");
	return 0;
}

static int parse_root(const json_t *root, struct config *config)
{
	const json_t *list = json_object_get(root, "architectures");
	const char *arch = json_string_value(json_array_get(list, 0));
	const json_t *eos = json_object_get(root, "eos_token_id");
	int r;

	if (!arch)
		return error_set(-EINVAL, "config.json lacks \"architectures\"");
	config->eos = json_is_integer(eos) ? json_integer_value(eos) : -1;
	if ((r = get_size(root, "vocab_size", 1U << 24, 0, &config->n_vocab)) ||
	    (r = get_size(root, "hidden_size", MAX_WIDTH, 0, &config->n_hidden)) ||
	    (r = get_size(root, "num_hidden_layers", MAX_LAYERS, 0, &config->n_layers)) ||
	    (r = get_size(root, "num_attention_heads", 4096, 0, &config->n_heads)) ||
	    (r = get_size(root, "max_position_embeddings", MAX_POSITIONS, 2048,
			  &config->n_positions)))
		return r;
	if (config->n_hidden % config->n_heads != 0 && !json_object_get(root, "head_dim"))
		return error_set(-EINVAL, "config.json: hidden_size %u is no multiple of %u heads",
				 config->n_hidden, config->n_heads);
	r = get_size(root, "head_dim", 8192, config->n_hidden / config->n_heads,
		     &config->n_head_dim);
	if (r != 0)
		return r;
	if (strcmp(arch, "LlamaForCausalLM") == 0)
		r = parse_llama(root, config);
	else if (strcmp(arch, "OPTForCausalLM") == 0)
		r = parse_opt(root, config);
	else
		r = error_set(-EINVAL,
			      "config.json: architecture %.64s; this program runs LlamaForCausalLM "
			      "and OPTForCausalLM",
			      arch);
	if (r == 0 && config->arch == CONFIG_LLAMA && config->n_head_dim % 2 != 0)
		r = error_set(-EINVAL, "config.json: head_dim %u is odd", config->n_head_dim);
	return r;
}

int config_parse(const char *text, size_t n_bytes, struct config *ret_config)
{
	_cleanup_(cleanup_json) json_t *root = NULL;
	struct config config = {0};
	json_error_t error;
	int r;

	root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &error);
	if (!json_is_object(root))
		return error_set(-EINVAL, "config.json, line %d: %.200s", error.line,
				 root ? "not an object" : error.text);
	r = parse_root(root, &config);
	if (r == 0)
		*ret_config = config;
	return r;
}
