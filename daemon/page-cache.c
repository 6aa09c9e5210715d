/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What of a file is in the page cache. Owns nothing, reads nothing: a read that does not block
 * (RWF_NOWAIT) would answer too, but starts readahead of what is missing. cachestat() (Linux 6.5)
 * and mincore() tell only those who own the file or may write it. Any thread.
 */
#include "page-cache.h"

#include <errno.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/range.h"

#ifndef SYS_cachestat
#define SYS_cachestat 451
#endif
#define CACHE_PAGE 4096ULL
#define MINCORE_PAGES 512

struct cache_range {
	uint64_t offset, n_bytes;
};

struct cache_state {
	uint64_t cached, dirty, writeback, evicted, recently_evicted; /* pages */
};

static enum page_cache of_count(uint64_t cached, uint64_t n_pages)
{
	return !cached ? PAGE_CACHE_NONE : cached < n_pages ? PAGE_CACHE_SOME : PAGE_CACHE_ALL;
}

/* The mapping is never touched: the file may be truncated at any time. */
static enum page_cache by_mincore(int fd, uint64_t offset, uint64_t n_pages)
{
	unsigned char present[MINCORE_PAGES];
	uint64_t cached = 0;

	for (uint64_t at = 0; at < n_pages; at += MINCORE_PAGES) {
		size_t n = (size_t)min_u64(MINCORE_PAGES, n_pages - at);
		void *data = mmap(NULL, n * CACHE_PAGE, PROT_READ, MAP_SHARED, fd,
				  (off_t)(offset + at * CACHE_PAGE));
		bool failed;

		if (data == MAP_FAILED)
			return PAGE_CACHE_UNKNOWN;
		failed = mincore(data, n * CACHE_PAGE, present) < 0;
		(void)munmap(data, n * CACHE_PAGE);
		if (failed)
			return PAGE_CACHE_UNKNOWN;
		for (size_t i = 0; i < n; i++)
			cached += present[i] & 1;
	}
	return of_count(cached, n_pages);
}

enum page_cache page_cache_has(int fd, uint64_t offset, uint64_t n_bytes)
{
	uint64_t first = offset - offset % CACHE_PAGE;
	uint64_t n_pages = div_up(offset + n_bytes - first, CACHE_PAGE);
	struct cache_range range = {first, n_pages * CACHE_PAGE};
	struct cache_state state;

	if (sysconf(_SC_PAGESIZE) != (long)CACHE_PAGE)
		return PAGE_CACHE_UNKNOWN;
	if (syscall(SYS_cachestat, fd, &range, &state, 0) == 0)
		return of_count(state.cached, n_pages);
	if (errno == EPERM)
		return PAGE_CACHE_UNKNOWN;
	return by_mincore(fd, first, n_pages);
}
