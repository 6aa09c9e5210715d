/* SPDX-License-Identifier: Apache-2.0 */
/* What a container holds, for people and for --json: shared by pack and ls. */
#ifndef DCMEM_SUMMARY_H
#define DCMEM_SUMMARY_H

#include <stdint.h>

#include "json-out.h"
#include "model/container.h"

/* Stored bytes of a tensor's first form, 0 where it shares another's; and the codec of most pages. */
int summary_tensor(const struct index *index, const struct container_tensor *tensor,
		   uint64_t *ret_stored_bytes, const char **ret_codec);

struct summary_totals {
	uint64_t n_tensors, n_bytes, stored_bytes, n_shared;
	uint64_t n_files, file_bytes; /* of the source */
	uint64_t container_bytes;
};
int summary_totals(const struct container *container, struct summary_totals *ret_totals);

/* A table of tensors grouped by name with layer numbers as '*', and by dtype. */
int summary_print_groups(const struct container *container);
/* The same as members "groups" and "totals" of the open object. */
int summary_json(const struct container *container, struct json_out *out);

#endif
