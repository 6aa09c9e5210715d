/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading: page by page, verified and decoded in the calling thread, no lock held. Whole pages of
 * dense rows decode straight into the caller's memory; anything else goes through one page of scratch,
 * and is counted as copied. Stores are plain ones: docs/codecs.md says why. Scratch is lent from a free list, so that a read allocates only while more threads read than ever before.
 */
#include "client.h"

#include <string.h>

#include "base/hash.h"
#include "base/range.h"
#include "convert.h"
#include "dequant.h"

#define CONVERT_ELEMENTS 1024 /* of one pass through float: 4 KiB, stays in L1 */

struct client_scratch *scratch_acquire(struct dcmem *model)
{
	struct client_scratch *scratch;

	pthread_mutex_lock(&model->lock);
	scratch = model->scratches;
	if (scratch)
		model->scratches = scratch->next;
	pthread_mutex_unlock(&model->lock);
	if (scratch)
		return scratch;
	scratch = memory_zalloc(sizeof(*scratch));
	if (!scratch)
		return NULL;
	scratch->codec = codec_context_new();
	scratch->page = memory_alloc(CONTAINER_MAX_PAGE_BYTES);
	if (scratch->codec && scratch->page)
		return scratch;
	codec_context_free(scratch->codec);
	memory_free(scratch->page);
	return memory_free(scratch);
}

void scratch_release(struct dcmem *model, struct client_scratch *scratch)
{
	pthread_mutex_lock(&model->lock);
	scratch->next = model->scratches;
	model->scratches = scratch;
	pthread_mutex_unlock(&model->lock);
}

void scratch_free_all(struct dcmem *model)
{
	while (model->scratches) {
		struct client_scratch *scratch = model->scratches;

		model->scratches = scratch->next;
		codec_context_free(scratch->codec);
		memory_free(scratch->page);
		memory_free(scratch->stored);
		memory_free(scratch);
	}
}

int client_form(struct dcmem *model, const struct client_tensor *tensor, uint64_t page,
		struct client_form *ret_form)
{
	return model->served ? served_form(model, tensor, ret_form)
			     : embedded_form(model, tensor, page, ret_form);
}

void client_form_close(struct dcmem *model, struct client_form *form)
{
	if (form->mapped)
		segment_leave(model, form->mapped);
	*form = (struct client_form){0};
}

static int read_corrupt(const struct client_tensor *tensor, uint64_t page, const char *what)
{
	return message_set(DCMEM_E_CORRUPT, "tensor %llu, page %llu: %s",
			   (unsigned long long)tensor->id, (unsigned long long)page, what);
}

/* A raw page of a container file: read to where it is wanted, and only then looked at. */
static int read_raw_page(struct dcmem *model, const struct client_tensor *tensor,
			 const struct client_form *form, uint64_t page, void *dst, uint64_t n_bytes)
{
	const struct container_page *record = &form->pages[page - form->first_page];
	uint64_t hash;
	int r = container_read_segment(&model->container, form->segment, record->offset, dst, n_bytes);

	if (r != 0)
		return r;
	hash = hash_64(dst, n_bytes);
	if (hash != record->stored_hash || hash != record->decoded_hash)
		return read_corrupt(tensor, page, "its bytes do not match their hash");
	client_count(&model->counts.decoded_bytes, n_bytes);
	return 0;
}

/* Decodes one page into exactly its decoded bytes at dst. */
static int read_page(struct dcmem *model, const struct client_tensor *tensor,
		     const struct client_form *form, uint64_t page, struct client_scratch *scratch,
		     void *dst)
{
	const struct container_page *record = &form->pages[page - form->first_page];
	uint64_t at, n_bytes = index_page_bytes(tensor->record, page);
	const void *stored;
	int r;

	if (!index_page_place(record, form->pages_from, form->stored_bytes, &at))
		return read_corrupt(tensor, page, "stored outside its form");
	if (record->stored_bytes > CONTAINER_MAX_PAGE_BYTES)
		return read_corrupt(tensor, page, "larger than a page may be");
	if (form->base) {
		stored = form->base + at;
	} else if (record->codec == CODEC_RAW && record->stored_bytes == n_bytes) {
		return read_raw_page(model, tensor, form, page, dst, n_bytes);
	} else {
		r = embedded_stored(model, form, record, scratch, &stored);
		if (r != 0)
			return r;
	}
	r = container_decode_page(scratch->codec, record, stored, dst, n_bytes);
	if (r > 0)
		return r == CODEC_E_UNKNOWN
			       ? message_set(DCMEM_E_UNSUPPORTED, "page codec %u is unknown to this build",
					     record->codec)
			       : read_corrupt(tensor, page, "its bytes do not match their hash");
	if (r == 0)
		client_count(&model->counts.decoded_bytes, n_bytes);
	return r;
}

/* Where decoded bytes go: [offset, offset + n_bytes) of the tensor, in order, piece by piece. */
typedef void (*read_emit)(void *data, uint64_t offset, const uint8_t *bytes, uint64_t n_bytes);

/*
 * Visits decoded bytes [offset, offset + n_bytes). Whole pages go to `dense` without a copy, if it is
 * not NULL, and pieces are copied there; else everything goes to emit().
 */
static int read_visit(struct dcmem *model, const struct client_tensor *tensor, uint64_t offset,
		      uint64_t n_bytes, uint8_t *dense, read_emit emit, void *data)
{
	uint64_t page_bytes = tensor->record->page_bytes, end = offset + n_bytes;
	struct client_form form = {0};
	struct client_scratch *scratch;
	int r = 0;

	if (n_bytes == 0)
		return 0;
	scratch = scratch_acquire(model);
	if (!scratch)
		return message_set(-ENOMEM, "no memory to decode a page");
	for (uint64_t page = offset / page_bytes; page * page_bytes < end; page++) {
		uint64_t start = page * page_bytes, size = index_page_bytes(tensor->record, page);
		uint64_t from = max_u64(start, offset), to = min_u64(start + size, end);
		bool whole = dense && from == start && to == start + size;

		if (page - form.first_page >= form.n_pages) {
			client_form_close(model, &form);
			r = client_form(model, tensor, page, &form);
			if (r != 0)
				break;
		}
		r = read_page(model, tensor, &form, page, scratch,
			      whole ? dense + (start - offset) : scratch->page);
		if (r != 0)
			break;
		if (!whole)
			client_count(&model->counts.copied_bytes, to - from);
		if (dense && !whole)
			memcpy(dense + (from - offset), scratch->page + (from - start), to - from);
		else if (!dense)
			emit(data, from, scratch->page + (from - start), to - from);
	}
	client_form_close(model, &form);
	scratch_release(model, scratch);
	if (r == 0)
		kept_count(model, tensor->id, n_bytes, true);
	return r;
}

int read_bytes(struct dcmem *model, const struct client_tensor *tensor, uint64_t offset,
	       uint64_t n_bytes, void *dst)
{
	return read_visit(model, tensor, offset, n_bytes, dst, NULL, NULL);
}

/* A block on its way into the caller's memory. */
struct read_slice {
	const struct client_tensor *tensor;
	const struct dequant *dequant; /* NULL: none */
	uint64_t row, col, n_cols;
	uint64_t stride;
	uint32_t from, to, to_bytes; /* dtypes; to_bytes an element */
	uint8_t *dst;
};

/* Elements [col, col + n) of one row. */
static void slice_put(const struct read_slice *s, uint64_t row, uint64_t col, const uint8_t *bytes,
		      uint64_t n)
{
	uint8_t *dst = s->dst + (row - s->row) * s->stride + (col - s->col) * s->to_bytes;
	uint32_t from_bytes = s->tensor->shape.element_bytes;

	if (s->from == s->to && !s->dequant) {
		memcpy(dst, bytes, n * from_bytes);
		return;
	}
	while (n > 0) {
		float values[CONVERT_ELEMENTS];
		uint64_t now = min_u64(n, CONVERT_ELEMENTS);

		convert_to_float(s->from, bytes, values, now);
		if (s->dequant)
			dequant_apply(s->dequant, row, col, values, now);
		convert_from_float(s->to, values, dst, now);
		dst += now * s->to_bytes;
		bytes += now * from_bytes;
		col += now;
		n -= now;
	}
}

static void slice_emit(void *data, uint64_t offset, const uint8_t *bytes, uint64_t n_bytes)
{
	const struct read_slice *s = data;
	const struct index_shape *shape = &s->tensor->shape;
	uint64_t end = offset + n_bytes, col_end = s->col + s->n_cols;

	while (offset < end) {
		uint64_t row = offset / shape->row_bytes;
		uint64_t col = offset % shape->row_bytes / shape->element_bytes;
		uint64_t next = min_u64(end, (row + 1) * shape->row_bytes);
		uint64_t last = col + (next - offset) / shape->element_bytes;
		uint64_t from = max_u64(col, s->col), to = min_u64(last, col_end);

		if (from < to)
			slice_put(s, row, from, bytes + (from - col) * shape->element_bytes, to - from);
		bytes += next - offset;
		offset = next;
	}
}

static int read_check(const struct client_tensor *tensor, const struct dcmem_read *q,
		      struct read_slice *ret_slice, uint64_t *ret_n_rows)
{
	const struct index_shape *shape = &tensor->shape;
	uint64_t n_rows = q->n_rows, n_cols = q->n_cols, dense, stride, need = 0;
	uint32_t to = q->dtype ? q->dtype : tensor->record->dtype;
	int r;

	if (q->size != sizeof(*q) || q->flags != 0)
		return message_set(DCMEM_E_INVALID, "a read request of another size, or with flags");
	r = client_check_rows(tensor, q->row, &n_rows);
	if (r != 0)
		return r;
	if (n_cols == 0 && q->col <= shape->n_cols)
		n_cols = shape->n_cols - q->col;
	if (!range_fits(q->col, n_cols, shape->n_cols))
		return message_set(DCMEM_E_INVALID,
				   "columns %llu to %llu of a tensor with %llu columns",
				   (unsigned long long)q->col, (unsigned long long)(q->col + n_cols),
				   (unsigned long long)shape->n_cols);
	if (q->dtype && !convert_is_possible(tensor->record->dtype, to) &&
	    to != tensor->record->dtype)
		return message_set(DCMEM_E_UNSUPPORTED, "%s cannot be read as dtype %u",
				   dtype_name(tensor->record->dtype), to);
	dense = n_cols * dtype_bytes(to); /* fits: n_cols times at most 8 is within the tensor's bytes
					     times 4, and those are below 2^60 in a checked shape */
	stride = q->stride_bytes ? q->stride_bytes : dense;
	if (stride < dense)
		return message_set(DCMEM_E_INVALID, "a stride of %llu bytes for rows of %llu",
				   (unsigned long long)stride, (unsigned long long)dense);
	if (n_rows > 0 && n_cols > 0 &&
	    (!range_mul(n_rows - 1, stride, &need) || !range_add(need, dense, &need)))
		need = UINT64_MAX;
	if (need > q->dst_bytes || (need > 0 && !q->dst))
		return message_set(DCMEM_E_INVALID, "the block needs %llu bytes, dst has %zu",
				   (unsigned long long)need, q->dst_bytes);
	*ret_slice = (struct read_slice){.tensor = tensor,
					 .row = q->row,
					 .col = q->col,
					 .n_cols = n_cols,
					 .stride = stride,
					 .from = tensor->record->dtype,
					 .to = to,
					 .to_bytes = dtype_bytes(to),
					 .dst = q->dst};
	*ret_n_rows = n_rows;
	return 0;
}

static int read_slice(struct dcmem *model, struct read_slice *s, uint64_t n_rows)
{
	const struct index_shape *shape = &s->tensor->shape;
	uint64_t start = s->row * shape->row_bytes + s->col * shape->element_bytes;
	uint64_t part = s->n_cols * shape->element_bytes;
	int r = 0;

	if (n_rows == 0 || s->n_cols == 0)
		return 0;
	if (s->from == s->to && !s->dequant && part == shape->row_bytes && s->stride == part)
		return read_visit(model, s->tensor, start, n_rows * part, s->dst, NULL, NULL);
	/* Where pages cut rows, pages without wanted columns are passed over. */
	if (shape->rows_per_page == 0 && part < shape->row_bytes) {
		for (uint64_t i = 0; i < n_rows && r == 0; i++)
			r = read_visit(model, s->tensor, start + i * shape->row_bytes, part, NULL,
				       slice_emit, s);
		return r;
	}
	return read_visit(model, s->tensor, start, (n_rows - 1) * shape->row_bytes + part, NULL,
			  slice_emit, s);
}

int read_block(struct dcmem *model, const struct dcmem_read *request)
{
	struct client_tensor tensor;
	struct dequant dequant;
	struct read_slice slice;
	uint64_t n_rows = 0;
	int r;

	r = client_tensor(model, request->tensor, &tensor);
	if (r == 0)
		r = read_check(&tensor, request, &slice, &n_rows);
	if (r != 0)
		return r;
	if (request->dtype == 0 || tensor.record->n_companions == 0)
		return read_slice(model, &slice, n_rows);
	r = dequant_init(&dequant, model, &tensor, slice.row, n_rows);
	if (r != 0)
		return r;
	slice.dequant = dequant_is_needed(&dequant) ? &dequant : NULL;
	r = read_slice(model, &slice, n_rows);
	dequant_deinit(&dequant);
	return r;
}
