/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Small containers for tests, written from the format alone (container.h), not by the packer: with
 * companions, several dtypes, and page sizes of the test's choice.
 */
#ifndef DCMEM_MAKE_CONTAINER_H
#define DCMEM_MAKE_CONTAINER_H

#include <stddef.h>
#include <stdint.h>

#include "dcmem/container.h"

struct make_tensor {
	const char *name;
	uint16_t dtype, n_dims;
	uint64_t dims[CONTAINER_MAX_DIMS];
	uint64_t n_bytes;
	const void *bytes;
	uint32_t page_bytes;
	uint8_t codec; /* enum codec_id; pages that do not shrink are raw */
	uint64_t first_companion;
	uint32_t n_companions;
};

/* One sidecar file, "config.json", holding `config`. 0 or negative errno. */
int make_container(const char *path, const struct make_tensor *tensors, unsigned n_tensors,
		   const struct container_companion *companions, unsigned n_companions,
		   const char *config);

/* The same with hints, which must be in order. */
int make_container_hints(const char *path, const struct make_tensor *tensors, unsigned n_tensors,
			 const struct container_companion *companions, unsigned n_companions,
			 const char *config, const struct container_hint *hints, unsigned n_hints);

#endif
