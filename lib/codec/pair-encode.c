/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Chooses classes from the histogram of bytes, the pair code from the histogram of pairs, and
 * writes the lanes. One thread an encoder; nothing allocated after _new. The choices use integers
 * alone, so that every machine writes the same bytes.
 */
#include "codec/pair.h"

#include <stdbool.h>
#include <string.h>

#include "base/memory.h"
#include "codec/bytes.h"
#include "codec/codec.h"
#include "codec/planes.h"
#include "codec/rows.h"
#include "dcmem/container.h"

#define N_PAIRS	      1024U
#define RARE_PAIR     (N_PAIRS - 1) /* as PAIR_RARE twice */
#define BLOCK_PAIRS   (PAIR_BLOCK / 2)
#define CODE_PATCHED  (1U << 8) /* rare, or with an escape */
#define CODE_SHIFT    16U
#define SAMPLED_BYTES 65536U
#define SAMPLE_EVERY  4U
#define COST_UNIT     256U	    /* of a bit */
#define NO_SPIKE      256U
#define SPIKE_SHARE   8U /* a value this much of the page may be a spike */

/* How bytes become classes. */
struct classes {
	uint32_t offset_bits, shift, n; /* n without the escape, with the spike, which is last */
	uint32_t spike, n_spikes;	/* a value, or NO_SPIKE */
	uint8_t bitmap[32];
	uint8_t of_byte[256]; /* class, PAIR_ESCAPE where none */
	uint32_t n_escapes;
	uint64_t cost; /* estimate for the page, in 1 / COST_UNIT bits */
};

struct pair_encoder {
	uint8_t *planes; /* CONTAINER_MAX_PAGE_BYTES: of wider elements, the coded bytes first */
	uint16_t *pairs; /* CONTAINER_MAX_PAGE_BYTES / 2: classes, first | second << 5 */
	uint32_t *patched; /* CONTAINER_MAX_PAGE_BYTES / 2: indices of pairs with CODE_PATCHED, + 1 */
	uint8_t *lanes;	 /* PAIR_LANES of PAIR_LANE_STRIDE */
	uint32_t count[4][N_PAIRS]; /* of pairs; the first has the sums in the end */
	uint32_t class_count[32];
	uint8_t length[N_PAIRS]; /* 0: rare */
	uint32_t code[N_PAIRS];	 /* length | CODE_PATCHED | codeword << CODE_SHIFT, lowest bit first */
	uint32_t patched_lanes[CONTAINER_MAX_PAGE_BYTES / PAIR_BLOCK]; /* a bit for each */
	uint32_t n_rare;
	uint32_t n_rows; /* classes that occur, the escape last */
	uint8_t rows[PAIR_MAX_CLASSES + 1];
	uint8_t weight[32]; /* by class, half bits */
	uint8_t common[PAIR_COMMON_ESCAPES];
	uint8_t digit[256]; /* of a value in `common`, else PAIR_COMMON_ESCAPES */
};

struct pair_encoder *pair_encoder_free(struct pair_encoder *encoder)
{
	if (!encoder)
		return NULL;
	memory_free(encoder->planes);
	memory_free(encoder->pairs);
	memory_free(encoder->patched);
	memory_free(encoder->lanes);
	return memory_free(encoder);
}

struct pair_encoder *pair_encoder_new(void)
{
	struct pair_encoder *encoder = memory_zalloc(sizeof(*encoder));

	if (!encoder)
		return NULL;
	encoder->planes = memory_alloc(CONTAINER_MAX_PAGE_BYTES);
	encoder->pairs = memory_array(CONTAINER_MAX_PAGE_BYTES / 2, sizeof(*encoder->pairs));
	encoder->patched = memory_array(CONTAINER_MAX_PAGE_BYTES / 2 + 1, sizeof(*encoder->patched));
	encoder->lanes = memory_alloc((size_t)PAIR_LANES * PAIR_LANE_STRIDE);
	if (!encoder->planes || !encoder->pairs || !encoder->patched || !encoder->lanes)
		return pair_encoder_free(encoder);
	return encoder;
}

/* COST_UNIT * log2(n), rounded down, by squaring: no floating point, so the same everywhere. */
static uint32_t log2_units(uint32_t n)
{
	uint32_t whole = 31U - (uint32_t)__builtin_clz(n), units = 0;
	uint64_t x = ((uint64_t)n << 31) >> whole; /* 1.0 is 2^31 */

	for (uint32_t bit = COST_UNIT / 2; bit; bit >>= 1) {
		x = (x * x) >> 31;
		if (x >> 32) {
			x >>= 1;
			units += bit;
		}
	}
	return whole * COST_UNIT + units;
}

/* What classes are chosen by: how often each value comes in every row or every fourth. */
struct sample {
	uint32_t count[256], n;
	uint32_t every; /* rows */
};

/* Of large pages every fourth row, in other columns each time. What it misses will be escapes. */
static void sample_take(const uint8_t *bytes, size_t n, struct sample *ret_sample)
{
	size_t n_rows = n / PAIR_ROW, every = n >= SAMPLED_BYTES ? SAMPLE_EVERY : 1;
	uint32_t count[8][256] = {0};

	for (size_t i = 0; i < n_rows; i += every) {
		const uint8_t *row = bytes + (i + i / every / every % every) * PAIR_ROW;

		/* Rows this far apart are not foreseen by the processor. */
		__builtin_prefetch((const void *)((uintptr_t)row + 8 * SAMPLE_EVERY * PAIR_ROW));
		for (unsigned at = 0; at < PAIR_ROW; at += 8) {
			uint64_t word = bytes_load64(row + at);

#pragma GCC unroll 8
			for (unsigned j = 0; j < 8; j++)
				count[j][word >> (8 * j) & 0xff]++;
		}
	}
	memset(ret_sample->count, 0, sizeof(ret_sample->count));
	for (unsigned i = 0; i < 8 * 256; i++)
		ret_sample->count[i & 255] += count[i >> 8][i & 255];
	ret_sample->n = (uint32_t)(n / every);
	ret_sample->every = (uint32_t)every;
}

/* Keys sorted up by all but their lowest byte; equal ones stay in order. */
static void sort_up(uint32_t *keys, uint32_t *other, uint32_t n)
{
	for (unsigned shift = 8; shift < 32; shift += 8) {
		uint32_t at[257] = {0};
		uint32_t *swap = keys;

		for (uint32_t i = 0; i < n; i++)
			at[(keys[i] >> shift & 0xff) + 1]++;
		for (unsigned i = 1; i < 257; i++)
			at[i] += at[i - 1];
		for (uint32_t i = 0; i < n; i++)
			other[at[keys[i] >> shift & 0xff]++] = keys[i];
		keys = other;
		other = swap;
	}
	/* Three passes: the result lies in the array that was `other` at first. */
}

/* The indices of counts above zero, the largest count first: how many. */
static uint32_t by_count(const uint32_t *count, uint32_t n, uint8_t *ret_index)
{
	uint32_t keys[256], sorted[256], n_keys = 0;

	for (uint32_t i = 0; i < n; i++) {
		keys[n_keys] = count[i] << 8 | i;
		n_keys += count[i] > 0;
	}
	sort_up(keys, sorted, n_keys);
	for (uint32_t i = 0; i < n_keys; i++)
		ret_index[i] = (uint8_t)sorted[n_keys - 1 - i];
	return n_keys;
}

/*
 * The digits that all escapes take if the commonest values have one digit; those values, and each
 * value's digit, if wanted.
 */
static uint32_t count_digits(const struct classes *classes, const uint32_t count[256],
			     uint8_t ret_common[PAIR_COMMON_ESCAPES], uint8_t ret_digit[256])
{
	uint32_t escaped[256], n_digits = 3 * classes->n_escapes, n;
	uint8_t values[256];

	for (uint32_t value = 0; value < 256; value++)
		escaped[value] = classes->of_byte[value] == PAIR_ESCAPE ? count[value] : 0;
	n = by_count(escaped, 256, values);
	for (uint32_t i = 0; i < n && i < PAIR_COMMON_ESCAPES; i++) {
		if (ret_common) {
			ret_common[i] = values[i];
			ret_digit[values[i]] = (uint8_t)i;
		}
		n_digits -= 2 * count[values[i]];
	}
	return n_digits;
}

static uint64_t cost_of(uint32_t count, uint32_t n)
{
	return (uint64_t)count * (log2_units(n) - log2_units(count));
}

/* Adds up to `room` blocks that were not seen, neighbours first: they cost next to nothing. */
static uint32_t classes_fill(uint8_t *bitmap, uint32_t n_blocks, uint32_t room)
{
	uint32_t n_added = 0, last_block = n_blocks - 1; /* a power of two of blocks: also a mask */

	for (uint32_t before = room + 1; n_added < room && n_added != before;) {
		uint8_t old[32];

		before = n_added;
		memcpy(old, bitmap, sizeof(old));
		for (uint32_t block = 0; block < n_blocks && n_added < room; block++) {
			uint32_t next = (block + 1) & last_block, last = (block - 1) & last_block;

			if (old[block >> 3] >> (block & 7) & 1 ||
			    !((old[next >> 3] >> (next & 7) | old[last >> 3] >> (last & 7)) & 1))
				continue;
			bitmap[block >> 3] |= (uint8_t)(1U << (block & 7));
			n_added++;
		}
	}
	return n_added;
}

/*
 * Takes the blocks that are counted most, 30 at most, and estimates what they cost. `spike`: the
 * value that has a class of its own, or NO_SPIKE.
 */
static void classes_choose(const struct sample *sample, uint32_t offset_bits, uint32_t shift,
			   uint32_t spike, struct classes *ret_classes)
{
	const uint32_t *count = sample->count, n = sample->n;
	struct classes *c = ret_classes;
	uint32_t n_blocks = 256U >> offset_bits, block_count[256] = {0}, n_kept;
	uint32_t n_spikes = spike == NO_SPIKE ? 0 : count[spike], inside = n_spikes;
	uint32_t most = PAIR_MAX_CLASSES - (n_spikes > 0);
	uint8_t blocks[256];

	*c = (struct classes){.offset_bits = offset_bits, .shift = shift, .spike = spike,
			      .n_spikes = n_spikes};
	for (uint32_t value = 0; value < 256; value++) {
		if (value != spike)
			block_count[((value - shift) & 0xff) >> offset_bits] += count[value];
	}
	n_kept = by_count(block_count, n_blocks, blocks);
	n_kept = n_kept < most ? n_kept : most;
	for (uint32_t i = 0; i < n_kept; i++) {
		uint32_t best = blocks[i];

		c->bitmap[best >> 3] |= (uint8_t)(1U << (best & 7));
		inside += block_count[best];
		c->cost += cost_of(block_count[best], n);
	}
	if (sample->every > 1)
		n_kept += classes_fill(c->bitmap, n_blocks, most - n_kept);
	c->n = n_kept;
	c->n_escapes = n - inside;
	c->cost += (uint64_t)(n - n_spikes) * offset_bits * COST_UNIT;
	memset(c->of_byte, PAIR_ESCAPE, sizeof(c->of_byte));
	for (uint32_t block = 0, class = 0; block < n_blocks; block++) {
		if (!(c->bitmap[block >> 3] >> (block & 7) & 1))
			continue;
		for (uint32_t i = 0; i < 1U << offset_bits; i++)
			c->of_byte[((block << offset_bits) + i + shift) & 0xff] = (uint8_t)class;
		class++;
	}
	if (n_spikes) {
		c->of_byte[spike] = (uint8_t)c->n++;
		c->cost += cost_of(n_spikes, n);
	}
	/* The code's table: about two bits a pair, and a third of the pairs have a codeword. */
	c->cost += (uint64_t)c->n * c->n * COST_UNIT * 2 / 3 / sample->every;
	/* Many escapes are slow, and never small: another k has none. */
	if (c->n_escapes > n / 16)
		c->cost = UINT64_MAX;
	else if (c->n_escapes)
		c->cost += cost_of(c->n_escapes, n) +
			   (uint64_t)count_digits(c, count, NULL, NULL) * 4 * COST_UNIT;
}

static void classes_best(const struct sample *sample, struct classes *ret_classes)
{
	struct classes candidate;
	uint32_t top = 0;

	for (uint32_t value = 1; value < 256; value++)
		top = sample->count[value] > sample->count[top] ? value : top;
	ret_classes->cost = UINT64_MAX;
	for (uint32_t offset_bits = 0; offset_bits <= PAIR_MAX_OFFSET; offset_bits++) {
		uint32_t half = 1U << offset_bits >> 1;
		bool may_spike = offset_bits && sample->count[top] > sample->n / SPIKE_SHARE;

		for (uint32_t shift = 0; shift <= half; shift += half ? half : 1) {
			for (unsigned spiked = 0; spiked <= may_spike; spiked++) {
				classes_choose(sample, offset_bits, shift, spiked ? top : NO_SPIKE,
					       &candidate);
				if (candidate.cost < ret_classes->cost)
					*ret_classes = candidate;
			}
		}
	}
}

/* Classes that are a few runs of values: first value, values (0 of runs that there are not), class. */
#define MAX_RUNS 6U
struct runs {
	uint32_t n_runs;
	uint8_t start[MAX_RUNS], n[MAX_RUNS], class[MAX_RUNS];
};

static bool runs_find(const struct classes *classes, struct runs *ret_runs)
{
	uint32_t n = classes->n - (classes->spike != NO_SPIKE), n_runs = 0;
	uint32_t step = 1U << classes->offset_bits, before = UINT32_MAX - 1;

	*ret_runs = (struct runs){0};
	for (uint32_t block = 0, class = 0; class < n; block++) {
		if (!(classes->bitmap[block >> 3] >> (block & 7) & 1))
			continue;
		if (block != before + 1) {
			if (n_runs == MAX_RUNS)
				return false;
			ret_runs->start[n_runs] = (uint8_t)(block * step + classes->shift);
			ret_runs->class[n_runs++] = (uint8_t)class;
		}
		if (ret_runs->n[n_runs - 1] + step > UINT8_MAX)
			return false;
		ret_runs->n[n_runs - 1] = (uint8_t)(ret_runs->n[n_runs - 1] + step);
		before = block;
		class++;
	}
	ret_runs->n_runs = n_runs;
	return true;
}

/* Vectors of gcc, of the width that the machine has: of any other it makes them element by element. */
#define VECTOR 16
#define PAIRS_OF_RUNS pairs_of_runs
#include "codec/pair-runs.h"
#if defined(__x86_64__)
#define VECTOR 32
#define PAIRS_OF_RUNS pairs_of_runs_avx2
#define PAIRS_TARGET __attribute__((target("avx2")))
#include "codec/pair-runs.h"
#endif

static void pairs_of(const struct classes *classes, const uint8_t *bytes, size_t n,
		     uint16_t *ret_pairs)
{
	struct runs runs;

	if (!runs_find(classes, &runs)) {
		for (size_t i = 0; i < n; i += 2)
			ret_pairs[i / 2] = (uint16_t)(classes->of_byte[bytes[i]] |
						      classes->of_byte[bytes[i + 1]] << 5);
		return;
	}
#if defined(__x86_64__)
	if (cpu_path() >= CPU_AVX2) {
		pairs_of_runs_avx2(classes, &runs, bytes, n, ret_pairs);
		return;
	}
#endif
	pairs_of_runs(classes, &runs, bytes, n, ret_pairs);
}

/* How often each pair comes, and so what the sample only estimated. */
static void count_pairs(struct pair_encoder *e, struct classes *classes, size_t n_pairs)
{
	memset(e->count, 0, sizeof(e->count));
	for (size_t i = 0; i < n_pairs; i += 4) {
		uint64_t four;

		memcpy(&four, e->pairs + i, sizeof(four));
		e->count[0][four & 0xffff]++;
		e->count[1][four >> 16 & 0xffff]++;
		e->count[2][four >> 32 & 0xffff]++;
		e->count[3][four >> 48]++;
	}
	memset(e->class_count, 0, sizeof(e->class_count));
	for (unsigned pair = 0; pair < N_PAIRS; pair++) {
		for (unsigned i = 1; i < 4; i++)
			e->count[0][pair] += e->count[i][pair];
		e->class_count[pair & 31] += e->count[0][pair];
		e->class_count[pair >> 5] += e->count[0][pair];
	}
	classes->n_escapes = e->class_count[PAIR_ESCAPE];
	if (classes->spike != NO_SPIKE)
		classes->n_spikes = e->class_count[classes->n - 1];
}

/*
 * Huffman's code for n keys sorted up: ret_length of each, unlimited. Two queues: leaves in order,
 * inner nodes in the order of their making; a parent comes after its children.
 */
static void huffman_lengths(const uint32_t *keys, uint32_t n, uint8_t *ret_length)
{
	uint32_t weight[2 * N_PAIRS], leaf = 0, inner = n, made = n;
	uint16_t parent[2 * N_PAIRS];
	uint8_t depth[2 * N_PAIRS];

	for (uint32_t i = 0; i < n; i++)
		weight[i] = keys[i] >> 10;
	while (made < 2 * n - 1) {
		uint32_t sum = 0;

		for (unsigned child = 0; child < 2; child++) {
			bool is_leaf = leaf < n &&
				       (inner == made || weight[leaf] <= weight[inner]);
			uint32_t node = is_leaf ? leaf++ : inner++;

			sum += weight[node];
			parent[node] = (uint16_t)made;
		}
		weight[made++] = sum;
	}
	depth[made - 1] = 0;
	for (uint32_t node = made - 1; node-- > 0;) {
		uint32_t d = depth[parent[node]] + 1U;

		depth[node] = d < 255 ? (uint8_t)d : 255;
	}
	memcpy(ret_length, depth, n);
}

/*
 * Cuts lengths at PAIR_CODE_BITS and makes the code complete again: while it asks for too much, the
 * codeword that costs least to lengthen goes first; what is then left over goes to the commonest.
 */
static void limit_lengths(const uint32_t *keys, uint32_t n, uint8_t *length)
{
	uint32_t first[PAIR_CODE_BITS + 1], used = 0;

	for (uint32_t i = 0; i < n; i++) {
		length[i] = length[i] < PAIR_CODE_BITS ? length[i] : PAIR_CODE_BITS;
		used += 1U << (PAIR_CODE_BITS - length[i]);
	}
	/* Sorted up, so lengths fall: those of l bits stand from first[l] to first[l - 1]. */
	for (uint32_t l = PAIR_CODE_BITS + 1, i = 0; l-- > 0;) {
		while (i < n && length[i] > l)
			i++;
		first[l] = i;
	}
	while (used > PAIR_TABLE) {
		uint32_t best = 0;
		uint64_t best_price = UINT64_MAX;

		for (uint32_t l = 1; l < PAIR_CODE_BITS; l++) {
			uint32_t i = first[l], saved = 1U << (PAIR_CODE_BITS - l - 1);
			uint64_t price;

			if (i == first[l - 1])
				continue;
			if (saved > used - PAIR_TABLE)
				saved = used - PAIR_TABLE;
			price = (((uint64_t)(keys[i] >> 10) + 1) << 16) / saved;
			if (price < best_price) {
				best_price = price;
				best = l;
			}
		}
		length[first[best]++]++;
		used -= 1U << (PAIR_CODE_BITS - best - 1);
	}
	while (used < PAIR_TABLE) {
		uint32_t best = 0, cost;

		for (uint32_t l = 2; l <= PAIR_CODE_BITS; l++) {
			cost = 1U << (PAIR_CODE_BITS - l);
			if (first[l] == first[l - 1] || cost > PAIR_TABLE - used)
				continue;
			if (!best || (uint64_t)keys[first[l - 1] - 1] << l >
					     (uint64_t)keys[first[best - 1] - 1] << best)
				best = l;
		}
		length[--first[best - 1]]--;
		used += 1U << (PAIR_CODE_BITS - best);
	}
}

/* The classes that occur, and -log2 of how often, by which pair.c expects lengths. */
static void weights_choose(struct pair_encoder *e, const struct classes *classes, uint32_t n)
{
	e->n_rows = 0;
	for (uint32_t i = 0; i < classes->n; i++)
		e->rows[e->n_rows++] = (uint8_t)i;
	if (classes->n_escapes)
		e->rows[e->n_rows++] = PAIR_ESCAPE;
	for (uint32_t class = 0; class < 32; class++) {
		uint32_t count = e->class_count[class];
		uint32_t units = log2_units(n) - log2_units(count ? count : 1);
		uint32_t weight = (2 * units + COST_UNIT / 2) / COST_UNIT;

		e->weight[class] = (uint8_t)(weight < 31 ? weight : 31);
	}
}

/* What pair.c expects of a pair's codeword: 0 if it is to have none. */
static uint32_t expected_length(uint32_t weight, uint32_t other)
{
	uint32_t length = weight + other ? (weight + other + 1) / 2 : 1;

	return length > PAIR_CODE_BITS + 1 ? 0 : length < PAIR_CODE_BITS ? length : PAIR_CODE_BITS;
}

/* Codeword lengths for all pairs worth one; the others are rare. */
static void code_choose(struct pair_encoder *e, uint32_t n_pairs)
{
	uint32_t keys[N_PAIRS], sorted[N_PAIRS], n = 0;
	uint32_t least = n_pairs / PAIR_TABLE / 8 + 1;
	uint8_t length[N_PAIRS];

	e->n_rare = 0;
	memset(e->length, 0, sizeof(e->length));
	for (uint32_t pair = 0; pair < N_PAIRS; pair++) {
		/* A pair of escapes is always rare: pair.c tells rare pairs by it. */
		if (e->count[0][pair] >= least && pair != (PAIR_ESCAPE | PAIR_ESCAPE << 5) &&
		    expected_length(e->weight[pair & 31], e->weight[pair >> 5]))
			keys[n++] = e->count[0][pair] << 10 | pair;
		else
			e->n_rare += e->count[0][pair];
	}
	/* A complete code has two codewords at least: with one pair alone, rare is the second. */
	if (e->n_rare || n < 2)
		keys[n++] = e->n_rare << 10 | RARE_PAIR;
	sort_up(keys, sorted, n);
	huffman_lengths(sorted, n, length);
	limit_lengths(sorted, n, length);
	for (uint32_t i = 0; i < n; i++)
		e->length[sorted[i] & (N_PAIRS - 1)] = length[i];
}

/* Gives the canonical codewords in the order in which pair.c reads the matrix. */
static void code_assign(struct pair_encoder *e)
{
	uint32_t next[PAIR_CODE_BITS + 1], n_of[PAIR_CODE_BITS + 1] = {0}, code = 0;

	for (uint32_t pair = 0; pair < N_PAIRS; pair++)
		n_of[e->length[pair]]++;
	for (uint32_t l = 1; l <= PAIR_CODE_BITS; l++) {
		code <<= 1;
		next[l] = code;
		code += n_of[l];
	}
	for (uint32_t cell = 0; cell < N_PAIRS; cell++) {
		uint32_t pair = cell >> 5 | (cell & 31) << 5, l = e->length[pair], turned = 0;

		if (l == 0)
			continue;
		for (uint32_t bit = 0; bit < l; bit++)
			turned |= (next[l] >> bit & 1) << (l - 1 - bit);
		next[l]++;
		e->code[pair] = l | turned << CODE_SHIFT;
	}
	for (uint32_t pair = 0; pair < N_PAIRS; pair++) {
		if (e->length[pair] == 0)
			e->code[pair] = e->code[RARE_PAIR] | CODE_PATCHED;
		else if ((pair & 31) == PAIR_ESCAPE || pair >> 5 == PAIR_ESCAPE)
			e->code[pair] |= CODE_PATCHED;
	}
}

/* Appends fields, lowest bit first. */
struct writer {
	uint8_t *dst;
	size_t capacity, at; /* bytes */
	uint64_t word;
	unsigned n_bits;
	bool is_full;
};

static void writer_put(struct writer *w, uint32_t value, unsigned n)
{
	w->word |= (uint64_t)value << w->n_bits;
	w->n_bits += n;
	while (w->n_bits >= 8) {
		if (w->at == w->capacity) {
			w->is_full = true;
			w->n_bits = 0;
			return;
		}
		w->dst[w->at++] = (uint8_t)w->word;
		w->word >>= 8;
		w->n_bits -= 8;
	}
}

static void writer_align(struct writer *w)
{
	writer_put(w, 0, -w->n_bits & 7);
}

static void writer_bytes(struct writer *w, const void *bytes, size_t n)
{
	if (n > w->capacity - w->at) {
		w->is_full = true;
		return;
	}
	memcpy(w->dst + w->at, bytes, n);
	w->at += n;
}

static void write_code(struct writer *w, const struct pair_encoder *e)
{
	for (uint32_t row = 0; row < e->n_rows; row++)
		writer_put(w, e->weight[e->rows[row]], 5);
	for (uint32_t cell = 0; cell < e->n_rows * e->n_rows; cell++) {
		uint32_t a = e->rows[cell / e->n_rows], b = e->rows[cell % e->n_rows];
		uint32_t expected = expected_length(e->weight[a], e->weight[b]);
		uint32_t length = e->length[a | b << 5];

		if (expected == 0)
			continue;
		if (length == expected)
			writer_put(w, 0, 1);
		else if (length == expected + 1)
			writer_put(w, 1, 2);
		else if (length == expected - 1 && length)
			writer_put(w, 3, 3);
		else if (length == 0)
			writer_put(w, 7, 4);
		else
			writer_put(w, 15 | length << 4, 8);
	}
	writer_put(w, e->length[RARE_PAIR], 4);
	writer_align(w);
}

/* Blocks whose pairs stay in the first cache while lane after lane goes through them. */
#define STRIPE_BLOCKS 16U

/*
 * All codewords. Tells which lanes of which blocks have something in the lists of patches: few
 * enough that only those are looked through again.
 */
static inline __attribute__((always_inline)) void lanes_of(struct pair_encoder *e, size_t n_pairs,
							   uint32_t ret_bytes[PAIR_LANES])
{
	const uint16_t *all = e->pairs; /* which no store here changes, but gcc cannot know */
	size_t n_blocks = n_pairs / BLOCK_PAIRS;
	uint64_t word[PAIR_LANES] = {0};
	uint32_t n_bits[PAIR_LANES] = {0}, at[PAIR_LANES] = {0};

	memset(e->patched_lanes, 0, n_blocks * sizeof(*e->patched_lanes));
	for (size_t stripe = 0; stripe < n_blocks; stripe += STRIPE_BLOCKS) {
		size_t end = stripe + STRIPE_BLOCKS < n_blocks ? stripe + STRIPE_BLOCKS : n_blocks;

		for (unsigned lane = 0; lane < PAIR_LANES; lane++) {
			uint8_t *start = e->lanes + (size_t)lane * PAIR_LANE_STRIDE;
			uint8_t *out = start + at[lane];
			uint64_t bits = word[lane];
			uint32_t n = n_bits[lane];
			uint16_t found = 0; /* a bit for each block */

			for (size_t block = stripe; block < end; block++) {
				const uint16_t *pairs = all + block * BLOCK_PAIRS + lane;

#pragma GCC unroll 4
				for (unsigned step = 0; step < PAIR_BLOCK_STEPS; step++) {
					uint32_t code = e->code[pairs[step * PAIR_LANES]];

					bits |= (uint64_t)(code >> CODE_SHIFT) << (n & 63);
					/* 59 bits at most; what is above the flags is nonsense. */
					n += code;
				}
				bytes_store64(out, bits);
				found = (uint16_t)(found << 1 | ((n & 7 * CODE_PATCHED) != 0));
				out += n >> 3 & 7;
				bits >>= n & 56;
				n &= 7;
			}
			for (uint32_t left = found; left; left &= left - 1)
				e->patched_lanes[end - 1 - (unsigned)__builtin_ctz(left)] |= 1U << lane;
			at[lane] = (uint32_t)(out - start);
			word[lane] = bits;
			n_bits[lane] = n;
		}
	}
	for (unsigned lane = 0; lane < PAIR_LANES; lane++)
		ret_bytes[lane] = at[lane] + (n_bits[lane] > 0);
}

#if defined(__x86_64__)
static __attribute__((target("bmi2"))) void lanes_of_bmi2(struct pair_encoder *e, size_t n_pairs,
							  uint32_t ret_bytes[PAIR_LANES])
{
	lanes_of(e, n_pairs, ret_bytes);
}
#endif

static void write_lanes(struct pair_encoder *e, size_t n_pairs, uint32_t ret_bytes[PAIR_LANES])
{
#if defined(__x86_64__)
	if (cpu_path() >= CPU_AVX2) {
		lanes_of_bmi2(e, n_pairs, ret_bytes);
		return;
	}
#endif
	lanes_of(e, n_pairs, ret_bytes);
}

static void write_offsets(struct writer *w, const struct classes *classes, const uint8_t *bytes,
			  size_t n)
{
	size_t row_bytes = (size_t)8 * classes->offset_bits;

	if (n / PAIR_ROW * row_bytes > w->capacity - w->at) {
		w->is_full = true;
		return;
	}
	for (size_t i = 0; i < n; i += PAIR_ROW, w->at += row_bytes)
		row_pack(bytes + i, (uint8_t)classes->shift, classes->offset_bits, w->dst + w->at);
}

/*
 * Of a page with a spike the offsets of the other symbols, one after the other. Returns
 * their bytes, at most the page's and eight.
 */
static inline __attribute__((always_inline)) size_t
spiked_offsets(const struct classes *classes, const uint8_t *bytes, size_t n,
	       uint64_t (*pack)(uint64_t word, uint64_t mask), uint8_t *ret_dst)
{
	const uint64_t ones = 0x0101010101010101ULL, high = 0x80 * ones;
	const uint64_t spike = classes->spike * ones, shift = classes->shift * ones;
	uint64_t bits = 0;
	size_t at = 0;
	uint32_t n_bits = 0;

	for (size_t i = 0; i < n; i += 8) {
		uint64_t word = bytes_load64(bytes + i), others = word ^ spike;

		/* The lowest bit of each byte that is no spike, then its k bits. */
		others = (((others & ~high) + ~high) | others) >> 7 & ones;
		others *= (1U << classes->offset_bits) - 1;
		word = ((word | high) - (shift & ~high)) ^ ((word ^ ~shift) & high);
		/* At most 40 bits, and 7 from before. */
		bits |= pack(word, others) << n_bits;
		n_bits += (uint32_t)__builtin_popcountll(others);
		bytes_store64(ret_dst + at, bits);
		at += n_bits >> 3;
		bits >>= n_bits & 56;
		n_bits &= 7;
	}
	return at + (n_bits > 0);
}

/* The bits of `word` that `mask` has, moved together: of each byte the lowest ones. */
static inline __attribute__((always_inline)) uint64_t bits_pack(uint64_t word, uint64_t mask)
{
	uint64_t packed = 0;
	uint32_t n = 0;

	for (unsigned j = 0; j < 64; j += 8) {
		uint32_t kept = mask >> j & 0xff;

		packed |= (word >> j & kept) << n;
		n += (uint32_t)__builtin_popcount(kept);
	}
	return packed;
}

#if defined(__x86_64__)
static inline __attribute__((always_inline, target("bmi2"))) uint64_t bits_pack_bmi2(uint64_t word,
										    uint64_t mask)
{
	return __builtin_ia32_pext_di(word, mask);
}

static __attribute__((target("bmi2,popcnt"))) size_t
spiked_offsets_bmi2(const struct classes *classes, const uint8_t *bytes, size_t n, uint8_t *ret_dst)
{
	return spiked_offsets(classes, bytes, n, bits_pack_bmi2, ret_dst);
}
#endif

/* By way of the lanes' memory: they are written. */
static void write_spiked_offsets(struct writer *w, struct pair_encoder *e,
				 const struct classes *classes, const uint8_t *bytes, size_t n)
{
	size_t n_bytes;

#if defined(__x86_64__)
	if (cpu_path() >= CPU_AVX2)
		n_bytes = spiked_offsets_bmi2(classes, bytes, n, e->lanes);
	else
#endif
		n_bytes = spiked_offsets(classes, bytes, n, bits_pack, e->lanes);
	writer_bytes(w, e->lanes, n_bytes);
}

/* Where the pairs that need a patch stand. A branch for each would be taken by chance. */
static uint32_t find_patched(struct pair_encoder *e, size_t n_pairs)
{
	uint32_t n_found = 0;

	for (size_t block = 0; block < n_pairs; block += BLOCK_PAIRS) {
		uint32_t lanes = e->patched_lanes[block / BLOCK_PAIRS];

		if (!lanes)
			continue;
		for (size_t row = block; row < block + BLOCK_PAIRS; row += PAIR_LANES) {
			for (uint32_t left = lanes; left; left &= left - 1) {
				size_t i = row + (unsigned)__builtin_ctz(left);

				e->patched[n_found] = (uint32_t)i;
				n_found += (e->code[e->pairs[i]] & CODE_PATCHED) != 0;
			}
		}
	}
	return n_found;
}

/* How many digits the escapes took. */
static uint32_t write_patches(struct writer *w, struct pair_encoder *e, const uint8_t *bytes,
			      size_t n_pairs)
{
	uint32_t n_patched = find_patched(e, n_pairs), n_digits = 0;

	for (uint32_t i = 0; i < n_patched; i++) {
		uint32_t pair = e->pairs[e->patched[i]];

		if (e->length[pair] == 0)
			writer_put(w, pair, 10);
	}
	writer_align(w);
	for (uint32_t i = 0; i < n_patched; i++) {
		uint32_t pair = e->pairs[e->patched[i]];

		for (unsigned j = 0; j < 2; j++) {
			uint8_t value = bytes[2 * e->patched[i] + j];

			if ((pair >> (5 * j) & 31) != PAIR_ESCAPE)
				continue;
			writer_put(w, e->digit[value], 4);
			n_digits++;
			if (e->digit[value] == PAIR_COMMON_ESCAPES) {
				writer_put(w, value, 8);
				n_digits += 2;
			}
		}
	}
	writer_align(w);
	return n_digits;
}

int pair_encode(struct pair_encoder *e, unsigned element_bytes, const uint8_t *src, size_t src_bytes,
		 uint8_t *dst, size_t dst_capacity, size_t *ret_bytes)
{
	size_t n = src_bytes / element_bytes / PAIR_BLOCK * PAIR_BLOCK;
	struct writer w = {.dst = dst, .capacity = dst_capacity};
	uint32_t lane_bytes[PAIR_LANES], n_digits;
	const uint8_t *bytes = src;
	struct classes classes;
	struct sample sample;
	bool spiked;

	if (n == 0 || src_bytes > CONTAINER_MAX_PAGE_BYTES)
		return CODEC_E_INCOMPRESSIBLE;
	if (element_bytes > 1) {
		planes_of(element_bytes == 2 ? CODEC_ZSTD_PLANES_16 : CODEC_ZSTD_PLANES_32)
			->split(src, n, e->planes);
		bytes = e->planes;
	}
	sample_take(bytes, n, &sample);
	classes_best(&sample, &classes);
	memset(e->common, 0, sizeof(e->common));
	memset(e->digit, PAIR_COMMON_ESCAPES, sizeof(e->digit));
	(void)count_digits(&classes, sample.count, e->common, e->digit);
	pairs_of(&classes, bytes, n, e->pairs);
	count_pairs(e, &classes, n / 2);
	spiked = classes.spike != NO_SPIKE;
	weights_choose(e, &classes, (uint32_t)n);
	code_choose(e, (uint32_t)(n / 2));
	code_assign(e);

	writer_put(&w, classes.offset_bits | (spiked ? PAIR_SPIKED : 0), 8);
	writer_put(&w, classes.shift, 8);
	writer_put(&w, e->n_rare, 32);
	writer_put(&w, 0, 32); /* digits, when they are written */
	if (spiked) {
		writer_put(&w, classes.spike, 8);
		writer_put(&w, classes.n_spikes, 32);
	}
	writer_bytes(&w, classes.bitmap, 32U >> classes.offset_bits);
	write_code(&w, e);
	if (classes.n_escapes)
		writer_bytes(&w, e->common, sizeof(e->common));
	write_lanes(e, n / 2, lane_bytes);
	for (unsigned lane = 0; lane < PAIR_LANES; lane++)
		writer_put(&w, lane_bytes[lane], 16);
	for (unsigned lane = 0; lane < PAIR_LANES; lane++)
		writer_bytes(&w, e->lanes + (size_t)lane * PAIR_LANE_STRIDE, lane_bytes[lane]);
	if (element_bytes > 1)
		writer_bytes(&w, e->planes + n, n * (element_bytes - 1));
	if (spiked)
		write_spiked_offsets(&w, e, &classes, bytes, n);
	else if (classes.offset_bits)
		write_offsets(&w, &classes, bytes, n);
	n_digits = write_patches(&w, e, bytes, n / 2);
	writer_bytes(&w, src + n * element_bytes, src_bytes - n * element_bytes);
	if (w.is_full)
		return CODEC_E_INCOMPRESSIBLE;
	bytes_store32(dst + 6, n_digits);
	*ret_bytes = w.at;
	return 0;
}
