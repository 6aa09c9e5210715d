/* SPDX-License-Identifier: Apache-2.0 */
/* A progress bar on stderr: on terminals only, and only when the work takes over a second. */
#ifndef DCMEM_PROGRESS_H
#define DCMEM_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
	const char *label;
	bool enabled, drawn;
	uint64_t start_ns, last_ns;
};

void progress_init(struct progress *progress, const char *label, bool enabled);
void progress_update(struct progress *progress, uint64_t done_bytes, uint64_t total_bytes);
/* The same of steps that have no size. */
void progress_steps(struct progress *progress, uint64_t done, uint64_t total);
/* Wipes the line. */
void progress_end(struct progress *progress);

#endif
