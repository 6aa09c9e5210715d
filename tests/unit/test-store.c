/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store, without a socket: loading, single flight, eviction, waiting, orphans, unloading,
 * refusals. Expected bytes come from the arrays that the container was made of.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hash.h"
#include "codec/codec.h"
#include "daemon/store-impl.h"
#include "dcmem/dcmem.h"
#include "make-container.h"
#include "proto/shared.h"

#define MIB (1ULL << 20)
#define N_TENSORS 4 /* three coded and one raw */
#define PAGE (64 << 10)
#define N_PAGES (MIB / PAGE)

static char path[64];
static uint8_t bytes[N_TENSORS][MIB];
static const char *const names[N_TENSORS] = {"a", "b", "c", "raw"};
static uint64_t skipped_ns;

static uint64_t skipping_clock(void)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec + skipped_ns;
}

static int make(const char *to)
{
	struct make_tensor tensors[N_TENSORS];

	for (unsigned t = 0; t < N_TENSORS; t++)
		tensors[t] = (struct make_tensor){.name = names[t], .dtype = DCMEM_U8, .n_dims = 2,
						  .dims = {MIB / 1024, 1024}, .n_bytes = MIB,
						  .bytes = bytes[t], .page_bytes = PAGE,
						  .codec = t == 3 ? CODEC_RAW : CODEC_ZSTD};
	return make_container(to, tensors, N_TENSORS, NULL, 0, "{}");
}

static int setup(void **state)
{
	uint32_t seed = 1;

	for (unsigned t = 0; t < N_TENSORS; t++)
		for (unsigned i = 0; i < MIB; i++) {
			seed = seed * 1664525 + 1013904223;
			bytes[t][i] = (uint8_t)(seed >> 29);
		}
	(void)snprintf(path, sizeof(path), "/tmp/dcmem-store-%d.dcmem", (int)getpid());
	clock_set_source(skipping_clock);
	return make(path);
}

static int teardown(void **state)
{
	return unlink(path);
}

struct answer {
	int n, result;
	struct store_window window;
	char message[256];
};

static void on_loaded(void *data, int result, const char *message)
{
	struct answer *answer = data;

	answer->n++;
	answer->result = result;
	(void)snprintf(answer->message, sizeof(answer->message), "%s", message);
}

static void on_acquired(void *data, int result, const struct store_window *window,
			const char *message)
{
	on_loaded(data, result, message);
	if (window)
		((struct answer *)data)->window = *window;
}

static void wait_for(struct store *store, struct answer *answer)
{
	while (!answer->n) {
		struct pollfd poll_fd = {.fd = store_event_fd(store), .events = POLLIN};

		assert_int_equal(poll(&poll_fd, 1, 20000), 1);
		store_dispatch(store);
	}
	assert_int_equal(answer->n, 1);
}

static struct store *open_store(uint64_t budget)
{
	const struct store_config config = {.budget_bytes = budget, .chunk_bytes = 2 * MIB,
					    .n_workers = 2, .max_leases = 8,
					    .lease_deadline_ms = 30000, .huge_pages = true};
	struct store *store;

	assert_int_equal(store_new(&config, &store), 0);
	return store;
}

static struct answer load(struct store *store, const char *from, const char *name)
{
	struct answer answer = {0};

	assert_int_equal(store_load(store, from, name, on_loaded, &answer), STORE_PENDING);
	wait_for(store, &answer);
	return answer;
}

static struct store_stats stats_of(const struct store *store)
{
	struct store_stats stats;

	assert_true(store_is_valid(store));
	store_get_stats(store, &stats);
	return stats;
}

/* A store with the model "m" and room for just `n_chunks` chunks of two tensors each. */
static struct store *tight_store(unsigned n_chunks)
{
	struct store *store = open_store(64 * MIB);
	struct store_stats stats;
	uint64_t held;

	assert_int_equal(load(store, path, "m").result, 0);
	stats = stats_of(store);
	held = stats.compressed_bytes + stats.index_bytes;
	store_free(store);
	store = open_store(held + n_chunks * 2 * MIB);
	assert_int_equal(load(store, path, "m").result, 0);
	return store;
}

static struct store_client *join(struct store *store, uint64_t *ret_model)
{
	struct store_attachment attachment;
	struct store_client *client;

	assert_int_equal(store_client_new(store, 0, getpid(), &client), 0);
	assert_int_equal(store_attach(client, "m", &attachment), 0);
	close(attachment.index_fd);
	close(attachment.placement_fd);
	*ret_model = attachment.model;
	return client;
}

static struct answer take(struct store_client *client, uint64_t model, uint64_t tensor,
			  uint64_t first, uint64_t n)
{
	struct answer answer = {0};

	answer.result = store_acquire(client, model, tensor, first, n, on_acquired, &answer,
				      &answer.window);
	if (answer.result == STORE_PENDING)
		wait_for(client->store, &answer);
	return answer;
}

static void check_bytes(const struct store_window *window, unsigned tensor)
{
	assert_memory_equal(window->data, bytes[tensor] + window->first_page * PAGE,
			    window->n_bytes);
	assert_int_equal(window->offset % 64, 0);
}

static void test_reads_right_bytes(void **state)
{
	struct store *store = open_store(64 * MIB);
	struct store_client *client;
	struct store_tensor tensor;
	struct answer answer;
	uint64_t model;

	assert_int_equal(load(store, path, NULL).result, 0);
	assert_int_equal(load(store, path, "m").result, 0);
	assert_int_equal(store_load(store, path, "m", on_loaded, &answer), STORE_E_EXISTS);
	client = join(store, &model);
	for (unsigned t = 0; t < N_TENSORS; t++) {
		assert_int_equal(store_find_tensor(store, "m", names[t], &tensor), 0);
		assert_int_equal(tensor.id, t);
		assert_int_equal(tensor.n_pages, N_PAGES);
		answer = take(client, model, t, 3, 5);
		assert_int_equal(answer.result, 0);
		assert_int_equal(answer.window.n_bytes, 5 * PAGE);
		check_bytes(&answer.window, t);
		assert_int_equal(store_release(client, answer.window.lease), 0);
		assert_int_equal(store_release(client, answer.window.lease), STORE_E_INVALID);
	}
	/* Inside a window: a hit, the whole window is told. */
	answer = take(client, model, 0, 4, 1);
	assert_int_equal(answer.window.first_page, 3);
	assert_int_equal(stats_of(store).window_hits, 1);
	assert_int_equal(stats_of(store).decodes, N_TENSORS);
	assert_int_equal(take(client, model, 0, N_PAGES, 1).result, STORE_E_INVALID);
	assert_int_equal(take(client, model, 0, 1, UINT64_MAX).result, STORE_E_INVALID);
	assert_int_equal(take(client, model, N_TENSORS, 0, 1).result, STORE_E_INVALID);
	assert_int_equal(take(client, model + 9, 0, 0, 1).result, STORE_E_NOT_FOUND);
	assert_int_equal(store_release(client, 0), STORE_E_INVALID);
	store_client_free(client, true);
	assert_int_equal(stats_of(store).n_leases, 0);
	store_free(store);
}

static void test_single_flight(void **state)
{
	struct store *store = tight_store(1);
	struct store_client *clients[5];
	struct answer answers[5] = {0};
	uint64_t model;

	for (unsigned i = 0; i < 5; i++)
		clients[i] = join(store, &model);
	for (unsigned i = 0; i < 5; i++)
		assert_int_equal(store_acquire(clients[i], model, 1, 0, N_PAGES, on_acquired,
					       &answers[i], &answers[i].window),
				 STORE_PENDING);
	store_client_free(clients[4], false); /* never answered */
	for (unsigned i = 0; i < 4; i++) {
		wait_for(store, &answers[i]);
		assert_int_equal(answers[i].result, 0);
		check_bytes(&answers[i].window, 1);
	}
	assert_int_equal(answers[4].n, 0);
	assert_int_equal(stats_of(store).decodes, 1);
	assert_int_equal(stats_of(store).window_joins, 4);
	assert_int_equal(stats_of(store).n_leases, 4);
	store_free(store);
}

static void test_evicts_oldest_and_waits(void **state)
{
	struct store *store = tight_store(1);
	struct answer a, b, c, waiting = {0};
	struct store_client *client;
	uint64_t model;

	client = join(store, &model);
	a = take(client, model, 0, 0, N_PAGES);
	b = take(client, model, 1, 0, N_PAGES);
	/* Both leased: the third waits, and is served by a release. */
	assert_int_equal(store_acquire(client, model, 2, 0, N_PAGES, on_acquired, &waiting,
				       &waiting.window),
			 STORE_PENDING);
	store_dispatch(store);
	assert_int_equal(waiting.n, 0);
	check_bytes(&a.window, 0);
	assert_int_equal(store_release(client, b.window.lease), 0);
	wait_for(store, &waiting);
	assert_int_equal(waiting.result, 0);
	check_bytes(&waiting.window, 2);
	check_bytes(&a.window, 0);
	assert_int_equal(stats_of(store).evictions, 1);
	/* Unleased, the one used longest ago goes: that is c, once a was used again. */
	assert_int_equal(store_release(client, waiting.window.lease), 0);
	assert_int_equal(store_release(client, a.window.lease), 0);
	c = take(client, model, 1, 0, N_PAGES);
	assert_int_equal(c.result, 0);
	assert_int_equal(stats_of(store).evictions, 2);
	a = take(client, model, 0, 0, N_PAGES);
	assert_int_equal(stats_of(store).window_hits, 1);
	/* Nobody lets go: refused after a while. */
	waiting = (struct answer){0};
	assert_int_equal(store_acquire(client, model, 2, 0, N_PAGES, on_acquired, &waiting,
				       &waiting.window),
			 STORE_PENDING);
	skipped_ns += 6 * NS_PER_S;
	store_tick(store);
	assert_int_equal(waiting.n, 1);
	assert_int_equal(waiting.result, STORE_E_BUDGET);
	assert_non_null(strstr(waiting.message, "pinned by leases"));
	skipped_ns += 60 * NS_PER_S;
	assert_int_equal(take(client, model, 0, 0, 1).result, STORE_E_OVERDUE);
	assert_int_equal(stats_of(store).refused_overdue, 1);
	store_free(store);
}

static void test_prefetch(void **state)
{
	struct store *store = tight_store(1);
	struct store_client *client;
	struct answer answer;
	uint64_t model;

	client = join(store, &model);
	assert_int_equal(store_prefetch(client, model, 0, 0, N_PAGES), 0);
	assert_int_equal(store_prefetch(client, model, 1, 0, N_PAGES), 0);
	assert_int_equal(store_prefetch(client, model, 2, 0, N_PAGES), 0); /* no room: dropped */
	assert_int_equal(stats_of(store).prefetches, 2);
	answer = take(client, model, 1, 0, N_PAGES);
	assert_int_equal(answer.result, 0);
	check_bytes(&answer.window, 1);
	assert_int_equal(stats_of(store).window_misses, 0);
	store_free(store);
}

/* A child keeps the mapping of a chunk until the pipe is closed. */
static pid_t hold_chunk(struct store_client *client, uint64_t model, uint32_t chunk, int *ret_fd)
{
	int fd, pipe_fds[2];
	uint64_t n_bytes;
	pid_t child;
	void *data;
	char byte;

	assert_int_equal(store_chunk_fd(client, model, chunk, &fd, &n_bytes), 0);
	data = mmap(NULL, n_bytes, PROT_READ, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(data, MAP_FAILED);
	close(fd);
	assert_int_equal(pipe(pipe_fds), 0);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		close(pipe_fds[1]);
		_exit(read(pipe_fds[0], &byte, 1) == 0 ? 0 : 1);
	}
	close(pipe_fds[0]);
	assert_int_equal(munmap(data, n_bytes), 0);
	*ret_fd = pipe_fds[1];
	return child;
}

static void test_orphans(void **state)
{
	struct store *store = tight_store(1);
	struct store_client *dies, *lives;
	struct answer answer, other;
	uint64_t model;
	pid_t child;
	int fd;

	/* Nobody else maps it: free at once. */
	dies = join(store, &model);
	answer = take(dies, model, 0, 0, N_PAGES);
	store_client_free(dies, false);
	assert_int_equal(stats_of(store).orphans_freed, 1);
	assert_int_equal(stats_of(store).orphaned_bytes, 0);
	/* Mapped by a child of the dead. */
	dies = join(store, &model);
	lives = join(store, &model);
	answer = take(dies, model, 0, 0, N_PAGES);
	child = hold_chunk(dies, model, answer.window.chunk, &fd);
	store_client_free(dies, false);
	assert_int_equal(stats_of(store).orphaned_bytes, MIB);
	assert_int_equal(stats_of(store).retired_bytes, 2 * MIB);
	assert_int_equal(stats_of(store).decoded_bytes, 0);
	/* Still served where there is no room for another, never recycled. */
	other = take(lives, model, 0, 0, N_PAGES);
	assert_int_equal(other.result, 0);
	check_bytes(&other.window, 0);
	assert_int_equal(stats_of(store).decodes, 1);
	assert_int_equal(store_release(lives, other.window.lease), 0);
	store_tick(store);
	assert_int_equal(stats_of(store).orphaned_bytes, MIB);
	/* Another tensor waits for the child's end. */
	other = (struct answer){0};
	assert_int_equal(store_acquire(lives, model, 1, 0, N_PAGES, on_acquired, &other,
				       &other.window),
			 STORE_PENDING);
	check_bytes(&answer.window, 0);
	close(fd);
	assert_int_equal(waitpid(child, NULL, 0), child);
	store_tick(store);
	assert_int_equal(stats_of(store).retired_bytes, 0);
	wait_for(store, &other);
	assert_int_equal(other.result, 0);
	check_bytes(&other.window, 1);
	store_free(store);
}

static void test_unload(void **state)
{
	struct store *store = open_store(64 * MIB);
	struct store_client *client;
	struct answer answer;
	uint64_t model, n_bytes;
	uint32_t generation;
	int fd;

	assert_int_equal(load(store, path, "m").result, 0);
	client = join(store, &model);
	answer = take(client, model, 0, 0, N_PAGES);
	assert_int_equal(store_segment_fd(client, model, 0, &fd, &n_bytes, &generation), 0);
	assert_int_equal(store_segment_fd(client, model, 99, &fd, &n_bytes, &generation),
			 STORE_E_INVALID);
	assert_int_equal(store_unload(store, "m"), 0);
	assert_int_equal(store_unload(store, "m"), STORE_E_NOT_FOUND);
	assert_int_equal(take(client, model, 0, 0, 1).result, STORE_E_RETIRED);
	assert_int_equal(stats_of(store).compressed_bytes, 0);
	assert_true(stats_of(store).retired_bytes > 2 * MIB);
	check_bytes(&answer.window, 0);
	assert_int_equal(load(store, path, "m").result, 0); /* the name is free */
	assert_int_equal(store_detach(client, model), 0);
	assert_int_equal(stats_of(store).retired_bytes, n_bytes);
	store_tick(store);
	assert_int_equal(stats_of(store).retired_bytes, n_bytes); /* somebody has its segment */
	close(fd);
	store_tick(store);
	assert_int_equal(stats_of(store).retired_bytes, 0);
	assert_int_equal(stats_of(store).n_models, 1);
	store_free(store);
}

static void test_refusals(void **state)
{
	struct store *store = open_store(1 * MIB);
	struct answer answer = load(store, path, "m");
	char damaged[96];
	uint8_t byte = 0;
	int fd;

	assert_int_equal(answer.result, STORE_E_BUDGET);
	assert_int_equal(stats_of(store).peak_bytes, 0);
	assert_int_equal(load(store, "/nowhere/x.dcmem", NULL).result, -ENOENT);
	store_free(store);

	(void)snprintf(damaged, sizeof(damaged), "%s.bad", path);
	assert_int_equal(make(damaged), 0);
	fd = open(damaged, O_RDWR | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, 4096 + 100), 1);
	byte ^= 0x10;
	assert_int_equal(pwrite(fd, &byte, 1, 4096 + 100), 1);
	store = open_store(64 * MIB);
	answer = load(store, damaged, "m");
	assert_int_equal(answer.result, STORE_E_CORRUPT);
	assert_non_null(strstr(answer.message, "tensor 'a' page 0"));
	assert_int_equal(ftruncate(fd, 8192), 0);
	assert_int_equal(load(store, damaged, "m").result, STORE_E_CORRUPT);
	assert_int_equal(stats_of(store).inflight_bytes, 0);
	assert_int_equal(stats_of(store).n_models, 0);
	close(fd);
	unlink(damaged);
	store_free(store);
}

/* A container whose page 2 of "b" decodes to other bytes than its index says. */
static void spoil_decoded_hash(const char *file)
{
	struct container_header header;
	struct container_index *head;
	uint8_t *index;
	int fd = open(file, O_RDWR | O_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &header, sizeof(header), 0), sizeof(header));
	index = malloc(header.index_bytes);
	assert_non_null(index);
	assert_int_equal(pread(fd, index, header.index_bytes, (off_t)header.index_offset),
			 header.index_bytes);
	head = (struct container_index *)index;
	((struct container_page *)(index + head->tables[CONTAINER_TABLE_PAGES].offset))[N_PAGES + 2]
		.decoded_hash ^= 1;
	header.index_hash = hash_64(index, header.index_bytes);
	header.header_hash = hash_64(&header, offsetof(struct container_header, header_hash));
	assert_int_equal(pwrite(fd, index, header.index_bytes, (off_t)header.index_offset),
			 header.index_bytes);
	assert_int_equal(pwrite(fd, &header, sizeof(header), 0), sizeof(header));
	free(index);
	close(fd);
}

static void test_wrong_decode(void **state)
{
	struct store *store = open_store(64 * MIB);
	struct store_client *client;
	struct answer answer;
	char damaged[96];
	uint64_t model;

	(void)snprintf(damaged, sizeof(damaged), "%s.bad", path);
	assert_int_equal(make(damaged), 0);
	spoil_decoded_hash(damaged);
	assert_int_equal(load(store, damaged, "m").result, 0);
	client = join(store, &model);
	for (unsigned i = 0; i < 2; i++) { /* nothing of it is kept */
		answer = take(client, model, 1, 0, N_PAGES);
		assert_int_equal(answer.result, STORE_E_CORRUPT);
		assert_non_null(strstr(answer.message, "tensor 'b' page 2"));
		assert_int_equal(stats_of(store).n_windows, 0);
		assert_int_equal(stats_of(store).corrupt_pages, i + 1);
	}
	answer = take(client, model, 1, 3, 4);
	assert_int_equal(answer.result, 0);
	check_bytes(&answer.window, 1);
	unlink(damaged);
	store_free(store);
}

/* Odd sizes and three clients: the blocks stay sound and nobody sees another's bytes. */
static void test_many_windows(void **state)
{
	struct store *store = tight_store(1);
	struct store_client *clients[3];
	struct store_window held[3] = {0};
	uint32_t seed = 7;
	uint64_t model;

	for (unsigned i = 0; i < 3; i++)
		clients[i] = join(store, &model);
	for (unsigned i = 0; i < 600; i++) {
		unsigned who = i % 3, tensor;
		struct answer answer;
		uint64_t first, n;

		seed = seed * 1664525 + 1013904223;
		tensor = (seed >> 28) % N_TENSORS;
		first = (seed >> 20) % N_PAGES;
		n = 1 + (seed >> 12) % (N_PAGES - first) % 6;
		if (held[who].lease)
			assert_int_equal(store_release(clients[who], held[who].lease), 0);
		answer = take(clients[who], model, tensor, first, n);
		assert_int_equal(answer.result, 0);
		held[who] = answer.window;
		check_bytes(&held[who], tensor);
		assert_true(held[who].first_page <= first &&
			    held[who].first_page + held[who].n_pages >= first + n);
		assert_true(store_is_valid(store));
	}
	assert_true(stats_of(store).evictions > 10);
	store_free(store);
}

static void test_leases_are_limited(void **state)
{
	struct store *store = open_store(64 * MIB);
	struct store_client *client;
	uint64_t model;

	assert_int_equal(load(store, path, "m").result, 0);
	client = join(store, &model);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(take(client, model, 0, i, 1).result, 0);
	assert_int_equal(take(client, model, 0, 9, 1).result, STORE_E_BUDGET);
	assert_int_equal(stats_of(store).n_leases, 8);
	store_free(store);
}

/* Clients of one user share its quota; another user has its own. */
static void test_users_are_limited(void **state)
{
	struct store *store = open_store(64 * MIB);
	struct store_client *clients[3], *other;
	struct store_attachment attachment;
	uint64_t model;

	store->config.max_user_leases = 10;
	assert_int_equal(load(store, path, "m").result, 0);
	for (unsigned c = 0; c < 3; c++)
		clients[c] = join(store, &model);
	for (unsigned i = 0; i < 10; i++)
		assert_int_equal(take(clients[i % 2], model, 0, i, 1).result, 0);
	assert_int_equal(take(clients[2], model, 0, 0, 1).result, STORE_E_BUDGET);
	assert_int_equal(store_client_new(store, 4242, getpid(), &other), 0);
	assert_int_equal(store_attach(other, "m", &attachment), 0);
	close(attachment.index_fd);
	close(attachment.placement_fd);
	assert_int_equal(take(other, model, 0, 0, 1).result, 0);
	store_client_free(clients[0], true);
	assert_int_equal(take(clients[2], model, 0, 0, 1).result, 0);
	store_free(store);
}

/* Who waits most for room waits behind who waits less. */
static void test_waiting_takes_turns(void **state)
{
	struct store *store = open_store(64 * MIB);
	struct store_client *greedy, *modest;
	struct answer answers[4] = {0};
	struct request *request;
	uint64_t model, held;
	unsigned n = 0;

	assert_int_equal(load(store, path, "m").result, 0);
	held = stats_of(store).compressed_bytes + stats_of(store).index_bytes;
	store_free(store);
	store = open_store(held + 2 * MIB); /* one chunk */
	assert_int_equal(load(store, path, "m").result, 0);
	greedy = join(store, &model);
	modest = join(store, &model);
	assert_int_equal(take(greedy, model, 0, 0, N_PAGES).result, 0);
	assert_int_equal(take(greedy, model, 1, 0, N_PAGES).result, 0);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(store_acquire(i < 3 ? greedy : modest, model, 2, i * 4, 4, on_acquired,
					       &answers[i], &answers[i].window),
				 STORE_PENDING);
	TAILQ_FOREACH(request, &store->waiting, link) {
		/* The modest one came last, and stands behind the first of the greedy one's. */
		assert_true((n == 1) == (request->client == modest));
		n++;
	}
	assert_int_equal(n, 4);
	store_free(store);
}

/* A client that keeps leases: `words` is its own mapping of the table, as the library has it. */
static struct store_client *join_sharing(struct store *store, uint64_t *ret_model, uint64_t **ret_words)
{
	struct store_client *client = join(store, ret_model);
	uint64_t n_bytes;
	uint8_t *base;
	uint32_t n;
	int fd;

	assert_int_equal(store_share(client, &fd, &n_bytes, &n), 0);
	assert_int_equal(n, 8); /* max_leases */
	assert_int_equal(store_share(client, &fd, &n_bytes, &n), STORE_E_INVALID);
	assert_int_equal(ftruncate(fd, 0), -1);
	base = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(base, MAP_FAILED);
	close(fd);
	*ret_words = (uint64_t *)(base + sizeof(struct shm_leases_header));
	return client;
}

static uint32_t generation_of(uint64_t lease)
{
	return (uint32_t)(lease >> 32);
}

static uint64_t *word_of(uint64_t *words, uint64_t lease)
{
	return &words[(uint32_t)lease - 1];
}

/* Room for two tensors and a client's words. */
static struct store *tight_sharing_store(void)
{
	struct store *store = open_store(64 * MIB);
	uint64_t held;

	assert_int_equal(load(store, path, "m").result, 0);
	held = stats_of(store).compressed_bytes + stats_of(store).index_bytes;
	store_free(store);
	store = open_store(held + 2 * MIB + sizeof(struct shm_leases_header) +
			   (8 + N_TENSORS) * sizeof(uint64_t));
	assert_int_equal(load(store, path, "m").result, 0);
	return store;
}

/* Kept and not in use, a lease is the daemon's to end; in use, it holds; taken up, it holds again. */
static void test_kept_leases(void **state)
{
	struct store *store = tight_sharing_store();
	struct answer a, b, c, waiting = {0};
	struct store_client *client;
	uint64_t model, *words;

	client = join_sharing(store, &model, &words);
	a = take(client, model, 0, 0, N_PAGES);
	b = take(client, model, 1, 0, N_PAGES);
	assert_int_equal(a.result, 0);
	assert_int_equal(b.result, 0);
	assert_int_equal(stats_of(store).n_leases, 2);

	/* Given back and taken up again without a word to the daemon. */
	assert_true(shared_lease_drop(word_of(words, a.window.lease), generation_of(a.window.lease)));
	assert_int_equal(stats_of(store).n_leases, 1);
	assert_int_equal(stats_of(store).leased_bytes, MIB);
	assert_true(shared_lease_take(word_of(words, a.window.lease), generation_of(a.window.lease)));
	assert_int_equal(stats_of(store).n_leases, 2);
	check_bytes(&a.window, 0);

	/* Both in use: a third waits, and who gives back now is told to say so. */
	assert_int_equal(store_acquire(client, model, 2, 0, N_PAGES, on_acquired, &waiting,
				       &waiting.window),
			 STORE_PENDING);
	assert_false(shared_lease_drop(word_of(words, a.window.lease), generation_of(a.window.lease)));
	assert_false(shared_lease_take(word_of(words, a.window.lease), generation_of(a.window.lease)));
	assert_int_equal(store_release(client, a.window.lease), 0);
	wait_for(store, &waiting);
	assert_int_equal(waiting.result, 0);
	check_bytes(&waiting.window, 2);
	check_bytes(&b.window, 1);
	assert_int_equal(stats_of(store).evictions, 1);

	/* The slot has another lease now: the old number neither takes it up nor gives it back. */
	c = waiting;
	assert_ptr_equal(word_of(words, c.window.lease), word_of(words, a.window.lease));
	assert_false(shared_lease_take(word_of(words, a.window.lease), generation_of(a.window.lease)));
	assert_int_equal(store_release(client, a.window.lease), 0);
	assert_int_equal(stats_of(store).n_leases, 2);

	/* Kept and idle: evicted at once, by another client too. */
	(void)shared_lease_drop(word_of(words, c.window.lease), generation_of(c.window.lease));
	assert_int_equal(store_release(client, c.window.lease), 0);
	c = take(client, model, 2, 0, N_PAGES);
	assert_int_equal(c.result, 0);
	assert_true(shared_lease_drop(word_of(words, c.window.lease), generation_of(c.window.lease)));
	client = join(store, &model);
	assert_int_equal(take(client, model, 0, 0, N_PAGES).result, 0);
	assert_false(shared_lease_take(word_of(words, c.window.lease), generation_of(c.window.lease)));
	store_free(store);
}

/* Which one goes: the idle one, though the other was asked for earlier. */
static void test_kept_order(void **state)
{
	struct store *store = tight_sharing_store();
	struct store_client *client;
	struct answer a, b;
	uint64_t model, *words;

	client = join_sharing(store, &model, &words);
	a = take(client, model, 0, 0, N_PAGES);
	b = take(client, model, 1, 0, N_PAGES);
	assert_true(shared_lease_drop(word_of(words, b.window.lease), generation_of(b.window.lease)));
	for (unsigned i = 0; i < 3; i++) { /* a stays in use all the time, b goes */
		assert_true(shared_lease_drop(word_of(words, a.window.lease),
					      generation_of(a.window.lease)));
		assert_true(shared_lease_take(word_of(words, a.window.lease),
					      generation_of(a.window.lease)));
	}
	assert_int_equal(take(client, model, 2, 0, N_PAGES).result, 0);
	assert_true(shared_lease_drop(word_of(words, a.window.lease), generation_of(a.window.lease)));
	assert_true(shared_lease_take(word_of(words, a.window.lease), generation_of(a.window.lease)));
	assert_false(shared_lease_take(word_of(words, b.window.lease), generation_of(b.window.lease)));
	check_bytes(&a.window, 0);
	store_free(store);
}

/*
 * What a hostile client can do with its words: hold what it has, as without them, up to its quota; or
 * lose what it has. Others are served, and the sums of the store stay right.
 */
static void test_hostile_words(void **state)
{
	struct store *store = open_store(64 * MIB);
	struct store_client *hostile, *honest;
	uint64_t model, *words, other, n_freed;
	struct answer a;

	assert_int_equal(load(store, path, "m").result, 0);
	hostile = join_sharing(store, &model, &words);
	honest = join(store, &other);
	srand(1);
	for (unsigned i = 0; i < 2000; i++) {
		for (unsigned w = 0; w < 8; w++)
			if (rand() % 2)
				words[w] = (uint64_t)rand() << 33 ^ (uint64_t)rand();
		a = take(hostile, model, (unsigned)rand() % 3, (unsigned)rand() % N_PAGES, 1);
		assert_true(a.result == 0 || a.result == STORE_E_BUDGET);
		if (rand() % 3 == 0)
			assert_int_equal(store_release(hostile, a.window.lease), 0);
		a = take(honest, other, (unsigned)rand() % 3, 0, N_PAGES);
		assert_int_equal(a.result, 0);
		assert_int_equal(store_release(honest, a.window.lease), 0);
		assert_true(store_is_valid(store));
	}
	/* All held for ever: its own quota, and then its deadline, stop it alone. */
	for (unsigned w = 0; w < 8; w++)
		words[w] = ~0ULL;
	store_client_free(hostile, false);
	assert_true(store_is_valid(store));
	hostile = join_sharing(store, &model, &words);
	for (unsigned i = 0; i < 8; i++)
		assert_int_equal(take(hostile, model, 0, i, 1).result, 0);
	assert_int_equal(take(hostile, model, 0, 9, 1).result, STORE_E_BUDGET);
	/* One that it does not use makes room for another. */
	words[3] &= ~SHM_LEASE_IN_USE;
	assert_int_equal(take(hostile, model, 0, 9, 1).result, 0);
	skipped_ns += 31 * NS_PER_S;
	assert_int_equal(take(hostile, model, 0, 9, 1).result, STORE_E_OVERDUE);
	assert_int_equal(take(honest, other, 0, 0, N_PAGES).result, 0);
	/* Kept for ever but not used: not overdue. */
	for (unsigned w = 0; w < 8; w++)
		words[w] &= ~SHM_LEASE_IN_USE;
	assert_int_equal(take(hostile, model, 0, 9, 1).result, 0);
	/* It dies using one: that window alone is an orphan, until nobody is seen to map it. */
	n_freed = stats_of(store).orphans_freed;
	store_client_free(hostile, false);
	assert_int_equal(stats_of(store).orphans_freed, n_freed + 1);
	skipped_ns = 0;
	store_free(store);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reads_right_bytes),
		cmocka_unit_test(test_single_flight),
		cmocka_unit_test(test_evicts_oldest_and_waits),
		cmocka_unit_test(test_prefetch),
		cmocka_unit_test(test_orphans),
		cmocka_unit_test(test_unload),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_wrong_decode),
		cmocka_unit_test(test_many_windows),
		cmocka_unit_test(test_leases_are_limited),
		cmocka_unit_test(test_users_are_limited),
		cmocka_unit_test(test_waiting_takes_turns),
		cmocka_unit_test(test_kept_leases),
		cmocka_unit_test(test_kept_order),
		cmocka_unit_test(test_hostile_words),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
