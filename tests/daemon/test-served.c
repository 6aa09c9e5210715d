/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A real dcmemd on a private socket, and clients that read, share, fork, die and lose their daemon.
 * argv[1] is the daemon. Waits on descriptors and on the daemon's own counters, never on time alone.
 */
#include "daemon/served.h"

static void test_reads(void **state)
{
	struct dcmem *served = attach(), *embedded = NULL;
	static uint16_t a[ROWS][COLS], b[ROWS][COLS];
	uint8_t ours[16], theirs[16];
	struct dcmem_read q = {.size = sizeof(q), .dst_bytes = sizeof(a)};
	struct dcmem_view view;
	size_t n_bytes;
	char *text;

	assert_int_equal(dcmem_open(path, NULL, &embedded), 0);
	assert_true(dcmem_is_served(served));
	dcmem_fingerprint(served, ours);
	dcmem_fingerprint(embedded, theirs);
	assert_memory_equal(ours, theirs, 16);
	q.dst = a;
	assert_int_equal(dcmem_read(served, &q), 0);
	q.dst = b;
	assert_int_equal(dcmem_read(embedded, &q), 0);
	assert_memory_equal(a, b, sizeof(a));
	assert_memory_equal(a, weights, sizeof(a));
	assert_int_equal(dcmem_acquire(served, 1, 1, 1, &view), 0);
	assert_int_equal(view.kind, DCMEM_VIEW_RAW);
	assert_true(view.lease > 0);
	assert_int_equal(((const uint8_t *)view.data)[7], (uint8_t)((4096 + 7) * 31));
	dcmem_release(served, &view);
	if (dcmem_read_file(served, "config.json", &text, &n_bytes) != 0)
		fail_msg("%s", dcmem_error());
	assert_string_equal(text, CONFIG);
	dcmem_free(text);
	dcmem_close(served);
	dcmem_close(embedded);
}

static void test_sharing(void **state)
{
	uint64_t before = stat_of("decodes");
	pid_t pids[4];
	int status;

	for (unsigned i = 0; i < 4; i++) {
		pids[i] = fork();
		assert_true(pids[i] >= 0);
		if (pids[i] == 0)
			_exit(sweep());
	}
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
		assert_int_equal(status, 0);
	}
	assert_int_equal(stat_of("decodes") - before, ROWS / STEP);
}

static unsigned count_open(void)
{
	DIR *fds = opendir("/proc/self/fd");
	unsigned n = 0;

	while (readdir(fds))
		n++;
	closedir(fds);
	return n;
}

static void test_descriptors(void **state)
{
	unsigned before = count_open();
	struct dcmem *model = attach();
	struct dcmem_view view;

	assert_int_equal(dcmem_acquire(model, 0, 0, STEP, &view), 0);
	assert_int_equal(count_open(), before + 2); /* socket, bell; every mapped object's is closed */
	dcmem_close(model); /* with a lease */
	assert_int_equal(count_open(), before);
}

/* A client killed while it holds leases: they are back soon, and the bytes are right for others. */
static void test_killed_client(void **state)
{
	int ready[2], status;
	char byte;
	pid_t pid;
	unsigned tries = 0;

	assert_int_equal(pipe(ready), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct dcmem *model = NULL;
		struct dcmem_view views[4];
		int r = dcmem_open("m", &options, &model);

		for (unsigned i = 0; i < 4 && r == 0; i++)
			r = dcmem_acquire(model, 0, i * STEP, STEP, &views[i]);
		byte = r == 0 ? 'y' : 'n';
		(void)!write(ready[1], &byte, 1);
		pause();
		_exit(0);
	}
	assert_int_equal(read(ready[0], &byte, 1), 1);
	assert_int_equal(byte, 'y');
	assert_int_equal(stat_of("n_leases"), 4);
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	while (stat_of("n_leases") != 0 && ++tries < 1000)
		;
	assert_int_equal(stat_of("n_leases"), 0);
	assert_int_equal(sweep(), 0);
	close(ready[0]);
	close(ready[1]);
}

static void test_fork(void **state)
{
	struct dcmem *model = attach();
	struct dcmem_tensor t;
	struct dcmem_view view;
	int status;
	pid_t pid;

	assert_int_equal(dcmem_acquire(model, 1, 0, 0, &view), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		bool right = dcmem_tensor(model, 0, &t) == DCMEM_E_FORKED &&
			     ((const uint8_t *)view.data)[3] == 93; /* raw: readable here */

		dcmem_close(model);
		_exit(right ? 0 : 1);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	dcmem_release(model, &view);
	assert_int_equal(dcmem_acquire(model, 0, 0, 1, &view), 0); /* the parent goes on */
	dcmem_release(model, &view);
	dcmem_close(model);
}

/* The daemon killed under a reader: what is mapped stays; after a restart it reconnects. */
static void test_killed_daemon(void **state)
{
	struct dcmem_counters counters = {.size = sizeof(counters)};
	struct dcmem *model = attach();
	struct dcmem_view view, other;
	uint16_t row[COLS];
	struct dcmem_read q = {.size = sizeof(q), .row = 77, .n_rows = 1, .dst = row,
			       .dst_bytes = sizeof(row)};

	assert_int_equal(dcmem_acquire(model, 0, 0, STEP, &view), 0);
	assert_int_equal(dcmem_read(model, &q), 0);
	daemon_stop(SIGKILL);
	assert_memory_equal(view.data, weights[0], view.n_bytes);
	q.row = 99; /* local reads need no daemon */
	assert_int_equal(dcmem_read(model, &q), 0);
	assert_memory_equal(row, weights[99], sizeof(row));
	assert_int_equal(dcmem_acquire(model, 0, STEP, STEP, &other), DCMEM_E_DISCONNECTED);
	assert_non_null(strstr(dcmem_error(), socket_path));
	daemon_start();
	assert_int_equal(dcmem_acquire(model, 0, STEP, STEP, &other), 0);
	assert_memory_equal(other.data, weights[STEP], other.n_bytes);
	assert_memory_equal(view.data, weights[0], view.n_bytes);
	dcmem_release(model, &view); /* of the dead daemon: not said to the new one */
	assert_int_equal(dcmem_acquire(model, 0, 0, STEP, &view), 0);
	dcmem_release(model, &view);
	dcmem_release(model, &other);
	assert_int_equal(dcmem_counters(model, &counters), 0);
	assert_int_equal(counters.reconnects, 1);
	dcmem_close(model);
}

static void test_requests(void **state)
{
	struct dcmem_conn *conn = NULL;
	struct dcmem *model = NULL;
	char *reply = NULL;

	assert_int_equal(dcmem_open("other", &options, &model), DCMEM_E_NOT_FOUND);
	assert_int_equal(dcmem_connect(&options, &conn), 0);
	assert_int_equal(dcmem_request(conn, "{\"cmd\":\"unload\",\"name\":\"x\"}", &reply),
			 DCMEM_E_NOT_FOUND);
	assert_true(strlen(dcmem_error()) > 3);
	assert_int_not_equal(dcmem_request(conn, "not json", &reply), 0);
	assert_int_equal(dcmem_request(conn, "{\"cmd\":\"status\"}", &reply), 0);
	assert_non_null(strstr(reply, "\"ok\":true"));
	dcmem_free(reply);
	dcmem_disconnect(conn);
}

/* Last: takes the model away from an attached client that holds a window. */
static void test_unload(void **state)
{
	struct dcmem *model = attach();
	struct dcmem_conn *conn = NULL;
	struct dcmem_tensor t;
	struct dcmem_view view;
	char *reply = NULL;

	assert_int_equal(dcmem_find(model, "weights", &t), 0);
	assert_int_equal(dcmem_acquire(model, 0, 0, STEP, &view), 0);
	assert_int_equal(dcmem_connect(&options, &conn), 0);
	if (dcmem_request(conn, "{\"cmd\":\"unload\",\"name\":\"m\"}", &reply) != 0)
		fail_msg("%s", dcmem_error());
	dcmem_free(reply);
	dcmem_disconnect(conn);
	assert_int_equal(dcmem_acquire(model, 0, STEP, STEP, &view), DCMEM_E_RETIRED);
	assert_memory_equal(view.data, weights[0], view.n_bytes); /* untouched on failure, readable */
	assert_string_equal(t.name, "weights");
	dcmem_release(model, &view);
	dcmem_close(model);
	assert_int_equal(dcmem_open("m", &options, &model), DCMEM_E_NOT_FOUND);
}

/* A window that was given back is taken up again without a request, until others need the room. */
static void test_kept(void **state)
{
	struct dcmem_counters counters = {.size = sizeof(counters)};
	struct dcmem *model = attach();
	struct dcmem_view view, second;
	uint64_t n_requests;

	assert_int_equal(dcmem_acquire(model, 0, 0, 1, &view), 0);
	dcmem_release(model, &view);
	assert_int_equal(dcmem_counters(model, &counters), 0);
	n_requests = counters.requests;
	for (unsigned i = 0; i < 1000; i++) {
		assert_int_equal(dcmem_acquire(model, 0, 0, 1, &view), 0);
		assert_int_equal(dcmem_acquire(model, 0, 0, 1, &second), 0);
		assert_ptr_equal(view.data, second.data);
		dcmem_release(model, &view);
		dcmem_release(model, &second);
	}
	assert_int_equal(dcmem_counters(model, &counters), 0);
	assert_int_equal(counters.requests, n_requests);
	assert_int_equal(stat_of("n_leases"), 0);
	dcmem_close(model);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reads),	      cmocka_unit_test(test_sharing),
		cmocka_unit_test(test_descriptors),   cmocka_unit_test(test_killed_client),
		cmocka_unit_test(test_fork),	      cmocka_unit_test(test_killed_daemon),
		cmocka_unit_test(test_requests),      cmocka_unit_test(test_kept),
		cmocka_unit_test(test_unload),
	};

	if (argc != 2)
		return 2;
	daemon_path = argv[1];
	return cmocka_run_group_tests(tests, setup, teardown);
}
