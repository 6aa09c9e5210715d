/* SPDX-License-Identifier: Apache-2.0 */
/* What lies between the parts of a container. */
#ifndef DCMEM_PADDING_H
#define DCMEM_PADDING_H

#include "model/container.h"

/* Every byte that no record refers to is zero: 0, INDEX_E_CORRUPT with a message, -errno. */
int padding_check(const struct container *container);

#endif
