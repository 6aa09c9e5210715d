/* SPDX-License-Identifier: Apache-2.0 */
/* JSON commands, the same on both sockets (docs/protocol.md). */
#ifndef DCMEM_ADMIN_H
#define DCMEM_ADMIN_H

#include "daemon/server.h"
#include "dcmem/wire.h"

struct admin_call; /* a command that waits for the store */

/* A read command, parsed: only the text socket can carry it out. */
struct admin_read {
	char model[WIRE_MAX_NAME + 1];
	char *tensor; /* memory_free() */
	uint64_t offset, n_bytes; /* n_bytes UINT64_MAX: to the end */
};

struct admin_request {
	struct server *server;
	const struct peer *peer;
	void (*done)(void *data, char *reply); /* later; memory_free(reply) */
	void *data;
	/* results */
	char *reply; /* ADMIN_REPLY: JSON without newline, memory_free() it; NULL: no memory */
	struct admin_call *call;
	struct admin_read read;
};

enum admin_outcome { ADMIN_REPLY, ADMIN_PENDING, ADMIN_READ };

/* Routes the JSON library's memory through the allocation hook; call first. */
void admin_setup(void);
enum admin_outcome admin_run(struct admin_request *request, const char *text, size_t n_bytes);
/* {"ok":false,...}; result as a function of the store returns it */
char *admin_failure(int result, const char *message);
/* Forget who asked: done() will not be called. NULL is fine. */
void admin_abandon(struct admin_call *call);

#endif
