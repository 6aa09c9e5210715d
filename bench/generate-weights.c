/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sampling by tables. The tables are computed with additions, products, quotients and square roots
 * alone, which IEEE 754 rounds in one way (built with -ffp-contract=off), and made integers before a
 * number is drawn, so that a seed gives the same bytes everywhere. Random numbers are a hash of
 * (key, row, column): threads may make any rows in any order. Immutable once made.
 *
 * Alias tables (A. J. Walker, 1977; construction by M. D. Vose, 1991): a slot holds two codes and
 * how much of it belongs to the first, so a sample is one look-up and one comparison.
 */
#include "generate-weights.h"

#include <errno.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "base/memory.h"

/* Scales of rows: 2^((level - 8) / 8), binomial as the ones among 16 random bits are. About what
 * rows of trained matrices show: a standard deviation of 17 %. */
#define N_LEVELS    17
#define I8_SLOTS    256
#define BF16_SLOTS  4096
#define BF16_LOWEST ((127 - 33) << 7) /* 32 exponents from 2^-33 up; the rest is too rare to matter */
#define BF16_UNIT   0x1p-6	      /* of the matrices, before the scale of the row */
#define GAMMA	    0x9e3779b97f4a7c15ULL

struct slot {
	uint32_t least; /* from this remainder on it is `other` */
	uint16_t code, other;
};

struct weights {
	unsigned shift; /* a 32-bit sample shifted right by it is the slot's number */
	size_t n_slots;
	struct slot *slots; /* N_LEVELS tables of n_slots */
};

static uint64_t mix(uint64_t z)
{
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ULL;
	z = (z ^ z >> 27) * 0x94d049bb133111ebULL;
	return z ^ z >> 31;
}

uint64_t weights_key(uint64_t seed, uint64_t tensor)
{
	return mix(mix(seed + GAMMA) + GAMMA * (tensor + 1));
}

/* --- the distribution --- */

/* The share of Student's t with 8 degrees of freedom below t, in closed form (even degrees). */
static double share_below(double t)
{
	double c = 8 / (8 + t * t);
	double s = t / sqrt(8 + t * t);

	return 0.5 + 0.5 * s * (1 + c * (0.5 + c * (0.375 + c * 0.3125)));
}

static double level_scale(unsigned level)
{
	double eighth = sqrt(sqrt(sqrt(2.0))), scale = 0.5;

	for (unsigned i = 0; i < level; i++)
		scale *= eighth;
	return scale;
}

static double level_share(unsigned level)
{
	double share = 1.0 / 65536;

	for (unsigned i = 0; i < level; i++)
		share = share * (16 - i) / (i + 1);
	return share;
}

/* Base-2 logarithm of a positive normal number, without libm, whose last bits differ by version. */
static double log_2(double x)
{
	static const double ln2 = 0.693147180559945309417;
	uint64_t bits;
	double y, power, sum = 0;
	int exponent;

	memcpy(&bits, &x, sizeof(bits));
	exponent = (int)(bits >> 52) - 1023;
	bits = (bits & ((1ULL << 52) - 1)) | 1023ULL << 52;
	memcpy(&x, &bits, sizeof(x));
	y = (x - 1) / (x + 1);
	power = y;
	for (int k = 1; k < 40; k += 2) {
		sum += power / k;
		power *= y * y;
	}
	return exponent + 2 * sum / ln2;
}

/* p[0..254]: codes -127 to 127 where a row's unit is `scale` steps; what is beyond is drawn again. */
static void i8_shares(double scale, double *p)
{
	double low = share_below(-127.5 / scale), first = low, total = 0;

	for (int i = 0; i < 255; i++) {
		double high = share_below((i - 126.5) / scale);

		p[i] = high - low;
		low = high;
	}
	total = low - first;
	for (int i = 0; i < 255; i++)
		p[i] /= total;
}

static double i8_entropy(double scale)
{
	double mixed[255] = { 0 }, p[255], bits = 0;

	for (unsigned level = 0; level < N_LEVELS; level++) {
		i8_shares(scale * level_scale(level), p);
		for (int i = 0; i < 255; i++)
			mixed[i] += level_share(level) * p[i];
	}
	for (int i = 0; i < 255; i++)
		if (mixed[i] > 1e-300)
			bits -= mixed[i] * log_2(mixed[i]);
	return bits;
}

static double i8_scale(double bits)
{
	double low = 0.01, high = 2000;

	for (int i = 0; i < 60; i++) {
		double scale = sqrt(low * high);

		if (i8_entropy(scale) < bits)
			low = scale;
		else
			high = scale;
	}
	return sqrt(low * high);
}

static double bf16_value(unsigned code)
{
	uint32_t bits = code << 16;
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

/* Of magnitudes that round to BF16_LOWEST + i. */
static void bf16_shares(double scale, double *p)
{
	double low = 0.5; /* the smallest take what is below them */

	for (unsigned i = 0; i < BF16_SLOTS; i++) {
		double edge = (bf16_value(BF16_LOWEST + i) + bf16_value(BF16_LOWEST + i + 1)) / 2;
		double high = share_below(edge / scale);

		p[i] = 2 * (high - low);
		low = high;
	}
}

/* --- tables --- */

/* `slots` hold 2^32 in all; p sums up to 1, or a little less. */
static int fill_table(struct slot *slots, size_t n, const double *p)
{
	_cleanup_(cleanup_memory) uint64_t *weight = memory_array(n, sizeof(*weight));
	_cleanup_(cleanup_memory) uint32_t *small = memory_array(n, sizeof(*small));
	_cleanup_(cleanup_memory) uint32_t *large = memory_array(n, sizeof(*large));
	uint64_t room = (1ULL << 32) / n, total = 0;
	size_t n_small = 0, n_large = 0, most = 0;

	if (!weight || !small || !large)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		weight[i] = (uint64_t)(p[i] * 0x1p32);
		total += weight[i];
		most = weight[i] > weight[most] ? i : most;
	}
	weight[most] += (1ULL << 32) - total;
	for (size_t i = 0; i < n; i++) {
		if (weight[i] < room)
			small[n_small++] = (uint32_t)i;
		else
			large[n_large++] = (uint32_t)i;
	}
	while (n_small && n_large) {
		uint32_t s = small[--n_small], l = large[n_large - 1];

		slots[s] = (struct slot){ .least = (uint32_t)weight[s], .code = (uint16_t)s,
					  .other = (uint16_t)l };
		weight[l] -= room - weight[s];
		if (weight[l] < room) {
			n_large--;
			small[n_small++] = l;
		}
	}
	while (n_large) {
		uint32_t l = large[--n_large];

		slots[l] = (struct slot){ .least = (uint32_t)room, .code = (uint16_t)l };
	}
	return 0;
}

int weights_new(struct weights **ret_weights, double bits)
{
	_cleanup_(cleanup_memory) double *p = memory_zalloc(BF16_SLOTS * sizeof(*p));
	struct weights *weights = memory_zalloc(sizeof(*weights));
	double scale = bits > 0 ? i8_scale(bits) : BF16_UNIT;
	int r = p && weights ? 0 : -ENOMEM;

	if (!r) {
		weights->n_slots = bits > 0 ? I8_SLOTS : BF16_SLOTS;
		weights->shift = bits > 0 ? 24 : 20;
		weights->slots = memory_array(N_LEVELS * weights->n_slots, sizeof(struct slot));
		r = weights->slots ? 0 : -ENOMEM;
	}
	for (unsigned level = 0; level < N_LEVELS && !r; level++) {
		struct slot *slots = weights->slots + level * weights->n_slots;

		if (bits > 0)
			i8_shares(scale * level_scale(level), p);
		else
			bf16_shares(scale * level_scale(level), p);
		r = fill_table(slots, weights->n_slots, p);
		for (size_t i = 0; i < weights->n_slots && !r; i++) {
			int first = bits > 0 ? -127 : BF16_LOWEST;

			slots[i].code = (uint16_t)(slots[i].code + first);
			slots[i].other = (uint16_t)(slots[i].other + first);
		}
	}
	if (r) {
		weights_free(weights);
		return r;
	}
	*ret_weights = weights;
	return 0;
}

struct weights *weights_free(struct weights *weights)
{
	if (weights)
		memory_free(weights->slots);
	return memory_free(weights);
}

/* --- samples --- */

static unsigned draw(const struct slot *slots, unsigned shift, uint32_t sample)
{
	const struct slot *slot = &slots[sample >> shift];

	return (sample & ((1U << shift) - 1)) < slot->least ? slot->code : slot->other;
}

static void i8_row(const struct slot *slots, uint64_t key, uint64_t n, uint8_t *dst)
{
	uint64_t random = 0;

	for (uint64_t i = 0; i < n; i++) {
		random = i % 2 ? random >> 32 : mix(key + GAMMA * (i / 2 + 1));
		dst[i] = (uint8_t)draw(slots, 24, (uint32_t)random);
	}
}

/* The lowest bit is the sign; it takes part in the comparison too, where it decides nothing. */
static void bf16_row(const struct slot *slots, uint64_t key, uint64_t n, uint8_t *dst)
{
	uint64_t random = 0;

	for (uint64_t i = 0; i < n; i++) {
		unsigned code;

		random = i % 2 ? random >> 32 : mix(key + GAMMA * (i / 2 + 1));
		code = draw(slots, 20, (uint32_t)random) | (unsigned)(random & 1) << 15;
		dst[2 * i] = (uint8_t)code;
		dst[2 * i + 1] = (uint8_t)(code >> 8);
	}
}

void weights_rows(const struct weights *weights, uint64_t key, uint64_t row, uint64_t n_rows,
		  uint64_t n_cols, uint8_t *dst)
{
	bool is_i8 = weights->n_slots == I8_SLOTS;

	for (uint64_t i = 0; i < n_rows; i++) {
		uint64_t row_key = mix(key + GAMMA * (row + i + 1));
		unsigned level = (unsigned)__builtin_popcountll(mix(row_key) & 0xffff);
		const struct slot *slots = weights->slots + level * weights->n_slots;

		if (is_i8)
			i8_row(slots, row_key, n_cols, dst + i * n_cols);
		else
			bf16_row(slots, row_key, n_cols, dst + 2 * i * n_cols);
	}
}

/* Exponents 2^-1 and 2^0: between 0.5 and 2, most of them near 1. */
void weights_norm(uint64_t key, uint64_t at, uint64_t n, uint8_t *dst)
{
	for (uint64_t i = 0; i < n; i++) {
		uint64_t random = mix(key + GAMMA * (at + i + 1));
		unsigned code = (127U << 7) - 64 + (unsigned)__builtin_popcountll(random) * 2;

		dst[2 * i] = (uint8_t)code;
		dst[2 * i + 1] = (uint8_t)(code >> 8);
	}
}

/* About 2^-10 times the scale of the row, any mantissa. */
void weights_scales(uint64_t key, uint64_t at, uint64_t n, uint8_t *dst)
{
	for (uint64_t i = 0; i < n; i++) {
		uint64_t random = mix(key + GAMMA * (at + i + 1));
		uint32_t code = (uint32_t)(127 - 10) << 23;

		code += ((uint32_t)__builtin_popcountll(random & 0xffff) - 8) << 20;
		code += (uint32_t)(random >> 44);
		for (unsigned k = 0; k < 4; k++)
			dst[4 * i + k] = (uint8_t)(code >> 8 * k);
	}
}
