/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The portable kernel, and the choice among kernels by what the CPU has. The portable one is plain
 * C, with several sums so that a compiler may use what vectors the baseline has.
 */
#include "kernels.h"

#include "util.h"

#define TILE 16

static float portable_dot(uint32_t dtype, const void *row, const float *x, size_t n)
{
	float sums[8] = {0};
	size_t i = 0;

	for (; i + 8 <= n; i += 8)
		for (size_t j = 0; j < 8; j++)
			sums[j] += kernel_element(dtype, row, i + j) * x[i + j];
	for (; i < n; i++)
		sums[i % 8] += kernel_element(dtype, row, i) * x[i];
	return ((sums[0] + sums[4]) + (sums[1] + sums[5])) +
	       ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

static void portable_expand(uint32_t dtype, const void *row, size_t n, float *out)
{
	for (size_t i = 0; i < n; i++)
		out[i] = kernel_element(dtype, row, i);
}

static void portable_axpy(float a, const float *x, size_t n, float *y)
{
	for (size_t i = 0; i < n; i++)
		y[i] += a * x[i];
}

static void portable_block(const float *w, size_t w_stride, const float *x, size_t n, float *c,
			   size_t c_stride, unsigned int n_rows)
{
	for (unsigned int r = 0; r < n_rows; r++) {
		float sums[TILE];

		memcpy(sums, c + r * c_stride, sizeof(sums));
		for (size_t k = 0; k < n; k++) {
			float value = w[r * w_stride + k];

			for (size_t j = 0; j < TILE; j++)
				sums[j] += value * x[k * TILE + j];
		}
		memcpy(c + r * c_stride, sums, sizeof(sums));
	}
}

static uint64_t portable_sweep(const void *data, size_t n_bytes)
{
	const uint8_t *bytes = data;
	uint64_t sums[4] = {0}, words[4];
	size_t i = 0;

	for (; i + sizeof(words) <= n_bytes; i += sizeof(words)) {
		memcpy(words, bytes + i, sizeof(words));
		for (size_t j = 0; j < 4; j++)
			sums[j] ^= words[j];
	}
	return sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
}

static double portable_peak(uint64_t n_rounds, float *ret_sum)
{
	float sums[32] = {0}, a = 0.999F, b = 1e-3F;

	for (uint64_t i = 0; i < n_rounds; i++) {
		__asm__ volatile("" : "+m"(a), "+m"(b));
		for (int j = 0; j < 32; j++)
			sums[j] = sums[j] * a + b;
	}
	*ret_sum = 0;
	for (int j = 0; j < 32; j++)
		*ret_sum += sums[j];
	return (double)n_rounds * 64;
}

const struct kernel kernel_portable = {
	.name = "portable",
	.tile = TILE,
	.dot = portable_dot,
	.expand = portable_expand,
	.axpy = portable_axpy,
	.block = portable_block,
	.sweep = portable_sweep,
	.peak = portable_peak,
};

bool kernel_has_dtype(uint32_t dtype)
{
	return dtype == DCMEM_F32 || dtype == DCMEM_F16 || dtype == DCMEM_BF16 || dtype == DCMEM_I8;
}

static const struct kernel *const kernels[] = {
#if defined(__x86_64__)
	&kernel_avx512,
	&kernel_avx2,
#endif
	&kernel_portable,
};

bool kernel_is_supported(const struct kernel *kernel)
{
#if defined(__x86_64__)
	if (kernel == &kernel_avx512)
		return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
		       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
	if (kernel == &kernel_avx2)
		return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
		       __builtin_cpu_supports("f16c");
#endif
	return kernel == &kernel_portable;
}

int kernel_choose(const char *name, const struct kernel **ret_kernel)
{
	for (size_t i = 0; i < sizeof(kernels) / sizeof(kernels[0]); i++) {
		if (name && strcmp(name, kernels[i]->name) != 0)
			continue;
		if (kernel_is_supported(kernels[i])) {
			*ret_kernel = kernels[i];
			return 0;
		}
		if (name)
			return error_set(-EINVAL, "this CPU cannot run the %s kernel", name);
	}
	return error_set(-EINVAL, "no kernel is called '%s': portable, avx2 or avx512", name);
}
