/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Closes the gap that a spike leaves. Where one value is as common as many together (pruned weights),
 * pair.c gives it a class of its own, but the block around it still has raw bits for it. So the values
 * below the spike move up by one, and the spike goes to the place that this leaves free, farthest
 * away. With d the distance from the spike, as a signed byte: 0 becomes -128, d < 0 becomes d + 1.
 */
#ifndef CODEC_SPIKE_H
#define CODEC_SPIKE_H

#include <stddef.h>
#include <stdint.h>

/* The commonest value. */
uint8_t spike_find(const uint8_t *bytes, size_t n);
void spike_close(const uint8_t *bytes, size_t n, uint8_t spike, uint8_t *ret_bytes);
/* Undoes it in place. */
void spike_open(uint8_t *bytes, size_t n, uint8_t spike);

#endif
