/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What benches of serving share: a model (given, or made up), a daemon of their own on a private
 * socket, and processes that read from it at will.
 */
#ifndef DCMEM_PRIVATE_H
#define DCMEM_PRIVATE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "dcmem/dcmem.h"

struct private_daemon {
	char dir[64], socket[96], model[160]; /* dir: its own, removed in the end */
	bool made_up;			      /* the model lies in dir */
	pid_t pid;			      /* 0: none */
	struct dcmem_options options;
};

/* The daemon beside this program, else in PATH; or `wish`. 0 or -errno, with a message. */
int private_find_daemon(const char *wish, char ret_path[4096]);
/*
 * Makes the directory and, where `container` is NULL, a model of about n_bytes INT8 codes that
 * compress by 2.2 and more.
 */
int private_init(struct private_daemon *daemon, const char *container, uint64_t n_bytes, bool quiet);
void private_deinit(struct private_daemon *daemon);
/* Starts a daemon that holds the model as "m", configured by these members of its JSON. */
int private_start(struct private_daemon *daemon, const char *program, const char *config);
void private_stop(struct private_daemon *daemon);
/* One command; *ret_reply may be NULL. */
int private_command(const struct private_daemon *daemon, const char *command, json_t **ret_reply);

/* --- readers --- */

enum reader_mode { READER_IDLE, READER_SWEEP, READER_RANDOM, READER_NEIGHBOUR, READER_EXIT };

/* Shared with the reader; one line of the cache each. */
struct reader_control {
	uint32_t mode;	 /* atomic, the parent's */
	uint32_t failed; /* atomic: a result of the library, or an errno */
	uint64_t n_bytes; /* atomic: read since it was started */
	uint64_t sum;
	double part;	 /* RANDOM: of the tensors, the first part */
	uint64_t passes; /* over each byte: work of a batch */
	uint64_t reserved[2];
};

struct reader {
	pid_t pid;
	struct reader_control *control;
};

enum reader_way {
	READER_SERVED,	/* windows of the daemon, or in place */
	READER_PRIVATE, /* decoded in the process, from the daemon's memory */
	READER_MAPPED,	/* a file of plain bytes, mapped */
};

/* `delay`: part of the model that it begins at. READER_MAPPED: `path` is the file. */
int reader_start(struct reader *reader, const struct private_daemon *daemon, enum reader_way way,
		 const char *path, double delay);
void reader_stop(struct reader *reader);
void reader_set(const struct reader *reader, enum reader_mode mode);
uint64_t reader_bytes(const struct reader *reader);

#endif
