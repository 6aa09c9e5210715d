/* SPDX-License-Identifier: Apache-2.0 */
/* Chooses where weights come from. */
#include "weights.h"

#include <string.h>

#include "util.h"

int weights_open(const char *source, const char *model, struct weights **ret_weights)
{
	if (strcmp(source, "dcmem") == 0)
		return weights_open_dcmem(model, ret_weights);
	if (strcmp(source, "copy") == 0)
		return weights_open_copy(model, ret_weights);
	if (strcmp(source, "mmap") == 0)
		return weights_open_mmap(model, ret_weights);
	return error_set(-EINVAL, "--source %s: dcmem, copy or mmap", source);
}

struct weights *weights_close(struct weights *weights)
{
	if (weights)
		weights->source->close(weights);
	return NULL;
}
