/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Dequantization (the affine scheme of docs/container.md). Owns the companions' values of one read.
 * Refuses unknown schemes and relations, and companions whose shape does not fit their tensor.
 */
#include "dequant.h"

#include <string.h>

#include "base/range.h"
#include "client.h"
#include "convert.h"

#define SCHEME_AFFINE 1

static int dequant_misfit(const struct client_tensor *tensor, uint64_t companion)
{
	return message_set(DCMEM_E_CORRUPT, "companion %llu does not fit the shape of tensor %llu",
			   (unsigned long long)companion, (unsigned long long)tensor->id);
}

/* Elements [first, first + n) of a tensor, in the order of its bytes. */
static int dequant_read(struct dcmem *model, const struct client_tensor *tensor, uint64_t first,
			uint64_t n, float **ret_values)
{
	uint32_t element_bytes = tensor->shape.element_bytes;
	_cleanup_(cleanup_memory) void *bytes = NULL;
	float *values;
	int r;

	bytes = memory_array(n, element_bytes);
	values = memory_array(n, sizeof(*values));
	if (!bytes || !values) {
		memory_free(values);
		return message_set(-ENOMEM, "no memory for the companions of a tensor");
	}
	r = read_bytes(model, tensor, first * element_bytes, n * element_bytes, bytes);
	if (r != 0) {
		memory_free(values);
		return r;
	}
	convert_to_float(tensor->record->dtype, bytes, values, n);
	*ret_values = values;
	return 0;
}

/* Scale or zero point: one, one a row, one a column, or one a group of a row. */
static int dequant_factors(struct dequant *d, struct dcmem *model,
			   const struct client_tensor *tensor, const struct client_tensor *companion,
			   const struct container_companion *relation, struct dequant_factors *f)
{
	uint64_t n_elements = companion->record->n_bytes / companion->shape.element_bytes;
	uint64_t expected, first = 0, n, a_row = 1;

	if (f->values)
		return message_set(DCMEM_E_CORRUPT, "tensor %llu has two companions of one relation",
				   (unsigned long long)tensor->id);
	*f = (struct dequant_factors){.group = 1};
	if (relation->group_size != 0) {
		a_row = div_up(tensor->shape.n_cols, relation->group_size);
		f->group = relation->group_size;
		f->row_step = a_row;
		f->col_step = 1;
	} else if (relation->axis == 0) {
		f->row_step = 1;
	} else if (relation->axis == 1) {
		f->col_step = 1;
		a_row = tensor->shape.n_cols;
	} else if (relation->axis != -1) {
		return dequant_misfit(tensor, companion->id);
	}
	if (!range_mul(f->row_step ? tensor->shape.n_rows : 1, a_row, &expected) ||
	    expected != n_elements)
		return dequant_misfit(tensor, companion->id);
	n = expected;
	if (f->row_step) {
		first = d->row * a_row;
		n = d->n_rows * a_row;
	}
	return dequant_read(model, companion, first, n, &f->values);
}

static int dequant_outlier_cols(struct dequant *d, struct dcmem *model,
				const struct client_tensor *tensor,
				const struct client_tensor *companion)
{
	uint64_t n = companion->record->n_bytes / companion->shape.element_bytes;
	bool wide = companion->record->dtype == DCMEM_I64;
	_cleanup_(cleanup_memory) void *bytes = NULL;
	int r;

	if (!wide && companion->record->dtype != DCMEM_I32)
		return message_set(DCMEM_E_UNSUPPORTED, "an outlier index must be I32 or I64");
	if (d->outlier_cols)
		return dequant_misfit(tensor, companion->id);
	bytes = memory_array(n, companion->shape.element_bytes);
	d->outlier_cols = memory_array(n, sizeof(*d->outlier_cols));
	if (!bytes || !d->outlier_cols)
		return message_set(-ENOMEM, "no memory for the companions of a tensor");
	r = read_bytes(model, companion, 0, companion->record->n_bytes, bytes);
	if (r != 0)
		return r;
	for (uint64_t i = 0; i < n; i++) {
		int64_t col = wide ? ((int64_t *)bytes)[i] : ((int32_t *)bytes)[i];

		if (col < 0 || (uint64_t)col >= tensor->shape.n_cols)
			return dequant_misfit(tensor, companion->id);
		d->outlier_cols[i] = (uint64_t)col;
	}
	d->n_outliers = n;
	return 0;
}

static int dequant_companion(struct dequant *d, struct dcmem *model,
			     const struct client_tensor *tensor,
			     const struct container_companion *relation, uint64_t *n_values)
{
	struct client_tensor companion;
	uint64_t n_elements;
	int r;

	if (relation->scheme != SCHEME_AFFINE)
		return message_set(DCMEM_E_UNSUPPORTED, "quantization scheme %u is unknown to this build",
				   relation->scheme);
	r = client_tensor(model, relation->companion, &companion);
	if (r != 0)
		return r;
	n_elements = companion.record->n_bytes / companion.shape.element_bytes;
	switch (relation->relation) {
	case DCMEM_REL_SCALE:
		return dequant_factors(d, model, tensor, &companion, relation, &d->scale);
	case DCMEM_REL_ZERO_POINT:
		return dequant_factors(d, model, tensor, &companion, relation, &d->zero);
	case DCMEM_REL_INPUT_SCALE:
		if (n_elements != tensor->shape.n_cols || d->input_scale)
			return dequant_misfit(tensor, companion.id);
		return dequant_read(model, &companion, 0, n_elements, &d->input_scale);
	case DCMEM_REL_OUTLIER_VALUES:
		if (companion.shape.n_rows != tensor->shape.n_rows || d->outlier_values)
			return dequant_misfit(tensor, companion.id);
		*n_values = companion.shape.n_cols;
		return dequant_read(model, &companion, d->row * companion.shape.n_cols,
				    d->n_rows * companion.shape.n_cols, &d->outlier_values);
	case DCMEM_REL_OUTLIER_INDEX:
		return dequant_outlier_cols(d, model, tensor, &companion);
	}
	return message_set(DCMEM_E_UNSUPPORTED, "companion relation %u is unknown to this build",
			   relation->relation);
}

int dequant_init(struct dequant *d, struct dcmem *model, const struct client_tensor *tensor,
		 uint64_t row, uint64_t n_rows)
{
	uint64_t n_values = 0;
	int r = 0;

	memset(d, 0, sizeof(*d));
	d->row = row;
	d->n_rows = n_rows;
	d->n_cols = tensor->shape.n_cols;
	for (uint32_t i = 0; i < tensor->record->n_companions && r == 0; i++) {
		const struct container_companion *relation;

		r = index_companion(&model->index, tensor->record->first_companion + i, &relation);
		if (r == 0 && relation->tensor != tensor->id)
			r = dequant_misfit(tensor, relation->companion);
		if (r == 0)
			r = dequant_companion(d, model, tensor, relation, &n_values);
	}
	if (r == 0 && (!d->outlier_values != !d->outlier_cols || n_values != d->n_outliers))
		r = message_set(DCMEM_E_CORRUPT, "outlier columns of tensor %llu without their index",
				(unsigned long long)tensor->id);
	if (r != 0)
		dequant_deinit(d);
	return r;
}

void dequant_deinit(struct dequant *d)
{
	d->scale.values = memory_free(d->scale.values);
	d->zero.values = memory_free(d->zero.values);
	d->input_scale = memory_free(d->input_scale);
	d->outlier_cols = memory_free(d->outlier_cols);
	d->outlier_values = memory_free(d->outlier_values);
}

bool dequant_is_needed(const struct dequant *d)
{
	return d->scale.values || d->zero.values || d->input_scale || d->n_outliers;
}

static float factor_at(const struct dequant_factors *f, uint64_t row, uint64_t col)
{
	return f->values[row * f->row_step + col / f->group * f->col_step];
}

void dequant_apply(const struct dequant *d, uint64_t row, uint64_t col, float *values, uint64_t n)
{
	uint64_t r = row - d->row;

	if (d->zero.values) {
		for (uint64_t i = 0; i < n; i++)
			values[i] -= factor_at(&d->zero, r, col + i);
	}
	if (d->scale.values && d->scale.col_step == 0) {
		float scale = factor_at(&d->scale, r, 0);

		for (uint64_t i = 0; i < n; i++)
			values[i] *= scale;
	} else if (d->scale.values) {
		for (uint64_t i = 0; i < n; i++)
			values[i] *= factor_at(&d->scale, r, col + i);
	}
	if (d->input_scale) {
		for (uint64_t i = 0; i < n; i++)
			values[i] *= d->input_scale[col + i];
	}
	for (uint64_t k = 0; k < d->n_outliers; k++) {
		uint64_t c = d->outlier_cols[k];

		if (c >= col && c - col < n)
			values[c - col] = d->outlier_values[r * d->n_outliers + k];
	}
}
