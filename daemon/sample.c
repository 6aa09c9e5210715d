/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Samples: what the forms of a tensor would take, and how long, on this machine. A few of its pages
 * are encoded by every codec that its type may have, and decoded again. Owns its buffers; a job of
 * the background, one tensor long. Invariant: segment and model stay until it is done.
 */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "codec/codec.h"
#include "model/container.h"
#include "tuner.h"

#define SAMPLE_PAGES 3 /* first, middle, last; untuned */
#define PROBE_BYTES (8ULL << 20)
#define ENCODE_LEVEL 1 /* as the packer's */

struct sample {
	struct pool_job job;
	struct model *model;
	sample_done done;
	void *data;
	const struct container_tensor *tensor;
	struct held from;
	const uint8_t *stored;
	uint64_t n_pages;
	uint32_t slot;
	struct codec_context *codec;
	uint8_t *page, *coded, *again;
	volatile uint64_t sum; /* the probe's, so that it is not left out */
	struct sample_result result;
};

static struct sample *sample_free(struct sample *sample)
{
	codec_context_free(sample->codec);
	memory_free(sample->page);
	memory_free(sample->coded);
	memory_free(sample->again);
	return memory_free(sample);
}

/* The page as it is held, twice decoded: the first time it comes from memory, and codecs warm up. */
static int decode_held(struct sample *sample, uint64_t page, uint64_t n_bytes)
{
	const struct container_page *record = &sample->from.pages[page];
	struct sample_form *held = &sample->result.held;
	uint64_t at, start;
	int r = STORE_E_CORRUPT;

	if (!index_page_place(record, sample->from.pages_from, sample->from.stored_bytes, &at))
		return r;
	r = container_decode_page(sample->codec, record, sample->stored + at, sample->page, n_bytes);
	start = clock_now_ns();
	if (!r)
		r = container_decode_page(sample->codec, record, sample->stored + at, sample->page,
					  n_bytes);
	held->decode_ns += clock_now_ns() - start;
	held->stored += record->stored_bytes;
	held->decoded += n_bytes;
	if (held->codec == CODEC_RAW)
		held->codec = record->codec;
	return r;
}

/* As it would be served: the hashes of a page are part of decoding it. */
static int try_form(struct sample *sample, struct sample_form *form, uint64_t n_bytes)
{
	struct container_page record = {.codec = form->codec};
	uint64_t start = clock_now_ns();
	size_t stored = 0;
	int r = codec_encode(sample->codec, form->codec, ENCODE_LEVEL, sample->page, n_bytes,
			     sample->coded, n_bytes - 1, &stored);

	form->encode_ns += clock_now_ns() - start;
	form->decoded += n_bytes;
	if (r > 0) { /* this page would be raw */
		form->stored += n_bytes;
		return 0;
	}
	if (r)
		return r;
	form->stored += stored;
	record.stored_bytes = (uint32_t)stored;
	record.stored_hash = hash_64(sample->coded, stored);
	record.decoded_hash = hash_64(sample->page, n_bytes);
	start = clock_now_ns();
	r = container_decode_page(sample->codec, &record, sample->coded, sample->again, n_bytes);
	form->decode_ns += clock_now_ns() - start;
	if (r || memcmp(sample->again, sample->page, n_bytes) != 0)
		return message_set(STORE_E_CORRUPT, "%s does not give a page back",
				   codec_name(form->codec));
	return 0;
}

static int sample_page(struct sample *sample, uint64_t page)
{
	uint64_t n_bytes = index_page_bytes(sample->tensor, page);
	int r = decode_held(sample, page, n_bytes);

	for (uint32_t i = 0; i < sample->result.n_forms && !r; i++)
		r = try_form(sample, &sample->result.forms[i], n_bytes);
	return r;
}

/* Stored bytes are cold, but for what the samples touched at the edges. */
static void probe(struct sample *sample)
{
	uint64_t n = min_u64(PROBE_BYTES, sample->from.stored_bytes / 8 * 8), sum = 0, start, word;

	if (n < PROBE_BYTES / 8)
		return;
	start = clock_now_ns();
	for (uint64_t at = 0; at < n; at += sizeof(word)) {
		memcpy(&word, sample->stored + at, sizeof(word));
		sum += word;
	}
	sample->sum = sum;
	sample->result.read_ns = (double)(clock_now_ns() - start) / (double)n;
}

static bool sample_run(struct pool_job *base, struct codec_context *codec)
{
	struct sample *sample = (struct sample *)base;
	uint64_t last = sample->n_pages - 1;
	uint64_t pages[SAMPLE_PAGES] = {0, last / 2, last};
	int r = 0;

	for (unsigned i = 0; i < SAMPLE_PAGES && !r; i++)
		if (i == 0 || pages[i] != pages[i - 1])
			r = sample_page(sample, pages[i]);
	for (uint64_t i = 0; i < sample->n_pages && sample->result.held.codec == CODEC_RAW; i++)
		sample->result.held.codec = sample->from.pages[i].codec;
	if (!r)
		probe(sample);
	sample->result.result = r;
	return true;
}

static void sample_ran(struct pool_job *base)
{
	struct sample *sample = (struct sample *)base;
	struct model *model = sample->model;

	segment_leave(model, sample->slot);
	model->n_decoding--;
	sample->done(sample->data, &sample->result);
	sample_free(sample);
}

int sample_start(struct model *model, uint64_t tensor, sample_done done, void *data)
{
	struct sample *sample = memory_zalloc(sizeof(*sample));
	uint8_t ids[CODEC_MAX_CANDIDATES];
	struct index_shape shape;
	unsigned n_ids;
	int r;

	if (!sample)
		return -ENOMEM;
	sample->job = (struct pool_job){.run = sample_run, .done = sample_ran};
	sample->model = model;
	sample->done = done;
	sample->data = data;
	r = index_tensor(&model->loaded.catalog, tensor, &sample->tensor);
	if (!r)
		r = index_shape(sample->tensor, &shape);
	if (!r) {
		sample->codec = codec_context_new_encoder();
		sample->page = memory_alloc(sample->tensor->page_bytes);
		sample->coded = memory_alloc(sample->tensor->page_bytes);
		sample->again = memory_alloc(sample->tensor->page_bytes);
		if (!sample->codec || !sample->page || !sample->coded || !sample->again)
			r = -ENOMEM;
	}
	if (r) {
		sample_free(sample);
		return r;
	}
	sample->n_pages = shape.n_pages;
	n_ids = codec_candidates(sample->tensor->dtype, ids);
	for (unsigned i = 0; i < n_ids; i++)
		if (ids[i] != CODEC_RAW)
			sample->result.forms[sample->result.n_forms++].codec = ids[i];
	sample->from = model->loaded.held[tensor];
	sample->slot = sample->from.segment;
	sample->stored = (const uint8_t *)segment_use(model, sample->slot)->region.data +
			 sample->from.offset;
	model->n_decoding++;
	pool_submit(model->store->decoders, &sample->job, POOL_BACKGROUND);
	return 0;
}
