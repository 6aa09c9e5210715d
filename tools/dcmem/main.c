/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The command line: one table of verbs. A verb is a file of its own, verb-NAME.c; this file owns
 * the table, --help and --version, and refuses what is not in the table.
 */
#include <stdio.h>
#include <string.h>

#include "verb.h"

static const struct verb {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *help;
} verbs[] = {
	{ "pack", verb_pack, "compress a model directory or safetensors file into a container" },
	{ "unpack", verb_unpack, "restore the files that a container was packed from" },
	{ "export", verb_export, "write a model as safetensors for other programs" },
	{ "verify", verb_verify, "check every byte of a container against its hashes" },
	{ "ls", verb_ls, "list tensors, codecs, ratios and files" },
	{ "load", verb_load, "load a container into the daemon" },
	{ "unload", verb_unload, "let the daemon drop a model" },
	{ "status", verb_status, "what the kernel gave the daemon" },
	{ "tune", verb_tune, "how the daemon holds tensors, and why" },
	{ "stats", verb_stats, "memory, decodes and models of the daemon" },
	{ "cat", verb_cat, "one tensor to standard output or a .npy file" },
	{ "bench", verb_bench, "measure codecs and serving on this machine" },
	{ "generate", verb_generate, "make a model of random weights, for measuring" },
	{ "plan", verb_plan, "how tensors would be held on a described host" },
	{ NULL },
};

static int print_help(void)
{
	printf("Usage: dcmem VERB [ARGUMENTS]\n\n"
	       "Packs a model into one compressed container, and shares one copy of it in memory\n"
	       "between every process on the host.\n\nVerbs:\n");
	for (const struct verb *v = verbs; v->name; v++)
		printf("  %-8s %s\n", v->name, v->help);
	printf("\n`dcmem VERB --help` explains a verb, with an example. To begin:\n\n"
	       "  dcmem pack ./my-model -o my-model.dcmem\n"
	       "  dcmem ls my-model.dcmem\n"
	       "  dcmem verify my-model.dcmem --against ./my-model\n\n"
	       "Exit codes: 0 done, 1 the operation failed, 2 wrong usage,\n"
	       "3 damaged data or a verification that failed, 4 no daemon.\n");
	return verb_flush("--help");
}

int main(int argc, char **argv)
{
	if (argc < 2) {
		fprintf(stderr, "dcmem: which verb? `dcmem --help` lists them\n");
		return VERB_USAGE;
	}
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
	    strcmp(argv[1], "help") == 0)
		return print_help();
	if (strcmp(argv[1], "--version") == 0) {
		printf("dcmem %s\n", DCMEM_VERSION);
		return verb_flush("--version");
	}
	for (const struct verb *v = verbs; v->name; v++)
		if (strcmp(argv[1], v->name) == 0)
			return v->run(argc - 1, argv + 1);
	fprintf(stderr, "dcmem: no verb of that name; `dcmem --help` lists them\n");
	return VERB_USAGE;
}
