/* SPDX-License-Identifier: Apache-2.0 */
/* `dcmem export`: a model for programs that do not know dcmem, with its codes or with plain weights. */
#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/message.h"
#include "dcmem/dcmem.h"
#include "extract.h"
#include "json-out.h"
#include "quant/export.h"
#include "table.h"
#include "verb.h"

static int help(void)
{
	printf("Usage: dcmem export IN -o DIR [--dtype TYPE] [--json] [--quiet]\n\n"
	       "Writes the model of a container as a directory in the layout of Hugging Face, for any\n"
	       "program that reads safetensors. Every page is checked on the way. What was packed\n"
	       "without loss comes out byte for byte; what was quantized comes out as TYPE says.\n"
	       "DIR must not exist, or be empty.\n\n"
	       "  -o, --output DIR  where to\n"
	       "  --dtype TYPE      bf16 (default): weights, rounded to BF16; f32: exactly the weights\n"
	       "                    that the codes stand for; int8: codes with their scales, in the\n"
	       "                    naming of compressed-tensors\n"
	       "  --json            one JSON document instead of a line\n"
	       "  --quiet           no line, no progress bar\n\n"
	       "Example: quantize, then evaluate with whatever is at hand:\n\n"
	       "  dcmem pack ./my-model -o small.dcmem --quantize\n"
	       "  dcmem export small.dcmem -o ./for-others\n\n"
	       "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 the container is damaged.\n");
	return verb_flush("export");
}

struct export {
	const struct index *index;
	uint32_t dtype; /* 0: codes stay codes */
};

static bool is_lossy(const void *data, const char *name)
{
	const struct export *export = data;
	const struct container_tensor *tensor;
	uint64_t id;

	return index_find(export->index, name, &id) == 0 &&
	       index_tensor(export->index, id, &tensor) == 0 &&
	       tensor->flags & CONTAINER_TENSOR_QUANTIZED;
}

static int finish(void *data, const char *output)
{
	const struct export *export = data;

	return quant_export(output, export->dtype, is_lossy, export);
}

static int run(const char *input, const char *output, uint32_t dtype, bool json, bool quiet)
{
	struct container container;
	struct export export = { .dtype = dtype };
	struct json_out out;
	uint64_t n_bytes;
	int r = container_open(&container, input);

	if (r)
		return r;
	export.index = &container.index;
	r = extract(&container, output, "exporting", quiet, dtype ? finish : NULL, &export, &n_bytes);
	if (!r && json) {
		json_out_init(&out, stdout);
		json_out_object(&out, NULL);
		json_out_string(&out, "path", output);
		json_out_u64(&out, "n_files", container.index.n_files);
		json_out_end(&out, '}');
	} else if (!r && !quiet) {
		printf("%s: %llu files, every hash right\n", output,
		       (unsigned long long)container.index.n_files);
	}
	container_close(&container);
	return r;
}

int verb_export(int argc, char **argv)
{
	static const struct option long_options[] = {
		{ "output", required_argument, NULL, 'o' },
		{ "dtype", required_argument, NULL, 'd' },
		{ "json", no_argument, NULL, 'J' },
		{ "quiet", no_argument, NULL, 'q' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	const char *output = NULL;
	bool json = false, quiet = false;
	uint32_t dtype = DCMEM_BF16;
	int c, r;

	opterr = 0;
	while ((c = getopt_long(argc, argv, "o:h", long_options, NULL)) != -1) {
		if (c == 'h')
			return help();
		if (c == '?')
			return verb_usage("export", "unknown option, or one without its value: %s",
					  argv[optind - 1]);
		if (c == 'o')
			output = optarg;
		json |= c == 'J';
		quiet |= c == 'q';
		if (c != 'd')
			continue;
		if (strcmp(optarg, "bf16") != 0 && strcmp(optarg, "f32") != 0 &&
		    strcmp(optarg, "int8") != 0)
			return verb_usage("export", "--dtype takes bf16, f32 or int8");
		dtype = *optarg == 'b' ? DCMEM_BF16 : *optarg == 'f' ? DCMEM_F32 : 0;
	}
	if (argc - optind != 1 || !output)
		return verb_usage("export", "needs one IN and -o DIR");
	r = run(argv[optind], output, dtype, json, quiet);
	return r ? verb_failure("export", r, message_get()) : verb_flush("export");
}
