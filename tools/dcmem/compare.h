/* SPDX-License-Identifier: Apache-2.0 */
/* How far the weights of a quantized container are from those of the model that it was made of. */
#ifndef DCMEM_COMPARE_H
#define DCMEM_COMPARE_H

#include <stdint.h>

#include "model/container.h"

struct compare_result {
	uint64_t n_alike, n_lossy; /* tensors: byte for byte, and quantized */
	double error;		   /* relative rms over all lossy weights */
	double worst;		   /* of the worst tensor */
	char worst_name[256];
};

/*
 * Reads every tensor from the container at `path` and from the model directory or file `against`.
 * 0; INDEX_E_CORRUPT with a message if one that is not lossy differs, or has no counterpart; -errno.
 */
int compare_quantized(const struct container *container, const char *path, const char *against,
		      struct compare_result *ret_result);

#endif
