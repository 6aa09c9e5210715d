/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What benchmarks with a daemon of their own share: a directory for everything, the daemon, the page
 * cache of files, and memory as the kernel counts it, seen from outside.
 */
#ifndef DCMEM_BENCH_HOST_H
#define DCMEM_BENCH_HOST_H

#include <jansson.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "dcmem/dcmem.h"

extern atomic_bool bench_host_stopped; /* by a signal, once bench_host_init() ran */

struct bench_host {
	char directory[1024];
	char program[4096]; /* dcmemd */
	pid_t daemon;	    /* 0: none runs */
	char socket[100];
	struct dcmem_options options; /* for dcmem_open(): that socket */
};

/*
 * A fresh directory in `where` (NULL: $TMPDIR or /var/tmp), a daemon program (NULL: beside this one,
 * or in PATH), signals that set bench_host_stopped. 0 or -errno, with a message.
 */
int bench_host_init(struct bench_host *host, const char *where, const char *dcmemd);
/* Ends the daemon, removes the directory. */
void bench_host_deinit(struct bench_host *host);
/* A path in the directory. */
void bench_host_path(const struct bench_host *host, const char *name, char ret_path[1100]);

/*
 * Starts dcmemd with this budget and objective; "off": tensors stay as their container has them.
 * `model` is loaded as "m" first; NULL: none. 0 or -errno, with a message, when it listens.
 */
int bench_host_start(struct bench_host *host, uint64_t budget_bytes, const char *objective,
		     const char *model);
void bench_host_stop(struct bench_host *host);
/* Replies of the daemon; the caller gives them back. 0, -errno or DCMEM_E_..., with a message. */
int bench_host_request(const struct bench_host *host, json_t *request, json_t **ret_reply);
/* A counter of the daemon; 0 where it has none of that name, or is gone. */
uint64_t bench_host_counter(const struct bench_host *host, const char *name);

/* Writes back and drops a file from the page cache; how many bytes of it are there. */
int bench_cache_drop(const char *path);
uint64_t bench_cache_bytes(const char *path);
/* Reads it all. */
int bench_cache_warm(const char *path);
uint64_t bench_file_bytes(const char *path);

/* Memory of processes as /proc says. */
struct bench_memory_use {
	uint64_t pss;	/* of everything mapped, shared pages in equal parts */
	uint64_t anon;	/* of it private to processes */
	uint64_t shmem; /* in memfds of the daemon, mapped by anybody or not */
};
/* Adds smaps_rollup of one process. */
void bench_memory_add(struct bench_memory_use *use, pid_t pid);
/* Blocks of all memfds that a process has open, each once. */
uint64_t bench_memory_memfds(pid_t pid);

#endif
