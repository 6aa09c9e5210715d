/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which of a function's forms this process runs. Decided once, from what the CPU and the kernel
 * offer; DCMEM_CPU=portable|avx2|avx512 in the environment lowers it (never raises it: a form that
 * the CPU lacks is ignored), so that tests can run every form on one machine.
 */
#ifndef BASE_CPU_H
#define BASE_CPU_H

#include <stdbool.h>

enum cpu_path {
	CPU_PORTABLE,
	CPU_AVX2,   /* with BMI1, BMI2, LZCNT, FMA and F16C */
	CPU_AVX512, /* with F, BW, VL, DQ, VBMI and VBMI2, beside all of AVX2 */
	CPU_N_PATHS,
};

/* The best form of this process. Any thread; constant from the first call on, but for: */
enum cpu_path cpu_path(void);
/*
 * Another form from now on, for what measures forms side by side; false, and nothing changes, if
 * the CPU lacks it. Call while no other thread runs any.
 */
bool cpu_path_force(enum cpu_path path);

const char *cpu_path_name(enum cpu_path path); /* "portable", "avx2", "avx512" */

#endif
