/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process-wide hooks of dcmem_set_hooks(). Set once, before any other call; read by any thread.
 */
#include "client.h"

#include <stdarg.h>
#include <stdio.h>

static void (*hooks_log)(void *data, int level, const char *text);
static void *hooks_data;

DCMEM_API int dcmem_set_hooks(const struct dcmem_hooks *hooks)
{
	struct memory_hooks memory;

	if (!hooks || hooks->size != sizeof(*hooks) || !hooks->alloc != !hooks->free)
		return message_set(DCMEM_E_INVALID,
				   "hooks of another size, or alloc without free or free without alloc");
	hooks_log = hooks->log;
	hooks_data = hooks->data;
	memory = (struct memory_hooks){hooks->data, hooks->alloc, hooks->free};
	memory_set_hooks(&memory);
	return 0;
}

void client_log(int level, const char *format, ...)
{
	char text[512]; /* a log line; cut beyond */
	va_list args;

	if (!hooks_log)
		return;
	va_start(args, format);
	(void)vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	hooks_log(hooks_data, level, text);
}
