/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The planner: against the optimum of every small case, found by trying all plans with a cost
 * written anew from docs/planner.md; and what must hold for any input.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/memory.h"
#include "planner/planner.h"

#define MIB (1ULL << 20)

static uint64_t random_state;

static uint64_t random_u64(void)
{
	uint64_t z = random_state += 0x9e3779b97f4a7c15ULL; /* splitmix64 */

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
	return z ^ (z >> 31);
}

static double random_unit(void)
{
	return (double)(random_u64() >> 11) / 9007199254740992.0;
}

static uint32_t random_below(uint32_t n)
{
	return (uint32_t)(random_u64() % n);
}

/* A host, models and tensors with the ladder that the codecs give. */
struct world {
	struct planner_input input;
	struct planner_model *models;
	struct planner_tensor *tensors;
	struct planner_form *forms;
	struct planner *planner;
};

static const struct planner_form ladder[4] = {
	{.class = PLANNER_RAW, .decode_ns = 0, .encode_ns = 0.1f},
	{.class = PLANNER_FAST, .decode_ns = 0.1f, .encode_ns = 0.5f},
	{.class = PLANNER_WORK, .decode_ns = 0.25f, .encode_ns = 2},
	{.class = PLANNER_DENSE, .decode_ns = 1.5f, .encode_ns = 20},
};
static const double ladder_ratio[4] = {1, 1.4, 1.9, 2.2};

static void world_init(struct world *world, uint32_t n_tensors, uint32_t n_models)
{
	memset(world, 0, sizeof(*world));
	world->models = memory_array(n_models, sizeof(*world->models));
	world->tensors = memory_array(n_tensors, sizeof(*world->tensors));
	world->forms = memory_array(n_tensors * 4, sizeof(*world->forms));
	assert_non_null(world->models);
	assert_non_null(world->tensors);
	assert_non_null(world->forms);
	assert_int_equal(planner_new(n_tensors, n_models, &world->planner), 0);
	planner_policy_init(&world->input.policy);
	world->input.host = (struct planner_host){
		.cores_free = 4, .read_ns = 0.05, .remote_factor = 1, .file_ns = 0.5, .n_nodes = 1};
	for (uint32_t m = 0; m < n_models; m++)
		world->models[m] = (struct planner_model){
			.weight = 1, .streams = 1, .floor = PLANNER_DENSE, .pin = PLANNER_NO_CLASS,
			.unit_bytes = MIB};
	for (uint32_t t = 0; t < n_tensors; t++) {
		struct planner_tensor *tensor = &world->tensors[t];

		*tensor = (struct planner_tensor){
			.bytes = 16 * MIB, .model = t % n_models, .first_form = t * 4,
			.n_forms = 4, .current = 2, .current_replicas = 1, .rate = 1e9,
			.share = 1, .order = 1, .hot = 1, .age_s = 1000};
		for (unsigned f = 0; f < 4; f++) {
			world->forms[t * 4 + f] = ladder[f];
			world->forms[t * 4 + f].bytes =
				(uint64_t)((double)tensor->bytes / ladder_ratio[f]);
		}
	}
	world->input.models = world->models;
	world->input.tensors = world->tensors;
	world->input.forms = world->forms;
	world->input.n_models = n_models;
	world->input.n_tensors = n_tensors;
	world->input.n_forms = n_tensors * 4;
	world->input.host.budget_bytes = n_tensors * 12 * MIB;
}

static void world_deinit(struct world *world)
{
	memory_free(world->models);
	memory_free(world->tensors);
	memory_free(world->forms);
	planner_free(world->planner);
}

static void set_bytes(struct world *world, uint32_t t, uint64_t n_bytes)
{
	world->tensors[t].bytes = n_bytes;
	for (unsigned f = 0; f < 4; f++)
		world->forms[t * 4 + f].bytes =
			f == 0 ? n_bytes
			       : (uint64_t)((double)n_bytes / (ladder_ratio[f] + 0.2 * random_unit()));
}

/* What the actuator would do: the steps of the plan happen. */
static void carry_out(struct world *world, const struct planner_plan *plan)
{
	for (uint32_t t = 0; t < world->input.n_tensors; t++) {
		world->tensors[t].current_window = plan->choices[t].window;
		world->tensors[t].age_s += 1;
	}
	for (uint32_t s = 0; s < plan->n_steps; s++) {
		struct planner_tensor *tensor = &world->tensors[plan->steps[s].tensor];

		tensor->current = plan->steps[s].to.form;
		tensor->current_replicas = plan->steps[s].to.replicas;
		tensor->age_s = 0;
	}
}

/* The cost of docs/planner.md, for one node: bytes, weighted time, work, weighted work. */
struct sums {
	double bytes, time, work, weighted;
};

static struct sums cost_of(const struct world *world, uint32_t t, unsigned f, bool window)
{
	const struct planner_tensor *tensor = &world->tensors[t];
	const struct planner_form *form = &world->forms[t * 4 + f];
	double w = world->models[tensor->model].weight, d = form->decode_ns;
	double read = world->input.host.read_ns, rate = tensor->rate, sequential = tensor->order;
	double ratio = (double)form->bytes / (double)tensor->bytes, memory, wait, late;
	struct sums sums = {.bytes = (double)form->bytes};

	if (f == 0) {
		sums.time = w * rate * read / 1e9;
		return sums;
	}
	memory = tensor->local * ratio +
		 (1 - tensor->local) * (ratio / tensor->share + 1 / tensor->share + 1);
	late = d * (double)world->models[tensor->model].streams / world->input.host.cores_free - read -
	       world->models[tensor->model].consume_ns;
	late = late > 0 ? sequential * late : 0;
	wait = (1 - sequential) * d + late;
	sums.work = rate * d / tensor->share / 1e9;
	if (window) {
		sums.bytes += floor(tensor->hot * (double)tensor->bytes) + 1;
		memory = sequential * memory + (1 - sequential);
		wait = late;
		sums.work *= sequential;
	}
	sums.time = w * rate * (memory * read + wait) / 1e9;
	sums.weighted = w * sums.work;
	return sums;
}

static double price(const struct world *world, double work)
{
	double cores = world->input.host.cores_free;

	return 0.02 + (work > cores ? 1 - cores / work : 0);
}

static void sums_add(struct sums *sums, const struct sums *more)
{
	sums->bytes += more->bytes;
	sums->time += more->time;
	sums->work += more->work;
	sums->weighted += more->weighted;
}

#define SMALL 5

/* Options of a tensor: form and window, with the costs of changing and of leaving. */
struct tried {
	struct sums sums[8];
	bool streams[8], window[8];
	unsigned form[8], n;
};

static void list_options(const struct world *world, double price_now, struct tried tried[SMALL])
{
	for (uint32_t t = 0; t < world->input.n_tensors; t++) {
		const struct planner_tensor *tensor = &world->tensors[t];
		struct tried *list = &tried[t];
		double held = 0, best = 1e300;

		list->n = 0;
		for (unsigned f = 0; f < 4; f++) {
			for (unsigned window = 0; window < 2; window++) {
				if (window && (f == 0 || tensor->order >= 1 || tensor->hot >= 1))
					continue;
				list->sums[list->n] = cost_of(world, t, f, window);
				list->form[list->n] = f;
				list->window[list->n] = window;
				list->streams[list->n] = f != 0 && tensor->local < 1 &&
							 !(window && tensor->order <= 0);
				list->n++;
			}
		}
		for (unsigned i = 0; i < list->n; i++) {
			double cost = list->sums[i].time + price_now * list->sums[i].weighted;

			best = fmin(best, cost);
			if (list->form[i] == tensor->current &&
			    list->window[i] == tensor->current_window)
				held = cost;
		}
		for (unsigned i = 0; i < list->n; i++) {
			const struct planner_form *form = &world->forms[t * 4 + list->form[i]];
			double ns = form->held ? (double)form->bytes * world->input.host.file_ns
					       : (double)form->encode_ns * (double)tensor->bytes;

			if (list->form[i] != tensor->current)
				list->sums[i].time += ns / 1e9 / world->input.policy.horizon_s;
			if (list->form[i] != tensor->current ||
			    list->window[i] != tensor->current_window)
				list->sums[i].time +=
					world->input.policy.hysteresis * (held - best);
		}
	}
}

/* The least cost of all plans that fit, or -1; `windows` is what sweeping takes of the model. */
static double optimum(const struct world *world, const struct tried *tried, double windows)
{
	unsigned at[SMALL] = {0};
	uint32_t n = world->input.n_tensors;
	double best = -1;

	for (;;) {
		struct sums sums = {0};
		bool streams = false;
		double cost;
		uint32_t t;

		for (t = 0; t < n; t++) {
			sums_add(&sums, &tried[t].sums[at[t]]);
			streams = streams || tried[t].streams[at[t]];
		}
		cost = sums.time + price(world, sums.work) * sums.weighted;
		if (sums.bytes + (streams ? windows : 0) <=
			    (double)world->input.host.budget_bytes &&
		    (best < 0 || cost < best))
			best = cost;
		for (t = 0; t < n && ++at[t] == tried[t].n; t++)
			at[t] = 0;
		if (t == n)
			return best;
	}
}

static void random_world(struct world *world)
{
	double smallest = 0, largest = 0;

	world->input.host.cores_free = 0.2 + 4 * random_unit() * random_unit();
	world->input.host.read_ns = 0.02 + 0.1 * random_unit();
	world->input.policy.hysteresis = random_below(2) ? 0.1 : 0;
	world->input.policy.min_gain = 0;
	for (uint32_t t = 0; t < world->input.n_tensors; t++) {
		struct planner_tensor *tensor = &world->tensors[t];

		set_bytes(world, t, (uint64_t)((1 + 30 * random_unit() * random_unit()) * MIB));
		tensor->current = (uint8_t)random_below(4);
		tensor->rate = (float)(random_below(4) ? 3e9 * random_unit() : 1e6);
		tensor->order = (float)(random_below(2) ? 1 : random_unit());
		tensor->hot = (float)(random_below(2) ? 1 : random_unit());
		tensor->local = (float)(random_below(2) ? 0 : random_unit());
		tensor->share = (float)(1 + random_below(4));
		world->forms[t * 4 + random_below(4)].held = true;
		smallest += (double)world->forms[t * 4 + 3].bytes;
		largest += (double)tensor->bytes;
	}
	world->models[0].weight = (float)(0.5 + random_unit());
	world->input.host.budget_bytes =
		(uint64_t)(1.02 * smallest + (largest - smallest) * random_unit()) + 2 * MIB;
}

static void test_against_the_optimum(void **state)
{
	const unsigned n_cases = 1500;
	unsigned n_exact = 0, n_solved = 0;
	double worst = 1, sum = 0;

	random_state = 6;
	for (unsigned i = 0; i < n_cases; i++) {
		struct world world;
		struct planner_plan plan;
		struct tried tried[SMALL];
		struct sums now = {0}, sums = {0};
		double best, windows, found, ratio;
		int r;

		world_init(&world, 2 + random_below(SMALL - 1), 1);
		random_world(&world);
		world.models[0].unit_bytes = 1; /* windows of a byte or so: their law is tested below */
		for (uint32_t t = 0; t < world.input.n_tensors; t++) {
			struct sums one = cost_of(&world, t, world.tensors[t].current, false);

			sums_add(&now, &one);
		}
		list_options(&world, price(&world, now.work), tried);
		windows = 9;
		best = optimum(&world, tried, windows);
		r = planner_run(world.planner, &world.input, &plan);
		assert_true(best < 0 ? r == PLANNER_E_BUDGET : r == 0);
		if (best < 0) {
			world_deinit(&world);
			continue;
		}
		/* What the plan says of itself is what the model says of it. */
		for (uint32_t t = 0; t < world.input.n_tensors; t++)
			for (unsigned o = 0; o < tried[t].n; o++)
				if (tried[t].form[o] == plan.choices[t].form &&
				    tried[t].window[o] == plan.choices[t].window)
					sums_add(&sums, &tried[t].sums[o]);
		found = sums.time + price(&world, sums.work) * sums.weighted;
		assert_true(fabs(found - plan.stall_planned) <= 1e-5 * found);
		assert_true(sums.bytes <= (double)world.input.host.budget_bytes);
		ratio = found / best;
		assert_true(ratio > 0.99999);
		worst = fmax(worst, ratio);
		sum += ratio;
		n_exact += ratio < 1.00001;
		n_solved++;
		world_deinit(&world);
	}
	printf("%u cases: %u optimal, mean %.5f, worst %.3f of the optimum\n", n_solved, n_exact,
	       sum / n_solved, worst);
	assert_true(n_solved > n_cases / 2);
	assert_true((double)n_exact > 0.98 * n_solved);
	assert_true(sum / n_solved < 1.002);
	assert_true(worst < 1.25);
}

static void test_what_is_swept_stays_partly_raw(void **state)
{
	struct world world;
	struct planner_plan plan;
	unsigned n_raw = 0;

	world_init(&world, 32, 1);
	world.input.host.cores_free = 1;
	world.input.policy.min_gain = 0;
	world.input.host.budget_bytes = 32 * 12 * MIB;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), 0);
	for (uint32_t t = 0; t < 32; t++) {
		n_raw += plan.choices[t].form == 0;
		assert_true((plan.choices[t].form != 0) == (plan.choices[t].prefetch > 0));
	}
	assert_in_range(n_raw, 1, 24);
	assert_true(plan.stall_planned < plan.stall_now);
	assert_true(plan.window_bytes > 0);
	assert_true(plan.stored_bytes + plan.window_bytes <= world.input.host.budget_bytes);
	/* The sweep's window is given back when everything fits raw. */
	world.input.host.budget_bytes = 32 * 16 * MIB;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), 0);
	for (uint32_t t = 0; t < 32; t++)
		assert_int_equal(plan.choices[t].form, 0);
	assert_int_equal(plan.window_bytes, 0);
	world_deinit(&world);
}

static void test_cores_that_hide_decoding_save_memory(void **state)
{
	struct world world;
	struct planner_plan many, few;

	world_init(&world, 32, 1);
	world.input.policy.objective = PLANNER_BALANCED;
	world.input.policy.min_gain = 0;
	world.input.host.budget_bytes = 32 * 16 * MIB;
	for (uint32_t t = 0; t < 32; t++) { /* decoded into the reader's cache: no traffic to save */
		world.tensors[t].local = 1;
		world.tensors[t].rate = 1e8f;
	}
	world.models[0].consume_ns = 1;
	world.input.host.cores_free = 64;
	assert_int_equal(planner_run(world.planner, &world.input, &many), 0);
	assert_true(many.satisfied);
	world.input.host.cores_free = 0.1;
	assert_int_equal(planner_run(world.planner, &world.input, &few), 0);
	assert_true(many.stored_bytes < few.stored_bytes * 3 / 4);
	world_deinit(&world);
}

static void test_hot_pages_are_kept_decoded(void **state)
{
	struct world world;
	struct planner_plan plan;
	struct planner_reasons reasons;

	world_init(&world, 4, 1);
	world.input.policy.min_gain = 0;
	for (uint32_t t = 0; t < 4; t++) {
		world.tensors[t].order = 0;
		world.tensors[t].hot = 0.1f;
	}
	world.input.host.budget_bytes = 4 * 11 * MIB;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), 0);
	for (uint32_t t = 0; t < 4; t++)
		assert_true(plan.choices[t].window || plan.choices[t].form == 0);
	planner_explain(world.planner, &world.input, 0, &reasons);
	assert_true(reasons.stall > 0);
	world_deinit(&world);
}

static void test_replicas_where_nodes_are_far(void **state)
{
	struct world world;
	struct planner_plan plan;
	unsigned n_many = 0;

	world_init(&world, 8, 1);
	world.input.host.n_nodes = 2;
	world.input.host.remote_factor = 2;
	world.input.policy.replicate = true;
	world.input.policy.min_gain = 0;
	world.tensors[3].rate = 1e11f;
	world.input.host.budget_bytes = 8 * 14 * MIB;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), 0);
	for (uint32_t t = 0; t < 8; t++)
		n_many += plan.choices[t].replicas == 2;
	assert_int_equal(plan.choices[3].form, 0);
	assert_int_equal(plan.choices[3].replicas, 2);
	assert_true(n_many < 8);
	world.input.policy.replicate = false;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), 0);
	assert_int_equal(plan.choices[3].replicas, 1);
	world_deinit(&world);
}

static void test_policy(void **state)
{
	struct world world;
	struct planner_plan plan;
	struct planner_reasons reasons;
	uint64_t used[4] = {0};

	world_init(&world, 40, 4);
	world.input.policy.min_gain = 0;
	world.input.host.cores_free = 0.5;
	world.models[0].pin = PLANNER_RAW;
	world.models[1].floor = PLANNER_FAST;
	world.models[2].ceiling = PLANNER_WORK;
	world.models[3].frozen = true;
	for (uint32_t t = 0; t < 40; t++)
		world.tensors[t].rate = t % 4 ? 1e9f : 0;
	world.input.host.budget_bytes = 40 * 13 * MIB;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), 0);
	for (uint32_t t = 0; t < 40; t++) {
		unsigned class = world.forms[t * 4 + plan.choices[t].form].class;

		assert_true(t % 4 != 0 || class == PLANNER_RAW);
		assert_true(t % 4 != 1 || class <= PLANNER_FAST);
		assert_true(t % 4 != 2 || class >= PLANNER_WORK);
		assert_true(t % 4 != 3 || plan.choices[t].form == world.tensors[t].current);
		planner_explain(world.planner, &world.input, t, &reasons);
		assert_true(t % 4 != 0 || reasons.reason == PLANNER_R_PINNED);
		assert_true(t % 4 != 2 || class != PLANNER_WORK ||
			    reasons.reason == PLANNER_R_CEILING);
		assert_true(t % 4 != 3 || reasons.reason == PLANNER_R_FROZEN);
	}
	/* A pin of one tensor comes before what its model is told. */
	world.tensors[5].pin = PLANNER_DENSE + 1;
	world.tensors[4].pin = PLANNER_WORK + 1;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), 0);
	assert_int_equal(world.forms[5 * 4 + plan.choices[5].form].class, PLANNER_DENSE);
	assert_int_equal(world.forms[4 * 4 + plan.choices[4].form].class, PLANNER_WORK);
	assert_int_equal(world.forms[8 * 4 + plan.choices[8].form].class, PLANNER_RAW);
	planner_explain(world.planner, &world.input, 5, &reasons);
	assert_int_equal(reasons.reason, PLANNER_R_PINNED);
	world.tensors[4].pin = world.tensors[5].pin = 0;
	/* Without the memory for it, the lightest models give up pin and floor first. */
	world.models[0].weight = 0.5f;
	world.input.host.budget_bytes = 10 * (9 + 12 + 9 + 9) * MIB + 4 * MIB;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), PLANNER_E_FLOORS);
	for (uint32_t t = 0; t < 40; t++)
		assert_true(t % 4 != 1 ||
			    world.forms[t * 4 + plan.choices[t].form].class <= PLANNER_FAST);
	world.input.host.budget_bytes = 40 * MIB;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), PLANNER_E_BUDGET);
	/* A model's own limit. */
	world.models[0].pin = PLANNER_NO_CLASS;
	world.models[1].max_bytes = 10 * 9 * MIB;
	world.models[1].floor = PLANNER_DENSE;
	world.input.host.budget_bytes = 40 * 16 * MIB;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), 0);
	for (uint32_t t = 0; t < 40; t++)
		used[t % 4] += world.forms[t * 4 + plan.choices[t].form].bytes;
	assert_true(used[1] <= 90 * MIB);
	assert_true(used[0] > 90 * MIB || used[2] > 80 * MIB);
	/* A weight shifts memory to the model that it favours. */
	world.models[1].max_bytes = 0;
	world.models[2].ceiling = PLANNER_RAW;
	world.models[1].weight = 1;
	world.models[2].weight = 10;
	world.input.host.budget_bytes = 40 * 11 * MIB;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), 0);
	memset(used, 0, sizeof(used));
	for (uint32_t t = 0; t < 40; t++)
		used[t % 4] += world.forms[t * 4 + plan.choices[t].form].bytes;
	assert_true(used[2] > used[1]);
	/* Frozen altogether. */
	world.input.policy.frozen = true;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), 0);
	assert_int_equal(plan.n_steps + plan.n_deferred, 0);
	world_deinit(&world);
}

/* The budget holds through every step, the versions that exist together included. */
static void check_steps(const struct world *world, const struct planner_plan *plan)
{
	uint64_t used = world->input.host.pinned_bytes, n_written = 0;
	uint64_t budget = world->input.host.budget_bytes, limit = world->input.policy.limit_bytes;
	uint64_t headroom = world->input.host.headroom_bytes, room;

	room = headroom < budget ? budget - headroom : 0;

	for (uint32_t t = 0; t < world->input.n_tensors; t++) {
		const struct planner_tensor *tensor = &world->tensors[t];

		if (tensor->current != PLANNER_NO_FORM)
			used += world->forms[t * 4 + tensor->current].bytes *
				(tensor->current_replicas ? tensor->current_replicas : 1);
	}
	for (uint32_t s = 0; s < plan->n_steps; s++) {
		const struct planner_step *step = &plan->steps[s];
		bool shrinks = step->new_bytes < step->old_bytes;

		if (used <= room || !shrinks)
			assert_true(used + step->new_bytes <= budget);
		assert_true(used + step->new_bytes <= plan->peak_bytes);
		assert_int_equal(step->new_bytes,
				 world->forms[step->tensor * 4 + step->to.form].bytes *
					 step->to.replicas);
		used = used - step->old_bytes + step->new_bytes;
		n_written += step->new_bytes;
		assert_true(!limit || s == 0 || n_written <= limit);
	}
	assert_true(!world->input.policy.limit_changes ||
		    plan->n_steps <= world->input.policy.limit_changes);
}

static void test_changes_keep_the_budget(void **state)
{
	random_state = 7;
	for (unsigned i = 0; i < 60; i++) {
		struct world world;
		struct planner_plan plan;
		unsigned n_rounds = 0;

		world_init(&world, 1 + random_below(60), 1 + random_below(3));
		random_world(&world);
		for (uint32_t t = 0; t < world.input.n_tensors; t++)
			world.tensors[t].current = 3;
		world.input.host.budget_bytes += 8 * MIB;
		world.input.host.headroom_bytes = random_below(2) ? 8 * MIB : 0;
		world.input.policy.limit_bytes = random_below(2) ? 64 * MIB : 0;
		world.input.policy.limit_changes = random_below(2) ? 5 : 0;
		world.input.policy.dwell_s = 0;
		do { /* settles */
			assert_true(planner_run(world.planner, &world.input, &plan) >= 0);
			check_steps(&world, &plan);
			carry_out(&world, &plan);
		} while (plan.n_steps > 0 && ++n_rounds < 40);
		assert_true(n_rounds < 40);
		/* Half of it taken away: back down, and it settles again. */
		world.input.host.budget_bytes = world.input.host.budget_bytes * 3 / 4;
		n_rounds = 0;
		do {
			assert_true(planner_run(world.planner, &world.input, &plan) >= 0);
			check_steps(&world, &plan);
			carry_out(&world, &plan);
		} while (plan.n_steps > 0 && ++n_rounds < 40);
		assert_true(n_rounds < 40);
		world_deinit(&world);
	}
}

/* Growing once filled the room that shrinking needs, and a plan stayed half done for good. */
static void test_a_full_budget_turns_round(void **state)
{
	struct world world;
	struct planner_plan plan;
	unsigned n_rounds = 0;

	world_init(&world, 100, 1);
	world.input.host.cores_free = 1;
	world.input.host.budget_bytes = 100 * 12 * MIB;
	world.input.host.headroom_bytes = 40 * MIB;
	world.input.policy.dwell_s = 0;
	world.input.policy.limit_bytes = 128 * MIB;
	for (unsigned phase = 0; phase < 4; phase++) {
		for (uint32_t t = 0; t < 100; t++)
			world.tensors[t].rate = t / 25 == phase ? 1e9f : 1e6f;
		n_rounds = 0;
		do {
			assert_int_equal(planner_run(world.planner, &world.input, &plan), 0);
			check_steps(&world, &plan);
			carry_out(&world, &plan);
		} while (plan.n_steps > 0 && ++n_rounds < 100);
		assert_true(n_rounds < 100);
		assert_int_equal(plan.n_deferred, 0);
		for (uint32_t t = 25 * phase; t < 25 * (phase + 1); t++)
			assert_int_equal(world.tensors[t].current, 0);
	}
	world_deinit(&world);
}

static void test_steady_load_changes_nothing(void **state)
{
	struct world world;
	struct planner_plan plan;
	unsigned n_changes[200] = {0}, n_late = 0;

	random_state = 8;
	world_init(&world, 200, 2);
	world.input.host.cores_free = 1;
	world.input.policy.dwell_s = 5;
	for (unsigned second = 0; second < 600; second++) {
		/* What a measurement does on a steady load: 5 % here and there. */
		world.input.host.read_ns = 0.05 * (0.95 + 0.1 * random_unit());
		world.input.host.cores_free = 1 * (0.95 + 0.1 * random_unit());
		for (uint32_t t = 0; t < 200; t++)
			world.tensors[t].rate =
				(float)(1e8 * (1 + t % 7) * (0.95 + 0.1 * random_unit()));
		assert_int_equal(planner_run(world.planner, &world.input, &plan), 0);
		for (uint32_t s = 0; s < plan.n_steps; s++) {
			n_changes[plan.steps[s].tensor]++;
			n_late += second >= 30;
		}
		carry_out(&world, &plan);
	}
	for (uint32_t t = 0; t < 200; t++)
		assert_true(n_changes[t] <= 2);
	assert_int_equal(n_late, 0);
	/* Idle: what is held stays. */
	for (uint32_t t = 0; t < 200; t++)
		world.tensors[t].rate = 0;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), 0);
	assert_int_equal(plan.n_steps, 0);
	world_deinit(&world);
}

static double hostile(void)
{
	static const double numbers[] = {NAN, INFINITY, -INFINITY, 0, -0.0, -1, 1e308, 1e-308, 1, 0.5};

	return numbers[random_below(sizeof(numbers) / sizeof(*numbers))];
}

static void test_hostile_numbers(void **state)
{
	random_state = 9;
	for (unsigned i = 0; i < 1000; i++) {
		struct world world;
		struct planner_plan plan, again;
		struct planner_choice choices[40];
		struct planner_reasons reasons;
		int r;

		world_init(&world, 1 + random_below(40), 1 + random_below(3));
		world.input.host.budget_bytes = random_below(2) ? random_u64() : random_u64() >> 30;
		world.input.host.pinned_bytes = random_below(2) ? 0 : random_u64() >> 8;
		world.input.host.headroom_bytes = random_below(2) ? 0 : random_u64();
		world.input.host.cores_free = hostile();
		world.input.host.read_ns = hostile();
		world.input.host.remote_factor = hostile();
		world.input.host.file_ns = hostile();
		world.input.host.n_nodes = random_below(PLANNER_MAX_NODES + 1);
		world.input.policy.replicate = random_below(2);
		world.input.policy.objective = random_below(3);
		world.input.policy.hysteresis = hostile();
		world.input.policy.min_gain = hostile();
		world.input.policy.horizon_s = hostile();
		world.input.policy.dwell_s = hostile();
		world.input.policy.limit_bytes = random_below(2) ? 0 : random_u64();
		for (uint32_t m = 0; m < world.input.n_models; m++) {
			world.models[m].weight = (float)hostile();
			world.models[m].consume_ns = (float)hostile();
			world.models[m].streams = (float)hostile();
			world.models[m].unit_bytes = random_below(2) ? 0 : random_u64();
			world.models[m].floor = (uint8_t)random_below(4);
			world.models[m].ceiling = (uint8_t)random_below(4);
			world.models[m].max_bytes = random_below(2) ? 0 : random_u64();
		}
		for (uint32_t t = 0; t < world.input.n_tensors; t++) {
			struct planner_tensor *tensor = &world.tensors[t];

			tensor->rate = (float)hostile();
			tensor->share = (float)hostile();
			tensor->order = (float)hostile();
			tensor->hot = (float)hostile();
			tensor->local = (float)hostile();
			tensor->age_s = (float)hostile();
			tensor->busy = random_below(4) == 0;
			tensor->current = random_below(3) ? (uint8_t)random_below(4)
							  : PLANNER_NO_FORM;
			tensor->current_replicas = (uint8_t)random_below(4);
			tensor->current_window = random_below(2);
			tensor->bytes = random_below(8) ? tensor->bytes : 0;
			world.forms[t * 4 + random_below(4)].decode_ns = (float)hostile();
			world.forms[t * 4 + random_below(4)].encode_ns = (float)hostile();
			world.forms[t * 4 + random_below(4)].bytes =
				random_below(2) ? 0 : PLANNER_MAX_BYTES / PLANNER_MAX_NODES;
		}
		r = planner_run(world.planner, &world.input, &plan);
		assert_true(r == 0 || r == PLANNER_E_FLOORS || r == PLANNER_E_BUDGET);
		assert_true(isfinite(plan.stall_now) && isfinite(plan.stall_planned));
		assert_true(plan.stall_planned >= 0 && plan.work_planned >= 0);
		check_steps(&world, &plan);
		for (uint32_t t = 0; t < world.input.n_tensors; t++) {
			assert_true(plan.choices[t].form < 4 && plan.choices[t].replicas > 0);
			planner_explain(world.planner, &world.input, t, &reasons);
			assert_true(isfinite(reasons.stall));
			choices[t] = plan.choices[t];
		}
		/* The same again, by another planner. */
		planner_free(world.planner);
		assert_int_equal(planner_new(64, 8, &world.planner), 0);
		assert_int_equal(planner_run(world.planner, &world.input, &again), r);
		assert_memory_equal(choices, again.choices,
				    world.input.n_tensors * sizeof(*choices));
		assert_int_equal(plan.n_steps, again.n_steps);
		assert_true(plan.stall_planned == again.stall_planned);
		world_deinit(&world);
	}
}

static void test_contradictions_are_refused(void **state)
{
	struct world world;
	struct planner_plan plan;

	world_init(&world, 2, 1);
	world.tensors[1].model = 1;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), -22);
	world.tensors[1].model = 0;
	world.tensors[1].first_form = 5;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), -22);
	world.tensors[1].first_form = UINT32_MAX;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), -22);
	world.tensors[1].first_form = 4;
	world.tensors[1].current = 4;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), -22);
	world.tensors[1].current = 0;
	world.tensors[1].n_forms = 0;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), -22);
	world.tensors[1].n_forms = 4;
	world.forms[0].bytes = PLANNER_MAX_BYTES + 1;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), -22);
	world.forms[0].bytes = 16 * MIB;
	world.forms[0].class = 4;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), -22);
	world.forms[0].class = 0;
	world.tensors[1].pin = PLANNER_N_CLASSES + 1;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), -EINVAL);
	world.tensors[1].pin = 0;
	world.models[0].pin = 77;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), -22);
	world.models[0].pin = PLANNER_NO_CLASS;
	assert_int_equal(planner_run(world.planner, &world.input, &plan), 0);
	world_deinit(&world);
}

/* Of 100,000 tensors; the time is printed, not judged, since machines and sanitizers differ. */
static void test_many_tensors(void **state)
{
	struct timespec from, to;
	struct world world;
	struct planner_plan plan;
	double ms;

	random_state = 10;
	world_init(&world, 100000, 100);
	world.input.host.cores_free = 16;
	for (uint32_t t = 0; t < 100000; t++) {
		world.tensors[t].rate = (float)(1e6 * random_unit());
		world.tensors[t].order = t % 3 ? 1 : 0.5f;
		world.tensors[t].hot = t % 3 ? 1 : 0.1f;
	}
	assert_int_equal(planner_run(world.planner, &world.input, &plan), 0);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
	assert_int_equal(planner_run(world.planner, &world.input, &plan), 0);
	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
	ms = (double)(to.tv_sec - from.tv_sec) * 1e3 + (double)(to.tv_nsec - from.tv_nsec) / 1e6;
	printf("100,000 tensors: %.1f ms, %u steps\n", ms, plan.n_steps);
	assert_true(plan.n_steps > 1000);
	world_deinit(&world);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_against_the_optimum),
		cmocka_unit_test(test_what_is_swept_stays_partly_raw),
		cmocka_unit_test(test_cores_that_hide_decoding_save_memory),
		cmocka_unit_test(test_hot_pages_are_kept_decoded),
		cmocka_unit_test(test_replicas_where_nodes_are_far),
		cmocka_unit_test(test_policy),
		cmocka_unit_test(test_changes_keep_the_budget),
		cmocka_unit_test(test_a_full_budget_turns_round),
		cmocka_unit_test(test_steady_load_changes_nothing),
		cmocka_unit_test(test_hostile_numbers),
		cmocka_unit_test(test_contradictions_are_refused),
		cmocka_unit_test(test_many_tensors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
