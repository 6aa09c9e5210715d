/* SPDX-License-Identifier: Apache-2.0 */
/* What every verb of the command line shares: its signature, exit codes and one-line failures. */
#ifndef DCMEM_VERB_H
#define DCMEM_VERB_H

#include <stdbool.h>

enum verb_exit {
	VERB_OK = 0,
	VERB_FAILED = 1,
	VERB_USAGE = 2,
	VERB_CORRUPT = 3, /* damaged input, or a verification that failed */
};

/* argv[0] is the verb. Each returns an exit code. */
int verb_pack(int argc, char **argv);
int verb_unpack(int argc, char **argv);
int verb_export(int argc, char **argv);
int verb_verify(int argc, char **argv);
int verb_ls(int argc, char **argv);

/* One line on stderr, control characters replaced; the exit code that fits `result`. */
int verb_failure(const char *verb, int result, const char *text);
/* A usage error: one line, and where help is. Returns VERB_USAGE. */
int verb_usage(const char *verb, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Writes what is left to stdout; a full disk or closed pipe must not look like success. */
int verb_flush(const char *verb);

/* verb-NAME.c */
int verb_load(int argc, char **argv);
int verb_unload(int argc, char **argv);
int verb_status(int argc, char **argv);
int verb_stats(int argc, char **argv);
int verb_cat(int argc, char **argv);
int verb_bench(int argc, char **argv);
int verb_bench_load(int argc, char **argv);
int verb_bench_memory(int argc, char **argv);
int verb_bench_serve(int argc, char **argv);
int verb_plan(int argc, char **argv);
int verb_tune(int argc, char **argv);
int verb_generate(int argc, char **argv);

#endif
