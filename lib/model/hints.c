/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Measures how a tensor could be stored. Owns a codec context and three pages. Times are the least of
 * a few tries, which leaves out what else the machine did; they make no two runs alike, so nothing but
 * the table of hints may depend on them. One thread, so that the times are those of one core.
 */
#include "model/hints.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/cpu.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "codec/codec.h"
#include "model/plan.h"

#define N_SAMPLES     8 /* pages a tensor, as when a codec is chosen: untuned */
#define DECODE_TRIES  5
#define ENCODE_TRIES  2
#define EFFORT_NORMAL 1
#define EFFORT_DENSE  2
#define PS_PER_NS     1000

struct hints {
	struct codec_context *codec;
	uint8_t *page, *stored, *decoded; /* PACK_PAGE_BYTES each */
};

/* One codec at one effort, over the pages tried so far. */
struct way {
	uint8_t codec, effort;
	uint64_t decoded_bytes, stored_bytes, decode_ns, encode_ns;
	uint64_t last_bytes; /* stored, of the last page */
};

struct hints *hints_free(struct hints *hints)
{
	if (!hints)
		return NULL;
	codec_context_free(hints->codec);
	memory_free(hints->page);
	memory_free(hints->stored);
	memory_free(hints->decoded);
	return memory_free(hints);
}

struct hints *hints_new(void)
{
	struct hints *hints = memory_zalloc(sizeof(*hints));

	if (!hints)
		return NULL;
	hints->codec = codec_context_new_encoder();
	hints->page = memory_alloc(PACK_PAGE_BYTES);
	hints->stored = memory_alloc(PACK_PAGE_BYTES);
	hints->decoded = memory_alloc(PACK_PAGE_BYTES);
	if (!hints->codec || !hints->page || !hints->stored || !hints->decoded)
		return hints_free(hints);
	return hints;
}

/* Stores the page in hand that way, and decodes it again; pages that do not shrink are raw. */
static int try_page(struct hints *hints, struct way *way, uint32_t n_bytes)
{
	uint64_t least_encode = UINT64_MAX, least_decode = UINT64_MAX;
	unsigned n_encodes = way->effort > EFFORT_NORMAL ? 1 : ENCODE_TRIES;
	uint8_t codec = way->codec;
	size_t stored = n_bytes;

	for (unsigned i = 0; i < n_encodes; i++) {
		uint64_t start = clock_now_ns();
		int r = codec_encode(hints->codec, codec, way->effort, hints->page, n_bytes,
				     hints->stored, codec == CODEC_RAW ? n_bytes : n_bytes - 1,
				     &stored);

		if (r < 0)
			return message_set(r, "cannot encode: %s", strerror(-r));
		least_encode = min_u64(least_encode, clock_now_ns() - start);
		if (r) {
			codec = CODEC_RAW;
			stored = n_bytes;
			memcpy(hints->stored, hints->page, n_bytes);
			break;
		}
	}
	for (unsigned i = 0; i < DECODE_TRIES; i++) {
		uint64_t start = clock_now_ns();

		if (codec_decode(hints->codec, codec, hints->stored, stored, hints->decoded, n_bytes))
			return message_set(-EILSEQ, "codec %s cannot decode its own page",
					   codec_name(codec));
		least_decode = min_u64(least_decode, clock_now_ns() - start);
	}
	way->decoded_bytes += n_bytes;
	way->stored_bytes += stored;
	way->decode_ns += least_decode;
	way->encode_ns += least_encode;
	way->last_bytes = stored;
	return 0;
}

static uint32_t picoseconds(uint64_t ns, uint64_t n_bytes)
{
	return (uint32_t)min_u64(max_u64(ns * PS_PER_NS / n_bytes, 1), UINT32_MAX);
}

/* value * part / whole without overflow where part is at most whole, and both are of a few pages. */
static uint64_t scaled(uint64_t value, uint64_t part, uint64_t whole)
{
	return value / whole * part + value % whole * part / whole;
}

static struct container_hint hint_of(const struct way *way, uint64_t tensor, uint64_t n_bytes)
{
	return (struct container_hint){
		.tensor = tensor,
		.stored_bytes = scaled(n_bytes, way->stored_bytes, way->decoded_bytes),
		.decode_ps = picoseconds(way->decode_ns, way->decoded_bytes),
		.encode_ps = picoseconds(way->encode_ns, way->decoded_bytes),
		.codec = way->codec,
		.effort = way->effort,
		.path = (uint8_t)cpu_path(),
	};
}

static int compare_ways(const void *a, const void *b)
{
	const struct container_hint *x = a, *y = b;

	if (x->decode_ps != y->decode_ps)
		return x->decode_ps < y->decode_ps ? -1 : 1;
	if (x->stored_bytes != y->stored_bytes)
		return x->stored_bytes < y->stored_bytes ? -1 : 1;
	if (x->encode_ps != y->encode_ps)
		return x->encode_ps < y->encode_ps ? -1 : 1;
	return x->codec < y->codec ? -1 : x->codec > y->codec;
}

unsigned hints_keep_best(struct container_hint *ways, unsigned n)
{
	unsigned n_kept = 0;

	qsort(ways, n, sizeof(*ways), compare_ways);
	for (unsigned i = 0; i < n; i++)
		if (n_kept == 0 || ways[i].stored_bytes < ways[n_kept - 1].stored_bytes)
			ways[n_kept++] = ways[i];
	return n_kept;
}

/* Does the effort change what the codec stores? */
static bool has_efforts(uint8_t codec)
{
	return codec != CODEC_RAW && !codec_has_paths(codec);
}

/*
 * The dense effort is slow, so one page must do: the last, on which the normal effort was measured
 * too. What it saves there it is taken to save everywhere.
 */
static int measure_dense(struct hints *hints, const struct container_hint *normal,
			 const struct way *way, uint32_t n_bytes, struct container_hint *ret_hint)
{
	struct way dense = { .codec = way->codec, .effort = EFFORT_DENSE };
	struct container_hint hint;
	int r = try_page(hints, &dense, n_bytes);

	if (r)
		return r;
	hint = hint_of(&dense, normal->tensor, n_bytes);
	hint.stored_bytes = dense.last_bytes < way->last_bytes ?
				    scaled(normal->stored_bytes, dense.last_bytes, way->last_bytes) :
				    normal->stored_bytes;
	*ret_hint = hint;
	return 0;
}

int hints_measure(struct hints *hints, const struct plan *plan, uint64_t id,
		  struct container_hint ret_hints[CONTAINER_MAX_HINTS], unsigned *ret_n)
{
	const struct plan_tensor *tensor = &plan->tensors[id];
	uint64_t n_samples = min_u64(N_SAMPLES, tensor->n_pages);
	struct container_hint found[2 * CODEC_MAX_CANDIDATES];
	struct way ways[CODEC_MAX_CANDIDATES];
	uint8_t ids[CODEC_MAX_CANDIDATES];
	unsigned n_ways = codec_candidates(tensor->tensor->dtype, ids), n = 0;
	uint32_t n_bytes = 0;
	int r = 0;

	_Static_assert(2 * CODEC_MAX_CANDIDATES <= CONTAINER_MAX_HINTS, "they are all kept at worst");
	if (tensor->same_as != PLAN_UNIQUE || n_samples == 0) {
		*ret_n = 0;
		return 0;
	}
	for (unsigned k = 0; k < n_ways; k++)
		ways[k] = (struct way){ .codec = ids[k], .effort = EFFORT_NORMAL };
	for (uint64_t i = 0; i < n_samples; i++) {
		uint64_t page = n_samples > 1 ? i * (tensor->n_pages - 1) / (n_samples - 1) : 0;

		n_bytes = plan_page_bytes(tensor, page);
		r = plan_read_page(plan, tensor, page, hints->page);
		for (unsigned k = 0; !r && k < n_ways; k++)
			r = try_page(hints, &ways[k], n_bytes);
		if (r)
			return r;
	}
	for (unsigned k = 0; !r && k < n_ways; k++) {
		struct container_hint *normal = &found[n++];

		*normal = hint_of(&ways[k], id, tensor->tensor->n_bytes);
		if (has_efforts(ways[k].codec))
			r = measure_dense(hints, normal, &ways[k], n_bytes, &found[n++]);
	}
	if (r)
		return r;
	n = hints_keep_best(found, n);
	memcpy(ret_hints, found, n * sizeof(found[0]));
	*ret_n = n;
	return 0;
}
