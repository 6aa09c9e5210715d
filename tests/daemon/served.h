/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tests with a real daemon share: a model on a private socket, the daemon's process, its
 * counters. Included by one file a program.
 */
#ifndef TESTS_SERVED_H
#define TESTS_SERVED_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "codec/codec.h"
#include "dcmem/dcmem.h"
#include "unit/make-container.h"

#ifndef ROWS
#define ROWS 4096
#endif
#define COLS 512
#define PAGE_BYTES (64U << 10) /* 64 rows of 1 KiB: 64 pages */
#define STEP 256 /* rows a window in sweeps */
#define CONFIG "{\"hidden\":512}"

static const char *daemon_path;
static char dir[64], path[128], socket_path[128];
static uint16_t (*weights)[COLS];
static pid_t daemon_pid;
static rlim_t daemon_files; /* descriptors it may have, 0: as many as we */
static const char *daemon_config; /* JSON to start it with, NULL: none */
static struct dcmem_options options = {.size = sizeof(options), .socket_path = socket_path};

static void daemon_start(void)
{
	char model[200], ready[8], config[200], word[5];
	int pipe_fds[2];
	struct pollfd wait;

	(void)snprintf(config, sizeof(config), "%s/dcmemd.json", dir);
	if (daemon_config) {
		FILE *file = fopen(config, "w");

		assert_non_null(file);
		assert_true(fputs(daemon_config, file) >= 0);
		assert_int_equal(fclose(file), 0);
	}
	assert_int_equal(pipe(pipe_fds), 0);
	daemon_pid = fork();
	assert_true(daemon_pid >= 0);
	if (daemon_pid == 0) {
		struct rlimit files = {.rlim_cur = daemon_files, .rlim_max = daemon_files};

		if (daemon_files && setrlimit(RLIMIT_NOFILE, &files) != 0)
			_exit(126);
		(void)snprintf(model, sizeof(model), "%s=m", path);
		(void)snprintf(ready, sizeof(ready), "%d", pipe_fds[1]);
		(void)execl(daemon_path, daemon_path, "--socket", socket_path, "--model", model,
			    "--model-dir", dir, "--ready-fd", ready,
			    daemon_config ? "--config" : "--budget",
			    daemon_config ? config : "512MiB", (char *)NULL);
		_exit(127);
	}
	close(pipe_fds[1]);
	wait = (struct pollfd){.fd = pipe_fds[0], .events = POLLIN};
	assert_int_equal(poll(&wait, 1, 30000), 1);
	assert_int_equal(read(pipe_fds[0], word, 5), 5); /* 0: the daemon ended */
	assert_memory_equal(word, "READY", 5);
	close(pipe_fds[0]);
}

static void daemon_stop(int signal)
{
	int status;

	assert_int_equal(kill(daemon_pid, signal), 0);
	assert_int_equal(waitpid(daemon_pid, &status, 0), daemon_pid);
	daemon_pid = 0;
	if (signal == SIGTERM) /* an orderly end, also under sanitizers */
		assert_int_equal(status, 0);
}

static int setup(void **state)
{
	static uint8_t raw[8192];
	struct make_tensor tensors[] = {
		{"weights", DCMEM_BF16, 2, {ROWS, COLS}, (uint64_t)ROWS * COLS * 2, NULL, PAGE_BYTES,
		 CODEC_ZSTD_PLANES_16},
		{"raw", DCMEM_U8, 2, {2, 4096}, sizeof(raw), raw, 4096, CODEC_RAW},
	};
	uint16_t *flat;
	uint32_t x = 9;

	(void)snprintf(dir, sizeof(dir), "/tmp/dcmem-served-XXXXXX");
	if (!mkdtemp(dir))
		return -1;
	(void)snprintf(path, sizeof(path), "%s/m.dcmem", dir);
	(void)snprintf(socket_path, sizeof(socket_path), "%s/socket", dir);
	weights = malloc(tensors[0].n_bytes);
	flat = (uint16_t *)weights;
	for (unsigned i = 0; i < ROWS * COLS; i++) {
		x = x * 1664525 + 1013904223;
		flat[i] = (uint16_t)(0x3c00 + (x >> 29) * 128 + (x >> 20 & 0x7f));
	}
	for (unsigned i = 0; i < sizeof(raw); i++)
		raw[i] = (uint8_t)(i * 31);
	tensors[0].bytes = weights;
	if (make_container(path, tensors, 2, NULL, 0, CONFIG) != 0)
		return -1;
	daemon_start();
	return 0;
}

static int teardown(void **state)
{
	char command[100];

	if (daemon_pid > 0)
		daemon_stop(SIGTERM);
	(void)snprintf(command, sizeof(command), "rm -rf %s", dir);
	free(weights);
	return system(command);
}

/* A counter of the daemon, by its name in the JSON. */
static __attribute__((unused)) uint64_t stat_of(const char *key)
{
	struct dcmem_conn *conn = NULL;
	char *reply = NULL, member[64], *at;
	uint64_t value;

	if (dcmem_connect(&options, &conn) != 0 ||
	    dcmem_request(conn, "{\"cmd\":\"stats\"}", &reply) != 0)
		fail_msg("%s", dcmem_error());
	(void)snprintf(member, sizeof(member), "\"%s\":", key);
	at = strstr(reply, member);
	if (!at)
		fail_msg("no %s in %s", key, reply);
	value = strtoull(at + strlen(member), NULL, 10);
	dcmem_free(reply);
	dcmem_disconnect(conn);
	return value;
}

static __attribute__((unused)) struct dcmem *attach(void)
{
	struct dcmem *model = NULL;

	if (dcmem_open("m", &options, &model) != 0)
		fail_msg("%s", dcmem_error());
	return model;
}

/* Reads every window of the model and compares it: 0 if all is right. */
static __attribute__((unused)) int sweep(void)
{
	struct dcmem *model = NULL;

	if (dcmem_open("m", &options, &model) != 0)
		return 1;
	for (unsigned row = 0; row < ROWS; row += STEP) {
		struct dcmem_view view;

		if (dcmem_acquire(model, 0, row, STEP, &view) != 0)
			return 2;
		if (view.kind != DCMEM_VIEW_WINDOW || view.n_bytes != STEP * sizeof(weights[0]) ||
		    memcmp(view.data, weights[row], view.n_bytes) != 0)
			return 3;
		dcmem_release(model, &view);
	}
	dcmem_close(model);
	return 0;
}

#endif
