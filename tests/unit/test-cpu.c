/* SPDX-License-Identifier: Apache-2.0 */
/* The form that the environment asks for is the one that runs, unless the CPU lacks it. */
#include "base/cpu.h"

#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void test_environment_lowers(void **state)
{
	(void)state;
	assert_int_equal(setenv("DCMEM_CPU", "portable", 1), 0);
	assert_int_equal(cpu_path(), CPU_PORTABLE);
	/* Decided once: a later change of the environment changes nothing. */
	assert_int_equal(unsetenv("DCMEM_CPU"), 0);
	assert_int_equal(cpu_path(), CPU_PORTABLE);
}

static void test_force(void **state)
{
	enum cpu_path was = cpu_path();

	(void)state;
	assert_true(cpu_path_force(CPU_PORTABLE)); /* every CPU has it */
	assert_int_equal(cpu_path(), CPU_PORTABLE);
	for (int path = CPU_AVX2; path < CPU_N_PATHS; path++) {
		enum cpu_path before = cpu_path();
		bool forced = cpu_path_force((enum cpu_path)path);

		assert_int_equal(cpu_path(), forced ? (enum cpu_path)path : before);
	}
	assert_true(cpu_path_force(was));
}

static void test_names(void **state)
{
	(void)state;
	assert_string_equal(cpu_path_name(CPU_PORTABLE), "portable");
	assert_string_equal(cpu_path_name(CPU_AVX2), "avx2");
	assert_string_equal(cpu_path_name(CPU_AVX512), "avx512");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_environment_lowers),
		cmocka_unit_test(test_force),
		cmocka_unit_test(test_names),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
