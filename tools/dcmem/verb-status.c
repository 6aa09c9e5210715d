/* SPDX-License-Identifier: Apache-2.0 */
/* dcmem status: what the kernel gave the daemon. */
#include <stdio.h>

#include "table.h"
#include "talk.h"
#include "verb.h"

static const char status_help[] =
	"Usage: dcmem status [--json] [--socket PATH]\n\n"
	"Shows what the daemon runs on: how it does I/O, huge pages, seals, the test that tells\n"
	"when memory is really free, NUMA nodes. What is missing costs speed, never bytes.\n\n"
	"Exit codes: 0 done, 1 failed, 2 wrong usage, 4 no daemon.\n";

int verb_status(int argc, char **argv)
{
	const char *heading[] = {"WHAT", "STATE", "DETAIL"};
	struct talk talk;
	struct table table;
	json_t *reply, *item;
	size_t i;
	int r = talk_parse(&talk, argc, argv, status_help, 0, false, true);

	if (r >= 0)
		return r;
	r = talk_request(&talk, json_pack("{s:s}", "cmd", "status"), &reply);
	if (r != 0)
		return r;
	if (talk.json) {
		r = talk_print_json(&talk, reply);
		json_decref(reply);
		return r;
	}
	table_init(&table, 3, "lll");
	r = table_row(&table, heading);
	json_array_foreach(json_object_get(reply, "status"), i, item)
	{
		const char *row[] = {talk_text(item, "what"), talk_text(item, "state"),
				     talk_text(item, "detail")};

		if (r == 0)
			r = table_row(&table, row);
	}
	if (r == 0)
		table_print(&table, stdout);
	table_deinit(&table);
	json_decref(reply);
	return r == 0 ? verb_flush(talk.verb) : verb_failure(talk.verb, r, "out of memory");
}
