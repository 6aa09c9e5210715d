/* SPDX-License-Identifier: Apache-2.0 */
/* Sealed regions, and the test that finds whoever still has one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/exclusive.h"

#define SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

/* A descriptor, then a mapping alone, then one in another process. */
static void look_and_leave(struct region *region)
{
	int fd, pipe_fds[2];
	void *data;
	pid_t child;
	char byte = 0;

	assert_true(exclusive_test(region));
	assert_int_equal(region_reopen(region, &fd), 0);
	assert_false(exclusive_test(region));
	assert_ptr_equal(mmap(NULL, region->n_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0),
			 MAP_FAILED);
	data = mmap(NULL, region->n_bytes, PROT_READ, MAP_SHARED, fd, 0);
	assert_ptr_not_equal(data, MAP_FAILED);
	close(fd);
	assert_false(exclusive_test(region));
	assert_int_equal(pipe(pipe_fds), 0);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		close(pipe_fds[1]);
		_exit(read(pipe_fds[0], &byte, 1) == 0 ? 0 : 1);
	}
	close(pipe_fds[0]);
	assert_int_equal(munmap(data, region->n_bytes), 0);
	assert_false(exclusive_test(region));
	close(pipe_fds[1]);
	assert_int_equal(waitpid(child, NULL, 0), child);
	assert_true(exclusive_test(region));
}

static void test_immutable(void **state)
{
	struct region region;

	assert_int_equal(region_create("test", 10000, NULL, &region), 0);
	((char *)region.data)[9999] = 7;
	assert_int_equal(region_seal_immutable(&region), 0);
	assert_int_equal(((char *)region.data)[9999], 7);
	assert_int_equal(fcntl(region.fd, F_GET_SEALS) & (SEALS | F_SEAL_WRITE),
			 SEALS | F_SEAL_WRITE);
	assert_int_equal(pwrite(region.fd, "x", 1, 0), -1);
	assert_int_equal((uintptr_t)region.data % (2 << 20), 0);
	look_and_leave(&region);
	region_close(&region);
}

static void test_written(void **state)
{
	struct region region;

	assert_int_equal(region_create("test", 2 << 20, NULL, &region), 0);
	assert_int_equal(region_seal_written(&region), 0);
	assert_int_equal(fcntl(region.fd, F_GET_SEALS) & (SEALS | 0x10), SEALS | 0x10);
	((char *)region.data)[5] = 7; /* the daemon's own mapping still writes */
	assert_int_equal(ftruncate(region.fd, 4096), -1);
	look_and_leave(&region);
	region_close(&region);
}

static void test_probe(void **state)
{
	assert_true(exclusive_probe());
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_immutable),
		cmocka_unit_test(test_written),
		cmocka_unit_test(test_probe),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
