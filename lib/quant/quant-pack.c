/* SPDX-License-Identifier: Apache-2.0 */
/* Owns the directory that quant_run() fills and pack() reads. */
#include "quant/quant-pack.h"

#include <errno.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"
#include "base/message.h"

#define MAX_OPEN 16

static int remove_one(const char *path, const struct stat *st, int kind, struct FTW *walk)
{
	return remove(path);
}

/* What is lossy: the codes, and the scales that were not there before. */
static bool is_lossy(const void *lossy, const char *name)
{
	const struct quant_report *report = lossy;

	for (size_t i = 0; i < report->n_tensors; i++) {
		size_t n = strlen(report->tensors[i].name);

		if (strncmp(name, report->tensors[i].name, n) == 0 &&
		    (name[n] == '\0' || strcmp(name + n, "_scale") == 0))
			return true;
	}
	return false;
}

int quant_pack(const char *source, const char *path, const struct quant_options *options,
	       const struct pack_options *pack_options, struct quant_report *ret_report)
{
	size_t n = strlen(path) + 32;
	_cleanup_(cleanup_memory) char *directory = memory_alloc(n);
	struct pack_options packing = *pack_options;
	struct quant_report report;
	int r = directory ? pack_check_output(source, path) : message_set(-ENOMEM, "not enough memory");

	if (r)
		return r;
	snprintf(directory, n, "%s.quantizing-XXXXXX", path);
	if (!mkdtemp(directory))
		return message_set(-errno, "%s: cannot make a directory beside it: %s", path,
				   strerror(errno));
	r = quant_run(source, directory, options, &report);
	if (!r) {
		packing.is_lossy = is_lossy;
		packing.lossy = &report;
		r = pack(directory, path, &packing);
		if (r)
			quant_report_deinit(&report);
	}
	if (nftw(directory, remove_one, MAX_OPEN, FTW_DEPTH | FTW_PHYS) < 0 && !r) {
		r = message_set(-errno, "%s: cannot remove: %s", directory, strerror(errno));
		quant_report_deinit(&report);
	}
	if (!r)
		*ret_report = report;
	return r;
}
