/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels of dense.c for AVX-512. */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,prefer-vector-width=512")
#define DENSE_LANES 16
#define DENSE_KERNELS dense_avx512
#include "quant/dense-kernels.h"
#endif
