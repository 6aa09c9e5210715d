/* SPDX-License-Identifier: Apache-2.0 */
/* What the verbs that talk to a daemon share: their options, one request, its JSON. */
#ifndef DCMEM_TALK_H
#define DCMEM_TALK_H

#include <jansson.h>

#include "dcmem/dcmem.h"

#define TALK_NO_DAEMON 4 /* exit code: nobody listens */

struct talk {
	const char *verb;
	struct dcmem_options options; /* --socket PATH */
	bool json;		      /* --json */
	const char *name;	      /* --name N, where the verb has it */
	const char *operand;	      /* the one operand, where the verb has it */
};

/*
 * Parses `argv`. `n_operands` is 0 or 1; `takes_name`, `takes_json` say which options exist besides
 * --socket and --help. Returns -1 to go on, or an exit code.
 */
int talk_parse(struct talk *talk, int argc, char **argv, const char *help, int n_operands,
	       bool takes_name, bool takes_json);
/* One request; 0 and its reply, or an exit code after one line on stderr. */
int talk_request(const struct talk *talk, json_t *request, json_t **ret_reply);
/* One line on stderr for a result of the library; the exit code that fits. */
int talk_failure(const char *verb, int result);
/* The reply as it is, or the exit code of a full disk. */
int talk_print_json(const struct talk *talk, const json_t *reply);

/* A member, or what stands for a missing one. */
uint64_t talk_u64(const json_t *object, const char *key);
const char *talk_text(const json_t *object, const char *key);

#endif
