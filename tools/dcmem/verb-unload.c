/* SPDX-License-Identifier: Apache-2.0 */
/* dcmem unload: asks the daemon to let a model go. */
#include "talk.h"
#include "verb.h"

static const char unload_help[] =
	"Usage: dcmem unload NAME [--socket PATH]\n\n"
	"Unloads a model. Programs that are attached to it keep what they have mapped; its\n"
	"memory is free when the last of them has let go (\"retired\" in `dcmem stats`).\n\n"
	"  dcmem unload llama\n\n"
	"Exit codes: 0 done, 1 failed, 2 wrong usage, 4 no daemon.\n";

int verb_unload(int argc, char **argv)
{
	struct talk talk;
	json_t *reply;
	int r = talk_parse(&talk, argc, argv, unload_help, 1, false, false);

	if (r >= 0)
		return r;
	r = talk_request(&talk, json_pack("{s:s,s:s}", "cmd", "unload", "name", talk.operand), &reply);
	if (r != 0)
		return r;
	json_decref(reply);
	return VERB_OK;
}
