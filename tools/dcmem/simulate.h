/* SPDX-License-Identifier: Apache-2.0 */
/* A host that does not exist, its load phase by phase, and what the planner makes of it. */
#ifndef DCMEM_SIMULATE_H
#define DCMEM_SIMULATE_H

#include <stdbool.h>
#include <stdint.h>

#include "planner/planner.h"

struct simulation_phase {
	char name[32];
	uint64_t budget_bytes, held_bytes, class_bytes[PLANNER_N_CLASSES];
	uint32_t n_changes, settled_s; /* settled_s: intervals of a second with changes */
	bool settled, fits;
	double demand, throughput;     /* bytes a second */
	double best_static;	       /* 0: no static plan fits the smallest budget */
	int best_class;		       /* of enum planner_class, or -1 */
	const char *limit;	       /* what throughput is held by */
};

struct simulation {
	struct simulation_phase *phases; /* owned */
	uint32_t n_phases, n_tensors, n_models;
};

/* -EINVAL, with a message, where the trace is wrong. */
int simulation_run(const char *path, struct simulation *ret_simulation);
void simulation_deinit(struct simulation *simulation);

#endif
