/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Holding a tensor another way: its pages are stored anew in the background, decoded again and
 * compared, and then published in the place of the old ones.
 */
#ifndef DCMEM_RECODE_H
#define DCMEM_RECODE_H

#include "store-impl.h"

enum recode_outcome {
	RECODE_E_LARGER = 200, /* does not fit max_bytes after all */
	RECODE_E_GONE = 201,   /* the model was unloaded, or it was cancelled */
};

struct recode_request {
	struct model *model;
	uint64_t tensor;  /* one that has a segment alone */
	bool from_file;	  /* read back as the container has it; else encoded with: */
	uint8_t codec;	  /* CODEC_RAW: readable in place */
	int effort;
	uint64_t max_bytes; /* of stored pages, as estimated; charged until the size is known */
	bool over;	    /* the budget was cut, and this is the way back under it */
};

struct recode;
struct recode_result {
	int result; /* 0: published; STORE_E_..., RECODE_E_..., -errno, with a message */
	char message[512];
	uint64_t stored_bytes;
	uint64_t busy_ns; /* of threads */
};
typedef void (*recode_done)(void *data, const struct recode_result *result);
/*
 * Begins; done() comes later, once, on the loop thread. STORE_E_BUDGET: no room for both versions
 * now, and nothing was begun.
 */
int recode_start(const struct recode_request *request, recode_done done, void *data,
		 struct recode **ret_recode);
/* done() comes soon, with RECODE_E_GONE unless it was finished already. */
void recode_cancel(struct recode *recode);

#endif
