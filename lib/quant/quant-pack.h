/* SPDX-License-Identifier: Apache-2.0 */
/* Quantizes and packs in one go. */
#ifndef DCMEM_QUANT_PACK_H
#define DCMEM_QUANT_PACK_H

#include "model/pack.h"
#include "quant/quant.h"

/*
 * The quantized model lies in a directory beside `path` for the time being: as many bytes as the
 * model has weights. It is gone afterwards, also after a failure. Results as pack()'s; the report is
 * the caller's after success.
 */
int quant_pack(const char *source, const char *path, const struct quant_options *options,
	       const struct pack_options *pack_options, struct quant_report *ret_report);

#endif
