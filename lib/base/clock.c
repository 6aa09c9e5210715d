/* SPDX-License-Identifier: Apache-2.0 */
/* The one clock. Owns its source, which only tests change. */
#include "base/clock.h"

#include <stddef.h>
#include <time.h>

static uint64_t clock_monotonic(void)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static uint64_t (*clock_source)(void) = clock_monotonic;

uint64_t clock_now_ns(void)
{
	return clock_source();
}

void clock_set_source(uint64_t (*source)(void))
{
	clock_source = source ? source : clock_monotonic;
}
