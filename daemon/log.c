/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log: stderr and nothing else. Any thread; each line is one write, so lines do not mix. Refuses
 * to let text of a client forge a line: control characters are replaced.
 */
#include "daemon/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

static int log_threshold = LOG_LEVEL_INFO;

static const char *const log_names[] = {
	[LOG_LEVEL_ERROR] = "error", [LOG_LEVEL_WARNING] = "warning", [LOG_LEVEL_NOTICE] = "notice",
	[LOG_LEVEL_INFO] = "info",   [LOG_LEVEL_DEBUG] = "debug",
};

void log_set_level(int level)
{
	__atomic_store_n(&log_threshold, level, __ATOMIC_RELAXED);
}

int log_level_from_name(const char *name)
{
	for (int i = LOG_LEVEL_ERROR; i <= LOG_LEVEL_DEBUG; i++)
		if (!strcmp(log_names[i], name))
			return i;
	return -1;
}

void log_line(int level, const char *format, ...)
{
	char line[2048];
	int head, body;
	size_t n;
	va_list arguments;

	if (level > __atomic_load_n(&log_threshold, __ATOMIC_RELAXED))
		return;
	if (getenv("JOURNAL_STREAM"))
		head = snprintf(line, sizeof(line), "<%d>", level);
	else
		head = snprintf(line, sizeof(line), "dcmemd: %s: ", log_names[level]);
	va_start(arguments, format);
	body = vsnprintf(line + head, sizeof(line) - (size_t)head - 1, format, arguments);
	va_end(arguments);
	if (body < 0)
		return;
	n = strlen(line);
	for (size_t i = 0; i < n; i++)
		if ((unsigned char)line[i] < 0x20 || line[i] == 0x7f)
			line[i] = '?';
	line[n++] = '\n';
	if (write(STDERR_FILENO, line, n) < 0)
		return; /* nobody left to tell */
}

bool log_limit_allows(struct log_limit *limit, unsigned burst)
{
	uint64_t now = clock_now_ns();

	if (!limit->since_ns || now - limit->since_ns >= NS_PER_S) {
		if (limit->n_dropped)
			log_line(LOG_LEVEL_INFO, "%u more lines of this kind were left out",
				 limit->n_dropped);
		*limit = (struct log_limit){.since_ns = now};
	}
	if (limit->n_lines++ < burst)
		return true;
	limit->n_dropped++;
	return false;
}
