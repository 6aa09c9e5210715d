/* SPDX-License-Identifier: Apache-2.0 */
/* Is anybody else still looking at a region? */
#ifndef DCMEM_EXCLUSIVE_H
#define DCMEM_EXCLUSIVE_H

#include <stdbool.h>

#include "region.h"

/* Does the test tell the truth on this kernel? Else acknowledgements must be counted. */
bool exclusive_probe(void);
/* No descriptor but ours and no mapping but our own exists, in any process. */
bool exclusive_test(const struct region *region);

#endif
