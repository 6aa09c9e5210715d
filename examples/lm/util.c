/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Errors, memory and time. The sentence of the last error is per thread; only the thread that
 * runs a verb reads it.
 */
#include "util.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static _Thread_local char error_text[512];

int error_set(int result, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	(void)vsnprintf(error_text, sizeof(error_text), format, args);
	va_end(args);
	return result;
}

const char *error_get(void)
{
	return error_text;
}

void *array_new(size_t count, size_t element_bytes)
{
	size_t n_bytes;
	void *memory;

	if (__builtin_mul_overflow(count, element_bytes, &n_bytes) || n_bytes > PTRDIFF_MAX - 64)
		return NULL;
	if (posix_memalign(&memory, 64, n_bytes ? n_bytes : 1) != 0)
		return NULL;
	memset(memory, 0, n_bytes);
	return memory;
}

void *array_free(void *memory)
{
	free(memory);
	return NULL;
}

double seconds_now(void)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

void memory_use_read(struct memory_use *ret_use)
{
	FILE *file = fopen("/proc/self/smaps_rollup", "re");
	char line[256];
	unsigned long kib;

	memset(ret_use, 0, sizeof(*ret_use));
	if (!file)
		return;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "Rss: %lu kB", &kib) == 1)
			ret_use->rss = (uint64_t)kib * 1024;
		else if (sscanf(line, "Pss: %lu kB", &kib) == 1)
			ret_use->pss = (uint64_t)kib * 1024;
		else if (sscanf(line, "Anonymous: %lu kB", &kib) == 1)
			ret_use->anonymous = (uint64_t)kib * 1024;
	}
	(void)fclose(file);
}
