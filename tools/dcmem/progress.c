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

/* Is it time to draw? Then "LABEL [###   ] 50 %" is drawn. */
static bool draw(struct progress *progress, double share, double seconds)
{
	uint64_t now = clock_now_ns();

	if (!progress->enabled || seconds < 1 || now - progress->last_ns < 100 * NS_PER_MS)
		return false;
	progress->last_ns = now;
	progress->drawn = true;
	fprintf(stderr, "\r%s [", progress->label);
	for (int i = 0; i < BAR_COLUMNS; i++)
		fputc(i < (int)(share * BAR_COLUMNS) ? '#' : ' ', stderr);
	fprintf(stderr, "] %3d %%", (int)(share * 100));
	return true;
}

static double share_of(uint64_t done, uint64_t total)
{
	return done < total ? (double)done / (double)total : 1;
}

static void draw_rest(double share, double seconds)
{
	fprintf(stderr, "  %.0f s left \033[K", share > 0 ? seconds / share - seconds : 0);
	fflush(stderr);
}

void progress_update(struct progress *progress, uint64_t done_bytes, uint64_t total_bytes)
{
	char done_text[24], rate_text[24];
	double seconds = (double)(clock_now_ns() - progress->start_ns) / NS_PER_S;
	double share = share_of(done_bytes, total_bytes);

	if (!draw(progress, share, seconds))
		return;
	fprintf(stderr, "  %s  %s/s", table_bytes(done_bytes, done_text),
		table_bytes((uint64_t)((double)done_bytes / seconds), rate_text));
	draw_rest(share, seconds);
}

void progress_steps(struct progress *progress, uint64_t done, uint64_t total)
{
	double seconds = (double)(clock_now_ns() - progress->start_ns) / NS_PER_S;
	double share = share_of(done, total);

	if (draw(progress, share, seconds))
		draw_rest(share, seconds);
}

void progress_end(struct progress *progress)
{
	if (progress->drawn)
		fputs("\r\033[K", stderr);
	progress->drawn = false;
}
