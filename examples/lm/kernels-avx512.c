/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel for AVX-512 (F, BW, DQ, VL). Called only after kernel_is_supported(). Tails go through
 * masked loads, which touch no byte beyond the mask. A register block is 6 rows of 32 sums; weights
 * are broadcast by the multiply-add itself.
 */
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define FEATURES    "avx512f,avx512bw,avx512dq,avx512vl"
#define TARGET	    __attribute__((target(FEATURES)))
#define TARGET_PART static inline __attribute__((target(FEATURES), always_inline))
#define TILE	    32

/* Up to sixteen elements as floats; those outside the mask are 0 and not touched. */
TARGET_PART __m512 load16(uint32_t dtype, const uint8_t *row, size_t i, __mmask16 mask)
{
	switch (dtype) {
	case DCMEM_BF16:
		return _mm512_castsi512_ps(_mm512_slli_epi32(
			_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row + 2 * i)), 16));
	case DCMEM_F16:
		return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, row + 2 * i));
	case DCMEM_I8:
		return _mm512_cvtepi32_ps(
			_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, row + i)));
	default:
		return _mm512_maskz_loadu_ps(mask, row + 4 * i);
	}
}

static inline __mmask16 tail_mask(size_t n)
{
	return (__mmask16)((1U << n) - 1);
}

TARGET_PART float dot_of(uint32_t dtype, const uint8_t *row, const float *x, size_t n)
{
	__m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
	const __mmask16 all = 0xffff;
	size_t i = 0;

	for (; i + 64 <= n; i += 64) {
		s0 = _mm512_fmadd_ps(load16(dtype, row, i, all), _mm512_loadu_ps(x + i), s0);
		s1 = _mm512_fmadd_ps(load16(dtype, row, i + 16, all), _mm512_loadu_ps(x + i + 16), s1);
		s2 = _mm512_fmadd_ps(load16(dtype, row, i + 32, all), _mm512_loadu_ps(x + i + 32), s2);
		s3 = _mm512_fmadd_ps(load16(dtype, row, i + 48, all), _mm512_loadu_ps(x + i + 48), s3);
	}
	for (; i < n; i += 16) {
		__mmask16 mask = n - i >= 16 ? all : tail_mask(n - i);

		s0 = _mm512_fmadd_ps(load16(dtype, row, i, mask), _mm512_maskz_loadu_ps(mask, x + i),
				     s0);
	}
	return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(s0, s1), _mm512_add_ps(s2, s3)));
}

TARGET static float avx512_dot(uint32_t dtype, const void *row, const float *x, size_t n)
{
	switch (dtype) {
	case DCMEM_BF16:
		return dot_of(DCMEM_BF16, row, x, n);
	case DCMEM_F16:
		return dot_of(DCMEM_F16, row, x, n);
	case DCMEM_I8:
		return dot_of(DCMEM_I8, row, x, n);
	default:
		return dot_of(DCMEM_F32, row, x, n);
	}
}

TARGET_PART void expand_of(uint32_t dtype, const uint8_t *row, size_t n, float *out)
{
	size_t i = 0;

	for (; i + 16 <= n; i += 16)
		_mm512_storeu_ps(out + i, load16(dtype, row, i, 0xffff));
	if (i < n)
		_mm512_mask_storeu_ps(out + i, tail_mask(n - i),
				      load16(dtype, row, i, tail_mask(n - i)));
}

TARGET static void avx512_expand(uint32_t dtype, const void *row, size_t n, float *out)
{
	switch (dtype) {
	case DCMEM_BF16:
		expand_of(DCMEM_BF16, row, n, out);
		break;
	case DCMEM_F16:
		expand_of(DCMEM_F16, row, n, out);
		break;
	case DCMEM_I8:
		expand_of(DCMEM_I8, row, n, out);
		break;
	default:
		expand_of(DCMEM_F32, row, n, out);
	}
}

TARGET static void avx512_axpy(float a, const float *x, size_t n, float *y)
{
	__m512 factor = _mm512_set1_ps(a);

	for (size_t i = 0; i < n; i += 16) {
		__mmask16 mask = n - i >= 16 ? 0xffff : tail_mask(n - i);

		_mm512_mask_storeu_ps(y + i, mask,
				      _mm512_fmadd_ps(factor, _mm512_maskz_loadu_ps(mask, x + i),
						      _mm512_maskz_loadu_ps(mask, y + i)));
	}
}

TARGET_PART void block_of(const float *w, size_t w_stride, const float *x, size_t n, float *c,
			  size_t c_stride, const unsigned int rows)
{
	__m512 sums[KERNEL_ROWS][2];

#pragma GCC unroll 6
	for (unsigned int r = 0; r < rows; r++) {
		sums[r][0] = _mm512_loadu_ps(c + r * c_stride);
		sums[r][1] = _mm512_loadu_ps(c + r * c_stride + 16);
	}
	for (size_t k = 0; k < n; k++) {
		__m512 x0 = _mm512_loadu_ps(x + k * TILE), x1 = _mm512_loadu_ps(x + k * TILE + 16);

#pragma GCC unroll 6
		for (unsigned int r = 0; r < rows; r++) {
			__m512 value = _mm512_set1_ps(w[r * w_stride + k]);

			sums[r][0] = _mm512_fmadd_ps(value, x0, sums[r][0]);
			sums[r][1] = _mm512_fmadd_ps(value, x1, sums[r][1]);
		}
	}
#pragma GCC unroll 6
	for (unsigned int r = 0; r < rows; r++) {
		_mm512_storeu_ps(c + r * c_stride, sums[r][0]);
		_mm512_storeu_ps(c + r * c_stride + 16, sums[r][1]);
	}
}

TARGET static void avx512_block(const float *w, size_t w_stride, const float *x, size_t n, float *c,
				size_t c_stride, unsigned int n_rows)
{
	if (n_rows == KERNEL_ROWS) {
		block_of(w, w_stride, x, n, c, c_stride, KERNEL_ROWS);
		return;
	}
	for (unsigned int r = 0; r < n_rows; r++)
		block_of(w + r * w_stride, w_stride, x, n, c + r * c_stride, c_stride, 1);
}

TARGET static uint64_t avx512_sweep(const void *data, size_t n_bytes)
{
	const uint8_t *bytes = data;
	__m512i s0 = _mm512_setzero_si512(), s1 = s0, s2 = s0, s3 = s0;

	for (size_t i = 0; i + 256 <= n_bytes; i += 256) {
		s0 = _mm512_xor_si512(s0, _mm512_loadu_si512(bytes + i));
		s1 = _mm512_xor_si512(s1, _mm512_loadu_si512(bytes + i + 64));
		s2 = _mm512_xor_si512(s2, _mm512_loadu_si512(bytes + i + 128));
		s3 = _mm512_xor_si512(s3, _mm512_loadu_si512(bytes + i + 192));
	}
	s0 = _mm512_xor_si512(_mm512_xor_si512(s0, s1), _mm512_xor_si512(s2, s3));
	return (uint64_t)_mm_cvtsi128_si64(_mm512_castsi512_si128(s0));
}

TARGET static double avx512_peak(uint64_t n_rounds, float *ret_sum)
{
	__m512 sums[12], a = _mm512_set1_ps(0.999F), b = _mm512_set1_ps(1e-3F);

#pragma GCC unroll 12
	for (int j = 0; j < 12; j++)
		sums[j] = _mm512_set1_ps((float)j);
	for (uint64_t i = 0; i < n_rounds; i++) {
#pragma GCC unroll 12
		for (int j = 0; j < 12; j++)
			sums[j] = _mm512_fmadd_ps(sums[j], a, b);
	}
#pragma GCC unroll 12
	for (int j = 1; j < 12; j++)
		sums[0] = _mm512_add_ps(sums[0], sums[j]);
	*ret_sum = _mm512_cvtss_f32(sums[0]);
	return (double)n_rounds * 12 * 32;
}

const struct kernel kernel_avx512 = {
	.name = "avx512",
	.tile = TILE,
	.dot = avx512_dot,
	.expand = avx512_expand,
	.axpy = avx512_axpy,
	.block = avx512_block,
	.sweep = avx512_sweep,
	.peak = avx512_peak,
};
#endif
