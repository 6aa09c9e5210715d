/* SPDX-License-Identifier: Apache-2.0 */
/* dcmem tune: what the daemon aims at, what it did about it, and why a tensor is held as it is. */
#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/message.h"
#include "table.h"
#include "talk.h"
#include "verb.h"

static const char tune_help[] =
	"Usage: dcmem tune [MODEL] [--explain] [SETTINGS] [--json] [--socket PATH]\n\n"
	"The daemon measures how each tensor is read, and changes how it is held while it is served:\n"
	"raw (read in place), fast, work or dense (decoded on the way). This shows what it aims at and\n"
	"what it did; settings last until the daemon ends (dcmemd.json(5) has those that stay).\n\n"
	"Of everything:\n"
	"  --objective WHAT  latency, balanced, memory, or off\n"
	"  --budget SIZE     memory for everything: \"4GiB\", \"50%\"\n"
	"  --background N    percent of the decode threads that changing may use\n"
	"Of MODEL:\n"
	"  --weight W        what its waiting counts, against 1 of others\n"
	"  --pin FORM        hold all of it like that: raw, fast, work, dense; none: no more\n"
	"  --tensors GLOB    with --pin: only those whose names match, like '*.down_proj.weight'\n"
	"  --floor FORM      never denser than this\n"
	"  --ceiling FORM    never faster than this\n"
	"  --limit SIZE      bytes that it may have; 0: no limit of its own\n"
	"  --explain         each tensor: how it is held, why, and what would come next\n"
	"Of either:\n"
	"  --freeze, --thaw  change nothing any more; go on\n\n"
	"  --json            what the socket says\n"
	"  --socket PATH     of dcmemd\n\n"
	"  dcmem tune --budget 2GiB --objective latency\n"
	"  dcmem tune llama --explain\n\n"
	"Exit codes: 0 done, 1 failed, 2 wrong usage, 4 no daemon.\n";

enum { TUNE_PLAIN = 256, TUNE_NUMBER, TUNE_REAL };

struct tune {
	struct talk talk;
	json_t *request;
	bool explain;
};

/* Options that are members of the request, under the same name. */
static const struct option tune_options[] = {
	{"objective", required_argument, NULL, TUNE_PLAIN},
	{"budget", required_argument, NULL, TUNE_PLAIN},
	{"pin", required_argument, NULL, TUNE_PLAIN},
	{"tensors", required_argument, NULL, TUNE_PLAIN},
	{"floor", required_argument, NULL, TUNE_PLAIN},
	{"ceiling", required_argument, NULL, TUNE_PLAIN},
	{"limit", required_argument, NULL, TUNE_PLAIN},
	{"background", required_argument, NULL, TUNE_NUMBER},
	{"weight", required_argument, NULL, TUNE_REAL},
	{"freeze", no_argument, NULL, 'f'},
	{"thaw", no_argument, NULL, 't'},
	{"explain", no_argument, NULL, 'e'},
	{"json", no_argument, NULL, 'j'},
	{"socket", required_argument, NULL, 's'},
	{"help", no_argument, NULL, 'h'},
	{0},
};

/* -1, or an exit code. */
static int tune_option(struct tune *tune, int c, int index)
{
	const char *name = tune_options[index].name;
	char *end;
	double real;
	long number;

	switch (c) {
	case TUNE_PLAIN:
		json_object_set_new(tune->request, name, json_string(optarg));
		return -1;
	case TUNE_NUMBER:
		number = strtol(optarg, &end, 10);
		if (end == optarg || *end || number < 0)
			return verb_usage("tune", "--%s: \"%s\" is not a number", name, optarg);
		json_object_set_new(tune->request, name, json_integer(number));
		return -1;
	case TUNE_REAL:
		real = strtod(optarg, &end);
		if (end == optarg || *end || !(real >= 0))
			return verb_usage("tune", "--%s: \"%s\" is not a number", name, optarg);
		json_object_set_new(tune->request, name, json_real(real));
		return -1;
	case 'f':
	case 't':
		json_object_set_new(tune->request, "frozen", json_boolean(c == 'f'));
		return -1;
	case 'e':
		tune->explain = true;
		return -1;
	case 'j':
		tune->talk.json = true;
		return -1;
	case 's':
		tune->talk.options.socket_path = optarg;
		return -1;
	case 'h':
		printf("%s", tune_help);
		return verb_flush("tune");
	}
	return verb_usage("tune", "unknown option or missing value: %s", "see dcmem tune --help");
}

static int tune_parse(struct tune *tune, int argc, char **argv)
{
	int c, index = 0, r;

	tune->talk = (struct talk){.verb = "tune", .options.size = sizeof(tune->talk.options)};
	opterr = 0;
	while ((c = getopt_long(argc, argv, "h", tune_options, &index)) >= 0) {
		r = tune_option(tune, c, index);
		if (r >= 0)
			return r;
	}
	if (argc - optind > 1)
		return verb_usage("tune", "one model at a time");
	tune->talk.operand = optind < argc ? argv[optind] : NULL;
	if (tune->explain && !tune->talk.operand)
		return verb_usage("tune", "--explain: of which model?");
	json_object_set_new(tune->request, "cmd", json_string("tune"));
	if (tune->talk.operand)
		json_object_set_new(tune->request, "model", json_string(tune->talk.operand));
	if (tune->explain)
		json_object_set_new(tune->request, "explain", json_true());
	return -1;
}

static double real_of(const json_t *object, const char *key)
{
	return json_number_value(json_object_get(object, key));
}

static void line(const char *label, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void line(const char *label, const char *format, ...)
{
	char text[200];
	va_list list;

	va_start(list, format);
	(void)vsnprintf(text, sizeof(text), format, list);
	va_end(list);
	printf("%-16s %s\n", label, text);
}

static void print_state(const json_t *reply)
{
	const json_t *policy = json_object_get(reply, "policy");
	char bytes[24];

	line("objective", "%s%s", talk_text(reply, "objective"),
	     json_is_true(json_object_get(reply, "frozen")) ? ", frozen" : "");
	line("budget", "%s", table_bytes(talk_u64(reply, "budget"), bytes));
	line("background", "%" PRIu64 " %% of the decode threads", talk_u64(reply, "background"));
	line("changes", "%" PRIu64 " of %s, %" PRIu64 " under way, %" PRIu64 " failed",
	     talk_u64(reply, "changes"), table_bytes(talk_u64(reply, "changed_bytes"), bytes),
	     talk_u64(reply, "changing"), talk_u64(reply, "failed"));
	line("waiting", "%.3f seconds a second; as planned %.3f, to be %.3f",
	     real_of(reply, "waited"), real_of(reply, "stall_now"), real_of(reply, "stall_planned"));
	line("host", "%.1f cores free, %.1f GB/s a thread, decoding takes %.2f of its time at rest",
	     real_of(reply, "cores_free"), real_of(reply, "read_gbs"), real_of(reply, "slowdown"));
	if (!policy)
		return;
	line("model", "%s", talk_text(reply, "model"));
	line("weight", "%g%s", real_of(policy, "weight"),
	     json_is_true(json_object_get(policy, "frozen")) ? ", frozen" : "");
	line("forms", "pin %s, floor %s, ceiling %s", talk_text(policy, "pin"),
	     talk_text(policy, "floor"), talk_text(policy, "ceiling"));
	line("limit", "%s",
	     talk_u64(policy, "limit") ? table_bytes(talk_u64(policy, "limit"), bytes) : "none");
}

static int explain_row(struct table *table, const json_t *tensor)
{
	const json_t *next = json_object_get(tensor, "next");
	const char *held = talk_text(tensor, "held"), *chosen = talk_text(tensor, "chosen");
	char raw[24], stored[24], form[32], rate[24], bytes[24], after[80] = "";

	(void)snprintf(form, sizeof(form), !strcmp(held, chosen) ? "%s" : "%s > %s",
		       *held ? held : "-", chosen);
	(void)snprintf(rate, sizeof(rate), "%.2f", real_of(tensor, "rate") * 1e-9);
	if (next)
		(void)snprintf(after, sizeof(after), "%s: %s, %.1f ms a second less",
			       talk_text(next, "form"), table_bytes(talk_u64(next, "bytes"), bytes),
			       1e3 * real_of(next, "gain"));
	return table_row(table, (const char *[]){talk_text(tensor, "name"),
						 table_bytes(talk_u64(tensor, "n_bytes"), raw),
						 table_bytes(talk_u64(tensor, "stored_bytes"), stored),
						 form, rate, talk_text(tensor, "why"), after});
}

static int print_explained(const json_t *tensors)
{
	const char *heading[] = {"TENSOR", "RAW", "HELD", "FORM", "GB/S", "WHY", "NEXT"};
	struct table table;
	size_t i;
	json_t *tensor;
	int r;

	table_init(&table, 7, "lrrlrll");
	r = table_row(&table, heading);
	json_array_foreach(tensors, i, tensor) {
		if (r == 0)
			r = explain_row(&table, tensor);
	}
	if (r == 0) {
		putchar('\n');
		table_print(&table, stdout);
	}
	table_deinit(&table);
	return r;
}

/* Models of many tensors come in several replies. */
static int fetch(struct tune *tune, json_t **ret_reply)
{
	json_t *all = NULL, *reply, *next;
	int r;

	for (;;) {
		json_t *request = json_deep_copy(tune->request);

		if (all) { /* the settings are made */
			json_object_clear(request);
			json_object_set_new(request, "cmd", json_string("tune"));
			json_object_set_new(request, "model", json_string(tune->talk.operand));
			json_object_set_new(request, "explain", json_true());
			json_object_set(request, "first", json_object_get(all, "next"));
		}
		r = talk_request(&tune->talk, request, &reply);
		if (r != 0) {
			json_decref(all);
			return r;
		}
		next = json_object_get(reply, "next");
		if (!all) {
			all = reply;
		} else {
			json_array_extend(json_object_get(all, "tensors"),
					  json_object_get(reply, "tensors"));
			if (next)
				json_object_set(all, "next", next);
			else
				json_object_del(all, "next");
			next = json_object_get(all, "next");
			json_decref(reply);
		}
		if (!next)
			break;
	}
	*ret_reply = all;
	return 0;
}

int verb_tune(int argc, char **argv)
{
	struct tune tune = {.request = json_object()};
	json_t *reply;
	int r = tune_parse(&tune, argc, argv);

	if (r < 0)
		r = fetch(&tune, &reply);
	else
		reply = NULL;
	json_decref(tune.request);
	if (r != 0 || !reply)
		return r;
	if (tune.talk.json) {
		r = talk_print_json(&tune.talk, reply);
	} else {
		print_state(reply);
		r = tune.explain ? print_explained(json_object_get(reply, "tensors")) : 0;
		r = r < 0 ? verb_failure("tune", r, "not enough memory for the table")
			  : verb_flush("tune");
	}
	json_decref(reply);
	return r;
}
