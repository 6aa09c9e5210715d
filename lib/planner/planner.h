/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The planner: from measurements, a budget and what each tensor could be, to a plan of how each is
 * held. A pure function: no clock, no I/O, no memory beyond what planner_new() took, and the same
 * input gives the same plan on every machine. docs/planner.md has the model behind it.
 */
#ifndef DCMEM_PLANNER_H
#define DCMEM_PLANNER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* From the fastest to read to the smallest. */
enum planner_class { PLANNER_RAW, PLANNER_FAST, PLANNER_WORK, PLANNER_DENSE, PLANNER_N_CLASSES };

enum planner_objective {
	PLANNER_LATENCY,  /* use the whole budget against stalls */
	PLANNER_BALANCED, /* the least memory whose stalls are within 2 % of the best */
	PLANNER_MEMORY,	  /* ... within 10 % */
	PLANNER_N_OBJECTIVES,
};

enum planner_outcome {
	PLANNER_E_FLOORS = 1, /* floors and pins of some models were given up for the budget */
	PLANNER_E_BUDGET = 2, /* not even the smallest forms fit; the plan is those */
};

#define PLANNER_MAX_FORMS   6
#define PLANNER_MAX_TENSORS (1U << 21)
#define PLANNER_MAX_MODELS  (1U << 16)
#define PLANNER_MAX_BYTES   (1ULL << 40) /* of one form of one tensor, replicas included */
#define PLANNER_MAX_NODES   64
#define PLANNER_MAX_PREFETCH 8
#define PLANNER_NO_FORM	    255 /* as `current`: nothing is held yet */
#define PLANNER_NO_CLASS    255 /* as `pin`: none */

/* One way to hold a tensor: a point of its Pareto set. */
struct planner_form {
	uint64_t bytes;	  /* stored */
	float decode_ns;  /* of one thread, a decoded byte; 0: readable in place */
	float encode_ns;  /* of one thread, a decoded byte */
	uint8_t class;	  /* enum planner_class */
	uint8_t codec, effort; /* handed through */
	bool held;	  /* the container file has this form: it is read back, never encoded */
};

struct planner_tensor {
	uint64_t bytes;	     /* decoded */
	uint32_t model;
	uint32_t first_form; /* in planner_input.forms */
	uint8_t n_forms;
	uint8_t current;     /* index of the form held now */
	uint8_t current_replicas;
	bool current_window; /* its hot pages are kept decoded */
	uint8_t pin;	     /* class, plus 1: this, always; 0: as its model is */
	bool busy;	     /* its old bytes are still mapped, or it is being changed: leave it alone */
	float rate;	     /* decoded bytes a second that readers take */
	float share;	     /* readers that one decode serves */
	float order;	     /* 0: requests are random, 1: a sweep that prefetching sees coming */
	float hot;	     /* fraction of its pages that the random requests go to */
	float local;	     /* fraction read by decoding into the reader's own cache */
	float age_s;	     /* since its form last changed */
};

struct planner_model {
	float weight;	    /* of its stalls; 1 */
	float consume_ns;   /* what its readers compute on each byte */
	float streams;	    /* sweeps at positions of their own */
	uint64_t unit_bytes; /* largest piece that is decoded at once; 0: its largest tensor */
	uint64_t max_bytes; /* stored and windows; 0: none but the budget */
	uint8_t floor;	    /* class: never denser; PLANNER_DENSE: none */
	uint8_t ceiling;    /* class: never faster; PLANNER_RAW: none */
	uint8_t pin;	    /* class: this, always; or PLANNER_NO_CLASS */
	bool frozen;
};

struct planner_host {
	uint64_t budget_bytes;
	uint64_t pinned_bytes;	 /* retired, still mapped by somebody */
	uint64_t headroom_bytes; /* kept free, so that a change has room for both versions */
	double cores_free;	 /* for decoding */
	double read_ns;		 /* a cold byte, one thread, under the present load */
	double remote_factor;	 /* of a byte on another node; at least 1 */
	double file_ns;		 /* a byte read back from the container */
	uint32_t n_nodes;
};

struct planner_policy {
	enum planner_objective objective;
	bool frozen;
	bool replicate;	      /* may hold a form once a node */
	double hysteresis;    /* a tensor leaves its form for a gain larger by this fraction */
	double min_gain;      /* a plan that gains less than this fraction is not begun */
	double horizon_s;     /* a change must pay within this time */
	double dwell_s;	      /* no second change of a tensor before */
	uint64_t limit_bytes; /* written in one interval, at least one change; 0: none */
	uint32_t limit_changes; /* 0: none */
	uint8_t max_prefetch; /* pieces ahead that the host ever decodes; 0: PLANNER_MAX_PREFETCH */
};

struct planner_input {
	struct planner_host host;
	struct planner_policy policy;
	const struct planner_model *models;
	const struct planner_tensor *tensors;
	const struct planner_form *forms;
	uint32_t n_models, n_tensors, n_forms;
};

struct planner_choice {
	uint8_t form, replicas;
	bool window;	       /* keep the hot pages decoded */
	uint8_t prefetch;      /* pieces decoded ahead of a sweep; 0: read in place */
};

struct planner_step {
	uint32_t tensor;
	struct planner_choice to;
	uint64_t old_bytes, new_bytes; /* stored; both exist until readers moved */
};

struct planner_plan {
	const struct planner_choice *choices; /* of each tensor, in the end */
	const struct planner_step *steps;     /* what to do now, in this order */
	uint32_t n_steps, n_deferred;	      /* left for the next interval */
	bool kept;			      /* the present plan was not worth leaving */
	bool satisfied;			      /* the objective stopped it before the budget did */
	uint64_t stored_bytes, window_bytes;  /* in the end */
	uint64_t peak_bytes;		      /* while the steps run, all included */
	double stall_now, stall_planned;      /* seconds of waiting a second, all readers */
	double work_now, work_planned;	      /* cores busy decoding */
};

/* Defaults of a policy, as the daemon uses them (untuned). */
void planner_policy_init(struct planner_policy *policy);

struct planner;
int planner_new(uint32_t max_tensors, uint32_t max_models, struct planner **ret_planner);
struct planner *planner_free(struct planner *planner);

/*
 * 0 or PLANNER_E_..., both with a plan that is valid until the next call; -EINVAL where the input
 * contradicts itself, with a message. Numbers that no measurement gives (NaN, negative, infinite)
 * are taken as the nearest that one could give.
 */
int planner_run(struct planner *planner, const struct planner_input *input,
		struct planner_plan *ret_plan);

enum planner_reason {
	PLANNER_R_GAIN,	    /* the best use of these bytes */
	PLANNER_R_BUDGET,   /* the next form is better, and its bytes serve better elsewhere */
	PLANNER_R_IDLE,	    /* nobody reads it */
	PLANNER_R_BEST,	    /* nothing it could be would stall less */
	PLANNER_R_ENOUGH,   /* the objective is met without more memory */
	PLANNER_R_KEPT,	    /* another plan would gain too little */
	PLANNER_R_DWELL,    /* changed a moment ago, or busy */
	PLANNER_R_FROZEN,
	PLANNER_R_PINNED,
	PLANNER_R_FLOOR,    /* would be denser */
	PLANNER_R_CEILING,  /* would be faster */
	PLANNER_R_MODEL,    /* its model has all the memory that it may have */
	PLANNER_N_REASONS,
};

struct planner_reasons {
	enum planner_reason reason;
	double stall;		/* seconds a second, as chosen */
	bool has_next;		/* is there a form that would stall less? */
	struct planner_choice next;
	uint64_t next_bytes;	/* that it would take besides */
	double next_gain;	/* stall saved, in seconds a second */
};
/* Why the last plan has this choice, and what the next change would be. Same input as the run. */
void planner_explain(const struct planner *planner, const struct planner_input *input,
		     uint32_t tensor, struct planner_reasons *ret_reasons);

const char *planner_class_name(unsigned class);	  /* "raw", "fast", "work", "dense" */
const char *planner_objective_name(unsigned objective);
const char *planner_reason_text(unsigned reason); /* a phrase */

#endif
