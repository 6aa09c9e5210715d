/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reads tensors one at a time, whole, since a scale needs all of them. Owns the open model. Sets
 * aside what is no part of the model proper (files beside it). One thread.
 */
#include "bench-model.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "codec/codec.h"
#include "dcmem/dcmem.h"
#include "model/container.h"
#include "model/source.h"

struct tensor {
	const char *name;
	uint32_t dtype, n_dims;
	uint64_t n_rows, n_cols, n_bytes;
	uint32_t element_bytes;
	uint64_t number; /* in the container or the file */
	const struct source_file *file;
};

struct bench_model {
	char name[64];
	bool is_container;
	struct source source;
	struct container container;
	struct codec_context *codec;
	struct tensor *tensors;
	size_t n_tensors, capacity;
};

/* --- opening --- */

static int add_tensor(struct bench_model *model, const struct tensor *tensor, const uint64_t *dims)
{
	void *array = model->tensors;
	int r = memory_grow(&array, &model->capacity, model->n_tensors, model->n_tensors + 1,
			    sizeof(*tensor));
	struct tensor *t;

	model->tensors = array;
	if (r)
		return r;
	t = &model->tensors[model->n_tensors];
	*t = *tensor;
	t->element_bytes = dtype_bytes(t->dtype);
	if (t->n_bytes == 0 || t->element_bytes == 0)
		return 0;
	t->n_cols = t->n_dims ? dims[t->n_dims - 1] : 1;
	t->n_rows = t->n_bytes / t->element_bytes / t->n_cols;
	model->n_tensors++;
	return 0;
}

static int add_source(struct bench_model *model)
{
	bool any = false;
	int r = 0;

	for (size_t i = 0; i < model->source.n_files; i++)
		any |= model->source.files[i].is_model;
	for (size_t i = 0; i < model->source.n_files; i++) {
		const struct source_file *file = &model->source.files[i];

		if (file->kind != CONTAINER_FILE_SAFETENSORS || (any && !file->is_model))
			continue;
		for (uint64_t k = 0; k < file->st.n_tensors && !r; k++) {
			const struct safetensors_tensor *t = &file->st.tensors[k];

			r = add_tensor(model,
				       &(struct tensor){ .name = t->name,
							 .dtype = t->dtype,
							 .n_dims = t->n_dims,
							 .n_bytes = t->n_bytes,
							 .number = k,
							 .file = file },
				       t->dims);
		}
	}
	return r;
}

static int add_container(struct bench_model *model)
{
	const struct index *index = &model->container.index;
	int r = 0;

	for (uint64_t i = 0; i < index->n_tensors && !r; i++) {
		const struct container_tensor *t;
		const char *name = NULL;

		r = index_tensor(index, i, &t);
		if (!r)
			r = index_tensor_name(index, t, &name);
		/* The packer names tensors of files beside the model FILE:NAME. */
		if (!r && !strstr(name, ".safetensors:"))
			r = add_tensor(model,
				       &(struct tensor){ .name = name,
							 .dtype = t->dtype,
							 .n_dims = t->n_dims,
							 .n_bytes = t->n_bytes,
							 .number = i },
				       t->dims);
	}
	return r;
}

static void take_name(struct bench_model *model, const char *path)
{
	size_t n = strlen(path);
	const char *begin;

	while (n > 1 && path[n - 1] == '/')
		n--;
	begin = path + n;
	while (begin > path && begin[-1] != '/')
		begin--;
	snprintf(model->name, sizeof(model->name), "%.*s",
		 (int)min_u64((uint64_t)(path + n - begin), sizeof(model->name) - 1), begin);
}

struct bench_model *bench_model_free(struct bench_model *model)
{
	if (!model)
		return NULL;
	if (model->is_container)
		container_close(&model->container);
	else
		source_deinit(&model->source);
	codec_context_free(model->codec);
	memory_free(model->tensors);
	return memory_free(model);
}

int bench_model_open(struct bench_model **ret_model, const char *path)
{
	struct bench_model *model = memory_zalloc(sizeof(*model));
	size_t n = strlen(path);
	int r;

	if (!model)
		return -ENOMEM;
	take_name(model, path);
	if (n > 6 && strcmp(path + n - 6, ".dcmem") == 0)
		r = container_open(&model->container, path);
	else
		r = source_init(&model->source, path);
	if (r) {
		memory_free(model);
		return r;
	}
	model->is_container = n > 6 && strcmp(path + n - 6, ".dcmem") == 0;
	model->codec = codec_context_new();
	if (!model->codec)
		r = -ENOMEM;
	else
		r = model->is_container ? add_container(model) : add_source(model);
	if (r) {
		bench_model_free(model);
		return r;
	}
	*ret_model = model;
	return 0;
}

/* --- reading --- */

static int read_source(const struct tensor *tensor, uint8_t *bytes)
{
	const struct safetensors *st = &tensor->file->st;
	_cleanup_(cleanup_fd) int fd = -1;
	int r = source_open(tensor->file, &fd);

	if (!r)
		r = io_read_at(fd, bytes, tensor->n_bytes,
			       st->head_bytes + st->tensors[tensor->number].offset);
	if (r)
		return message_set(r, "%s: cannot read tensor '%s': %s", tensor->file->path,
				   tensor->name, strerror(-r));
	return source_check(tensor->file, fd);
}

static int read_container(struct bench_model *model, const struct tensor *tensor, uint8_t *bytes)
{
	const struct container *container = &model->container;
	_cleanup_(cleanup_memory) uint8_t *stored = memory_alloc(CONTAINER_MAX_PAGE_BYTES);
	const struct container_tensor *record;
	const struct container_form *form;
	const struct container_page *page;
	int r = stored ? index_tensor(&container->index, tensor->number, &record) : -ENOMEM;

	if (!r)
		r = index_form(&container->index, record->first_form, &form);
	for (uint64_t i = 0; !r && i < form->n_pages; i++) {
		r = index_page(&container->index, form->page_record + i, &page);
		if (!r && page->stored_bytes > CONTAINER_MAX_PAGE_BYTES)
			r = message_set(DCMEM_E_CORRUPT, "a stored page of '%s' is too large",
					tensor->name);
		if (!r)
			r = container_read_segment(container, form->segment, page->offset, stored,
						   page->stored_bytes);
		if (!r)
			r = container_decode_page(model->codec, page, stored,
						  bytes + i * record->page_bytes,
						  index_page_bytes(record, i));
	}
	return r;
}

static float float_of_bits(uint32_t bits)
{
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

static float float_of_half(uint32_t h)
{
	uint32_t exponent = h >> 10 & 31, mantissa = h & 1023;
	float value;

	if (exponent == 31)
		value = mantissa ? NAN : INFINITY;
	else
		value = exponent ? ldexpf((float)(mantissa | 1024), (int)exponent - 25) :
				   ldexpf((float)mantissa, -24);
	return h >> 15 ? -value : value;
}

bool bench_floats(uint32_t dtype, const uint8_t *src, size_t n, float *dst)
{
	for (size_t i = 0; i < n; i++) {
		uint16_t half;

		switch (dtype) {
		case DCMEM_F32:
			memcpy(&dst[i], src + 4 * i, 4);
			break;
		case DCMEM_BF16:
			memcpy(&half, src + 2 * i, 2);
			dst[i] = float_of_bits((uint32_t)half << 16);
			break;
		case DCMEM_F16:
			memcpy(&half, src + 2 * i, 2);
			dst[i] = float_of_half(half);
			break;
		default:
			return false;
		}
	}
	return true;
}

void bench_quantize(const float *src, size_t n, int8_t *dst)
{
	float most = 0;

	for (size_t i = 0; i < n; i++) {
		float magnitude = fabsf(src[i]);

		if (isfinite(magnitude) && magnitude > most)
			most = magnitude;
	}
	for (size_t i = 0; i < n; i++)
		dst[i] = most > 0 && isfinite(src[i]) ? (int8_t)rintf(src[i] / most * 127) : 0;
}

/* --- pages --- */

static bool is_wanted(const struct tensor *tensor, uint32_t dtype, enum bench_cast cast)
{
	if (cast == BENCH_AS_IS)
		return tensor->dtype == dtype;
	return tensor->n_dims == 2 && tensor->n_rows >= 32 && tensor->n_cols >= 32 &&
	       bench_exponent_bits(tensor->dtype) && !strstr(tensor->name, "embed") &&
	       !strstr(tensor->name, "wte") &&
	       !strstr(tensor->name, "wpe");
}

/* Whole rows where a row fits, as the packer does. */
static uint32_t page_bytes_of(uint64_t row_bytes)
{
	if (row_bytes == 0 || row_bytes > BENCH_PAGE_BYTES)
		return BENCH_PAGE_BYTES;
	return BENCH_PAGE_BYTES - BENCH_PAGE_BYTES % (uint32_t)row_bytes;
}

struct cut {
	uint64_t n_bytes;
	uint32_t page_bytes;
	uint64_t n_pages;
};

static struct cut cut_of(const struct tensor *tensor, enum bench_cast cast)
{
	struct cut cut = { .n_bytes = tensor->n_bytes };

	if (cast != BENCH_AS_IS)
		cut.n_bytes /= tensor->element_bytes;
	cut.page_bytes = page_bytes_of(cut.n_bytes / tensor->n_rows);
	cut.n_pages = div_up(cut.n_bytes, cut.page_bytes);
	return cut;
}

/* The tensor's bytes as they are to be coded, memory of the caller's to free. */
static int read_tensor(struct bench_model *model, const struct tensor *tensor, enum bench_cast cast,
		       uint8_t **ret_bytes)
{
	_cleanup_(cleanup_memory) uint8_t *bytes = memory_alloc(tensor->n_bytes);
	_cleanup_(cleanup_memory) uint8_t *codes = NULL;
	_cleanup_(cleanup_memory) float *row = NULL;
	uint64_t n = tensor->n_bytes / tensor->element_bytes;
	uint64_t step = cast == BENCH_PER_CHANNEL ? tensor->n_cols : n;
	int r;

	if (!bytes)
		return -ENOMEM;
	r = model->is_container ? read_container(model, tensor, bytes) : read_source(tensor, bytes);
	if (r)
		return r;
	if (cast == BENCH_AS_IS) {
		*ret_bytes = TAKE(bytes);
		return 0;
	}
	codes = memory_alloc(n);
	row = memory_array(step, sizeof(*row));
	if (!codes || !row)
		return -ENOMEM;
	for (uint64_t at = 0; at < n; at += step) {
		bench_floats(tensor->dtype, bytes + at * tensor->element_bytes, step, row);
		bench_quantize(row, step, (int8_t *)codes + at);
	}
	*ret_bytes = TAKE(codes);
	return 0;
}

/* Is page `i` of `total` one of `take` that are spread evenly? */
static bool is_taken(uint64_t i, uint64_t take, uint64_t total)
{
	return take >= total || (i + 1) * take / total > i * take / total;
}

static int add_pages(struct bench_model *model, const struct tensor *tensor, enum bench_cast cast,
		     uint64_t first, uint64_t take, uint64_t total, struct bench_data *data)
{
	_cleanup_(cleanup_memory) uint8_t *bytes = NULL;
	struct cut cut = cut_of(tensor, cast);
	int r = 0;

	for (uint64_t i = 0; i < cut.n_pages && !r; i++) {
		uint64_t at = i * cut.page_bytes;
		uint32_t n = (uint32_t)min_u64(cut.page_bytes, cut.n_bytes - at);
		uint8_t *page;

		if (!is_taken(first + i, take, total))
			continue;
		if (!bytes)
			r = read_tensor(model, tensor, cast, &bytes);
		if (!r)
			r = bench_data_add(data, n, &page);
		if (!r)
			memcpy(page, bytes + at, n);
	}
	return r;
}

void bench_model_data_name(const struct bench_model *model, uint32_t dtype, enum bench_cast cast,
			   char *ret_name, size_t n_bytes)
{
	snprintf(ret_name, n_bytes, "%s: %s", model->name,
		 cast == BENCH_AS_IS	  ? dtype_name(dtype) :
		 cast == BENCH_PER_TENSOR ? "INT8 per tensor" :
					    "INT8 per channel");
}

int bench_model_data(struct bench_model *model, uint32_t dtype, enum bench_cast cast,
		     uint64_t max_bytes, struct bench_data *data)
{
	struct bench_data made = { .dtype = cast == BENCH_AS_IS ? dtype : DCMEM_I8 };
	uint64_t total = 0, first = 0, take;
	int r = 0;

	bench_model_data_name(model, dtype, cast, made.name, sizeof(made.name));
	for (size_t i = 0; i < model->n_tensors; i++) {
		struct cut cut = cut_of(&model->tensors[i], cast);

		if (!is_wanted(&model->tensors[i], dtype, cast))
			continue;
		total += cut.n_pages;
		made.source_bytes += cut.n_bytes;
	}
	take = made.source_bytes > max_bytes ?
		       (uint64_t)((double)total * (double)max_bytes / (double)made.source_bytes) :
		       total;
	take = max_u64(take, 1);
	for (size_t i = 0; i < model->n_tensors && !r; i++) {
		if (!is_wanted(&model->tensors[i], dtype, cast))
			continue;
		r = add_pages(model, &model->tensors[i], cast, first, take, total, &made);
		first += cut_of(&model->tensors[i], cast).n_pages;
	}
	if (r) {
		bench_data_deinit(&made);
		return r;
	}
	if (made.n_pages)
		bench_data_finish(&made);
	*data = made;
	return 0;
}
