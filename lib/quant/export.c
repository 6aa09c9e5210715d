/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the rewriting of an exported directory. Tensors keep their order; rows are converted in
 * slices, so that memory does not grow with the model.
 */
#include "quant/export.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/io.h"
#include "base/memory.h"
#include "base/message.h"
#include "dcmem/dcmem.h"
#include "model/index.h"
#include "quant/json-file.h"
#include "quant/round.h"
#include "quant/tensors.h"

#define SLICE_BYTES (4U << 20)
#define INDEX_SUFFIX ".safetensors.index.json"

struct export {
	struct source source;
	struct tensors tensors;
	uint32_t dtype;
	bool (*is_lossy)(const void *data, const char *name);
	const void *data;
};

/* The scales of codes that are to become weights, or NULL. */
static const struct tensors_entry *scales_of(const struct export *export,
					     const struct safetensors_tensor *tensor)
{
	char name[CONTAINER_MAX_NAME + 8];
	const struct tensors_entry *scales;

	if (tensor->dtype != DCMEM_I8 || tensor->n_dims != 2 ||
	    !export->is_lossy(export->data, tensor->name))
		return NULL;
	snprintf(name, sizeof(name), "%s_scale", tensor->name);
	scales = tensors_find(&export->tensors, name);
	return scales && tensors_is_float(scales) && scales->tensor->n_dims == 2 &&
			       scales->tensor->dims[0] == tensor->dims[0] &&
			       scales->tensor->dims[1] == 1 ?
		       scales : NULL;
}

/* Is it a row of scales whose codes become weights? */
static bool is_spent(const struct export *export, const char *name)
{
	size_t n = strlen(name);
	char weight[CONTAINER_MAX_NAME + 1];
	const struct tensors_entry *codes;

	if (n <= 6 || n > CONTAINER_MAX_NAME || strcmp(name + n - 6, "_scale") != 0)
		return false;
	memcpy(weight, name, n - 6);
	weight[n - 6] = '\0';
	codes = tensors_find(&export->tensors, weight);
	return codes && scales_of(export, codes->tensor);
}

static json_t *build_head(const struct export *export, const struct source_file *file)
{
	json_t *root = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
	uint64_t at = 0;

	for (uint64_t i = 0; root && i < file->st.n_tensors; i++) {
		const struct safetensors_tensor *tensor = &file->st.tensors[i];
		bool changed = scales_of(export, tensor);
		uint32_t dtype = changed ? export->dtype : tensor->dtype;
		uint64_t n_bytes = changed ? tensor->n_bytes * dtype_bytes(dtype) : tensor->n_bytes;

		if (is_spent(export, tensor->name))
			continue;
		json_object_set_new(root, tensor->name,
				    json_file_describe(dtype, tensor->n_dims, tensor->dims, at, n_bytes));
		at += n_bytes;
	}
	return root;
}

/* Rows [first, first + n) of a tensor as they are to be, at `out`. */
static int convert_rows(const struct export *export, const struct tensors_entry *entry,
			const struct tensors_entry *scales, uint64_t first, size_t n, int8_t *codes,
			float *row_scales, uint8_t *out)
{
	size_t n_cols = entry->tensor->dims[1];
	int r = tensors_read_bytes(&export->tensors, entry, first * n_cols, n * n_cols, codes);

	if (!r)
		r = tensors_read(&export->tensors, scales, first, n, row_scales);
	for (size_t i = 0; !r && i < n * n_cols; i++) {
		float value = (float)codes[i] * row_scales[i / n_cols];
		uint32_t bits;

		if (export->dtype == DCMEM_F32) {
			memcpy(out + i * 4, &value, 4);
			continue;
		}
		value = round_to_bf16(value);
		memcpy(&bits, &value, sizeof(bits));
		bits >>= 16;
		memcpy(out + i * 2, &bits, 2);
	}
	return r;
}

static int write_codes(const struct export *export, const struct tensors_entry *entry,
		       const struct tensors_entry *scales, int fd, uint64_t *at)
{
	size_t n_cols = entry->tensor->dims[1], size = dtype_bytes(export->dtype);
	size_t n_rows = SLICE_BYTES / (n_cols * size) + 1;
	_cleanup_(cleanup_memory) int8_t *codes = memory_array(n_rows, n_cols);
	_cleanup_(cleanup_memory) float *row_scales = memory_array(n_rows, sizeof(float));
	_cleanup_(cleanup_memory) uint8_t *out = memory_array(n_rows, n_cols * size);
	int r = codes && row_scales && out ? 0 : -ENOMEM;

	for (uint64_t first = 0; !r && first < entry->tensor->dims[0]; first += n_rows) {
		uint64_t left = entry->tensor->dims[0] - first;
		size_t n = left < n_rows ? (size_t)left : n_rows;

		r = convert_rows(export, entry, scales, first, n, codes, row_scales, out);
		if (!r)
			r = io_write_at(fd, out, n * n_cols * size, *at);
		*at += n * n_cols * size;
	}
	return r;
}

static int write_plain(const struct export *export, const struct tensors_entry *entry, int fd,
		       uint64_t *at)
{
	_cleanup_(cleanup_memory) uint8_t *slice = memory_alloc(SLICE_BYTES);
	int r = slice ? 0 : -ENOMEM;

	for (uint64_t done = 0; !r && done < entry->tensor->n_bytes; done += SLICE_BYTES) {
		uint64_t left = entry->tensor->n_bytes - done;
		size_t n = left < SLICE_BYTES ? (size_t)left : SLICE_BYTES;

		r = tensors_read_bytes(&export->tensors, entry, done, n, slice);
		if (!r)
			r = io_write_at(fd, slice, n, *at);
		*at += n;
	}
	return r;
}

static int write_safetensors(const struct export *export, size_t f, int fd)
{
	const struct source_file *file = &export->source.files[f];
	json_t *root = build_head(export, file);
	uint64_t at = 0;
	int r = json_file_write_head(root, fd, &at);

	json_decref(root);
	for (uint64_t i = 0; !r && i < file->st.n_tensors; i++) {
		struct tensors_entry entry = { &file->st.tensors[i], f, i };
		const struct tensors_entry *scales = scales_of(export, entry.tensor);

		if (is_spent(export, entry.tensor->name))
			continue;
		r = scales ? write_codes(export, &entry, scales, fd, &at) :
			     write_plain(export, &entry, fd, &at);
	}
	return r;
}

static int write_json(const struct export *export, const struct source_file *file, int fd)
{
	json_t *root, *map, *item;
	const char *name;
	void *next;
	int r = json_file_read(file, &root);

	if (r)
		return r;
	json_object_del(root, "quantization_config");
	map = json_object_get(root, "weight_map");
	json_object_foreach_safe(map, next, name, item)
		if (is_spent(export, name))
			json_object_del(map, name);
	r = json_file_write(root, fd);
	json_decref(root);
	return r;
}

static bool has_suffix(const char *name, const char *suffix)
{
	size_t n = strlen(name), m = strlen(suffix);

	return n >= m && strcmp(name + n - m, suffix) == 0;
}

static int replace_file(const struct export *export, size_t f)
{
	const struct source_file *file = &export->source.files[f];
	size_t n = strlen(file->path) + 8;
	_cleanup_(cleanup_memory) char *path = memory_alloc(n);
	_cleanup_(cleanup_fd) int fd = -1;
	int r;

	if (file->kind != CONTAINER_FILE_SAFETENSORS && strcmp(file->name, "config.json") != 0 &&
	    !has_suffix(file->name, INDEX_SUFFIX))
		return 0;
	if (!path)
		return message_set(-ENOMEM, "not enough memory");
	snprintf(path, n, "%s.new", file->path);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0666);
	if (fd < 0)
		return message_set(-errno, "%s: cannot create: %s", path, strerror(errno));
	r = file->kind == CONTAINER_FILE_SAFETENSORS ? write_safetensors(export, f, fd) :
						       write_json(export, file, fd);
	if (!r && (fsync(fd) < 0 || rename(path, file->path) < 0))
		r = -errno;
	if (r)
		(void)unlink(path);
	return r < 0 ? message_set(r, "%s: cannot write: %s", path, strerror(-r)) : r;
}

int quant_export(const char *directory, uint32_t dtype,
		 bool (*is_lossy)(const void *data, const char *name), const void *data)
{
	struct export export = { .dtype = dtype, .is_lossy = is_lossy, .data = data };
	int r = source_init(&export.source, directory);

	if (r)
		return r;
	r = tensors_open(&export.tensors, &export.source);
	for (size_t f = 0; !r && f < export.source.n_files; f++)
		r = replace_file(&export, f);
	if (export.tensors.fds)
		tensors_close(&export.tensors);
	source_deinit(&export.source);
	return r;
}
