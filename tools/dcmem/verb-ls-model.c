/* SPDX-License-Identifier: Apache-2.0 */
/* `dcmem ls MODEL`: the same list for a model that a daemon holds, through the client API. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "json-out.h"
#include "table.h"
#include "talk.h"
#include "verb.h"
#include "verb-ls-model.h"

/* As dcmem_open() decides, but for a file in this directory that is simply there. */
bool ls_is_model(const char *operand)
{
	size_t n = strlen(operand);

	return !strchr(operand, '/') && !(n >= 6 && !strcmp(operand + n - 6, ".dcmem")) &&
	       access(operand, F_OK) < 0;
}

static const char *model_codec(const struct dcmem_tensor *tensor)
{
	const char *name = dcmem_codec_name(tensor->codec);

	return tensor->flags & DCMEM_TENSOR_SHARED ? "shared" : name ? name : "?";
}

static int model_row(struct table *table, const struct dcmem_tensor *tensor)
{
	char shape[DCMEM_MAX_DIMS * 21 + 8] = "[", raw[24], stored[24], ratio[24];
	const char *dtype = dcmem_dtype_name(tensor->dtype);
	size_t at = 1;

	for (uint32_t i = 0; i < tensor->n_dims; i++)
		at += (size_t)snprintf(shape + at, sizeof(shape) - at, "%s%llu", i ? "," : "",
				       (unsigned long long)tensor->dims[i]);
	(void)snprintf(shape + at, sizeof(shape) - at, "]");
	return table_row(table, (const char *[]){ tensor->name, shape, dtype ? dtype : "?",
						  table_bytes(tensor->n_bytes, raw),
						  table_bytes(tensor->stored_bytes, stored),
						  table_ratio(tensor->n_bytes, tensor->stored_bytes,
							      ratio),
						  model_codec(tensor) });
}

static void model_json(struct json_out *out, const struct dcmem_tensor *tensor)
{
	const char *dtype = dcmem_dtype_name(tensor->dtype);

	json_out_object(out, NULL);
	json_out_string(out, "name", tensor->name);
	json_out_string(out, "dtype", dtype ? dtype : "?");
	json_out_array(out, "shape");
	for (uint32_t i = 0; i < tensor->n_dims; i++)
		json_out_u64(out, NULL, tensor->dims[i]);
	json_out_end(out, ']');
	json_out_u64(out, "n_bytes", tensor->n_bytes);
	json_out_u64(out, "stored_bytes", tensor->stored_bytes);
	json_out_u64(out, "page_bytes", tensor->page_bytes);
	json_out_string(out, "codec", model_codec(tensor));
	json_out_bool(out, "shared", tensor->flags & DCMEM_TENSOR_SHARED);
	json_out_bool(out, "quantized", tensor->flags & DCMEM_TENSOR_QUANTIZED);
	json_out_end(out, '}');
}

static int model_print(struct dcmem *model, const char *name, bool json)
{
	struct dcmem_tensor tensor;
	struct json_out out;
	struct table table;
	int r = 0;

	table_init(&table, 7, "lllrrrl");
	if (json) {
		json_out_init(&out, stdout);
		json_out_object(&out, NULL);
		json_out_string(&out, "model", name);
		json_out_array(&out, "tensors");
	} else {
		r = table_row(&table, (const char *[]){ "TENSOR", "SHAPE", "DTYPE", "RAW", "STORED",
							"RATIO", "CODEC" });
	}
	for (uint64_t id = 0; !r && id < dcmem_n_tensors(model); id++) {
		r = dcmem_tensor(model, id, &tensor);
		if (!r && json)
			model_json(&out, &tensor);
		else if (!r)
			r = model_row(&table, &tensor);
	}
	if (json) {
		json_out_end(&out, ']');
		json_out_end(&out, '}');
	} else if (!r) {
		table_print(&table, stdout);
	}
	table_deinit(&table);
	return r;
}

int ls_model(const char *name, const char *socket_path, bool json)
{
	struct dcmem_options options = { .size = sizeof(options), .socket_path = socket_path };
	struct dcmem *model = NULL;
	int r = dcmem_open(name, &options, &model);

	if (!r)
		r = model_print(model, name, json);
	r = r ? talk_failure("ls", r) : verb_flush("ls");
	dcmem_close(model);
	return r;
}
