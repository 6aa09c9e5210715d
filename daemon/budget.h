/* SPDX-License-Identifier: Apache-2.0 */
/* The budget of the host: what the store may hold in all. A charge lives in the thing charged. */
#ifndef DCMEM_BUDGET_H
#define DCMEM_BUDGET_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

enum budget_kind {
	BUDGET_COMPRESSED, /* segments */
	BUDGET_INDEX,	   /* indexes, placement tables and sidecar files */
	BUDGET_DECODED,	   /* arena chunks */
	BUDGET_INFLIGHT,   /* of models being loaded */
	BUDGET_RETIRED,	   /* given up, but perhaps still mapped by somebody */
	BUDGET_N_KINDS,
};

struct budget {
	pthread_mutex_t mutex;
	uint64_t limit, total, peak;
	uint64_t used[BUDGET_N_KINDS];
};

struct charge {
	struct budget *budget; /* NULL: nothing is charged */
	enum budget_kind kind;
	uint64_t n_bytes;
};

void budget_init(struct budget *budget, uint64_t limit);
void budget_destroy(struct budget *budget);
/* STORE_E_BUDGET with a message when the bytes do not fit; then nothing has changed. */
int budget_charge(struct budget *budget, enum budget_kind kind, uint64_t n_bytes,
		  struct charge *ret_charge);
/* The same beyond the limit: for what takes less in the end, where a limit was lowered. */
void budget_charge_over(struct budget *budget, enum budget_kind kind, uint64_t n_bytes,
			struct charge *ret_charge);
/* Would `n_bytes` fit now? */
bool budget_has_room(struct budget *budget, uint64_t n_bytes);
/* Limits from now on. What is held beyond it stays: nothing is admitted until there is less. */
void budget_set_limit(struct budget *budget, uint64_t limit);
/* Gives back all but n_bytes of it. */
void charge_shrink(struct charge *charge, uint64_t n_bytes);
/* Books the bytes under another kind. */
void charge_move(struct charge *charge, enum budget_kind kind);
/* Gives them back; fine on an empty charge. */
void charge_release(struct charge *charge);
/* A copy taken at one moment; its mutex is not to be used. */
void budget_get(struct budget *budget, struct budget *ret_copy);

/* The least memory limit of this process's cgroup and its parents, v2 or v1. UINT64_MAX: none. */
uint64_t budget_cgroup_limit(void);
/* min(configured, cgroup limit less the room that the daemon itself needs). */
uint64_t budget_effective(uint64_t configured, uint64_t cgroup_limit);

#endif
