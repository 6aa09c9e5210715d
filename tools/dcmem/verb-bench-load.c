/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `dcmem bench load`: how long it takes to attach to a model that the daemon holds, and to load one,
 * beside `cat` of the same file. Owns what is measured and in which order; runs take turns.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/memory.h"
#include "base/message.h"
#include "bench-setup.h"
#include "table.h"
#include "verb.h"

#define MAX_ROUNDS  16
#define MAX_SAMPLES 500
#define TOUCH_MORE  (256ULL << 20) /* beyond the size of the file */
#define SHM_NAME    "/dev/shm/dcmem-bench-%ld"

static const char help[] =
	"Usage: dcmem bench load [MODEL] [--json FILE] [--quick] [--quiet] [--dcmemd PATH] [--dir DIR]\n\n"
	"Measures on a daemon of its own how long attaching to a resident model takes, with 11\n"
	"tensors and with 100,011, and how fast a container is loaded, with a cold and a warm page\n"
	"cache, beside `cat FILE > /dev/null` and `cat FILE > /dev/shm/x`. Free memory is touched\n"
	"before each run. Without MODEL, a container, it generates one. Wants an idle machine and\n"
	"a directory on a disk.\n\n"
	"  --json FILE    also write one JSON document\n"
	"  --quick        a small model and few rounds\n"
	"  --dcmemd PATH  the daemon to start (default: beside this program, or in PATH)\n"
	"  --dir DIR      where its files go (default: $TMPDIR, or /var/tmp)\n"
	"  --quiet        no progress bar\n\n"
	"Example:\n\n"
	"  dcmem bench load --quick --json load.json\n\n"
	"Exit codes: 0 done, 1 failed, 2 wrong usage.\n";

/* --- attaching --- */

static int attach_once(const struct bench_setup *setup, const char *name, double *ret_ms)
{
	struct dcmem *model = NULL;
	uint64_t start = clock_now_ns();
	int r = dcmem_open(name, &setup->host.options, &model);

	*ret_ms = (double)(clock_now_ns() - start) / NS_PER_MS;
	dcmem_close(model);
	return r ? message_set(r, "cannot attach: %s", dcmem_error()) : 0;
}

static int load_as(const struct bench_setup *setup, const char *path, const char *name)
{
	return bench_host_request(&setup->host, json_pack("{s:s,s:s,s:s}", "cmd", "load", "path",
							  path, "name", name), NULL);
}

static int unload(const struct bench_setup *setup, const char *name)
{
	return bench_host_request(&setup->host,
				  json_pack("{s:s,s:s}", "cmd", "unload", "name", name), NULL);
}

/* Turns between two models whose counts of tensors are 10,000 times apart. */
static int measure_attach(struct bench_setup *setup, struct table *table)
{
	static const struct {
		const char *name;
		uint64_t n_small;
	} models[] = { { "few", 0 }, { "many", 100000 } };
	static double samples[2][MAX_SAMPLES];
	unsigned n_samples = setup->quick ? 50 : MAX_SAMPLES;
	int r = 0;

	for (unsigned i = 0; i < 2 && !r; i++) {
		struct generate_options options = { .shape = "tiny", .bf16 = true, .n_layers = 1,
						    .n_tensors = models[i].n_small, .n_shards = 1,
						    .seed = 1 };
		char file[64], path[1100];

		snprintf(file, sizeof(file), "%s.dcmem", models[i].name);
		r = bench_setup_generate(setup, &options, file, path);
		if (!r)
			r = load_as(setup, path, models[i].name);
	}
	progress_init(&setup->progress, "attaching", !setup->quiet);
	for (unsigned k = 0; k < n_samples && !r; k++) {
		for (unsigned i = 0; i < 2 && !r; i++)
			r = attach_once(setup, models[i].name, &samples[i][k]);
		if (!r)
			r = bench_setup_check();
		progress_steps(&setup->progress, k + 1, n_samples);
	}
	progress_end(&setup->progress);
	if (r)
		return r;
	json_out_array(&setup->json, "attach");
	for (unsigned i = 0; i < 2 && !r; i++) {
		struct bench_stats stats = bench_stats_of(samples[i], n_samples);
		uint64_t n_tensors = models[i].n_small + 11;
		char what[64], median[32], range[64];

		json_out_object(&setup->json, NULL);
		json_out_u64(&setup->json, "n_tensors", n_tensors);
		bench_setup_stats(&setup->json, "ms", &stats);
		json_out_end(&setup->json, '}');
		snprintf(what, sizeof(what), "attach, %llu tensors", (unsigned long long)n_tensors);
		snprintf(median, sizeof(median), "%.3f ms", stats.median);
		snprintf(range, sizeof(range), "%.3f to %.3f", stats.q1, stats.q3);
		r = table_row(table, (const char *[]){ what, median, range, "" });
	}
	json_out_end(&setup->json, ']');
	for (unsigned i = 0; i < 2 && !r; i++)
		r = unload(setup, models[i].name);
	return r;
}

/* --- loading --- */

static int cat(const char *from, const char *to)
{
	int status = 0;
	pid_t pid = fork();

	if (pid == 0) {
		int fd = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);

		if (fd < 0 || dup2(fd, STDOUT_FILENO) < 0)
			_exit(126);
		execlp("cat", "cat", "--", from, (char *)NULL);
		_exit(127);
	}
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	return pid > 0 && status == 0 ? 0 : message_set(-EIO, "cat %s > %s failed", from, to);
}

/*
 * Has free memory be memory: hosts of virtual machines take back what is free for a few seconds, and
 * bringing it again takes longer than what is measured, of small pages as of huge ones.
 */
static int touch_memory(uint64_t n_bytes)
{
	pid_t pid = fork();

	if (pid == 0) {
		char *data = mmap(NULL, n_bytes, PROT_READ | PROT_WRITE,
				  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		if (data == MAP_FAILED)
			_exit(1);
		(void)madvise(data, n_bytes, MADV_HUGEPAGE);
		for (uint64_t i = 0; i < n_bytes; i += 4096)
			((volatile char *)data)[i] = 1;
		_exit(0);
	}
	while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	return pid > 0 ? 0 : message_set(-errno, "fork: %s", strerror(errno));
}

enum load_kind { CAT_COLD, LOAD_COLD, CAT_SHM, LOAD_WARM, N_KINDS };
static const struct {
	const char *name, *text;
} kinds[N_KINDS] = {
	[CAT_COLD] = { "cat-cold", "cat FILE > /dev/null, cold" },
	[LOAD_COLD] = { "load-cold", "load, cold" },
	[CAT_SHM] = { "cat-shm-warm", "cat FILE > /dev/shm/x, warm" },
	[LOAD_WARM] = { "load-warm", "load, warm" },
};

struct load_run {
	double gb_s[N_KINDS][MAX_ROUNDS];
	uint64_t left_bytes;  /* of the file, cached after it was dropped: at most */
	uint64_t after_bytes; /* cached after a cold load: at most */
};

static int run_kind(const struct bench_setup *setup, const char *path, enum load_kind kind,
		    struct load_run *run, double *ret_gb_s)
{
	uint64_t start, end, cached;
	char shm[64];
	int r;

	snprintf(shm, sizeof(shm), SHM_NAME, (long)getpid());
	r = kind == CAT_COLD || kind == LOAD_COLD ? bench_cache_drop(path) : bench_cache_warm(path);
	if (r)
		return r;
	if (kind == CAT_COLD || kind == LOAD_COLD) {
		cached = bench_cache_bytes(path);
		run->left_bytes = cached > run->left_bytes ? cached : run->left_bytes;
	}
	r = touch_memory(bench_file_bytes(path) + TOUCH_MORE);
	if (r)
		return r;
	start = clock_now_ns();
	if (kind == CAT_COLD)
		r = cat(path, "/dev/null");
	else if (kind == CAT_SHM)
		r = cat(path, shm);
	else
		r = load_as(setup, path, "m");
	end = clock_now_ns();
	if (kind == CAT_SHM)
		(void)unlink(shm);
	if (r)
		return r;
	if (kind == LOAD_COLD) {
		cached = bench_cache_bytes(path);
		run->after_bytes = cached > run->after_bytes ? cached : run->after_bytes;
	}
	*ret_gb_s = (double)bench_file_bytes(path) / (double)(end - start);
	return kind == LOAD_COLD || kind == LOAD_WARM ? unload(setup, "m") : 0;
}

/* Of runs that followed each other, so that what changes over minutes changes both. */
static double median_ratio(const double *values, const double *bases, unsigned n)
{
	double ratios[MAX_ROUNDS];

	for (unsigned i = 0; i < n; i++)
		ratios[i] = values[i] / bases[i];
	return bench_stats_of(ratios, n).median;
}

static int measure_load(struct bench_setup *setup, const char *path, struct table *table)
{
	unsigned n_rounds = setup->quick ? 3 : 9;
	struct load_run run = { 0 };
	double to_cat[N_KINDS] = { 0 };
	int r = 0;

	progress_init(&setup->progress, "loading", !setup->quiet);
	for (unsigned round = 0; round < n_rounds && !r; round++) {
		for (unsigned kind = 0; kind < N_KINDS && !r; kind++) {
			r = bench_setup_check();
			if (!r)
				r = run_kind(setup, path, (enum load_kind)kind, &run,
					     &run.gb_s[kind][round]);
			progress_steps(&setup->progress, round * N_KINDS + kind + 1,
				       (uint64_t)n_rounds * N_KINDS);
		}
	}
	progress_end(&setup->progress);
	if (r)
		return r;
	json_out_u64(&setup->json, "file_bytes", bench_file_bytes(path));
	json_out_array(&setup->json, "load");
	for (unsigned kind = 0; kind < N_KINDS && !r; kind++) {
		struct bench_stats stats = bench_stats_of(run.gb_s[kind], n_rounds);
		char median[32], range[64], ratio[32] = "";

		json_out_object(&setup->json, NULL);
		json_out_string(&setup->json, "what", kinds[kind].name);
		bench_setup_stats(&setup->json, "gb_s", &stats);
		json_out_end(&setup->json, '}');
		snprintf(median, sizeof(median), "%.2f GB/s", stats.median);
		snprintf(range, sizeof(range), "%.2f to %.2f", stats.q1, stats.q3);
		if (kind == LOAD_COLD || kind == LOAD_WARM) {
			to_cat[kind] = median_ratio(run.gb_s[kind], run.gb_s[kind - 1], n_rounds);
			snprintf(ratio, sizeof(ratio), "%.2f of cat", to_cat[kind]);
		}
		r = table_row(table, (const char *[]){ kinds[kind].text, median, range, ratio });
	}
	json_out_end(&setup->json, ']');
	json_out_double(&setup->json, "cold_to_cat", to_cat[LOAD_COLD]);
	json_out_double(&setup->json, "warm_to_cat_shm", to_cat[LOAD_WARM]);
	json_out_u64(&setup->json, "cached_after_drop_bytes", run.left_bytes);
	json_out_u64(&setup->json, "cached_after_cold_load_bytes", run.after_bytes);
	if (run.left_bytes)
		printf("NOT COLD: %llu bytes of the file stayed in the page cache (is --dir on a disk?)\n",
		       (unsigned long long)run.left_bytes);
	printf("Page cache after a cold load: %.1f %% of the file\n",
	       100 * (double)run.after_bytes / (double)bench_file_bytes(path));
	return r;
}

static int run(struct bench_setup *setup)
{
	char path[1100], text[24];
	struct table table;
	int r;

	table_init(&table, 4, "lrrr");
	r = table_row(&table, (const char *[]){ "WHAT", "MEDIAN", "QUARTILES", "" });
	if (!r)
		r = bench_setup_model(setup, path);
	if (!r)
		/* Enough for two models side by side: nothing has to be waited for. */
		r = bench_host_start(&setup->host, 3 * bench_file_bytes(path) + (1ULL << 30), "off", NULL);
	if (!r)
		printf("Container of %s\n", table_bytes(bench_file_bytes(path), text));
	if (!r)
		r = measure_attach(setup, &table);
	if (!r)
		r = measure_load(setup, path, &table);
	if (!r)
		table_print(&table, stdout);
	table_deinit(&table);
	return r;
}

int verb_bench_load(int argc, char **argv)
{
	struct bench_setup setup;
	int r = bench_setup_parse(&setup, argc, argv, help);

	if (r >= 0)
		return r;
	r = bench_setup_begin(&setup);
	if (!r)
		r = bench_setup_end(&setup, run(&setup));
	return r ? verb_failure("bench", r, message_get()) : verb_flush("bench");
}
