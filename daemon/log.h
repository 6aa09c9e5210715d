/* SPDX-License-Identifier: Apache-2.0 */
/* One line an event on stderr; "<N>" prefixes where the journal reads it. Levels as syslog. */
#ifndef DCMEM_LOG_H
#define DCMEM_LOG_H

#include <stdbool.h>
#include <stdint.h>

enum log_level {
	LOG_LEVEL_ERROR = 3,
	LOG_LEVEL_WARNING = 4,
	LOG_LEVEL_NOTICE = 5,
	LOG_LEVEL_INFO = 6,
	LOG_LEVEL_DEBUG = 7,
};

void log_set_level(int level);
/* "error", "warning", "notice", "info", "debug"; -1 for another word. */
int log_level_from_name(const char *name);
/* Control characters are written as '?', so that one event stays one line. */
void log_line(int level, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Lines that a client can cause: at most `burst` a second, the rest counted and told later. */
struct log_limit {
	uint64_t since_ns;
	unsigned n_lines, n_dropped;
};
bool log_limit_allows(struct log_limit *limit, unsigned burst);

#endif
