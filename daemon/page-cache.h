/* SPDX-License-Identifier: Apache-2.0 */
/* What of a file is in the page cache. Any thread. */
#ifndef DCMEM_PAGE_CACHE_H
#define DCMEM_PAGE_CACHE_H

#include <stdint.h>

enum page_cache { PAGE_CACHE_NONE, PAGE_CACHE_SOME, PAGE_CACHE_ALL, PAGE_CACHE_UNKNOWN };

enum page_cache page_cache_has(int fd, uint64_t offset, uint64_t n_bytes);

#endif
