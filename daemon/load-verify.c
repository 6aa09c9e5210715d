/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Verifying what a load has read. Owns jobs for the decode threads, each a run of pages as they lie
 * in a segment, and refuses bytes that do not have their hash. Jobs are made as reading advances, by
 * whoever completes a read; a page is verified once, when all bytes up to its end are there.
 */
#include <errno.h>

#include "base/hash.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "codec/codec.h"
#include "load-fill.h"

#define RUN_PAGES 64 /* of a job: 16 MiB decoded; untuned */

struct verify_job {
	struct pool_job job;
	struct fill_segment *segment;
	uint64_t tensor, page, n_pages; /* the first, as in struct fill_segment, and how many */
};

static uint64_t tensor_id(const struct fill_segment *segment, uint64_t tensor)
{
	const struct layout *layout = &segment->fill->load->loaded.layout;

	return layout->order[segment->layout->first + tensor];
}

static int count_pages(const struct fill_segment *segment, uint64_t tensor, uint64_t *ret_n)
{
	const struct container_tensor *record;
	struct index_shape shape;
	int r = index_tensor(&segment->fill->load->loaded.catalog, tensor_id(segment, tensor),
			     &record);

	if (!r)
		r = index_shape(record, &shape);
	if (!r)
		*ret_n = shape.n_pages;
	return r;
}

static int verify_page(const struct fill_segment *segment, uint64_t tensor, uint64_t i)
{
	const struct loaded_model *loaded = &segment->fill->load->loaded;
	uint64_t id = tensor_id(segment, tensor), hash, at;
	const struct held *held = &loaded->held[id];
	const struct container_page *page = &held->pages[i];
	const struct container_tensor *record;
	const char *what = NULL, *name = "?";

	if (!index_page_place(page, held->pages_from, held->stored_bytes, &at)) {
		what = "lies outside its form";
	} else {
		hash = hash_64((const uint8_t *)segment->region->data + held->offset + at,
			       page->stored_bytes);
		if (hash != page->stored_hash ||
		    (page->codec == CODEC_RAW && hash != page->decoded_hash))
			what = "is damaged";
	}
	if (!what)
		return 0;
	if (!index_tensor(&loaded->catalog, id, &record))
		(void)index_tensor_name(&loaded->catalog, record, &name);
	return message_set(STORE_E_CORRUPT, "tensor '%s' page %llu %s (at %llu of its segment)",
			   name, (unsigned long long)i, what, (unsigned long long)page->offset);
}

static int verify_run(const struct verify_job *job)
{
	uint64_t tensor = job->tensor, page = job->page, n_of = 0;
	int r = count_pages(job->segment, tensor, &n_of);

	for (uint64_t left = job->n_pages; left && !r; left--) {
		while (page >= n_of && !r) {
			r = count_pages(job->segment, ++tensor, &n_of);
			page = 0;
		}
		if (!r)
			r = verify_page(job->segment, tensor, page++);
	}
	return r;
}

static bool verify_job_run(struct pool_job *base, struct codec_context *codec)
{
	struct verify_job *job = (struct verify_job *)base;
	struct fill_segment *segment = job->segment;
	struct fill *fill = segment->fill;
	int r = fill_is_over(fill) ? 0 : verify_run(job);

	memory_free(job);
	pthread_mutex_lock(&fill->mutex);
	if (r)
		fill_fail(fill, r);
	segment->n_verifying--;
	pthread_mutex_unlock(&fill->mutex);
	fill_settle(segment);
	fill_job_done(fill);
	return false;
}

/* Where the bytes of a page end in the segment. One without a place is verified too, to say so. */
static uint64_t page_end(const struct fill_segment *segment, uint64_t tensor, uint64_t i)
{
	const struct held *held =
		&segment->fill->load->loaded.held[tensor_id(segment, tensor)];
	uint64_t at;

	if (!index_page_place(&held->pages[i], held->pages_from, held->stored_bytes, &at))
		return 0;
	return held->offset + at + held->pages[i].stored_bytes;
}

/* As many pages from the cursor as are there, and moves it behind them. */
static int take_run(struct fill_segment *segment, uint64_t there, struct verify_job *run)
{
	uint64_t n_of;
	int r;

	run->tensor = segment->tensor;
	run->page = segment->page;
	while (segment->tensor < segment->layout->count) {
		r = count_pages(segment, segment->tensor, &n_of);
		if (r)
			return r;
		for (; segment->page < n_of; segment->page++, run->n_pages++)
			if (run->n_pages == RUN_PAGES ||
			    page_end(segment, segment->tensor, segment->page) > there)
				return 0;
		segment->tensor++;
		segment->page = 0;
	}
	return 0;
}

int verify_advance(struct fill_segment *segment)
{
	uint64_t there;

	while (segment->n_read < segment->n_pieces && segment->pieces[segment->n_read].is_read)
		segment->n_read++;
	there = segment->n_read < segment->n_pieces ? segment->pieces[segment->n_read].offset :
						      UINT64_MAX;
	for (;;) {
		struct verify_job *job = memory_zalloc(sizeof(*job));
		int r = job ? take_run(segment, there, job) : -ENOMEM;

		if (r || !job->n_pages) {
			memory_free(job);
			return r;
		}
		job->job.run = verify_job_run;
		job->segment = segment;
		segment->n_verifying++;
		segment->fill->n_jobs++;
		pool_submit(segment->fill->load->verifiers, &job->job, POOL_AHEAD);
	}
}

bool verify_is_complete(const struct fill_segment *segment)
{
	return segment->n_read == segment->n_pieces && segment->tensor == segment->layout->count &&
	       !segment->n_verifying;
}
