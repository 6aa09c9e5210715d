/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which tensors a generated model has, in which file and where, and config.json, index and heads of
 * files about them. Holds the tables of a model, never its weights. Immutable once made.
 */
#include "generate-model.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "dcmem/dcmem.h"
#include "model/pack.h"

#define MAX_LAYERS 1000
#define SMALL_ROWS 4
#define SMALL_COLS 256

static const struct shape {
	const char *name;
	uint32_t hidden, inner, layers, heads, kv_heads, head_dim, vocabulary;
	bool tied; /* no lm_head */
} shapes[] = {
	/* Llama 3.2 1B; Llama 2 7B and 70B: config.json of Hugging Face */
	{ "llama-1b", 2048, 8192, 16, 32, 8, 64, 128256, true },
	{ "llama-7b", 4096, 11008, 32, 32, 32, 128, 32000, false },
	{ "llama-70b", 8192, 28672, 80, 64, 8, 128, 32000, false },
	{ "tiny", 192, 512, 4, 6, 2, 32, 1024, true },
};

const char *generate_shape_name(unsigned shape)
{
	return shape < sizeof(shapes) / sizeof(shapes[0]) ? shapes[shape].name : NULL;
}

static uint64_t vocabulary(const struct generate_model *model, const struct shape *shape)
{
	return model->options.n_vocab ? model->options.n_vocab : shape->vocabulary;
}

/* --- tensors --- */

static int add(struct generate_model *model, enum generate_kind kind, uint32_t dtype, uint64_t rows,
	       uint64_t cols, const char *format, va_list args)
{
	struct generate_tensor *tensor;
	int r = memory_grow((void **)&model->tensors, &model->capacity, model->n_tensors,
			    model->n_tensors + 1, sizeof(*tensor));

	if (r)
		return r;
	tensor = &model->tensors[model->n_tensors++];
	*tensor = (struct generate_tensor){
		.kind = kind,
		.dtype = dtype,
		.n_dims = rows ? 2 : 1,
		.dims = { rows ? rows : cols, rows ? cols : 0 },
		.n_bytes = (rows ? rows : 1) * cols *
			   (dtype == DCMEM_I8 ? 1 : dtype == DCMEM_BF16 ? 2 : 4),
	};
	vsnprintf(tensor->name, sizeof(tensor->name), format, args);
	model->n_bytes += tensor->n_bytes;
	return 0;
}

static int add_norm(struct generate_model *model, uint64_t n, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
static int add_norm(struct generate_model *model, uint64_t n, const char *format, ...)
{
	va_list args;
	int r;

	va_start(args, format);
	r = add(model, GENERATE_NORM, DCMEM_BF16, 0, n, format, args);
	va_end(args);
	return r;
}

static int add_scales(struct generate_model *model, uint64_t rows, const char *format, ...)
	__attribute__((format(printf, 3, 4)));
static int add_scales(struct generate_model *model, uint64_t rows, const char *format, ...)
{
	va_list args;
	int r;

	va_start(args, format);
	r = add(model, GENERATE_SCALES, DCMEM_F32, rows, 1, format, args);
	va_end(args);
	return r;
}

/* A matrix, and the scales of its rows if it is INT8. */
static int add_matrix(struct generate_model *model, uint64_t rows, uint64_t cols,
		      const char *format, ...) __attribute__((format(printf, 4, 5)));
static int add_matrix(struct generate_model *model, uint64_t rows, uint64_t cols,
		      const char *format, ...)
{
	uint32_t dtype = model->options.bf16 ? DCMEM_BF16 : DCMEM_I8;
	char name[GENERATE_NAME_BYTES];
	va_list args;
	int r;

	va_start(args, format);
	r = add(model, GENERATE_MATRIX, dtype, rows, cols, format, args);
	va_end(args);
	if (r || model->options.bf16)
		return r;
	snprintf(name, sizeof(name), "%s", model->tensors[model->n_tensors - 1].name);
	return add_scales(model, rows, "%s_scale", name);
}

static int add_layer(struct generate_model *model, const struct shape *shape, unsigned i)
{
	uint64_t hidden = shape->hidden, inner = shape->inner;
	uint64_t q = (uint64_t)shape->heads * shape->head_dim;
	uint64_t kv = (uint64_t)shape->kv_heads * shape->head_dim;
	int r = add_norm(model, hidden, "model.layers.%u.input_layernorm.weight", i);

	if (!r)
		r = add_matrix(model, q, hidden, "model.layers.%u.self_attn.q_proj.weight", i);
	if (!r)
		r = add_matrix(model, kv, hidden, "model.layers.%u.self_attn.k_proj.weight", i);
	if (!r)
		r = add_matrix(model, kv, hidden, "model.layers.%u.self_attn.v_proj.weight", i);
	if (!r)
		r = add_matrix(model, hidden, q, "model.layers.%u.self_attn.o_proj.weight", i);
	if (!r)
		r = add_norm(model, hidden, "model.layers.%u.post_attention_layernorm.weight", i);
	if (!r)
		r = add_matrix(model, inner, hidden, "model.layers.%u.mlp.gate_proj.weight", i);
	if (!r)
		r = add_matrix(model, inner, hidden, "model.layers.%u.mlp.up_proj.weight", i);
	if (!r)
		r = add_matrix(model, hidden, inner, "model.layers.%u.mlp.down_proj.weight", i);
	return r;
}

/* In the order in which a model is read. */
static int add_all(struct generate_model *model, const struct shape *shape)
{
	int r = add_matrix(model, vocabulary(model, shape), shape->hidden, "model.embed_tokens.weight");

	for (unsigned i = 0; i < model->options.n_layers && !r; i++)
		r = add_layer(model, shape, i);
	if (!r)
		r = add_norm(model, shape->hidden, "model.norm.weight");
	if (!r && !shape->tied)
		r = add_matrix(model, vocabulary(model, shape), shape->hidden, "lm_head.weight");
	/* Not called weights: nothing multiplies by them, and they have no scales. */
	for (uint64_t i = 0; i < model->options.n_tensors && !r; i++) {
		r = add_matrix(model, SMALL_ROWS, SMALL_COLS, "model.small.%06" PRIu64, i);
		if (!r && !model->options.bf16)
			model->n_bytes -= model->tensors[--model->n_tensors].n_bytes;
	}
	return r;
}

/* Consecutive tensors, near the same bytes a shard, at least one tensor each. */
static void place(struct generate_model *model)
{
	unsigned n_shards = model->options.n_shards, shard = 0;
	uint64_t before = 0, offset = 0;

	for (uint64_t i = 0; i < model->n_tensors; i++) {
		struct generate_tensor *tensor = &model->tensors[i];
		uint64_t others = model->n_tensors - i;
		bool full = before >= div_up(model->n_bytes, n_shards) * (shard + 1);

		if (offset && shard + 1 < n_shards && (full || others < n_shards - shard)) {
			shard++;
			offset = 0;
		}
		tensor->shard = shard;
		tensor->offset = offset;
		offset += tensor->n_bytes;
		before += tensor->n_bytes;
	}
	model->options.n_shards = shard + 1;
}

/* --- files --- */

void generate_shard_name(const struct generate_model *model, unsigned shard, char ret_name[64])
{
	if (model->options.n_shards == 1)
		snprintf(ret_name, 64, "model.safetensors");
	else
		snprintf(ret_name, 64, "model-%05u-of-%05u.safetensors", shard + 1,
			 model->options.n_shards);
}

uint64_t generate_shard_first(const struct generate_model *model, unsigned shard)
{
	uint64_t i = 0;

	while (i < model->n_tensors && model->tensors[i].shard < shard)
		i++;
	return i;
}

static char *make_config(const struct generate_model *model, const struct shape *shape)
{
	char text[1536];

	snprintf(text, sizeof(text),
		 "{\n"
		 "  \"architectures\": [\"LlamaForCausalLM\"],\n"
		 "  \"bos_token_id\": 0,\n"
		 "  \"eos_token_id\": 1,\n"
		 "  \"head_dim\": %u,\n"
		 "  \"hidden_act\": \"silu\",\n"
		 "  \"hidden_size\": %u,\n"
		 "  \"intermediate_size\": %u,\n"
		 "  \"max_position_embeddings\": 4096,\n"
		 "  \"model_type\": \"llama\",\n"
		 "  \"num_attention_heads\": %u,\n"
		 "  \"num_hidden_layers\": %" PRIu64 ",\n"
		 "  \"num_key_value_heads\": %u,\n"
		 "  \"rms_norm_eps\": 1e-05,\n"
		 "  \"rope_theta\": 10000.0,\n"
		 "  \"tie_word_embeddings\": %s,\n"
		 "  \"torch_dtype\": \"bfloat16\",\n"
		 "  \"vocab_size\": %u\n"
		 "}\n",
		 shape->head_dim, shape->hidden, shape->inner, shape->heads,
		 model->options.n_layers, shape->kv_heads, shape->tied ? "true" : "false",
		 (unsigned)vocabulary(model, shape));
	return memory_strdup(text);
}

static char *make_index(const struct generate_model *model)
{
	size_t capacity = 128 + model->n_tensors * (GENERATE_NAME_BYTES + 64), n;
	char *text = memory_alloc(capacity), shard[64];

	if (!text)
		return NULL;
	n = (size_t)snprintf(text, capacity,
			     "{\n  \"metadata\": { \"total_size\": %" PRIu64 " },\n  \"weight_map\": {",
			     model->n_bytes);
	for (uint64_t i = 0; i < model->n_tensors; i++) {
		generate_shard_name(model, model->tensors[i].shard, shard);
		n += (size_t)snprintf(text + n, capacity - n, "%s\n    \"%s\": \"%s\"", i ? "," : "",
				      model->tensors[i].name, shard);
	}
	snprintf(text + n, capacity - n, "\n  }\n}\n");
	return text;
}

int generate_shard_head(const struct generate_model *model, unsigned shard, char **ret_head,
			uint64_t *ret_bytes)
{
	static const char *const dtypes[] = { [DCMEM_I8] = "I8", [DCMEM_BF16] = "BF16",
					      [DCMEM_F32] = "F32" };
	uint64_t first = generate_shard_first(model, shard);
	uint64_t end = generate_shard_first(model, shard + 1), n = 8;
	size_t capacity = 64 + (end - first) * (GENERATE_NAME_BYTES + 144);
	char *head = memory_alloc(capacity);

	if (!head)
		return -ENOMEM;
	n += (uint64_t)snprintf(head + n, capacity - n, "{\"__metadata__\":{\"format\":\"pt\"}");
	for (uint64_t i = first; i < end; i++) {
		const struct generate_tensor *tensor = &model->tensors[i];
		char dims[48];

		if (tensor->n_dims == 2)
			snprintf(dims, sizeof(dims), "%" PRIu64 ",%" PRIu64, tensor->dims[0],
				 tensor->dims[1]);
		else
			snprintf(dims, sizeof(dims), "%" PRIu64, tensor->dims[0]);
		n += (uint64_t)snprintf(head + n, capacity - n,
					",\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],"
					"\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}",
					tensor->name, dtypes[tensor->dtype], dims, tensor->offset,
					tensor->offset + tensor->n_bytes);
	}
	head[n++] = '}';
	while (n % 8)
		head[n++] = ' ';
	for (unsigned k = 0; k < 8; k++)
		head[k] = (char)((n - 8) >> 8 * k);
	*ret_head = head;
	*ret_bytes = n;
	return 0;
}

int generate_model_init(struct generate_model *model, const struct generate_options *options)
{
	const struct shape *shape = NULL;
	int r;

	for (unsigned i = 0; generate_shape_name(i); i++)
		if (strcmp(shapes[i].name, options->shape) == 0)
			shape = &shapes[i];
	if (!shape)
		return message_set(-EINVAL, "no shape is called %.100s", options->shape);
	if (options->n_layers > MAX_LAYERS || options->n_tensors > GENERATE_MAX_TENSORS)
		return message_set(-EINVAL, "more layers or tensors than this makes");
	*model = (struct generate_model){ .options = *options };
	if (!model->options.n_layers)
		model->options.n_layers = shape->layers;
	r = add_all(model, shape);
	if (!r && options->n_shards > model->n_tensors)
		r = message_set(-EINVAL, "%u shards are more than tensors: there are %" PRIu64,
				options->n_shards, model->n_tensors);
	if (!r) {
		place(model);
		r = weights_new(&model->weights, options->bf16 ? 0 : options->bits);
	}
	if (!r) {
		model->config = make_config(model, shape);
		model->index = model->options.n_shards > 1 ? make_index(model) : NULL;
		if (!model->config || (model->options.n_shards > 1 && !model->index))
			r = -ENOMEM;
	}
	if (r)
		generate_model_deinit(model);
	return r == -ENOMEM ? message_set(r, "not enough memory for the tables of the model") : r;
}

void generate_model_deinit(struct generate_model *model)
{
	model->tensors = memory_free(model->tensors);
	model->weights = weights_free(model->weights);
	model->config = memory_free(model->config);
	model->index = memory_free(model->index);
}

/* --- bytes --- */

uint32_t generate_page_bytes(const struct generate_tensor *tensor)
{
	uint64_t row_bytes = tensor->n_dims == 2 ? tensor->n_bytes / tensor->dims[0] :
						   tensor->n_bytes;

	return row_bytes <= PACK_PAGE_BYTES ?
		       PACK_PAGE_BYTES - PACK_PAGE_BYTES % (uint32_t)row_bytes :
		       PACK_PAGE_BYTES;
}

uint64_t generate_n_pages(const struct generate_tensor *tensor)
{
	return div_up(tensor->n_bytes, generate_page_bytes(tensor));
}

uint32_t generate_page(const struct generate_model *model, uint64_t tensor, uint64_t page,
		       uint8_t *dst)
{
	const struct generate_tensor *t = &model->tensors[tensor];
	uint64_t key = weights_key(model->options.seed, tensor);
	uint64_t at = page * generate_page_bytes(t);
	uint32_t n = (uint32_t)min_u64(generate_page_bytes(t), t->n_bytes - at);
	uint64_t row_bytes = t->n_bytes / t->dims[0];

	switch (t->kind) {
	case GENERATE_NORM:
		weights_norm(key, at / 2, n / 2, dst);
		break;
	case GENERATE_SCALES:
		weights_scales(key, at / 4, n / 4, dst);
		break;
	default: /* rows of every shape fit a page, so that pages are whole rows */
		weights_rows(model->weights, key, at / row_bytes, n / row_bytes, t->dims[1], dst);
	}
	return n;
}
