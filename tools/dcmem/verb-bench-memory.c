/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `dcmem bench memory`: processes sweep one model through the daemon, and as they would without it.
 * Owns which ways are compared, the order of runs and the bound; each run has a daemon of its own.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/parallel.h"
#include "base/range.h"
#include "bench-convert.h"
#include "bench-readers.h"
#include "bench-setup.h"
#include "table.h"
#include "verb.h"

#define MAX_ROUNDS 8
#define MAX_COUNTS 8
/* Ids of page codecs: docs/codecs.md. */
#define CODEC_ID_RAW  0
#define CODEC_ID_ZSTD 1
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25 /* Linux 6.1; newer than the headers of Debian 12's libc */
#endif

static const char help[] =
	"Usage: dcmem bench memory [MODEL] [--json FILE] [--quick] [--quiet] [--dcmemd PATH]\n"
	"                 [--dir DIR] [--budget P%] [--processes N]\n\n"
	"Processes (1, 2, 4, 8, 16) sweep a model together, each summing every byte: through a\n"
	"daemon of its own with everything compressed, or with raw tensors; mapping the decoded\n"
	"file with a warm page cache, or from huge pages of shared memory; decoding privately with\n"
	"our codec, or zstd.\n"
	"For each: bytes a second, how often a byte was decoded in a sweep, and memory as the\n"
	"kernel counts it, beside the budget. Without MODEL, a container, it generates one. Wants\n"
	"an idle machine, and minutes.\n\n"
	"  --json FILE    also write one JSON document\n"
	"  --quick        a small model, few rounds, at most 4 processes\n"
	"  --budget P%    of the daemon, in percent of the decoded model (default: 60%; with\n"
	"                 --quick 100%)\n"
	"  --processes N  at most so many (default: 16)\n"
	"  --dcmemd PATH  the daemon to start (default: beside this program, or in PATH)\n"
	"  --dir DIR      where its files go, about twice the decoded model (default: $TMPDIR, or\n"
	"                 /var/tmp)\n"
	"  --quiet        no progress bar\n\n"
	"Example:\n\n"
	"  dcmem bench memory --quick --json memory.json\n\n"
	"Exit codes: 0 done, 1 failed, 2 wrong usage, 3 bytes were wrong.\n";

enum way { WAY_COMPRESSED, WAY_RAW, WAY_MMAP, WAY_HUGE, WAY_PRIVATE, WAY_ZSTD, N_WAYS };
static const struct {
	const char *name, *text;
	enum bench_way way;
} ways[N_WAYS] = {
	[WAY_COMPRESSED] = { "dcmem-compressed", "dcmem, compressed", BENCH_WAY_SERVED },
	[WAY_RAW] = { "dcmem-raw", "dcmem, raw", BENCH_WAY_SERVED },
	[WAY_MMAP] = { "mmap-warm", "mmap of decoded file", BENCH_WAY_MMAP },
	[WAY_HUGE] = { "tmpfs-huge", "decoded, huge pages", BENCH_WAY_MMAP },
	[WAY_PRIVATE] = { "private-dcmem", "private, our codec", BENCH_WAY_PRIVATE },
	[WAY_ZSTD] = { "private-zstd", "private, zstd", BENCH_WAY_PRIVATE },
};

struct cell { /* one way, one count of processes */
	double unique_gb_s[MAX_ROUNDS], decodes[MAX_ROUNDS];
	uint64_t pss, anon, shmem, cached; /* most of the rounds */
	uint64_t daemon, daemon_says;
};

struct memory_bench {
	struct bench_setup setup;
	char packed[1100], raw[1100], zstd[1100], flat[1100], huge[64];
	int huge_fd;
	uint64_t n_bytes, sum; /* of the decoded model */
	uint64_t budget_bytes; /* of WAY_COMPRESSED */
	unsigned counts[MAX_COUNTS], n_counts;
	unsigned n_rounds, n_sweeps;
	uint64_t window_bytes;
	double decode_gb_s[MAX_ROUNDS]; /* of one process that does nothing else */
	struct cell cells[N_WAYS][MAX_COUNTS];
	unsigned n_done;
};

/* --- runs --- */

static const char *file_of(const struct memory_bench *bench, enum way way)
{
	return way == WAY_COMPRESSED || way == WAY_PRIVATE ? bench->packed :
	       way == WAY_RAW	? bench->raw :
	       way == WAY_MMAP	? bench->flat :
	       way == WAY_HUGE	? bench->huge :
				  bench->zstd;
}

static struct bench_sweep make_sweep(const struct memory_bench *bench, enum bench_way way,
				     const char *path, unsigned n_processes)
{
	return (struct bench_sweep){ .way = way, .host = &bench->setup.host, .path = path,
				     .n_processes = n_processes, .n_sweeps = bench->n_sweeps,
				     .window_bytes = bench->window_bytes,
				     .n_bytes = bench->n_bytes, .sum = bench->sum };
}

static int run_decode(struct memory_bench *bench, unsigned round)
{
	struct bench_sweep sweep = make_sweep(bench, BENCH_WAY_DECODE, bench->packed, 1);
	struct bench_sweep_result result;
	int r = bench_cache_warm(bench->packed);

	if (!r)
		r = bench_sweep_run(&sweep, &result);
	if (!r)
		bench->decode_gb_s[round] = (double)(bench->n_bytes * bench->n_sweeps) /
					    result.seconds / 1e9;
	return r;
}

static int run_cell(struct memory_bench *bench, enum way way, unsigned count, unsigned round)
{
	struct bench_sweep sweep = make_sweep(bench, ways[way].way, file_of(bench, way),
					      bench->counts[count]);
	struct cell *cell = &bench->cells[way][count];
	bool served = ways[way].way == BENCH_WAY_SERVED;
	struct bench_sweep_result result;
	uint64_t total = bench->n_bytes * bench->n_sweeps;
	/* Raw tensors, with room for the index and for what the daemon needs itself. */
	uint64_t budget = way == WAY_RAW ? bench->n_bytes + bench->n_bytes / 4 + (64ULL << 20) :
					   bench->budget_bytes;
	int r = served ? bench_cache_drop(sweep.path) : bench_cache_warm(sweep.path);

	if (!r && served)
		r = bench_host_start(&bench->setup.host, budget, "off", sweep.path);
	if (!r)
		r = bench_sweep_run(&sweep, &result);
	bench_host_stop(&bench->setup.host);
	if (r)
		return r;
	cell->unique_gb_s[round] = (double)total / result.seconds / 1e9;
	cell->decodes[round] = (double)result.decoded_bytes / (double)total;
	if (result.peak.anon + result.peak.shmem >= cell->anon + cell->shmem) {
		cell->pss = result.peak.pss;
		cell->anon = result.peak.anon;
		cell->shmem = result.peak.shmem;
	}
	cell->daemon = max_u64(cell->daemon, result.daemon_bytes);
	cell->daemon_says = max_u64(cell->daemon_says, result.daemon_says_bytes);
	cell->cached = max_u64(cell->cached, bench_cache_bytes(sweep.path));
	return 0;
}

/* All ways in turns, so that what else the machine does meets all of them. */
static int run_all(struct memory_bench *bench)
{
	uint64_t total = (uint64_t)bench->n_rounds * (1 + bench->n_counts * N_WAYS);
	uint64_t done = 0;
	int r = 0;

	progress_init(&bench->setup.progress, "sweeping", !bench->setup.quiet);
	for (unsigned round = 0; round < bench->n_rounds && !r; round++) {
		r = run_decode(bench, round);
		progress_steps(&bench->setup.progress, ++done, total);
		for (unsigned count = 0; count < bench->n_counts && !r; count++) {
			for (unsigned way = 0; way < N_WAYS && !r; way++) {
				r = run_cell(bench, (enum way)way, count, round);
				if (r)
					message_prefix(r, "%s, %u processes", ways[way].text,
						       bench->counts[count]);
				progress_steps(&bench->setup.progress, ++done, total);
			}
		}
	}
	progress_end(&bench->setup.progress);
	return r;
}

/* --- the report --- */

static double median_of(const double *samples, unsigned n)
{
	double copy[MAX_ROUNDS];

	memcpy(copy, samples, n * sizeof(*copy));
	return bench_stats_of(copy, n).median;
}

struct bound {
	double d, r, ceiling; /* GB/s: decoding and reading of one core, reading of all */
	unsigned n_cores;
};

static struct bound make_bound(const struct memory_bench *bench)
{
	struct bound bound = { .d = median_of(bench->decode_gb_s, bench->n_rounds),
			       .n_cores = parallel_cpu_count() };

	bound.r = median_of(bench->cells[WAY_MMAP][0].unique_gb_s, bench->n_rounds);
	for (unsigned count = 0; count < bench->n_counts; count++) {
		double all = bench->counts[count] *
			     median_of(bench->cells[WAY_MMAP][count].unique_gb_s, bench->n_rounds);

		bound.ceiling = all > bound.ceiling ? all : bound.ceiling;
	}
	return bound;
}

/* Unique bytes a second that n readers can have of one decoder, on these cores. */
static double bound_of(const struct bound *bound, unsigned n)
{
	double work = bound->n_cores / (1 / bound->d + n / bound->r);

	return work < bound->ceiling / n ? work : bound->ceiling / n;
}

/* What the way needs: its processes, what they share, and the files that it reads as it goes. */
static uint64_t memory_of(const struct cell *cell, enum way way)
{
	return cell->anon + cell->shmem + (ways[way].way == BENCH_WAY_SERVED ? 0 : cell->cached);
}

static int report_cell(struct memory_bench *bench, struct table *table, const struct bound *bound,
		       enum way way, unsigned count)
{
	struct json_out *json = &bench->setup.json;
	struct cell *cell = &bench->cells[way][count];
	struct bench_stats unique = bench_stats_of(cell->unique_gb_s, bench->n_rounds);
	double decodes = median_of(cell->decodes, bench->n_rounds);
	unsigned n = bench->counts[count];
	char processes[16], speed[24], all[24], decoded[24] = "", memory[24], share[24];
	char says[24] = "", of_bound[24] = "";

	json_out_object(json, NULL);
	json_out_string(json, "way", ways[way].name);
	json_out_u64(json, "processes", n);
	bench_setup_stats(json, "unique_gb_s", &unique);
	json_out_double(json, "total_gb_s", n * unique.median);
	json_out_u64(json, "memory_bytes", memory_of(cell, way));
	json_out_u64(json, "pss_bytes", cell->pss);
	json_out_u64(json, "private_bytes", cell->anon);
	json_out_u64(json, "shmem_bytes", cell->shmem);
	json_out_u64(json, "file_cached_bytes", cell->cached);
	if (ways[way].way == BENCH_WAY_SERVED) {
		json_out_double(json, "decodes_per_sweep", decodes);
		json_out_u64(json, "daemon_bytes", cell->daemon);
		json_out_u64(json, "daemon_says_bytes", cell->daemon_says);
		snprintf(decoded, sizeof(decoded), "%.2f", decodes);
		table_bytes(cell->daemon_says, says);
	}
	if (way == WAY_COMPRESSED) {
		json_out_double(json, "bound_gb_s", bound_of(bound, n));
		json_out_double(json, "of_bound", unique.median / bound_of(bound, n));
		snprintf(of_bound, sizeof(of_bound), "%.2f", unique.median / bound_of(bound, n));
	}
	json_out_end(json, '}');
	snprintf(processes, sizeof(processes), "%u", n);
	snprintf(speed, sizeof(speed), "%.2f", unique.median);
	snprintf(all, sizeof(all), "%.2f", n * unique.median);
	snprintf(share, sizeof(share), "%.2f",
		 (double)memory_of(cell, way) / (double)bench->n_bytes);
	return table_row(table, (const char *[]){ processes, ways[way].text, speed, all, decoded,
						  table_bytes(memory_of(cell, way), memory), share,
						  says, of_bound });
}

static int report(struct memory_bench *bench)
{
	struct json_out *json = &bench->setup.json;
	struct bound bound = make_bound(bench);
	char budget[24], model[24], packed[24];
	uint64_t most = 0;
	struct table table;
	int r;

	for (unsigned count = 0; count < bench->n_counts; count++)
		most = max_u64(most, bench->cells[WAY_COMPRESSED][count].daemon);
	json_out_u64(json, "model_bytes", bench->n_bytes);
	json_out_u64(json, "container_bytes", bench_file_bytes(bench->packed));
	json_out_u64(json, "budget_bytes", bench->budget_bytes);
	json_out_u64(json, "window_bytes", bench->window_bytes);
	json_out_u64(json, "sweeps", bench->n_sweeps);
	json_out_double(json, "decode_gb_s_core", bound.d);
	json_out_double(json, "read_gb_s_core", bound.r);
	json_out_double(json, "read_gb_s_ceiling", bound.ceiling);
	json_out_double(json, "daemon_to_budget", (double)most / (double)bench->budget_bytes);
	json_out_array(json, "rows");
	table_init(&table, 9, "rlrrrrrrr");
	r = table_row(&table, (const char *[]){ "N", "WAY", "UNIQUE GB/s", "ALL GB/s", "DECODES",
						"MEMORY", "OF RAW", "DAEMON SAYS", "OF BOUND" });
	for (unsigned count = 0; count < bench->n_counts && !r; count++)
		for (unsigned way = 0; way < N_WAYS && !r; way++)
			r = report_cell(bench, &table, &bound, (enum way)way, count);
	json_out_end(json, ']');
	if (!r) {
		printf("Model of %s, container of %s, budget %s (%u %%)\n",
		       table_bytes(bench->n_bytes, model),
		       table_bytes(bench_file_bytes(bench->packed), packed),
		       table_bytes(bench->budget_bytes, budget), bench->setup.percent);
		table_print(&table, stdout);
		printf("\nMEMORY: private to all processes, in memfds, and without a daemon the file that\n"
		       "they read, in the page cache or in shared memory. The daemon took at most %.3f of its budget.\n"
		       "BOUND: min(c / (1/d + N/r), ceiling / N) with c %u cores, d %.2f GB/s decoding\n"
		       "and r %.2f GB/s reading on one of them, ceiling %.2f GB/s.\n",
		       (double)most / (double)bench->budget_bytes, bound.n_cores, bound.d, bound.r,
		       bound.ceiling);
	}
	table_deinit(&table);
	return r;
}

/* --- all of it --- */

/* The decoded file once more, in shared memory on huge pages where the kernel gives them. */
static int fill_huge(struct memory_bench *bench)
{
	_cleanup_(cleanup_fd) int flat = open(bench->flat, O_RDONLY | O_CLOEXEC);
	void *map = MAP_FAILED;
	int r;

	bench->huge_fd = memfd_create("dcmem-bench", MFD_CLOEXEC);
	if (flat >= 0 && bench->huge_fd >= 0 &&
	    ftruncate(bench->huge_fd, (off_t)bench->n_bytes) == 0)
		map = mmap(NULL, bench->n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, bench->huge_fd,
			   0);
	if (map == MAP_FAILED)
		return message_set(-errno, "cannot make shared memory: %s", strerror(errno));
	(void)madvise(map, bench->n_bytes, MADV_HUGEPAGE);
	r = io_read_at(flat, map, bench->n_bytes, 0);
	(void)madvise(map, bench->n_bytes, MADV_COLLAPSE);
	munmap(map, bench->n_bytes);
	snprintf(bench->huge, sizeof(bench->huge), "/proc/self/fd/%d", bench->huge_fd);
	return r ? message_set(r, "cannot read %s: %s", bench->flat, strerror(-r)) : 0;
}

static int prepare(struct memory_bench *bench)
{
	const char *from = bench->packed;
	unsigned n_jobs = parallel_cpu_count();
	int r = bench_setup_model(&bench->setup, bench->packed);

	bench_host_path(&bench->setup.host, "raw.dcmem", bench->raw);
	bench_host_path(&bench->setup.host, "zstd.dcmem", bench->zstd);
	bench_host_path(&bench->setup.host, "decoded", bench->flat);
	if (!r)
		r = bench_flatten(from, bench->flat, n_jobs, &bench_host_stopped, &bench->n_bytes,
				  &bench->sum);
	if (!r && bench->n_bytes == 0)
		r = message_set(DCMEM_E_INVALID, "%s has no bytes to sweep", from);
	if (!r)
		r = bench_convert(from, bench->raw, CODEC_ID_RAW, n_jobs, &bench_host_stopped);
	if (!r)
		r = bench_convert(from, bench->zstd, CODEC_ID_ZSTD, n_jobs, &bench_host_stopped);
	if (!r)
		r = fill_huge(bench);
	bench->budget_bytes = bench->n_bytes / 100 * bench->setup.percent;
	return r;
}

static void choose(struct memory_bench *bench)
{
	unsigned most = bench->setup.n_processes;

	if (bench->setup.quick && most > 4)
		most = 4;
	for (unsigned n = 1; n <= most; n *= 2)
		bench->counts[bench->n_counts++] = n;
	bench->n_rounds = bench->setup.quick ? 1 : 3;
	bench->n_sweeps = bench->setup.quick ? 1 : 2;
	bench->window_bytes = bench->setup.quick ? 256ULL << 10 : 1ULL << 20; /* untuned */
	if (!bench->setup.percent)
		bench->setup.percent = bench->setup.quick ? 100 : 60;
}

int verb_bench_memory(int argc, char **argv)
{
	struct memory_bench *bench = memory_zalloc(sizeof(*bench));
	int r;

	if (!bench)
		return verb_failure("bench", -ENOMEM, NULL);
	bench->huge_fd = -1;
	r = bench_setup_parse(&bench->setup, argc, argv, help);
	if (r >= 0) {
		memory_free(bench);
		return r;
	}
	choose(bench);
	r = bench_setup_begin(&bench->setup);
	if (!r) {
		r = prepare(bench);
		if (!r)
			r = run_all(bench);
		if (!r)
			r = report(bench);
		r = bench_setup_end(&bench->setup, r);
	}
	close_fd(bench->huge_fd);
	memory_free(bench);
	return r ? verb_failure("bench", r, message_get()) : verb_flush("bench");
}
