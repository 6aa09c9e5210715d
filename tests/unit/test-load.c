/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading: by io_uring and by threads, past the page cache and from it, with disks that fail and
 * files that change meanwhile. The linker puts functions of this file before those that read
 * (tests/unit/meson.build), so that faults come when they are wanted. Expected bytes are those that
 * the container was made of.
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
#include <semaphore.h>
#include <sys/stat.h>
#include <unistd.h>

#include "codec/codec.h"
#include "daemon/hugepage.h"
#include "daemon/page-cache.h"
#include "daemon/read-ring.h"
#include "daemon/store-impl.h"
#include "dcmem/dcmem.h"
#include "make-container.h"

#define KIB 1024ULL
#define PAGE (64 * KIB)
#define N_LARGE 4
#define N_TENSORS 40
#define N_BYTES (16 * KIB * KIB)
#define DATA_LEAST (64 * KIB) /* reads of less are not faulted: the index comes so */

/* With pieces of 2 MiB: several and a tail; less than one; a tail worth a huge page; not compressed. */
static const uint64_t large[N_LARGE] = {5 * KIB * KIB + 100 * KIB, 700 * KIB, 3800 * KIB, 2048 * KIB};
static char path[64];
static uint8_t bytes[N_BYTES];
static struct make_tensor tensors[N_TENSORS];
static char names[N_TENSORS][8];

/* --- faults --- */

static struct {
	bool no_direct, no_ring, no_cachestat; /* as on other file systems, and kernels */
	enum page_cache cached;	    /* what is told; UNKNOWN: the truth */
	int ring_result;	    /* of the ring's reads; 1: half of what was asked for; 0: no fault */
	int ring_broken;	    /* what waiting for the ring gives */
	int plain_result;	    /* of other reads */
	void (*meanwhile)(void);    /* called once, before the first plain read of a segment */
} faults;
static int n_meanwhile; /* atomic */
static sem_t reading, go_on;

int __real_read_ring_new(uint32_t depth, struct read_ring **ret_ring);
int __wrap_read_ring_new(uint32_t depth, struct read_ring **ret_ring);
int __real_read_ring_probe(void);
int __wrap_read_ring_probe(void);
int __real_read_ring_wait(struct read_ring *ring, void **ret_tag, int *ret_result);
int __wrap_read_ring_wait(struct read_ring *ring, void **ret_tag, int *ret_result);
int __real_io_read_at(int fd, void *data, size_t n_bytes, uint64_t offset);
int __wrap_io_read_at(int fd, void *data, size_t n_bytes, uint64_t offset);
enum page_cache __real_page_cache_has(int fd, uint64_t offset, uint64_t n_bytes);
enum page_cache __wrap_page_cache_has(int fd, uint64_t offset, uint64_t n_bytes);
int __real_open64(const char *name, int flags, ...);
int __wrap_open64(const char *name, int flags, ...);

long __real_syscall(long number, long a, long b, long c, long d, long e, long f);
long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f);

long __wrap_syscall(long number, long a, long b, long c, long d, long e, long f)
{
	if (number == 451 && faults.no_cachestat) {
		errno = ENOSYS;
		return -1;
	}
	return __real_syscall(number, a, b, c, d, e, f);
}

int __wrap_read_ring_new(uint32_t depth, struct read_ring **ret_ring)
{
	return faults.no_ring ? -EPERM : __real_read_ring_new(depth, ret_ring);
}

int __wrap_read_ring_probe(void)
{
	return faults.no_ring ? -EPERM : __real_read_ring_probe();
}

int __wrap_read_ring_wait(struct read_ring *ring, void **ret_tag, int *ret_result)
{
	int result = 0, r;

	if (faults.ring_broken)
		return faults.ring_broken;
	r = __real_read_ring_wait(ring, ret_tag, &result);
	if (!r)
		*ret_result = faults.ring_result == 1 ? result / 2 :
			      faults.ring_result    ? faults.ring_result : result;
	return r;
}

int __wrap_io_read_at(int fd, void *data, size_t n_bytes, uint64_t offset)
{
	if (n_bytes >= DATA_LEAST && faults.meanwhile &&
	    __atomic_fetch_add(&n_meanwhile, 1, __ATOMIC_ACQ_REL) == 0)
		faults.meanwhile();
	if (n_bytes >= DATA_LEAST && faults.plain_result)
		return faults.plain_result;
	return __real_io_read_at(fd, data, n_bytes, offset);
}

enum page_cache __wrap_page_cache_has(int fd, uint64_t offset, uint64_t n_bytes)
{
	return faults.cached == PAGE_CACHE_UNKNOWN ? __real_page_cache_has(fd, offset, n_bytes) :
						     faults.cached;
}

int __wrap_open64(const char *name, int flags, ...)
{
	va_list arguments;
	mode_t mode;

	va_start(arguments, flags);
	mode = flags & O_CREAT ? va_arg(arguments, mode_t) : 0;
	va_end(arguments);
	if (flags & O_DIRECT && faults.no_direct) {
		errno = EINVAL;
		return -1;
	}
	return __real_open64(name, flags, mode);
}

/* --- a model --- */

static int make(void)
{
	struct timespec past[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};
	uint64_t at = 0;
	int r;

	for (unsigned t = 0; t < N_TENSORS; t++) {
		/* Small ones on both sides of each large one, so that what they share has gaps. */
		bool is_large = t % 8 == 4 && t / 8 < N_LARGE;
		uint64_t n_bytes = is_large ? large[t / 8] : 1000 + t * 100;

		(void)snprintf(names[t], sizeof(names[t]), "t%u", t);
		tensors[t] = (struct make_tensor){
			.name = names[t], .dtype = DCMEM_U8, .n_dims = 2, .dims = {n_bytes / 4, 4},
			.n_bytes = n_bytes, .bytes = bytes + at, .page_bytes = PAGE,
			.codec = t % 8 == 4 && t / 8 == 2 ? CODEC_ZSTD : CODEC_RAW};
		at += n_bytes;
		assert_true(at <= N_BYTES);
	}
	r = make_container(path, tensors, N_TENSORS, NULL, 0, "{}");
	/* Older than any change of the tests, however coarse the clock of the file system is. */
	return r ? r : utimensat(AT_FDCWD, path, past, 0);
}

static int setup(void **state)
{
	uint32_t seed = 1;

	for (uint64_t i = 0; i < N_BYTES; i++) {
		seed = seed * 1664525 + 1013904223;
		bytes[i] = (uint8_t)(seed >> 25);
	}
	(void)snprintf(path, sizeof(path), "/var/tmp/dcmem-load-%d.dcmem", (int)getpid());
	(void)sem_init(&reading, 0, 0);
	(void)sem_init(&go_on, 0, 0);
	return make();
}

static int teardown(void **state)
{
	return unlink(path);
}

static int reset(void **state)
{
	memset(&faults, 0, sizeof(faults));
	faults.cached = PAGE_CACHE_UNKNOWN;
	n_meanwhile = 0;
	return 0;
}

struct answer {
	int n, result;
	char message[512];
};

static void on_loaded(void *data, int result, const char *message)
{
	struct answer *answer = data;

	answer->n++;
	answer->result = result;
	(void)snprintf(answer->message, sizeof(answer->message), "%s", message);
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

static struct store *open_store(uint64_t budget, bool no_uring, bool huge_pages)
{
	const struct store_config config = {.budget_bytes = budget, .chunk_bytes = 2 * KIB * KIB,
					    .n_workers = 2, .no_uring = no_uring,
					    .huge_pages = huge_pages};
	struct store *store;

	assert_int_equal(store_new(&config, &store), 0);
	return store;
}

static struct answer load(struct store *store)
{
	struct answer answer = {0};

	assert_int_equal(store_load(store, path, "m", on_loaded, &answer), STORE_PENDING);
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

/* Every byte of every tensor, from where the model has it. */
static void check_bytes(const struct store *store)
{
	const struct model *model = TAILQ_FIRST(&store->models);
	struct codec_context *codec = codec_context_new();
	static uint8_t page[PAGE];

	assert_non_null(codec);
	for (unsigned t = 0; t < N_TENSORS; t++) {
		const struct held *held;
		const uint8_t *form;
		uint64_t id;

		assert_int_equal(index_find(&model->loaded.catalog, names[t], &id), 0);
		held = &model->loaded.held[id];
		form = (const uint8_t *)model->loaded.segments[held->segment].region.data + held->offset;
		for (uint64_t at = 0; at < tensors[t].n_bytes; at += PAGE) {
			const struct container_page *record = &held->pages[at / PAGE];
			uint64_t n = tensors[t].n_bytes - at < PAGE ? tensors[t].n_bytes - at : PAGE;

			assert_int_equal(codec_decode(codec, record->codec,
						      form + record->offset - held->pages_from,
						      record->stored_bytes, page, n), 0);
			assert_memory_equal(page, (const uint8_t *)tensors[t].bytes + at, n);
		}
	}
	codec_context_free(codec);
}

/* It failed, nothing of it is left, and the next load works. */
static void check_gone(struct store *store)
{
	struct store_stats stats = stats_of(store);

	assert_true(TAILQ_EMPTY(&store->models));
	assert_int_equal(stats.inflight_bytes + stats.compressed_bytes + stats.index_bytes, 0);
	(void)reset(NULL);
	assert_int_equal(load(store).result, 0);
	check_bytes(store);
	store_free(store);
}

static bool has_direct(void)
{
	int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);

	if (fd >= 0)
		(void)close(fd);
	return fd >= 0;
}

static void test_ways(void **state)
{
	for (unsigned way = 0; way < 16; way++) {
		bool direct = way & 1, ring = way & 2, huge = way & 4, cached = way & 8;
		struct store_stats stats;
		struct store *store;
		struct answer answer;

		(void)reset(NULL);
		faults.no_direct = !direct;
		faults.cached = cached ? PAGE_CACHE_ALL : PAGE_CACHE_NONE;
		store = open_store(1 << 30, !ring, huge);
		answer = load(store);
		assert_string_equal(answer.message, "");
		assert_int_equal(answer.result, 0);
		check_bytes(store);
		stats = stats_of(store);
		assert_true(stats.loaded_direct_bytes + stats.loaded_cached_bytes +
				    stats.loaded_dropped_bytes >= stats.compressed_bytes);
		assert_int_equal(stats.loaded_cached_bytes > 0, cached);
		assert_int_equal(stats.loaded_direct_bytes > 0, direct && !cached && has_direct());
		assert_int_equal(stats.loaded_dropped_bytes > 0,
				 !cached && !(direct && has_direct()));
		if (!ring)
			assert_int_equal(stats.load_ring, 1);
		/* No segment keeps the huge page that it was filled through. */
		for (uint32_t i = 0; i < TAILQ_FIRST(&store->models)->loaded.n_segments; i++) {
			const struct region *region =
				&TAILQ_FIRST(&store->models)->loaded.segments[i].region;
			struct stat st;

			assert_int_equal(fstat(region->fd, &st), 0);
			assert_int_equal(st.st_size, region->n_bytes);
			assert_true((uint64_t)st.st_blocks * 512 <= (region->n_bytes | 4095) + 1);
		}
		store_free(store);
	}
}

static void test_nothing_stays_cached(void **state)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	assert_true(fd >= 0);
	for (unsigned direct = 0; direct < 2; direct++) {
		struct store *store = open_store(1 << 30, false, true);

		assert_int_equal(fsync(fd), 0);
		assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
		if (page_cache_has(fd, 0, 8 * KIB * KIB) != PAGE_CACHE_NONE) {
			print_message("not tested: %s stays in the page cache\n", path);
			store_free(store);
			break;
		}
		faults.no_direct = !direct;
		assert_int_equal(load(store).result, 0);
		assert_int_equal(page_cache_has(fd, 0, 8 * KIB * KIB), PAGE_CACHE_NONE);
		store_free(store);
	}
	(void)close(fd);
}

/* Of a file that others read a little of, what they read stays cached, and nothing more. */
static void test_cached_in_part(void **state)
{
	uint64_t here = 300 * KIB, there = 2 * KIB * KIB;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	char byte;

	assert_true(fd >= 0);
	for (unsigned direct = 0; direct < 2; direct++) {
		struct store *store = open_store(1 << 30, false, true);

		assert_int_equal(fsync(fd), 0);
		assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
		assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM), 0);
		assert_int_equal(pread(fd, &byte, 1, (off_t)here), 1);
		if (page_cache_has(fd, 0, 8 * KIB * KIB) != PAGE_CACHE_SOME) {
			print_message("not tested: %s stays in the page cache\n", path);
			store_free(store);
			break;
		}
		faults.no_direct = !direct;
		assert_int_equal(load(store).result, 0);
		check_bytes(store);
		assert_int_equal(page_cache_has(fd, here, 1), PAGE_CACHE_ALL);
		/* Without direct reads, the piece around it comes through the cache, and stays. */
		assert_int_equal(page_cache_has(fd, 2 * there, 2 * there), PAGE_CACHE_NONE);
		store_free(store);
	}
	(void)close(fd);
}

static void test_page_cache(void **state)
{
	uint64_t n_bytes = 3 * KIB * KIB;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	char byte;

	assert_true(fd >= 0);
	for (unsigned old = 0; old < 2; old++) {
		faults.no_cachestat = old;
		assert_int_equal(fsync(fd), 0);
		/* Somebody may drop caches of the whole machine just now. */
		for (unsigned try = 0; try < 5; try++) {
			for (uint64_t at = 0; at < n_bytes; at += 4096)
				assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
			if (page_cache_has(fd, 0, n_bytes) == PAGE_CACHE_ALL)
				break;
		}
		assert_int_equal(page_cache_has(fd, 0, n_bytes), PAGE_CACHE_ALL);
		assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED), 0);
		if (page_cache_has(fd, 0, n_bytes) != PAGE_CACHE_NONE) {
			print_message("not tested: %s stays in the page cache\n", path);
			break;
		}
		assert_int_equal(posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM), 0);
		assert_int_equal(pread(fd, &byte, 1, (off_t)(n_bytes - 1)), 1);
		assert_int_equal(page_cache_has(fd, 0, n_bytes), PAGE_CACHE_SOME);
		assert_int_equal(page_cache_has(fd, 0, n_bytes - 64 * KIB), PAGE_CACHE_NONE);
		assert_int_equal(page_cache_has(fd, n_bytes - 10, 5), PAGE_CACHE_ALL);
	}
	(void)close(fd);
}

/* Forbidden by seccomp, or an old kernel. */
static void test_no_ring(void **state)
{
	struct store *store;

	faults.no_ring = true;
	faults.cached = PAGE_CACHE_NONE;
	store = open_store(1 << 30, false, true);
	assert_int_equal(stats_of(store).load_ring, -EPERM);
	assert_int_equal(load(store).result, 0);
	check_bytes(store);
	store_free(store);
}

/* Halves, ends and errors that a second, plain read does not have. */
static void test_short_reads(void **state)
{
	static const int results[] = {1, -EINVAL, -EAGAIN, -EIO};

	for (unsigned i = 0; i < sizeof(results) / sizeof(results[0]); i++) {
		struct store *store = open_store(1 << 30, false, true);

		faults.cached = PAGE_CACHE_NONE;
		faults.ring_result = results[i];
		assert_int_equal(load(store).result, 0);
		check_bytes(store);
		if (!stats_of(store).load_ring)
			assert_int_equal(stats_of(store).loaded_direct_bytes, 0);
		assert_true(stats_of(store).loaded_dropped_bytes > 0);
		store_free(store);
	}
}

static void test_broken_disk(void **state)
{
	for (unsigned cached = 0; cached < 2; cached++) {
		struct store *store = open_store(1 << 30, false, true);
		struct answer answer;

		faults.cached = cached ? PAGE_CACHE_ALL : PAGE_CACHE_NONE;
		faults.ring_result = faults.plain_result = -EIO;
		answer = load(store);
		assert_int_equal(answer.result, -EIO);
		assert_non_null(strstr(answer.message, path));
		assert_non_null(strstr(answer.message, "cannot read bytes"));
		check_gone(store);
	}
}

static void test_broken_ring(void **state)
{
	struct store *store = open_store(1 << 30, false, true);
	struct answer answer;

	faults.cached = PAGE_CACHE_NONE;
	faults.ring_broken = -EBADFD;
	answer = load(store);
	if (has_direct() && !stats_of(store).load_ring) {
		assert_int_equal(answer.result, -EBADFD);
		assert_non_null(strstr(answer.message, "io_uring broke"));
		check_gone(store);
	} else {
		store_free(store);
	}
}

static void shrink_file(void)
{
	assert_int_equal(truncate(path, 3 * KIB * KIB), 0);
}

static void change_file(void)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	static const char text[4096] = "something else";

	assert_true(fd >= 0);
	for (unsigned at = 4096; at < 8 * KIB * KIB; at += 65536)
		assert_int_equal(pwrite(fd, text, sizeof(text), at), sizeof(text));
	assert_int_equal(close(fd), 0);
}

static void fail_while(void (*meanwhile)(void), const char *what)
{
	struct store *store = open_store(1 << 30, false, true);
	struct answer answer;

	faults.cached = PAGE_CACHE_ALL;
	faults.meanwhile = meanwhile;
	answer = load(store);
	assert_int_equal(answer.result, STORE_E_CORRUPT);
	assert_non_null(strstr(answer.message, path));
	assert_non_null(strstr(answer.message, "the file was changed while it was loaded"));
	assert_non_null(strstr(answer.message, what));
	assert_int_equal(make(), 0);
	check_gone(store);
}

static void test_truncated_meanwhile(void **state)
{
	fail_while(shrink_file, "it was truncated");
}

static void test_changed_meanwhile(void **state)
{
	fail_while(change_file, "is damaged");
}

static void hold(void)
{
	(void)sem_post(&reading);
	(void)sem_wait(&go_on);
}

static void test_unload_meanwhile(void **state)
{
	struct store *store = open_store(1 << 30, false, true);
	struct answer answer = {0};

	faults.cached = PAGE_CACHE_ALL;
	faults.meanwhile = hold;
	assert_int_equal(store_load(store, path, "m", on_loaded, &answer), STORE_PENDING);
	assert_int_equal(sem_wait(&reading), 0);
	assert_int_equal(store_unload(store, "m"), 0);
	(void)sem_post(&go_on);
	wait_for(store, &answer);
	assert_int_equal(answer.result, -ECANCELED);
	assert_non_null(strstr(answer.message, "given up"));
	check_gone(store);
}

static void test_stop_meanwhile(void **state)
{
	struct store *store = open_store(1 << 30, false, true);
	struct answer answer = {0};

	faults.cached = PAGE_CACHE_NONE;
	assert_int_equal(store_load(store, path, "m", on_loaded, &answer), STORE_PENDING);
	store_free(store);
	assert_int_equal(answer.n, 1);
	assert_int_equal(answer.result, -ECANCELED);
}

/* Exactly enough: no huge page more than that stays, or is needed to get there. */
static void test_budget(void **state)
{
	struct store *store = open_store(1 << 30, false, true);
	struct answer answer;
	uint64_t need;

	assert_int_equal(load(store).result, 0);
	need = stats_of(store).compressed_bytes + stats_of(store).index_bytes + HUGEPAGE_BYTES;
	store_free(store);
	store = open_store(need, false, true);
	answer = load(store);
	assert_string_equal(answer.message, "");
	assert_int_equal(answer.result, 0);
	check_bytes(store);
	assert_true(stats_of(store).peak_bytes <= need);
	store_free(store);
	store = open_store(need - 1, false, true);
	answer = load(store);
	assert_int_equal(answer.result, STORE_E_BUDGET);
	assert_non_null(strstr(answer.message, "raise the budget"));
	assert_int_equal(stats_of(store).inflight_bytes, 0);
	store_free(store);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_ways, reset),
		cmocka_unit_test_setup(test_nothing_stays_cached, reset),
		cmocka_unit_test_setup(test_cached_in_part, reset),
		cmocka_unit_test_setup(test_page_cache, reset),
		cmocka_unit_test_setup(test_no_ring, reset),
		cmocka_unit_test_setup(test_short_reads, reset),
		cmocka_unit_test_setup(test_broken_disk, reset),
		cmocka_unit_test_setup(test_broken_ring, reset),
		cmocka_unit_test_setup(test_truncated_meanwhile, reset),
		cmocka_unit_test_setup(test_changed_meanwhile, reset),
		cmocka_unit_test_setup(test_unload_meanwhile, reset),
		cmocka_unit_test_setup(test_stop_meanwhile, reset),
		cmocka_unit_test_setup(test_budget, reset),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
