/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of dense.c for AVX2 with fused multiply-add. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma")
#define DENSE_LANES 8
#define DENSE_KERNELS dense_avx2
#include "quant/dense-kernels.h"
#endif
