/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What holding a tensor one way costs its readers. Owns the model of docs/planner.md: the time that
 * reading takes, the cores that decoding takes, and the price of changing and of leaving a form.
 * Reads the input alone; refuses nothing: a number out of range counts as the nearest in range.
 * Any thread, one run a planner.
 */
#include "planner/planner-impl.h"

#include <string.h>

/* Fastest and slowest that hardware could be: 10 TB/s, and a second a byte. */
#define NS_MIN 1e-4
#define NS_MAX 1e9
#define RATE_MAX 1e15
#define NS	 1e-9

/*
 * Of decoding, the part that idle cores hide costs next to nothing; of work W on C cores, W - C is
 * not hidden.
 */
double cost_price(const struct planner *planner, double work)
{
	double cores = planner->host.cores_free;

	return HIDDEN + (work > cores ? 1 - cores / work : 0);
}

double cost_total(const struct planner *planner, const struct totals *totals)
{
	return totals->time + cost_price(planner, totals->work) * totals->weighted;
}

bool choice_equal(struct planner_choice a, struct planner_choice b)
{
	return a.form == b.form && a.replicas == b.replicas && a.window == b.window;
}

static double cost_of(const struct option *option, double price)
{
	return option->time + price * option->weighted;
}

/* Bytes of one form, with replicas and window: planner_run() checked that they fit. */
static void option_make(const struct planner *planner, uint32_t index,
			struct planner_choice choice, struct option *ret_option)
{
	const struct planner_tensor *tensor = &planner->input->tensors[index];
	const struct planner_form *form =
		&planner->input->forms[tensor->first_form + choice.form];
	const struct planner_host *host = &planner->host;
	const struct planner_model *model = &planner->input->models[tensor->model];
	double weight = clamp(model->weight, 0, 1e6);
	double rate = clamp(tensor->rate, 0, RATE_MAX), share = clamp(tensor->share, 1, 1e6);
	double order = clamp(tensor->order, 0, 1), local = clamp(tensor->local, 0, 1);
	double decode = clamp(form->decode_ns, 0, NS_MAX), read = host->read_ns;
	double remote = (1 + (host->n_nodes - 1) * host->remote_factor) / host->n_nodes;
	double near = choice.replicas > 1 ? 1 : remote, streamed, exposed, random = 1 - order;
	double late, swept;
	double n_bytes = tensor->bytes ? (double)tensor->bytes : 1;

	*ret_option = (struct option){.choice = choice};
	ret_option->bytes = form->bytes * choice.replicas;
	if (choice.window) {
		ret_option->window =
			(uint64_t)(clamp(tensor->hot, 0, 1) * (double)tensor->bytes) + 1;
		if (ret_option->window > tensor->bytes)
			ret_option->window = tensor->bytes;
		ret_option->bytes += ret_option->window;
	}
	if (decode <= 0) {
		ret_option->time = weight * rate * read * near * NS;
		return;
	}
	/* Stored bytes in; then from the reader's cache, or through memory: written and read. */
	streamed = read * ((double)form->bytes / n_bytes * near * (local + (1 - local) / share) +
			   (1 - local) * (1 / share + remote));
	/* A sweep waits for what its cores do not decode while it reads and computes. */
	late = decode * clamp(model->streams, 1, 1e6) / host->cores_free -
	       (read + clamp(model->consume_ns, 0, NS_MAX));
	swept = late > 0 ? order * late : 0;
	exposed = random * decode + swept;
	ret_option->work = rate / share * decode * NS;
	if (choice.window) { /* random requests find their pages decoded, sweeps do not */
		streamed = order * streamed + random * read * remote;
		exposed = swept;
		ret_option->work *= order;
	}
	ret_option->time = weight * rate * (streamed + exposed) * NS;
	ret_option->weighted = weight * ret_option->work;
}

bool option_current(const struct planner *planner, uint32_t index, struct option *ret_option)
{
	const struct planner_tensor *tensor = &planner->input->tensors[index];
	struct planner_choice choice = {.form = tensor->current};

	if (tensor->current == PLANNER_NO_FORM)
		return false;
	choice.replicas = tensor->current_replicas ? tensor->current_replicas : 1;
	choice.window = tensor->current_window &&
			planner->input->forms[tensor->first_form + choice.form].decode_ns > 0;
	option_make(planner, index, choice, ret_option);
	return true;
}

/* Is a read tensor decoded on the way to its readers, through a window of its model? */
bool option_streams(const struct planner *planner, uint32_t index, const struct option *option)
{
	const struct planner_tensor *tensor = &planner->input->tensors[index];
	const struct planner_form *form =
		&planner->input->forms[tensor->first_form + option->choice.form];

	return form->decode_ns > 0 && tensor->rate > 0 && !(tensor->local >= 1) &&
	       !(option->choice.window && !(tensor->order > 0));
}

/* Seconds of one core that this change takes, spread over the time within which it must pay. */
static double change_cost(const struct planner *planner, const struct planner_tensor *tensor,
			  const struct planner_form *form)
{
	double ns = form->held ? planner->host.file_ns * (double)form->bytes
			       : clamp(form->encode_ns, 0, NS_MAX) * (double)tensor->bytes;

	return ns * NS / planner->policy.horizon_s;
}

void option_of(const struct planner *planner, uint32_t index, struct planner_choice choice,
	       struct option *ret_option)
{
	const struct planner_tensor *tensor = &planner->input->tensors[index];
	const struct planner_form *form =
		&planner->input->forms[tensor->first_form + choice.form];
	bool same_bytes = choice.form == tensor->current &&
			  choice.replicas == (tensor->current_replicas ? tensor->current_replicas : 1);

	option_make(planner, index, choice, ret_option);
	if (!same_bytes)
		ret_option->time += change_cost(planner, tensor, form);
	if (!same_bytes || choice.window != tensor->current_window)
		ret_option->time += planner->leave[index];
}

struct class_range {
	unsigned lo, hi;
};

static struct class_range classes_allowed(const struct planner *planner,
					  const struct planner_tensor *tensor)
{
	const struct planner_model *model = &planner->input->models[tensor->model];
	bool dropped = planner->models[tensor->model].floors_dropped;
	struct class_range range = {model->ceiling, dropped ? PLANNER_DENSE : model->floor};

	unsigned pin = planner_pin(model, tensor);

	if (pin != PLANNER_NO_CLASS && !dropped)
		return (struct class_range){pin, pin};
	if (range.hi < range.lo) /* a floor above the ceiling: the ceiling saves memory */
		range.hi = range.lo;
	return range;
}

static unsigned distance(unsigned class, struct class_range range)
{
	return class < range.lo ? range.lo - class : class > range.hi ? class - range.hi : 0;
}

static bool is_fixed(const struct planner *planner, const struct planner_tensor *tensor)
{
	if (tensor->current == PLANNER_NO_FORM)
		return false;
	if (planner->policy.frozen || planner->input->models[tensor->model].frozen || tensor->busy)
		return true;
	return !planner->ignore_dwell && clamp(tensor->age_s, 0, 1e12) < planner->policy.dwell_s;
}

/* Each allowed form in each manner, or the one it has where it must not change. */
unsigned options_allowed(const struct planner *planner, uint32_t index,
			 struct option ret_options[OPTIONS_MAX])
{
	const struct planner_tensor *tensor = &planner->input->tensors[index];
	struct class_range range = classes_allowed(planner, tensor);
	bool fixed = is_fixed(planner, tensor);
	bool warm = tensor->rate > 0 && !(tensor->order >= 1) && !(tensor->hot >= 1);
	unsigned nearest = PLANNER_N_CLASSES, n_options = 0;
	const struct planner_form *forms = &planner->input->forms[tensor->first_form];

	for (unsigned f = 0; f < tensor->n_forms; f++)
		if (distance(forms[f].class, range) < nearest)
			nearest = distance(forms[f].class, range);
	for (unsigned f = 0; f < tensor->n_forms; f++) {
		bool many = planner->policy.replicate && planner->host.n_nodes > 1 && tensor->rate > 0;

		if (fixed ? f != tensor->current : distance(forms[f].class, range) != nearest)
			continue;
		for (unsigned manner = 0; manner < 4; manner++) {
			struct planner_choice choice = {.form = (uint8_t)f, .replicas = 1};

			if ((manner & 1) && !(warm && forms[f].decode_ns > 0))
				continue;
			if ((manner & 2) && !many)
				continue;
			choice.window = manner & 1;
			if (manner & 2)
				choice.replicas = (uint8_t)planner->host.n_nodes;
			if (fixed) { /* windows come and go at once, copies do not */
				if (manner & 2)
					continue;
				choice.replicas = tensor->current_replicas ? tensor->current_replicas : 1;
			}
			option_of(planner, index, choice, &ret_options[n_options++]);
		}
	}
	return n_options;
}

double option_leave(const struct planner *planner, uint32_t index)
{
	struct option options[OPTIONS_MAX], current;
	unsigned n_options;
	double held, best;

	if (!option_current(planner, index, &current))
		return 0;
	n_options = options_allowed(planner, index, options);
	held = best = cost_of(&current, planner->price_current);
	for (unsigned i = 0; i < n_options; i++) {
		option_make(planner, index, options[i].choice, &options[i]);
		if (cost_of(&options[i], planner->price_current) < best)
			best = cost_of(&options[i], planner->price_current);
	}
	return planner->policy.hysteresis * (held - best);
}

static void sort_by_bytes(struct option *options, unsigned n_options, double price)
{
	for (unsigned i = 1; i < n_options; i++) {
		struct option moved = options[i];
		unsigned at = i;

		while (at > 0 && (options[at - 1].bytes > moved.bytes ||
				  (options[at - 1].bytes == moved.bytes &&
				   cost_of(&options[at - 1], price) > cost_of(&moved, price)))) {
			options[at] = options[at - 1];
			at--;
		}
		options[at] = moved;
	}
}

unsigned options_hull(const struct planner *planner, struct option *options, unsigned n_options,
		      struct option ret_hull[HULL_MAX])
{
	double price = planner->price;
	unsigned n_hull = 0, kept = 0;
	struct option hull[OPTIONS_MAX];

	sort_by_bytes(options, n_options, price);
	for (unsigned i = 0; i < n_options; i++) {
		double cost = cost_of(&options[i], price);

		if (n_hull && cost >= cost_of(&hull[n_hull - 1], price))
			continue; /* more bytes for nothing */
		while (n_hull >= 2) {
			struct option *a = &hull[n_hull - 2], *b = &hull[n_hull - 1];
			double ab = (cost_of(a, price) - cost_of(b, price)) /
				    (double)(b->bytes - a->bytes);
			double ac = (cost_of(a, price) - cost) / (double)(options[i].bytes - a->bytes);

			if (ab > ac)
				break;
			n_hull--;
		}
		hull[n_hull++] = options[i];
	}
	/* The ends matter most; of too many between, the ones nearest to the small end stay. */
	for (unsigned i = 0; i < n_hull; i++)
		if (i < HULL_MAX - 1 || i == n_hull - 1)
			ret_hull[kept++] = hull[i];
	return kept;
}
