/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Weights of both sides as float, in slices of rows; the container's through the library, which is
 * how programs will see them. Scales that quantizing added have no counterpart, and are left out.
 */
#include "compare.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/message.h"
#include "dcmem/dcmem.h"
#include "quant/tensors.h"

#define SLICE_BYTES (8U << 20)

struct compare {
	struct dcmem *model;
	struct tensors tensors;
	struct compare_result result;
	double error, energy;
};

static int no_memory(void)
{
	return message_set(-ENOMEM, "not enough memory to compare");
}

static int read_rows(const struct compare *compare, uint64_t id, uint64_t row, uint64_t n_rows,
		     uint32_t dtype, void *dst, size_t n_bytes)
{
	struct dcmem_read request = { .size = sizeof(request), .tensor = id, .row = row,
				      .n_rows = n_rows, .dtype = dtype, .dst = dst,
				      .dst_bytes = n_bytes };
	int r = dcmem_read(compare->model, &request);

	return r ? message_set(r, "%s", dcmem_error()) : 0;
}

static int compare_lossy(struct compare *compare, uint64_t id, const struct tensors_entry *entry)
{
	uint64_t total = entry->tensor->dims[0], n_cols = entry->tensor->dims[1];
	uint64_t slice = SLICE_BYTES / (n_cols * sizeof(float)) + 1;
	_cleanup_(cleanup_memory) float *a = memory_array(slice * n_cols, sizeof(float));
	_cleanup_(cleanup_memory) float *b = memory_array(slice * n_cols, sizeof(float));
	double error = 0, energy = 0, share;

	if (!a || !b)
		return no_memory();
	for (uint64_t row = 0; row < total; row += slice) {
		uint64_t n = total - row < slice ? total - row : slice;
		int r = read_rows(compare, id, row, n, DCMEM_F32, a, n * n_cols * sizeof(float));

		if (!r)
			r = tensors_read(&compare->tensors, entry, row * n_cols, n * n_cols, b);
		if (r)
			return r;
		for (size_t i = 0; i < n * n_cols; i++) {
			error += (double)(a[i] - b[i]) * (a[i] - b[i]);
			energy += (double)b[i] * b[i];
		}
	}
	compare->error += error;
	compare->energy += energy;
	share = energy > 0 ? sqrt(error / energy) : 0;
	if (share >= compare->result.worst) {
		compare->result.worst = share;
		snprintf(compare->result.worst_name, sizeof(compare->result.worst_name), "%s",
			 entry->tensor->name);
	}
	compare->result.n_lossy++;
	return 0;
}

static int compare_exact(struct compare *compare, uint64_t id, const struct container_tensor *tensor,
			 const struct tensors_entry *entry)
{
	uint64_t total = 1, row_bytes, slice;
	_cleanup_(cleanup_memory) uint8_t *a = NULL;
	_cleanup_(cleanup_memory) uint8_t *b = NULL;

	if (tensor->n_bytes != entry->tensor->n_bytes || tensor->dtype != entry->tensor->dtype)
		return message_set(INDEX_E_CORRUPT, "tensor %s has another type or shape there",
				   entry->tensor->name);
	for (uint32_t i = 0; i + 1 < tensor->n_dims; i++)
		total *= tensor->dims[i];
	row_bytes = total ? tensor->n_bytes / total : 0;
	slice = row_bytes ? SLICE_BYTES / row_bytes + 1 : 1;
	a = memory_alloc(slice * row_bytes + 1);
	b = memory_alloc(slice * row_bytes + 1);
	if (!a || !b)
		return no_memory();
	for (uint64_t row = 0; row_bytes && row < total; row += slice) {
		uint64_t n = total - row < slice ? total - row : slice;
		int r = read_rows(compare, id, row, n, tensor->dtype, a, n * row_bytes);

		if (!r)
			r = tensors_read_bytes(&compare->tensors, entry, row * row_bytes, n * row_bytes, b);
		if (r)
			return r;
		if (memcmp(a, b, n * row_bytes) != 0)
			return message_set(INDEX_E_CORRUPT, "tensor %s differs, and was not quantized",
					   entry->tensor->name);
	}
	compare->result.n_alike++;
	return 0;
}

static int compare_tensor(struct compare *compare, const struct index *index, uint64_t id)
{
	const struct container_tensor *tensor;
	const struct tensors_entry *entry;
	const char *name;
	bool lossy;
	int r = index_tensor(index, id, &tensor);

	if (!r)
		r = index_tensor_name(index, tensor, &name);
	if (r)
		return r;
	entry = tensors_find(&compare->tensors, name);
	lossy = tensor->flags & CONTAINER_TENSOR_QUANTIZED;
	if (!entry && lossy && tensor->dtype != DCMEM_I8)
		return 0;
	if (!entry || (lossy && (!tensors_is_float(entry) || entry->tensor->n_dims != 2 ||
				 entry->tensor->dims[0] != tensor->dims[0] ||
				 entry->tensor->dims[1] != tensor->dims[1])))
		return message_set(INDEX_E_CORRUPT, "tensor %s has no counterpart of its shape there",
				   name);
	return lossy ? compare_lossy(compare, id, entry) : compare_exact(compare, id, tensor, entry);
}

int compare_quantized(const struct container *container, const char *path, const char *against,
		      struct compare_result *ret_result)
{
	struct compare compare = { 0 };
	size_t n = strlen(path) + 3;
	_cleanup_(cleanup_memory) char *file = memory_alloc(n); /* never the name of a served model */
	struct source source;
	int r = file ? source_init(&source, against) : no_memory();

	if (r)
		return r;
	snprintf(file, n, "%s%s", strchr(path, '/') ? "" : "./", path);
	r = dcmem_open(file, NULL, &compare.model);
	if (r)
		r = message_set(r, "%s", dcmem_error());
	if (!r)
		r = tensors_open(&compare.tensors, &source);
	for (uint64_t id = 0; !r && id < container->index.n_tensors; id++)
		r = compare_tensor(&compare, &container->index, id);
	if (compare.tensors.fds)
		tensors_close(&compare.tensors);
	dcmem_close(compare.model);
	source_deinit(&source);
	if (r)
		return r;
	compare.result.error = compare.energy > 0 ? sqrt(compare.error / compare.energy) : 0;
	*ret_result = compare.result;
	return 0;
}
