/* SPDX-License-Identifier: Apache-2.0 */
/* NUMA placement of a build without libnuma: one node, and no other policy than the kernel's. */
#include "base/message.h"
#include "numa.h"

uint32_t numa_n_nodes(void)
{
	return 1;
}

int numa_check(enum store_numa policy, uint32_t node)
{
	if (policy == STORE_NUMA_INTERLEAVE || (policy == STORE_NUMA_BIND && node != 0))
		return message_set(STORE_E_UNSUPPORTED, "this dcmemd was built without libnuma");
	return 0;
}

int numa_place(void *data, size_t n_bytes, enum store_numa policy, uint32_t node)
{
	return 0;
}
