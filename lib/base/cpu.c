/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Asks the compiler's run-time library what the CPU has (it reads XCR0 too, so a kernel that does
 * not save the registers counts as a CPU without them). Any thread: the racing first calls all
 * store the same value.
 */
#include "base/cpu.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static const char *const path_names[CPU_N_PATHS] = {
	[CPU_PORTABLE] = "portable",
	[CPU_AVX2] = "avx2",
	[CPU_AVX512] = "avx512",
};

const char *cpu_path_name(enum cpu_path path)
{
	return path_names[path];
}

static enum cpu_path cpu_best(void)
{
#if defined(__x86_64__)
	__builtin_cpu_init();
	if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi") ||
	    !__builtin_cpu_supports("bmi2") || !__builtin_cpu_supports("fma") ||
	    !__builtin_cpu_supports("lzcnt") || !__builtin_cpu_supports("f16c"))
		return CPU_PORTABLE;
	if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
	    !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq") ||
	    !__builtin_cpu_supports("avx512vbmi") || !__builtin_cpu_supports("avx512vbmi2"))
		return CPU_AVX2;
	return CPU_AVX512;
#else
	return CPU_PORTABLE;
#endif
}

static atomic_int decided; /* path + 1, 0 until known */

bool cpu_path_force(enum cpu_path path)
{
	if (path > cpu_best())
		return false;
	atomic_store_explicit(&decided, (int)path + 1, memory_order_relaxed);
	return true;
}

enum cpu_path cpu_path(void)
{
	int path = atomic_load_explicit(&decided, memory_order_relaxed) - 1;
	const char *wanted;

	if (path >= 0)
		return (enum cpu_path)path;
	path = (int)cpu_best();
	wanted = secure_getenv("DCMEM_CPU");
	for (int i = 0; wanted && i < path; i++) {
		if (strcmp(wanted, path_names[i]) == 0)
			path = i;
	}
	atomic_store_explicit(&decided, path + 1, memory_order_relaxed);
	return (enum cpu_path)path;
}
