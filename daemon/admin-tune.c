/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command "tune": what the daemon aims at, for all and a model, and why each tensor is held as it
 * is. Changes what was given and answers with all of it. Refuses unknown names and values out of
 * range; then nothing was changed. Loop thread.
 */
#include <errno.h>
#include <jansson.h>
#include <string.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "daemon/admin-impl.h"
#include "daemon/tuner.h"
#include "dcmem/dcmem.h"

#define MAX_EXPLAINED 2000 /* a reply; "first" asks for the rest */

static void put(json_t *object, const char *name, json_t *value)
{
	json_object_set_new(object, name, value);
}

static json_t *whole(uint64_t value)
{
	return json_integer((json_int_t)value);
}

/* --- reading the command ---------------------------------------------------------------------- */

static int want_class(const json_t *command, const char *key, uint8_t *class)
{
	const char *text = NULL;
	int r = admin_string(command, key, false, &text);

	if (r || !text)
		return r;
	for (unsigned i = 0; i < PLANNER_N_CLASSES; i++) {
		if (!strcmp(text, planner_class_name(i))) {
			*class = (uint8_t)i;
			return 0;
		}
	}
	if (!strcmp(text, "none")) {
		*class = !strcmp(key, "floor")	  ? PLANNER_DENSE
			 : !strcmp(key, "ceiling") ? PLANNER_RAW
						   : PLANNER_NO_CLASS;
		return 0;
	}
	return message_set(DCMEM_E_INVALID, "\"%s\" is raw, fast, work, dense or none", key);
}

static int want_bool(const json_t *command, const char *key, bool *value)
{
	const json_t *member = json_object_get(command, key);

	if (!member)
		return 0;
	if (!json_is_boolean(member))
		return message_set(DCMEM_E_INVALID, "\"%s\" must be true or false", key);
	*value = json_is_true(member);
	return 0;
}

static int want_objective(const json_t *command, struct store_tuning *tuning)
{
	const char *text = NULL;
	int r = admin_string(command, "objective", false, &text);

	if (r || !text)
		return r;
	tuning->tune = strcmp(text, "off") != 0;
	if (!tuning->tune)
		return 0;
	for (unsigned i = 0; i < PLANNER_N_OBJECTIVES; i++) {
		if (!strcmp(text, planner_objective_name(i))) {
			tuning->objective = i;
			return 0;
		}
	}
	return message_set(DCMEM_E_INVALID, "\"objective\" is latency, balanced, memory or off");
}

/* A number of bytes, or text like "4GiB". */
static int want_size(const json_t *command, const char *key, uint64_t *size)
{
	const json_t *member = json_object_get(command, key);

	if (!json_is_string(member))
		return admin_number(command, key, *size, size);
	return config_set_bytes(size, key, json_string_value(member)) ? DCMEM_E_INVALID : 0;
}

static int want_tuning(const json_t *command, struct store_tuning *tuning)
{
	uint64_t background = tuning->background;
	int r = want_objective(command, tuning);

	if (!r)
		r = want_size(command, "budget", &tuning->budget_bytes);
	if (!r)
		r = admin_number(command, "background", background, &background);
	tuning->background = (uint32_t)min_u64(background, 1000);
	return r;
}

static int want_policy(const json_t *command, struct planner_model *policy)
{
	const json_t *weight = json_object_get(command, "weight");
	int r = want_class(command, "floor", &policy->floor);

	if (!r)
		r = want_class(command, "ceiling", &policy->ceiling);
	if (!r)
		r = want_class(command, "pin", &policy->pin);
	if (!r)
		r = want_size(command, "limit", &policy->max_bytes);
	if (!r && weight) {
		if (!json_is_number(weight) || json_number_value(weight) < 0 ||
		    json_number_value(weight) > 1e6)
			return message_set(DCMEM_E_INVALID, "\"weight\" is a number from 0 to 10^6");
		policy->weight = (float)json_number_value(weight);
	}
	return r;
}

static bool has_any(const json_t *command, const char *const *keys)
{
	for (; *keys; keys++)
		if (json_object_get(command, *keys))
			return true;
	return false;
}

/* --- writing the answer ------------------------------------------------------------------------ */

static json_t *policy_of(const struct planner_model *policy)
{
	json_t *o = json_object();

	put(o, "weight", json_real(policy->weight));
	put(o, "pin", json_string(policy->pin == PLANNER_NO_CLASS ? "none"
								  : planner_class_name(policy->pin)));
	put(o, "floor", json_string(planner_class_name(policy->floor)));
	put(o, "ceiling", json_string(planner_class_name(policy->ceiling)));
	put(o, "limit", whole(policy->max_bytes));
	put(o, "frozen", json_boolean(policy->frozen));
	return o;
}

static json_t *history_of(const struct tuner_state *state)
{
	uint32_t n = (uint32_t)min_u64(state->n_history, TUNER_HISTORY);
	uint64_t now = clock_now_ns();
	json_t *list = json_array();

	for (uint32_t i = 1; i <= n; i++) { /* the newest first */
		const struct tuner_change *change =
			&state->history[(state->n_history - i) % TUNER_HISTORY];
		json_t *o = json_object();

		put(o, "seconds_ago", json_real((double)(now - change->at_ns) * 1e-9));
		put(o, "model", json_string(change->model));
		put(o, "tensor", whole(change->tensor));
		put(o, "from", json_string(planner_class_name(change->from)));
		put(o, "to", json_string(planner_class_name(change->to)));
		put(o, "n_bytes", whole(change->bytes));
		put(o, "stored_bytes", whole(change->stored_bytes));
		put(o, "busy_ms", json_real((double)change->busy_ns * 1e-6));
		put(o, "ok", json_boolean(change->result == 0));
		json_array_append_new(list, o);
	}
	return list;
}

static json_t *plan_of(const struct tuner_state *state)
{
	json_t *o = json_object();

	put(o, "budget", whole(state->plan_budget));
	put(o, "pinned", whole(state->plan_pinned));
	put(o, "headroom", whole(state->plan_headroom));
	put(o, "stored", whole(state->plan_stored));
	put(o, "window", whole(state->plan_window));
	put(o, "kept", json_boolean(state->plan_kept));
	put(o, "satisfied", json_boolean(state->plan_satisfied));
	put(o, "fits", json_boolean(state->plan_fits));
	put(o, "deferred", whole(state->n_deferred));
	return o;
}

static json_t *state_of(const struct store *store)
{
	const struct tuner_state *state = store_tuner_state(store);
	struct store_tuning tuning;
	json_t *o = json_object();

	store_get_tuning(store, &tuning);
	put(o, "ok", json_true());
	put(o, "objective",
	    json_string(tuning.tune ? planner_objective_name(tuning.objective) : "off"));
	put(o, "frozen", json_boolean(tuning.frozen));
	put(o, "budget", whole(tuning.budget_bytes));
	put(o, "background", whole(tuning.background));
	put(o, "plans", whole(state->n_runs));
	put(o, "changes", whole(state->n_changes));
	put(o, "failed", whole(state->n_failed));
	put(o, "changed_bytes", whole(state->changed_bytes));
	put(o, "changing", whole(state->n_changing));
	put(o, "unsampled", whole(state->n_unsampled));
	put(o, "planning_ms", json_real((double)state->run_ns * 1e-6));
	put(o, "changing_ms", json_real((double)state->busy_ns * 1e-6));
	put(o, "cores_free", json_real(state->host.cores_free));
	put(o, "read_gbs", json_real(1 / state->host.read_ns));
	put(o, "slowdown", json_real(state->host.slowdown));
	put(o, "waited", json_real(state->waited));
	put(o, "stall_now", json_real(state->stall_now));
	put(o, "stall_planned", json_real(state->stall_planned));
	put(o, "plan", plan_of(state));
	put(o, "history", history_of(state));
	return o;
}

static void visit_explained(void *data, const struct store_explained *e)
{
	json_t *o = json_object(), *next;

	put(o, "id", whole(e->tensor));
	put(o, "name", json_string(e->name));
	put(o, "n_bytes", whole(e->n_bytes));
	put(o, "stored_bytes", whole(e->stored_bytes));
	put(o, "codec", whole(e->codec));
	put(o, "rate", json_real(e->rate));
	put(o, "changes", whole(e->n_changes));
	put(o, "changing", json_boolean(e->changing));
	put(o, "why", json_string(e->text));
	if (e->is_planned) {
		put(o, "held", json_string(planner_class_name(e->now)));
		put(o, "chosen", json_string(planner_class_name(e->chosen)));
		put(o, "stall", json_real(e->reasons.stall));
		if (e->reasons.has_next) {
			next = json_object();
			put(next, "form", json_string(planner_class_name(e->next)));
			put(next, "bytes", whole(e->reasons.next_bytes));
			put(next, "gain", json_real(e->reasons.next_gain));
			put(o, "next", next);
		}
	}
	json_array_append_new(data, o);
}

static int add_model(const struct store *store, const char *model, json_t *reply)
{
	struct planner_model policy;
	int r = store_get_model_policy(store, model, &policy);

	if (r)
		return r;
	put(reply, "model", json_string(model));
	put(reply, "policy", policy_of(&policy));
	return 0;
}

static int add_explained(struct store *store, const json_t *command, const char *model,
			 json_t *reply)
{
	uint64_t first = 0, count = MAX_EXPLAINED, n = 0;
	json_t *list = json_array();
	int r = admin_number(command, "first", 0, &first);

	if (!r)
		r = admin_number(command, "count", MAX_EXPLAINED, &count);
	count = min_u64(count, MAX_EXPLAINED);
	if (!r)
		r = store_explain(store, model, first, count, visit_explained, list, &n);
	if (r) {
		json_decref(list);
		return r;
	}
	put(reply, "n_tensors", whole(n));
	put(reply, "tensors", list);
	if (first < n && count < n - first)
		put(reply, "next", whole(first + count));
	return 0;
}

/* --- the command -------------------------------------------------------------------------------- */

/* With "tensors", "pin" is of those alone, and nothing else is set. */
static int pin_tensors(struct admin_request *request, const json_t *command, const char *model)
{
	static const char *const others[] = {"objective", "budget", "background", "frozen", "weight",
					     "floor", "ceiling", "limit", NULL};
	const char *pattern = json_string_value(json_object_get(command, "tensors"));
	uint8_t class = PLANNER_NO_CLASS;
	uint64_t n;
	int r = admin_check_rights(request);

	if (!r && (!pattern || !model || !json_object_get(command, "pin") || has_any(command, others)))
		r = message_set(DCMEM_E_INVALID, "\"tensors\" is a pattern of names, like "
						 "\"*.down_proj.weight\", for a \"model\" and a "
						 "\"pin\", and nothing else");
	if (!r)
		r = want_class(command, "pin", &class);
	return r ? r : store_pin_tensors(request->server->store, model, pattern, class, &n);
}

static int change(struct admin_request *request, const json_t *command, const char *model)
{
	static const char *const all_keys[] = {"objective", "budget", "background", NULL};
	static const char *const model_keys[] = {"weight", "pin", "floor", "ceiling", "limit", NULL};
	struct store *store = request->server->store;
	bool for_all = has_any(command, all_keys), for_model = has_any(command, model_keys);
	bool freezes = json_object_get(command, "frozen") != NULL;
	struct planner_model policy;
	struct store_tuning tuning;
	int r;

	if (json_object_get(command, "tensors"))
		return pin_tensors(request, command, model);
	if (!for_all && !for_model && !freezes)
		return 0;
	r = admin_check_rights(request);
	if (!r && for_model && !model)
		r = message_set(DCMEM_E_INVALID,
				"weight, pin, floor, ceiling and limit are of a \"model\"");
	store_get_tuning(store, &tuning);
	if (!r)
		r = want_tuning(command, &tuning);
	if (!r && model)
		r = store_get_model_policy(store, model, &policy);
	if (!r && model)
		r = want_policy(command, &policy);
	if (!r)
		r = want_bool(command, "frozen", model ? &policy.frozen : &tuning.frozen);
	if (!r && model && (for_model || freezes))
		r = store_set_model_policy(store, model, &policy);
	if (!r && (for_all || (freezes && !model)))
		r = store_set_tuning(store, &tuning);
	return r;
}

int admin_tune(struct admin_request *request, const json_t *command)
{
	struct store *store = request->server->store;
	const char *model = NULL;
	bool explain = false;
	json_t *reply;
	int r = admin_name(command, "model", false, &model);

	if (!r)
		r = want_bool(command, "explain", &explain);
	if (!r && explain && !model)
		r = message_set(DCMEM_E_INVALID, "\"explain\" is of a \"model\"");
	if (!r)
		r = change(request, command, model);
	if (r)
		return r;
	reply = state_of(store);
	if (model)
		r = add_model(store, model, reply);
	if (!r && explain)
		r = add_explained(store, command, model, reply);
	if (r) {
		json_decref(reply);
		return r;
	}
	request->reply = admin_dump(reply);
	return 0;
}
