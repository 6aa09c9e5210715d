/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The order of changes: what shrinks makes room for what grows, so that the old and the new
 * version of a tensor fit the budget together, and an interval does no more than its limit. A
 * budget that was cut, so that what is held fills its headroom too, is the one case where a
 * shrinking step may stand over it, since nothing else leads back. Windows give way to changes
 * and are not counted while they last. Owns nothing; any thread, one run a planner.
 */
#include "planner/planner-impl.h"

#define LOOK_AHEAD 32 /* shrinking steps tried when the first has no room for its new version */

struct order {
	struct planner *planner;
	struct planner_plan *plan;
	uint64_t used, written;
	uint32_t n_steps;
	bool stopped;
};

static uint64_t stored_bytes(const struct option *option)
{
	return option->bytes - option->window;
}

static uint64_t old_bytes(const struct planner *planner, uint32_t tensor)
{
	struct option option;

	return option_current(planner, tensor, &option) ? stored_bytes(&option) : 0;
}

/* False: not in this interval. */
static bool take(struct order *order, uint32_t tensor)
{
	struct planner *planner = order->planner;
	const struct planner_policy *policy = &planner->policy;
	uint64_t new = stored_bytes(&planner->chosen[tensor]), old = old_bytes(planner, tensor);
	uint64_t both = order->used + new;
	uint64_t room = planner->capacity_bytes + planner->host.pinned_bytes;

	if (order->n_steps > 0 &&
	    ((policy->limit_bytes && order->written + new > policy->limit_bytes) ||
	     (policy->limit_changes && order->n_steps >= policy->limit_changes))) {
		order->stopped = true;
		return false;
	}
	if (both > planner->host.budget_bytes && !(order->used > room && new < old))
		return false;
	/* What grows leaves the headroom free: without it nothing could shrink any more. */
	if (new > old && both - old > room)
		return false;
	planner->steps[order->n_steps++] = (struct planner_step){
		tensor, planner->chosen[tensor].choice, old, new};
	if (both > order->plan->peak_bytes)
		order->plan->peak_bytes = both;
	order->used = both - old;
	order->written += new;
	return true;
}

/* The first of the next few that has room; what came before it keeps its place. */
static bool take_one_of(struct order *order, struct step_key *keys, size_t n_keys)
{
	for (size_t i = 0; i < n_keys && i < LOOK_AHEAD && !order->stopped; i++) {
		struct step_key taken = keys[i];

		if (!take(order, taken.index))
			continue;
		for (; i > 0; i--)
			keys[i] = keys[i - 1];
		keys[0] = taken;
		return true;
	}
	return false;
}

void planner_order(struct planner *planner, struct planner_plan *plan)
{
	uint32_t n_tensors = planner->input->n_tensors, n_up = 0, n_down = 0;
	struct step_key *up = planner->keys, *down = planner->keys + planner->max_tensors;
	struct order order = {planner, plan, planner->host.pinned_bytes, 0, 0, false};

	for (uint32_t t = 0; t < n_tensors; t++) {
		const struct option *to = &planner->chosen[t];
		struct option from = {0};
		uint64_t new = stored_bytes(to), old = old_bytes(planner, t);
		bool held = option_current(planner, t, &from);
		double gain;

		order.used += old;
		if (held && from.choice.form == to->choice.form &&
		    from.choice.replicas == to->choice.replicas)
			continue;
		gain = from.time - to->time + planner->price * (from.weighted - to->weighted);
		if (new > old)
			up[n_up++] = (struct step_key){
				key_falling(gain > 0 ? gain / (double)(new - old) : 0), t, 0};
		else
			down[n_down++] = (struct step_key){
				key_falling((double)(old - new) / (gain < 0 ? 1e-12 - gain : 1e-12)), t, 0};
	}
	keys_sort(up, planner->scratch, n_up);
	keys_sort(down, planner->scratch, n_down);
	plan->peak_bytes = order.used;
	while (n_up + n_down > 0 && !order.stopped) {
		if (n_up > 0 && take(&order, up->index)) {
			up++;
			n_up--;
		} else if (!order.stopped && n_down > 0 && take_one_of(&order, down, n_down)) {
			down++;
			n_down--;
		} else if (!order.stopped && n_up > 0 && take_one_of(&order, up, n_up)) {
			up++;
			n_up--;
		} else {
			break;
		}
	}
	plan->steps = planner->steps;
	plan->n_steps = order.n_steps;
	plan->n_deferred = n_up + n_down;
}
