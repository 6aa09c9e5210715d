/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients that stop, fork, die at any point or pass their mappings on, at a budget that holds less
 * than the decoded model: right bytes or a defined error for everybody, and a budget that stays
 * true. argv[1] is the daemon.
 */
#define ROWS 16384 /* 16 MiB decoded, 11 stored */
#include "daemon/served.h"

#include "base/clock.h"

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define BUDGET (24ULL << 20)
#define CONFIG_OF(more) "{\"budget\": \"24MiB\", \"chunk\": \"1MiB\", \"lease_deadline_ms\": 100" more "}"

static char small_path[200]; /* a model of 4 MiB, 2.7 stored */

static void budget_holds(void)
{
	assert_true(stat_of("compressed_bytes") + stat_of("index_bytes") + stat_of("decoded_bytes") +
			    stat_of("inflight_bytes") + stat_of("retired_bytes") +
			    stat_of("orphaned_bytes") <= BUDGET);
	assert_true(stat_of("peak_bytes") <= BUDGET);
}

static unsigned daemon_open_files(void)
{
	char name[64];
	unsigned n = 0;
	DIR *fds;

	(void)snprintf(name, sizeof(name), "/proc/%d/fd", daemon_pid);
	fds = opendir(name);
	assert_non_null(fds);
	while (readdir(fds))
		n++;
	closedir(fds);
	return n;
}

/* Bytes of shared memory that the daemon has mapped, as the kernel counts them. */
static uint64_t daemon_shared_bytes(void)
{
	char name[64], line[256];
	uint64_t sum = 0, kib;
	FILE *smaps;
	bool is_memfd = false;

	(void)snprintf(name, sizeof(name), "/proc/%d/smaps", daemon_pid);
	smaps = fopen(name, "r");
	assert_non_null(smaps);
	while (fgets(line, sizeof(line), smaps)) {
		if (strchr(line, '-') && strchr(line, '-') < line + 17)
			is_memfd = strstr(line, "/memfd:dcmem") != NULL;
		else if (is_memfd && sscanf(line, "Rss: %lu kB", &kib) == 1)
			sum += kib << 10;
	}
	fclose(smaps);
	return sum;
}

/* Four processes sweep a model whose windows do not all fit: right bytes, within the budget. */
static void test_sweeps_over_budget(void **state)
{
	pid_t pids[4];
	int status;

	for (unsigned i = 0; i < 4; i++) {
		pids[i] = fork();
		assert_true(pids[i] >= 0);
		if (pids[i] == 0)
			_exit(sweep() || sweep());
	}
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(waitpid(pids[i], &status, 0), pids[i]);
		assert_int_equal(status, 0);
	}
	assert_true(stat_of("evictions") > 0); /* else this test tests nothing */
	assert_true(daemon_shared_bytes() <= BUDGET);
	budget_holds();
}

static void say(int fd, char what)
{
	assert_int_equal(write(fd, &what, 1), 1);
}

static char hear(int fd)
{
	char what = 0;

	return read(fd, &what, 1) == 1 ? what : 0;
}

/*
 * A client stopped past its deadline keeps its bytes and is charged for them; others go on. Later
 * it reads what it held, is refused more until it releases, and is then served again.
 */
static void test_stopped_client(void **state)
{
	int ready[2], status;
	pid_t pid;

	assert_int_equal(pipe(ready), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct dcmem *model = NULL;
		struct dcmem_view views[2], more;

		if (dcmem_open("m", &options, &model) != 0 ||
		    dcmem_acquire(model, 0, 0, STEP, &views[0]) != 0 ||
		    dcmem_acquire(model, 0, 5 * STEP, STEP, &views[1]) != 0)
			_exit(1);
		say(ready[1], 'y');
		raise(SIGSTOP);
		if (memcmp(views[0].data, weights[0], views[0].n_bytes) != 0 ||
		    memcmp(views[1].data, weights[5 * STEP], views[1].n_bytes) != 0)
			_exit(2);
		if (dcmem_acquire(model, 0, 9 * STEP, STEP, &more) != DCMEM_E_OVERDUE)
			_exit(3);
		dcmem_release(model, &views[0]);
		dcmem_release(model, &views[1]);
		if (dcmem_acquire(model, 0, 9 * STEP, STEP, &more) != 0 ||
		    memcmp(more.data, weights[9 * STEP], more.n_bytes) != 0)
			_exit(4);
		dcmem_close(model);
		_exit(0);
	}
	assert_int_equal(hear(ready[0]), 'y');
	assert_int_equal(waitpid(pid, &status, WUNTRACED), pid);
	assert_true(WIFSTOPPED(status));
	assert_int_equal(poll(NULL, 0, 150), 0); /* past the deadline of 100 ms */
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(sweep(), 0);
	assert_int_equal(stat_of("n_leases"), 2);
	assert_true(stat_of("leased_bytes") >= 2 * STEP * sizeof(weights[0]));
	budget_holds();
	assert_int_equal(kill(pid, SIGCONT), 0);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
	assert_int_equal(stat_of("n_leases"), 0);
	close(ready[0]);
	close(ready[1]);
}

/*
 * The child of a fork does not have the arena: it faults instead of reading what comes later, and
 * what it maps itself does not get there either.
 */
static void test_forked_child_after_recycling(void **state)
{
	const char *build = getenv("DCMEM_TEST_BUILD");
	struct dcmem *model;
	struct dcmem_view view;
	int go[2], status;
	pid_t pid;

	/* TSan starts a thread in the child before any handler runs; its stack may lie there. */
	if (build && strcmp(build, "tsan") == 0)
		skip();
	model = attach();
	assert_int_equal(dcmem_acquire(model, 0, 0, STEP, &view), 0);
	assert_int_equal(pipe(go), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct rlimit none = {0};

		(void)setrlimit(RLIMIT_CORE, &none);
		(void)signal(SIGSEGV, SIG_DFL);
		if (hear(go[0]) != 'g')
			_exit(3);
		for (unsigned i = 0; i < 64; i++)
			(void)mmap(NULL, 8 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		_exit(memcmp(view.data, weights[0], view.n_bytes) == 0 ? 0 : 4);
	}
	dcmem_release(model, &view);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(sweep(), 0);
	say(go[1], 'g');
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(WTERMSIG(status), SIGSEGV);
	dcmem_close(model);
	close(go[0]);
	close(go[1]);
}

/* A descriptor of the arena that the last mapping is of: -1 where map_files is not to be had. */
static int steal_arena(const void *inside)
{
	char line[256], name[128];
	unsigned long start, end;
	FILE *maps = fopen("/proc/self/maps", "r");
	int fd = -1;

	while (maps && fd < 0 && fgets(line, sizeof(line), maps)) {
		if (sscanf(line, "%lx-%lx", &start, &end) != 2 || (uintptr_t)inside < start ||
		    (uintptr_t)inside >= end)
			continue;
		(void)snprintf(name, sizeof(name), "/proc/self/map_files/%lx-%lx", start, end);
		fd = open(name, O_RDONLY | O_CLOEXEC);
		break;
	}
	if (maps)
		fclose(maps);
	return fd;
}

/*
 * A mapping that another process got hold of: the client that was given it has gone and the model
 * is unloaded, yet its bytes stay as they are and in the budget until that process lets go.
 */
static void test_mapping_passed_on(void **state)
{
	struct dcmem *model = attach();
	struct dcmem_conn *conn = NULL;
	struct dcmem_view view;
	struct stat file;
	uint8_t *stolen;
	char request[300], *reply = NULL;
	size_t at = 0;
	int fd;

	assert_int_equal(dcmem_acquire(model, 0, 0, STEP, &view), 0);
	fd = steal_arena(view.data);
	if (fd < 0) {
		dcmem_close(model);
		skip();
	}
	assert_int_equal(fstat(fd, &file), 0);
	stolen = mmap(NULL, (size_t)file.st_size, PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	assert_ptr_not_equal(stolen, MAP_FAILED);
	while (memcmp(stolen + at, view.data, view.n_bytes) != 0) {
		at += 64;
		assert_true(at + view.n_bytes <= (size_t)file.st_size);
	}
	dcmem_close(model);
	assert_int_equal(dcmem_connect(&options, &conn), 0);
	assert_int_equal(dcmem_request(conn, "{\"cmd\":\"unload\",\"name\":\"m\"}", &reply), 0);
	dcmem_free(reply);
	assert_true(stat_of("orphaned_bytes") + stat_of("retired_bytes") >= (uint64_t)file.st_size);
	(void)snprintf(request, sizeof(request),
		       "{\"cmd\":\"load\",\"path\":\"%s\",\"name\":\"m\"}", path);
	if (dcmem_request(conn, request, &reply) != 0)
		fail_msg("%s", dcmem_error());
	dcmem_free(reply);
	dcmem_disconnect(conn);
	assert_int_equal(sweep(), 0); /* in what is left of the budget */
	assert_memory_equal(stolen + at, weights[0], STEP * sizeof(weights[0]));
	budget_holds();
	assert_int_equal(munmap(stolen, (size_t)file.st_size), 0);
	for (unsigned tries = 0; stat_of("orphaned_bytes") + stat_of("retired_bytes") != 0; tries++) {
		assert_true(tries < 3000);
		(void)usleep(1000);
	}
	assert_int_equal(sweep(), 0);
}

/* Kills clients at random points of their work, while one beside them checks every byte. */
static void test_clients_killed_anywhere(void **state)
{
	const char *build = getenv("DCMEM_TEST_BUILD");
	unsigned n_rounds = build && strcmp(build, "plain") != 0 ? 40 : 200, tries;
	unsigned n_files = daemon_open_files();
	uint32_t x = 12345;
	int status, stop[2];
	pid_t verifier;

	assert_int_equal(pipe(stop), 0);
	assert_int_equal(fcntl(stop[0], F_SETFL, O_NONBLOCK), 0);
	verifier = fork();
	assert_true(verifier >= 0);
	if (verifier == 0) {
		int r = 0;

		while (r == 0 && hear(stop[0]) == 0)
			r = sweep();
		_exit(r);
	}
	for (unsigned i = 0; i < n_rounds; i++) {
		pid_t pid = fork();

		assert_true(pid >= 0);
		if (pid == 0) {
			for (;;) {
				if (sweep() != 0)
					_exit(1);
			}
		}
		x = x * 1664525 + 1013904223;
		(void)usleep(x >> 17); /* up to 33 ms */
		assert_int_equal(kill(pid, SIGKILL), 0);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_true(WIFSIGNALED(status));
	}
	say(stop[1], 's');
	assert_int_equal(waitpid(verifier, &status, 0), verifier);
	assert_int_equal(status, 0);
	for (tries = 0; tries < 1000 && (stat_of("n_leases") != 0 || stat_of("n_clients") != 1); tries++)
		(void)usleep(1000);
	assert_true(tries < 1000);
	/* The connections of our questions end a moment after we have the answer. */
	for (tries = 0; tries < 1000 && daemon_open_files() > n_files; tries++)
		(void)usleep(1000);
	assert_true(tries < 1000);
	budget_holds();
	assert_int_equal(sweep(), 0);
	close(stop[0]);
	close(stop[1]);
}

/* A killed client's leases are back within 100 ms, also while it has requests of its own waiting. */
static void test_leases_return_in_time(void **state)
{
	for (unsigned round = 0; round < 5; round++) {
		uint64_t killed, took_ms;
		int ready[2], status;
		pid_t pid;

		assert_int_equal(pipe(ready), 0);
		pid = fork();
		assert_true(pid >= 0);
		if (pid == 0) {
			struct dcmem *model = NULL;
			struct dcmem_view view;
			int r = dcmem_open("m", &options, &model);

			/* More than fits: the last of these waits in the daemon. */
			for (unsigned row = 0; r == 0 && row < ROWS; row += STEP) {
				r = dcmem_acquire(model, 0, row, STEP, &view);
				if (row == 0)
					say(ready[1], r == 0 ? 'y' : 'n');
			}
			pause();
			_exit(0);
		}
		assert_int_equal(hear(ready[0]), 'y');
		(void)usleep(20000 * (round + 1));
		assert_true(stat_of("n_leases") > 0);
		assert_int_equal(kill(pid, SIGKILL), 0);
		assert_int_equal(waitpid(pid, &status, 0), pid);
		killed = clock_now_ns();
		do {
			took_ms = (clock_now_ns() - killed) / 1000000;
			/* The goal is 100; a busy machine of tests may take longer to run us. */
			assert_true(took_ms < 2000);
		} while (stat_of("n_leases") != 0);
		print_message("leases were back after %u ms\n", (unsigned)took_ms);
		close(ready[0]);
		close(ready[1]);
	}
	assert_int_equal(sweep(), 0);
}

/* Idle windows of one model give way to another that is loaded, and to its windows. */
static void test_models_share_the_budget(void **state)
{
	struct dcmem *model = attach(), *other = NULL;
	struct dcmem_conn *conn = NULL;
	struct dcmem_view view;
	char request[300], *reply = NULL;

	assert_int_equal(sweep(), 0); /* the budget is full of windows of "m" */
	assert_int_equal(dcmem_acquire(model, 0, 0, STEP, &view), 0);
	dcmem_release(model, &view);
	assert_int_equal(dcmem_connect(&options, &conn), 0);
	(void)snprintf(request, sizeof(request),
		       "{\"cmd\":\"load\",\"path\":\"%s\",\"name\":\"other\"}", small_path);
	if (dcmem_request(conn, request, &reply) != 0)
		fail_msg("%s", dcmem_error());
	dcmem_free(reply);
	assert_int_equal(dcmem_open("other", &options, &other), 0);
	for (unsigned row = 0; row < 1024; row += STEP) {
		assert_int_equal(dcmem_acquire(other, 0, row, STEP, &view), 0);
		assert_memory_equal(view.data, weights[row], view.n_bytes);
		dcmem_release(other, &view);
	}
	dcmem_close(other);
	assert_int_equal(dcmem_request(conn, "{\"cmd\":\"unload\",\"name\":\"other\"}", &reply),
			 0);
	dcmem_free(reply);
	dcmem_disconnect(conn);
	assert_int_equal(sweep(), 0);
	budget_holds();
	dcmem_close(model);
}

/* No descriptor left: new clients are refused, old ones served, and all is well afterwards. */
static void test_descriptors_exhausted(void **state)
{
	struct dcmem *model;
	struct dcmem_view view;
	int sockets[100], n_connected = 0;

	daemon_stop(SIGTERM);
	daemon_files = 64;
	daemon_start();
	daemon_files = 0;
	model = attach();
	for (int i = 0; i < 100; i++) {
		struct sockaddr_un address = {.sun_family = AF_UNIX};

		(void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", socket_path);
		sockets[i] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0);
		assert_true(sockets[i] >= 0);
		n_connected += connect(sockets[i], (struct sockaddr *)&address, sizeof(address)) == 0;
	}
	assert_true(n_connected > 0);
	assert_int_equal(dcmem_acquire(model, 0, 0, STEP, &view), 0);
	assert_memory_equal(view.data, weights[0], view.n_bytes);
	dcmem_release(model, &view);
	for (int i = 0; i < 100; i++)
		close(sockets[i]);
	dcmem_close(model);
	/* Until the daemon has seen that they hung up, it turns others away. */
	for (unsigned i = 0; i < 1000 && dcmem_open("m", &options, &model) != 0; i++)
		(void)usleep(10000);
	dcmem_close(model);
	assert_int_equal(sweep(), 0);
}

static int start(void **state)
{
	struct make_tensor tensor = {"weights", DCMEM_BF16, 2, {4096, COLS}, 4096ULL * COLS * 2, NULL,
				     PAGE_BYTES, CODEC_ZSTD_PLANES_16};
	int r;

	daemon_config = CONFIG_OF("");
	r = setup(state);
	tensor.bytes = weights;
	(void)snprintf(small_path, sizeof(small_path), "%s/small.dcmem", dir);
	return r ? r : make_container(small_path, &tensor, 1, NULL, 0, CONFIG);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sweeps_over_budget),
		cmocka_unit_test(test_stopped_client),
		cmocka_unit_test(test_forked_child_after_recycling),
		cmocka_unit_test(test_clients_killed_anywhere),
		cmocka_unit_test(test_leases_return_in_time),
		cmocka_unit_test(test_mapping_passed_on),
		cmocka_unit_test(test_models_share_the_budget),
		cmocka_unit_test(test_descriptors_exhausted),
	};

	if (argc != 2)
		return 2;
	daemon_path = argv[1];
	return cmocka_run_group_tests(tests, start, teardown);
}
