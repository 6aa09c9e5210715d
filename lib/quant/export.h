/* SPDX-License-Identifier: Apache-2.0 */
/* Turns codes with scales back into plain weights, for programs that know nothing of codes. */
#ifndef DCMEM_QUANT_EXPORT_H
#define DCMEM_QUANT_EXPORT_H

#include <stdbool.h>
#include <stdint.h>

/*
 * In a directory that holds a quantized model (as quant_run() writes it): replaces each safetensors
 * file, config.json and the shard index, so that every tensor NAME for which is_lossy(NAME) holds
 * is of `dtype` (DCMEM_BF16, rounded to nearest, or DCMEM_F32, exact) and its scales are gone. Each
 * file is written beside the old one and renamed. 0, -errno or DCMEM_E_..., with a message.
 */
int quant_export(const char *directory, uint32_t dtype,
		 bool (*is_lossy)(const void *data, const char *name), const void *data);

#endif
