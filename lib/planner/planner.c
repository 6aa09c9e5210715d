/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The planner's door: checks that the input does not contradict itself, brings numbers into range,
 * runs the choice and puts the changes in order. Owns all memory of a run, taken once; refuses
 * tables that point outside of each other and forms beyond PLANNER_MAX_BYTES. Any thread, one run
 * a planner.
 */
#include "planner/planner-impl.h"

#include <errno.h>
#include <string.h>

#include "base/memory.h"
#include "base/message.h"

void planner_policy_init(struct planner_policy *policy)
{
	*policy = (struct planner_policy){
		.objective = PLANNER_LATENCY,
		.hysteresis = 0.1,
		.min_gain = 0.02,
		.horizon_s = 60,
		.dwell_s = 30,
	};
}

int planner_new(uint32_t max_tensors, uint32_t max_models, struct planner **ret_planner)
{
	struct planner *planner;
	size_t n_steps = (size_t)max_tensors * (HULL_MAX - 1);

	if (max_tensors > PLANNER_MAX_TENSORS || max_models > PLANNER_MAX_MODELS)
		return message_set(-EINVAL, "a planner takes %u tensors of %u models at most",
				   PLANNER_MAX_TENSORS, PLANNER_MAX_MODELS);
	planner = memory_zalloc(sizeof(*planner));
	if (!planner)
		return -ENOMEM;
	planner->max_tensors = max_tensors;
	planner->max_models = max_models;
	planner->chosen = memory_array(max_tensors, sizeof(*planner->chosen));
	planner->choices = memory_array(max_tensors, sizeof(*planner->choices));
	planner->best = memory_array(max_tensors, sizeof(*planner->best));
	planner->steps = memory_array(max_tensors, sizeof(*planner->steps));
	planner->leave = memory_array(max_tensors, sizeof(*planner->leave));
	planner->models = memory_array(max_models, sizeof(*planner->models));
	/* Not zeroed: what no run uses is never touched. */
	planner->hull = memory_alloc(n_steps * sizeof(*planner->hull));
	planner->keys = memory_alloc(n_steps * sizeof(*planner->keys));
	planner->scratch = memory_alloc(n_steps * sizeof(*planner->scratch));
	if (!planner->chosen || !planner->choices || !planner->best || !planner->steps ||
	    !planner->leave || !planner->models || !planner->hull || !planner->keys ||
	    !planner->scratch) {
		planner_free(planner);
		return -ENOMEM;
	}
	*ret_planner = planner;
	return 0;
}

struct planner *planner_free(struct planner *planner)
{
	if (!planner)
		return NULL;
	memory_free(planner->chosen);
	memory_free(planner->choices);
	memory_free(planner->best);
	memory_free(planner->steps);
	memory_free(planner->leave);
	memory_free(planner->models);
	memory_free(planner->hull);
	memory_free(planner->keys);
	memory_free(planner->scratch);
	return memory_free(planner);
}

static int check_tensor(const struct planner_input *input, uint32_t index)
{
	const struct planner_tensor *tensor = &input->tensors[index];
	uint64_t copies = tensor->current_replicas > input->host.n_nodes ? tensor->current_replicas
									 : input->host.n_nodes;

	if (tensor->model >= input->n_models)
		return message_set(-EINVAL, "tensor %u: no model %u", index, tensor->model);
	if (tensor->n_forms == 0 || tensor->n_forms > PLANNER_MAX_FORMS)
		return message_set(-EINVAL, "tensor %u: 1 to %u forms, not %u", index,
				   PLANNER_MAX_FORMS, tensor->n_forms);
	if (tensor->first_form > input->n_forms ||
	    tensor->n_forms > input->n_forms - tensor->first_form)
		return message_set(-EINVAL, "tensor %u: its forms lie outside of the table", index);
	if (tensor->current != PLANNER_NO_FORM && tensor->current >= tensor->n_forms)
		return message_set(-EINVAL, "tensor %u: holds form %u of %u", index, tensor->current,
				   tensor->n_forms);
	if (tensor->bytes > PLANNER_MAX_BYTES)
		return message_set(-EINVAL, "tensor %u: too large", index);
	if (tensor->pin > PLANNER_N_CLASSES)
		return message_set(-EINVAL, "tensor %u: no such class", index);
	for (unsigned f = 0; f < tensor->n_forms; f++) {
		const struct planner_form *form = &input->forms[tensor->first_form + f];

		if (form->class >= PLANNER_N_CLASSES)
			return message_set(-EINVAL, "tensor %u, form %u: no class %u", index, f,
					   form->class);
		if (form->bytes > PLANNER_MAX_BYTES / (copies ? copies : 1))
			return message_set(-EINVAL, "tensor %u, form %u: too large", index, f);
	}
	return 0;
}

static int check(const struct planner *planner, const struct planner_input *input)
{
	if (input->n_tensors > planner->max_tensors || input->n_models > planner->max_models)
		return message_set(-EINVAL, "%u tensors of %u models: this planner takes %u of %u",
				   input->n_tensors, input->n_models, planner->max_tensors,
				   planner->max_models);
	if (input->host.n_nodes > PLANNER_MAX_NODES)
		return message_set(-EINVAL, "%u nodes", input->host.n_nodes);
	if ((unsigned)input->policy.objective >= PLANNER_N_OBJECTIVES)
		return message_set(-EINVAL, "no objective %u", (unsigned)input->policy.objective);
	for (uint32_t m = 0; m < input->n_models; m++) {
		const struct planner_model *model = &input->models[m];

		if (model->floor >= PLANNER_N_CLASSES || model->ceiling >= PLANNER_N_CLASSES ||
		    (model->pin >= PLANNER_N_CLASSES && model->pin != PLANNER_NO_CLASS))
			return message_set(-EINVAL, "model %u: no such class", m);
	}
	for (uint32_t t = 0; t < input->n_tensors; t++) {
		int r = check_tensor(input, t);

		if (r < 0)
			return r;
	}
	return 0;
}

static void set_input(struct planner *planner, const struct planner_input *input)
{
	struct planner_host *host = &planner->host;
	struct planner_policy *policy = &planner->policy;
	uint64_t taken;

	planner->input = input;
	*host = input->host;
	host->cores_free = clamp(host->cores_free, 0.01, 1e6);
	host->read_ns = clamp(host->read_ns, 1e-4, 1e9);
	host->remote_factor = clamp(host->remote_factor, 1, 1e3);
	host->file_ns = clamp(host->file_ns, 0, 1e9);
	host->n_nodes = host->n_nodes ? host->n_nodes : 1;
	if (host->budget_bytes > 1ULL << 62)
		host->budget_bytes = 1ULL << 62;
	*policy = input->policy;
	policy->hysteresis = clamp(policy->hysteresis, 0, 10);
	policy->min_gain = clamp(policy->min_gain, 0, 1);
	policy->horizon_s = clamp(policy->horizon_s, 1e-3, 1e9);
	policy->dwell_s = clamp(policy->dwell_s, 0, 1e9);
	if (!policy->max_prefetch || policy->max_prefetch > PLANNER_MAX_PREFETCH)
		policy->max_prefetch = PLANNER_MAX_PREFETCH;
	if (host->pinned_bytes > 1ULL << 60)
		host->pinned_bytes = 1ULL << 60;
	taken = host->headroom_bytes < host->budget_bytes ? host->headroom_bytes : host->budget_bytes;
	planner->capacity_bytes = host->budget_bytes - taken;
	taken = host->pinned_bytes;
	planner->capacity_bytes -= taken < planner->capacity_bytes ? taken : planner->capacity_bytes;
}

int planner_run(struct planner *planner, const struct planner_input *input,
		struct planner_plan *ret_plan)
{
	struct planner_plan plan = {0};
	struct totals current;
	double planned;
	int result = check(planner, input);

	if (result < 0)
		return result;
	set_input(planner, input);
	result = planner_choose(planner, &planned);
	for (uint32_t t = 0; t < input->n_tensors; t++) {
		const struct option *option = &planner->chosen[t];
		struct planner_choice *choice = &planner->choices[t];

		*choice = option->choice;
		choice->prefetch = 0;
		if (option_streams(planner, t, option))
			choice->prefetch = planner->models[input->tensors[t].model].prefetch;
		plan.stored_bytes += option->bytes - option->window;
		plan.window_bytes += option->window;
	}
	for (uint32_t m = 0; m < input->n_models; m++)
		if (planner->models[m].n_streamed > 0)
			plan.window_bytes += planner->models[m].window_bytes;
	plan.choices = planner->choices;
	plan.kept = planner->kept;
	plan.satisfied = planner->satisfied;
	plan.stall_planned = planned;
	plan.work_planned = planner->totals.work;
	planner_order(planner, &plan);
	totals_current(planner, &current);
	plan.stall_now = cost_total(planner, &current);
	plan.work_now = current.work;
	*ret_plan = plan;
	return result;
}

static enum planner_reason reason_of(const struct planner *planner, uint32_t index,
				     const struct planner_reasons *reasons)
{
	const struct planner_tensor *tensor = &planner->input->tensors[index];
	const struct planner_model *model = &planner->input->models[tensor->model];
	const struct planner_form *forms = &planner->input->forms[tensor->first_form];
	unsigned class = forms[planner->choices[index].form].class;
	bool denser = false, faster = false, dropped = planner->models[tensor->model].floors_dropped;

	for (unsigned f = 0; f < tensor->n_forms; f++) {
		denser = denser || forms[f].class > class;
		faster = faster || forms[f].class < class;
	}
	if (planner->policy.frozen || model->frozen)
		return PLANNER_R_FROZEN;
	if (planner_pin(model, tensor) != PLANNER_NO_CLASS && !dropped)
		return PLANNER_R_PINNED;
	if (planner->kept)
		return reasons->has_next ? PLANNER_R_KEPT : PLANNER_R_BEST;
	if (tensor->busy || (!planner->ignore_dwell && tensor->current != PLANNER_NO_FORM &&
			     clamp(tensor->age_s, 0, 1e12) < planner->policy.dwell_s))
		return PLANNER_R_DWELL;
	if (faster && class == model->ceiling && class != PLANNER_RAW)
		return PLANNER_R_CEILING;
	if (!(tensor->rate > 0))
		return PLANNER_R_IDLE;
	if (denser && class == model->floor && class != PLANNER_DENSE && !dropped)
		return PLANNER_R_FLOOR;
	if (!reasons->has_next)
		return PLANNER_R_BEST;
	if (planner->satisfied)
		return PLANNER_R_ENOUGH;
	if (model->max_bytes && planner->models[tensor->model].stored_bytes + reasons->next_bytes >
					model->max_bytes)
		return PLANNER_R_MODEL;
	return denser ? PLANNER_R_GAIN : PLANNER_R_BUDGET;
}

void planner_explain(const struct planner *planner, const struct planner_input *input,
		     uint32_t tensor, struct planner_reasons *ret_reasons)
{
	struct option options[OPTIONS_MAX], hull[HULL_MAX], chosen;
	struct planner_reasons reasons = {0};
	unsigned n_hull;

	(void)input; /* the run has it; the caller says that it is still there */
	option_of(planner, tensor, planner->choices[tensor], &chosen);
	reasons.stall = chosen.time + planner->price * chosen.weighted;
	n_hull = options_hull(planner, options, options_allowed(planner, tensor, options), hull);
	for (unsigned v = 0; v < n_hull && !reasons.has_next; v++) {
		double gain = reasons.stall - hull[v].time - planner->price * hull[v].weighted;

		if (hull[v].bytes <= chosen.bytes || gain <= 0)
			continue;
		reasons.has_next = true;
		reasons.next = hull[v].choice;
		reasons.next_bytes = hull[v].bytes - chosen.bytes;
		reasons.next_gain = gain;
	}
	reasons.reason = reason_of(planner, tensor, &reasons);
	*ret_reasons = reasons;
}

const char *planner_class_name(unsigned class)
{
	static const char *const names[] = {"raw", "fast", "work", "dense"};

	return class < PLANNER_N_CLASSES ? names[class] : "?";
}

const char *planner_objective_name(unsigned objective)
{
	static const char *const names[] = {"latency", "balanced", "memory"};

	return objective < PLANNER_N_OBJECTIVES ? names[objective] : "?";
}

const char *planner_reason_text(unsigned reason)
{
	static const char *const texts[PLANNER_N_REASONS] = {
		[PLANNER_R_GAIN] = "the best use of these bytes",
		[PLANNER_R_BUDGET] = "the bytes serve better elsewhere",
		[PLANNER_R_IDLE] = "nobody reads it",
		[PLANNER_R_BEST] = "no form stalls less",
		[PLANNER_R_ENOUGH] = "the objective is met",
		[PLANNER_R_KEPT] = "another plan would gain too little",
		[PLANNER_R_DWELL] = "changed a moment ago, or busy",
		[PLANNER_R_FROZEN] = "frozen",
		[PLANNER_R_PINNED] = "pinned",
		[PLANNER_R_FLOOR] = "at its floor",
		[PLANNER_R_CEILING] = "at its ceiling",
		[PLANNER_R_MODEL] = "its model has all that it may have",
	};

	return reason < PLANNER_N_REASONS ? texts[reason] : "?";
}
