/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Tensors that are held another way while they are read: eight processes verify every byte, by views
 * and by copies, while their forms are swapped by command; a budget that is cut and restored; a load
 * that the tuner must find an answer to by itself. argv[1] is the daemon; DCMEM_TEST_SWAPS how many
 * swaps.
 */
#define ROWS 4096 /* 4 MiB */
#include "daemon/served.h"

#include <jansson.h>
#include <sys/stat.h>

#include "base/clock.h"

#define N_WEIGHTS 6
#define N_READERS 8
#ifdef __SANITIZE_THREAD__
#define N_SWAPS 24 /* a hundred times slower there */
#elif defined(__SANITIZE_ADDRESS__)
#define N_SWAPS 100
#else
#define N_SWAPS 400
#endif
#define MODEL_BYTES (N_WEIGHTS * (uint64_t)ROWS * COLS)

static char tuned_path[200];
static uint8_t (*codes[N_WEIGHTS])[COLS]; /* INT8, two megabytes each */

/* The daemon's answer to {"cmd":"tune",...}. */
static json_t *tune(const char *format, ...)
{
	static struct dcmem_conn *conn;
	char request[300], *reply = NULL;
	json_t *json;
	va_list list;
	int r;

	va_start(list, format);
	(void)vsnprintf(request, sizeof(request), format, list);
	va_end(list);
	r = conn ? dcmem_request(conn, request, &reply) : DCMEM_E_DISCONNECTED;
	if (r == DCMEM_E_DISCONNECTED) { /* the first, or the daemon was killed */
		conn = dcmem_disconnect(conn);
		assert_int_equal(dcmem_connect(&options, &conn), 0);
		r = dcmem_request(conn, request, &reply);
	}
	if (r != 0)
		fail_msg("%s: %s", request, dcmem_error());
	json = json_loads(reply, 0, NULL);
	assert_non_null(json);
	dcmem_free(reply);
	return json;
}

static uint64_t number_of(const char *key)
{
	json_t *state = tune("{\"cmd\":\"tune\"}");
	uint64_t value = (uint64_t)json_integer_value(json_object_get(state, key));

	json_decref(state);
	return value;
}

/* Tensors of the tuned model that are held in this form. */
static unsigned count_held(const char *form)
{
	json_t *state = tune("{\"cmd\":\"tune\",\"model\":\"w\",\"explain\":true}"), *tensor;
	unsigned n = 0;
	size_t i;

	json_array_foreach(json_object_get(state, "tensors"), i, tensor) {
		const char *held = json_string_value(json_object_get(tensor, "held"));

		n += held && !strcmp(held, form);
	}
	json_decref(state);
	return n;
}

static bool wait_until_held(const char *form, unsigned n, unsigned seconds)
{
	uint64_t end = clock_now_ns() + seconds * NS_PER_S;

	while (count_held(form) != n) {
		if (clock_now_ns() > end)
			return false;
		(void)usleep(3000);
	}
	return true;
}

/* Views of whole tensors, of some rows, and copies: 0 if every byte is right. */
static int read_all(struct dcmem *model, unsigned seed)
{
	static uint8_t copy[64][COLS];

	for (unsigned i = 0; i < N_WEIGHTS; i++) {
		unsigned t = (i + seed) % N_WEIGHTS, row = seed * 97 % (ROWS - 64);
		struct dcmem_read q = {.size = sizeof(q), .tensor = t, .row = row, .n_rows = 64,
				       .dst = copy, .dst_bytes = sizeof(copy)};
		struct dcmem_view view;

		if (dcmem_acquire(model, t, 0, 0, &view) != 0)
			return 2;
		if (view.n_bytes != (uint64_t)ROWS * COLS || memcmp(view.data, codes[t], view.n_bytes))
			return 3;
		/* A view stays what it is, whatever happens to the tensor meanwhile. */
		if (seed % 4 == 0)
			(void)usleep(1000);
		if (memcmp(view.data, codes[t], view.n_bytes))
			return 4;
		dcmem_release(model, &view);
		if (dcmem_read(model, &q) != 0)
			return 5;
		if (memcmp(copy, codes[t][row], sizeof(copy)))
			return 6;
	}
	return 0;
}

static pid_t start_reader(unsigned seed, int stop_fd)
{
	struct dcmem *model = NULL;
	pid_t pid = fork();
	int r;

	assert_true(pid >= 0);
	if (pid)
		return pid;
	r = dcmem_open("w", &options, &model);
	while (r == 0) {
		struct pollfd stop = {.fd = stop_fd, .events = POLLIN};

		r = read_all(model, seed++);
		if (r == 0 && poll(&stop, 1, 0) == 1)
			break;
	}
	if (r)
		print_message("a reader failed with %d: %s\n", r, dcmem_error());
	dcmem_close(model);
	_exit(r);
}

static void test_swaps_under_readers(void **state)
{
	static const char *const forms[] = {"raw", "work", "fast", "raw", "dense", "work"};
	const char *wish = getenv("DCMEM_TEST_SWAPS");
	uint64_t n_swaps = wish ? strtoull(wish, NULL, 10) : N_SWAPS, before, held, reached = 0;
	int pipe_fds[2], status;
	pid_t pids[N_READERS];

	held = stat_of("compressed_bytes");
	before = number_of("changes");
	assert_int_equal(pipe(pipe_fds), 0);
	for (unsigned i = 0; i < N_READERS; i++)
		pids[i] = start_reader(i, pipe_fds[0]);
	for (unsigned i = 0; reached < n_swaps; i++) {
		json_decref(tune("{\"cmd\":\"tune\",\"model\":\"w\",\"pin\":\"%s\"}", forms[i % 6]));
		if (!wait_until_held(forms[i % 6], N_WEIGHTS, 60))
			fail_msg("%u of %u are %s after a minute", count_held(forms[i % 6]), N_WEIGHTS,
				 forms[i % 6]);
		reached = number_of("changes") - before;
	}
	assert_int_equal(write(pipe_fds[1], "........", 8), 8);
	for (unsigned i = 0; i < N_READERS; i++) {
		assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
		assert_int_equal(status, 0);
	}
	close(pipe_fds[0]);
	close(pipe_fds[1]);
	print_message("%llu swaps under %u readers\n", (unsigned long long)reached, N_READERS);
	assert_int_equal(number_of("failed"), 0);
	/* Nothing stays behind: what is held is what was held, and nothing waits to be freed. */
	json_decref(tune("{\"cmd\":\"tune\",\"model\":\"w\",\"pin\":\"work\"}"));
	assert_true(wait_until_held("work", N_WEIGHTS, 60));
	for (unsigned i = 0; i < 100 && stat_of("retired_bytes"); i++)
		(void)usleep(100000);
	assert_int_equal(stat_of("retired_bytes"), 0);
	assert_int_equal(stat_of("inflight_bytes"), 0);
	assert_int_equal(stat_of("compressed_bytes"), held);
	assert_int_equal(stat_of("corrupt_pages"), 0);
	json_decref(tune("{\"cmd\":\"tune\",\"model\":\"w\",\"pin\":\"none\"}"));
}

/* A view that is not given back keeps its bytes, and nothing else of the model. */
static void test_view_outlives_its_form(void **state)
{
	struct dcmem *model = NULL;
	struct dcmem_view view, now;

	json_decref(tune("{\"cmd\":\"tune\",\"model\":\"w\",\"pin\":\"raw\"}"));
	assert_true(wait_until_held("raw", N_WEIGHTS, 60));
	assert_int_equal(dcmem_open("w", &options, &model), 0);
	assert_int_equal(dcmem_acquire(model, 0, 0, 0, &view), 0);
	assert_int_equal(view.kind, DCMEM_VIEW_RAW);
	json_decref(tune("{\"cmd\":\"tune\",\"model\":\"w\",\"pin\":\"work\"}"));
	assert_true(wait_until_held("work", N_WEIGHTS, 60));
	assert_int_equal(dcmem_acquire(model, 0, 0, 0, &now), 0);
	assert_int_equal(now.kind, DCMEM_VIEW_WINDOW);
	assert_memory_equal(now.data, codes[0], now.n_bytes);
	assert_memory_equal(view.data, codes[0], view.n_bytes);
	assert_true(stat_of("retired_bytes") >= view.n_bytes);
	dcmem_release(model, &view);
	dcmem_release(model, &now);
	for (unsigned i = 0; i < 100 && stat_of("retired_bytes"); i++)
		(void)usleep(100000);
	assert_int_equal(stat_of("retired_bytes"), 0);
	dcmem_close(model);
	json_decref(tune("{\"cmd\":\"tune\",\"model\":\"w\",\"pin\":\"none\"}"));
}

/* Pins of single tensors, against that of their model. */
static void test_pinned_tensors(void **state)
{
	json_decref(tune("{\"cmd\":\"tune\",\"model\":\"w\",\"pin\":\"raw\"}"));
	assert_true(wait_until_held("raw", N_WEIGHTS, 60));
	json_decref(tune("{\"cmd\":\"tune\",\"model\":\"w\",\"tensors\":\"w[12]\",\"pin\":\"work\"}"));
	assert_true(wait_until_held("work", 2, 60));
	assert_int_equal(count_held("raw"), N_WEIGHTS - 2);
	json_decref(tune("{\"cmd\":\"tune\",\"model\":\"w\",\"tensors\":\"*\",\"pin\":\"none\"}"));
	assert_true(wait_until_held("raw", N_WEIGHTS, 60));
	json_decref(tune("{\"cmd\":\"tune\",\"model\":\"w\",\"pin\":\"none\"}"));
}

/* Read again and again with room to spare, a model becomes raw; with less room, smaller again. */
static void test_budget_follows(void **state)
{
	int pipe_fds[2], status;
	uint64_t smallest;
	pid_t pid;

	json_decref(tune("{\"cmd\":\"tune\",\"objective\":\"latency\",\"budget\":\"64MiB\"}"));
	assert_int_equal(pipe(pipe_fds), 0);
	pid = start_reader(1, pipe_fds[0]);
	assert_true(wait_until_held("raw", N_WEIGHTS, 60));
	smallest = stat_of("index_bytes") + MODEL_BYTES * 3 / 4 + (10ULL << 20);
	json_decref(tune("{\"cmd\":\"tune\",\"budget\":%llu}", (unsigned long long)smallest));
	for (unsigned i = 0; i < 600 && stat_of("compressed_bytes") + stat_of("index_bytes") +
						 stat_of("decoded_bytes") + stat_of("retired_bytes") > smallest; i++)
		(void)usleep(100000);
	assert_true(stat_of("compressed_bytes") + stat_of("index_bytes") + stat_of("decoded_bytes") +
			    stat_of("retired_bytes") <= smallest);
	json_decref(tune("{\"cmd\":\"tune\",\"budget\":\"64MiB\"}"));
	assert_true(wait_until_held("raw", N_WEIGHTS, 60));
	assert_int_equal(write(pipe_fds[1], ".", 1), 1);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	close(pipe_fds[0]);
	close(pipe_fds[1]);
}

/* Killed in the middle of changes, the daemon has lost nothing: the file is what it was. */
static void test_killed_while_changing(void **state)
{
	struct dcmem *model = NULL;

	for (unsigned i = 0; i < 5; i++) {
		json_decref(tune("{\"cmd\":\"tune\",\"model\":\"w\",\"pin\":\"%s\"}",
				 i % 2 ? "dense" : "raw"));
		(void)usleep(1000 * i);
		daemon_stop(SIGKILL);
		daemon_start();
		assert_int_equal(dcmem_open("w", &options, &model), 0);
		assert_int_equal(read_all(model, i), 0);
		dcmem_close(model);
	}
}

static void test_refusals(void **state)
{
	static const char *const wrong[] = {
		"{\"cmd\":\"tune\",\"objective\":\"speed\"}",
		"{\"cmd\":\"tune\",\"budget\":\"1 cup\"}",
		"{\"cmd\":\"tune\",\"budget\":1000}",
		"{\"cmd\":\"tune\",\"background\":0}",
		"{\"cmd\":\"tune\",\"background\":101}",
		"{\"cmd\":\"tune\",\"pin\":\"raw\"}",
		"{\"cmd\":\"tune\",\"explain\":true}",
		"{\"cmd\":\"tune\",\"model\":\"nobody\"}",
		"{\"cmd\":\"tune\",\"model\":\"w\",\"pin\":\"soft\"}",
		"{\"cmd\":\"tune\",\"model\":\"w\",\"floor\":\"raw\",\"ceiling\":\"work\"}",
		"{\"cmd\":\"tune\",\"model\":\"w\",\"weight\":-1}",
		"{\"cmd\":\"tune\",\"model\":\"w\",\"frozen\":1}",
		"{\"cmd\":\"tune\",\"model\":\"w\",\"tensors\":\"*\"}",
		"{\"cmd\":\"tune\",\"tensors\":\"*\",\"pin\":\"raw\"}",
		"{\"cmd\":\"tune\",\"model\":\"w\",\"tensors\":7,\"pin\":\"raw\"}",
		"{\"cmd\":\"tune\",\"model\":\"w\",\"tensors\":\"*\",\"pin\":\"raw\",\"weight\":2}",
		"{\"cmd\":\"tune\",\"model\":\"w\",\"tensors\":\"none*\",\"pin\":\"raw\"}",
	};
	struct dcmem_conn *conn = NULL;
	json_t *before, *after;

	before = tune("{\"cmd\":\"tune\",\"model\":\"w\"}");
	assert_int_equal(dcmem_connect(&options, &conn), 0);
	for (unsigned i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
		char *reply = NULL;

		if (dcmem_request(conn, wrong[i], &reply) <= 0)
			fail_msg("%s: %s", wrong[i], reply);
		dcmem_free(reply);
	}
	dcmem_disconnect(conn);
	after = tune("{\"cmd\":\"tune\",\"model\":\"w\"}");
	assert_true(json_equal(json_object_get(before, "policy"), json_object_get(after, "policy")));
	assert_true(json_equal(json_object_get(before, "budget"), json_object_get(after, "budget")));
	json_decref(before);
	json_decref(after);
}

static int start(void **state)
{
	static char names[N_WEIGHTS][8], config[500];
	struct make_tensor tensors[N_WEIGHTS];
	uint32_t x = 5;
	int r;

	for (unsigned t = 0; t < N_WEIGHTS; t++) {
		codes[t] = malloc((size_t)ROWS * COLS);
		for (unsigned i = 0; i < ROWS * COLS; i++) {
			/* The sum of four small numbers: a bell of about 3 bits. */
			x = x * 1664525 + 1013904223;
			codes[t][i / COLS][i % COLS] =
				(uint8_t)((x >> 30) + (x >> 28 & 3) + (x >> 26 & 3) + (x >> 24 & 3) - 6);
		}
		(void)snprintf(names[t], sizeof(names[t]), "w%u", t);
		tensors[t] = (struct make_tensor){names[t], DCMEM_I8, 2, {ROWS, COLS},
						  (uint64_t)ROWS * COLS, codes[t], 256 << 10,
						  CODEC_PAIR_8};
	}
	(void)snprintf(tuned_path, sizeof(tuned_path), "/tmp/dcmem-tuner-%d.dcmem", (int)getpid());
	r = make_container(tuned_path, tensors, N_WEIGHTS, NULL, 0, CONFIG);
	if (r)
		return r;
	(void)snprintf(config, sizeof(config),
		       "{\"budget\": \"64MiB\", \"chunk\": \"4MiB\", \"models\": "
		       "[{\"path\": \"%s\", \"name\": \"w\"}]}", tuned_path);
	daemon_config = config;
	r = setup(state);
	/* The forms of every tensor are known before anything is asked for. */
	for (unsigned i = 0; !r && i < 300 && number_of("unsampled"); i++)
		(void)usleep(100000);
	return r;
}

static int stop(void **state)
{
	for (unsigned t = 0; t < N_WEIGHTS; t++)
		free(codes[t]);
	(void)unlink(tuned_path);
	return teardown(state);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_swaps_under_readers),
		cmocka_unit_test(test_view_outlives_its_form),
		cmocka_unit_test(test_pinned_tensors),
		cmocka_unit_test(test_budget_follows),
		cmocka_unit_test(test_killed_while_changing),
	};

	if (argc != 2)
		return 2;
	daemon_path = argv[1];
	return cmocka_run_group_tests(tests, start, stop);
}
