/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A model of 100,000 tensors: loaded by a running daemon, attached by a client that may have 256
 * descriptors, found and read at random. argv[1] is the daemon.
 */
#include "daemon/served.h"

#include "base/clock.h"

#define N_TENSORS 100000U
#define N_BYTES	  64U

static uint8_t value_of(unsigned tensor, unsigned byte)
{
	return (uint8_t)(tensor * 2654435761U >> 11 ^ byte * 37);
}

static int read_some(void)
{
	struct rlimit files = {.rlim_cur = 256, .rlim_max = 256};
	uint64_t started = clock_now_ns();
	struct dcmem *model = NULL;
	uint32_t x = 77;

	if (setrlimit(RLIMIT_NOFILE, &files) != 0 || dcmem_open("many", &options, &model) != 0)
		return 1;
	print_message("attached in %.2f ms\n", (double)(clock_now_ns() - started) / 1e6);
	for (unsigned i = 0; i < 1000; i++) {
		struct dcmem_read q = {.size = sizeof(q), .dst_bytes = N_BYTES};
		uint8_t bytes[N_BYTES];
		struct dcmem_tensor t;
		char name[16];
		unsigned id;

		x = x * 1664525 + 1013904223;
		id = (x >> 8) % N_TENSORS;
		(void)snprintf(name, sizeof(name), "t%06u", id);
		if (dcmem_find(model, name, &t) != 0 || t.n_bytes != N_BYTES)
			return 2;
		q.tensor = t.id;
		q.dst = bytes;
		if (dcmem_read(model, &q) != 0)
			return 3;
		for (unsigned b = 0; b < N_BYTES; b++) {
			if (bytes[b] != value_of(id, b))
				return 4;
		}
	}
	dcmem_close(model);
	return 0;
}

static void test_many_tensors(void **state)
{
	struct make_tensor *tensors = calloc(N_TENSORS, sizeof(*tensors));
	char (*names)[8] = calloc(N_TENSORS, sizeof(*names)), request[300], *reply = NULL;
	uint8_t (*bytes)[N_BYTES] = calloc(N_TENSORS, sizeof(*bytes));
	struct dcmem_conn *conn = NULL;
	char many[200];
	int status;
	pid_t pid;

	for (unsigned i = 0; i < N_TENSORS; i++) {
		(void)snprintf(names[i], sizeof(names[i]), "t%06u", i);
		for (unsigned b = 0; b < N_BYTES; b++)
			bytes[i][b] = value_of(i, b);
		tensors[i] = (struct make_tensor){names[i], DCMEM_U8, 1, {N_BYTES}, N_BYTES, bytes[i],
						  4096, CODEC_RAW};
	}
	(void)snprintf(many, sizeof(many), "%s/many.dcmem", dir);
	assert_int_equal(make_container(many, tensors, N_TENSORS, NULL, 0, CONFIG), 0);
	(void)snprintf(request, sizeof(request),
		       "{\"cmd\":\"load\",\"path\":\"%s\",\"name\":\"many\"}", many);
	assert_int_equal(dcmem_connect(&options, &conn), 0);
	if (dcmem_request(conn, request, &reply) != 0)
		fail_msg("%s", dcmem_error());
	dcmem_free(reply);
	dcmem_disconnect(conn);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(read_some());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	free(tensors);
	free(names);
	free(bytes);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_many_tensors)};

	if (argc != 2)
		return 2;
	daemon_path = argv[1];
	return cmocka_run_group_tests(tests, setup, teardown);
}
