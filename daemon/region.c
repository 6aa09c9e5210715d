/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Regions. Owns the descriptors and the mapping; a seal that fails is fatal for the object. Created
 * by the loader or the loop thread, then passed on. The memory is charged by the caller first.
 */
#include "region.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/message.h"
#include "base/range.h"
#include "hugepage.h"
#include "numa.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#define REGION_PAGE 4096UL
#define SEAL_TRIES 200 /* a page may be pinned for a moment: 200 ms; untuned */

/* At 2 MiB alignment, without which no huge page is mapped as one. */
static int map_aligned(int fd, uint64_t n_bytes, int protection, void **ret_data)
{
	size_t mapped = align_up(n_bytes, REGION_PAGE);
	size_t reserved = mapped + HUGEPAGE_BYTES;
	uint8_t *base, *data;

	base = mmap(NULL, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (base == MAP_FAILED)
		return message_set(-errno, "cannot reserve %zu bytes: %s", reserved,
				   strerror(errno));
	data = base + (-(uintptr_t)base & (HUGEPAGE_BYTES - 1));
	if (mmap(data, mapped, protection, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
		int r = message_set(-errno, "cannot map %zu bytes: %s", mapped, strerror(errno));

		(void)munmap(base, reserved);
		return r;
	}
	if (data > base)
		(void)munmap(base, (size_t)(data - base));
	if (data + mapped < base + reserved)
		(void)munmap(data + mapped, (size_t)(base + reserved - data - mapped));
	*ret_data = data;
	return 0;
}

static void unmap(struct region *region)
{
	if (region->data)
		(void)munmap(region->data, align_up(region->n_bytes, REGION_PAGE));
	region->data = NULL;
}

int region_create(const char *name, uint64_t n_bytes, const struct store_config *config,
		  struct region *ret_region)
{
	struct region region = REGION_NONE;
	int r;

	region.n_bytes = n_bytes;
	region.fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
	if (region.fd < 0 && errno == EINVAL) /* before Linux 6.3 */
		region.fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (region.fd < 0)
		return message_set(-errno, "memfd_create: %s", strerror(errno));
	if (ftruncate(region.fd, (off_t)n_bytes) < 0)
		r = message_set(-errno, "memfd of %llu bytes: %s", (unsigned long long)n_bytes,
				strerror(errno));
	else
		r = region_reopen(&region, &region.test_fd);
	if (!r)
		r = map_aligned(region.fd, n_bytes, PROT_READ | PROT_WRITE, &region.data);
	if (!r && config)
		r = numa_place(region.data, align_up(n_bytes, REGION_PAGE), config->numa,
			       config->numa_node);
	if (r) {
		region_close(&region);
		return r;
	}
	*ret_region = region;
	return 0;
}

int region_shrink(struct region *region, uint64_t n_bytes)
{
	unmap(region);
	if (ftruncate(region->fd, (off_t)n_bytes) < 0)
		return message_set(-errno, "memfd of %llu bytes: %s", (unsigned long long)n_bytes,
				   strerror(errno));
	region->n_bytes = n_bytes;
	charge_shrink(&region->charge, n_bytes);
	return map_aligned(region->fd, n_bytes, PROT_READ | PROT_WRITE, &region->data);
}

static int add_seals(const struct region *region, int seals)
{
	const struct timespec pause = {.tv_nsec = 1000000};

	for (unsigned try = 0; fcntl(region->fd, F_ADD_SEALS, seals) < 0; try++) {
		if (errno != EBUSY || try == SEAL_TRIES)
			return message_set(-errno, "cannot seal memory: %s", strerror(errno));
		(void)nanosleep(&pause, NULL);
	}
	return 0;
}

int region_seal_immutable(struct region *region)
{
	int r;

	unmap(region);
	r = add_seals(region, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL);
	return r ? r : map_aligned(region->fd, region->n_bytes, PROT_READ, &region->data);
}

int region_seal_written(struct region *region)
{
	return add_seals(region, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL);
}

int region_seal_shared(struct region *region)
{
	return add_seals(region, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
}

static bool is_writable(const struct region *region)
{
	void *data = mmap(NULL, REGION_PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, region->fd, 0);

	if (data == MAP_FAILED)
		return false;
	(void)munmap(data, REGION_PAGE);
	return true;
}

bool region_seals_work(void)
{
	struct region immutable = REGION_NONE, written = REGION_NONE;
	bool work = region_create("dcmem-probe", REGION_PAGE, NULL, &immutable) == 0 &&
		    region_create("dcmem-probe", REGION_PAGE, NULL, &written) == 0 &&
		    is_writable(&immutable) && region_seal_immutable(&immutable) == 0 &&
		    region_seal_written(&written) == 0 && !is_writable(&immutable) &&
		    !is_writable(&written);

	region_close(&immutable);
	region_close(&written);
	return work;
}

static int reopen(const struct region *region, int flags, int *ret_fd)
{
	char path[64];
	int fd;

	(void)snprintf(path, sizeof(path), "/proc/self/fd/%d", region->fd);
	fd = open(path, flags | O_CLOEXEC);
	if (fd < 0)
		return message_set(-errno, "cannot reopen %s: %s", path, strerror(errno));
	*ret_fd = fd;
	return 0;
}

int region_reopen(const struct region *region, int *ret_fd)
{
	return reopen(region, O_RDONLY, ret_fd);
}

int region_reopen_writable(const struct region *region, int *ret_fd)
{
	return reopen(region, O_RDWR, ret_fd);
}

void region_close(struct region *region)
{
	if (region->fd < 0)
		return;
	unmap(region);
	region->test_fd = close_fd(region->test_fd);
	region->fd = close_fd(region->fd);
	charge_release(&region->charge);
}
