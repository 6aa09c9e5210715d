/* SPDX-License-Identifier: Apache-2.0 */
/* Files are checked for being the scanned ones; sizes are bounded before anything is read. */
#include "quant/json-file.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/memory.h"
#include "base/message.h"
#include "model/index.h"

int json_file_read(const struct source_file *file, json_t **ret_root)
{
	_cleanup_(cleanup_memory) char *text = NULL;
	_cleanup_(cleanup_fd) int fd = -1;
	json_error_t error;
	json_t *root;
	int r;

	if (file->n_bytes > SAFETENSORS_MAX_HEADER)
		return message_set(-EFBIG, "%s: too long", file->path);
	r = source_open(file, &fd);
	if (r)
		return r;
	text = memory_alloc((size_t)file->n_bytes + 1);
	r = text ? io_read_at(fd, text, (size_t)file->n_bytes, 0) : -ENOMEM;
	if (r)
		return message_set(r, "%s: cannot read: %s", file->path, strerror(-r));
	root = json_loadb(text, (size_t)file->n_bytes, JSON_REJECT_DUPLICATES, &error);
	if (json_is_object(root)) {
		*ret_root = root;
		return 0;
	}
	json_decref(root);
	return message_set(-EINVAL, "%s, line %d: %.200s", file->path, error.line,
			   root ? "not an object" : error.text);
}

int json_file_write(const json_t *root, int fd)
{
	char *text = json_dumps(root, JSON_INDENT(2));
	int r = text ? io_write_at(fd, text, strlen(text), 0) : -ENOMEM;

	free(text);
	return r;
}

json_t *json_file_describe(uint32_t dtype, unsigned n_dims, const uint64_t *dims, uint64_t offset,
			   uint64_t n_bytes)
{
	json_t *shape = json_array();

	for (unsigned i = 0; i < n_dims; i++)
		json_array_append_new(shape, json_integer((json_int_t)dims[i]));
	return json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_name(dtype), "shape", shape,
			 "data_offsets", (json_int_t)offset, (json_int_t)(offset + n_bytes));
}

int json_file_write_head(const json_t *root, int fd, uint64_t *ret_data)
{
	char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
	size_t n = text ? strlen(text) : 0, padded = (n + 7) / 8 * 8;
	_cleanup_(cleanup_memory) uint8_t *head = memory_alloc(8 + padded);
	int r = text && head ? 0 : -ENOMEM;

	for (unsigned i = 0; !r && i < 8; i++)
		head[i] = (uint8_t)((uint64_t)padded >> 8 * i);
	if (!r) {
		memcpy(head + 8, text, n);
		memset(head + 8 + n, ' ', padded - n);
		r = io_write_at(fd, head, 8 + padded, 0);
	}
	free(text);
	if (r)
		return r;
	*ret_data = 8 + padded;
	return 0;
}
