/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What people may tell the tuner, and ask it. Refuses what the configuration would refuse. Loop
 * thread.
 */
#include <fnmatch.h>
#include <string.h>

#include "base/message.h"
#include "base/range.h"
#include "tuner.h"

static struct model *find_tuned(const struct store *store, const char *name)
{
	struct model *model;

	TAILQ_FOREACH(model, &store->models, link)
		if (!model->retired && !model->loading && model->tuned && !strcmp(model->name, name))
			return model;
	message_set(STORE_E_NOT_FOUND, "no model '%s'", name);
	return NULL;
}

void store_get_tuning(const struct store *store, struct store_tuning *ret_tuning)
{
	const struct tuner_state *state = tuner_state(store->tuner);
	struct budget budget;

	budget_get((struct budget *)(uintptr_t)&store->budget, &budget);
	*ret_tuning = (struct store_tuning){
		.tune = state->enabled,
		.frozen = state->policy.frozen,
		.objective = state->policy.objective,
		.budget_bytes = budget.limit,
		.background = store->config.background,
	};
}

int store_set_tuning(struct store *store, const struct store_tuning *tuning)
{
	uint64_t limit = budget_effective(tuning->budget_bytes, budget_cgroup_limit());

	if (limit < 1U << 20)
		return message_set(STORE_E_INVALID, "a budget of less than 1 MiB holds no model");
	if (limit < tuning->budget_bytes)
		return message_set(STORE_E_INVALID,
				   "the memory limit of the daemon's cgroup allows a budget of %llu",
				   (unsigned long long)limit);
	if (tuning->background < 1 || tuning->background > 100)
		return message_set(STORE_E_INVALID, "\"background\" is from 1 to 100 percent");
	budget_set_limit(&store->budget, limit);
	store->config.budget_bytes = limit;
	store->config.background = tuning->background;
	pool_set_background(store->decoders, (uint32_t)div_up((uint64_t)store->config.n_workers *
								      tuning->background, 100));
	tuner_set(store->tuner, tuning);
	store_retry_waiting(store);
	return 0;
}

int store_get_model_policy(const struct store *store, const char *name,
			   struct planner_model *ret_policy)
{
	const struct model *model = find_tuned(store, name);

	if (!model)
		return STORE_E_NOT_FOUND;
	*ret_policy = model->tuned->policy;
	return 0;
}

int store_set_model_policy(struct store *store, const char *name,
			   const struct planner_model *policy)
{
	struct model *model = find_tuned(store, name);

	if (!model)
		return STORE_E_NOT_FOUND;
	if (policy->floor < policy->ceiling)
		return message_set(STORE_E_INVALID, "floor %s is faster than ceiling %s",
				   planner_class_name(policy->floor),
				   planner_class_name(policy->ceiling));
	model->tuned->policy = *policy;
	for (uint32_t i = 0; i < model->tuned->n_tensors; i++)
		model->tuned->tensors[i].changed_ns = 0; /* no dwelling on what was not wanted */
	tuner_hurry(store->tuner);
	return 0;
}

int store_pin_tensors(struct store *store, const char *name, const char *pattern, unsigned class,
		      uint64_t *ret_n)
{
	struct model *model = find_tuned(store, name);
	uint64_t n = 0;

	if (!model)
		return STORE_E_NOT_FOUND;
	for (uint64_t id = 0; id < model->loaded.catalog.n_tensors; id++) {
		struct tuned_model *tuned = model->tuned;
		const struct container_tensor *tensor;
		struct tuned_tensor *known;
		const char *of;

		if (index_tensor(&model->loaded.catalog, id, &tensor) ||
		    index_tensor_name(&model->loaded.catalog, tensor, &of) || fnmatch(pattern, of, 0))
			continue;
		n++;
		if (tuned->of[id] == UINT32_MAX)
			continue; /* small: it stays as it is */
		known = &tuned->tensors[tuned->of[id]];
		known->pin = class == PLANNER_NO_CLASS ? 0 : (uint8_t)(class + 1);
		known->changed_ns = 0;
	}
	if (!n)
		return message_set(STORE_E_NOT_FOUND, "no tensor of '%s' matches '%s'", name, pattern);
	tuner_hurry(store->tuner);
	*ret_n = n;
	return 0;
}

int store_set_newest_policy(struct store *store, const struct planner_model *policy)
{
	const struct model *model = TAILQ_LAST(&store->models, model_list);

	return model ? store_set_model_policy(store, model->name, policy) : STORE_E_NOT_FOUND;
}

const struct tuner_state *store_tuner_state(const struct store *store)
{
	return tuner_state(store->tuner);
}

/* One tensor, as far as the last plan knows it. */
static int explain(struct store *store, struct model *model, uint64_t id,
		   struct store_explained *ret_explained)
{
	const struct tuned_model *tuned = model->tuned;
	const struct container_tensor *tensor;
	const struct tuned_tensor *known;
	struct store_explained e = {.tensor = id};
	int r = index_tensor(&model->loaded.catalog, id, &tensor);

	if (!r)
		r = index_tensor_name(&model->loaded.catalog, tensor, &e.name);
	if (r)
		return r;
	e.n_bytes = tensor->n_bytes;
	e.stored_bytes = model->loaded.held[id].stored_bytes;
	e.codec = model->loaded.held[id].raw || !tensor->n_bytes ? 0
								 : model->loaded.held[id].pages[0].codec;
	if (tuned->of[id] == UINT32_MAX) {
		e.text = tensor->n_bytes ? "small: shares its memory with others" : "empty";
		*ret_explained = e;
		return 0;
	}
	known = &tuned->tensors[tuned->of[id]];
	e.rate = known->rate;
	e.n_changes = known->n_changes;
	e.changing = known->changing;
	e.is_planned = tuner_explain(store->tuner, known, &e.reasons, &e.now, &e.chosen, &e.next);
	e.text = !known->sampled   ? "its forms were not sampled yet"
		 : !e.is_planned ? "not planned yet"
				 : planner_reason_text(e.reasons.reason);
	*ret_explained = e;
	return 0;
}

int store_explain(struct store *store, const char *name, uint64_t first, uint64_t count,
		  void (*visit)(void *data, const struct store_explained *explained), void *data,
		  uint64_t *ret_n_tensors)
{
	struct model *model = find_tuned(store, name);
	uint64_t n;
	int r = 0;

	if (!model)
		return STORE_E_NOT_FOUND;
	n = model->loaded.catalog.n_tensors;
	for (uint64_t id = first; id < n && id - first < count && !r; id++) {
		struct store_explained explained;

		r = explain(store, model, id, &explained);
		if (!r)
			visit(data, &explained);
	}
	if (!r)
		*ret_n_tensors = n;
	return r;
}
