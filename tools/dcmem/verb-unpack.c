/* SPDX-License-Identifier: Apache-2.0 */
/* `dcmem unpack`: the very bytes of the source. A container that lost some on the way in is refused. */
#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>

#include "base/message.h"
#include "extract.h"
#include "json-out.h"
#include "table.h"
#include "verb.h"

static int help(void)
{
	printf("Usage: dcmem unpack IN -o DIR [--json] [--quiet]\n\n"
	       "Restores the files that a container was packed from, byte for byte, and checks each\n"
	       "against its hash. DIR must not exist, or be empty; after a failure it is empty.\n\n"
	       "  -o, --output DIR  where to\n"
	       "  --json            one JSON document instead of a line\n"
	       "  --quiet           no line, no progress bar\n\n"
	       "Example: the very model again:\n\n"
	       "  dcmem unpack my-model.dcmem -o restored && diff -r my-model restored\n\n"
	       "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the container is damaged.\n");
	return verb_flush("unpack");
}

static void report(uint64_t n_bytes, const char *output, uint64_t n_files, bool json)
{
	struct json_out out;
	char text[24];

	if (!json) {
		printf("%s: %llu files, %s, every hash right\n", output,
		       (unsigned long long)n_files, table_bytes(n_bytes, text));
		return;
	}
	json_out_init(&out, stdout);
	json_out_object(&out, NULL);
	json_out_string(&out, "path", output);
	json_out_u64(&out, "n_files", n_files);
	json_out_u64(&out, "n_bytes", n_bytes);
	json_out_end(&out, '}');
}

/* What was lost on the way in cannot be given back. */
static int refuse_quantized(const struct container *container, const char *input)
{
	for (uint64_t id = 0; id < container->index.n_tensors; id++) {
		const struct container_tensor *tensor;

		if (index_tensor(&container->index, id, &tensor) == 0 &&
		    tensor->flags & CONTAINER_TENSOR_QUANTIZED)
			return message_set(-EINVAL, "%s: was quantized, the source's bytes are not in it; "
					   "`dcmem export %s -o DIR` writes it for other programs", input,
					   input);
	}
	return 0;
}

static int run(const char *input, const char *output, bool json, bool quiet)
{
	struct container container;
	uint64_t n_bytes;
	int r = container_open(&container, input);

	if (r)
		return r;
	r = refuse_quantized(&container, input);
	if (!r)
		r = extract(&container, output, "unpacking", quiet, NULL, NULL, &n_bytes);
	if (!r && (json || !quiet))
		report(n_bytes, output, container.index.n_files, json);
	container_close(&container);
	return r;
}

int verb_unpack(int argc, char **argv)
{
	static const struct option long_options[] = {
		{ "output", required_argument, NULL, 'o' },
		{ "json", no_argument, NULL, 'J' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	const char *output = NULL;
	bool json = false, quiet = false;
	int c, r;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "o:h", long_options, NULL)) != -1) {
		if (c == 'h')
			return help();
		if (c == '?')
			return verb_usage("unpack", "unknown option, or one without its value: %s",
					  argv[optind - 1]);
		if (c == 'o')
			output = optarg;
		json |= c == 'J';
		quiet |= c == 'q';
	}
	if (argc - optind != 1 || !output)
		return verb_usage("unpack", "needs one IN and -o DIR");
	r = run(argv[optind], output, json, quiet);
	return r ? verb_failure("unpack", r, message_get()) : verb_flush("unpack");
}
