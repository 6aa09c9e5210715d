/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `dcmem bench serve`: what asking for a window costs that is decoded already. Owns the cases, their
 * CPUs, and the bare transports beside them: a word in shared memory that the other side spins or
 * sleeps on, and an echo over a SEQPACKET socket. All of a case run in turns, each round anew.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "bench-setup.h"
#include "table.h"
#include "verb.h"

#define MAX_ROUNDS 9
#define MAX_BATCH 64
#define MAX_CLIENTS 8
#define MESSAGE_BYTES 64

static const char help[] =
	"Usage: dcmem bench serve [MODEL] [--json FILE] [--quick] [--quiet] [--dcmemd PATH]\n"
	"                 [--dir DIR]\n\n"
	"What it costs to ask for a window that is decoded already: the time of one request,\n"
	"from the call to the view, while both sides are busy, each on a CPU of its own; asleep,\n"
	"both on one CPU; and asleep, wherever the kernel puts them. Beside each a bare word in\n"
	"shared memory, with a futex where one side sleeps, and an echo of 64 bytes over a\n"
	"SEQPACKET socket. Then requests a second of 1 and 4 processes, alone and in batches.\n"
	"Windows that a client keeps cost no request at all; they are shown once. Without MODEL, a\n"
	"container, it generates one. Wants an idle machine, and a minute.\n\n"
	"  --json FILE    also write one JSON document\n"
	"  --quick        few rounds\n"
	"  --dcmemd PATH  the daemon to start (default: beside this program, or in PATH)\n"
	"  --dir DIR      where its files go (default: $TMPDIR, or /var/tmp)\n"
	"  --quiet        no progress bar\n\n"
	"Example:\n\n"
	"  dcmem bench serve --quick --json serve.json\n\n"
	"Exit codes: 0 done, 1 failed, 2 wrong usage, 3 bytes were wrong.\n";

enum place { PLACE_BUSY, PLACE_ASLEEP, PLACE_UNPINNED, N_PLACES };
static const struct {
	const char *name, *text;
	uint32_t pause_us; /* between requests: both sides fall asleep */
} places[N_PLACES] = {
	[PLACE_BUSY] = { "busy", "busy, a CPU each", 0 },
	[PLACE_ASLEEP] = { "asleep", "asleep, on one CPU", 0 },
	[PLACE_UNPINNED] = { "unpinned", "asleep, not pinned", 200 },
};

enum way { WAY_RING, WAY_KEPT, WAY_BARE, WAY_SOCKET, N_WAYS };
static const struct {
	const char *name, *text;
} ways[N_WAYS] = {
	[WAY_RING] = { "dcmem", "dcmem, asked for" },
	[WAY_KEPT] = { "dcmem-kept", "dcmem, kept" },
	[WAY_BARE] = { "bare-ring", "bare word in memory" },
	[WAY_SOCKET] = { "seqpacket", "bare SEQPACKET echo" },
};

static const struct {
	unsigned n_clients, batch;
} loads[] = { { 1, 1 }, { 1, 8 }, { 1, 64 }, { 4, 1 }, { 4, 8 }, { 4, 64 } };
#define N_LOADS (sizeof(loads) / sizeof(loads[0]))

struct times {
	double p50[MAX_ROUNDS], p90[MAX_ROUNDS], p99[MAX_ROUNDS]; /* us */
};

struct serve_bench {
	struct bench_setup setup;
	char model[1100];
	uint64_t tensor; /* of which rows are asked for */
	unsigned n_rounds, n_samples;
	uint64_t load_ns;
	cpu_set_t all;
	int first, second; /* CPUs; the same where there is but one */
	double *samples;
	struct times times[N_PLACES][N_WAYS];
	double per_second[N_LOADS][MAX_ROUNDS];
};

static int run_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return sched_setaffinity(0, sizeof(set), &set) < 0 ? -errno : 0;
}

/* Where the one that serves runs, before it starts, and where we do. */
static int take_place(const struct serve_bench *bench, enum place place, bool server)
{
	if (place == PLACE_UNPINNED)
		return sched_setaffinity(0, sizeof(bench->all), &bench->all) < 0 ? -errno : 0;
	return run_on(server && place == PLACE_BUSY ? bench->second : bench->first);
}

/* --- bare transports --- */

struct words {
	uint32_t asked;
	char gap[60];
	uint32_t answered;
};

static void wait_word(const uint32_t *word, uint32_t old, bool spin)
{
	while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == old)
		if (!spin)
			(void)syscall(SYS_futex, word, FUTEX_WAIT, old, NULL, NULL, 0);
}

static void set_word(uint32_t *word, uint32_t value, bool spin)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
	if (!spin)
		(void)syscall(SYS_futex, word, FUTEX_WAKE, 1, NULL, NULL, 0);
}

struct bare {
	pid_t pid;
	struct words *words;
	int socket;
	bool spin;
	uint32_t n;
};

static void bare_serve(struct bare *bare, enum way way, int socket)
{
	char message[MESSAGE_BYTES];

	for (uint32_t n = 0;; n++) {
		if (way == WAY_BARE) {
			wait_word(&bare->words->asked, n, bare->spin);
			set_word(&bare->words->answered, n + 1, bare->spin);
		} else {
			ssize_t got;

			do
				got = recv(socket, message, sizeof(message),
					   bare->spin ? MSG_DONTWAIT : 0);
			while (got < 0 && errno == EAGAIN);
			if (got <= 0 || send(socket, message, (size_t)got, MSG_NOSIGNAL) < 0)
				_exit(0);
		}
	}
}

static void bare_ask(struct bare *bare, enum way way)
{
	char message[MESSAGE_BYTES] = { 0 };
	ssize_t got;

	if (way == WAY_BARE) {
		set_word(&bare->words->asked, ++bare->n, bare->spin);
		wait_word(&bare->words->answered, bare->n - 1, bare->spin);
		return;
	}
	(void)!send(bare->socket, message, sizeof(message), MSG_NOSIGNAL);
	do
		got = recv(bare->socket, message, sizeof(message), bare->spin ? MSG_DONTWAIT : 0);
	while (got < 0 && errno == EAGAIN);
}

static void bare_stop(struct bare *bare)
{
	if (bare->pid > 0) {
		kill(bare->pid, SIGKILL);
		while (waitpid(bare->pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	if (bare->socket >= 0)
		close(bare->socket);
	if (bare->words)
		munmap(bare->words, sizeof(*bare->words));
}

static int bare_start(struct bare *bare, const struct serve_bench *bench, enum place place,
		      enum way way)
{
	int sockets[2];

	*bare = (struct bare){ .socket = -1, .spin = place == PLACE_BUSY };
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sockets) != 0)
		return -errno;
	bare->socket = sockets[0];
	bare->words = mmap(NULL, sizeof(*bare->words), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (bare->words == MAP_FAILED) {
		bare->words = NULL;
		close(sockets[1]);
		bare_stop(bare);
		return -ENOMEM;
	}
	(void)fflush(NULL);
	bare->pid = fork();
	if (bare->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(sockets[0]);
		(void)take_place(bench, place, true);
		bare_serve(bare, way, sockets[1]);
	}
	close(sockets[1]);
	return bare->pid < 0 ? -errno : 0;
}

/* --- one request after the other --- */

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void keep_times(struct serve_bench *bench, struct times *times, unsigned round)
{
	unsigned n = bench->n_samples;

	qsort(bench->samples, n, sizeof(*bench->samples), compare);
	times->p50[round] = bench->samples[n / 2];
	times->p90[round] = bench->samples[n * 9 / 10];
	times->p99[round] = bench->samples[n * 99 / 100];
}

static int time_dcmem(struct serve_bench *bench, struct dcmem *model, uint32_t pause_us)
{
	int r = 0;

	for (unsigned i = 0; i < bench->n_samples && !r; i++) {
		struct dcmem_view view;
		uint64_t start = clock_now_ns();

		r = dcmem_acquire(model, bench->tensor, 0, 1, &view);
		bench->samples[i] = (double)(clock_now_ns() - start) / 1000;
		if (!r)
			dcmem_release(model, &view);
		if (pause_us)
			usleep(pause_us);
	}
	return r;
}

static void time_bare(struct serve_bench *bench, struct bare *bare, enum way way, uint32_t pause_us)
{
	for (unsigned i = 0; i < bench->n_samples; i++) {
		uint64_t start = clock_now_ns();

		bare_ask(bare, way);
		bench->samples[i] = (double)(clock_now_ns() - start) / 1000;
		if (pause_us)
			usleep(pause_us);
	}
}

static int run_way(struct serve_bench *bench, enum place place, enum way way, unsigned round)
{
	struct dcmem_options options = bench->setup.host.options;
	struct dcmem *model = NULL;
	struct bare bare;
	int r;

	if (way == WAY_BARE || way == WAY_SOCKET) {
		r = bare_start(&bare, bench, place, way);
		if (!r)
			time_bare(bench, &bare, way, places[place].pause_us);
		bare_stop(&bare);
	} else {
		options.flags = way == WAY_RING ? DCMEM_OPEN_NO_KEEP : 0;
		r = dcmem_open("m", &options, &model);
		if (!r)
			r = time_dcmem(bench, model, places[place].pause_us);
		if (r && *dcmem_error())
			message_set(r, "%s", dcmem_error());
		dcmem_close(model);
	}
	if (!r)
		keep_times(bench, &bench->times[place][way], round);
	return r;
}

/* The daemon, placed: it inherits our CPUs. */
static int start_daemon(struct serve_bench *bench, enum place place)
{
	int r = take_place(bench, place, true);

	if (!r)
		r = bench_host_start(&bench->setup.host, 1ULL << 30, "off", bench->model);
	if (!r)
		r = take_place(bench, place, false);
	return r;
}

static int run_place(struct serve_bench *bench, enum place place, unsigned round)
{
	int r = start_daemon(bench, place);

	for (unsigned way = 0; way < N_WAYS && !r; way++)
		r = run_way(bench, place, (enum way)way, round);
	bench_host_stop(&bench->setup.host);
	return r;
}

/* --- many requests --- */

struct tally { /* shared */
	uint64_t n_requests, start_ns, end_ns;
	int result;
};

static int ask_batch(struct dcmem *model, uint64_t tensor, unsigned batch)
{
	struct dcmem_ask asks[MAX_BATCH];
	struct dcmem_answer answers[MAX_BATCH];
	size_t n, got;
	int r;

	for (unsigned i = 0; i < batch; i++)
		asks[i] = (struct dcmem_ask){ .tensor = tensor, .n_rows = 1 };
	r = dcmem_submit(model, asks, batch, &n);
	for (size_t left = n; left && !r; left -= got) {
		r = dcmem_wait(model, answers, left, 30000, &got);
		if (!r && !got)
			return -ETIMEDOUT;
		for (size_t i = 0; i < got && !r; i++) {
			r = answers[i].result;
			dcmem_release(model, &answers[i].view);
		}
	}
	return r;
}

static void client_main(const struct serve_bench *bench, unsigned batch, struct tally *tally, int go)
{
	struct dcmem_options options = bench->setup.host.options;
	struct dcmem *model = NULL;
	char none;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	options.flags = DCMEM_OPEN_NO_KEEP;
	tally->result = dcmem_open("m", &options, &model);
	if (!tally->result)
		tally->result = ask_batch(model, bench->tensor, 1);
	(void)!read(go, &none, 1); /* nobody writes: it ends when the parent closes it */
	tally->start_ns = clock_now_ns();
	while (!tally->result && clock_now_ns() - tally->start_ns < bench->load_ns) {
		tally->result = ask_batch(model, bench->tensor, batch);
		tally->n_requests += batch;
	}
	tally->end_ns = clock_now_ns();
	_exit(0);
}

static int run_load(struct serve_bench *bench, unsigned load, unsigned round)
{
	size_t n_bytes = MAX_CLIENTS * sizeof(struct tally);
	struct tally *tallies = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE,
				     MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	double sum = 0;
	pid_t pids[MAX_CLIENTS];
	unsigned n = 0;
	int go[2], r = 0;

	if (tallies == MAP_FAILED)
		return -ENOMEM;
	if (pipe2(go, O_CLOEXEC) != 0) {
		munmap(tallies, n_bytes);
		return -errno;
	}
	(void)fflush(NULL);
	for (; n < loads[load].n_clients && !r; n++) {
		pids[n] = fork();
		if (pids[n] == 0) {
			close(go[1]);
			client_main(bench, loads[load].batch, &tallies[n], go[0]);
		}
		r = pids[n] < 0 ? -errno : 0;
	}
	close(go[0]);
	usleep(100000); /* they attach */
	close(go[1]);
	for (unsigned i = 0; i < n; i++) {
		while (pids[i] > 0 && waitpid(pids[i], NULL, 0) < 0 && errno == EINTR)
			;
		if (!r && tallies[i].result)
			r = message_set(tallies[i].result, "a client: %s",
					dcmem_strerror(tallies[i].result));
		if (!r && tallies[i].end_ns > tallies[i].start_ns)
			sum += (double)tallies[i].n_requests * NS_PER_S /
			       (double)(tallies[i].end_ns - tallies[i].start_ns);
	}
	munmap(tallies, n_bytes);
	bench->per_second[load][round] = sum;
	return r;
}

static int run_loads(struct serve_bench *bench, unsigned round)
{
	int r = start_daemon(bench, PLACE_UNPINNED);

	for (unsigned load = 0; load < N_LOADS && !r; load++)
		r = run_load(bench, load, round);
	bench_host_stop(&bench->setup.host);
	return r;
}

/* --- the report --- */

static double ratio_of(const double *values, const double *bases, unsigned n)
{
	double ratios[MAX_ROUNDS];

	for (unsigned i = 0; i < n; i++)
		ratios[i] = values[i] / bases[i];
	return bench_stats_of(ratios, n).median;
}

static int report_way(struct serve_bench *bench, struct table *table, enum place place, enum way way)
{
	struct json_out *json = &bench->setup.json;
	struct times *times = &bench->times[place][way];
	const struct times *all = bench->times[place];
	double to_bare = ratio_of(times->p50, all[WAY_BARE].p50, bench->n_rounds);
	double to_socket = ratio_of(times->p50, all[WAY_SOCKET].p50, bench->n_rounds);
	struct bench_stats p50 = bench_stats_of(times->p50, bench->n_rounds);
	double p90 = bench_stats_of(times->p90, bench->n_rounds).median;
	double p99 = bench_stats_of(times->p99, bench->n_rounds).median;
	char a[24], b[24], c[24], d[24], e[24];

	json_out_object(json, NULL);
	json_out_string(json, "place", places[place].name);
	json_out_string(json, "way", ways[way].name);
	bench_setup_stats(json, "p50_us", &p50);
	json_out_double(json, "p90_us", p90);
	json_out_double(json, "p99_us", p99);
	json_out_double(json, "to_bare_ring", to_bare);
	json_out_double(json, "to_seqpacket", to_socket);
	json_out_end(json, '}');
	snprintf(a, sizeof(a), "%.2f", p50.median);
	snprintf(b, sizeof(b), "%.2f", p90);
	snprintf(c, sizeof(c), "%.2f", p99);
	snprintf(d, sizeof(d), "%.2f", to_bare);
	snprintf(e, sizeof(e), "%.2f", to_socket);
	return table_row(table, (const char *[]){ places[place].text, ways[way].text, a, b, c, d, e });
}

static int report(struct serve_bench *bench)
{
	struct json_out *json = &bench->setup.json;
	struct table table;
	int r;

	json_out_u64(json, "requests", bench->n_samples);
	json_out_bool(json, "one_cpu", bench->first == bench->second);
	json_out_array(json, "rows");
	table_init(&table, 7, "llrrrrr");
	r = table_row(&table, (const char *[]){ "WHERE", "WAY", "P50 us", "P90", "P99", "TO BARE",
						"TO SOCKET" });
	for (unsigned place = 0; place < N_PLACES && !r; place++)
		for (unsigned way = 0; way < N_WAYS && !r; way++)
			r = report_way(bench, &table, (enum place)place, (enum way)way);
	json_out_end(json, ']');
	if (!r)
		table_print(&table, stdout);
	table_deinit(&table);
	json_out_array(json, "loads");
	table_init(&table, 3, "rrr");
	if (!r)
		r = table_row(&table, (const char *[]){ "CLIENTS", "BATCH", "REQUESTS/s" });
	for (unsigned load = 0; load < N_LOADS && !r; load++) {
		struct bench_stats stats = bench_stats_of(bench->per_second[load], bench->n_rounds);
		char n[24], batch[24], rate[24];

		json_out_object(json, NULL);
		json_out_u64(json, "clients", loads[load].n_clients);
		json_out_u64(json, "batch", loads[load].batch);
		bench_setup_stats(json, "requests_per_s", &stats);
		json_out_end(json, '}');
		snprintf(n, sizeof(n), "%u", loads[load].n_clients);
		snprintf(batch, sizeof(batch), "%u", loads[load].batch);
		snprintf(rate, sizeof(rate), "%.0f", stats.median);
		r = table_row(&table, (const char *[]){ n, batch, rate });
	}
	json_out_end(json, ']');
	if (!r) {
		printf("\n");
		table_print(&table, stdout);
		printf("\nEach request is answered by a lease, and its view is given back: two messages.\n");
	}
	table_deinit(&table);
	return r;
}

/* --- all of it --- */

/* A tensor whose rows come through windows. */
static int find_tensor(struct serve_bench *bench)
{
	struct dcmem_tensor tensor;
	struct dcmem *model = NULL;
	int r = dcmem_open(bench->model, NULL, &model);

	for (uint64_t id = 0; !r; id++) {
		r = dcmem_tensor(model, id, &tensor);
		bench->tensor = id;
		if (!r && tensor.codec != 0 && tensor.n_bytes)
			break;
	}
	if (r)
		message_set(r, "%s: it has no compressed tensor to ask for", bench->model);
	dcmem_close(model);
	return r;
}

static int prepare(struct serve_bench *bench)
{
	int r = sched_getaffinity(0, sizeof(bench->all), &bench->all) < 0 ? -errno : 0;

	bench->first = bench->second = -1;
	for (int cpu = 0; cpu < CPU_SETSIZE && !r; cpu++) {
		if (!CPU_ISSET(cpu, &bench->all))
			continue;
		if (bench->first < 0)
			bench->first = cpu;
		else if (bench->second < 0)
			bench->second = cpu;
	}
	bench->second = bench->second < 0 ? bench->first : bench->second;
	bench->n_rounds = bench->setup.quick ? 2 : 7;
	bench->n_samples = bench->setup.quick ? 500 : 4000;
	bench->load_ns = bench->setup.quick ? NS_PER_S / 20 : NS_PER_S / 2;
	bench->samples = memory_array(bench->n_samples, sizeof(*bench->samples));
	if (!bench->samples)
		return message_set(-ENOMEM, "no memory for samples");
	/* What is asked for is decoded once: a small model will do. */
	if (!r && !bench->setup.model) {
		const struct generate_options tiny = { .shape = "tiny", .bits = 3.64,
						       .n_shards = 1, .seed = 1 };

		r = bench_setup_generate(&bench->setup, &tiny, "tiny.dcmem", bench->model);
	} else if (!r) {
		r = bench_setup_model(&bench->setup, bench->model);
	}
	return r ? r : find_tensor(bench);
}

static int run_all(struct serve_bench *bench)
{
	uint64_t done = 0, total = (uint64_t)bench->n_rounds * (N_PLACES + 1);
	int r = 0;

	progress_init(&bench->setup.progress, "asking", !bench->setup.quiet);
	for (unsigned round = 0; round < bench->n_rounds && !r; round++) {
		for (unsigned place = 0; place < N_PLACES && !r; place++) {
			r = bench_setup_check();
			if (!r)
				r = run_place(bench, (enum place)place, round);
			progress_steps(&bench->setup.progress, ++done, total);
		}
		if (!r)
			r = run_loads(bench, round);
		progress_steps(&bench->setup.progress, ++done, total);
	}
	progress_end(&bench->setup.progress);
	return r;
}

int verb_bench_serve(int argc, char **argv)
{
	struct serve_bench *bench = memory_zalloc(sizeof(*bench));
	int r;

	if (!bench)
		return verb_failure("bench", -ENOMEM, NULL);
	r = bench_setup_parse(&bench->setup, argc, argv, help);
	if (r >= 0) {
		memory_free(bench);
		return r;
	}
	r = bench_setup_begin(&bench->setup);
	if (!r) {
		r = prepare(bench);
		if (!r)
			r = run_all(bench);
		if (!r)
			r = report(bench);
		r = bench_setup_end(&bench->setup, r);
	}
	memory_free(bench->samples);
	memory_free(bench);
	return r ? verb_failure("bench", r, message_get()) : verb_flush("bench");
}
