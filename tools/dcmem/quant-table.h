/* SPDX-License-Identifier: Apache-2.0 */
/* What quantizing did, for people and for programs. */
#ifndef DCMEM_QUANT_TABLE_H
#define DCMEM_QUANT_TABLE_H

#include "json-out.h"
#include "model/container.h"
#include "quant/quant.h"

void quant_table_print(const struct quant_report *report, const struct container *container);
/* As a member "quantization" of the object that is open. */
void quant_table_json(const struct quant_report *report, const struct container *container,
		      struct json_out *out);

/* One page of HTML with its plots inside, that loads nothing. 0 or -errno with a message. */
int quant_page_write(const struct quant_report *report, const char *model, const char *path);

#endif
