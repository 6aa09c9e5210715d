/* SPDX-License-Identifier: Apache-2.0 */
/* One error sentence a thread, in static storage: setting it cannot fail. */
#include "base/message.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static __thread char message_text[1024]; /* long enough for a path and a name; cut beyond */

int message_set(int result, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	(void)vsnprintf(message_text, sizeof(message_text), format, args);
	va_end(args);
	return result;
}

int message_prefix(int result, const char *format, ...)
{
	char old[sizeof(message_text)];
	va_list args;
	int n;

	memcpy(old, message_text, sizeof(old));
	va_start(args, format);
	n = vsnprintf(message_text, sizeof(message_text), format, args);
	va_end(args);
	if (n >= 0 && (size_t)n < sizeof(message_text))
		(void)snprintf(message_text + n, sizeof(message_text) - (size_t)n, ": %.*s",
			       (int)sizeof(old), old);
	return result;
}

const char *message_get(void)
{
	return message_text;
}

void message_clear(void)
{
	message_text[0] = '\0';
}
