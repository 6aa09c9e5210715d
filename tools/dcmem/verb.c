/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How verbs fail: one line on stderr and an exit code. Text from outside (file and tensor names)
 * may hold anything, so control characters never reach the terminal.
 */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "dcmem/dcmem.h"
#include "verb.h"

static void print_line(const char *verb, const char *text)
{
	fprintf(stderr, "dcmem %s: ", verb);
	for (const char *c = text; *c; c++)
		fputc((unsigned char)*c < 0x20 || *c == 0x7f ? '?' : *c, stderr);
	fputc('\n', stderr);
}

int verb_failure(const char *verb, int result, const char *text)
{
	if (!text || !*text)
		text = result < 0 ? strerror(-result) : "failed";
	print_line(verb, text);
	return result == DCMEM_E_CORRUPT ? VERB_CORRUPT : VERB_FAILED;
}

int verb_usage(const char *verb, const char *format, ...)
{
	char text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text) - 64, format, args);
	va_end(args);
	snprintf(text + strlen(text), sizeof(text) - strlen(text), " (see `dcmem %s --help`)", verb);
	print_line(verb, text);
	return VERB_USAGE;
}

int verb_flush(const char *verb)
{
	if (fflush(stdout) == 0 && !ferror(stdout))
		return VERB_OK;
	return verb_failure(verb, -errno, "cannot write to standard output");
}
