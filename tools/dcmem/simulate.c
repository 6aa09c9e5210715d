/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs the planner on a described host, second after second, until each phase of load has settled;
 * throughput is the least that cores, memory bandwidth and waiting clients allow (docs/planner.md).
 * Owns the generated tensors; refuses traces with numbers out of range. Main thread.
 */
#include "simulate.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/message.h"

#define GB	    1e9
#define MIB	    1048576.0
#define MAX_TENSORS 200000
#define MAX_PHASES  1000
#define MAX_SECONDS 600 /* of one phase */
#define SETTLED_S   35	/* longer than the dwell time of the policy: nothing can come after it */

struct host {
	double cores, bandwidth, thread_bandwidth;
	double headroom; /* of the budget, for changes */
};

struct load {
	double budget, clients, client_rate, zipf, tensor_zipf, sweep, hot, share, shift;
};

struct sim {
	struct host host;
	double consume_ns;
	uint64_t limit_bytes;
	struct planner *planner;
	struct planner_input input;
	struct planner_model *models;
	struct planner_tensor *tensors;
	struct planner_form *forms;
	double *demand; /* [model], bytes a second */
	uint32_t n_each; /* tensors of a model */
	uint64_t smallest_budget;
	struct load load;
};

/* A number of the trace, or `otherwise` where there is none (NAN: it must be there). */
static int number(const json_t *object, const char *key, double otherwise, double lo, double hi,
		  double *ret)
{
	const json_t *value = json_object_get(object, key);
	double x = value ? json_number_value(value) : otherwise;

	if (value && !json_is_number(value))
		return message_set(-EINVAL, "trace: %s is not a number", key);
	if (isnan(x))
		return message_set(-EINVAL, "trace: %s is missing", key);
	if (x < lo || x > hi)
		return message_set(-EINVAL, "trace: %s is %g, not from %g to %g", key, x, lo, hi);
	*ret = x;
	return 0;
}

static double zipf_sum(uint32_t n, double exponent)
{
	double sum = 0;

	for (uint32_t i = 0; i < n; i++)
		sum += pow(i + 1, -exponent);
	return sum;
}

static int read_host(struct sim *sim, const json_t *root)
{
	const json_t *host = json_object_get(root, "host");
	double channels, gbs, thread_gbs, limit;
	int r;

	if ((r = number(host, "cores", NAN, 1, 65536, &sim->host.cores)) ||
	    (r = number(host, "channels", NAN, 1, 1024, &channels)) ||
	    (r = number(host, "channel_gbs", NAN, 0.1, 10000, &gbs)) ||
	    (r = number(host, "thread_gbs", NAN, 0.01, 10000, &thread_gbs)) ||
	    (r = number(host, "headroom", 0.02, 0, 0.5, &sim->host.headroom)) ||
	    (r = number(host, "change_mib_per_second", 1024, 1, 1e9, &limit)))
		return r;
	sim->host.bandwidth = channels * gbs * GB;
	sim->host.thread_bandwidth = thread_gbs * GB;
	sim->limit_bytes = (uint64_t)(limit * MIB);
	return 0;
}

static int read_form(const json_t *item, uint64_t n_bytes, struct planner_form *ret_form)
{
	const char *name = json_string_value(json_object_get(item, "class"));
	double ratio, decode, encode;
	unsigned class = 0;
	int r;

	while (class < PLANNER_N_CLASSES && name && strcmp(planner_class_name(class), name) != 0)
		class++;
	if (!name || class == PLANNER_N_CLASSES)
		return message_set(-EINVAL, "trace: a form's class is raw, fast, work or dense");
	if ((r = number(item, "ratio", NAN, 0.5, 1000, &ratio)) ||
	    (r = number(item, "decode_gbs", class == PLANNER_RAW ? 0 : NAN, 0, 10000, &decode)) ||
	    (r = number(item, "encode_gbs", NAN, 0.0001, 10000, &encode)))
		return r;
	if (class != PLANNER_RAW && decode <= 0)
		return message_set(-EINVAL, "trace: decode_gbs of a coded form is 0");
	*ret_form = (struct planner_form){.bytes = (uint64_t)((double)n_bytes / ratio),
					  .decode_ns = (float)(decode > 0 ? 1 / decode : 0),
					  .encode_ns = (float)(1 / encode),
					  .class = (uint8_t)class};
	return 0;
}

static int read_models(struct sim *sim, const json_t *root)
{
	const json_t *models = json_object_get(root, "models"), *forms = json_object_get(root, "forms");
	size_t n_forms = json_array_size(forms);
	double count, n_each, mib, unit_mib;
	uint32_t n_tensors;
	int r;

	if (n_forms == 0 || n_forms > PLANNER_MAX_FORMS)
		return message_set(-EINVAL, "trace: 1 to %u forms", PLANNER_MAX_FORMS);
	if ((r = number(models, "count", NAN, 1, 10000, &count)) ||
	    (r = number(models, "tensors", NAN, 1, MAX_TENSORS, &n_each)) ||
	    (r = number(models, "tensor_mib", NAN, 0.001, 65536, &mib)) ||
	    (r = number(models, "unit_mib", 2, 0.001, 65536, &unit_mib)) ||
	    (r = number(models, "consume_ns", 0, 0, 1e6, &sim->consume_ns)))
		return r;
	if (floor(count) * floor(n_each) > MAX_TENSORS)
		return message_set(-EINVAL, "trace: more than %u tensors", MAX_TENSORS);
	sim->n_each = (uint32_t)n_each;
	sim->input.n_models = (uint32_t)count;
	n_tensors = sim->input.n_tensors = sim->input.n_models * sim->n_each;
	sim->input.n_forms = (uint32_t)n_forms; /* all tensors have the same */
	sim->models = memory_array(sim->input.n_models, sizeof(*sim->models));
	sim->demand = memory_array(sim->input.n_models, sizeof(*sim->demand));
	sim->tensors = memory_array(n_tensors, sizeof(*sim->tensors));
	sim->forms = memory_array(n_forms, sizeof(*sim->forms));
	if (!sim->models || !sim->demand || !sim->tensors || !sim->forms)
		return -ENOMEM;
	for (size_t f = 0; f < n_forms; f++) {
		r = read_form(json_array_get(forms, f), (uint64_t)(mib * MIB), &sim->forms[f]);
		if (r)
			return r;
	}
	for (uint32_t m = 0; m < sim->input.n_models; m++)
		sim->models[m] = (struct planner_model){
			.weight = 1, .unit_bytes = (uint64_t)(unit_mib * MIB), .consume_ns = (float)sim->consume_ns,
			.floor = PLANNER_DENSE, .ceiling = PLANNER_RAW, .pin = PLANNER_NO_CLASS};
	for (uint32_t t = 0; t < n_tensors; t++)
		sim->tensors[t] = (struct planner_tensor){
			.bytes = (uint64_t)(mib * MIB), .model = t / sim->n_each,
			.n_forms = (uint8_t)n_forms, .current = PLANNER_NO_FORM,
			.current_replicas = 1, .age_s = 1e6f};
	return planner_new(n_tensors, sim->input.n_models, &sim->planner);
}

static int read_load(const json_t *item, struct load *ret_load)
{
	struct load load;
	double gib, gbs;
	int r;

	if ((r = number(item, "budget_gib", NAN, 0, 1e6, &gib)) ||
	    (r = number(item, "clients", NAN, 0, 1e6, &load.clients)) ||
	    (r = number(item, "client_gbs", NAN, 0, 1e4, &gbs)) ||
	    (r = number(item, "model_zipf", 0, 0, 10, &load.zipf)) ||
	    (r = number(item, "tensor_zipf", 0, 0, 10, &load.tensor_zipf)) ||
	    (r = number(item, "sweep", 1, 0, 1, &load.sweep)) ||
	    (r = number(item, "hot", 1, 0, 1, &load.hot)) ||
	    (r = number(item, "share", 1, 1, 1e6, &load.share)) ||
	    (r = number(item, "shift", 0, 0, 1e6, &load.shift)))
		return r;
	load.budget = gib * 1024 * MIB;
	load.client_rate = gbs * GB;
	*ret_load = load;
	return 0;
}

/* Rates of every tensor; the cores that are left once readers have computed. */
static void set_load(struct sim *sim)
{
	const struct load *load = &sim->load;
	double models_sum = zipf_sum(sim->input.n_models, load->zipf);
	double tensors_sum = zipf_sum(sim->n_each, load->tensor_zipf), total;
	double read_ns = 1e9 / sim->host.thread_bandwidth, readers;

	total = load->clients * load->client_rate;
	for (uint32_t m = 0; m < sim->input.n_models; m++) {
		uint32_t rank = (m + (uint32_t)load->shift) % sim->input.n_models;
		double part = pow(rank + 1, -load->zipf) / models_sum;

		sim->demand[m] = total * part;
		sim->models[m].streams = (float)fmax(1, load->clients * part * load->sweep / load->share);
	}
	for (uint32_t t = 0; t < sim->input.n_tensors; t++) {
		struct planner_tensor *tensor = &sim->tensors[t];
		double demand = sim->demand[tensor->model];
		double swept = demand * load->sweep / sim->n_each;
		double random = demand * (1 - load->sweep) *
				pow(t % sim->n_each + 1, -load->tensor_zipf) / tensors_sum;

		tensor->rate = (float)(swept + random);
		tensor->order = (float)(swept + random > 0 ? swept / (swept + random) : 1);
		tensor->hot = (float)load->hot;
		tensor->share = (float)load->share;
	}
	readers = total * (read_ns + sim->consume_ns) / 1e9;
	planner_policy_init(&sim->input.policy);
	sim->input.policy.limit_bytes = sim->limit_bytes;
	sim->input.host = (struct planner_host){
		.budget_bytes = (uint64_t)load->budget,
		.headroom_bytes = (uint64_t)(load->budget * sim->host.headroom),
		.cores_free = fmax(sim->host.cores - readers, 0.05 * sim->host.cores),
		.read_ns = read_ns, .remote_factor = 1, .file_ns = 0.5, .n_nodes = 1};
	sim->input.models = sim->models;
	sim->input.tensors = sim->tensors;
	sim->input.forms = sim->forms;
}

/* Of a plan: the least that clients, cores and memory allow. `choices` NULL: what is held now. */
static double throughput(const struct sim *sim, const struct planner_choice *choices,
			 const char **ret_limit)
{
	double share = sim->load.share, own = sim->consume_ns + 1e9 / sim->host.thread_bandwidth;
	double cores = 0, traffic = 0, total = 0, demand = 0, by_cores, by_memory, bound, at_clients = 0;

	for (uint32_t m = 0; m < sim->input.n_models; m++) {
		double waited = 0, speed;

		for (uint32_t t = m * sim->n_each; t < (m + 1) * sim->n_each; t++) {
			const struct planner_tensor *tensor = &sim->tensors[t];
			unsigned f = choices ? choices[t].form : tensor->current;
			bool window = choices ? choices[t].window : tensor->current_window;
			double d = sim->forms[f].decode_ns, rate = tensor->rate, order = tensor->order;
			double ratio = (double)sim->forms[f].bytes / (double)tensor->bytes;
			double coded = d > 0 ? (window ? order : 1) : 0; /* part that is decoded */

			cores += rate * (own + coded * d / share) / 1e9;
			traffic += rate * (1 + coded * (1 + ratio) / share);
			waited += window ? 0 : rate * (1 - order) * d;
		}
		speed = sim->demand[m] > 0 ? 1e9 / (own + waited / sim->demand[m]) : 0;
		at_clients += sim->demand[m] * fmin(1, speed / fmax(sim->load.client_rate, 1));
		demand += sim->demand[m];
	}
	by_cores = cores > 0 ? sim->host.cores / cores : 1;
	by_memory = traffic > 0 ? sim->host.bandwidth / traffic : 1;
	bound = demand * fmin(by_cores, by_memory);
	total = fmin(at_clients, bound);
	*ret_limit = total >= 0.999 * demand ? "demand"
		     : at_clients < bound    ? "waiting"
		     : by_cores < by_memory  ? "cores"
					     : "memory";
	return total;
}

/* The best of the plans that hold everything in one class, in the smallest budget of the trace. */
static int best_static(struct sim *sim, struct simulation_phase *phase)
{
	phase->best_class = -1;
	for (unsigned f = 0; f < sim->input.n_forms; f++) {
		uint64_t n_bytes = sim->forms[f].bytes * sim->input.n_tensors;
		struct planner_choice *choices;
		const char *limit;
		double found;

		if (n_bytes > sim->smallest_budget)
			continue;
		choices = memory_array(sim->input.n_tensors, sizeof(*choices));
		if (!choices)
			return -ENOMEM;
		for (uint32_t t = 0; t < sim->input.n_tensors; t++)
			choices[t] = (struct planner_choice){.form = (uint8_t)f, .replicas = 1};
		found = throughput(sim, choices, &limit);
		memory_free(choices);
		if (phase->best_class < 0 || found > phase->best_static) {
			phase->best_static = found;
			phase->best_class = sim->forms[f].class;
		}
	}
	return 0;
}

/* The steps of a plan happen; a second passes. */
static void carry_out(struct sim *sim, const struct planner_plan *plan)
{
	for (uint32_t t = 0; t < sim->input.n_tensors; t++) {
		sim->tensors[t].age_s += 1;
		sim->tensors[t].current_window = plan->choices[t].window;
	}
	for (uint32_t s = 0; s < plan->n_steps; s++) {
		struct planner_tensor *tensor = &sim->tensors[plan->steps[s].tensor];

		tensor->current = plan->steps[s].to.form;
		tensor->age_s = 0;
	}
}

static int run_phase(struct sim *sim, struct simulation_phase *phase)
{
	uint32_t quiet = 0;
	bool deferred = false;
	int r;

	set_load(sim);
	phase->budget_bytes = sim->input.host.budget_bytes;
	phase->demand = sim->load.clients * sim->load.client_rate;
	phase->fits = true;
	if (sim->tensors[0].current == PLANNER_NO_FORM) { /* loaded as small as they can be */
		unsigned smallest = 0;

		for (unsigned f = 1; f < sim->input.n_forms; f++)
			if (sim->forms[f].bytes < sim->forms[smallest].bytes)
				smallest = f;
		for (uint32_t t = 0; t < sim->input.n_tensors; t++)
			sim->tensors[t].current = (uint8_t)smallest;
	}
	for (uint32_t second = 0; second < MAX_SECONDS && quiet < SETTLED_S; second++) {
		struct planner_plan plan;

		r = planner_run(sim->planner, &sim->input, &plan);
		if (r < 0)
			return r;
		phase->fits = r == 0;
		quiet = plan.n_steps ? 0 : quiet + 1;
		if (plan.n_steps)
			phase->settled_s = second + 1;
		phase->n_changes += plan.n_steps;
		phase->held_bytes = plan.window_bytes;
		deferred = plan.n_deferred > 0;
		carry_out(sim, &plan);
	}
	phase->settled = quiet >= SETTLED_S && !deferred;
	for (uint32_t t = 0; t < sim->input.n_tensors; t++) {
		const struct planner_form *form = &sim->forms[sim->tensors[t].current];

		phase->class_bytes[form->class] += form->bytes;
		phase->held_bytes += form->bytes;
	}
	phase->throughput = throughput(sim, NULL, &phase->limit);
	return best_static(sim, phase);
}

static int run(struct sim *sim, const json_t *root, struct simulation *simulation)
{
	const json_t *phases = json_object_get(root, "phases"), *item;
	size_t n_phases = json_array_size(phases), i;
	int r;

	if (n_phases == 0 || n_phases > MAX_PHASES)
		return message_set(-EINVAL, "trace: 1 to %u phases", MAX_PHASES);
	if ((r = read_host(sim, root)) || (r = read_models(sim, root)))
		return r;
	simulation->phases = memory_array(n_phases, sizeof(*simulation->phases));
	if (!simulation->phases)
		return -ENOMEM;
	simulation->n_tensors = sim->input.n_tensors;
	simulation->n_models = sim->input.n_models;
	sim->smallest_budget = UINT64_MAX;
	json_array_foreach(phases, i, item)
	{
		r = read_load(item, &sim->load);
		if (r)
			return r;
		if (sim->load.budget < (double)sim->smallest_budget)
			sim->smallest_budget = (uint64_t)sim->load.budget;
	}
	json_array_foreach(phases, i, item)
	{
		const char *name = json_string_value(json_object_get(item, "name"));
		struct simulation_phase *phase = &simulation->phases[i];

		snprintf(phase->name, sizeof(phase->name), "%s", name ? name : "-");
		r = read_load(item, &sim->load);
		if (!r)
			r = run_phase(sim, phase);
		if (r)
			return r;
		simulation->n_phases++;
	}
	return 0;
}

int simulation_run(const char *path, struct simulation *ret_simulation)
{
	struct simulation simulation = {0};
	struct sim sim = {0};
	json_error_t error;
	json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error);
	int r;

	if (!root)
		return message_set(-EINVAL, "%s, line %d: %s", path, error.line, error.text);
	r = run(&sim, root, &simulation);
	json_decref(root);
	planner_free(sim.planner);
	memory_free(sim.models);
	memory_free(sim.demand);
	memory_free(sim.tensors);
	memory_free(sim.forms);
	if (r) {
		simulation_deinit(&simulation);
		return r;
	}
	*ret_simulation = simulation;
	return 0;
}

void simulation_deinit(struct simulation *simulation)
{
	simulation->phases = memory_free(simulation->phases);
}
