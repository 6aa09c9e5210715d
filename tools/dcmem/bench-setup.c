/* SPDX-License-Identifier: Apache-2.0 */
/* Options, model and document of the benchmarks that start a daemon. What fails first, fails early. */
#include "bench-setup.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include "base/message.h"
#include "base/parallel.h"
#include "bench-machine.h"
#include "generate.h"
#include "verb.h"

int bench_setup_parse(struct bench_setup *setup, int argc, char **argv, const char *help)
{
	static const struct option options[] = {
		{ "json", required_argument, NULL, 'J' },   { "quick", no_argument, NULL, 'Q' },
		{ "quiet", no_argument, NULL, 'q' },	    { "dcmemd", required_argument, NULL, 'd' },
		{ "dir", required_argument, NULL, 'D' },    { "budget", required_argument, NULL, 'b' },
		{ "processes", required_argument, NULL, 'p' },
		{ "help", no_argument, NULL, 'h' },	    { 0 },
	};
	bool memory = strcmp(argv[0], "memory") == 0;
	unsigned long n;
	char *end;
	int c;

	*setup = (struct bench_setup){ .what = argv[0], .n_processes = 16 };
	opterr = 0;
	optind = 1;
	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (c) {
		case 'J':
			setup->json_path = optarg;
			break;
		case 'Q':
			setup->quick = true;
			break;
		case 'q':
			setup->quiet = true;
			break;
		case 'd':
			setup->dcmemd = optarg;
			break;
		case 'D':
			setup->directory = optarg;
			break;
		case 'b':
			n = strtoul(optarg, &end, 10);
			if (!memory || end == optarg || strcmp(end, "%") != 0 || *optarg == '-' ||
			    n < 1 || n > 1000)
				return verb_usage("bench", "--budget takes percents, like 60%%, "
							   "of `bench memory`");
			setup->percent = (unsigned)n;
			break;
		case 'p':
			n = strtoul(optarg, &end, 10);
			if (!memory || end == optarg || *end || *optarg == '-' || n < 1 || n > 64)
				return verb_usage("bench", "--processes takes a number from 1 to 64, "
							   "of `bench memory`");
			setup->n_processes = (unsigned)n;
			break;
		case 'h':
			printf("%s", help);
			return verb_flush("bench");
		default:
			return verb_usage("bench", "unknown option, or one without its value: %s",
					  argv[optind - 1]);
		}
	}
	if (argc - optind > 1)
		return verb_usage("bench", "one MODEL at most");
	setup->model = argv[optind];
	return -1;
}

int bench_setup_begin(struct bench_setup *setup)
{
	static struct bench_machine machine;
	char format[32];
	int r = bench_host_init(&setup->host, setup->directory, setup->dcmemd);

	if (!r && setup->json_path) {
		setup->json_file = fopen(setup->json_path, "we");
		if (!setup->json_file)
			r = message_set(-errno, "cannot write %s: %s", setup->json_path,
					strerror(errno));
	}
	if (r) {
		bench_host_deinit(&setup->host);
		return r;
	}
	bench_machine_init(&machine);
	/* Without --json it is written to nowhere, so that nobody has to ask. */
	json_out_init(&setup->json, setup->json_file ? setup->json_file : fopen("/dev/null", "we"));
	json_out_object(&setup->json, NULL);
	snprintf(format, sizeof(format), "dcmem-bench-%s", setup->what);
	json_out_string(&setup->json, "format", format);
	json_out_u64(&setup->json, "version", 1);
	json_out_bool(&setup->json, "quick", setup->quick);
	json_out_object(&setup->json, "machine");
	json_out_string(&setup->json, "cpu", machine.cpu);
	json_out_string(&setup->json, "kernel", machine.kernel);
	json_out_u64(&setup->json, "n_cpus", machine.n_cpus);
	json_out_u64(&setup->json, "last_level_bytes", machine.last_level_bytes);
	json_out_end(&setup->json, '}');
	printf("%s, %u CPUs, %s%s\n", machine.cpu, machine.n_cpus, machine.kernel,
	       setup->quick ? "; QUICK: small, and few rounds" : "");
	return 0;
}

int bench_setup_end(struct bench_setup *setup, int result)
{
	json_out_bool(&setup->json, "complete", result == 0);
	json_out_end(&setup->json, '}');
	if ((ferror(setup->json.file) | fclose(setup->json.file)) && !result)
		result = message_set(-EIO, "cannot write %s", setup->json_path);
	bench_host_deinit(&setup->host);
	return result;
}

int bench_setup_generate(struct bench_setup *setup, const struct generate_options *options,
			 const char *name, char ret_path[1100])
{
	struct generate_run run = { .n_jobs = parallel_cpu_count(), .cancel = &bench_host_stopped };
	struct generate_model model;
	int r = generate_model_init(&model, options);

	if (r)
		return r;
	bench_host_path(&setup->host, name, ret_path);
	r = generate_container(&model, ret_path, &run);
	generate_model_deinit(&model);
	return r;
}

int bench_setup_model(struct bench_setup *setup, char ret_path[1100])
{
	/* Ratio 2.2 to INT8; large enough that no cache holds it. */
	struct generate_options options = {
		.shape = setup->quick ? "tiny" : "llama-1b",
		.bits = 3.64,
		.n_layers = setup->quick ? 40 : 4,
		.n_shards = 1,
		.seed = 1,
	};
	char *full;

	if (!setup->model)
		return bench_setup_generate(setup, &options, "model.dcmem", ret_path);
	if (bench_file_bytes(setup->model) == 0)
		return message_set(-ENOENT, "%s: no container", setup->model);
	full = realpath(setup->model, NULL);
	if (!full || strlen(full) > 1000) {
		free(full);
		return message_set(-ENAMETOOLONG, "%s: its path cannot be used", setup->model);
	}
	snprintf(ret_path, 1100, "%s", full);
	free(full);
	return 0;
}

int bench_setup_check(void)
{
	return atomic_load(&bench_host_stopped) ? message_set(-EINTR, "stopped by a signal") : 0;
}

void bench_setup_stats(struct json_out *json, const char *key, const struct bench_stats *stats)
{
	json_out_object(json, key);
	json_out_double(json, "median", stats->median);
	json_out_double(json, "min", stats->min);
	json_out_double(json, "q1", stats->q1);
	json_out_double(json, "q3", stats->q3);
	json_out_double(json, "max", stats->max);
	json_out_u64(json, "samples", stats->n);
	json_out_end(json, '}');
}
