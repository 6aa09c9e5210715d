/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Weights of a dcmem model, served by the daemon or opened in-process: a view is an acquired range
 * of rows, given back as soon as it has been used unless it is zero-copy.
 */
#include "weights.h"

#include <stdlib.h>
#include <string.h>

#include "dcmem/dcmem.h"
#include "util.h"

struct dcmem_weights {
	struct weights head;
	struct dcmem *model;
};

/* What a view holds: a window of the daemon's, or rows decoded into memory of this process. */
struct dcmem_weights_view {
	struct dcmem_view view;
	void *copy; /* NULL: a window */
};

_Static_assert(sizeof(struct dcmem_weights_view) <= sizeof(((struct weight_view *)0)->private_words),
	       "a view fits");

static struct dcmem *model_of(struct weights *weights)
{
	return ((struct dcmem_weights *)weights)->model;
}

/* Negative errno as it is; an outcome of the library becomes -EIO with its sentence. */
static int outcome(int r, const char *what)
{
	const char *text = dcmem_error();

	if (r == 0)
		return 0;
	return error_set(r < 0 ? r : -EIO, "%s: %s", what, *text ? text : dcmem_strerror(r));
}

static int dcmem_weights_find(struct weights *weights, const char *name, struct weight *ret_weight)
{
	struct dcmem_tensor tensor;
	int r = dcmem_find(model_of(weights), name, &tensor);

	if (r == DCMEM_E_NOT_FOUND)
		return ENOENT;
	if (r != 0)
		return outcome(r, name);
	*ret_weight = (struct weight){
		.id = tensor.id,
		.dtype = tensor.dtype,
		.n_dims = tensor.n_dims,
		.n_rows = tensor.n_rows,
		.n_cols = tensor.n_cols,
		.row_bytes = tensor.row_bytes,
	};
	return 0;
}

/* Where the daemon has no room for a window, this process decodes for itself. */
static int read_copy(struct weights *weights, const struct weight *weight, uint64_t row,
		     uint64_t n_rows, void **ret_copy)
{
	struct dcmem_read request = {
		.size = sizeof(request),
		.tensor = weight->id,
		.row = row,
		.n_rows = n_rows,
		.dst_bytes = n_rows * weight->row_bytes,
	};
	int r;

	request.dst = array_new(request.dst_bytes, 1);
	if (!request.dst)
		return error_set(-ENOMEM, "no memory for %zu bytes of weights", request.dst_bytes);
	r = dcmem_read(model_of(weights), &request);
	if (r != 0) {
		array_free(request.dst);
		return outcome(r, "read");
	}
	*ret_copy = request.dst;
	return 0;
}

static int dcmem_weights_acquire(struct weights *weights, const struct weight *weight, uint64_t row,
				 uint64_t n_rows, struct weight_view *ret_view)
{
	struct dcmem_weights_view own = {0};
	int r = dcmem_acquire(model_of(weights), weight->id, row, n_rows, &own.view);

	if (r == DCMEM_E_BUDGET) {
		r = read_copy(weights, weight, row, n_rows, &own.copy);
		if (r != 0)
			return r;
	} else if (r != 0) {
		return outcome(r, "acquire");
	}
	ret_view->data = own.copy ? own.copy : own.view.data;
	ret_view->keep = !own.copy && own.view.kind == DCMEM_VIEW_RAW && own.view.lease == 0;
	memcpy(ret_view->private_words, &own, sizeof(own));
	return 0;
}

static void dcmem_weights_release(struct weights *weights, struct weight_view *view)
{
	struct dcmem_weights_view own;

	memcpy(&own, view->private_words, sizeof(own));
	if (own.copy)
		array_free(own.copy);
	else
		dcmem_release(model_of(weights), &own.view);
	memset(view, 0, sizeof(*view));
}

static int dcmem_weights_read_file(struct weights *weights, const char *name, char **ret_text,
				   size_t *ret_n_bytes)
{
	char *text, *copy;
	size_t n_bytes;
	int r = dcmem_read_file(model_of(weights), name, &text, &n_bytes);

	if (r != 0)
		return outcome(r, name);
	copy = malloc(n_bytes + 1);
	if (copy) {
		memcpy(copy, text, n_bytes);
		copy[n_bytes] = 0;
	}
	dcmem_free(text);
	if (!copy)
		return error_set(-ENOMEM, "no memory for %s", name);
	*ret_text = copy;
	*ret_n_bytes = n_bytes;
	return 0;
}

static void dcmem_weights_close(struct weights *weights)
{
	dcmem_close(model_of(weights));
	array_free(weights);
}

static const struct weights_source dcmem_source = {
	.name = "dcmem",
	.find = dcmem_weights_find,
	.acquire = dcmem_weights_acquire,
	.release = dcmem_weights_release,
	.read_file = dcmem_weights_read_file,
	.close = dcmem_weights_close,
};

int weights_open_dcmem(const char *model, struct weights **ret_weights)
{
	struct dcmem_weights *weights = array_new(1, sizeof(*weights));
	int r;

	if (!weights)
		return error_set(-ENOMEM, "no memory");
	weights->head.source = &dcmem_source;
	r = dcmem_open(model, NULL, &weights->model);
	if (r != 0) {
		array_free(weights);
		/* The library's sentence names the model already. */
		return *dcmem_error() ? error_set(r < 0 ? r : -EIO, "%s", dcmem_error())
				      : outcome(r, model);
	}
	*ret_weights = &weights->head;
	return 0;
}
