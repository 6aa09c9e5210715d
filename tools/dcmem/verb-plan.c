/* SPDX-License-Identifier: Apache-2.0 */
/* `dcmem plan`: what the planner would do on a host and a load that a file describes. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>

#include "base/message.h"
#include "json-out.h"
#include "simulate.h"
#include "table.h"
#include "verb.h"

static int help(void)
{
	printf("Usage: dcmem plan --simulate TRACE [--json]\n\n"
	       "Plans how tensors would be held on a host that a JSON file describes, phase of load\n"
	       "after phase, and predicts throughput. Nothing is read or held but the file.\n\n"
	       "  --simulate TRACE  host, models, forms and phases; docs/planner.md has the members\n"
	       "  --json            one JSON document\n\n"
	       "STATIC is the best plan that holds everything in one form, in the smallest budget\n"
	       "of the trace. Throughput is a prediction: it was compared with no real host.\n\n"
	       "Exit codes: 0 done, 1 failed, 2 wrong usage.\n");
	return verb_flush("plan");
}

static int print_table(const struct simulation *simulation)
{
	struct table table;
	int r;

	table_init(&table, 12, "lrrrrrrrrrrl");
	r = table_row(&table, (const char *[]){ "PHASE", "BUDGET", "HELD", "RAW", "FAST", "WORK",
						"DENSE", "CHANGES", "SETTLED", "GB/S", "STATIC",
						"LIMIT" });
	for (uint32_t i = 0; !r && i < simulation->n_phases; i++) {
		const struct simulation_phase *phase = &simulation->phases[i];
		char budget[24], held[24], class[PLANNER_N_CLASSES][24], changes[16], settled[16];
		char rate[32], best[48];

		snprintf(changes, sizeof(changes), "%u", phase->n_changes);
		snprintf(settled, sizeof(settled), phase->settled ? "%u s" : "no", phase->settled_s);
		snprintf(rate, sizeof(rate), "%.1f", phase->throughput / 1e9);
		snprintf(best, sizeof(best), "-");
		if (phase->best_class >= 0)
			snprintf(best, sizeof(best), "%.1f %s", phase->best_static / 1e9,
				 planner_class_name((unsigned)phase->best_class));
		r = table_row(&table, (const char *[]){
			phase->name, table_bytes(phase->budget_bytes, budget),
			table_bytes(phase->held_bytes, held),
			table_bytes(phase->class_bytes[0], class[0]),
			table_bytes(phase->class_bytes[1], class[1]),
			table_bytes(phase->class_bytes[2], class[2]),
			table_bytes(phase->class_bytes[3], class[3]), changes, settled, rate, best,
			phase->fits ? phase->limit : "does not fit" });
	}
	if (!r)
		table_print(&table, stdout);
	table_deinit(&table);
	return r < 0 ? message_set(r, "not enough memory for the table") : r;
}

static void print_json(const struct simulation *simulation)
{
	struct json_out out;

	json_out_init(&out, stdout);
	json_out_object(&out, NULL);
	json_out_u64(&out, "models", simulation->n_models);
	json_out_u64(&out, "tensors", simulation->n_tensors);
	json_out_array(&out, "phases");
	for (uint32_t i = 0; i < simulation->n_phases; i++) {
		const struct simulation_phase *phase = &simulation->phases[i];

		json_out_object(&out, NULL);
		json_out_string(&out, "name", phase->name);
		json_out_u64(&out, "budget_bytes", phase->budget_bytes);
		json_out_u64(&out, "held_bytes", phase->held_bytes);
		json_out_object(&out, "class_bytes");
		for (unsigned c = 0; c < PLANNER_N_CLASSES; c++)
			json_out_u64(&out, planner_class_name(c), phase->class_bytes[c]);
		json_out_end(&out, '}');
		json_out_u64(&out, "changes", phase->n_changes);
		json_out_u64(&out, "settled_seconds", phase->settled_s);
		json_out_bool(&out, "settled", phase->settled);
		json_out_bool(&out, "fits", phase->fits);
		json_out_double(&out, "demand", phase->demand);
		json_out_double(&out, "throughput", phase->throughput);
		json_out_double(&out, "best_static", phase->best_static);
		json_out_string(&out, "limit", phase->limit);
		json_out_end(&out, '}');
	}
	json_out_end(&out, ']');
	json_out_end(&out, '}');
}

int verb_plan(int argc, char **argv)
{
	static const struct option options[] = {
		{ "simulate", required_argument, NULL, 's' },
		{ "json", no_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL },
	};
	struct simulation simulation;
	const char *trace = NULL;
	bool json = false;
	int c, r;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		if (c == 'h')
			return help();
		if (c == 's')
			trace = optarg;
		else if (c == 'j')
			json = true;
		else
			return verb_usage("plan", "no such option, or one without its value");
	}
	if (!trace || optind != argc)
		return verb_usage("plan", "one trace, by --simulate");
	r = simulation_run(trace, &simulation);
	if (r)
		return verb_failure("plan", r, r == -ENOMEM ? "out of memory" : message_get());
	if (json)
		print_json(&simulation);
	else
		r = print_table(&simulation);
	simulation_deinit(&simulation);
	return r ? verb_failure("plan", r, message_get()) : verb_flush("plan");
}
