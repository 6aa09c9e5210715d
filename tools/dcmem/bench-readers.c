/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Readers are processes. They attach, wait for each other, sweep while time is taken, sweep once more
 * while memory is sampled, and hold until the last sample; a pipe that is closed starts each phase,
 * a byte says that one has ended it. A reader ends with its parent. Nothing is shared between runs.
 */
#include "bench-readers.h"

#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "bench-convert.h"

#define N_PHASES    3 /* timed, sampled, end */
#define SAMPLE_MS   50
#define DECODE_RING (64ULL << 20)

struct report { /* shared; written by its reader before the byte of a phase */
	uint64_t start_ns, end_ns, sum;
	int result;
	char message[200];
};

struct block { /* what is asked for at once */
	uint64_t tensor, row, n_rows, n_bytes;
};

struct blocks {
	struct block *list;
	size_t n, capacity;
	uint64_t largest;
};

struct reader {
	const struct bench_sweep *sweep;
	struct dcmem *model;
	const uint8_t *map;
	struct blocks blocks;
	uint8_t *buffer;
	uint64_t buffer_bytes, at;
};

/* --- in a reader --- */

static int plan_blocks(struct reader *reader, uint64_t block_bytes)
{
	struct blocks *blocks = &reader->blocks;
	int r = 0;

	for (uint64_t id = 0; id < dcmem_n_tensors(reader->model) && !r; id++) {
		struct dcmem_tensor tensor;
		uint64_t rows;

		r = dcmem_tensor(reader->model, id, &tensor);
		if (r || !tensor.n_bytes)
			continue;
		/* Whole pages, where they hold whole rows. */
		rows = max_u64(tensor.page_bytes / tensor.row_bytes, 1);
		rows *= max_u64(block_bytes / (rows * tensor.row_bytes), 1);
		for (uint64_t row = 0; row < tensor.n_rows && !r; row += rows) {
			struct block block = { id, row, min_u64(rows, tensor.n_rows - row), 0 };

			block.n_bytes = block.n_rows * tensor.row_bytes;
			blocks->largest = max_u64(blocks->largest, block.n_bytes);
			r = memory_grow((void **)&blocks->list, &blocks->capacity, blocks->n,
					blocks->n + 1, sizeof(block));
			if (!r)
				blocks->list[blocks->n++] = block;
		}
	}
	return r;
}

static int attach(struct reader *reader)
{
	const struct bench_sweep *sweep = reader->sweep;
	bool served = sweep->way == BENCH_WAY_SERVED;
	int r, fd;

	if (sweep->way == BENCH_WAY_MMAP) {
		void *map;

		fd = open(sweep->path, O_RDONLY | O_CLOEXEC);
		map = fd < 0 ? MAP_FAILED :
			       mmap(NULL, sweep->n_bytes, PROT_READ, MAP_SHARED, fd, 0);
		if (map == MAP_FAILED)
			return -errno;
		(void)madvise(map, sweep->n_bytes, MADV_HUGEPAGE);
		close(fd);
		reader->map = map;
		return 0;
	}
	r = dcmem_open(served ? "m" : sweep->path, served ? &sweep->host->options : NULL,
		       &reader->model);
	if (!r)
		r = plan_blocks(reader, served ? sweep->window_bytes : 1);
	if (r || served)
		return r;
	reader->buffer_bytes = max_u64(sweep->way == BENCH_WAY_DECODE ? DECODE_RING : 0,
				       reader->blocks.largest);
	reader->buffer = memory_alloc(reader->buffer_bytes);
	return reader->buffer ? 0 : -ENOMEM;
}

static int read_served(struct reader *reader, size_t i, uint64_t *sum)
{
	const struct blocks *blocks = &reader->blocks;
	const struct block *block = &blocks->list[i], *next = &blocks->list[(i + 1) % blocks->n];
	struct dcmem_view view = { 0 };
	int r = dcmem_acquire(reader->model, block->tensor, block->row, block->n_rows, &view);

	if (r)
		return r;
	/* One ahead: it is made while this one is read. */
	r = view.kind == DCMEM_VIEW_WINDOW ?
		    dcmem_prefetch(reader->model, next->tensor, next->row, next->n_rows) : 0;
	*sum += bench_sum_bytes(view.data, view.n_bytes);
	dcmem_release(reader->model, &view);
	return r;
}

static int read_private(struct reader *reader, size_t i, uint64_t *sum)
{
	const struct block *block = &reader->blocks.list[i];
	struct dcmem_read request = { .size = sizeof(request), .tensor = block->tensor,
				      .row = block->row, .n_rows = block->n_rows };
	int r;

	if (reader->at + block->n_bytes > reader->buffer_bytes)
		reader->at = 0;
	request.dst = reader->buffer + reader->at;
	request.dst_bytes = block->n_bytes;
	r = dcmem_read(reader->model, &request);
	if (reader->sweep->way == BENCH_WAY_DECODE)
		reader->at += align_up(block->n_bytes, 64);
	else if (!r)
		*sum += bench_sum_bytes(request.dst, block->n_bytes);
	return r;
}

static int sweep_once(struct reader *reader, uint64_t *sum)
{
	int r = 0;

	if (reader->map) {
		*sum += bench_sum_bytes(reader->map, reader->sweep->n_bytes);
		return 0;
	}
	for (size_t i = 0; i < reader->blocks.n && !r; i++)
		r = reader->sweep->way == BENCH_WAY_SERVED ? read_served(reader, i, sum) :
							     read_private(reader, i, sum);
	return r;
}

static void end_phase(int up)
{
	ssize_t n;

	do
		n = write(up, "", 1);
	while (n < 0 && errno == EINTR);
}

static void begin_phase(int go)
{
	char none;
	ssize_t n;

	do /* nobody writes: it ends when the parent closes it */
		n = read(go, &none, 1);
	while (n < 0 && errno == EINTR);
}

static void reader_main(const struct bench_sweep *sweep, struct report *report, int up,
			const int *go)
{
	struct reader reader = { .sweep = sweep };
	int r = attach(&reader);
	uint64_t again = 0;

	end_phase(up);
	begin_phase(go[0]);
	report->start_ns = clock_now_ns();
	for (unsigned i = 0; i < sweep->n_sweeps && !r; i++)
		r = sweep_once(&reader, &report->sum);
	report->end_ns = clock_now_ns();
	if (!r && sweep->way != BENCH_WAY_DECODE && report->sum != sweep->sum * sweep->n_sweeps)
		r = DCMEM_E_CORRUPT;
	report->result = r;
	snprintf(report->message, sizeof(report->message), "%s",
		 r == DCMEM_E_CORRUPT	? "a sweep found other bytes than the container has" :
		 r > 0 && *dcmem_error() ? dcmem_error() : dcmem_strerror(r));
	end_phase(up);
	begin_phase(go[1]);
	if (!r && sweep->way != BENCH_WAY_DECODE)
		report->result = sweep_once(&reader, &again);
	end_phase(up);
	begin_phase(go[2]);
	_exit(0); /* without goodbye, so that nothing of the parent is written twice */
}

/* --- the parent --- */

struct run {
	const struct bench_sweep *sweep;
	struct report *reports; /* shared */
	pid_t pids[BENCH_MAX_READERS];
	unsigned n;
	int up;
	int go[N_PHASES]; /* the ends whose closing begins a phase */
	struct bench_sweep_result result;
};

static int start_readers(struct run *run)
{
	int go[N_PHASES][2], up[2], ends[N_PHASES], r = 0;

	if (pipe2(up, O_CLOEXEC) != 0)
		return -errno;
	for (unsigned i = 0; i < N_PHASES; i++) {
		if (pipe2(go[i], O_CLOEXEC) != 0)
			return -errno; /* the process ends soon: descriptors were all used */
		run->go[i] = go[i][1];
		ends[i] = go[i][0];
	}
	(void)fflush(NULL);
	(void)malloc_trim(0); /* what is free here would count as memory of the readers */
	for (unsigned i = 0; i < run->sweep->n_processes && !r; i++) {
		pid_t pid = fork();

		if (pid == 0) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			signal(SIGINT, SIG_IGN); /* the parent kills us */
			for (unsigned k = 0; k < N_PHASES; k++)
				close(run->go[k]);
			reader_main(run->sweep, &run->reports[i], up[1], ends);
		}
		if (pid < 0)
			r = -errno;
		else
			run->pids[run->n++] = pid;
	}
	close(up[1]);
	for (unsigned i = 0; i < N_PHASES; i++)
		close(ends[i]);
	run->up = up[0];
	return r;
}

static void stop_readers(struct run *run)
{
	for (unsigned i = 0; i < N_PHASES; i++)
		run->go[i] = close_fd(run->go[i]);
	for (unsigned i = 0; i < run->n; i++) {
		kill(run->pids[i], SIGKILL);
		while (waitpid(run->pids[i], NULL, 0) < 0 && errno == EINTR)
			;
	}
	run->up = close_fd(run->up);
}

static void sample(struct run *run)
{
	struct bench_memory_use use = { 0 };
	uint64_t of_daemon = 0;

	if (run->sweep->way == BENCH_WAY_SERVED) {
		bench_memory_add(&use, run->sweep->host->daemon);
		use.shmem = bench_memory_memfds(run->sweep->host->daemon);
		of_daemon = use.anon + use.shmem;
	}
	for (unsigned i = 0; i < run->n; i++)
		bench_memory_add(&use, run->pids[i]);
	if (use.anon + use.shmem >= run->result.peak.anon + run->result.peak.shmem)
		run->result.peak = use;
	run->result.daemon_bytes = max_u64(run->result.daemon_bytes, of_daemon);
}

/* Until every reader has ended the phase. */
static int wait_phase(struct run *run, bool sampled)
{
	unsigned n = 0;

	while (n < run->n) {
		struct pollfd wait = { .fd = run->up, .events = POLLIN };
		char bytes[BENCH_MAX_READERS];
		int got;

		if (atomic_load(&bench_host_stopped))
			return message_set(-EINTR, "stopped by a signal");
		got = poll(&wait, 1, SAMPLE_MS);
		if (got > 0) {
			ssize_t k = read(run->up, bytes, run->n - n);

			if (k == 0)
				return message_set(-ECHILD, "the readers died");
			n += k > 0 ? (unsigned)k : 0;
		}
		for (unsigned i = 0; got == 0 && i < run->n; i++)
			if (waitpid(run->pids[i], NULL, WNOHANG) == run->pids[i]) {
				run->pids[i] = run->pids[--run->n];
				return message_set(-ECHILD, "a reader died");
			}
		if (sampled)
			sample(run);
	}
	return 0;
}

static int check_readers(const struct run *run)
{
	for (unsigned i = 0; i < run->n; i++)
		if (run->reports[i].result)
			return message_set(run->reports[i].result, "reader %u of %u: %s", i + 1,
					   run->n, run->reports[i].message);
	return 0;
}

static int run_phases(struct run *run)
{
	const struct bench_host *host = run->sweep->host;
	bool served = run->sweep->way == BENCH_WAY_SERVED;
	uint64_t before, first = UINT64_MAX, last = 0;
	int r = wait_phase(run, false);

	before = served ? bench_host_counter(host, "decoded_total_bytes") : 0;
	run->go[0] = close_fd(run->go[0]);
	if (!r)
		r = wait_phase(run, false);
	if (!r)
		r = check_readers(run);
	if (r)
		return r;
	for (unsigned i = 0; i < run->n; i++) {
		first = min_u64(first, run->reports[i].start_ns);
		last = max_u64(last, run->reports[i].end_ns);
	}
	run->result.seconds = (double)(last - first) / NS_PER_S;
	if (served)
		run->result.decoded_bytes = bench_host_counter(host, "decoded_total_bytes") - before;
	run->go[1] = close_fd(run->go[1]);
	r = wait_phase(run, true);
	if (!r)
		r = check_readers(run);
	if (!r)
		sample(run);
	if (served)
		run->result.daemon_says_bytes = bench_host_counter(host, "peak_bytes");
	return r;
}

int bench_sweep_run(const struct bench_sweep *sweep, struct bench_sweep_result *ret_result)
{
	size_t n_bytes = BENCH_MAX_READERS * sizeof(struct report);
	struct run run = { .sweep = sweep, .up = -1, .go = { -1, -1, -1 } };
	int r;

	run.reports = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (run.reports == MAP_FAILED)
		return message_set(-errno, "cannot map memory for readers: %s", strerror(errno));
	r = start_readers(&run);
	if (r)
		message_set(r, "cannot start %u readers: %s", sweep->n_processes, strerror(-r));
	else
		r = run_phases(&run);
	stop_readers(&run);
	munmap(run.reports, n_bytes);
	if (!r)
		*ret_result = run.result;
	return r;
}
