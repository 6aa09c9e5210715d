/* SPDX-License-Identifier: Apache-2.0 */
/* dcmem stats: the daemon's counters, for people or as the JSON of the socket. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "table.h"
#include "talk.h"
#include "verb.h"

static const char stats_help[] =
	"Usage: dcmem stats [--json] [--socket PATH]\n\n"
	"Shows the memory budget and where it goes, what was decoded and how often a window was\n"
	"found again, and the models. --json prints what the socket says, member for member:\n\n"
	"  dcmem stats --json | jq .decodes\n\n"
	"Exit codes: 0 done, 1 failed, 2 wrong usage, 4 no daemon.\n";

/* What people want first, in that order; a member that a daemon lacks shows as 0. */
static const struct stats_line {
	const char *key, *label;
} stats_lines[] = {
	{"budget_bytes", "budget"},
	{"compressed_bytes", "compressed"},
	{"index_bytes", "indexes"},
	{"decoded_bytes", "decoded windows"},
	{"inflight_bytes", "in flight"},
	{"retired_bytes", "retired, not free yet"},
	{"leased_bytes", "leased now"},
	{"orphaned_bytes", "orphaned"},
	{"peak_bytes", "peak"},
	{"n_clients", "clients"},
	{"n_leases", "leases"},
	{"n_windows", "windows"},
	{"decodes", "windows decoded"},
	{"decoded_total_bytes", "decoded in all"},
	{"window_hits", "window hits"},
	{"window_joins", "joined a decode"},
	{"window_misses", "window misses"},
	{"evictions", "evictions"},
	{"prefetches", "prefetches"},
	{"refused_budget", "refused: budget"},
	{"refused_overdue", "refused: overdue"},
	{"corrupt_pages", "corrupt pages"},
};

static int stats_row(struct table *table, const json_t *reply, const struct stats_line *line)
{
	uint64_t value = talk_u64(reply, line->key);
	bool bytes = strstr(line->key, "_bytes") != NULL;
	char text[24];
	const char *row[] = {line->label, text};

	if (bytes)
		(void)table_bytes(value, text);
	else
		(void)snprintf(text, sizeof(text), "%" PRIu64, value);
	return table_row(table, row);
}

static int stats_model(struct table *table, const json_t *model)
{
	uint64_t decoded = talk_u64(model, "decoded_model_bytes");
	uint64_t stored = talk_u64(model, "compressed_bytes");
	char raw[24], held[24], ratio[24], arena[24], tensors[24], clients[24], leases[24];
	const char *state = json_is_true(json_object_get(model, "loading"))   ? "loading"
			    : json_is_true(json_object_get(model, "retired")) ? "retired"
									      : "ready";
	const char *row[] = {talk_text(model, "name"), state, tensors, table_bytes(decoded, raw),
			     table_bytes(stored, held), table_ratio(decoded, stored, ratio),
			     table_bytes(talk_u64(model, "arena_bytes"), arena), clients, leases};

	(void)snprintf(tensors, sizeof(tensors), "%" PRIu64, talk_u64(model, "n_tensors"));
	(void)snprintf(clients, sizeof(clients), "%" PRIu64, talk_u64(model, "n_clients"));
	(void)snprintf(leases, sizeof(leases), "%" PRIu64, talk_u64(model, "n_leases"));
	return table_row(table, row);
}

static int stats_print(const json_t *reply)
{
	const char *models_heading[] = {"MODEL", "STATE", "TENSORS", "RAW",    "HELD",
					"RATIO", "ARENA", "CLIENTS", "LEASES"};
	const char *heading[] = {"COUNTER", "VALUE"};
	struct table counters, models;
	json_t *model;
	size_t i;
	int r;

	table_init(&models, 9, "llrrrrrrr");
	table_init(&counters, 2, "lr");
	r = table_row(&models, models_heading);
	json_array_foreach(json_object_get(reply, "models"), i, model)
	{
		if (r == 0)
			r = stats_model(&models, model);
	}
	if (r == 0)
		r = table_row(&counters, heading);
	for (i = 0; i < sizeof(stats_lines) / sizeof(*stats_lines) && r == 0; i++)
		r = stats_row(&counters, reply, &stats_lines[i]);
	if (r == 0) {
		table_print(&models, stdout);
		putchar('\n');
		table_print(&counters, stdout);
	}
	table_deinit(&models);
	table_deinit(&counters);
	return r;
}

int verb_stats(int argc, char **argv)
{
	struct talk talk;
	json_t *reply;
	int r = talk_parse(&talk, argc, argv, stats_help, 0, false, true);

	if (r >= 0)
		return r;
	r = talk_request(&talk, json_pack("{s:s}", "cmd", "stats"), &reply);
	if (r != 0)
		return r;
	if (talk.json) {
		r = talk_print_json(&talk, reply);
	} else {
		r = stats_print(reply);
		r = r == 0 ? verb_flush(talk.verb) : verb_failure(talk.verb, r, "out of memory");
	}
	json_decref(reply);
	return r;
}
