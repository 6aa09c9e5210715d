/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tuner. Owns what is known about each tensor's forms and rates, the planner's input, and the
 * changes under way; refuses to change what it has not sampled. Loop thread. Invariant: a tensor is
 * in one change at most, and what it is held as now is forms[current].
 */
#include "tuner.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "codec/codec.h"
#include "recode.h"

#define INTERVAL_NS NS_PER_S /* between plans, at the least; untuned */
#define OVERHEAD 200	     /* planning takes one part of the time in so many, at most */
#define DWELL_S 10.0	     /* untuned */
#define HEADROOM 10	     /* a tensor of more than this part of the budget gets no room kept free */
#define MARGIN 1.06	     /* of an estimate, before a change is given up as larger */
#define WORTH 0.99	     /* a coded form takes less than this of the raw one */
#define FAILURES 3	     /* until a tensor is left as it is */

struct change {
	struct tuner *tuner;
	struct change *next;
	struct recode *recode;
	struct model *model;
	struct tuned_tensor *tensor;
	uint8_t form;
	uint64_t began_ns;
};

struct tuner {
	struct store *store;
	struct planner *planner;
	uint32_t max_tensors, max_models; /* of the planner */
	/* The input of the last plan; planner_explain() wants it unchanged. */
	struct planner_input input;
	struct planner_model *models;
	struct planner_tensor *tensors;
	struct planner_form *forms;
	struct model **model_of;	  /* of each tensor of the input */
	struct tuned_tensor **tensor_of;
	struct planner_step *steps; /* of the last plan */
	uint32_t n_steps, next_step;
	const struct planner_choice *choices; /* the planner's, of the last plan; NULL: none */
	uint64_t seen_ns, next_ns; /* of looking, of planning */
	struct change *changes;
	uint64_t held_at_cut; /* in all, when the budget was lowered the last time */
	struct model *sampled; /* the model of the sample under way, or NULL */
	uint64_t sampled_tensor;
	bool stopping;
	struct { /* of decoding, for the slowdown */
		uint64_t busy_ns, n_bytes;
		double expected_ns;
	} seen;
	struct tuner_state state;
};

static void start_steps(struct tuner *tuner);
static void start_sample(struct tuner *tuner);

int tuner_new(struct store *store, struct tuner **ret_tuner)
{
	struct tuner *tuner = memory_zalloc(sizeof(*tuner));

	if (!tuner)
		return -ENOMEM;
	tuner->store = store;
	planner_policy_init(&tuner->state.policy);
	tuner->state.policy.objective = store->config.objective;
	tuner->state.policy.dwell_s = DWELL_S;
	tuner->state.policy.max_prefetch = ACQUIRE_AHEAD;
	tuner->state.enabled = store->config.tune;
	tuner->state.host = (struct tuner_host){
		.cores_free = store->config.n_workers, .read_ns = 0.1, .slowdown = 1, .file_ns = 0.5};
	tuner->seen_ns = clock_now_ns();
	*ret_tuner = tuner;
	return 0;
}

void tuner_cancel(struct tuner *tuner)
{
	if (!tuner)
		return;
	tuner->stopping = true;
	for (struct change *change = tuner->changes; change; change = change->next)
		recode_cancel(change->recode);
}

static void free_input(struct tuner *tuner)
{
	tuner->planner = planner_free(tuner->planner);
	tuner->models = memory_free(tuner->models);
	tuner->tensors = memory_free(tuner->tensors);
	tuner->forms = memory_free(tuner->forms);
	tuner->model_of = memory_free(tuner->model_of);
	tuner->tensor_of = memory_free(tuner->tensor_of);
	tuner->steps = memory_free(tuner->steps);
	tuner->max_tensors = tuner->max_models = 0;
	tuner->input.n_tensors = tuner->n_steps = tuner->next_step = 0;
	tuner->choices = NULL;
}

struct tuner *tuner_free(struct tuner *tuner)
{
	if (!tuner)
		return NULL;
	free_input(tuner);
	return memory_free(tuner);
}

const struct tuner_state *tuner_state(const struct tuner *tuner)
{
	return &tuner->state;
}

void tuner_set(struct tuner *tuner, const struct store_tuning *tuning)
{
	struct budget now;

	budget_get(&tuner->store->budget, &now);
	tuner->held_at_cut = now.total > now.limit ? now.total : 0;
	tuner->state.enabled = tuning->tune;
	tuner->state.policy.objective = tuning->objective;
	tuner->state.policy.frozen = tuning->frozen;
	if (!tuning->tune)
		tuner->n_steps = tuner->next_step = 0;
	start_sample(tuner);
	tuner_hurry(tuner);
}

bool tuner_explain(const struct tuner *tuner, const struct tuned_tensor *tensor,
		   struct planner_reasons *ret_reasons, uint8_t *ret_now, uint8_t *ret_chosen,
		   uint8_t *ret_next)
{
	const struct planner_form *forms;
	uint32_t t = 0;

	while (t < tuner->input.n_tensors && tuner->tensor_of[t] != tensor)
		t++;
	if (t >= tuner->input.n_tensors || !tuner->choices)
		return false;
	planner_explain(tuner->planner, &tuner->input, t, ret_reasons);
	forms = &tuner->forms[tuner->tensors[t].first_form];
	*ret_now = tensor->forms[tensor->current].class;
	*ret_chosen = forms[tuner->choices[t].form].class;
	*ret_next = ret_reasons->has_next ? forms[ret_reasons->next.form].class : *ret_chosen;
	return true;
}

void tuner_continue(struct tuner *tuner)
{
	if (!tuner->stopping)
		start_steps(tuner);
}

/* --- models ----------------------------------------------------------------------------------- */

int tuner_add_model(struct tuner *tuner, struct model *model)
{
	const struct loaded_model *loaded = &model->loaded;
	uint64_t n_tensors = loaded->catalog.n_tensors;
	struct tuned_model *tuned = memory_zalloc(sizeof(*tuned));

	model->tuned = tuned;
	if (!tuned)
		return -ENOMEM;
	tuned->of = memory_array(n_tensors ? n_tensors : 1, sizeof(*tuned->of));
	tuned->tensors = memory_array(loaded->layout.n_segments ? loaded->layout.n_segments : 1,
				      sizeof(*tuned->tensors));
	if (!tuned->of || !tuned->tensors)
		return -ENOMEM;
	for (uint64_t id = 0; id < n_tensors; id++)
		tuned->of[id] = UINT32_MAX;
	for (uint32_t i = 0; i < loaded->layout.n_segments; i++) {
		const struct layout_segment *segment = &loaded->layout.segments[i];
		uint64_t id = loaded->layout.order[segment->first];
		const struct container_tensor *tensor;

		if (!segment->alone || index_tensor(&loaded->catalog, id, &tensor) != 0)
			continue;
		tuned->of[id] = tuned->n_tensors;
		tuned->tensors[tuned->n_tensors++] =
			(struct tuned_tensor){.tensor = id, .n_bytes = tensor->n_bytes};
	}
	for (uint64_t id = 0; id < n_tensors; id++)
		if (loaded->layout.owners[id] != id)
			tuned->of[id] = tuned->of[loaded->layout.owners[id]];
	tuned->policy = (struct planner_model){.weight = 1,
					       .floor = PLANNER_DENSE,
					       .ceiling = PLANNER_RAW,
					       .pin = PLANNER_NO_CLASS};
	tuned->share = 1;
	tuned->order = 0.5; /* not known: windows go as if access were random */
	start_sample(tuner);
	return 0;
}

void tuner_remove_model(struct tuner *tuner, struct model *model)
{
	struct tuned_model *tuned = model->tuned;

	if (!tuned)
		return;
	for (struct change *change = tuner->changes; change; change = change->next)
		if (change->model == model)
			recode_cancel(change->recode);
	/* The last plan knows its tensors. */
	tuner->n_steps = tuner->next_step = tuner->input.n_tensors = 0;
	tuner->choices = NULL;
}

/* --- samples ---------------------------------------------------------------------------------- */

static uint8_t class_of(uint8_t codec)
{
	switch (codec) {
	case CODEC_RAW:
		return PLANNER_RAW;
	case CODEC_PACK_8:
	case CODEC_PACK_16:
	case CODEC_PACK_32:
		return PLANNER_FAST;
	case CODEC_PAIR_8:
	case CODEC_PAIR_16:
	case CODEC_PAIR_32:
	case CODEC_PAIR_8_SPIKE:
		return PLANNER_WORK;
	default:
		return PLANNER_DENSE;
	}
}

static uint64_t table_bytes(const struct model *model, uint64_t id)
{
	const struct container_tensor *tensor;
	struct index_shape shape;

	if (index_tensor(&model->loaded.catalog, id, &tensor) || index_shape(tensor, &shape))
		return 0;
	return align_up(shape.n_pages * sizeof(struct container_page), 4096);
}

static struct planner_form form_of(const struct sample_form *sample, uint64_t n_bytes, uint64_t table)
{
	double decoded = (double)(sample->decoded ? sample->decoded : 1);

	return (struct planner_form){
		.bytes = (uint64_t)((double)n_bytes * (double)sample->stored / decoded) + table,
		.decode_ns = (float)((double)sample->decode_ns / decoded),
		.encode_ns = (float)((double)sample->encode_ns / decoded),
		.class = class_of(sample->codec),
		.codec = sample->codec,
	};
}

/* Of one class, the one that takes less; but what the file holds costs nothing to make. */
static void add_form(struct tuned_tensor *tensor, const struct planner_form *form)
{
	if ((double)form->bytes >= WORTH * (double)tensor->forms[0].bytes && !form->held)
		return;
	for (unsigned i = 1; i < tensor->n_forms; i++) {
		if (tensor->forms[i].class != form->class)
			continue;
		if (form->held || (!tensor->forms[i].held && form->bytes < tensor->forms[i].bytes))
			tensor->forms[i] = *form;
		return;
	}
	if (tensor->n_forms < PLANNER_MAX_FORMS)
		tensor->forms[tensor->n_forms++] = *form;
}

static void adopt_sample(const struct model *model, struct tuned_tensor *tensor,
			 const struct sample_result *result)
{
	const struct held *held = &model->loaded.held[tensor->tensor];
	uint64_t table = table_bytes(model, tensor->tensor);
	struct planner_form now = form_of(&result->held, tensor->n_bytes, 0);

	tensor->forms[0] = (struct planner_form){.bytes = tensor->n_bytes + table,
						 .encode_ns = (float)now.decode_ns,
						 .class = PLANNER_RAW,
						 .codec = CODEC_RAW,
						 .held = held->raw};
	tensor->n_forms = 1;
	tensor->current = 0;
	for (uint32_t i = 0; i < result->n_forms; i++) {
		struct planner_form form = form_of(&result->forms[i], tensor->n_bytes, table);

		form.encode_ns += now.decode_ns;
		add_form(tensor, &form);
	}
	if (!held->raw) {
		now.bytes = held->stored_bytes;
		now.encode_ns = 0;
		now.held = true;
		add_form(tensor, &now);
		for (uint8_t i = 1; i < tensor->n_forms; i++)
			if (tensor->forms[i].held)
				tensor->current = i;
	}
	tensor->sampled = true;
}

static void sampled(void *data, const struct sample_result *result)
{
	struct tuner *tuner = data;
	struct model *model = tuner->sampled;
	struct tuned_model *tuned = model->tuned;
	struct tuned_tensor *tensor = &tuned->tensors[tuned->of[tuner->sampled_tensor]];

	tuner->sampled = NULL;
	if (!result->result && !model->retired)
		adopt_sample(model, tensor, result);
	tuned->n_sampled++;
	if (result->read_ns > 0)
		tuner->state.host.read_ns += 0.1 * (result->read_ns - tuner->state.host.read_ns);
	start_sample(tuner);
}

/* The next tensor that nobody knows the forms of. */
static void start_sample(struct tuner *tuner)
{
	struct model *model;

	if (tuner->sampled || tuner->stopping || !tuner->state.enabled)
		return;
	TAILQ_FOREACH(model, &tuner->store->models, link) {
		struct tuned_model *tuned = model->tuned;

		if (!tuned || model->loading || model->retired || tuned->n_sampled >= tuned->n_tensors)
			continue;
		tuner->sampled = model;
		tuner->sampled_tensor = tuned->tensors[tuned->n_sampled].tensor;
		if (sample_start(model, tuner->sampled_tensor, sampled, tuner) == 0)
			return;
		tuner->sampled = NULL;
		tuned->n_sampled++; /* stays as it is */
	}
}

/* --- planning --------------------------------------------------------------------------------- */

static int reserve_input(struct tuner *tuner, uint32_t n_models, uint32_t n_tensors)
{
	uint32_t tensors = n_tensors + n_tensors / 2 + 16, models = n_models * 2 + 4;
	int r;

	if (tuner->planner && n_models <= tuner->max_models && n_tensors <= tuner->max_tensors)
		return 0;
	free_input(tuner);
	r = planner_new(tensors, models, &tuner->planner);
	if (r)
		return r;
	tuner->models = memory_array(models, sizeof(*tuner->models));
	tuner->tensors = memory_array(tensors, sizeof(*tuner->tensors));
	tuner->forms = memory_array((size_t)tensors * PLANNER_MAX_FORMS, sizeof(*tuner->forms));
	tuner->model_of = memory_array(tensors, sizeof(struct model *));
	tuner->tensor_of = memory_array(tensors, sizeof(struct tuned_tensor *));
	tuner->steps = memory_array(tensors, sizeof(*tuner->steps));
	if (!tuner->models || !tuner->tensors || !tuner->forms || !tuner->model_of ||
	    !tuner->tensor_of || !tuner->steps) {
		free_input(tuner);
		return message_set(-ENOMEM, "no memory to plan %u tensors", n_tensors);
	}
	tuner->max_models = models;
	tuner->max_tensors = tensors;
	return 0;
}

static bool is_tuned(const struct model *model)
{
	return model->tuned && !model->loading && !model->retired;
}

static void add_tensor(struct tuner *tuner, struct model *model, uint32_t m,
		       struct tuned_tensor *tensor, uint64_t now)
{
	struct planner_input *input = &tuner->input;
	const struct tuned_model *tuned = model->tuned;
	uint64_t resident = 0;
	const struct window *window;

	TAILQ_FOREACH(window, &model->windows[tensor->tensor], link)
		resident += window->n_bytes;
	for (unsigned f = 0; f < tensor->n_forms; f++) {
		tuner->forms[input->n_forms + f] = tensor->forms[f];
		tuner->forms[input->n_forms + f].decode_ns *= (float)tuner->state.host.slowdown;
	}
	tuner->model_of[input->n_tensors] = model;
	tuner->tensor_of[input->n_tensors] = tensor;
	tuner->tensors[input->n_tensors++] = (struct planner_tensor){
		.bytes = tensor->n_bytes,
		.model = m,
		.first_form = input->n_forms,
		.n_forms = tensor->n_forms,
		.current = tensor->current,
		.current_replicas = 1,
		.current_window = resident >= tensor->n_bytes / 2,
		.pin = tensor->pin,
		.busy = tensor->changing || tensor->n_failed >= FAILURES,
		.rate = (float)tensor->rate,
		.share = (float)tuned->share,
		.order = (float)tuned->order,
		.hot = 1,
		.local = (float)tuned->local,
		.age_s = (float)((double)(now - tensor->changed_ns) * 1e-9),
	};
	input->n_forms += tensor->n_forms;
}

static void add_model(struct tuner *tuner, struct model *model, uint64_t now)
{
	const struct tuned_model *tuned = model->tuned;
	uint32_t m = tuner->input.n_models++;

	tuner->models[m] = tuned->policy;
	tuner->models[m].streams = (float)arena_streams(model);
	tuner->models[m].unit_bytes = model->largest_window;
	for (uint32_t i = 0; i < tuned->n_tensors; i++)
		if (tuned->tensors[i].sampled)
			add_tensor(tuner, model, m, &tuned->tensors[i], now);
}

/* What the plan may spend: all but tables, small tensors and what others hold. */
static void set_host(struct tuner *tuner)
{
	struct planner_host *host = &tuner->input.host;
	struct store *store = tuner->store;
	uint64_t planned = 0, fixed, headroom = 0;
	struct budget now;

	budget_get(&store->budget, &now);
	for (uint32_t t = 0; t < tuner->input.n_tensors; t++) {
		const struct tuned_tensor *tensor = tuner->tensor_of[t];

		planned += tensor->forms[tensor->current].bytes;
		if (tensor->forms[0].bytes <= now.limit / HEADROOM)
			headroom = max_u64(headroom, tensor->forms[0].bytes);
	}
	fixed = now.used[BUDGET_COMPRESSED] - min_u64(planned, now.used[BUDGET_COMPRESSED]) +
		now.used[BUDGET_INDEX];
	*host = (struct planner_host){
		.budget_bytes = now.limit - min_u64(now.limit, fixed),
		.pinned_bytes = now.used[BUDGET_RETIRED] + now.used[BUDGET_INFLIGHT],
		.headroom_bytes = headroom,
		.cores_free = tuner->state.host.cores_free,
		.read_ns = tuner->state.host.read_ns,
		.file_ns = tuner->state.host.file_ns,
		.remote_factor = 1,
		.n_nodes = 1,
	};
}

static int make_plan(struct tuner *tuner, uint64_t now, struct planner_plan *ret_plan)
{
	uint32_t n_models = 0, n_tensors = 0;
	struct model *model;
	int r;

	TAILQ_FOREACH(model, &tuner->store->models, link) {
		if (!is_tuned(model))
			continue;
		n_models++;
		n_tensors += model->tuned->n_sampled;
	}
	r = reserve_input(tuner, n_models, n_tensors);
	if (r)
		return r;
	tuner->input = (struct planner_input){.policy = tuner->state.policy,
					      .models = tuner->models,
					      .tensors = tuner->tensors,
					      .forms = tuner->forms};
	TAILQ_FOREACH(model, &tuner->store->models, link)
		if (is_tuned(model))
			add_model(tuner, model, now);
	set_host(tuner);
	return planner_run(tuner->planner, &tuner->input, ret_plan);
}

/* --- changing --------------------------------------------------------------------------------- */

static void remember(struct tuner *tuner, const struct change *change,
		     const struct recode_result *result, uint64_t now)
{
	struct tuner_state *state = &tuner->state;
	struct tuner_change *entry = &state->history[state->n_history++ % TUNER_HISTORY];

	*entry = (struct tuner_change){
		.at_ns = now,
		.bytes = change->tensor->n_bytes,
		.stored_bytes = result->stored_bytes,
		.busy_ns = result->busy_ns,
		.tensor = change->tensor->tensor,
		.from = change->tensor->forms[change->tensor->current].class,
		.to = change->tensor->forms[change->form].class,
		.result = result->result,
	};
	(void)snprintf(entry->model, sizeof(entry->model), "%s", change->model->name);
}

static void changed(void *data, const struct recode_result *result)
{
	struct change *change = data, **link = &change->tuner->changes;
	struct tuner *tuner = change->tuner;
	struct tuned_tensor *tensor = change->tensor;
	struct planner_form *form = &tensor->forms[change->form];
	uint64_t now = clock_now_ns();

	while (*link != change)
		link = &(*link)->next;
	*link = change->next;
	tuner->state.n_changing--;
	tuner->state.busy_ns += result->busy_ns;
	remember(tuner, change, result, now);
	tensor->changing = false;
	tensor->changed_ns = now;
	if (!result->result) {
		form->bytes = change->form == 0 || !form->held
				      ? result->stored_bytes + table_bytes(change->model, tensor->tensor)
				      : form->bytes;
		tensor->current = change->form;
		tensor->n_changes++;
		tuner->state.n_changes++;
		tuner->state.changed_bytes += tensor->n_bytes;
	} else if (result->result == RECODE_E_LARGER) {
		form->bytes += form->bytes / 8;
	} else if (result->result != RECODE_E_GONE) {
		form->held = false; /* where the file is not what it was */
		tensor->n_failed++;
		tuner->state.n_failed++;
	}
	memory_free(change);
	if (!tuner->stopping)
		start_steps(tuner);
}

/*
 * Where the budget was cut below what the stored forms take, nothing could shrink any more within it:
 * one change at a time may stand over it then, but never more than was held before, and that change.
 */
static bool may_go_over(const struct tuner *tuner, const struct tuned_tensor *tensor, uint64_t n_bytes)
{
	struct budget now;

	budget_get(&tuner->store->budget, &now);
	return n_bytes < tensor->forms[tensor->current].bytes && !tuner->state.n_changing &&
	       now.total <= tuner->held_at_cut;
}

/* 0: begun, or not to be done. STORE_E_BUDGET: there is no room for it now. */
static int start_change(struct tuner *tuner, struct model *model, struct tuned_tensor *tensor,
			uint8_t form_id)
{
	const struct planner_form *form = &tensor->forms[form_id];
	uint64_t most = form->held ? form->bytes : (uint64_t)(MARGIN * (double)form->bytes) + 4096;
	struct recode_request request = {
		.model = model,
		.tensor = tensor->tensor,
		.from_file = form->held,
		.codec = form->codec,
		.effort = 1,
		.max_bytes = form->codec == CODEC_RAW ? tensor->n_bytes : min_u64(most, tensor->n_bytes),
	};
	struct change *change;
	int r;

	if (form_id == tensor->current || tensor->changing || model->retired)
		return 0;
	change = memory_zalloc(sizeof(*change));
	if (!change)
		return -ENOMEM;
	*change = (struct change){.tuner = tuner, .model = model, .tensor = tensor, .form = form_id};
	if (!budget_has_room(&tuner->store->budget, request.max_bytes))
		(void)store_make_room(tuner->store, NULL, request.max_bytes);
	request.over = may_go_over(tuner, tensor, request.max_bytes);
	r = recode_start(&request, changed, change, &change->recode);
	if (r) {
		memory_free(change);
		return r;
	}
	tensor->changing = true;
	change->next = tuner->changes;
	tuner->changes = change;
	tuner->state.n_changing++;
	return 0;
}

static void start_steps(struct tuner *tuner)
{
	uint32_t most = max_u64(1, tuner->store->config.n_workers / 2);
	bool more = tuner->next_step < tuner->n_steps;

	/* Windows take all that is free, but not in the way of what is to be done. */
	tuner->store->reserve_bytes = more ? tuner->input.host.headroom_bytes : 0;

	while (tuner->next_step < tuner->n_steps && tuner->state.n_changing < most) {
		const struct planner_step *step = &tuner->steps[tuner->next_step];
		int r = start_change(tuner, tuner->model_of[step->tensor],
				     tuner->tensor_of[step->tensor], step->to.form);

		if (r == STORE_E_BUDGET)
			return; /* later, when a change under way has given room, or clients unmapped */
		tuner->next_step++;
	}
}

bool tuner_may_shrink(const struct tuner *tuner)
{
	const struct model *model;

	if (!tuner->state.enabled || tuner->state.policy.frozen)
		return false;
	TAILQ_FOREACH(model, &tuner->store->models, link) {
		for (uint32_t i = 0; is_tuned(model) && i < model->tuned->n_tensors; i++) {
			const struct tuned_tensor *tensor = &model->tuned->tensors[i];

			for (unsigned f = 0; tensor->sampled && f < tensor->n_forms; f++)
				if (tensor->forms[f].bytes < tensor->forms[tensor->current].bytes)
					return true;
		}
	}
	return false;
}

/* --- the clock -------------------------------------------------------------------------------- */

/* Decoding as it goes now, against what the samples promised. */
static void measure_decoding(struct tuner *tuner)
{
	struct store *store = tuner->store;
	uint64_t busy = pool_busy_ns(store->decoders, POOL_DEMAND) +
			pool_busy_ns(store->decoders, POOL_AHEAD);
	uint64_t n_bytes = store->stats.decoded_total_bytes - tuner->seen.n_bytes;
	double expected = 0, total = 0, now;
	const struct model *model;

	TAILQ_FOREACH(model, &store->models, link) {
		for (uint32_t i = 0; is_tuned(model) && i < model->tuned->n_tensors; i++) {
			const struct tuned_tensor *tensor = &model->tuned->tensors[i];

			if (!tensor->sampled || !tensor->current)
				continue;
			expected += tensor->rate * tensor->forms[tensor->current].decode_ns;
			total += tensor->rate;
		}
	}
	if (n_bytes >= 16 << 20 && total > 0 && expected > 0) {
		now = (double)(busy - tuner->seen.busy_ns) / (double)n_bytes / (expected / total);
		now = fmin(fmax(now, 0.5), 8);
		tuner->state.host.slowdown += 0.3 * (now - tuner->state.host.slowdown);
	}
	if (n_bytes >= 16 << 20 || busy == tuner->seen.busy_ns) {
		tuner->seen.busy_ns = busy;
		tuner->seen.n_bytes = store->stats.decoded_total_bytes;
	}
}

static void plan(struct tuner *tuner, uint64_t now)
{
	struct planner_plan made;
	uint64_t spent;
	int r = make_plan(tuner, now, &made);

	spent = clock_now_ns() - now;
	tuner->state.n_runs++;
	tuner->state.run_ns += spent;
	tuner->next_ns = now + max_u64(INTERVAL_NS, OVERHEAD * spent);
	tuner->n_steps = tuner->next_step = 0;
	tuner->choices = r < 0 ? NULL : made.choices;
	if (r < 0)
		return;
	tuner->state.stall_now = made.stall_now;
	tuner->state.stall_planned = made.stall_planned;
	tuner->state.n_deferred = made.n_deferred;
	tuner->state.plan_budget = tuner->input.host.budget_bytes;
	tuner->state.plan_pinned = tuner->input.host.pinned_bytes;
	tuner->state.plan_headroom = tuner->input.host.headroom_bytes;
	tuner->state.plan_stored = made.stored_bytes;
	tuner->state.plan_window = made.window_bytes;
	tuner->state.plan_kept = made.kept;
	tuner->state.plan_satisfied = made.satisfied;
	tuner->state.plan_fits = r == 0;
	for (uint32_t i = 0; i < made.n_steps && i < tuner->max_tensors; i++)
		if (made.steps[i].to.form != tuner->tensors[made.steps[i].tensor].current)
			tuner->steps[tuner->n_steps++] = made.steps[i];
	start_steps(tuner);
}

void tuner_hurry(struct tuner *tuner)
{
	if (tuner->state.enabled && !tuner->stopping)
		plan(tuner, clock_now_ns());
}

void tuner_tick(struct tuner *tuner, uint64_t now)
{
	struct store *store = tuner->store;
	double seconds = (double)(now - tuner->seen_ns) * 1e-9, cores;
	struct model *model;
	struct budget budget;

	if (tuner->stopping || seconds < 0.2)
		return;
	tuner->seen_ns = now;
	rates_update(store, seconds, &tuner->state.waited);
	cores = rates_cores(store, seconds);
	tuner->state.host.cores_free += 0.3 * (cores - tuner->state.host.cores_free);
	measure_decoding(tuner);
	tuner->state.n_unsampled = 0;
	TAILQ_FOREACH(model, &store->models, link)
		if (is_tuned(model))
			tuner->state.n_unsampled += model->tuned->n_tensors - model->tuned->n_sampled;
	start_sample(tuner);
	budget_get(&store->budget, &budget);
	if (budget.total > budget.limit)
		(void)store_make_room(store, NULL, 0);
	store_retry_waiting(store); /* memory may have come free where nobody told */
	if (!tuner->state.enabled)
		store->reserve_bytes = 0;
	else if (now >= tuner->next_ns)
		plan(tuner, now);
}
