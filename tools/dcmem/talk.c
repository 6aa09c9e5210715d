/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Verbs that talk to a daemon. Owns option parsing and the one connection of a run; every failure is
 * one line on stderr. A reply is the daemon's, but parsed with care all the same.
 */
#include "talk.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

#include "verb.h"

int talk_parse(struct talk *talk, int argc, char **argv, const char *help, int n_operands,
	       bool takes_name, bool takes_json)
{
	static const struct option options[] = {
		{"socket", required_argument, NULL, 's'}, {"name", required_argument, NULL, 'n'},
		{"json", no_argument, NULL, 'j'},	  {"help", no_argument, NULL, 'h'},
		{0},
	};
	int c;

	*talk = (struct talk){.verb = argv[0], .options.size = sizeof(talk->options)};
	opterr = 0;
	while ((c = getopt_long(argc, argv, "h", options, NULL)) >= 0) {
		if (c == 's')
			talk->options.socket_path = optarg;
		else if (c == 'n' && takes_name)
			talk->name = optarg;
		else if (c == 'j' && takes_json)
			talk->json = true;
		else if (c == 'h') {
			printf("%s", help);
			return verb_flush(talk->verb);
		} else
			return verb_usage(talk->verb, "unknown option or missing value: %s",
					  argv[optind - 1]);
	}
	if (argc - optind != n_operands)
		return verb_usage(talk->verb, n_operands ? "one operand is needed"
							 : "no operand is expected");
	talk->operand = n_operands ? argv[optind] : NULL;
	return -1;
}

int talk_failure(const char *verb, int result)
{
	const char *text = *dcmem_error() ? dcmem_error() : dcmem_strerror(result);
	int code = verb_failure(verb, result, text);

	return result == DCMEM_E_NO_DAEMON || result == DCMEM_E_DISCONNECTED ? TALK_NO_DAEMON : code;
}

int talk_request(const struct talk *talk, json_t *request, json_t **ret_reply)
{
	char *text = request ? json_dumps(request, JSON_COMPACT) : NULL, *reply = NULL;
	struct dcmem_conn *conn = NULL;
	json_t *json;
	int r;

	json_decref(request);
	if (!text)
		return verb_failure(talk->verb, 0, "the request is not valid UTF-8");
	r = dcmem_connect(&talk->options, &conn);
	if (r == 0)
		r = dcmem_request(conn, text, &reply);
	free(text);
	if (r != 0)
		r = talk_failure(talk->verb, r);
	dcmem_disconnect(conn);
	if (r != 0)
		return r;
	json = json_loads(reply, JSON_REJECT_DUPLICATES, NULL);
	dcmem_free(reply);
	if (!json_is_object(json)) {
		json_decref(json);
		return verb_failure(talk->verb, 0, "the daemon's reply is not JSON");
	}
	*ret_reply = json;
	return 0;
}

int talk_print_json(const struct talk *talk, const json_t *reply)
{
	(void)json_dumpf(reply, stdout, JSON_INDENT(2));
	putchar('\n');
	return verb_flush(talk->verb);
}

uint64_t talk_u64(const json_t *object, const char *key)
{
	json_int_t value = json_integer_value(json_object_get(object, key));

	return value < 0 ? 0 : (uint64_t)value;
}

const char *talk_text(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text ? text : "";
}
