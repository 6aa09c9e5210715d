/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the files of the quantized model. Sizes are known before a weight is rounded, so heads are
 * written first and codes go to their places in any order, as often as wanted.
 */
#include "quant/output.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/io.h"
#include "base/memory.h"
#include "base/message.h"
#include "dcmem/dcmem.h"
#include "quant/json-file.h"

#define COPY_BYTES	(1U << 20)
#define INDEX_SUFFIX	".safetensors.index.json"

static void cleanup_json(json_t **json)
{
	json_decref(*json);
}

static char *path_in(const struct output *output, const char *name)
{
	size_t n = strlen(output->directory) + strlen(name) + 2;
	char *path = memory_alloc(n);

	if (path)
		snprintf(path, n, "%s/%s", output->directory, name);
	return path;
}

static int make_parents(char *path, size_t from)
{
	for (char *slash = strchr(path + from, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		if (mkdir(path, 0777) < 0 && errno != EEXIST)
			return message_set(-errno, "%s: cannot make the directory: %s", path,
					   strerror(errno));
		*slash = '/';
	}
	return 0;
}

/* *ret_fd is the new file's, for writing. */
static int create(const struct output *output, const char *name, int *ret_fd)
{
	_cleanup_(cleanup_memory) char *path = path_in(output, name);
	int r = path ? make_parents(path, strlen(output->directory) + 1) :
		       message_set(-ENOMEM, "not enough memory");

	if (r)
		return r;
	*ret_fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	return *ret_fd < 0 ? message_set(-errno, "%s: cannot create: %s", path, strerror(errno)) : 0;
}

static int write_at(const struct output *output, size_t file, const void *data, size_t n_bytes,
		    uint64_t offset)
{
	int r = io_write_at(output->files[file].fd, data, n_bytes, offset);

	return r ? message_set(r, "%s/%s: cannot write: %s", output->directory,
			       output->tensors->source->files[file].name, strerror(-r)) : 0;
}

/* --- safetensors --- */

static uint64_t n_rows_of(const struct safetensors_tensor *tensor)
{
	return tensor->dims[0]; /* what is quantized has two dimensions */
}

/* The head's JSON; offsets of the items relative to the data section. */
static json_t *build_head(const struct source_file *file, struct output_item *items)
{
	json_t *root = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
	uint64_t at = 0;

	for (uint64_t i = 0; root && i < file->st.n_tensors; i++) {
		const struct safetensors_tensor *tensor = &file->st.tensors[i];
		struct output_item *item = &items[i];
		char name[CONTAINER_MAX_NAME + 8];
		uint64_t n_scales[2] = { n_rows_of(tensor), 1 };

		item->codes_offset = at;
		if (item->kind == OUTPUT_COPY) {
			json_object_set_new(root, tensor->name,
					    json_file_describe(tensor->dtype, tensor->n_dims,
							       tensor->dims, at, tensor->n_bytes));
			at += tensor->n_bytes;
			continue;
		}
		json_object_set_new(root, tensor->name,
				    json_file_describe(DCMEM_I8, 2, tensor->dims, at,
						       tensor->dims[0] * tensor->dims[1]));
		at += tensor->dims[0] * tensor->dims[1];
		item->scales_offset = at;
		snprintf(name, sizeof(name), "%s_scale", tensor->name);
		json_object_set_new(root, name,
				    json_file_describe(DCMEM_BF16, 2, n_scales, at, n_scales[0] * 2));
		at += n_scales[0] * 2;
	}
	return root;
}

static int copy_tensor(const struct output *output, const struct tensors_entry *entry,
		       uint64_t offset)
{
	_cleanup_(cleanup_memory) uint8_t *data = memory_alloc(COPY_BYTES);
	int r = data ? 0 : message_set(-ENOMEM, "not enough memory");

	for (uint64_t at = 0; !r && at < entry->tensor->n_bytes; at += COPY_BYTES) {
		uint64_t left = entry->tensor->n_bytes - at;
		size_t n = left < COPY_BYTES ? (size_t)left : COPY_BYTES;

		r = tensors_read_bytes(output->tensors, entry, at, n, data);
		if (!r)
			r = write_at(output, entry->file, data, n, offset + at);
	}
	return r;
}

static int begin_safetensors(struct output *output, size_t f)
{
	const struct source_file *file = &output->tensors->source->files[f];
	struct output_item *items = output->files[f].items;
	_cleanup_(cleanup_json) json_t *root = build_head(file, items);
	uint64_t data;
	int r = create(output, file->name, &output->files[f].fd);

	if (r)
		return r;
	r = json_file_write_head(root, output->files[f].fd, &data);
	if (r)
		return message_set(r, "%s/%s: cannot write: %s", output->directory, file->name,
				   strerror(-r));
	for (uint64_t i = 0; !r && i < file->st.n_tensors; i++) {
		struct tensors_entry entry = { &file->st.tensors[i], f, i };

		items[i].codes_offset += data;
		items[i].scales_offset += data;
		if (items[i].kind == OUTPUT_COPY)
			r = copy_tensor(output, &entry, items[i].codes_offset);
	}
	return r;
}

/* --- other files --- */

static int write_json(const struct output *output, const struct source_file *file, json_t *root)
{
	_cleanup_(cleanup_fd) int fd = -1;
	int r = create(output, file->name, &fd);

	if (r)
		return r;
	r = json_file_write(root, fd);
	return r ? message_set(r, "%s/%s: cannot write: %s", output->directory, file->name, strerror(-r)) :
		   0;
}

static bool has_kind(const struct output *output, enum output_kind kind)
{
	const struct source *source = output->tensors->source;

	for (size_t f = 0; f < source->n_files; f++)
		for (uint64_t i = 0; output->files[f].items && i < source->files[f].st.n_tensors; i++)
			if (output->files[f].items[i].kind == kind)
				return true;
	return false;
}

/* As the compressed-tensors format of Hugging Face describes INT8 with a scale a row. */
static int write_config(const struct output *output, const struct source_file *file)
{
	_cleanup_(cleanup_json) json_t *root = NULL;
	bool embedding = has_kind(output, OUTPUT_EMBEDDING);
	json_t *targets, *ignore = json_array(), *weights, *group;
	int r = json_file_read(file, &root);

	if (r) {
		json_decref(ignore);
		return r;
	}
	targets = embedding ? json_pack("[s, s]", "Linear", "Embedding") : json_pack("[s]", "Linear");
	if (!embedding)
		json_array_append_new(ignore, json_string("lm_head"));
	weights = json_pack("{s:i, s:s, s:b, s:s, s:b}", "num_bits", 8, "type", "int", "symmetric", 1,
			    "strategy", "channel", "dynamic", 0);
	group = json_pack("{s:o, s:o, s:n, s:n}", "targets", targets, "weights", weights,
			  "input_activations", "output_activations");
	json_object_set_new(root, "quantization_config",
			    json_pack("{s:s, s:s, s:s, s:{s:o}, s:o}", "quant_method",
				      "compressed-tensors", "format", "int-quantized",
				      "quantization_status", "compressed", "config_groups", "group_0",
				      group, "ignore", ignore));
	return write_json(output, file, root);
}

/* Adds the scales to the list of which file holds what. */
static int write_index(const struct output *output, const struct source_file *file)
{
	_cleanup_(cleanup_json) json_t *root = NULL;
	_cleanup_(cleanup_json) json_t *added = json_object();
	json_t *map, *shard;
	const char *name;
	int r = json_file_read(file, &root);

	if (r)
		return r;
	map = json_object_get(root, "weight_map");
	json_object_foreach(map, name, shard) {
		const struct tensors_entry *entry = tensors_find(output->tensors, name);
		char scale[CONTAINER_MAX_NAME + 8];

		if (!entry || output_item(output, entry)->kind == OUTPUT_COPY)
			continue;
		snprintf(scale, sizeof(scale), "%s_scale", name);
		json_object_set(added, scale, shard);
	}
	if (json_object_update(map, added) < 0)
		return message_set(-ENOMEM, "not enough memory for the tensor table");
	return write_json(output, file, root);
}

static int write_link(const struct output *output, const struct source_file *file)
{
	_cleanup_(cleanup_memory) char *path = path_in(output, file->name);
	char *target = realpath(file->path, NULL);
	int r = path && target ? make_parents(path, strlen(output->directory) + 1) :
				 message_set(-ENOMEM, "%s: cannot be found again", file->path);

	if (!r && symlink(target, path) < 0)
		r = message_set(-errno, "%s: cannot link: %s", path, strerror(errno));
	free(target);
	return r;
}

static bool has_suffix(const char *name, const char *suffix)
{
	size_t n = strlen(name), m = strlen(suffix);

	return n >= m && strcmp(name + n - m, suffix) == 0;
}

static int write_file(struct output *output, size_t f,
		      enum output_kind (*kind_of)(void *data, const struct tensors_entry *entry),
		      void *data)
{
	const struct source_file *file = &output->tensors->source->files[f];

	if (file->kind != CONTAINER_FILE_SAFETENSORS)
		return 0;
	output->files[f].items = memory_array(file->st.n_tensors + 1, sizeof(struct output_item));
	if (!output->files[f].items)
		return message_set(-ENOMEM, "not enough memory for the tensor table");
	for (uint64_t i = 0; i < file->st.n_tensors; i++) {
		struct tensors_entry entry = { &file->st.tensors[i], f, i };

		output->files[f].items[i].kind = kind_of(data, &entry);
	}
	return begin_safetensors(output, f);
}

static int write_rest(struct output *output, size_t f)
{
	const struct source_file *file = &output->tensors->source->files[f];

	if (file->kind == CONTAINER_FILE_SAFETENSORS)
		return 0;
	if (strcmp(file->name, "config.json") == 0)
		return write_config(output, file);
	return has_suffix(file->name, INDEX_SUFFIX) ? write_index(output, file) :
						      write_link(output, file);
}

int output_open(struct output *ret_output, const struct tensors *tensors, const char *directory,
		enum output_kind (*kind_of)(void *data, const struct tensors_entry *entry), void *data)
{
	struct output output = { .tensors = tensors };
	size_t n = tensors->source->n_files;
	int r = 0;

	output.directory = memory_strdup(directory);
	output.files = memory_array(n, sizeof(*output.files));
	for (size_t f = 0; output.files && f < n; f++)
		output.files[f].fd = -1;
	if (!output.directory || !output.files)
		r = message_set(-ENOMEM, "not enough memory for the tensor table");
	for (size_t f = 0; !r && f < n; f++)
		r = write_file(&output, f, kind_of, data);
	for (size_t f = 0; !r && f < n; f++)
		r = write_rest(&output, f);
	if (r) {
		output_close(&output);
		return r;
	}
	*ret_output = output;
	return 0;
}

void output_close(struct output *output)
{
	for (size_t f = 0; output->files && f < output->tensors->source->n_files; f++) {
		close_fd(output->files[f].fd);
		memory_free(output->files[f].items);
	}
	output->files = memory_free(output->files);
	output->directory = memory_free(output->directory);
}

const struct output_item *output_item(const struct output *output, const struct tensors_entry *entry)
{
	return &output->files[entry->file].items[entry->place];
}

int output_write(const struct output *output, const struct tensors_entry *entry, uint64_t first_row,
		 size_t n_rows, const int8_t *codes, const float *scales)
{
	const struct output_item *item = output_item(output, entry);
	_cleanup_(cleanup_memory) uint16_t *halves = memory_array(n_rows, sizeof(*halves));
	uint64_t n_cols = entry->tensor->dims[1];
	int r = halves ? 0 : message_set(-ENOMEM, "not enough memory to quantize");

	for (size_t i = 0; !r && i < n_rows; i++) {
		uint32_t bits;

		memcpy(&bits, &scales[i], sizeof(bits));
		halves[i] = (uint16_t)(bits >> 16);
	}
	if (!r)
		r = write_at(output, entry->file, codes, n_rows * n_cols,
			     item->codes_offset + first_row * n_cols);
	return r ? r : write_at(output, entry->file, halves, n_rows * 2,
				item->scales_offset + first_row * 2);
}
