/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Splitting floating-point elements into planes, so that the exponents, which have few values,
 * lie together. Lossless rotations of bits: any bytes go there and back.
 */
#ifndef DCMEM_PLANES_H
#define DCMEM_PLANES_H

#include <stddef.h>
#include <stdint.h>

struct planes {
	unsigned n_planes;	/* of equal size */
	unsigned element_bytes; /* elements that one step takes together */
	/* [n * element_bytes] to n_planes planes one after the other, and back */
	void (*split)(const uint8_t *src, size_t n_elements, uint8_t *planes);
	void (*merge)(const uint8_t *planes, size_t n_elements, uint8_t *dst);
};

/* NULL if the codec has no planes. */
const struct planes *planes_of(uint32_t codec);

#endif
