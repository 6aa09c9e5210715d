/* SPDX-License-Identifier: Apache-2.0 */
/* Opens what every verb needs: weights, kernel, threads and the checked config.json. */
#include <stdlib.h>
#include <string.h>

#include "cli.h"

int session_open(const struct options *options, struct session *ret_session)
{
	struct session session = {.engine.hold = options->hold};
	size_t n_bytes;
	char *text;
	int r;

	r = kernel_choose(getenv("LM_KERNEL"), &session.engine.kernel);
	if (r == 0)
		r = threads_new(options->threads, &session.engine.threads);
	if (r == 0)
		r = weights_open(options->source, options->model, &session.engine.weights);
	if (r == 0)
		r = session.engine.weights->source->read_file(session.engine.weights,
							      "config.json", &text, &n_bytes);
	if (r == 0) {
		r = config_parse(text, n_bytes, &session.config);
		free(text);
	}
	if (r != 0) {
		session_close(&session);
		return r;
	}
	*ret_session = session;
	return 0;
}

void session_close(struct session *session)
{
	session->engine.weights = weights_close(session->engine.weights);
	session->engine.threads = threads_free(session->engine.threads);
	session->engine.packed = array_free(session->engine.packed);
}

int session_tokenizer(struct session *session, struct tokenizer **ret_tokenizer)
{
	size_t n_bytes;
	char *text;
	int r;

	r = session->engine.weights->source->read_file(session->engine.weights, "tokenizer.json",
						       &text, &n_bytes);
	if (r != 0)
		return r;
	r = tokenizer_parse(text, n_bytes, ret_tokenizer);
	free(text);
	return r;
}
