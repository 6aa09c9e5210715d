/* SPDX-License-Identifier: Apache-2.0 */
/* Inside the planner: the options of a tensor and what they cost, and a run over all of them. */
#ifndef DCMEM_PLANNER_IMPL_H
#define DCMEM_PLANNER_IMPL_H

#include "planner/planner.h"

/* Each form, once or once a node, with its hot pages decoded or not. */
#define OPTIONS_MAX (PLANNER_MAX_FORMS * 4)
#define HULL_MAX    9 /* vertices kept of a hull; more only where many replicas meet many forms */
#define LOCAL_OPTIONS 128 /* small plans are improved by exchanges, all pairs of options */
#define LOCAL_TRIPLES 40  /* the smallest by all triples */
#define LOCAL_PLANS   16384 /* and those of fewer plans than this by trying all of them */
#define LOCAL_DEPTH   8
#define HIDDEN	    0.02 /* price of decoding that idle cores hide: not nothing, it takes energy */

struct option {
	uint64_t bytes;	 /* stored, replicas and hot pages included */
	uint64_t window; /* of these, hot pages */
	double time;	 /* weighted seconds a second that readers wait, changes included */
	double work;	 /* cores decoding */
	double weighted; /* the same, weighted */
	struct planner_choice choice;
};

struct step_key { /* for sorting by falling gain a byte */
	uint32_t key, index;
	uint64_t more_bytes; /* that the step takes */
};

struct hull_step {
	uint32_t tensor, key;
	struct planner_choice to;
};

struct model_state {
	uint64_t stored_bytes;	/* of its tensors as chosen, hot pages included */
	uint64_t window_bytes;	/* that sweeping needs as soon as one read tensor is coded */
	uint64_t largest, total; /* decoded bytes of its read tensors */
	double slowest_ns;	/* of the forms of its read tensors */
	uint32_t n_streamed;	/* read tensors that are coded */
	uint8_t prefetch;
	bool floors_dropped;
};

struct totals {
	uint64_t bytes; /* stored, hot pages, and windows of sweeps */
	double time, work, weighted;
};

struct planner {
	uint32_t max_tensors, max_models;
	struct option *chosen;		/* [tensor] */
	struct planner_choice *choices; /* [tensor] as published */
	struct planner_choice *best;	/* [tensor] of the best price so far */
	struct model_state *models;
	struct hull_step *hull;		/* [tensor * (HULL_MAX - 1)] */
	struct step_key *keys, *scratch;
	struct planner_step *steps;	/* [tensor] */
	double *leave;			/* [tensor] cost of leaving the present option */
	struct option local[LOCAL_OPTIONS];
	/* of the run */
	const struct planner_input *input;
	struct planner_policy policy; /* clamped */
	struct planner_host host;     /* clamped */
	uint64_t capacity_bytes;
	double price;	      /* of a core-second of decoding, now */
	double price_current; /* the same under the present plan */
	bool ignore_dwell, kept, satisfied;
	size_t n_keys;
	uint64_t releasable; /* at least the largest window that one step can make unneeded */
	double ideal; /* weighted seconds a second that readers would take without any stall */
	struct totals totals;
};

/* lo where x is NaN */
static inline unsigned planner_pin(const struct planner_model *model,
				   const struct planner_tensor *tensor)
{
	return tensor->pin ? tensor->pin - 1U : model->pin;
}

static inline double clamp(double x, double lo, double hi)
{
	return x > hi ? hi : x >= lo ? x : lo;
}

/* planner-cost.c */
double cost_price(const struct planner *planner, double work);
double cost_total(const struct planner *planner, const struct totals *totals);
bool choice_equal(struct planner_choice a, struct planner_choice b);
/* The option that holds the tensor as it is now. False where nothing is held. */
bool option_current(const struct planner *planner, uint32_t tensor, struct option *ret_option);
/* With what changing to it costs. */
void option_of(const struct planner *planner, uint32_t tensor, struct planner_choice choice,
	       struct option *ret_option);
/* The options that policy allows, at least one. */
unsigned options_allowed(const struct planner *planner, uint32_t tensor,
			 struct option ret_options[OPTIONS_MAX]);
/* Hysteresis: what leaving the present option costs; planner->leave[tensor] must be 0 meanwhile. */
double option_leave(const struct planner *planner, uint32_t tensor);
bool option_streams(const struct planner *planner, uint32_t tensor, const struct option *option);
/* Lower convex hull of bytes against cost at the run's price: falling gain a byte. */
unsigned options_hull(const struct planner *planner, struct option *options, unsigned n_options,
		      struct option ret_hull[HULL_MAX]);

/* planner-choose.c */
int planner_choose(struct planner *planner, double *ret_cost); /* 0 or PLANNER_E_... */
/* Totals of the tensors as they are; false if one holds nothing. */
bool totals_current(struct planner *planner, struct totals *ret_totals);
void keys_sort(struct step_key *keys, struct step_key *scratch, size_t n_keys);
uint32_t key_falling(double value); /* sorts larger values first */

/* planner-steps.c */
void planner_order(struct planner *planner, struct planner_plan *plan);

#endif
