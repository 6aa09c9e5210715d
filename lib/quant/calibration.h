/* SPDX-License-Identifier: Apache-2.0 */
/* What users give to calibrate with: text as token ids, or statistics that were gathered before. */
#ifndef DCMEM_CALIBRATION_H
#define DCMEM_CALIBRATION_H

#include <stddef.h>
#include <stdint.h>

#include "model/safetensors.h"

/* Windows cut evenly from a file of ids: little-endian, 16 bits each, or 32 if it ends in ".u32". */
struct calibration_text {
	uint32_t *ids; /* [n_windows][length + 1]; the n_held last ones are for measuring the loss */
	size_t n_windows, n_held, length;
};
/* At most n_windows of `length`, fewer if the file is shorter; every ninth is held back. */
int calibration_text_read(const char *path, size_t n_vocab, size_t n_windows, size_t length,
			  struct calibration_text *ret_text);
void calibration_text_deinit(struct calibration_text *text);

/*
 * A safetensors file with, for a linear layer NAME (its weight is NAME.weight) of n inputs:
 *   NAME              F32 [n]     greatest |x|
 *   NAME.mean_square  F32 [n]     mean of x^2
 *   NAME.covariance   F32 [n, n]  mean of x x'
 */
struct calibration_stats {
	char *path;
	int fd;
	struct safetensors st;
};
int calibration_stats_open(const char *path, struct calibration_stats *ret_stats);
void calibration_stats_close(struct calibration_stats *stats);

enum calibration_kind { CALIBRATION_NONE, CALIBRATION_ABSMAX, CALIBRATION_SQUARE, CALIBRATION_GRAM };
/*
 * The best there is for the layer of this weight: [n] values, or [n][n] for CALIBRATION_GRAM, the
 * caller's to free (memory_free); NULL for CALIBRATION_NONE. 0, or -errno with a message if what is
 * there has another type or shape.
 */
int calibration_stats_get(const struct calibration_stats *stats, const char *weight, size_t n,
			  enum calibration_kind *ret_kind, float **ret_values);

#endif
