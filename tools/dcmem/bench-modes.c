/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Readers in modes. Owns their processes and the words shared with them, one page each; a reader ends
 * with its parent. Every byte that a reader counts it has summed.
 */
#include "bench-modes.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/message.h"
#include "base/range.h"
#include "bench-convert.h"

#define BLOCK_BYTES	(2U << 20)
#define NEIGHBOUR_BYTES (64U << 20)

static void take(struct reader_control *control, const void *data, uint64_t n_bytes)
{
	for (uint64_t i = 0; i <= control->passes; i++)
		control->sum += bench_sum_bytes(data, n_bytes);
	__atomic_store_n(&control->n_bytes, control->n_bytes + n_bytes, __ATOMIC_RELAXED);
}

/* In blocks of rows, as programs do that compute while they read. */
static int take_tensor(struct dcmem *model, uint64_t id, struct reader_control *control)
{
	struct dcmem_tensor tensor;
	struct dcmem_view view;
	uint64_t n_rows;
	int r = dcmem_tensor(model, id, &tensor);

	n_rows = !r && tensor.row_bytes ? max_u64(1, BLOCK_BYTES / tensor.row_bytes) : 1;
	for (uint64_t row = 0; !r && row < tensor.n_rows; row += n_rows) {
		r = dcmem_acquire(model, id, row, min_u64(n_rows, tensor.n_rows - row), &view);
		if (r)
			break;
		take(control, view.data, view.n_bytes);
		dcmem_release(model, &view);
	}
	return r;
}

static enum reader_mode mode_of(const struct reader_control *control)
{
	return __atomic_load_n(&control->mode, __ATOMIC_ACQUIRE);
}

static void be_neighbour(const struct reader_control *control)
{
	char *from = malloc(NEIGHBOUR_BYTES), *to = malloc(NEIGHBOUR_BYTES);

	while (from && to && mode_of(control) == READER_NEIGHBOUR)
		memcpy(to, from, NEIGHBOUR_BYTES);
	free(from);
	free(to);
}

static int read_served(struct dcmem *model, struct reader_control *control, double delay)
{
	uint64_t n = dcmem_n_tensors(model), at = (uint64_t)(delay * (double)n) % n, x = 1;
	struct dcmem_tensor tensor;
	int r = 0;

	while (!r) {
		switch (mode_of(control)) {
		case READER_EXIT:
			return 0;
		case READER_SWEEP:
			r = take_tensor(model, at, control);
			at = (at + 1) % n;
			break;
		case READER_RANDOM:
			x = x * 6364136223846793005ULL + 1442695040888963407ULL;
			r = take_tensor(model, (x >> 33) % max_u64(1, (uint64_t)(control->part * (double)n)),
					control);
			break;
		case READER_NEIGHBOUR:
			be_neighbour(control);
			break;
		default: /* any call lets go of what the daemon wants back */
			r = dcmem_tensor(model, 0, &tensor);
			(void)usleep(2000);
		}
	}
	return r;
}

static int be_reader(struct reader_control *control, const struct bench_host *host, double delay)
{
	struct dcmem *model = NULL;
	int r = dcmem_open("m", &host->options, &model);

	if (!r)
		r = read_served(model, control, delay);
	if (r)
		fprintf(stderr, "dcmem bench: a reader failed: %s\n", dcmem_error());
	dcmem_close(model);
	return r;
}

int reader_start(struct reader *reader, const struct bench_host *host, double delay)
{
	pid_t parent = getpid();

	reader->control = mmap(NULL, sizeof(*reader->control), PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (reader->control == MAP_FAILED) {
		reader->control = NULL;
		return message_set(-ENOMEM, "no memory for a reader");
	}
	(void)fflush(NULL);
	reader->pid = fork();
	if (reader->pid == 0) {
		int r;

		(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		r = be_reader(reader->control, host, delay);
		__atomic_store_n(&reader->control->failed, (uint32_t)(r < 0 ? -r : r),
				 __ATOMIC_RELAXED);
		_exit(r != 0);
	}
	return reader->pid < 0 ? message_set(-errno, "fork: %s", strerror(errno)) : 0;
}

void reader_stop(struct reader *reader)
{
	if (!reader->control)
		return;
	reader_set(reader, READER_EXIT);
	if (reader->pid > 0)
		(void)waitpid(reader->pid, NULL, 0);
	(void)munmap(reader->control, sizeof(*reader->control));
	*reader = (struct reader){0};
}

void reader_set(const struct reader *reader, enum reader_mode mode)
{
	__atomic_store_n(&reader->control->mode, mode, __ATOMIC_RELEASE);
}

uint64_t reader_bytes(const struct reader *reader)
{
	return __atomic_load_n(&reader->control->n_bytes, __ATOMIC_RELAXED);
}
