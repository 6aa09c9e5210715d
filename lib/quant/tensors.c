/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Owns a descriptor for each safetensors file of a source and a table of its tensors, sorted by
 * name. What is read was bounds-checked when the source was scanned.
 */
#include "quant/tensors.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/memory.h"
#include "base/message.h"
#include "dcmem/dcmem.h"
#include "model/index.h"

#define SLICE 65536 /* elements converted at once */

static int compare_entries(const void *a, const void *b, void *data)
{
	const struct source *source = data;
	const struct tensors_entry *x = a, *y = b;
	int order = strcmp(x->tensor->name, y->tensor->name);

	if (order)
		return order;
	if (source->files[x->file].is_model != source->files[y->file].is_model)
		return source->files[x->file].is_model ? -1 : 1;
	return x->file < y->file ? -1 : x->file > y->file;
}

int tensors_open(struct tensors *ret_tensors, const struct source *source)
{
	struct tensors tensors = { .source = source };
	int r = 0;

	tensors.fds = memory_array(source->n_files, sizeof(*tensors.fds));
	tensors.entries = memory_array(source->n_tensors + 1, sizeof(*tensors.entries));
	for (size_t f = 0; tensors.fds && f < source->n_files; f++)
		tensors.fds[f] = -1;
	if (!tensors.fds || !tensors.entries)
		r = message_set(-ENOMEM, "not enough memory for the tensor table");
	for (size_t f = 0; !r && f < source->n_files; f++) {
		const struct source_file *file = &source->files[f];

		if (file->kind != CONTAINER_FILE_SAFETENSORS)
			continue;
		r = source_open(file, &tensors.fds[f]);
		for (uint64_t i = 0; i < file->st.n_tensors; i++)
			tensors.entries[tensors.n++] =
				(struct tensors_entry){ &file->st.tensors[i], f, i };
	}
	if (r) {
		tensors_close(&tensors);
		return r;
	}
	qsort_r(tensors.entries, tensors.n, sizeof(*tensors.entries), compare_entries,
		(void *)(uintptr_t)source);
	*ret_tensors = tensors;
	return 0;
}

void tensors_close(struct tensors *tensors)
{
	for (size_t f = 0; tensors->fds && f < tensors->source->n_files; f++)
		close_fd(tensors->fds[f]);
	tensors->fds = memory_free(tensors->fds);
	tensors->entries = memory_free(tensors->entries);
}

const struct tensors_entry *tensors_find(const struct tensors *tensors, const char *name)
{
	uint64_t low = 0, high = tensors->n;

	while (low < high) { /* the first of equals */
		uint64_t middle = low + (high - low) / 2;

		if (strcmp(tensors->entries[middle].tensor->name, name) < 0)
			low = middle + 1;
		else
			high = middle;
	}
	if (low == tensors->n || strcmp(tensors->entries[low].tensor->name, name) != 0)
		return NULL;
	return &tensors->entries[low];
}

bool tensors_is_float(const struct tensors_entry *entry)
{
	uint32_t dtype = entry->tensor->dtype;

	return dtype == DCMEM_BF16 || dtype == DCMEM_F16 || dtype == DCMEM_F32;
}

int tensors_read_bytes(const struct tensors *tensors, const struct tensors_entry *entry,
		       uint64_t offset, size_t n_bytes, void *data)
{
	const struct source_file *file = &tensors->source->files[entry->file];
	int r = io_read_at(tensors->fds[entry->file], data, n_bytes,
			   file->st.head_bytes + entry->tensor->offset + offset);

	return r ? message_set(r, "%s: cannot read tensor %.200s: %s", file->path,
			       entry->tensor->name, strerror(-r)) : 0;
}

static float from_half(uint16_t half)
{
	uint32_t exponent = half >> 10 & 31, fraction = half & 1023, bits;
	float value;

	if (exponent == 0) {
		value = (float)fraction * 0x1p-24F;
		return half >> 15 ? -value : value;
	}
	bits = (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13 |
	       (uint32_t)(half >> 15) << 31;
	memcpy(&value, &bits, sizeof(value));
	return value;
}

int tensors_read(const struct tensors *tensors, const struct tensors_entry *entry, uint64_t first,
		 size_t n, float *values)
{
	uint32_t size = dtype_bytes(entry->tensor->dtype);
	uint16_t slice[SLICE];

	if (size == 4)
		return tensors_read_bytes(tensors, entry, first * 4, n * 4, values);
	for (size_t at = 0; at < n; at += SLICE) {
		size_t have = n - at < SLICE ? n - at : SLICE;
		int r = tensors_read_bytes(tensors, entry, (first + at) * 2, have * 2, slice);

		if (r)
			return r;
		for (size_t i = 0; i < have; i++) {
			uint32_t bits = (uint32_t)slice[i] << 16;

			if (entry->tensor->dtype == DCMEM_F16)
				values[at + i] = from_half(slice[i]);
			else
				memcpy(&values[at + i], &bits, sizeof(bits));
		}
	}
	return 0;
}
