/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Draws one line and rewrites it ten times a second; leaves nothing behind. One thread.
 */
#include <stdio.h>
#include <unistd.h>

#include "base/clock.h"
#include "progress.h"
#include "table.h"

#define BAR_COLUMNS 30

void progress_init(struct progress *progress, const char *label, bool enabled)
{
	*progress = (struct progress){
		.label = label,
		.enabled = enabled && isatty(STDERR_FILENO),
		.start_ns = clock_now_ns(),
	};
}

void progress_update(struct progress *progress, uint64_t done_bytes, uint64_t total_bytes)
{
	char done_text[24], rate_text[24];
	uint64_t now = clock_now_ns();
	double share = total_bytes ? (double)done_bytes / (double)total_bytes : 1;
	double seconds = (double)(now - progress->start_ns) / NS_PER_S;
	int full;

	if (!progress->enabled || seconds < 1 || now - progress->last_ns < 100 * NS_PER_MS)
		return;
	share = share > 1 ? 1 : share;
	full = (int)(share * BAR_COLUMNS);
	progress->last_ns = now;
	progress->drawn = true;
	fprintf(stderr, "\r%s [", progress->label);
	for (int i = 0; i < BAR_COLUMNS; i++)
		fputc(i < full ? '#' : ' ', stderr);
	fprintf(stderr, "] %3d %%  %s  %s/s  %.0f s left \033[K", (int)(share * 100),
		table_bytes(done_bytes, done_text),
		table_bytes((uint64_t)((double)done_bytes / seconds), rate_text),
		share > 0 ? seconds / share - seconds : 0);
	fflush(stderr);
}

void progress_end(struct progress *progress)
{
	if (progress->drawn)
		fputs("\r\033[K", stderr);
	progress->drawn = false;
}
