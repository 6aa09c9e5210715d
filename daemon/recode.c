/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Recoding: from the pages that a tensor has to the pages that it shall have. Owns the new segment
 * until it is published; refuses nothing silently: what does not decode to the same bytes is never
 * published. Jobs run on the decode threads, a few milliseconds at a time, one after the other; the
 * rest is the loop thread's. Invariant: the old segment and the model stay until the last job ended.
 *
 *   new segment    | page table | pages, end to end |     raw pages: 4 KiB-aligned, contiguous
 *
 * What is read back from the file has no table there: the index has it.
 */
#include "recode.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "codec/codec.h"
#include "hugepage.h"
#include "model/container.h"

#define SLICE_NS (3 * NS_PER_MS) /* of a job, before others may go first; untuned */
#define TABLE_ALIGN 4096

struct recode {
	struct pool_job job;
	struct recode_request request;
	recode_done done;
	void *data;
	bool cancelled; /* atomic */
	bool raw;	/* the new form may be read in place */
	/* What is read: copies, since the loop thread's may change. */
	const struct container_tensor *tensor;
	struct held from;
	const uint8_t *stored;
	uint32_t slot; /* of what is read, kept */
	const struct container_form *file_form; /* from_file */
	const struct container_page *file_pages;
	/* What is written. */
	struct region region;
	struct container_page *pages; /* in the region; not from_file */
	uint64_t n_pages, page, table_bytes, at; /* `at`: of the next page, from the end of the table */
	uint64_t populated;
	struct codec_context *codec;
	uint8_t *decoded, *again;
	bool finished;
	struct recode_result result;
};

static struct recode *recode_free(struct recode *recode)
{
	if (!recode)
		return NULL;
	region_close(&recode->region);
	codec_context_free(recode->codec);
	memory_free(recode->decoded);
	memory_free(recode->again);
	return memory_free(recode);
}

static uint64_t page_size(const struct recode *recode, uint64_t page)
{
	return index_page_bytes(recode->tensor, page);
}

static uint8_t *payload(const struct recode *recode)
{
	return (uint8_t *)recode->region.data + recode->table_bytes;
}

/* Raw pages are read where they lie, for long: huge pages pay. */
static void populate(struct recode *recode, uint64_t end)
{
	if (!recode->request.model->store->config.huge_pages || recode->request.codec != CODEC_RAW)
		return;
	while (recode->populated < end &&
	       recode->populated + HUGEPAGE_BYTES <= recode->region.n_bytes) {
		(void)hugepage_populate((uint8_t *)recode->region.data + recode->populated,
					HUGEPAGE_BYTES);
		recode->populated += HUGEPAGE_BYTES;
	}
}

static int decode_old(struct recode *recode, uint64_t page, uint8_t *dst)
{
	const struct container_page *record = &recode->from.pages[page];
	uint64_t at;

	if (!index_page_place(record, recode->from.pages_from, recode->from.stored_bytes, &at))
		return message_set(STORE_E_CORRUPT, "a page lies outside its form");
	return container_decode_page(recode->codec, record, recode->stored + at, dst,
				     page_size(recode, page));
}

/* One page, encoded and decoded again. */
static int encode_page(struct recode *recode, uint64_t page)
{
	uint64_t n = page_size(recode, page), room = recode->request.max_bytes - recode->at;
	uint8_t *dst = payload(recode) + recode->at;
	struct container_page record = {.offset = recode->at, .codec = recode->request.codec};
	size_t stored = 0;
	int r = CODEC_E_INCOMPRESSIBLE;

	if (record.codec != CODEC_RAW)
		r = codec_encode(recode->codec, record.codec, recode->request.effort,
				 recode->decoded, n, dst, min_u64(n - 1, room), &stored);
	if (r < 0)
		return r;
	if (r) { /* raw it is */
		if (n > room)
			return message_set(RECODE_E_LARGER, "page %llu does not fit what was estimated",
					   (unsigned long long)page);
		record.codec = CODEC_RAW;
		stored = n;
		memcpy(dst, recode->decoded, n);
	}
	record.stored_bytes = (uint32_t)stored;
	record.stored_hash = hash_64(dst, stored);
	record.decoded_hash = recode->from.pages[page].decoded_hash;
	recode->pages[page] = record;
	r = container_decode_page(recode->codec, &record, dst, recode->again, n);
	if (r || memcmp(recode->again, recode->decoded, n) != 0)
		return message_set(STORE_E_CORRUPT, "page %llu does not come back from %s",
				   (unsigned long long)page, codec_name(record.codec));
	recode->at += stored;
	return 0;
}

/* One page as the file has it; it was verified when the model was loaded, and is again. */
static int read_page(struct recode *recode, uint64_t page)
{
	const struct container_page *record = &recode->file_pages[page];
	uint64_t at, n = page_size(recode, page);
	uint8_t *dst;
	int r;

	if (!index_page_place(record, recode->file_form->offset, recode->request.max_bytes, &at))
		return message_set(STORE_E_CORRUPT, "a page lies outside its form");
	dst = payload(recode) + at;
	r = container_read_segment(&recode->request.model->loaded.file, recode->file_form->segment,
				   record->offset, dst, record->stored_bytes);
	if (!r)
		r = container_decode_page(recode->codec, record, dst, recode->again, n);
	if (!r && record->decoded_hash != recode->from.pages[page].decoded_hash)
		r = message_set(STORE_E_CORRUPT, "the file has other bytes by now");
	recode->at = max_u64(recode->at, at + record->stored_bytes);
	return r;
}

static int recode_page(struct recode *recode)
{
	uint64_t page = recode->page;
	int r;

	populate(recode, recode->table_bytes + recode->at + page_size(recode, page));
	if (recode->request.from_file) {
		r = read_page(recode, page);
	} else {
		r = decode_old(recode, page, recode->decoded);
		if (!r)
			r = encode_page(recode, page);
	}
	if (!r)
		recode->page++;
	return r;
}

static int recode_seal(struct recode *recode)
{
	uint64_t n_bytes = recode->table_bytes + recode->at;
	int r = n_bytes < recode->region.n_bytes ? region_shrink(&recode->region, n_bytes) : 0;

	recode->finished = true;
	recode->result.stored_bytes = recode->at;
	return r ? r : region_seal_immutable(&recode->region);
}

static bool recode_run(struct pool_job *base, struct codec_context *codec)
{
	struct recode *recode = (struct recode *)base;
	uint64_t start = clock_now_ns(), now = start;
	int r = 0;

	while (!r && recode->page < recode->n_pages && now - start < SLICE_NS) {
		if (__atomic_load_n(&recode->cancelled, __ATOMIC_RELAXED))
			r = message_set(RECODE_E_GONE, "given up");
		else
			r = recode_page(recode);
		now = clock_now_ns();
	}
	if (!r && recode->page == recode->n_pages)
		r = recode_seal(recode);
	recode->result.busy_ns += clock_now_ns() - start;
	recode->result.result = r;
	if (r)
		(void)snprintf(recode->result.message, sizeof(recode->result.message), "%s",
			       message_get());
	return true;
}

/* Every tensor that has these bytes is sent to the new segment. */
static int publish(struct recode *recode)
{
	struct model *model = recode->request.model;
	struct loaded_model *loaded = &model->loaded;
	const struct segment *segment;
	uint32_t slot, old = loaded->held[recode->request.tensor].segment;
	int r;

	charge_move(&recode->region.charge, BUDGET_COMPRESSED);
	r = segment_add(model, &recode->region, &slot);
	if (r)
		return r;
	segment = &loaded->segments[slot];
	for (uint64_t id = 0; id < loaded->catalog.n_tensors; id++) {
		struct held *held = &loaded->held[id];

		if (loaded->layout.owners[id] != recode->request.tensor)
			continue;
		*held = (struct held){
			.pages = segment->region.data,
			.offset = recode->table_bytes,
			.stored_bytes = recode->at,
			.segment = slot,
			.segment_generation = segment->generation,
			.generation = held->generation + 1,
			.raw = recode->raw,
			.own_pages = true,
		};
		if (recode->request.from_file) {
			held->pages = recode->file_pages;
			held->page_record = recode->file_form->page_record;
			held->pages_from = recode->file_form->offset;
			held->own_pages = false;
		}
		placement_write(&loaded->placement, id, held);
	}
	segment_retire(model, old);
	return 0;
}

static void recode_end(struct recode *recode)
{
	struct model *model = recode->request.model;
	struct store *store = model->store;
	struct recode_result *result = &recode->result;

	segment_leave(model, recode->slot);
	if (!result->result && model->retired) {
		result->result = RECODE_E_GONE;
		(void)snprintf(result->message, sizeof(result->message), "the model was unloaded");
	} else if (!result->result) {
		result->result = publish(recode);
	}
	model->n_decoding--;
	recode->done(recode->data, result);
	recode_free(recode);
	store_retry_waiting(store);
}

static void recode_ran(struct pool_job *base)
{
	struct recode *recode = (struct recode *)base;

	if (!recode->finished && __atomic_load_n(&recode->cancelled, __ATOMIC_RELAXED))
		recode->result.result = RECODE_E_GONE;
	if (recode->result.result || recode->finished)
		recode_end(recode);
	else
		pool_submit(recode->request.model->store->decoders, base, POOL_BACKGROUND);
}

void recode_cancel(struct recode *recode)
{
	__atomic_store_n(&recode->cancelled, true, __ATOMIC_RELAXED);
}

static int find_file_form(struct recode *recode)
{
	const struct index *index = &recode->request.model->loaded.catalog;
	int r = placement_form(index, recode->tensor, &recode->file_form);

	if (!r)
		r = index_pages(index, recode->file_form->page_record, recode->n_pages,
				&recode->file_pages);
	if (r)
		return r;
	recode->request.max_bytes = recode->file_form->stored_bytes;
	recode->raw = recode->file_form->flags & CONTAINER_FORM_RAW;
	return 0;
}

static int make_room(struct recode *recode)
{
	struct store *store = recode->request.model->store;
	uint64_t n_bytes = recode->table_bytes + recode->request.max_bytes;
	struct charge charge;
	int r = budget_charge(&store->budget, BUDGET_INFLIGHT, n_bytes, &charge);

	if (r == STORE_E_BUDGET && recode->request.over) {
		budget_charge_over(&store->budget, BUDGET_INFLIGHT, n_bytes, &charge);
		r = 0;
	}
	if (r)
		return r;
	r = region_create("dcmem-segment", n_bytes, &store->config, &recode->region);
	if (r) {
		charge_release(&charge);
		return r;
	}
	recode->region.charge = charge;
	if (!recode->request.from_file)
		recode->pages = recode->region.data;
	recode->codec = codec_context_new_encoder();
	recode->decoded = memory_alloc(recode->tensor->page_bytes);
	recode->again = memory_alloc(recode->tensor->page_bytes);
	if (!recode->codec || !recode->decoded || !recode->again)
		return message_set(-ENOMEM, "no memory to encode pages");
	return 0;
}

int recode_start(const struct recode_request *request, recode_done done, void *data,
		 struct recode **ret_recode)
{
	struct model *model = request->model;
	const struct held *held = &model->loaded.held[request->tensor];
	struct recode *recode = memory_zalloc(sizeof(*recode));
	struct index_shape shape;
	int r;

	if (!recode)
		return message_set(-ENOMEM, "no memory for a change");
	*recode = (struct recode){
		.job = {.run = recode_run, .done = recode_ran},
		.request = *request,
		.done = done,
		.data = data,
		.from = *held,
		.region = REGION_NONE,
	};
	r = index_tensor(&model->loaded.catalog, request->tensor, &recode->tensor);
	if (!r)
		r = index_shape(recode->tensor, &shape);
	if (!r) {
		recode->n_pages = shape.n_pages;
		recode->raw = request->codec == CODEC_RAW;
		recode->table_bytes = request->from_file ? 0 :
			align_up(shape.n_pages * sizeof(struct container_page), TABLE_ALIGN);
		r = request->from_file ? find_file_form(recode) : 0;
	}
	if (!r)
		r = make_room(recode);
	if (r) {
		recode_free(recode);
		return r;
	}
	recode->slot = held->segment;
	recode->stored = (const uint8_t *)segment_use(model, held->segment)->region.data + held->offset;
	model->n_decoding++;
	*ret_recode = recode;
	pool_submit(model->store->decoders, &recode->job, POOL_BACKGROUND);
	return 0;
}
