/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The exclusivity test: a write lease on our private O_RDONLY reopen is refused while any other
 * O_RDONLY description of the memfd lives: held, in flight in a socket, or under a mapping. The
 * memfd itself and mappings made through it do not count, so our own may stay. The lease is given
 * back at once. Loop thread; 5 to 60 us.
 */
#include "exclusive.h"

#include <fcntl.h>
#include <sys/mman.h>

#include "base/cleanup.h"

bool exclusive_test(const struct region *region)
{
	if (fcntl(region->test_fd, F_SETLEASE, F_WRLCK) < 0)
		return false;
	(void)fcntl(region->test_fd, F_SETLEASE, F_UNLCK);
	return true;
}

bool exclusive_probe(void)
{
	struct region region;
	bool alone, with_fd, with_map;
	void *other;
	int fd;

	if (region_create("dcmem-probe", 4096, NULL, &region))
		return false;
	alone = !region_seal_written(&region) && exclusive_test(&region);
	if (!alone || region_reopen(&region, &fd)) {
		region_close(&region);
		return false;
	}
	with_fd = exclusive_test(&region);
	other = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	close_fd(fd);
	with_map = other == MAP_FAILED || exclusive_test(&region);
	if (other != MAP_FAILED)
		(void)munmap(other, 4096);
	alone = exclusive_test(&region);
	region_close(&region);
	return alone && !with_fd && !with_map;
}
