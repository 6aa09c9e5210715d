/* SPDX-License-Identifier: Apache-2.0 */
/*
 * NUMA placement by mbind. Owns nothing; refuses nodes that the host lacks and replication over
 * several nodes, for which a model would need a set of segments for each. Any thread.
 */
#include "numa.h"

#include <errno.h>
#include <numa.h>
#include <numaif.h>
#include <string.h>

#include "base/message.h"

uint32_t numa_n_nodes(void)
{
	int n;

	if (numa_available() < 0)
		return 1;
	n = numa_num_configured_nodes();
	return n > 0 ? (uint32_t)n : 1;
}

int numa_check(enum store_numa policy, uint32_t node)
{
	if (policy == STORE_NUMA_REPLICATE && numa_n_nodes() > 1)
		return message_set(STORE_E_UNSUPPORTED,
				   "numa 'replicate' works on hosts of one node, this one has %u: "
				   "use 'interleave', 'bind' or 'local'",
				   numa_n_nodes());
	if (policy == STORE_NUMA_BIND && numa_available() >= 0 &&
	    !numa_bitmask_isbitset(numa_all_nodes_ptr, node))
		return message_set(STORE_E_UNSUPPORTED, "numa node %u is not on this host", node);
	if (policy == STORE_NUMA_BIND && numa_available() < 0 && node != 0)
		return message_set(STORE_E_UNSUPPORTED, "numa node %u: this host has no NUMA", node);
	return 0;
}

int numa_place(void *data, size_t n_bytes, enum store_numa policy, uint32_t node)
{
	struct bitmask *nodes;
	long r = 0;

	if (numa_n_nodes() <= 1)
		return 0;
	if (policy == STORE_NUMA_INTERLEAVE) {
		r = mbind(data, n_bytes, MPOL_INTERLEAVE, numa_all_nodes_ptr->maskp,
			  numa_all_nodes_ptr->size + 1, 0);
	} else if (policy == STORE_NUMA_BIND) {
		nodes = numa_allocate_nodemask();
		if (!nodes)
			return -ENOMEM;
		numa_bitmask_setbit(nodes, node);
		r = mbind(data, n_bytes, MPOL_BIND, nodes->maskp, nodes->size + 1, 0);
		numa_bitmask_free(nodes);
	}
	return r < 0 ? message_set(-errno, "mbind: %s", strerror(errno)) : 0;
}
