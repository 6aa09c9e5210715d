/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests through shared memory, with a real dcmemd: asking ahead, event loops, threads, a daemon
 * that dies meanwhile; and clients that write anything at all into their ring, never read their
 * answers, or flood. argv[1] is the daemon.
 */
#include "daemon/served.h"

#include <pthread.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "dcmem/shm.h"
#include "proto/fdpass.h"
#include "proto/wire.h"

#define N_WINDOWS (ROWS / STEP)

static struct dcmem *attach_asking(void)
{
	struct dcmem_options asking = options;
	struct dcmem *model = NULL;

	asking.flags = DCMEM_OPEN_NO_KEEP;
	if (dcmem_open("m", &asking, &model) != 0)
		fail_msg("%s", dcmem_error());
	return model;
}

static void submit_all(struct dcmem *model)
{
	struct dcmem_ask asks[N_WINDOWS];
	size_t n;

	for (unsigned i = 0; i < N_WINDOWS; i++)
		asks[i] = (struct dcmem_ask){.row = i * STEP, .n_rows = STEP, .data = weights[i * STEP]};
	assert_int_equal(dcmem_submit(model, asks, N_WINDOWS, &n), 0);
	assert_int_equal(n, N_WINDOWS);
}

static void check_answer(struct dcmem *model, struct dcmem_answer *answer)
{
	assert_int_equal(answer->result, 0);
	assert_int_equal(answer->view.n_bytes, STEP * sizeof(weights[0]));
	assert_memory_equal(answer->view.data, answer->data, answer->view.n_bytes);
	dcmem_release(model, &answer->view);
}

static void test_asking_ahead(void **state)
{
	struct dcmem *models[] = {attach_asking(), attach(), NULL};
	uint64_t before = stat_of("ring_requests");

	assert_int_equal(dcmem_open(path, NULL, &models[2]), 0);
	for (unsigned i = 0; i < 3; i++) {
		for (unsigned round = 0; round < 3; round++) {
			unsigned seen = 0;

			submit_all(models[i]);
			while (seen < N_WINDOWS) {
				struct dcmem_answer answers[5];
				size_t n;

				assert_int_equal(dcmem_wait(models[i], answers, 5, 30000, &n), 0);
				assert_in_range(n, 1, 5);
				for (size_t j = 0; j < n; j++)
					check_answer(models[i], &answers[j]);
				seen += (unsigned)n;
			}
			assert_int_equal(seen, N_WINDOWS);
		}
		dcmem_close(models[i]);
	}
	/* each with its release, each round; those who keep windows ask for them once */
	assert_in_range(stat_of("ring_requests") - before, 7 * N_WINDOWS, 100 * N_WINDOWS);
}

static void test_wrong_asks(void **state)
{
	struct dcmem *model = attach_asking();
	struct dcmem_ask asks[DCMEM_MAX_ASKS + 20] = {{.tensor = 99, .data = asks},
						      {.row = ROWS + 1, .data = asks}};
	struct dcmem_answer answers[4];
	size_t n;

	assert_int_equal(dcmem_wait(model, answers, 4, 30000, &n), 0); /* nothing is on its way */
	assert_int_equal(n, 0);
	assert_int_equal(dcmem_submit(model, asks, 2, &n), 0);
	assert_int_equal(n, 2);
	assert_int_equal(dcmem_poll(model, answers, 4, &n), 0);
	assert_int_equal(n, 2);
	for (unsigned i = 0; i < 2; i++) {
		assert_int_equal(answers[i].result, DCMEM_E_INVALID);
		assert_ptr_equal(answers[i].data, asks);
	}
	for (unsigned i = 0; i < DCMEM_MAX_ASKS + 20; i++)
		asks[i] = (struct dcmem_ask){.row = i % ROWS, .n_rows = 1};
	assert_int_equal(dcmem_submit(model, asks, DCMEM_MAX_ASKS + 20, &n), 0);
	assert_int_equal(n, DCMEM_MAX_ASKS);
	assert_int_equal(dcmem_submit(model, asks, 1, &n), 0);
	assert_int_equal(n, 0);
	assert_int_equal(dcmem_poll(model, NULL, 1, &n), DCMEM_E_INVALID);
	dcmem_close(model); /* with everything on its way */
	assert_int_equal(sweep(), 0);
}

static unsigned drain_by_events(struct dcmem *model, int fd, int *ret_result)
{
	struct pollfd ready = {.fd = fd, .events = POLLIN};
	unsigned seen = 0;

	while (seen < N_WINDOWS) {
		struct dcmem_answer answers[3];
		size_t n;

		assert_int_equal(poll(&ready, 1, 30000), 1);
		assert_int_equal(dcmem_poll(model, answers, 3, &n), 0);
		for (size_t i = 0; i < n; i++) {
			*ret_result = answers[i].result;
			if (answers[i].result == 0)
				check_answer(model, &answers[i]);
		}
		seen += (unsigned)n;
	}
	return seen;
}

static void test_events(void **state)
{
	struct dcmem *model = attach_asking();
	int fd, again, result = -1;

	assert_int_equal(dcmem_event_fd(model, &fd), 0);
	for (unsigned round = 0; round < 20; round++) {
		submit_all(model);
		assert_int_equal(drain_by_events(model, fd, &result), N_WINDOWS);
		assert_int_equal(result, 0);
	}
	/* The daemon dies with asks on their way: each has an answer, and the descriptor stays. */
	daemon_stop(SIGKILL);
	submit_all(model);
	assert_int_equal(drain_by_events(model, fd, &result), N_WINDOWS);
	assert_int_equal(result, DCMEM_E_DISCONNECTED);
	daemon_start();
	for (unsigned round = 0; round < 2; round++) {
		submit_all(model);
		assert_int_equal(drain_by_events(model, fd, &result), N_WINDOWS);
		assert_int_equal(result, 0);
	}
	assert_int_equal(dcmem_event_fd(model, &again), 0);
	assert_int_equal(again, fd);
	dcmem_close(model);
}

static void *read_at_random(void *data)
{
	struct dcmem *model = data;
	unsigned x = (unsigned)(uintptr_t)&x;

	for (unsigned i = 0; i < 400; i++) {
		struct dcmem_view view;
		unsigned row;

		x = x * 1664525 + 1013904223;
		row = (x >> 8) % (ROWS - 64);
		if (dcmem_acquire(model, 0, row, 64, &view) != 0 ||
		    memcmp(view.data, weights[row], view.n_bytes) != 0)
			return data;
		dcmem_release(model, &view);
	}
	return NULL;
}

static void test_threads(void **state)
{
	struct dcmem *model = attach_asking();
	pthread_t threads[4];
	void *result;

	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, read_at_random, model), 0);
	for (unsigned i = 0; i < 4; i++) {
		assert_int_equal(pthread_join(threads[i], &result), 0);
		assert_null(result);
	}
	dcmem_close(model);
	assert_int_equal(stat_of("n_leases"), 0);
}

/* --- a client by hand ------------------------------------------------------------------------- */

struct raw_client {
	int socket, bell;
	uint8_t *ring;
	size_t n_bytes;
	uint64_t model;
};

static int raw_call(struct raw_client *c, uint16_t type, const void *body, size_t n_bytes,
		    const char *text, struct wire_message *ret_reply, int fds[FDPASS_MAX])
{
	static uint8_t bytes[WIRE_MAX_PACKET];
	struct wire_header header = {.type = type, .tag = type};
	struct pollfd ready = {.fd = c->socket, .events = POLLIN};
	struct wire_packet packet;
	unsigned n_fds;
	size_t got;

	if (wire_build(&packet, &header, body, n_bytes, text, text ? strlen(text) : 0) != 0 ||
	    fdpass_send(c->socket, packet.bytes, packet.n_bytes, NULL, 0) != 0 ||
	    poll(&ready, 1, 30000) != 1 ||
	    fdpass_recv(c->socket, bytes, sizeof(bytes), fds, &got, &n_fds) != 0)
		return -1;
	return wire_check(WIRE_REPLY, bytes, got, n_fds, ret_reply);
}

static int raw_open(struct raw_client *c)
{
	struct wire_hello hello = {.protocol = WIRE_PROTOCOL, .features = WIRE_FEATURE_RING};
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct wire_attach attach = {.name_bytes = 1};
	struct wire_segment ring = {0};
	struct wire_message reply;
	int fds[FDPASS_MAX];

	(void)snprintf(address.sun_path, sizeof(address.sun_path), "%s", socket_path);
	c->socket = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (connect(c->socket, (struct sockaddr *)&address, sizeof(address)) != 0 ||
	    raw_call(c, WIRE_HELLO, &hello, sizeof(hello), NULL, &reply, fds) != 0 ||
	    raw_call(c, WIRE_ATTACH, &attach, sizeof(attach), "m", &reply, fds) != 0)
		return -1;
	c->model = reply.attach_reply.model;
	close(fds[0]);
	close(fds[1]);
	if (raw_call(c, WIRE_RING, &ring, sizeof(ring), NULL, &reply, fds) != 0)
		return -1;
	c->n_bytes = reply.segment_reply.n_bytes;
	c->bell = fds[1];
	c->ring = mmap(NULL, c->n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fds[0], 0);
	close(fds[0]);
	return c->ring == MAP_FAILED ? -1 : 0;
}

static void raw_close(struct raw_client *c)
{
	munmap(c->ring, c->n_bytes);
	close(c->bell);
	close(c->socket);
}

static bool raw_is_open(struct raw_client *c)
{
	struct pollfd hung = {.fd = c->socket};

	return poll(&hung, 1, 0) == 0;
}

static void raw_ring(struct raw_client *c)
{
	const uint64_t one = 1;

	assert_true(write(c->bell, &one, sizeof(one)) > 0 || errno == EAGAIN);
}

/* Until the daemon ended the session. */
static void raw_wait_closed(struct raw_client *c)
{
	struct pollfd hung = {.fd = c->socket, .events = POLLIN};

	assert_int_equal(poll(&hung, 1, 30000), 1);
	assert_true(hung.revents & (POLLHUP | POLLIN));
}

/* Noise over the whole ring, over and over: the daemon ends that session at most, and serves others. */
static void test_noise(void **state)
{
	unsigned x = 77, n_ended = 0;

	for (unsigned round = 0; round < 60; round++) {
		struct raw_client c;

		assert_int_equal(raw_open(&c), 0);
		for (unsigned i = 0; i < 50 && raw_is_open(&c); i++) {
			for (size_t j = 0; j < c.n_bytes; j++) {
				x = x * 1664525 + 1013904223;
				c.ring[j] = round % 3 == 0 ? (uint8_t)(x >> 24)
					  : round % 3 == 1 ? (uint8_t)((x >> 24) & (x >> 16) & 3)
							   : 0xff;
			}
			raw_ring(&c);
		}
		n_ended += !raw_is_open(&c);
		raw_close(&c);
		if (round % 10 == 0)
			assert_int_equal(sweep(), 0);
	}
	assert_true(n_ended > 0);
	assert_int_equal(sweep(), 0);
}

static struct shm_ask *raw_ask(struct raw_client *c, uint32_t i)
{
	struct shm_ring_header *header = (void *)c->ring;

	return (struct shm_ask *)(c->ring + header->asks_offset) + i % header->n_entries;
}

/* Valid indices, asks that break one rule each: the session ends. */
static void test_broken_rules(void **state)
{
	const struct shm_ask wrong[] = {
		{.type = 0},
		{.type = 77},
		{.type = SHM_ASK_ACQUIRE, .reserved = 1},
		{.type = SHM_ASK_PREFETCH, .reserved_2 = {0, 1}},
		{.type = SHM_ASK_RELEASE, .tag = 12345},
	};

	for (unsigned i = 0; i <= sizeof(wrong) / sizeof(wrong[0]); i++) {
		struct shm_ring_header *header;
		struct raw_client c;

		assert_int_equal(raw_open(&c), 0);
		header = (void *)c.ring;
		if (i < sizeof(wrong) / sizeof(wrong[0]))
			*raw_ask(&c, 0) = wrong[i];
		__atomic_store_n(&header->asked,
				 i < sizeof(wrong) / sizeof(wrong[0]) ? 1 : header->n_entries + 1,
				 __ATOMIC_SEQ_CST);
		raw_ring(&c);
		raw_wait_closed(&c);
		raw_close(&c);
	}
	assert_int_equal(sweep(), 0);
}

/* Asks for windows without end, reads no answer, gives nothing back: others hardly notice. */
static void test_flood(void **state)
{
	struct shm_ring_header *header;
	struct shm_answer *answers;
	struct raw_client c;
	unsigned n_asked = 0;
	pid_t pid;
	int status;

	assert_int_equal(raw_open(&c), 0);
	header = (void *)c.ring;
	answers = (void *)(c.ring + header->answers_offset);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0)
		_exit(sweep() || sweep() || sweep());
	while (waitpid(pid, &status, WNOHANG) == 0) {
		if (n_asked - __atomic_load_n(&header->taken, __ATOMIC_ACQUIRE) >= header->n_entries)
			continue;
		*raw_ask(&c, n_asked) = (struct shm_ask){.type = SHM_ASK_ACQUIRE,
							 .tag = n_asked,
							 .model = c.model,
							 .first_page = n_asked % 64,
							 .n_pages = 1};
		__atomic_store_n(&header->asked, ++n_asked, __ATOMIC_SEQ_CST);
		raw_ring(&c);
	}
	assert_int_equal(status, 0);
	assert_true(n_asked > 0);
	while (__atomic_load_n(&header->answered, __ATOMIC_ACQUIRE) == 0)
		;
	assert_true(answers[0].tag % header->n_entries == 0);
	raw_close(&c);
	while (stat_of("n_leases") != 0)
		;
	assert_int_equal(sweep(), 0);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_asking_ahead), cmocka_unit_test(test_wrong_asks),
		cmocka_unit_test(test_events),	     cmocka_unit_test(test_threads),
		cmocka_unit_test(test_noise),	     cmocka_unit_test(test_broken_rules),
		cmocka_unit_test(test_flood),
	};

	if (argc != 2)
		return 2;
	daemon_path = argv[1];
	/* Nothing becomes raw meanwhile: every window is asked for. */
	daemon_config = "{\"budget\":\"512MiB\",\"objective\":\"off\"}";
	return cmocka_run_group_tests(tests, setup, teardown);
}
