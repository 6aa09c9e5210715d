/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The public functions about models: arguments and the process are checked here, once, and the rest
 * of the library trusts them. Any thread.
 */
#include "client.h"

#include <errno.h>
#include <string.h>

#include "base/range.h"
#include "convert.h"

static const char empty_view[64] __attribute__((aligned(64))); /* what views of no bytes point to */

int api_enter(struct dcmem *model)
{
	message_clear();
	if (!model)
		return message_set(DCMEM_E_INVALID, "no model");
	if (model->pid != fork_pid())
		return message_set(DCMEM_E_FORKED, "the model was opened by the parent process %d; open "
						   "it again in this one",
				   (int)model->pid);
	return model->served ? served_enter(model) : 0;
}

static bool name_is_file(const char *name)
{
	size_t n = strlen(name);

	return strchr(name, '/') || (n >= 6 && strcmp(name + n - 6, ".dcmem") == 0);
}

DCMEM_API int dcmem_open(const char *name, const struct dcmem_options *options,
			 struct dcmem **ret_model)
{
	struct transport_options transport;
	struct dcmem *model;
	int r = 0;

	message_clear();
	if (!name || !ret_model || (options && options->size != sizeof(*options)) ||
	    (options && options->flags &
				~(DCMEM_OPEN_NO_RECONNECT | DCMEM_OPEN_LOCAL | DCMEM_OPEN_NO_KEEP)))
		return message_set(DCMEM_E_INVALID, "no name, or options of another size or with unknown "
						    "flags");
	if (!name_is_file(name))
		r = transport_options_init(&transport, options);
	if (r != 0)
		return r;
	model = memory_zalloc(sizeof(*model));
	if (!model)
		return message_set(-ENOMEM, "no memory to open a model");
	(void)pthread_mutex_init(&model->lock, NULL);
	model->pid = fork_pid();
	model->flags = options ? options->flags : 0;
	model->container.fd = -1;
	r = name_is_file(name) ? embedded_open(model, name) : served_open(model, name, &transport);
	if (r == 0) {
		*ret_model = model;
		return 0;
	}
	if (model->served)
		served_close(model);
	(void)pthread_mutex_destroy(&model->lock);
	memory_free(model);
	return r;
}

DCMEM_API struct dcmem *dcmem_close(struct dcmem *model)
{
	if (!model)
		return NULL;
	if (model->pid != fork_pid()) {
		/* The parent's locks and mappings; only the socket must not outlive it here. */
		if (model->served)
			served_forget(model);
		asks_forget(model);
		return NULL;
	}
	asks_free(model);
	view_free_all(model);
	scratch_free_all(model);
	if (model->served)
		served_close(model);
	else
		embedded_close(model);
	(void)pthread_mutex_destroy(&model->lock);
	return memory_free(model);
}

DCMEM_API bool dcmem_is_served(const struct dcmem *model)
{
	return model->served != NULL;
}

DCMEM_API void dcmem_fingerprint(const struct dcmem *model, uint8_t ret_fingerprint[16])
{
	memcpy(ret_fingerprint, model->fingerprint, sizeof(model->fingerprint));
}

DCMEM_API uint64_t dcmem_n_tensors(const struct dcmem *model)
{
	return model->index.n_tensors;
}

int client_tensor(const struct dcmem *model, uint64_t id, struct client_tensor *ret_tensor)
{
	struct client_tensor tensor = {.id = id};
	int r;

	if (id >= model->index.n_tensors)
		return message_set(DCMEM_E_INVALID, "tensor %llu of a model with %llu",
				   (unsigned long long)id,
				   (unsigned long long)model->index.n_tensors);
	r = index_tensor(&model->index, id, &tensor.record);
	if (r == 0)
		r = index_shape(tensor.record, &tensor.shape);
	if (r != 0)
		return r;
	if (tensor.record->n_bytes > 0 &&
	    (tensor.record->page_bytes == 0 ||
	     tensor.record->page_bytes > CONTAINER_MAX_PAGE_BYTES ||
	     tensor.record->page_bytes % tensor.shape.element_bytes != 0))
		return message_set(DCMEM_E_CORRUPT, "tensor %llu has pages of %u bytes",
				   (unsigned long long)id, tensor.record->page_bytes);
	*ret_tensor = tensor;
	return 0;
}

int client_check_rows(const struct client_tensor *tensor, uint64_t row, uint64_t *n_rows)
{
	uint64_t total = tensor->shape.n_rows, n = *n_rows;

	if (n == 0 && row <= total)
		n = total - row;
	if (!range_fits(row, n, total))
		return message_set(DCMEM_E_INVALID, "rows from %llu on, %llu of them, of a tensor with %llu",
				   (unsigned long long)row, (unsigned long long)n,
				   (unsigned long long)total);
	*n_rows = n;
	return 0;
}

static int api_describe(struct dcmem *model, const struct client_tensor *t, struct dcmem_tensor *ret)
{
	const struct container_tensor *record = t->record;
	struct dcmem_tensor d = {
		.id = t->id,
		.dtype = record->dtype,
		.n_dims = record->n_dims,
		.n_rows = t->shape.n_rows,
		.n_cols = t->shape.n_cols,
		.row_bytes = t->shape.row_bytes,
		.n_bytes = record->n_bytes,
		.page_bytes = record->page_bytes,
		.n_companions = record->n_companions,
		.flags = (record->flags & CONTAINER_TENSOR_QUANTIZED ? DCMEM_TENSOR_QUANTIZED : 0) |
			 (record->flags & CONTAINER_TENSOR_SHARED ? DCMEM_TENSOR_SHARED : 0),
	};
	const struct container_form *form;
	const struct container_page *page;
	bool raw = false;
	int r;

	memcpy(d.dims, record->dims, sizeof(d.dims));
	r = index_tensor_name(&model->index, record, &d.name);
	for (uint32_t i = 0; i < record->n_forms && r == 0; i++) {
		r = index_form(&model->index, record->first_form + i, &form);
		if (r != 0 || form->rank != 0)
			continue;
		d.stored_bytes += form->stored_bytes;
		if (form->first_page == 0 && form->n_pages > 0) {
			r = index_page(&model->index, form->page_record, &page);
			d.codec = r == 0 ? page->codec : 0;
		}
	}
	if (r == 0 && model->served)
		r = served_is_raw(model, t, &raw);
	if (r != 0)
		return r;
	d.flags |= raw ? DCMEM_TENSOR_RAW : 0;
	*ret = d;
	return 0;
}

DCMEM_API int dcmem_tensor(struct dcmem *model, uint64_t id, struct dcmem_tensor *ret_tensor)
{
	struct client_tensor tensor;
	int r = api_enter(model);

	if (r != 0)
		return r;
	r = client_tensor(model, id, &tensor);
	if (r == 0)
		r = api_describe(model, &tensor, ret_tensor);
	return r;
}

DCMEM_API int dcmem_find(struct dcmem *model, const char *name, struct dcmem_tensor *ret_tensor)
{
	struct client_tensor tensor;
	uint64_t id;
	int r = api_enter(model);

	if (r != 0)
		return r;
	r = name ? index_find(&model->index, name, &id)
		 : message_set(DCMEM_E_INVALID, "no tensor name");
	if (r == DCMEM_E_NOT_FOUND)
		message_set(r, "no tensor is called '%s'", name);
	if (r == 0)
		r = client_tensor(model, id, &tensor);
	if (r == 0)
		r = api_describe(model, &tensor, ret_tensor);
	return r;
}

DCMEM_API int dcmem_companion(struct dcmem *model, uint64_t id, uint32_t i,
			      struct dcmem_companion *ret_companion)
{
	const struct container_companion *c;
	struct client_tensor tensor;
	int r = api_enter(model);

	if (r != 0)
		return r;
	r = client_tensor(model, id, &tensor);
	if (r == 0 && i >= tensor.record->n_companions)
		r = message_set(DCMEM_E_INVALID, "companion %u of a tensor with %u", i,
				tensor.record->n_companions);
	if (r == 0)
		r = index_companion(&model->index, tensor.record->first_companion + i, &c);
	if (r == 0)
		*ret_companion = (struct dcmem_companion){.tensor = c->companion,
							  .relation = c->relation,
							  .scheme = c->scheme,
							  .axis = c->axis,
							  .group_size = c->group_size};
	return r;
}

DCMEM_API int dcmem_read(struct dcmem *model, const struct dcmem_read *request)
{
	int r = api_enter(model);

	if (r != 0)
		return r;
	r = request ? read_block(model, request) : message_set(DCMEM_E_INVALID, "no request");
	return r;
}

int api_acquire(struct dcmem *model, const struct client_tensor *tensor, uint64_t row,
		uint64_t n_rows, struct dcmem_view *ret_view)
{
	bool raw;
	int r;

	if (n_rows == 0 || tensor->shape.row_bytes == 0) {
		*ret_view = (struct dcmem_view){
			.data = empty_view, .row = row, .n_rows = n_rows, .kind = DCMEM_VIEW_RAW};
		return 0;
	}
	if (!model->served)
		return view_acquire_private(model, tensor, row, n_rows, ret_view);
	r = served_is_raw(model, tensor, &raw);
	if (r == 0 && raw) {
		r = served_acquire_raw(model, tensor, row, n_rows, ret_view);
		if (r != -ESTALE)
			return r;
		r = 0;
	}
	if (r != 0)
		return r;
	if (model->flags & DCMEM_OPEN_LOCAL)
		return view_acquire_private(model, tensor, row, n_rows, ret_view);
	return served_acquire_window(model, tensor, row, n_rows, ret_view);
}

DCMEM_API int dcmem_acquire(struct dcmem *model, uint64_t id, uint64_t row, uint64_t n_rows,
			    struct dcmem_view *ret_view)
{
	struct client_tensor tensor;
	int r = api_enter(model);

	if (r != 0)
		return r;
	r = ret_view ? client_tensor(model, id, &tensor)
		     : message_set(DCMEM_E_INVALID, "nowhere to put the view");
	if (r == 0)
		r = client_check_rows(&tensor, row, &n_rows);
	if (r == 0)
		r = api_acquire(model, &tensor, row, n_rows, ret_view);
	return r;
}

DCMEM_API void dcmem_release(struct dcmem *model, struct dcmem_view *view)
{
	struct client_lease *lease, window = {0};
	struct served_segment *segment = NULL;
	uint64_t number;

	if (!view)
		return;
	number = view->lease;
	memset(view, 0, sizeof(*view));
	if (!model || number == 0 || model->pid != fork_pid())
		return;
	pthread_mutex_lock(&model->lock);
	lease = lease_find(model, number);
	if (lease && lease->chunk) {
		window = *lease;
		lease_free(model, number);
	} else if (lease && lease->segment) {
		segment = lease->segment;
		lease_free(model, number);
	} else {
		view_release(model, number);
	}
	pthread_mutex_unlock(&model->lock);
	if (window.chunk)
		chunk_release(model, &window);
	if (segment)
		segment_leave(model, segment);
}

DCMEM_API int dcmem_prefetch(struct dcmem *model, uint64_t id, uint64_t row, uint64_t n_rows)
{
	struct client_tensor tensor;
	bool raw = true;
	int r = api_enter(model);

	if (r != 0)
		return r;
	r = client_tensor(model, id, &tensor);
	if (r == 0)
		r = client_check_rows(&tensor, row, &n_rows);
	if (r == 0 && model->served && !(model->flags & DCMEM_OPEN_LOCAL) && n_rows > 0 &&
	    tensor.shape.row_bytes > 0) {
		r = served_is_raw(model, &tensor, &raw);
		if (r == 0 && !raw)
			r = served_prefetch(model, &tensor, row, n_rows);
	}
	return r;
}

/* Programs built before there was copied_bytes have no room for it. */
#define COUNTERS_BYTES_0_1 offsetof(struct dcmem_counters, copied_bytes)

DCMEM_API int dcmem_counters(struct dcmem *model, struct dcmem_counters *counters)
{
	message_clear();
	if (!model || !counters ||
	    (counters->size != sizeof(*counters) && counters->size != COUNTERS_BYTES_0_1))
		return message_set(DCMEM_E_INVALID, "no model, or counters of another size");
	counters->decoded_bytes = __atomic_load_n(&model->counts.decoded_bytes, __ATOMIC_RELAXED);
	counters->window_bytes = __atomic_load_n(&model->counts.window_bytes, __ATOMIC_RELAXED);
	counters->raw_bytes = __atomic_load_n(&model->counts.raw_bytes, __ATOMIC_RELAXED);
	counters->requests = __atomic_load_n(&model->counts.requests, __ATOMIC_RELAXED);
	counters->reconnects = __atomic_load_n(&model->counts.reconnects, __ATOMIC_RELAXED);
	if (counters->size == sizeof(*counters))
		counters->copied_bytes =
			__atomic_load_n(&model->counts.copied_bytes, __ATOMIC_RELAXED);
	return 0;
}
