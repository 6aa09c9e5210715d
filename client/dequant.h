/* SPDX-License-Identifier: Apache-2.0 */
/* Dequantization of rows of one tensor by its companions: w = (q - zero) * scale, then by column. */
#ifndef DCMEM_DEQUANT_H
#define DCMEM_DEQUANT_H

#include <stdbool.h>
#include <stdint.h>

struct dcmem;
struct client_tensor;

/* Factors of some rows. Element (r, c) uses values[(r - row) * row_step + c / group * col_step]. */
struct dequant_factors {
	float *values; /* NULL: none */
	uint64_t row_step, col_step, group;
};

struct dequant {
	uint64_t row, n_rows, n_cols;
	struct dequant_factors scale, zero;
	float *input_scale;    /* by column */
	uint64_t n_outliers;   /* columns that are replaced */
	uint64_t *outlier_cols;
	float *outlier_values; /* [n_rows, n_outliers] */
};

/* Reads the companions that rows [row, row + n_rows) need. */
int dequant_init(struct dequant *dequant, struct dcmem *model, const struct client_tensor *tensor,
		 uint64_t row, uint64_t n_rows);
void dequant_deinit(struct dequant *dequant);
bool dequant_is_needed(const struct dequant *dequant);
/* values[i] is element (row, col + i). */
void dequant_apply(const struct dequant *dequant, uint64_t row, uint64_t col, float *values,
		   uint64_t n);

#endif
