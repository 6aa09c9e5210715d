/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chooses how each tensor is held: from the smallest forms upwards, always the step that saves most
 * stall a byte, until the budget or the objective says stop. The steps of a tensor lie on the
 * convex hull of its options, so that their gains fall and one sorted list serves all. The price
 * of decoding depends on the whole plan, so this is done for a few prices and the best is taken;
 * small plans are then improved by exchanges. Owns nothing; any thread, one run a planner.
 */
#include "planner/planner-impl.h"

#include <string.h>

#define PRICES_MAX    4
#define EXCHANGES_MAX 64
#define DROPS_MAX     16 /* weights of models whose floors are given up one after the other */

static const double slack_of[PLANNER_N_OBJECTIVES] = {
	[PLANNER_LATENCY] = 0, [PLANNER_BALANCED] = 0.02, [PLANNER_MEMORY] = 0.1};

uint32_t key_falling(double value)
{
	float narrow = (float)value;
	uint32_t bits;

	memcpy(&bits, &narrow, sizeof(bits));
	return ~bits; /* positive floats sort as integers do */
}

/* Stable, by three passes of 11 bits. */
void keys_sort(struct step_key *keys, struct step_key *scratch, size_t n_keys)
{
	struct step_key *from = keys, *to = scratch, *swap;

	for (unsigned shift = 0; shift < 33; shift += 11) {
		uint32_t starts[2048] = {0}, sum = 0;

		for (size_t i = 0; i < n_keys; i++)
			starts[from[i].key >> shift & 2047]++;
		for (unsigned d = 0; d < 2048; d++) {
			uint32_t count = starts[d];

			starts[d] = sum;
			sum += count;
		}
		for (size_t i = 0; i < n_keys; i++)
			to[starts[from[i].key >> shift & 2047]++] = from[i];
		swap = from;
		from = to;
		to = swap;
	}
	if (from != keys)
		memcpy(keys, from, n_keys * sizeof(*keys));
}

static void note_releasable(struct planner *planner, const struct model_state *model)
{
	if (model->n_streamed == 1 && model->window_bytes > planner->releasable)
		planner->releasable = model->window_bytes;
}

static void totals_add(struct planner *planner, uint32_t tensor, const struct option *option)
{
	struct model_state *model = &planner->models[planner->input->tensors[tensor].model];
	struct totals *totals = &planner->totals;

	totals->bytes += option->bytes;
	totals->time += option->time;
	totals->work += option->work;
	totals->weighted += option->weighted;
	model->stored_bytes += option->bytes;
	if (option_streams(planner, tensor, option) && model->n_streamed++ == 0)
		totals->bytes += model->window_bytes;
	note_releasable(planner, model);
}

static void totals_remove(struct planner *planner, uint32_t tensor, const struct option *option)
{
	struct model_state *model = &planner->models[planner->input->tensors[tensor].model];
	struct totals *totals = &planner->totals;

	totals->bytes -= option->bytes;
	totals->time -= option->time;
	totals->work -= option->work;
	totals->weighted -= option->weighted;
	model->stored_bytes -= option->bytes;
	if (option_streams(planner, tensor, option) && --model->n_streamed == 0)
		totals->bytes -= model->window_bytes;
	note_releasable(planner, model);
}

static void totals_clear(struct planner *planner)
{
	planner->totals = (struct totals){0};
	for (uint32_t m = 0; m < planner->input->n_models; m++) {
		planner->models[m].stored_bytes = 0;
		planner->models[m].n_streamed = 0;
	}
}

static void choose(struct planner *planner, uint32_t tensor, const struct option *option)
{
	totals_remove(planner, tensor, &planner->chosen[tensor]);
	planner->chosen[tensor] = *option;
	totals_add(planner, tensor, option);
}

static bool model_fits(const struct planner *planner, uint32_t tensor)
{
	uint32_t index = planner->input->tensors[tensor].model;
	const struct model_state *model = &planner->models[index];
	uint64_t limit = planner->input->models[index].max_bytes;

	return !limit ||
	       model->stored_bytes + (model->n_streamed ? model->window_bytes : 0) <= limit;
}

/* Takes the option if budget and model have room for it. */
static bool choose_if_fits(struct planner *planner, uint32_t tensor, const struct option *option)
{
	struct option before = planner->chosen[tensor];

	choose(planner, tensor, option);
	if (planner->totals.bytes <= planner->capacity_bytes && model_fits(planner, tensor))
		return true;
	choose(planner, tensor, &before);
	return false;
}

/* What the models need of windows, and how far ahead of a sweep decoding has to be. */
static void prepare_models(struct planner *planner)
{
	const struct planner_input *input = planner->input;

	memset(planner->models, 0, input->n_models * sizeof(*planner->models));
	planner->ideal = 0;
	for (uint32_t t = 0; t < input->n_tensors; t++) {
		const struct planner_tensor *tensor = &input->tensors[t];
		const struct planner_model *policy = &input->models[tensor->model];
		struct model_state *model = &planner->models[tensor->model];
		double rate = clamp(tensor->rate, 0, 1e15);

		if (!(rate > 0))
			continue;
		planner->ideal += clamp(policy->weight, 0, 1e6) * rate * 1e-9 *
				  (planner->host.read_ns + clamp(policy->consume_ns, 0, 1e9));
		model->total += tensor->bytes;
		if (tensor->bytes > model->largest)
			model->largest = tensor->bytes;
		for (unsigned f = 0; f < tensor->n_forms; f++) {
			double ns = clamp(input->forms[tensor->first_form + f].decode_ns, 0, 1e9);

			if (ns > model->slowest_ns)
				model->slowest_ns = ns;
		}
	}
	for (uint32_t m = 0; m < input->n_models; m++) {
		struct model_state *model = &planner->models[m];
		double consume = clamp(input->models[m].consume_ns, 0, 1e9) + planner->host.read_ns;
		double cores = planner->host.cores_free > 1 ? planner->host.cores_free : 1;
		double ahead = model->slowest_ns / cores / consume, bytes;
		uint64_t unit = input->models[m].unit_bytes;

		model->prefetch = (uint8_t)clamp(ahead + 1, 1, planner->policy.max_prefetch);
		if (!unit || unit > model->largest)
			unit = model->largest;
		bytes = (double)unit * (1 + model->prefetch) *
			clamp(input->models[m].streams, 1, 1e6);
		model->window_bytes =
			bytes < (double)model->total ? (uint64_t)bytes : model->total;
	}
}

/* The smallest form of each, and the steps that lead up from there. */
static void begin(struct planner *planner, struct totals *ret_best)
{
	struct option options[OPTIONS_MAX], hull[HULL_MAX];

	totals_clear(planner);
	*ret_best = (struct totals){0};
	planner->n_keys = 0;
	for (uint32_t t = 0; t < planner->input->n_tensors; t++) {
		unsigned n_options = options_allowed(planner, t, options);
		unsigned n_hull = options_hull(planner, options, n_options, hull);

		planner->chosen[t] = hull[0];
		totals_add(planner, t, &hull[0]);
		ret_best->time += hull[n_hull - 1].time;
		ret_best->work += hull[n_hull - 1].work;
		ret_best->weighted += hull[n_hull - 1].weighted;
		for (unsigned v = 1; v < n_hull; v++) {
			struct option *a = &hull[v - 1], *b = &hull[v];
			double gain = a->time - b->time + planner->price * (a->weighted - b->weighted);
			uint32_t at = (uint32_t)planner->n_keys++;
			uint64_t more = b->bytes - a->bytes;
			uint32_t key = key_falling(gain / (double)more);

			planner->hull[at] = (struct hull_step){t, key, b->choice};
			planner->keys[at] = (struct step_key){key, at, more};
		}
	}
}

/*
 * Takes at once, tensor after tensor, all steps before the first that does not fit. Returns where
 * in the sorted list to go on. What this leaves out, one by one in the order of gain would find
 * too, at a cache miss or three a step.
 */
static size_t leap(struct planner *planner)
{
	uint64_t sum = planner->totals.bytes;
	size_t n_fit = 0, at = 0;
	uint32_t bound;

	while (n_fit < planner->n_keys &&
	       sum + planner->keys[n_fit].more_bytes <= planner->capacity_bytes)
		sum += planner->keys[n_fit++].more_bytes;
	bound = n_fit < planner->n_keys ? planner->keys[n_fit].key : UINT32_MAX;
	while (at < planner->n_keys) {
		uint32_t tensor = planner->hull[at].tensor;
		const struct hull_step *last = NULL;
		struct option option;

		for (; at < planner->n_keys && planner->hull[at].tensor == tensor; at++)
			if (planner->hull[at].key < bound)
				last = &planner->hull[at];
		if (!last)
			continue;
		option_of(planner, tensor, last->to, &option);
		choose(planner, tensor, &option);
	}
	while (n_fit > 0 && planner->keys[n_fit - 1].key >= bound)
		n_fit--;
	return n_fit;
}

static bool has_limits(const struct planner *planner)
{
	for (uint32_t m = 0; m < planner->input->n_models; m++)
		if (planner->input->models[m].max_bytes)
			return true;
	return false;
}

/* Takes steps in the order of their gain. A step that does not fit is left out, not waited for. */
static void climb(struct planner *planner, const struct totals *best)
{
	double slack = slack_of[planner->policy.objective] * planner->ideal;
	double enough = cost_total(planner, best) + slack;
	bool skipped = true;
	size_t from = 0;

	keys_sort(planner->keys, planner->scratch, planner->n_keys);
	planner->satisfied = false;
	if (!(slack > 0) && !has_limits(planner))
		from = leap(planner);
	for (unsigned pass = 0; pass < 2 && skipped; pass++) {
		skipped = false;
		planner->releasable = 0;
		for (uint32_t m = 0; m < planner->input->n_models; m++)
			note_releasable(planner, &planner->models[m]);
		for (size_t k = from; k < planner->n_keys; k++) {
			const struct step_key *key = &planner->keys[k];
			const struct hull_step *step = &planner->hull[key->index];
			struct option option;

			if (slack > 0 && cost_total(planner, &planner->totals) <= enough) {
				planner->satisfied = true;
				return;
			}
			if (planner->totals.bytes + key->more_bytes >
			    planner->capacity_bytes + planner->releasable) {
				skipped = true;
				continue;
			}
			option_of(planner, step->tensor, step->to, &option);
			if (option.bytes > planner->chosen[step->tensor].bytes &&
			    !choose_if_fits(planner, step->tensor, &option))
				skipped = true;
		}
	}
}

struct exchange {
	uint32_t owner[LOCAL_OPTIONS]; /* tensor of each option */
	unsigned n_options, n_together; /* options taken at once, at most */
	unsigned taken[LOCAL_DEPTH], best[LOCAL_DEPTH], n_best;
	double best_cost;
};

/* Takes option after option as well, up to n_together, and notes the cheapest plan that fits. */
static void exchange_try(struct planner *planner, struct exchange *exchange, unsigned n_taken)
{
	unsigned from = n_taken ? exchange->taken[n_taken - 1] + 1 : 0;

	for (unsigned i = from; i < exchange->n_options; i++) {
		uint32_t tensor = exchange->owner[i];
		struct option before = planner->chosen[tensor];
		bool again = false, fits;

		for (unsigned n = 0; n < n_taken; n++)
			again = again || exchange->owner[exchange->taken[n]] == tensor;
		if (again || choice_equal(before.choice, planner->local[i].choice))
			continue;
		choose(planner, tensor, &planner->local[i]);
		exchange->taken[n_taken] = i;
		fits = planner->totals.bytes <= planner->capacity_bytes;
		for (unsigned n = 0; n <= n_taken && fits; n++)
			fits = model_fits(planner, exchange->owner[exchange->taken[n]]);
		if (fits && cost_total(planner, &planner->totals) < exchange->best_cost) {
			exchange->best_cost = cost_total(planner, &planner->totals);
			exchange->n_best = n_taken + 1;
			memcpy(exchange->best, exchange->taken, sizeof(exchange->best));
		}
		if (n_taken + 1 < exchange->n_together)
			exchange_try(planner, exchange, n_taken + 1);
		choose(planner, tensor, &before);
	}
}

static void exchange(struct planner *planner)
{
	struct exchange exchange = {.n_together = 3};
	size_t n_plans = 1;

	if (planner->satisfied || planner->totals.bytes > planner->capacity_bytes)
		return;
	for (uint32_t t = 0; t < planner->input->n_tensors; t++) {
		struct option options[OPTIONS_MAX];
		unsigned n_options = options_allowed(planner, t, options);

		if (exchange.n_options + n_options > LOCAL_OPTIONS)
			return;
		for (unsigned i = 0; i < n_options; i++) {
			planner->local[exchange.n_options] = options[i];
			exchange.owner[exchange.n_options++] = t;
		}
		n_plans = n_plans * n_options < LOCAL_PLANS ? n_plans * n_options : LOCAL_PLANS;
	}
	if (n_plans < LOCAL_PLANS && planner->input->n_tensors <= LOCAL_DEPTH)
		exchange.n_together = LOCAL_DEPTH; /* all plans */
	else if (exchange.n_options > LOCAL_TRIPLES)
		exchange.n_together = 2;
	for (unsigned i = 0; i < EXCHANGES_MAX; i++) {
		exchange.best_cost = cost_total(planner, &planner->totals) * (1 - 1e-9);
		exchange.n_best = 0;
		exchange_try(planner, &exchange, 0);
		for (unsigned n = 0; n < exchange.n_best; n++)
			choose(planner, exchange.owner[exchange.best[n]],
			       &planner->local[exchange.best[n]]);
		if (exchange.n_best == 0)
			break;
	}
}

static bool drop_floors(struct planner *planner, bool all)
{
	const struct planner_model *models = planner->input->models;
	double lightest = 0;
	bool found = false;

	for (uint32_t m = 0; m < planner->input->n_models; m++) {
		double weight = clamp(models[m].weight, 0, 1e6);

		if (!planner->models[m].floors_dropped && (!found || weight < lightest)) {
			lightest = weight;
			found = true;
		}
	}
	for (uint32_t m = 0; m < planner->input->n_models; m++)
		if (all || clamp(models[m].weight, 0, 1e6) <= lightest)
			planner->models[m].floors_dropped = true;
	return found;
}

/* Makes the smallest forms fit: first changes come too soon, then floors and pins are given up. */
static int make_room(struct planner *planner, struct totals *best)
{
	begin(planner, best);
	if (planner->totals.bytes <= planner->capacity_bytes)
		return 0;
	planner->ignore_dwell = true;
	begin(planner, best);
	for (unsigned i = 1; planner->totals.bytes > planner->capacity_bytes; i++) {
		if (!drop_floors(planner, i >= DROPS_MAX))
			return PLANNER_E_BUDGET;
		begin(planner, best);
	}
	for (uint32_t m = 0; m < planner->input->n_models; m++)
		if (planner->models[m].floors_dropped &&
		    (planner->input->models[m].floor != PLANNER_DENSE ||
		     planner->input->models[m].pin != PLANNER_NO_CLASS))
			return PLANNER_E_FLOORS;
	return 0;
}

bool totals_current(struct planner *planner, struct totals *ret_totals)
{
	bool holds = true;

	totals_clear(planner);
	for (uint32_t t = 0; t < planner->input->n_tensors; t++) {
		struct option option;

		if (option_current(planner, t, &option))
			totals_add(planner, t, &option);
		else
			holds = false;
	}
	*ret_totals = planner->totals;
	return holds;
}

/* Is the present plan allowed, and the new one not better by enough? Totals are the present's. */
static bool should_keep(struct planner *planner, const struct totals *current,
			const struct totals *planned)
{
	double now = cost_total(planner, current), then = cost_total(planner, planned);
	struct option options[OPTIONS_MAX], held;

	if (current->bytes > planner->capacity_bytes ||
	    now - then > planner->policy.min_gain * now)
		return false;
	if (slack_of[planner->policy.objective] > 0 &&
	    (double)current->bytes - (double)planned->bytes > 0.05 * (double)current->bytes)
		return false;
	for (uint32_t t = 0; t < planner->input->n_tensors; t++) {
		unsigned n_options = options_allowed(planner, t, options), i;

		option_current(planner, t, &held);
		if (!model_fits(planner, t))
			return false;
		for (i = 0; i < n_options; i++)
			if (choice_equal(options[i].choice, held.choice))
				break;
		if (i == n_options)
			return false;
	}
	return true;
}

static void choose_all(struct planner *planner, const struct planner_choice *choices)
{
	totals_clear(planner);
	for (uint32_t t = 0; t < planner->input->n_tensors; t++) {
		option_of(planner, t, choices[t], &planner->chosen[t]);
		totals_add(planner, t, &planner->chosen[t]);
	}
}

/* An objective that is met asks for less memory, one that is not for less stall. */
static bool is_better(const struct planner *planner, double cost, double best_cost, bool satisfied,
		      uint64_t best_bytes)
{
	if (slack_of[planner->policy.objective] > 0 && (planner->satisfied || satisfied))
		return planner->satisfied &&
		       (!satisfied || planner->totals.bytes < best_bytes);
	return cost < best_cost;
}

int planner_choose(struct planner *planner, double *ret_cost)
{
	uint32_t n_tensors = planner->input->n_tensors;
	struct totals current, planned, best;
	double price, best_cost = 0;
	bool holds, satisfied = false;
	int result = 0;

	prepare_models(planner);
	planner->ignore_dwell = planner->kept = false;
	holds = totals_current(planner, &current);
	planner->price_current = cost_price(planner, current.work);
	memset(planner->leave, 0, n_tensors * sizeof(*planner->leave));
	for (uint32_t t = 0; t < n_tensors; t++)
		planner->leave[t] = option_leave(planner, t);
	price = 1 + HIDDEN;
	for (unsigned i = 0; i < PRICES_MAX; i++) {
		double cost, next;

		planner->price = price;
		if (i == 0)
			result = make_room(planner, &best);
		else
			begin(planner, &best);
		if (result != PLANNER_E_BUDGET)
			climb(planner, &best);
		exchange(planner);
		cost = cost_total(planner, &planner->totals);
		if (i == 0 || is_better(planner, cost, best_cost, satisfied, planned.bytes)) {
			best_cost = cost;
			planned = planner->totals;
			satisfied = planner->satisfied;
			for (uint32_t t = 0; t < n_tensors; t++)
				planner->best[t] = planner->chosen[t].choice;
		}
		next = cost_price(planner, planner->totals.work);
		if (next > 0.99 * price && next < 1.01 * price)
			break;
		price = next;
	}
	choose_all(planner, planner->best);
	planned = planner->totals;
	planner->satisfied = satisfied;
	planner->price = cost_price(planner, planned.work);
	if (holds) {
		totals_current(planner, &current);
		planner->kept = should_keep(planner, &current, &planned);
		for (uint32_t t = 0; planner->kept && t < n_tensors; t++) {
			option_current(planner, t, &planner->chosen[t]);
			planner->best[t] = planner->chosen[t].choice;
		}
		if (!planner->kept)
			choose_all(planner, planner->best);
	}
	*ret_cost = cost_total(planner, &planner->totals);
	return planner->kept && result == PLANNER_E_BUDGET ? 0 : result;
}
