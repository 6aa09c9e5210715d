/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Huge pages. Owns nothing; a mapping that cannot have them keeps small ones, and the caller counts
 * that. Any thread. The mapping is 2 MiB-aligned, shared, writable, and its bytes are charged.
 */
#include "hugepage.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "region.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

bool hugepage_is_advised(void)
{
	FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/shmem_enabled", "re");
	char line[128] = "";

	if (!file)
		return false;
	(void)!fgets(line, sizeof(line), file);
	(void)fclose(file);
	return strstr(line, "[always]") || strstr(line, "[advise]") || strstr(line, "[force]") ||
	       strstr(line, "[within_size]");
}

bool hugepage_advise(void *data, size_t n_bytes)
{
	/* The faults of whoever fills it bring huge pages then. */
	return hugepage_is_advised() && madvise(data, n_bytes, MADV_HUGEPAGE) == 0;
}

bool hugepage_collapse(void *data, size_t n_bytes)
{
	volatile char *bytes = data;

	for (size_t i = 0; i < n_bytes; i += HUGEPAGE_BYTES)
		bytes[i] = 0;
	return madvise(data, n_bytes, MADV_COLLAPSE) == 0;
}

bool hugepage_populate(void *data, size_t n_bytes)
{
	size_t whole = n_bytes & ~(HUGEPAGE_BYTES - 1);

	return whole && (hugepage_advise(data, whole) || hugepage_collapse(data, whole));
}

bool hugepage_probe(void)
{
	struct region region;
	bool works;

	if (region_create("dcmem-probe", HUGEPAGE_BYTES, NULL, &region))
		return false;
	works = hugepage_populate(region.data, region.n_bytes);
	region_close(&region);
	return works;
}
