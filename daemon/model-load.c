/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Loading a container. Owns what it builds until it succeeds; refuses files that are damaged,
 * truncated or do not fit the budget. Loader thread; pages are verified on the decode threads, in
 * batches. Memory is charged before it exists, and nothing is published that was not verified.
 */
#include "model-load.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/cleanup.h"
#include "base/hash.h"
#include "base/memory.h"
#include "base/message.h"
#include "base/range.h"
#include "codec/codec.h"
#include "hugepage.h"
#include "model/container.h"
#include "placement.h"

#define READ_BYTES (8ULL << 20) /* large enough for readahead, small enough to cancel; untuned */
#define VERIFY_PAGES 64		/* pages a verifying job: 16 MiB decoded; untuned */
#define MINIMAL_CHUNK HUGEPAGE_BYTES
#define ROOM_TRIES 250 /* of 10 ms: a second until the store looks, and time for clients to unmap */

struct verify_batch {
	pthread_mutex_t mutex;
	pthread_cond_t finished;
	uint64_t n_left;
	int result;
	char message[512];
};

struct verify_job {
	struct pool_job job;
	struct verify_batch *batch;
	const struct index *index;
	uint64_t tensor, first_page, n_pages; /* first_page: of the tensor, for messages */
	const struct container_page *pages;
	const struct region *segment;
};

void loaded_model_close(struct loaded_model *loaded)
{
	for (uint32_t i = 0; i < loaded->n_segments; i++)
		region_close(&loaded->segments[i]);
	loaded->segments = memory_free(loaded->segments);
	loaded->n_segments = 0;
	for (uint32_t i = 0; i < loaded->n_files; i++)
		region_close(&loaded->files[i]);
	loaded->files = memory_free(loaded->files);
	loaded->n_files = 0;
	region_close(&loaded->index);
	region_close(&loaded->placement);
}

static bool is_cancelled(const struct model_load *load)
{
	return __atomic_load_n(load->cancelled, __ATOMIC_RELAXED);
}

static int verify_page(const struct verify_job *job, uint64_t i)
{
	const struct container_page *page = &job->pages[i];
	const struct container_tensor *tensor;
	const char *what = NULL, *name = "?";
	uint64_t hash;

	if (!range_fits(page->offset, page->stored_bytes, job->segment->n_bytes)) {
		what = "lies outside its segment";
	} else {
		hash = hash_64((const uint8_t *)job->segment->data + page->offset,
			       page->stored_bytes);
		if (hash != page->stored_hash ||
		    (page->codec == CODEC_RAW && hash != page->decoded_hash))
			what = "is damaged";
	}
	if (!what)
		return 0;
	if (!index_tensor(job->index, job->tensor, &tensor))
		(void)index_tensor_name(job->index, tensor, &name);
	return message_set(STORE_E_CORRUPT, "tensor '%s' page %llu %s (at %llu of its segment)",
			   name, (unsigned long long)(job->first_page + i), what,
			   (unsigned long long)page->offset);
}

static bool verify_run(struct pool_job *base, struct codec_context *codec)
{
	struct verify_job *job = (struct verify_job *)base;
	struct verify_batch *batch = job->batch;
	int r = 0;

	for (uint64_t i = 0; i < job->n_pages && !r; i++)
		r = verify_page(job, i);
	memory_free(job);
	pthread_mutex_lock(&batch->mutex);
	if (r && !batch->result) {
		batch->result = r;
		(void)snprintf(batch->message, sizeof(batch->message), "%s", message_get());
	}
	if (--batch->n_left == 0)
		pthread_cond_signal(&batch->finished);
	pthread_mutex_unlock(&batch->mutex);
	return false;
}

static int submit_form(struct model_load *load, struct verify_batch *batch, uint64_t tensor,
		       const struct container_form *form)
{
	const struct index *index = &load->loaded.catalog;

	for (uint64_t first = 0; first < form->n_pages; first += VERIFY_PAGES) {
		struct verify_job *job = memory_zalloc(sizeof(*job));
		int r = job ? 0 : -ENOMEM;

		if (r)
			return r;
		*job = (struct verify_job){
			.job.run = verify_run,
			.batch = batch,
			.index = index,
			.tensor = tensor,
			.first_page = form->first_page + first,
			.n_pages = min_u64(VERIFY_PAGES, form->n_pages - first),
			.segment = &load->loaded.segments[form->segment],
		};
		r = index_pages(index, form->page_record + first, job->n_pages, &job->pages);
		if (r) {
			memory_free(job);
			return r;
		}
		pthread_mutex_lock(&batch->mutex);
		batch->n_left++;
		pthread_mutex_unlock(&batch->mutex);
		pool_submit(load->verifiers, &job->job, false);
	}
	return 0;
}

static int submit_tensor(struct model_load *load, struct verify_batch *batch, uint64_t id)
{
	const struct container_tensor *tensor;
	const struct container_form *form;
	int r = index_tensor(&load->loaded.catalog, id, &tensor);

	if (r)
		return r;
	load->loaded.decoded_bytes += tensor->n_bytes;
	if (tensor->n_bytes) {
		r = placement_form(&load->loaded.catalog, tensor, &form);
		if (!r && !(form->flags & CONTAINER_FORM_RAW))
			load->loaded.coded_bytes += tensor->n_bytes;
	}
	if (tensor->flags & CONTAINER_TENSOR_SHARED) /* verified with the earlier one */
		return r;
	for (uint32_t i = 0; i < tensor->n_forms && !r; i++) {
		r = index_form(&load->loaded.catalog, tensor->first_form + i, &form);
		if (!r && form->segment >= load->loaded.n_segments)
			r = message_set(STORE_E_CORRUPT, "a form lies in no segment");
		if (!r)
			r = submit_form(load, batch, id, form);
	}
	return r;
}

static int verify_all(struct model_load *load)
{
	struct verify_batch batch = {.n_left = 1}; /* ours, until all are submitted */
	int r = 0;

	(void)pthread_mutex_init(&batch.mutex, NULL);
	(void)pthread_cond_init(&batch.finished, NULL);
	for (uint64_t id = 0; id < load->loaded.catalog.n_tensors && !r; id++)
		r = submit_tensor(load, &batch, id);
	pthread_mutex_lock(&batch.mutex);
	batch.n_left--;
	while (batch.n_left)
		pthread_cond_wait(&batch.finished, &batch.mutex);
	pthread_mutex_unlock(&batch.mutex);
	if (!r && batch.result)
		r = message_set(batch.result, "%s", batch.message);
	(void)pthread_cond_destroy(&batch.finished);
	(void)pthread_mutex_destroy(&batch.mutex);
	return r;
}

static int load_segment(struct model_load *load, const struct container *container, uint32_t id)
{
	struct region *region = &load->loaded.segments[id];
	const struct container_segment *segment;
	struct charge charge = {0};
	int r = index_segment(&container->index, id, &segment);

	if (!r)
		r = budget_charge(load->budget, BUDGET_INFLIGHT, segment->n_bytes, &charge);
	if (!r)
		r = region_create("dcmem-segment", segment->n_bytes, load->config, region);
	if (r) {
		charge_release(&charge);
		return r;
	}
	region->charge = charge;
	if (load->config->huge_pages && region->n_bytes >= HUGEPAGE_BYTES &&
	    !hugepage_populate(region->data, region->n_bytes))
		load->loaded.n_small_pages++;
	for (uint64_t at = 0; at < region->n_bytes && !r; at += READ_BYTES) {
		if (is_cancelled(load))
			return message_set(-ECANCELED, "loading was given up");
		r = container_read_segment(container, id, at, (uint8_t *)region->data + at,
					   min_u64(READ_BYTES, region->n_bytes - at));
	}
	return r;
}

/* All or nothing, before anything is touched; others may still be faster in between. */
/* Idle windows of other models give way, but their clients have to unmap them first. */
static bool wait_for_room(struct model_load *load, uint64_t need)
{
	const struct timespec pause = {.tv_nsec = 10000000};

	__atomic_store_n(&load->wanted, need, __ATOMIC_RELEASE);
	for (unsigned try = 0; try < ROOM_TRIES; try++) {
		if (budget_has_room(load->budget, need) || is_cancelled(load))
			break;
		(void)nanosleep(&pause, NULL);
	}
	__atomic_store_n(&load->wanted, 0, __ATOMIC_RELEASE);
	return budget_has_room(load->budget, need);
}

static int check_budget(struct model_load *load, const struct container *container)
{
	uint64_t need = container->header.index_bytes +
			placement_bytes(container->index.n_tensors) + MINIMAL_CHUNK;

	for (uint64_t i = 0; i < container->index.n_segments; i++) {
		const struct container_segment *segment;
		int r = index_segment(&container->index, i, &segment);

		if (r)
			return r;
		if (!range_add(need, segment->n_bytes, &need))
			return message_set(STORE_E_CORRUPT, "segments of more than 2^64 bytes");
	}
	for (uint64_t i = 0; i < container->index.n_files; i++) {
		const struct container_file *file;
		int r = index_file(&container->index, i, &file);

		if (r)
			return r;
		if (!range_add(need, max_u64(file->blob_bytes, 1), &need))
			return message_set(STORE_E_CORRUPT, "files of more than 2^64 bytes");
	}
	if (!wait_for_room(load, need)) {
		struct budget now;

		budget_get(load->budget, &now);
		return message_set(STORE_E_BUDGET,
				   "the model needs %llu bytes, and %llu of the budget of %llu are "
				   "in use: unload a model or raise the budget",
				   (unsigned long long)need, (unsigned long long)now.total,
				   (unsigned long long)now.limit);
	}
	return 0;
}

/* A file may be empty, a mapping may not: then it has one byte, which nobody is told of. */
static int load_file(struct model_load *load, const struct container *container, uint32_t id)
{
	struct region *region = &load->loaded.files[id];
	_cleanup_(cleanup_memory) void *data = NULL;
	const struct container_file *file;
	struct charge charge = {0};
	int r = index_file(&container->index, id, &file);

	if (!r)
		r = budget_charge(load->budget, BUDGET_INFLIGHT, max_u64(file->blob_bytes, 1),
				  &charge);
	if (!r)
		r = container_read_blob(container, file, &data);
	if (!r)
		r = region_create("dcmem-file", max_u64(file->blob_bytes, 1), NULL, region);
	if (r) {
		charge_release(&charge);
		return r;
	}
	region->charge = charge;
	memcpy(region->data, data, file->blob_bytes);
	return region_seal_immutable(region);
}

static int load_tables(struct model_load *load, const struct container *container)
{
	struct loaded_model *loaded = &load->loaded;
	uint64_t n_bytes = container->header.index_bytes;
	struct charge charge = {0};
	int r = budget_charge(load->budget, BUDGET_INFLIGHT, n_bytes, &charge);

	if (!r)
		r = region_create("dcmem-index", n_bytes, NULL, &loaded->index);
	if (r) {
		charge_release(&charge);
		return r;
	}
	loaded->index.charge = charge;
	memcpy(loaded->index.data, container->index_bytes, n_bytes);
	r = region_seal_immutable(&loaded->index);
	if (!r)
		r = index_init(&loaded->catalog, loaded->index.data, n_bytes);
	charge = (struct charge){0};
	if (!r)
		r = budget_charge(load->budget, BUDGET_INFLIGHT,
				  placement_bytes(loaded->catalog.n_tensors), &charge);
	if (!r)
		r = placement_create(&loaded->catalog, &loaded->placement);
	if (r)
		charge_release(&charge);
	else
		loaded->placement.charge = charge;
	return r;
}

static int load_regions(struct model_load *load, const struct container *container)
{
	struct loaded_model *loaded = &load->loaded;
	uint32_t n_segments = (uint32_t)container->index.n_segments;
	uint32_t n_files = (uint32_t)container->index.n_files;
	int r = check_budget(load, container);

	memcpy(loaded->fingerprint, container->header.fingerprint, sizeof(loaded->fingerprint));
	if (!r)
		r = load_tables(load, container);
	if (r)
		return r;
	loaded->files = memory_array(n_files ? n_files : 1, sizeof(*loaded->files));
	if (!loaded->files)
		return -ENOMEM;
	for (uint32_t i = 0; i < n_files; i++)
		loaded->files[i] = REGION_NONE;
	loaded->n_files = n_files;
	for (uint32_t i = 0; i < n_files && !r; i++)
		r = load_file(load, container, i);
	if (r)
		return r;
	loaded->segments = memory_array(n_segments ? n_segments : 1, sizeof(*loaded->segments));
	if (!loaded->segments)
		return -ENOMEM;
	for (uint32_t i = 0; i < n_segments; i++)
		loaded->segments[i] = REGION_NONE;
	loaded->n_segments = n_segments;
	for (uint32_t i = 0; i < n_segments && !r; i++)
		r = load_segment(load, container, i);
	if (!r)
		r = verify_all(load);
	for (uint32_t i = 0; i < n_segments && !r; i++)
		r = region_seal_immutable(&loaded->segments[i]);
	return r;
}

static bool load_run(struct pool_job *base, struct codec_context *codec)
{
	struct model_load *load = (struct model_load *)base;
	struct container container;
	int r;

	message_clear();
	if (is_cancelled(load)) {
		r = message_set(-ECANCELED, "loading was given up");
	} else {
		r = container_open(&container, load->path);
		if (!r) {
			r = load_regions(load, &container);
			if (r)
				message_prefix(r, "%s", load->path);
			container_close(&container);
		}
	}
	load->result = r;
	if (r) {
		(void)snprintf(load->message, sizeof(load->message), "%s", message_get());
		loaded_model_close(&load->loaded);
	}
	return true;
}

void model_load_init(struct model_load *load)
{
	*load = (struct model_load){.job.run = load_run};
	load->loaded.index = REGION_NONE;
	load->loaded.placement = REGION_NONE;
}
