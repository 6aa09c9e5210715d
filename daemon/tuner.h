/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tuner: measures how tensors are read and what their forms cost here, asks lib/planner how each
 * should be held, and has it done in the background. All of it is the loop thread's.
 */
#ifndef DCMEM_TUNER_H
#define DCMEM_TUNER_H

#include "planner/planner.h"
#include "store-impl.h"

/* A tensor that has a segment alone, and so can be held another way. */
struct tuned_tensor {
	uint64_t tensor, n_bytes;
	struct planner_form forms[PLANNER_MAX_FORMS]; /* 0 is raw */
	uint8_t n_forms, current;
	uint8_t pin; /* as in struct planner_tensor */
	bool sampled, changing;
	double rate;	/* decoded bytes a second that readers take, decayed */
	uint64_t taken; /* since the last look */
	uint64_t changed_ns;
	uint32_t n_changes, n_failed;
};

struct tuned_model {
	struct tuned_tensor *tensors;
	uint32_t n_tensors, n_sampled;
	uint32_t *of; /* of each tensor of the model: in `tensors`, or UINT32_MAX */
	struct planner_model policy;
	double share, order, local, readers, window_bytes; /* decayed, as planner.h has them */
	uint64_t taken, local_taken, seen_decoded, seen_acquired, seen_in_order;
};

/* What the host is found to do. */
struct tuner_host {
	double cores_free; /* for decoding, decayed */
	double read_ns;	   /* a cold byte, one thread */
	double slowdown;   /* of decoding under the present load, against the samples */
	double file_ns;
};

struct tuner_change { /* of the past */
	uint64_t at_ns, bytes, stored_bytes, busy_ns;
	char model[64];
	uint64_t tensor;
	uint8_t from, to; /* enum planner_class */
	int result;
};
#define TUNER_HISTORY 64

struct tuner_state {
	struct planner_policy policy;
	bool enabled;
	struct tuner_host host;
	uint64_t n_runs, n_changes, n_failed, changed_bytes, run_ns, busy_ns;
	uint32_t n_changing, n_deferred, n_unsampled;
	/* Of the last plan: what it could spend, and what it spends in the end. */
	uint64_t plan_budget, plan_pinned, plan_headroom, plan_stored, plan_window;
	bool plan_kept, plan_satisfied, plan_fits;
	double stall_now, stall_planned; /* seconds waited a second */
	double waited;			 /* as clients tell */
	struct tuner_change history[TUNER_HISTORY];
	uint32_t n_history; /* the newest is at (n_history - 1) % TUNER_HISTORY */
};

int tuner_new(struct store *store, struct tuner **ret_tuner);
/* Changes under way are given up; call before the pools end. */
void tuner_cancel(struct tuner *tuner);
struct tuner *tuner_free(struct tuner *tuner);

/* A model was loaded, or is about to go. */
int tuner_add_model(struct tuner *tuner, struct model *model);
void tuner_remove_model(struct tuner *tuner, struct model *model);
/* About once a second. */
void tuner_tick(struct tuner *tuner, uint64_t now_ns);

void tuner_set(struct tuner *tuner, const struct store_tuning *tuning);
/* Plans now: what was asked for has changed. */
void tuner_hurry(struct tuner *tuner);
/* Could something be held in less memory than now? */
bool tuner_may_shrink(const struct tuner *tuner);
/* False: the last plan does not know the tensor. Classes of what it is, shall be, and next could be. */
bool tuner_explain(const struct tuner *tuner, const struct tuned_tensor *tensor,
		   struct planner_reasons *ret_reasons, uint8_t *ret_now, uint8_t *ret_chosen,
		   uint8_t *ret_next);
/* Memory came free: what waited for room may go on. */
void tuner_continue(struct tuner *tuner);
const struct tuner_state *tuner_state(const struct tuner *tuner);

/* rates.c: what readers took since the last look. */
void rates_update(struct store *store, double seconds, double *ret_waited);
/* Cores of this process's allowance that idle now, or decode. */
double rates_cores(struct store *store, double seconds);

/* sample.c: one tensor at a time, in the background. */
struct sample_form {
	uint8_t codec;
	uint64_t stored, decoded; /* bytes of the sample */
	uint64_t encode_ns, decode_ns;
};
struct sample_result {
	int result;
	struct sample_form forms[8]; /* coded ones that save something */
	uint32_t n_forms;
	struct sample_form held; /* as it is stored now; its codec is that of its first coded page */
	double read_ns;		 /* of a stored byte; 0: too few to tell */
};
typedef void (*sample_done)(void *data, const struct sample_result *result);
int sample_start(struct model *model, uint64_t tensor, sample_done done, void *data);

#endif
