/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The kernel for AVX2, FMA and F16C. Called only after kernel_is_supported(). A register block is 6
 * rows of 16 sums: 12 of the 16 registers, 2 for activations, 1 for the broadcast weight.
 */
#include "kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define TARGET	    __attribute__((target("avx2,fma,f16c")))
#define TARGET_PART static inline __attribute__((target("avx2,fma,f16c"), always_inline))
#define TILE	    16
#define AHEAD	    768 /* bytes: weights are asked for before the CPU sees that it needs them */

/* Eight elements as floats. */
TARGET_PART __m256 load8(uint32_t dtype, const uint8_t *row, size_t i)
{
	switch (dtype) {
	case DCMEM_BF16:
		return _mm256_castsi256_ps(_mm256_slli_epi32(
			_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(row + 2 * i))), 16));
	case DCMEM_F16:
		return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(row + 2 * i)));
	case DCMEM_I8:
		return _mm256_cvtepi32_ps(
			_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(row + i))));
	default:
		return _mm256_loadu_ps((const float *)(row + 4 * i));
	}
}

TARGET_PART float dot_of(uint32_t dtype, const uint8_t *row, const float *x, size_t n)
{
	const size_t bytes = dtype == DCMEM_I8 ? 1 : dtype == DCMEM_F32 ? 4 : 2;
	__m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
	__m128 low;
	size_t i = 0;
	float sum;

	for (; i + 32 <= n; i += 32) {
		_mm_prefetch((const char *)row + i * bytes + AHEAD, _MM_HINT_NTA);
		s0 = _mm256_fmadd_ps(load8(dtype, row, i), _mm256_loadu_ps(x + i), s0);
		s1 = _mm256_fmadd_ps(load8(dtype, row, i + 8), _mm256_loadu_ps(x + i + 8), s1);
		s2 = _mm256_fmadd_ps(load8(dtype, row, i + 16), _mm256_loadu_ps(x + i + 16), s2);
		s3 = _mm256_fmadd_ps(load8(dtype, row, i + 24), _mm256_loadu_ps(x + i + 24), s3);
	}
	for (; i + 8 <= n; i += 8)
		s0 = _mm256_fmadd_ps(load8(dtype, row, i), _mm256_loadu_ps(x + i), s0);
	s0 = _mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3));
	low = _mm_add_ps(_mm256_castps256_ps128(s0), _mm256_extractf128_ps(s0, 1));
	low = _mm_add_ps(low, _mm_movehl_ps(low, low));
	low = _mm_add_ss(low, _mm_movehdup_ps(low));
	sum = _mm_cvtss_f32(low);
	for (; i < n; i++)
		sum += kernel_element(dtype, row, i) * x[i];
	return sum;
}

/* Of each 16, the even ones first: where dot_bf16() has them. */
TARGET static bool avx2_arrange(uint32_t dtype, const float *x, size_t n, float *out)
{
	size_t i = 0;

	if (dtype != DCMEM_BF16)
		return false;
	for (; i + 16 <= n; i += 16) {
		for (size_t j = 0; j < 8; j++) {
			out[i + j] = x[i + 2 * j];
			out[i + 8 + j] = x[i + 2 * j + 1];
		}
	}
	memcpy(out + i, x + i, (n - i) * sizeof(*x));
	return true;
}

/*
 * BF16 by 32-bit words: an odd element is its word without the low half, an even one its low half
 * shifted up. Half the instructions of widening eight at a time, so that memory sets the pace.
 */
TARGET_PART float dot_bf16(const uint8_t *row, const float *x, size_t n)
{
	const __m256i odd = _mm256_set1_epi32((int)0xffff0000U);
	__m256 s0 = _mm256_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
	__m128 low;
	size_t i = 0;
	float sum;

	for (; i + 32 <= n; i += 32) {
		__m256i a = _mm256_loadu_si256((const __m256i *)(row + 2 * i));
		__m256i b = _mm256_loadu_si256((const __m256i *)(row + 2 * i + 32));

		_mm_prefetch((const char *)row + 2 * i + AHEAD, _MM_HINT_NTA);
		s0 = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)),
				     _mm256_loadu_ps(x + i), s0);
		s1 = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(a, odd)),
				     _mm256_loadu_ps(x + i + 8), s1);
		s2 = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(b, 16)),
				     _mm256_loadu_ps(x + i + 16), s2);
		s3 = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(b, odd)),
				     _mm256_loadu_ps(x + i + 24), s3);
	}
	for (; i + 16 <= n; i += 16) {
		__m256i a = _mm256_loadu_si256((const __m256i *)(row + 2 * i));

		s0 = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)),
				     _mm256_loadu_ps(x + i), s0);
		s1 = _mm256_fmadd_ps(_mm256_castsi256_ps(_mm256_and_si256(a, odd)),
				     _mm256_loadu_ps(x + i + 8), s1);
	}
	s0 = _mm256_add_ps(_mm256_add_ps(s0, s1), _mm256_add_ps(s2, s3));
	low = _mm_add_ps(_mm256_castps256_ps128(s0), _mm256_extractf128_ps(s0, 1));
	low = _mm_add_ps(low, _mm_movehl_ps(low, low));
	low = _mm_add_ss(low, _mm_movehdup_ps(low));
	sum = _mm_cvtss_f32(low);
	for (; i < n; i++)
		sum += kernel_element(DCMEM_BF16, row, i) * x[i];
	return sum;
}

TARGET static float avx2_dot(uint32_t dtype, const void *row, const float *x, size_t n)
{
	switch (dtype) {
	case DCMEM_BF16:
		return dot_bf16(row, x, n);
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

	for (; i + 8 <= n; i += 8)
		_mm256_storeu_ps(out + i, load8(dtype, row, i));
	for (; i < n; i++)
		out[i] = kernel_element(dtype, row, i);
}

TARGET static void avx2_expand(uint32_t dtype, const void *row, size_t n, float *out)
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

TARGET static void avx2_axpy(float a, const float *x, size_t n, float *y)
{
	__m256 factor = _mm256_set1_ps(a);
	size_t i = 0;

	for (; i + 8 <= n; i += 8)
		_mm256_storeu_ps(y + i, _mm256_fmadd_ps(factor, _mm256_loadu_ps(x + i),
							_mm256_loadu_ps(y + i)));
	for (; i < n; i++)
		y[i] += a * x[i];
}

TARGET_PART void block_of(const float *w, size_t w_stride, const float *x, size_t n, float *c,
			  size_t c_stride, const unsigned int rows)
{
	__m256 sums[KERNEL_ROWS][2];

#pragma GCC unroll 6
	for (unsigned int r = 0; r < rows; r++) {
		sums[r][0] = _mm256_loadu_ps(c + r * c_stride);
		sums[r][1] = _mm256_loadu_ps(c + r * c_stride + 8);
	}
	for (size_t k = 0; k < n; k++) {
		__m256 x0 = _mm256_loadu_ps(x + k * TILE), x1 = _mm256_loadu_ps(x + k * TILE + 8);

#pragma GCC unroll 6
		for (unsigned int r = 0; r < rows; r++) {
			__m256 value = _mm256_broadcast_ss(w + r * w_stride + k);

			sums[r][0] = _mm256_fmadd_ps(value, x0, sums[r][0]);
			sums[r][1] = _mm256_fmadd_ps(value, x1, sums[r][1]);
		}
	}
#pragma GCC unroll 6
	for (unsigned int r = 0; r < rows; r++) {
		_mm256_storeu_ps(c + r * c_stride, sums[r][0]);
		_mm256_storeu_ps(c + r * c_stride + 8, sums[r][1]);
	}
}

TARGET static void avx2_block(const float *w, size_t w_stride, const float *x, size_t n, float *c,
			      size_t c_stride, unsigned int n_rows)
{
	if (n_rows == KERNEL_ROWS) {
		block_of(w, w_stride, x, n, c, c_stride, KERNEL_ROWS);
		return;
	}
	for (unsigned int r = 0; r < n_rows; r++)
		block_of(w + r * w_stride, w_stride, x, n, c + r * c_stride, c_stride, 1);
}

TARGET static uint64_t avx2_sweep(const void *data, size_t n_bytes)
{
	const uint8_t *bytes = data;
	__m256i s0 = _mm256_setzero_si256(), s1 = s0, s2 = s0, s3 = s0;

	for (size_t i = 0; i + 128 <= n_bytes; i += 128) {
		s0 = _mm256_xor_si256(s0, _mm256_loadu_si256((const __m256i *)(bytes + i)));
		s1 = _mm256_xor_si256(s1, _mm256_loadu_si256((const __m256i *)(bytes + i + 32)));
		s2 = _mm256_xor_si256(s2, _mm256_loadu_si256((const __m256i *)(bytes + i + 64)));
		s3 = _mm256_xor_si256(s3, _mm256_loadu_si256((const __m256i *)(bytes + i + 96)));
	}
	s0 = _mm256_xor_si256(_mm256_xor_si256(s0, s1), _mm256_xor_si256(s2, s3));
	return (uint64_t)_mm256_extract_epi64(s0, 0);
}

TARGET static double avx2_peak(uint64_t n_rounds, float *ret_sum)
{
	__m256 sums[12], a = _mm256_set1_ps(0.999F), b = _mm256_set1_ps(1e-3F);

#pragma GCC unroll 12
	for (int j = 0; j < 12; j++)
		sums[j] = _mm256_set1_ps((float)j);
	for (uint64_t i = 0; i < n_rounds; i++) {
#pragma GCC unroll 12
		for (int j = 0; j < 12; j++)
			sums[j] = _mm256_fmadd_ps(sums[j], a, b);
	}
#pragma GCC unroll 12
	for (int j = 1; j < 12; j++)
		sums[0] = _mm256_add_ps(sums[0], sums[j]);
	*ret_sum = _mm256_cvtss_f32(sums[0]);
	return (double)n_rounds * 12 * 16;
}

const struct kernel kernel_avx2 = {
	.name = "avx2",
	.tile = TILE,
	.arrange = avx2_arrange,
	.dot = avx2_dot,
	.expand = avx2_expand,
	.axpy = avx2_axpy,
	.block = avx2_block,
	.sweep = avx2_sweep,
	.peak = avx2_peak,
};
#endif
