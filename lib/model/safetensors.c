/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns the reading of safetensors heads. The bytes are untrusted: refused are heads longer than the
 * format allows or than the file, JSON with duplicate keys, unknown members of a tensor, shapes
 * whose size overflows or differs from the offsets, holes, overlaps and trailing bytes. Jansson
 * limits nesting and refuses integers beyond 64 bits. Any thread; a struct is immutable once made.
 */
#include "model/safetensors.h"

#include <errno.h>
#include <stdbool.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "model/index.h"

#define NAME_SHOWN 200 /* bytes of a tensor name in a message: room for the rest of the sentence */

static void cleanup_json(json_t **json)
{
	json_decref(*json);
}

static int corrupt(const char *name, const char *what)
{
	return message_set(SAFETENSORS_E_CORRUPT, "tensor %.*s: %s; the file is damaged: fetch it again",
			   NAME_SHOWN, name, what);
}

/* A member that has to be an integer of 0 or more. */
static int json_natural(const json_t *json, uint64_t *ret_value)
{
	if (!json_is_integer(json) || json_integer_value(json) < 0)
		return SAFETENSORS_E_CORRUPT;
	*ret_value = (uint64_t)json_integer_value(json);
	return 0;
}

static int parse_shape(const char *name, const json_t *shape, struct safetensors_tensor *tensor,
		       uint64_t *ret_n_bytes)
{
	uint64_t n_bytes = dtype_bytes(tensor->dtype);
	bool empty = false, overflow = false;

	if (!json_is_array(shape))
		return corrupt(name, "\"shape\" is not a list");
	if (json_array_size(shape) > CONTAINER_MAX_DIMS)
		return message_set(SAFETENSORS_E_UNSUPPORTED,
				   "tensor %.*s: has %zu dimensions, and at most %d are supported",
				   NAME_SHOWN, name, json_array_size(shape), CONTAINER_MAX_DIMS);
	tensor->n_dims = (uint32_t)json_array_size(shape);
	for (uint32_t i = 0; i < tensor->n_dims; i++) {
		if (json_natural(json_array_get(shape, i), &tensor->dims[i]))
			return corrupt(name, "a dimension is not an integer of 0 or more");
		empty |= tensor->dims[i] == 0;
		overflow |= !range_mul(n_bytes, tensor->dims[i] ? tensor->dims[i] : 1, &n_bytes);
	}
	/* An empty tensor whose other dimensions overflow would poison every later product. */
	if (overflow)
		return corrupt(name, "the shape's size does not fit 64 bits");
	*ret_n_bytes = empty ? 0 : n_bytes;
	return 0;
}

static int parse_tensor(const char *name, size_t name_bytes, const json_t *entry,
			struct safetensors_tensor *tensor)
{
	const json_t *offsets = json_object_get(entry, "data_offsets");
	const char *dtype = json_string_value(json_object_get(entry, "dtype"));
	uint64_t begin = 0, end = 0, n_bytes = 0;
	int r;

	if (name_bytes == 0 || name_bytes > CONTAINER_MAX_NAME || strlen(name) != name_bytes)
		return corrupt(name, "the name is empty, too long or has a NUL byte");
	if (!dtype || !offsets || json_object_size(entry) != 3)
		return corrupt(name, "has not exactly dtype, shape and data_offsets");
	tensor->dtype = dtype_from_name(dtype);
	if (tensor->dtype == 0)
		return message_set(SAFETENSORS_E_UNSUPPORTED,
				   "tensor %.*s: dtype %.32s is not supported", NAME_SHOWN, name,
				   dtype);
	r = parse_shape(name, json_object_get(entry, "shape"), tensor, &n_bytes);
	if (r)
		return r;
	if (json_array_size(offsets) != 2 || json_natural(json_array_get(offsets, 0), &begin) ||
	    json_natural(json_array_get(offsets, 1), &end) || begin > end)
		return corrupt(name, "\"data_offsets\" is not [begin, end]");
	if (end - begin != n_bytes)
		return message_set(SAFETENSORS_E_CORRUPT,
				   "tensor %.*s: bytes %llu to %llu of the data are %llu bytes, but shape "
				   "and dtype need %llu; the file is damaged: fetch it again",
				   NAME_SHOWN, name, (unsigned long long)begin,
				   (unsigned long long)end, (unsigned long long)(end - begin),
				   (unsigned long long)n_bytes);
	tensor->offset = begin;
	tensor->n_bytes = n_bytes;
	tensor->name_bytes = (uint32_t)name_bytes;
	tensor->name = memory_strndup(name, name_bytes);
	return tensor->name ? 0 : message_set(-ENOMEM, "not enough memory for the tensor table");
}

static int tensor_compare(const void *a, const void *b)
{
	const struct safetensors_tensor *x = a, *y = b;

	if (x->offset != y->offset)
		return x->offset < y->offset ? -1 : 1;
	if ((x->n_bytes == 0) != (y->n_bytes == 0))
		return x->n_bytes == 0 ? -1 : 1;
	return strcmp(x->name, y->name);
}

static int check_cover(const struct safetensors *st)
{
	uint64_t data_bytes = st->file_bytes - st->head_bytes, end = 0;

	for (uint64_t i = 0; i < st->n_tensors; i++) {
		const struct safetensors_tensor *tensor = &st->tensors[i];

		if (!range_fits(tensor->offset, tensor->n_bytes, data_bytes))
			return message_set(SAFETENSORS_E_CORRUPT,
					   "tensor %.*s: ends at byte %llu of the data, which has %llu; "
					   "the file is cut short or damaged: fetch it again",
					   NAME_SHOWN, tensor->name,
					   (unsigned long long)(tensor->offset + tensor->n_bytes),
					   (unsigned long long)data_bytes);
		if (tensor->offset != end)
			return message_set(SAFETENSORS_E_CORRUPT,
					   "tensor %.*s: starts at byte %llu of the data, %s byte %llu; "
					   "the file is damaged: fetch it again",
					   NAME_SHOWN, tensor->name,
					   (unsigned long long)tensor->offset,
					   tensor->offset > end ? "leaving a hole from" :
								  "overlapping a tensor up to",
					   (unsigned long long)end);
		end = tensor->offset + tensor->n_bytes;
	}
	if (end != data_bytes)
		return message_set(SAFETENSORS_E_CORRUPT,
				   "the data has %llu bytes, but tensors cover only %llu; the file is "
				   "damaged: fetch it again",
				   (unsigned long long)data_bytes, (unsigned long long)end);
	return 0;
}

static int check_metadata(const json_t *metadata)
{
	const char *key;
	json_t *value;

	if (!json_is_object(metadata))
		return message_set(SAFETENSORS_E_CORRUPT, "__metadata__ is not an object");
	json_object_foreach((json_t *)(uintptr_t)metadata, key, value)
		if (!json_is_string(value))
			return message_set(SAFETENSORS_E_CORRUPT,
					   "__metadata__: %.*s is not a string", NAME_SHOWN, key);
	return 0;
}

static int parse_header(struct safetensors *st)
{
	_cleanup_(cleanup_json) json_t *root = NULL;
	json_error_t error;
	const char *name;
	json_t *entry;
	int r;

	root = json_loadb(st->head + 8, (size_t)(st->head_bytes - 8), JSON_REJECT_DUPLICATES,
			  &error);
	if (!root)
		return message_set(SAFETENSORS_E_CORRUPT,
				   "the header is not valid JSON at byte %d: %.160s; the file is "
				   "damaged: fetch it again",
				   8 + error.position, error.text);
	if (!json_is_object(root))
		return message_set(SAFETENSORS_E_CORRUPT, "the header is not a JSON object");
	st->tensors = memory_array(json_object_size(root) + 1, sizeof(st->tensors[0]));
	if (!st->tensors)
		return message_set(-ENOMEM, "not enough memory for the tensor table");
	json_object_foreach(root, name, entry) {
		r = strcmp(name, "__metadata__") == 0 ?
			    check_metadata(entry) :
			    parse_tensor(name, strlen(name), entry, &st->tensors[st->n_tensors++]);
		if (r)
			return r;
	}
	qsort(st->tensors, st->n_tensors, sizeof(st->tensors[0]), tensor_compare);
	return check_cover(st);
}

int safetensors_init(struct safetensors *ret_st, int fd, uint64_t file_bytes)
{
	struct safetensors st = { .file_bytes = file_bytes };
	uint8_t length[8];
	uint64_t n = 0;
	int r;

	if (file_bytes < 8)
		return message_set(SAFETENSORS_E_CORRUPT,
				   "has %llu bytes, too few for a safetensors file: fetch it again",
				   (unsigned long long)file_bytes);
	r = io_read_at(fd, length, 8, 0);
	if (r)
		return message_set(r, "cannot read its first bytes: %s", strerror(-r));
	for (int i = 7; i >= 0; i--)
		n = n << 8 | length[i];
	if (n > SAFETENSORS_MAX_HEADER)
		return message_set(SAFETENSORS_E_CORRUPT,
				   "the header claims %llu bytes, and the format allows 100,000,000: "
				   "not a safetensors file, or damaged",
				   (unsigned long long)n);
	if (n > file_bytes - 8)
		return message_set(SAFETENSORS_E_CORRUPT,
				   "the header claims %llu bytes, but the file ends after %llu; it is "
				   "cut short: fetch it again",
				   (unsigned long long)n, (unsigned long long)(file_bytes - 8));
	st.head_bytes = 8 + n;
	st.head = memory_alloc((size_t)st.head_bytes);
	if (!st.head)
		return message_set(-ENOMEM, "not enough memory for a header of %llu bytes",
				   (unsigned long long)n);
	r = io_read_at(fd, st.head, (size_t)st.head_bytes, 0);
	if (r)
		r = message_set(r, "cannot read the header: %s", strerror(-r));
	else
		r = parse_header(&st);
	if (r) {
		safetensors_deinit(&st);
		return r;
	}
	*ret_st = st;
	return 0;
}

void safetensors_deinit(struct safetensors *st)
{
	for (uint64_t i = 0; i < st->n_tensors; i++)
		memory_free(st->tensors[i].name);
	st->tensors = memory_free(st->tensors);
	st->head = memory_free(st->head);
	st->n_tensors = 0;
}

int safetensors_index_each(const char *text, size_t n_bytes,
			   int (*each)(void *data, const char *tensor, const char *file),
			   void *data)
{
	_cleanup_(cleanup_json) json_t *root = NULL;
	json_error_t error;
	const char *tensor;
	json_t *map, *file;

	root = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES, &error);
	if (!root)
		return message_set(SAFETENSORS_E_CORRUPT, "is not valid JSON at byte %d: %.160s",
				   error.position, error.text);
	map = json_object_get(root, "weight_map");
	if (!json_is_object(map))
		return message_set(SAFETENSORS_E_CORRUPT, "has no object \"weight_map\"");
	json_object_foreach(map, tensor, file) {
		int r;

		if (!json_is_string(file))
			return message_set(SAFETENSORS_E_CORRUPT,
					   "\"weight_map\" gives no file name for tensor %.*s",
					   NAME_SHOWN, tensor);
		r = each(data, tensor, json_string_value(file));
		if (r)
			return r;
	}
	return 0;
}
