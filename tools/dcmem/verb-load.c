/* SPDX-License-Identifier: Apache-2.0 */
/* dcmem load: asks the daemon to load a container. Sends an absolute path: the daemon has its own cwd. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "talk.h"
#include "verb.h"

static const char load_help[] =
	"Usage: dcmem load FILE [--name NAME] [--socket PATH]\n\n"
	"Loads a container into dcmemd, under NAME or else the file's name without .dcmem.\n"
	"Returns when every byte is verified and clients can attach. The daemon opens the\n"
	"file itself, so it must be able to read it.\n\n"
	"  dcmem load ./llama.dcmem\n"
	"  dcmem stats\n\n"
	"Exit codes: 0 loaded, 1 failed, 2 wrong usage, 3 damaged file, 4 no daemon.\n";

int verb_load(int argc, char **argv)
{
	char path[PATH_MAX];
	struct talk talk;
	json_t *reply;
	int r = talk_parse(&talk, argc, argv, load_help, 1, true, false);

	if (r >= 0)
		return r;
	if (!realpath(talk.operand, path)) {
		char text[PATH_MAX + 64];

		(void)snprintf(text, sizeof(text), "%s: %s", talk.operand, strerror(errno));
		return verb_failure(talk.verb, -errno, text);
	}
	r = talk_request(&talk,
			 talk.name ? json_pack("{s:s,s:s,s:s}", "cmd", "load", "path", path, "name",
					       talk.name)
				   : json_pack("{s:s,s:s}", "cmd", "load", "path", path),
			 &reply);
	if (r != 0)
		return r;
	json_decref(reply);
	return VERB_OK;
}
