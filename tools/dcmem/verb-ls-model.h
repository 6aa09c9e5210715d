/* SPDX-License-Identifier: Apache-2.0 */
/* `dcmem ls` of a model that a daemon holds. */
#ifndef DCMEM_VERB_LS_MODEL_H
#define DCMEM_VERB_LS_MODEL_H

#include <stdbool.h>

/* Is the operand the name of a model rather than a file? */
bool ls_is_model(const char *operand);
/* Prints its tensors; an exit code. socket_path may be NULL. */
int ls_model(const char *name, const char *socket_path, bool json);

#endif
