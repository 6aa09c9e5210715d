/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The budget. Owns the sums; refuses a charge that would pass the limit, before anybody touches a
 * page of it, because the kernel does not refuse shared memory over a cgroup's limit: it kills.
 * Any thread. Invariant: total is the sum of the kinds, and grows only up to the limit, but for what
 * budget_charge_over() is told.
 */
#include "budget.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/message.h"
#include "base/range.h"
#include "store.h"

#define CGROUP_HEADROOM (64ULL << 20) /* heap, stacks, page tables; untuned */

void budget_init(struct budget *budget, uint64_t limit)
{
	*budget = (struct budget){.limit = limit};
	(void)pthread_mutex_init(&budget->mutex, NULL);
}

void budget_destroy(struct budget *budget)
{
	assert(budget->total == 0);
	(void)pthread_mutex_destroy(&budget->mutex);
}

int budget_charge(struct budget *budget, enum budget_kind kind, uint64_t n_bytes,
		  struct charge *ret_charge)
{
	uint64_t total;
	bool fits;

	pthread_mutex_lock(&budget->mutex);
	total = budget->total;
	fits = total <= budget->limit && n_bytes <= budget->limit - total;
	if (fits) {
		budget->total += n_bytes;
		budget->used[kind] += n_bytes;
		budget->peak = max_u64(budget->peak, budget->total);
	}
	pthread_mutex_unlock(&budget->mutex);
	if (!fits)
		return message_set(STORE_E_BUDGET,
				   "%llu bytes do not fit the budget: %llu of %llu are in use",
				   (unsigned long long)n_bytes, (unsigned long long)total,
				   (unsigned long long)budget->limit);
	*ret_charge = (struct charge){.budget = budget, .kind = kind, .n_bytes = n_bytes};
	return 0;
}

void budget_charge_over(struct budget *budget, enum budget_kind kind, uint64_t n_bytes,
			struct charge *ret_charge)
{
	pthread_mutex_lock(&budget->mutex);
	budget->total += n_bytes;
	budget->used[kind] += n_bytes;
	budget->peak = max_u64(budget->peak, budget->total);
	pthread_mutex_unlock(&budget->mutex);
	*ret_charge = (struct charge){.budget = budget, .kind = kind, .n_bytes = n_bytes};
}

bool budget_has_room(struct budget *budget, uint64_t n_bytes)
{
	bool fits;

	pthread_mutex_lock(&budget->mutex);
	fits = budget->total <= budget->limit && n_bytes <= budget->limit - budget->total;
	pthread_mutex_unlock(&budget->mutex);
	return fits;
}

void budget_set_limit(struct budget *budget, uint64_t limit)
{
	pthread_mutex_lock(&budget->mutex);
	budget->limit = limit;
	pthread_mutex_unlock(&budget->mutex);
}

void charge_shrink(struct charge *charge, uint64_t n_bytes)
{
	struct budget *budget = charge->budget;

	if (!budget)
		return;
	pthread_mutex_lock(&budget->mutex);
	assert(charge->n_bytes >= n_bytes);
	budget->used[charge->kind] -= charge->n_bytes - n_bytes;
	budget->total -= charge->n_bytes - n_bytes;
	pthread_mutex_unlock(&budget->mutex);
	charge->n_bytes = n_bytes;
}

void charge_move(struct charge *charge, enum budget_kind kind)
{
	struct budget *budget = charge->budget;

	if (!budget)
		return;
	pthread_mutex_lock(&budget->mutex);
	budget->used[charge->kind] -= charge->n_bytes;
	budget->used[kind] += charge->n_bytes;
	pthread_mutex_unlock(&budget->mutex);
	charge->kind = kind;
}

void charge_release(struct charge *charge)
{
	struct budget *budget = charge->budget;

	if (!budget)
		return;
	pthread_mutex_lock(&budget->mutex);
	assert(budget->used[charge->kind] >= charge->n_bytes);
	budget->used[charge->kind] -= charge->n_bytes;
	budget->total -= charge->n_bytes;
	pthread_mutex_unlock(&budget->mutex);
	*charge = (struct charge){0};
}

void budget_get(struct budget *budget, struct budget *ret_copy)
{
	pthread_mutex_lock(&budget->mutex);
	ret_copy->limit = budget->limit;
	ret_copy->total = budget->total;
	ret_copy->peak = budget->peak;
	memcpy(ret_copy->used, budget->used, sizeof(ret_copy->used));
	pthread_mutex_unlock(&budget->mutex);
}

/* A file of one number, or "max". */
static uint64_t read_limit(const char *path)
{
	unsigned long long value = UINT64_MAX;
	FILE *file = fopen(path, "re");

	if (!file)
		return UINT64_MAX;
	if (fscanf(file, "%llu", &value) != 1)
		value = UINT64_MAX;
	(void)fclose(file);
	return value;
}

/* Of `group` and each of its parents: any of them may be the one that kills. */
static uint64_t least_limit(const char *mount, char *group, const char *name)
{
	uint64_t least = UINT64_MAX;

	for (;;) {
		char path[4400];
		char *slash;

		(void)snprintf(path, sizeof(path), "%s%s/%s", mount, group, name);
		least = min_u64(least, read_limit(path));
		slash = strrchr(group, '/');
		if (!slash)
			return least;
		*slash = '\0';
	}
}

uint64_t budget_cgroup_limit(void)
{
	uint64_t least = UINT64_MAX;
	char line[4200];
	FILE *file = fopen("/proc/self/cgroup", "re");

	if (!file)
		return UINT64_MAX;
	while (fgets(line, sizeof(line), file)) {
		char *controllers = strchr(line, ':');
		char *group = controllers ? strchr(controllers + 1, ':') : NULL;

		if (!group)
			continue;
		*group++ = '\0';
		controllers++;
		group[strcspn(group, "\n")] = '\0';
		if (*controllers == '\0')
			least = min_u64(least, least_limit("/sys/fs/cgroup", group, "memory.max"));
		else if (strstr(controllers, "memory"))
			least = min_u64(least, least_limit("/sys/fs/cgroup/memory", group,
							   "memory.limit_in_bytes"));
	}
	(void)fclose(file);
	return least;
}

uint64_t budget_effective(uint64_t configured, uint64_t cgroup_limit)
{
	if (cgroup_limit == UINT64_MAX)
		return configured;
	return min_u64(configured,
		       cgroup_limit > CGROUP_HEADROOM ? cgroup_limit - CGROUP_HEADROOM : 0);
}
